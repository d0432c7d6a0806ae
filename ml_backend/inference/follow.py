"""Follow an object through a video, forwards and backwards, from one box that a person has drawn.

Finished tracks of the video come first: one that fits the drawn box gives the object's life in an instant. Its boxes
are given the drawn box's margins, and are averaged with those of a correlation tracker (dlib's; Danelljan et al., BMVC
2014) where the two agree. Where no track fits, or where it ends, the correlation tracker goes on by itself until it
loses the object or meets another track that begins there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ml_backend.core.boxes import iou_matrix, iou_pairs, share_inside
from ml_backend.core.types import Float64Array, Image, IntArray

#: IoU from which a finished track is the drawn object's.
FITS = 0.4
#: IoU from which the boxes of the correlation tracker and of a finished track are the same object's.
AGREES = 0.5
#: Peak-to-sidelobe ratio below which the correlation tracker may have lost the object, and for how many frames in a row
#: until it has. On a street scene 99 % of the right boxes have more than 7.6; after an object has left the image the
#: ratio falls to 5, and rises again once the tracker has settled on the background.
LOST_PSR, LOST_FRAMES = 7.0, 3
#: Correlation of a box's content with the last right one's, below which it may be another object or the background.
#: On a street scene 0.2 % of the right boxes have less.
SAME_CONTENT = 0.5
#: Ratio that the correlation tracker needs beyond the end of a fitting track, which often has a reason.
SURE_PSR = 9.0
#: Seconds for which it goes on there. Longer, it would mostly follow what has occluded the object.
BEYOND_TRACK_S = 1.0
#: IoU below which the correlation tracker has drifted from a fitting track and begins again from it.
DRIFTED = 0.3
#: Frames in a row on which a beginning track must agree to be joined.
JOIN_FRAMES = 3
#: Share of a box that must remain inside the image.
INSIDE = 0.5
#: Distance from the image's edge, as a share of its size, at which a track that ends has left the image.
AT_EDGE = 0.01


class Frames(Protocol):
    """Decoded frames of one video, reduced."""

    #: Reduced size over displayed size.
    scale: float

    def get(self, index: int) -> Image | None:
        """Return a frame by its 0-based decoded index, uint8; ``None`` if it cannot be decoded."""


#: Where a tracker sees its object, ``xyxy`` ``(4,)`` in pixels of the displayed video (``None``: it is hidden), and a
#: certainty on the scale of peak-to-sidelobe ratios.
Position = tuple["Float64Array | None", float]


class VisualTracker(Protocol):
    """Follows one object from frame to frame, by what it looks like.

    Attributes:
        patience: doubtful frames in a row after which the object is lost.
    """

    patience: int

    def update(self, image: Image) -> Position:
        """Return where the object is on the next frame."""


#: Begins to follow an object, from a frame, its reduced size over the displayed one, and the box in displayed pixels.
StartTracker = Callable[[Image, float, Float64Array], VisualTracker]


@dataclass(frozen=True, slots=True)
class KnownTrack:
    """A finished track of the video.

    Attributes:
        frames: ``(n,)`` strictly increasing 0-based decoded indices; gaps are frames on which it is hidden.
        xyxy: ``(n, 4)`` pixels.
    """

    frames: IntArray
    xyxy: Float64Array

    def box(self, frame: int) -> Float64Array | None:
        """Return its box ``(4,)`` on a frame; ``None`` where it is hidden or does not exist."""
        row = int(np.searchsorted(self.frames, frame))
        if row == len(self.frames) or self.frames[row] != frame:
            return None
        box: Float64Array = self.xyxy[row]
        return box

    def ends(self, frame: int, step: int) -> bool:
        """Return whether it has no box on ``frame`` nor after it, in the direction of ``step`` (1 or -1)."""
        return bool(frame > self.frames[-1] if step > 0 else frame < self.frames[0])


@dataclass(frozen=True, slots=True)
class FollowedObject:
    """What was found of a followed object.

    Attributes:
        boxes: ``xyxy`` ``(4,)`` in pixels by decoded frame, on the frames where it is visible.
        ended: for the run backwards (or from the first box) and the one forwards (or from the last box), whether it
            ended by itself or reached its last frame, rather than for lack of time.
        reached: the last frame that each run looked at.
    """

    boxes: dict[int, Float64Array]
    ended: tuple[bool, bool]
    reached: tuple[int, int]


def fitting_track(tracks: Sequence[KnownTrack], frame: int, xyxy: Float64Array) -> KnownTrack | None:
    """Return the track whose box on a frame fits a drawn box best; ``None`` if no one's IoU reaches :data:`FITS`."""
    present = [(track, box) for track in tracks if (box := track.box(frame)) is not None]
    if not present:
        return None
    overlap = iou_matrix(xyxy[None], np.stack([box for _, box in present]))[0]
    best = int(overlap.argmax())
    return present[best][0] if overlap[best] >= FITS else None


