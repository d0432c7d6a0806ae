"""What all trackers add to their own association: thresholds of confidence, and costs of colour and class."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ml_backend.core.types import FloatArray, IntArray
from ml_backend.tracking.appearance import colour_distance

# Costs added where a track and a detection differ. Published trackers ignore classes: without the class cost a person
# who pushes a bicycle swaps boxes with it. It is small, since a car may be detected as a truck in some frames.
CLASS_COST = 0.15
COLOUR_COST = 0.4
COLOUR_FLOOR = 0.2  # smaller distances are due to light and pose
COLOUR_MEMORY = 0.9  # share of the old colours that a confident detection leaves


class Thresholds(NamedTuple):
    """Confidences of detections.

    Attributes:
        high: from which a detection may belong to any track.
        low: from which it may continue a track at a higher cost.
        new: above which it may start a track.
    """

    high: float
    low: float
    new: float


def appearance_cost(
    track_colours: FloatArray, track_class: IntArray, colours: FloatArray, class_id: IntArray
) -> FloatArray:
    """Return the cost of differing colours and classes.

    Args:
        track_colours, colours: ``(..., 9)`` arrays that broadcast against each other; NaN costs nothing.
        track_class, class_id: ``(...)`` likewise.
    """
    distance = np.nan_to_num(colour_distance(track_colours, colours) - COLOUR_FLOOR).clip(0, 1)
    return np.asarray(COLOUR_COST * distance + CLASS_COST * (track_class != class_id), np.float32)


def blend_colours(old: FloatArray, new: FloatArray, conf: FloatArray) -> FloatArray:
    """Return tracks' colours after a detection: a running mean, unless one of the two is unknown (NaN).

    Args:
        old, new: ``(n, 9)``.
        conf: ``(n,)``. Half-hidden objects are detected with low confidence and show the colours of what hides them.
    """
    share = (1 - COLOUR_MEMORY) * np.minimum(1, 2 * conf)[:, None]
    blended = (1 - share) * old + share * new
    blended = np.where(np.isnan(new).any(axis=1, keepdims=True), old, blended)
    return np.asarray(np.where(np.isnan(old).any(axis=1, keepdims=True), new, blended), np.float32)
