"""From scores of left-out objects to calibrated probabilities. Pure.

Two questions are answered apart. *Is it any of the labels?* Genuine scores are those of views whose object was left
out; impostors are views whose whole label was left out, so that they meet labels none of which is theirs, as unknown
objects do. *Which one?* A softmax over the labels whose temperature fits the left-out objects.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import expit, log_softmax  # type: ignore[import-untyped,unused-ignore]

from ml_backend.core.types import BoolArray, IntArray

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


#: Scores of left-out views, one row a view and label: ``genuine`` where the view shows the label, ``label`` the number
#: of the one that is asked for, ``weight`` in objects, ``background`` where the row is weak evidence.
EVIDENCE = np.dtype([("score", "f8"), ("genuine", "?"), ("label", "i8"), ("weight", "f8"), ("background", "?")])
Evidence = npt.NDArray[np.void]


def make_evidence(
    score: Floats, genuine: BoolArray, label: IntArray, weight: Floats, background: BoolArray
) -> Evidence:
    """Rows of :data:`EVIDENCE` from ``(n,)`` columns."""
    rows = np.empty(len(score), EVIDENCE)
    for name, column in zip(EVIDENCE.names or (), (score, genuine, label, weight, background), strict=True):
        rows[name] = column
    return rows


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
        p = expit(self.slope * score + self.offset[label])
        out: Floats = p - np.maximum(p - 0.5, 0.0) * 2 * (1 - self.ceiling)
        return out

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
    score, genuine, weight = evidence["score"], evidence["genuine"], evidence["weight"]
    if (~genuine).any():
        low = min(float(np.average(score[~genuine], weights=weight[~genuine])), copy - 1e-3)
        high = low + GENUINE_AT * (copy - low)
    else:
        high = float(np.average(score, weights=weight)) if len(score) else copy - (1 - COPY)
        # Copies alone would leave no room for the next frame.
        high = min(high, copy - MIN_REACH)
        low = copy - (STRANGERS_AT if len(score) else STRANGERS_AT_OF_ONE) * (copy - high)
    labels, each = np.arange(count), np.full(count, PRIOR_OBJECTS / count)
    yes, no = np.ones(count, bool), np.zeros(count, bool)
    assumed = [make_evidence(np.full(count, at), kind, labels, each, no) for at, kind in ((high, yes), (low, no))]
    return np.concatenate([evidence, *assumed])


def fit_acceptance(evidence: Evidence, count: int, copy: float) -> Acceptance:
    """Platt's method (1999) with smoothed targets; a label's offset moves as far as its own objects demand.

    Background tightens as long as each label keeps ``KEEP`` of the genuine exemplars that are accepted without it: it
    may hold objects of the label that nobody bothered to annotate. It loosens only what was assumed because no label
    is a stranger to another, and then not so far that typical background is accepted. Arguments as for
    :func:`with_assumptions`.
    """
    weak = evidence["background"]
    known = evidence[~weak]
    # Strangers that were only assumed give way to the background, in both directions.
    floor = np.inf
    if weak.any() and known["genuine"].all():
        floor = float(np.average(evidence["score"][weak], weights=evidence["weight"][weak]))
        # It is the only impostor there is.
        evidence, known = with_assumptions(evidence, count, copy), with_assumptions(known, count, copy)
    else:
        known = with_assumptions(known, count, copy)
        evidence = np.concatenate([known, evidence[weak]])
    without = _fit(known, count)
    allowed = KEEP * _recall(without, evidence)
    for share in (1.0, 0.5, 0.25, 0.1) if weak.any() else ():
        weaker = evidence.copy()
        weaker["weight"][evidence["background"]] *= share
        fitted = _fit(weaker, count)
        # Background that looks as genuine as exemplars flattens the curve: all exemplars are kept as all is accepted.
        sound = (fitted.thresholds >= np.minimum(without.thresholds, floor)).all()
        if sound and (_recall(fitted, evidence) >= allowed).all():
            return fitted
    return without


def _recall(acceptance: Acceptance, evidence: Evidence) -> Floats:
    """``(k,)`` weighted share of each label's genuine rows that are accepted."""
    count, rows = len(acceptance.offset), evidence[evidence["genuine"]]
    label, weight = rows["label"], rows["weight"]
    accepted = acceptance(rows["score"], label) >= 0.5
    out: Floats = np.bincount(label, weight * accepted, count) / np.maximum(np.bincount(label, weight, count), 1e-12)
    return out


def _fit(evidence: Evidence, count: int) -> Acceptance:
    """One logistic regression: a slope and an offset for all labels, and what each label's own offset adds."""
    from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped,unused-ignore]

    evidence = evidence[evidence["weight"] > 0]
    score, genuine, label, weight = (evidence[name] for name in ("score", "genuine", "label", "weight"))
    positive, negative = float(weight[genuine].sum()), float(weight[~genuine].sum())
    # Whatever the shares among what was annotated.
    share = np.where(genuine, (1 - UNKNOWN) / positive, UNKNOWN / negative)
    weight = weight * share * (positive + negative)
    target = np.where(genuine, (positive + 1) / (positive + 2), 1 / (negative + 2))
    center, spread = float(np.average(score, weights=weight)), 1e-6
    spread = max(spread, float(np.sqrt(np.average((score - center) ** 2, weights=weight))))
    # The penalty of a coefficient is set by the scale of its column.
    scale = 1 / np.sqrt([SLOPE_PRIOR, OFFSET_PRIOR])
    design = np.column_stack([(score - center) / spread * scale[0], np.eye(count)[label] * scale[1]])
    # A smoothed target is a share of both classes.
    model = LogisticRegression(C=1.0, solver="newton-cholesky", tol=1e-8).fit(
        np.concatenate([design, design]),
        np.repeat([1, 0], len(design)),
        np.concatenate([weight * target, weight * (1 - target)]),
    )
    slope = max(float(model.coef_[0, 0]) * scale[0], 1e-3) / spread
    offset = float(model.intercept_[0]) - slope * center + model.coef_[0, 1:] * scale[1]
    # Laplace's rule of succession: so sure one may be after as many objects, all of which were right.
    return Acceptance(slope, offset, (positive + 1) / (positive + 2))


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
        chosen = log_softmax(total / (default * factor), axis=1)[np.arange(len(own)), own]
        loss = -float(weight @ chosen) + 0.5 * TEMPERATURE_PRIOR * float(np.log(factor)) ** 2 / 2
        if loss < lowest:
            best, lowest = float(default * factor), loss
    return best
