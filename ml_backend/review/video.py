"""What is known of a video's tracks, and what several checks derive from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from ml_backend.core.boxes import boxes_by_frame, iou_matrix
from ml_backend.core.types import Detections, Float64Array, IntArray, Track
from ml_backend.embeddings.crop_embeddings import CropEmbedding
from ml_backend.labeling.few_shot.identity_jumps import TrackViews, centred

#: IoU of a crop with a track's box from which it shows the track, and with another one's from which it shows both.
SHOWS_IOU, SHARED_IOU = 0.6, 0.3
#: IoU from which a detection, of any confidence, supports a box: drawn boxes are loose.
SUPPORTS_IOU = 0.3
#: Crops per track: more than for labels, since a jump may be anywhere.
CROPS_PER_TRACK = 8


@dataclass(frozen=True, slots=True)
class ReviewVideo:
    """The tracks of one video.

    Attributes:
        tracks: with labels; frames from 0, in whatever numbering ``crops`` and ``detections`` have too.
        fps: frames per second of that numbering.
        width, height: of the picture, in the boxes' unit.
        frames: number of frames.
        task: id of the task.
        crops: embedded crops of any boxes; those that fit a track's boxes are its views.
        detections: by frame, on each frame that the detector saw; including weak ones. ``None``: not detected.
        class_names: of the detections, by class id from 0.
        class_labels: label of each class that has one; objects of other classes are not missed.
    """

    tracks: Sequence[Track]
    fps: float
    width: float
    height: float
    frames: int
    task: int = 0
    crops: Sequence[CropEmbedding] = field(default=(), repr=False)
    detections: Mapping[int, Detections] | None = field(default=None, repr=False)
    class_names: Mapping[int, str] = field(default_factory=dict, repr=False)
    class_labels: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Views:
    """Views of a track that show no other one, in order of time.

    Attributes:
        frames: ``(m,)``.
        looks: embeddings and colours.
        unit: ``(m, d)`` both, less those of the video's mean view, so that products of rows are likeness, -1 to 1, and
            products of rows' means the mean likeness.
    """

    frames: IntArray
    looks: TrackViews
    unit: Float64Array


class Evidence:
    """Derived facts of a :class:`ReviewVideo`; each is computed when it is first asked for."""

    def __init__(self, video: ReviewVideo) -> None:
        self.video = video
        self.by_id = {track.track_id: track for track in video.tracks}
        self._order = {track.track_id: n for n, track in enumerate(video.tracks)}

    @cached_property
    def rows_by_frame(self) -> dict[int, tuple[IntArray, Float64Array]]:
        """Track ids ``(n,)`` and boxes ``(n, 4)`` of each frame with boxes."""
        tracks = self.video.tracks
        ids = np.array([track.track_id for track in tracks], np.int64)
        found = boxes_by_frame([track.frames for track in tracks], [track.xyxy for track in tracks])
        return {frame: (ids[rows], boxes) for frame, (rows, boxes) in found.items()}

    @cached_property
    def support(self) -> dict[int, Float64Array]:
        """Best IoU ``(n,)`` of each track's boxes with a detection, by track id; NaN on frames not detected."""
        out: dict[int, Float64Array] = {track.track_id: np.full(len(track), np.nan) for track in self.video.tracks}
        for frame, found in (self.video.detections or {}).items():
            ids, boxes = self.rows_by_frame.get(frame, (np.zeros(0, np.int64), np.zeros((0, 4))))
            best = iou_matrix(boxes, found.xyxy).max(axis=1, initial=0.0) if len(ids) else ()
            for track_id, iou in zip(ids.tolist(), best, strict=True):
                track = self.by_id[track_id]
                out[track_id][np.searchsorted(track.frames, frame)] = iou
        return out

    @cached_property
    def crops(self) -> dict[int, list[CropEmbedding]]:
        """Crops that show a track and no other one, by track id, in order of time; one of each frame."""
        chosen: dict[int, dict[int, CropEmbedding]] = {}
        for crop in self.video.crops:
            ids, boxes = self.rows_by_frame.get(crop.frame, (np.zeros(0, np.int64), np.zeros((0, 4))))
            if not len(ids):
                continue
            iou = iou_matrix(boxes, [crop.xyxy])[:, 0]
            best = int(iou.argmax())
            if iou[best] < SHOWS_IOU:
                continue
            others = iou_matrix(boxes, boxes[best : best + 1])[:, 0]
            if np.delete(others, best).max(initial=0.0) < SHARED_IOU:
                chosen.setdefault(int(ids[best]), {})[crop.frame] = crop
        return {track_id: [crops[frame] for frame in sorted(crops)] for track_id, crops in chosen.items()}

    @cached_property
    def views(self) -> dict[int, Views]:
        """Views of the tracks that have any, by track id."""
        frames = {track_id: np.array([crop.frame for crop in crops]) for track_id, crops in self.crops.items()}
        looks = {track_id: TrackViews.of(crops) for track_id, crops in self.crops.items()}
        if not looks:
            return {}
        centre = TrackViews(
            np.mean([look.vectors.mean(axis=0) for look in looks.values()], axis=0),
            np.mean([look.colours.mean(axis=0) for look in looks.values()], axis=0),
        )
        return {
            track_id: Views(frames[track_id], look, np.concatenate(centred(look, centre), axis=1) / np.sqrt(2))
            for track_id, look in looks.items()
        }

    @cached_property
    def mean_views(self) -> dict[int, Float64Array]:
        """Mean of each track's views ``(d,)``, by track id."""
        return {track_id: views.unit.mean(axis=0) for track_id, views in self.views.items()}
