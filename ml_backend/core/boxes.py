"""Axis-aligned boxes: overlap, clipping, and pixels to Label Studio's percent. Pure functions."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]
Float64Array = npt.NDArray[np.float64]


def _boxes(value: npt.ArrayLike, name: str) -> Float64Array:
    array = np.asarray(value, dtype=np.float64)
    if array.ndim != 2 or array.shape[1] != 4:
        raise ValueError(f"expected {name} of shape (n, 4), got {array.shape}")
    return array


def iou_broadcast(a: Float64Array, b: Float64Array) -> Float64Array:
    """IoU over the last axis of two arrays of boxes that broadcast against each other."""
    overlap = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    np.maximum(overlap, 0.0, out=overlap)
    inter = overlap[..., 0] * overlap[..., 1]
    size_a = np.maximum(a[..., 2:] - a[..., :2], 0.0)
    size_b = np.maximum(b[..., 2:] - b[..., :2], 0.0)
    union = size_a[..., 0] * size_a[..., 1] + size_b[..., 0] * size_b[..., 1] - inter
    if union.size and float(union.min()) > 0:  # nearly always, and half as much work
        found: Float64Array = inter / union
        return np.minimum(found, 1.0, out=found)
    # Without an area the ratio is 0/0: a box equals itself, and overlaps nothing else.
    same = (a == b).all(axis=-1)
    out: Float64Array = np.where(union > 0, inter / np.where(union > 0, union, 1.0), same.astype(np.float64))
    return np.minimum(out, 1.0, out=out)


def iou_pairs(a: npt.ArrayLike, b: npt.ArrayLike) -> Float64Array:
    """IoU of each box with its counterpart.

    Args:
        a, b: ``(n, 4)`` corners left, top, right, bottom in any one unit. Boxes with right < left or bottom < top
            have no area.

    Returns:
        ``(n,)`` in 0..1. Two boxes without area count as 1 when they are equal, else 0.

    Raises:
        ValueError: the shapes differ or are not ``(n, 4)``.
    """
    first, second = _boxes(a, "a"), _boxes(b, "b")
    if first.shape != second.shape:
        raise ValueError(f"expected a and b of one shape, got {first.shape} and {second.shape}")
    return iou_broadcast(first, second)


def iou_matrix(a: npt.ArrayLike, b: npt.ArrayLike) -> Float64Array:
    """IoU of every box in ``a`` ``(n, 4)`` with every box in ``b`` ``(m, 4)``: ``(n, m)``; see :func:`iou_pairs`."""
    return iou_broadcast(_boxes(a, "a")[:, None, :], _boxes(b, "b")[None, :, :])


def scaled_size(width: int, height: int, scale: float) -> tuple[int, int]:
    """(width, height) of a picture that is ``scale`` times as large, in whole pixels, at least one."""
    return max(1, round(width * scale)), max(1, round(height * scale))


def clip_xyxy(xyxy: npt.ArrayLike, width: float, height: float) -> Float64Array:
    """Cut boxes ``(n, 4)`` off at the edges of a picture of ``width`` x ``height``, in the same unit."""
    boxes = _boxes(xyxy, "xyxy")
    limit = np.array([width, height, width, height], dtype=np.float64)
    out: Float64Array = np.clip(boxes, 0.0, limit)
    return out


def xyxy_to_percent(xyxy: npt.ArrayLike, width: float, height: float) -> Float64Array:
    """Pixel corners to Label Studio's x, y, width, height in percent of the picture; ``(n, 4)`` to ``(n, 4)``.

    Raises:
        ValueError: the picture has no area.
    """
    boxes = _boxes(xyxy, "xyxy")
    if not (width > 0 and height > 0):
        raise ValueError(f"expected a picture with an area, got {width} x {height}")
    scale = 100.0 / np.array([width, height], dtype=np.float64)
    out: Float64Array = np.concatenate([boxes[:, :2] * scale, (boxes[:, 2:] - boxes[:, :2]) * scale], axis=1)
    return out


def percent_to_xyxy(percent: npt.ArrayLike, width: float, height: float) -> Float64Array:
    """Label Studio's x, y, width, height in percent to pixel corners: the inverse of :func:`xyxy_to_percent`."""
    boxes = _boxes(percent, "percent")
    scale = np.array([width, height], dtype=np.float64) / 100.0
    top_left = boxes[:, :2] * scale
    out: Float64Array = np.concatenate([top_left, top_left + boxes[:, 2:] * scale], axis=1)
    return out
