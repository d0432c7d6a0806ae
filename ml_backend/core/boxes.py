"""Axis-aligned boxes: IoU, clipping, and conversion between pixels and Label Studio's percent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt

from ml_backend.core.types import Float64Array, IntArray

Array = TypeVar("Array", bound=npt.NDArray[Any])


def _as_boxes(value: npt.ArrayLike, name: str) -> Float64Array:
    array = np.asarray(value, dtype=np.float64)
    if array.ndim != 2 or array.shape[1] != 4:
        raise ValueError(f"expected {name} of shape (n, 4), got {array.shape}")
    return array


def intersection(a: Array, b: Array) -> Array:
    """Compute the area that two ``(..., 4)`` arrays of boxes, which broadcast against each other, have in common."""
    # Column by column: loops over the two values of a corner would take twice the time.
    width = np.minimum(a[..., 2], b[..., 2]) - np.maximum(a[..., 0], b[..., 0])
    height = np.minimum(a[..., 3], b[..., 3]) - np.maximum(a[..., 1], b[..., 1])
    area: Any = np.maximum(width, 0.0) * np.maximum(height, 0.0)
    return cast(Array, area)


def box_area(boxes: Array) -> Array:
    """Compute the areas ``(...)`` of ``(..., 4)`` boxes; 0 where right < left or bottom < top."""
    area: Any = np.maximum(boxes[..., 2] - boxes[..., 0], 0.0) * np.maximum(boxes[..., 3] - boxes[..., 1], 0.0)
    return cast(Array, area)


def share_inside(xyxy: Float64Array, size: Float64Array) -> float:
    """Return the share of a box's area that is inside the image; 0 for a box without area.

    Args:
        xyxy: ``(4,)``.
        size: ``(4,)`` width, height, width, height of the image.
    """
    area = float(box_area(xyxy))
    return float(box_area(np.clip(xyxy, 0, size))) / area if area > 0 else 0.0


def iou_broadcast(a: Float64Array, b: Float64Array) -> Float64Array:
    """Compute the IoU of two ``(..., 4)`` arrays of boxes that broadcast against each other."""
    inter = intersection(a, b)
    union = box_area(a) + box_area(b) - inter
    if union.size and float(union.min()) > 0:  # the usual case, at half the cost
        return np.asarray(np.minimum(inter / union, 1.0), np.float64)
    # Boxes without area would give 0/0: count equal ones as 1, others as 0.
    same = (a == b).all(axis=-1)
    iou: Float64Array = np.where(union > 0, inter / np.where(union > 0, union, 1.0), same.astype(np.float64))
    return np.minimum(iou, 1.0, out=iou)


def iou_pairs(a: npt.ArrayLike, b: npt.ArrayLike) -> Float64Array:
    """Compute the IoU of corresponding boxes.

    Args:
        a, b: ``(n, 4)`` left, top, right, bottom in the same unit. Boxes with right < left or bottom < top have no
            area.

    Returns:
        ``(n,)`` in 0..1. Two boxes without area count as 1 if they are equal, else 0.

    Raises:
        ValueError: the shapes differ or are not ``(n, 4)``.
    """
    first, second = _as_boxes(a, "a"), _as_boxes(b, "b")
    if first.shape != second.shape:
        raise ValueError(f"expected a and b of the same shape, got {first.shape} and {second.shape}")
    return iou_broadcast(first, second)


def iou_matrix(a: npt.ArrayLike, b: npt.ArrayLike) -> Float64Array:
    """Compute the ``(n, m)`` IoU of every box in ``a`` ``(n, 4)`` with every box in ``b`` ``(m, 4)``."""
    return iou_broadcast(_as_boxes(a, "a")[:, None, :], _as_boxes(b, "b")[None, :, :])


def boxes_by_frame(
    frames: Sequence[IntArray], xyxy: Sequence[npt.NDArray[np.floating]]
) -> dict[int, tuple[IntArray, Float64Array]]:
    """Return which tracks have a box on each frame, and these boxes.

    Args:
        frames: of each track, ``(n,)`` without repetitions.
        xyxy: ``(n, 4)`` likewise.

    Returns:
        By frame, in order, the indices ``(k,)`` of the tracks, ascending, and their boxes ``(k, 4)``.
    """
    if not len(frames):
        return {}
    every = np.concatenate(frames)
    tracks = np.repeat(np.arange(len(frames)), [len(own) for own in frames])
    boxes = np.concatenate(xyxy).astype(np.float64)
    order = np.argsort(every, kind="stable")
    found, starts = np.unique(every[order], return_index=True)
    parts = np.split(order, starts[1:])
    return {frame: (tracks[rows], boxes[rows]) for frame, rows in zip(found.tolist(), parts, strict=True)}


def scaled_size(width: int, height: int, scale: float) -> tuple[int, int]:
    """Scale an image size and round it to whole pixels, at least 1 x 1."""
    return max(1, round(width * scale)), max(1, round(height * scale))


def clip_xyxy(xyxy: npt.ArrayLike, width: float, height: float) -> Float64Array:
    """Clip boxes ``(n, 4)`` to an image of ``width`` x ``height``, in the same unit."""
    boxes = _as_boxes(xyxy, "xyxy")
    limit = np.array([width, height, width, height], dtype=np.float64)
    out: Float64Array = np.clip(boxes, 0.0, limit)
    return out


def xyxy_to_percent(xyxy: npt.ArrayLike, width: float, height: float) -> Float64Array:
    """Convert ``(n, 4)`` pixel corners to Label Studio's x, y, width, height in percent of the image.

    Raises:
        ValueError: the image has no area.
    """
    boxes = _as_boxes(xyxy, "xyxy")
    if not (width > 0 and height > 0):
        raise ValueError(f"expected an image with an area, got {width} x {height}")
    scale = 100.0 / np.array([width, height], dtype=np.float64)
    out: Float64Array = np.concatenate([boxes[:, :2] * scale, (boxes[:, 2:] - boxes[:, :2]) * scale], axis=1)
    return out


def percent_to_xyxy(percent: npt.ArrayLike, width: float, height: float) -> Float64Array:
    """Convert Label Studio's x, y, width, height in percent to pixel corners; inverse of :func:`xyxy_to_percent`."""
    boxes = _as_boxes(percent, "percent")
    scale = np.array([width, height], dtype=np.float64) / 100.0
    top_left = boxes[:, :2] * scale
    out: Float64Array = np.concatenate([top_left, top_left + boxes[:, 2:] * scale], axis=1)
    return out
