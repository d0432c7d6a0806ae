"""What became of jobs that are over, and which are to be given up.

RQ forgets a job when it has ended well, so that a new one of the same name can be made. Whoever asked for it wants to
know its result all the same: it is kept here for a while.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from redis import Redis

    from ml_backend.jobs.queue import JobQueue

#: Seconds that a result is kept.
KEPT_S = 7 * 24 * 3600
#: Ended jobs that lists show.
RECENT = 200

_RECENT = "video:control:recent"
_FORGET = "if redis.call('exists', KEYS[1]) == 0 then return redis.call('del', KEYS[2]) end return 0"
#: States of a record. ``requested``: the job itself has not said anything yet; ``spread``: its work is other jobs'.
REQUESTED, SPREAD, FINISHED, FAILED, CANCELLED = "requested", "spread", "finished", "failed", "cancelled"


class JobBoard:
    """Records of jobs in Redis. Every method raises QueueUnavailable when that does not answer."""

    def __init__(self, queue: JobQueue) -> None:
        self._queue = queue

    @property
    def _redis(self) -> Redis:
        return self._queue.connection

    def note(self, job_id: str, kind: str, project_id: int | None, **facts: Any) -> None:
        """A job is about to be requested; what an earlier one of its name left is forgotten."""
        record = {"id": job_id, "kind": kind, "project": project_id, "state": REQUESTED, "requested_at": time.time()}
        with self._queue.guard():
            self._redis.delete(_cancel_key(job_id), _members_key(job_id))
            self._write(job_id, record | facts)
            self._list(job_id)

    def end(self, job_id: str, state: str, *, result: Any = None, error: str = "") -> None:
        """A job is over. One that nobody has noted leaves no record: there are thousands of those."""
        with self._queue.guard():
            record = self._read(job_id)
            if record is None:
                return
            record |= {"state": state, "result": result, "error": error, "ended_at": time.time()}
            self._write(job_id, record)
            self._list(job_id)

    def get(self, job_id: str) -> dict[str, Any] | None:
        """The record of a job; ``None`` where there is none, or none any more."""
        with self._queue.guard():
            return self._read(job_id)

    def recent(self) -> list[dict[str, Any]]:
        """Records of jobs that have ended, and of those whose work is other jobs', newest first."""
        with self._queue.guard():
            names = [_text(name) for name in self._redis.zrevrange(_RECENT, 0, RECENT - 1)]
        return self.records(names)

    def records(self, job_ids: Sequence[str]) -> list[dict[str, Any]]:
        """Records of those jobs that have one."""
        with self._queue.guard():
            values = self._redis.mget([_record_key(name) for name in job_ids]) if job_ids else []
        return [json.loads(value) for value in values if value]

    def _read(self, job_id: str) -> dict[str, Any] | None:
        value = self._redis.get(_record_key(job_id))
        return dict(json.loads(value)) if value else None

    def _write(self, job_id: str, record: dict[str, Any]) -> None:
        self._redis.set(_record_key(job_id), json.dumps(record), ex=KEPT_S)

    def _list(self, job_id: str) -> None:
        self._redis.zadd(_RECENT, {job_id: time.time()})
        self._redis.zremrangebyrank(_RECENT, 0, -RECENT - 1)

    # -- what was found out, for whoever asks again

    def publish(self, name: str, facts: Any) -> None:
        """Keep what a job has found out under a name of its own; ``facts`` are plain JSON."""
        with self._queue.guard():
            self._redis.set(_found_key(name), json.dumps({"at": time.time(), "facts": facts}), ex=KEPT_S)

    def published(self, name: str) -> tuple[float, Any] | None:
        """When it was found out (seconds since 1970), and what; ``None``: not yet, or long ago."""
        with self._queue.guard():
            value = self._redis.get(_found_key(name))
        if not value:
            return None
        found = json.loads(value)
        return float(found["at"]), found["facts"]

    # -- giving up

    def request_cancel(self, job_id: str) -> None:
        """Ask whoever works on a job to give it up."""
        with self._queue.guard():
            self._redis.set(_cancel_key(job_id), 1, ex=KEPT_S)

    def is_cancelled(self, job_id: str) -> bool:
        """Whether somebody has asked for the job's end."""
        with self._queue.guard():
            return bool(self._redis.exists(_cancel_key(job_id)))

    def clear_cancelled(self, job_id: str) -> None:
        """The job has been given up, or is wanted again."""
        with self._queue.guard():
            self._redis.delete(_cancel_key(job_id))

    # -- jobs whose work is other jobs'

    def spread(self, job_id: str, tasks: Iterable[int]) -> None:
        """From now on a job is as far as the predictions of these tasks are."""
        members = list(tasks)
        with self._queue.guard():
            if members:
                self._redis.sadd(_members_key(job_id), *members)
                self._redis.expire(_members_key(job_id), KEPT_S)
        self.end(job_id, SPREAD)

    def members(self, job_id: str) -> set[int]:
        """The tasks of a job that is spread."""
        with self._queue.guard():
            return {int(value) for value in self._redis.smembers(_members_key(job_id))}


class CancelCheck:
    """Whether a job is to be given up, asked as often as one likes: Redis is asked once a second."""

    EVERY_S = 1.0

    def __init__(self, board: JobBoard, job_id: str) -> None:
        self._board, self._job_id = board, job_id
        self._asked, self._cancelled = time.monotonic(), False

    def __call__(self) -> bool:
        from redis.exceptions import RedisError

        now = time.monotonic()
        if not self._cancelled and now - self._asked >= self.EVERY_S:
            self._asked = now
            try:
                self._cancelled = bool(self._board._redis.exists(_cancel_key(self._job_id)))
            except (RedisError, OSError):  # it is asked again; work does not end because Redis is away
                return False
        return self._cancelled


def forget_cancelled(redis: Redis, job_id: str) -> None:
    """A job is about to be made: the wish that an earlier one of its name should end is not meant for it.

    To be called within the queue's guard. Where there is a job of this name, the wish stays.
    """
    from rq.job import Job

    redis.eval(_FORGET, 2, Job.key_for(job_id), _cancel_key(job_id))


def _record_key(job_id: str) -> str:
    return f"video:control:job:{job_id}"


def _cancel_key(job_id: str) -> str:
    return f"video:control:cancel:{job_id}"


def _found_key(name: str) -> str:
    return f"video:control:found:{name}"


def _members_key(job_id: str) -> str:
    return f"video:control:tasks:{job_id}"


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
