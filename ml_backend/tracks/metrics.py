"""HOTA, IDF1 and MOTA of tracks against ground truth, and the MOTChallenge text format.

HOTA follows Luiten et al., "HOTA: A Higher Order Metric for Evaluating Multi-Object Tracking" (IJCV 2021), IDF1
Ristani et al. (ECCV-W 2016), MOTA Bernardin and Stiefelhagen (2008); all as TrackEval computes them, for one class,
and for several sequences together.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path

import lap
import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.float64]  # (n, 6): frame, id, x1, y1, x2, y2
Floats = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]
_FramePairs = tuple[Index, Index, Floats]  # of one frame: truth index, result index, IoU of all pairs

ALPHAS = np.arange(0.05, 0.99, 0.05)


def read_mot(path: Path) -> Rows:
    """Rows of a MOTChallenge file (frame from 1, id, left, top, width, height, flag, ...) with frames from 0.

    Rows whose seventh column is 0 are marked "to be ignored" in ground truth and left out.
    """
    table = np.loadtxt(path, delimiter=",", ndmin=2)
    if table.shape[1] > 6:
        table = table[table[:, 6] != 0]
    rows = table[:, :6].copy()
    rows[:, 0] -= 1
    rows[:, 4:6] += rows[:, 2:4]
    return rows


def write_mot(path: Path, rows: Iterable[Iterable[float]]) -> None:
    """Write (frame from 0, id, x1, y1, x2, y2) rows as a MOTChallenge file."""
    with path.open("w") as file:
        for frame, track_id, x1, y1, x2, y2 in rows:
            file.write(f"{int(frame) + 1},{int(track_id)},{x1:.2f},{y1:.2f},{x2 - x1:.2f},{y2 - y1:.2f},1,-1,-1,-1\n")


@dataclass(frozen=True, slots=True)
class Counts:
    """What the scores of one sequence, or of several, are made of.

    Of several sequences the scores are those of their sum: everything here adds up, and an id of one sequence has
    nothing to do with the same id in another.

    Attributes:
        tp, loc, ass: ``(19,)`` by localisation threshold: matched boxes, their summed IoU, their summed association
            score.
        truth_boxes, result_boxes, truth_tracks, result_tracks: how many there are.
        idtp: boxes matched under the best one-to-one assignment of ids.
        matched: boxes matched at IoU 0.5, with ids kept where possible.
        switches: how often the id of a truth track changes.
    """

    tp: Floats
    loc: Floats
    ass: Floats
    truth_boxes: int = 0
    result_boxes: int = 0
    truth_tracks: int = 0
    result_tracks: int = 0
    idtp: float = 0.0
    matched: int = 0
    switches: int = 0

    @classmethod
    def nothing(cls) -> Counts:
        """Of no sequence."""
        return cls(np.zeros(len(ALPHAS)), np.zeros(len(ALPHAS)), np.zeros(len(ALPHAS)))

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    def scores(self) -> dict[str, float]:
        """HOTA (with DetA, AssA, LocA), IDF1, MOTA, ID switches and track counts."""
        det_a = self.tp / np.maximum(self.truth_boxes + self.result_boxes - self.tp, 1)
        ass_a = self.ass / np.maximum(self.tp, 1)
        false = self.result_boxes - self.matched
        return {
            "HOTA": float(np.sqrt(det_a * ass_a).mean()),
            "DetA": float(det_a.mean()),
            "AssA": float(ass_a.mean()),
            "LocA": float((np.maximum(self.loc, 1e-10) / np.maximum(self.tp, 1e-10)).mean()),
            "IDF1": float(self.idtp / max(0.5 * (self.truth_boxes + self.result_boxes), 1e-9)),
            "MOTA": float((self.matched - false - self.switches) / max(self.truth_boxes, 1)),
            "IDSW": float(self.switches),
            "recall": self.matched / max(self.truth_boxes, 1),
            "precision": self.matched / max(self.result_boxes, 1),
            "tracks": float(self.result_tracks),
            "truth_tracks": float(self.truth_tracks),
        }


def score(truth: Rows, result: Rows) -> dict[str, float]:
    """The scores of one sequence. Shapes ``(n, 6)`` each."""
    return count(truth, result).scores()


def count(truth: Rows, result: Rows) -> Counts:
    """Compare the tracks of one sequence with the true ones; to be added to those of others. Shapes ``(n, 6)``."""
    truth_ids, truth_index = np.unique(truth[:, 1], return_inverse=True)
    result_ids, result_index = np.unique(result[:, 1], return_inverse=True)
    frames = np.union1d(truth[:, 0], result[:, 0])
    truth_rows, result_rows = _by_frame(truth, frames), _by_frame(result, frames)
    per_frame: list[_FramePairs] = []
    potential = np.zeros((len(truth_ids), len(result_ids)))
    for t, r in zip(truth_rows, result_rows, strict=True):
        iou = _iou(truth[t, 2:], result[r, 2:])
        ti, ri = truth_index[t], result_index[r]
        per_frame.append((ti, ri, iou))
        if iou.size:
            total = iou.sum(0)[None] + iou.sum(1)[:, None] - iou
            potential[np.ix_(ti, ri)] += np.divide(iou, total, out=np.zeros_like(iou), where=total > 1e-9)
    truth_count = np.bincount(truth_index, minlength=len(truth_ids)).astype(float)
    result_count = np.bincount(result_index, minlength=len(result_ids)).astype(float)
    alignment = potential / np.maximum(truth_count[:, None] + result_count[None] - potential, 1e-9)
    tp, loc, ass = _hota(per_frame, alignment, truth_count, result_count)
    matched, switches = _clear(per_frame, len(truth_ids))
    return Counts(
        tp,
        loc,
        ass,
        len(truth),
        len(result),
        len(truth_ids),
        len(result_ids),
        _identity(per_frame, alignment.shape),
        matched,
        switches,
    )


def linear_sum_assignment(cost: Floats) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Rows and columns of the cheapest assignment of a rectangular cost matrix."""
    if not cost.size:  # of which lap writes beside its memory
        nothing = np.zeros(0, np.int64)
        return nothing, nothing
    _, columns, _ = lap.lapjv(cost, extend_cost=True)
    rows = np.flatnonzero(columns >= 0)
    return rows, columns[rows]


