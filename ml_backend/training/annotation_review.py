"""Compare a prediction with the annotation that a person made from it, region by region. Stores nothing."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from itertools import pairwise
from typing import Any, Literal, get_args

import numpy as np

from ml_backend.core.boxes import iou_matrix, iou_pairs
from ml_backend.core.types import Float64Array, IntArray
from ml_backend.datasets.export_state import fingerprint
from ml_backend.label_studio.client import Annotation, Prediction
from ml_backend.label_studio.regions import MALFORMED, region_boxes

log = logging.getLogger(__name__)

Kind = Literal["accepted", "undecided", "moved", "relabelled", "deleted", "merged", "added"]
KINDS: tuple[Kind, ...] = get_args(Kind)

#: IoU from which boxes count as equal: rounding and another choice of keyframes change them less.
SAME_IOU = 0.99
#: Percent of the frame by which Label Studio's rounding may move the edge of a box of any size.
ROUNDING = 0.002
#: IoU, on most frames, from which a region shows the same object as a deleted one.
COVERS_IOU = 0.5
#: Most frames of a deleted region that are compared with other regions.
MAX_SAMPLES = 25
#: Values beyond these are damaged: no video is that long, and no box lies that far outside the frame.
_MAX_FRAME, _MAX_PERCENT = 1 << 31, 1e6


@dataclass(frozen=True, slots=True)
class RegionDiff:
    """What a person did with one region.

    Attributes:
        kind: ``relabelled`` also if the region was moved too; ``undecided``: predicted without a label and left
            untouched.
        predicted_id: empty for a region drawn by hand.
        annotated_id: empty if the region was deleted or has no id; for a merged region, the id of the covering one.
    """

    kind: Kind
    predicted_id: str = ""
    annotated_id: str = ""


@dataclass(frozen=True, slots=True)
class AnnotationReview:
    """What a person did with a prediction.

    Attributes:
        diffs: predicted regions in their order, then added ones.
        tracks: number of annotated objects with a label.
    """

    diffs: tuple[RegionDiff, ...] = ()
    tracks: int = 0

    @property
    def counts(self) -> dict[str, int]:
        """Number of regions by kind; all kinds but ``added`` sum to the number of predicted regions."""
        kinds = [diff.kind for diff in self.diffs]
        return {kind: kinds.count(kind) for kind in KINDS}

    @property
    def hard(self) -> tuple[str, ...]:
        """Sorted ids of regions that the model got wrong.

        These are annotated regions that were moved, relabelled, added or replace another one, and predicted regions
        that were deleted without a replacement (false alarms).
        """
        wrong = [diff for diff in self.diffs if diff.kind not in ("accepted", "undecided")]
        ids = {diff.predicted_id if diff.kind == "deleted" else diff.annotated_id for diff in wrong}
        return tuple(sorted(ids - {""}))


def regions_fingerprint(result: Sequence[Any]) -> str:
    """Return a fingerprint of an annotation's video regions; other results (choices, texts) do not count."""
    return fingerprint([region for region in result if _is_video_region(region)])


def initial_prediction(annotation: Annotation, predictions: Sequence[Prediction]) -> Prediction | None:
    """Return the prediction that an annotation started from; ``None`` if there was none.

    It is the one that Label Studio names, else the one that shares most regions with the annotation, else the newest at
    that time. An annotation without regions that names none has no initial prediction.
    """
    named = [item for item in predictions if item.id == annotation.parent_prediction]
    if named:
        return named[0]
    annotated_ids = _ids(annotation.result)
    if not predictions or not any(_is_video_region(region) for region in annotation.result):
        return None
    common = {item.id: len(annotated_ids & _ids(item.result)) for item in predictions}
    shared = [item for item in predictions if common[item.id]]
    if shared:
        return max(shared, key=lambda item: (common[item.id], _or_earliest(item.created_at), item.id))
    existing = [
        item
        for item in predictions
        if not (item.created_at and annotation.created_at) or item.created_at <= annotation.created_at
    ]
    return max(existing, key=lambda item: (_or_earliest(item.created_at), item.id), default=None)


def was_replaced(annotation: Annotation, prediction: Prediction) -> bool:
    """Return whether a prediction was replaced after the annotation was started, so that the person saw another one."""
    if annotation.created_at is None or annotation.lead_s is None:
        return False
    if prediction.created_at is None or prediction.updated_at is None:
        return False
    started_at = annotation.created_at - timedelta(seconds=annotation.lead_s)
    # Label Studio sets both times on creation, a moment apart.
    return prediction.updated_at - prediction.created_at > timedelta(seconds=1) and started_at < prediction.updated_at


