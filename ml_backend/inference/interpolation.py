"""Interpolate the detections of skipped frames from those of the sampled frames before and after."""

from __future__ import annotations

from typing import NamedTuple

import lap
import numpy as np

from ml_backend.core.boxes import iou_matrix
from ml_backend.core.types import Detections, FloatArray, IntArray

#: Confidence from which an unmatched detection means that an object appeared or left; weaker ones flicker.
CONFIDENT = 0.75
#: Least IoU of an object with itself a few frames later. With less it moves fast, turns, or is another object.
MIN_IOU = 0.5
#: IoU with a second object, as a share of the IoU with the matched one, above which a match is ambiguous.
MAX_RIVAL_IOU_SHARE = 0.5


class MatchedDetections(NamedTuple):
    """Matched detections of two frames: ``(n,)`` indices into those of the earlier and of the later frame."""

    first: IntArray
    second: IntArray


def match_detections(a: Detections, b: Detections) -> MatchedDetections | None:
    """Match the detections of two frames; ``None`` if that is ambiguous.

    A match is unambiguous if each confident detection overlaps one detection of its class in the other frame well, and
    no other one nearly as much.
    """
    iou = iou_matrix(a.xyxy, b.xyxy)
    iou[a.class_id[:, None] != b.class_id[None]] = 0
    first: IntArray = np.zeros(0, np.int64)
    second: IntArray = first
    if iou.size:  # lap writes outside of empty arrays
        _, columns, _ = lap.lapjv(1 - iou, extend_cost=True)  # SciPy's equal takes a quarter of a second to import
        first = np.flatnonzero(columns >= 0)
        second = columns[first]
    good = iou[first, second] >= MIN_IOU
    first, second = first[good], second[good]
    if _has_confident_unmatched(a.conf, first) or _has_confident_unmatched(b.conf, second):
        return None
    best = iou[first, second]
    rest = iou.copy()
    rest[first, second] = 0
    confident = (a.conf[first] >= CONFIDENT) | (b.conf[second] >= CONFIDENT)
    rival = np.maximum(rest[first].max(axis=1, initial=0), rest[:, second].max(axis=0, initial=0))
    if bool((rival[confident] > MAX_RIVAL_IOU_SHARE * best[confident]).any()):
        return None
    return MatchedDetections(first.astype(np.int64), second.astype(np.int64))


def _has_confident_unmatched(conf: FloatArray, matched: IntArray) -> bool:
    unmatched = np.ones(len(conf), np.bool_)
    unmatched[matched] = False
    return bool((conf[unmatched] >= CONFIDENT).any())


def interpolate_detections(a: Detections, b: Detections, matched: MatchedDetections, share: float) -> Detections:
    """Interpolate matched detections linearly.

    Args:
        a, b: detections of the earlier and the later frame.
        matched: from :func:`match_detections`.
        share: position in time, from 0 (earlier frame) to 1 (later frame).
    """
    i, j = matched
    xyxy = (1 - share) * a.xyxy[i] + share * b.xyxy[j]
    # Not the mean: tracks are judged by their highest confidences, which averaging would lower.
    conf = a.conf[i] if share <= 0.5 else b.conf[j]
    colours = None
    if a.colours is not None and b.colours is not None:
        colours = ((1 - share) * a.colours[i] + share * b.colours[j]).astype(np.float32)
    return Detections(xyxy.astype(np.float32), conf, a.class_id[i], colours)
