"""Faults in made-up tracks are found, with repairs that undo them; clean tracks are left alone."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from ml_backend.core.types import Track
from ml_backend.review.identity import joined_lives
from ml_backend.review.moments import MOMENT_KINDS, Moment, find_moments
from ml_backend.review.repairs import (
    Add,
    Delete,
    Join,
    Relabel,
    SetBoxes,
    SplitAt,
    SwapFrom,
    Trim,
    apply_repair,
)
from tests.review.builders import FPS, FRAMES, HEIGHT, WIDTH, exchanged, part, same, street, video, walk


def crossing() -> list[Track]:
    """The street with two people who pass each other closely."""
    return [*street(), walk(11, (100, 520), (3, 0), size=(30, 60)), walk(12, (500, 530), (-2.5, 0), size=(30, 60))]


def only(moments: Sequence[Moment], kind: str) -> Moment:
    """The only moment, which is of this kind."""
    assert [moment.kind for moment in moments] == [kind], moments
    assert kind in MOMENT_KINDS
    (moment,) = moments
    assert 0 <= moment.score <= 1
    assert moment.task == 3
    assert moment.first <= moment.last
    assert moment.reason.endswith(".")
    assert moment.gain == moment.score * moment.changed > 0
    return moment


def put(tracks: Sequence[Track], *changed: Track) -> list[Track]:
    """The tracks with some replaced by their ids, or added."""
    new = {track.track_id: track for track in (*tracks, *changed)}
    return list(new.values())


def overlap(a: Track, b: Track) -> float:
    """Largest distance in pixels of the boxes on common frames, of which there are nearly all."""
    common, rows, others = np.intersect1d(a.frames, b.frames, return_indices=True)
    assert len(common) >= 0.95 * len(b)
    return float(np.abs(a.xyxy[rows] - b.xyxy[others]).max())


@pytest.mark.parametrize("known", [False, True])
def test_clean_tracks_are_left_alone(known: bool) -> None:
    for tracks in (street(), crossing()):
        assert find_moments(video(tracks, tracks if known else None)) == []


def test_no_tracks_and_short_tracks() -> None:
    assert find_moments(video([])) == []
    assert find_moments(video([part(street()[0], 0, 1), part(street()[1], 0, 2)])) == []


def test_memory_does_not_grow_with_the_gaps_of_tracks() -> None:
    one, other = walk(1, (500, 300), (0, 0)), walk(2, (510, 300), (0, 0), frames=(0, 60))
    seen_again = replace(part(one, 0, 61), frames=np.append(np.arange(60), 1_000_000))
    tracemalloc.start()
    try:
        assert find_moments(video([seen_again, other])) == []
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 30e6


@pytest.mark.parametrize("known", [False, True])
def test_an_exchange_is_undone(known: bool) -> None:
    clean = crossing()
    near = 73  # where the two pass each other
    spoiled = put(clean, *exchanged(clean[-2], clean[-1], near + 6))
    moment = only(find_moments(video(spoiled, clean if known else None)), "identity_jump")
    assert moment.severe
    assert isinstance(moment.repair, SwapFrom)
    assert moment.repair.frame == near + 6
    assert same(apply_repair(spoiled, moment.repair), clean)


def test_a_track_that_takes_another_object_while_nobody_moves_is_told_by_its_views() -> None:
    """The first person's box goes over to a second one, who stands there in its place."""
    clean = street()
    first, second = part(clean[2], 0, 80), part(clean[2], 80, FRAMES, 50)
    spoiled = put(clean, replace(clean[2], track_id=3))
    moment = only(find_moments(video(spoiled, put(clean, first, second))), "identity_jump")
    assert moment.tracks == (3,)
    assert isinstance(moment.repair, SplitAt)
    assert abs(moment.repair.frame - 80) <= 15  # between two views


