"""The job queue: turns idempotent requests into RQ jobs and keeps pending work in the database. No HTTP, no models."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any

from ml_backend.core.errors import ConfigError, PredictionFailed, QueueUnavailable
from ml_backend.core.settings import QUEUES, Settings
from ml_backend.core.timestamps import ensure_utc
from ml_backend.core.urls import shown_url

if TYPE_CHECKING:  # slow imports that start-up does not need
    from redis import Redis
    from rq import Queue
    from rq.job import Job

    from ml_backend.db.storage import Storage
    from ml_backend.jobs.known_job import KnownJob

log = logging.getLogger(__name__)

#: Pauses before retries: a moment, then long enough to restart a server, then to repair it.
RETRY_INTERVALS_S = [5, 60, 600]
#: Shortest pause before a failed job is requested again, however often Label Studio asks.
FAILED_PAUSE = timedelta(seconds=30)
FAILURE_TTL_S = 7 * 24 * 3600
#: Only a hung job runs this long: hours of video, or a training, take some hours on a CPU.
JOB_TIMEOUT_S = 24 * 3600
TARGETS_TTL_S = 7 * 24 * 3600
#: Seconds for which the result of a job is kept.
RESULT_TTL_S = 7 * 24 * 3600
#: Jobs that keep no result: nobody reads it, and there may be thousands of them.
_RESULTLESS = ("prepare_task", "prepare_many", "predict", "help_detect", "refresh", "warm")
#: Jobs whose result is read at once, or never.
_BRIEF = ("render_moment", "render_frames")
#: Seconds after which the lock of a dead process expires.
LOCK_S = 120
#: Kind of pending work -> queue, module in ``ml_backend.jobs``, and function.
_PENDING = {
    "learn": ("patterns", "learn", "learn"),
    "refresh": ("refresh", "learn", "refresh"),
    "prepare": ("prepare", "predict", "prepare_many"),
    "train": ("train", "train", "train"),
    "review": ("control", "review", "review"),
}
#: Queue of jobs for whose result somebody waits in the editor.
INTERACTIVE = "interactive"
#: Name of the published reason why drawn boxes are not followed by the configured model; empty if they are.
TRACKER_NOTE = "tracker-note"
#: Most jobs that wait in it; a worker does that many in a few minutes.
MAX_INTERACTIVE = 200
#: Pending task id that stands for the whole project.
ALL_TASKS = 0

#: Set our own field in RQ's record of a job, so that it is deleted with the job. Creates no record.
_CANCEL = "if redis.call('exists', KEYS[1]) == 1 then redis.call('hset', KEYS[1], 'cancel', 1) end"

#: Set a field of our own likewise; of job and result, which nobody needs any longer, a minute's worth is kept.
_TAKE = """
if redis.call('exists', KEYS[1]) == 1 then
    redis.call('hset', KEYS[1], 'taken', 1)
    redis.call('expire', KEYS[1], 60)
    redis.call('expire', KEYS[2], 60)
