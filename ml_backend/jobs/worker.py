"""The worker: ``python -m ml_backend.jobs.worker [--queues train]``. Run as many as there are machines and GPUs for.

Jobs run in this process, so that loaded models stay loaded. A thread renews the job's lease meanwhile; if the process
dies, the lease runs out and any other worker (or this one, restarted) takes the job up again.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from rq import Queue
from rq.exceptions import StopRequested
from rq.executions import Execution
from rq.job import Job
from rq.scheduler import RQScheduler
from rq.serializers import JSONSerializer
from rq.worker import SimpleWorker

from ml_backend.core.errors import BackendError, QueueUnavailable
from ml_backend.core.settings import QUEUES, Settings, get_settings
from ml_backend.jobs.container import Container, get_container
from ml_backend.jobs.queue import connect, forget_executions
from ml_backend.jobs.training_scheduler import TrainingScheduler
from ml_backend.jobs.worker_status import WorkerStatus
from ml_backend.labeling.model_version import version_settings

log = logging.getLogger(__name__)

#: Seconds between two looks for what is left over in the data folder, and the name of the thread that looks.
LEFTOVERS_EVERY_S, CLEANER = 3600, "leftovers"


class LeaseQueue(Queue):  # type: ignore[misc]
    """A queue whose maintenance is not put off for RQ's 15 minutes when a worker is killed in the middle of it."""

    def acquire_maintenance_lock(self) -> bool:
        return bool(self.connection.set(self.registry_cleaning_key, 1, nx=True, ex=60))


#: Modules of jobs that 0.1.0 has left in the queue.
_MOVED = {
    f"ml_backend.jobs.{old}": f"ml_backend.jobs.{new}"
    for old, new in (
        ("tasks", "predict"),
        ("learning", "learn"),
        ("training", "train"),
        ("segments", "chunks"),
        ("control", "api_jobs"),
        ("control_media", "api_export_jobs"),
    )
}


