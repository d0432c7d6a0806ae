"""Rows of a task's timeline, made of Label Studio's regions."""

from __future__ import annotations

import pytest

from ml_backend.review.track_rows import track_rows
from tests.review.test_region_repairs import FRAMES, LATER, A, B, region


def test_rows_by_first_frame_with_gaps_and_boxes() -> None:
    gap = region("gap", [(41, 0.0, True), (50, 9.0, False), (61, 20.0, True), (100, 20.0, True)], score=0.5)
    broken = region("broken", [(1, 0.0, True)])
    broken["value"]["sequence"][0]["frame"] = "x"
    empty = region("empty", [])
    rows = track_rows([LATER, gap, B, broken, A, empty], ["person", "car"], FRAMES)
    assert [(row.number, row.region) for row in rows] == [(1, "empty"), (2, "a"), (3, "b"), (4, "gap"), (5, "c")]
    spans = {row.region: row.spans for row in rows}
    assert spans == {"empty": [], "a": [(1, 60)], "b": [(1, 100)], "gap": [(41, 50), (61, 100)], "c": [(71, 90)]}
    found = {row.region: row for row in rows}
    assert [(found[name].label, found[name].score, found[name].frames) for name in ("gap", "c", "empty")] == [
        ("person", 0.5, 50),
        ("car", None, 20),
        ("person", None, 0),
    ]
    assert found["a"].area == pytest.approx(0.03)
    assert found["gap"].box(45) == pytest.approx((4.0, 20.0, 10.0, 30.0))
    assert found["gap"].box(55) is None
    assert len({row.digest for row in rows}) == len(rows)
