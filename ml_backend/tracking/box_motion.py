"""Motion of boxes, in box sizes."""

from __future__ import annotations

import math
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


def predicted(track: Track, frame: int, fps: float, *, before: bool) -> Float64Array | None:
    """Return the box ``(4,)`` at a moment just before ``frame``, from the motion before it or after it.

    ``None`` if the track has no boxes there.
    """
    length, guard = max(3, round(FIT_S * fps)), round(GUARD_S * fps)
    edge = int(np.searchsorted(track.frames, frame))
    rows = (
        slice(max(0, edge - guard - length), max(0, edge - guard))
        if before
        else slice(edge + guard, edge + guard + length)
    )
    frames = track.frames[rows]
    if not len(frames):
        return None
    if abs(int(frames[-1 if before else 0]) - frame) > 3 * (guard + length):
        return None
    t = frames - (frame - 0.5)
    boxes = track.xyxy[rows].astype(np.float64)
    mean = float(t.sum()) / len(t)
    around = t - mean
    # Shrunk towards standing still: a velocity from a few frames is mostly noise.
    spread = (float(around @ around) + (0.1 * fps) ** 2) / len(t)
    velocity = (around @ boxes) / len(t) / spread
    out: Float64Array = boxes.sum(axis=0) / len(t) - velocity * mean
    return out


def apart(a: Float64Array, b: Float64Array) -> float:
    """Return how far two boxes ``(4,)`` are apart, in box sizes; another size counts, too."""
    # Plain numbers: this is asked for hundreds of thousands of single pairs.
    ax1, ay1, ax2, ay2 = a.tolist()
    bx1, by1, bx2, by2 = b.tolist()
    sides = ((ax2 - ax1, bx2 - bx1), (ay2 - ay1, by2 - by1))
    size_a, size_b = (max(math.sqrt(max(w, 0.0) * max(h, 0.0)), 1.0) for w, h in zip(*sides, strict=True))
    distance = math.hypot(ax1 + ax2 - bx1 - bx2, ay1 + ay2 - by1 - by2) / 2 / math.sqrt(size_a * size_b)
    return distance + 0.5 * sum(abs(math.log(max(one, 1.0) / max(two, 1.0))) for one, two in sides) / 2
