"""Repairs of Label Studio's regions, seen as its player shows them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ml_backend.core.errors import ConfigError, Conflict
from ml_backend.core.types import Track
from ml_backend.label_studio.label_config import VideoControl
from ml_backend.label_studio.regions import region_boxes
from ml_backend.review.region_repairs import (
    SameTracks,
    is_same_track,
    region_digest,
    repair_result,
    repair_to_json,
    replay,
)
from ml_backend.review.repair_json import describe_json
from ml_backend.review.repairs import Add, Delete, Join, Relabel, Repair, SetBoxes, SplitAt, SwapFrom, Trim
from ml_backend.review.video import ReviewVideo

FRAMES = 100


def region(
    region_id: str, keys: list[tuple[int, float, bool]], label: str = "person", y: float = 20.0, **more: Any
) -> dict[str, Any]:
    """A region with boxes at ``(frame, x, enabled)``."""
    box = {"y": y, "width": 10.0, "height": 30.0, "rotation": 0}
    sequence = [{"frame": f, "enabled": on, "x": x, **box, "time": f / 20} for f, x, on in keys]
    value = {"framesCount": FRAMES, "duration": 5.0, "labels": [label], "sequence": sequence}
    names = {"from_name": "box", "to_name": "video", "type": "videorectangle"}
    return {"id": region_id, **names, "value": value, **more}


A = region("a", [(1, 0.0, True), (30, 29.0, True), (60, 0.0, False)])
B = region("b", [(1, 60.0, True), (50, 80.0, True)], y=50.0)
LATER = region("c", [(71, 10.0, True), (90, 20.0, False)], "car")
CHOICE = {"id": "d", "from_name": "weather", "to_name": "video", "type": "choices", "value": {"choices": ["rain"]}}
RESULT = [A, CHOICE, B, LATER]
VIDEO = ReviewVideo([], fps=20, width=1920, height=1080, frames=FRAMES)
CONTROL = VideoControl("box", "video", "video", "labels", ())


def shown(item: dict[str, Any]) -> dict[int, float]:
    """Left edge by frame on which the player shows the region."""
    frames, xyxy, visible = region_boxes(item, 100, 100)
    return {int(f): round(float(x), 3) for f, x in zip(frames[visible], xyxy[visible, 0], strict=True)}


def by_id(result: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {item["id"]: item for item in result}


def test_split_leaves_every_box_where_it_was() -> None:
    change = repair_result(RESULT, {"do": "split", "region": "a", "frame": 41})
    first, second = change.after
    assert (first["id"], change.before) == ("a", [A])
    assert second["id"] not in by_id(RESULT)
    assert shown(first) | shown(second) == shown(A)
    assert (max(shown(first)), min(shown(second))) == (40, 41)
    assert [key["frame"] for key in first["value"]["sequence"]] == [1, 30, 40], "a person's keyframes stay"
    assert change.result == [first, second, CHOICE, B, LATER]


def test_joined_with_a_line_between() -> None:
    change = repair_result(RESULT, {"do": "join", "region": "a", "other": "c", "fill": True})
    (joined,) = change.after
    assert set(shown(joined)) == set(range(1, 91))
    assert shown(joined)[65] == pytest.approx(0 + 5 / 11 * 10, abs=0.01)
    assert (joined["id"], joined["value"]["labels"]) == ("a", ["person"]), "the longer one's label"
    assert [item["id"] for item in change.result] == ["a", "d", "b"]
    hidden = repair_result(RESULT, {"do": "join", "region": "a", "other": "c", "fill": False}).after[0]
    assert set(shown(hidden)) == {*range(1, 61), *range(71, 91)}


def test_swapped_from_a_frame_on() -> None:
    a, b = repair_result(RESULT, {"do": "swap", "region": "a", "other": "b", "frame": 41}).after
    assert {f: x for f, x in shown(a).items() if f < 41} == {f: x for f, x in shown(A).items() if f < 41}
    assert {f: x for f, x in shown(a).items() if f >= 41} == pytest.approx(
        {f: x for f, x in shown(B).items() if f >= 41}, abs=0.002
    )
    assert max(shown(b)) == 60


def test_kept_in_part_relabelled_and_deleted() -> None:
    (ended,) = repair_result(RESULT, {"do": "end", "region": "b", "first": 1, "last": 40}).after
    assert shown(ended) == {f: x for f, x in shown(B).items() if f <= 40}
    assert not ended["value"]["sequence"][-1]["enabled"]
    (named,) = repair_result(RESULT, {"do": "relabel", "region": "b", "label": "car"}).after
    assert named == {**B, "value": {**B["value"], "labels": ["car"]}}
    assert repair_result(RESULT, {"do": "delete", "region": "b"}).result == [A, CHOICE, LATER]


def test_boxes_corrected_by_the_proposal() -> None:
    frames = np.arange(9, 29)
    boxes = np.stack([frames * 19.2, np.full(20, 300.0), frames * 19.2 + 192, np.full(20, 600.0)], axis=1)
    proposed = SetBoxes(1, 9, 28, frames, boxes.astype(np.float32))
    repair = repair_to_json(proposed, {1: "a"}, VIDEO, CONTROL)
    (item,) = repair_result(RESULT, repair).after
    assert shown(item)[10] == pytest.approx(9.0, abs=0.01)
    assert shown(item)[29] == pytest.approx(28.0, abs=0.01)
    assert {f: x for f, x in shown(item).items() if not 10 <= f <= 29} == {
        f: x for f, x in shown(A).items() if not 10 <= f <= 29
    }


@pytest.mark.parametrize(
    ("repair", "told"),
    [
        (SplitAt(1, 40), "Split at frame 41."),
        (Join(1, 2), "Joined two tracks."),
        (SwapFrom(1, 2, 40), "Exchanged with another track from frame 41 on."),
        (Relabel(1, "car"), "Labelled car."),
        (Trim(1, 0, 39), "Kept from frame 1 to 40 only."),
        (Delete(1), "Deleted."),
    ],
)
def test_every_proposal_can_be_carried_out(repair: Repair, told: str) -> None:
    written = repair_to_json(repair, {1: "a", 2: "b"}, VIDEO, CONTROL)
    assert describe_json(written) == told
    assert repair_result(RESULT, written).result != RESULT


def test_missed_object_is_added_once() -> None:
    frames = np.arange(9, 29)
    boxes = np.stack([frames * 19.2, np.full(20, 540.0), frames * 19.2 + 192, np.full(20, 864.0)], axis=1)
    track = Track(1, frames, boxes.astype(np.float32), np.ones(20, np.float32), {"bus": 9.0}, "car", 0.8)
    repair = repair_to_json(Add(track), {}, VIDEO, CONTROL)
    assert describe_json(repair) == "Added a track of car from frame 10 on."
    change = repair_result(RESULT, repair, "anna")
    (added,) = change.after
    assert (change.result[:-1], change.before) == (RESULT, [])
    assert shown(added) == {frame + 1: pytest.approx(float(frame), abs=0.01) for frame in frames.tolist()}
    assert (added["value"]["labels"], added["score"], added["meta"]["original_class"]) == (["car"], 0.8, "bus")
    assert added["meta"]["text"] == "anna"
    with pytest.raises(Conflict, match="added the track already"):
        repair_result(change.result, repair)
    again = replay(RESULT, [], change.after)
    assert again
    assert again.result == change.result
    assert replay(change.result, [], change.after) is None, "a newer model finds it by itself"
    undone = replay(change.result, change.after, [])
    assert undone
    assert undone.result == RESULT


def test_a_note_that_somebody_has_edited_in_label_studio_stays() -> None:
    edited = {**A, "meta": {"text": ["a line of theirs"]}}
    (after,) = repair_result([edited], {"do": "relabel", "region": "a", "label": "car"}, "by anna").after
    assert after["meta"]["text"] == "by anna; a line of theirs"


def test_accepted_predictions_do_not_count_as_untouched() -> None:
    accepted = {**A, "origin": "prediction"}
    parts = repair_result([accepted], {"do": "split", "region": "a", "frame": 41}).after
    assert [part["origin"] for part in parts] == ["prediction-changed"] * 2


@pytest.mark.parametrize(
    ("repair", "error", "said"),
    [
        ({"do": "delete", "region": "gone"}, Conflict, "does not exist any more"),
        ({"do": "split", "region": "a", "frame": 1}, Conflict, "changes nothing"),
        ({"do": "relabel", "region": "a", "label": "person"}, Conflict, "changes nothing"),
        ({"do": "end", "region": "turned", "first": 1, "last": 2}, ConfigError, "rotated"),
        ({"do": "end", "region": "broken", "first": 1, "last": 2}, ConfigError, "malformed"),
    ],
)
def test_what_cannot_be_repaired_is_said(repair: dict[str, Any], error: type[Exception], said: str) -> None:
    turned = region("turned", [(1, 0.0, True)])
    turned["value"]["sequence"][0]["rotation"] = 30
    broken = region("broken", [(1, 0.0, True)])
    del broken["value"]["sequence"][0]["x"]
    with pytest.raises(error, match=said):
        repair_result([*RESULT, turned, broken], repair)


def test_replayed_on_a_prediction_that_finds_the_same_track() -> None:
    change = repair_result(RESULT, {"do": "split", "region": "a", "frame": 41})
    new = region("other-id", [(1, 0.2, True), (30, 29.2, True), (60, 0.2, False)], "rescuer")
    again = replay([new, B], change.before, change.after)
    assert again is not None
    assert [item["value"]["labels"] for item in again.result] == [["rescuer"], ["rescuer"], ["person"]]
    assert [shown(item) for item in again.result[:2]] == [shown(item) for item in change.after]
    elsewhere = region("a", [(1, 50.0, True), (30, 80.0, True), (60, 50.0, False)])
    assert replay([elsewhere, B], change.before, change.after) is None
    undone = replay(again.result, change.after, change.before)
    assert undone is not None
    assert is_same_track(undone.result[0], A, exact=True)


def test_tracks_are_found_in_a_crowd_as_if_each_were_compared_with_each() -> None:
    """Long and short ones, hidden ones, on several timelines; a little moved, by half, or not."""
    random = np.random.default_rng(1)
    crowd = []
    for number in range(40):
        first, length = int(random.integers(1, 60)), int(random.integers(1, 40))
        keys = [
            (first + step * length // 3, float(random.integers(0, 4) * 10), bool(random.random() < 0.8))
            for step in range(4)
        ]
        crowd.append(region(str(number), keys, y=float(random.integers(0, 2) * 20)))
        crowd[-1]["value"]["framesCount"] = int(random.choice([80, 100, 1000]))
    moved = [
        {
            **item,
            "value": {**item["value"], "sequence": [{**key, "x": key["x"] + by} for key in item["value"]["sequence"]]},
        }
        for item, by in zip(crowd, random.choice([0.0, 0.5, 1.0, 5.0], len(crowd)), strict=True)
    ]
    broken = region("broken", [(1, 0.0, True)])
    del broken["value"]["sequence"][0]["x"]
    others, same = [broken, *moved[::-1]], SameTracks()
    found = [same.find(item, others) for item in crowd]
    assert found == [
        next((o for exact in (True, False) for o in others if is_same_track(o, item, exact=exact)), None)
        for item in crowd
    ]
    assert 0 < found.count(None) < len(crowd)
    assert same.find(broken, crowd) is None


def test_digest_changes_with_boxes_and_label_only() -> None:
    assert region_digest({**A, "id": "x", "score": 0.3, "meta": {}}) == region_digest(A)
    assert region_digest(B) != region_digest(A)
    assert region_digest({**A, "value": {**A["value"], "labels": ["car"]}}) != region_digest(A)


def identified(item: dict[str, Any], number: int) -> dict[str, Any]:
    return repair_result([item], {"do": "identify", "region": item["id"], "global_id": number}, "by anna").after[0]


def test_a_global_id_goes_over_to_the_same_track_of_a_newer_prediction() -> None:
    known = identified(A, 7)
    assert (known["value"], known["meta"]["global_id"]) == (A["value"], 7)
    newer = region("new", [(1, 1.0, True), (30, 29.5, True), (60, 1.0, False)], "car", score=0.4)
    change = replay([newer, B], [A], [known])
    assert change is not None
    kept = change.result[0]
    assert {name: kept[name] for name in newer} == newer, "boxes, label and score are those of the newer one"
    assert kept["meta"] == {"global_id": 7, "repaired": "by anna", "text": "by anna"}
    undone = replay(change.result, [known], [A])
    assert undone is not None
    assert undone.result == [{**newer, "meta": {}}, B]
    other = replay([identified(kept, 9), B], [known], [A])
    assert other is not None
    assert other.result[0]["meta"]["global_id"] == 9, "given later"
    with pytest.raises(Conflict):
        identified(known, 7)


def test_other_repairs_and_a_global_id() -> None:
    relabelled = repair_result([A], {"do": "relabel", "region": "a", "label": "car"}).after[0]
    change = replay([identified(relabelled, 7)], [relabelled], [A])
    assert change is not None
    assert (change.result[0]["value"], change.result[0]["meta"]["global_id"]) == (A["value"], 7), "it is kept"
    first, second = repair_result([identified(A, 7)], {"do": "split", "region": "a", "frame": 41}).after
    assert (first["meta"]["global_id"], second["meta"].get("global_id")) == (7, None)
