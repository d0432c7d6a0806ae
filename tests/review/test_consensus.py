"""What several people agree on in one video, and where an annotation differs from the others."""

from __future__ import annotations

from typing import Any

import pytest

from ml_backend.review.consensus import ConsensusTrack, consensus_regions, find_consensus, find_disputed
from ml_backend.review.region_repairs import repair_result
from tests.review.test_region_repairs import FRAMES, region, shown

WALKS = region("a", [(1, 0.0, True), (100, 80.0, True)])
STANDS = region("b", [(11, 40.0, True), (60, 40.0, False)], "car", y=60.0)


def walks(shift: float, name: str = "a", label: str = "person", last: int = FRAMES) -> dict[str, Any]:
    """:data:`WALKS` as another person draws it: shifted to the right, up to a frame."""
    end = shift + 80.0 * (last - 1) / 99
    return region(name, [(1, shift, True), (last, end, last == FRAMES)], label)


def kept(people: dict[str, list[dict[str, Any]]], model: Any = None) -> list[dict[str, Any]]:
    return consensus_regions(find_consensus(people, model), 0.98)


def test_boxes_are_the_median_and_labels_those_of_most() -> None:
    people = {"anna": [walks(0.0)], "ben": [walks(1.0, "x", "car")], "cleo": [walks(3.0, "y")]}
    (track,) = find_consensus(people)
    assert (track.label, track.labels) == ("person", {"anna": "person", "ben": "car", "cleo": "person"})
    assert (track.first, track.last, track.kept) == (1, FRAMES, True)
    (found,) = kept(people)
    assert found["value"]["labels"] == ["person"]
    assert len(found["value"]["sequence"]) == 2, "a straight line needs no more keyframes"
    assert shown(found) == pytest.approx(shown(walks(1.0)), abs=0.1)
    (mean,) = kept({"anna": [walks(0.0)], "ben": [walks(3.0)]})
    assert shown(mean) == pytest.approx(shown(walks(1.5)), abs=0.1)


def test_what_more_than_half_have_is_kept() -> None:
    people = {"anna": [WALKS, STANDS], "ben": [STANDS], "cleo": [STANDS]}
    walking, standing = find_consensus(people)
    assert (walking.kept, list(walking.labels), standing.kept) == (False, ["anna"], True)
    assert [shown(item) for item in kept(people)] == [shown(STANDS)]


def test_the_model_decides_ties_only_and_only_where_asked() -> None:
    people = {"anna": [WALKS, STANDS], "ben": [walks(0.5, label="car")]}
    model = [walks(1.0, "m"), STANDS, region("o", [(1, 40.0, True)], y=5.0)]
    without, asked = find_consensus(people), find_consensus(people, model)
    assert [(item.label, item.kept) for item in without] == [("car", True), ("car", False)], "ben came last"
    assert [(item.label, item.kept) for item in asked] == [("person", True), ("car", True)]
    assert len(asked) == 2, "what only the model has is nobody's"
    assert shown(consensus_regions(asked, 0.98)[0]) == pytest.approx(shown(walks(0.25)), abs=0.1), "not its boxes"
    three = {**people, "cleo": [walks(0.0, label="car")]}
    assert [(item.label, item.kept) for item in find_consensus(three, model)] == [("car", True), ("car", False)]


def test_frames_that_half_of_the_people_show() -> None:
    people = {"anna": [walks(0.0)], "ben": [walks(0.0, last=80)], "cleo": [walks(0.0, last=60)]}
    (found,) = kept(people)
    assert max(shown(found)) == 80
    pair = {"anna": [walks(0.0)], "ben": [walks(0.0, last=60)]}
    assert max(shown(kept(pair)[0])) == FRAMES, "one of two"
    assert max(shown(kept(pair, [walks(0.0, last=70)])[0])) == 70


def test_what_all_took_over_stays_as_it_is() -> None:
    bends = region("p", [(1, 0.0, True), (7, 9.0, True), (100, 80.0, True)])
    (found,) = kept({"anna": [bends], "ben": [bends]})
    assert (found["id"], found["value"]) == ("p", bends["value"])
    twins = {"anna": [bends, {**STANDS, "id": "p"}], "ben": [bends, {**STANDS, "id": "p"}]}
    assert len({item["id"] for item in kept(twins)}) == 2


def test_damaged_and_endless_regions_are_left_out() -> None:
    broken = {**STANDS, "value": {"sequence": [{"frame": 1}]}}
    endless = region("e", [(1, 0.0, True), (10**12, 80.0, True)])
    other = region("e", [(1, 0.5, True), (10**12, 80.0, True)])
    assert find_consensus({"anna": [broken], "ben": [broken]}) == []
    people = {"anna": [WALKS, endless, broken], "ben": [WALKS, other]}
    assert [shown(item) for item in kept(people)] == [shown(WALKS)]
    assert find_consensus({"anna": [], "ben": []}) == []


def disputed(people: dict[str, list[dict[str, Any]]], author: str | None, own: Any = None) -> list[Any]:
    return list(find_disputed(people, people[author] if author else own, author, 0.98))


def test_disputed_tracks_have_what_the_others_say_as_their_repair() -> None:
    renamed = {**WALKS, "value": {**WALKS["value"], "labels": ["car"]}}
    people = {"ben": [renamed, STANDS], "cleo": [renamed, STANDS], "anna": [WALKS]}
    label, missing = disputed(people, "anna")
    assert (label.repair, label.score, label.boxes) == (
        {"do": "relabel", "region": "a", "label": "car"},
        pytest.approx(2 / 3),
        FRAMES,
    )
    assert label.reason == "Labelled person by anna; ben: car; cleo: car."
    assert (missing.repair["do"], missing.first, missing.last, missing.boxes) == ("add", 11, 60, 50)
    assert missing.sides == {"ben": "car", "cleo": "car", "anna": None}
    assert missing.reason == "ben and cleo have a track here, which anna has not."
    result = people["anna"]
    for item in (label, missing):
        result = repair_result(result, item.repair).result
    assert disputed({**people, "anna": result}, "anna") == [], "all agree"
    (gone,) = disputed({"ben": [WALKS], "anna": [WALKS, STANDS]}, "anna")
    assert (gone.repair, gone.score, gone.label) == ({"do": "delete", "region": "b"}, 0.5, "car")
    assert gone.reason == "ben has no track here, anna has one."


def test_of_what_is_nobodys_only_ties_are_disputed() -> None:
    people = {"anna": [WALKS, STANDS], "ben": [WALKS], "cleo": [WALKS]}
    own = consensus_regions(find_consensus(people), 0.98)
    assert disputed(people, None, own) == [], "two of three decided"
    (tie,) = disputed({"anna": [WALKS, STANDS], "ben": [WALKS]}, None, own)
    assert (tie.repair["do"], tie.score, tie.reason) == ("add", 0.5, "anna has a track here.")
    assert disputed(people, None, [*own, region("n", [(1, 40.0, True)], y=5.0)]) == [], "a reviewer added it"


def test_a_track_is_what_its_people_say() -> None:
    (track,) = find_consensus({"anna": [WALKS], "ben": []})
    assert isinstance(track, ConsensusTrack)
    assert track.region(0.98)["value"] == WALKS["value"]
    (unlabelled,) = kept({"anna": [walks(0.0, label="")], "ben": [walks(0.0, label="")]})
    assert unlabelled["value"]["labels"] == []