@pytest.mark.parametrize("known", [False, True])
def test_a_track_that_takes_another_ones_object(known: bool) -> None:
    """The first track glides over to the second one's object. That track ends; the first object gets a third one."""
    clean = crossing()
    first, second, frame = clean[-2], clean[-1], 80
    mixed, rest = exchanged(first, second, frame)
    glide = (mixed.frames >= frame - 3) & (mixed.frames < frame + 3)
    boxes = mixed.xyxy.copy()
    ends = boxes[np.flatnonzero(glide)[[0, -1]]]
    boxes[glide] = ends[0] + np.linspace(0, 1, 6)[:, None] * (ends[1] - ends[0])
    spoiled = put(
        clean, replace(mixed, xyxy=boxes), part(rest, 0, frame), replace(part(rest, frame, FRAMES), track_id=20)
    )
    moment = find_moments(video(spoiled, clean if known else None))[0]
    assert moment.kind == "identity_jump"
    assert moment.tracks[:2] == (11, 12)
    assert isinstance(moment.repair, SwapFrom)
    assert (moment.repair.track, moment.repair.other) == (11, 12)
    assert abs(moment.repair.frame - frame) <= 2
    spoiled = apply_repair(spoiled, moment.repair)
    moment = find_moments(video(spoiled, clean if known else None))[0]
    assert moment.repair == Join(11, 20)
    repaired = apply_repair(spoiled, moment.repair)
    assert [track.frames.tolist() for track in repaired] == [track.frames.tolist() for track in clean]
    assert find_moments(video(repaired, clean if known else None)) == []


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("gap", [0, 12])
def test_a_broken_life_is_joined(gap: int, known: bool) -> None:
    clean = street()
    spoiled = put(clean, part(clean[3], 0, 70), part(clean[3], 70 + gap, FRAMES, 20))
    moment = find_moments(video(spoiled, clean if known else None))[0]
    assert (moment.kind, moment.tracks) == ("broken_life", (4, 20))
    assert isinstance(moment.repair, Join)
    repaired = apply_repair(spoiled, moment.repair)
    assert same(repaired, clean)
    assert find_moments(video(repaired, clean if known else None)) == []


def test_another_person_who_comes_where_one_has_left_is_no_broken_life() -> None:
    leaves = walk(1, (600, 300), (6, 0), frames=(0, 80))  # out of the picture on the right
    comes = walk(2, (1200, 300), (-5, 0), frames=(40, FRAMES))  # from there, later
    tracks = [leaves, part(comes, 60, FRAMES)]
    tracks = [replace(track, xyxy=track.xyxy.clip(0, [WIDTH, HEIGHT] * 2)) for track in tracks]
    assert [m.kind for m in find_moments(video(tracks)) if m.kind == "broken_life"] == []


def test_a_wrong_label_is_corrected() -> None:
    clean = street()
    for number, wrong in ((2, "bicycle"), (8, "person")):
        spoiled = put(clean, replace(clean[number - 1], label=wrong))
        moment = only(find_moments(video(spoiled, clean)), "label")
        assert moment.repair == Relabel(number, str(clean[number - 1].label))


def test_a_label_of_which_nothing_is_known_is_not_proposed() -> None:
    clean = street()
    spoiled = put(clean, replace(clean[0], label="bicycle"), replace(clean[5], label="first_responder"))
    moment = only(find_moments(video(spoiled, clean, looks=False)), "label")
    assert moment.repair == Relabel(1, "person")


def test_an_export_tells_a_wrong_label_by_the_detectors_classes_in_it() -> None:
    clean = street()
    moment = only(find_moments(video(put(clean, replace(clean[0], label="bicycle")))), "label")
    assert moment.repair == Relabel(1, "person")


def test_labels_of_a_projects_own_are_not_measured_by_the_detectors_classes() -> None:
    clean = street()
    own = [replace(track, label="first_responder") if track.track_id in (1, 2, 3) else track for track in clean]
    assert find_moments(replace(video(clean, clean, looks=False), tracks=own)) == []


def test_a_jump_away_and_back_is_straightened() -> None:
    clean = street()
    boxes = clean[1].xyxy.copy()
    boxes[60:65] += 90
    spoiled = put(clean, replace(clean[1], xyxy=boxes))
    moment = only(find_moments(video(spoiled)), "jump")
    assert isinstance(moment.repair, SetBoxes)
    assert same(apply_repair(spoiled, moment.repair), clean)


