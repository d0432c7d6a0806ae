"""Link detections over time."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple, Protocol

import numpy as np

from ml_backend.core.boxes import box_area, intersection
from ml_backend.core.settings import TrackerKind
from ml_backend.core.types import Affine, BoolArray, Detections, FloatArray, FrameFeatures, IntArray
from ml_backend.tracking import appearance
from ml_backend.tracking.association import Thresholds
from ml_backend.tracking.tracktrack import TrackTrack

# How long the tracker keeps a lost track. Longer gaps are stitched afterwards, when the later frames are known.
BUFFER_S = 1.0

# For detections of confidence >= 0.1. Tracks may start from weak detections, so that they include the time when the
# object is far away; the assembler drops tracks that never become credible.
_YOLO = Thresholds(high=0.25, low=0.1, new=0.25)
# The motion detector's confidence is the share of moving pixels in a box, which is no reason to prefer a box.
_MOTION = Thresholds(high=0.3, low=0.1, new=0.3)

# A box inside another one of its class, with less than this share of its confidence, is part of the same object.
PART_INSIDE = 0.9
PART_CONF = 0.5


class TrackedBox(NamedTuple):
    """One detection that belongs to a track.

    Attributes:
        track_id: unique within one tracker.
        xyxy: ``(4,)`` float32, pixels: the detected box, not the filter's estimate.
        conf: detector confidence.
        class_id: index into the detector's names.
        colours: ``(9,)``, see :func:`ml_backend.tracking.appearance.mean_colours`; ``None`` if unknown.
    """

    track_id: int
    xyxy: FloatArray
    conf: float
    class_id: int
    colours: FloatArray | None = None


class _Association(Protocol):
    """Associates the detections of one frame with tracks; see :class:`ml_backend.tracking.tracktrack.TrackTrack`."""

    def update(self, detections: Detections, camera: Affine | None) -> tuple[IntArray, IntArray]: ...


class Tracker:
    """A tracker for one video, fed with :class:`FrameFeatures`.

    Args:
        kind: name of the tracker: our own TrackTrack, or another one of ultralytics'.
        fps: frames per second passed to :meth:`update`.
        motion: whether to use thresholds for the motion detector's confidences instead of YOLO's.
    """

    def __init__(self, kind: TrackerKind, fps: float, *, motion: bool = False) -> None:
        if fps <= 0:
            raise ValueError(f"expected fps > 0, got {fps}")
        thresholds, buffer = _MOTION if motion else _YOLO, max(1, round(BUFFER_S * fps))
        self._association: _Association
        if kind == "tracktrack":
            self._association = TrackTrack(thresholds, buffer)
        else:
            from ml_backend.tracking.ultralytics_tracker import UltralyticsTracker  # imports PyTorch

            self._association = UltralyticsTracker(kind, thresholds, buffer)

    def update(self, frame: FrameFeatures) -> list[TrackedBox]:
        """Advance by one frame and return the detections that belong to a track.

        Colours and camera motion are ignored if ``frame`` has none.
        """
        found = frame.detections
        kept = np.flatnonzero(~parts(found))
        colours = found.colours
        if colours is None:
            colours = np.full((len(found), appearance.SIZE), np.nan, np.float32)
        whole = replace(found, colours=colours).take(kept)
        ids, chosen = self._association.update(whole, frame.camera)
        return [
            TrackedBox(
                track_id,
                found.xyxy[i],
                float(found.conf[i]),
                int(found.class_id[i]),
                None if found.colours is None else found.colours[i],
            )
            for track_id, i in zip(ids.tolist(), kept[chosen].tolist(), strict=True)
        ]


def parts(detections: Detections) -> BoolArray:
    """Return an ``(n,)`` mask of detections that show a part of a more confident one, like a person's upper half."""
    xyxy, conf = detections.xyxy, detections.conf
    area = np.maximum(box_area(xyxy), 1e-6)
    inside = intersection(xyxy[:, None], xyxy[None]) > PART_INSIDE * np.minimum(area[:, None], area[None])
    weaker = conf[:, None] < PART_CONF * conf[None]
    same_class = detections.class_id[:, None] == detections.class_id[None]
    return np.asarray((inside & weaker & same_class).any(axis=1), np.bool_)
