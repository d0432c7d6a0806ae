"""One long video over all workers: the job that tracks it asks others for help with its segments."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import TYPE_CHECKING

from ml_backend.core.errors import Interrupted, QueueUnavailable
from ml_backend.core.settings import QUEUES
from ml_backend.core.types import FrameFeatures, VideoInfo
from ml_backend.inference.chunks import DetectChunk, VideoChunk, detect_chunks, help_with_chunks
from ml_backend.jobs.chunk_leases import ChunkLeases
from ml_backend.jobs.container import Container, job
from ml_backend.jobs.task_plan import TaskPlan, plan_for
from ml_backend.jobs.workers import live_workers

if TYPE_CHECKING:
    from ml_backend.jobs.project_models import ProjectModels

log = logging.getLogger(__name__)

QUEUE = "segments"
#: Workers that come later, or are free again, are asked too.
ASK_AGAIN_S = 20.0
#: Of so many frames a helper asks once whether the video is still worked at: it costs a millisecond.
LOOK_EVERY = 16
#: Workers that help with one video, at most.
HELPERS = 32


class AlreadyTracked(Exception):
    """Another job has finished the video meanwhile: its tracks are known."""


class ChunkedDetection:
    """One video's segments, for the job that predicts it. To be made in the job's own thread.

    Args:
        number: of the video among its task's.
        is_known: whether the video's tracks are kept. Jobs that differ in labels only are at the same segments.
    """

    def __init__(
        self,
        container: Container,
        plan: TaskPlan,
        models: ProjectModels,
        number: int,
        is_known: Callable[[], bool],
    ) -> None:
        self._container, self._plan, self._models, self._number = container, plan, models, number
        self._is_known = is_known
        self._should_stop = container.stopper()  # it knows the job by the thread
        self._board: ChunkLeases | None = None
        self._segments: Sequence[VideoChunk] = ()
        self._key = ""
        self._asked = -math.inf

    def __call__(
        self, info: VideoInfo, segments: Sequence[VideoChunk], look: DetectChunk
    ) -> Generator[FrameFeatures, None, None]:
        """All observations; see :func:`ml_backend.inference.chunks.detect_chunks`.

        Raises:
            AlreadyTracked: another job was faster.
        """
        part = self._plan.parts[self._number]
        self._segments = segments
        self._key = chunks_key(self._plan.project_id, part.uri, self._models.base, info, segments)
        self._board = board = ChunkLeases(self._container.queue, self._container.artifacts, self._key)
        board.open(len(segments))

        def watched(segment: VideoChunk) -> Iterator[FrameFeatures]:
            if self._is_known():
                raise AlreadyTracked
            for observation in look(segment):
                if time.monotonic() - self._asked >= ASK_AGAIN_S:
                    self._asked = time.monotonic()
                    self._ask_for_help(board, segment)
                yield observation

        with board.working():
            yield from detect_chunks(segments, board, watched, self._should_stop)

    def _ask_for_help(self, board: ChunkLeases, segment: VideoChunk) -> None:
        """One job for each other worker. They wait until these have nothing more important to do."""
        queue = self._container.queue
        others = sum(QUEUE in worker.queues for worker in live_workers(self._container.settings.redis_url)) - 1
        later = [other.number for other in self._segments if other.number > segment.number]
        arguments = [self._plan.project_id, self._plan.task_id, self._number, self._key, len(self._segments)]
        try:
            if others > 0 and later and board.is_left(later):
                for n in range(min(others, len(later), HELPERS)):
                    queue.request(QUEUE, "help_detect", arguments, f"help-{self._key}-{n}", module="chunks")
        except QueueUnavailable as error:
            log.debug("Nobody is asked for help: %s", error)

    def done(self) -> None:
        """The tracks are kept: the observations are not needed any more."""
        if self._board is not None:
            self._board.close(len(self._segments))


@job
def help_detect(container: Container, project_id: int, task_id: int, number: int, key: str, count: int) -> None:
    """Observe segments of a video that another worker tracks, until none is left or something else is waiting."""
    from ml_backend.inference.pipeline import chunk_detection, chunks_of, detection_stride
    from ml_backend.label_studio.client import NotFound
    from ml_backend.video.probe import probe

    board = ChunkLeases(container.queue, container.artifacts, key, helping=True)
    if not board.is_open or not board.is_left(range(count)):
        return
    try:
        task = container.client.get_task(task_id)
    except NotFound:
        return
    models = container.projects.models(project_id, download=True)
    plan = plan_for(container, task, container.client.get_project(project_id).label_config, models)
    if number >= len(plan.parts):
        return
    part, settings, stopper = plan.parts[number], container.settings, container.stopper()
    with container.media.open(part.uri, task_id) as path:
        info = probe(path)
        segments = chunks_of(path, info, detection_stride(settings, models.detector, info), settings)
        if chunks_key(project_id, part.uri, models.base, info, segments) != key:
            log.info("Task %s: the request for help is outdated.", task_id)
            return
        look = chunk_detection(path, info, models.detector, settings)
        gone: list[int] = []

        def watched(segment: VideoChunk) -> Iterator[FrameFeatures]:
            for n, observation in enumerate(look(segment)):
                if n % LOOK_EVERY == 0 and not board.is_open:
                    gone.append(segment.number)
                    raise Interrupted("The video is done, or not wanted any more.")
                yield observation

        done = 0
        try:
            with board.working():
                done = help_with_chunks(segments, board, watched, stopper, lambda: _something_waits(container))
        except Interrupted:
            if not gone:
                raise
    log.info("Task %s: helped with %d of %d segments.", task_id, done, len(segments))


def _something_waits(container: Container) -> bool:
    """Whether there is work that comes first; who tracks asks for help again."""
    with container.queue.guard():
        return any(container.queue.queues[name].count for name in QUEUES[: QUEUES.index(QUEUE)])


def chunks_key(project_id: int, uri: str, base: str, info: VideoInfo, segments: Sequence[VideoChunk]) -> str:
    """Names the observations of a file; 40 hex digits. Another file at the same address has other facts."""
    facts = [info.frames, info.width, info.height, info.duration, len(segments), segments[-1].start]
    return hashlib.sha256(json.dumps([project_id, uri, base, *facts]).encode()).hexdigest()[:40]
