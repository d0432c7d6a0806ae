"""Calibrate scores to probabilities on held-out objects.

Two questions are calibrated separately. *Is it any of the labels?* Genuine scores are those of crops whose object is
held out; impostors are crops whose whole label is held out, so that they meet only other labels, as unknown objects do.
*Which one?* A softmax over the labels, whose temperature is fitted to the held-out objects.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import expit, log_softmax  # type: ignore[import-untyped,unused-ignore]

from ml_backend.core.types import BoolArray, Float64Array, IntArray

SLOPE_PRIOR = 0.02  # inverse variance of the slope, for scores of unit spread: only keeps it finite
OFFSET_PRIOR = 4.0  # objects with which a label's own threshold counts as much as the common one
TEMPERATURE_PRIOR = 4.0  # objects with which the fitted temperature counts as much as the default
DEFAULT_TEMPERATURE = 0.3  # in standard deviations of the scores
PRIOR_OBJECTS = 1.0  # weight of prior evidence, in objects
UNKNOWN = 0.4  # assumed share of objects that show none of the labels
# Assumed score of a new object of a label, from typical impostors (0) to copies of an exemplar (1). Real crops lie
# between 0.1 (fallen_person, other people) and 0.5 (one person, a few seconds later).
GENUINE_AT = 0.3
KEEP = 0.8  # share of accepted genuine exemplars that must remain accepted with background
# Assumed cosine of a genuine crop if the only evidence is a single crop, as cosines of models differ: only near-copies
# are accepted. Any second crop and any exemplar of another label or of the background replaces it.
COPY = 0.9
# Assumed distance of a typical impostor from a copy if none is known, relative to that of a genuine crop; for a single
# crop, whose label's variation is unknown, it is larger.
IMPOSTORS_AT = 2.0
IMPOSTORS_AT_OF_ONE = 3.0
MIN_DISTANCE = 0.02  # of a genuine crop from a copy


#: Scores of held-out crops, one row per crop and label: ``genuine`` if the crop shows the label, ``label`` the index of
#: the label, ``weight`` in objects, ``background`` if the row is weak evidence.
EVIDENCE = np.dtype([("score", "f8"), ("genuine", "?"), ("label", "i8"), ("weight", "f8"), ("background", "?")])
Evidence = npt.NDArray[np.void]


def make_evidence(
    score: Float64Array, genuine: BoolArray, label: IntArray, weight: Float64Array, background: BoolArray
) -> Evidence:
    """Make rows of :data:`EVIDENCE` from ``(n,)`` columns."""
    rows = np.empty(len(score), EVIDENCE)
    for name, column in zip(EVIDENCE.names or (), (score, genuine, label, weight, background), strict=True):
        rows[name] = column
    return rows


@dataclass(frozen=True, slots=True)
class Acceptance:
    """Probability that a crop shows a label: ``sigmoid(slope * score + offset[label])``.

    Attributes:
        slope: positive.
        offset: ``(k,)``.
        ceiling: limit to which probabilities above 0.5 are compressed: a fit to few objects must not imply near
            certainty.
    """

    slope: float
    offset: Float64Array
    ceiling: float

    def __call__(self, score: Float64Array, label: IntArray) -> Float64Array:
        """Map ``(n,)`` scores for ``(n,)`` labels to probabilities."""
        p = expit(self.slope * score + self.offset[label])
        out: Float64Array = p - np.maximum(p - 0.5, 0.0) * 2 * (1 - self.ceiling)
        return out

    @property
    def thresholds(self) -> Float64Array:
        """``(k,)`` scores at which a label is as likely right as wrong."""
        return -self.offset / self.slope


def add_prior_evidence(evidence: Evidence, count: int, copy_score: float) -> Evidence:
    """Add a genuine and an impostor row for each label as a prior; either kind weighs as much as one object.

    Genuine crops are assumed at ``GENUINE_AT`` between the typical impostor and a copy of an exemplar. Without
    impostors, one is assumed ``IMPOSTORS_AT`` times as far from a copy as the held-out genuine crops; without these as
    well, genuine crops are assumed at ``COPY`` and the impostor ``IMPOSTORS_AT_OF_ONE`` times as far.

    Args:
        count: number of labels.
        copy_score: score of a copy of an exemplar.
    """
    score, genuine, weight = evidence["score"], evidence["genuine"], evidence["weight"]
    if (~genuine).any():
        low = min(float(np.average(score[~genuine], weights=weight[~genuine])), copy_score - 1e-3)
        high = low + GENUINE_AT * (copy_score - low)
    else:
        high = float(np.average(score, weights=weight)) if len(score) else copy_score - (1 - COPY)
        # Views that are all copies would leave no room for the next frame.
        high = min(high, copy_score - MIN_DISTANCE)
        low = copy_score - (IMPOSTORS_AT if len(score) else IMPOSTORS_AT_OF_ONE) * (copy_score - high)
    labels, prior_weight = np.arange(count), np.full(count, PRIOR_OBJECTS / count)
    yes, no = np.ones(count, bool), np.zeros(count, bool)
    prior = [make_evidence(np.full(count, at), kind, labels, prior_weight, no) for at, kind in ((high, yes), (low, no))]
    return np.concatenate([evidence, *prior])


def fit_acceptance(evidence: Evidence, count: int, copy_score: float) -> Acceptance:
    """Fit Platt scaling (1999) with smoothed targets and an offset for each label.

    Background raises thresholds as long as each label keeps ``KEEP`` of its accepted genuine exemplars, since it may
    contain unannotated objects of the label. It lowers thresholds only if impostors were assumed because no other label
    is known, and not so far that typical background is accepted. Arguments as for :func:`add_prior_evidence`.
    """
    background = evidence["background"]
    labelled = evidence[~background]
    floor = np.inf
    if background.any() and labelled["genuine"].all():
        # Background, as the only impostors there are, replaces the assumed ones.
        floor = float(np.average(evidence["score"][background], weights=evidence["weight"][background]))
        evidence = add_prior_evidence(evidence, count, copy_score)
        labelled = add_prior_evidence(labelled, count, copy_score)
    else:
        labelled = add_prior_evidence(labelled, count, copy_score)
        evidence = np.concatenate([labelled, evidence[background]])
    without_background = _fit(labelled, count)
    min_recall = KEEP * _recall(without_background, evidence)
    for share in (1.0, 0.5, 0.25, 0.1) if background.any() else ():
        weighted = evidence.copy()
        weighted["weight"][evidence["background"]] *= share
        fitted = _fit(weighted, count)
        # Background similar to exemplars flattens the curve: recall stays high only because everything is accepted.
        sound = (fitted.thresholds >= np.minimum(without_background.thresholds, floor)).all()
        if sound and (_recall(fitted, evidence) >= min_recall).all():
            return fitted
    return without_background


def _recall(acceptance: Acceptance, evidence: Evidence) -> Float64Array:
    """Return the ``(k,)`` weighted share of each label's genuine rows that are accepted."""
    count, rows = len(acceptance.offset), evidence[evidence["genuine"]]
    label, weight = rows["label"], rows["weight"]
    accepted = acceptance(rows["score"], label) >= 0.5
    total = np.maximum(np.bincount(label, weight, count), 1e-12)
    out: Float64Array = np.bincount(label, weight * accepted, count) / total
    return out


