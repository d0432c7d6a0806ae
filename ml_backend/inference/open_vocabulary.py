"""Add objects that a text detector finds to the detections of a video: those of labels that the detector does not know.

The text detector takes a second a frame where YOLO takes milliseconds, so it searches on a sparse grid of frames. From
one to the next a correlation tracker follows each box; where the next frame has the object too, the boxes in between
are corrected towards the one found there.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from ml_backend.core.boxes import box_area, intersection, iou_matrix, scaled_size, share_inside
from ml_backend.core.errors import VideoError
from ml_backend.core.prefetch import prefetch
from ml_backend.core.settings import Settings
from ml_backend.core.types import (
    BoolArray,
    Detections,
    Float64Array,
    FloatArray,
    Frame,
    FrameFeatures,
    Image,
    IntArray,
    VideoInfo,
)
from ml_backend.embeddings.hub import ResolvedModel
from ml_backend.inference.follow import INSIDE, LOST_PSR, CorrelationTracker
from ml_backend.inference.reduced_frames import HEIGHT
from ml_backend.inference.text_detector import BATCH, use_text_detector
from ml_backend.label_studio.label_config import LabelMapper, LabelSpec, label_prompts, readable_name
from ml_backend.tracking.appearance import mean_colours
from ml_backend.tracking.frame_features import shrink_frame
from ml_backend.tracking.track_record import TrackSet
from ml_backend.video.reader import read_frames

log = logging.getLogger(__name__)

#: Height in pixels of the frames that are searched: what these networks look at has some 800 pixels a side.
SEARCHED_HEIGHT = 800
#: Longest time between two frames on which a box is followed; it is interpolated in between.
FOLLOWED_S = 0.1
#: Confidence that the lowest accepted score counts as. YOLO's detections of it begin tracks, and keep those of objects
#: that never move. Higher scores are scaled linearly up to 1.
LOWEST_CONF = 0.5
#: Factor of the confidence of an object that is followed, but not found on the next searched frame. It is followed on
#: until its confidence would be lower than that of the weakest one by more than this factor: detectors miss objects now
#: and then, and leave it at that.
MISSED = 0.7
#: IoU of a followed box with one found on the next searched frame, from which it is the same object's.
SAME_OBJECT = 0.5
#: Share of a box that lies in the other one, from which it is a part of the same object.
PART_INSIDE = 0.8
#: Share of a followed box inside that of another object, from which the object is hidden behind it.
HIDDEN = 0.5
#: IoU from which a box of the detector and one found by text show one object.
COINCIDE = 0.7
#: Frames in memory from which a batch of searched frames need not be full: many lie between two of them where few are
#: searched, or a video has hundreds a second.
HELD = 64
#: Boxes that are followed from a searched frame, the surest ones: each costs some 15 ms of a core on every frame.
MAX_FOLLOWED = 100
#: Shortest side in pixels of a box that can be followed.
MIN_SIDE = 4.0


class FindsByText(Protocol):
    """See :class:`ml_backend.inference.text_detector.TextDetector`."""

    def detect(self, images: Sequence[Image], prompts: Sequence[Sequence[str]], conf: float) -> list[Detections]: ...


@dataclass(frozen=True, slots=True)
class TextSearch:
    """What is searched for in a video by text.

    Attributes:
        model: the text detector.
        labels: of the label config.
        trained: whether the detector was trained on the project's labels.
        detectable: classes that the detector can detect; ``None`` for all.
        source: names all that tracks depend on beside the labels.
    """

    model: ResolvedModel
    labels: tuple[LabelSpec, ...]
    trained: bool = False
    detectable: frozenset[str] | None = None
    source: str = ""

    def unknown_labels(self, class_names: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """Return the labels that none of a detector's classes has, with their descriptions."""
        return unknown_labels(self.labels, class_names, trained=self.trained, detectable=self.detectable)

    def labelled(self, class_names: Sequence[str]) -> frozenset[str]:
        """Return the classes of a detector that have a label."""
        return frozenset(LabelMapper(self.labels, class_names, trained=self.trained).table)

    def would_find(self, tracks: TrackSet) -> bool:
        """Return whether this search would lead to the same tracks: what changed of the labels does not matter."""
        before = tracks.searched
        if before is None or before.source != self.source:
            return False
        names = tracks.class_names[: len(tracks.class_names) - len(before.labels)]
        labelled = self.labelled(names)
        return self.unknown_labels(names) == before.labels and all(
            (name in labelled) == had for name, had in before.decided.items()
        )


