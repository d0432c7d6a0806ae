"""From scores of left-out objects to calibrated probabilities. Pure.

Two questions are answered apart. *Is it any of the labels?* Genuine scores are those of views whose object was left
out; impostors are views whose whole label was left out, so that they meet labels none of which is theirs, as unknown
objects do. *Which one?* A softmax over the labels whose temperature fits the left-out objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ml_backend.types import BoolArray, IntArray

Floats = npt.NDArray[np.float64]

SLOPE_PRIOR = 0.02  # inverse variance of the slope, for scores of unit spread: only keeps it finite
OFFSET_PRIOR = 4.0  # objects that a label needs before its own threshold counts as much as the common one
TEMPERATURE_PRIOR = 4.0  # objects that are needed before the temperature follows them rather than the default
DEFAULT_TEMPERATURE = 0.3  # in spreads of the scores
PRIOR_OBJECTS = 1.0  # weight of what is assumed, beside what was measured
UNKNOWN = 0.4  # share of objects that show none of the labels: a person, too, expects that more are known than not
# Where a new object of a label is assumed between typical impostors (0) and copies of an exemplar (1). Real crops lie
# between 0.1 (fallen_person, other people) and 0.5 (one person, a few seconds later).
GENUINE_AT = 0.3
KEEP = 0.8  # share of genuine exemplars that background may not cost
# One picture says nothing about how far its label reaches, and no model's cosines mean the same: all that is left is
# to accept what is almost a copy. Any second view, and any exemplar of another label or of the background, replaces it.
COPY = 0.9
# How far from a copy a typical stranger is assumed to be, where none is known; beside what a genuine view is away from
# it. Views of a label tell how far it reaches, and strangers begin soon after; one picture alone gets some more room.
STRANGERS_AT = 2.0
STRANGERS_AT_OF_ONE = 3.0
MIN_REACH = 0.02


@dataclass(frozen=True, slots=True)
class Evidence:
    """Scores of left-out views, one row a view and label.

    Attributes:
        score: ``(n,)``.
        genuine: ``(n,)`` whether the view shows the label.
        label: ``(n,)`` number of the label that is asked for.
        weight: ``(n,)`` in objects.
        background: ``(n,)`` whether the row is weak evidence.
    """

    score: Floats
    genuine: BoolArray
    label: IntArray
    weight: Floats
    background: BoolArray

    def where(self, rows: BoolArray) -> Evidence:
        """Some of the rows."""
        return Evidence(
            self.score[rows], self.genuine[rows], self.label[rows], self.weight[rows], self.background[rows]
        )

    def weaker(self, share: float) -> Evidence:
        """The same with less weight on the background."""
        weight = np.where(self.background, share * self.weight, self.weight)
        return Evidence(self.score, self.genuine, self.label, weight, self.background)

    @classmethod
    def join(cls, parts: Sequence[Evidence]) -> Evidence:
        """All rows of ``parts``."""
        return cls(
            np.concatenate([part.score for part in parts]),
            np.concatenate([part.genuine for part in parts]),
            np.concatenate([part.label for part in parts]),
            np.concatenate([part.weight for part in parts]),
            np.concatenate([part.background for part in parts]),
        )


@dataclass(frozen=True, slots=True)
class Acceptance:
    """Probability that a view shows the label that is asked for: ``sigmoid(slope * score + offset[label])``.

    Attributes:
        slope: more than 0.
        offset: ``(k,)``.
        ceiling: what probabilities above a half are squeezed under: a curve through few objects must not promise
            near certainty beyond them.
    """

    slope: float
    offset: Floats
    ceiling: float

    def __call__(self, score: Floats, label: IntArray) -> Floats:
        """``(n,)`` scores for ``(n,)`` labels to probabilities."""
        p = _sigmoid(self.slope * score + self.offset[label])
        return p - np.maximum(p - 0.5, 0.0) * 2 * (1 - self.ceiling)

    @property
    def thresholds(self) -> Floats:
        """``(k,)`` scores at which a label is as likely right as wrong."""
        return -self.offset / self.slope


def with_assumptions(evidence: Evidence, count: int, copy: float) -> Evidence:
    """Add what must be assumed where little was measured; it weighs as much as one object.

    A new object of a label scores ``GENUINE_AT`` between the typical impostor and a copy of an exemplar. Without any
    impostor, one is assumed ``STRANGERS_AT`` times as far from a copy as the label's own left-out views are; without
    these either, they are assumed at ``COPY``, and it ``STRANGERS_AT_OF_ONE`` times as far.

    Args:
        count: labels.
        copy: score of a copy of an exemplar.
    """
    score, genuine = evidence.score, evidence.genuine
    if (~genuine).any():
        low = float(np.average(score[~genuine], weights=evidence.weight[~genuine]))
        low = min(low, copy - 1e-3)
        high = low + GENUINE_AT * (copy - low)
    else:
        high = float(np.average(score, weights=evidence.weight)) if len(score) else copy - (1 - COPY)
        # Copies alone would leave no room for the next frame.
        high = min(high, copy - MIN_REACH)
        low = copy - (STRANGERS_AT if len(score) else STRANGERS_AT_OF_ONE) * (copy - high)
    labels = np.arange(count)
    each = np.full(count, PRIOR_OBJECTS / count)
    no = np.zeros(count, bool)
    return Evidence.join(
        [
            evidence,
            Evidence(np.full(count, high), ~no, labels, each, no),
            Evidence(np.full(count, low), no, labels, each, no),
        ]
    )


def fit_acceptance(evidence: Evidence, count: int, copy: float) -> Acceptance:
    """Platt's method (1999) with smoothed targets; a label's offset moves as far as its own objects demand.

    Background tightens as long as each label keeps ``KEEP`` of the genuine exemplars that are accepted without it: it
    may hold objects of the label that nobody bothered to annotate. It loosens only what was assumed because no label
    is a stranger to another, and then not so far that typical background is accepted. Arguments as for
    :func:`with_assumptions`.
    """
    hard = ~evidence.background
    known = evidence.where(hard)
    # Strangers that were only assumed give way to the background, in both directions.
    floor = np.inf
    if evidence.background.any() and known.genuine.all():
        floor = float(np.average(evidence.score[~hard], weights=evidence.weight[~hard]))
    if not len(known.score) or known.genuine.all():
        # The background is the only impostor there is.
        evidence = with_assumptions(evidence, count, copy)
        known = with_assumptions(known, count, copy)
    else:
        known = with_assumptions(known, count, copy)
        evidence = Evidence.join([known, evidence.where(~hard)])
    without = _fit(known, count)
    allowed = KEEP * _recall(without, evidence)
    for share in (1.0, 0.5, 0.25, 0.1) if evidence.background.any() else ():
        fitted = _fit(evidence.weaker(share), count)
        # Background that looks as genuine as exemplars flattens the curve: all exemplars are kept as all is accepted.
        sound = (fitted.thresholds >= np.minimum(without.thresholds, floor)).all()
        if sound and (_recall(fitted, evidence) >= allowed).all():
            return fitted
    return without


def _recall(acceptance: Acceptance, evidence: Evidence) -> Floats:
    """``(k,)`` weighted share of each label's genuine rows that are accepted."""
    count = len(acceptance.offset)
    rows = evidence.genuine
    label, weight = evidence.label[rows], evidence.weight[rows]
    accepted = acceptance(evidence.score[rows], label) >= 0.5
    out: Floats = np.bincount(label, weight * accepted, count) / np.maximum(np.bincount(label, weight, count), 1e-12)
    return out