def test_a_jump_for_good_is_cut() -> None:
    clean = street()
    boxes = clean[1].xyxy.copy()
    boxes[60:] += [0, 55, 0, 55]
    moment = only(find_moments(video([replace(clean[1], xyxy=boxes)])), "jump")
    assert moment.repair == SplitAt(2, 60)


def test_a_trembling_box_is_smoothed() -> None:
    clean = street()
    boxes = clean[4].xyxy.copy()
    boxes[40:100] += np.random.default_rng(0).normal(0, 8, (60, 2)).repeat(2, axis=0).reshape(60, 4)[:, [0, 1, 0, 1]]
    spoiled = put(clean, replace(clean[4], xyxy=boxes.astype(np.float32)))
    moment = only(find_moments(video(spoiled)), "jitter")
    assert isinstance(moment.repair, SetBoxes)
    smooth = apply_repair(spoiled, moment.repair)[4]
    error = np.abs(boxes[40:100] - clean[4].xyxy[40:100]).mean()
    assert np.abs(smooth.xyxy[40:100] - clean[4].xyxy[40:100]).mean() < 0.6 * error


@pytest.mark.parametrize("known", [False, True])
def test_one_object_has_one_box(known: bool) -> None:
    clean = street()
    double = replace(part(clean[2], 20, 90, 30), score=0.4)
    spoiled = put(clean, replace(double, xyxy=double.xyxy + 3))
    moment = only(find_moments(video(spoiled, clean if known else None)), "duplicate")
    assert moment.repair == Delete(30)


def test_a_box_around_nothing_is_deleted_and_a_missing_one_added() -> None:
    clean = street()
    spoiled = put(clean[1:], walk(40, (900, 60), (-0.5, 0), frames=(30, 100)))
    nothing, missing = sorted(find_moments(video(spoiled, clean)), key=lambda m: m.kind, reverse=True)
    assert (nothing.kind, nothing.repair) == ("no_object", Delete(40))
    assert (missing.kind, missing.tracks) == ("no_box", ())
    assert isinstance(missing.repair, Add)
    assert missing.repair.added.label == "person"
    assert overlap(missing.repair.added, clean[0]) < 2


def test_what_the_detector_does_not_know_is_not_deleted() -> None:
    clean = street()
    drone = walk(40, (900, 60), (-0.5, 0), frames=(30, 100), label="drone")
    assert find_moments(video([*clean, drone], clean)) == []


def test_objects_without_a_label_of_the_project_are_not_missed() -> None:
    clean = street()
    people = replace(video(clean[:6], clean), class_labels={"person": "person"})
    assert find_moments(people) == []


@pytest.mark.parametrize("known", [False, True])
def test_a_frozen_box_follows_its_object(known: bool) -> None:
    clean = street()
    boxes = clean[6].xyxy.copy()
    boxes[50:90] = boxes[50]
    spoiled = put(clean, replace(clean[6], xyxy=boxes))
    moment = only(find_moments(video(spoiled, clean if known else None)), "frozen")
    assert isinstance(moment.repair, SetBoxes)
    assert (abs(moment.first - 50) <= 3, abs(moment.last - 89) <= 1) == (True, True)
    assert overlap(apply_repair(spoiled, moment.repair)[6], clean[6]) < 10


def test_a_box_that_stays_after_its_object_has_left() -> None:
    clean = street()
    leaving = part(clean[7], 0, 90)
    boxes = np.concatenate([leaving.xyxy, np.repeat(leaving.xyxy[-1:], FRAMES - 90, axis=0)])
    spoiled = put(clean, replace(clean[7], xyxy=boxes))
    for truth in (None, put(clean, leaving)):
        moment = only(find_moments(video(spoiled, truth)), "overstay")
        assert isinstance(moment.repair, Trim)
        (kept,) = [track for track in apply_repair(spoiled, moment.repair) if track.track_id == 8]
        assert 89 <= kept.frames[-1] <= 89 + 0.3 * FPS


