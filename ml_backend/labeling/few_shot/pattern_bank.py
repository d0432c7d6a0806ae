"""The pattern bank: few-shot classification of tracks from a handful of annotated objects.

Two heads score a crop (:mod:`.heads`). Their scores are calibrated to probabilities on held-out annotated objects
(:mod:`.calibration`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import softmax  # type: ignore[import-untyped,unused-ignore]

from ml_backend.core.types import UNLABELLED, BoolArray, Float64Array, FloatArray, IntArray
from ml_backend.labeling.few_shot.calibration import (
    Acceptance,
    Evidence,
    fit_acceptance,
    fit_temperature,
    make_evidence,
)
from ml_backend.labeling.few_shot.clusters import count_clusters
from ml_backend.labeling.few_shot.detector_classes import TaughtClasses
from ml_backend.labeling.few_shot.exemplar_sampling import ExemplarSample, sample_exemplars, without
from ml_backend.labeling.few_shot.heads import LabelHeads
from ml_backend.labeling.few_shot.reidentification import Reidentification, fit_reidentification

ACCEPT = 0.5  # probability from which a label is accepted: more likely right than wrong
SAFE = 0.9  # target precision of pseudo-labels
MAX_OBJECTS = 10  # largest weight of a label in calibration, in objects
# Probability of its own label, held out, below which an annotated object contradicts its label, and how much its crops
# count then. Fewer other objects of the label than witnesses cannot tell a mistake from another appearance.
CONTRADICTED = 0.03
DOUBT = 0.2
WITNESSES = 2
TIE = 0.02  # smaller differences between the two best probabilities are a tie


@dataclass(frozen=True, slots=True)
class Exemplars:
    """Views of annotated objects.

    Attributes:
        ids: ``(n,)`` int64, database ids.
        embeddings: ``(n, d)`` float32, L2-normalised.
        labels: ``(n,)``; ``UNLABELLED`` is background: an object without a label in a submitted task. Weak evidence, as
            annotators may skip objects.
        groups: ``(n,)`` int64, index of the annotated object: crops of one object are near-duplicates and share a
            cross-validation fold.
        classes: ``(n,)`` the detector's class of each object; empty strings if unknown, and by default.
    """

    ids: IntArray
    embeddings: FloatArray
    labels: tuple[str, ...]
    groups: IntArray
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        n = len(self.labels)
        if self.classes and len(self.classes) != n:
            raise ValueError(f"expected {n} classes, got {len(self.classes)}")
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
    """Classification of a track.

    Attributes:
        label: ``None`` if no label is probable enough or two labels tie.
        probability: calibrated, 0..1, of the best label, also when abstaining.
        best: the best label, also when abstaining; ``None`` only without candidate labels.
        probabilities: calibrated, by label; independent of each other, so that they need not add up to 1. 0 for labels
            that do not reach the track's detector class.
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
    """A few-shot classifier of tracks; created by :meth:`fit`.

    Attributes:
        labels: labels with at least one exemplar, sorted.
        clusters: number of clusters of exemplars by label.
        thresholds: by label, the cosine to the nearest exemplar at which a crop is as likely right as wrong; only for
            display, as decisions use the scores of both heads.
        safe_thresholds: by label, the score of :meth:`rank` from which pseudo-labels are safe. With few exemplars no
            track reaches it.
        dimension: of embeddings.
        taught: detector classes of each label's objects.
        suspicious: ids of exemplars that their label's other objects contradict: they are nearer to another label, and
            count less.
    """

    def __init__(
        self,
        labels: tuple[str, ...],
        clusters: Mapping[str, int],
        dimension: int,
        model: _CalibratedHeads | None,
        taught: TaughtClasses,
        suspicious: frozenset[int] = frozenset(),
    ) -> None:
        self.labels = labels
        self.clusters = clusters
        self.dimension = dimension
        self.taught = taught
        self.suspicious = suspicious
        self._model = model
        self.thresholds: Mapping[str, float] = {}
        self.safe_thresholds: Mapping[str, float] = {}
        if model:
            self.thresholds = dict(zip(labels, model.cosine.thresholds.clip(-1, 1).tolist(), strict=True))
            self.safe_thresholds = dict(zip(labels, model.safe.tolist(), strict=True))

    @classmethod
    def fit(cls, exemplars: Exemplars) -> PatternBank:
        """Fit on exemplars in any order, in about a second for 5,000 of 1,536 dimensions."""
        labels = tuple(sorted(set(exemplars.labels) - {UNLABELLED}))
        dimension = exemplars.embeddings.shape[1]
        if not labels:
            return cls((), {}, dimension, None, TaughtClasses())
        index = {label: i for i, label in enumerate(labels)}
        indices = np.array([index.get(label, -1) for label in exemplars.labels], np.int64)
        order = np.lexsort((exemplars.ids, exemplars.groups, indices))
        indices, ids, groups = indices[order], exemplars.ids[order], exemplars.groups[order]
        embeddings = exemplars.embeddings[order].astype(np.float32, copy=False)
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped,unused-ignore]

        # With many small products, threads that wait for each other are ten times slower on a busy machine.
        with threadpool_limits(1):
            clusters = {
                label: count_clusters(embeddings[indices == i], groups[indices == i]) for i, label in enumerate(labels)
            }
            sample = sample_exemplars(embeddings, indices, ids, groups)
            objects = _objects(exemplars)
            taught = TaughtClasses.of([item for item in objects.values() if item[0] != UNLABELLED])
            votes = {group: {name: 1.0} if name else {} for (group, _), (_, name) in objects.items()}
            reached = [[taught.reaches(label, votes[group]) for label in labels] for group in sample.groups.tolist()]
            model, contradicted = _fit(sample, len(labels), np.array(reached))
        suspicious = frozenset(ids[np.isin(groups, contradicted)].tolist())
        return cls(labels, clusters, dimension, model, taught, suspicious)

    def classify(
        self, embeddings: FloatArray, allowed: Collection[str] | None = None, unreached: Collection[str] = ()
    ) -> PatternMatch:
        """Classify one track.

        Args:
            embeddings: ``(m, d)`` float32, L2-normalised, m >= 1.
            allowed: labels of the current label config; by default all labels of the bank.
            unreached: labels that do not reach the track's detector class; see :attr:`taught`.

        Raises:
            ValueError: ``embeddings`` has the wrong shape or values that are not finite.
        """
        self._check(embeddings)
        known = [i for i, label in enumerate(self.labels) if allowed is None or label in allowed]
        candidates = [i for i in known if self.labels[i] not in unreached]
        nothing = {self.labels[i]: 0.0 for i in known}
        if self._model is None or not candidates:
            return replace(NOTHING, probabilities=nothing)
        probability = self._model.probabilities(embeddings, np.array([0]), candidates)[0]
        ranking = np.argsort(-probability, kind="stable")
        best = int(ranking[0])
        p = float(probability[best])
        margin = p - (float(probability[ranking[1]]) if len(ranking) > 1 else 0.0)
        cosines, ids = self._model.heads.similarities(embeddings, candidates[best])
        similarities = cosines.max(axis=0)
        nearest = int(np.argmax(similarities))
        label = self.labels[candidates[best]]
        return PatternMatch(
            label=label if p >= ACCEPT and margin >= TIE else None,
            probability=p,
            best=label,
            probabilities=nothing
            | {self.labels[i]: float(value) for i, value in zip(candidates, probability, strict=True)},
            similarity=float(np.clip(similarities[nearest], -1.0, 1.0)),
            nearest=int(ids[nearest]),
        )

    def rank(self, label: str, tracks: Sequence[FloatArray]) -> FloatArray:
        """Return the ``(len(tracks),)`` probabilities, 0..1, that tracks show ``label``.

        From ``safe_thresholds[label]`` on, the label may be given without review.

        Raises:
            ValueError: the label is unknown, or embeddings are invalid as for :meth:`classify`.
        """
        if self._model is None or label not in self.labels:
            raise ValueError(f"expected one of {self.labels}, got {label!r}")
        for embeddings in tracks:
            self._check(embeddings)
        if not len(tracks):
            return np.zeros(0, np.float32)
        starts = np.cumsum([0, *(len(embeddings) for embeddings in tracks[:-1])])
        probabilities = self._model.probabilities(np.concatenate(tracks), starts, range(len(self.labels)))
        return probabilities[:, self.labels.index(label)].astype(np.float32)

    def _check(self, embeddings: FloatArray) -> None:
        if embeddings.ndim != 2 or embeddings.shape[1] != self.dimension or not len(embeddings):
            raise ValueError(f"expected embeddings of shape (m >= 1, {self.dimension}), got {embeddings.shape}")
        if not np.isfinite(embeddings).all():
            raise ValueError("expected finite embeddings")


