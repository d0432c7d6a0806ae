"""Spread one long video over all workers: the job that tracks it requests helpers for its chunks."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

from pydantic import StringConstraints

from ml_backend.core.errors import Interrupted, QueueUnavailable
from ml_backend.core.settings import QUEUES
from ml_backend.core.types import FrameFeatures, VideoInfo
from ml_backend.inference.chunks import DetectChunk, VideoChunk, detect_chunks, help_with_chunks
from ml_backend.jobs.chunk_leases import ChunkLeases
from ml_backend.jobs.container import Container, job
from ml_backend.jobs.task_plan import TaskPlan, plan_for

if TYPE_CHECKING:
    from ml_backend.jobs.project_models import ProjectModels

log = logging.getLogger(__name__)

QUEUE = "segments"
#: Seconds between two requests for helpers, so that workers that become free later help too.
HELP_INTERVAL_S = 20.0
#: Frames between two checks by a helper whether the video is still open; a check takes a millisecond.
CHECK_EVERY = 16
#: Largest number of helpers for one video.
MAX_HELPERS = 32


#: As :func:`chunks_key` returns it; part of artifacts' names.
ChunksKey = Annotated[str, StringConstraints(pattern="^[0-9a-f]{40}$")]


class AlreadyTracked(Exception):
    """Another job has finished the video meanwhile; its tracks are stored."""


class ChunkedDetection:
    """Detection of one video in chunks that other workers help with. Create it in the job's own thread.

    Args:
        index: of the video in its task.
        is_tracked: tells whether the video's tracks are stored. Jobs that differ only in labels share the chunks.
    """

    def __init__(
        self,
        container: Container,
        plan: TaskPlan,
        models: ProjectModels,
        index: int,
        is_tracked: Callable[[], bool],
    ) -> None:
        self._container, self._plan, self._models, self._index = container, plan, models, index
        self._is_tracked = is_tracked
        self._should_stop = container.stopper()  # finds the job by the thread
        self._leases: ChunkLeases | None = None
        self._chunks: Sequence[VideoChunk] = ()
        self._key = ""
        self._requested_at = -math.inf

    def __call__(
        self, info: VideoInfo, chunks: Sequence[VideoChunk], detect: DetectChunk
    ) -> Generator[FrameFeatures, None, None]:
        """Yield the features of all frames; see :func:`ml_backend.inference.chunks.detect_chunks`.

        Raises:
            AlreadyTracked: another job was faster.
        """
        video = self._plan.videos[self._index]
        self._chunks = chunks
        self._key = chunks_key(self._plan.project_id, video.uri, self._models.base, info, chunks)
        self._leases = leases = ChunkLeases(self._container.queue, self._container.artifacts, self._key)
        leases.open(len(chunks))

        def detect_and_request_help(chunk: VideoChunk) -> Iterator[FrameFeatures]:
            if self._is_tracked():
                raise AlreadyTracked
            for features in detect(chunk):
                if time.monotonic() - self._requested_at >= HELP_INTERVAL_S:
                    self._requested_at = time.monotonic()
                    self._request_help(leases, chunk)
                yield features

        with leases.working():
            yield from detect_chunks(chunks, leases, detect_and_request_help, self._should_stop)

    def _request_help(self, leases: ChunkLeases, chunk: VideoChunk) -> None:
        """Request one job for each other worker; its queue has the lowest priority."""
        queue = self._container.queue
        later = [other.number for other in self._chunks if other.number > chunk.number]
        arguments = [self._plan.project_id, self._plan.task_id, self._index, self._key, len(self._chunks)]
        try:
            others = sum(QUEUE in worker.queues for worker in queue.workers()) - 1
            if others > 0 and later and leases.any_free(later):
                for n in range(min(others, len(later), MAX_HELPERS)):
                    queue.request(QUEUE, "help_detect", arguments, f"help-{self._key}-{n}", module="chunks")
        except QueueUnavailable as error:
            log.debug("Could not request helpers: %s", error)

    def close(self) -> None:
        """Remove the chunks once the tracks are stored."""
        if self._leases is not None:
            self._leases.close(len(self._chunks))


@job
def help_detect(container: Container, project_id: int, task_id: int, index: int, key: ChunksKey, count: int) -> None:
    """Detect chunks of a video that another worker tracks, until none is left or a more important job waits."""
    from ml_backend.inference.pipeline import chunk_detection, chunks_of, detection_stride
    from ml_backend.label_studio.client import NotFound
    from ml_backend.video.probe import probe

    leases = ChunkLeases(container.queue, container.artifacts, key, helping=True)
    if not leases.is_open or not leases.any_free(range(count)):
        return
    try:
        task = container.client.get_task(task_id)
    except NotFound:
        return
    models = container.projects.models(project_id, download=True)
    plan = plan_for(container, task, container.client.get_project(project_id).label_config, models)
    if index >= len(plan.videos):
        return
    video, settings, stopper = plan.videos[index], container.settings, container.stopper()
    with container.media.open(video.uri, task_id, project_id) as path:
        info = probe(path)
        chunks = chunks_of(path, info, detection_stride(settings, models.detector, info), settings)
        if chunks_key(project_id, video.uri, models.base, info, chunks) != key:
            log.info("Task %s: the request for help is outdated.", task_id)
            return
        detect = chunk_detection(path, info, models.detector, settings)
        closed = False

        def detect_while_open(chunk: VideoChunk) -> Iterator[FrameFeatures]:
            nonlocal closed
            for n, features in enumerate(detect(chunk)):
                if n % CHECK_EVERY == 0 and not leases.is_open:
                    closed = True
                    raise Interrupted("The video is finished, or its job has ended.")
                yield features

        done = 0
        try:
            with leases.working():
                done = help_with_chunks(chunks, leases, detect_while_open, stopper, lambda: _other_jobs_wait(container))
        except Interrupted:
            if not closed:
                raise
    log.info("Task %s: helped with %d of %d chunks.", task_id, done, len(chunks))


def _other_jobs_wait(container: Container) -> bool:
    """Return whether jobs of higher priority wait; the tracking job requests help again."""
    with container.queue.guard():
        return any(container.queue.queues[name].count for name in QUEUES[: QUEUES.index(QUEUE)])


def chunks_key(project_id: int, uri: str, base: str, info: VideoInfo, chunks: Sequence[VideoChunk]) -> str:
    """Return the key of a video's chunks; 40 hex digits. Another file at the same address gets another key."""
    facts = [info.frames, info.width, info.height, info.duration, len(chunks), chunks[-1].start]
    return hashlib.sha256(json.dumps([project_id, uri, base, *facts]).encode()).hexdigest()[:40]
