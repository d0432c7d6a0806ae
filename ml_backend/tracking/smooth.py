"""Interpolate short gaps and smooth boxes over time."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from ml_backend.core.types import Float64Array, FloatArray, IntArray

# Weight of an interpolated box relative to a detection of confidence 1: enough to carry the fit over the gap.
INTERPOLATED_WEIGHT = 0.02


def split_spans(frames: IntArray, max_gap: int) -> list[slice]:
    """Split ``frames`` where more than ``max_gap`` frames are missing."""
    if len(frames) == 0:
        return []
    cuts = np.flatnonzero(np.diff(frames) - 1 > max_gap) + 1
    edges = [0, *cuts.tolist(), len(frames)]
    return [slice(a, b) for a, b in pairwise(edges)]


def fill_and_smooth(
    frames: IntArray, xyxy: FloatArray, conf: FloatArray, max_gap: int, sigma: float
) -> tuple[IntArray, FloatArray, FloatArray]:
    """Interpolate boxes in short gaps, then smooth them.

    Smoothing is a local linear fit with Gaussian weights times confidence: unlike a Gaussian mean it does not lag at
    the ends of a moving object's track.

    Args:
        frames: ``(n,)`` strictly increasing.
        xyxy: ``(n, 4)``.
        conf: ``(n,)``.
        max_gap: longest run of missing frames that is interpolated; longer gaps stay.
        sigma: standard deviation in frames; 0 disables smoothing.

    Returns:
        Frames, boxes and confidences (0 where interpolated).
    """
    spans = []
    for span in split_spans(frames, max_gap):
        detected, boxes = frames[span], xyxy[span].astype(np.float64)
        full = np.arange(detected[0], detected[-1] + 1)
        filled = np.stack([np.interp(full, detected, boxes[:, k]) for k in range(4)], axis=1)
        confidence = np.zeros(len(full), np.float32)
        confidence[detected - detected[0]] = conf[span]
        if sigma > 0 and len(full) > 2:
            filled = _local_linear(filled, np.maximum(confidence, INTERPOLATED_WEIGHT).astype(np.float64), sigma)
        spans.append((full, filled, confidence))
    if not spans:
        return frames, xyxy, conf
    all_frames, all_boxes, all_conf = (np.concatenate(arrays) for arrays in zip(*spans, strict=True))
    return all_frames, all_boxes.astype(np.float32), all_conf


def _local_linear(values: Float64Array, weights: Float64Array, sigma: float) -> Float64Array:
    """Fit a locally weighted linear regression (Cleveland 1979) with a Gaussian kernel.

    Args:
        values: ``(n, d)``, one row per frame.
        weights: ``(n,)``, positive.
        sigma: standard deviation of the kernel in frames.

    Returns:
        ``(n, d)`` fitted values.
    """
    radius = max(1, int(np.ceil(3 * sigma)))
    offset = np.arange(-radius, radius + 1, dtype=np.float64)
    kernel = np.exp(-0.5 * (offset / sigma) ** 2)

    def moment(signal: Float64Array, power: int) -> Float64Array:
        # Sum over neighbours j of kernel(j - i) * (j - i)^power * signal[j].
        sums = np.convolve(np.pad(signal, radius), (kernel * offset**power)[::-1], mode="valid")
        return np.asarray(sums, np.float64)

    s0, s1, s2 = (moment(weights, k) for k in range(3))
    spread = s0 * s2 - s1 * s1
    fitted = np.empty_like(values)
    for k in range(values.shape[1]):
        t0, t1 = moment(weights * values[:, k], 0), moment(weights * values[:, k], 1)
        flat = t0 / s0
        with np.errstate(divide="ignore", invalid="ignore"):
            fitted[:, k] = np.where(spread > 1e-9 * s0 * s0, (s2 * t0 - s1 * t1) / spread, flat)
    return fitted
