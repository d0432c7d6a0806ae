"""Linking detections over time: ultralytics' trackers, fed with our own detections."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ml_backend.models._ultralytics import setup_ultralytics
from ml_backend.models.camera_motion import CameraMotion
from ml_backend.settings import TrackerKind
from ml_backend.types import Detections, FloatArray, Image

# A lost track is looked for this long. Longer absences are joined afterwards, with the future known (see tracks.py).
BUFFER_S = 1.0

# Thresholds for detections of confidence >= 0.1. Tracks may start from weak detections, because the assembler
# later drops those that never become credible: only so is the beginning of a life, far away and weak, kept.
_YOLO = {"track_high_thresh": 0.25, "track_low_thresh": 0.1, "new_track_thresh": 0.25}
# The motion detector's confidence says how full a box is with movement, which is no reason to prefer a box.
_MOTION = {"track_high_thresh": 0.3, "track_low_thresh": 0.1, "new_track_thresh": 0.3}

# What each tracker needs besides its own defaults.
_EXTRA: dict[str, dict[str, Any]] = {
    "tracktrack": {"match_thresh": 0.7, "min_track_len": 1},
    "botsort": {"match_thresh": 0.8},
    "bytetrack": {"match_thresh": 0.8},
    "ocsort": {"match_thresh": 0.8, "use_byte": True},
    "deepocsort": {"match_thresh": 0.8, "use_byte": True},
    "fasttrack": {"match_thresh": 0.8},
}


class Tracked(NamedTuple):
    """One detection that belongs to a track.

    Attributes:
        track_id: unique within one tracker.
        xyxy: ``(4,)`` float32, pixels.
        conf: detector confidence.
        class_id: index into the detector's names.
    """

    track_id: int
    xyxy: FloatArray
    conf: float
    class_id: int


class Tracker:
    """One of ultralytics' trackers, for one video.

    Args:
        kind: which one.
        fps: frames per second that :meth:`update` will be called with; times are scaled by it.
        motion: thresholds for the motion detector's confidences instead of YOLO's.
        camera_motion: compensate for a moving camera (the trackers that know how to).
    """

    def __init__(self, kind: TrackerKind, fps: float, *, motion: bool = False, camera_motion: bool = True) -> None:
        setup_ultralytics()
        from ultralytics.trackers.track import TRACKER_MAP
        from ultralytics.utils import YAML
        from ultralytics.utils.checks import check_yaml

        if fps <= 0:
            raise ValueError(f"expected fps > 0, got {fps}")
        options: dict[str, Any] = dict(YAML.load(check_yaml(f"{kind}.yaml")))
        options.update(_MOTION if motion else _YOLO, **_EXTRA[kind])
        options.update(gmc_method="none", with_reid=False, track_buffer=max(1, round(BUFFER_S * fps)))
        self._tracker: Any = TRACKER_MAP[kind](args=SimpleNamespace(**options))
        if camera_motion and hasattr(self._tracker, "gmc"):
            self._tracker.gmc = CameraMotion()

    def update(self, detections: Detections, image: Image | None = None) -> list[Tracked]:
        """Advance by one frame.

        Args:
            detections: all detections of the frame.
            image: the frame, BGR; needed for camera motion only.

        Returns:
            The detections that belong to a track, each with its own box (not the filter's guess).
        """
        from ultralytics.engine.results import Boxes

        rows = np.column_stack([detections.xyxy, detections.conf, detections.class_id]).astype(np.float32)
        shape = image.shape[:2] if image is not None else (1, 1)
        result: npt.NDArray[np.float32] = self._tracker.update(
            Boxes(rows.reshape(-1, 6), shape), image, feats=detections.features
        )
        tracked = []
        for row in result:
            track_id, index = int(row[4]), int(row[-1])
            if 0 <= index < len(detections):
                tracked.append(
                    Tracked(
                        track_id,
                        detections.xyxy[index],
                        float(detections.conf[index]),
                        int(detections.class_id[index]),
                    )
                )
        return tracked

    def reset(self) -> None:
        """Forget everything: the next frame begins a new video."""
        self._tracker.reset()
