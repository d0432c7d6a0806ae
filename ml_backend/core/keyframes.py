"""Few keyframes from which linear interpolation gives a track's boxes back, within an IoU bound.

Two steps. First some of the track's own boxes are chosen: from each keyframe the line that reaches furthest within the
bound leads to the next. Then the keyframes' boxes are let go of the track's: where the boxes of the neighbours can be
fitted so that one keyframe less still keeps the bound, it goes. That saves a fifth, and the boxes fit better.
To choose the fewest own boxes (a shortest path) instead of the furthest is slower and leaves no fewer in the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ml_backend.core.boxes import Float64Array, iou_broadcast, iou_pairs
from ml_backend.core.types import IntArray

#: Steps of the reweighted least squares that looks for boxes within the bound.
_FIT_STEPS = 12

#: How far the worst frame may be off after each step, as a share of what it may be, for more steps to be worth it. Of
#: the tracks of a street scene, fits that came within the bound were 1.4, 1.2, 1.1 and then 1.05 at most before. Most
#: fits never do.
_WORTH = (2.0, 1.5, 1.25, 1.25, 1.1)

#: Above so many keyframes one round of taking some away is enough: further ones find little.
_ONE_SWEEP = 500

#: Where, between two keyframes, one that takes the place of both is tried: first in the middle.
_PLACES = (0.5, 0.35, 0.65, 0.25, 0.75)

#: The fit adds up in another order than interpolate() does; so much more overlap covers the last bits.
_FIT_MARGIN = 1e-9


class _TrackBoxes(NamedTuple):
    """Boxes ``(n, 4)`` on frames ``at (n,)``, and the bound."""

    at: IntArray
    boxes: Float64Array
    min_iou: float


def _line_holds(track: _TrackBoxes, start: int, end: int) -> bool:
    """Whether the line between the boxes at two positions keeps the bound on every frame between."""
    inner, ends = slice(start + 1, end), [start, end]
    line = interpolate(track.at[ends], track.boxes[ends], track.at[inner])
    return bool((iou_pairs(line, track.boxes[inner]) >= track.min_iou).all())


def _own_boxes(track: _TrackBoxes) -> IntArray:
    """Positions ``(m,)`` of keyframes among the track's own boxes: long lines, by doubling, then halving, a step."""
    keep, last = [0], len(track.at) - 1
    while keep[-1] < last:
        start = keep[-1]
        good, step = start + 1, 2
        while start + step <= last and _line_holds(track, start, start + step):
            good, step = start + step, step * 2
        bad = min(start + step, last + 1)
        while bad - good > 1:
            middle = (good + bad) // 2
            good, bad = (middle, bad) if _line_holds(track, start, middle) else (good, middle)
        keep.append(good)
    return np.array(keep, dtype=np.int64)


class _Window(NamedTuple):
    """What changes when the boxes of keyframes ``first .. last - 1`` change.

    ``basis`` ``(f, last - first)`` says how far each of them counts on each frame, ``rest`` ``(f, 4)`` what the
    neighbours outside add, ``target`` ``(f, 4)`` the track's boxes there.
    """

    basis: Float64Array
    rest: Float64Array
    target: Float64Array


def _window(track: _TrackBoxes, keys: IntArray, boxes: Float64Array, first: int, last: int) -> _Window:
    begin, end = max(first - 1, 0), min(last, len(keys) - 1)
    near = keys[begin : end + 1]
    frames = np.arange(near[0], near[-1] + 1)
    after = np.clip(np.searchsorted(near, frames, side="right"), 1, max(1, len(near) - 1))
    start, stop = track.at[near[after - 1]], track.at[near[after]]
    ratio = (track.at[frames] - start) / (stop - start)
    hats = np.zeros((len(frames), len(near)))
    rows = np.arange(len(frames))
    hats[rows, after - 1] = 1.0 - ratio
    hats[rows, after] = ratio
    inside = slice(first - begin, last - begin)
    basis = hats[:, inside].copy()
    hats[:, inside] = 0.0
    return _Window(basis, hats @ boxes[begin : end + 1], track.boxes[frames])


