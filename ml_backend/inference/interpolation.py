"""Detections of frames that were not looked at, from those of the frames before and after."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

from ml_backend.core.boxes import iou_matrix
from ml_backend.core.types import Detections, FloatArray, IntArray

#: Surer detections that are seen on one side only have come or gone in between; weaker ones flicker.
SURE = 0.75
#: Overlap of an object with itself, a few frames later. Less is fast, or turning, or another object.
MIN_IOU = 0.5
#: An overlap with a second object, as a share of that with the first, at which the two may have been confused.
RIVAL = 0.5


class MatchedDetections(NamedTuple):
    """Which detections are of one object: ``(n,)`` indices into those of the earlier and the later frame."""

    first: IntArray
    second: IntArray


def match_detections(a: Detections, b: Detections) -> MatchedDetections | None:
    """Match two frames' detections; ``None`` where what happens between them is not simple.

    Simple is: each sure detection has one of its class in the other frame that overlaps it well, and no other does.
    """
    iou = iou_matrix(a.xyxy, b.xyxy)
    iou[a.class_id[:, None] != b.class_id[None]] = 0
    first, second = linear_sum_assignment(-iou)
    good = iou[first, second] >= MIN_IOU
    first, second = first[good], second[good]
    if not _explained(a.conf, first) or not _explained(b.conf, second):
        return None
    best = iou[first, second]
    rest = iou.copy()
    rest[first, second] = 0
    sure = (a.conf[first] >= SURE) | (b.conf[second] >= SURE)
    rival = np.maximum(rest[first].max(axis=1, initial=0), rest[:, second].max(axis=0, initial=0))
    if bool((rival[sure] > RIVAL * best[sure]).any()):
        return None
    return MatchedDetections(first.astype(np.int64), second.astype(np.int64))


def _explained(conf: FloatArray, matched: IntArray) -> bool:
    alone = np.ones(len(conf), np.bool_)
    alone[matched] = False
    return not bool((conf[alone] >= SURE).any())


def interpolate_detections(a: Detections, b: Detections, matched: MatchedDetections, share: float) -> Detections:
    """Detections in between, on the straight way from one to the other.

    Args:
        share: 0 is the earlier frame, 1 the later.
    """
    i, j = matched
    xyxy = (1 - share) * a.xyxy[i] + share * b.xyxy[j]
    # One of the two, since a mean of two is never as high as the best of many, by which tracks are judged.
    conf = a.conf[i] if share <= 0.5 else b.conf[j]
    features = None
    if a.features is not None and b.features is not None:
        features = ((1 - share) * a.features[i] + share * b.features[j]).astype(np.float32)
    return Detections(xyxy.astype(np.float32), conf, a.class_id[i], features)
