"""Joining the pieces of one object's life across occlusions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ml_backend.tracks.tracklet import Tracklet

Floats = npt.NDArray[np.float64]

FIT_S = 0.5  # motion before and after a gap is fitted to this much
BASE_ERROR = 0.45  # allowed distance between prediction and box, in box sizes, for no gap ...
ERROR_PER_S = 0.45  # ... and more of it for each second of gap: people turn and slow down
MAX_LOG_SIZE = 0.5  # heights and widths may change by a factor of 1.65 across a gap (part of the body hidden)
MIN_CLASS_SIMILARITY = 0.5
OVERLAP_S = 0.2  # a new piece may begin this long before the old one fades


@dataclass(frozen=True, slots=True)
class Motion:
    """Position and velocity of a box at one end of a tracklet.

    Attributes:
        frame: the end's frame.
        center: ``(2,)`` pixels.
        size: ``(2,)`` width and height, median over the fitted part.
        velocity: ``(2,)`` pixels a frame.
    """

    frame: int
    center: Floats
    size: Floats
    velocity: Floats


def motion_at(tracklet: Tracklet, fps: float, *, tail: bool) -> Motion:
    """Fit the motion at a tracklet's end (``tail``) or beginning."""
    n = max(3, round(FIT_S * fps))
    frames, xyxy, conf = tracklet.tail(n) if tail else tracklet.head(n)
    anchor = int(frames[-1] if tail else frames[0])
    boxes = xyxy.astype(np.float64)
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    size = np.median(boxes[:, 2:] - boxes[:, :2], axis=0)
    t = (frames - anchor).astype(np.float64)
    w = conf.astype(np.float64) + 1e-3
    mean_t, mean_c = np.average(t, weights=w), np.average(centers, axis=0, weights=w)
    var = float(np.average((t - mean_t) ** 2, weights=w))
    # Shrink towards standing still: a velocity from a few frames is mostly noise.
    prior = (0.1 * fps) ** 2
    velocity = np.average((t - mean_t)[:, None] * (centers - mean_c), axis=0, weights=w) / (var + prior / len(t))
    center = mean_c - velocity * mean_t if var > 0 else mean_c
    return Motion(anchor, center, np.maximum(size, 1.0), velocity)


def stitch_cost(tail: Tracklet, head: Tracklet, fps: float, max_gap_s: float, width: int, height: int) -> float:
    """Cost (0: certain, 1: just possible, inf: no) that ``head`` continues ``tail``."""
    gap = head.start - tail.end
    if head.end <= tail.end or gap > max_gap_s * fps or gap < -OVERLAP_S * fps:
        return float("inf")
    if _class_similarity(tail.votes, head.votes) < MIN_CLASS_SIMILARITY:
        return float("inf")
    a, b = motion_at(tail, fps, tail=True), motion_at(head, fps, tail=False)
    if _leaves(a, width, height, fps):
        return float("inf")
    scale = float(np.sqrt(np.prod((a.size + b.size) / 2)))
    forward = np.linalg.norm(a.center + a.velocity * gap - b.center) / scale
    backward = np.linalg.norm(b.center - b.velocity * gap - a.center) / scale
    allowed = BASE_ERROR + ERROR_PER_S * max(gap, 0) / fps
    position = float(forward + backward) / 2 / allowed
    size = float(np.abs(np.log(a.size / b.size)).max()) / MAX_LOG_SIZE
    if position > 1 or size > 1:
        return float("inf")
    return 0.7 * position + 0.3 * size


def _leaves(m: Motion, width: int, height: int, fps: float) -> bool:
    """Whether the object stands at the picture's edge and moves out of it."""
    ahead = m.center + m.velocity * 0.5 * fps
    return bool((ahead < 0).any() or ahead[0] > width or ahead[1] > height)


def _class_similarity(a: dict[int, float], b: dict[int, float]) -> float:
    dot = sum(vote * b.get(class_id, 0.0) for class_id, vote in a.items())
    norm = np.sqrt(sum(v * v for v in a.values()) * sum(v * v for v in b.values()))
    return float(dot / norm) if norm > 0 else 1.0
