"""The fewest keyframes from which linear interpolation gives a track's boxes back, within an IoU bound."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ml_backend.geometry import Float64Array, iou_pairs
from ml_backend.types import IntArray


def interpolate(key_frames: npt.ArrayLike, key_xyxy: npt.ArrayLike, frames: npt.ArrayLike) -> Float64Array:
    """Boxes on ``frames``, linear between keyframes and held before the first and after the last.

    Args:
        key_frames: ``(m,)`` strictly increasing, m > 0.
        key_xyxy: ``(m, 4)`` boxes on them.
        frames: ``(n,)`` where to interpolate.

    Returns:
        ``(n, 4)`` float64.
    """
    keys = np.asarray(key_frames, dtype=np.int64)
    boxes = np.asarray(key_xyxy, dtype=np.float64)
    at = np.asarray(frames, dtype=np.int64)
    if not len(keys) or boxes.shape != (len(keys), 4):
        raise ValueError(f"expected key_xyxy of shape (m, 4) for m > 0 keyframes, got {boxes.shape} for {len(keys)}")
    after = np.clip(np.searchsorted(keys, at, side="right"), 1, max(1, len(keys) - 1))
    if len(keys) == 1:
        return np.repeat(boxes, len(at), axis=0)
    start, end = boxes[after - 1], boxes[after]
    ratio = (at - keys[after - 1]) / (keys[after] - keys[after - 1])
    out: Float64Array = start + (end - start) * np.clip(ratio, 0.0, 1.0)[:, None]
    return out


def simplify(frames: npt.ArrayLike, xyxy: npt.ArrayLike, min_iou: float = 0.9) -> tuple[IntArray, Float64Array]:
    """Keyframes whose linear interpolation has IoU >= ``min_iou`` with the given box on every frame.

    Args:
        frames: ``(n,)`` strictly increasing; the first and the last are always keyframes.
        xyxy: ``(n, 4)`` boxes in any unit.
        min_iou: the bound, in 0..1.

    Returns:
        ``(key_frames (m,) int64, key_xyxy (m, 4) float64)``.
    """
    at = np.asarray(frames, dtype=np.int64)
    boxes = np.asarray(xyxy, dtype=np.float64)
    if boxes.shape != (len(at), 4):
        raise ValueError(f"expected xyxy of shape ({len(at)}, 4), got {boxes.shape}")
    keep = [0] if len(at) else []
    while keep and keep[-1] < len(at) - 1:
        start, best, step = keep[-1], keep[-1] + 1, 1
        while start + step < len(at):
            end = start + step
            between = interpolate(at[[start, end]], boxes[[start, end]], at[start : end + 1])
            if (iou_pairs(between, boxes[start : end + 1])[1:-1] < min_iou).any():
                break
            best, step = end, step + 1
        keep.append(best)
    return at[keep], boxes[keep]
