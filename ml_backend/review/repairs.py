"""Repairs of tracks as data, and the function that carries them out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ml_backend.core.keyframes import interpolate
from ml_backend.core.types import BoolArray, FloatArray, IntArray, Track


@dataclass(frozen=True, slots=True)
class SplitAt:
    """The boxes of a track from ``frame`` on become a new track."""

    track: int
    frame: int


@dataclass(frozen=True, slots=True)
class Join:
    """``later`` becomes a part of ``track``. Frames between the two get linear boxes if ``fill``."""

    track: int
    later: int
    fill: bool = True


@dataclass(frozen=True, slots=True)
class SwapFrom:
    """Two tracks exchange their boxes from ``frame`` on; ``other`` may end before it, or begin there.

    Attributes:
        blend: frames before and after the exchange on which boxes lie between the two objects, as smoothing leaves
            them. They get linear boxes; a track that ends or begins there loses them.
    """

    track: int
    other: int
    frame: int
    blend: int = 0


@dataclass(frozen=True, slots=True)
class Relabel:
    """A track gets another label."""

    track: int
    label: str


@dataclass(frozen=True, slots=True)
class Trim:
    """A track keeps only its boxes from ``first`` to ``last``."""

    track: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Delete:
    """A track is removed."""

    track: int


@dataclass(frozen=True, slots=True, eq=False)
class SetBoxes:
    """A track's boxes from ``first`` to ``last`` are replaced by these.

    Attributes:
        frames: ``(n,)`` strictly increasing, from ``first`` to ``last``; the track is hidden on missing ones.
        xyxy: ``(n, 4)`` pixels.
    """

    track: int
    first: int
    last: int
    frames: IntArray
    xyxy: FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class Add:
    """A track is added. It gets a new ``track_id``."""

    added: Track


Repair = SplitAt | Join | SwapFrom | Relabel | Trim | Delete | SetBoxes | Add


def apply_repair(tracks: Sequence[Track], repair: Repair) -> list[Track]:
    """Return the tracks after a repair; the given ones stay as they are.

    A new track gets the lowest ``track_id`` above all others, and is last.

    Raises:
        ValueError: the repair names a track that does not exist, or a frame at which it changes nothing.
    """
    by_id = {track.track_id: track for track in tracks}
    new_id = max(by_id, default=0) + 1
    changed: dict[int, Track | None] = {}
    added: list[Track] = []
    match repair:
        case SplitAt(track_id, frame):
            track = _find(by_id, track_id)
            changed[track_id] = _part(track, track.frames < frame, repair)
            added = [replace(_part(track, track.frames >= frame, repair), track_id=new_id)]
        case Join(track_id, later_id, fill):
            if track_id == later_id:
                raise ValueError(f"expected two tracks, got {repair}")
            changed[track_id] = _joined(_find(by_id, track_id), _find(by_id, later_id), fill)
            changed[later_id] = None
        case SwapFrom(track_id, other_id, frame, blend):
            if track_id == other_id:
                raise ValueError(f"expected two tracks, got {repair}")
            a, b = _find(by_id, track_id), _find(by_id, other_id)
            _part(a, a.frames < frame - blend, repair)
            _part(a, a.frames >= frame + blend, repair)
            for one, two in ((a, b), (b, a)):
                before, after = _rows(one, one.frames < frame - blend), _rows(two, two.frames >= frame + blend)
                changed[one.track_id] = _with_lines(
                    _with_boxes(before, np.ones(len(before), bool), after), frame, blend
                )
        case Relabel(track_id, label):
            changed[track_id] = replace(_find(by_id, track_id), label=label)
        case Trim(track_id, first, last):
            track = _find(by_id, track_id)
            changed[track_id] = _part(track, (track.frames >= first) & (track.frames <= last), repair)
        case Delete(track_id):
            _find(by_id, track_id)
            changed[track_id] = None
        case SetBoxes(track_id, first, last, frames, xyxy):
            track = _find(by_id, track_id)
            outside = (track.frames < first) | (track.frames > last)
            new = Track(0, frames, xyxy.astype(np.float32), np.zeros(len(frames), np.float32))
            if not outside.any() and not len(frames):
                raise ValueError(f"expected boxes of track {track_id} to be left, got none")
            if len(frames) and (frames[0] < first or frames[-1] > last):
                raise ValueError(f"expected frames from {first} to {last}, got {frames[0]} to {frames[-1]}")
            changed[track_id] = _with_boxes(track, outside, new)
        case Add(track):
            added = [replace(track, track_id=new_id)]
    kept = [changed.get(track.track_id, track) for track in tracks]
    return [track for track in kept if track is not None] + added


def changed_boxes(tracks: Sequence[Track], repair: Repair) -> int:
    """Return how many boxes a repair moves, adds, removes, or gives another identity or label."""
    by_id = {track.track_id: track for track in tracks}
    match repair:
        case SplitAt(track_id, frame):
            later = int((by_id[track_id].frames >= frame).sum())
            return min(later, len(by_id[track_id]) - later)
        case Join(track_id, later_id):
            return min(len(by_id[track_id]), len(by_id[later_id]))
        case SwapFrom(track_id, other_id, frame):
            both = np.concatenate([by_id[track_id].frames, by_id[other_id].frames])
            return min(int((both >= frame).sum()), int((both < frame).sum()))
        case Relabel(track_id) | Delete(track_id):
            return len(by_id[track_id])
        case Trim(track_id, first, last):
            frames = by_id[track_id].frames
            return int(((frames < first) | (frames > last)).sum())
        case SetBoxes(track_id, first, last, frames):
            own = by_id[track_id].frames
            return len(np.union1d(own[(own >= first) & (own <= last)], frames))
        case Add(track):
            return len(track)


def describe(repair: Repair) -> str:
    """Return a sentence that tells people what to do; frames count from 1, as in Label Studio."""
    match repair:
        case SplitAt(track, frame):
            return f"Split track {track} at frame {frame + 1}."
        case Join(track, later):
            return f"Join track {later} to track {track}."
        case SwapFrom(track, other, frame):
            return f"Exchange the boxes of tracks {track} and {other} from frame {frame + 1} on."
        case Relabel(track, label):
            return f"Label track {track} {label}."
        case Trim(track, first, last):
            return f"Keep track {track} from frame {first + 1} to {last + 1} only."
        case Delete(track):
            return f"Delete track {track}."
        case SetBoxes(track, first, last):
            return f"Correct the boxes of track {track} from frame {first + 1} to {last + 1}."
        case Add(track):
            return f"Add a track of {track.label} from frame {track.frames[0] + 1} to {track.frames[-1] + 1}."


def _find(by_id: dict[int, Track], track_id: int) -> Track:
    try:
        return by_id[track_id]
    except KeyError:
        raise ValueError(f"expected one of the tracks {sorted(by_id)}, got {track_id}") from None


def _part(track: Track, rows: BoolArray, repair: Repair) -> Track:
    if not rows.any():
        raise ValueError(f"expected boxes on both sides of the frame, got none on one for {repair}")
    return _rows(track, rows)


def _rows(track: Track, rows: BoolArray) -> Track:
    return replace(track, frames=track.frames[rows], xyxy=track.xyxy[rows], conf=track.conf[rows])


def _with_boxes(track: Track, rows: BoolArray, other: Track) -> Track:
    """Return a track with some rows of its own and all of another one, in order of time."""
    frames = np.concatenate([track.frames[rows], other.frames])
    order = np.argsort(frames, kind="stable")
    return replace(
        track,
        frames=frames[order],
        xyxy=np.concatenate([track.xyxy[rows], other.xyxy])[order],
        conf=np.concatenate([track.conf[rows], other.conf])[order],
    )


def _with_lines(track: Track, frame: int, blend: int) -> Track:
    """Fill the frames around an exchange with linear boxes, if the track has boxes right before and after them."""
    gap = np.arange(frame - blend, frame + blend)
    ends = np.searchsorted(track.frames, [frame - blend - 1, frame + blend])
    if not len(gap) or ends[1] == len(track) or track.frames[ends].tolist() != [gap[0] - 1, gap[-1] + 1]:
        return track
    boxes = interpolate(track.frames[ends], track.xyxy[ends], gap).astype(np.float32)
    return _with_boxes(track, np.ones(len(track), bool), Track(0, gap, boxes, np.zeros(len(gap), np.float32)))


def _joined(track: Track, later: Track, fill: bool) -> Track:
    # On frames of both the longer one's boxes are kept.
    keep, other = (track, later) if len(track) >= len(later) else (later, track)
    only = ~np.isin(other.frames, keep.frames)
    label, score = (track.label, track.score) if track is keep else (later.label, later.score)
    joined = replace(_with_boxes(other, only, keep), track_id=track.track_id, label=label, score=score)
    joined.class_scores = {
        name: track.class_scores.get(name, 0.0) + later.class_scores.get(name, 0.0)
        for name in (*track.class_scores, *later.class_scores)
    }
    first, last = sorted((track, later), key=lambda part: int(part.frames[0]))
    gap = np.arange(first.frames[-1] + 1, last.frames[0])
    if fill and len(gap):
        ends = np.stack([first.xyxy[-1], last.xyxy[0]])
        boxes = interpolate([first.frames[-1], last.frames[0]], ends, gap).astype(np.float32)
        joined = _with_boxes(joined, np.ones(len(joined), bool), Track(0, gap, boxes, np.zeros(len(gap), np.float32)))
    return joined