end
"""

#: Redis key of the projects that Label Studio has set up here.
_SET_UP = "video:set-up"

#: RQ states of jobs that have not started.
WAITING = ("queued", "scheduled", "deferred")
#: RQ states of jobs that have ended.
RQ_ENDED = ("finished", "failed", "stopped", "canceled")


@dataclass(frozen=True, slots=True)
class JobRequest:
    """Result of a request: whether it created a new job, and why the last one failed."""

    job_id: str
    created: bool
    failure: str = ""


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """A registered worker, and the id of the job that it runs."""

    name: str
    pid: int
    hostname: str
    queues: tuple[str, ...]
    job_id: str = ""


def connect(settings: Settings, *, timeout: float | None = 1.0, patience_s: int = 0) -> Redis:
    """Return a Redis client that does not hang when the server is unreachable.

    Args:
        timeout: seconds until a command fails; ``None``: blocking commands may wait.
        patience_s: seconds for which commands are tried again while the server is away.

    Raises:
        ConfigError: the address is malformed.
    """
    from redis import Redis
    from redis.backoff import ConstantBackoff
    from redis.retry import Retry

    retry = {"retry": Retry(ConstantBackoff(1.0), patience_s)} if patience_s else {}
    try:
        return Redis.from_url(settings.redis_url, socket_connect_timeout=0.5, socket_timeout=timeout, **retry)
    except ValueError as error:
        raise ConfigError(
            f"The setting REDIS_URL is wrong: {shown_url(settings.redis_url)} is no address of a Redis ({error}).",
            "Correct it and restart.",
        ) from error


class JobQueue:
    """Requests background work. Every method raises QueueUnavailable when Redis does not answer."""

    def __init__(
        self,
        settings: Settings,
        connection: Redis | None = None,
        storage: Storage | None = None,
        timeout: float = 1.0,
        patience_s: int = 0,
    ) -> None:
        self.settings = settings
        self._connection, self._timeout, self._patience_s = connection, timeout, patience_s
        if storage:
            self.storage = storage

    @cached_property
    def storage(self) -> Storage:
        """The database, which keeps pending work."""
        from ml_backend.db.storage import Storage

        return Storage(self.settings.database)

    @cached_property
    def connection(self) -> Redis:
        return self._connection or connect(self.settings, timeout=self._timeout, patience_s=self._patience_s)

    @cached_property
    def queues(self) -> dict[str, Queue]:
        """RQ queues by name."""
        from rq import Queue
        from rq.serializers import JSONSerializer

        from ml_backend.jobs.known_job import KnownJob

        options = {"connection": self.connection, "serializer": JSONSerializer, "job_class": KnownJob}
        return {name: Queue(name, **options) for name in QUEUES}

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Turn Redis errors into QueueUnavailable."""
        from redis.exceptions import RedisError

        try:
            yield
        except (RedisError, OSError) as error:
            raise QueueUnavailable(
                f"The queue does not answer at {shown_url(self.settings.redis_url)} ({error.__class__.__name__}).",
                "Start Redis, or set REDIS_URL to its address, and try again. Nothing is lost.",
            ) from error

    def ping(self) -> None:
        with self.guard():
            self.connection.ping()

    # -- requests

    def request_prepare(self, project_id: int, task_id: int) -> JobRequest:
        """Request a job that probes a task's videos, stores their frame rate in it, and requests its prediction."""
        return self.request("prepare", "prepare_task", [project_id, task_id], f"prepare-{task_id}")

    def request_prepare_many(self, project_id: int, task_ids: Sequence[int]) -> JobRequest:
        """Request one job that prepares many tasks; no ids means those without annotations and predictions."""
        return self._request_pending("prepare", project_id, task_ids or (ALL_TASKS,))

    def request_prediction(self, key: str, project_id: int, task_id: int, queue: str = "predict") -> JobRequest:
        """Request the prediction of a key for a task; one job per key serves all tasks that wait for it."""
        with self.guard():
            targets = targets_key(key)
            self.connection.sadd(targets, task_id)
            self.connection.expire(targets, TARGETS_TTL_S)
        return self.request(queue, "predict", [key, project_id, task_id], f"predict-{key}")

    def request_learning(self, project_id: int, task_ids: Sequence[int] | None) -> JobRequest:
        """Request learning from the annotations of these tasks; ``None`` means all tasks of the project."""
        return self._request_pending("learn", project_id, (ALL_TASKS,) if task_ids is None else task_ids)

    def request_refresh(self, project_id: int) -> JobRequest:
        """Request new predictions for all unannotated tasks, since their labels may have changed."""
        return self._request_pending("refresh", project_id, (ALL_TASKS,))

    def request_review(self, project_id: int, task_ids: Sequence[int]) -> None:
        """Request that suspicious moments of these tasks are looked for, now or once Redis is back."""
        try:
            self._request_pending("review", project_id, task_ids)
        except QueueUnavailable as error:
            log.warning("Moments of project %s are looked for later: %s", project_id, error)

    def _request_pending(self, kind: str, project_id: int, task_ids: Sequence[int]) -> JobRequest:
        self.storage.note_pending(kind, project_id, task_ids)
        return self.start_pending(kind, project_id)

    def start_pending(self, kind: str, project_id: int, pause: timedelta = timedelta(0)) -> JobRequest:
        """Create the job that does a project's pending work of one kind.

        Any number of requests create one job. It also does what is requested while it runs; what it just misses is
        picked up by workers, see :class:`ml_backend.jobs.training_scheduler.TrainingScheduler`.

        Args:
            pause: shortest time since a failed attempt.
        """
        queue, module, function = _PENDING[kind]
        args = [project_id, "Start training"] if kind == "train" else [project_id]
        name = f"{function.replace('_', '-')}-{project_id}"
        # A refresh goes before the predictions of an earlier one, most of which are now outdated.
        return self.request(queue, function, args, name, module, at_front=kind == "refresh", pause=pause)

    def request(
        self,
        queue: str,
        function: str,
        args: list[Any],
        job_id: str,
        module: str = "predict",
        *,
        at_front: bool = False,
        pause: timedelta = FAILED_PAUSE,
    ) -> JobRequest:
        """Enqueue ``ml_backend.jobs.<module>.<function>``, unless a job of this id waits or runs.

        A job that waits in a queue of lower priority is moved to ``queue``.

        Args:
            at_front: before the jobs that wait there, also if it waits there already.
            pause: shortest time since a failed attempt; 0 also starts a scheduled retry at once.
        """
        from rq import Retry
        from rq.exceptions import DuplicateJobError

        retries = self.settings.job_attempts - 1
        retry = Retry(max=retries, interval=RETRY_INTERVALS_S[:retries]) if retries else None
        with self.guard():
            for _ in range(3):
                try:
                    self.queues[queue].enqueue_call(
                        f"ml_backend.jobs.{module}.{function}",
                        args=args,
                        job_id=job_id,
                        unique=True,
                        timeout=JOB_TIMEOUT_S,
                        result_ttl=0 if function in _RESULTLESS else 60 if function in _BRIEF else RESULT_TTL_S,
                        failure_ttl=FAILURE_TTL_S,
                        retry=retry,
                        description=f"{function} {args}",
                        at_front=at_front,
                    )
                    return JobRequest(job_id, True)
                except DuplicateJobError:
                    job = self.fetch(job_id)
                    if job is None:
                        continue  # it ended between the two calls
                    if state_of(job) not in RQ_ENDED:
                        self._move_up(job, queue, at_front=at_front, now=not pause)
                        return JobRequest(job_id, False)
                    failed_at = job.ended_at if state_of(job) == "failed" else None
                    if failed_at and datetime.now(timezone.utc) - ensure_utc(failed_at) < pause:
                        return JobRequest(job_id, False, failure_text(job))
                    current = self.fetch(job_id)
                    if current is None or state_of(current) in RQ_ENDED:  # else another process has just enqueued it
                        forget_executions(job)
                        job.delete()
        return JobRequest(job_id, False)

    def start_interactive(
        self, function: str, args: list[Any], module: str, ttl_s: float, job_id: str | None = None
    ) -> str:
        """Enqueue ``ml_backend.jobs.<module>.<function>`` on the queue ``interactive`` and return the job's id.

        Args:
            ttl_s: the job begins within so many seconds, or not at all; its result is kept a minute longer.
            job_id: equal for equal requests: a job that waits or runs, or whose result nobody has got yet, is theirs.

        Raises:
            QueueUnavailable: no worker serves the queue, or too many jobs wait in it.
        """
        from rq.exceptions import DuplicateJobError

        if not self._follows():
            raise QueueUnavailable(
                "No worker follows drawn boxes.",
                f"Start one: python -m ml_backend.jobs.worker --queues {INTERACTIVE}",
            )
        with self.guard():
            if job_id is not None and (job := self.fetch(job_id)) is not None:
                finished = state_of(job) == "finished" and not self.connection.hexists(job.key, "taken")
                if finished or state_of(job) not in RQ_ENDED:
                    return job_id
                forget_executions(job)
                job.delete()
            if self.queues[INTERACTIVE].count >= MAX_INTERACTIVE:
                raise QueueUnavailable("Too many people draw at once.", "Press the label's key again in a minute.")
            try:
                created = self.queues[INTERACTIVE].enqueue_call(
                    f"ml_backend.jobs.{module}.{function}",
                    args=args,
                    job_id=job_id,
                    unique=job_id is not None,
                    timeout=JOB_TIMEOUT_S,
                    ttl=int(ttl_s) + 1,  # nobody waits for it any longer
                    result_ttl=int(ttl_s) + 60,
                    failure_ttl=FAILURE_TTL_S,  # the editor shows no reason: the control room does
                    description=function,
                )
            except DuplicateJobError:  # an equal request came in between
                return str(job_id)
        return str(created.id)

    def take_result(self, job_id: str) -> None:
        """Note that the result of a job has reached who asked for it: the next equal request is worked on anew."""
        from rq.job import Job
        from rq.results import Result

        with self.guard():
            self.connection.eval(_TAKE, 2, Job.key_for(job_id), Result.get_key(job_id))

    def wait_for_result(self, job_id: str, timeout_s: float) -> tuple[bool, Any]:
        """Return whether a job has ended within ``timeout_s`` seconds, and its result.

        Raises:
            PredictionFailed: the job has failed, its message; or it does not exist any longer.
        """
        from rq.exceptions import NoSuchJobError

        from ml_backend.jobs.known_job import KnownJob

        with self.guard():
            try:
                with connect(self.settings, timeout=timeout_s + 5) as connection:
                    job = KnownJob.fetch(job_id, connection=connection)
                    result = job.latest_result(timeout=math.ceil(timeout_s))
            except NoSuchJobError as error:
                raise PredictionFailed("The job was removed.", "Ask again.") from error
            if result is None or result.type is result.Type.RETRIED:
                return False, None
            if result.type is not result.Type.SUCCESSFUL:
                raise PredictionFailed(failure_text(KnownJob.fetch(job_id, connection=self.connection)))
        return True, result.return_value

    def is_job_of(self, job_id: str, function: str, args: Sequence[Any]) -> bool:
        """Return whether a job of this function, whose arguments begin like this, exists."""
        with self.guard():
            job = self.fetch(job_id)
            return job is not None and job.function == function and list(job.args[: len(args)]) == list(args)

    def take_back_waiting(self, job_id: str) -> None:
        """Remove a job unless it has begun."""
        with self.guard():
            job = self.fetch(job_id)
            if job is not None and state_of(job) in WAITING:
                self.take_back(job)

    def _follows(self) -> bool:
        """Return whether a worker serves the queue ``interactive``."""
        return any(INTERACTIVE in worker.queues for worker in self.workers())

    def request_clip(self, project_id: int, moment_id: str, *, shown: bool = True) -> str:
        """Request a clip of a suspicious moment; return the job's id.

        Args:
            shown: whether somebody waits for it now: before clips that were requested ahead.
        """
        queue, clip = INTERACTIVE if self._follows() else "control", [project_id, moment_id]
        return self.request(queue, "render_moment", clip, clip_job(moment_id), "review", at_front=shown).job_id

    def request_frames(self, project_id: int, task_id: int, key: str, first: int) -> str:
        """Request frames of a task's video, which somebody looks at; return the job's id."""
        queue, args = INTERACTIVE if self._follows() else "control", [project_id, task_id, key, first]
        return self.request(queue, "render_frames", args, frames_job(task_id, key, first), "review").job_id

    def request_warm(self, project_id: int, task_id: int, uri: str) -> None:
        """Request that a video is ready for drawn boxes, since its task was opened."""
        if self._follows():
            self.request(
                INTERACTIVE,
                "warm",
                [project_id, task_id, {"uri": uri}],
                f"warm-{task_id}",
                "draw",
                pause=timedelta(minutes=1),
            )

    def _move_up(self, job: Job, queue: str, *, at_front: bool, now: bool) -> None:
        lower = job.origin in QUEUES and QUEUES.index(job.origin) > QUEUES.index(queue)
        behind = lower or (at_front and job.origin == queue)
        # A job that is no longer in the list has just been taken by a worker.
        if behind and state_of(job) == "queued" and self.connection.lrem(self.queues[job.origin].key, 1, job.id):
            self.queues[queue].enqueue_job(job, at_front=at_front)
        if now and state_of(job) == "scheduled":
            registry = self.queues[job.origin].scheduled_job_registry
            if registry.remove(job):
                self.queues[job.origin].enqueue_job(job)

    def fetch(self, job_id: str) -> KnownJob | None:
        """Return a job, or ``None``. Call within :meth:`guard`."""
        return next(iter(self.fetch_many([job_id])), None)

    def fetch_many(self, job_ids: Sequence[str]) -> list[KnownJob]:
        """Return those of the jobs that exist. Call within :meth:`guard`."""
        from ml_backend.jobs.known_job import KnownJob

        jobs: list[KnownJob] = []
        with self.connection.pipeline() as pipeline:
            for job_id in job_ids:
                pipeline.hgetall(KnownJob.key_for(job_id))
            for job_id, record in zip(job_ids, pipeline.execute(), strict=True):
                # Where Redis has lost its data, the heartbeat of a running job makes a record of nothing else, at
                # which RQ's own function fails for all jobs.
                if b"data" in record:
                    job = KnownJob(job_id, connection=self.connection)
                    job.restore(record)
                    jobs.append(job)
        return jobs

    def recover_orphaned(self, after_s: float = 20.0) -> list[str]:
        """Enqueue orphaned jobs, which are in no list, and return their ids.

        A worker of several queues pops a job's id from one and then records that it started. Killed in between, it
        leaves a job with the state queued (or scheduled) that is in no list and blocks every new request for the same
        work. RQ guards against this only for workers of a single queue. A job is orphaned if it is found so twice,
        ``after_s`` seconds apart; workers call this periodically.
        """
        from rq.job import Job

        with self.guard():
            prefix = Job.redis_job_namespace_prefix
            keys = list(self.connection.scan_iter(f"{prefix}*", count=1000, _type="HASH"))
            pipeline = self.connection.pipeline(transaction=False)
            for key in keys:
                pipeline.hget(key, "status")
            states = dict(zip(keys, pipeline.execute(), strict=True))
            waiting = {key for key, state in states.items() if state in (b"queued", b"scheduled")}
            orphaned = {key.decode().removeprefix(prefix) for key in waiting}
            for queue in self.queues.values():
                orphaned -= {*queue.get_job_ids(), *queue.scheduled_job_registry.get_job_ids(cleanup=False)}
            return [job_id for job_id in sorted(orphaned) if self._requeue(job_id, after_s)]

    def _requeue(self, job_id: str, after_s: float) -> bool:
        # Redis counts the seconds since it was first found so: the clocks of workers may differ.
        mark, kept_s = f"video:lost:{job_id}", int(10 * after_s + 6 * self.settings.job_lease_s)
        if self.connection.set(mark, 1, nx=True, ex=kept_s):
            return False
        left_ms = self.connection.pttl(mark)
        if left_ms < 0 or kept_s - left_ms / 1000 < after_s:
            return False
        job = self.fetch(job_id)
        if job is None or state_of(job) not in ("queued", "scheduled") or not self.connection.delete(mark):
            return False
        log.warning("Job %s was orphaned by a worker that died; it is queued again.", job_id)
        self.queues[job.origin].enqueue_job(job)
        return True

    # -- cancelling

    def request_cancel(self, job_id: str) -> None:
        """Ask the worker that runs a job, now or after a retry, to stop it."""
        from rq.job import Job

        with self.guard():
            self.connection.eval(_CANCEL, 1, Job.key_for(job_id))

    def is_cancelled(self, job_id: str) -> bool:
        """Return whether the job was asked to stop."""
        from rq.job import Job

        with self.guard():
            return bool(self.connection.hexists(Job.key_for(job_id), "cancel"))

    # -- targets of a prediction

    def targets(self, key: str) -> set[int]:
        """Return the tasks that wait for this prediction. Each stays until it is served, even if a worker dies."""
        with self.guard():
            return {int(value) for value in self.connection.smembers(targets_key(key))}

    def remove_target(self, key: str, task_id: int) -> None:
        with self.guard():
            self.connection.srem(targets_key(key), task_id)

    def add_targets(self, key: str, task_ids: Sequence[int]) -> None:
        if task_ids:
            with self.guard():
                self.connection.sadd(targets_key(key), *task_ids)

    def task_lock(self, purpose: str, task_id: int) -> AbstractContextManager[None]:
        """Hold a lock, so that one process at a time works on a task for a purpose.

        Args:
            purpose: ``learn`` (read its annotation and store exemplars) or ``deliver`` (compare its predictions and add
                one).
        """
        return self._lock(f"video:{purpose}:{task_id}", f"Task {task_id}")

    def project_lock(self, purpose: str, project_id: int) -> AbstractContextManager[None]:
        """Hold a lock, so that one process at a time works on a project for a purpose.

        Args:
            purpose: ``settings`` (read those in Label Studio and change them) or ``reserve`` (take global ids; it waits
                for no other server, since it is done while a task is locked).
        """
        return self._lock(f"video:{purpose}:{project_id}", f"Project {project_id}")

    @contextmanager
    def _lock(self, name: str, what: str) -> Iterator[None]:
        from redis.exceptions import RedisError

        with self.guard():
            lock = self.connection.lock(name, timeout=LOCK_S, blocking_timeout=LOCK_S + 10)
            if not lock.acquire():
                raise QueueUnavailable(
                    f"{what} is locked by another process.", "Try again in a minute; jobs are retried by themselves."
                )
        try:
            yield
        finally:
            try:
                lock.release()
            except RedisError as error:  # it has expired, or will
                log.warning("The lock %s was not released: %s", name, error)

    def take_back(self, job: KnownJob) -> None:
        """Cancel a waiting job; it stays listed as cancelled for a while. Call within :meth:`guard`."""
        forget_executions(job)
        function = job.function
        kind = {"refresh": "refresh", "prepare_many": "prepare"}.get(function)
        if kind:  # else workers would create the job again
            self.storage.settle(kind, job.args[0], self.storage.pending(kind, job.args[0]))
        if function in _RESULTLESS:
            job.delete()
            return
        job.ended_at = datetime.now(timezone.utc)
        job.save(include_meta=False)
        job.cancel()
        job.connection.expire(job.key, RESULT_TTL_S)
        # RQ never removes the ids of cancelled jobs.
        self.connection.zremrangebyscore(
            self.queues[job.origin].canceled_job_registry.key, 0, time.time() - RESULT_TTL_S
        )

    # -- published results

    def publish(self, name: str, facts: Any, keep_s: int = RESULT_TTL_S) -> None:
        """Store the result of a job, plain JSON, for some seconds; it stays readable while a newer one is computed."""
        with self.guard():
            self.connection.set(f"video:found:{name}", json.dumps({"at": time.time(), "facts": facts}), ex=keep_s)

    def published(self, name: str) -> tuple[float, Any] | None:
        """Return the Unix time of a stored result and the result; ``None`` if there is none or it has expired."""
        with self.guard():
            value = self.connection.get(f"video:found:{name}")
        stored = json.loads(value) if value else None
        return (float(stored["at"]), stored["facts"]) if stored else None

    # -- what Label Studio has sent in /setup

    def note_set_up(self, project_id: int) -> None:
        """Remember that Label Studio has set up this project here, which it does when a person connects it."""
        with self.guard():
            self.connection.sadd(_SET_UP, project_id)

    def set_up_projects(self) -> set[int]:
        """Return the projects that Label Studio has set up here."""
        with self.guard():
            return {int(value) for value in self.connection.smembers(_SET_UP)}

    def remember_token(self, token: str) -> None:
        with self.guard():
            self.connection.set("video:setup-token", token)

    def remembered_token(self) -> str:
        with self.guard():
            value = self.connection.get("video:setup-token")
        return value.decode() if isinstance(value, bytes) else ""

    # -- counters and state

    def count(self, name: str, amount: float = 1) -> None:
        """Add to a counter that /metrics shows; workers serve no HTTP."""
        with self.guard():
            self.connection.hincrbyfloat("video:counters", name, amount)

    def counters(self) -> dict[str, float]:
        with self.guard():
            values = self.connection.hgetall("video:counters")
        return {name.decode(): float(value) for name, value in values.items()}  # type: ignore[union-attr]

    def depths(self) -> dict[str, dict[str, int]]:
        """Return the number of jobs by queue and state."""
        states = ("queued", "started", "scheduled", "failed")
        with self.guard(), self.connection.pipeline(transaction=False) as pipeline:
            for queue in self.queues.values():
                pipeline.llen(queue.key)
                pipeline.zcard(queue.started_job_registry.key)
                pipeline.zcard(queue.scheduled_job_registry.key)
                pipeline.zcard(queue.failed_job_registry.key)
            counts = iter(pipeline.execute())
        return {name: {state: next(counts) for state in states} for name in self.queues}

    def workers(self) -> list[WorkerInfo]:
        """Return the workers with a recent heartbeat, by name.

        Reads what RQ's ``Worker.all`` does, which asks Redis several times for each worker.
        """
        from rq import Worker
        from rq.executions import WORKER_EXECUTIONS_KEY_TEMPLATE, Execution

        prefix, workers = Worker.redis_worker_namespace_prefix, []
        with self.guard(), self.connection.pipeline(transaction=False) as pipeline:
            names = sorted(key.removeprefix(prefix) for key in Worker.all_keys(self.connection))
            for name in names:
                pipeline.hmget(prefix + name, "pid", "hostname", "queues")
                pipeline.smembers(WORKER_EXECUTIONS_KEY_TEMPLATE.format(name))
            read = pipeline.execute()
            executions = [
                [Execution.from_composite_key(key.decode(), self.connection) for key in keys] for keys in read[1::2]
            ]
            for execution in chain.from_iterable(executions):
                pipeline.exists(execution.key)  # what was run by a process that was killed stays listed
            running = iter(pipeline.execute())
        for name, (pid, hostname, queues), found in zip(names, read[::2], executions, strict=True):
            job_ids = [execution.job_id for execution in found if next(running)]
            if queues:  # else its heartbeat is too old
                served = tuple(queues.decode().split(","))
                workers.append(WorkerInfo(name, int(pid or 0), (hostname or b"").decode(), served, *job_ids[:1]))
        return workers

    def failed_jobs(self) -> list[dict[str, Any]]:
        """Return failed jobs with their error, newest first."""
        with self.guard():
            registries = [queue.failed_job_registry for queue in self.queues.values()]
            jobs = self.fetch_many([job_id for failed in registries for job_id in failed.get_job_ids(cleanup=False)])
            failures = [{"id": job.id, "ended_at": str(job.ended_at), "error": failure_text(job)} for job in jobs]
        return sorted(failures, key=lambda item: item["ended_at"], reverse=True)


