"""Requests to retrain a project, and what its worker shares with others through Redis."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING

from ml_backend.core.errors import Postponed
from ml_backend.jobs.queue import OVER, WAITING, JobQueue, JobRequest, state_of

if TYPE_CHECKING:
    from redis import Redis
    from redis.lock import Lock

    from ml_backend.training.registry import Registry, Version

log = logging.getLogger(__name__)

#: That a training is forced is forgotten if none has begun for so long.
FORCE_S = 7 * 24 * 3600


class TrainingQueue:
    """Every method raises QueueUnavailable when Redis does not answer."""

    def __init__(self, queue: JobQueue) -> None:
        self._queue = queue
        self._lock_s = 2 * queue.settings.job_lease_s

    @property
    def _redis(self) -> Redis:
        return self._queue.connection

    def request(self, project_id: int, trigger: str, *, force: bool = False) -> JobRequest:
        """Retrain a project's detector.

        Any number of requests make one job; what is asked while it runs makes exactly one more.

        Args:
            trigger: who or what asks; of several the first one's is written down.
            force: train even if nothing has changed since the last time; holds for whichever job comes next.
        """
        with self._queue.guard():
            if force:
                self._redis.set(_force_key(project_id), 1, ex=FORCE_S)
        args = [project_id, trigger[:200]]
        requested = self._queue.request("train", "train", args, _name(project_id), "train", pause=timedelta(0))
        if not requested.created:
            with self._queue.guard():
                job = self._queue.fetch(requested.job_id)
            if job is None or state_of(job) not in WAITING:  # it has begun: once more afterwards
                self._queue.storage.note_pending("train", project_id)
        return requested

    def begin(self, project_id: int) -> None:
        """What is asked from now on is done once more."""
        storage = self._queue.storage
        storage.settle("train", project_id, storage.pending("train", project_id))

    @contextmanager
    def lock(self, project_id: int) -> Iterator[Lock]:
        """Only one worker trains a project at a time. The lock expires when its holder dies, see ``Watch`` of the job.

        Raises:
            Postponed: another one does.
        """
        from redis.exceptions import RedisError

        with self._queue.guard():
            # Renewed by another thread than the one that took it.
            lock = self._redis.lock(f"video:train:lock:{project_id}", timeout=self._lock_s, thread_local=False)
            if not lock.acquire(blocking=False):
                raise Postponed(f"Project {project_id} is being trained by another worker.", "It is tried again.")
        try:
            yield lock
        finally:
            with suppress(RedisError):  # it is lost, or Redis away: then it goes by itself
                lock.release()

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
            self._queue.request_cancel(_name(project_id))  # first: it may begin at this moment
            job = self._queue.fetch(_name(project_id))
            waits = job is not None and state_of(job) in WAITING
            if job is not None and waits:
                self._queue.take_back(job)
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
        return self._queue.is_cancelled(_name(project_id))


def unread_before(registry: Registry, version: Version) -> list[str]:
    """Tasks whose video was away when the version before this one was trained; each run hands them on."""
    before = registry.last(version.project_id, version.number)
    return list(before.lineage.get("unread") or ()) if before else []


def _name(project_id: int) -> str:
    return f"train-{project_id}"


def _force_key(project_id: int) -> str:
    return f"video:train:force:{project_id}"


def _caught_up_key(project_id: int) -> str:
    return f"video:caught-up:{project_id}"
