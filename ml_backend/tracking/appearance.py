"""Cheap appearance features: the mean colours of an object's upper, middle and lower part."""

from __future__ import annotations

import cv2
import numpy as np

from ml_backend.core.types import FloatArray, Image

# Horizontal stripes of a box as shares of its height (head, torso and legs of a person), and the share of its width
# that is cut off on each side as background.
STRIPES = ((0.02, 0.2), (0.2, 0.5), (0.5, 0.9))
MARGIN = 0.25
SIZE = 3 * len(STRIPES)
FULL_DIFFERENCE = 60.0  # Lab units: black coat against white coat


def mean_colours(image: Image, xyxy: FloatArray) -> FloatArray:
    """Return the mean CIE Lab colour (0..255 per channel, as OpenCV scales it) of each box's stripes.

    A learned embedding would tell people apart better, but costs as much as the detector. Features of YOLO's own layers
    made tracks worse in tests, because they describe the class, not the individual.

    Args:
        image: BGR; a quarter of the video's size is enough.
        xyxy: ``(n, 4)`` in pixels of ``image``.

    Returns:
        ``(n, 9)``.
    """
    height, width = image.shape[:2]
    if len(xyxy) == 0:
        return np.zeros((0, SIZE), np.float32)
    sums = cv2.integral(cv2.cvtColor(image, cv2.COLOR_BGR2LAB))
    w, h = xyxy[:, 2] - xyxy[:, 0], xyxy[:, 3] - xyxy[:, 1]
    left = np.clip(xyxy[:, 0] + MARGIN * w, 0, width - 1).astype(int)
    right = np.maximum(np.clip(np.ceil(xyxy[:, 2] - MARGIN * w), 1, width).astype(int), left + 1)
    stripes = []
    for begin, end in STRIPES:
        top = np.clip(xyxy[:, 1] + begin * h, 0, height - 1).astype(int)
        bottom = np.maximum(np.clip(np.ceil(xyxy[:, 1] + end * h), 1, height).astype(int), top + 1)
        total = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
        stripes.append(total / ((bottom - top) * (right - left))[:, None])
    return np.asarray(np.concatenate(stripes, axis=1), np.float32)


def colour_distance(a: FloatArray, b: FloatArray) -> FloatArray:
    """Return colour distances: 0 equal, 1 and more clearly different, NaN where a colour is unknown.

    Args:
        a, b: ``(..., 9)`` arrays that broadcast against each other.

    Returns:
        ``(...)``.
    """
    delta = (a - b).reshape(*np.broadcast_shapes(a.shape, b.shape)[:-1], len(STRIPES), 3)
    return np.asarray(np.sqrt((delta**2).sum(-1)).mean(-1) / FULL_DIFFERENCE, np.float32)
