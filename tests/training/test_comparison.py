"""What differs between the tracks of two detectors on videos that nobody has annotated."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ml_backend.core.types import Track, VideoInfo
from ml_backend.training.comparison import (
    CLIPS,
    LISTED,
    VIDEOS,
    OtherVideo,
    TrackComparison,
    TracksOfModel,
    VideoPart,
    annotated_as,
    find_renames,
    moments_to_show,
    sample_parts,
    share_interval,
    with_clip,
)
from tests.builders import make_clip

FPS, FRAMES = 20, 80
INFO = VideoInfo("v.mp4", 640, 360, FPS, FRAMES, FRAMES / FPS, "h264", "yuv420p")
PART = VideoPart(OtherVideo(7, Path("v.mp4")), INFO, 0, FRAMES - 1)
LABELS = frozenset({"person", "bicycle"})


def track(left: float, label: str = "person", first: int = 0, frames: int = 60, score: float = 0.8) -> Track:
    """A still box of 40 x 100 pixels."""
    box = np.tile(np.array([left, 100, left + 40, 200], np.float32), (frames, 1))
    conf = np.full(frames, score, np.float32)
    return Track(1, np.arange(first, first + frames), box, conf, {}, label, score)


def compare(
    old: list[Track],
    new: list[Track],
    base: list[Track] | None = None,
    measured: tuple[str, ...] = ("person",),
    labels: frozenset[str] = LABELS,
    renames: frozenset[tuple[str, str]] = frozenset(),
) -> dict[str, Any]:
    models = [TracksOfModel(labels, {PART: tracks}) for tracks in (new, old)]
    reference = None if base is None else TracksOfModel(LABELS, {PART: base})
    return TrackComparison(models[0], models[1], measured, reference, renames).summary()


def counts(found: dict[str, Any]) -> tuple[int, ...]:
    return tuple(found[name] for name in ("tracks", "lost", "relabelled", "gained", "worse"))


def test_equal_tracks_change_nothing() -> None:
    found = compare([track(0), track(100)], [track(3), track(97)])
    assert counts(found) == (2, 0, 0, 0, 0)
    assert (found["videos"], found["frames"], found["changes"], found["base"]) == (1, FRAMES, [], None)


def test_what_is_lost_relabelled_and_gained_is_named() -> None:
    old = [track(0, first=5, score=0.9), track(100, "bicycle"), track(200)]
    new = [track(100, "person"), track(200), track(300, score=0.7)]
    found = compare(old, new)
    assert counts(found) == (3, 1, 1, 1, 2)
    lost, relabelled, gained = found["changes"]
    facts = {"kind": "lost", "task": 7, "label": "person", "now": "", "first": 6, "last": 65, "score": 0.9}
    assert lost == facts | {"wanted": False, "renamed": False, "clip": None}
    assert (relabelled["label"], relabelled["now"]) == ("bicycle", "person")
    assert (gained["kind"], gained["label"], gained["score"]) == ("gained", "person", 0.7)


def test_a_weaker_track_is_not_lost_and_a_surer_one_is_not_gained() -> None:
    assert counts(compare([track(0)], [track(0, score=0.41)])) == (1, 0, 0, 0, 0)
    assert counts(compare([track(0, score=0.45)], [track(0)])) == (0, 0, 0, 0, 0)


@pytest.mark.parametrize("unsure", [track(0, score=0.49), track(0, frames=19)])
def test_tracks_that_are_not_sure_do_not_count(unsure: Track) -> None:
    assert counts(compare([unsure], [])) == (0, 0, 0, 0, 0)
    assert counts(compare([], [unsure])) == (0, 0, 0, 0, 0)


def test_half_of_a_tracks_life_is_enough() -> None:
    assert counts(compare([track(0, frames=60)], [track(0, frames=30)]))[1] == 0
    assert counts(compare([track(0, frames=60)], [track(0, frames=29)]))[1] == 1


def test_a_track_may_go_on_as_several() -> None:
    pieces = [track(0, frames=20), track(0, first=20, frames=20), track(0, first=40, frames=20)]
    assert counts(compare([track(0)], pieces)) == (1, 0, 0, 0, 0)


def test_a_box_of_another_label_beside_it_explains_no_gain() -> None:
    """A bicycle that stays, on which a person is found now; and one that has become a person."""
    assert counts(compare([track(0, "bicycle")], [track(0, "bicycle"), track(5)]))[1:4] == (0, 0, 1)
    assert counts(compare([track(0, "bicycle")], [track(5)]))[1:4] == (0, 1, 0)


def test_new_labels_are_what_it_was_trained_for() -> None:
    """A label that the incumbent lacks: a person who gets it may be right, a bicycle that does was not asked for."""
    assert counts(compare([], [track(0, "guard")])) == (0, 0, 0, 0, 0)
    person = compare([track(0)], [track(0, "guard")])
    assert counts(person) == (1, 0, 1, 0, 0)
    assert person["changes"][0]["wanted"]
    assert counts(compare([track(0, "bicycle")], [track(0, "guard")])) == (1, 0, 1, 0, 1)
    known = compare([track(0)], [track(0, "guard")], labels=LABELS | {"guard"})
    assert counts(known) == (1, 0, 1, 0, 1)


def test_the_base_model_is_the_reference_for_labels_that_are_not_measured() -> None:
    base = [track(left, "bicycle") for left in (0, 100, 200)] + [track(300, "person")]
    found = compare(base[:2], base[:1], base=base)
    assert found["base"] == {"tracks": 3, "worse": 2, "worse_before": 1}


def test_what_people_have_renamed_is_not_worse() -> None:
    renames = frozenset({("person", "guard"), ("bicycle", "person")})
    guard = {"new": [track(0, "guard")], "measured": ("guard",), "renames": renames}
    found = compare([track(0)], base=[track(0)], **guard)
    assert (*counts(found), found["renamed"]) == (1, 0, 1, 0, 0, 1)
    assert found["base"] == {"tracks": 1, "worse": 0, "worse_before": 0}
    assert counts(compare([track(0, "bicycle")], **guard))[-1] == 1, "another label was renamed"
    # A label that the incumbent knows, too, is no new name.
    assert counts(compare([track(0, "bicycle")], [track(0)], measured=(), renames=renames))[-1] == 1


def test_most_tracks_of_a_label_make_a_rename() -> None:
    found = [track(100 * n) for n in range(4)] + [track(500, "bicycle"), track(600, score=0.3)]
    people = [track(0, "guard"), track(100, "guard"), track(200, "person"), track(500, "guard"), track(600, "guard")]
    counted = annotated_as(found, people)
    assert counted == {
        ("person", "guard"): 2,
        ("person", "person"): 1,
        ("person", ""): 1,
        ("bicycle", "guard"): 1,
    }
    assert find_renames(counted) == {("bicycle", "guard")}
    assert find_renames({**counted, ("person", ""): 0}) == {("bicycle", "guard"), ("person", "guard")}


def test_parts_that_one_model_cannot_read_are_left_out() -> None:
    old, new = TracksOfModel(LABELS, {PART: [track(0)]}), TracksOfModel(LABELS, {})
    assert TrackComparison(new, old, ()).summary()["tracks"] == 0


def test_of_many_changes_some_are_listed_and_few_shown_of_each_kind() -> None:
    old = [track(100 * n) for n in range(LISTED)]
    new = [track(100 * n + 50) for n in range(LISTED)]
    comparison = TrackComparison(TracksOfModel(LABELS, {PART: new}), TracksOfModel(LABELS, {PART: old}), ())
    moments, shown = comparison.moments, moments_to_show(comparison.moments)
    for clip, number in enumerate(shown):
        moments[number] = with_clip(moments[number], clip)
    found = comparison.summary(moments)
    assert (found["lost"], found["gained"]) == (LISTED, LISTED)
    assert len(found["changes"]) <= LISTED
    kinds = [change["kind"] for change in found["changes"] if change["clip"] is not None]
    assert kinds == ["lost"] * (CLIPS // 2) + ["gained"] * (CLIPS // 2)


def test_a_share_of_few_is_uncertain() -> None:
    low, high = share_interval(30, 30) or (0.0, 0.0)
    assert 0.85 < low < 0.9
    assert high == pytest.approx(1.0)
    assert share_interval(0, 0) is None


# -- which parts of which videos


def test_parts_are_the_same_each_time_and_within_the_budget(tmp_path: Path) -> None:
    long = make_clip(tmp_path / "long.mp4", frames=600, size=(64, 48))
    short = make_clip(tmp_path / "short.mp4", frames=30, size=(64, 48))
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    videos = [OtherVideo(3, long), OtherVideo(1, short), OtherVideo(2, tmp_path / "broken.mp4")]
    parts = sample_parts(videos, 400)
    assert parts == sample_parts(videos, 400)
    assert sum(part.frames for part in parts) <= 400
    assert [(part.first, part.last) for part in parts if part.video.task == 1] == [(0, 29)]
    of_long = [part for part in parts if part.video.task == 3]
    assert len(of_long) == VIDEOS // 2, "several parts of few videos"
    assert all(80 >= part.frames >= 40 for part in of_long)
    assert all(after.first > before.last for before, after in itertools.pairwise(of_long))


def test_a_small_budget_gives_few_parts_not_short_ones(tmp_path: Path) -> None:
    videos = [OtherVideo(n, make_clip(tmp_path / f"{n}.mp4", frames=200, size=(64, 48))) for n in range(4)]
    parts = sample_parts(videos, 100)
    assert [part.frames for part in parts] == [40, 40]
    assert len({part.video.task for part in parts}) == 2
    assert sample_parts([], 900) == []