def _fit(evidence: Evidence, count: int) -> Acceptance:
    rows = evidence.weight > 0
    score, genuine, label = evidence.score[rows], evidence.genuine[rows], evidence.label[rows]
    weight = evidence.weight[rows]
    positive, negative = float(weight[genuine].sum()), float(weight[~genuine].sum())
    # Whatever the shares among what was annotated.
    weight = weight * np.where(
        genuine, (1 - UNKNOWN) * (positive + negative) / positive, UNKNOWN * (positive + negative) / negative
    )
    target = np.where(genuine, (positive + 1) / (positive + 2), 1 / (negative + 2))
    center, spread = float(np.average(score, weights=weight)), 1e-6
    spread = max(spread, float(np.sqrt(np.average((score - center) ** 2, weights=weight))))
    slope, offset = _platt((score - center) / spread, target, weight)
    slope = max(slope, 1e-3) / spread
    offset -= slope * center
    z = slope * score + offset
    shift = np.array([_shift(z[label == i], target[label == i], weight[label == i]) for i in range(count)])
    # Laplace's rule of succession: so sure one may be after as many objects, all of which were right.
    return Acceptance(slope, offset + shift, (positive + 1) / (positive + 2))


def _platt(x: Floats, target: Floats, weight: Floats) -> tuple[float, float]:
    """Slope and offset of a logistic model, by Newton's method with step halving."""
    design = np.stack([x, np.ones_like(x)], axis=1)
    penalty = np.array([SLOPE_PRIOR, 1e-6])
    theta: Floats = np.zeros(2)

    def loss(t: Floats) -> float:
        z = design @ t
        return float(weight @ (np.logaddexp(0.0, z) - target * z) + 0.5 * penalty @ t**2)

    value = loss(theta)
    for _ in range(100):
        p = _sigmoid(design @ theta)
        gradient = design.T @ (weight * (p - target)) + penalty * theta
        hessian = (design * (weight * p * (1 - p))[:, None]).T @ design + np.diag(penalty)
        step, size = np.linalg.solve(hessian, gradient), 1.0
        while size > 1e-6 and loss(theta - size * step) > value:
            size /= 2
        theta = theta - size * step
        previous, value = value, loss(theta)
        if previous - value < 1e-9:
            break
    return float(theta[0]), float(theta[1])


