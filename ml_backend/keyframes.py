"""The fewest keyframes from which linear interpolation gives a track's boxes back, within an IoU bound.

Two steps. First the fewest of the track's own boxes are chosen: a shortest path. An edge joins frames i and j when the
line between their boxes keeps the bound on every frame between; breadth-first search finds the path from the first to
the last frame with the fewest edges. The slopes that a line from i can have without leaving the tolerance of a box on
its way form a cone that only narrows: it says early which edges cannot exist. Then the keyframes' boxes are let go of
the track's: where the boxes of the neighbours can be fitted so that one keyframe less still keeps the bound, it goes.
On smooth tracks that saves another fifth, and the boxes fit better on average.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ml_backend.geometry import Float64Array, iou_broadcast, iou_pairs
from ml_backend.types import BoolArray, IntArray

#: Up to so many boxes every frame is tried as a keyframe, whatever the track does: the path is optimal.
_EXACT_FRAMES = 1000

#: In longer tracks about so many candidates are tried between two keyframes of a first, coarser path. Where these
#: are nearer than twice that, which is wherever something moves, every frame is a candidate still.
_CANDIDATES_PER_SEGMENT = 64

#: Elements of one temporary array: bounds the memory for long, still tracks.
_BLOCK = 1 << 21

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
    """Boxes ``(n, 4)`` on frames ``at (n,)``, the bound, and how far out each side may be; see :func:`_track_boxes`."""

    at: IntArray
    boxes: Float64Array
    low: Float64Array
    high: Float64Array
    min_iou: float


def _track_boxes(at: IntArray, boxes: Float64Array, min_iou: float) -> _TrackBoxes:
    """With the outermost position that each side of a box can have in any box that keeps the bound.

    IoU in two dimensions is never above IoU along one axis; there a side can move in by ``1 - min_iou`` of the
    width, or out by ``1 / min_iou - 1``.
    """
    size = np.maximum(boxes[:, 2:] - boxes[:, :2], 0.0)
    inwards = size * (1.0 - min_iou)
    outwards = size * (1.0 / max(min_iou, 1e-9) - 1.0)
    slack = 1e-9 * (1.0 + np.abs(boxes))  # this is a filter only; it must never refuse what the real test allows
    low = boxes - np.concatenate([outwards, inwards], axis=1) - slack
    high = boxes + np.concatenate([inwards, outwards], axis=1) + slack
    return _TrackBoxes(at, boxes, low, high, min_iou)


def _lines_hold(track: _TrackBoxes, start: IntArray, end: IntArray, where: IntArray, line: IntArray) -> BoolArray:
    """For each line ``start[l] - end[l]``: does it keep the bound on all frames ``where`` that have ``line == l``?"""
    at, boxes = track.at, track.boxes
    first, last = start[line], end[line]
    ratio = (at[where] - at[first]) / (at[last] - at[first])
    between = boxes[first] + (boxes[last] - boxes[first]) * ratio[:, None]
    bad = iou_pairs(between, boxes[where]) < track.min_iou
    out: BoolArray = np.bincount(line[bad], minlength=len(start)) == 0
    return out


def _feasible(track: _TrackBoxes, start: IntArray, end: IntArray) -> BoolArray:
    """Whether each line ``start[l] - end[l]`` keeps the bound on every frame between; ``(m,)``."""
    ok = np.ones(len(start), dtype=bool)
    inside = end - start - 1
    # Some frames spread over a long line refute most of the bad ones at little cost.
    for probes in (8, 64, 512, 4096):
        long = np.flatnonzero(ok & (inside > 3 * probes))
        if len(long):
            where = start[long, None] + (inside[long, None] + 1) * np.arange(1, probes) // probes
            line = np.repeat(np.arange(len(long)), probes - 1)
            ok[long] = _lines_hold(track, start[long], end[long], where.ravel(), line)
    todo = np.flatnonzero(ok & (inside > 0))
    lengths = inside[todo]
    cuts = np.flatnonzero(np.diff(np.cumsum(lengths) // _BLOCK)) + 1
    for part in np.split(todo, cuts):
        if len(part):
            count = inside[part]
            line = np.repeat(np.arange(len(part)), count)
            offset = np.arange(len(line)) - np.repeat(np.cumsum(count) - count, count)
            ok[part] = _lines_hold(track, start[part], end[part], start[part][line] + 1 + offset, line)
    return ok


def _greedy(track: _TrackBoxes) -> list[int]:
    """Positions of keyframes by taking long segments one after another: doubling, then halving, the step."""

    def feasible(start: int, end: int) -> bool:
        return bool(_feasible(track, np.array([start]), np.array([end]))[0])

    keep, last = [0], len(track.at) - 1
    while keep[-1] < last:
        start = keep[-1]
        good, step = start + 1, 2
        while start + step <= last and feasible(start, start + step):
            good, step = start + step, step * 2
        bad = min(start + step, last + 1)
        if bad > last and good < last and feasible(start, last):
            good = last
        while bad - good > 1:
            middle = (good + bad) // 2
            good, bad = (middle, bad) if feasible(start, middle) else (good, middle)
        keep.append(good)
    return keep


def _thinned(n: int, path: Sequence[int], most: int) -> BoolArray:
    """``(n,)`` the frames of a path and at most about ``most`` between any two of them, which is all where they are
    near; fewer where they are so far apart that testing long lines would cost more than a keyframe is worth.
    """
    chosen = np.zeros(n, dtype=bool)
    chosen[np.asarray(path)] = True  # so the next path is never worse than this one
    for start, end in itertools.pairwise(path):
        parts = min(most, max(8, 65536 // (end - start)))
        chosen[start : end : max(1, (end - start) // parts)] = True
    return chosen


def _cone(track: _TrackBoxes, sources: IntArray, begin: int, end: int) -> tuple[BoolArray, int]:
    """Edges from ``sources`` to ``begin..end - 1`` that the cones allow, and the frame at which all cones are shut."""
    at, boxes = track.at, track.boxes
    step = (at[begin:end] - at[sources, None]).astype(np.float64)
    later = step > 0
    step[~later] = 1.0
    allowed = later.copy()
    alive = np.ones(step.shape, dtype=bool)
    for side in range(4):
        own = boxes[sources, side][:, None]
        low = np.where(later, (track.low[begin:end, side] - own) / step, -np.inf)
        high = np.where(later, (track.high[begin:end, side] - own) / step, np.inf)
        np.maximum.accumulate(low, axis=1, out=low)
        np.minimum.accumulate(high, axis=1, out=high)
        slope = (boxes[begin:end, side] - own) / step
        allowed &= (slope >= low) & (slope <= high)
        alive &= low <= high
    return allowed, begin + int(alive.any(axis=0).sum())


def _edges(track: _TrackBoxes, sources: IntArray, open_: BoolArray, window: int) -> tuple[IntArray, IntArray, int]:
    """Pairs (source, target) among unsettled candidates that may be edges, and the window that was needed."""
    n = len(track.at)
    starts, ends = [], []
    widest, at = 16, 0
    while at < len(sources):
        group = sources[at : at + max(1, _BLOCK // window)]
        begin = int(group[0]) + 1
        end = min(n, int(group[-1]) + 1 + window)
        allowed, shut = _cone(track, group, begin, end)
        if shut == end < n:
            window *= 2
            continue
        widest = max(widest, shut - int(group[-1]))
        allowed &= open_[begin:end]
        i, j = np.nonzero(allowed)
        starts.append(group[i])
        ends.append(j + begin)
        at += len(group)
    return np.concatenate(starts), np.concatenate(ends), widest + 8


def _shortest(track: _TrackBoxes, candidates: BoolArray) -> IntArray:
    """Positions of a path from the first to the last frame with the fewest edges."""
    last = len(track.at) - 1
    parent = np.full(last + 1, -1, dtype=np.int64)
    open_ = candidates.copy()
    open_[0] = False
    layer, window = np.array([0], dtype=np.int64), 64
    while open_[last]:
        start, end, window = _edges(track, layer, open_, window)
        goal = end == last
        if goal.any():
            good = _feasible(track, start[goal], end[goal])
            if good.any():
                parent[last] = start[goal][good][-1]
                break
            start, end = start[~goal], end[~goal]
        # For each target the nearest sources first: such edges are the likeliest and the cheapest to test.
        order = np.lexsort((-start, end))
        start, end = start[order], end[order]
        tested, share = 0, 1
        while len(start):
            fresh = np.r_[True, end[1:] != end[:-1]]
            rank = np.arange(len(end)) - np.flatnonzero(fresh)[np.cumsum(fresh) - 1]
            now = rank < share
            good = _feasible(track, start[now], end[now])
            parent[end[now][good][::-1]] = start[now][good][::-1]
            left = ~now & (parent[end] < 0)
            start, end = start[left], end[left]
            tested, share = tested + share, share * 2
        layer = np.flatnonzero(open_ & (parent >= 0))
        open_[layer] = False
    path = [last]
    while path[-1]:
        path.append(int(parent[path[-1]]))
    return np.array(path[::-1], dtype=np.int64)


def _fewest_own_boxes(track: _TrackBoxes) -> IntArray:
    """Positions ``(m,)`` of the keyframes, with the first and the last box.

    Optimal for up to ``_EXACT_FRAMES`` boxes, and beyond where the track moves; in long, still stretches only some
    frames are tried, and the path may have a few keyframes more than it must.
    """
    n = len(track.at)
    if n <= _EXACT_FRAMES:
        return _shortest(track, np.ones(n, dtype=bool))
    coarse = _thinned(n, _greedy(track), 2)
    coarse[:: max(16, n // 128)] = True  # a greedy path may have started from unlucky boxes throughout
    rough = _shortest(track, coarse).tolist()
    return _shortest(track, _thinned(n, rough, _CANDIDATES_PER_SEGMENT))


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


def _drop(track: _TrackBoxes, keys: IntArray, boxes: Float64Array) -> tuple[IntArray, Float64Array]:
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
        own_boxes: take only boxes of the track itself as keyframes. Then no choice has fewer keyframes, for up to
            1,000 boxes; beyond that, none that uses the frames tried. Without it there are never more keyframes than
            with it.

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
    track = _track_boxes(at, boxes, float(min_iou))
    keys = _fewest_own_boxes(track)
    key_boxes = boxes[keys]
    if not own_boxes and min_iou + _FIT_MARGIN < 1.0:
        strict = track._replace(min_iou=min_iou + _FIT_MARGIN)
        fewer, fitted = _drop(strict, keys, key_boxes)
        fitted = _polish(strict, fewer, fitted)
        if (iou_pairs(interpolate(at[fewer], fitted, at), boxes) >= min_iou).all():
            keys, key_boxes = fewer, fitted
    return at[keys], key_boxes
