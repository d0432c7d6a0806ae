"""One video in, Label Studio regions out. Orchestration only: each stage lives in its own module."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_backend.core.errors import Interrupted, VideoError
from ml_backend.core.files import file_sha256
from ml_backend.core.settings import Settings
from ml_backend.core.types import Image, Track, VideoInfo
from ml_backend.detectors.weights import ResolvedDetector, resolve_detector
from ml_backend.embeddings.crop_embeddings import MemoryCropEmbeddings
from ml_backend.label_studio.label_config import VideoControl
from ml_backend.label_studio.timeline import video_timeline
from ml_backend.labeling.label_assignment import LabelledTracks, label_tracks
from ml_backend.tracking.track_record import TrackSet
from ml_backend.video.probe import probe
from ml_backend.video.reader import read_frames

if TYPE_CHECKING:
    from ml_backend.core.types import FrameFeatures
    from ml_backend.detectors.yolo import Detector, YoloDetector
    from ml_backend.inference.chunks import DetectChunk, VideoChunk
    from ml_backend.labeling.track_classifier import TrackClassifier

log = logging.getLogger(__name__)

PRIMING_S = 60.0
PRIMING_FRAMES = 20
STRIDE_S = 0.1  # seconds in which people and cars hardly turn: 3 frames of 30 a second

Progress = Callable[[int, int], None]
Share = Callable[[VideoInfo, Sequence["VideoChunk"], "DetectChunk"], Generator["FrameFeatures", None, None]]
Preview = Callable[[Callable[[], TrackSet]], None]


@dataclass(frozen=True, slots=True)
class VideoResult:
    """What :func:`predict_video` found.

    Attributes:
        info: the video.
        detector: what detected.
        frames: decoded frames.
        seconds: wall time from the first frame's decoding to the last region, model loading not included.
        labelled: regions, and what was left out.
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
        """Boxes of all kept tracks, one per track and frame."""
        return sum(record.boxes for record, _ in self.labelled.kept)

    @property
    def keyframes(self) -> int:
        """Keyframes of all regions."""
        return sum(len(region["value"]["sequence"]) for region in self.regions)


@contextmanager
def use_detector(resolved: ResolvedDetector, settings: Settings, info: VideoInfo) -> Iterator[Detector]:
    """The detector itself. Loading takes seconds; it stays loaded for the next video while memory allows.

    Raises:
        WeightsError: the checkpoint cannot be loaded.
    """
    if resolved.kind == "motion":
        from ml_backend.detectors.motion import MotionDetector

        motion = MotionDetector(info.fps)  # keeps a model of one video's background, hence a new one each time
        motion.prime(_early_frames(info))
        yield motion
        return
    with yolo_detector(resolved, settings, info.path) as detector:
        detector.warm_up(info.width, info.height)
        yield detector


@contextmanager
def yolo_detector(resolved: ResolvedDetector, settings: Settings, video: str | None = None) -> Iterator[YoloDetector]:
    """As :func:`use_detector`, for the detector that is the same for all videos.

    Args:
        video: a local file, from which pictures are taken where int8 is wanted.
    """
    from ml_backend.core.model_cache import get_pool
    from ml_backend.detectors.engines.calibration import CalibrationSource
    from ml_backend.detectors.engines.exports import choose_engine
    from ml_backend.detectors.yolo import YoloDetector

    if resolved.path is None:
        raise ValueError("a YOLO detector needs a path")
    path = resolved.path
    footage = CalibrationSource(resolved.project, video)
    engine = choose_engine(path, resolved.sha256 or file_sha256(path), settings, calibration=footage)
    shaping = (settings.device, settings.imgsz, settings.conf, settings.batch, settings.precision)
    key = ("yolo", str(path), resolved.sha256, *shaping, engine.key)
    load = partial(YoloDetector, path, settings, engine.export, engine.note)
    with get_pool(settings).use(key, load, name=resolved.name) as detector:
        yield detector


