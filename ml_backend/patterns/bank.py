"""The pattern bank: which of a project's labels a track shows, from a handful of annotated objects.

Two views of a label are combined: the nearest exemplar (right from one exemplar on) and a regularised linear head
(better once there are several). What counts as close enough is learned by leaving annotated objects out one by one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ml_backend.patterns.calibration import Platt, fit_platt
from ml_backend.patterns.clusters import LabelClusters, find_clusters
from ml_backend.types import UNLABELLED, FloatArray, IntArray

Floats = npt.NDArray[np.float64]

ACCEPT = 0.5  # a label is given when it is more likely right than wrong
SAFE = 0.9  # precision that pseudo-labels are to have
TIE = 0.02  # two labels whose probabilities differ by less are a tie


@dataclass(frozen=True, slots=True)
class Exemplars:
    """Views of annotated objects.

    Attributes:
        ids: ``(n,)`` int64, database ids.
        embeddings: ``(n, d)`` float32, L2-normalised.
        labels: ``(n,)``; ``UNLABELLED`` is background: an object that a person left without label in a task that he
            submitted. Weak evidence: he may just not have bothered.
        groups: ``(n,)`` int64, one number per annotated object: views of one object are near-duplicates, and are
            never split between what is learned and what is left out.
    """

    ids: IntArray
    embeddings: FloatArray
    labels: tuple[str, ...]
    groups: IntArray

    def __post_init__(self) -> None:
        n = len(self.labels)
        if self.embeddings.ndim != 2 or len(self.embeddings) != n:
            raise ValueError(f"expected embeddings of shape ({n}, d), got {self.embeddings.shape}")
        for name in ("ids", "groups"):
            shape = getattr(self, name).shape
            if shape != (n,):
                raise ValueError(f"expected {name} of shape ({n},), got {shape}")
        if not np.isfinite(self.embeddings).all():
            raise ValueError("expected finite embeddings")

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a track shows.

    Attributes:
        label: ``None``: nothing is close enough, or two labels tie.
        probability: 0..1, calibrated, of the best label, also when abstaining.
        best: the best label even when abstaining; ``None`` only where no label was to choose from.
        probabilities: calibrated, by label: independent of each other, they need not add up to 1.
        similarity: cosine to the nearest exemplar of ``best``; 0 without one.
        margin: ``probability`` less the second label's.
        nearest: id of that exemplar.
    """

    label: str | None
    probability: float
    best: str | None
    probabilities: Mapping[str, float]
    similarity: float
    margin: float
    nearest: int | None


NOTHING = Verdict(None, 0.0, None, {}, 0.0, 0.0, None)


class PatternBank:
    """Learned labels. Make one with :meth:`fit`.

    Attributes:
        labels: with at least one exemplar, sorted.
        clusters: by label.
        thresholds: by label, the cosine to the nearest exemplar at which the label is as likely right as wrong, for
            display.
        safe_thresholds: by label, score of :meth:`rank` from which pseudo-labels are safe.
    """

    def __init__(
        self,
        labels: tuple[str, ...],
        clusters: Mapping[str, LabelClusters],
        dimension: int,
        embeddings: FloatArray,
        of: IntArray,
        ids: IntArray,
        platt: Platt,
    ) -> None:
        self.labels = labels
        self.clusters = clusters
        self.dimension = dimension
        self._embeddings, self._of, self._ids, self._platt = embeddings, of, ids, platt
        self.safe_thresholds: Mapping[str, float] = dict.fromkeys(labels, SAFE)
        slope = float(platt.slope[0])
        cosine = float(np.clip(-platt.offset / slope, -1.0, 1.0)) if slope > 0 else 1.0
        self.thresholds: Mapping[str, float] = dict.fromkeys(labels, cosine)

    def __len__(self) -> int:
        return len(self.labels)

    @classmethod
    def fit(cls, exemplars: Exemplars) -> PatternBank:
        """Learn from exemplars, in about a second for 5,000 of 1,536 dimensions; their order does not matter."""
        order = np.lexsort((exemplars.groups, exemplars.ids, np.array(exemplars.labels)))
        names = np.array(exemplars.labels)[order]
        embeddings, ids = exemplars.embeddings[order].astype(np.float32), exemplars.ids[order]
        groups = exemplars.groups[order]
        labels = tuple(sorted(set(exemplars.labels) - {UNLABELLED}))
        number = {label: i for i, label in enumerate(labels)}
        of = np.array([number.get(str(name), -1) for name in names], np.int64)
        clusters = {
            label: find_clusters(embeddings[of == i], ids[of == i], groups[of == i]) for i, label in enumerate(labels)
        }
        rows, genuine = [], []
        for i in range(len(embeddings)):
            others = groups != groups[i]
            for label in range(len(labels)):
                inside = others & (of == label)
                if inside.any():
                    rows.append(float((embeddings[inside] @ embeddings[i]).max()))
                    genuine.append(bool(of[i] == label))
        # Where nothing was measured: half-way to the exemplar itself.
        x = np.array([*rows, 1.0, 0.0])[:, None]
        platt = fit_platt(x, np.array([*genuine, True, False]), np.ones(len(x)))
        return cls(labels, clusters, embeddings.shape[1], embeddings, of, ids, platt)

    def classify(self, views: FloatArray, allowed: Collection[str] | None = None) -> Verdict:
        """What one track shows.

        Args:
            views: ``(m, d)`` float32, L2-normalised, m >= 1.
            allowed: labels of the present label config; by default all that were learned.

        Raises:
            ValueError: wrong dimension, no view, or values that are not finite.
        """
        self._check(views)
        probabilities = {
            label: self._probability(i, views)
            for i, label in enumerate(self.labels)
            if allowed is None or label in allowed
        }
        if not probabilities:
            return NOTHING
        ranked = sorted(probabilities, key=lambda label: (-probabilities[label], label))
        best, probability = ranked[0], probabilities[ranked[0]]
        margin = probability - (probabilities[ranked[1]] if len(ranked) > 1 else 0.0)
        inside = np.flatnonzero(self._of == self.labels.index(best))
        similar = (self._embeddings[inside] @ views.T).max(axis=1)
        nearest = int(np.argmax(similar))
        return Verdict(
            label=best if probability >= ACCEPT and margin >= TIE else None,
            probability=probability,
            best=best,
            probabilities=probabilities,
            similarity=float(similar[nearest]),
            margin=margin,
            nearest=int(self._ids[inside[nearest]]),
        )

    def rank(self, label: str, tracks: Sequence[FloatArray]) -> FloatArray:
        """How likely each track shows ``label``: ``(len(tracks),)`` in 0..1, to find more of the same.

        From ``safe_thresholds[label]`` on, tracks may be given the label without asking.

        Raises:
            ValueError: an unknown label, or views as for :meth:`classify`.
        """
        if label not in self.labels:
            raise ValueError(f"expected one of {self.labels}, got {label!r}")
        for views in tracks:
            self._check(views)
        number = self.labels.index(label)
        return np.array([self._probability(number, views) for views in tracks], np.float32)

    def _probability(self, number: int, views: FloatArray) -> float:
        similar = (self._embeddings[self._of == number] @ views.T).max(axis=0)
        return float(self._platt(np.array([[float(similar.mean())]]))[0])

    def _check(self, views: FloatArray) -> None:
        if views.ndim != 2 or views.shape[1] != self.dimension or not len(views):
            raise ValueError(f"expected views of shape (m >= 1, {self.dimension}), got {views.shape}")
        if not np.isfinite(views).all():
            raise ValueError("expected finite views")
