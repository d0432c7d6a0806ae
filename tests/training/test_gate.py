"""The gate: which figures let a candidate through, and what is left to a person."""

from __future__ import annotations

from typing import Any

import pytest

from ml_backend.training.gate import FEW_SURE, LABEL_BOXES, allowed_losses, decide_promotion, describe_changes


def measures(value: float = 0.6, **changes: Any) -> dict[str, Any]:
    labels = {
        "person": {"ap50": value, "ap50_95": value / 2, "boxes": LABEL_BOXES},
        "rare": {"ap50": value, "ap50_95": value / 2, "boxes": LABEL_BOXES - 1},
    }
    facts = {"map50": value, "map50_95": value / 2, "hota": value, "idf1": value, "frames": 900, "labels": labels}
    return {**facts, "videos": 2, "tracks": 12, **changes}


THIN = {"videos": 1, "tracks": 3}


def elsewhere(tracks: int, lost: int = 0, relabelled: int = 0, gained: int = 0, **facts: Any) -> dict[str, Any]:
    """A comparison on other videos."""
    kinds = ["lost"] * lost + ["relabelled"] * relabelled + ["gained"] * gained
    asked = {"wanted": False, "renamed": False}
    changes = [
        {"kind": kind, "task": 7, "label": "person", "now": "bus" if kind == "relabelled" else "", **asked}
        | {"first": 12 + n, "last": 98 + n, "score": 0.8, "clip": None}
        for n, kind in enumerate(kinds)
    ]
    counted = {"tracks": tracks, "lost": lost, "relabelled": relabelled, "gained": gained, "worse": lost + relabelled}
    counted["renamed"] = 0
    kept = {"videos": 2, "frames": 240, "kept_interval": (0.8, 0.99) if tracks else None, "base": None}
    return {**counted, **kept, "changes": changes, **facts}


def with_label(name: str, ap50: float) -> dict[str, Any]:
    facts = measures()
    return {**facts, "labels": {**facts["labels"], name: {**facts["labels"][name], "ap50": ap50}}}


def test_an_equal_one_passes() -> None:
    verdict = decide_promotion(measures(), measures())
    assert verdict.outcome == "promoted"
    assert "mAP50 0.600 -> 0.600" in verdict.reason


@pytest.mark.parametrize(
    ("name", "title"), [("map50", "mAP50"), ("map50_95", "mAP50-95"), ("hota", "HOTA"), ("idf1", "IDF1")]
)
def test_one_figure_that_falls_is_enough_to_refuse(name: str, title: str) -> None:
    verdict = decide_promotion(measures(0.9, **{name: 0.2}), measures())
    assert verdict.outcome == "refused"
    assert f"{title} " in verdict.reason
    assert "-> 0.200" in verdict.reason


def test_a_label_must_not_be_lost_for_others() -> None:
    verdict = decide_promotion(with_label("person", 0.5), measures())
    assert verdict.outcome == "refused"
    assert "AP50 of person 0.600 -> 0.500 (may fall by 0.050)" in verdict.reason
    forgotten = measures(0.9)
    del forgotten["labels"]["person"]
    assert decide_promotion(forgotten, measures()).outcome == "refused"


def test_a_handful_of_boxes_decides_nothing() -> None:
    assert decide_promotion(with_label("rare", 0.0), measures()).outcome == "promoted"


def test_a_label_that_the_incumbent_does_not_know_is_gained() -> None:
    before = measures(0.0, hota=0.6, idf1=0.6)
    assert decide_promotion(measures(0.3, hota=0.6, idf1=0.6), before).outcome == "promoted"


def test_tracks_of_a_few_frames_say_less_than_those_of_many() -> None:
    slightly = {"hota": 0.57, "idf1": 0.57}
    assert decide_promotion(measures(**slightly, frames=60), measures(frames=60)).outcome == "promoted"
    assert decide_promotion(measures(**slightly, frames=900), measures()).outcome == "refused"


def test_tracks_are_compared_where_there_are_any() -> None:
    assert decide_promotion(measures(hota=None, idf1=None), measures(hota=None, idf1=None)).outcome == "promoted"


@pytest.mark.parametrize("candidate", [measures(0.0), measures(map50=None, map50_95=None), {}])
def test_what_finds_nothing_never_passes(candidate: dict[str, Any]) -> None:
    assert decide_promotion(candidate, {**measures(0.0)}).outcome == "refused"


# -- other videos


