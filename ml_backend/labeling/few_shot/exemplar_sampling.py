"""Sample diverse exemplars and weigh them."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from ml_backend.core.types import BoolArray, Float64Array, FloatArray, IntArray

MAX_CROPS = 512  # of all labels: comparing with 512 of 1,536 dimensions takes a CPU under a millisecond
CROPS_PER_OBJECT = 12  # more crops of one object add little
COARSE = 4  # evenly spaced candidates per exemplar before farthest-point sampling
MIN_PER_LABEL = 12  # even with many labels


@dataclass(frozen=True, slots=True)
class ExemplarSample:
    """Sampled exemplars, ordered by label, object and id.

    Attributes:
        embeddings: ``(p, d)`` float32, L2-normalised.
        labels: ``(p,)`` int64, label index; -1 for background.
        ids: ``(p,)`` int64.
        groups: ``(p,)`` int64, index of the object.
        folds: ``(p,)`` int64, cross-validation fold: an object, or half the crops of a label's only object.
        weight: ``(p,)``: an object's crops share its weight, a label's objects share 1.
    """

    embeddings: FloatArray
    labels: IntArray
    ids: IntArray
    groups: IntArray
    folds: IntArray
    weight: Float64Array


def sample_exemplars(embeddings: FloatArray, labels: IntArray, ids: IntArray, groups: IntArray) -> ExemplarSample:
    """Sample exemplars that differ, independent of the order of rows.

    Copies of one image count once, even in several objects.

    Args:
        embeddings, ids, groups: see ``Exemplars``.
        labels: ``(n,)`` label indices; -1 for background.
    """
    sampled: list[IntArray] = []
    per_label = max(MIN_PER_LABEL, MAX_CROPS // max(len(np.unique(labels)), 1))
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        # Of copies, the one with the lowest group and id is kept.
        rows = rows[np.lexsort((ids[rows], groups[rows]))]
        rows = _distinct(embeddings, rows)
        per_object = [
            object_rows[_farthest_points(embeddings[object_rows], CROPS_PER_OBJECT)]
            for group in np.unique(groups[rows])
            for object_rows in [rows[groups[rows] == group]]
        ]
        rows = np.sort(np.concatenate(per_object))
        sampled.append(rows[_farthest_points(embeddings[rows], per_label)])
    rows = np.concatenate(sampled)
    rows = rows[np.lexsort((ids[rows], groups[rows], labels[rows]))]
    embeddings, labels, ids, groups = embeddings[rows], labels[rows], ids[rows], groups[rows]
    folds, weight = _folds(embeddings, labels, groups), np.zeros(len(labels))
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        _, object_of, crops = np.unique(groups[rows], return_inverse=True, return_counts=True)
        weight[rows] = 1.0 / crops[object_of] / len(crops)
    return ExemplarSample(embeddings, labels, ids, groups, folds, weight)


def without(sample: ExemplarSample, rows: BoolArray) -> ExemplarSample:
    """Return a sample without the ``(p,)`` marked rows."""
    return ExemplarSample(*(getattr(sample, field.name)[~rows] for field in fields(sample)))


def _distinct(embeddings: FloatArray, rows: IntArray) -> IntArray:
    """Keep the first row of each set of copies (equal to 3 decimals of the largest value), in the given order."""
    scale = np.abs(embeddings[rows]).max() or 1.0
    keys = np.round(embeddings[rows] / scale * 1000).astype(np.int16)
    _, first = np.unique(keys, axis=0, return_index=True)
    return rows[np.sort(first)]


def _farthest_points(embeddings: FloatArray, count: int) -> IntArray:
    """Choose ``count`` rows by farthest-point sampling (Gonzalez 1985)."""
    rows: IntArray = np.arange(len(embeddings))
    if len(rows) <= count:
        return rows
    if len(rows) > COARSE * count:
        rows = np.linspace(0, len(rows) - 1, COARSE * count).round().astype(np.int64)
        embeddings = embeddings[rows]
    mean = embeddings.mean(axis=0)
    chosen = [int(np.argmax(embeddings @ mean))]  # the most typical one first
    nearest = embeddings @ embeddings[chosen[0]]
    while len(chosen) < count:
        chosen.append(int(np.argmin(nearest)))
        np.maximum(nearest, embeddings @ embeddings[chosen[-1]], out=nearest)
    out: IntArray = rows[np.array(sorted(chosen))]
    return out


def _folds(embeddings: FloatArray, labels: IntArray, groups: IntArray) -> IntArray:
    """Assign cross-validation folds; see ``ExemplarSample``.

    A label with a single object cannot lose it, so its crops are split in two folds along their first principal
    component. A split of neighbouring frames would underestimate the variation of the label.
    """
    _, group_index = np.unique(groups, return_inverse=True)
    folds: IntArray = group_index.astype(np.int64) * 2
    for label in np.unique(labels[labels >= 0]):
        rows = np.flatnonzero(labels == label)
        if len(np.unique(groups[rows])) > 1 or len(rows) < 2:
            continue
        centred = embeddings[rows].astype(np.float64) - embeddings[rows].mean(axis=0)
        axis = np.linalg.svd(centred, full_matrices=False)[2][0]
        position = np.argsort(np.argsort(centred @ axis, kind="stable"), kind="stable")
        folds[rows] += (position >= len(rows) / 2).astype(np.int64)
    return folds
