"""The worker: ``python -m ml_backend.jobs.worker [--queues train]``. Run as many as machines and GPUs allow.

Jobs run in this process, so that loaded models stay loaded. A thread renews the job's lease meanwhile; if the process
dies, the lease expires and any worker retries the job.
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
from ml_backend.core.private_files import keep_files_private
from ml_backend.core.settings import QUEUES, Settings, get_settings
from ml_backend.jobs.container import Container, get_container
from ml_backend.jobs.known_job import KnownJob
from ml_backend.jobs.queue import connect, forget_executions
from ml_backend.jobs.redis_clock import RedisClock
from ml_backend.jobs.training_scheduler import TrainingScheduler
from ml_backend.jobs.worker_status import WorkerStatus
from ml_backend.labeling.model_version import version_settings

log = logging.getLogger(__name__)

#: Seconds between two cleanups of the data folder, and the name of the thread that does them.
CLEANUP_INTERVAL_S, CLEANUP_THREAD = 3600, "cleanup"
#: Seconds for which the worker waits for a Redis that is away before or after a job, which it would otherwise lose.
PATIENCE_S = 60


class LeaseQueue(Queue):  # type: ignore[misc]
    """A queue whose maintenance lock expires after a minute, not RQ's 15, when a worker is killed while holding it."""

    def acquire_maintenance_lock(self) -> bool:
        return bool(self.connection.set(self.registry_cleaning_key, 1, nx=True, ex=60))