@pytest.mark.parametrize(
    ("tracks", "allowed"),
    [(0, 0), (1, 1), (3, 1), (12, 1), (13, 2), (27, 2), (28, 3), (30, 3), (46, 3), (47, 4), (67, 5)],
)
def test_how_many_losses_chance_explains(tracks: int, allowed: int) -> None:
    """Exceeding it has a probability of at most 5 % if each track is lost with 3 %."""
    assert allowed_losses(tracks) == allowed


@pytest.mark.parametrize(
    ("comparison", "evidence", "outcome"),
    [
        (None, THIN, "promoted"),
        (elsewhere(0), THIN, "promoted"),
        (elsewhere(30), THIN, "promoted"),
        (elsewhere(30, gained=5), {}, "promoted"),
        (elsewhere(30, lost=3), {}, "promoted"),
        (elsewhere(30, lost=2, relabelled=2), {}, "refused"),
        (elsewhere(30, lost=4), THIN, "refused"),
        # Thin evidence, and something differs.
        (elsewhere(30, lost=1), THIN, "proposed"),
        (elsewhere(30, gained=1), THIN, "proposed"),
        (elsewhere(30, relabelled=5, worse=0), THIN, "proposed"),
        (elsewhere(30, lost=1), {"videos": 1}, "proposed"),
        (elsewhere(30, lost=1), {"tracks": 9}, "proposed"),
        (elsewhere(30, lost=1), {"videos": 2, "tracks": 10}, "promoted"),
        # Few sure tracks: one that is lost proves nothing, nor does it go unseen.
        (elsewhere(1, lost=1), {}, "proposed"),
        (elsewhere(3, lost=1), {}, "proposed"),
        (elsewhere(3, lost=2), {}, "refused"),
        (elsewhere(FEW_SURE - 1, relabelled=1), {}, "proposed"),
        (elsewhere(FEW_SURE, relabelled=1), {}, "promoted"),
        (elsewhere(3, gained=2), {}, "promoted"),
        # What people did to all such objects elsewhere, they may mean of these.
        (elsewhere(30, relabelled=20, renamed=20, worse=0), {}, "proposed"),
        (elsewhere(30, lost=4, relabelled=20, renamed=20, worse=4), {}, "refused"),
        # Against the base model: more than chance, and more than were lost before.
        (elsewhere(30, base={"tracks": 30, "worse": 4, "worse_before": 3}), {}, "refused"),
        (elsewhere(30, base={"tracks": 30, "worse": 4, "worse_before": 4}), {}, "promoted"),
        (elsewhere(30, base={"tracks": 30, "worse": 3, "worse_before": 0}), {}, "promoted"),
    ],
)
def test_what_other_videos_decide(comparison: dict[str, Any] | None, evidence: dict[str, Any], outcome: str) -> None:
    assert decide_promotion(measures(**evidence), measures(), comparison).outcome == outcome


def test_a_policy_may_leave_every_decision_to_a_person() -> None:
    proposed = decide_promotion(measures(), measures(), elsewhere(30), propose=True)
    assert (proposed.outcome, "policy" in proposed.reason) == ("proposed", True)
    assert decide_promotion(measures(0.2), measures(), propose=True).outcome == "refused"


def test_the_tracks_and_the_evidence_are_named() -> None:
    refused = decide_promotion(measures(), measures(), elsewhere(10, lost=2, relabelled=2)).reason
    assert "4 of 10 sure tracks lost or relabelled (chance explains 1)" in refused
    assert "person in task 7, frames 12-98, lost; person in task 7, frames 13-99, lost" in refused
    assert "frames 14-100, relabelled to bus; 1 more" in refused
    assert "900 held-out frames of 2 videos with 12 annotated tracks" in refused
    assert "on 240 frames of 2 other videos it keeps 6 of 10 sure tracks (60%, 95 % interval 80% to 99%)" in refused
    alone = decide_promotion(measures(**THIN), measures()).reason
    assert "of 1 video with 3 annotated tracks; there is no other video" in alone


def test_figures_have_intervals() -> None:
    old, new = measures(0.6, map50_interval=[0.55, 0.66]), measures(0.7, map50_interval=[0.64, 0.75])
    assert "mAP50 0.600 [0.55, 0.66] -> 0.700 [0.64, 0.75]" in decide_promotion(new, old).reason


@pytest.mark.parametrize(
    ("comparison", "text"),
    [
        (elsewhere(9), ""),
        (elsewhere(9, lost=2, relabelled=1, gained=5), "2 tracks lost, 1 relabelled, 5 gained"),
        (elsewhere(9, gained=1), "1 track gained"),
    ],
)
def test_changes_in_words(comparison: dict[str, Any], text: str) -> None:
    assert describe_changes(comparison) == text
