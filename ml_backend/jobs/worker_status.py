"""What workers hold and how they are set, for everybody to see, and the request to let go of models that are idle.

Models live in workers; the web process and scripts see them through Redis.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ml_backend.core.errors import QueueUnavailable

if TYPE_CHECKING:
    from ml_backend.jobs.queue import JobQueue

log = logging.getLogger(__name__)

_STATUS = "video:models:"
_SHAPING = "video:shaping:"
_OPTIMIZE = "video:optimize"


class WorkerStatus:
    """Every method but :meth:`tick` raises QueueUnavailable when Redis does not answer.

    Args:
        shaping: of a worker that makes predictions: see :func:`ml_backend.labeling.model_version.version_settings`.
    """

    def __init__(self, queue: JobQueue, shaping: Mapping[str, Any] | None = None) -> None:
        self._queue, self._shaping = queue, shaping
        self._seen: int | None = None

    def status(self) -> dict[str, Any]:
        """Return each worker's models, budgets and memory, as ``ModelPool.status`` gives them."""
        with self._queue.guard():
            names = sorted(key.decode() for key in self._queue.connection.scan_iter(f"{_STATUS}*", count=1000))
            values = self._queue.connection.mget(names) if names else []
        return {
            name.removeprefix(_STATUS): json.loads(value) for name, value in zip(names, values, strict=True) if value
        }

    def shaping(self, workers: Sequence[str]) -> dict[str, Any]:
        """By worker, of these that tell it: the settings that shape its predictions."""
        with self._queue.guard():
            values = self._queue.connection.mget([_SHAPING + name for name in workers]) if workers else []
        return {name: json.loads(value) for name, value in zip(workers, values, strict=True) if value}

    def optimize(self) -> None:
        """Ask all workers to unload idle models; each does so between two jobs, within its lease."""
        with self._queue.guard():
            self._queue.connection.incr(_OPTIMIZE)

    def tick(self, worker: str, lease_s: int) -> None:
        """For workers, now and then: tell what is loaded, and do what was asked for. Never raises."""
        from ml_backend.core.model_cache import current_pool

        pool, redis = current_pool(), self._queue.connection
        try:
            with self._queue.guard():
                wanted = int(redis.get(_OPTIMIZE) or 0)
                if pool and self._seen is not None and wanted != self._seen:
                    log.info("Idle models are unloaded on request: %s", ", ".join(pool.optimize()) or "none")
                self._seen = wanted
                if self._shaping is not None:
                    redis.set(_SHAPING + worker, json.dumps(dict(self._shaping)), ex=3 * lease_s)
                if pool:
                    redis.set(_STATUS + worker, json.dumps(pool.status()), ex=3 * lease_s)
        except QueueUnavailable as error:
            log.warning("The state of models was not reported: %s", error)


def differing_settings(mine: Mapping[str, Any], shaping: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Where workers are set otherwise than this process, in words: their predictions never count as current.

    Args:
        mine: see :func:`ml_backend.labeling.model_version.version_settings`.
        shaping: the same by worker.
    """
    out = []
    for worker, theirs in shaping.items():
        names = sorted(name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name))
        if names:
            what = ", ".join(f"{name.upper()} {theirs.get(name)} instead of {mine.get(name)}" for name in names)
            out.append(
                f"Worker {worker} runs with {what}: its predictions have another version, so tasks are asked for again "
                "and again. Start all processes with the same settings and the same release."
            )
    return out
