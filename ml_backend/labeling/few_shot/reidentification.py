"""Re-identify annotated objects: the same person in the next video, the same truck an hour later.

A label's objects may look different from each other, so that the bank abstains for new ones. But a track as similar to
an annotated object as the object's crops are to each other is most likely that object, and has its label.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ml_backend.core.types import Float64Array, FloatArray, IntArray
from ml_backend.labeling.few_shot.exemplar_sampling import ExemplarSample

#: Objects of other labels or background needed to tell similarity from chance.
MIN_OTHERS = 4
TYPICAL = 2.0  # standard deviations below an object's mean self-similarity at which it no longer is itself
MIN_SPREAD = 0.02  # cosine; keeps a handful of objects that happen to agree from implying certainty


@dataclass(frozen=True, slots=True)
class Reidentification:
    """Probability that a track shows an annotated object.

    The similarity of a track and an object is the mean over the track's crops of the cosine to the object's nearest
    crop. Fisher's linear discriminant in one dimension separates two normal distributions of one spread: an object's
    similarity to itself (each crop to the others), and to the nearest object of another label.

    Attributes:
        embeddings: ``(p, d)`` of labelled objects.
        starts: ``(q,)`` first row of each object.
        labels: ``(q,)`` label index of each object.
        middle: similarity at which the same and another object are equally likely.
        slope: of the log odds, per unit of similarity.
    """

    embeddings: FloatArray
    starts: IntArray
    labels: IntArray
    middle: float
    slope: float

    def probabilities(self, embeddings: FloatArray, starts: IntArray, count: int) -> Float64Array:
        """Return ``(t, count)`` probabilities, by label, that tracks show one of its annotated objects.

        Args:
            embeddings: ``(m, d)`` of all tracks.
            starts: ``(t,)`` first crop of each track.
            count: number of labels.
        """
        nearest = np.maximum.reduceat((embeddings @ self.embeddings.T).astype(np.float64), self.starts, axis=1)
        counts = np.diff(np.append(starts, len(embeddings)))[:, None]
        similarity = np.add.reduceat(nearest, starts, axis=0) / counts  # (t, q)
        odds = np.zeros((len(starts), count))
        for label in range(count):
            of_label = similarity[:, self.labels == label]
            if of_label.shape[1]:
                odds[:, label] = np.exp(np.clip(self.slope * (of_label.max(axis=1) - self.middle), -30, 30))
        # "None of them" has the odds 1; labels with equally similar objects share the rest.
        out: Float64Array = odds / (1.0 + odds.sum(axis=1, keepdims=True))
        return out


def fit_reidentification(sample: ExemplarSample) -> Reidentification | None:
    """Fit on a sample; ``None`` with too few objects, or if objects are too similar to others."""
    order = np.argsort(sample.groups, kind="stable")
    _, starts = np.unique(sample.groups[order], return_index=True)
    labels, rows = sample.labels[order][starts], sample.embeddings[order]
    counts = np.diff(np.append(starts, len(rows)))
    cosines = (rows @ rows.T).astype(np.float64)
    nearest = np.maximum.reduceat(cosines, starts, axis=1)
    similarity = np.add.reduceat(nearest, starts, axis=0) / counts[:, None]  # (q, q) of objects
    own, foreign = [], []
    for i, (start, count) in enumerate(zip(starts.tolist(), counts.tolist(), strict=True)):
        if labels[i] >= 0 and count > 1:
            own_rows = slice(start, start + count)
            own.append(float((cosines[own_rows, own_rows] - 2 * np.eye(count)).max(axis=1).mean()))
        others = (labels != labels[i]) | ((labels[i] < 0) & (np.arange(len(labels)) != i))
        if others.sum() >= MIN_OTHERS:
            # The nearest of all other objects, as an unknown object is compared with its nearest, too.
            foreign.append(float(similarity[i][others].max()))
    if not own or not foreign:
        return None
    low, high = float(np.mean(foreign)), float(np.mean(own))
    squares = sum((x - high) ** 2 for x in own) + sum((x - low) ** 2 for x in foreign)
    spread = max(float(np.sqrt(squares / max(len(own) + len(foreign) - 2, 1))), MIN_SPREAD)
    if high - low < spread:
        return None
    labelled = labels >= 0
    first_rows = np.concatenate([[0], np.cumsum(counts[labelled])[:-1]]).astype(np.int64)
    slope = (high - low) / spread**2
    # If other objects are far, being nearer to itself than to them is not enough.
    middle = max((high + low) / 2, high - TYPICAL * spread)
    return Reidentification(rows[np.repeat(labelled, counts)], first_rows, labels[labelled], middle, slope)