def _first_fit(windows: Sequence[_Window], min_iou: float) -> tuple[int, Float64Array] | None:
    """The first of some windows whose boxes can be moved so that the bound holds in it, and those boxes.

    Least squares, repeated with more weight on the frames that overlap least. ``None`` where that suffices in none.

    Args:
        windows: of the same frames, and with equally many boxes to move. All at once they take hardly longer than one.
    """
    target = windows[0].target
    low, high = target.min(axis=0), target.max(axis=0)  # not beyond where the track goes, such as out of the picture
    open_ = np.arange(len(windows))
    basis, rest = np.stack([w.basis for w in windows]), np.stack([w.rest for w in windows])
    weights = np.ones((len(windows), len(target)))
    ridge = 1e-9 * np.eye(basis.shape[2])
    fitted: tuple[int, Float64Array] | None = None
    for step in range(_FIT_STEPS):
        weighted = (basis * weights[..., None]).transpose(0, 2, 1)
        solution = np.linalg.solve(weighted @ basis + ridge, weighted @ (target - rest))
        np.clip(solution, low, high, out=solution)
        iou = iou_broadcast(rest + basis @ solution, target)
        worst = iou.min(axis=1)
        going_on = 1.0 - worst <= _WORTH[min(step, len(_WORTH) - 1)] * (1.0 - min_iou)
        good = np.flatnonzero(worst >= min_iou)
        if len(good):
            fitted = int(open_[good[0]]), solution[good[0]]
            going_on[good[0] :] = False
        if not going_on.any():
            break
        if not going_on.all():
            open_, basis, rest = open_[going_on], basis[going_on], rest[going_on]
            iou, weights = iou[going_on], weights[going_on]
        weights *= np.maximum((1.0 - iou) / (1.0 - min_iou), 0.05) ** 1.5
        weights /= weights.mean(axis=1, keepdims=True)
    return fitted


_Keyframes = tuple[IntArray, Float64Array]


def _first_option(track: _TrackBoxes, options: Sequence[_Keyframes], first: int, last: int) -> _Keyframes | None:
    """The first of some keyframes with their boxes where those of ``first .. last - 1`` can be moved so that the bound
    holds around them; with these boxes.
    """
    fitted = _first_fit([_window(track, *option, first, last) for option in options], track.min_iou)
    if fitted is None:
        return None
    keys, boxes = options[fitted[0]]
    boxes[first:last] = fitted[1]
    return keys, boxes


def _without(track: _TrackBoxes, keys: IntArray, boxes: Float64Array, at: int) -> _Keyframes | None:
    """Keyframes without the one at ``at``, and the neighbours' boxes moved; ``None`` where the bound cannot be kept."""
    option = np.delete(keys, at), np.delete(boxes, at, axis=0)
    return _first_option(track, [option], max(0, at - 1), min(len(keys) - 1, at + 1))


def _one_for_two(track: _TrackBoxes, keys: IntArray, boxes: Float64Array, at: int) -> _Keyframes | None:
    """As :func:`_without`, but with one keyframe somewhere between its neighbours for those at ``at`` and after it."""
    if at >= len(keys) - 2:
        return None
    before, after = int(keys[at - 1]), int(keys[at + 2])
    places = dict.fromkeys(before + round((after - before) * share) for share in _PLACES)
    options = []
    for place in places:
        if before < place < after:
            fewer = np.concatenate([keys[:at], [place], keys[at + 2 :]])
            options.append((fewer, np.concatenate([boxes[:at], track.boxes[[place]], boxes[at + 2 :]])))
    return _first_option(track, options, max(0, at - 1), min(len(keys) - 1, at + 2)) if options else None


def _drop(track: _TrackBoxes, keys: IntArray, boxes: Float64Array) -> _Keyframes:
    """Take keyframes away, one for none or two for one, as long as the bound can be kept by moving the neighbours."""
    before = len(keys) + 1
    in_vain: set[bytes] = set()  # what was tried around a keyframe while all near it was as it is
    while len(keys) < before:
        before, at = len(keys), 1
        while at < len(keys) - 1:
            near = slice(max(0, at - 2), at + 4)
            tried = bytes([at - near.start]) + keys[near].tobytes() + boxes[near].tobytes()
            if tried in in_vain:
                at += 1
                continue
            fitted = _without(track, keys, boxes, at) or _one_for_two(track, keys, boxes, at)
            if fitted is None:
                in_vain.add(tried)
                at += 1
            else:
                keys, boxes = fitted
        if before > _ONE_SWEEP:
            break
    return keys, boxes


