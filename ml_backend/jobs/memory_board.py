"""What models workers hold, for everybody to see, and the request to let go of those that are idle.

Models live in workers; the web process and scripts see them through Redis.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ml_backend.errors import QueueUnavailable

if TYPE_CHECKING:
    from redis import Redis

    from ml_backend.models.pool import ModelPool

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
        with _guard():
            names = sorted(key.decode() for key in self._connection.scan_iter(f"{_STATUS}*", count=1000))
            values = self._connection.mget(names) if names else []
        return {
            name.removeprefix(_STATUS): json.loads(value) for name, value in zip(names, values, strict=True) if value
        }

    def optimize(self) -> None:
        """Ask all workers to unload idle models; each does so between two jobs, within its lease."""
        with _guard():
            self._connection.incr(_OPTIMIZE)

    def tick(self, worker: str, lease_s: int) -> None:
        """For workers, now and then: tell what is loaded, and do what was asked for. Never raises."""
        from ml_backend.models.pool import current_pool

        try:
            with _guard():
                self._tick(worker, lease_s, current_pool())
        except QueueUnavailable as error:
            log.warning("The state of models was not reported: %s", error)

    def _tick(self, worker: str, lease_s: int, pool: ModelPool | None) -> None:
        wanted = int(self._connection.get(_OPTIMIZE) or 0)
        if pool and self._seen is not None and wanted != self._seen:
            gone = [model["name"] for model in pool.optimize()["unloaded"]]
            log.info("Idle models are unloaded on request: %s", ", ".join(gone) or "none")
        self._seen = wanted
        if pool:
            self._connection.set(_STATUS + worker, json.dumps(pool.status()), ex=3 * lease_s)


@contextmanager
def _guard() -> Iterator[None]:
    from redis.exceptions import RedisError

    try:
        yield
    except (RedisError, OSError) as error:
        raise QueueUnavailable(
            f"Redis does not answer ({error.__class__.__name__}).", "Start it, or set REDIS_URL."
        ) from error
