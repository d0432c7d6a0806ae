"""Choose what to annotate next: what is uncertain, and not all of one kind."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ml_backend.core.types import Float64Array

#: Most candidates that are compared with each other, those that need it most: 32 MB.
MAX_CANDIDATES = 2000


@dataclass(frozen=True, slots=True)
class Choice:
    """A candidate that was chosen.

    Attributes:
        index: of the candidate.
        gain: the need that it covers beyond what was chosen or is known before, in the unit of the needs.
        covers: number of other candidates that look more like it than like any other chosen or known one.
        likeness: to the most similar known one, 0 to 1.
    """

    index: int
    gain: float
    covers: int
    likeness: float


def choose_diverse(
    needs: npt.ArrayLike,
    vectors: npt.ArrayLike,
    budget: float,
    costs: npt.ArrayLike | None = None,
    known: npt.ArrayLike | None = None,
) -> list[Choice]:
    """Choose candidates that are uncertain, and together resemble as much as possible of what is uncertain.

    They maximise the facility location ``F(S) = sum_i needs[i] * max_{j in S or known} similarity(i, j)`` over the most
    uncertain candidates, as Wei, Iyer, Bilmes: "Submodularity in Data Subset Selection and Active Learning", ICML 2015.
    The greedy algorithm reaches ``1 - 1/e`` of the optimum (Nemhauser, Wolsey, Fisher 1978). It is evaluated lazily
    (Minoux 1978), and by gain per cost where costs differ (Leskovec et al.: "Cost-effective Outbreak Detection in
    Networks", KDD 2007). A similarity of 0 is that of any two vectors on average, 1 that of the same ones.

    Args:
        needs: ``(n,)`` how much each candidate is worth; those of 0 or less are not chosen.
        vectors: ``(n, d)`` embeddings of any length; a row of zeros resembles nothing but itself.
        budget: sum of the costs of those chosen.
        costs: ``(n,)`` positive; 1 by default.
        known: ``(m, d)`` embeddings of what has been annotated, which need not be chosen again.

    Returns:
        The most worthwhile first; fewer than the budget allows if nothing else would add anything.
    """
    need = np.asarray(needs, np.float64)
    chosen = np.argsort(-need, kind="stable")[:MAX_CANDIDATES]
    chosen = chosen[need[chosen] > 0]
    if not len(chosen):
        return []
    need, price = need[chosen], np.ones(len(chosen)) if costs is None else np.asarray(costs, np.float64)[chosen]
    unit = _normalised(np.asarray(vectors, np.float64)[chosen])
    others = np.zeros((0, unit.shape[1])) if known is None else _normalised(np.asarray(known, np.float64))
    usual = _usual(np.concatenate([unit, others]))
    similarity = _rescaled(unit @ unit.T, usual)
    np.fill_diagonal(similarity, 1.0)
    likeness = _rescaled(unit @ others.T, usual).max(axis=1, initial=0.0)
    covered = likeness.copy()

    def gain(j: int) -> float:
        return float(need @ np.maximum(similarity[j] - covered, 0.0))

    # Gains only shrink as more is chosen, so a gain that is still the largest after an update is the largest.
    heap = [(-gain(j) / price[j], j) for j in range(len(need))]
    heapq.heapify(heap)
    picked: list[tuple[int, float]] = []
    spent = 0.0
    while heap:
        _, j = heapq.heappop(heap)
        if spent + price[j] > budget + 1e-9:
            continue
        now = gain(j)
        if heap and (-now / price[j], j) > heap[0]:
            heapq.heappush(heap, (-now / price[j], j))
            continue
        if now <= 1e-12:
            break
        picked.append((j, now))
        spent += float(price[j])
        covered = np.maximum(covered, similarity[j])
    if not picked:
        return []
    to_picked = similarity[[j for j, _ in picked]]
    nearest = np.where(to_picked.max(axis=0) > likeness, to_picked.argmax(axis=0), len(picked))
    covers = np.bincount(nearest, minlength=len(picked))[: len(picked)]
    covers = np.maximum(covers - 1, 0)  # without itself
    return [
        Choice(int(chosen[j]), value, int(count), float(likeness[j]))
        for (j, value), count in zip(picked, covers.tolist(), strict=True)
    ]


def _normalised(vectors: Float64Array) -> Float64Array:
    norm = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(norm > 0, norm, 1.0))


def _usual(unit: Float64Array) -> float:
    """Return the mean cosine of two of ``(n, d)`` vectors of length 1 or 0, which is what all have in common."""
    count = int(unit.any(axis=1).sum())
    if count < 2:
        return 0.0
    mean = (float(np.square(unit.sum(axis=0)).sum()) - count) / (count * (count - 1))
    return mean if 0 < mean < 1 - 1e-6 else 0.0  # else all are the same


def _rescaled(product: Float64Array, usual: float) -> Float64Array:
    """Return cosines so that ``usual`` becomes 0 and 1 stays."""
    return np.clip((product - usual) / (1 - usual), 0.0, 1.0)
