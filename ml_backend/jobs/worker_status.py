"""Loaded models and settings of workers, shared through Redis, and requests to unload idle models."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ml_backend.core.errors import QueueUnavailable
from ml_backend.core.files import free_bytes

if TYPE_CHECKING:
    from ml_backend.jobs.queue import JobQueue

log = logging.getLogger(__name__)

_STATUS = "video:models:"
_VERSION_SETTINGS = "video:shaping:"
_OPTIMIZE = "video:optimize"
_DISK = "video:disk:"


class WorkerStatus:
    """Reports and reads the status of workers. All methods but :meth:`tick` raise QueueUnavailable without Redis.

    Args:
        version_settings: of a worker that predicts; see :func:`ml_backend.labeling.model_version.version_settings`.
    """

    def __init__(self, queue: JobQueue, version_settings: Mapping[str, Any] | None = None) -> None:
        self._queue, self._version_settings = queue, version_settings
        self._requests: int | None = None

    def status(self) -> dict[str, Any]:
        """Return each worker's models, budgets and memory, as ``ModelCache.status`` gives them."""
        with self._queue.guard():
            names = sorted(key.decode() for key in self._queue.connection.scan_iter(f"{_STATUS}*", count=1000))
            values = self._queue.connection.mget(names) if names else []
        return {
            name.removeprefix(_STATUS): json.loads(value) for name, value in zip(names, values, strict=True) if value
        }

    def version_settings(self, workers: Sequence[str]) -> dict[str, Any]:
        """Return the version settings, by worker, of those workers that report them."""
        with self._queue.guard():
            values = self._queue.connection.mget([_VERSION_SETTINGS + name for name in workers]) if workers else []
        return {name: json.loads(value) for name, value in zip(workers, values, strict=True) if value}

    def disks(self, workers: Sequence[str]) -> dict[str, int]:
        """Return the free bytes of the disk of ``DATA_DIR``, by worker, as workers last reported them."""
        with self._queue.guard():
            values = self._queue.connection.mget([_DISK + name for name in workers]) if workers else []
        return {name: int(value) for name, value in zip(workers, values, strict=True) if value}

    def optimize(self) -> None:
        """Ask all workers to unload idle models; each does so between two jobs, within its lease."""
        with self._queue.guard():
            self._queue.connection.incr(_OPTIMIZE)

    def tick(self, worker: str, lease_s: int) -> None:
        """Report what a worker has loaded and unload idle models if requested. Workers call this periodically."""
        from ml_backend.core.model_cache import current_model_cache

        cache, redis = current_model_cache(), self._queue.connection
        try:
            with self._queue.guard():
                requests = int(redis.get(_OPTIMIZE) or 0)
                if cache and self._requests is not None and requests != self._requests:
                    log.info("Idle models are unloaded on request: %s", ", ".join(cache.optimize()) or "none")
                self._requests = requests
                if self._version_settings is not None:
                    redis.set(_VERSION_SETTINGS + worker, json.dumps(dict(self._version_settings)), ex=3 * lease_s)
                with suppress(OSError):  # nothing is told about a disk that does not answer
                    redis.set(_DISK + worker, free_bytes(self._queue.settings.data_dir), ex=3 * lease_s)
                if cache:
                    redis.set(_STATUS + worker, json.dumps(cache.status()), ex=3 * lease_s)
        except QueueUnavailable as error:
            log.warning("The status of models was not reported: %s", error)


def differing_settings(own: Mapping[str, Any], by_worker: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Describe workers whose settings, and thus prediction versions, differ from those of this process.

    Args:
        own: see :func:`ml_backend.labeling.model_version.version_settings`.
        by_worker: the same by worker.
    """
    descriptions = []
    for worker, theirs in by_worker.items():
        names = sorted(name for name in own.keys() | theirs.keys() if own.get(name) != theirs.get(name))
        if names:
            changes = ", ".join(f"{name.upper()} {theirs.get(name)} instead of {own.get(name)}" for name in names)
            descriptions.append(
                f"Worker {worker} runs with {changes}: its predictions have another version, so tasks are predicted "
                "again and again. Start all processes with the same settings and the same release."
            )
    return descriptions
