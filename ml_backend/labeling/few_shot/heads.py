"""Two classification heads over embeddings, and their sum.

The *similarity* head compares crops with exemplars and works from one exemplar on; the *linear* head weighs directions
and is better with several. On real crops their sum is as good as the better one (``benchmarks/few_shot.py``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ml_backend.core.types import Float64Array, FloatArray, IntArray
from ml_backend.labeling.few_shot.exemplar_sampling import ExemplarSample

SOFTNESS = 0.5  # temperature of the similarity head, in standard deviations of the exemplars' similarities
RIDGE = 1.0  # in typical eigenvalues of the exemplars' Gram matrix
LINEAR_WEIGHT = 2.0  # of the linear head, scaled to the spread of the similarity head
_TINY = 1e-6


@dataclass(frozen=True, slots=True)
class HeadScores:
    """Scores of ``m`` crops for ``k`` labels; NaN for labels whose exemplars are all held out.

    Attributes:
        similarity: ``(m, k)`` soft maximum of the cosines to the label's exemplars.
        linear: ``(m, k)`` of the linear head, in units of a cosine.
        nearest: ``(m, k)`` cosine to the label's nearest exemplar; -inf instead of NaN.
    """

    similarity: Float64Array
    linear: Float64Array
    nearest: Float64Array


class LabelHeads:
    """Fitted similarity and linear heads.

    Args:
        sample: with at least one exemplar of each label ``0..count-1``.
        count: number of labels.
    """

    def __init__(self, sample: ExemplarSample, count: int) -> None:
        self._sample = sample
        self._count = count
        self._rows = np.flatnonzero(sample.labels >= 0)
        self._exemplars, self._labels = sample.embeddings[self._rows], sample.labels[self._rows]
        self._weight = sample.weight[self._rows]
        self._starts = np.searchsorted(self._labels, np.arange(count))
        similarities = (self._exemplars @ self._exemplars.T).astype(np.float64)
        w = self._weight / self._weight.sum()
        mean = float(w @ similarities @ w)
        variance = float(w @ (similarities - mean) ** 2 @ w)
        self.temperature = max(SOFTNESS * float(np.sqrt(variance)), 1e-3)
        self._fit_linear()
        self.linear_scale = self._fit_scale()

    def _fit_linear(self) -> None:
        """Fit ridge regression (Hoerl and Kennard 1970) of label indicators, each label with the same weight."""
        x, weight = self._exemplars.astype(np.float64), self._weight
        self._root = np.sqrt(weight)
        mean = weight @ x / weight.sum()
        centred = x - mean
        gram = self._root[:, None] * (centred @ centred.T) * self._root
        # Unlike the size of the weighted matrix, its trace and norm are unchanged by copies of an exemplar.
        self._ridge = max(RIDGE * float((gram**2).sum()) / max(float(np.trace(gram)), _TINY), _TINY)
        target = np.eye(self._count)[self._labels] - 1.0 / self._count
        inverse = np.linalg.inv(gram + self._ridge * np.eye(len(gram)))
        self._hat = gram @ inverse
        self._target = self._root[:, None] * target
        self._fitted = self._hat @ self._target
        # Scaled by the ridge: with one exemplar per label a score is its cosine minus the labels' mean cosine.
        dual = self._root[:, None] * (inverse @ self._target)
        weights = (centred.T @ dual) * self._ridge  # (d, k)
        self._offset = mean @ weights
        self._weights: FloatArray = weights.astype(np.float32)
        # A single matrix product serves both heads.
        self._stacked: FloatArray = np.ascontiguousarray(np.concatenate([self._exemplars.T, self._weights], axis=1))

    def _fit_scale(self) -> float:
        """Return the factor that gives the linear head the similarity head's spread over labels."""
        held_out = self.held_out()
        spreads = []
        for values in (held_out.similarity, held_out.linear):
            usable = values[np.isfinite(values).sum(axis=1) >= 2]
            usable = usable - np.nanmean(usable, axis=1, keepdims=True) if len(usable) else usable
            spreads.append(float(np.nansum(usable**2)))
        return float(np.sqrt(spreads[0] / spreads[1])) if min(spreads) > _TINY else 1.0

    def total(self, scores: HeadScores) -> Float64Array:
        """Combine both heads to ``(m, k)`` scores."""
        return scores.similarity + LINEAR_WEIGHT * self.linear_scale * scores.linear

    def score(self, embeddings: FloatArray) -> HeadScores:
        """Score ``(m, d)`` embeddings."""
        both = (embeddings @ self._stacked).astype(np.float64)
        similarities, linear = np.split(both, [len(self._exemplars)], axis=1)
        return HeadScores(
            self._soft_maximum(similarities, self._weight),
            linear - self._offset,
            self._maximum(similarities, self._weight),
        )

    def similarities(self, embeddings: FloatArray, label: int) -> tuple[FloatArray, IntArray]:
        """Return ``(m, q)`` cosines of embeddings to a label's exemplars, and the exemplars' ``(q,)`` ids."""
        rows = np.flatnonzero(self._labels == label)
        cosines: FloatArray = embeddings @ self._exemplars[rows].T
        return cosines, self._sample.ids[self._rows[rows]]

    def held_out(self, folds: IntArray | None = None) -> HeadScores:
        """Score the sample's ``p`` crops, each with its fold held out.

        The linear scores of a crop add up to 0; where a label loses all exemplars, they are centred again on the
        remaining labels. The ridge's mean includes the held-out exemplars, which would push the crop away from all
        other labels, unlike an object that was never annotated.

        Args:
            folds: ``(p,)`` folds instead of the sample's.
        """
        sample = self._sample
        folds = sample.folds if folds is None else folds
        weight = np.where(folds[:, None] == folds[None, self._rows], 0.0, self._weight)
        similarities = (sample.embeddings @ self._exemplars.T).astype(np.float64)
        similarity, nearest = self._soft_maximum(similarities, weight), self._maximum(similarities, weight)
        linear = (sample.embeddings @ self._weights).astype(np.float64) - self._offset
        linear[self._rows] = self._linear_held_out(folds[self._rows])
        valid = np.isfinite(similarity)
        linear[~valid] = np.nan
        linear -= np.where(valid, linear, 0.0).sum(axis=1, keepdims=True) / np.maximum(valid.sum(axis=1), 1)[:, None]
        return HeadScores(similarity, linear, nearest)

    def _soft_maximum(self, similarities: Float64Array, weight: Float64Array) -> Float64Array:
        """Reduce ``(m, q)`` similarities to ``(m, k)`` soft maxima by label; weights ``(q,)`` or ``(m, q)``."""
        top = self._maximum(similarities, weight)
        gap = np.minimum(similarities - top[:, self._labels], 0.0)  # exemplars of weight 0 may exceed the top
        terms = np.add.reduceat(weight * np.exp(gap / self.temperature), self._starts, axis=1)
        total = np.add.reduceat(np.atleast_2d(weight), self._starts, axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            out: Float64Array = top + self.temperature * np.log(terms / total)
        out[~np.isfinite(top)] = np.nan
        return out

    def _maximum(self, similarities: Float64Array, weight: Float64Array) -> Float64Array:
        """Reduce ``(m, q)`` similarities to ``(m, k)`` maxima by label; -inf where all weights are 0."""
        out: Float64Array = np.maximum.reduceat(np.where(weight > 0, similarities, -np.inf), self._starts, axis=1)
        return out

    def _linear_held_out(self, folds: IntArray) -> Float64Array:
        """Return the ridge's scores with each fold held out, by the residual ``(I - H_ff)^-1 r_f`` (Cook 1977)."""
        out = np.empty_like(self._target)
        for fold in np.unique(folds):
            rows = np.flatnonzero(folds == fold)
            residual = self._target[rows] - self._fitted[rows]
            block = np.eye(len(rows)) - self._hat[np.ix_(rows, rows)]
            predicted = self._target[rows] - np.linalg.solve(block, residual)
            out[rows] = predicted / self._root[rows][:, None]
        scaled: Float64Array = out * self._ridge
        return scaled
