"""Assemble a tracker's boxes into finished tracks, while the video runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ml_backend.core.boxes import box_area, clip_xyxy, intersection
from ml_backend.core.settings import Settings
from ml_backend.core.types import Float64Array, FloatArray, Track
from ml_backend.tracking import credibility
from ml_backend.tracking.smooth import fill_and_smooth
from ml_backend.tracking.stitch import best_pairs
from ml_backend.tracking.tracker import TrackedBox
from ml_backend.tracking.tracklet import Tracklet

MAX_GAP_S = 2.0  # longest gap that is interpolated; in longer ones the position is unknown
SMOOTH_S = 0.1  # standard deviation of the smoothing: removes jitter without rounding off turns
STITCH_S = 2.0  # longest gap over which tracklets are stitched
SILENT_S = 1.2  # after so long without a box the tracker itself does not continue a track
MIN_STRENGTH = 0.4  # of every track
MIN_STRENGTH_STILL = 0.5  # of tracks that never move: posters, dummies and reflections are weak and still
MIN_TRAVEL = 0.5  # of a moving track, in box sizes
DROPPED_S = 0.5  # shortest track that is worth being kept among the dropped ones
# Duplicates: tracks with an IoU of at least DUPLICATE_IOU (of two classes, such as car and truck but not rider and
# bicycle: DUPLICATE_IOU_CLASSES) in at least DUPLICATE_SHARE of the frames that show both.
DUPLICATE_IOU = 0.7
DUPLICATE_IOU_CLASSES = 0.8
DUPLICATE_SHARE = 0.6
# Also tracks of one class with less IoU in more of their common frames. (People who walk together overlap less; people
# who cross overlap more briefly.)
CLOSE_IOU = 0.5
CLOSE_SHARE = 0.65
CLOSE_S = 0.3
# Parts: tracks with PART_INSIDE of the box inside another one in PART_SHARE of the frames, and less than PART_STRENGTH
# of its strength.
PART_INSIDE = 0.85
PART_SHARE = 0.8
PART_STRENGTH = 0.6


@dataclass(slots=True)
class _Overlap:
    """Number of frames in which two tracks exceed each IoU bound, and in which one is inside the other."""

    close: int = 0
    duplicate: int = 0
    duplicate_classes: int = 0
    inside: int = 0

    def add(self, other: _Overlap) -> None:
        self.close += other.close
        self.duplicate += other.duplicate
        self.duplicate_classes += other.duplicate_classes
        self.inside += other.inside


class TrackAssembler:
    """Assemble the tracked boxes of one video, in frame order, into tracks.

    A track is returned as soon as no later frame can change it, so memory depends on the number of visible objects, not
    on the video's length.

    Args:
        fps: decoded frames per second.
        names: the detector's class names.
        width, height: of the displayed video, pixels.
        settings: of which ``min_track_s`` is used.
        motion: whether boxes come from the motion detector, whose confidence does not tell objects from noise.
        keep_dropped: whether :meth:`take_dropped` is called.
    """

    def __init__(
        self,
        fps: float,
        names: Mapping[int, str],
        width: int,
        height: int,
        settings: Settings,
        *,
        motion: bool = False,
        keep_dropped: bool = False,
    ) -> None:
        if fps <= 0:
            raise ValueError(f"expected fps > 0, got {fps}")
        self._fps = fps
        self._names = dict(names)
        self._width, self._height = width, height
        self._settings = settings
        self._motion = motion
        self._next_id = 1
        self._first: int | None = None
        self._last = 0
        self._by_tracker_id: dict[int, Tracklet] = {}
        self._live: dict[int, Tracklet] = {}  # by track id; recently updated or waiting to be stitched
        self._overlaps: dict[tuple[int, int], _Overlap] = {}
        self._keep_dropped = keep_dropped
        self._dropped: list[Track] = []

    @property
    def _frames_seen(self) -> int:
        return 0 if self._first is None else self._last - self._first + 1

    def push(self, frame: int, tracked: Sequence[TrackedBox]) -> list[Track]:
        """Add one frame and return the tracks that are finished by now.

        Args:
            frame: 0-based index, larger than all before; frames without boxes may be left out.
            tracked: boxes of the frame.
        """
        self._first = frame if self._first is None else self._first
        self._last = frame
        present: list[Tracklet] = []
        boxes: list[FloatArray] = []
        for box in tracked:
            tracklet = self._by_tracker_id.get(box.track_id)
            if tracklet is None or (len(tracklet) and frame - tracklet.end > SILENT_S * self._fps):
                tracklet = self._start(box.track_id)
            if len(tracklet) and tracklet.end >= frame:
                continue  # a second tracker id of a merged tracklet
            tracklet.append(frame, box.xyxy, float(box.conf), int(box.class_id), box.colours)
            present.append(tracklet)
            boxes.append(box.xyxy)
        self._count_overlaps(present, np.array(boxes, np.float64))
        return self._finish(frame)

    def close(self) -> list[Track]:
        """Return the remaining tracks at the end of the video."""
        tracks = self._finish(None)
        self._by_tracker_id.clear()
        self._overlaps.clear()
        return tracks

    def take_dropped(self) -> list[Track]:
        """Return, once, the finished tracks that were too weak to be returned, of at least :data:`DROPPED_S`."""
        taken, self._dropped = self._dropped, []
        return taken

    def _start(self, tracker_id: int) -> Tracklet:
        tracklet = Tracklet(self._next_id)
        tracklet.tracker_ids.add(tracker_id)
        self._next_id += 1
        self._by_tracker_id[tracker_id] = tracklet
        self._live[tracklet.track_id] = tracklet
        return tracklet

    def _count_overlaps(self, present: list[Tracklet], boxes: Float64Array) -> None:
        if len(present) < 2:
            return
        iou, ios = _overlap_matrices(boxes)
        for i, j in np.argwhere(np.triu((iou >= CLOSE_IOU) | (ios >= PART_INSIDE), 1)):
            a, b = sorted((present[i].track_id, present[j].track_id))
            overlap = self._overlaps.setdefault((a, b), _Overlap())
            overlap.close += int(iou[i, j] >= CLOSE_IOU)
            overlap.duplicate += int(iou[i, j] >= DUPLICATE_IOU)
            overlap.duplicate_classes += int(iou[i, j] >= DUPLICATE_IOU_CLASSES)
            overlap.inside += int(ios[i, j] >= PART_INSIDE)

    def _finish(self, now: int | None) -> list[Track]:
        """Remove and return the tracks that can no longer change; all of them if ``now`` is ``None``."""
        wait = (STITCH_S + SILENT_S) * self._fps
        due = [t for t in self._live.values() if now is None or now - t.end > wait]
        if not due:
            return []
        self._stitch(due)
        tracks = []
        # The weakest first: a part must be dropped before its whole is returned.
        for tracklet in sorted(due, key=lambda t: (credibility.strength(t.conf), t.track_id)):
            if self._live.get(tracklet.track_id) is not tracklet or (now is not None and now - tracklet.end <= wait):
                continue  # merged into another, or continued by stitching
            if self._merge_duplicate(tracklet):
                continue
            if not self._is_part_of_others(tracklet):
                weak = self._is_weak(tracklet)
                kept = not weak or (self._keep_dropped and len(tracklet) >= DROPPED_S * self._fps)
                track = self._complete(tracklet) if kept else None
                if track is not None and weak:
                    self._dropped.append(track)
                elif track is not None:
                    tracks.append(track)
                    self._count_parts(tracklet)
            self._drop(tracklet)
        tracks.sort(key=lambda t: t.track_id)
        return tracks

    def _stitch(self, due: list[Tracklet]) -> None:
        """Merge due tracklets with the ones that continue them, until none is continued."""
        due_ids = {t.track_id for t in due}
        merged = True
        while merged:
            merged = False
            live = sorted(self._live.values(), key=lambda t: t.track_id)
            for tail, head in best_pairs(live, self._fps, STITCH_S, self._width, self._height):
                if tail.track_id in due_ids and tail.track_id in self._live and head.track_id in self._live:
                    self._merge(tail, head)
                    merged = True

    def _merge(self, keep: Tracklet, merged: Tracklet, first: Tracklet | None = None) -> None:
        keep.absorb(merged, first)
        for tracker_id in merged.tracker_ids:
            if self._by_tracker_id.get(tracker_id) is merged:
                self._by_tracker_id[tracker_id] = keep
        del self._live[merged.track_id]
        for pair in [p for p in self._overlaps if merged.track_id in p]:
            overlap = self._overlaps.pop(pair)
            other = pair[0] if pair[1] == merged.track_id else pair[1]
            if other != keep.track_id:
                a, b = sorted((other, keep.track_id))
                self._overlaps.setdefault((a, b), _Overlap()).add(overlap)

    def _drop(self, tracklet: Tracklet) -> None:
        del self._live[tracklet.track_id]
        for tracker_id in tracklet.tracker_ids:
            if self._by_tracker_id.get(tracker_id) is tracklet:
                del self._by_tracker_id[tracker_id]
        for pair in [p for p in self._overlaps if tracklet.track_id in p]:
            del self._overlaps[pair]

    def _related(self, tracklet: Tracklet) -> list[tuple[Tracklet, _Overlap]]:
        """Return the live tracklets that overlapped this one, and how much, by track id."""
        pairs = sorted(pair for pair in self._overlaps if tracklet.track_id in pair)
        return [(self._live[b if a == tracklet.track_id else a], self._overlaps[a, b]) for a, b in pairs]

    def _merge_duplicate(self, tracklet: Tracklet) -> bool:
        """Merge a tracklet into another one of the same object; return whether there is one."""
        for other, overlap in self._related(tracklet):
            common = len(np.intersect1d(tracklet.frames, other.frames, assume_unique=True))
            same_class = tracklet.top_class == other.top_class
            duplicate = overlap.duplicate if same_class else overlap.duplicate_classes
            if duplicate >= max(3.0, DUPLICATE_SHARE * common):
                self._merge(other, tracklet)
                return True
            if same_class and overlap.close >= max(CLOSE_S * self._fps, CLOSE_SHARE * common):
                # One shows the whole, one a part of the object: a mix of their boxes would jitter.
                self._merge(other, tracklet, first=max(other, tracklet, key=lambda t: sum(t.votes.values())))
                return True
        return False

    def _is_part_of_others(self, tracklet: Tracklet) -> bool:
        inside = tracklet.inside
        inside += sum(o.inside for other, o in self._related(tracklet) if _is_part(tracklet, other))
        return inside >= PART_SHARE * len(tracklet)

    def _count_parts(self, tracklet: Tracklet) -> None:
        for other, overlap in self._related(tracklet):
            if _is_part(other, tracklet):
                other.inside += overlap.inside

    def _is_weak(self, tracklet: Tracklet) -> bool:
        still = credibility.travelled(tracklet.xyxy) < MIN_TRAVEL
        return not self._motion and credibility.strength(tracklet.conf) < (
            MIN_STRENGTH_STILL if still else MIN_STRENGTH
        )

    def _complete(self, tracklet: Tracklet) -> Track | None:
        settings = self._settings
        # A video may be shorter than min_track_s.
        if len(tracklet) < min(max(1.0, settings.min_track_s * self._fps), self._frames_seen):
            return None
        if self._motion and credibility.travelled(tracklet.xyxy) < MIN_TRAVEL:
            return None  # leaves, a screen, a flag
        kept = credibility.core(tracklet.frames, tracklet.conf, self._fps)
        frames, xyxy, conf = fill_and_smooth(
            tracklet.frames[kept],
            tracklet.xyxy[kept],
            tracklet.conf[kept],
            round(MAX_GAP_S * self._fps),
            SMOOTH_S * self._fps,
        )
        xyxy = clip_xyxy(xyxy, self._width, self._height).astype(np.float32)
        visible = (xyxy[:, 2] - xyxy[:, 0] >= 1) & (xyxy[:, 3] - xyxy[:, 1] >= 1)
        if not visible.any():
            return None
        return Track(
            tracklet.track_id,
            frames[visible],
            xyxy[visible],
            conf[visible],
            {self._names.get(c, str(c)): float(v) for c, v in sorted(tracklet.votes.items())},
            None,
            credibility.track_score(tracklet),
        )


def _is_part(small: Tracklet, whole: Tracklet) -> bool:
    """Return whether a tracklet inside another can be a part of the same object: an arm, the legs, a reflection."""
    weaker = credibility.strength(small.conf) < PART_STRENGTH * credibility.strength(whole.conf)
    return weaker and small.top_class == whole.top_class


def _overlap_matrices(boxes: Float64Array) -> tuple[Float64Array, Float64Array]:
    """Return IoU and intersection over the smaller area of all pairs of ``(n, 4)`` boxes."""
    inter = intersection(boxes[:, None], boxes[None])
    area = np.maximum(box_area(boxes), 1e-6)
    return inter / (area[:, None] + area[None] - inter), inter / np.minimum(area[:, None], area[None])
