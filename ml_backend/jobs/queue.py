"""The queue: idempotent requests in, jobs out. Knows RQ, Redis and the table of what is pending; no HTTP, no models."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ml_backend.errors import ConfigError, QueueUnavailable
from ml_backend.jobs.board import forget_cancelled
from ml_backend.jobs.records import failure_text, forget_executions, state_of
from ml_backend.moments import aware
from ml_backend.settings import QUEUES, Settings
from ml_backend.storage import Storage

if TYPE_CHECKING:  # redis loads its whole asynchronous half too: a start need not wait for that
    from redis import Redis
    from rq import Queue
    from rq.job import Job

log = logging.getLogger(__name__)

#: Pauses before each further try: a moment, then long enough for a server to be restarted, then to be repaired.
RETRY_INTERVALS_S = [5, 60, 600]
#: A failed job is not repeated sooner, however often Label Studio asks.
FAILED_PAUSE = timedelta(seconds=30)
FAILURE_TTL_S = 7 * 24 * 3600
TARGETS_TTL_S = 7 * 24 * 3600
#: After so long a lock whose holder died is free again.
LOCK_S = 120
#: By kind of what is pending in the database: the queue, the module of jobs, and the function there.
_PENDING = {
    "learn": ("patterns", "learning", "learn"),
    "refresh": ("refresh", "learning", "refresh"),
    "prepare": ("prepare", "tasks", "prepare_many"),
    "train": ("train", "training", "train"),
}
#: Stands for the whole project where tasks are pending.
ALL_TASKS = 0

#: RQ's names of states in which nothing happens any more.
OVER = ("finished", "failed", "stopped", "canceled")


@dataclass(frozen=True, slots=True)
class Requested:
    """Outcome of a request: ``created`` is whether a new job was made; ``failure`` is why the last one failed."""

    job_id: str
    created: bool
    failure: str = ""


def connect(settings: Settings, *, timeout: float | None = 1.0) -> Redis:
    """A Redis client that does not hang when the server is away.

    Raises:
        ConfigError: the address is malformed.
    """
    from redis import Redis

    try:
        return Redis.from_url(settings.redis_url, socket_connect_timeout=0.5, socket_timeout=timeout)
    except ValueError as error:
        raise ConfigError(f"The setting REDIS_URL is wrong: {error}.", "Correct it and start anew.") from error


class JobQueue:
    """Requests for background work. Every method raises QueueUnavailable when Redis does not answer."""

    def __init__(self, settings: Settings, connection: Redis | None = None, storage: Storage | None = None) -> None:
        self.settings = settings
        self._given = connection
        if storage:
            self.storage = storage

    @cached_property
    def storage(self) -> Storage:
        """Where what is pending is written down."""
        return Storage(self.settings.database)

    @cached_property
    def connection(self) -> Redis:
        return self._given or connect(self.settings)

    @cached_property
    def queues(self) -> dict[str, Queue]:
        """RQ's queues by name."""
        from rq import Queue
        from rq.serializers import JSONSerializer

        return {name: Queue(name, connection=self.connection, serializer=JSONSerializer) for name in QUEUES}

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Turn Redis' errors into QueueUnavailable."""
        from redis.exceptions import RedisError

        try:
            yield
        except (RedisError, OSError) as error:
            raise QueueUnavailable(
                f"The queue does not answer at {self.settings.redis_url.rsplit('@', 1)[-1]} "
                f"({error.__class__.__name__}).",
                "Start Redis, or set REDIS_URL to where it is reachable. Nothing is lost: ask again then.",
            ) from error

    def ping(self) -> None:
        with self.guard():
            self.connection.ping()

    # -- requests

    def request_prepare(self, project_id: int, task_id: int) -> Requested:
        """Probe a task's videos, write their frame rate into the task, then request its prediction."""
        return self.request("prepare", "prepare_task", [project_id, task_id], f"prepare-{task_id}")

    def request_prepare_many(self, project_id: int, task_ids: Sequence[int]) -> Requested:
        """One job that requests many; no ids means all tasks of the project."""
        return self._request_pending("prepare", project_id, task_ids or (ALL_TASKS,))

    def request_prediction(self, key: str, project_id: int, task_id: int, queue: str = "predict") -> Requested:
        """One job per key; every task that asks meanwhile is served by it."""
        with self.guard():
            targets = _targets_key(key)
            self.connection.sadd(targets, task_id)
            self.connection.expire(targets, TARGETS_TTL_S)
        return self.request(queue, "predict", [key, project_id, task_id], f"predict-{key}")

    def request_learning(self, project_id: int, task_ids: Sequence[int] | None) -> Requested:
        """Learn labels from what people annotated in these tasks; ``None``: in all tasks of the project."""
        return self._request_pending("learn", project_id, (ALL_TASKS,) if task_ids is None else task_ids)

    def request_refresh(self, project_id: int) -> Requested:
        """Renew the predictions of all tasks that nobody has annotated, since their labels may have changed."""
        return self._request_pending("refresh", project_id, (ALL_TASKS,))

    def _request_pending(self, kind: str, project_id: int, task_ids: Sequence[int]) -> Requested:
        self.storage.note_pending(kind, project_id, task_ids)
        return self.start_pending(kind, project_id)

    def start_pending(self, kind: str, project_id: int, pause: timedelta = timedelta(0)) -> Requested:
        """Make the job that does what is pending of a project.

        Any number of requests make one job. What is asked while it runs, it does too before it ends; what it just
        misses is found by workers, see :class:`ml_backend.jobs.trainer.Trainer`.

        Args:
            pause: since the last try of a job that has failed.
        """
        queue, module, function = _PENDING[kind]
        args = [project_id, "Start training"] if kind == "train" else [project_id]
        name = f"{function.replace('_', '-')}-{project_id}"
        # A refresh comes before the predictions of an earlier one, most of which are outdated now.
        return self.request(queue, function, args, name, module, at_front=kind == "refresh", pause=pause)

    @contextmanager
    def learning_lock(self, task_id: int) -> Iterator[None]:
        """Only one process at a time reads a task's annotations and writes down what they teach."""
        with self._lock(f"video:learn:task:{task_id}", f"Task {task_id}"):
            yield

    def request(
        self,
        queue: str,
        function: str,
        args: list[Any],
        job_id: str,
        module: str = "tasks",
        *,
        at_front: bool = False,
        pause: timedelta = FAILED_PAUSE,
    ) -> Requested:
        """A job ``ml_backend.jobs.<module>.<function>``, unless there is one of this id that is not over.

        One that waits in a queue of less importance is moved: who asks now does not wait behind all others there.

        Args:
            pause: a job that has failed is not repeated sooner; 0: one that waits for its next try need not wait.
        """
        from rq import Retry
        from rq.exceptions import DuplicateJobError

        repeats = self.settings.job_attempts - 1
        retry = Retry(max=repeats, interval=RETRY_INTERVALS_S[:repeats]) if repeats else None
        with self.guard():
            for _ in range(3):
                forget_cancelled(self.connection, job_id)
                try:
                    self.queues[queue].enqueue_call(
                        f"ml_backend.jobs.{module}.{function}",
                        args=args,
                        job_id=job_id,
                        unique=True,
                        timeout=self.settings.job_timeout_s,
                        result_ttl=0,  # the result is in the database; a finished job must not block a new one
                        failure_ttl=FAILURE_TTL_S,
                        retry=retry,
                        description=f"{function} {args}",
                        at_front=at_front,
                    )
                    return Requested(job_id, True)
                except DuplicateJobError:
                    job = self.fetch(job_id)
                    if job is None:
                        continue  # it ended between the two calls
                    if state_of(job) not in OVER:
                        self._hurry(job, queue, now=not pause)
                        return Requested(job_id, False)
                    if job.ended_at and datetime.now(timezone.utc) - aware(job.ended_at) < pause:
                        return Requested(job_id, False, failure_text(job))
                    forget_executions(job)
                    job.delete()
        return Requested(job_id, False)

    def _hurry(self, job: Job, queue: str, *, now: bool) -> None:
        behind = job.origin in QUEUES and QUEUES.index(job.origin) > QUEUES.index(queue)
        # Where it is in the list no more, a worker has just begun it.
        if behind and state_of(job) == "queued" and self.connection.lrem(self.queues[job.origin].key, 1, job.id):
            self.queues[queue].enqueue_job(job)
        if now and state_of(job) == "scheduled":
            registry = self.queues[job.origin].scheduled_job_registry
            if registry.remove(job):
                self.queues[job.origin].enqueue_job(job)

    def fetch(self, job_id: str) -> Job | None:
        """RQ's job; call it within :meth:`guard`."""
        return next(iter(self.fetch_many([job_id])), None)

    def fetch_many(self, job_ids: Sequence[str]) -> list[Job]:
        """Those of RQ's jobs that are there; call it within :meth:`guard`."""
        from rq.job import Job
        from rq.serializers import JSONSerializer

        found = Job.fetch_many(list(job_ids), connection=self.connection, serializer=JSONSerializer) if job_ids else []
        return [job for job in found if job is not None]

    def recover_lost(self, after_s: float = 20.0) -> list[str]:
        """Put jobs back that are in no list, see :func:`ml_backend.jobs.lost.recover`; their ids."""
        from ml_backend.jobs.lost import recover

        return recover(self, after_s)

    # -- targets of a prediction

    def targets(self, key: str) -> set[int]:
        """Tasks that wait for this prediction; each until it is served, so that none is lost with a worker."""
        with self.guard():
            return {int(value) for value in self.connection.smembers(_targets_key(key))}

    def remove_target(self, key: str, task_id: int) -> None:
        with self.guard():
            self.connection.srem(_targets_key(key), task_id)

    def add_targets(self, key: str, task_ids: Sequence[int]) -> None:
        if task_ids:
            with self.guard():
                self.connection.sadd(_targets_key(key), *task_ids)

    @contextmanager
    def delivery_lock(self, task_id: int) -> Iterator[None]:
        """Only one process at a time compares a task's predictions and adds one."""
        with self._lock(f"video:deliver:{task_id}", f"Task {task_id}"):
            yield

    @contextmanager
    def _lock(self, name: str, what: str) -> Iterator[None]:
        from redis.exceptions import RedisError

        with self.guard():
            lock = self.connection.lock(name, timeout=LOCK_S, blocking_timeout=LOCK_S + 10)
            if not lock.acquire():
                raise QueueUnavailable(f"{what} is locked by another worker.", "It is tried again later.")
        try:
            yield
        finally:
            try:
                lock.release()
            except RedisError as error:  # expired or Redis went away: the time-out frees it
                log.warning("The lock %s was not released: %s", name, error)

    # -- the token that Label Studio hands over in /setup

    def remember_token(self, token: str) -> None:
        with self.guard():
            self.connection.set("video:setup-token", token)

    def remembered_token(self) -> str:
        with self.guard():
            value = self.connection.get("video:setup-token")
        return value.decode() if isinstance(value, bytes) else ""

    # -- counters and state

    def count(self, name: str, amount: float = 1) -> None:
        """Add to a counter that /metrics shows; workers have no HTTP of their own."""
        with self.guard():
            self.connection.hincrbyfloat("video:counters", name, amount)

    def counters(self) -> dict[str, float]:
        with self.guard():
            values = self.connection.hgetall("video:counters")
        return {name.decode(): float(value) for name, value in values.items()}  # type: ignore[union-attr]

    def depths(self) -> dict[str, dict[str, int]]:
        """Number of jobs by queue and state."""
        with self.guard():
            return {
                name: {
                    "queued": queue.count,
                    "started": queue.started_job_registry.get_job_count(cleanup=False),
                    "scheduled": queue.scheduled_job_registry.get_job_count(cleanup=False),
                    "failed": queue.failed_job_registry.get_job_count(cleanup=False),
                }
                for name, queue in self.queues.items()
            }

    def workers(self) -> list[str]:
        """Names of the workers that gave a sign of life lately."""
        from rq import Worker

        with self.guard():
            return sorted(str(key).rsplit(":", 1)[-1] for key in Worker.all_keys(connection=self.connection))

    def job(self, job_id: str) -> dict[str, Any] | None:
        """State, progress and error of a job."""
        with self.guard():
            job = self.fetch(job_id)
            if job is None:
                return None
            status = job.get_status()
        return {
            "id": job_id,
            "state": status.value if status else "unknown",
            "progress": job.meta.get("progress"),
            "error": failure_text(job),
        }

    def failed_jobs(self) -> list[dict[str, Any]]:
        """Dead jobs with their error, newest first."""
        found = []
        with self.guard():
            for queue in self.queues.values():
                for job_id in queue.failed_job_registry.get_job_ids(cleanup=False):
                    if job := self.fetch(job_id):
                        found.append({"id": job_id, "ended_at": str(job.ended_at), "error": failure_text(job)})
        return sorted(found, key=lambda item: item["ended_at"], reverse=True)


def _targets_key(key: str) -> str:
    return f"video:targets:{key}"