def review_annotation(predicted: Sequence[Any], annotated: Sequence[Any]) -> AnnotationReview:
    """Compare a prediction with the annotation that was made from it.

    Regions are matched by id, then by equal boxes, since imports lose the ids. Label Studio's ``origin`` is not used:
    annotations made by programs set it to anything.

    Args:
        predicted: the prediction's results, as in Label Studio's JSON. Types other than ``videorectangle`` and damaged
            regions are skipped.
        annotated: the annotation's results.
    """
    before, after = _read_regions(predicted, "a prediction"), _read_regions(annotated, "an annotation")
    pairs = _match_ids(before, after)
    _match_boxes(pairs, before, after)
    removed = [i for i, region in enumerate(before) if i not in pairs and region.keyframes]
    covering = dict(zip(removed, _find_covering([before[i] for i in removed], after), strict=True))
    diffs = [
        _diff_matched(region, after[pairs[i]]) if i in pairs else _diff_removed(region, covering.get(i))
        for i, region in enumerate(before)
    ]
    matched = set(pairs.values())
    diffs += [RegionDiff("added", "", region.id) for i, region in enumerate(after) if i not in matched]
    return AnnotationReview(tuple(diffs), sum(bool(region.labels) for region in after))


class _Region:
    """A parsed ``videorectangle`` result, with sorted keyframes, at most one per frame.

    Raises:
        KeyError, TypeError, ValueError, AttributeError, OverflowError: the result is damaged.
    """

    def __init__(self, region: Mapping[str, Any]) -> None:
        value = region["value"]
        self.id = str(region.get("id") or "")
        self.to_name = str(region.get("to_name") or "")
        labels = value.get("labels") or []
        if not isinstance(labels, list):
            raise ValueError(f"labels must be a list, not {labels!r:.40}")
        self.labels = frozenset(str(label) for label in labels)
        self.count = _frame_number(value.get("framesCount") or 0)
        keyframes = sorted(map(_parse_keyframe, value.get("sequence") or []), key=lambda key: key["frame"])
        self.keyframes = list({key["frame"]: key for key in keyframes}.values())
        self.keyframe_boxes = np.array([[key[name] for name in _BOX_FIELDS] for key in self.keyframes], np.float64)
        self.frames: IntArray = np.array([key["frame"] for key in self.keyframes], np.int64)  # ascending

    def _spans(self) -> IntArray:
        """Return ``(n, 2)`` first and last visible frame after each of ``n`` keyframes."""
        end = max(self.count, self.keyframes[-1]["frame"]) + 1 if self.keyframes else 0
        ends = [*(key["frame"] for key in self.keyframes[1:]), end]
        spans = [
            (key["frame"], after - 1 if key["enabled"] else key["frame"])
            for key, after in zip(self.keyframes, ends, strict=False)
        ]
        return np.array(spans, np.int64).reshape(-1, 2)

    @property
    def lifetime(self) -> tuple[int, int]:
        """First and last visible frame; the last is 0 if the region stays to the end of the video."""
        if not self.keyframes:
            return 0, 0
        last = self.keyframes[-1]
        return self.keyframes[0]["frame"], 0 if last["enabled"] else last["frame"]

    def sample(self) -> IntArray:
        """Return up to ``MAX_SAMPLES`` evenly spaced visible frames of a region with keyframes."""
        spans = self._spans()
        ends = np.cumsum(spans[:, 1] - spans[:, 0] + 1)
        offsets = np.unique(np.linspace(0, ends[-1] - 1, min(MAX_SAMPLES, int(ends[-1]))).astype(np.int64))
        span = np.searchsorted(ends, offsets, side="right")
        frames: IntArray = spans[span, 1] - (ends[span] - 1 - offsets)
        return frames

    def boxes(self, frames: IntArray) -> tuple[Float64Array, Any]:
        """Return ``(xyxy (n, 4), visible (n,))`` on these frames, in percent of the frame size."""
        value = {"value": {"framesCount": self.count, "sequence": self.keyframes}}
        _, xyxy, visible = region_boxes(value, 100, 100, frames)
        return xyxy, visible


_BOX_FIELDS = ("x", "y", "width", "height", "rotation")


def _parse_keyframe(key: Mapping[str, Any]) -> dict[str, Any]:
    values = {name: float(key[name]) for name in _BOX_FIELDS[:-1]} | {"rotation": float(key.get("rotation") or 0.0)}
    if not all(abs(value) <= _MAX_PERCENT for value in values.values()):
        raise ValueError("a box lies far outside the frame")
    return {"frame": _frame_number(key["frame"]), "enabled": bool(key.get("enabled")), **values}


def _frame_number(number: Any) -> int:
    value = int(number)
    if abs(value) >= _MAX_FRAME:
        raise ValueError(f"there is no frame {value}")
    return value


def _is_video_region(region: Any) -> bool:
    return isinstance(region, Mapping) and region.get("type") == "videorectangle"


def _ids(result: Sequence[Any]) -> set[str]:
    return {str(region["id"]) for region in result if _is_video_region(region) and region.get("id")}


def _or_earliest(moment: datetime | None) -> datetime:
    return moment or datetime.min.replace(tzinfo=timezone.utc)


def _read_regions(result: Sequence[Any], where: str) -> list[_Region]:
    regions = []
    for region in result:
        if not _is_video_region(region):
            continue
        try:
            regions.append(_Region(region))
        except MALFORMED as error:
            log.warning("Region %.64s of %s cannot be read: %r", region.get("id"), where, error)
    return regions


