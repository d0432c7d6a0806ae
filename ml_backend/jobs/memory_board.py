"""What models workers hold, for everybody to see, and the request to let go of those that are idle.

Models live in workers; the web process and scripts see them through Redis.
"""

from __future__ import annotations

import json
import logging
from typing import Any

from redis import Redis
from redis.exceptions import RedisError

from ml_backend.errors import QueueUnavailable
from ml_backend.models.pool import current_pool

log = logging.getLogger(__name__)

_STATUS = "video:models:"
_OPTIMIZE = "video:optimize"


class MemoryBoard:
    """Every method but :meth:`tick` raises QueueUnavailable when Redis does not answer."""

    def __init__(self, connection: Redis) -> None:
        self._connection = connection
        self._seen: int | None = None

    def status(self) -> dict[str, Any]:
        """By worker: its models, budgets and memory, as :meth:`ml_backend.models.pool.ModelPool.status` gives them."""
        try:
            names = sorted(key.decode() for key in self._connection.scan_iter(f"{_STATUS}*", count=1000))
            values = self._connection.mget(names) if names else []
        except (RedisError, OSError) as error:
            raise _unavailable(error) from error
        return {
            name.removeprefix(_STATUS): json.loads(value) for name, value in zip(names, values, strict=True) if value
        }

    def optimize(self) -> None:
        """Ask all workers to unload idle models; each does so between two jobs, within its lease."""
        try:
            self._connection.incr(_OPTIMIZE)
        except (RedisError, OSError) as error:
            raise _unavailable(error) from error

    def tick(self, worker: str, lease_s: int) -> None:
        """For workers, now and then: tell what is loaded, and do what was asked for. Never raises."""
        try:
            wanted = int(self._connection.get(_OPTIMIZE) or 0)
            pool = current_pool()
            if pool and self._seen is not None and wanted != self._seen:
                gone = [model["name"] for model in pool.optimize()["unloaded"]]
                log.info("Idle models are unloaded on request: %s", ", ".join(gone) or "none")
            self._seen = wanted
            if pool:
                self._connection.set(_STATUS + worker, json.dumps(pool.status()), ex=3 * lease_s)
        except (RedisError, OSError) as error:
            log.warning("The state of models was not reported: %s", error)


def _unavailable(error: Exception) -> QueueUnavailable:
    return QueueUnavailable(f"Redis does not answer ({error.__class__.__name__}).", "Start it, or set REDIS_URL.")
