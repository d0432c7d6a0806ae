"""A growing track: what has been seen of one object so far."""

from __future__ import annotations

from array import array

import numpy as np

from ml_backend.core.types import FloatArray, IntArray

LOOK_UPDATE = 0.2  # share of a confident new look in the running mean
FIRST_LOOKS = 8  # detections that make up the look at the beginning


class Tracklet:
    """Boxes of one object in frame order; compact, because a parked car may stay for hours.

    Attributes:
        track_id: given by the assembler, in order of appearance.
        tracker_ids: ids under which the tracker still may continue it.
        votes: sum of confidence per class id.
        inside: number of boxes within stronger tracks that are finished already.
        first_look, last_look: colours at the beginning and at the end (see ``models/appearance.py``), if known.
    """

    def __init__(self, track_id: int) -> None:
        self.track_id = track_id
        self.tracker_ids: set[int] = set()
        self.votes: dict[int, float] = {}
        self.inside = 0
        self.first_look: FloatArray | None = None
        self.last_look: FloatArray | None = None
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
        """Class id with the most votes; ties go to the smallest."""
        return min(self.votes, key=lambda c: (-self.votes[c], c))

    def append(self, frame: int, xyxy: FloatArray, conf: float, class_id: int, look: FloatArray | None = None) -> None:
        """Add a box in a frame later than all before."""
        if look is not None:
            share = LOOK_UPDATE * min(1.0, 2 * conf)  # weakly detected: half hidden, and not its own colours
            self.last_look = look if self.last_look is None else (1 - share) * self.last_look + share * look
            if len(self) < FIRST_LOOKS:
                self.first_look = self.last_look
        self._frames.append(frame)
        self._boxes.extend(np.asarray(xyxy, np.float32).tolist())
        self._conf.append(conf)
        self.votes[class_id] = self.votes.get(class_id, 0.0) + conf

    def head(self, n: int) -> tuple[IntArray, FloatArray, FloatArray]:
        """Frames, boxes and confidences of the first ``n`` boxes."""
        return _arrays(self._frames[:n], self._boxes[: 4 * n], self._conf[:n])

    def tail(self, n: int) -> tuple[IntArray, FloatArray, FloatArray]:
        """Frames, boxes and confidences of the last ``n`` boxes."""
        return _arrays(self._frames[-n:], self._boxes[-4 * n :], self._conf[-n:])

    def absorb(self, other: Tracklet, first: Tracklet | None = None) -> None:
        """Take over another tracklet of the same object.

        Where both have a box, that of ``first`` (one of the two) stays; by default the more confident one.
        """
        if other.start < self.start and other.first_look is not None:
            self.first_look = other.first_look
        if other.end > self.end and other.last_look is not None:
            self.last_look = other.last_look
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
