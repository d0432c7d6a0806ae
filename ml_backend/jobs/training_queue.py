"""Requests to retrain a project, and the state of trainings that workers share through Redis."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from ml_backend.core.errors import Postponed
from ml_backend.jobs.queue import RQ_ENDED, WAITING, JobQueue, JobRequest, state_of

if TYPE_CHECKING:
    from redis import Redis
    from redis.lock import Lock

    from ml_backend.training.registry import Registry, Version

log = logging.getLogger(__name__)

#: Seconds after which a forced request expires if no training has started.
FORCE_TTL_S = 7 * 24 * 3600


class TrainingQueue:
    """Requests, locks and cancels trainings. Every method raises QueueUnavailable when Redis does not answer."""

    def __init__(self, queue: JobQueue) -> None:
        self._queue = queue
        self._lock_s = 2 * queue.settings.job_lease_s

    @property
    def _redis(self) -> Redis:
        return self._queue.connection

    def request(self, project_id: int, trigger: str, *, force: bool = False) -> JobRequest:
        """Request that a project's detector is retrained.

        Any number of requests create one job; requests while it runs create exactly one more.

        Args:
            trigger: who or what asks; the first request's is recorded.
            force: train even if nothing has changed since the last time; applies to the next job that starts.
        """
        with self._queue.guard():
            if force:
                self._redis.set(_force_key(project_id), 1, ex=FORCE_TTL_S)
        args = [project_id, trigger[:200]]
        requested = self._queue.request("train", "train", args, _job_id(project_id), "train", pause=timedelta(0))
        if not requested.created:
            with self._queue.guard():
                job = self._queue.fetch(requested.job_id)
            if job is None or state_of(job) not in WAITING:  # it has started: train once more afterwards
                self._queue.storage.note_pending("train", project_id)
        return requested

    def begin(self, project_id: int) -> None:
        """Settle the requests so far; later ones start another training."""
        storage = self._queue.storage
        storage.settle("train", project_id, storage.pending("train", project_id))

    @contextmanager
    def lock(self, project_id: int) -> Iterator[Lock]:
        """Hold a project's training lock, which ``TrainingWatcher`` renews and which expires when its holder dies.

        Raises:
            Postponed: another worker trains the project.
        """
        from redis.exceptions import RedisError

        with self._queue.guard():
            # Not thread-local: another thread renews it.
            lock = self._redis.lock(f"video:train:lock:{project_id}", timeout=self._lock_s, thread_local=False)
            if not lock.acquire(blocking=False):
                raise Postponed(
                    f"Project {project_id} is being trained by another worker.", "Wait: the job is retried."
                )
        try:
            yield lock
        finally:
            with suppress(RedisError):  # it is lost, or will expire
                lock.release()

    def is_wanted(self, project_id: int) -> bool:
        """Return whether a training of the project waits or runs."""
        with self._queue.guard():
            job = self._queue.fetch(_job_id(project_id))
        return job is not None and state_of(job) not in RQ_ENDED

    def acquire_turn(self, name: str, seconds: int) -> bool:
        """Return true to one process every ``seconds``, which then does the named periodic work for all."""
        with self._queue.guard():
            return bool(self._redis.set(f"video:turn:{name}", 1, nx=True, ex=max(1, seconds)))

    def cancel(self, project_id: int) -> bool:
        """Cancel a training. Return whether it was still waiting, else its worker is asked to stop."""
        self.begin(project_id)
        with self._queue.guard():
            self._queue.request_cancel(_job_id(project_id))  # first, since it may start at any moment
            job = self._queue.fetch(_job_id(project_id))
            waits = job is not None and state_of(job) in WAITING
            if job is not None and waits:
                self._queue.take_back(job)
        return waits

    def take_force(self, project_id: int) -> bool:
        """Return whether a forced training was requested, and clear the request."""
        with self._queue.guard():
            return bool(self._redis.delete(_force_key(project_id)))

    def caught_up(self, project_id: int) -> dict[int, str]:
        """Return the time of each task's last change that :func:`ml_backend.jobs.learn.catch_up` has checked."""
        with self._queue.guard():
            checked = self._redis.hgetall(_caught_up_key(project_id))
        return {int(task): moment.decode() for task, moment in checked.items()}  # type: ignore[union-attr]

    def note_caught_up(self, project_id: int, moments: Mapping[int, str]) -> None:
        """Replace the stored times."""
        with self._queue.guard(), self._redis.pipeline() as pipe:
            pipe.delete(_caught_up_key(project_id))
            if moments:
                times: dict[Any, Any] = {str(task): moment for task, moment in moments.items()}
                pipe.hset(_caught_up_key(project_id), mapping=times)
            pipe.execute()

    def is_cancelled(self, project_id: int) -> bool:
        """Return whether the training was cancelled."""
        return self._queue.is_cancelled(_job_id(project_id))


def unread_before(registry: Registry, version: Version) -> list[str]:
    """Return tasks whose video was unavailable in the training before this one; each run passes them on."""
    previous = registry.last(version.project_id, version.number)
    return list(previous.lineage.get("unread") or ()) if previous else []


def _job_id(project_id: int) -> str:
    return f"train-{project_id}"


def _force_key(project_id: int) -> str:
    return f"video:train:force:{project_id}"


def _caught_up_key(project_id: int) -> str:
    return f"video:caught-up:{project_id}"
