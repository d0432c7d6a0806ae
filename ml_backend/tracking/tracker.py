"""Link detections over time with ultralytics' trackers."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ml_backend.core.settings import TrackerKind
from ml_backend.core.types import Affine, BoolArray, Detections, FloatArray, FrameFeatures
from ml_backend.detectors.setup import setup_ultralytics
from ml_backend.tracking import appearance

# How long the tracker keeps a lost track. Longer gaps are stitched afterwards, when the later frames are known.
BUFFER_S = 1.0

# Thresholds for detections of confidence >= 0.1. Tracks may start from weak detections, so that they include the time
# when the object is far away; the assembler drops tracks that never become credible.
_YOLO = {"track_high_thresh": 0.25, "track_low_thresh": 0.1, "new_track_thresh": 0.25}
# The motion detector's confidence is the share of moving pixels in a box, which is no reason to prefer a box.
_MOTION = {"track_high_thresh": 0.3, "track_low_thresh": 0.1, "new_track_thresh": 0.3}

# Options that differ from each tracker's own defaults.
_EXTRA: dict[str, dict[str, Any]] = {
    "tracktrack": {"match_thresh": 0.7, "min_track_len": 1},
    "botsort": {"match_thresh": 0.8},
    "bytetrack": {"match_thresh": 0.8},
    "ocsort": {"match_thresh": 0.8, "use_byte": True},
    "deepocsort": {"match_thresh": 0.8, "use_byte": True},
    "fasttrack": {"match_thresh": 0.8},
}

# Costs added where a track and a detection differ. Ultralytics' trackers ignore classes: without the class cost a
# person who pushes a bicycle swaps boxes with it. It is small, since a car may be detected as a truck in some frames.
CLASS_COST = 0.15
COLOUR_COST = 0.4
COLOUR_FLOOR = 0.2  # smaller distances are due to light and pose
COLOUR_MEMORY = 0.9  # share of the old colours that a confident detection leaves

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


#: Placeholder for the image from which trackers would estimate camera motion.
_NO_IMAGE = np.zeros((1, 1, 3), np.uint8)


class Tracker:
    """One of ultralytics' trackers, for one video, fed with :class:`FrameFeatures` instead of images.

    Args:
        kind: name of the tracker.
        fps: frames per second passed to :meth:`update`.
        motion: whether to use thresholds for the motion detector's confidences instead of YOLO's.
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
            # Pass on the given camera motion; any method but None enables compensation.
            self._tracker.gmc = SimpleNamespace(method="sparseOptFlow", apply=lambda *_: self._camera)
        # The method that combines all of a tracker's association costs.
        name = "_cost_matrix" if kind == "tracktrack" else "get_dists"
        setattr(self._tracker, name, self._with_appearance(getattr(self._tracker, name)))
        self._buffer: int = options["track_buffer"]
        self._colours: FloatArray = np.zeros((0, appearance.SIZE), np.float32)  # of the current detections
        self._memory: dict[int, tuple[FloatArray, int]] = {}  # by track id: colours, frame of the last update
        self._frame = 0

    def update(self, frame: FrameFeatures) -> list[TrackedBox]:
        """Advance by one frame and return the detections that belong to a track.

        Colours and camera motion are ignored if ``frame`` has none.
        """
        from ultralytics.engine.results import Boxes

        detections, colours = frame.detections, frame.detections.colours
        kept = np.flatnonzero(~parts(detections))
        rows = np.column_stack([detections.xyxy, detections.conf, detections.class_id]).astype(np.float32)[kept]
        if colours is not None:
            self._colours = colours[kept]
        else:
            self._colours = np.full((len(rows), appearance.SIZE), np.nan, np.float32)
        image = None
        if frame.camera is not None:
            self._camera, image = frame.camera, _NO_IMAGE
        result: npt.NDArray[np.float32] = self._tracker.update(Boxes(rows.reshape(-1, 6), (1, 1)), image)
        self._frame += 1
        tracked = []
        for row in result:
            track_id, index = int(row[4]), int(row[-1])
            if not 0 <= index < len(kept):
                continue
            i = kept[index]
            conf = float(detections.conf[i])
            self._remember(track_id, self._colours[index], conf)
            tracked.append(
                TrackedBox(
                    track_id,
                    detections.xyxy[i],
                    conf,
                    int(detections.class_id[i]),
                    self._colours[index] if colours is not None else None,
                )
            )
        for track_id in [k for k, (_, seen) in self._memory.items() if self._frame - seen > 2 * self._buffer]:
            del self._memory[track_id]
        return tracked

    def _remember(self, track_id: int, colours: FloatArray, conf: float) -> None:
        old, _ = self._memory.get(track_id, (None, 0))
        if old is not None and not np.isnan(old).any():
            # Half-hidden objects are detected with low confidence and show the colours of what hides them.
            share = (1 - COLOUR_MEMORY) * min(1.0, 2 * conf)
            colours = old if np.isnan(colours).any() else (1 - share) * old + share * colours
        self._memory[track_id] = (colours, self._frame)

    def _with_appearance(
        self, base_cost: Callable[[list[Any], list[Any]], FloatArray]
    ) -> Callable[[list[Any], list[Any]], FloatArray]:
        """Add colour and class costs to a tracker's association cost."""
        unknown = (np.full(appearance.SIZE, np.nan, np.float32), 0)

        def cost(tracks: list[Any], detections: list[Any]) -> FloatArray:
            out = base_cost(tracks, detections)
            if not out.size:
                return out
            remembered = np.stack([self._memory.get(t.track_id, unknown)[0] for t in tracks])
            current = self._colours[[int(d.idx) for d in detections]]
            distance = np.nan_to_num(appearance.colour_distance(remembered, current) - COLOUR_FLOOR).clip(0, 1)
            class_differs = np.array([t.cls for t in tracks])[:, None] != np.array([d.cls for d in detections])[None]
            return np.asarray(out + COLOUR_COST * distance + CLASS_COST * class_differs, out.dtype)

        return cost


def parts(detections: Detections) -> BoolArray:
    """Return an ``(n,)`` mask of detections that show a part of a more confident one, like a person's upper half."""
    xyxy, conf = detections.xyxy, detections.conf
    low = np.maximum(xyxy[:, None, :2], xyxy[None, :, :2])
    high = np.minimum(xyxy[:, None, 2:], xyxy[None, :, 2:])
    inter = np.clip(high - low, 0, None).prod(-1)
    area = np.maximum((xyxy[:, 2:] - xyxy[:, :2]).prod(-1), 1e-6)
    inside = inter > PART_INSIDE * np.minimum(area[:, None], area[None])
    weaker = conf[:, None] < PART_CONF * conf[None]
    same_class = detections.class_id[:, None] == detections.class_id[None]
    return np.asarray((inside & weaker & same_class).any(axis=1), np.bool_)
