"""Checks of boxes alone: jumps, jitter, impossible boxes, and boxes that stay until the video ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from ml_backend.core.boxes import clip_xyxy
from ml_backend.core.keyframes import interpolate
from ml_backend.core.types import BoolArray, Float64Array, Track
from ml_backend.review.finding import Finding
from ml_backend.review.repairs import Delete, Repair, SetBoxes, SplitAt, Trim
from ml_backend.review.video import ReviewVideo
from ml_backend.tracking.box_motion import JUMP, centres, runs, sizes, steps
from ml_backend.tracking.smooth import fill_and_smooth

#: Boxes that a part of a track has at least.
MIN_PART = 3
#: A frozen box: seconds for which it stays, how far it moves meanwhile, and how far it jumps then, in box sizes.
FROZEN_S, STILL, CATCHES_UP = 0.5, 0.1, 0.25
#: Seconds after which a box that jumped has not come back.
SPIKE_S = 0.5
#: Jitter, in box sizes: root mean square of what alternates from frame to frame, over a second and more.
JITTER, JITTER_S = 0.06, 1.0
#: Share of a box's size that may lie outside the picture, or of the picture's by which it may be larger.
OUTSIDE = 0.1
#: A held box: seconds for which it is exactly the same, until the end of the video, after it has moved.
HELD_S, MOVED = 1.0, 0.5
JITTER_SMOOTH_S = 0.15


def sound_boxes(tracks: Sequence[Track], width: float, height: float) -> list[Track]:
    """Return tracks without their impossible boxes, which would mislead other checks."""
    out = []
    for track in tracks:
        good = ~_impossible(track, width, height)
        if good.all():
            out.append(track)
        elif good.any():
            out.append(replace(track, frames=track.frames[good], xyxy=track.xyxy[good], conf=track.conf[good]))
    return out


def find(video: ReviewVideo) -> Iterator[Finding]:
    """Yield what the boxes of single tracks tell."""
    for track in video.tracks:
        bad = _impossible(track, video.width, video.height)
        if bad.any():
            yield _geometry(track, bad, video.width, video.height)
            continue
        if len(track) < 3:
            continue
        moving = steps(track.frames, track.xyxy, video.width, video.height)
        yield from _frozen(track, moving, video.fps)
        yield from _jumps(track, moving, video.fps)
        yield from _jitter(track, video.fps)
        yield from _held(track, video.fps, video.frames)


def _impossible(track: Track, width: float, height: float) -> BoolArray:
    xyxy = track.xyxy.astype(np.float64)
    sides = xyxy[:, 2:] - xyxy[:, :2]
    picture = np.array([width, height])
    beyond = np.maximum(-xyxy[:, :2], xyxy[:, 2:] - picture).max(axis=1)
    with np.errstate(invalid="ignore"):
        outside = beyond > OUTSIDE * np.minimum(np.maximum(sides.max(axis=1), 1), picture.min())
    out: BoolArray = ~np.isfinite(xyxy).all(axis=1) | (sides <= 0).any(axis=1) | outside
    return out


def _geometry(track: Track, bad: BoolArray, width: float, height: float) -> Finding:
    frames, number = track.frames[bad], track.track_id
    clipped = clip_xyxy(np.nan_to_num(track.xyxy), width, height)
    usable = (clipped[:, 2:] > clipped[:, :2]).all(axis=1) & np.isfinite(track.xyxy).all(axis=1)
    repair: Repair = Delete(number)
    if usable.any():  # where the box is unknown the track is hidden
        first, last = int(frames[0]), int(frames[-1])
        rows = usable & (track.frames >= first) & (track.frames <= last)
        repair = SetBoxes(number, first, last, track.frames[rows], clipped[rows].astype(np.float32))
    reason = f"{_count(len(frames))} without area, outside the picture or larger than it."
    return Finding("geometry", (number,), int(frames[0]), int(frames[-1]), 0.95, reason, repair)


def _frozen(track: Track, moving: Float64Array, fps: float) -> Iterator[Finding]:
    """Yield a box that stays and then jumps: a keyframe was drawn, and the object not followed until the next."""
    middle, size = centres(track.xyxy), sizes(track.xyxy)
    for row in np.flatnonzero(moving > CATCHES_UP).tolist():
        away = np.linalg.norm(middle[: row + 1] - middle[row], axis=1) > STILL * size[row]
        start = _last(away) + 1
        seconds = (track.frames[row] - track.frames[start]) / fps
        if seconds < FROZEN_S:
            continue
        yield Finding(
            "frozen",
            (track.track_id,),
            int(track.frames[start]),
            int(track.frames[row]),
            0.6,
            f"The box stays for {seconds:.1f} s and then jumps.",
            _line(track, start, row + 1),
        )


def _jumps(track: Track, excess: Float64Array, fps: float) -> Iterator[Finding]:
    """Yield jumps: back and forth within :data:`SPIKE_S` is one spike, for good is another object."""
    rows = np.flatnonzero(excess > JUMP) + 1
    rows = rows[(rows >= MIN_PART) & (rows <= len(track) - MIN_PART)]
    done = -1
    for row in rows.tolist():
        if row <= done:
            continue
        frame = int(track.frames[row])
        back = [
            int(later)
            for later in rows
            if row < later and track.frames[later] - frame <= SPIKE_S * fps and _near(track, row - 1, int(later))
        ]
        score = float(min(0.9, 0.4 + 0.4 * (excess[row - 1] - JUMP)))
        if back:
            done = back[-1]
            yield Finding(
                "jump",
                (track.track_id,),
                frame,
                int(track.frames[done]) - 1,
                score,
                "The box jumps away and back.",
                _line(track, row - 1, done),
            )
            continue
        yield Finding(
            "jump",
            (track.track_id,),
            frame,
            frame,
            score,
            f"The box jumps by {excess[row - 1]:.1f} times its size from one frame to the next.",
            SplitAt(track.track_id, frame),
        )


def _line(track: Track, start: int, end: int) -> SetBoxes:
    """Return the repair that lets the box move evenly from one row to another one."""
    ends = [start, end]
    first, last = track.frames[ends].tolist()
    frames = np.arange(first, last + 1)
    boxes = interpolate(track.frames[ends], track.xyxy[ends], frames).astype(np.float32)
    return SetBoxes(track.track_id, first, last, frames, boxes)


def _near(track: Track, before: int, after: int) -> bool:
    """Return whether the box is where it was, give or take what it may have moved."""
    distance = np.linalg.norm(centres(track.xyxy[[before]]) - centres(track.xyxy[[after]]))
    return bool(distance < JUMP * sizes(track.xyxy[[before]])[0])


def _jitter(track: Track, fps: float) -> Iterator[Finding]:
    boxes = track.xyxy.astype(np.float64)
    second = (boxes[:-2] - 2 * boxes[1:-1] + boxes[2:]) / 4  # what alternates passes, motion does not
    next_to = (track.frames[2:] - track.frames[:-2] == 2)[:, None]
    power = np.where(next_to, (second / sizes(track.xyxy[1:-1])[:, None]) ** 2, 0).max(axis=1)
    length = max(3, round(JITTER_S * fps))
    if len(power) < length:
        return
    # The median of a window: a jump is no jitter.
    windows = np.lib.stride_tricks.sliding_window_view(power, length)
    shaky = np.median(windows, axis=1) > (JITTER / 2) ** 2
    for first, last in runs(shaky):
        a, b = first, last + length + 1
        frames, smooth, _ = fill_and_smooth(
            track.frames[a : b + 1], track.xyxy[a : b + 1], np.ones(b + 1 - a, np.float32), 0, JITTER_SMOOTH_S * fps
        )
        yield Finding(
            "jitter",
            (track.track_id,),
            int(track.frames[a]),
            int(track.frames[b]),
            0.6,
            f"The box trembles for {(track.frames[b] - track.frames[a]) / fps:.1f} s.",
            SetBoxes(track.track_id, int(track.frames[a]), int(track.frames[b]), frames, smooth),
        )


def _held(track: Track, fps: float, frames: int) -> Iterator[Finding]:
    """Yield a box that stays where the object was last, until the video ends: nobody has ended it."""
    if track.frames[-1] < frames - 1:
        return
    first = _last((track.xyxy != track.xyxy[-1]).any(axis=1)) + 1
    held = (track.frames[-1] - track.frames[first]) / fps
    before: Float64Array = centres(track.xyxy[: first + 1])
    moved = float(np.linalg.norm(before[-1] - before[max(0, first - round(fps))])) / float(sizes(track.xyxy[[-1]])[0])
    if held >= HELD_S and moved >= MOVED:
        yield Finding(
            "overstay",
            (track.track_id,),
            int(track.frames[first]),
            int(track.frames[-1]),
            0.65,
            f"The object moves until here; then its box stays for {held:.1f} s, until the video ends.",
            Trim(track.track_id, int(track.frames[0]), int(track.frames[first])),
        )


def _count(boxes: int) -> str:
    return "1 box is" if boxes == 1 else f"{boxes} boxes are"


def _last(mask: npt.NDArray[np.bool_] | np.bool_) -> int:
    """Return the last true index; -1 without one."""
    rows = np.flatnonzero(mask)
    return int(rows[-1]) if len(rows) else -1
