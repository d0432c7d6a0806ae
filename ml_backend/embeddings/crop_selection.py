"""Select the boxes of a track to embed. Uses no pixels.

Two steps, because sharpness is only known after decoding: :func:`candidate_crops` chooses up to three times as many
boxes as needed, and :func:`select_crops` the final ones by their sharpness.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ml_backend.core.types import BoolArray, Float64Array, FloatArray, IntArray

CROPS_PER_TRACK = 4  # embedded to label a track: more take longer and change few labels
CANDIDATES = 3  # candidates per selected crop: more choice for sharpness, but more frames to decode
INPUT_PX = 224.0  # input size of embedders; larger boxes have no more detail for them
MIN_RELATIVE_QUALITY = 0.3  # crops below this share of the best one's quality are dropped if enough others remain
EDGE_SHARE = 0.0025  # boxes this close to the frame's edge count as cut off: 5 of 1920 pixels
MIN_SIDE_PX = 1.0  # smaller boxes have no crop
MAX_RELATIVE_SHARPNESS = 1.5  # cap, in multiples of the track's median; above, it is the background's texture


@dataclass(frozen=True, slots=True)
class CropBox:
    """A box to crop. Equal boxes show equal pixels, so that they can be cache keys.

    Attributes:
        frame: 0-based index of the decoded frame.
        xyxy: left, top, right, bottom in pixels, within the frame, rounded to 0.1.
        conf: detector confidence; 0 for interpolated boxes.
    """

    frame: int
    xyxy: tuple[float, float, float, float]
    conf: float


def candidate_crops(
    frames: IntArray, xyxy: FloatArray, conf: FloatArray, width: int, height: int, k: int
) -> list[CropBox]:
    """Choose candidate boxes of a track: large, confident, complete, and spread over time.

    Boxes outside the frame or without area are never chosen; interpolated boxes (``conf`` 0) only if a track has no
    others; boxes cut off by the frame's edge only if it has fewer than ``k`` complete ones.

    Args:
        frames: ``(n,)`` strictly increasing 0-based indices.
        xyxy: ``(n, 4)`` pixels.
        conf: ``(n,)``.
        width, height: of the displayed video, pixels.
        k: number of crops to select in the end.

    Returns:
        At most ``3 k`` boxes in order of time; at least ``k`` if the track has that many usable ones.

    Raises:
        ValueError: shapes do not match.
    """
    n = len(frames)
    if frames.shape != (n,) or xyxy.shape != (n, 4) or conf.shape != (n,):
        raise ValueError(f"expected shapes (n,), (n, 4), (n,), got {frames.shape}, {xyxy.shape}, {conf.shape}")
    boxes = np.asarray(xyxy, np.float64)
    inside = boxes.clip(0, [width, height, width, height])
    sides = inside[:, 2:] - inside[:, :2]
    usable = (sides >= MIN_SIDE_PX).all(axis=1)
    detected = usable & (conf > 0)
    if detected.any():
        usable = detected
    if not usable.any():
        return []
    cut_off = _cut_off(boxes, width, height)
    whole, cut = np.flatnonzero(usable & ~cut_off), np.flatnonzero(usable & cut_off)
    quality = _quality(sides, np.where(usable, conf, 0).astype(np.float64))
    if len(whole) == 0 or len(whole) >= k:
        chosen = _best_per_section(whole if len(whole) else cut, quality, CANDIDATES * k)
        chosen = _drop_poor(chosen, quality, k)
    else:  # no more cut-off boxes than needed, so that they cannot replace complete ones later
        chosen = np.sort(np.concatenate([whole, _best_per_section(cut, quality, k - len(whole))]))
    return [_crop_box(int(frames[i]), inside[i], float(conf[i])) for i in chosen]


def spread_crops(frames: IntArray, xyxy: Float64Array, count: int) -> list[CropBox]:
    """Return ``count`` boxes (or all, if fewer) evenly spread over ``(n,)`` frames, whatever their quality."""
    usable = np.flatnonzero((xyxy[:, 2:] - xyxy[:, :2] >= MIN_SIDE_PX).all(axis=1))
    chosen = usable[np.unique(np.linspace(0, len(usable) - 1, min(count, len(usable))).round().astype(np.int64))]
    return [_crop_box(int(frames[i]), xyxy[i], 1.0) for i in chosen]


def select_crops(candidates: Sequence[CropBox], sharpness: Sequence[float], k: int) -> list[int]:
    """Split the candidates into ``k`` consecutive sections and select the best of each.

    Args:
        candidates: in order of time, from :func:`candidate_crops`.
        sharpness: of each candidate's crop, on any scale: only the ratio to the track's median counts, as dark or plain
            objects are never sharp. Non-finite values count as the median.
        k: number of crops to select.

    Returns:
        ``min(k, len(candidates))`` indices into ``candidates``, in order of time.

    Raises:
        ValueError: the lengths differ.
    """
    if len(candidates) != len(sharpness):
        raise ValueError(f"expected {len(candidates)} values of sharpness, got {len(sharpness)}")
    if not candidates:
        return []
    xyxy = np.array([box.xyxy for box in candidates], np.float64)
    quality = _quality(xyxy[:, 2:] - xyxy[:, :2], np.array([box.conf for box in candidates], np.float64))
    order = np.argsort([box.frame for box in candidates], kind="stable").astype(np.int64)
    return [int(i) for i in _best_per_section(order, quality * _relative_sharpness(sharpness), k)]


def _cut_off(boxes: Float64Array, width: int, height: int) -> BoolArray:
    size = np.array([width, height], np.float64)
    margin = np.maximum(1.0, EDGE_SHARE * size)
    return np.asarray(((boxes[:, :2] < margin) | (boxes[:, 2:] > size - margin)).any(axis=1), np.bool_)


def _quality(sides: Float64Array, conf: Float64Array) -> Float64Array:
    """Return 0..1: confidence times relative size up to the embedder's input; size alone without detections."""
    size = np.minimum(np.sqrt(sides.clip(0).prod(axis=1)) / INPUT_PX, 1.0)
    return np.asarray(size * conf.clip(0, 1) if (conf > 0).any() else size, np.float64)


