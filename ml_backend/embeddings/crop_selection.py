"""Which boxes of a track are looked at to tell what it shows. Pure: no pixels here.

Two steps, because only the decoded picture tells how sharp a box is: :func:`candidate_crops` chooses two or three
times as many boxes as are wanted, :func:`select_crops` the final ones among them once their sharpness is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ml_backend.core.types import BoolArray, FloatArray, IntArray

Floats = npt.NDArray[np.float64]

VIEWS = 4  # boxes of a track that are looked at to give it a label: more take longer and change few labels
CANDIDATES = 3  # times as many as are wanted: a choice for sharpness, at the price of decoding them
ENOUGH_PX = 224.0  # what embedders look at; a larger box shows them nothing more
POOR = 0.3  # a view of less than this share of the best one's quality is left out while there are enough others
EDGE_SHARE = 0.0025  # a box that ends so near to the frame's edge goes on behind it: 5 of 1920 pixels
MIN_SIDE_PX = 1.0  # of what can be cut out
SHARP_ENOUGH = 1.5  # times the track's median; beyond, it is the background's texture


@dataclass(frozen=True, slots=True)
class CropBox:
    """One box to look at. Equal views show equal pixels, so that a view can be a key in a cache.

    Attributes:
        frame: 0-based decoded index.
        xyxy: left, top, right, bottom in pixels, within the frame, rounded to 0.1.
        conf: detector confidence; 0 where the box was filled in between detections.
    """

    frame: int
    xyxy: tuple[float, float, float, float]
    conf: float


def candidate_crops(
    frames: IntArray, xyxy: FloatArray, conf: FloatArray, width: int, height: int, k: int
) -> list[CropBox]:
    """The boxes worth looking at: large, confident, complete, and spread over the track's life.

    Boxes outside the frame or without area are never taken; boxes that were filled in (``conf`` 0) only in a track
    that has no others; boxes cut off by the frame's edge only in a track with fewer than ``k`` complete ones.

    Args:
        frames: ``(n,)`` strictly increasing 0-based indices.
        xyxy: ``(n, 4)`` pixels.
        conf: ``(n,)``.
        width, height: of the displayed video, pixels.
        k: number of views that are wanted in the end.

    Returns:
        In order of time, at most ``3 k``; at least ``k`` where the track has so many boxes that may be taken.

    Raises:
        ValueError: shapes that do not fit.
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
        chosen = _best_of_each(whole if len(whole) else cut, quality, CANDIDATES * k)
        chosen = _without_poor(chosen, quality, k)
    else:  # as few of those cut off as can be, so that no complete one can lose against them later
        chosen = np.sort(np.concatenate([whole, _best_of_each(cut, quality, k - len(whole))]))
    return [_view(int(frames[i]), inside[i], float(conf[i])) for i in chosen]


def select_crops(candidates: Sequence[CropBox], sharpness: Sequence[float], k: int) -> list[int]:
    """The final choice: the candidates' time is split into ``k`` parts, and the best of each is taken.

    Args:
        candidates: in order of time, as :func:`candidate_crops` gives them.
        sharpness: of each candidate's pixels, on any scale; only its ratio to the track's own median counts, since a
            dark or plain object is never sharp. What is not finite counts as the median.
        k: number of views wanted.

    Returns:
        ``min(k, len(candidates))`` indices into ``candidates``, in order of time.

    Raises:
        ValueError: lengths that differ.
    """
    if len(candidates) != len(sharpness):
        raise ValueError(f"expected {len(candidates)} values of sharpness, got {len(sharpness)}")
    if not candidates:
        return []
    boxes = np.array([view.xyxy for view in candidates], np.float64)
    quality = _quality(boxes[:, 2:] - boxes[:, :2], np.array([view.conf for view in candidates], np.float64))
    order = np.argsort([view.frame for view in candidates], kind="stable").astype(np.int64)
    return [int(i) for i in _best_of_each(order, quality * _relative_sharpness(sharpness), k)]


def _cut_off(boxes: Floats, width: int, height: int) -> BoolArray:
    size = np.array([width, height], np.float64)
    margin = np.maximum(1.0, EDGE_SHARE * size)
    return np.asarray(((boxes[:, :2] < margin) | (boxes[:, 2:] > size - margin)).any(axis=1), np.bool_)


def _quality(sides: Floats, conf: Floats) -> Floats:
    """0..1: confidence, less where an embedder would see few pixels. Where nothing was detected, size alone counts."""
    size = np.minimum(np.sqrt(sides.clip(0).prod(axis=1)) / ENOUGH_PX, 1.0)
    return np.asarray(size * conf.clip(0, 1) if (conf > 0).any() else size, np.float64)


def _best_of_each(order: IntArray, quality: Floats, parts: int) -> IntArray:
    """The best of each of ``parts`` equally long parts of ``order``, or all where it is shorter.

    Parts are counted in boxes, not in frames: while an object is hidden there is nothing to choose.
    """
    if len(order) == 0:
        return order
    chosen = []
    for part in np.array_split(order, min(parts, len(order))):
        # Of equals the middle one, which is far from the neighbours' choice.
        from_middle = np.abs(np.arange(len(part)) - (len(part) - 1) / 2)
        chosen.append(part[np.lexsort((from_middle, -quality[part]))[0]])
    return np.array(chosen, np.int64)


def _without_poor(chosen: IntArray, quality: Floats, k: int) -> IntArray:
    """Leave out what is far smaller or less sure than the best, but keep ``k``."""
    values = quality[chosen]
    keep = values >= POOR * values.max()
    if np.count_nonzero(keep) < k:
        keep[np.argsort(-values, kind="stable")[:k]] = True
    return np.asarray(chosen[keep], np.int64)


def _relative_sharpness(sharpness: Sequence[float]) -> Floats:
    values = np.array(sharpness, np.float64)
    finite = np.isfinite(values)
    median = float(np.median(values[finite])) if finite.any() else 0.0
    if median <= 0:
        return np.ones(len(values))
    return np.asarray(np.where(finite, values / median, 1.0).clip(0, SHARP_ENOUGH), np.float64)


def _view(frame: int, xyxy: Floats, conf: float) -> CropBox:
    left, top, right, bottom = (round(float(value), 1) for value in xyxy)
    return CropBox(frame, (left, top, right, bottom), conf)
