"""Stitch the tracklets of one object across occlusions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import lap
import numpy as np

from ml_backend.core.types import BoolArray, Float64Array, FloatArray, IntArray
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
    """Position and velocity of a box at one end of one tracklet, or of ``k``.

    Attributes:
        frame: first or last frame of the tracklet, ``()`` or ``(k,)``.
        box: ``(..., 4)`` xyxy, fitted at that frame.
        velocity: ``(..., 4)`` of each edge, pixels per frame.
        size: ``(..., 2)`` width and height, median over the fitted part.
    """

    frame: IntArray
    box: Float64Array
    velocity: Float64Array
    size: Float64Array


def motion_at(tracklet: Tracklet, fps: float, *, tail: bool) -> Motion:
    """Fit the motion at the end (``tail``) or the start of a tracklet."""
    n = max(3, round(FIT_S * fps))
    frames, xyxy, conf = tracklet.tail(n) if tail else tracklet.head(n)
    anchor = int(frames[-1] if tail else frames[0])
    boxes = xyxy.astype(np.float64)
    t = (frames - anchor).astype(np.float64)
    w = conf.astype(np.float64) + 1e-3
    w /= w.sum()
    mean_t, mean_box = float(w @ t), w @ boxes
    var = float(w @ (t - mean_t) ** 2)
    # Shrink towards zero: a velocity from a few frames is mostly noise.
    prior = (SHRINK_S * fps) ** 2 / len(t)
    velocity = (w * (t - mean_t)) @ (boxes - mean_box) / (var + prior)
    size = np.maximum(np.median(boxes[:, 2:] - boxes[:, :2], axis=0), 1.0)
    return Motion(np.array(anchor), mean_box - velocity * mean_t, velocity, size)


def _stitch_costs(
    tracklets: Sequence[Tracklet], i: IntArray, j: IntArray, fps: float, width: int, height: int
) -> Float64Array:
    """Return the cost of each tracklet ``j`` continuing ``i``: 0 certain, 1 and more barely possible, inf impossible.

    Args:
        i, j: ``(k,)`` indices of tracklets.
    """
    cost = np.full(len(i), np.inf)
    colour = np.nan_to_num(
        appearance.colour_distance(
            _colours([t.last_colours for t in tracklets])[i], _colours([t.first_colours for t in tracklets])[j]
        )
    )
    alike = _class_similarity(tracklets)[i, j] >= MIN_CLASS_SIMILARITY
    (kept,) = np.nonzero(alike & (colour <= MAX_COLOUR_DISTANCE))
    if not len(kept):
        return cost
    i, j, colour = i[kept], j[kept], colour[kept]
    a, b = _motions(tracklets, i, fps, tail=True), _motions(tracklets, j, fps, tail=False)
    gap = (b.frame - a.frame)[:, None]
    forward, backward = a.box + a.velocity * gap, b.box - b.velocity * gap
    scale = np.sqrt(np.prod((a.size + b.size) / 2, axis=1))
    error = np.linalg.norm(_centres(forward) - _centres(b.box), axis=1)
    error = (error + np.linalg.norm(_centres(backward) - _centres(a.box), axis=1)) / scale
    position = error / 2 / (BASE_ERROR + ERROR_PER_S * np.maximum(gap[:, 0], 0) / fps)
    size = np.abs(np.log(a.size / b.size)).max(axis=1) / MAX_LOG_SIZE
    fits = (position <= 1) & (size <= 1) & ~_outside(forward, width, height) & ~_outside(backward, width, height)
    cost[kept[fits]] = (0.6 * position + 0.2 * size + 0.2 * colour / MAX_COLOUR_DISTANCE)[fits]
    return cost


def _motions(tracklets: Sequence[Tracklet], indices: IntArray, fps: float, *, tail: bool) -> Motion:
    """Return the motions of the tracklets at ``indices``, with a leading dimension in each attribute."""
    unique, inverse = np.unique(indices, return_inverse=True)
    motions = [motion_at(tracklets[n], fps, tail=tail) for n in unique]
    return Motion(*(np.array([getattr(m, f.name) for m in motions])[inverse] for f in fields(Motion)))


def _colours(colours: Sequence[FloatArray | None]) -> FloatArray:
    """Return ``(n, 9)`` colours, NaN where unknown."""
    unknown = np.full(appearance.SIZE, np.nan, np.float32)
    return np.array([unknown if c is None else c for c in colours], np.float32)


def best_pairs(
    tracklets: Sequence[Tracklet], fps: float, max_gap_s: float, width: int, height: int
) -> list[tuple[Tracklet, Tracklet]]:
    """Match tails with the heads that continue them by minimum-cost assignment (Hungarian), cheapest pair first."""
    starts = np.array([t.start for t in tracklets], np.int64)
    ends = np.array([t.end for t in tracklets], np.int64)
    gaps = starts[None] - ends[:, None]
    possible = (gaps <= max_gap_s * fps) & (gaps >= -OVERLAP_S * fps) & (ends[None] > ends[:, None])
    if not possible.any():
        return []
    cost = np.full(gaps.shape, np.inf)
    i, j = np.nonzero(possible)
    cost[i, j] = _stitch_costs(tracklets, i, j, fps, width, height)
    if not np.isfinite(cost).any():
        return []
    _, columns, _ = lap.lapjv(
        np.where(np.isfinite(cost), cost, _IMPOSSIBLE), extend_cost=True, cost_limit=_IMPOSSIBLE / 2
    )
    pairs = sorted((float(cost[i, j]), i, int(j)) for i, j in enumerate(columns) if j >= 0)
    return [(tracklets[i], tracklets[j]) for _, i, j in pairs]


def _centres(boxes: Float64Array) -> Float64Array:
    return (boxes[:, :2] + boxes[:, 2:]) / 2


def _outside(boxes: Float64Array, width: int, height: int) -> BoolArray:
    """Return which ``(n, 4)`` boxes have (almost) left the frame."""
    margin = 0.005 * np.array([width, height])
    return np.asarray(
        (boxes[:, 2:] < margin).any(axis=1) | (boxes[:, :2] > [width, height] - margin).any(axis=1), np.bool_
    )


def _class_similarity(tracklets: Sequence[Tracklet]) -> Float64Array:
    """Return the ``(n, n)`` cosine similarity of the tracklets' votes for classes; 1 without votes."""
    classes = {class_id: n for n, class_id in enumerate(sorted(set().union(*(t.votes for t in tracklets))))}
    votes = np.zeros((len(tracklets), len(classes)))
    for row, tracklet in zip(votes, tracklets, strict=True):
        row[[classes[class_id] for class_id in tracklet.votes]] = list(tracklet.votes.values())
    norm = np.linalg.norm(votes, axis=1)
    scale = norm[:, None] * norm[None]
    return np.where(scale > 0, votes @ votes.T / np.where(scale > 0, scale, 1.0), 1.0)