def _fit(evidence: Evidence, count: int) -> Acceptance:
    """Fit a logistic regression with a common slope and offset, and an additional offset for each label."""
    from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped,unused-ignore]

    evidence = evidence[evidence["weight"] > 0]
    score, genuine, label, weight = (evidence[name] for name in ("score", "genuine", "label", "weight"))
    positive, negative = float(weight[genuine].sum()), float(weight[~genuine].sum())
    # Fixed class shares, whatever the shares among the annotated objects.
    share = np.where(genuine, (1 - UNKNOWN) / positive, UNKNOWN / negative)
    weight = weight * share * (positive + negative)
    target = np.where(genuine, (positive + 1) / (positive + 2), 1 / (negative + 2))
    center, spread = float(np.average(score, weights=weight)), 1e-6
    spread = max(spread, float(np.sqrt(np.average((score - center) ** 2, weights=weight))))
    # The scale of a column sets the penalty of its coefficient.
    scale = 1 / np.sqrt([SLOPE_PRIOR, OFFSET_PRIOR])
    design = np.column_stack([(score - center) / spread * scale[0], np.eye(count)[label] * scale[1]])
    # A smoothed target is a weighted row of each class.
    model = LogisticRegression(C=1.0, solver="newton-cholesky", tol=1e-8).fit(
        np.concatenate([design, design]),
        np.repeat([1, 0], len(design)),
        np.concatenate([weight * target, weight * (1 - target)]),
    )
    slope = max(float(model.coef_[0, 0]) * scale[0], 1e-3) / spread
    offset = float(model.intercept_[0]) - slope * center + model.coef_[0, 1:] * scale[1]
    # Laplace's rule of succession: the highest probability that so many objects, all right, support.
    return Acceptance(slope, offset, (positive + 1) / (positive + 2))


def fit_temperature(total: Float64Array, own: IntArray, weight: Float64Array) -> float:
    """Fit the temperature of the softmax over labels (Guo et al. 2017) on held-out crops.

    Args:
        total: ``(n, k)`` scores; NaN for labels without remaining exemplars.
        own: ``(n,)`` the true label; -1 for background, which only contributes to the spread of scores.
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
        log_likelihood = log_softmax(total / (default * factor), axis=1)[np.arange(len(own)), own]
        loss = -float(weight @ log_likelihood) + 0.5 * TEMPERATURE_PRIOR * float(np.log(factor)) ** 2 / 2
        if loss < lowest:
            best, lowest = float(default * factor), loss
    return best