def _best_per_section(order: IntArray, quality: Float64Array, sections: int) -> IntArray:
    """Split ``order`` into sections of equal length and return the best of each, or all if there are fewer.

    Sections have equally many boxes, not frames, as a hidden object has no boxes.
    """
    if len(order) == 0:
        return order
    chosen = []
    for section in np.array_split(order, min(sections, len(order))):
        # Of equals the middle one, to keep a distance from the neighbouring sections' choices.
        from_middle = np.abs(np.arange(len(section)) - (len(section) - 1) / 2)
        chosen.append(section[np.lexsort((from_middle, -quality[section]))[0]])
    return np.array(chosen, np.int64)


def _drop_poor(chosen: IntArray, quality: Float64Array, k: int) -> IntArray:
    """Drop crops of far lower quality than the best, but keep ``k``."""
    values = quality[chosen]
    keep = values >= MIN_RELATIVE_QUALITY * values.max()
    if np.count_nonzero(keep) < k:
        keep[np.argsort(-values, kind="stable")[:k]] = True
    return np.asarray(chosen[keep], np.int64)


def _relative_sharpness(sharpness: Sequence[float]) -> Float64Array:
    values = np.array(sharpness, np.float64)
    finite = np.isfinite(values)
    median = float(np.median(values[finite])) if finite.any() else 0.0
    if median <= 0:
        return np.ones(len(values))
    return np.asarray(np.where(finite, values / median, 1.0).clip(0, MAX_RELATIVE_SHARPNESS), np.float64)


def _crop_box(frame: int, xyxy: Float64Array, conf: float) -> CropBox:
    left, top, right, bottom = (round(float(value), 1) for value in xyxy)
    return CropBox(frame, (left, top, right, bottom), conf)
