"""Two opinions about which label a view shows, and their sum.

The *look* head compares with the exemplars themselves and is right from one exemplar on; the *linear* head weighs
directions and is better once there are several. On real crops their sum loses to neither (``benchmarks/few_shot.py``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ml_backend.core.types import FloatArray, IntArray
from ml_backend.labeling.few_shot.exemplar_sampling import ExemplarSample

Floats = npt.NDArray[np.float64]

SOFTNESS = 0.5  # temperature of the look head, in spreads of the exemplars' similarities: between nearest and mean
RIDGE = 1.0  # in typical eigenvalues of the exemplars' Gram matrix
LINEAR_WEIGHT = 2.0  # of the linear head, where both have the same spread
_TINY = 1e-6


@dataclass(frozen=True, slots=True)
class HeadScores:
    """Scores of views for labels; NaN where leaving out left a label without exemplars.

    Attributes:
        look: ``(m, k)`` similarity to the label's exemplars: a cosine, softened.
        linear: ``(m, k)`` of the linear head, in units of a cosine.
        nearest: ``(m, k)`` cosine to the label's nearest exemplar; -inf instead of NaN.
    """

    look: Floats
    linear: Floats
    nearest: Floats


class LabelHeads:
    """Both heads, fitted.

    Args:
        sample: at least one exemplar of each label ``0..count-1``.
        count: labels.
    """

    def __init__(self, sample: ExemplarSample, count: int) -> None:
        self._sample = sample
        self._count = count
        self._rows = np.flatnonzero(sample.of >= 0)
        self._known, self._known_of = sample.embeddings[self._rows], sample.of[self._rows]
        self._known_weight = sample.weight[self._rows]
        self._starts = np.searchsorted(self._known_of, np.arange(count))
        similar = (self._known @ self._known.T).astype(np.float64)
        w = self._known_weight / self._known_weight.sum()
        mean = float(w @ similar @ w)
        variance = float(w @ (similar - mean) ** 2 @ w)
        self.temperature = max(SOFTNESS * float(np.sqrt(variance)), 1e-3)
        self._fit_linear()
        self.linear_scale = self._fit_scale()

    def _fit_linear(self) -> None:
        """Ridge regression (Hoerl and Kennard 1970) of label indicators, each label with the same weight."""
        x, weight = self._known.astype(np.float64), self._known_weight
        self._root = np.sqrt(weight)
        mean = weight @ x / weight.sum()
        centred = x - mean
        gram = self._root[:, None] * (centred @ centred.T) * self._root
        # Copies of an exemplar change neither the trace nor the norm of the weighted matrix, unlike its size.
        self._ridge = max(RIDGE * float((gram**2).sum()) / max(float(np.trace(gram)), _TINY), _TINY)
        target = np.eye(self._count)[self._known_of] - 1.0 / self._count
        inverse = np.linalg.inv(gram + self._ridge * np.eye(len(gram)))
        self._hat = gram @ inverse
        self._target = self._root[:, None] * target
        self._fitted = self._hat @ self._target
        # Times the ridge: with one exemplar a label this is its cosine less the labels' mean cosine.
        dual = self._root[:, None] * (inverse @ self._target)
        weights = (centred.T @ dual) * self._ridge  # (d, k)
        self._offset = mean @ weights
        self._weights: FloatArray = weights.astype(np.float32)
        # One matrix product serves both heads.
        self._stacked: FloatArray = np.ascontiguousarray(np.concatenate([self._known.T, self._weights], axis=1))

    def _fit_scale(self) -> float:
        """What makes the linear head's spread over the labels that of the look head."""
        left = self.left_out()
        spreads = []
        for values in (left.look, left.linear):
            usable = values[np.isfinite(values).sum(axis=1) >= 2]
            usable = usable - np.nanmean(usable, axis=1, keepdims=True) if len(usable) else usable
            spreads.append(float(np.nansum(usable**2)))
        return float(np.sqrt(spreads[0] / spreads[1])) if min(spreads) > _TINY else 1.0

    def total(self, scores: HeadScores) -> Floats:
        """``(m, k)``: both opinions; the highest is the best label."""
        return scores.look + LINEAR_WEIGHT * self.linear_scale * scores.linear

    def score(self, views: FloatArray) -> HeadScores:
        """Scores of ``(m, d)`` views."""
        both = (views @ self._stacked).astype(np.float64)
        similar, linear = both[:, : len(self._known)], both[:, len(self._known) :] - self._offset
        return HeadScores(self._soft(similar, self._known_weight), linear, self._nearest(similar, self._known_weight))

    def similarities(self, views: FloatArray, label: int) -> tuple[FloatArray, IntArray]:
        """Cosines ``(m, q)`` of views to a label's exemplars, and their ids ``(q,)``."""
        inside = np.flatnonzero(self._known_of == label)
        cosines: FloatArray = views @ self._known[inside].T
        return cosines, self._sample.ids[self._rows[inside]]

    def left_out(self, folds: IntArray | None = None) -> HeadScores:
        """Scores of the sample's own views, each as if its fold were unknown: ``(p, k)``.

        Linear scores of a view add up to 0. Where a label lost all exemplars, those of the others are made to do so
        again: the ridge's mean still holds what was left out, which pushes it away from all other labels, the farther
        the fewer there are. An object that was never annotated is not pushed.

        Args:
            folds: ``(p,)`` other folds than the sample's.
        """
        sample = self._sample
        folds = sample.folds if folds is None else folds
        weight = np.where(folds[:, None] == folds[None, self._rows], 0.0, self._known_weight)
        similar = (sample.embeddings @ self._known.T).astype(np.float64)
        look, nearest = self._soft(similar, weight), self._nearest(similar, weight)
        linear = (sample.embeddings @ self._weights).astype(np.float64) - self._offset
        linear[self._rows] = self._linear_left_out(folds[self._rows])
        there = np.isfinite(look)
        linear[~there] = np.nan
        linear -= np.where(there, linear, 0.0).sum(axis=1, keepdims=True) / np.maximum(there.sum(axis=1), 1)[:, None]
        return HeadScores(look, linear, nearest)

    def _soft(self, similar: Floats, weight: Floats) -> Floats:
        """Softened maximum a label of similarities ``(m, q)`` under weights ``(q,)`` or ``(m, q)``: ``(m, k)``."""
        top = self._nearest(similar, weight)
        gap = np.minimum(similar - top[:, self._known_of], 0.0)  # what weighs nothing may be above the top
        terms = np.add.reduceat(weight * np.exp(gap / self.temperature), self._starts, axis=1)
        total = np.add.reduceat(np.atleast_2d(weight), self._starts, axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            out: Floats = top + self.temperature * np.log(terms / total)
        out[~np.isfinite(top)] = np.nan
        return out

    def _nearest(self, similar: Floats, weight: Floats) -> Floats:
        """Maximum a label: ``(m, k)``; -inf where nothing weighs."""
        out: Floats = np.maximum.reduceat(np.where(weight > 0, similar, -np.inf), self._starts, axis=1)
        return out

    def _linear_left_out(self, folds: IntArray) -> Floats:
        """The ridge's scores with each fold left out, in closed form: residual ``(I - H_ff)^-1 r_f`` (Cook 1977)."""
        out = np.empty_like(self._target)
        for fold in np.unique(folds):
            inside = np.flatnonzero(folds == fold)
            residual = self._target[inside] - self._fitted[inside]
            block = np.eye(len(inside)) - self._hat[np.ix_(inside, inside)]
            left = self._target[inside] - np.linalg.solve(block, residual)
            out[inside] = left / self._root[inside][:, None]
        scaled: Floats = out * self._ridge
        return scaled