def test_impossible_boxes() -> None:
    clean = street()
    flat, far = clean[0].xyxy.copy(), clean[1].xyxy.copy()
    flat[20:25, 2] = flat[20:25, 0]
    far[60] = [-500, 10, -400, 90]
    spoiled = put(clean, replace(clean[0], xyxy=flat), replace(clean[1], xyxy=far))
    moments = find_moments(video(spoiled))
    assert [moment.kind for moment in moments] == ["geometry", "geometry"]
    for moment in moments:
        spoiled = apply_repair(spoiled, moment.repair)
    assert find_moments(video(spoiled)) == []
    assert 20 not in spoiled[0].frames
    empty = replace(clean[2], xyxy=np.zeros_like(clean[2].xyxy))
    assert only(find_moments(video([empty])), "geometry").repair == Delete(3)
    broken = replace(clean[2], xyxy=np.full_like(clean[2].xyxy, np.nan))
    assert only(find_moments(video([broken])), "geometry").repair == Delete(3)


def test_impossible_boxes_mislead_no_other_check() -> None:
    clean = street()
    boxes = clean[0].xyxy.copy()
    boxes[40] = np.nan
    spoiled = put(clean[:3] + clean[4:], replace(clean[0], xyxy=boxes))
    assert {moment.kind for moment in find_moments(video(spoiled, clean))} == {"geometry", "no_box"}


def test_the_largest_gain_comes_first() -> None:
    clean = street()
    spoiled = put(clean, replace(clean[0], label="bicycle"), part(clean[3], 0, 70), part(clean[3], 75, FRAMES, 20))
    moments = find_moments(video(spoiled, clean))
    assert [moment.kind for moment in moments] == ["label", "broken_life"]
    assert moments[0].gain > moments[1].gain


def test_a_wrong_label_hides_no_jump() -> None:
    clean = street()
    boxes = clean[1].xyxy.copy()
    boxes[60:65] += 90
    spoiled = put(clean, replace(clean[1], xyxy=boxes, label="bicycle"))
    assert {moment.kind for moment in find_moments(video(spoiled, looks=False))} == {"jump", "label"}


def test_a_life_in_three_pieces_is_joined_twice() -> None:
    clean = street()
    pieces = part(clean[3], 0, 70), part(clean[3], 70, 80, 20), part(clean[3], 80, FRAMES, 21)
    spoiled = put(clean, *pieces)
    while moments := find_moments(video(spoiled)):
        assert moments[0].kind == "broken_life"
        spoiled = apply_repair(spoiled, moments[0].repair)
    assert same(spoiled, clean)


def test_lives_are_joined_where_motion_and_views_say_so() -> None:
    clean = street()
    pieces = part(clean[3], 0, 60), part(clean[3], 80, 100, 20), part(clean[3], 120, FRAMES, 21)
    stranger = walk(22, (clean[4].xyxy[:, 0].mean(), 580), (0.2, 0.0), frames=(90, FRAMES))
    spoiled = [*put(clean, *pieces), stranger]
    joined = {track.track_id: track for track in joined_lives(video(spoiled, [*clean, stranger]))}
    assert len(joined) == len(clean) + 1
    assert same(list(joined.values()), [*clean, stranger])


def test_who_turned_behind_something_is_known_by_looks() -> None:
    clean = street()
    before = part(clean[3], 0, 50)
    back = walk(4, (before.xyxy[-1, [0, 2]].mean() + 300, 285), (-3.0, 0.0), frames=(100, FRAMES), size=(30, 50))
    truth, tracks = [*put(clean, before), back], put(clean, before, replace(back, track_id=20))
    joined = {track.track_id: track for track in joined_lives(video(tracks, truth))}
    assert len(joined) == len(clean)
    assert same([part(joined[4], 0, 75), part(joined[4], 75, FRAMES)], [before, back])
    assert len(joined_lives(video(tracks, truth, looks=False))) == len(tracks), "its motion leads elsewhere"
    other = [replace(track, label="bicycle") if track.track_id == 20 else track for track in tracks]
    assert len(joined_lives(video(other, truth))) == len(tracks), "another label is another object"
