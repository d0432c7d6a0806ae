"""Which exemplars are compared with, and how much each of them counts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ml_backend.core.types import FloatArray, IntArray

Floats = npt.NDArray[np.float64]

MAX_VIEWS = 512  # of all labels: comparing with 512 of 1,536 dimensions takes a CPU under a millisecond
VIEWS_PER_OBJECT = 12  # more views of one object say little more
COARSE = 4  # times the number that is wanted: a cheap first choice before the careful one
MIN_PER_LABEL = 12  # however many labels there are


@dataclass(frozen=True, slots=True)
class ExemplarSample:
    """The exemplars that are compared with, ordered by label, object and id.

    Attributes:
        embeddings: ``(p, d)`` float32, L2-normalised.
        of: ``(p,)`` int64, number of the label; -1 for background.
        ids: ``(p,)`` int64.
        groups: ``(p,)`` int64, number of the object.
        folds: ``(p,)`` int64, what is left out together: an object, or half the views of a label's only object.
        weight: ``(p,)``: an object's views share its weight, a label's objects share 1.
    """

    embeddings: FloatArray
    of: IntArray
    ids: IntArray
    groups: IntArray
    folds: IntArray
    weight: Floats


def sample_exemplars(embeddings: FloatArray, of: IntArray, ids: IntArray, groups: IntArray) -> ExemplarSample:
    """Choose exemplars that differ; the same ones whatever the order of the arguments' rows.

    Copies of one picture count once, however many objects they are said to be.

    Args:
        embeddings, ids, groups: see ``Exemplars``.
        of: ``(n,)`` number of the label; -1 for background.
    """
    rows: list[IntArray] = []
    per_label = max(MIN_PER_LABEL, MAX_VIEWS // max(len(np.unique(of)), 1))
    for label in np.unique(of):
        mine = np.flatnonzero(of == label)
        # By content first, so that what is kept of copies does not depend on how many there are.
        mine = mine[np.lexsort((ids[mine], groups[mine]))]
        mine = _distinct(embeddings, mine)
        kept = [
            inside[_spread(embeddings[inside], VIEWS_PER_OBJECT)]
            for group in np.unique(groups[mine])
            for inside in [mine[groups[mine] == group]]
        ]
        mine = np.sort(np.concatenate(kept))
        rows.append(mine[_spread(embeddings[mine], per_label)])
    chosen = np.concatenate(rows)
    chosen = chosen[np.lexsort((ids[chosen], groups[chosen], of[chosen]))]
    embeddings, of, ids, groups = embeddings[chosen], of[chosen], ids[chosen], groups[chosen]
    folds, weight = _folds(embeddings, of, groups), np.zeros(len(of))
    for label in np.unique(of):
        mine = np.flatnonzero(of == label)
        _, object_of, views = np.unique(groups[mine], return_inverse=True, return_counts=True)
        weight[mine] = 1.0 / views[object_of] / len(views)
    return ExemplarSample(embeddings, of, ids, groups, folds, weight)


def _distinct(embeddings: FloatArray, rows: IntArray) -> IntArray:
    """The first of each set of copies (equal to 3 decimals of a unit vector's largest value), in the order given."""
    scale = np.abs(embeddings[rows]).max() or 1.0
    keys = np.round(embeddings[rows] / scale * 1000).astype(np.int16)
    _, first = np.unique(keys, axis=0, return_index=True)
    return rows[np.sort(first)]


def _spread(embeddings: FloatArray, count: int) -> IntArray:
    """``count`` rows far from each other (Gonzalez 1985: the next is the one farthest from those chosen)."""
    rows: IntArray = np.arange(len(embeddings))
    if len(rows) <= count:
        return rows
    if len(rows) > COARSE * count:
        some: IntArray = np.linspace(0, len(rows) - 1, COARSE * count).round().astype(np.int64)
        rows = some
        embeddings = embeddings[rows]
    mean = embeddings.mean(axis=0)
    chosen = [int(np.argmax(embeddings @ mean))]  # the most typical one first
    nearest = embeddings @ embeddings[chosen[0]]
    while len(chosen) < count:
        chosen.append(int(np.argmin(nearest)))
        np.maximum(nearest, embeddings @ embeddings[chosen[-1]], out=nearest)
    out: IntArray = rows[np.array(sorted(chosen))]
    return out


def _folds(embeddings: FloatArray, of: IntArray, groups: IntArray) -> IntArray:
    """What is left out together; see ``ExemplarSample``.

    A label with one object only cannot lose it. The two halves of its views that differ most, by their first principal
    component, stand for two objects: neighbouring frames would tell nothing about how far its looks reach.
    """
    _, number = np.unique(groups, return_inverse=True)
    folds: IntArray = number.astype(np.int64) * 2
    for label in np.unique(of[of >= 0]):
        mine = np.flatnonzero(of == label)
        if len(np.unique(groups[mine])) > 1 or len(mine) < 2:
            continue
        centred = embeddings[mine].astype(np.float64) - embeddings[mine].mean(axis=0)
        axis = np.linalg.svd(centred, full_matrices=False)[2][0]
        position = np.argsort(np.argsort(centred @ axis, kind="stable"), kind="stable")
        folds[mine] += (position >= len(mine) / 2).astype(np.int64)
    return folds