def unknown_labels(
    labels: Sequence[LabelSpec],
    class_names: Sequence[str],
    *,
    trained: bool = False,
    detectable: frozenset[str] | None = None,
) -> dict[str, tuple[str, ...]]:
    """Return the labels that no class of a detector has, with what describes them to a text detector.

    Args:
        class_names: of the detector.
        trained, detectable: see :class:`TextSearch`.
    """
    mapper = LabelMapper(labels, class_names, trained=trained)
    known = {label for name, label in mapper.table.items() if detectable is None or name in detectable}
    return {
        label.value: label_prompts(label) or (readable_name(label),)
        for label in reversed(labels)  # the first of several with the same name
        # A name that belongs to another label would never become this one.
        if label.value not in known and mapper.map(label.value) == label.value
    }


@contextmanager
def use_text_search(
    search: TextSearch | None, class_names: Mapping[int, str], settings: Settings, path: str | Path, info: VideoInfo
) -> Iterator[AddedObjects | None]:
    """Load the text detector for one video, if the detector does not know a label; else yield ``None``.

    Args:
        class_names: of the detector, by class id.

    Raises:
        WeightsError: the text detector cannot be loaded.
    """
    if search is None:
        yield None
        return
    names = list(class_names.values())
    wanted = search.unknown_labels(names)
    if not wanted:
        yield None
        return
    log.info("%s is asked for %s.", search.model.name, ", ".join(wanted))
    labelled = search.labelled(names)
    with use_text_detector(search.model, settings) as detector:
        yield AddedObjects(detector, wanted, class_names, labelled, settings, path, info)