def _objects(exemplars: Exemplars) -> dict[tuple[int, str], tuple[str, str]]:
    """Return label and detector class of each object, by its group and label."""
    classes = exemplars.classes or ("",) * len(exemplars)
    rows = zip(exemplars.groups.tolist(), exemplars.labels, classes, strict=True)
    return {(group, label): (label, name) for group, label, name in rows}


@dataclass(frozen=True, slots=True)
class _CalibratedHeads:
    """Heads with their calibration.

    Attributes:
        count: number of labels.
        acceptance, temperature: of the sum of both heads.
        cosine: acceptance by the cosine to the nearest exemplar.
        safe: ``(k,)`` thresholds for pseudo-labels.
        reidentification: of annotated objects, if it could be fitted.
    """

    heads: LabelHeads
    count: int
    acceptance: Acceptance
    temperature: float
    cosine: Acceptance
    safe: Float64Array
    reidentification: Reidentification | None

    def probabilities(self, embeddings: FloatArray, starts: IntArray, candidates: Sequence[int]) -> Float64Array:
        """Return ``(t, len(candidates))`` probabilities of tracks whose embeddings begin at ``starts``."""
        total = self.heads.total(self.heads.score(embeddings))[:, candidates]
        counts = np.diff(np.append(starts, len(embeddings)))
        total = np.add.reduceat(total, starts, axis=0) / counts[:, None]
        probabilities = _probabilities(total, np.array(candidates, np.int64), self.acceptance, self.temperature)
        if self.reidentification is None:
            return probabilities
        reidentified = self.reidentification.probabilities(embeddings, starts, self.count)[:, candidates]
        probabilities = np.maximum(probabilities, np.minimum(reidentified, self.acceptance.ceiling))
        out: Float64Array = probabilities / np.maximum(probabilities.sum(axis=1, keepdims=True), 1.0)
        return out