class LeaseWorker(SimpleWorker):  # type: ignore[misc]
    """A worker that keeps its models and whose jobs survive its death."""

    def __init__(self, *args: Any, container: Container, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        settings = container.settings
        self.container, self.lease_s = container, settings.job_lease_s
        predicts = {"predict", "refresh"} & set(queues_of(settings))
        self.memory = WorkerStatus(container.queue, version_settings(settings) if predicts else None)
        self.trainer = TrainingScheduler(container)
        self._maintains_idle = False
        self._cleaned = -math.inf

    def bootstrap(self, *args: Any, **kwargs: Any) -> None:
        """Registers the worker. Asked to end from then on, it does so in order: RQ's own handlers come only later."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop_before_work)
        super().bootstrap(*args, **kwargs)

    def _stop_before_work(self, signum: int, frame: FrameType | None) -> None:
        self._stop_requested = True  # seen before the first job is looked for

    def dequeue_job_and_maintain_ttl(self, *args: Any, **options: Any) -> Any:
        """Wait for a job. RQ outlives a Redis that goes away while it waits, but not just before and after."""
        while True:
            try:
                return super().dequeue_job_and_maintain_ttl(*args, **options)
            except RedisConnectionError as error:
                # A job that was taken just now is found again: see JobQueue.recover_lost.
                log.warning("Redis does not answer; the worker waits for it: %s", error)
                time.sleep(1.0)

    def check_for_suspension(self, burst: bool) -> None:
        try:
            super().check_for_suspension(burst)
        except RedisConnectionError as error:  # whoever asks for a job next waits for Redis
            log.debug("Whether workers are suspended is not known: %s", error)

    def get_heartbeat_ttl(self, job: Job, working_time: float = 0.0) -> int:
        return self.lease_s

    def execute_job(self, job: Job, queue: Queue) -> None:
        package, _, function = job.func_name.rpartition(".")
        job.func_name = f"{_MOVED.get(package, package)}.{function}"
        execution = self.prepare_execution(job)
        forget_executions(job, keep=execution.id)
        over = threading.Event()
        keeper = threading.Thread(target=self._keep_lease, args=(job, execution, over), daemon=True)
        keeper.start()
        try:
            self.perform_job(job, queue, execution)
        finally:
            over.set()
            keeper.join(timeout=5)
        # After jobs that are long enough for the keeper's maintenance the main thread's is hardly ever due. Not when
        # the worker is idle: a signal would end this in the middle.
        if not self._stop_requested:
            self.trainer.tick()
        self.set_state("idle")

    def _keep_lease(self, job: Job, execution: Execution, over: threading.Event) -> None:
        while not over.wait(self.lease_s / 3):
            try:
                self.maintain_heartbeats(job, execution)
                self.run_maintenance_tasks()
            except RedisError as error:  # it may come back before the lease runs out
                log.warning("The job's lease was not renewed: %s", error)

    def run_maintenance_tasks(self) -> None:
        """Also move retries that are due; RQ's own scheduler is a separate process that would outlive a kill.

        What Redis is away for is done the next time.
        """
        if self._stop_requested:  # what waits is for the others
            return
        # The main thread does this only while no job runs.
        idle = threading.current_thread() is threading.main_thread()
        self._maintains_idle |= idle
        try:
            self._maintain()
        except RedisConnectionError as error:
            log.warning("Maintenance was left out, Redis does not answer: %s", error)
        finally:
            self._maintains_idle &= not idle
        if idle and self._stop_requested:
            raise StopRequested

    def _shutdown(self) -> None:
        # RQ ends an idle worker where the signal meets it: with locks in its hands others wait for a minute.
        if self._maintains_idle:
            self._stop_requested = True
        else:
            super()._shutdown()

    def _maintain(self) -> None:
        super().run_maintenance_tasks()
        scheduler = RQScheduler(
            self.queues,
            connection=self.connection,
            serializer=self.serializer,
            logging_level="WARNING",  # it sets its logger's level itself, and would tell of its locks each time
        )
        scheduler.acquire_locks()
        try:
            scheduler.enqueue_scheduled_jobs()
        finally:
            scheduler.release_locks()
        self.memory.tick(self.name, self.lease_s)
        # Between jobs only: a database that hangs must not cost a job its lease.
        if threading.current_thread() is threading.main_thread():
            self.trainer.tick()
        try:
            # It looks at every job: so less often than the rest, and one worker of all.
            if self.container.training_queue.my_turn("lost", 2 * self.lease_s):
                self.container.queue.recover_lost()
        except QueueUnavailable as error:  # next time, then
            log.warning("Lost jobs were not looked for: %s", error)
        now = time.monotonic()
        if now - self._cleaned >= LEFTOVERS_EVERY_S:
            self._cleaned = now
            # Aside: a hundred thousand pictures of an old export must not cost a job its lease.
            threading.Thread(target=self.container.remove_leftovers, name=CLEANER, daemon=True).start()

    def handle_exception(self, job: Job, *exc_info: Any) -> None:
        """Known errors have said in one line what is wrong; RQ would add a hundred lines of where."""
        if not isinstance(exc_info[1], BackendError):
            super().handle_exception(job, *exc_info)

    def request_stop(self, signum: int, frame: FrameType | None) -> None:
        """First signal: the job stops at its next frame, is put back, and the worker ends."""
        self.container.stop.set()
        super().request_stop(signum, frame)


def queues_of(settings: Settings) -> tuple[str, ...]:
    """The queues that a worker with these settings serves."""
    return settings.worker_queues or QUEUES


def make_worker(settings: Settings) -> LeaseWorker:
    """A worker on the queues of the settings.

    Raises:
        QueueUnavailable: Redis does not answer.
    """
    container = get_container()
    container.queue.ping()
    # Blocking reads wait for jobs, hence no socket time-out.
    connection = connect(settings, timeout=None)
    return LeaseWorker(
        [LeaseQueue(name, connection=connection, serializer=JSONSerializer) for name in queues_of(settings)],
        connection=connection,
        serializer=JSONSerializer,
        maintenance_interval=max(1, settings.job_lease_s // 3),
        worker_ttl=settings.job_lease_s + 15,
        job_monitoring_interval=settings.job_lease_s,
        container=container,
    )


def fetch_weights(settings: Settings) -> None:
    """Have the weights before the first job, and say which models are in use."""
    from ml_backend.detectors.weights import resolve_detector
    from ml_backend.labeling.modes import classifier_models

    try:
        detector = resolve_detector(settings, download=True)
        models = classifier_models(settings, settings.mode, download=True)
    except BackendError as error:
        log.error("%s", error)  # jobs say so again; the worker stays up for when it is cured
        return
    log.info("Detector: %s%s", detector.name, f" ({detector.note})" if detector.note else "")
    names = [model.name for model in (models.embedder, models.clip) if model]
    log.info("Labels: mode %s", " ".join([", ".join([models.mode, *names]), *models.notes]))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m ml_backend.jobs.worker", description="Does the queued work.")
    parser.add_argument("--queues", help=f"served, in this order; of {','.join(QUEUES)}  [WORKER_QUEUES, else all]")
    queues = parser.parse_args().queues
    if queues is not None:
        os.environ["WORKER_QUEUES"] = queues
    try:
        settings = get_settings()
    except BackendError as error:
        print(error, file=sys.stderr)
        return 1
    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for chatty in ("httpx", "rq.worker"):  # the jobs say themselves what they did
        logging.getLogger(chatty).setLevel(logging.WARNING)
    try:
        worker = make_worker(settings)
    except BackendError as error:
        log.error("%s", error)
        return 1
    served = queues_of(settings)
    if set(served) != {"train"}:
        fetch_weights(settings)
    log.info("Ready: listening on %s", ", ".join(served))
    worker.work(logging_level="WARNING")
    return 0


if __name__ == "__main__":
    sys.exit(main())