class _Margins:
    """How a drawn box lies around a track's box; kept, relative to its size, on the other frames."""

    def __init__(self, drawn: Float64Array, box: Float64Array) -> None:
        self._relative = (drawn - box) / _sides(box)

    def around(self, box: Float64Array) -> Float64Array:
        out: Float64Array = box + self._relative * _sides(box)
        return out


def _sides(box: Float64Array) -> Float64Array:
    width, height = np.maximum(box[2:] - box[:2], 1.0)
    return np.array([width, height, width, height])


class CorrelationTracker:
    """dlib's correlation tracker of scale and position, on grey frames ``(height, width)``."""

    patience = LOST_FRAMES

    def __init__(self, image: Image, scale: float, xyxy: Float64Array) -> None:
        import dlib  # type: ignore[import-untyped,unused-ignore]

        self._scale, self._tracker = scale, dlib.correlation_tracker()
        self._tracker.start_track(image, dlib.drectangle(*(xyxy * scale).tolist()))
        self._content = _content(image, xyxy * scale)

    def update(self, image: Image) -> Position:
        """Return the box, and the peak-to-sidelobe ratio; 0 if its content has changed."""
        psr = float(self._tracker.update(image))
        found = self._tracker.get_position()
        box = np.array([found.left(), found.top(), found.right(), found.bottom()])
        content = _content(image, box)
        before = self._content
        if before is not None and content is not None and float((before * content).mean()) < SAME_CONTENT:
            return box / self._scale, 0.0  # the next frames are compared with the last right one, too
        self._content = content
        return box / self._scale, psr


def _content(image: Image, xyxy: Float64Array) -> Float64Array | None:
    """Return a box's content as ``(16, 16)`` of mean 0 and variance 1; ``None`` if it is uniform or outside."""
    import cv2

    height, width = image.shape
    x1, y1, x2, y2 = np.clip(xyxy, 0, (width, height, width, height)).round().astype(int).tolist()
    if x2 - x1 < 2 or y2 - y1 < 2:
        return None
    patch = cv2.resize(image[y1:y2, x1:x2], (16, 16), interpolation=cv2.INTER_AREA).astype(np.float64)
    spread = patch.std()
    return (patch - patch.mean()) / spread if spread > 1 else None