def _probabilities(
    total: Float64Array, candidates: IntArray, acceptance: Acceptance, temperature: float
) -> Float64Array:
    """Multiply the probabilities of "any label" and "this label", given ``(t, k)`` scores; NaN is no candidate."""
    z = np.where(np.isfinite(total), total, -np.inf) / temperature
    z = np.exp(z - z.max(axis=1, keepdims=True))
    softmax = z / z.sum(axis=1, keepdims=True)
    accepted = acceptance(np.nan_to_num(total, nan=-np.inf), np.broadcast_to(candidates, total.shape))
    out: Float64Array = softmax * accepted
    return out


def _fit(sample: ExemplarSample, count: int, reached: BoolArray) -> tuple[_CalibratedHeads, IntArray]:
    """Fit the heads and calibrate them on held-out objects and held-out labels; also return contradicted objects.

    Args:
        reached: ``(p, count)`` whether a label may name the object of a crop, by its detector class. Others are no
            evidence, as they are not asked.
    """
    heads = LabelHeads(sample, count)
    contradicted = _contradicted(sample, heads.total(heads.held_out()), count)
    if len(contradicted):
        # Only the heads doubt it. As evidence it keeps its weight: to leave out what is hard would look like success.
        heads = LabelHeads(replace(sample, weight=_doubted(sample, contradicted)), count)
    labelled = sample.labels >= 0
    own = np.where(labelled, sample.labels, 0)
    # In objects, limited so that a label with hundreds of them counts no more than one with ten.
    weight = sample.weight.copy()
    for label in np.unique(sample.labels):
        of_label = sample.labels == label
        weight[of_label] *= min(len(np.unique(sample.folds[of_label])), MAX_OBJECTS)
    object_held_out, label_held_out = heads.held_out(), heads.held_out(np.where(labelled, sample.labels, -1))
    genuine_scores = np.where(reached, heads.total(object_held_out), np.nan)
    impostor_scores = np.where(reached, heads.total(label_held_out), np.nan)
    genuine = labelled & np.isfinite(genuine_scores[np.arange(len(own)), own])
    impostor = np.isfinite(impostor_scores).any(axis=1)
    claimed = np.zeros(len(own), np.int64)
    claimed[impostor] = np.nanargmax(impostor_scores[impostor], axis=1)

    def evidence(of_genuine: Float64Array, of_impostors: Float64Array) -> Evidence:
        return make_evidence(
            np.concatenate([of_genuine[genuine, own[genuine]], of_impostors[impostor, claimed[impostor]]]),
            np.repeat([True, False], [genuine.sum(), impostor.sum()]),
            np.concatenate([own[genuine], claimed[impostor]]),
            np.concatenate([weight[genuine], weight[impostor]]),
            np.concatenate([np.zeros(genuine.sum(), bool), ~labelled[impostor]]),
        )

    scores = heads.total(heads.score(sample.embeddings[labelled]))
    own_scores = scores[np.arange(len(scores)), sample.labels[labelled]]
    copy_score = float(np.average(own_scores, weights=sample.weight[labelled]))
    acceptance = fit_acceptance(evidence(genuine_scores, impostor_scores), count, copy_score)
    temperature = fit_temperature(genuine_scores, sample.labels, weight)
    cosine = fit_acceptance(evidence(object_held_out.nearest, label_held_out.nearest), count, 1.0)
    wrong = _probabilities(impostor_scores[impostor & labelled], np.arange(count), acceptance, temperature)
    # Above any probability that an exemplar of another label reaches.
    safe = np.maximum(SAFE, wrong.max(axis=0)) if len(wrong) else np.full(count, SAFE)
    reidentified = fit_reidentification(without(sample, np.isin(sample.groups, contradicted)))
    return _CalibratedHeads(heads, count, acceptance, temperature, cosine, safe, reidentified), contradicted


def _contradicted(sample: ExemplarSample, held_out: Float64Array, count: int) -> IntArray:
    """Return the groups of objects whose ``(p, count)`` held-out scores speak strongly for another label."""
    temperature = fit_temperature(held_out, sample.labels, sample.weight)
    out = []
    for label in range(count):
        groups = np.unique(sample.groups[sample.labels == label])
        for group in groups if len(groups) > WITNESSES else ():
            scores = held_out[sample.groups == group].mean(axis=0)
            if softmax(scores / temperature)[label] < CONTRADICTED:
                out.append(group)
    return np.array(out, np.int64)


def _doubted(sample: ExemplarSample, contradicted: IntArray) -> Float64Array:
    """Return the weights with those of contradicted objects lowered; a label's objects still share 1."""
    weight: Float64Array = sample.weight * np.where(np.isin(sample.groups, contradicted), DOUBT, 1.0)
    for label in np.unique(sample.labels):
        weight[sample.labels == label] /= weight[sample.labels == label].sum()
    return weight