def clip_job(moment_id: str) -> str:
    """Return the id of the job that renders a clip of a suspicious moment."""
    return f"clip-{moment_id}"


def frames_job(task_id: int, key: str, first: int) -> str:
    """Return the id of the job that renders frames of a task's video."""
    return f"frames-{task_id}-{key}-{first}"


def state_of(job: Job) -> str:
    """Return RQ's name of a job's state when the job was read; empty if it has none."""
    state = job.get_status(refresh=False)
    return state.value if state else ""


def forget_executions(job: Job, keep: str = "") -> None:
    """Remove executions of dead workers from a job's list, all but ``keep``.

    RQ lists them for a minute longer than it keeps the executions themselves, and cannot delete the job meanwhile.
    """
    registry = job.execution_registry
    dead = [name for name in registry.get_execution_ids() if name != keep]
    if dead:
        registry.connection.zrem(registry.key, *dead)


def failure_text(job: Job) -> str:
    """Return the message of the error with which a job failed."""
    text = job.meta.get("error")
    if text:
        return str(text)
    result = job.latest_result() if state_of(job) == "failed" else None
    trace = (result.exc_string or "").strip() if result else ""
    return trace.rsplit("\n", 1)[-1]


def targets_key(key: str) -> str:
    """Return the Redis key of the tasks that wait for a prediction."""
    return f"video:targets:{key}"
