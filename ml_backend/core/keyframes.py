"""Simplify a track to few keyframes whose linear interpolation stays within an IoU bound.

Two steps. A greedy pass keeps some of the track's own boxes: from each keyframe the longest line within the bound leads
to the next. Then keyframes are removed where the neighbours' boxes can be refitted so that the bound still holds; this
saves a fifth, and the boxes fit better. An optimal first pass (a shortest path) is slower and ends with no fewer.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ml_backend.core.boxes import iou_broadcast, iou_pairs
from ml_backend.core.types import Float64Array, IntArray

#: Maximum steps of the reweighted least squares that fits boxes within the bound.
_FIT_STEPS = 12

#: A fit is abandoned if the worst frame's error after a step exceeds this multiple of the allowed one. On a street
#: scene, fits that succeeded were at most 1.4, 1.2, 1.1 and then 1.05 times above it before. Most fits never succeed.
_MAX_EXCESS = (2.0, 1.5, 1.25, 1.25, 1.1)

#: With more keyframes than this, one removal sweep is enough: further ones find little.
_ONE_SWEEP = 500

#: Positions between two neighbours at which one keyframe is tried in place of two, the middle first.
_MERGE_POSITIONS = (0.5, 0.35, 0.65, 0.25, 0.75)

#: Extra IoU that covers rounding: the fit sums in another order than interpolate() does.
_FIT_MARGIN = 1e-9


class _TrackBoxes(NamedTuple):
    """Boxes ``(n, 4)`` on ``frames (n,)``, and the IoU bound."""

    frames: IntArray
    boxes: Float64Array
    min_iou: float


def _line_within_bound(track: _TrackBoxes, start: int, end: int) -> bool:
    """Return whether the line between the boxes at two positions keeps the bound on every frame between."""
    ratio = (track.frames[start + 1 : end] - track.frames[start]) / (track.frames[end] - track.frames[start])
    line = track.boxes[start] + (track.boxes[end] - track.boxes[start]) * ratio[:, None]
    return bool(iou_broadcast(line, track.boxes[start + 1 : end]).min() >= track.min_iou)


def _greedy_keyframes(track: _TrackBoxes) -> IntArray:
    """Choose keyframes among the track's own boxes, ``(m,)`` positions: extend each line by exponential search."""
    keyframes, last = [0], len(track.frames) - 1
    while keyframes[-1] < last:
        start = keyframes[-1]
        good, step = start + 1, 2
        while start + step <= last and _line_within_bound(track, start, start + step):
            good, step = start + step, step * 2
        bad = min(start + step, last + 1)
        while bad - good > 1:
            middle = (good + bad) // 2
            good, bad = (middle, bad) if _line_within_bound(track, start, middle) else (good, middle)
        keyframes.append(good)
    return np.array(keyframes, dtype=np.int64)


def _weights(keys: IntArray, frames: IntArray) -> Float64Array:
    """Return the ``(..., f, m)`` weight of each of ``(..., m)`` keyframes on each of ``(f,)`` frames between them."""
    after = np.clip((frames[:, None] - keys[..., None, :-1]) / np.diff(keys)[..., None, :], 0.0, 1.0)
    return np.asarray(-np.diff(after, prepend=1.0, append=0.0), np.float64)


