"""Which tracks are objects, and how sure."""

from __future__ import annotations

import numpy as np

from ml_backend.tracks.tracklet import Tracklet
from ml_backend.types import FloatArray

PEAK_SHARE = 0.5  # the more confident half of a track's boxes tells what it is; the rest is occlusion and distance


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


def track_score(tracklet: Tracklet) -> float:
    """How sure a track is of its existence and its class, 0..1."""
    total = sum(tracklet.votes.values())
    share = tracklet.votes[tracklet.top_class] / total if total > 0 else 1.0
    return float(min(1.0, max(0.0, strength(tracklet.conf) * share)))