class AddedObjects:
    """Objects found by text in one video.

    Args:
        detector: finds them.
        wanted: descriptions by label.
        class_names: of the video's detector, by class id.
        labelled: the classes that have a label.

    Attributes:
        names: ``class_names``, and the labels that are searched for.
        wanted: descriptions by label.
        decided: see :class:`ml_backend.tracking.track_record.SearchedFor`; complete at the end of the video.
    """

    def __init__(
        self,
        detector: FindsByText,
        wanted: Mapping[str, Sequence[str]],
        class_names: Mapping[int, str],
        labelled: frozenset[str],
        settings: Settings,
        path: str | Path,
        info: VideoInfo,
    ) -> None:
        self._detector, self._prompts = detector, list(wanted.values())
        self._labelled = [number for number, name in class_names.items() if name in labelled]
        self.wanted = {label: tuple(descriptions) for label, descriptions in wanted.items()}
        self.decided: dict[str, bool] = {}
        self._said = False
        self._first_id = max(class_names, default=-1) + 1
        self.names = {**class_names, **dict(enumerate(wanted, start=self._first_id))}
        self._conf, self._path, self._info = settings.open_vocabulary_conf, path, info
        self._size = np.array([info.width, info.height] * 2, np.float64)
        self._stride = max(1, min(settings.stride, round(FOLLOWED_S * info.fps)))
        self._step = self._stride * max(1, round(info.fps / settings.open_vocabulary_fps / self._stride))

    def add_to(self, stream: Generator[FrameFeatures, None, None]) -> Generator[FrameFeatures, None, None]:
        """Yield the features of each frame of the video with the objects found by text, in constant memory."""
        with closing(stream), closing(prefetch(self._found(), 2 * self._step)) as found:
            index, added = -1, Detections.empty()
            for features in stream:
                while index < features.index:
                    index, added = next(found, (self._info.frames, Detections.empty()))
                if index == features.index and len(added):
                    yield replace(features, detections=self._merge(features.detections, added))
                else:
                    yield features

    def _merge(self, detections: Detections, added: Detections) -> Detections:
        """Join detections of one frame; of two of one object, the one with a label and then the surer one stays."""
        pairs = iou_matrix(detections.xyxy, added.xyxy) >= COINCIDE
        has_label = np.isin(detections.class_id, self._labelled)
        for row in np.flatnonzero(pairs.any(axis=1)):
            self.decided[self.names[int(detections.class_id[row])]] = bool(has_label[row])
        surer = has_label[:, None] & (detections.conf[:, None] >= added.conf[None])
        kept = np.flatnonzero(~(pairs & ~surer).any(axis=1))
        new = np.flatnonzero(~(pairs & surer).any(axis=0))
        colours = None
        if detections.colours is not None and added.colours is not None:
            colours = np.concatenate([detections.colours[kept], added.colours[new]])
        return Detections(
            np.concatenate([detections.xyxy[kept], added.xyxy[new]]),
            np.concatenate([detections.conf[kept], added.conf[new]]),
            np.concatenate([detections.class_id[kept], added.class_id[new]]),
            colours,
        )

    def _found(self) -> Generator[tuple[int, Detections], None, None]:
        """Yield index and detections of each frame."""
        scale = min(1.0, SEARCHED_HEIGHT / self._info.height)
        size = scaled_size(self._info.width, self._info.height, scale)
        kept: list[_Kept] = []
        searched: dict[int, Detections] = {}
        index = -1
        try:
            for frame in read_frames(self._path, self._info, size=size, lazy=True):
                index = frame.index
                if index % self._stride and kept:
                    continue
                kept.append(_Kept.of(frame, search=index % self._step == 0 or not kept))
                waiting = sum(one.image is not None for one in kept)
                if waiting == BATCH or (len(kept) > HELD and kept[-1].image is not None):
                    self._search(kept, searched)
                    *intervals, rest = _intervals(kept, searched)
                    for frames in intervals:
                        yield from self._follow(frames, searched, frames[-1].index)
                    kept = rest
        except VideoError as error:  # the detector's own stream reports it
            log.warning("Nothing can be found by text from frame %d on: %s", index + 1, error)
        self._search(kept, searched)
        for number, frames in enumerate(intervals := _intervals(kept, searched), start=1):
            yield from self._follow(frames, searched, index + 1 if number == len(intervals) else frames[-1].index)

    def _search(self, kept: Sequence[_Kept], searched: dict[int, Detections]) -> None:
        """Add the detections of the frames with an image to ``searched``, in pixels of the video."""
        images = {one.index: one.image for one in kept if one.image is not None}
        found = self._detector.detect(list(images.values()), self._prompts, self._conf) if images else []
        for (index, image), one in zip(images.items(), found, strict=True):
            boxes = one.xyxy * (self._size / np.tile(image.shape[1::-1], 2))
            big = (np.minimum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]) >= MIN_SIDE).nonzero()[0]
            conf = LOWEST_CONF + (1 - LOWEST_CONF) * (one.conf[big] - self._conf) / (1 - self._conf)
            class_id = self._first_id + one.class_id[big]
            searched[index] = Detections(
                boxes[big].astype(np.float32), conf.clip(LOWEST_CONF, 1).astype(np.float32), class_id
            )
        for one in kept:
            one.image = None

    def _follow(
        self, frames: Sequence[_Kept], searched: dict[int, Detections], end: int
    ) -> Iterator[tuple[int, Detections]]:
        """Yield index and detections of the frames from ``frames[0]``, which is searched, to before ``end``.

        Args:
            frames: consecutive frames on which boxes are followed; the last one is searched too, except at the end of
                the video.
        """
        start = self._surest(searched.pop(frames[0].index), frames[0].index)
        boxes = np.stack([self._path_of(box, frames) for box in start.xyxy]) if len(start) else None
        if boxes is None:
            yield from ((index, start) for index in range(frames[0].index, end))
            return
        last = searched.get(frames[-1].index) if len(frames) > 1 else None
        indices = np.array([one.index for one in frames])
        if last is not None:
            missed = ~_correct(boxes, start, last, indices)
            _end_hidden(boxes, missed)
            searched[frames[-1].index] = _with_missed(last, boxes[missed, -1], start, missed)
        colours = [one.colours(boxes[:, number], self._info) for number, one in enumerate(frames)]
        for index in range(frames[0].index, end):
            after = min(int(np.searchsorted(indices, index)), len(indices) - 1)
            before = after if indices[after] <= index else after - 1
            share = (index - indices[before]) / max(1, indices[after] - indices[before]) if before < after else 0.0
            here = (1 - share) * boxes[:, before] + share * boxes[:, after]
            there = np.flatnonzero(np.isfinite(here[:, 0]))
            yield (
                index,
                Detections(
                    here[there].astype(np.float32), start.conf[there], start.class_id[there], colours[before][there]
                ),
            )

    def _surest(self, found: Detections, index: int) -> Detections:
        """Leave out the weakest boxes of a searched frame, if they are too many; say so once a video."""
        if len(found) <= MAX_FOLLOWED:
            return found
        if not self._said:
            log.warning(
                "%d boxes were found by text on frame %d, too many to follow: the surest %d of a frame are used. "
                "Fix: raise OPEN_VOCABULARY_CONF, or describe the labels more precisely.",
                len(found),
                index,
                MAX_FOLLOWED,
            )
            self._said = True
        return found.take(np.sort(np.argsort(-found.conf, kind="stable")[:MAX_FOLLOWED]))

    def _path_of(self, xyxy: FloatArray, frames: Sequence[_Kept]) -> Float64Array:
        """Follow a box from the first frame on; return ``(frames, 4)``, NaN from where it is lost."""
        path = np.full((len(frames), 4), np.nan)
        path[0] = xyxy
        scale = frames[0].grey.shape[0] / self._info.height
        tracker = CorrelationTracker(frames[0].grey, scale, xyxy.astype(np.float64))
        unsure = 0
        for number, one in enumerate(frames[1:], start=1):
            box, certainty = tracker.update(one.grey)
            unsure = 0 if certainty >= LOST_PSR else unsure + 1
            if box is None or unsure >= tracker.patience or not share_inside(box, self._size) >= INSIDE:
                path[number - unsure + 1 : number] = np.nan  # the last doubtful ones were wrong
                break
            path[number] = np.clip(box, 0, self._size)
        return path