class LeaseWorker(SimpleWorker):  # type: ignore[misc]
    """A worker that keeps models loaded and whose jobs survive its death."""

    def __init__(self, *args: Any, container: Container, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        settings = container.settings
        self.container, self.lease_s = container, settings.job_lease_s
        predicts = {"predict", "refresh"} & set(queues_of(settings))
        self.worker_status = WorkerStatus(container.queue, version_settings(settings) if predicts else None)
        self.training_scheduler = TrainingScheduler(container)
        self.clock = RedisClock(self.connection)
        self.clock.synchronize()
        self.clock.use()
        self._in_idle_maintenance = False
        self._cleaned_at = -math.inf

    def bootstrap(self, *args: Any, **kwargs: Any) -> None:
        """Register the worker. RQ installs its signal handlers only later; until then ours request an orderly stop."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop_before_work)
        super().bootstrap(*args, **kwargs)

    def _stop_before_work(self, signum: int, frame: FrameType | None) -> None:
        self._stop_requested = True  # checked before the first job is dequeued

    def dequeue_job_and_maintain_ttl(self, *args: Any, **options: Any) -> Any:
        """Wait for a job. RQ survives a lost Redis connection while it waits, but not just before and after."""
        while True:
            try:
                return super().dequeue_job_and_maintain_ttl(*args, **options)
            except RedisConnectionError as error:
                # JobQueue.recover_orphaned finds a job that was dequeued just now.
                log.warning("Redis does not answer; waiting for it: %s", error)
                time.sleep(1.0)

    def reorder_queues(self, reference_queue: Queue) -> None:
        """Let a prediction go before a second preparation: the first of many imported videos has tracks soon."""
        names = [queue.name for queue in self.queues]
        if reference_queue.name == "prepare" and "predict" in names:
            names.remove("prepare")
            names.insert(names.index("predict") + 1, "prepare")
        self._ordered_queues = sorted(self.queues, key=lambda queue: names.index(queue.name))

    def check_for_suspension(self, burst: bool) -> None:
        try:
            super().check_for_suspension(burst)
        except RedisConnectionError as error:  # the next dequeue waits for Redis
            log.debug("Could not check whether workers are suspended: %s", error)

    def unsubscribe(self) -> None:
        if self.pubsub_thread:
            self.pubsub_thread.stop()  # before its last message, else it may wait for another, and we a second for it
        super().unsubscribe()

    def get_heartbeat_ttl(self, job: Job, working_time: float = 0.0) -> int:
        return self.lease_s

    def execute_job(self, job: Job, queue: Queue) -> None:
        execution = self.prepare_execution(job)
        forget_executions(job, keep=execution.id)
        done = threading.Event()
        renewer = threading.Thread(target=self._renew_lease, args=(job, execution, done), daemon=True)
        renewer.start()
        try:
            self.perform_job(job, queue, execution)
        finally:
            done.set()
            renewer.join(timeout=5)
        # The renewer's maintenance during long jobs leaves the main thread's hardly ever due, so tick here. The worker
        # must not be idle yet: a signal would interrupt this.
        if not self._stop_requested:
            self.training_scheduler.tick()
        self.set_state("idle")

    def _renew_lease(self, job: Job, execution: Execution, done: threading.Event) -> None:
        while not done.wait(self.lease_s / 3):
            try:
                self.clock.synchronize()
                self.maintain_heartbeats(job, execution)
                self.run_maintenance_tasks()
            except RedisError as error:  # it may come back before the lease expires
                log.warning("The job's lease was not renewed: %s", error)
            except Exception:  # without a lease, another worker would do the job, too
                log.exception("The worker's maintenance failed; the job goes on.")

    def run_maintenance_tasks(self) -> None:
        """Run RQ's maintenance and also enqueue due retries: RQ's scheduler is a process that would outlive a kill.

        Does nothing while Redis is unreachable.
        """
        if self._stop_requested:  # other workers do it
            return
        # The main thread gets here only while no job runs.
        idle = threading.current_thread() is threading.main_thread()
        self._in_idle_maintenance |= idle
        try:
            self._maintain()
        except RedisConnectionError as error:
            log.warning("Skipped maintenance, Redis does not answer: %s", error)
        finally:
            self._in_idle_maintenance &= not idle
        if idle and self._stop_requested:
            raise StopRequested

    def _shutdown(self) -> None:
        # RQ ends an idle worker at once; if it held locks, the others would wait for a minute.
        if self._in_idle_maintenance:
            self._stop_requested = True
        else:
            super()._shutdown()

    def _maintain(self) -> None:
        self.clock.synchronize()
        if not self.connection.hexists(self.key, "queues"):  # its record expired while the machine slept, say
            self.connection.delete(self.key)  # a later heartbeat has begun another
            self.register_birth()
        super().run_maintenance_tasks()
        scheduler = RQScheduler(
            self.queues,
            connection=self.connection,
            serializer=self.serializer,
            logging_level="WARNING",  # it sets its logger's level itself, and logs every lock
        )
        scheduler.acquire_locks()
        try:
            scheduler.enqueue_scheduled_jobs()
        finally:
            scheduler.release_locks()
        self.worker_status.tick(self.name, self.lease_s)
        # Between jobs only: a hanging database must not cost a job its lease.
        if threading.current_thread() is threading.main_thread():
            self.training_scheduler.tick()
        try:
            # This reads every job, so only one worker does it, less often than the rest.
            if self.container.training_queue.acquire_turn("lost", 2 * self.lease_s):
                self.container.queue.recover_orphaned()
        except QueueUnavailable as error:
            log.warning("Could not recover orphaned jobs: %s", error)
        now = time.monotonic()
        if now - self._cleaned_at >= CLEANUP_INTERVAL_S:
            self._cleaned_at = now
            # In a thread: removing 100,000 images of an old export must not cost a job its lease.
            threading.Thread(target=self.container.clean_up_files, name=CLEANUP_THREAD, daemon=True).start()

    def handle_exception(self, job: Job, *exc_info: Any) -> None:
        """Log the traceback, except of known errors, which were logged in one line."""
        if not isinstance(exc_info[1], BackendError):
            super().handle_exception(job, *exc_info)

    def request_stop(self, signum: int, frame: FrameType | None) -> None:
        """On the first signal, stop the job at its next frame, return it to the queue, and end the worker."""
        self.container.stop.set()
        super().request_stop(signum, frame)


def queues_of(settings: Settings) -> tuple[str, ...]:
    """Return the queues that a worker with these settings serves."""
    return settings.worker_queues or QUEUES


def make_worker(settings: Settings) -> LeaseWorker:
    """Return a worker on the queues of the settings.

    Raises:
        QueueUnavailable: Redis does not answer.
        StorageError: the database cannot be used, such as one of a newer release.
    """
    container = get_container()
    container.queue.ping()
    container.storage.ping()
    # No socket timeout: blocking reads wait for jobs.
    connection = connect(settings, timeout=None, patience_s=PATIENCE_S)
    return LeaseWorker(
        [
            LeaseQueue(name, connection=connection, job_class=KnownJob, serializer=JSONSerializer)
            for name in queues_of(settings)
        ],
        connection=connection,
        job_class=KnownJob,
        serializer=JSONSerializer,
        maintenance_interval=max(1, settings.job_lease_s // 3),
        worker_ttl=settings.job_lease_s + 15,
        job_monitoring_interval=settings.job_lease_s,
        container=container,
    )


def fetch_weights(settings: Settings) -> None:
    """Download weights before the first job, and log which models are in use."""
    from ml_backend.detectors.weights import resolve_detector
    from ml_backend.labeling.modes import classifier_models

    try:
        detector = resolve_detector(settings, download=True)
        models = classifier_models(settings, settings.mode, download=True)
    except BackendError as error:
        log.error("%s", error)  # jobs report it again; the worker stays up for when it is fixed
        return
    log.info("Detector: %s%s", detector.name, f" ({detector.note})" if detector.note else "")
    names = [model.name for model in (models.embedder, models.clip, models.text_detector) if model]
    log.info("Labels: mode %s", " ".join([", ".join([models.mode, *names]), *models.notes]))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m ml_backend.jobs.worker", description="Run queued jobs.")
    parser.add_argument(
        "--queues", help=f"queues to serve, in this order; of {','.join(QUEUES)}  [WORKER_QUEUES, else all]"
    )
    queues = parser.parse_args().queues
    if queues is not None:
        os.environ["WORKER_QUEUES"] = queues
    try:
        settings = get_settings()
    except BackendError as error:
        print(error, file=sys.stderr)
        return 1
    keep_files_private(settings.data_dir)
    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for chatty in ("httpx", "rq.worker"):  # jobs log what they did
        logging.getLogger(chatty).setLevel(logging.WARNING)
    try:
        worker = make_worker(settings)
    except BackendError as error:
        log.error("%s", error)
        return 1
    served = queues_of(settings)
    if not set(served) <= {"train", "interactive"}:
        fetch_weights(settings)
    log.info("Ready: listening on %s", ", ".join(served))
    worker.work(logging_level="WARNING")
    return 0


if __name__ == "__main__":
    sys.exit(main())