class Follower:
    """Follow objects through one video.

    Args:
        frames: its frames.
        size: displayed ``(width, height)`` in pixels.
        fps: frames per second.
        tracks: its finished tracks, also those whose class has no label.
        should_stop: polled between frames: the time is up.
        start: begins to follow an object where no track tells.
    """

    def __init__(
        self,
        frames: Frames,
        size: tuple[int, int],
        fps: float,
        tracks: Sequence[KnownTrack] = (),
        should_stop: Callable[[], bool] = lambda: False,
        start: StartTracker = CorrelationTracker,
    ) -> None:
        self._start = start
        self._frames, self._size, self._fps = frames, np.array([*size, *size], np.float64), fps
        self._tracks, self._should_stop = tracks, should_stop

    def follow(self, frame: int, xyxy: Float64Array, first: int, last: int) -> FollowedObject:
        """Follow an object from a box, back to the frame ``first`` and on to ``last``, or until it is lost.

        Args:
            frame: decoded frame on which the box was drawn.
            xyxy: ``(4,)`` the box in pixels.
        """
        (back, back_ended), (ahead, ahead_ended) = self._take_turns(
            [self._run(frame, xyxy, -1, first), self._run(frame, xyxy, 1, last)]
        )
        boxes = {index: box for index, box in (back | ahead).items() if box is not None}
        reached = min(back, default=frame), max(ahead, default=frame)
        return FollowedObject({frame: xyxy, **boxes}, (back_ended, ahead_ended), reached)

    def between(self, first: int, first_xyxy: Float64Array, last: int, last_xyxy: Float64Array) -> FollowedObject:
        """Follow an object from one drawn box to the next one.

        The run from the first box forwards and the one from the last box backwards are blended by their distance. The
        object is hidden where both lost it; what they did not reach for lack of time is interpolated.
        """
        runs = [self._run(first, first_xyxy, 1, last - 1), self._run(last, last_xyxy, -1, first + 1)]
        (ahead, ahead_ended), (back, back_ended) = self._take_turns(runs)
        boxes: dict[int, Float64Array] = {first: first_xyxy, last: last_xyxy}
        for index in range(first + 1, last):
            share = (index - first) / (last - first)
            a, b = ahead.get(index), back.get(index)
            if a is not None and b is not None:
                boxes[index] = (1 - share) * a + share * b
            elif (either := b if a is None else a) is not None:
                boxes[index] = either
        reached = max(ahead, default=first), min(back, default=last)
        if not (ahead_ended and back_ended) and reached[0] < reached[1]:
            start, end = (max(i for i in boxes if i <= reached[0]), min(i for i in boxes if i >= reached[1]))
            for index in range(reached[0] + 1, reached[1]):
                share = (index - start) / (end - start)
                boxes[index] = (1 - share) * boxes[start] + share * boxes[end]
        return FollowedObject(boxes, (ahead_ended, back_ended), reached)

    def _take_turns(self, runs: Sequence[_Run]) -> list[tuple[dict[int, Float64Array | None], bool]]:
        """Advance runs in turns until they end or the time is up; by a frame in any case, so that none is empty then.

        Returns:
            For each run its boxes by frame, and whether it has ended by itself.
        """
        found: list[dict[int, Float64Array | None]] = [{} for _ in runs]
        active = list(range(len(runs)))
        while active:
            for number in list(active):
                item = next(runs[number], None)
                if item is None:
                    active.remove(number)
                else:
                    found[number][item[0]] = item[1]
            if self._should_stop():
                break
        return [(boxes, number not in active) for number, boxes in enumerate(found)]

    def _run(self, frame: int, xyxy: Float64Array, step: int, last: int) -> _Run:
        """Yield frame and box from the frame after ``frame`` to ``last``; ``None`` where the object is hidden."""
        image = self._frames.get(frame)
        if image is None:
            return
        tracker = self._start(image, self._frames.scale, xyxy)
        track = fitting_track(self._tracks, frame, xyxy)
        margins = _Margins(xyxy, known) if track and (known := track.box(frame)) is not None else None
        unsure = beyond = 0
        tentative: list[tuple[int, Float64Array]] = []
        joining: tuple[KnownTrack | None, int] = None, 0
        for index in range(frame + step, last + step, step):
            image = self._frames.get(index)
            if image is None:  # it cannot be decoded
                yield index, None
                continue
            box, psr = tracker.update(image)
            if track and margins and not track.ends(index, step):
                known = track.box(index)
                if known is None:  # hidden
                    yield index, None
                    continue
                accompanied = margins.around(known)
                overlap = 0.0 if box is None else _iou(box, accompanied)
                if box is not None and overlap < DRIFTED:
                    tracker = self._start(image, self._frames.scale, accompanied)
                yield index, (box + accompanied) / 2 if box is not None and overlap >= AGREES else accompanied
                continue
            if track and not beyond and self._at_edge(track.xyxy[-1 if step > 0 else 0]):
                return
            beyond += track is not None
            unsure = 0 if psr >= (SURE_PSR if track else LOST_PSR) else unsure + 1  # NaN is unsure, too
            if unsure >= tracker.patience or beyond > BEYOND_TRACK_S * self._fps:
                return
            if box is None:
                yield index, None
                continue
            if not share_inside(box, self._size) >= INSIDE:
                return
            tentative.append((index, box))
            if not unsure:  # boxes of the last doubtful frames count once the tracker is sure again
                yield from tentative
                tentative.clear()
            follows = fitting_track(self._tracks, index, box)
            joining = follows, joining[1] + 1 if follows is joining[0] else 1
            if follows and follows is not track and joining[1] >= JOIN_FRAMES:
                track, beyond, unsure = follows, 0, 0
                known = follows.box(index)
                margins = margins or (None if known is None else _Margins(box, known))

    def _at_edge(self, box: Float64Array) -> bool:
        return bool((np.abs(np.concatenate([box[:2], self._size[2:] - box[2:]]) / self._size) < AT_EDGE).any())


#: Frame and box; ``None`` where the object is hidden.
_Run = Iterator[tuple[int, "Float64Array | None"]]


def _iou(a: Float64Array, b: Float64Array) -> float:
    return float(iou_pairs(a[None], b[None])[0])