def _by_frame(rows: Rows, frames: Floats) -> list[Index]:
    """Positions of each frame's rows."""
    order = np.argsort(rows[:, 0], kind="stable")
    return np.split(order, np.searchsorted(rows[order, 0], frames[1:])) if len(frames) else []


def _iou(a: Floats, b: Floats) -> Floats:
    left_top = np.maximum(a[:, None, :2], b[None, :, :2])
    right_bottom = np.minimum(a[:, None, 2:], b[None, :, 2:])
    inter = np.clip(right_bottom - left_top, 0, None).prod(-1)
    area_a, area_b = ((x[:, 2:] - x[:, :2]).prod(-1) for x in (a, b))
    return np.asarray(inter / np.maximum(area_a[:, None] + area_b[None] - inter, 1e-9))


def _hota(
    per_frame: list[_FramePairs], alignment: Floats, truth_count: Floats, result_count: Floats
) -> tuple[Floats, Floats, Floats]:
    """By threshold: matched boxes, their summed IoU, and their summed association score."""
    width = alignment.shape[1]
    pairs: list[Index] = [np.zeros(0, np.int64)]
    values: list[Floats] = [np.zeros(0)]
    for ti, ri, iou in per_frame:
        if iou.size:
            rows, cols = linear_sum_assignment(-(alignment[np.ix_(ti, ri)] * iou))
            pairs.append(ti[rows] * width + ri[cols])
            values.append(iou[rows, cols])
    pair, value = np.concatenate(pairs), np.concatenate(values)
    tp, loc, ass = np.zeros(len(ALPHAS)), np.zeros(len(ALPHAS)), np.zeros(len(ALPHAS))
    for k, alpha in enumerate(ALPHAS):
        good = value >= alpha - 1e-9
        tp[k], loc[k] = good.sum(), value[good].sum()
        both, times = np.unique(pair[good], return_counts=True)
        ass[k] = (times * times / (truth_count[both // width] + result_count[both % width] - times)).sum()
    return tp, loc, ass


def _identity(per_frame: list[_FramePairs], shape: tuple[int, ...]) -> float:
    """Most boxes that can be matched when each truth id belongs to one result id at most."""
    overlap = np.zeros(shape)
    for ti, ri, iou in per_frame:
        a, b = np.nonzero(iou >= 0.5)
        np.add.at(overlap, (ti[a], ri[b]), 1)
    if not overlap.size:
        return 0.0
    rows, cols = linear_sum_assignment(-overlap)
    return float(overlap[rows, cols].sum())


def _clear(per_frame: list[_FramePairs], n: int) -> tuple[int, int]:
    """Matched boxes, and how often the id of one of ``n`` truth tracks changes."""
    last = np.full(n, -1)  # the result id that a truth id was last matched with
    previous = np.full(n, -1)  # ... in the frame just before
    tp = switches = 0
    for ti, ri, iou in per_frame:
        if not iou.size:
            previous[:] = -1
            continue
        value = np.where(iou >= 0.5, 1000.0 * (previous[ti][:, None] == ri[None]) + iou, 0.0)
        rows, cols = linear_sum_assignment(-value)
        good = value[rows, cols] > 0
        t, r = ti[rows[good]], ri[cols[good]]
        switches += int(((last[t] >= 0) & (last[t] != r)).sum())
        previous[:] = -1
        previous[t], last[t] = r, r
        tp += len(t)
    return tp, switches