def _first_fit(basis: Float64Array, rest: Float64Array, target: Float64Array, min_iou: float) -> _Fit | None:
    """Fit the boxes of several choices of keyframes; return the first that keeps the bound, and its boxes.

    Iteratively reweighted least squares, with more weight on the frames that overlap least. A batch takes hardly longer
    than one.

    Args:
        basis: ``(o, f, k)`` weight of each fitted keyframe on each frame.
        rest: ``(o, f, 4)`` what other keyframes contribute.
        target: ``(f, 4)`` the track's boxes.
    """
    low, high = target.min(axis=0), target.max(axis=0)  # boxes stay where the track is, e.g. inside the image
    candidates = np.arange(len(basis))
    weights = np.ones(basis.shape[:2])
    ridge = 1e-9 * np.eye(basis.shape[2])
    fitted: _Fit | None = None
    for step in range(_FIT_STEPS):
        weighted = (basis * weights[..., None]).transpose(0, 2, 1)
        solution = np.linalg.solve(weighted @ basis + ridge, weighted @ (target - rest))
        np.clip(solution, low, high, out=solution)
        iou = iou_broadcast(rest + basis @ solution, target)
        worst = iou.min(axis=1)
        active = 1.0 - worst <= _MAX_EXCESS[min(step, len(_MAX_EXCESS) - 1)] * (1.0 - min_iou)
        good = np.flatnonzero(worst >= min_iou)
        if len(good):
            fitted = int(candidates[good[0]]), solution[good[0]]
            active[good[0] :] = False
        if not active.any():
            break
        if not active.all():
            candidates, basis, rest = candidates[active], basis[active], rest[active]
            iou, weights = iou[active], weights[active]
        weights *= np.maximum((1.0 - iou) / (1.0 - min_iou), 0.05) ** 1.5
        weights /= weights.mean(axis=1, keepdims=True)
    return fitted


_Keyframes = tuple[IntArray, Float64Array]
_Fit = tuple[int, Float64Array]


def _merge_two(track: _TrackBoxes, keys: IntArray, boxes: Float64Array, index: int) -> _Keyframes | None:
    """Replace two keyframes by one and refit it and its neighbours; ``None`` if the bound cannot be kept.

    Args:
        index: of the first of the two. At the position of the second, it is simply removed.
    """
    positions = [int(keys[index + 1])]
    if index < len(keys) - 2:
        before, after = int(keys[index - 1]), int(keys[index + 2])
        tried = (before + round((after - before) * share) for share in _MERGE_POSITIONS)
        positions += [position for position in tried if before < position < after and position != positions[0]]
    options = np.repeat(np.delete(keys, index)[None], len(positions), axis=0)
    options[:, index] = positions
    others = np.delete(boxes, index, axis=0)
    first, last = index - 1, min(index + 2, len(others))  # of the fitted boxes
    begin, end = max(first - 1, 0), min(last, len(others) - 1)  # of those that matter
    frames = np.arange(keys[begin], options[0, end] + 1)
    weights = _weights(track.frames[options[:, begin : end + 1]], track.frames[frames])
    fitted = slice(first - begin, last - begin)
    basis = weights[..., fitted].copy()
    weights[..., fitted] = 0.0
    found = _first_fit(basis, weights @ others[begin : end + 1], track.boxes[frames], track.min_iou)
    if found is None:
        return None
    others[first:last] = found[1]
    return options[found[0]], others


def _remove_keyframes(track: _TrackBoxes, keys: IntArray, boxes: Float64Array) -> _Keyframes:
    """Remove or merge keyframes as long as refitting their neighbours keeps the bound."""
    count = len(keys) + 1
    failed: set[bytes] = set()  # neighbourhoods in which no keyframe could be removed
    while len(keys) < count:
        count, index = len(keys), 1
        while index < len(keys) - 1:
            near = slice(max(0, index - 2), index + 4)
            neighbourhood = bytes([index - near.start]) + keys[near].tobytes() + boxes[near].tobytes()
            if neighbourhood in failed:
                index += 1
                continue
            fitted = _merge_two(track, keys, boxes, index)
            if fitted is None:
                failed.add(neighbourhood)
                index += 1
            else:
                keys, boxes = fitted
        if count > _ONE_SWEEP:
            break
    return keys, boxes


def _maximize_iou(track: _TrackBoxes, keys: IntArray, boxes: Float64Array) -> Float64Array:
    """Move each keyframe's box to increase the mean IoU around it, within the bound."""
    out = boxes.copy()
    for index in [*range(len(keys)), *range(len(keys) - 1, -1, -1)]:
        near = slice(max(index - 1, 0), index + 2)
        frames = np.arange(keys[near][0], keys[near][-1] + 1)
        weights, target = _weights(track.frames[keys[near]], track.frames[frames]), track.boxes[frames]
        basis = weights[:, [index - near.start]]
        current = weights @ out[near]
        rest = current - basis * out[index]
        best = float(iou_pairs(current, target).mean())
        move = (basis * (target - current)).sum(axis=0) / (basis * basis).sum()
        for share in (1.0, 0.5, 0.25):
            box = np.clip(out[index] + share * move, target.min(axis=0), target.max(axis=0))
            iou = iou_pairs(rest + basis * box, target)
            if iou.min() >= track.min_iou and iou.mean() > best:
                out[index] = box
                break
    return out


