"""Score how credible tracks are, and trim their unreliable ends."""

from __future__ import annotations

import numpy as np

from ml_backend.core.types import FloatArray, IntArray
from ml_backend.tracking.tracklet import Tracklet

PEAK_SHARE = 0.5  # the more confident half of a track's boxes counts; the rest is occlusion and distance

# A straggler is a run of boxes after a longer gap that lasts less than this share of the gap, with lower confidence.
STRAGGLER_GAP_S = 0.2
STRAGGLER_SHARE = 0.5
STRAGGLER_CONF = 0.25


def strength(conf: FloatArray) -> float:
    """Return the mean confidence of the more confident half of the detections, 0..1."""
    if len(conf) == 0:
        return 0.0
    n = max(1, int(np.ceil(len(conf) * PEAK_SHARE)))
    return float(np.sort(conf)[-n:].mean())


def travelled(xyxy: FloatArray) -> float:
    """Return the distance from the first to the last centre in box sizes; near 0 for still objects with jitter."""
    if len(xyxy) < 2:
        return 0.0
    centers = (xyxy[:, :2] + xyxy[:, 2:]) / 2
    k = max(1, len(xyxy) // 10)
    size = np.median(xyxy[:, 2:] - xyxy[:, :2], axis=0)
    shift = np.median(centers[-k:], axis=0) - np.median(centers[:k], axis=0)
    return float(np.linalg.norm(shift) / max(1.0, float(np.sqrt(np.prod(size)))))


def core(frames: IntArray, conf: FloatArray, fps: float) -> slice:
    """Return the slice of detections without weak stragglers before and after it."""
    first, last = 0, len(frames)
    while last - first > 1:
        gaps = np.flatnonzero(np.diff(frames[first:last]) > STRAGGLER_GAP_S * fps)
        if len(gaps) == 0:
            break
        head, tail = first + int(gaps[0]) + 1, first + int(gaps[-1]) + 1
        if _is_straggler(frames, conf, slice(tail, last), int(frames[tail] - frames[tail - 1])):
            last = tail
        elif _is_straggler(frames, conf, slice(first, head), int(frames[head] - frames[head - 1])):
            first = head
        else:
            break
    return slice(first, last)


def _is_straggler(frames: IntArray, conf: FloatArray, run: slice, gap: int) -> bool:
    span = int(frames[run][-1] - frames[run][0]) + 1
    return span < STRAGGLER_SHARE * gap and float(conf[run].max()) < STRAGGLER_CONF


def track_score(tracklet: Tracklet) -> float:
    """Return how certain a track's existence and class are, 0..1."""
    total = sum(tracklet.votes.values())
    share = tracklet.votes[tracklet.top_class] / total if total > 0 else 1.0
    return float(min(1.0, max(0.0, strength(tracklet.conf) * share)))
