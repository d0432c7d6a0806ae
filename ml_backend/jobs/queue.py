"""The queue: idempotent requests in, jobs out. Knows RQ, Redis and the table of what is pending; no HTTP, no models."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ml_backend.core.errors import ConfigError, QueueUnavailable
from ml_backend.core.settings import QUEUES, Settings
from ml_backend.core.timestamps import ensure_utc

if TYPE_CHECKING:  # redis and the database's library take long to load: a start need not wait for that
    from redis import Redis
    from rq import Queue
    from rq.job import Job

    from ml_backend.db.storage import Storage

log = logging.getLogger(__name__)

#: Pauses before each further try: a moment, then long enough for a server to be restarted, then to be repaired.
RETRY_INTERVALS_S = [5, 60, 600]
#: A failed job is not repeated sooner, however often Label Studio asks.
FAILED_PAUSE = timedelta(seconds=30)
FAILURE_TTL_S = 7 * 24 * 3600
#: Only a job that hangs runs for so long: hours of video, or a training, take some hours of a CPU.
JOB_TIMEOUT_S = 24 * 3600
TARGETS_TTL_S = 7 * 24 * 3600
#: How long the result of a job is kept for whoever asked for it.
KEPT_S = 7 * 24 * 3600
#: Nobody asks for these by name, and what they do shows elsewhere; of some there are thousands.
_PASSING = ("prepare_task", "prepare_many", "predict", "help_detect", "refresh")
#: After so long a lock whose holder died is free again.
LOCK_S = 120
#: By kind of what is pending in the database: the queue, the module of jobs, and the function there.
_PENDING = {
    "learn": ("patterns", "learn", "learn"),
    "refresh": ("refresh", "learn", "refresh"),
    "prepare": ("prepare", "predict", "prepare_many"),
    "train": ("train", "train", "train"),
}
#: Stands for the whole project where tasks are pending.
ALL_TASKS = 0

#: A field that RQ does not know, in its record of a job: it goes when that goes. Where there is no job, none is made.
_CANCEL = "if redis.call('exists', KEYS[1]) == 1 then redis.call('hset', KEYS[1], 'cancel', 1) end"

#: RQ's names of states in which nothing has happened yet.
WAITING = ("queued", "scheduled", "deferred")
#: RQ's names of states in which nothing happens any more.
OVER = ("finished", "failed", "stopped", "canceled")


@dataclass(frozen=True, slots=True)
class JobRequest:
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

    def __init__(
        self,
        settings: Settings,
        connection: Redis | None = None,
        storage: Storage | None = None,
        timeout: float = 1.0,
    ) -> None:
        self.settings = settings
        self._given, self._timeout = connection, timeout
        if storage:
            self.storage = storage

    @cached_property
    def storage(self) -> Storage:
        """Where what is pending is written down."""
        from ml_backend.db.storage import Storage

        return Storage(self.settings.database)

    @cached_property
    def connection(self) -> Redis:
        return self._given or connect(self.settings, timeout=self._timeout)

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

    def request_prepare(self, project_id: int, task_id: int) -> JobRequest:
        """Probe a task's videos, write their frame rate into the task, then request its prediction."""
        return self.request("prepare", "prepare_task", [project_id, task_id], f"prepare-{task_id}")

    def request_prepare_many(self, project_id: int, task_ids: Sequence[int]) -> JobRequest:
        """One job that requests many; no ids means all tasks of the project."""
        return self._request_pending("prepare", project_id, task_ids or (ALL_TASKS,))

    def request_prediction(self, key: str, project_id: int, task_id: int, queue: str = "predict") -> JobRequest:
        """One job per key; every task that asks meanwhile is served by it."""
        with self.guard():
            targets = targets_key(key)
            self.connection.sadd(targets, task_id)
            self.connection.expire(targets, TARGETS_TTL_S)
        return self.request(queue, "predict", [key, project_id, task_id], f"predict-{key}")

    def request_learning(self, project_id: int, task_ids: Sequence[int] | None) -> JobRequest:
        """Learn labels from what people annotated in these tasks; ``None``: in all tasks of the project."""
        return self._request_pending("learn", project_id, (ALL_TASKS,) if task_ids is None else task_ids)

    def request_refresh(self, project_id: int) -> JobRequest:
        """Renew the predictions of all tasks that nobody has annotated, since their labels may have changed."""
        return self._request_pending("refresh", project_id, (ALL_TASKS,))

    def _request_pending(self, kind: str, project_id: int, task_ids: Sequence[int]) -> JobRequest:
        self.storage.note_pending(kind, project_id, task_ids)
        return self.start_pending(kind, project_id)

    def start_pending(self, kind: str, project_id: int, pause: timedelta = timedelta(0)) -> JobRequest:
        """Make the job that does what is pending of a project.

        Any number of requests make one job. What is asked while it runs, it does too before it ends; what it just
        misses is found by workers, see :class:`ml_backend.jobs.training_scheduler.TrainingScheduler`.

        Args:
            pause: since the last try of a job that has failed.
        """
        queue, module, function = _PENDING[kind]
        args = [project_id, "Start training"] if kind == "train" else [project_id]
        name = f"{function.replace('_', '-')}-{project_id}"
        # A refresh comes before the predictions of an earlier one, most of which are outdated now.
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
                try:
                    self.queues[queue].enqueue_call(
                        f"ml_backend.jobs.{module}.{function}",
                        args=args,
                        job_id=job_id,
                        unique=True,
                        timeout=JOB_TIMEOUT_S,
                        result_ttl=0 if function in _PASSING else KEPT_S,
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
                    if state_of(job) not in OVER:
                        self._hurry(job, queue, now=not pause)
                        return JobRequest(job_id, False)
                    failed = job.ended_at if state_of(job) == "failed" else None
                    if failed and datetime.now(timezone.utc) - ensure_utc(failed) < pause:
                        return JobRequest(job_id, False, failure_text(job))
                    again = self.fetch(job_id)
                    if again is None or state_of(again) in OVER:  # else another process has just made it anew
                        forget_executions(job)
                        job.delete()
        return JobRequest(job_id, False)

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
        """Put jobs back that are in no list; their ids.

        A worker of several queues takes a job's name from one and then notes that it began. Killed in between, it
        leaves a job that calls itself queued (or scheduled for another try), is nowhere, and blocks every new request
        for the same work: RQ guards workers of one queue against that, but not of several. What is seen so twice,
        ``after_s`` apart, is lost; workers call this all the time.
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
            missing = {key.decode().removeprefix(prefix) for key in waiting}
            for queue in self.queues.values():
                missing -= {*queue.get_job_ids(), *queue.scheduled_job_registry.get_job_ids(cleanup=False)}
            return [job_id for job_id in sorted(missing) if self._put_back(job_id, after_s)]

    def _put_back(self, job_id: str, after_s: float) -> bool:
        mark, now = f"video:lost:{job_id}", time.time()
        if self.connection.set(mark, now, nx=True, ex=int(10 * after_s + 6 * self.settings.job_lease_s)):
            return False
        seen = self.connection.get(mark)
        if seen is None or now - float(seen) < after_s:
            return False
        job = self.fetch(job_id)
        if job is None or state_of(job) not in ("queued", "scheduled") or not self.connection.delete(mark):
            return False
        log.warning("Job %s was lost by a worker that ended; it is queued again.", job_id)
        self.queues[job.origin].enqueue_job(job)
        return True

    # -- giving up

    def request_cancel(self, job_id: str) -> None:
        """Ask whoever works on a job, now or after its worker's death, to give it up."""
        from rq.job import Job

        with self.guard():
            self.connection.eval(_CANCEL, 1, Job.key_for(job_id))

    def is_cancelled(self, job_id: str) -> bool:
        """Whether somebody has asked for the job's end."""
        from rq.job import Job

        with self.guard():
            return bool(self.connection.hexists(Job.key_for(job_id), "cancel"))

    # -- targets of a prediction

    def targets(self, key: str) -> set[int]:
        """Tasks that wait for this prediction; each until it is served, so that none is lost with a worker."""
        with self.guard():
            return {int(value) for value in self.connection.smembers(targets_key(key))}

    def remove_target(self, key: str, task_id: int) -> None:
        with self.guard():
            self.connection.srem(targets_key(key), task_id)

    def add_targets(self, key: str, task_ids: Sequence[int]) -> None:
        if task_ids:
            with self.guard():
                self.connection.sadd(targets_key(key), *task_ids)

    @contextmanager
    def task_lock(self, purpose: str, task_id: int) -> Iterator[None]:
        """Only one process at a time works on a task for a purpose.

        Args:
            purpose: ``learn``: read its annotation and write down what it teaches; ``deliver``: compare its predictions
                and add one.
        """
        from redis.exceptions import RedisError

        name = f"video:{purpose}:{task_id}"
        with self.guard():
            lock = self.connection.lock(name, timeout=LOCK_S, blocking_timeout=LOCK_S + 10)
            if not lock.acquire():
                raise QueueUnavailable(f"Task {task_id} is locked by another worker.", "It is tried again later.")
        try:
            yield
        finally:
            try:
                lock.release()
            except RedisError as error:  # expired or Redis went away: the time-out frees it
                log.warning("The lock %s was not released: %s", name, error)

    def take_back(self, job: Job) -> None:
        """Cancel a job that waits; call it within :meth:`guard`. Who asked for it sees for a while that it was."""
        forget_executions(job)
        function = job.func_name.rpartition(".")[2]
        kind = {"refresh": "refresh", "prepare_many": "prepare"}.get(function)
        if kind:  # else workers would make the job again
            self.storage.settle(kind, job.args[0], self.storage.pending(kind, job.args[0]))
        if function in _PASSING:
            job.delete()
            return
        job.ended_at = datetime.now(timezone.utc)
        job.save(include_meta=False)
        job.cancel()
        job.connection.expire(job.key, KEPT_S)
        # RQ never forgets the names of jobs that were cancelled.
        self.connection.zremrangebyscore(self.queues[job.origin].canceled_job_registry.key, 0, time.time() - KEPT_S)

    # -- what was found out, for whoever asks again

    def publish(self, name: str, facts: Any) -> None:
        """Keep what a job has found out, also while it is found out anew; ``facts`` are plain JSON."""
        with self.guard():
            self.connection.set(f"video:found:{name}", json.dumps({"at": time.time(), "facts": facts}), ex=KEPT_S)

    def published(self, name: str) -> tuple[float, Any] | None:
        """When it was found out (seconds since 1970), and what; ``None``: not yet, or long ago."""
        with self.guard():
            value = self.connection.get(f"video:found:{name}")
        found = json.loads(value) if value else None
        return (float(found["at"]), found["facts"]) if found else None

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

    def failed_jobs(self) -> list[dict[str, Any]]:
        """Dead jobs with their error, newest first."""
        with self.guard():
            registries = [queue.failed_job_registry for queue in self.queues.values()]
            jobs = self.fetch_many([name for failed in registries for name in failed.get_job_ids(cleanup=False)])
            found = [{"id": job.id, "ended_at": str(job.ended_at), "error": failure_text(job)} for job in jobs]
        return sorted(found, key=lambda item: item["ended_at"], reverse=True)


def state_of(job: Job) -> str:
    """RQ's name of a job's state, as it was when the job was read; empty where it has none."""
    state = job.get_status(refresh=False)
    return state.value if state else ""


def forget_executions(job: Job, keep: str = "") -> None:
    """Strike executions of workers that died from a job's list, all but ``keep``.

    RQ keeps them there for a minute longer than it keeps what they point to, and cannot delete the job meanwhile.
    """
    registry = job.execution_registry
    dead = [name for name in registry.get_execution_ids() if name != keep]
    if dead:
        registry.connection.zrem(registry.key, *dead)


def failure_text(job: Job) -> str:
    """Why a job failed, in the words of the error that was raised."""
    text = job.meta.get("error")
    if text:
        return str(text)
    result = job.latest_result() if state_of(job) == "failed" else None
    trace = (result.exc_string or "").strip() if result else ""
    return trace.rsplit("\n", 1)[-1]


def targets_key(key: str) -> str:
    """Where Redis keeps the tasks that wait for a prediction."""
    return f"video:targets:{key}"