@dataclass(slots=True)
class _Kept:
    """A frame on which boxes are followed.

    Attributes:
        grey: for the correlation tracker.
        small: BGR, for colours.
        image: BGR, to be searched; ``None`` if it is not, or has been.
    """

    index: int
    grey: Image
    small: Image
    image: Image | None

    @classmethod
    def of(cls, frame: Frame, *, search: bool) -> _Kept:
        image = frame.image
        grey = np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), np.uint8)
        height, width = grey.shape
        if height > HEIGHT:
            size = scaled_size(width, height, HEIGHT / height)
            grey = np.asarray(cv2.resize(grey, size, interpolation=cv2.INTER_AREA), np.uint8)
        return cls(frame.index, grey, shrink_frame(image), image if search else None)

    def colours(self, boxes: Float64Array, info: VideoInfo) -> FloatArray:
        """Return the colours ``(n, 9)`` of boxes ``(n, 4)`` in pixels of the video; NaN for those that are NaN."""
        out = np.full((len(boxes), 9), np.nan, np.float32)
        there = np.flatnonzero(np.isfinite(boxes[:, 0]))
        scale = np.array([self.small.shape[1] / info.width, self.small.shape[0] / info.height] * 2)
        out[there] = mean_colours(self.small, (boxes[there] * scale).astype(np.float32))
        return out


