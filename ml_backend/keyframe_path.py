"""The fewest of a track's own boxes that can serve as keyframes: a shortest path.

An edge joins frames i and j when the line between their boxes keeps the IoU bound on every frame between; the path
from the first to the last frame with the fewest edges has the fewest keyframes. Breadth-first search finds it. The
slopes that a line from i can have without leaving the tolerance of a box on its way form a cone that only narrows:
it says early which edges cannot exist.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ml_backend.geometry import Float64Array, iou_pairs
from ml_backend.types import BoolArray, IntArray

#: Up to so many boxes every frame is tried as a keyframe, whatever the track does: the path is optimal.
_EXACT_FRAMES = 1000

#: In longer tracks about so many candidates are tried between two keyframes of a first, coarser path. Where these
#: are nearer than twice that, which is wherever something moves, every frame is a candidate still.
_CANDIDATES_PER_SEGMENT = 64

#: Elements of one temporary array: bounds the memory for long, still tracks.
_BLOCK = 1 << 21


class TrackBoxes(NamedTuple):
    """Boxes ``(n, 4)`` on frames ``at (n,)``, the bound, and how far out each side may be; see :func:`track_boxes`."""

    at: IntArray
    boxes: Float64Array
    low: Float64Array
    high: Float64Array
    min_iou: float


def track_boxes(at: IntArray, boxes: Float64Array, min_iou: float) -> TrackBoxes:
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
    return TrackBoxes(at, boxes, low, high, min_iou)


def _lines_hold(track: TrackBoxes, start: IntArray, end: IntArray, where: IntArray, line: IntArray) -> BoolArray:
    """For each line ``start[l] - end[l]``: does it keep the bound on all frames ``where`` that have ``line == l``?"""
    at, boxes = track.at, track.boxes
    first, last = start[line], end[line]
    ratio = (at[where] - at[first]) / (at[last] - at[first])
    between = boxes[first] + (boxes[last] - boxes[first]) * ratio[:, None]
    bad = iou_pairs(between, boxes[where]) < track.min_iou
    out: BoolArray = np.bincount(line[bad], minlength=len(start)) == 0
    return out


def _feasible(track: TrackBoxes, start: IntArray, end: IntArray) -> BoolArray:
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


def _greedy(track: TrackBoxes) -> list[int]:
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


def _cone(track: TrackBoxes, sources: IntArray, begin: int, end: int) -> tuple[BoolArray, int]:
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


def _edges(track: TrackBoxes, sources: IntArray, open_: BoolArray, window: int) -> tuple[IntArray, IntArray, int]:
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


def _shortest(track: TrackBoxes, candidates: BoolArray) -> IntArray:
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


def fewest_own_boxes(track: TrackBoxes) -> IntArray:
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
