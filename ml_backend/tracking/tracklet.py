"""A growing track: the boxes of one object so far."""

from __future__ import annotations

from array import array

import numpy as np

from ml_backend.core.types import FloatArray, IntArray

COLOUR_UPDATE = 0.2  # share of a confident detection's colours in the running mean
FIRST_COLOUR_BOXES = 8  # boxes averaged for the colours at the start


class Tracklet:
    """Boxes of one object in frame order, stored compactly, because a parked car may stay for hours.

    Attributes:
        track_id: given by the assembler, in order of appearance.
        tracker_ids: ids under which the tracker may continue it.
        votes: sum of confidence per class id.
        inside: number of boxes inside finished tracks of more confidence.
        first_colours, last_colours: at the start and the end, if known; see
            :func:`ml_backend.tracking.appearance.mean_colours`.
    """

    def __init__(self, track_id: int) -> None:
        self.track_id = track_id
        self.tracker_ids: set[int] = set()
        self.votes: dict[int, float] = {}
        self.inside = 0
        self.first_colours: FloatArray | None = None
        self.last_colours: FloatArray | None = None
        self._frames = array("q")
        self._boxes = array("f")
        self._conf = array("f")

    def __len__(self) -> int:
        return len(self._frames)

    @property
    def start(self) -> int:
        """First frame."""
        return self._frames[0]

    @property
    def end(self) -> int:
        """Last frame."""
        return self._frames[-1]

    @property
    def frames(self) -> IntArray:
        """``(n,)`` frame indices."""
        return np.array(self._frames, np.int64)

    @property
    def xyxy(self) -> FloatArray:
        """``(n, 4)`` boxes in pixels."""
        return np.array(self._boxes, np.float32).reshape(-1, 4)

    @property
    def conf(self) -> FloatArray:
        """``(n,)`` detector confidences."""
        return np.array(self._conf, np.float32)

    @property
    def top_class(self) -> int:
        """Class id with the most votes; the smallest of a tie."""
        return min(self.votes, key=lambda c: (-self.votes[c], c))

    def append(self, frame: int, xyxy: FloatArray, conf: float, class_id: int, colours: FloatArray | None) -> None:
        """Add a box in a frame later than all before."""
        if colours is not None:
            share = COLOUR_UPDATE * min(1.0, 2 * conf)  # weak detections are often half hidden by other colours
            if self.last_colours is not None:
                colours = np.asarray((1 - share) * self.last_colours + share * colours, np.float32)
            self.last_colours = colours
            if len(self) < FIRST_COLOUR_BOXES:
                self.first_colours = self.last_colours
        self._frames.append(frame)
        self._boxes.extend(np.asarray(xyxy, np.float32).tolist())
        self._conf.append(conf)
        self.votes[class_id] = self.votes.get(class_id, 0.0) + conf

    def head(self, n: int) -> tuple[IntArray, FloatArray, FloatArray]:
        """Return frames, boxes and confidences of the first ``n`` boxes."""
        return _arrays(self._frames[:n], self._boxes[: 4 * n], self._conf[:n])

    def tail(self, n: int) -> tuple[IntArray, FloatArray, FloatArray]:
        """Return frames, boxes and confidences of the last ``n`` boxes."""
        return _arrays(self._frames[-n:], self._boxes[-4 * n :], self._conf[-n:])

    def absorb(self, other: Tracklet, first: Tracklet | None = None) -> None:
        """Add the boxes of another tracklet of the same object.

        On frames of both, keep the box of ``first`` (one of the two), by default the more confident one.
        """
        if other.start < self.start and other.first_colours is not None:
            self.first_colours = other.first_colours
        if other.end > self.end and other.last_colours is not None:
            self.last_colours = other.last_colours
        frames = np.concatenate([self.frames, other.frames])
        xyxy = np.concatenate([self.xyxy, other.xyxy])
        conf = np.concatenate([self.conf, other.conf])
        rank = -conf
        if first is not None:
            rank = np.repeat([0.0 if t is first else 1.0 for t in (self, other)], [len(self), len(other)])
        order = np.lexsort((rank, frames))
        order = order[np.unique(frames[order], return_index=True)[1]]
        self._frames = array("q", frames[order].tolist())
        self._boxes = array("f", xyxy[order].ravel().tolist())
        self._conf = array("f", conf[order].tolist())
        for class_id, vote in other.votes.items():
            self.votes[class_id] = self.votes.get(class_id, 0.0) + vote
        self.tracker_ids |= other.tracker_ids
        self.inside += other.inside


def _arrays(frames: array[int], boxes: array[float], conf: array[float]) -> tuple[IntArray, FloatArray, FloatArray]:
    return np.array(frames, np.int64), np.array(boxes, np.float32).reshape(-1, 4), np.array(conf, np.float32)
