"""Linking detections over time: ultralytics' trackers, fed with our own detections."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ml_backend.core.settings import TrackerKind
from ml_backend.core.types import Affine, BoolArray, Detections, FloatArray, FrameFeatures
from ml_backend.detectors.ultralytics_setup import setup_ultralytics
from ml_backend.tracking import appearance

Floats = npt.NDArray[np.float32]

# A lost track is looked for this long. Longer absences are joined afterwards, when the future is known.
BUFFER_S = 1.0

# Thresholds for detections of confidence >= 0.1. Tracks may start from weak detections, because the assembler
# later drops those that never become credible: so the beginning of a life, far away and weak, is kept.
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

# Costs added where a track and a detection differ. Trackers of ultralytics ignore classes: without the first, a
# person who pushes a bicycle swaps boxes with it. It is small, since a car may look like a truck in some frames.
CLASS_COST = 0.15
COLOUR_COST = 0.4
COLOUR_FLOOR = 0.2  # differences up to this are light and pose
COLOUR_MEMORY = 0.9  # share of the old look that stays when a confident detection comes

# A box within another of its class and with less than this share of its confidence shows a part of the same object.
PART_INSIDE = 0.9
PART_CONF = 0.5


class TrackedBoxes(NamedTuple):
    """One detection that belongs to a track.

    Attributes:
        track_id: unique within one tracker.
        xyxy: ``(4,)`` float32, pixels: the detection's own box, not the filter's guess.
        conf: detector confidence.
        class_id: index into the detector's names.
        look: ``(9,)`` colours, see :func:`ml_backend.tracking.appearance.colour_histograms`; None without an image.
    """

    track_id: int
    xyxy: FloatArray
    conf: float
    class_id: int
    look: Floats | None = None


#: Where trackers want a picture, for the motion that is given instead.
_NO_PICTURE = np.zeros((1, 1, 3), np.uint8)


class Tracker:
    """One of ultralytics' trackers, for one video. It needs no pictures: see :mod:`ml_backend.tracking.frame_features`.

    Args:
        kind: which one.
        fps: frames per second that :meth:`update` will be called with; times are scaled by it.
        motion: thresholds for the motion detector's confidences instead of YOLO's.
    """

    def __init__(self, kind: TrackerKind, fps: float, *, motion: bool = False) -> None:
        setup_ultralytics()
        from ultralytics.trackers.track import TRACKER_MAP
        from ultralytics.utils import YAML
        from ultralytics.utils.checks import check_yaml

        if fps <= 0:
            raise ValueError(f"expected fps > 0, got {fps}")
        options: dict[str, Any] = dict(YAML.load(check_yaml(f"{kind}.yaml")))
        options.update(_MOTION if motion else _YOLO, **_EXTRA[kind])
        options.update(gmc_method="none", with_reid=False, track_buffer=max(1, round(BUFFER_S * fps)))
        options.update(occ_reappear_window=options["track_buffer"])  # FastTracker's second buffer
        self._tracker: Any = TRACKER_MAP[kind](args=SimpleNamespace(**options))
        self._camera: Affine = np.eye(2, 3)
        if hasattr(self._tracker, "gmc"):
            # Hands it the motion that was observed; any method but None means "on".
            self._tracker.gmc = SimpleNamespace(method="sparseOptFlow", apply=lambda *_: self._camera)
        # The one place where all of a tracker's evidence for "the same object" comes together.
        name = "_cost_matrix" if kind == "tracktrack" else "get_dists"
        setattr(self._tracker, name, self._with_looks(getattr(self._tracker, name)))
        self._buffer: int = options["track_buffer"]
        self._looks: Floats = np.zeros((0, appearance.SIZE), np.float32)  # of this frame's detections
        self._memory: dict[int, tuple[Floats, int]] = {}  # by track id: look, and frame of the last update
        self._frame = 0

    def update(self, observation: FrameFeatures) -> list[TrackedBoxes]:
        """Advance by one frame.

        Args:
            observation: of the frame; colours and camera motion are left out where it has none.

        Returns:
            The detections that belong to a track.
        """
        from ultralytics.engine.results import Boxes

        detections, looks = observation.detections, observation.detections.features
        kept = np.flatnonzero(~parts(detections))
        rows = np.column_stack([detections.xyxy, detections.conf, detections.class_id]).astype(np.float32)[kept]
        if looks is not None:
            self._looks = looks[kept]
        else:
            self._looks = np.full((len(rows), appearance.SIZE), np.nan, np.float32)
        picture = None
        if observation.camera is not None:
            self._camera, picture = observation.camera, _NO_PICTURE
        result: npt.NDArray[np.float32] = self._tracker.update(Boxes(rows.reshape(-1, 6), (1, 1)), picture)
        self._frame += 1
        tracked = []
        for row in result:
            track_id, index = int(row[4]), int(row[-1])
            if not 0 <= index < len(kept):
                continue
            i = kept[index]
            conf = float(detections.conf[i])
            self._remember(track_id, self._looks[index], conf)
            tracked.append(
                TrackedBoxes(
                    track_id,
                    detections.xyxy[i],
                    conf,
                    int(detections.class_id[i]),
                    self._looks[index] if looks is not None else None,
                )
            )
        for track_id in [k for k, (_, seen) in self._memory.items() if self._frame - seen > 2 * self._buffer]:
            del self._memory[track_id]
        return tracked

    def _remember(self, track_id: int, look: Floats, conf: float) -> None:
        old = self._memory.get(track_id)
        if old is not None and not np.isnan(old[0]).any():
            # Half-hidden objects are detected weakly and wear the colours of what hides them.
            share = (1 - COLOUR_MEMORY) * min(1.0, 2 * conf)
            look = old[0] if np.isnan(look).any() else (1 - share) * old[0] + share * look
        self._memory[track_id] = (look, self._frame)

    def _with_looks(self, cost: Callable[[list[Any], list[Any]], Floats]) -> Callable[[list[Any], list[Any]], Floats]:
        unknown = (np.full(appearance.SIZE, np.nan, np.float32), 0)

        def with_looks(tracks: list[Any], detections: list[Any]) -> Floats:
            out = cost(tracks, detections)
            if not out.size:
                return out
            before = np.stack([self._memory.get(t.track_id, unknown)[0] for t in tracks])
            now = self._looks[[int(d.idx) for d in detections]]
            unlike = np.nan_to_num(appearance.histogram_distance(before, now) - COLOUR_FLOOR).clip(0, 1)
            classes = np.array([t.cls for t in tracks])[:, None] != np.array([d.cls for d in detections])[None]
            return np.asarray(out + COLOUR_COST * unlike + CLASS_COST * classes, out.dtype)

        return with_looks


def parts(detections: Detections) -> BoolArray:
    """Which detections ``(n,)`` show only a part of a more confident one: the upper half of a person, say."""
    xyxy, conf = detections.xyxy, detections.conf
    low = np.maximum(xyxy[:, None, :2], xyxy[None, :, :2])
    high = np.minimum(xyxy[:, None, 2:], xyxy[None, :, 2:])
    inter = np.clip(high - low, 0, None).prod(-1)
    area = np.maximum((xyxy[:, 2:] - xyxy[:, :2]).prod(-1), 1e-6)
    inside = inter > PART_INSIDE * np.minimum(area[:, None], area[None])
    weaker = conf[:, None] < PART_CONF * conf[None]
    same = detections.class_id[:, None] == detections.class_id[None]
    return np.asarray((inside & weaker & same).any(axis=1), np.bool_)
