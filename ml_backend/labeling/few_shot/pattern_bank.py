"""The pattern bank: which of a project's labels a track shows, from a handful of annotated objects.

Two heads score a view (:mod:`.heads`); what counts as close enough, and which label it is when two are close, is
learned by leaving annotated objects out (:mod:`.calibration`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ml_backend.core.types import UNLABELLED, FloatArray, IntArray
from ml_backend.labeling.few_shot.calibration import (
    Acceptance,
    Evidence,
    fit_acceptance,
    fit_temperature,
    make_evidence,
)
from ml_backend.labeling.few_shot.clusters import count_clusters
from ml_backend.labeling.few_shot.exemplar_sampling import ExemplarSample, sample_exemplars
from ml_backend.labeling.few_shot.heads import LabelHeads
from ml_backend.labeling.few_shot.reidentification import Reidentification, fit_reidentification

Floats = npt.NDArray[np.float64]

ACCEPT = 0.5  # a label is given when it is more likely right than wrong
SAFE = 0.9  # precision that pseudo-labels are to have
MAX_OBJECTS = 10  # of one label that calibration listens to
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
class PatternMatch:
    """What a track shows.

    Attributes:
        label: ``None``: nothing is close enough, or two labels tie.
        probability: 0..1, calibrated, of the best label, also when abstaining.
        best: the best label even when abstaining; ``None`` only where no label was to choose from.
        probabilities: calibrated, by label: independent of each other, they need not add up to 1.
        similarity: cosine to the nearest exemplar of ``best``; 0 without one.
        nearest: id of that exemplar.
    """

    label: str | None
    probability: float
    best: str | None
    probabilities: Mapping[str, float]
    similarity: float
    nearest: int | None


NOTHING = PatternMatch(None, 0.0, None, {}, 0.0, None)


class PatternBank:
    """Learned labels. Make one with :meth:`fit`.

    Attributes:
        labels: with at least one exemplar, sorted.
        clusters: number of looks that a label has.
        thresholds: by label, the cosine to the nearest exemplar at which a view is as likely right as wrong, for
            display; decisions are made on the score of both heads.
        safe_thresholds: by label, score of :meth:`rank` from which pseudo-labels are safe. With few exemplars nothing
            reaches it.
        dimension: of embeddings.
    """

    def __init__(
        self,
        labels: tuple[str, ...],
        clusters: Mapping[str, int],
        dimension: int,
        learned: _Learned | None,
    ) -> None:
        self.labels = labels
        self.clusters = clusters
        self.dimension = dimension
        self._learned = learned
        self.thresholds: Mapping[str, float] = {}
        self.safe_thresholds: Mapping[str, float] = {}
        if learned:
            self.thresholds = dict(zip(labels, learned.cosine.thresholds.clip(-1, 1).tolist(), strict=True))
            self.safe_thresholds = dict(zip(labels, learned.safe.tolist(), strict=True))

    @classmethod
    def fit(cls, exemplars: Exemplars) -> PatternBank:
        """Learn from exemplars, in about a second for 5,000 of 1,536 dimensions; their order does not matter."""
        labels = tuple(sorted(set(exemplars.labels) - {UNLABELLED}))
        dimension = exemplars.embeddings.shape[1]
        if not labels:
            return cls((), {}, dimension, None)
        number = {label: i for i, label in enumerate(labels)}
        of = np.array([number.get(label, -1) for label in exemplars.labels], np.int64)
        order = np.lexsort((exemplars.ids, exemplars.groups, of))
        of, ids, groups = of[order], exemplars.ids[order], exemplars.groups[order]
        embeddings = exemplars.embeddings[order].astype(np.float32, copy=False)
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped,unused-ignore]

        # Many small products: on a busy machine, threads that wait for each other make them ten times slower.
        with threadpool_limits(1):
            clusters = {label: count_clusters(embeddings[of == i], groups[of == i]) for i, label in enumerate(labels)}
            learned = _learn(sample_exemplars(embeddings, of, ids, groups), len(labels))
        return cls(labels, clusters, dimension, learned)

    def classify(self, views: FloatArray, allowed: Collection[str] | None = None) -> PatternMatch:
        """What one track shows.

        Args:
            views: ``(m, d)`` float32, L2-normalised, m >= 1.
            allowed: labels of the present label config; by default all that were learned.

        Raises:
            ValueError: wrong dimension, no view, or values that are not finite.
        """
        self._check(views)
        numbers = [i for i, label in enumerate(self.labels) if allowed is None or label in allowed]
        if self._learned is None or not numbers:
            return NOTHING
        probability = self._learned.probabilities(views, np.array([0]), numbers)[0]
        ranked = np.argsort(-probability, kind="stable")
        best = int(ranked[0])
        p = float(probability[best])
        margin = p - (float(probability[ranked[1]]) if len(ranked) > 1 else 0.0)
        cosines, ids = self._learned.heads.similarities(views, numbers[best])
        similar = cosines.max(axis=0)
        nearest = int(np.argmax(similar))
        name = self.labels[numbers[best]]
        return PatternMatch(
            label=name if p >= ACCEPT and margin >= TIE else None,
            probability=p,
            best=name,
            probabilities={self.labels[i]: float(value) for i, value in zip(numbers, probability, strict=True)},
            similarity=float(np.clip(similar[nearest], -1.0, 1.0)),
            nearest=int(ids[nearest]),
        )

    def rank(self, label: str, tracks: Sequence[FloatArray]) -> FloatArray:
        """How likely each track shows ``label``: ``(len(tracks),)`` in 0..1, to find more of the same.

        From ``safe_thresholds[label]`` on, tracks may be given the label without asking.

        Raises:
            ValueError: an unknown label, or views as for :meth:`classify`.
        """
        if self._learned is None or label not in self.labels:
            raise ValueError(f"expected one of {self.labels}, got {label!r}")
        for views in tracks:
            self._check(views)
        if not len(tracks):
            return np.zeros(0, np.float32)
        starts = np.cumsum([0, *(len(views) for views in tracks[:-1])])
        found = self._learned.probabilities(np.concatenate(tracks), starts, list(range(len(self.labels))))
        return found[:, self.labels.index(label)].astype(np.float32)

    def _check(self, views: FloatArray) -> None:
        if views.ndim != 2 or views.shape[1] != self.dimension or not len(views):
            raise ValueError(f"expected views of shape (m >= 1, {self.dimension}), got {views.shape}")
        if not np.isfinite(views).all():
            raise ValueError("expected finite views")


@dataclass(frozen=True, slots=True)
class _Learned:
    """Heads and calibration; ``cosine`` is an acceptance by the nearest exemplar alone, ``safe`` ``(k,)``.

    ``twins`` tells annotated objects again, where that can be told.
    """

    heads: LabelHeads
    count: int
    acceptance: Acceptance
    temperature: float
    cosine: Acceptance
    safe: Floats
    twins: Reidentification | None

    def probabilities(self, views: FloatArray, starts: IntArray, numbers: Sequence[int]) -> Floats:
        """``(t, len(numbers))`` of tracks whose views begin at ``starts``; only ``numbers`` compete."""
        total = self.heads.total(self.heads.score(views))[:, numbers]
        counts = np.diff(np.append(starts, len(views)))
        total = np.add.reduceat(total, starts, axis=0) / counts[:, None]
        found = _probabilities(total, np.array(numbers, np.int64), self.acceptance, self.temperature)
        if self.twins is None:
            return found
        again = self.twins.probabilities(views, starts, self.count)[:, numbers]
        found = np.maximum(found, np.minimum(again, self.acceptance.ceiling))
        out: Floats = found / np.maximum(found.sum(axis=1, keepdims=True), 1.0)
        return out


def _probabilities(total: Floats, numbers: IntArray, acceptance: Acceptance, temperature: float) -> Floats:
    """Is it any of the labels, times which one: ``(t, k)`` scores of the labels ``numbers``; NaN is no candidate."""
    z = np.where(np.isfinite(total), total, -np.inf) / temperature
    z = np.exp(z - z.max(axis=1, keepdims=True))
    chosen = z / z.sum(axis=1, keepdims=True)
    accepted = acceptance(np.nan_to_num(total, nan=-np.inf), np.broadcast_to(numbers, total.shape))
    out: Floats = chosen * accepted
    return out


def _learn(sample: ExemplarSample, count: int) -> _Learned:
    """Fit the heads, and calibrate on left-out objects and left-out labels."""
    heads = LabelHeads(sample, count)
    known = sample.of >= 0
    own = np.where(known, sample.of, 0)
    # In objects. A label with hundreds of them is heard no more than one with ten.
    weight = sample.weight.copy()
    for label in np.unique(sample.of):
        mine = sample.of == label
        weight[mine] *= min(len(np.unique(sample.folds[mine])), MAX_OBJECTS)
    left, unknown = heads.left_out(), heads.left_out(np.where(known, sample.of, -1))
    total, foreign = heads.total(left), heads.total(unknown)
    rows = np.arange(len(own))
    measured = known & np.isfinite(total[rows, own])
    impostor = np.isfinite(foreign).any(axis=1)
    claim = np.zeros(len(own), np.int64)
    claim[impostor] = np.nanargmax(foreign[impostor], axis=1)

    def evidence(genuine: Floats, other: Floats) -> Evidence:
        return make_evidence(
            np.concatenate([genuine[measured, own[measured]], other[impostor, claim[impostor]]]),
            np.repeat([True, False], [measured.sum(), impostor.sum()]),
            np.concatenate([own[measured], claim[impostor]]),
            np.concatenate([weight[measured], weight[impostor]]),
            np.concatenate([np.zeros(measured.sum(), bool), ~known[impostor]]),
        )

    itself = heads.total(heads.score(sample.embeddings[known]))
    copy = float(np.average(itself[np.arange(len(itself)), sample.of[known]], weights=sample.weight[known]))
    acceptance = fit_acceptance(evidence(total, foreign), count, copy)
    temperature = fit_temperature(total, sample.of, weight)
    cosine = fit_acceptance(evidence(left.nearest, unknown.nearest), count, 1.0)
    everyone = np.arange(count)
    found = _probabilities(foreign[impostor & known], everyone, acceptance, temperature)
    # No object of another label may have been given this one.
    safe = np.maximum(SAFE, found.max(axis=0)) if len(found) else np.full(count, SAFE)
    return _Learned(heads, count, acceptance, temperature, cosine, safe, fit_reidentification(sample))
