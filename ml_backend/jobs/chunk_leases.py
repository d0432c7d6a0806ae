"""What processes that observe one video know of each other: claims in Redis, observations where artifacts are kept."""

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

    from ml_backend.jobs.queue import JobQueue
    from ml_backend.training.artifacts import Artifacts

log = logging.getLogger(__name__)

#: Pause of who waits for others.
WAIT_S = 0.5
#: After Redis did not answer, what can do without it does not ask for so long.
AWAY_S = 30.0
#: Segments of videos that nobody has finished are kept so long, so that a job can be taken up again.
KEPT_S = 7 * 24 * 3600

_BEGUN = "video:segments"


class ChunkLeases:
    """See :class:`ml_backend.inference.chunks.ChunkStore`. One process' view of one video.

    Args:
        key: names the video under its detector and settings.
        helping: somebody else tracks. Where Redis or the artifacts are away this raises; who tracks works on alone.
        claim_s: a claim whose holder is silent for so long is free again; by default twice a job's lease.
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
        self._queue, self._artifacts, self._key, self._helping = queue, artifacts, key, helping
        self._claim_s = claim_s or 2.0 * queue.settings.job_lease_s
        self._claimed: dict[int, Lock] = {}
        self._unreadable: set[int] = set()
        self._unkept = False  # observations could not be stored: nothing more is done ahead
        self._own: dict[int, list[FrameFeatures]] = {}
        self._away_until = 0.0

    # -- of the one who tracks

    def open(self, count: int) -> None:
        """From now on others may help; what was left of old videos is removed."""
        self._try(lambda redis: redis.zadd(_BEGUN, {f"{self._key}:{count}": time.time()}))
        self._renew()
        for name in self._try(lambda redis: redis.zrangebyscore(_BEGUN, 0, time.time() - KEPT_S)) or ():
            key, _, number = name.decode().rpartition(":")
            self._forget(key, int(number))

    def close(self, count: int) -> None:
        """The video is done: nothing of it is needed any more."""
        self._try(lambda redis: redis.delete(self._open_key))
        self._forget(self._key, count)

    def _forget(self, key: str, count: int) -> None:
        for number in range(count):
            if not self._artifacts.remove(_name(key, number)):
                return  # the next video tries again
        self._try(lambda redis: redis.zrem(_BEGUN, f"{key}:{count}"))

    # -- of all

    @contextmanager
    def working(self) -> Iterator[None]:
        """Claims are kept meanwhile, however long something takes, and are free afterwards."""
        over = threading.Event()
        keeper = threading.Thread(target=self._keep, args=(over,), name="segments", daemon=True)
        keeper.start()
        try:
            yield
        finally:
            over.set()
            keeper.join(timeout=5)
            for number in sorted(self._claimed):
                self._release(number)

    def _keep(self, over: threading.Event) -> None:
        while not over.wait(self._claim_s / 6):
            try:
                self._renew()
            except QueueUnavailable as error:  # it may come back before the claims run out
                log.warning("Claims were not renewed: %s", error)

    def _renew(self) -> None:
        def ask(redis: Any) -> None:
            for lock in list(self._claimed.values()):
                with suppress(LockError):  # it has run out, and somebody else may be at it: both do the same
                    lock.reacquire()
            if not self._helping:
                redis.set(self._open_key, 1, px=int(2000 * self._claim_s))

        self._try(ask)

    @property
    def is_open(self) -> bool:
        """Whether somebody still works at the video as a whole."""
        return bool(self._try(lambda redis: redis.exists(self._open_key)))

    def is_left(self, numbers: Sequence[int]) -> bool:
        """Whether nobody is at, or has done, one of some segments."""
        taken = self._try(lambda redis: redis.mget([self._claim_key(number) for number in numbers])) or ()
        free = (number for number, holder in zip(numbers, taken, strict=False) if holder is None)
        return any(not self._exists(number) for number in free)

    def load(self, segment: VideoChunk) -> Sequence[FrameFeatures] | None:
        number = segment.number
        if number in self._own:
            return self._own.pop(number)
        if number in self._unreadable:
            return None
        try:
            data = self._artifacts.read(_name(self._key, number))
            if data is not None:
                return load_frame_features(data)
            return None  # also where another job was through with this video, and has removed it
        except StorageError as error:
            log.warning("Segment %d is observed here: %s", number, error)
        except ValueError as error:
            log.warning("Segment %d is damaged and observed again: %s", number, error)
        self._unreadable.add(number)
        return None

    def claim(self, segment: VideoChunk, *, ahead: bool = False) -> bool:
        number = segment.number
        if number in self._own or (ahead and self._unkept) or self._exists(number):
            return False
        try:
            with self._queue.guard():
                name, seconds = self._claim_key(number), self._claim_s
                # Renewed by another thread than the one that took it.
                lock = self._queue.connection.lock(name, timeout=seconds, thread_local=False)
                taken = bool(lock.acquire(blocking=False))
        except QueueUnavailable:
            if self._helping:
                raise
            return not ahead  # whether somebody else is at it is not known: nobody is waited for
        if taken:
            self._claimed[number] = lock
            if self._exists(number):  # finished between the two questions
                self._release(number)
                return False
        return taken

    def save(self, segment: VideoChunk, observations: Sequence[FrameFeatures]) -> None:
        number = segment.number
        try:
            self._artifacts.write(_name(self._key, number), dump_frame_features(observations))
            self._unreadable.discard(number)
            if self._helping and not self.is_open:  # nobody is going to remove it
                self._artifacts.remove(_name(self._key, number))
        except StorageError as error:
            if self._helping:
                raise
            log.warning("Segment %d is not kept; an interrupted job observes it again: %s", number, error)
            self._unkept, self._own = True, {number: list(observations)}
        finally:
            self._release(number)

    def wait(self) -> None:
        time.sleep(WAIT_S)

    def _exists(self, number: int) -> bool:
        try:
            return number not in self._unreadable and self._artifacts.exists(_name(self._key, number))
        except StorageError as error:
            if self._helping:
                raise
            log.warning("Whether segment %d is done is not known: %s", number, error)
            return False

    def _release(self, number: int) -> None:
        lock = self._claimed.pop(number, None)

        def free(_: Any) -> None:
            with suppress(LockError):  # it has run out
                if lock is not None:
                    lock.release()

        self._try(free)

    def _try(self, ask: Callable[[Any], Any]) -> Any:
        """The answer; ``None`` while Redis is away, which must not end hours of work, nor slow it down."""
        if time.monotonic() < self._away_until:
            return None
        try:
            with self._queue.guard():
                return ask(self._queue.connection)
        except QueueUnavailable as error:
            if self._helping:
                raise
            self._away_until = time.monotonic() + AWAY_S
            log.warning("One worker goes on alone: %s", error)
            return None

    @property
    def _open_key(self) -> str:
        return f"{_BEGUN}:{self._key}:open"

    def _claim_key(self, number: int) -> str:
        return f"{_BEGUN}:{self._key}:{number}"


def _name(key: str, number: int) -> str:
    return f"segments/{key}/{number}.npz"
