"""What a person did with a prediction: region by region, from Label Studio's JSON. Pure; nothing is stored here."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from itertools import pairwise
from typing import Any, Literal, get_args

import numpy as np

from ml_backend.core.boxes import Float64Array, iou_matrix, iou_pairs
from ml_backend.core.types import IntArray
from ml_backend.datasets.export_state import fingerprint
from ml_backend.label_studio.client import Annotation, Prediction
from ml_backend.label_studio.regions import region_boxes

log = logging.getLogger(__name__)

Kind = Literal["accepted", "undecided", "moved", "relabelled", "deleted", "merged", "added"]
KINDS: tuple[Kind, ...] = get_args(Kind)

#: Boxes that overlap so on all frames are the same: what rounding and another choice of keyframes change is less.
SAME_IOU = 0.99
#: Percent of the picture by which Label Studio's rounding may move the edge of a box, however small that is.
ROUNDING = 0.002
#: A region that overlaps a deleted one so, on most frames, stands for the same object.
COVERS_IOU = 0.5
#: Frames of a deleted region that are looked at for what covers it.
SAMPLE = 25
#: Beyond these, numbers are damage: no video has so many frames, and no box lies so far outside the picture.
_MAX_FRAME, _MAX_PERCENT = 1 << 31, 1e6

_DAMAGED = (KeyError, TypeError, ValueError, AttributeError, OverflowError)


@dataclass(frozen=True, slots=True)
class RegionDiff:
    """What was done with one region.

    Attributes:
        kind: each region has one. Of a region that was both moved and relabelled it is ``relabelled``: what an object
            is matters more than its exact place. ``undecided``: predicted without a label, and left so, untouched.
        predicted_id: empty: drawn by hand.
        annotated_id: empty: deleted, or without an id; of a merged region that of the one that covers it.
    """

    kind: Kind
    predicted_id: str = ""
    annotated_id: str = ""


@dataclass(frozen=True, slots=True)
class AnnotationReview:
    """What a person did with a prediction.

    Attributes:
        decisions: the predicted regions in their order, then those that were added.
        tracks: annotated objects that have a label.
    """

    decisions: tuple[RegionDiff, ...] = ()
    tracks: int = 0

    @property
    def counts(self) -> dict[str, int]:
        """Number of regions by kind; all kinds but ``added`` sum to the number of predicted regions."""
        kinds = [decision.kind for decision in self.decisions]
        return {kind: kinds.count(kind) for kind in KINDS}

    @property
    def hard(self) -> tuple[str, ...]:
        """Ids of regions that the model did not get right, sorted.

        Annotated ones that were moved, relabelled, added, or took the place of another; and, of the prediction, those
        that were deleted with nothing in their place: false alarms.
        """
        wrong = [decision for decision in self.decisions if decision.kind not in ("accepted", "undecided")]
        found = {item.predicted_id if item.kind == "deleted" else item.annotated_id for item in wrong}
        return tuple(sorted(found - {""}))


def regions_fingerprint(result: Sequence[Any]) -> str:
    """The same for the same video regions of an annotation; what else it says (choices, texts) does not matter."""
    return fingerprint([region for region in result if _is_video_region(region)])


def initial_prediction(annotation: Annotation, predictions: Sequence[Prediction]) -> Prediction | None:
    """The prediction that a person had before him when he began; ``None`` where he had none.

    It is the one that Label Studio names, else the one that has most regions in common with the annotation, else the
    newest that was there. An annotation without regions that names none may just say that somebody has been here.
    """
    named = [item for item in predictions if item.id == annotation.parent_prediction]
    if named:
        return named[0]
    mine = _ids(annotation.result)
    if not predictions or not any(_is_video_region(region) for region in annotation.result):
        return None
    common = {item.id: len(mine & _ids(item.result)) for item in predictions}
    shared = [item for item in predictions if common[item.id]]
    if shared:
        return max(shared, key=lambda item: (common[item.id], _moment(item.created_at), item.id))
    there = [
        item
        for item in predictions
        if not (item.created_at and annotation.created_at) or item.created_at <= annotation.created_at
    ]
    return max(there, key=lambda item: (_moment(item.created_at), item.id), default=None)


def was_replaced(annotation: Annotation, prediction: Prediction) -> bool:
    """Whether a person may have begun before a prediction became what it is now: nobody knows what he saw then."""
    if annotation.created_at is None or annotation.lead_s is None:
        return False
    if prediction.created_at is None or prediction.updated_at is None:
        return False
    begun = annotation.created_at - timedelta(seconds=annotation.lead_s)
    # Label Studio sets both when it is made, a moment apart.
    return prediction.updated_at - prediction.created_at > timedelta(seconds=1) and begun < prediction.updated_at


def review_annotation(predicted: Sequence[Any], annotated: Sequence[Any]) -> AnnotationReview:
    """Compare a prediction with the annotation that came of it.

    Regions are matched by their ids, then, as imports lose these, by having the same boxes. What Label Studio says of
    their origin is not relied on: an annotation that a program made says what it likes.

    Args:
        predicted: the prediction's results, as in Label Studio's JSON. Other types than ``videorectangle``, and what
            is damaged, is passed over.
        annotated: the annotation's.
    """
    before, after = _read(predicted, "a prediction"), _read(annotated, "an annotation")
    pairs = _same_ids(before, after)
    _add_same_content(pairs, before, after)
    gone = [i for i, region in enumerate(before) if i not in pairs and region.keys]
    covers = dict(zip(gone, _covering([before[i] for i in gone], after), strict=True))
    decisions = [
        _kept(region, after[pairs[i]]) if i in pairs else _gone(region, covers.get(i))
        for i, region in enumerate(before)
    ]
    old = set(pairs.values())
    decisions += [RegionDiff("added", "", region.id) for i, region in enumerate(after) if i not in old]
    return AnnotationReview(tuple(decisions), sum(bool(region.labels) for region in after))


class _Region:
    """A ``videorectangle`` result that has been read; its keyframes are in order, one a frame.

    Raises:
        KeyError, TypeError, ValueError, AttributeError, OverflowError: it is damaged.
    """

    def __init__(self, region: Mapping[str, Any]) -> None:
        value = region["value"]
        self.id = str(region.get("id") or "")
        self.to_name = str(region.get("to_name") or "")
        labels = value.get("labels") or []
        if not isinstance(labels, list):
            raise ValueError(f"labels must be a list, not {labels!r:.40}")
        self.labels = frozenset(str(label) for label in labels)
        self.count = _whole(value.get("framesCount") or 0)
        keys = sorted((_key(key) for key in value.get("sequence") or []), key=lambda key: key["frame"])
        self.keys = list({key["frame"]: key for key in keys}.values())
        self.numbers = np.array([[key[name] for name in _NUMBERS] for key in self.keys], np.float64)
        self.frames: IntArray = np.array([key["frame"] for key in self.keys], np.int64)  # ascending

    def _spans(self) -> IntArray:
        """``(n, 2)`` first and last frames on which it is visible, one for each keyframe."""
        end = max(self.count, self.keys[-1]["frame"]) + 1 if self.keys else 0
        ends = [*(key["frame"] for key in self.keys[1:]), end]
        found = [
            (key["frame"], after - 1 if key["enabled"] else key["frame"])
            for key, after in zip(self.keys, ends, strict=False)
        ]
        return np.array(found, np.int64).reshape(-1, 2)

    @property
    def life(self) -> tuple[int, int]:
        """First and last visible frame; the last is 0 where the region stays to the end, wherever that is."""
        if not self.keys:
            return 0, 0
        last = self.keys[-1]
        return self.keys[0]["frame"], 0 if last["enabled"] else last["frame"]

    def sample(self) -> IntArray:
        """Up to ``SAMPLE`` of the frames on which it is visible, evenly; it has keyframes."""
        spans = self._spans()
        ends = np.cumsum(spans[:, 1] - spans[:, 0] + 1)
        at = np.unique(np.linspace(0, ends[-1] - 1, min(SAMPLE, int(ends[-1]))).astype(np.int64))
        span = np.searchsorted(ends, at, side="right")
        out: IntArray = spans[span, 1] - (ends[span] - 1 - at)
        return out

    def boxes(self, frames: IntArray) -> tuple[Float64Array, Any]:
        """``(xyxy (n, 4), visible (n,))`` on these frames, in percent of the picture."""
        value = {"value": {"framesCount": self.count, "sequence": self.keys}}
        _, xyxy, visible = region_boxes(value, 100, 100, frames)
        return xyxy, visible


_NUMBERS = ("x", "y", "width", "height", "rotation")


def _key(key: Mapping[str, Any]) -> dict[str, Any]:
    numbers = {name: float(key[name]) for name in _NUMBERS[:-1]} | {"rotation": float(key.get("rotation") or 0.0)}
    if not all(abs(number) <= _MAX_PERCENT for number in numbers.values()):
        raise ValueError("a box lies nowhere near the picture")
    return {"frame": _whole(key["frame"]), "enabled": bool(key.get("enabled", True)), **numbers}


def _whole(number: Any) -> int:
    value = int(number)
    if abs(value) >= _MAX_FRAME:
        raise ValueError(f"there is no frame {value}")
    return value


def _is_video_region(region: Any) -> bool:
    return isinstance(region, Mapping) and region.get("type") == "videorectangle"


def _ids(result: Sequence[Any]) -> set[str]:
    return {str(region["id"]) for region in result if _is_video_region(region) and region.get("id")}


def _moment(moment: datetime | None) -> datetime:
    return moment or datetime.min.replace(tzinfo=timezone.utc)


def _read(result: Sequence[Any], where: str) -> list[_Region]:
    found = []
    for region in result:
        if not _is_video_region(region):
            continue
        try:
            found.append(_Region(region))
        except _DAMAGED as error:
            log.warning("Region %.64s of %s cannot be read: %r", region.get("id"), where, error)
    return found


def _same_ids(before: Sequence[_Region], after: Sequence[_Region]) -> dict[int, int]:
    """Positions of annotated regions by those of the predicted ones that have the same id."""
    positions: dict[tuple[str, str], list[int]] = defaultdict(list)
    for i, region in enumerate(after):
        if region.id:
            positions[region.to_name, region.id].append(i)
    pairs = {}
    for i, region in enumerate(before):
        if waiting := positions.get((region.to_name, region.id)):
            pairs[i] = waiting.pop(0)
    return pairs


def _add_same_content(pairs: dict[int, int], before: Sequence[_Region], after: Sequence[_Region]) -> None:
    """Add pairs of other regions that have the same boxes; first those that have the same labels, too."""
    candidates: dict[Any, list[int]] = defaultdict(list)
    taken = set(pairs.values())
    for j, region in enumerate(after):
        if region.keys and j not in taken:
            candidates[region.to_name, region.life].append(j)
    same: list[tuple[int, int]] = []
    for i, region in enumerate(before):
        others = candidates.get((region.to_name, region.life)) if region.keys and i not in pairs else None
        if others:  # the first box rules out nearly all others
            first = np.array([after[j].numbers[0] for j in others])
            near = np.abs(first - region.numbers[0]).max(axis=1) <= ROUNDING
            near |= iou_matrix([_corners(region)], [_corners(after[j]) for j in others])[0] >= SAME_IOU
            same += [(i, others[n]) for n in np.flatnonzero(near) if _same_boxes(region, after[others[n]])]
    for i, j in sorted(same, key=lambda pair: (before[pair[0]].labels != after[pair[1]].labels, pair)):
        if i not in pairs and j not in taken:
            pairs[i] = j
            taken.add(j)


def _corners(region: _Region) -> Float64Array:
    x, y, width, height, _ = region.numbers[0]
    return np.array([x, y, x + width, y + height])


def _same_boxes(a: _Region, b: _Region) -> bool:
    if not a.keys or not b.keys:
        return not a.keys and not b.keys
    enabled = [[key["enabled"] for key in region.keys] for region in (a, b)]
    same_keys = enabled[0] == enabled[1] and bool((a.frames == b.frames).all())
    if same_keys and float(np.abs(a.numbers - b.numbers).max()) <= ROUNDING:
        return True
    # Boxes are linear in between, and appear and disappear at keyframes only: these frames tell of all others.
    keys = np.union1d(a.frames, b.frames)
    at = np.unique(np.concatenate([keys, keys + 1, [(first + last) // 2 for first, last in pairwise(keys.tolist())]]))
    # Browsers differ by a frame or two in how long a video is.
    ends = [max(region.count, int(region.frames[-1])) for region in (a, b) if region.count]
    at = at[at <= min(ends, default=int(at[-1]))].astype(np.int64)
    (mine, shown), (others, shown_too) = a.boxes(at), b.boxes(at)
    if (shown != shown_too).any():
        return False
    return bool((iou_pairs(mine[shown], others[shown]) >= SAME_IOU).all())


def _kept(before: _Region, after: _Region) -> RegionDiff:
    if before.labels != after.labels:
        return RegionDiff("relabelled", before.id, after.id)
    moved = not _same_boxes(before, after)
    return RegionDiff("moved" if moved else "accepted" if before.labels else "undecided", before.id, after.id)


def _gone(before: _Region, cover: _Region | None) -> RegionDiff:
    return RegionDiff("merged", before.id, cover.id) if cover else RegionDiff("deleted", before.id)


def _covering(gone: Sequence[_Region], after: Sequence[_Region]) -> list[_Region | None]:
    """For each region that is gone the one that stands for the same object now, if there is one."""
    found: list[_Region | None] = [None] * len(gone)
    most = [0.0] * len(gone)
    samples = [region.sample() for region in gone]
    boxes = [region.boxes(at)[0] for region, at in zip(gone, samples, strict=True)]
    ends = np.array([(at[0], at[-1]) for at in samples], np.int64).reshape(-1, 2)
    for other in (region for region in after if region.keys):
        first, last = other.life
        alive = (ends[:, 1] >= first) & ((last <= 0) | (ends[:, 0] <= last))
        near = [int(i) for i in np.flatnonzero(alive) if gone[i].to_name == other.to_name]
        if not near:
            continue
        frames = np.unique(np.concatenate([samples[i] for i in near]))
        theirs, visible = other.boxes(frames)
        for i in near:
            where = np.searchsorted(frames, samples[i])
            overlap = np.where(visible[where], iou_pairs(boxes[i], theirs[where]), 0.0)
            overlap = overlap[overlap >= COVERS_IOU]
            if len(overlap) > len(samples[i]) / 2 and overlap.sum() > most[i]:
                found[i], most[i] = other, float(overlap.sum())
    return found
