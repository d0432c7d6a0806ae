"""Segments of one video over all workers: claims in Redis, observations where artifacts are kept."""

from __future__ import annotations

import hashlib
import json
import logging
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ml_backend.errors import Interrupted, QueueUnavailable, StorageError
from ml_backend.jobs.context import Context, job
from ml_backend.segments import (
    Look,
    Segment,
    dump_observations,
    load_observations,
    observe_some,
    observe_together,
    plan_segments,
)
from ml_backend.types import Observation, VideoInfo

if TYPE_CHECKING:
    from ml_backend.jobs.plan import TaskPlan
    from ml_backend.jobs.queue import JobQueue
    from ml_backend.projects import ProjectModels
    from ml_backend.training.artifacts import Artifacts

log = logging.getLogger(__name__)

#: A claim whose holder is silent for so long is free again.
CLAIM_S = 60.0
#: Pause of who waits for others.
WAIT_S = 0.5
#: Workers that come later are asked for help too.
ASK_AGAIN_S = 20.0
#: Segments of videos that nobody has finished are kept so long, so that a job can be taken up again.
KEPT_S = 7 * 24 * 3600
#: Workers that help with one video, at most.
HELPERS = 32

_BEGUN = "video:segments"
_RENEW = (
    "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('pexpire', KEYS[1], ARGV[2]) else return 0 end"
)


class Board:
    """See :class:`ml_backend.segments.SegmentBoard`. One process' view of one video.

    Args:
        key: names the video under its detector and settings.
        need: raise where Redis is away, instead of working on alone.
    """

    def __init__(self, queue: JobQueue, artifacts: Artifacts, key: str, *, need: bool = False) -> None:
        self._queue, self._artifacts, self._key, self._need = queue, artifacts, key, need
        self._me = uuid.uuid4().hex
        self._claimed: set[int] = set()
        self._renewed = 0.0
        self._unkept = False  # observations could not be stored: nothing more is done ahead
        self._own: dict[int, list[Observation]] = {}

    # -- of the one who tracks

    def open(self, count: int) -> None:
        """From now on others may help; what was left of old videos is removed."""
        self._try(lambda redis: redis.zadd(_BEGUN, {f"{self._key}:{count}": time.time()}))
        self._try(lambda redis: redis.set(self._open_key, 1, ex=int(2 * CLAIM_S)))
        for name in self._try(lambda redis: redis.zrangebyscore(_BEGUN, 0, time.time() - KEPT_S)) or ():
            key, _, number = name.decode().rpartition(":")
            self._forget(key, int(number))

    def close(self, count: int) -> None:
        """The video is done: nothing of it is needed any more."""
        self._try(lambda redis: redis.delete(self._open_key))
        self._forget(self._key, count)

    def _forget(self, key: str, count: int) -> None:
        for number in range(count):
            self._artifacts.remove(_name(key, number))
        self._try(lambda redis: redis.zrem(_BEGUN, f"{key}:{count}"))
        self._try(lambda redis: redis.delete(_frames_key(key)))

    # -- of all

    @property
    def is_open(self) -> bool:
        """Whether somebody still works at the video as a whole."""
        return bool(self._try(lambda redis: redis.exists(self._open_key)))

    def load(self, segment: Segment) -> Sequence[Observation] | None:
        if segment.number in self._own:
            return self._own.pop(segment.number)
        try:
            data = self._artifacts.read(_name(self._key, segment.number))
            return None if data is None else load_observations(data)
        except StorageError as error:
            log.warning("Segment %d is observed here: %s", segment.number, error)
        except ValueError as error:
            log.warning("Segment %d is damaged and observed again: %s", segment.number, error)
            self._artifacts.remove(_name(self._key, segment.number))
        return None

    def claim(self, segment: Segment, *, ahead: bool = False) -> bool:
        if segment.number in self._own or self._exists(segment) or (ahead and self._unkept):
            return False
        key = self._claim_key(segment.number)
        try:
            with self._queue.guard():
                taken = bool(self._queue.connection.set(key, self._me, nx=True, ex=int(CLAIM_S)))
        except QueueUnavailable:
            if self._need:
                raise
            taken = not ahead  # whether somebody else is at it is not known: nobody is waited for
        if taken and self._exists(segment):  # finished between the two questions
            self._release(segment.number)
            return False
        if taken:
            self._claimed.add(segment.number)
        return taken

    def save(self, segment: Segment, observations: Sequence[Observation]) -> None:
        try:
            self._artifacts.write(_name(self._key, segment.number), dump_observations(observations))
        except StorageError as error:
            if self._need:
                raise
            log.warning("Segment %d is not kept; an interrupted job observes it again: %s", segment.number, error)
            self._unkept, self._own = True, {segment.number: list(observations)}
        finally:
            self._release(segment.number)

    def wait(self) -> None:
        time.sleep(WAIT_S)

    def tick(self, segment: Segment, frames: int) -> bool:
        """Say that a claimed segment is still worked at, and how far it is; once a second, whether it was said."""
        now = time.monotonic()
        if now - self._renewed < 1.0:
            return False
        self._renewed = now
        key = self._claim_key(segment.number)
        self._try(lambda redis: redis.eval(_RENEW, 1, key, self._me, int(1000 * CLAIM_S)))
        self._try(lambda redis: redis.hset(_frames_key(self._key), str(segment.number), frames))
        self._try(lambda redis: redis.expire(_frames_key(self._key), KEPT_S))
        if not self._need:
            self._try(lambda redis: redis.set(self._open_key, 1, ex=int(2 * CLAIM_S)))
        return True

    def frames(self) -> int:
        """Frames that all have observed so far."""
        found = self._try(lambda redis: redis.hvals(_frames_key(self._key))) or ()
        return sum(int(value) for value in found)

    def _exists(self, segment: Segment) -> bool:
        try:
            return self._artifacts.exists(_name(self._key, segment.number))
        except StorageError as error:
            if self._need:
                raise
            log.warning("Whether segment %d is done is not known: %s", segment.number, error)
            return False

    def _release(self, number: int) -> None:
        self._claimed.discard(number)
        self._try(lambda redis: redis.delete(self._claim_key(number)))

    def release_all(self) -> None:
        """Others need not wait for the claims of who is interrupted."""
        for number in sorted(self._claimed):
            self._release(number)

    def _try(self, ask: Callable[[Any], Any]) -> Any:
        """The answer; ``None`` while Redis is away, which must not end hours of work."""
        try:
            with self._queue.guard():
                return ask(self._queue.connection)
        except QueueUnavailable as error:
            if self._need:
                raise
            log.debug("Others are not told: %s", error)
            return None

    @property
    def _open_key(self) -> str:
        return f"{_BEGUN}:{self._key}:open"

    def _claim_key(self, number: int) -> str:
        return f"{_BEGUN}:{self._key}:{number}"


