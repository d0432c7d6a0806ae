"""A task's video with annotated objects on it: their boxes, picture by picture, without holding them all."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ml_backend.core.boxes import Float64Array, clip_xyxy
from ml_backend.core.types import IntArray, VideoInfo
from ml_backend.datasets.selection import Submission, chosen_label, region_labels, valid_score
from ml_backend.datasets.video_files import VideoFacts
from ml_backend.label_studio.label_config import VideoControl
from ml_backend.label_studio.regions import RegionKeys
from ml_backend.label_studio.timeline import Timeline, video_timeline
from ml_backend.video.probe import probe

log = logging.getLogger(__name__)

#: Pictures whose boxes are in memory at once.
_CHUNK = 1024

#: What a region may raise that Label Studio would not have written.
_DAMAGED = (KeyError, TypeError, ValueError, AttributeError, OverflowError)


class FrameMap:
    """Label Studio's player turned round: what it draws on each decoded picture of one video.

    Where several frames of its timeline show one picture, the first on which the region is visible counts. A picture
    that the timeline passes over (a ``frameRate`` below the file's) gets the box between those of its neighbours, by
    time, if the region is visible on both: a training picture without it would teach that nothing is there.

    Args:
        timeline: of the video, at the task's frame rate.
        width, height: displayed size in pixels.
    """

    def __init__(self, timeline: Timeline, width: int, height: int) -> None:
        self.timeline = timeline
        self.width, self.height = width, height
        self.count = len(timeline.times)
        self._shown = timeline.decoded_index(np.arange(1, timeline.frames_count + 1))

    def span(self, keys: RegionKeys) -> tuple[int, int] | None:
        """First and last picture on which a region may be drawn, found without going through them; or ``None``."""
        if not len(keys.frames):
            return None
        first, last, stays = int(keys.frames[0]), int(keys.frames[-1]), _stays(keys)
        if first > len(self._shown) or (last < 1 and not stays):
            return None
        # Other tools count from 0: the player shows such a region from its first frame on.
        first, last = max(first, 1), max(last, 1)
        if stays or last >= len(self._shown):
            return int(self._shown[first - 1]), self.count - 1
        return int(self._shown[first - 1]), int(self._shown[last - 1])

    def keyframes(self, keys: RegionKeys) -> IntArray:
        """``(n,)`` ascending pictures on which the keyframes lie."""
        at = keys.frames
        out: IntArray = np.unique(self._shown[at[(at >= 1) & (at <= len(self._shown))] - 1])
        return out

    def boxes(self, keys: RegionKeys, first: int = 0, last: int | None = None) -> tuple[IntArray, Float64Array]:
        """Where a region is visible.

        Args:
            keys: of the region.
            first, last: pictures to look at, both included; by default all.

        Returns:
            ``(pictures (n,), xyxy (n, 4))``: ascending decoded indices and pixels, cut off at the edges. What lies
            outside or has no area is left out.
        """
        last = self.count - 1 if last is None else last
        life = self.span(keys)
        if life is None or life[0] > last or life[1] < first:
            return np.zeros(0, np.int64), np.zeros((0, 4))
        low, high = max(first, life[0]), min(last, life[1])
        # One frame more on either side: a picture between two frames needs both.
        begin = max(int(np.searchsorted(self._shown, low)) - 1, 0)
        end = min(int(np.searchsorted(self._shown, high, side="right")) + 1, len(self._shown))
        xyxy, visible = keys.boxes(self.width, self.height, np.arange(begin + 1, end + 1))
        shown = self._shown[begin:end]
        seen = np.flatnonzero(visible)
        pictures, where = np.unique(shown[seen], return_index=True)
        boxes = xyxy[seen[where]]
        passed, between = self._passed_over(shown, xyxy, visible, end, _stays(keys))
        if len(passed):
            pictures, boxes = np.concatenate([pictures, passed]), np.concatenate([boxes, between])
            order = np.argsort(pictures, kind="stable")
            pictures, boxes = pictures[order], boxes[order]
        boxes = clip_xyxy(boxes, self.width, self.height)
        kept = (pictures >= low) & (pictures <= high) & (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        return pictures[kept].astype(np.int64), boxes[kept]

    def _passed_over(
        self, shown: IntArray, xyxy: Float64Array, visible: Any, end: int, stays: bool
    ) -> tuple[IntArray, Float64Array]:
        """Boxes on pictures that no frame of the timeline shows."""
        times = self.timeline.times
        before = np.flatnonzero((np.diff(shown) > 1) & visible[:-1] & visible[1:])
        counts = shown[before + 1] - shown[before] - 1
        start = np.repeat(before, counts)
        within = np.arange(len(start)) - np.repeat(np.cumsum(counts) - counts, counts)
        pictures = shown[start] + 1 + within
        t0, t1 = times[shown[start]], times[shown[start + 1]]
        ratio = np.divide(times[pictures] - t0, t1 - t0, out=np.zeros(len(pictures)), where=t1 > t0)[:, None]
        boxes = xyxy[start] + (xyxy[start + 1] - xyxy[start]) * ratio
        if end == len(self._shown) and len(shown) and visible[-1] and stays:
            # An object that stays does so to the last picture, which a short timeline may not reach.
            rest = np.arange(shown[-1] + 1, self.count)
            pictures = np.concatenate([pictures, rest])
            boxes = np.concatenate([boxes, np.repeat(xyxy[-1:], len(rest), axis=0)])
        return pictures, boxes


def _stays(keys: RegionKeys) -> bool:
    """Whether the box stays after the last keyframe; where that frame has two, one is enough."""
    return bool(keys.enabled[keys.frames == keys.frames[-1:]].any())


@dataclass(frozen=True, slots=True)
class TaskVideo:
    """One video of a task with one person's (or a model's) regions on it; the file is not touched yet.

    Attributes:
        name: the video's file name, without Label Studio's upload prefix.
        uri: its address in the task; empty for a prediction file.
        control: names and labels; without a label config what the regions themselves tell.
        frame_rate: of Label Studio's timeline; ``None``: the one that suits the file, as ``import_videos.py`` sets it.
        submission: regions, who made them and when.
        known: what the task says of the video beside its address.
    """

    task_id: int
    name: str
    uri: str
    control: VideoControl
    frame_rate: float | None
    submission: Submission
    known: VideoFacts = field(repr=False)
    _file: Callable[[TaskVideo], contextlib.AbstractContextManager[Path]] = field(repr=False)

    @property
    def stem(self) -> str:
        """The name without its suffix; what image files are named after."""
        return Path(self.name).stem or "video"

    @property
    def regions(self) -> list[Mapping[str, Any]]:
        """The ``videorectangle`` results on this video."""
        return [region for region in self.submission.result if is_of(region, self.control)]

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels of the config, then those that only regions carry (of a label that was renamed since)."""
        found = (label for region in self.regions for label in region_labels(region))
        return tuple(dict.fromkeys((*(label.value for label in self.control.labels), *found)))

    @contextlib.contextmanager
    def open(self) -> Iterator[AnnotatedVideo]:
        """The video file with the objects on it; the file stays in place as long as the context is open.

        Raises:
            MediaError: the file is not found, deleted or not to be had, or another video than the task's.
            VideoError: it cannot be used.
            ConfigError: the task's frame rate is absurd.
        """
        with self._file(self) as path:
            yield AnnotatedVideo.make(self, path)


