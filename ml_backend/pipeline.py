"""One video in, Label Studio regions out. Orchestration only: each stage lives in its own module."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_backend.errors import ConfigError, Interrupted, VideoError
from ml_backend.label_studio.regions import track_to_region
from ml_backend.label_studio.schema import LabelMapper, VideoControl
from ml_backend.label_studio.timeline import Timeline, recommended_fps
from ml_backend.models.weights import ResolvedDetector, resolve_detector
from ml_backend.settings import Settings
from ml_backend.types import UNLABELLED, Frame, Image, Track, VideoInfo
from ml_backend.video.probe import frame_times, playback_duration, probe
from ml_backend.video.reader import read_frames

if TYPE_CHECKING:
    from ml_backend.models.detector import Detector

log = logging.getLogger(__name__)

PRIMING_S = 60.0
PRIMING_FRAMES = 20

Progress = Callable[[int, int], None]

#: Frames of Label Studio's timeline: 46 hours at 30 a second. A typing error in a task must not fill the memory.
MAX_TIMELINE = 5_000_000


@dataclass(slots=True)
class VideoResult:
    """What :func:`predict_video` found.

    Attributes:
        regions: ``videorectangle`` results, in order of first appearance.
        info: the video.
        frames: decoded frames.
        seconds: wall time from the first frame's decoding to the last region, model loading not included.
        boxes: boxes of all kept tracks, one per track and frame.
        keyframes: keyframes of all regions.
        unmapped: tracks per detector class that no label of the config covers; they were left out.
        detector: what detected.
    """

    regions: list[dict[str, Any]]
    info: VideoInfo
    detector: ResolvedDetector
    frames: int = 0
    seconds: float = 0.0
    boxes: int = 0
    keyframes: int = 0
    unmapped: Counter[str] = field(default_factory=Counter)


class Labeller:
    """Gives tracks the label with most votes of their whole life.

    Args:
        class_agnostic: the detector cannot tell classes apart. Its tracks are kept in any case: with the project's
            label where there is only one, else unlabelled, which takes the annotator one key press to complete.
    """

    def __init__(self, control: VideoControl, names: Mapping[int, str], class_agnostic: bool) -> None:
        self._mapper = LabelMapper(control.labels, names.values())
        self._default: str | None = None
        if class_agnostic:
            self._default = control.labels[0].value if len(control.labels) == 1 else UNLABELLED
        self.unmapped: Counter[str] = Counter()

    def __call__(self, track: Track) -> bool:
        """Set ``track.label``; whether the track is to be kept."""
        votes: Counter[str | tuple[str]] = Counter()
        for name, score in track.class_scores.items():
            label = self._mapper.map(name)
            if label is None:
                label = self._default
            # A class without label votes too: what is mostly a chair must not become a person.
            votes[label if label is not None else (name,)] += score  # type: ignore[assignment]
        if not votes:
            return False
        winner = min(votes, key=lambda vote: (-votes[vote], str(vote)))
        if isinstance(winner, tuple):
            self.unmapped[winner[0]] += 1
            return False
        track.label = winner
        return True


def load_detector(resolved: ResolvedDetector, settings: Settings, info: VideoInfo) -> Detector:
    """The detector itself. Loading takes seconds; the last one stays loaded for the next video.

    Raises:
        WeightsError: the checkpoint cannot be loaded.
    """
    if resolved.kind == "motion":
        from ml_backend.models.motion import MotionDetector

        motion = MotionDetector(info.fps)  # keeps a model of one video's background, hence a new one each time
        motion.prime(_early_frames(info))
        return motion
    key = (str(resolved.path), resolved.sha256, settings.device, settings.imgsz, settings.conf, settings.batch)
    if _loaded.get("key") != key:
        from ml_backend.models.detector import YoloDetector

        if resolved.path is None:
            raise ValueError("a YOLO detector needs a path")
        _loaded.clear()  # the old one's memory goes before the new one comes
        _loaded.update(key=key, detector=YoloDetector(resolved.path, settings))
    detector: Detector = _loaded["detector"]
    return detector


_loaded: dict[str, Any] = {}


def video_timeline(path: Path | str, frame_rate: float | None = None) -> Timeline:
    """Label Studio's timeline of a file, at ``frame_rate`` or at the rate that suits the file best.

    Raises:
        VideoError: the file cannot be used.
        ConfigError: the rate is none, or makes more frames than can be handled.
    """
    times, duration = frame_times(path), playback_duration(path)
    rate = recommended_fps(times, duration) if frame_rate is None else frame_rate
    if not rate > 0:
        raise ConfigError(f"{rate:g} is no frame rate.", "Give frames per second, such as 25.")
    if duration * rate > MAX_TIMELINE:
        raise ConfigError(
            f"At {rate:g} frames a second, {duration:g} s of video are more frames than can be handled.",
            "Correct the task's frame rate, or the label config's frameRate.",
        )
    return Timeline(rate, times, duration)


VIDEO_FIELDS = ("fps", "frames", "width", "height", "duration")


def video_facts(path: Path | str) -> dict[str, float | int]:
    """What a task's data says of its video, by ``VIDEO_FIELDS``; ``fps`` is of Label Studio's timeline.

    Raises:
        VideoError: the file cannot be used.
    """
    info, timeline = probe(path), video_timeline(path)
    return {
        "fps": timeline.frame_rate,
        "frames": info.frames,
        "width": info.width,
        "height": info.height,
        "duration": round(timeline.duration, 6),
    }


def predict_video(
    path: Path | str,
    control: VideoControl,
    frame_rate: float,
    settings: Settings,
    *,
    resolved: ResolvedDetector | None = None,
    progress: Progress | None = None,
    should_stop: Callable[[], bool] | None = None,
    on_track: Callable[[Track], None] | None = None,
) -> VideoResult:
    """Detect, track, label and simplify one video, streaming: memory does not grow with its length.

    Args:
        path: local video file.
        control: names and labels of the regions.
        frame_rate: of Label Studio's timeline, which need not be the file's.
        resolved: the detector; by default what the settings mean, without downloading.
        progress: called with (frames done, frames in total) after each batch.
        should_stop: asked after each batch.
        on_track: sees each final, labelled track, before it is simplified.

    Raises:
        VideoError: the file cannot be used.
        ConfigError: the frame rate is absurd.
        WeightsError: the detector cannot be loaded.
        Interrupted: ``should_stop`` said so.
    """
    from ml_backend.models.tracker import Tracker
    from ml_backend.tracks import TrackAssembler

    info = probe(path)
    timeline = video_timeline(path, frame_rate)
    resolved = resolved or resolve_detector(settings)
    motion = resolved.kind == "motion"
    detector = load_detector(resolved, settings, info)
    labeller = Labeller(control, detector.names, class_agnostic=motion)
    tracker = Tracker(settings.tracker, info.fps, motion=motion)
    assembler = TrackAssembler(info.fps, detector.names, info.width, info.height, settings, motion=motion)
    result = VideoResult([], info, resolved, unmapped=labeller.unmapped)
    starts: list[int] = []

    def keep(tracks: list[Track]) -> None:
        for track in tracks:
            if not labeller(track):
                continue
            if on_track:
                on_track(track)
            region = track_to_region(track, timeline, control, info, settings.keyframe_iou)
            if region is not None:
                result.regions.append(region)
                starts.append(int(track.frames[0]))
                result.boxes += len(track)
                result.keyframes += len(region["value"]["sequence"])

    started = time.perf_counter()
    for batch in _batches(read_frames(path, info), settings.batch):
        images = [frame.image for frame in batch]
        for frame, detections in zip(batch, detector.detect(images), strict=True):
            keep(assembler.push(frame.index, tracker.update(detections, frame.image)))
        result.frames += len(batch)
        if progress:
            progress(result.frames, info.frames)
        if should_stop and should_stop():
            raise Interrupted(f"Stopped at frame {result.frames} of {info.frames}.", "The job is taken up again.")
    keep(assembler.close())
    result.seconds = time.perf_counter() - started
    order = sorted(range(len(starts)), key=lambda i: (starts[i], result.regions[i]["id"]))
    result.regions = [result.regions[i] for i in order]
    if labeller.unmapped:
        what = ", ".join(f"{count} x {name}" for name, count in labeller.unmapped.most_common())
        log.info("Tracks that no label of the config covers were left out: %s", what)
    return result


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


def _batches(frames: Iterator[Frame], size: int) -> Iterator[list[Frame]]:
    while batch := list(islice(frames, size)):
        yield batch
