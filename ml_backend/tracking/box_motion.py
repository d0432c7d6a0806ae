"""Motion of boxes, in box sizes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from ml_backend.core.types import BoolArray, Float64Array, IntArray, Track

#: Seconds of a track to which a motion is fitted, and next to a moment where smoothing may have mixed both sides.
FIT_S, GUARD_S = 0.4, 0.1
#: A jump, in box sizes: far more than an object moves from one frame to the next beyond its own motion.
JUMP = 0.5
#: Distance from the edge of the picture, as a share of its size, at which a box touches it.
EDGE = 0.005


def centres(xyxy: npt.NDArray[np.floating]) -> Float64Array:
    """Return the centres ``(n, 2)`` of boxes ``(n, 4)``."""
    out: Float64Array = (xyxy[:, :2].astype(np.float64) + xyxy[:, 2:]) / 2
    return out


def sizes(xyxy: npt.NDArray[np.floating]) -> Float64Array:
    """Return the square roots ``(n,)`` of the boxes' areas, at least 1."""
    sides = np.maximum(xyxy[:, 2:].astype(np.float64) - xyxy[:, :2], 0)
    out: Float64Array = np.maximum(np.sqrt(sides.prod(axis=1)), 1.0)
    return out


def steps(frames: IntArray, xyxy: npt.NDArray[np.floating], width: float, height: float) -> Float64Array:
    """Return how far ``(n - 1,)`` each box is from where the motion around it leads from the one before, in box sizes.

    A step over a gap may be as long as the gap. Growing counts, too, except at the edge of the picture.

    Args:
        frames: ``(n,)`` ascending.
        xyxy: ``(n, 4)`` boxes.
        width, height: of the picture, in the boxes' unit.
    """
    middle, size = centres(xyxy), sizes(xyxy)
    gaps = np.diff(frames)
    speed = np.diff(middle, axis=0) / gaps[:, None]
    usual = np.stack([_rolling_median(speed[:, axis]) for axis in range(2)], axis=1)
    excess = np.linalg.norm(speed - usual, axis=1) * np.minimum(gaps, 1)
    growth = np.abs(np.diff(np.log(np.maximum(xyxy[:, 2:] - xyxy[:, :2], 1e-3)), axis=0)).max(axis=1) / gaps
    margin = EDGE * np.array([width, height])
    beyond = np.concatenate([margin - xyxy[:, :2], xyxy[:, 2:] + margin - [width, height]], axis=1)
    touching = beyond.max(axis=1) > 0
    growth[touching[1:] | touching[:-1]] = 0.0
    scale = np.minimum(size[1:], size[:-1])
    out: Float64Array = np.maximum(excess / scale, growth)
    return out


def _rolling_median(values: Float64Array, half: int = 4) -> Float64Array:
    padded = np.pad(values, half, mode="edge")
    out: Float64Array = np.median(np.lib.stride_tricks.sliding_window_view(padded, 2 * half + 1), axis=1)
    return out


def runs(mask: BoolArray) -> Iterator[tuple[int, int]]:
    """Yield the first and the last index of each run of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    for first, end in edges.reshape(-1, 2).tolist():
        yield first, end - 1


def predicted(track: Track, frames: IntArray, fps: float, *, before: bool) -> Float64Array:
    """Return the boxes ``(k, 4)`` at moments just before some frames, from the motion before each or after it.

    NaN where the track has no boxes there.

    Args:
        frames: ``(k,)``.
    """
    length, guard = max(3, round(FIT_S * fps)), round(GUARD_S * fps)
    edges = np.searchsorted(track.frames, frames)[:, None]
    rows = edges - guard - length + np.arange(length) if before else edges + guard + np.arange(length)
    inside = (rows >= 0) & (rows < len(track))
    rows = rows.clip(0, len(track) - 1)
    nearest = rows[:, -1 if before else 0]
    known = inside.any(axis=1) & (np.abs(track.frames[nearest] - frames) <= 3 * (guard + length))
    count = np.maximum(inside.sum(axis=1, keepdims=True), 1)
    t = np.where(inside, track.frames[rows] - (frames[:, None] - 0.5), 0.0)
    boxes = np.where(inside[..., None], track.xyxy[rows].astype(np.float64), 0.0)
    mean = t.sum(axis=1, keepdims=True) / count
    around = np.where(inside, t - mean, 0.0)
    # Shrunk towards standing still: a velocity from a few frames is mostly noise.
    spread = ((around**2).sum(axis=1, keepdims=True) + (0.1 * fps) ** 2) / count
    velocity = (around[:, None] @ boxes)[:, 0] / count / spread
    out: Float64Array = np.where(known[:, None], boxes.sum(axis=1) / count - velocity * mean, np.nan)
    return out


def apart(a: Float64Array, b: Float64Array) -> Float64Array:
    """Return how far boxes ``(..., 4)`` are apart, in box sizes; another size counts, too."""
    sides = a[..., 2:] - a[..., :2], b[..., 2:] - b[..., :2]
    size_a, size_b = (np.maximum(np.sqrt(np.maximum(side, 0.0).prod(axis=-1)), 1.0) for side in sides)
    between = a[..., :2] + a[..., 2:] - b[..., :2] - b[..., 2:]
    distance = np.hypot(between[..., 0], between[..., 1]) / 2 / np.sqrt(size_a * size_b)
    growth = np.abs(np.log(np.maximum(sides[0], 1.0) / np.maximum(sides[1], 1.0))).mean(axis=-1)
    return np.asarray(distance + 0.5 * growth, np.float64)
