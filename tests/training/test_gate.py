"""The gate: which figures let a candidate through."""

from __future__ import annotations

from typing import Any

import pytest

from ml_backend.training.gate import LABEL_BOXES, decide_promotion


def measures(value: float = 0.6, **changes: Any) -> dict[str, Any]:
    labels = {
        "person": {"ap50": value, "ap50_95": value / 2, "boxes": LABEL_BOXES},
        "rare": {"ap50": value, "ap50_95": value / 2, "boxes": LABEL_BOXES - 1},
    }
    facts = {"map50": value, "map50_95": value / 2, "hota": value, "idf1": value, "frames": 900, "labels": labels}
    return {**facts, **changes}


def with_label(name: str, ap50: float) -> dict[str, Any]:
    facts = measures()
    return {**facts, "labels": {**facts["labels"], name: {**facts["labels"][name], "ap50": ap50}}}


def test_an_equal_one_passes() -> None:
    verdict = decide_promotion(measures(), measures())
    assert verdict.promote
    assert "mAP50 0.600 -> 0.600" in verdict.reason


@pytest.mark.parametrize(
    ("name", "title"), [("map50", "mAP50"), ("map50_95", "mAP50-95"), ("hota", "HOTA"), ("idf1", "IDF1")]
)
def test_one_figure_that_falls_is_enough_to_refuse(name: str, title: str) -> None:
    verdict = decide_promotion(measures(0.9, **{name: 0.2}), measures())
    assert not verdict.promote
    assert f"{title} " in verdict.reason
    assert "-> 0.200" in verdict.reason


def test_a_label_must_not_be_lost_for_others() -> None:
    verdict = decide_promotion(with_label("person", 0.5), measures())
    assert not verdict.promote
    assert "AP50 of person 0.600 -> 0.500 (may fall by 0.050)" in verdict.reason
    forgotten = measures(0.9)
    del forgotten["labels"]["person"]
    assert not decide_promotion(forgotten, measures()).promote


def test_a_handful_of_boxes_decides_nothing() -> None:
    assert decide_promotion(with_label("rare", 0.0), measures()).promote


def test_a_label_that_the_incumbent_does_not_know_is_gained() -> None:
    before = measures(0.0, hota=0.6, idf1=0.6)
    assert decide_promotion(measures(0.3, hota=0.6, idf1=0.6), before).promote


def test_tracks_of_a_few_frames_say_less_than_those_of_many() -> None:
    slightly = {"hota": 0.57, "idf1": 0.57}
    assert decide_promotion(measures(**slightly, frames=60), measures(frames=60)).promote
    assert not decide_promotion(measures(**slightly, frames=900), measures()).promote


def test_tracks_are_compared_where_there_are_any() -> None:
    assert decide_promotion(measures(hota=None, idf1=None), measures(hota=None, idf1=None)).promote


@pytest.mark.parametrize("candidate", [measures(0.0), measures(map50=None, map50_95=None), {}])
def test_what_finds_nothing_never_passes(candidate: dict[str, Any]) -> None:
    assert not decide_promotion(candidate, {**measures(0.0)}).promote
