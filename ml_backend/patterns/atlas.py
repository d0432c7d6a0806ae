"""A map of what has been learned: exemplars that look alike lie near each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ml_backend.patterns.bank import Exemplars
from ml_backend.patterns.store import Source

#: More points than these nobody can tell apart.
POINTS = 2000


def project_2d(vectors: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
    """``(n, 2)`` coordinates, -1..1, by principal components of ``(n, d)`` vectors (Pearson 1901).

    The same vectors give the same map: of each axis' two directions the one is taken whose largest weight is positive.
    """
    n = len(vectors)
    centred = np.asarray(vectors, np.float64) - (np.mean(vectors, axis=0, dtype=np.float64) if n else 0.0)
    if n < 2 or not np.any(centred):
        return np.zeros((n, 2))
    _, axes = np.linalg.eigh(centred.T @ centred)
    axes = axes[:, ::-1][:, :2]
    axes = axes * np.sign(axes[np.argmax(np.abs(axes), axis=0), np.arange(axes.shape[1])])
    found = centred @ axes
    if found.shape[1] < 2:
        found = np.column_stack([found, np.zeros(n)])
    out: npt.NDArray[np.float64] = found / max(float(np.abs(found).max()), 1e-12)
    return out


def atlas(exemplars: Exemplars, sources: dict[int, Source], limit: int = POINTS) -> list[dict[str, Any]]:
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
