"""HOTA, IDF1 and MOTA of tracks against ground truth, and the MOTChallenge text format.

HOTA follows Luiten et al., "HOTA: A Higher Order Metric for Evaluating Multi-Object Tracking" (IJCV 2021), IDF1
Ristani et al. (ECCV-W 2016), MOTA Bernardin and Stiefelhagen (2008); all as TrackEval computes them, for one class.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import lap
import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.float64]  # (n, 6): frame, id, x1, y1, x2, y2
Floats = npt.NDArray[np.float64]

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


def score(truth: Rows, result: Rows) -> dict[str, float]:
    """HOTA (with DetA, AssA, LocA), IDF1, MOTA, ID switches and track counts. Shapes ``(n, 6)`` each."""
    truth_ids, truth_index = np.unique(truth[:, 1], return_inverse=True)
    result_ids, result_index = np.unique(result[:, 1], return_inverse=True)
    frames = np.union1d(truth[:, 0], result[:, 0])
    per_frame = []
    potential = np.zeros((len(truth_ids), len(result_ids)))
    for frame in frames:
        t, r = truth[:, 0] == frame, result[:, 0] == frame
        iou = _iou(truth[t, 2:], result[r, 2:])
        ti, ri = truth_index[t], result_index[r]
        per_frame.append((ti, ri, iou))
        if iou.size:
            total = iou.sum(0)[None] + iou.sum(1)[:, None] - iou
            potential[np.ix_(ti, ri)] += np.divide(iou, total, out=np.zeros_like(iou), where=total > 1e-9)
    truth_count = np.bincount(truth_index, minlength=len(truth_ids)).astype(float)
    result_count = np.bincount(result_index, minlength=len(result_ids)).astype(float)
    alignment = potential / np.maximum(truth_count[:, None] + result_count[None] - potential, 1e-9)
    out = _hota(per_frame, alignment, truth_count, result_count)
    out.update(_identity(per_frame, truth_count, result_count))
    out.update(_clear(per_frame, len(truth_ids), int(truth_count.sum()), int(result_count.sum())))
    out["tracks"], out["truth_tracks"] = float(len(result_ids)), float(len(truth_ids))
    return out


def linear_sum_assignment(cost: Floats) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Rows and columns of the cheapest assignment of a rectangular cost matrix."""
    _, columns, _ = lap.lapjv(cost, extend_cost=True)
    rows = np.flatnonzero(columns >= 0)
    return rows, columns[rows]


def _iou(a: Floats, b: Floats) -> Floats:
    left_top = np.maximum(a[:, None, :2], b[None, :, :2])
    right_bottom = np.minimum(a[:, None, 2:], b[None, :, 2:])
    inter = np.clip(right_bottom - left_top, 0, None).prod(-1)
    area = lambda x: (x[:, 2:] - x[:, :2]).prod(-1)  # noqa: E731
    return np.asarray(inter / np.maximum(area(a)[:, None] + area(b)[None] - inter, 1e-9))


def _hota(per_frame: list, alignment: Floats, truth_count: Floats, result_count: Floats) -> dict[str, float]:
    tp = np.zeros(len(ALPHAS))
    loc = np.zeros(len(ALPHAS))
    matches = np.zeros((len(ALPHAS), *alignment.shape))
    for ti, ri, iou in per_frame:
        if not iou.size:
            continue
        rows, cols = linear_sum_assignment(-(alignment[np.ix_(ti, ri)] * iou))
        for k, alpha in enumerate(ALPHAS):
            good = iou[rows, cols] >= alpha - 1e-9
            tp[k] += good.sum()
            loc[k] += iou[rows[good], cols[good]].sum()
            np.add.at(matches[k], (ti[rows[good]], ri[cols[good]]), 1)
    fn, fp = truth_count.sum() - tp, result_count.sum() - tp
    det_a = tp / np.maximum(tp + fn + fp, 1)
    ass_a = np.array(
        [(m * m / np.maximum(truth_count[:, None] + result_count[None] - m, 1)).sum() for m in matches]
    ) / np.maximum(tp, 1)
    return {
        "HOTA": float(np.sqrt(det_a * ass_a).mean()),
        "DetA": float(det_a.mean()),
        "AssA": float(ass_a.mean()),
        "LocA": float((np.maximum(loc, 1e-10) / np.maximum(tp, 1e-10)).mean()),
    }


def _identity(per_frame: list, truth_count: Floats, result_count: Floats) -> dict[str, float]:
    n, m = len(truth_count), len(result_count)
    overlap = np.zeros((n, m))
    for ti, ri, iou in per_frame:
        a, b = np.nonzero(iou >= 0.5)
        np.add.at(overlap, (ti[a], ri[b]), 1)
    fn = np.full((n + m, n + m), 0.0)
    fp = np.full((n + m, n + m), 0.0)
    fp[n:, :m] = 1e10
    fn[:n, m:] = 1e10
    fn[:n, :m] = truth_count[:, None] - overlap
    fp[:n, :m] = result_count[None] - overlap
    fn[np.arange(n), m + np.arange(n)] = truth_count
    fp[n + np.arange(m), np.arange(m)] = result_count
    rows, cols = linear_sum_assignment(fn + fp)
    idfn, idfp = fn[rows, cols].sum(), fp[rows, cols].sum()
    idtp = truth_count.sum() - idfn
    return {"IDF1": float(idtp / max(idtp + 0.5 * idfp + 0.5 * idfn, 1e-9))}


def _clear(per_frame: list, n: int, truth_boxes: int, result_boxes: int) -> dict[str, float]:
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
    fp = result_boxes - tp
    return {
        "MOTA": float((tp - fp - switches) / max(truth_boxes, 1)),
        "IDSW": float(switches),
        "recall": tp / max(truth_boxes, 1),
        "precision": tp / max(result_boxes, 1),
    }