def interpolate(key_frames: npt.ArrayLike, key_xyxy: npt.ArrayLike, frames: npt.ArrayLike) -> Float64Array:
    """Interpolate boxes linearly between keyframes; before the first and after the last they stay constant.

    Args:
        key_frames: ``(m,)`` ascending, m > 0; of equal ones the first ends a line and the last begins one.
        key_xyxy: ``(m, 4)`` their boxes.
        frames: ``(n,)`` where to interpolate.

    Returns:
        ``(n, 4)`` float64.

    Raises:
        ValueError: there are no keyframes, or the number of boxes differs.
    """
    keys = np.asarray(key_frames, dtype=np.int64)
    boxes = np.asarray(key_xyxy, dtype=np.float64)
    targets = np.asarray(frames, dtype=np.int64)
    if not len(keys) or boxes.shape != (len(keys), 4):
        raise ValueError(f"expected key_xyxy of shape (m, 4) for m > 0 keyframes, got {boxes.shape} for {len(keys)}")
    if len(keys) == 1:
        return np.repeat(boxes, len(targets), axis=0)
    after = np.clip(np.searchsorted(keys, targets, side="right"), 1, len(keys) - 1)
    start, end = boxes[after - 1], boxes[after]
    ratio = (targets - keys[after - 1]) / np.maximum(keys[after] - keys[after - 1], 1)
    between = start + (end - start) * np.maximum(ratio, 0.0)[:, None]
    out: Float64Array = np.where((ratio < 1.0)[:, None], between, end)  # on a keyframe exactly its box
    return out


def simplify(
    frames: npt.ArrayLike, xyxy: npt.ArrayLike, min_iou: float = 0.9, *, own_boxes: bool = False
) -> tuple[IntArray, Float64Array]:
    """Choose few keyframes whose linear interpolation has IoU >= ``min_iou`` with the given box on every frame.

    The bound is checked on every frame with :func:`interpolate` and holds for any input, including boxes without area
    (which only equal themselves).

    Args:
        frames: ``(n,)`` strictly increasing, without occlusions: gaps between frames are interpolated too.
        xyxy: ``(n, 4)`` boxes in any unit.
        min_iou: the bound, in 0..1.
        own_boxes: use only boxes of the track itself as keyframes, which are never fewer.

    Returns:
        ``(key_frames (m,) int64, key_xyxy (m, 4) float64)``: a subset of ``frames`` with the first and the last.

    Raises:
        ValueError: shapes do not match, frames are out of order, values are not finite, or the bound is not in 0..1.
    """
    track_frames = np.asarray(frames, dtype=np.int64)
    boxes = np.asarray(xyxy, dtype=np.float64)
    if track_frames.ndim != 1 or boxes.shape != (len(track_frames), 4):
        raise ValueError(f"expected frames (n,) and xyxy (n, 4), got {track_frames.shape} and {boxes.shape}")
    if bool((np.diff(track_frames) <= 0).any()):
        raise ValueError("expected strictly increasing frames")
    if not np.isfinite(boxes).all():
        raise ValueError("expected finite boxes")
    if not 0.0 <= min_iou <= 1.0:
        raise ValueError(f"expected min_iou in 0..1, got {min_iou}")
    if len(track_frames) <= 2:
        return track_frames, boxes
    track = _TrackBoxes(track_frames, boxes, float(min_iou))
    keys = _greedy_keyframes(track)
    key_boxes = boxes[keys]
    if not own_boxes and min_iou + _FIT_MARGIN < 1.0:
        strict = track._replace(min_iou=min_iou + _FIT_MARGIN)
        fewer, fitted = _remove_keyframes(strict, keys, key_boxes)
        fitted = _maximize_iou(strict, fewer, fitted)
        if (iou_pairs(interpolate(track_frames[fewer], fitted, track_frames), boxes) >= min_iou).all():
            keys, key_boxes = fewer, fitted
    return track_frames[keys], key_boxes