def _shift(z: Floats, target: Floats, weight: Floats) -> float:
    """A label's own offset beside the common one: Newton's method under a Gaussian prior at 0."""
    shift = 0.0
    for _ in range(20):
        p = _sigmoid(z + shift)
        gradient = float(weight @ (p - target)) + OFFSET_PRIOR * shift
        shift -= gradient / (float(weight @ (p * (1 - p))) + OFFSET_PRIOR)
    return shift


def fit_temperature(total: Floats, own: IntArray, weight: Floats) -> float:
    """Temperature of the softmax over labels (Guo et al. 2017), on left-out views.

    Args:
        total: ``(n, k)`` scores; NaN where leaving out left nothing to compare with.
        own: ``(n,)`` the right label; -1 for background, which only tells how far scores spread.
        weight: ``(n,)`` in objects.
    """
    finite = np.isfinite(total)
    several = finite.sum(axis=1) >= 2
    spread = float(np.nanmean(np.nanstd(total[several], axis=1))) if several.any() else 0.0
    default = max(DEFAULT_TEMPERATURE * spread, 1e-3)
    rows = several & (own >= 0) & finite[np.arange(len(own)), own]
    if not rows.any():
        return default
    total, own, weight = np.where(finite, total, -np.inf)[rows], own[rows], weight[rows]
    best, lowest = default, np.inf
    for factor in np.geomspace(1 / 8, 16, 29):
        z = total / (default * factor)
        top = z.max(axis=1)
        loss = weight @ (top + np.log(np.exp(z - top[:, None]).sum(axis=1)) - z[np.arange(len(own)), own])
        loss = float(loss) + 0.5 * TEMPERATURE_PRIOR * float(np.log(factor)) ** 2 / 2
        if loss < lowest:
            best, lowest = float(default * factor), loss
    return best


def _sigmoid(z: Floats) -> Floats:
    out: Floats = 1.0 / (1.0 + np.exp(-np.clip(z, -30.0, 30.0)))
    return out
