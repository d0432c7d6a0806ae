"""Run the stages from a video file to Label Studio regions; each stage lives in its own module."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_backend.core.errors import Interrupted, VideoError
from ml_backend.core.settings import Settings
from ml_backend.core.types import Progress, Track, VideoInfo
from ml_backend.detectors.loading import use_detector
from ml_backend.detectors.weights import ResolvedDetector, resolve_detector
from ml_backend.embeddings.crop_embeddings import MemoryCropEmbeddings
from ml_backend.label_studio.label_config import VideoControl
from ml_backend.label_studio.timeline import video_timeline
from ml_backend.labeling.label_assignment import LabelledTracks, label_tracks
from ml_backend.tracking.track_record import SearchedFor, TrackSet
from ml_backend.video.probe import probe

if TYPE_CHECKING:
    from ml_backend.core.types import FrameFeatures
    from ml_backend.embeddings.hub import ResolvedModel
    from ml_backend.inference.chunks import DetectChunk, VideoChunk
    from ml_backend.inference.open_vocabulary import TextSearch
    from ml_backend.labeling.track_classifier import TrackClassifier

log = logging.getLogger(__name__)

STRIDE_S = 0.1  # longest stride: people and cars hardly turn in 3 frames at 30 fps

ChunkRunner = Callable[[VideoInfo, Sequence["VideoChunk"], "DetectChunk"], Generator["FrameFeatures", None, None]]
Preview = Callable[[Callable[[], TrackSet]], None]


@dataclass(frozen=True, slots=True)
class VideoResult:
    """Result of :func:`predict_video`.

    Attributes:
        info: of the video.
        detector: the detector that was used.
        frames: number of decoded frames.
        seconds: wall time from decoding the first frame to the last region, without loading models; the first video of
            a size includes compiling the network.
        labelled: regions, labelled tracks and tracks without a label.
    """

    info: VideoInfo
    detector: ResolvedDetector
    frames: int
    seconds: float
    labelled: LabelledTracks

    @property
    def regions(self) -> list[dict[str, Any]]:
        """``videorectangle`` results, in order of first appearance."""
        return self.labelled.regions

    @property
    def boxes(self) -> int:
        """Number of boxes of all kept tracks, one per track and frame."""
        return sum(record.boxes for record, _ in self.labelled.kept)

    @property
    def keyframes(self) -> int:
        """Number of keyframes of all regions."""
        return sum(len(region["value"]["sequence"]) for region in self.regions)


def detect_tracks(
    path: Path | str,
    frame_rate: float,
    settings: Settings,
    resolved: ResolvedDetector,
    *,
    progress: Progress | None = None,
    should_stop: Callable[[], bool] | None = None,
    on_track: Callable[[Track], None] | None = None,
    on_features: Callable[[FrameFeatures], None] | None = None,
    chunk_runner: ChunkRunner | None = None,
    preview: Preview | None = None,
    text_search: TextSearch | None = None,
) -> TrackSet:
    """Detect and track all objects in a video, in constant memory.

    Args:
        path: local video file.
        frame_rate: of Label Studio's timeline, which may differ from the file's.
        progress: called with (frames done, total frames) after the first frame and after each batch.
        should_stop: polled after each batch.
        on_track: called with each finished track, with its boxes on every frame.
        on_features: called with the detections of each frame, in order.
        chunk_runner: yields the frame features of a long video's chunks; without it the video is one stream.
        preview: called after each batch with a function that returns the tracks so far.
        text_search: what is searched for by text, where the detector does not know it.

    Raises:
        VideoError: the file cannot be used.
        ConfigError: the frame rate is out of range.
        WeightsError: the detector cannot be loaded.
        Interrupted: ``should_stop`` returned true.
    """
    from ml_backend.core.prefetch import prefetch
    from ml_backend.inference.detection_stream import detection_stream
    from ml_backend.inference.open_vocabulary import use_text_search
    from ml_backend.tracking.builder import TrackBuilder

    info = probe(path)
    timeline = video_timeline(path, frame_rate)
    motion = resolved.kind == "motion"
    stride = detection_stride(settings, resolved, info)
    # The motion detector's background model depends on all frames before, so its videos are not split.
    chunks = chunks_of(path, info, stride, settings) if chunk_runner and not motion else ()
    with ExitStack() as later, ExitStack() as stack:
        detector = stack.enter_context(use_detector(resolved, settings, info))
        added = later.enter_context(use_text_search(text_search, detector.names, settings, path, info))
        names = added.names if added else detector.names
        builder = TrackBuilder(info, timeline, settings, names, motion=motion, on_track=on_track)
        if chunk_runner and len(chunks) > 1:
            stack.close()
            stream = chunk_runner(info, chunks, chunk_detection(path, info, resolved, settings))
        else:
            stream = detection_stream(path, info, detector, batch=settings.batch, stride=stride)
        if added:
            stream = added.add_to(stream)
        started = time.perf_counter()

        def track_set(make: Callable[[float], TrackSet]) -> TrackSet:
            if text_search is None:
                return make(started)
            searched = SearchedFor(text_search.source)
            if added:
                searched = SearchedFor(text_search.source, added.wanted, dict(added.decided))
            return replace(make(started), searched=searched)

        with closing(prefetch(stream, 2 * settings.batch * stride)) as frames:
            for features in frames:
                builder.push(features)
                if on_features:
                    on_features(features)
                if (builder.frames - 1) % settings.batch == 0 or features.index == info.frames - 1:
                    if progress:
                        progress(builder.frames, info.frames)
                    if should_stop and should_stop():
                        raise Interrupted(
                            f"Stopped at frame {builder.frames} of {info.frames}.",
                            "Wait for the worker to resume the job.",
                        )
                    if preview:
                        preview(partial(track_set, builder.snapshot))
        return track_set(builder.close)


def chunks_of(path: Path | str, info: VideoInfo, stride: int, settings: Settings) -> tuple[VideoChunk, ...]:
    """Return the chunks in which a video is detected."""
    from ml_backend.inference.chunks import plan_chunks
    from ml_backend.video.reader import seek_cost

    return plan_chunks(info, stride, settings.segment_s, seek_cost(path))


def chunk_detection(path: Path | str, info: VideoInfo, resolved: ResolvedDetector, settings: Settings) -> DetectChunk:
    """Return a function that streams one chunk of a video, with the fastest engine ready at that time."""
    from ml_backend.inference.detection_stream import detection_stream

    stride = detection_stride(settings, resolved, info)

    def detect(chunk: VideoChunk) -> Iterator[FrameFeatures]:
        with use_detector(resolved, settings, info) as detector:
            stream = detection_stream(
                path, info, detector, batch=settings.batch, stride=stride, start=chunk.start, end=chunk.end
            )
            try:
                with closing(stream):
                    # The first frame belongs to the chunk before; its camera motion is unknown here.
                    yield from (f for f in stream if chunk.number == 0 or f.index > chunk.start)
            except VideoError as error:
                if chunk.number == 0:
                    raise
                # A single pass, too, ends early at a broken tail.
                log.warning("%s cannot be decoded from frame %d on: %s", path, chunk.start, error)

    return detect


def detection_stride(settings: Settings, resolved: ResolvedDetector, info: VideoInfo) -> int:
    """Return the frames from one sampled frame to the next: few enough that most motion in between is linear.

    The motion detector must see every frame.
    """
    if resolved.kind == "motion":
        return 1
    return max(1, min(settings.stride, round(STRIDE_S * info.fps)))


def predict_video(
    path: Path | str,
    control: VideoControl,
    frame_rate: float,
    settings: Settings,
    *,
    resolved: ResolvedDetector | None = None,
    classifier: TrackClassifier | None = None,
    text_detector: ResolvedModel | None = None,
    progress: Progress | None = None,
    should_stop: Callable[[], bool] | None = None,
    on_track: Callable[[Track], None] | None = None,
) -> VideoResult:
    """Detect, track and label the objects in a video and reduce their tracks to keyframes.

    Args:
        control: names and labels of the regions.
        resolved: the detector; by default that of the settings, without downloading.
        classifier: labels tracks; by default labels are the detector's classes.
        text_detector: finds the objects of labels that the detector does not know.
        on_track: called with each labelled track and its boxes on every frame. With it memory grows with the video.

    For the other arguments and what is raised see :func:`detect_tracks`.
    """
    from ml_backend.inference.open_vocabulary import TextSearch

    resolved = resolved or resolve_detector(settings)
    full_tracks: dict[int, Track] = {}
    tracks = detect_tracks(
        path,
        frame_rate,
        settings,
        resolved,
        progress=progress,
        should_stop=should_stop,
        on_track=(lambda track: full_tracks.update({track.track_id: track})) if on_track else None,
        text_search=TextSearch(text_detector, control.labels) if text_detector else None,
    )
    started = time.perf_counter()
    labelled = label_tracks(
        tracks, control, classifier, MemoryCropEmbeddings(), lambda: nullcontext(Path(path)), should_stop
    )
    if on_track:
        for record, decision in labelled.kept:
            track = full_tracks[record.track_id]
            track.label, track.score = decision.label, decision.score
            on_track(track)
    seconds = tracks.seconds + time.perf_counter() - started
    return VideoResult(probe(path), resolved, tracks.frames, seconds, labelled)
