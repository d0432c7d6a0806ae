"""Track management: from a tracker's boxes, frame by frame, to finished tracks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ml_backend.core.boxes import clip_xyxy
from ml_backend.core.settings import Settings
from ml_backend.core.types import FloatArray, Track
from ml_backend.tracking import credibility
from ml_backend.tracking.smooth import fill_and_smooth
from ml_backend.tracking.stitch import best_pairs
from ml_backend.tracking.tracklet import Tracklet

MAX_GAP_S = 2.0  # gaps up to this are filled by interpolation; in longer ones nobody knows where it was
SMOOTH_S = 0.1  # standard deviation of the smoothing: takes the jitter of boxes away, and rounds no turn off
STITCH_S = 2.0  # pieces of one life are joined over gaps up to this
SILENT_S = 1.2  # a track unseen for so long will not be continued by the tracker itself
MIN_STRENGTH = 0.4  # of anything that is kept
MIN_STRENGTH_STILL = 0.5  # of what never moves: posters, dummies, reflections are weak *and* still
MOVES = 0.5  # box sizes; less is standing still
SAME_BOX = 0.7  # IoU at which two tracks of one class are one object ...
SAME_BOX_CLASSES = 0.8  # ... and of two classes: car and truck, but never a rider and the bicycle
INSIDE = 0.85  # share of a box inside another at which it may be a part of it
# Two tracks of one class are also one object where they are less alike, but for longer: all their common life. (People
# who walk together overlap less; who cross, more briefly.)
CLOSE = 0.5
CLOSE_LIFE = 0.65
CLOSE_S = 0.3
PART_LIFE = 0.8  # a part is inside for this share of its life ...
PART_STRENGTH = 0.6  # ... and that much less sure than the whole
SAME_LIFE = 0.6  # duplicates coincide in at least this share of the frames that show both

# As a tracker gives it out; see models/tracker.py.
TrackedBox = tuple[int, FloatArray, float, int] | tuple[int, FloatArray, float, int, FloatArray | None]


@dataclass(slots=True)
class _Overlap:
    """In how many frames two tracks were close: IoU over each bound, and one inside the other."""

    close: int = 0
    same: int = 0
    same_classes: int = 0
    inside: int = 0

    def add(self, other: _Overlap) -> None:
        self.close += other.close
        self.same += other.same
        self.same_classes += other.same_classes
        self.inside += other.inside


class TrackAssembler:
    """Turns tracked boxes into tracks while the video runs.

    A track is given out as soon as nothing that comes later can change it, so memory depends on how many objects are
    in the picture, not on the video's length. Feed one video, in frame order.

    Args:
        fps: decoded frames per second.
        names: the detector's class names.
        width, height: of the displayed picture, pixels.
        settings: ``min_track_s`` is used.
        motion: the boxes come from the motion detector, whose confidence says nothing about being real.
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
        self._live: dict[int, Tracklet] = {}  # by track id; seen lately or waiting for a continuation
        self._overlaps: dict[tuple[int, int], _Overlap] = {}

    @property
    def buffered(self) -> int:
        """Number of boxes held in memory."""
        return sum(len(tracklet) for tracklet in self._live.values())

    @property
    def _frames_seen(self) -> int:
        return 0 if self._first is None else self._last - self._first + 1

    def push(self, frame: int, tracked: Sequence[TrackedBox]) -> list[Track]:
        """Add one frame.

        Args:
            frame: 0-based index, larger than all before; frames without boxes may be left out.
            tracked: (tracker's id, ``(4,)`` xyxy, confidence, class id[, look]) of each box.

        Returns:
            Tracks that are finished by now.
        """
        self._first = frame if self._first is None else self._first
        self._last = frame
        present: list[Tracklet] = []
        for tracker_id, xyxy, conf, class_id, *look in tracked:
            tracklet = self._by_tracker_id.get(tracker_id)
            if tracklet is None or (len(tracklet) and frame - tracklet.end > SILENT_S * self._fps):
                tracklet = self._begin(tracker_id)
            if len(tracklet) and tracklet.end >= frame:
                continue  # two ids that were found to be one object
            tracklet.append(frame, xyxy, float(conf), int(class_id), look[0] if look else None)
            present.append(tracklet)
        self._note_overlaps(present)
        return self._finish(frame)

    def close(self) -> list[Track]:
        """The video is over: all remaining tracks."""
        tracks = self._finish(None)
        self._by_tracker_id.clear()
        self._overlaps.clear()
        return tracks

    def _begin(self, tracker_id: int) -> Tracklet:
        tracklet = Tracklet(self._next_id)
        tracklet.tracker_ids.add(tracker_id)
        self._next_id += 1
        self._by_tracker_id[tracker_id] = tracklet
        self._live[tracklet.track_id] = tracklet
        return tracklet

    def _note_overlaps(self, present: list[Tracklet]) -> None:
        if len(present) < 2:
            return
        boxes = np.concatenate([t.tail(1)[1] for t in present]).astype(np.float64)
        iou, ios = _overlap_matrices(boxes)
        for i, j in np.argwhere(np.triu((iou >= CLOSE) | (ios >= INSIDE), 1)):
            a, b = sorted((present[i].track_id, present[j].track_id))
            overlap = self._overlaps.setdefault((a, b), _Overlap())
            overlap.close += int(iou[i, j] >= CLOSE)
            overlap.same += int(iou[i, j] >= SAME_BOX)
            overlap.same_classes += int(iou[i, j] >= SAME_BOX_CLASSES)
            overlap.inside += int(ios[i, j] >= INSIDE)

    def _finish(self, now: int | None) -> list[Track]:
        """Give out what can no longer change; all of it when ``now`` is None."""
        wait = (STITCH_S + SILENT_S) * self._fps
        due = [t for t in self._live.values() if now is None or now - t.end > wait]
        if not due:
            return []
        self._stitch(due)
        tracks = []
        # The weakest first: what is only a part of something else is to go before that is given out.
        for tracklet in sorted(due, key=lambda t: (credibility.strength(t.conf), t.track_id)):
            if self._live.get(tracklet.track_id) is not tracklet or (now is not None and now - tracklet.end <= wait):
                continue  # has become part of another, or lives on
            if self._merge_duplicate(tracklet):
                continue
            if not self._is_part_of_others(tracklet):
                track = self._complete(tracklet)
                if track is not None:
                    tracks.append(track)
                    self._note_parts(tracklet)
            self._drop(tracklet)
        tracks.sort(key=lambda t: t.track_id)
        return tracks

    def _stitch(self, due: list[Tracklet]) -> None:
        """Join tails that are due with heads that continue them; a joined one may be continued in turn."""
        waiting = {t.track_id for t in due}
        merged = True
        while merged:
            merged = False
            everything = sorted(self._live.values(), key=lambda t: t.track_id)
            for tail, head in best_pairs(everything, self._fps, STITCH_S, self._width, self._height):
                if tail.track_id in waiting and tail.track_id in self._live and head.track_id in self._live:
                    self._merge(tail, head)
                    merged = True

    def _merge(self, keep: Tracklet, gone: Tracklet, first: Tracklet | None = None) -> None:
        keep.absorb(gone, first)
        for tracker_id in gone.tracker_ids:
            if self._by_tracker_id.get(tracker_id) is gone:
                self._by_tracker_id[tracker_id] = keep
        del self._live[gone.track_id]
        for pair in [p for p in self._overlaps if gone.track_id in p]:
            overlap = self._overlaps.pop(pair)
            other = pair[0] if pair[1] == gone.track_id else pair[1]
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
        """The live tracks that came close to this one, and how close; in order of their ids."""
        pairs = sorted(pair for pair in self._overlaps if tracklet.track_id in pair)
        return [(self._live[b if a == tracklet.track_id else a], self._overlaps[a, b]) for a, b in pairs]

    def _merge_duplicate(self, tracklet: Tracklet) -> bool:
        """Whether another track shows the same object; that one has taken over this one's boxes then."""
        for other, overlap in self._related(tracklet):
            common = len(np.intersect1d(tracklet.frames, other.frames, assume_unique=True))
            same_class = tracklet.top_class == other.top_class
            if (overlap.same if same_class else overlap.same_classes) >= max(3.0, SAME_LIFE * common):
                self._merge(other, tracklet)
                return True
            if same_class and overlap.close >= max(CLOSE_S * self._fps, CLOSE_LIFE * common):
                # Boxes of the whole and of a part: taking now these, now those would make the track tremble.
                self._merge(other, tracklet, first=max(other, tracklet, key=lambda t: sum(t.votes.values())))
                return True
        return False

    def _is_part_of_others(self, tracklet: Tracklet) -> bool:
        inside = tracklet.inside
        inside += sum(o.inside for other, o in self._related(tracklet) if _is_part(tracklet, other))
        return inside >= PART_LIFE * len(tracklet)

    def _note_parts(self, tracklet: Tracklet) -> None:
        for other, overlap in self._related(tracklet):
            if _is_part(other, tracklet):
                other.inside += overlap.inside

    def _complete(self, tracklet: Tracklet) -> Track | None:
        settings = self._settings
        # In a video of a few frames nothing can be seen for long.
        if len(tracklet) < min(max(1.0, settings.min_track_s * self._fps), self._frames_seen):
            return None
        still = credibility.travelled(tracklet.xyxy) < MOVES
        if self._motion:
            if still:
                return None  # leaves, a screen, a flag
        elif credibility.strength(tracklet.conf) < (MIN_STRENGTH_STILL if still else MIN_STRENGTH):
            return None
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
    """Whether a track that stays inside another can be a part of the same object: an arm, the legs, a reflection."""
    weaker = credibility.strength(small.conf) < PART_STRENGTH * credibility.strength(whole.conf)
    return weaker and small.top_class == whole.top_class


def _overlap_matrices(boxes: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """IoU, and intersection over the smaller area, of all pairs of ``(n, 4)`` boxes."""
    low = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    inter = np.clip(high - low, 0, None).prod(-1)
    area = np.maximum((boxes[:, 2:] - boxes[:, :2]).prod(-1), 1e-6)
    return inter / (area[:, None] + area[None] - inter), inter / np.minimum(area[:, None], area[None])
