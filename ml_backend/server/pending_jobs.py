"""Bound the jobs that people start by looking at something, and the requests that wait for them."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

from ml_backend.core.errors import BackendError
from ml_backend.jobs.queue import RQ_ENDED, JobQueue, state_of
from ml_backend.server.access import Person
from ml_backend.server.slow_clients import WAITS, Slots

#: Jobs that may wait or run at once, of a person who has signed in and of all others together. A page asks for two
#: archives of frames.
MAX_PENDING, MAX_PENDING_OTHERS = 4, 16
#: Requests of a person who has signed in that may wait at once: a little more than a browser sends.
MAX_WAITING = 8


class TooMany(BackendError):
    """The person has too many jobs that have not ended."""

    http_status = 429


class PendingJobs:
    """The jobs, by person, that were started by looking at something and have not ended. Thread-safe."""

    def __init__(self, queue: JobQueue) -> None:
        self._queue, self._lock = queue, threading.Lock()
        self._slots = Slots(WAITS, "requests that wait for a worker")
        self._jobs: dict[str, set[str]] = defaultdict(set)
        self._waiting: Counter[str] = Counter()

    def wait_for(self, who: Person, job_id: str, request: Callable[[], object], timeout_s: float) -> tuple[bool, Any]:
        """Request a job; return whether it has ended within ``timeout_s`` seconds, and its result.

        Raises:
            TooMany: the person waits for too many others already.
            Busy: too many requests wait.
            QueueUnavailable: Redis does not answer.
        """
        name = who.name if who.session_id else ""
        self._begin(name, job_id)
        try:
            request()  # first: who cannot wait for it finds it next time
            with self._slots.taken():
                return self._queue.wait_for_result(job_id, timeout_s)
        finally:
            with self._lock:
                self._waiting[name] -= 1

    def _begin(self, name: str, job_id: str) -> None:
        limit = MAX_PENDING if name else MAX_PENDING_OTHERS
        with self._lock:
            jobs = self._jobs[name]
            if job_id not in jobs and len(jobs) >= limit:
                with self._queue.guard():
                    found = self._queue.fetch_many(sorted(jobs))
                jobs &= {str(job.id) for job in found if state_of(job) not in RQ_ENDED}
                if len(jobs) >= limit:
                    raise TooMany(f"{limit} other videos are still being read.", "Ask again in a few seconds.")
            if name and self._waiting[name] >= MAX_WAITING:
                raise TooMany(f"{MAX_WAITING} requests of yours wait already.", "Ask again in a few seconds.")
            self._waiting[name] += 1
            jobs.add(job_id)