def _match_ids(before: Sequence[_Region], after: Sequence[_Region]) -> dict[int, int]:
    """Return predicted index -> annotated index of regions with the same id."""
    positions: dict[tuple[str, str], list[int]] = defaultdict(list)
    for i, region in enumerate(after):
        if region.id:
            positions[region.to_name, region.id].append(i)
    pairs = {}
    for i, region in enumerate(before):
        if unmatched := positions.get((region.to_name, region.id)):
            pairs[i] = unmatched.pop(0)
    return pairs


def _match_boxes(pairs: dict[int, int], before: Sequence[_Region], after: Sequence[_Region]) -> None:
    """Add pairs of unmatched regions with equal boxes, those with equal labels first."""
    candidates: dict[Any, list[int]] = defaultdict(list)
    matched = set(pairs.values())
    for j, region in enumerate(after):
        if region.keyframes and j not in matched:
            candidates[region.to_name, region.lifetime].append(j)
    same: list[tuple[int, int]] = []
    for i, region in enumerate(before):
        others = candidates.get((region.to_name, region.lifetime)) if region.keyframes and i not in pairs else None
        if others:  # the first box rules out nearly all others
            first = np.array([after[j].keyframe_boxes[0] for j in others])
            near = np.abs(first - region.keyframe_boxes[0]).max(axis=1) <= ROUNDING
            near |= iou_matrix([_corners(region)], [_corners(after[j]) for j in others])[0] >= SAME_IOU
            same += [(i, others[n]) for n in np.flatnonzero(near) if _same_boxes(region, after[others[n]])]
    for i, j in sorted(same, key=lambda pair: (before[pair[0]].labels != after[pair[1]].labels, pair)):
        if i not in pairs and j not in matched:
            pairs[i] = j
            matched.add(j)


def _corners(region: _Region) -> Float64Array:
    x, y, width, height, _ = region.keyframe_boxes[0]
    return np.array([x, y, x + width, y + height])


def _same_boxes(a: _Region, b: _Region) -> bool:
    if not a.keyframes or not b.keyframes:
        return not a.keyframes and not b.keyframes
    enabled = [[key["enabled"] for key in region.keyframes] for region in (a, b)]
    same_keys = enabled[0] == enabled[1] and bool((a.frames == b.frames).all())
    if same_keys and float(np.abs(a.keyframe_boxes - b.keyframe_boxes).max()) <= ROUNDING:
        return True
    # Boxes are linear between keyframes and change visibility only there, so it is enough to compare these frames.
    keyframes = np.union1d(a.frames, b.frames)
    middles = [(first + last) // 2 for first, last in pairwise(keyframes.tolist())]
    frames = np.unique(np.concatenate([keyframes, keyframes + 1, middles]))
    # Browsers report lengths of a video that differ by a frame or two.
    ends = [max(region.count, int(region.frames[-1])) for region in (a, b) if region.count]
    frames = frames[frames <= min(ends, default=int(frames[-1]))].astype(np.int64)
    (boxes_a, visible_a), (boxes_b, visible_b) = a.boxes(frames), b.boxes(frames)
    if (visible_a != visible_b).any():
        return False
    return bool((iou_pairs(boxes_a[visible_a], boxes_b[visible_b]) >= SAME_IOU).all())


def _diff_matched(before: _Region, after: _Region) -> RegionDiff:
    if before.labels != after.labels:
        return RegionDiff("relabelled", before.id, after.id)
    moved = not _same_boxes(before, after)
    return RegionDiff("moved" if moved else "accepted" if before.labels else "undecided", before.id, after.id)


def _diff_removed(before: _Region, cover: _Region | None) -> RegionDiff:
    return RegionDiff("merged", before.id, cover.id) if cover else RegionDiff("deleted", before.id)


def _find_covering(removed: Sequence[_Region], after: Sequence[_Region]) -> list[_Region | None]:
    """Return, for each removed region, the annotated one that shows the same object, or ``None``."""
    covering: list[_Region | None] = [None] * len(removed)
    best_overlaps = [0.0] * len(removed)
    samples = [region.sample() for region in removed]
    boxes = [region.boxes(frames)[0] for region, frames in zip(removed, samples, strict=True)]
    ends = np.array([(frames[0], frames[-1]) for frames in samples], np.int64).reshape(-1, 2)
    for other in (region for region in after if region.keyframes):
        first, last = other.lifetime
        alive = (ends[:, 1] >= first) & ((last <= 0) | (ends[:, 0] <= last))
        candidates = [int(i) for i in np.flatnonzero(alive) if removed[i].to_name == other.to_name]
        if not candidates:
            continue
        frames = np.unique(np.concatenate([samples[i] for i in candidates]))
        other_boxes, visible = other.boxes(frames)
        for i in candidates:
            index = np.searchsorted(frames, samples[i])
            overlap = np.where(visible[index], iou_pairs(boxes[i], other_boxes[index]), 0.0)
            overlap = overlap[overlap >= COVERS_IOU]
            if len(overlap) > len(samples[i]) / 2 and overlap.sum() > best_overlaps[i]:
                covering[i], best_overlaps[i] = other, float(overlap.sum())
    return covering
