"""A task's video with its annotated objects; boxes are computed frame by frame, a chunk at a time."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ml_backend.core.boxes import clip_xyxy
from ml_backend.core.types import Float64Array, IntArray, VideoInfo
from ml_backend.datasets.selection import Submission, chosen_label, infer_frame_rate, region_labels, valid_score
from ml_backend.datasets.video_files import VideoFacts
from ml_backend.label_studio.label_config import DEFAULT_FRAME_RATE, VideoControl
from ml_backend.label_studio.regions import MALFORMED, RegionKeys, stated_frames
from ml_backend.label_studio.timeline import MAX_TIMELINE, Timeline, video_timeline
from ml_backend.video.probe import playback_duration, probe

log = logging.getLogger(__name__)

#: Frames whose boxes are in memory at once.
CHUNK_FRAMES = 1024


class FrameMap:
    """Maps regions from Label Studio's timeline to decoded frames of the video.

    If several timeline frames show one decoded frame, the first on which the region is visible is used. Decoded frames
    that the timeline skips (``frameRate`` below the file's) get boxes interpolated by time if the region is visible on
    both neighbours: as training images without a box they would be false negatives.

    Args:
        timeline: of the video, at the task's frame rate.
        width, height: displayed size in pixels.
    """

    def __init__(self, timeline: Timeline, width: int, height: int) -> None:
        self.timeline = timeline
        self.width, self.height = width, height
        self.count = len(timeline.times)
        self._decoded = timeline.decoded_index(np.arange(1, timeline.frames_count + 1))

    def span(self, keys: RegionKeys) -> tuple[int, int] | None:
        """Return the first and last decoded frame on which a region may be visible, or ``None``."""
        if not len(keys.frames):
            return None
        first, last, persists = int(keys.frames[0]), int(keys.frames[-1]), bool(keys.enabled[-1])
        if first > len(self._decoded) or (last < 1 and not persists):
            return None
        # Some tools count frames from 0; the player clamps those to its first frame.
        first, last = max(first, 1), max(last, 1)
        if persists or last >= len(self._decoded):
            return int(self._decoded[first - 1]), self.count - 1
        return int(self._decoded[first - 1]), int(self._decoded[last - 1])

    def keyframes(self, keys: RegionKeys) -> IntArray:
        """Return the decoded frames ``(n,)`` of the region's keyframes, ascending."""
        frames = keys.frames
        out: IntArray = np.unique(self._decoded[frames[(frames >= 1) & (frames <= len(self._decoded))] - 1])
        return out

    def boxes(self, keys: RegionKeys, first: int = 0, last: int | None = None) -> tuple[IntArray, Float64Array]:
        """Return the boxes of a region on the decoded frames on which it is visible.

        Args:
            keys: of the region.
            first, last: range of decoded frames, inclusive; all by default.

        Returns:
            ``(frames (n,), xyxy (n, 4))``: ascending decoded indices and pixels, clipped to the frame. Boxes without
            area after clipping are dropped.
        """
        last = self.count - 1 if last is None else last
        span = self.span(keys)
        if span is None or span[0] > last or span[1] < first:
            return np.zeros(0, np.int64), np.zeros((0, 4))
        low, high = max(first, span[0]), min(last, span[1])
        # One timeline frame more on either side, to interpolate between.
        begin = max(int(np.searchsorted(self._decoded, low)) - 1, 0)
        end = min(int(np.searchsorted(self._decoded, high, side="right")) + 1, len(self._decoded))
        xyxy, visible = keys.boxes(self.width, self.height, np.arange(begin + 1, end + 1))
        decoded = self._decoded[begin:end]
        visible_rows = np.flatnonzero(visible)
        frames, first_rows = np.unique(decoded[visible_rows], return_index=True)
        boxes = xyxy[visible_rows[first_rows]]
        skipped, interpolated = self._skipped_frames(decoded, xyxy, visible, end, bool(keys.enabled[-1]))
        if len(skipped):
            frames, boxes = np.concatenate([frames, skipped]), np.concatenate([boxes, interpolated])
            order = np.argsort(frames, kind="stable")
            frames, boxes = frames[order], boxes[order]
        boxes = clip_xyxy(boxes, self.width, self.height)
        kept = (frames >= low) & (frames <= high) & (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        return frames[kept].astype(np.int64), boxes[kept]

    def _skipped_frames(
        self, decoded: IntArray, xyxy: Float64Array, visible: Any, end: int, persists: bool
    ) -> tuple[IntArray, Float64Array]:
        """Interpolate boxes on the decoded frames that the timeline skips."""
        times = self.timeline.times
        before = np.flatnonzero((np.diff(decoded) > 1) & visible[:-1] & visible[1:])
        counts = decoded[before + 1] - decoded[before] - 1
        start = np.repeat(before, counts)
        offsets = np.arange(len(start)) - np.repeat(np.cumsum(counts) - counts, counts)
        frames = decoded[start] + 1 + offsets
        t0, t1 = times[decoded[start]], times[decoded[start + 1]]
        ratio = np.divide(times[frames] - t0, t1 - t0, out=np.zeros(len(frames)), where=t1 > t0)[:, None]
        boxes = xyxy[start] + (xyxy[start + 1] - xyxy[start]) * ratio
        if end == len(self._decoded) and len(decoded) and visible[-1] and persists:
            # Decoded frames may follow the end of a short timeline.
            rest = np.arange(decoded[-1] + 1, self.count)
            frames = np.concatenate([frames, rest])
            boxes = np.concatenate([boxes, np.repeat(xyxy[-1:], len(rest), axis=0)])
        return frames, boxes


@dataclass(frozen=True, slots=True)
class TaskVideo:
    """One video of a task with the regions of one annotation or prediction; the file is not opened yet.

    Attributes:
        name: the video's file name, without Label Studio's upload prefix.
        uri: media address in the task; empty for a prediction file.
        control: names and labels; inferred from the regions if there is no label config.
        frame_rate: of Label Studio's timeline, as far as it is known without the file.
        submission: the annotation or prediction.
        facts: what the task states about the video beside its address.
        rate_fields: the task's data, from which the frame rate is inferred; ``None`` if the label config tells it.
    """

    task_id: int
    name: str
    uri: str
    control: VideoControl
    frame_rate: float | None
    submission: Submission
    facts: VideoFacts = field(repr=False)
    rate_fields: Mapping[str, Any] | None = field(repr=False)
    _file: Callable[[TaskVideo], contextlib.AbstractContextManager[Path]] = field(repr=False)

    @property
    def stem(self) -> str:
        """The file name without suffix, used to name image files."""
        return Path(self.name).stem or "video"

    @property
    def regions(self) -> list[Mapping[str, Any]]:
        """The ``videorectangle`` results on this video."""
        return [region for region in self.submission.result if belongs_to(region, self.control)]

    @property
    def stated_frames(self) -> int:
        """Frames of Label Studio's timeline by the regions, or else by what the task states; 0: unknown."""
        rate = self.frame_rate or DEFAULT_FRAME_RATE
        stated = max((round(seconds * rate) for seconds in self.facts.durations), default=0)
        return max(map(stated_frames, self.regions), default=0) or min(stated, MAX_TIMELINE)

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels of the config, then labels that only regions have (renamed in the config since)."""
        region_only = (label for region in self.regions for label in region_labels(region))
        return tuple(dict.fromkeys((*(label.value for label in self.control.labels), *region_only)))

    def frame_rate_of(self, path: Path) -> float | None:
        """Return the frame rate with a file at hand; ``None``: the recommended one, as ``import_videos.py`` sets it."""
        if self.rate_fields is None:
            return self.frame_rate
        return infer_frame_rate(self.rate_fields, self.regions, playback_duration(path))

    def local_file(self) -> contextlib.AbstractContextManager[Path]:
        """Open the video file, which exists while the context is open.

        Raises:
            MediaError: the file is missing, not accessible, or another video than the task's.
        """
        return self._file(self)

    @contextlib.contextmanager
    def open(self) -> Iterator[AnnotatedVideo]:
        """Open the video file and load its objects; the file exists while the context is open.

        Raises:
            MediaError: the file is missing, not accessible, or another video than the task's.
            VideoError: the file cannot be decoded.
            ConfigError: the task's frame rate is out of range.
        """
        with self.local_file() as path:
            yield AnnotatedVideo.load(self, path)


@dataclass(frozen=True, slots=True)
class VideoObject:
    """One region of a video: the track of an object.

    Attributes:
        track_id: unique in its video, from 1 in order of appearance.
        region_id: Label Studio's region id.
        label: label of the project; empty for a region without one.
        source: ``"manual"`` if a person drew or changed it, ``"auto"`` for a prediction, including one accepted
            unchanged.
        confidence: 0..1, only if ``"auto"``; ``None`` if the prediction has no score.
        original_class: the detector's class, only if ``"auto"``; defaults to the label.
        region: Label Studio's JSON.
        keys: its keyframes.
        first, last: decoded frames between which it may be visible.
        global_id: the same in all tasks that show the object; ``None`` without one.
    """

    track_id: int
    region_id: str
    label: str
    source: Literal["manual", "auto"]
    confidence: float | None
    original_class: str | None
    region: Mapping[str, Any]
    keys: RegionKeys = field(repr=False, compare=False)
    first: int
    last: int
    global_id: int | None = None


@dataclass(frozen=True, slots=True)
class ObjectMask:
    """The mask of an object on a frame.

    Attributes:
        rle: run lengths as COCO compresses them, of the frame's size.
        area: pixels.
    """

    rle: str
    area: int


@dataclass(frozen=True, slots=True)
class FrameBoxes:
    """The boxes of one frame.

    Attributes:
        index: 0-based decoded frame.
        time: seconds.
        objects: ``n`` objects, ordered by track id.
        xyxy: ``(n, 4)`` pixels.
        masks: ``n`` masks, or none if they were not made.
    """

    index: int
    time: float
    objects: tuple[VideoObject, ...]
    xyxy: Float64Array
    masks: tuple[ObjectMask, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class AnnotatedVideo:
    """A video file with its annotated objects.

    Attributes:
        task_video: the task's entry for this video.
        path: local file.
        timeline: Label Studio's, at the task's frame rate.
        objects: ordered by first frame, without those that are never visible.
    """

    task_video: TaskVideo
    path: Path
    info: VideoInfo
    timeline: Timeline
    frame_map: FrameMap
    objects: tuple[VideoObject, ...]

    @classmethod
    def load(cls, task_video: TaskVideo, path: Path) -> AnnotatedVideo:
        """Probe the file and read the objects; see :meth:`TaskVideo.open`."""
        info, timeline = probe(path), video_timeline(path, task_video.frame_rate_of(path))
        frame_map = FrameMap(timeline, info.width, info.height)
        labels = {label.value for label in task_video.control.labels}
        objects = []
        for region in task_video.regions:
            try:
                keys = RegionKeys.read(region)
                if span := frame_map.span(keys):
                    objects.append(_video_object(task_video, region, labels, keys, span))
            except MALFORMED as error:
                log.warning("Region %s of task %d cannot be read: %r", region.get("id"), task_video.task_id, error)
        objects.sort(key=lambda item: item.first)
        numbered = tuple(replace(item, track_id=number) for number, item in enumerate(objects, start=1))
        return cls(task_video, path, info, timeline, frame_map, numbered)

    @property
    def task_id(self) -> int:
        return self.task_video.task_id

    @property
    def name(self) -> str:
        """File name without Label Studio's upload prefix."""
        return self.task_video.name

    def boxes(self, item: VideoObject, first: int = 0, last: int | None = None) -> tuple[IntArray, Float64Array]:
        """Return the decoded frames ``(n,)`` on which an object is visible and its boxes ``(n, 4)`` in pixels."""
        return self.frame_map.boxes(item.keys, first, last)

    def keyframes(self, objects: Sequence[VideoObject] | None = None) -> IntArray:
        """Return the decoded frames ``(n,)`` with a keyframe of any of the objects, ascending."""
        selected = self.objects if objects is None else objects
        keyframes = [self.frame_map.keyframes(item.keys) for item in selected]
        return np.unique(np.concatenate(keyframes)) if keyframes else np.zeros(0, np.int64)

    def frames(
        self, wanted: npt.ArrayLike | None = None, objects: Sequence[VideoObject] | None = None
    ) -> Iterator[FrameBoxes]:
        """Yield the boxes of each frame in order, including frames without boxes.

        Args:
            wanted: ``(n,)`` strictly increasing decoded indices; all by default.
            objects: only these; all by default.
        """
        frames = np.arange(self.info.frames) if wanted is None else np.asarray(wanted, dtype=np.int64)
        selected = self.objects if objects is None else tuple(objects)
        begin = 0
        while begin < len(frames):
            end = int(np.searchsorted(frames, frames[begin] + CHUNK_FRAMES))
            yield from self._chunk(frames[begin:end], selected)
            begin = end

    def _chunk(self, frames: IntArray, objects: Sequence[VideoObject]) -> Iterator[FrameBoxes]:
        low, high = int(frames[0]), int(frames[-1])
        visible: list[list[tuple[VideoObject, Any]]] = [[] for _ in frames]
        for item in objects:
            if item.first > high or item.last < low:
                continue
            object_frames, xyxy = self.boxes(item, low, high)
            rows = np.minimum(np.searchsorted(frames, object_frames), len(frames) - 1)
            for index in np.flatnonzero(frames[rows] == object_frames).tolist():
                visible[rows[index]].append((item, xyxy[index]))
        for frame, pairs in zip(frames.tolist(), visible, strict=True):
            boxes = np.array([box for _, box in pairs], np.float64).reshape(-1, 4)
            yield FrameBoxes(frame, float(self.timeline.times[frame]), tuple(item for item, _ in pairs), boxes)


def _video_object(
    task_video: TaskVideo, region: Mapping[str, Any], labels: set[str], keys: RegionKeys, span: tuple[int, int]
) -> VideoObject:
    """Return the region's object; its track id is assigned later."""
    submission = task_video.submission
    region_id, label = str(region.get("id", "")), chosen_label(region, labels)
    # Some versions of Label Studio keep only the id of an accepted region: its score may be in the prediction.
    sources = [region, submission.predicted.get(region_id, {})]
    number = submission.global_id(region)
    if not (submission.is_prediction or region.get("origin") == "prediction"):
        return VideoObject(0, region_id, label, "manual", None, None, region, keys, *span, number)
    scores = [score for source in sources if (score := valid_score(source.get("score"))) is not None]
    classes = [meta["original_class"] for s in sources if (meta := s.get("meta") or {}).get("original_class")]
    confidence = scores[0] if scores else submission.score
    return VideoObject(0, region_id, label, "auto", confidence, str([*classes, label][0]), region, keys, *span, number)


def belongs_to(region: Mapping[str, Any], control: VideoControl) -> bool:
    """Return whether a result is a ``videorectangle`` on the control's video."""
    if region.get("type") != "videorectangle":
        return False
    to_name = region.get("to_name")
    return to_name == control.to_name if to_name is not None else region.get("from_name") == control.from_name
