"""A map of what has been learned: exemplars that look alike lie near each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ml_backend.labeling.few_shot.pattern_bank import Exemplars
from ml_backend.labeling.few_shot.pattern_store import ExemplarOrigin

#: More points than these nobody can tell apart.
POINTS = 2000


def project_2d(vectors: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
    """``(n, 2)`` coordinates, -1..1, by principal components of ``(n, d)`` vectors; the same for the same vectors."""
    found = np.zeros((len(vectors), 2))
    if len(vectors) > 1 and np.ptp(vectors, axis=0).any():
        from sklearn.decomposition import PCA  # type: ignore[import-untyped,unused-ignore]

        axes = min(2, *vectors.shape)
        found[:, :axes] = PCA(axes, random_state=0).fit_transform(vectors)
        found /= np.abs(found).max()
    return found


def embedding_map(
    exemplars: Exemplars, sources: dict[int, ExemplarOrigin], limit: int = POINTS
) -> list[dict[str, Any]]:
    """A point for each exemplar, or for evenly chosen ones of many: id, label, task, frame, x and y. Plain JSON."""
    count = len(exemplars.ids)
    chosen = np.unique(np.linspace(0, count - 1, min(count, limit)).astype(np.int64)) if count else np.zeros(0, int)
    points = project_2d(exemplars.embeddings[chosen])
    out = []
    for row, (x, y) in zip(chosen.tolist(), points.tolist(), strict=True):
        source = sources[int(exemplars.ids[row])]
        where = {"task": source.task_id or None, "frame": source.frame}
        out.append({"id": int(exemplars.ids[row]), "label": source.label, **where, "x": round(x, 4), "y": round(y, 4)})
    return out
