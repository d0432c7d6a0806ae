"""Run ultralytics' trackers on detections instead of images."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from ml_backend.core.settings import TrackerKind
from ml_backend.core.types import Affine, Detections, FloatArray, IntArray
from ml_backend.detectors.setup import setup_ultralytics
from ml_backend.tracking import appearance
from ml_backend.tracking.association import Thresholds, appearance_cost, blend_colours

# Options that differ from each tracker's own defaults.
_OPTIONS: dict[str, dict[str, Any]] = {
    "tracktrack": {"match_thresh": 0.7, "min_track_len": 1},
    "botsort": {"match_thresh": 0.8},
    "bytetrack": {"match_thresh": 0.8},
    "ocsort": {"match_thresh": 0.8, "use_byte": True},
    "deepocsort": {"match_thresh": 0.8, "use_byte": True},
    "fasttrack": {"match_thresh": 0.8},
}

#: Placeholder for the image from which trackers would estimate camera motion.
_NO_IMAGE = np.zeros((1, 1, 3), np.uint8)
_UNKNOWN = (np.full(appearance.SIZE, np.nan, np.float32), 0)


class UltralyticsTracker:
    """One of ultralytics' trackers, for one video, with colour and class costs.

    Args:
        kind: name of the tracker.
        thresholds: confidences of detections.
        buffer: frames for which a lost track may be found again.
    """

    def __init__(self, kind: TrackerKind, thresholds: Thresholds, buffer: int) -> None:
        setup_ultralytics()
        from ultralytics.trackers.track import TRACKER_MAP
        from ultralytics.utils import YAML
        from ultralytics.utils.checks import check_yaml

        options: dict[str, Any] = dict(YAML.load(check_yaml(f"{kind}.yaml")))
        options.update(_OPTIONS[kind], gmc_method="none", with_reid=False, track_buffer=buffer)
        options.update(track_high_thresh=thresholds.high, track_low_thresh=thresholds.low)
        options.update(new_track_thresh=thresholds.new, occ_reappear_window=buffer)  # FastTracker's second buffer
        self._tracker: Any = TRACKER_MAP[kind](args=SimpleNamespace(**options))
        self._camera: Affine = np.eye(2, 3)
        if hasattr(self._tracker, "gmc"):
            # Pass on the given camera motion; any method but None enables compensation.
            self._tracker.gmc = SimpleNamespace(method="sparseOptFlow", apply=lambda *_: self._camera)
        # The method that combines all of a tracker's association costs.
        name = "_cost_matrix" if kind == "tracktrack" else "get_dists"
        setattr(self._tracker, name, self._with_appearance(getattr(self._tracker, name)))
        self._buffer = buffer
        self._detections = Detections.empty()
        self._memory: dict[int, tuple[FloatArray, int]] = {}  # by track id: colours, frame of the last update
        self._frame = 0

    def update(self, detections: Detections, camera: Affine | None) -> tuple[IntArray, IntArray]:
        """Advance by one frame; see :meth:`ml_backend.tracking.tracktrack.TrackTrack.update`."""
        from ultralytics.engine.results import Boxes

        self._detections = detections
        rows = np.column_stack([detections.xyxy, detections.conf, detections.class_id]).astype(np.float32)
        image = None
        if camera is not None:
            self._camera, image = camera, _NO_IMAGE
        result = self._tracker.update(Boxes(rows.reshape(-1, 6), (1, 1)), image).reshape(-1, 8)
        self._frame += 1
        ids, chosen = result[:, 4].astype(np.int64), result[:, -1].astype(np.int64)
        found = (chosen >= 0) & (chosen < len(detections))
        ids, chosen = ids[found], chosen[found]
        if len(ids):
            self._remember(ids, chosen)
        return ids, chosen

    def _remember(self, ids: IntArray, chosen: IntArray) -> None:
        assert self._detections.colours is not None
        old = np.stack([self._memory.get(track_id, _UNKNOWN)[0] for track_id in ids])
        colours = blend_colours(old, self._detections.colours[chosen], self._detections.conf[chosen])
        self._memory.update((int(track_id), (row, self._frame)) for track_id, row in zip(ids, colours, strict=True))
        for track_id in [k for k, (_, seen) in self._memory.items() if self._frame - seen > 2 * self._buffer]:
            del self._memory[track_id]

    def _with_appearance(
        self, base_cost: Callable[[list[Any], list[Any]], FloatArray]
    ) -> Callable[[list[Any], list[Any]], FloatArray]:
        """Add colour and class costs to a tracker's association cost."""

        def cost(tracks: list[Any], candidates: list[Any]) -> FloatArray:
            out = base_cost(tracks, candidates)
            if not out.size:
                return out
            assert self._detections.colours is not None
            remembered = np.stack([self._memory.get(t.track_id, _UNKNOWN)[0] for t in tracks])
            current = self._detections.colours[[int(d.idx) for d in candidates]]
            classes = np.array([t.cls for t in tracks])[:, None], np.array([d.cls for d in candidates])[None]
            return np.asarray(
                out + appearance_cost(remembered[:, None], classes[0], current[None], classes[1]), out.dtype
            )

        return cost
