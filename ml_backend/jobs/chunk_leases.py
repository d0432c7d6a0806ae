"""How processes share the chunks of one video: claims are Redis locks, features lie in the artifact store."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from redis.exceptions import LockError

from ml_backend.core.errors import QueueUnavailable, StorageError
from ml_backend.core.types import FrameFeatures
from ml_backend.inference.chunks import VideoChunk, dump_frame_features, load_frame_features

if TYPE_CHECKING:
    from redis.lock import Lock

    from ml_backend.core.artifacts import Artifacts
    from ml_backend.jobs.queue import JobQueue

log = logging.getLogger(__name__)

#: Seconds between two looks for a chunk that another process detects.
POLL_S = 0.5
#: Seconds for which the tracking process does without Redis after it did not answer.
OUTAGE_S = 30.0
#: Seconds for which the chunks of an unfinished video are kept, so that its job can resume.
CHUNK_TTL_S = 7 * 24 * 3600

_PREFIX = "video:segments"


class ChunkLeases:
    """One process' view of the chunks of one video; a :class:`ml_backend.inference.chunks.ChunkStore`.

    Args:
        key: names the video under its detector and settings.
        helping: another process tracks. A helper raises if Redis or the artifact store is unreachable; the tracking
            process continues alone.
        claim_s: seconds after which a claim that is not renewed expires; by default twice a job's lease.
    """

    def __init__(
        self,
        queue: JobQueue,
        artifacts: Artifacts,
        key: str,
        *,
        helping: bool = False,
        claim_s: float | None = None,
    ) -> None:
        self._queue, self._artifacts, self._key, self._is_helper = queue, artifacts, key, helping
        self._claim_s = claim_s or 2.0 * queue.settings.job_lease_s
        self._locks: dict[int, Lock] = {}
        self._unreadable: set[int] = set()
        self._store_failed = False  # storing failed: no later chunks are detected ahead
        self._unsaved: dict[int, list[FrameFeatures]] = {}
        self._retry_at = 0.0

    # -- for the tracking process

    def open(self, count: int) -> None:
        """Let other processes help with ``count`` chunks, and remove the chunks of old videos."""
        self._call_redis(lambda redis: redis.zadd(_PREFIX, {f"{self._key}:{count}": time.time()}))
        self._renew()
        for name in self._call_redis(lambda redis: redis.zrangebyscore(_PREFIX, 0, time.time() - CHUNK_TTL_S)) or ():
            key, _, number = name.decode().rpartition(":")
            self._remove_chunks(key, int(number))

    def close(self, count: int) -> None:
        """Remove the chunks of the finished video."""
        self._call_redis(lambda redis: redis.delete(self._open_key))
        self._remove_chunks(self._key, count)

    def _remove_chunks(self, key: str, count: int) -> None:
        for number in range(count):
            if not self._artifacts.remove(_artifact_name(key, number)):
                return  # the next video tries again
        self._call_redis(lambda redis: redis.zrem(_PREFIX, f"{key}:{count}"))

    # -- for all processes

    @contextmanager
    def working(self) -> Iterator[None]:
        """Renew claims during the block and release them afterwards."""
        done = threading.Event()
        renewer = threading.Thread(target=self._renew_until, args=(done,), name="chunks", daemon=True)
        renewer.start()
        try:
            yield
        finally:
            done.set()
            renewer.join(timeout=5)
            for number in sorted(self._locks):
                self._release(number)

    def _renew_until(self, done: threading.Event) -> None:
        while not done.wait(self._claim_s / 6):
            try:
                self._renew()
            except QueueUnavailable as error:  # it may come back before the claims expire
                log.warning("Claims were not renewed: %s", error)

    def _renew(self) -> None:
        def renew(redis: Any) -> None:
            for lock in list(self._locks.values()):
                with suppress(LockError):  # it has expired; another process may do the same work, which does no harm
                    lock.reacquire()
            if not self._is_helper:
                redis.set(self._open_key, 1, px=int(2000 * self._claim_s))

        self._call_redis(renew)

    @property
    def is_open(self) -> bool:
        """Whether the tracking process still works on the video."""
        return bool(self._call_redis(lambda redis: redis.exists(self._open_key)))

    def any_free(self, numbers: Sequence[int]) -> bool:
        """Return whether any of these chunks is neither claimed nor finished."""
        taken = self._call_redis(lambda redis: redis.mget([self._claim_key(number) for number in numbers])) or ()
        free = (number for number, holder in zip(numbers, taken, strict=False) if holder is None)
        return any(not self._exists(number) for number in free)

    def load(self, chunk: VideoChunk) -> Sequence[FrameFeatures] | None:
        number = chunk.number
        if number in self._unsaved:
            return self._unsaved.pop(number)
        if number in self._unreadable:
            return None
        try:
            data = self._artifacts.read(_artifact_name(self._key, number))
            if data is not None:
                return load_frame_features(data)
            return None  # or another job has finished this video and removed its chunks
        except StorageError as error:
            log.warning("Chunk %d cannot be read and is detected here: %s", number, error)
        except ValueError as error:
            log.warning("Chunk %d is damaged and detected again: %s", number, error)
        self._unreadable.add(number)
        return None

    def claim(self, chunk: VideoChunk, *, ahead: bool = False) -> bool:
        number = chunk.number
        if number in self._unsaved or (ahead and self._store_failed) or self._exists(number):
            return False
        try:
            with self._queue.guard():
                name, seconds = self._claim_key(number), self._claim_s
                # Not thread-local: another thread renews it.
                lock = self._queue.connection.lock(name, timeout=seconds, thread_local=False)
                taken = bool(lock.acquire(blocking=False))
        except QueueUnavailable:
            if self._is_helper:
                raise
            return not ahead  # others cannot be seen, so do not wait for them
        if taken:
            self._locks[number] = lock
            if self._exists(number):  # finished between the two checks
                self._release(number)
                return False
        return taken

    def save(self, chunk: VideoChunk, features: Sequence[FrameFeatures]) -> None:
        number = chunk.number
        try:
            self._artifacts.write(_artifact_name(self._key, number), dump_frame_features(features))
            self._unreadable.discard(number)
            if self._is_helper and not self.is_open:  # nobody else will remove it
                self._artifacts.remove(_artifact_name(self._key, number))
        except StorageError as error:
            if self._is_helper:
                raise
            log.warning("Chunk %d was not stored; an interrupted job detects it again: %s", number, error)
            self._store_failed, self._unsaved = True, {number: list(features)}
        finally:
            self._release(number)

    def wait(self) -> None:
        time.sleep(POLL_S)

    def _exists(self, number: int) -> bool:
        try:
            return number not in self._unreadable and self._artifacts.exists(_artifact_name(self._key, number))
        except StorageError as error:
            if self._is_helper:
                raise
            log.warning("Could not check whether chunk %d is finished: %s", number, error)
            return False

    def _release(self, number: int) -> None:
        lock = self._locks.pop(number, None)

        def free(_: Any) -> None:
            with suppress(LockError):  # it has expired
                if lock is not None:
                    lock.release()

        self._call_redis(free)

    def _call_redis(self, command: Callable[[Any], Any]) -> Any:
        """Return the answer, or ``None`` during an outage, which must neither end nor slow down hours of work."""
        if time.monotonic() < self._retry_at:
            return None
        try:
            with self._queue.guard():
                return command(self._queue.connection)
        except QueueUnavailable as error:
            if self._is_helper:
                raise
            self._retry_at = time.monotonic() + OUTAGE_S
            log.warning("Continuing without helpers: %s", error)
            return None

    @property
    def _open_key(self) -> str:
        return f"{_PREFIX}:{self._key}:open"

    def _claim_key(self, number: int) -> str:
        return f"{_PREFIX}:{self._key}:{number}"


def _artifact_name(key: str, number: int) -> str:
    return f"segments/{key}/{number}.npz"