class Sharing:
    """One video's segments, for the job that predicts it.

    Args:
        number: of the video among its task's.
        report: takes the number of frames that all have observed.
    """

    def __init__(
        self,
        context: Context,
        plan: TaskPlan,
        models: ProjectModels,
        number: int,
        report: Callable[[int, int], None],
    ) -> None:
        self._context, self._plan, self._models, self._number, self._report = context, plan, models, number, report
        self._board: Board | None = None
        self._segments: Sequence[Segment] = ()
        self._asked = 0.0

    def __call__(self, info: VideoInfo, segments: Sequence[Segment], look: Look) -> Generator[Observation, None, None]:
        """All observations; see :func:`ml_backend.segments.observe_together`."""
        key = segments_key(self._plan.project_id, self._plan.parts[self._number].uri, self._models.base, info, segments)
        self._segments = segments
        self._board = board = Board(self._context.queue, self._context.projects.artifacts, key)
        board.open(len(segments))
        self._key = key

        def watched(segment: Segment) -> Iterator[Observation]:
            for n, observation in enumerate(look(segment), 1):
                self._tick(board, segment, n, info)
                yield observation

        try:
            yield from observe_together(segments, board, watched, self._context.stopper())
        finally:
            board.release_all()

    def _tick(self, board: Board, segment: Segment, frames: int, info: VideoInfo) -> None:
        if not board.tick(segment, frames):
            return
        self._report(min(board.frames(), info.frames), info.frames)
        if time.monotonic() - self._asked >= ASK_AGAIN_S:
            self._asked = time.monotonic()
            self._ask_for_help()

    def _ask_for_help(self) -> None:
        """One job for each other worker; those that are busy until the video is done find nothing left."""
        plan, queue = self._plan, self._context.queue
        try:
            others = min(len(queue.workers()), len(self._segments), HELPERS) - 1
            for n in range(others):
                arguments = [plan.project_id, plan.task_id, self._number, self._key]
                queue.request("segments", "help_observe", arguments, f"help-{self._key}-{n}", module="segments")
        except QueueUnavailable as error:
            log.debug("Nobody is asked for help: %s", error)

    def done(self) -> None:
        """The tracks are kept: the observations are not needed any more."""
        if self._board is not None:
            self._board.close(len(self._segments))


@job
def help_observe(context: Context, project_id: int, task_id: int, number: int, key: str) -> None:
    """Observe segments of a video that another worker tracks, until none is left."""
    from ml_backend.jobs.tasks import plan_of
    from ml_backend.pipeline import detection_stride, segment_look, use_detector
    from ml_backend.video.probe import probe

    board = Board(context.queue, context.projects.artifacts, key, need=True)
    if not board.is_open:
        return
    plan, models = plan_of(context, project_id, task_id)
    part = plan.parts[number]
    settings, stopper = context.settings, context.stopper()
    with context.media.open(part.uri, task_id) as path:
        info = probe(path)
        stride = detection_stride(settings, models.detector, info)
        segments = plan_segments(info, stride, settings.segment_s)
        if segments_key(project_id, part.uri, models.base, info, segments) != key:
            log.info("Task %s: the request for help is outdated.", task_id)
            return
        with use_detector(models.detector, settings, info) as detector:
            look = segment_look(path, info, detector, settings.batch, stride)
            gone: list[int] = []

            def watched(segment: Segment) -> Iterator[Observation]:
                for n, observation in enumerate(look(segment), 1):
                    if board.tick(segment, n) and not board.is_open:
                        gone.append(segment.number)
                        raise Interrupted("The video is done, or not wanted any more.")
                    yield observation

            try:
                done = observe_some(segments, board, watched, stopper)
            except Interrupted:
                if not gone:
                    raise
                done = 0
            finally:
                board.release_all()
    log.info("Task %s: helped with %d of %d segments.", task_id, done, len(segments))


def segments_key(project_id: int, uri: str, base: str, info: VideoInfo, segments: Sequence[Segment]) -> str:
    """Names the observations of a file; 40 hex digits. Another file at the same address has other facts."""
    facts = [info.frames, info.width, info.height, info.duration, len(segments), segments[-1].start]
    return hashlib.sha256(json.dumps([project_id, uri, base, *facts]).encode()).hexdigest()[:40]


def _frames_key(key: str) -> str:
    return f"{_BEGUN}:{key}:frames"


def _name(key: str, number: int) -> str:
    return f"segments/{key}/{number}.npz"
