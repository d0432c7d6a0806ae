"""Project exemplars to a 2D map, in which similar ones lie close together."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ml_backend.labeling.few_shot.pattern_bank import Exemplars
from ml_backend.labeling.few_shot.pattern_store import ExemplarOrigin

#: More points cannot be told apart.
MAX_POINTS = 2000


def project_2d(vectors: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
    """Project ``(n, d)`` vectors to ``(n, 2)`` coordinates in -1..1 by their principal components; deterministic."""
    points = np.zeros((len(vectors), 2))
    if len(vectors) > 1 and np.ptp(vectors, axis=0).any():
        from sklearn.decomposition import PCA  # type: ignore[import-untyped,unused-ignore]

        axes = min(2, *vectors.shape)
        points[:, :axes] = PCA(axes, random_state=0).fit_transform(vectors)
        points /= np.abs(points).max()
    return points


def embedding_map(
    exemplars: Exemplars, origins: dict[int, ExemplarOrigin], limit: int = MAX_POINTS
) -> list[dict[str, Any]]:
    """Return JSON points for at most ``limit`` evenly chosen exemplars: id, label, task, frame, x and y."""
    count = len(exemplars.ids)
    chosen = np.unique(np.linspace(0, count - 1, min(count, limit)).astype(np.int64)) if count else np.zeros(0, int)
    points = project_2d(exemplars.embeddings[chosen])
    out = []
    for row, (x, y) in zip(chosen.tolist(), points.tolist(), strict=True):
        origin = origins[int(exemplars.ids[row])]
        position = {"task": origin.task_id or None, "frame": origin.frame}
        out.append(
            {"id": int(exemplars.ids[row]), "label": origin.label, **position, "x": round(x, 4), "y": round(y, 4)}
        )
    return out
