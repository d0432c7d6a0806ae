"""The benchmark's scores, on cases that can be worked out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ml_backend.tracking.metrics import Counts, count, read_mot, score


def line(track_id: int, frames: range, y: float = 0.0) -> np.ndarray:
    """A box of 10 x 10 pixels that stands still."""
    return np.array([[frame, track_id, 0, y, 10, y + 10] for frame in frames], np.float64)


def test_a_perfect_result() -> None:
    truth = np.vstack([line(1, range(10)), line(2, range(5, 15), y=50)])
    found = score(truth, truth)
    assert [found[name] for name in ("HOTA", "DetA", "AssA", "LocA", "IDF1", "MOTA")] == pytest.approx([1.0] * 6)
    assert found["IDSW"] == 0


def test_a_life_in_two_halves() -> None:
    result = np.vstack([line(1, range(5)), line(2, range(5, 10))])
    found = score(line(1, range(10)), result)
    assert found["DetA"] == pytest.approx(1)
    assert found["AssA"] == pytest.approx(0.5)  # each half: 5 / (10 + 5 - 5)
    assert found["HOTA"] == pytest.approx(0.5**0.5)
    assert found["IDF1"] == pytest.approx(2 * 5 / (10 + 10))
    assert found["IDSW"] == 1
    assert found["MOTA"] == pytest.approx(0.9)


def test_misses_and_false_boxes() -> None:
    found = score(line(1, range(10)), np.vstack([line(1, range(6)), line(2, range(4), y=100)]))
    assert found["MOTA"] == pytest.approx((6 - 4) / 10)
    assert found["recall"] == pytest.approx(0.6)
    assert found["precision"] == pytest.approx(0.6)
    assert found["DetA"] == pytest.approx(6 / 14)


def test_loose_boxes_count_at_loose_thresholds_only() -> None:
    truth, shifted = line(1, range(10)), line(1, range(10), y=2.5)  # IoU 7.5 / 12.5 = 0.6
    found = score(truth, shifted)
    assert found["DetA"] == pytest.approx(12 / 19)  # of the thresholds 0.05 ... 0.95, twelve are at most 0.6
    assert found["IDF1"] == pytest.approx(1)


def test_nothing_found() -> None:
    found = score(line(1, range(10)), np.zeros((0, 6)))
    assert (found["HOTA"], found["IDF1"], found["MOTA"]) == (0, 0, 0)


def test_files_are_read_and_ignored_rows_are_left_out(tmp_path: Path) -> None:
    rows = ("1,3,1.5,2,10,20,1,-1,-1,-1", "8,4,0,0,5,5,1,-1,-1,-1", "9,5,0,0,5,5,0,1,1,-1")
    (tmp_path / "gt.txt").write_text("\n".join(rows))
    assert np.allclose(read_mot(tmp_path / "gt.txt"), [[0, 3, 1.5, 2, 11.5, 22], [7, 4, 0, 0, 5, 5]])


def test_sequences_are_added_up_as_trackeval_does() -> None:
    """By hand: one perfect sequence of 10 boxes, and one of 30 that is found in two halves."""
    perfect, halves = line(1, range(10)), np.vstack([line(1, range(15)), line(2, range(15, 30))])
    found = (Counts() + count(perfect, perfect) + count(line(1, range(30)), halves)).scores()
    assert found["DetA"] == pytest.approx(1)
    assert found["AssA"] == pytest.approx((10 * 1.0 + 30 * 0.5) / 40)  # weighted by matched boxes
    assert found["HOTA"] == pytest.approx((25 / 40) ** 0.5)
    assert found["IDF1"] == pytest.approx((10 + 15) / 40)
    assert (found["IDSW"], found["tracks"], found["truth_tracks"]) == (1, 3, 2)  # equal ids are different objects


def test_nothing_at_all() -> None:
    assert Counts().scores()["HOTA"] == 0
