"""Requests to retrain a project, and what its worker shares with others through Redis."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from ml_backend.errors import Interrupted, Postponed
from ml_backend.jobs.queue import OVER, JobQueue, Requested
from ml_backend.jobs.records import forget_executions, state_of

if TYPE_CHECKING:
    from redis import Redis
    from redis.lock import Lock

#: A request to cancel that nobody has seen for so long concerns nobody any more.
CANCEL_S = 7 * 24 * 3600


class TrainingQueue:
    """Every method raises QueueUnavailable when Redis does not answer."""

    def __init__(self, queue: JobQueue) -> None:
        self._queue = queue
        self._lock_s = 2 * queue.settings.job_lease_s

    @property
    def _redis(self) -> Redis:
        return self._queue.connection

    def request(self, project_id: int, trigger: str, *, force: bool = False) -> Requested:
        """Retrain a project's detector.

        Any number of requests make one job; what is asked while it runs makes exactly one more.

        Args:
            trigger: who or what asks; of several the first one's is written down.
            force: train even if nothing has changed since the last time; holds for whichever job comes next.
        """
        with self._queue.guard():
            if force:
                self._redis.set(_force_key(project_id), 1, ex=CANCEL_S)
            if not self._redis.exists(_lock_key(project_id)):  # what was cancelled before is another matter
                self._redis.delete(_cancel_key(project_id))
        args = [project_id, trigger[:200]]
        requested = self._queue.request("train", "train", args, _name(project_id), "training", pause=timedelta(0))
        if not requested.created:  # it may have begun: then once more afterwards
            self._queue.storage.note_pending("train", project_id)
        return requested

    def begin(self, project_id: int) -> None:
        """What is asked from now on is done once more."""
        storage = self._queue.storage
        storage.settle("train", project_id, storage.pending("train", project_id))

    @contextmanager
    def lock(self, project_id: int) -> Iterator[TrainingLock]:
        """Only one worker trains a project at a time.

        Raises:
            Postponed: another one does.
        """
        with self._queue.guard():
            # Renewed by another thread than the one that took it.
            lock = self._redis.lock(_lock_key(project_id), timeout=self._lock_s, thread_local=False)
            if not lock.acquire(blocking=False):
                raise Postponed(f"Project {project_id} is being trained by another worker.", "It is tried again.")
        held = TrainingLock(lock)
        try:
            yield held
        finally:
            held.release()

    def is_wanted(self, project_id: int) -> bool:
        """Whether a job for the project waits or runs."""
        with self._queue.guard():
            job = self._queue.fetch(_name(project_id))
        return job is not None and state_of(job) not in OVER

    def my_turn(self, name: str, seconds: int) -> bool:
        """Whether this process is to do something that one of all does every so many seconds."""
        with self._queue.guard():
            return bool(self._redis.set(f"video:turn:{name}", 1, nx=True, ex=max(1, seconds)))

    def cancel(self, project_id: int) -> bool:
        """Ask whoever trains the project to give up, or take the request back; whether it still waited."""
        self.begin(project_id)
        with self._queue.guard():
            self._redis.set(_cancel_key(project_id), 1, ex=CANCEL_S)
            job = self._queue.fetch(_name(project_id))
            waits = job is not None and state_of(job) in ("queued", "scheduled")
            if job is not None and waits:
                forget_executions(job)
                job.delete()
        return waits

    def take_force(self, project_id: int) -> bool:
        """Whether somebody has asked for a training in any case; asked once."""
        with self._queue.guard():
            return bool(self._redis.delete(_force_key(project_id)))

    def caught_up(self, project_id: int) -> dict[int, str]:
        """By task when it had changed last, as it was looked for anything that nobody told us of."""
        with self._queue.guard():
            found = self._redis.hgetall(_caught_up_key(project_id))
        return {int(task): moment.decode() for task, moment in found.items()}  # type: ignore[union-attr]

    def note_caught_up(self, project_id: int, moments: Mapping[int, str]) -> None:
        """Keep these in place of what was known."""
        with self._queue.guard(), self._redis.pipeline() as pipe:
            pipe.delete(_caught_up_key(project_id))
            if moments:
                pipe.hset(_caught_up_key(project_id), mapping={str(task): moment for task, moment in moments.items()})
            pipe.execute()

    def is_cancelled(self, project_id: int) -> bool:
        """Whether somebody has asked for the training's end."""
        with self._queue.guard():
            return bool(self._redis.exists(_cancel_key(project_id)))

    def clear_cancelled(self, project_id: int) -> None:
        """Trainings may run again."""
        with self._queue.guard():
            self._redis.delete(_cancel_key(project_id))


class TrainingLock:
    """A lock that expires by itself when its holder dies."""

    def __init__(self, lock: Lock) -> None:
        self._lock = lock

    def renew(self) -> None:
        """Keep it for another while. While Redis is away it is kept in the hope that it will be back in time.

        Raises:
            Interrupted: it has expired and somebody else may hold it.
        """
        from redis.exceptions import RedisError

        try:
            self._lock.reacquire()
        except RedisError as error:
            if "no longer owned" in str(error) or "unlocked" in str(error):
                raise Interrupted("The lock on the training was lost.", "Another worker goes on with it.") from error

    def release(self) -> None:
        """Give it back; if it is lost, or Redis away, it goes by itself."""
        from redis.exceptions import RedisError

        try:
            self._lock.release()
        except RedisError:
            return


def _name(project_id: int) -> str:
    return f"train-{project_id}"


def _lock_key(project_id: int) -> str:
    return f"video:train:lock:{project_id}"


def _force_key(project_id: int) -> str:
    return f"video:train:force:{project_id}"


def _caught_up_key(project_id: int) -> str:
    return f"video:caught-up:{project_id}"


def _cancel_key(project_id: int) -> str:
    return f"video:train:cancel:{project_id}"
