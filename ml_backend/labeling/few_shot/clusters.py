"""How many looks a label has: clusters of its exemplars."""

from __future__ import annotations

import numpy as np

from ml_backend.core.types import FloatArray, IntArray

MAX_CLUSTERS = 8
# Kaufman & Rousseeuw, Finding Groups in Data (1990): an average silhouette below 0.25 means no substantial structure.
MIN_SILHOUETTE = 0.25
MAX_UNITS = 200  # silhouettes compare all pairs; more objects than this change no choice of k
STARTS = 3  # of k-means, which keeps the best
MIN_GROUPS = 3  # with fewer objects than this, their views are clustered instead


def count_clusters(embeddings: FloatArray, groups: IntArray) -> int:
    """Clusters of one label's exemplars by k-means on the sphere; k by the best average silhouette (Rousseeuw 1987).

    The means of the annotated objects are clustered, so that an object with many views is not a look of its own.

    Args:
        embeddings: ``(n, d)`` float32, L2-normalised, n >= 1.
        groups: ``(n,)``; see ``Exemplars``.
    """
    from sklearn.cluster import KMeans  # type: ignore[import-untyped,unused-ignore]
    from sklearn.metrics import silhouette_score  # type: ignore[import-untyped,unused-ignore]
    from sklearn.preprocessing import normalize  # type: ignore[import-untyped,unused-ignore]

    units, keys = embeddings, np.unique(groups)
    if len(keys) >= MIN_GROUPS:
        units = normalize(np.stack([embeddings[groups == key].mean(axis=0) for key in keys]))
    if len(units) > MAX_UNITS:
        units = units[np.random.default_rng(0).choice(len(units), MAX_UNITS, replace=False)]
    distinct = len(np.unique(units.round(5), axis=0))
    best, clusters = MIN_SILHOUETTE, 1
    for k in range(2, min(MAX_CLUSTERS, distinct - 1) + 1):  # the silhouette is defined for 2..n-1 clusters
        found = KMeans(k, n_init=STARTS, random_state=0).fit_predict(units)
        if len(np.unique(found)) < 2:
            continue
        score = float(silhouette_score(units, found, metric="cosine"))
        if score > best:
            best, clusters = score, k
    return clusters
