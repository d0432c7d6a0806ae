"""Which frames of a video a detector is given."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ml_backend.models.between import Pairs, pairs
from ml_backend.models.detector import Detector
from ml_backend.models.observer import reduced
from ml_backend.types import Detections, Frame, Image


@dataclass(slots=True)
class Interval:
    """Frames after the one before; the last of them is looked at.

    Attributes:
        left: the frame before; ``None`` where the video, or the stretch, begins.
        whole: no frame is missing, and it is as long as it may be: the others need not be looked at.
    """

    left: Frame | None
    frames: list[Frame]
    whole: bool


def intervals(frames: Iterable[Frame], stride: int) -> Iterator[Interval]:
    """Frames, up to each whose index is a multiple of ``stride``, and up to the last."""
    left: Frame | None = None
    collected: list[Frame] = []
    for frame in frames:
        collected.append(frame)
        if frame.index % stride == 0:
            yield _interval(left, collected)
            left, collected = frame, []
    if collected:
        yield _interval(left, collected)


def _interval(left: Frame | None, frames: list[Frame]) -> Interval:
    complete = left is not None and frames[-1].index - left.index == len(frames)
    return Interval(left, frames, complete)


def groups(items: Iterable[Interval], size: int) -> Iterator[list[Interval]]:
    """As many intervals at a time, the last time fewer."""
    group: list[Interval] = []
    for interval in items:
        group.append(interval)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


@dataclass(slots=True)
class Glance:
    """A group of intervals, and what was found on the frames that are looked at in any case, by their index."""

    group: Sequence[Interval]
    found: dict[int, Detections]


@dataclass(slots=True)
class Seen:
    """A frame that was looked at.

    Attributes:
        detections: pixels of the displayed video.
        picture: the frame, reduced, see :func:`ml_backend.models.observer.reduced`.
    """

    detections: Detections
    picture: Image


@dataclass(slots=True)
class Looked:
    """What was found in consecutive frames.

    Attributes:
        frames: indices and, where they were looked at, what was seen.
        explained: pairs by the index of the later frame, where those between it and the one looked at before need
            not be looked at.
    """

    frames: list[tuple[int, Seen | None]]
    explained: dict[int, Pairs]


class Looking:
    """Looks at one video.

    Args:
        size: ``(width, height)`` of the displayed video.
        batch: frames that the detector is given at once.
    """

    def __init__(self, detector: Detector, size: tuple[int, int], batch: int) -> None:
        self._detector, self._size, self._batch = detector, size, batch
        self._last: Detections | None = None  # of the last frame of the group before

    def glance(self, group: Sequence[Interval]) -> Glance:
        """Look at what is looked at in any case. May be called for several groups at once."""
        found: dict[int, Detections] = {}
        self._detect([interval.frames[-1] for interval in group], found)
        self._detect([frame for interval in group if not interval.whole for frame in interval.frames[:-1]], found)
        return Glance(group, found)

    def closely(self, glance: Glance) -> Looked:
        """Look at what that has left unclear; groups in order. By halves: often one look explains all the others."""
        group, found = glance.group, glance.found
        left = group[0].left
        if left is not None and self._last is not None:
            found[left.index] = self._last
        explained: dict[int, Pairs] = {}
        open_ = [(x.left, x.frames) for x in group if x.whole and x.left is not None and len(x.frames) > 1]
        while open_:
            unclear = []
            for a, frames in open_:
                matched = pairs(found[a.index], found[frames[-1].index])
                if matched is None:
                    unclear.append((a, frames))
                else:
                    explained[frames[-1].index] = matched
            open_ = [halves for a, frames in unclear for halves in _halved(a, frames)]
            self._detect([frames[-1] for _, frames in open_ if frames[-1].index not in found], found)
            open_ = [(a, frames) for a, frames in open_ if len(frames) > 1]
        self._last = found[group[-1].frames[-1].index]
        every = (frame for interval in group for frame in interval.frames)
        seen = [(f.index, Seen(found[f.index], reduced(f.image)) if f.index in found else None) for f in every]
        return Looked(seen, explained)

    def _detect(self, frames: Sequence[Frame], found: dict[int, Detections]) -> None:
        for n in range(0, len(frames), self._batch):
            some = frames[n : n + self._batch]
            for frame, detections in zip(some, self._detector.detect([f.image for f in some]), strict=True):
                found[frame.index] = _resized(detections, frame, self._size)


def _halved(left: Frame, frames: list[Frame]) -> Iterator[tuple[Frame, list[Frame]]]:
    middle = len(frames) // 2
    yield left, frames[:middle]
    if len(frames) - middle > 1:  # its last one has been looked at
        yield frames[middle - 1], frames[middle:]


def _resized(detections: Detections, frame: Frame, size: tuple[int, int]) -> Detections:
    """From pixels of the picture to those of the displayed video."""
    height, width = frame.image.shape[:2]
    factor = np.array([size[0] / width, size[1] / height] * 2, np.float32)
    return Detections(detections.xyxy * factor, detections.conf, detections.class_id)
