"""Checks against raw detections: objects without a box, boxes without an object, boxes that stay behind."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from ml_backend.core.boxes import iou_matrix
from ml_backend.core.keyframes import interpolate
from ml_backend.core.settings import Settings
from ml_backend.core.types import BoolArray, Detections, FrameFeatures, IntArray, Track
from ml_backend.review.finding import Finding
from ml_backend.review.repairs import Add, Delete, SetBoxes, Trim
from ml_backend.review.video import SUPPORTS_IOU, Evidence
from ml_backend.tracking.assembly import TrackAssembler
from ml_backend.tracking.box_motion import apart, centres, runs, sizes
from ml_backend.tracking.tracker import Tracker, parts

#: Certainty of a track of uncovered detections, and seconds that it lasts, to be an object without a box.
SURE, SURE_S = 0.4, 0.4
#: IoU from which a track of another label covers a detection: a rider is not the bicycle.
OTHER_LABEL_IOU = 0.6
#: Share of a track's boxes that a detection supports, below which it shows nothing.
NOTHING = 0.2
#: Seconds at an end of a track without support, and share of the rest that has it, from which the object has left.
LEFT_S, SEEN = 0.6, 0.7
#: Seconds for which a box stays while its object moves away, and how far it moves itself meanwhile, in box sizes.
FROZEN_S, STILL = 0.3, 0.15
#: Distance, in box sizes, of an uncovered object from the frozen box that it left or to which it comes back.
SAME_PLACE = 1.0


def find(evidence: Evidence) -> Iterator[Finding]:
    """Yield where tracks and detections disagree; nothing without detections."""
    if not evidence.video.detections:
        return
    missing = _uncovered_tracks(evidence)
    explained: set[int] = set()
    detectable = _detectable_labels(evidence)
    for track in evidence.video.tracks:
        if track.label not in detectable:
            continue
        support = evidence.support[track.track_id]
        seen = np.flatnonzero(~np.isnan(support))
        if len(seen) < 3:
            continue
        supported = support[seen] >= SUPPORTS_IOU
        lost = _without_support(seen, supported)
        frozen = list(_frozen(track, lost, missing, evidence.video.fps))
        explained |= {number for _, number in frozen}
        yield from (finding for finding, _ in frozen)
        share = float(supported.mean())
        if share < NOTHING and not frozen:
            yield Finding(
                "no_object",
                (track.track_id,),
                int(track.frames[0]),
                int(track.frames[-1]),
                0.95 - share,
                f"The detector finds nothing in {1 - share:.0%} of the boxes.",
                Delete(track.track_id),
            )
        elif share >= NOTHING:
            yield from _overstay(track, seen, supported, evidence.video.fps)
    for number, track in enumerate(missing):
        if number not in explained:
            yield Finding(
                "no_box",
                (),
                int(track.frames[0]),
                int(track.frames[-1]),
                min(0.95, track.score + 0.1),
                f"The detector is sure of a {track.top_class} that no track covers, "
                f"for {len(track) / evidence.video.fps:.1f} s.",
                Add(track),
            )


def _detectable_labels(evidence: Evidence) -> set[str | None]:
    """Return the labels of which the detector finds the objects: a class has it, or most of its tracks are found."""
    shares: dict[str | None, list[float]] = defaultdict(list)
    for track in evidence.video.tracks:
        support = evidence.support[track.track_id]
        if not np.isnan(support).all():
            shares[track.label].append(float((support[~np.isnan(support)] >= SUPPORTS_IOU).mean()))
    found = {label for label, own in shares.items() if len(own) > 1 and np.median(own) >= 0.5}
    return found | set(evidence.video.class_labels.values())


def _uncovered_tracks(evidence: Evidence) -> list[Track]:
    """Track the detections that have a label and no track covers, and return those that are surely objects."""
    video, detections = evidence.video, evidence.video.detections or {}
    settings = Settings.model_construct(min_track_s=SURE_S)
    size = round(video.width), round(video.height)
    labels = {number: video.class_labels.get(name, "") for number, name in video.class_names.items()}
    # A label that no class has may be of any class.
    owner = {track.track_id: track.label if track.label in labels.values() else "" for track in video.tracks}
    uncovered: dict[int, Detections] = {}
    for frame in sorted(detections):
        found = detections[frame]
        ids, boxes = evidence.rows_by_frame.get(frame, (np.zeros(0, np.int64), np.zeros((0, 4))))
        wanted = np.array([labels[number] for number in found.class_id.tolist()], dtype=str)
        iou = iou_matrix(found.xyxy, boxes)
        owners = np.array([owner[track_id] for track_id in ids.tolist()], dtype=str)
        same = (wanted[:, None] == owners) | (owners == "")
        free = (iou < np.where(same, SUPPORTS_IOU, OTHER_LABEL_IOU)).all(axis=1)
        free &= ~parts(found) & (wanted != "")
        uncovered[frame] = found.take(free)
    if max((float(rest.conf.max(initial=0.0)) for rest in uncovered.values()), default=0.0) < SURE:
        return []  # a track is at most as sure as its surest detection
    tracker, assembler = Tracker("tracktrack", video.fps), TrackAssembler(video.fps, video.class_names, *size, settings)
    tracks: list[Track] = []
    for frame, rest in uncovered.items():
        tracks += assembler.push(frame, tracker.update(FrameFeatures(frame, rest)))
    tracks += assembler.close()
    sure = [track for track in tracks if track.score >= SURE and len(track) >= SURE_S * video.fps]
    for track in sure:
        track.label = video.class_labels[track.top_class]
    return sorted(sure, key=lambda track: int(track.frames[0]))


def _without_support(seen: IntArray, supported: BoolArray) -> list[tuple[int, int]]:
    """Return the rows ``(first, last)`` of each stretch that no detection supports."""
    return [(int(seen[first]), int(seen[last])) for first, last in runs(~supported)]


def _frozen(
    track: Track, lost: list[tuple[int, int]], missing: list[Track], fps: float
) -> Iterator[tuple[Finding, int]]:
    """Yield stretches in which the box stays and an uncovered object moves away from it, or comes back to it."""
    for first, last in lost:
        span = track.frames[[first, last]]
        for number, other in enumerate(missing):
            common = other.frames[(other.frames >= span[0]) & (other.frames <= span[1])]
            if len(common) < max(2.0, FROZEN_S * fps, 0.5 * len(other)):
                continue
            start, end = _still(track, first, last)
            outside = [
                float(apart(track.xyxy[row].astype(np.float64), other.xyxy[at].astype(np.float64)))
                for row, at in ((start, 0), (min(end + 1, len(track) - 1), -1))
            ]
            travelled = float(np.linalg.norm(np.diff(centres(track.xyxy[[start, end]]), axis=0)))
            if min(outside) > SAME_PLACE or travelled > STILL * sizes(track.xyxy[[start]])[0]:
                continue
            repair = _follow(track, start, end, other)
            seconds = (track.frames[end] - track.frames[start]) / fps
            yield (
                Finding(
                    "frozen",
                    (track.track_id,),
                    int(track.frames[start]),
                    int(track.frames[end]),
                    min(0.95, other.score + 0.15),
                    f"The box stays for {seconds:.1f} s, while the {other.top_class} moves on without it.",
                    repair,
                ),
                number,
            )
            break


def _follow(track: Track, start: int, end: int, other: Track) -> SetBoxes:
    """Return the repair that leads the box from ``start`` along another track, and back to its own after ``end``."""
    first, last = int(track.frames[start]), int(track.frames[end])
    inside = (other.frames > first) & (other.frames <= last)
    keys, boxes = [track.frames[[start]], other.frames[inside]], [track.xyxy[[start]], other.xyxy[inside]]
    goes_on = end + 1 < len(track)
    if goes_on:
        keys.append(track.frames[[end + 1]])
        boxes.append(track.xyxy[[end + 1]])
    path = np.concatenate(keys)
    # Without an own box afterwards, the object has left where the other track ends.
    frames = np.arange(first, (last if goes_on else int(path[-1])) + 1)
    return SetBoxes(
        track.track_id, first, last, frames, interpolate(path, np.concatenate(boxes), frames).astype(np.float32)
    )


def _still(track: Track, first: int, last: int) -> tuple[int, int]:
    """Extend rows in both directions for as long as the box stays where it is in them."""
    middle, reach = centres(track.xyxy), STILL * float(sizes(track.xyxy[[first]])[0])
    near = np.linalg.norm(middle - middle[first], axis=1) <= reach
    away = np.flatnonzero(~near)
    before, after = away[away < first], away[away > first]
    start = int(before[-1]) + 1 if len(before) else 0
    end = int(after[0]) - 1 if len(after) else len(track) - 1
    return start, max(end, min(last, len(track) - 1))


def _overstay(track: Track, seen: IntArray, supported: BoolArray, fps: float) -> Iterator[Finding]:
    """Yield ends of a track at which the detector, which saw it well before, sees nothing any more."""
    first, last = np.flatnonzero(supported)[[0, -1]]
    share = float(supported[first : last + 1].mean())
    if share < SEEN:
        return
    frames = track.frames[seen]
    after, before = (frames[-1] - frames[last]) / fps, (frames[first] - frames[0]) / fps
    for length, begin, end, keep, word in (
        (after, int(frames[last]) + 1, int(track.frames[-1]), (int(track.frames[0]), int(frames[last])), "after"),
        (before, int(track.frames[0]), int(frames[first]) - 1, (int(frames[first]), int(track.frames[-1])), "before"),
    ):
        if length >= LEFT_S:
            yield Finding(
                "overstay",
                (track.track_id,),
                begin,
                end,
                min(0.9, share * (0.55 + 0.2 * length)),
                f"The detector sees the object well, but nothing of it for the {length:.1f} s {word} that.",
                Trim(track.track_id, *keep),
            )
