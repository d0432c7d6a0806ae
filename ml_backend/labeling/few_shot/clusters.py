"""Count the clusters of a label's exemplars: how many appearances it has."""

from __future__ import annotations

import numpy as np

from ml_backend.core.types import FloatArray, IntArray

MAX_CLUSTERS = 8
# Kaufman & Rousseeuw, Finding Groups in Data (1990): an average silhouette below 0.25 means no substantial structure.
MIN_SILHOUETTE = 0.25
MAX_POINTS = 200  # silhouettes compare all pairs; more points do not change the choice of k
N_INIT = 3  # runs of k-means, which keeps the best
MIN_GROUPS = 3  # with fewer objects, single crops are clustered instead of object means


def count_clusters(embeddings: FloatArray, groups: IntArray) -> int:
    """Count clusters by spherical k-means, with k of the best average silhouette (Rousseeuw 1987).

    Clusters the means of annotated objects, so that an object with many crops is no cluster of its own.

    Args:
        embeddings: ``(n, d)`` float32, L2-normalised, n >= 1.
        groups: ``(n,)``; see ``Exemplars``.
    """
    from sklearn.cluster import KMeans  # type: ignore[import-untyped,unused-ignore]
    from sklearn.metrics import silhouette_score  # type: ignore[import-untyped,unused-ignore]
    from sklearn.preprocessing import normalize  # type: ignore[import-untyped,unused-ignore]

    points, keys = embeddings, np.unique(groups)
    if len(keys) >= MIN_GROUPS:
        points = normalize(np.stack([embeddings[groups == key].mean(axis=0) for key in keys]))
    if len(points) > MAX_POINTS:
        points = points[np.random.default_rng(0).choice(len(points), MAX_POINTS, replace=False)]
    distinct = len(np.unique(points.round(5), axis=0))
    best, clusters = MIN_SILHOUETTE, 1
    for k in range(2, min(MAX_CLUSTERS, distinct - 1) + 1):  # the silhouette is defined for 2..n-1 clusters
        assigned = KMeans(k, n_init=N_INIT, random_state=0).fit_predict(points)
        if len(np.unique(assigned)) < 2:
            continue
        score = float(silhouette_score(points, assigned, metric="cosine"))
        if score > best:
            best, clusters = score, k
    return clusters