@dataclass(frozen=True, slots=True)
class VideoObject:
    """One region: an object over its life.

    Attributes:
        track: unique in its video, from 1 in order of appearance.
        region_id: Label Studio's.
        label: of the project; empty for a region without one.
        source: ``"manual"`` for what a person drew or changed, ``"auto"`` for a prediction, also one accepted
            untouched.
        confidence: 0..1, only of ``"auto"``; ``None`` where the prediction does not say.
        original_class: the detector's class, only of ``"auto"``; the label where the prediction does not say.
        region: Label Studio's JSON.
        keys: its keyframes.
        first, last: pictures between which it may be visible.
    """

    track: int
    region_id: str
    label: str
    source: Literal["manual", "auto"]
    confidence: float | None
    original_class: str | None
    region: Mapping[str, Any]
    keys: RegionKeys = field(repr=False, compare=False)
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class FrameBoxes:
    """What is visible on one picture.

    Attributes:
        index: 0-based decoded frame.
        time: seconds.
        objects: ``n`` objects in order of their tracks.
        xyxy: ``(n, 4)`` pixels.
    """

    index: int
    time: float
    objects: tuple[VideoObject, ...]
    xyxy: Float64Array


@dataclass(frozen=True, slots=True, eq=False)
class AnnotatedVideo:
    """A video with objects.

    Attributes:
        part: what the task says.
        path: local file.
        timeline: Label Studio's, at the task's frame rate.
        objects: in order of their first picture. Those that are never visible are left out.
    """

    part: TaskVideo
    path: Path
    info: VideoInfo
    timeline: Timeline
    pictures: FrameMap
    objects: tuple[VideoObject, ...]

    @classmethod
    def make(cls, part: TaskVideo, path: Path) -> AnnotatedVideo:
        """Read the facts of the file and find the objects; see :meth:`TaskVideo.open`."""
        info, timeline = probe(path), video_timeline(path, part.frame_rate)
        pictures = FrameMap(timeline, info.width, info.height)
        labels = {label.value for label in part.control.labels}
        found = []
        for region in part.regions:
            try:
                keys = RegionKeys.read(region)
                if life := pictures.span(keys):
                    found.append(_object(part, region, labels, keys, life))
            except _DAMAGED as error:
                log.warning("Region %s of task %d cannot be read: %r", region.get("id"), part.task_id, error)
        found.sort(key=lambda item: item.first)
        objects = tuple(replace(item, track=number) for number, item in enumerate(found, start=1))
        return cls(part, path, info, timeline, pictures, objects)

    @property
    def task_id(self) -> int:
        return self.part.task_id

    @property
    def name(self) -> str:
        """File name without Label Studio's upload prefix."""
        return self.part.name

    def boxes(self, item: VideoObject, first: int = 0, last: int | None = None) -> tuple[IntArray, Float64Array]:
        """Decoded pictures ``(n,)`` on which an object is visible and its boxes ``(n, 4)`` in pixels."""
        return self.pictures.boxes(item.keys, first, last)

    def keyframes(self, objects: Sequence[VideoObject] | None = None) -> IntArray:
        """``(n,)`` ascending pictures that carry a keyframe of any of the objects."""
        chosen = self.objects if objects is None else objects
        each = [self.pictures.keyframes(item.keys) for item in chosen]
        return np.unique(np.concatenate(each)) if each else np.zeros(0, np.int64)

    def frames(
        self, wanted: npt.ArrayLike | None = None, objects: Sequence[VideoObject] | None = None
    ) -> Iterator[FrameBoxes]:
        """What is visible on each picture, in order; also of pictures on which nothing is.

        Args:
            wanted: ``(n,)`` strictly increasing decoded indices; all by default.
            objects: only these; all by default.
        """
        at = np.arange(self.info.frames) if wanted is None else np.asarray(wanted, dtype=np.int64)
        chosen = self.objects if objects is None else tuple(objects)
        begin = 0
        while begin < len(at):
            end = int(np.searchsorted(at, at[begin] + _CHUNK))
            yield from self._chunk(at[begin:end], chosen)
            begin = end

    def _chunk(self, at: IntArray, objects: Sequence[VideoObject]) -> Iterator[FrameBoxes]:
        low, high = int(at[0]), int(at[-1])
        present: list[list[tuple[VideoObject, Any]]] = [[] for _ in at]
        for item in objects:
            if item.first > high or item.last < low:
                continue
            pictures, xyxy = self.boxes(item, low, high)
            where = np.minimum(np.searchsorted(at, pictures), len(at) - 1)
            for index in np.flatnonzero(at[where] == pictures).tolist():
                present[where[index]].append((item, xyxy[index]))
        for picture, found in zip(at.tolist(), present, strict=True):
            boxes = np.array([box for _, box in found], np.float64).reshape(-1, 4)
            yield FrameBoxes(picture, float(self.timeline.times[picture]), tuple(item for item, _ in found), boxes)


def _object(
    part: TaskVideo, region: Mapping[str, Any], labels: set[str], keys: RegionKeys, life: tuple[int, int]
) -> VideoObject:
    """An object that has no number yet."""
    submission = part.submission
    region_id, label = str(region.get("id", "")), chosen_label(region, labels)
    if not (submission.is_prediction or region.get("origin") == "prediction"):
        return VideoObject(0, region_id, label, "manual", None, None, region, keys, *life)
    # Label Studio keeps the id of a region that was accepted, but not in each version what else was in it.
    sources = [region, submission.predicted.get(region_id, {})]
    scores = [score for source in sources if (score := valid_score(source.get("score"))) is not None]
    classes = [meta["original_class"] for s in sources if (meta := s.get("meta") or {}).get("original_class")]
    confidence = scores[0] if scores else submission.score
    return VideoObject(0, region_id, label, "auto", confidence, str([*classes, label][0]), region, keys, *life)


def is_of(region: Mapping[str, Any], control: VideoControl) -> bool:
    """Whether a result is a box on a control's video."""
    if region.get("type") != "videorectangle":
        return False
    to_name = region.get("to_name")
    return to_name == control.to_name if to_name is not None else region.get("from_name") == control.from_name
