"""Joining the pieces of one object's life across occlusions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import lap
import numpy as np
import numpy.typing as npt

from ml_backend.tracking import appearance
from ml_backend.tracking.tracklet import Tracklet

Floats = npt.NDArray[np.float64]
Floats32 = npt.NDArray[np.float32]

FIT_S = 0.5  # motion before and after a gap is fitted to this much
BASE_ERROR = 0.45  # allowed distance between prediction and box, in box sizes, for no gap ...
ERROR_PER_S = 0.3  # ... and more of it for each second of gap: people turn and slow down
MAX_LOG_SIZE = 0.5  # heights and widths may change by a factor of 1.65 across a gap (part of the body hidden)
SHRINK_S = 0.1  # velocities are trusted once the fitted part is much longer than this
MAX_LOOK = 0.5  # colour difference beyond which it is someone else (1: black coat against white)
MIN_CLASS_SIMILARITY = 0.5
_NEVER = 1e6  # cost of an impossible pair
OVERLAP_S = 0.2  # a new piece may begin this long before the old one fades


@dataclass(frozen=True, slots=True)
class Motion:
    """Position and velocity of a box at one end of a tracklet.

    Attributes:
        frame: the end's frame.
        box: ``(4,)`` xyxy there, fitted.
        velocity: ``(4,)`` of each edge, pixels a frame.
        size: ``(2,)`` width and height, median over the fitted part.
    """

    frame: int
    box: Floats
    velocity: Floats
    size: Floats

    def at(self, frame: int) -> Floats:
        """``(4,)`` box in another frame, if the motion goes on."""
        return self.box + self.velocity * (frame - self.frame)


def motion_at(tracklet: Tracklet, fps: float, *, tail: bool) -> Motion:
    """Fit the motion at a tracklet's end (``tail``) or beginning."""
    n = max(3, round(FIT_S * fps))
    frames, xyxy, conf = tracklet.tail(n) if tail else tracklet.head(n)
    anchor = int(frames[-1] if tail else frames[0])
    boxes = xyxy.astype(np.float64)
    t = (frames - anchor).astype(np.float64)
    w = conf.astype(np.float64) + 1e-3
    mean_t, mean_box = np.average(t, weights=w), np.average(boxes, axis=0, weights=w)
    var = float(np.average((t - mean_t) ** 2, weights=w))
    # Shrink towards standing still: a velocity from a few frames is mostly noise.
    prior = (SHRINK_S * fps) ** 2 / len(t)
    velocity = np.average((t - mean_t)[:, None] * (boxes - mean_box), axis=0, weights=w) / (var + prior)
    size = np.maximum(np.median(boxes[:, 2:] - boxes[:, :2], axis=0), 1.0)
    return Motion(anchor, mean_box - velocity * mean_t, velocity, size)


def _stitch_cost(
    tail: Tracklet, head: Tracklet, fps: float, width: int, height: int, motion: Callable[[Tracklet, bool], Motion]
) -> float:
    """Cost (0: certain, 1 and more: just possible, inf: no) that ``head`` continues ``tail``.

    Args:
        motion: what :func:`motion_at` says of a tracklet's tail (true) or head.
    """
    gap = head.start - tail.end
    if _class_similarity(tail.votes, head.votes) < MIN_CLASS_SIMILARITY:
        return np.inf
    unlike = _unlike(tail.last_look, head.first_look)
    if unlike > MAX_LOOK:
        return np.inf
    a, b = motion(tail, True), motion(head, False)
    if _outside(a.at(b.frame), width, height) or _outside(b.at(a.frame), width, height):
        return np.inf
    scale = float(np.sqrt(np.prod((a.size + b.size) / 2)))
    forward = float(np.linalg.norm(_center(a.at(b.frame)) - _center(b.box))) / scale
    backward = float(np.linalg.norm(_center(b.at(a.frame)) - _center(a.box))) / scale
    allowed = BASE_ERROR + ERROR_PER_S * max(gap, 0) / fps
    position = (forward + backward) / 2 / allowed
    size = float(np.abs(np.log(a.size / b.size)).max()) / MAX_LOG_SIZE
    if position > 1 or size > 1:
        return np.inf
    return 0.6 * position + 0.2 * size + 0.2 * unlike / MAX_LOOK


def _unlike(a: Floats32 | None, b: Floats32 | None) -> float:
    """Colour difference; 0 where one is unknown."""
    if a is None or b is None:
        return 0.0
    return float(np.nan_to_num(appearance.histogram_distance(a[None], b[None]))[0, 0])


def best_pairs(
    tracklets: Sequence[Tracklet], fps: float, max_gap_s: float, width: int, height: int
) -> list[tuple[Tracklet, Tracklet]]:
    """Which tracklet continues which, by the cheapest assignment over all (Hungarian); most certain first."""
    starts = np.array([t.start for t in tracklets], np.int64)
    ends = np.array([t.end for t in tracklets], np.int64)
    gaps = starts[None] - ends[:, None]
    possible = (gaps <= max_gap_s * fps) & (gaps >= -OVERLAP_S * fps) & (ends[None] > ends[:, None])
    cost = np.full(gaps.shape, np.inf)
    motion = lru_cache(None)(lambda tracklet, at_tail: motion_at(tracklet, fps, tail=at_tail))
    for i, j in np.argwhere(possible):
        cost[i, j] = _stitch_cost(tracklets[i], tracklets[j], fps, width, height, motion)
    if not np.isfinite(cost).any():
        return []
    _, columns, _ = lap.lapjv(np.where(np.isfinite(cost), cost, _NEVER), extend_cost=True, cost_limit=_NEVER / 2)
    pairs = sorted((float(cost[i, j]), i, int(j)) for i, j in enumerate(columns) if j >= 0)
    return [(tracklets[i], tracklets[j]) for _, i, j in pairs]


def _center(box: Floats) -> Floats:
    return (box[:2] + box[2:]) / 2


def _outside(box: Floats, width: int, height: int) -> bool:
    """Whether a box has left the picture: its far edge is (almost) out."""
    margin = 0.005
    return bool(
        box[2] < margin * width
        or box[3] < margin * height
        or box[0] > (1 - margin) * width
        or box[1] > (1 - margin) * height
    )


def _class_similarity(a: dict[int, float], b: dict[int, float]) -> float:
    dot = sum(vote * b.get(class_id, 0.0) for class_id, vote in a.items())
    norm = np.sqrt(sum(v * v for v in a.values()) * sum(v * v for v in b.values()))
    return float(dot / norm) if norm > 0 else 1.0
