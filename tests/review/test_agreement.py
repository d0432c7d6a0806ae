"""Agreement of two people's tracks of one video."""

from __future__ import annotations

import pytest

from ml_backend.review.agreement import MAX_FRAMES, Agreement, Dispute, compare
from tests.review.test_region_repairs import FRAMES, region

WALKS = region("a", [(1, 0.0, True), (100, 80.0, True)])
STANDS = region("b", [(11, 40.0, True), (60, 40.0, False)], "car", y=60.0)


def test_the_same_is_agreed_upon() -> None:
    found = compare([WALKS, STANDS], [{**STANDS, "id": "x"}, {**WALKS, "id": "y"}])
    assert found.scores() == {"hota": pytest.approx(1.0), "idf1": pytest.approx(1.0)}
    assert (found.kappa, found.disputes) == (pytest.approx(1.0), ())
    assert sorted(found.labels) == [("car", "car"), ("person", "person")]


def test_other_labels_are_disputed_whatever_the_boxes() -> None:
    renamed = {**STANDS, "value": {**STANDS["value"], "labels": ["person"]}}
    found = compare([WALKS, STANDS], [WALKS, renamed])
    assert found.scores()["hota"] == pytest.approx(1.0)
    assert found.kappa == pytest.approx(0.0)
    assert found.disputes == (Dispute(11, 60, "car", "person"),)
    assert found.by_label == {
        "car": {"agreed": 0, "disputed": 1, "unmatched": 0},
        "person": {"agreed": 1, "disputed": 1, "unmatched": 0},
    }


def test_what_only_one_has() -> None:
    elsewhere = region("c", [(1, 40.0, True), (100, 40.0, True)], "car", y=5.0)
    found = compare([WALKS, STANDS], [WALKS, elsewhere])
    assert (found.only_a, found.only_b, len(found.labels)) == (1, 1, 1)
    assert found.disputes == (Dispute(1, FRAMES, None, "car"), Dispute(11, 60, "car", None))
    scores = found.scores()
    assert 0 < (scores["idf1"] or 0) < 1
    assert compare([WALKS], []).scores()["hota"] == pytest.approx(0.0)


def test_a_broken_track_costs_identity_only() -> None:
    keys = WALKS["value"]["sequence"]
    first = region("d", [(1, 0.0, True), (50, 80 * 49 / 99, False)])
    second = region("e", [(51, 80 * 50 / 99, True), (100, 80.0, True)])
    assert keys[-1]["x"] == 80.0
    found = compare([WALKS], [first, second])
    assert found.scores()["idf1"] == pytest.approx(0.5, abs=0.02)
    assert found.only_b >= 1


def test_nobody_has_anything() -> None:
    found = compare([], [])
    assert found.scores() == {"hota": None, "idf1": None}
    assert (found.kappa, found.by_label, found.disputes) == (None, {}, ())


def test_added_up_over_videos() -> None:
    both = compare([WALKS], [WALKS]) + compare([STANDS], []) + Agreement()
    assert (len(both.labels), both.only_a, both.only_b) == (1, 1, 0)
    assert both.scores()["idf1"] == pytest.approx(2 * 100 / (150 + 100), abs=0.01)


def test_long_videos_and_damaged_regions() -> None:
    count = 50 * MAX_FRAMES
    long = {**WALKS, "value": {**WALKS["value"], "framesCount": count}}
    broken = {**STANDS, "value": {"sequence": [{"frame": 1}]}}
    found = compare([long, broken], [long])
    assert found.counts.truth_boxes <= MAX_FRAMES
    assert (len(found.labels), found.disputes) == (1, ())
