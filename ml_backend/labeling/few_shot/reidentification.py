"""Objects that were seen before: the same person in the next video, the same truck an hour later.

A label may be given to objects that do not look alike; then no example tells how the next one looks, and the bank
rightly abstains. But a track that resembles an annotated object as much as that object's own views resemble each other
is most likely that object, and has its label.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ml_backend.core.types import FloatArray, IntArray
from ml_backend.labeling.few_shot.exemplar_sampling import ExemplarSample

Floats = npt.NDArray[np.float64]

#: Objects of other labels, or background, that must be known before likeness can be told from chance.
MIN_OTHERS = 4
TYPICAL = 2.0  # spreads below an object's likeness to itself, where it is no longer like itself
MIN_SPREAD = 0.02  # cosines: a handful of objects that happen to agree must not promise certainty


@dataclass(frozen=True, slots=True)
class Reidentification:
    """What tells one object again.

    Likeness of a track and an object is the mean over the track's views of the cosine to the object's nearest view.
    Two normal distributions of one spread are compared: an object's likeness to itself (each view to the others), and
    its likeness to the nearest object of another label (Fisher's linear discriminant in one dimension).

    Attributes:
        embeddings: ``(p, d)`` of labelled objects.
        starts: ``(q,)`` first row of each object.
        labels: ``(q,)`` number of its label.
        middle: likeness at which the same and another object are as likely.
        slope: of the log odds, per unit of likeness.
    """

    embeddings: FloatArray
    starts: IntArray
    labels: IntArray
    middle: float
    slope: float

    def probabilities(self, views: FloatArray, starts: IntArray, count: int) -> Floats:
        """Probability, by label, that tracks show an annotated object of it: ``(t, count)``.

        Args:
            views: ``(m, d)`` of all tracks.
            starts: ``(t,)`` first view of each.
            count: labels.
        """
        similar = np.maximum.reduceat((views @ self.embeddings.T).astype(np.float64), self.starts, axis=1)
        counts = np.diff(np.append(starts, len(views)))[:, None]
        likeness = np.add.reduceat(similar, starts, axis=0) / counts  # (t, q)
        odds = np.zeros((len(starts), count))
        for label in range(count):
            mine = likeness[:, self.labels == label]
            if mine.shape[1]:
                odds[:, label] = np.exp(np.clip(self.slope * (mine.max(axis=1) - self.middle), -30, 30))
        # "None of them" has the odds 1; labels whose objects are equally like share what is left.
        out: Floats = odds / (1.0 + odds.sum(axis=1, keepdims=True))
        return out


def fit_reidentification(sample: ExemplarSample) -> Reidentification | None:
    """Learn to tell objects again; ``None`` where too little is known, or where objects resemble others too much."""
    order = np.argsort(sample.groups, kind="stable")
    _, starts = np.unique(sample.groups[order], return_index=True)
    of, rows = sample.of[order][starts], sample.embeddings[order]
    counts = np.diff(np.append(starts, len(rows)))
    similar = (rows @ rows.T).astype(np.float64)
    nearest = np.maximum.reduceat(similar, starts, axis=1)
    likeness = np.add.reduceat(nearest, starts, axis=0) / counts[:, None]  # (q, q) of objects
    own, foreign = [], []
    for i, (start, count) in enumerate(zip(starts.tolist(), counts.tolist(), strict=True)):
        if of[i] >= 0 and count > 1:
            mine = slice(start, start + count)
            own.append(float((similar[mine, mine] - 2 * np.eye(count)).max(axis=1).mean()))
        others = (of != of[i]) | ((of[i] < 0) & (np.arange(len(of)) != i))
        if others.sum() >= MIN_OTHERS:
            # The nearest of all other objects: that is what a stranger is compared with.
            foreign.append(float(likeness[i][others].max()))
    if not own or not foreign:
        return None
    low, high = float(np.mean(foreign)), float(np.mean(own))
    squares = sum((x - high) ** 2 for x in own) + sum((x - low) ** 2 for x in foreign)
    spread = max(float(np.sqrt(squares / max(len(own) + len(foreign) - 2, 1))), MIN_SPREAD)
    if high - low < spread:
        return None
    labelled = np.repeat(of >= 0, counts)
    known = of >= 0
    firsts = np.concatenate([[0], np.cumsum(counts[known])[:-1]]).astype(np.int64)
    slope = (high - low) / spread**2
    # Nearer to itself than to strangers is not enough where strangers are far: it must look like itself.
    middle = max((high + low) / 2, high - TYPICAL * spread)
    return Reidentification(rows[labelled], firsts, of[known], middle, slope)
