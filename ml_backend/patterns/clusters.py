"""How many looks a label has: clusters of its exemplars."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ml_backend.types import FloatArray, IntArray

MAX_CLUSTERS = 8
# Kaufman & Rousseeuw, Finding Groups in Data (1990): an average silhouette below 0.25 means no substantial structure.
MIN_SILHOUETTE = 0.25
MAX_UNITS = 200  # silhouettes compare all pairs; more objects than this change no choice of k
STARTS = 3  # of k-means, which keeps the best
MIN_GROUPS = 3  # with fewer objects than this, their views are clustered instead


@dataclass(frozen=True, slots=True)
class LabelClusters:
    """The looks of one label.

    Attributes:
        centroids: ``(k, d)`` float32, L2-normalised; the largest cluster first.
        ids: ``(n,)`` int64, the label's exemplars, ascending.
        assignment: ``(n,)`` int64 in ``0..k-1``: the cluster of each of ``ids``.
        sizes: ``(k,)`` int64, exemplars a cluster.
        silhouette: average over what was clustered, -1..1; 0 where one cluster was the answer.
    """

    centroids: FloatArray
    ids: IntArray
    assignment: IntArray
    sizes: IntArray
    silhouette: float

    def __len__(self) -> int:
        return len(self.centroids)


def find_clusters(embeddings: FloatArray, ids: IntArray, groups: IntArray) -> LabelClusters:
    """Cluster one label's exemplars by k-means on the sphere; k by the best average silhouette (Rousseeuw 1987).

    The means of the annotated objects are clustered, so that an object with many views is not a look of its own.

    Args:
        embeddings: ``(n, d)`` float32, L2-normalised, n >= 1.
        ids, groups: ``(n,)``; see ``Exemplars``.
    """
    order = np.lexsort((groups, ids))
    embeddings, ids, groups = embeddings[order], ids[order], groups[order]
    units = _units(embeddings, groups)
    distinct = len(np.unique(units.round(5), axis=0))
    best_score, best = 0.0, np.zeros(len(units), np.int64)
    if distinct > 2:  # the silhouette is defined for 2..n-1 clusters
        from sklearn.cluster import KMeans  # type: ignore[import-untyped,unused-ignore]
        from sklearn.metrics import silhouette_score  # type: ignore[import-untyped,unused-ignore]

        for k in range(2, min(MAX_CLUSTERS, distinct - 1) + 1):
            found = KMeans(k, n_init=STARTS, random_state=0).fit_predict(units).astype(np.int64)
            if len(np.unique(found)) < 2:
                continue
            score = float(silhouette_score(units, found, metric="cosine"))
            if score > max(best_score, MIN_SILHOUETTE):
                best_score, best = score, found
    centroids = _means(units, best)
    assignment = np.argmax(embeddings @ centroids.T, axis=1)
    # What no exemplar is nearest to is no look.
    used, assignment, sizes = np.unique(assignment, return_inverse=True, return_counts=True)
    rank = np.argsort(-sizes, kind="stable")
    place = np.argsort(rank)
    return LabelClusters(
        centroids[used[rank]], ids, place[assignment].astype(np.int64), sizes[rank].astype(np.int64), best_score
    )


def _units(embeddings: FloatArray, groups: IntArray) -> FloatArray:
    """What is clustered: ``(u, d)`` objects' means, or the views where objects are too few."""
    keys, of = np.unique(groups, return_inverse=True)
    units = _means(embeddings, of.astype(np.int64)) if len(keys) >= MIN_GROUPS else embeddings
    if len(units) > MAX_UNITS:
        units = units[np.random.default_rng(0).choice(len(units), MAX_UNITS, replace=False)]
    return units


def _means(embeddings: FloatArray, of: IntArray) -> FloatArray:
    """Normalised mean per value of ``of``, in ascending order of the values: ``(k, d)`` float32."""
    keys = np.unique(of)
    means = np.stack([embeddings[of == key].mean(axis=0, dtype=np.float64) for key in keys])
    norms = np.linalg.norm(means, axis=1, keepdims=True)
    out: FloatArray = (means / np.maximum(norms, 1e-12)).astype(np.float32)
    return out