def detect_tracks(
    path: Path | str,
    frame_rate: float,
    settings: Settings,
    resolved: ResolvedDetector,
    *,
    progress: Progress | None = None,
    should_stop: Callable[[], bool] | None = None,
    on_track: Callable[[Track], None] | None = None,
    share: Share | None = None,
    preview: Preview | None = None,
) -> TrackSet:
    """Detect and track everything in one video, streaming: memory does not grow with its length.

    Args:
        path: local video file.
        frame_rate: of Label Studio's timeline, which need not be the file's.
        progress: called with (frames done, frames in total) after each batch.
        should_stop: asked after each batch.
        on_track: sees each final track, with its boxes on every frame.
        share: observes the segments of a long video; by default it is done in one pass.
        preview: called after each batch with a function that gives the tracks so far.

    Raises:
        VideoError: the file cannot be used.
        ConfigError: the frame rate is absurd.
        WeightsError: the detector cannot be loaded.
        Interrupted: ``should_stop`` said so.
    """
    from ml_backend.core.prefetch import prefetch
    from ml_backend.inference.detection_stream import detection_stream
    from ml_backend.tracking.builder import TrackBuilder

    info = probe(path)
    timeline = video_timeline(path, frame_rate)
    motion = resolved.kind == "motion"
    stride = detection_stride(settings, resolved, info)
    # The motion detector's background is that of all frames before.
    segments = chunks_of(path, info, stride, settings) if share and not motion else ()
    with ExitStack() as stack:
        detector = stack.enter_context(use_detector(resolved, settings, info))
        builder = TrackBuilder(info, timeline, settings, detector.names, motion=motion, on_track=on_track)
        if share and len(segments) > 1:
            stack.close()
            seen = share(info, segments, chunk_detection(path, info, resolved, settings))
        else:
            seen = detection_stream(path, info, detector, batch=settings.batch, stride=stride)
        started = time.perf_counter()
        with closing(prefetch(seen, 2 * settings.batch * stride)) as observations:
            for observation in observations:
                builder.push(observation)
                if builder.frames % settings.batch == 0 or observation.index == info.frames - 1:
                    if progress:
                        progress(builder.frames, info.frames)
                    if should_stop and should_stop():
                        raise Interrupted(
                            f"Stopped at frame {builder.frames} of {info.frames}.", "The job is taken up again."
                        )
                    if preview:
                        preview(partial(builder.so_far, started))
        return builder.close(started)


def chunks_of(path: Path | str, info: VideoInfo, stride: int, settings: Settings) -> tuple[VideoChunk, ...]:
    """The segments in which a video is observed."""
    from ml_backend.inference.chunks import plan_chunks
    from ml_backend.video.reader import seek_cost

    return plan_chunks(info, stride, settings.segment_s, seek_cost(path))


def chunk_detection(path: Path | str, info: VideoInfo, resolved: ResolvedDetector, settings: Settings) -> DetectChunk:
    """What observes one segment of a video, each with the fastest engine that is ready by then."""
    from ml_backend.inference.detection_stream import detection_stream

    stride = detection_stride(settings, resolved, info)

    def look(segment: VideoChunk) -> Iterator[FrameFeatures]:
        with use_detector(resolved, settings, info) as detector:
            seen = detection_stream(
                path, info, detector, batch=settings.batch, stride=stride, start=segment.start, end=segment.end
            )
            try:
                with closing(seen):
                    # The first one belongs to the segment before, and does not know how the camera has moved.
                    yield from (o for o in seen if segment.number == 0 or o.index > segment.start)
            except VideoError as error:
                if segment.number == 0:
                    raise
                # In one pass, too, a broken tail only ends it.
                log.warning("Nothing can be seen from frame %d on: %s", segment.start, error)

    return look


def detection_stride(settings: Settings, resolved: ResolvedDetector, info: VideoInfo) -> int:
    """Frames from one that is surely looked at to the next: as many as pass in so short a time that most motion is
    straight. The motion detector must see every frame.
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
    hybrid: TrackClassifier | None = None,
    progress: Progress | None = None,
    should_stop: Callable[[], bool] | None = None,
    on_track: Callable[[Track], None] | None = None,
) -> VideoResult:
    """Detect, track, label and simplify one video, streaming: memory does not grow with its length.

    Args:
        control: names and labels of the regions.
        resolved: the detector; by default what the settings mean, without downloading.
        hybrid: what else gives labels; by default the detector's classes do.
        on_track: sees each labelled track with its boxes on every frame; only then they are all kept to the end.

    The other arguments, and what is raised, are :func:`detect_tracks`'.
    """
    resolved = resolved or resolve_detector(settings)
    whole: dict[int, Track] = {}
    tracks = detect_tracks(
        path,
        frame_rate,
        settings,
        resolved,
        progress=progress,
        should_stop=should_stop,
        on_track=(lambda track: whole.update({track.track_id: track})) if on_track else None,
    )
    started = time.perf_counter()
    labelled = label_tracks(
        tracks, control, hybrid, MemoryCropEmbeddings(), lambda: nullcontext(Path(path)), should_stop
    )
    if on_track:
        for record, decision in labelled.kept:
            track = whole[record.track_id]
            track.label, track.score = decision.label, decision.score
            on_track(track)
    seconds = tracks.seconds + time.perf_counter() - started
    return VideoResult(probe(path), resolved, tracks.frames, seconds, labelled)


def _early_frames(info: VideoInfo) -> Iterator[Image]:
    """Frames spread over the beginning, from which the background shows before the first object is to be found.

    Later light is left out: the background model follows it as it changes.
    """
    last = min(info.frames, round(PRIMING_S * info.fps))
    for index in range(0, last, max(1, last // PRIMING_FRAMES)):
        try:
            yield next(read_frames(info.path, info, start=index)).image
        except VideoError as error:  # a broken tail; what comes before it is still worth searching
            log.info("The background is learned from fewer frames: %s", error)
            return
