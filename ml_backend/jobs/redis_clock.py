"""Redis' clock, by which leases and retries of all workers are timed: those of their hosts may differ."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

import rq.intermediate_queue
import rq.job
import rq.utils

if TYPE_CHECKING:
    from redis import Redis


class RedisClock:
    """The time by Redis, from the clock of this host and how far Redis was ahead of it when last asked."""

    def __init__(self, connection: Redis) -> None:
        self._connection, self._ahead = connection, timedelta(0)

    def synchronize(self) -> None:
        """Ask Redis for its time.

        Raises:
            RedisError: it does not answer.
        """
        seconds, microseconds = self._connection.time()
        told = datetime.fromtimestamp(seconds, timezone.utc) + timedelta(microseconds=microseconds)
        self._ahead = told - datetime.now(timezone.utc)

    def now(self) -> datetime:
        return datetime.now(timezone.utc) + self._ahead

    def use(self) -> None:
        """Let RQ read this clock in this process, where it times leases and retries."""
        for module in (rq.utils, rq.job, rq.intermediate_queue):
            module.now = self.now