def _polish(track: _TrackBoxes, keys: IntArray, boxes: Float64Array) -> Float64Array:
    """Move each keyframe's box to where the mean overlap around it is best, within the bound."""
    out = boxes.copy()
    for at in [*range(len(keys)), *range(len(keys) - 1, -1, -1)]:
        basis, rest, target = _window(track, keys, out, at, at + 1)
        now = rest + basis * out[at]
        best = float(iou_pairs(now, target).mean())
        move = (basis * (target - now)).sum(axis=0) / (basis * basis).sum()
        for share in (1.0, 0.5, 0.25):
            box = np.clip(out[at] + share * move, target.min(axis=0), target.max(axis=0))
            iou = iou_pairs(rest + basis * box, target)
            if iou.min() >= track.min_iou and iou.mean() > best:
                out[at] = box
                break
    return out


def interpolate(key_frames: npt.ArrayLike, key_xyxy: npt.ArrayLike, frames: npt.ArrayLike) -> Float64Array:
    """Boxes on ``frames``, linear between keyframes and held before the first and after the last.

    Args:
        key_frames: ``(m,)`` strictly increasing, m > 0.
        key_xyxy: ``(m, 4)`` boxes on them.
        frames: ``(n,)`` where to interpolate.

    Returns:
        ``(n, 4)`` float64.

    Raises:
        ValueError: no keyframes, or not one box for each.
    """
    keys = np.asarray(key_frames, dtype=np.int64)
    boxes = np.asarray(key_xyxy, dtype=np.float64)
    at = np.asarray(frames, dtype=np.int64)
    if not len(keys) or boxes.shape != (len(keys), 4):
        raise ValueError(f"expected key_xyxy of shape (m, 4) for m > 0 keyframes, got {boxes.shape} for {len(keys)}")
    if len(keys) == 1:
        return np.repeat(boxes, len(at), axis=0)
    after = np.clip(np.searchsorted(keys, at, side="right"), 1, len(keys) - 1)
    start, end = boxes[after - 1], boxes[after]
    ratio = (at - keys[after - 1]) / (keys[after] - keys[after - 1])
    between = start + (end - start) * np.maximum(ratio, 0.0)[:, None]
    out: Float64Array = np.where((ratio < 1.0)[:, None], between, end)  # on a keyframe its very box, to the last bit
    return out


def simplify(
    frames: npt.ArrayLike, xyxy: npt.ArrayLike, min_iou: float = 0.9, *, own_boxes: bool = False
) -> tuple[IntArray, Float64Array]:
    """Few keyframes whose linear interpolation has IoU >= ``min_iou`` with the given box on every frame.

    The bound is checked on every frame with :func:`interpolate`'s arithmetic; it holds for all input, also boxes
    without area (which only ever equal themselves).

    Args:
        frames: ``(n,)`` strictly increasing, of one visible stretch: what lies between them is interpolated too.
        xyxy: ``(n, 4)`` boxes in any unit.
        min_iou: the bound, in 0..1.
        own_boxes: take only boxes of the track itself as keyframes; these are never fewer.

    Returns:
        ``(key_frames (m,) int64, key_xyxy (m, 4) float64)``: a subset of ``frames`` with the first and the last.

    Raises:
        ValueError: shapes that do not fit, frames out of order, values that are not finite, a bound outside 0..1.
    """
    at = np.asarray(frames, dtype=np.int64)
    boxes = np.asarray(xyxy, dtype=np.float64)
    if at.ndim != 1 or boxes.shape != (len(at), 4):
        raise ValueError(f"expected frames (n,) and xyxy (n, 4), got {at.shape} and {boxes.shape}")
    if bool((np.diff(at) <= 0).any()):
        raise ValueError("expected strictly increasing frames")
    if not np.isfinite(boxes).all():
        raise ValueError("expected finite boxes")
    if not 0.0 <= min_iou <= 1.0:
        raise ValueError(f"expected min_iou in 0..1, got {min_iou}")
    if len(at) <= 2:
        return at, boxes
    track = _TrackBoxes(at, boxes, float(min_iou))
    keys = _own_boxes(track)
    key_boxes = boxes[keys]
    if not own_boxes and min_iou + _FIT_MARGIN < 1.0:
        strict = track._replace(min_iou=min_iou + _FIT_MARGIN)
        fewer, fitted = _drop(strict, keys, key_boxes)
        fitted = _polish(strict, fewer, fitted)
        if (iou_pairs(interpolate(at[fewer], fitted, at), boxes) >= min_iou).all():
            keys, key_boxes = fewer, fitted
    return at[keys], key_boxes
