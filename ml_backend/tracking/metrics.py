"""Evaluate tracks with HOTA, IDF1 and MOTA, and read the MOTChallenge text format.

The scores are those of the package ``trackers``, which computes them as TrackEval does: HOTA by Luiten et al., "HOTA: A
Higher Order Metric for Evaluating Multi-Object Tracking" (IJCV 2021), IDF1 by Ristani et al. (ECCV-W 2016), MOTA by
Bernardin and Stiefelhagen (2008); for one class, and for several sequences together.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from trackers.eval import (
    aggregate_clear_metrics,
    aggregate_hota_metrics,
    aggregate_identity_metrics,
    box_iou,
    compute_clear_metrics,
    compute_hota_metrics,
    compute_identity_metrics,
)

Rows = npt.NDArray[np.float64]  # (n, 6): frame, id, x1, y1, x2, y2


def read_mot(path: Path) -> Rows:
    """Read a MOTChallenge file (1-based frame, id, left, top, width, height, flag, ...) as rows with 0-based frames.

    Rows with 0 in the seventh column, which ground truth marks as ignored, are left out.
    """
    table = np.loadtxt(path, delimiter=",", ndmin=2)
    if table.shape[1] > 6:
        table = table[table[:, 6] != 0]
    rows = table[:, :6].copy()
    rows[:, 0] -= 1
    rows[:, 4:6] += rows[:, 2:4]
    return rows


@dataclass(frozen=True, slots=True)
class Counts:
    """Counts behind the scores of one or more sequences; add them to score sequences together.

    The same id in two sequences means two objects.

    Attributes:
        hota, clear, identity: one dictionary of ``trackers`` per sequence.
        truth_tracks, result_tracks: number of tracks.
    """

    hota: tuple[dict[str, Any], ...] = ()
    clear: tuple[dict[str, Any], ...] = ()
    identity: tuple[dict[str, Any], ...] = ()
    truth_tracks: int = 0
    result_tracks: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.hota + other.hota,
            self.clear + other.clear,
            self.identity + other.identity,
            self.truth_tracks + other.truth_tracks,
            self.result_tracks + other.result_tracks,
        )

    @property
    def truth_boxes(self) -> int:
        """Number of ground-truth boxes of all sequences."""
        return sum(sequence["CLR_TP"] + sequence["CLR_FN"] for sequence in self.clear)

    def scores(self) -> dict[str, float]:
        """Return HOTA (with DetA, AssA, LocA), IDF1, MOTA, ID switches and track counts."""
        hota, clear = aggregate_hota_metrics(list(self.hota)), aggregate_clear_metrics(list(self.clear))
        identity = aggregate_identity_metrics(list(self.identity))
        return {
            **{name: hota[name] for name in ("HOTA", "DetA", "AssA", "LocA")},
            "IDF1": identity["IDF1"],
            "MOTA": clear["MOTA"],
            "IDSW": float(clear["IDSW"]),
            "recall": clear["CLR_Re"],
            "precision": clear["CLR_Pr"],
            "tracks": float(self.result_tracks),
            "truth_tracks": float(self.truth_tracks),
        }


def score(truth: Rows, result: Rows) -> dict[str, float]:
    """Score one sequence; ``truth`` and ``result`` of shape ``(n, 6)``."""
    return count(truth, result).scores()


def count(truth: Rows, result: Rows) -> Counts:
    """Count matches of one sequence with ground truth; ``truth`` and ``result`` of shape ``(n, 6)``."""
    frames = np.union1d(truth[:, 0], result[:, 0])
    truth_rows, result_rows = _by_frame(truth, frames), _by_frame(result, frames)
    sequence = (
        [rows[:, 1] for rows in truth_rows],
        [rows[:, 1] for rows in result_rows],
        [box_iou(t[:, 2:], r[:, 2:]) for t, r in zip(truth_rows, result_rows, strict=True)],
    )
    return Counts(
        (compute_hota_metrics(*sequence),),
        (compute_clear_metrics(*sequence),),
        (compute_identity_metrics(*sequence),),
        len(np.unique(truth[:, 1])),
        len(np.unique(result[:, 1])),
    )


def _by_frame(rows: Rows, frames: npt.NDArray[np.float64]) -> list[Rows]:
    rows = rows[np.argsort(rows[:, 0], kind="stable")]
    return np.split(rows, np.searchsorted(rows[:, 0], frames[1:])) if len(frames) else []
