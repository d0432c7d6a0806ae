"""Which tracks are objects, and how sure."""

from __future__ import annotations

import numpy as np

from ml_backend.core.types import FloatArray, IntArray
from ml_backend.tracking.tracklet import Tracklet

PEAK_SHARE = 0.5  # the more confident half of a track's boxes tells what it is; the rest is occlusion and distance

STRAGGLER_GAP_S = 0.2  # after a longer absence ...
STRAGGLER_SHARE = 0.5  # ... a reappearance of less than half that time ...
STRAGGLER_CONF = 0.25  # ... and little confidence does not count


def strength(conf: FloatArray) -> float:
    """Mean confidence of the better half of the detections, 0..1."""
    if len(conf) == 0:
        return 0.0
    n = max(1, int(np.ceil(len(conf) * PEAK_SHARE)))
    return float(np.sort(conf)[-n:].mean())


def travelled(xyxy: FloatArray) -> float:
    """How far the centre got from where it was, in box sizes: near 0 for what stands still and trembles."""
    if len(xyxy) < 2:
        return 0.0
    centers = (xyxy[:, :2] + xyxy[:, 2:]) / 2
    k = max(1, len(xyxy) // 10)
    size = np.median(xyxy[:, 2:] - xyxy[:, :2], axis=0)
    way = np.median(centers[-k:], axis=0) - np.median(centers[:k], axis=0)
    return float(np.linalg.norm(way) / max(1.0, float(np.sqrt(np.prod(size)))))


def core(frames: IntArray, conf: FloatArray, fps: float) -> slice:
    """The detections without weak stragglers before and after the rest: where an object has left, its life ends."""
    first, last = 0, len(frames)
    while last - first > 1:
        gaps = np.flatnonzero(np.diff(frames[first:last]) > STRAGGLER_GAP_S * fps)
        if len(gaps) == 0:
            break
        head, tail = first + int(gaps[0]) + 1, first + int(gaps[-1]) + 1
        if _straggling(frames, conf, slice(tail, last), int(frames[tail] - frames[tail - 1])):
            last = tail
        elif _straggling(frames, conf, slice(first, head), int(frames[head] - frames[head - 1])):
            first = head
        else:
            break
    return slice(first, last)


def _straggling(frames: IntArray, conf: FloatArray, run: slice, gap: int) -> bool:
    span = int(frames[run][-1] - frames[run][0]) + 1
    return span < STRAGGLER_SHARE * gap and float(conf[run].max()) < STRAGGLER_CONF


def track_score(tracklet: Tracklet) -> float:
    """How sure a track is of its existence and its class, 0..1."""
    total = sum(tracklet.votes.values())
    share = tracklet.votes[tracklet.top_class] / total if total > 0 else 1.0
    return float(min(1.0, max(0.0, strength(tracklet.conf) * share)))
