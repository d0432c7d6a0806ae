"""What people did with predictions: the comparison, and what the database keeps of it."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from ml_backend.db.storage import Storage
from ml_backend.label_studio.client import Annotation, Prediction
from ml_backend.server.container import WebContainer
from ml_backend.training.annotation_review import (
    KINDS,
    AnnotationReview,
    RegionDiff,
    initial_prediction,
    regions_fingerprint,
    review_annotation,
    was_replaced,
)
from ml_backend.training.review_store import ReviewStore, TaskReview
from tests.builders import ROOT
from tests.datasets.builders import key, make_region

NOON = datetime(2026, 1, 1, 12, tzinfo=timezone.utc)


def walker(region_id: str = "a", x: float = 10.0, label: str = "person", **changes: Any) -> dict[str, Any]:
    """On frames 1 to 21, ten percent of the picture to the right."""
    keys = (key(1, x), key(11, x + 6), key(21, x + 10, enabled=False))
    return make_region(*keys, label=label, region_id=region_id, origin="prediction", **changes)


def relabelled(region: dict[str, Any], *labels: str) -> dict[str, Any]:
    return {**region, "value": {**region["value"], "labels": list(labels)}}


def with_sequence(region: dict[str, Any], *sequence: dict[str, Any], **value: Any) -> dict[str, Any]:
    return {**region, "value": {**region["value"], "sequence": list(sequence), **value}}


def kinds(comparison: AnnotationReview) -> dict[str, int]:
    return {kind: number for kind, number in comparison.counts.items() if number}


# -- what is the same


def test_what_was_written_over_is_told() -> None:
    def begun(minutes_before: float | None, updated: datetime | None) -> bool:
        lead = None if minutes_before is None else 60 * minutes_before
        annotation = Annotation(9, 5, [], None, NOON, NOON, lead)
        return was_replaced(annotation, Prediction(1, "v", [], NOON - timedelta(hours=1), updated))

    assert begun(10, NOON - timedelta(minutes=5))
    assert not begun(3, NOON - timedelta(minutes=5))
    assert not begun(90, NOON - timedelta(hours=1) + timedelta(milliseconds=30))  # as it was made
    assert not begun(None, NOON - timedelta(minutes=5))
    assert not begun(10, None)


def test_untouched_regions_are_accepted() -> None:
    predicted = [walker("a"), walker("b", 50)]
    found = review_annotation(predicted, copy.deepcopy(predicted))
    assert found.diffs == (RegionDiff("accepted", "a", "a"), RegionDiff("accepted", "b", "b"))
    assert (found.tracks, found.hard) == (2, ())


@pytest.mark.parametrize(
    "change",
    [
        lambda r: {**r, "origin": "manual"},
        lambda r: with_sequence(r, *reversed(r["value"]["sequence"])),
        lambda r: with_sequence(r, *({**k, "time": 99.0} for k in r["value"]["sequence"])),
        lambda r: with_sequence(r, *({**k, "x": round(k["x"] + 0.0004, 3)} for k in r["value"]["sequence"])),
        lambda r: with_sequence(r, *({n: v for n, v in k.items() if n != "rotation"} for k in r["value"]["sequence"])),
        lambda r: with_sequence(r, key(1, 10), key(6, 13), *r["value"]["sequence"][1:]),
        lambda r: with_sequence(r, *r["value"]["sequence"], framesCount=29, duration=0.97),
        lambda r: {**r, "score": None, "meta": {"text": "sure"}},
    ],
    ids=["origin", "order", "time", "rounding", "no rotation", "keyframe in between", "length", "score and meta"],
)
def test_what_does_not_move_a_region(change: Any) -> None:
    assert kinds(review_annotation([walker()], [change(walker())])) == {"accepted": 1}


def test_a_browser_that_counts_fewer_frames_moves_nothing() -> None:
    predicted = make_region(key(1, 10), key(30, 20), frames_count=30)
    kept = make_region(key(1, 10), key(28, 10 + 10 * 27 / 29), key(29, 10 + 10 * 28 / 29), frames_count=29)
    assert kinds(review_annotation([predicted], [kept])) == {"accepted": 1}


def test_a_tiny_box_is_not_moved_by_rounding() -> None:
    tiny = make_region(key(1, 10, width=0.01, height=0.01), key(9, 20, width=0.01, height=0.01))
    kept = make_region(key(1, 10.001, width=0.01, height=0.01), key(9, 20, width=0.01, height=0.01))
    assert kinds(review_annotation([tiny], [kept])) == {"accepted": 1}


@pytest.mark.parametrize("with_id", [None, "", "another"])
def test_regions_that_lost_their_ids_are_known_by_their_boxes(with_id: str | None) -> None:
    predicted = [walker("a"), walker("b", label="car"), walker("c", 60)]
    kept = [{**region, "id": with_id} for region in (relabelled(walker("c", 60), "bus"), walker("b", label="car"))]
    if with_id is None:
        kept = [{name: value for name, value in region.items() if name != "id"} for region in kept]
    # "a" has the boxes of "b", of which one is gone: labels tell which.
    found = review_annotation(predicted, kept)
    assert kinds(found) == {"merged": 1, "accepted": 1, "relabelled": 1}
    assert [decision.kind for decision in found.diffs] == ["merged", "accepted", "relabelled"]


def test_copies_of_one_id_are_matched_once_each() -> None:
    assert kinds(review_annotation([walker()], [walker(), walker("a", 60)])) == {"accepted": 1, "added": 1}
    assert kinds(review_annotation([walker(), walker("a", 60)], [walker()])) == {"accepted": 1, "deleted": 1}


# -- what is not


@pytest.mark.parametrize(
    "change",
    [
        lambda r: with_sequence(r, key(1, 12), *r["value"]["sequence"][1:]),
        lambda r: with_sequence(r, key(1, 10), key(6, 20), *r["value"]["sequence"][1:]),
        lambda r: with_sequence(r, *r["value"]["sequence"][:2], key(19, 19, enabled=False)),
        lambda r: with_sequence(r, *r["value"]["sequence"][:2], key(21, 20)),
        lambda r: with_sequence(r, key(1, 10, enabled=False), *r["value"]["sequence"][1:]),
        lambda r: with_sequence(r, *({**k, "rotation": 30} for k in r["value"]["sequence"])),
        lambda r: with_sequence(r),
    ],
    ids=["box", "new keyframe", "ends sooner", "stays", "hidden in between", "turned", "no keyframes"],
)
def test_what_moves_a_region(change: Any) -> None:
    found = review_annotation([walker()], [change(walker())])
    assert found.diffs == (RegionDiff("moved", "a", "a"),)
    assert found.hard == ("a",)


def test_origin_is_not_believed() -> None:
    """What a program submits may call itself untouched."""
    assert kinds(review_annotation([walker()], [relabelled(walker(), "car")])) == {"relabelled": 1}


def test_moved_and_relabelled_counts_once() -> None:
    found = review_annotation([walker()], [walker("a", 40, "car")])
    assert found.diffs == (RegionDiff("relabelled", "a", "a"),)
    assert (found.counts["relabelled"], found.counts["moved"]) == (1, 0)


def test_a_label_for_what_had_none_is_a_relabelling() -> None:
    assert kinds(review_annotation([walker(label="")], [walker()])) == {"relabelled": 1}


def test_nobody_has_decided_about_what_is_left_without_a_label() -> None:
    kept = walker(label="")
    del kept["value"]["labels"]  # as Label Studio writes it
    found = review_annotation([walker(label="")], [kept])
    assert (kinds(found), found.hard, found.tracks) == ({"undecided": 1}, (), 0)
    assert kinds(review_annotation([walker(label="")], [walker("a", 40, "")])) == {"moved": 1}


def test_deleted_and_added() -> None:
    found = review_annotation([walker("a"), walker("b", 60)], [walker("a"), walker("c", 35)])
    assert kinds(found) == {"accepted": 1, "deleted": 1, "added": 1}
    assert found.diffs[1:] == (RegionDiff("deleted", "b"), RegionDiff("added", "", "c"))
    assert found.hard == ("b", "c")


def test_a_prediction_that_was_discarded() -> None:
    found = review_annotation([walker("a"), walker("b", 60)], [walker("c", 35), walker("d", 75)])
    assert kinds(found) == {"deleted": 2, "added": 2}


@pytest.mark.parametrize("kept", [[], [walker("c", to_name="other")]], ids=["nothing", "of another video"])
def test_everything_is_deleted(kept: list[Any]) -> None:
    found = review_annotation([walker("a")], kept)
    assert (found.counts["deleted"], found.counts["merged"], found.counts["accepted"]) == (1, 0, 0)


def test_two_halves_that_were_made_one() -> None:
    """A track that broke: the person stretches the first half over both, and deletes the second."""
    first = make_region(key(1, 10), key(10, 19, enabled=False), region_id="first")
    second = make_region(key(11, 20), key(20, 29, enabled=False), region_id="second")
    whole = make_region(key(1, 10), key(20, 29, enabled=False), region_id="first")
    found = review_annotation([first, second], [whole])
    assert found.diffs == (RegionDiff("moved", "first", "first"), RegionDiff("merged", "second", "first"))
    assert found.hard == ("first",)


def test_merged_into_what_overlaps_it_most() -> None:
    kept = [walker("near", 14), walker("nearer", 11), walker("far", 60)]
    found = review_annotation([walker("a"), walker("near", 14)], kept)
    assert found.diffs[0] == RegionDiff("merged", "a", "nearer")


@pytest.mark.parametrize(("last", "kind"), [(9, "deleted"), (13, "merged")])
def test_covered_on_most_of_its_frames(last: int, kind: str) -> None:
    gone = make_region(key(1, 10), key(20, 10, enabled=False), region_id="gone")
    cover = make_region(key(1, 10), key(last, 10, enabled=False), region_id="cover")
    assert review_annotation([gone], [cover]).diffs[0].kind == kind


def test_gaps_do_not_count_as_covered() -> None:
    gone = make_region(key(1, 10), key(4, 10, enabled=False), key(500, 10), key(506, 10, enabled=False))
    cover = make_region(key(1, 10), key(499, 10, enabled=False), region_id="cover")
    assert kinds(review_annotation([gone], [cover])) == {"deleted": 1, "added": 1}


def test_many_regions_that_are_gone() -> None:
    """Of two videos, in any order."""
    predicted = [
        make_region(
            key(1 + 3 * n, n % 70), key(9 + 3 * n, n % 70, enabled=False), region_id=f"p{n}", to_name=f"v{n % 2}"
        )
        for n in range(150)
    ]
    kept = [{**region, "id": f"k{n}", "value": {**region["value"]}} for n, region in enumerate(predicted) if n % 3]
    kept = [with_sequence(region, *({**k, "x": k["x"] + 1} for k in region["value"]["sequence"])) for region in kept]
    found = review_annotation(predicted[::-1], kept)
    assert kinds(found) == {"deleted": 50, "merged": 100, "added": 100}
    into = {decision.predicted_id: decision.annotated_id for decision in found.diffs if decision.kind == "merged"}
    assert into == {f"p{n}": f"k{n}" for n in range(150) if n % 3}


# -- what is damaged


@pytest.mark.parametrize(
    "damaged",
    [
        {"type": "videorectangle", "id": "x"},
        {"type": "videorectangle", "id": "x", "value": None},
        {"type": "videorectangle", "id": "x", "value": {"sequence": "abc"}},
        {"type": "videorectangle", "id": "x", "value": {"labels": "car", "sequence": []}},
        make_region({"frame": 1, "enabled": True}, region_id="x"),
        make_region(key(1, float("nan")), region_id="x"),
        make_region(key(1, 1e300), region_id="x"),
        make_region({**key(1, 1), "frame": 10**30}, region_id="x"),
        make_region(key(1, 1), region_id="x", frames_count=10**30),
        None,
        "region",
        {"type": "choices", "id": "x", "value": {"choices": ["day"]}},
    ],
)
def test_damaged_regions_are_passed_over(damaged: Any, caplog: pytest.LogCaptureFixture) -> None:
    assert kinds(review_annotation([damaged, walker()], [walker(), damaged])) == {"accepted": 1}
    is_region = isinstance(damaged, dict) and damaged["type"] == "videorectangle"
    assert ("cannot be read" in caplog.text) == is_region


def test_a_region_that_claims_billions_of_frames() -> None:
    endless = make_region(key(1, 10), region_id="a", frames_count=2_000_000_000)
    assert kinds(review_annotation([endless], [walker("b", 10)])) == {"deleted": 1, "added": 1}


def test_two_keyframes_on_one_frame() -> None:
    twice = make_region(key(5, 10), key(5, 30), key(5, 40))
    assert kinds(review_annotation([twice], [twice])) == {"accepted": 1}
    assert kinds(review_annotation([twice], [walker("b")])) == {"deleted": 1, "added": 1}


# -- properties

_numbers = st.floats(0, 80, allow_nan=False).map(lambda x: round(x, 3))
_keys = st.builds(key, st.integers(1, 60), _numbers, st.booleans(), width=_numbers, height=_numbers)
_regions = st.builds(
    lambda keys, label, name, to_name: make_region(
        *keys, label=label, region_id=name, to_name=to_name, frames_count=60
    ),
    st.lists(_keys, min_size=1, max_size=5),
    st.sampled_from(["", "person", "car"]),
    st.sampled_from(["", "a", "b", "c", "d"]),
    st.sampled_from(["video", "video", "other"]),
)


@hypothesis_settings(max_examples=100, deadline=None)
@given(st.lists(_regions, max_size=6))
def test_the_same_is_accepted_whatever_it_is(regions: list[dict[str, Any]]) -> None:
    found = review_annotation(regions, json.loads(json.dumps(regions)))
    assert found.counts["accepted"] + found.counts["undecided"] == len(regions)
    assert found.hard == ()


@pytest.mark.slow
@hypothesis_settings(max_examples=200, deadline=None)
@given(st.lists(_regions, max_size=6), st.lists(_regions, max_size=6))
def test_every_region_counts_once(predicted: list[dict[str, Any]], kept: list[dict[str, Any]]) -> None:
    found = review_annotation(predicted, kept)
    counts = found.counts
    assert sum(counts.values()) - counts["added"] == len(predicted)
    remaining = sum(counts[kind] for kind in ("accepted", "undecided", "moved", "relabelled"))
    assert remaining + counts["added"] == len(kept)
    assert found.tracks == sum(bool(region["value"]["labels"]) for region in kept)
    assert set(found.hard) <= {region["id"] for region in [*predicted, *kept]} - {""}


# -- which prediction


def test_the_prediction_that_was_begun_from() -> None:
    old = Prediction(1, "v1", [walker("a"), walker("b")], NOON)
    new = Prediction(2, "v2", [walker("b"), walker("c")], NOON + timedelta(hours=1))
    late = Prediction(3, "v3", [walker("x")], NOON + timedelta(days=1))

    def begun(result: list[Any], **values: Any) -> str:
        annotation = Annotation(9, 5, result, **{"created_at": NOON + timedelta(hours=2), **values})
        found = initial_prediction(annotation, [old, new, late])
        return found.model_version if found else ""

    assert begun([walker("c")], parent_prediction=1) == "v1"  # what Label Studio says
    assert begun([], parent_prediction=2) == "v2"
    assert begun([walker("c")], parent_prediction=77) == "v2"  # it is gone
    assert begun([walker("a"), walker("b")]) == "v1"  # most in common
    assert begun([walker("b")]) == "v2"  # as many: the newer
    assert begun([walker("new")]) == "v2"  # the newest that was there
    assert begun([walker("new")], created_at=None) == "v3"
    assert begun([walker("new")], created_at=NOON - timedelta(hours=1)) == ""
    assert begun([]) == ""  # nobody says that anything was discarded
    assert begun([{"type": "choices", "id": "a", "value": {}}]) == ""
    assert initial_prediction(Annotation(9, 5, [walker("a")]), []) is None


def test_fingerprints_are_of_video_regions() -> None:
    regions = [walker("a"), walker("b", 50)]
    choice = {"type": "choices", "id": "x", "value": {"choices": ["day"]}}
    turned = [dict(reversed(region.items())) for region in regions]
    assert regions_fingerprint(regions) == regions_fingerprint([choice, *turned, None])
    assert regions_fingerprint(regions) != regions_fingerprint([relabelled(regions[0], "car"), regions[1]])


# -- the database


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "db.sqlite3"


@pytest.fixture
def store(path: Path) -> ReviewStore:
    return ReviewStore(Storage(f"sqlite:///{path}"))


def correction(version: str = "v1", hour: int = 0, annotation: int = 1, tracks: int = 1, **counts: int) -> TaskReview:
    decisions = [RegionDiff(kind, f"p{n}", f"a{n}") for kind in KINDS for n in range(counts.get(kind, 0))]
    when = NOON + timedelta(hours=hour)
    return TaskReview(
        annotation, version, AnnotationReview(tuple(decisions), tracks), f"print-{annotation}", when, when
    )


def tracks(store: ReviewStore, project: int) -> int:
    return sum(task.tracks for task in store.tasks(project).values())


def test_acceptance_of_each_version(store: ReviewStore, path: Path, settings: Any) -> None:
    store.put(1, 10, correction("v2", 5, accepted=9, deleted=1, tracks=9))
    store.put(1, 11, correction("v1", 1, accepted=1, moved=1, added=7, tracks=9))
    store.put(1, 12, correction("v1", 3, accepted=1, relabelled=2, merged=1, undecided=4, tracks=3))
    store.put(1, 13, correction("v3", 9, added=1))
    store.put(1, 14, correction("", 9, added=1))
    store.put(2, 20, correction("v1", 0, deleted=1))
    first, second, third = store.by_version(1)
    assert [item.model_version for item in (first, second, third)] == ["v1", "v2", "v3"]
    assert (first.tasks, first.decided, first.accepted, first.rate) == (2, 6, 2, 2 / 6)
    assert (first.moved, first.relabelled, first.merged, first.added, first.undecided) == (1, 2, 1, 7, 4)
    assert (first.first, first.last, first.tracks) == (NOON + timedelta(hours=1), NOON + timedelta(hours=3), 12)
    assert (second.decided, second.rate, third.decided, third.rate) == (10, 0.9, 0, None)
    services = WebContainer(settings(database_url=f"sqlite:///{path}"))
    assert [item["model_version"] for item in services.trainings.acceptance(1)] == ["v1", "v2", "v3"]
    assert store.by_version(3) == []
    assert store.projects() == [1, 2]
    assert tuple(tracks(store, project) for project in (1, 2, 3)) == (23, 1, 0)


def test_a_task_has_one_row(store: ReviewStore) -> None:
    store.put(1, 10, correction("v1", accepted=2))
    store.put(1, 10, correction("v1", accepted=2))
    assert store.by_version(1)[0].accepted == 2
    store.put(1, 10, correction("v2", 1, annotation=2, moved=1, deleted=2, tracks=4))
    assert [item.model_version for item in store.by_version(1)] == ["v2"]
    assert store.hard(1) == {10: frozenset({"a0", "p0", "p1"})}
    assert store.tasks(1) == {10: ("print-2", 4, NOON + timedelta(hours=1), 3)}
    store.remove(2, 10)
    assert tracks(store, 1) == 4
    store.remove(1, 10)
    store.remove(1, 10)
    assert (store.hard(1), store.tasks(1), store.by_version(1), tracks(store, 1)) == ({}, {}, [], 0)


def test_which_state_is_known(store: ReviewStore) -> None:
    east = timezone(timedelta(hours=2))
    assert not store.is_current(1, 10, 1, "print-1", NOON)
    store.put(1, 10, correction())
    assert store.is_current(1, 10, 1, "print-1", NOON.astimezone(east))
    assert not store.is_current(1, 10, 2, "print-1", NOON)
    assert not store.is_current(1, 10, 1, "print-2", NOON)
    assert not store.is_current(1, 10, 1, "print-1", NOON + timedelta(microseconds=1))


def test_long_versions_and_strange_ids_are_kept(store: ReviewStore) -> None:
    strange = "é" * 300 + "\N{PILE OF POO}"
    found = AnnotationReview((RegionDiff("deleted", strange),), 0)
    store.put(1, 10, TaskReview(1, "v" * 1000, found, "f", NOON, NOON))
    assert store.by_version(1)[0].model_version == "v" * 255
    assert store.hard(1) == {10: frozenset({strange})}


def test_threads_write_one_task_at_once(store: ReviewStore) -> None:
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda n: store.put(1, n % 3, correction(accepted=1)), range(60)))
    (found,) = store.by_version(1)
    assert (found.tasks, found.accepted) == (3, 3)


@pytest.mark.slow
def test_processes_write_one_task_at_once(store: ReviewStore, path: Path) -> None:
    code = (
        "import sys; from datetime import datetime, timezone; from ml_backend.training.annotation_review import *\n"
        "from ml_backend.training.review_store import *; from ml_backend.db.storage import Storage\n"
        "store = ReviewStore(Storage(sys.argv[1])); now = datetime.now(timezone.utc)\n"
        "for n in range(100):\n"
        "    found = AnnotationReview((RegionDiff('accepted', 'a', 'a'),), 1)\n"
        "    store.put(1, n % 5, TaskReview(1, 'v1', found, 'f', now, now))\n"
        "    store.remove(1, (n + 2) % 5) if n < 90 else None\n"
    )
    command = [sys.executable, "-c", code, f"sqlite:///{path}"]
    running = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE) for _ in range(2)]
    for process in running:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors.decode()
    assert tracks(store, 1) <= 5
    store.put(1, 0, correction(accepted=1))
    assert 0 in store.tasks(1)