def _intervals(kept: Sequence[_Kept], searched: Mapping[int, Detections]) -> list[list[_Kept]]:
    """Cut frames at the searched ones, which end one interval and begin the next; the last one may have no end."""
    starts = [number for number, one in enumerate(kept) if one.index in searched]
    return [list(kept[a : b + 1]) for a, b in zip(starts, [*starts[1:], len(kept)], strict=True)]


def _correct(boxes: Float64Array, start: Detections, last: Detections, indices: IntArray) -> BoolArray:
    """Move followed boxes ``(objects, frames, 4)`` towards those found on the last frame, in place.

    Returns:
        ``(objects,)`` mask of those that were found there.
    """
    ends = boxes[:, -1].copy()
    overlap = _overlap(ends, last.xyxy)
    overlap[start.class_id[:, None] != last.class_id[None]] = 0
    if not overlap.size:
        return np.zeros(len(boxes), np.bool_)
    nearest, rows = overlap.argmax(axis=1), np.arange(len(overlap))
    same = (overlap[rows, nearest] >= SAME_OBJECT) & (overlap.argmax(axis=0)[nearest] == rows)
    shares = (indices - indices[0]) / (indices[-1] - indices[0])
    boxes[same] += shares[None, :, None] * (last.xyxy[nearest[same]] - ends[same])[:, None]
    return np.asarray(same, np.bool_)


def _end_hidden(boxes: Float64Array, missed: BoolArray) -> None:
    """End the paths of missed objects where they run onto that of an object that was found again, in place.

    The correlation tracker goes on with what hides its object, and would give it this object's identity.

    Args:
        boxes: ``(objects, frames, 4)``.
        missed: ``(objects,)`` mask of those that were not found on the last frame.
    """
    paths = np.nan_to_num(boxes)
    behind, before = paths[missed][:, None], paths[~missed][None]
    over = intersection(behind, before) >= HIDDEN * np.maximum(box_area(behind), 1e-6)
    over &= ~over[..., :1]  # both were found there: a part of the other, or beside it
    hidden = np.logical_or.accumulate(over.any(axis=1), axis=1)
    boxes[missed] = np.where(hidden[..., None], np.nan, boxes[missed])


def _overlap(followed: Float64Array, found: FloatArray) -> Float64Array:
    """Return the ``(n, m)`` IoU of boxes, NaN ones without any; at least :data:`SAME_OBJECT` for one inside the other.

    What has just entered the image is followed as the part that was visible, and found again as a larger one.
    """
    a, b = np.nan_to_num(followed), found.astype(np.float64)
    smaller = np.minimum(box_area(a)[:, None], box_area(b)[None])
    inside = intersection(a[:, None], b[None]) >= PART_INSIDE * np.maximum(smaller, 1e-6)
    return np.where(inside, np.maximum(iou_matrix(a, b), SAME_OBJECT), iou_matrix(a, b))


def _with_missed(found: Detections, ends: Float64Array, start: Detections, missed: BoolArray) -> Detections:
    """Add followed objects that were not found on a searched frame, if nothing else was found there.

    Args:
        ends: ``(m, 4)`` their boxes there, NaN where they are lost.
        start, missed: detections from which objects were followed, and which ones were missed, ``m`` of them.
    """
    conf, class_id = start.conf[missed] * MISSED, start.class_id[missed]
    taken = (_overlap(ends, found.xyxy) >= SAME_OBJECT).any(axis=1)
    kept = np.isfinite(ends[:, 0]) & (conf > LOWEST_CONF * MISSED - 1e-6) & ~taken
    return Detections(
        np.concatenate([found.xyxy, ends[kept].astype(np.float32)]),
        np.concatenate([found.conf, conf[kept]]),
        np.concatenate([found.class_id, class_id[kept]]),
    )
