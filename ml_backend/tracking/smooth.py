"""Filling short gaps and smoothing boxes over time."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt

from ml_backend.core.types import FloatArray, IntArray

Floats = npt.NDArray[np.float64]

# Weight of an interpolated box against a detection of confidence 1: enough to carry the fit over the gap.
FILLED_WEIGHT = 0.02


def split_spans(frames: IntArray, max_gap: int) -> list[slice]:
    """Runs of ``frames`` whose inner gaps hide at most ``max_gap`` frames."""
    if len(frames) == 0:
        return []
    cuts = np.flatnonzero(np.diff(frames) - 1 > max_gap) + 1
    edges = [0, *cuts.tolist(), len(frames)]
    return [slice(a, b) for a, b in pairwise(edges)]


def fill_and_smooth(
    frames: IntArray, xyxy: FloatArray, conf: FloatArray, max_gap: int, sigma: float
) -> tuple[IntArray, FloatArray, FloatArray]:
    """Boxes on every frame of each span.

    Smoothing is a local linear fit with Gaussian weights times confidence: unlike a plain Gaussian mean it does not
    lag at the ends of a life, where an object in motion would otherwise be held back.

    Args:
        frames: ``(n,)`` strictly increasing.
        xyxy: ``(n, 4)``.
        conf: ``(n,)``.
        max_gap: longest run of missing frames that is filled; longer ones stay missing.
        sigma: standard deviation in frames; 0 for none.

    Returns:
        Frames, boxes and confidences (0 where filled in).
    """
    parts = []
    for span in split_spans(frames, max_gap):
        f, boxes, c = frames[span], xyxy[span].astype(np.float64), conf[span]
        full = np.arange(f[0], f[-1] + 1)
        filled = np.stack([np.interp(full, f, boxes[:, k]) for k in range(4)], axis=1)
        confidence = np.zeros(len(full), np.float32)
        confidence[f - f[0]] = c
        if sigma > 0 and len(full) > 2:
            filled = _local_linear(filled, np.maximum(confidence, FILLED_WEIGHT).astype(np.float64), sigma)
        parts.append((full, filled, confidence))
    if not parts:
        return frames, xyxy, conf
    return (
        np.concatenate([p[0] for p in parts]),
        np.concatenate([p[1] for p in parts]).astype(np.float32),
        np.concatenate([p[2] for p in parts]),
    )


def _local_linear(values: Floats, weights: Floats, sigma: float) -> Floats:
    """Locally weighted linear regression (Cleveland 1979) with a Gaussian kernel.

    Args:
        values: ``(n, d)`` one row a frame.
        weights: ``(n,)`` positive.
        sigma: of the kernel, in frames.

    Returns:
        ``(n, d)`` fitted values.
    """
    radius = max(1, int(np.ceil(3 * sigma)))
    offset = np.arange(-radius, radius + 1, dtype=np.float64)
    kernel = np.exp(-0.5 * (offset / sigma) ** 2)

    def moment(signal: Floats, power: int) -> Floats:
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
