"""Stitch the tracklets of one object across occlusions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import lap
import numpy as np

from ml_backend.core.types import Float64Array, FloatArray
from ml_backend.tracking import appearance
from ml_backend.tracking.tracklet import Tracklet

FIT_S = 0.5  # length of the tracklet's end to which its motion is fitted
BASE_ERROR = 0.45  # allowed distance between predicted and actual box, in box sizes, without a gap
ERROR_PER_S = 0.3  # further allowance per second of gap: people turn and slow down
MAX_LOG_SIZE = 0.5  # heights and widths may change by a factor of 1.65 across a gap (part of the body hidden)
SHRINK_S = 0.1  # velocities are trusted if the fitted part is much longer than this
MAX_COLOUR_DISTANCE = 0.5  # beyond it is another object (1: black coat against white)
MIN_CLASS_SIMILARITY = 0.5
_IMPOSSIBLE = 1e6  # cost of an impossible pair
OVERLAP_S = 0.2  # a tracklet may start this long before the previous one ends


@dataclass(frozen=True, slots=True)
class Motion:
    """Position and velocity of a box at one end of a tracklet.

    Attributes:
        frame: first or last frame of the tracklet.
        box: ``(4,)`` xyxy, fitted at that frame.
        velocity: ``(4,)`` of each edge, pixels per frame.
        size: ``(2,)`` width and height, median over the fitted part.
    """

    frame: int
    box: Float64Array
    velocity: Float64Array
    size: Float64Array

    def at(self, frame: int) -> Float64Array:
        """Extrapolate the ``(4,)`` box to another frame."""
        return self.box + self.velocity * (frame - self.frame)


def motion_at(tracklet: Tracklet, fps: float, *, tail: bool) -> Motion:
    """Fit the motion at the end (``tail``) or the start of a tracklet."""
    n = max(3, round(FIT_S * fps))
    frames, xyxy, conf = tracklet.tail(n) if tail else tracklet.head(n)
    anchor = int(frames[-1] if tail else frames[0])
    boxes = xyxy.astype(np.float64)
    t = (frames - anchor).astype(np.float64)
    w = conf.astype(np.float64) + 1e-3
    mean_t, mean_box = np.average(t, weights=w), np.average(boxes, axis=0, weights=w)
    var = float(np.average((t - mean_t) ** 2, weights=w))
    # Shrink towards zero: a velocity from a few frames is mostly noise.
    prior = (SHRINK_S * fps) ** 2 / len(t)
    velocity = np.average((t - mean_t)[:, None] * (boxes - mean_box), axis=0, weights=w) / (var + prior)
    size = np.maximum(np.median(boxes[:, 2:] - boxes[:, :2], axis=0), 1.0)
    return Motion(anchor, mean_box - velocity * mean_t, velocity, size)


def _stitch_cost(
    tail: Tracklet, head: Tracklet, fps: float, width: int, height: int, motion: Callable[[Tracklet, bool], Motion]
) -> float:
    """Return the cost of ``head`` continuing ``tail``: 0 certain, 1 and more barely possible, inf impossible.

    Args:
        motion: returns the motion of a tracklet at its tail (true) or head; see :func:`motion_at`.
    """
    gap = head.start - tail.end
    if _class_similarity(tail.votes, head.votes) < MIN_CLASS_SIMILARITY:
        return np.inf
    colour = _colour_distance(tail.last_colours, head.first_colours)
    if colour > MAX_COLOUR_DISTANCE:
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
    return 0.6 * position + 0.2 * size + 0.2 * colour / MAX_COLOUR_DISTANCE


def _colour_distance(a: FloatArray | None, b: FloatArray | None) -> float:
    """Return the colour distance; 0 if one is unknown."""
    if a is None or b is None:
        return 0.0
    return float(np.nan_to_num(appearance.colour_distance(a, b)))


def best_pairs(
    tracklets: Sequence[Tracklet], fps: float, max_gap_s: float, width: int, height: int
) -> list[tuple[Tracklet, Tracklet]]:
    """Match tails with the heads that continue them by minimum-cost assignment (Hungarian), cheapest pair first."""
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
    _, columns, _ = lap.lapjv(
        np.where(np.isfinite(cost), cost, _IMPOSSIBLE), extend_cost=True, cost_limit=_IMPOSSIBLE / 2
    )
    pairs = sorted((float(cost[i, j]), i, int(j)) for i, j in enumerate(columns) if j >= 0)
    return [(tracklets[i], tracklets[j]) for _, i, j in pairs]


def _center(box: Float64Array) -> Float64Array:
    return (box[:2] + box[2:]) / 2


def _outside(box: Float64Array, width: int, height: int) -> bool:
    """Return whether a box has (almost) left the frame."""
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
