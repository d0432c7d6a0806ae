"""Repairs of tracks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ml_backend.core.types import Track
from ml_backend.review.repairs import (
    Add,
    Delete,
    Join,
    Relabel,
    Repair,
    SetBoxes,
    SplitAt,
    SwapFrom,
    Trim,
    apply_repair,
    changed_boxes,
    describe,
)
from tests.review.builders import exchanged, part, same, walk

A = walk(1, (100, 100), (2, 0), frames=(0, 40))
B = walk(2, (100, 300), (2, 0), frames=(10, 60), label="bicycle")
TRACKS = [A, B]
MOVED = SetBoxes(1, 5, 9, np.array([5, 6, 9]), np.full((3, 4), 7, np.float32))
ALL: list[tuple[Repair, int]] = [
    (SplitAt(1, 30), 10),
    (SplitAt(1, 5), 5),
    (Join(1, 2), 40),
    (SwapFrom(1, 2, 20), 30),
    (Relabel(2, "person"), 50),
    (Trim(2, 20, 39), 30),
    (Delete(2), 50),
    (MOVED, 5),
    (Add(part(A, 0, 12, 77)), 12),
]


def by_id(tracks: list[Track]) -> dict[int, Track]:
    return {track.track_id: track for track in tracks}


def test_split_and_join_again() -> None:
    split = apply_repair(TRACKS, SplitAt(1, 30))
    assert same(split, [part(A, 0, 30), B, part(A, 30, 40, 3)])
    assert same(apply_repair(split, Join(1, 3)), TRACKS)


def test_a_join_fills_the_gap_with_lines_only_if_asked() -> None:
    broken = [part(A, 0, 10), part(A, 20, 40, 5)]
    filled = apply_repair(broken, Join(1, 5))
    assert same(filled, [A])
    assert not filled[0].conf[10:20].any()
    hidden = apply_repair(broken, Join(1, 5, fill=False))
    assert hidden[0].frames.tolist() == [*range(10), *range(20, 40)]


def test_where_joined_tracks_overlap_the_longer_ones_boxes_and_label_are_kept() -> None:
    (joined,) = apply_repair(TRACKS, Join(1, 2))
    assert (joined.track_id, joined.label) == (1, "bicycle")
    assert same([part(joined, 10, 60, 2)], [B])
    assert np.allclose(joined.xyxy[:10], A.xyxy[:10])
    assert joined.class_scores == {"person": 40.0, "bicycle": 50.0}


def test_tracks_exchange_their_boxes() -> None:
    swapped = apply_repair(TRACKS, SwapFrom(1, 2, 20))
    assert same(swapped, list(exchanged(A, B, 20)))
    assert same(apply_repair(swapped, SwapFrom(1, 2, 20)), TRACKS)


def test_what_smoothing_has_blended_is_drawn_anew() -> None:
    swapped = list(exchanged(A, B, 20))
    blended = [replace(track, xyxy=track.xyxy.copy()) for track in swapped]
    for track in blended:
        track.xyxy[(track.frames >= 17) & (track.frames < 23)] = 50
    assert same(apply_repair(blended, SwapFrom(1, 2, 20, blend=3)), TRACKS)
    ended = [blended[0], part(blended[1], 10, 20)]
    first, second = apply_repair(ended, SwapFrom(1, 2, 20, blend=3))
    assert same([first], [part(A, 0, 17)])
    assert same([second], [B])


def test_an_exchange_with_a_track_that_has_ended_goes_one_way() -> None:
    ended = part(B, 10, 20)
    first, second = apply_repair([A, ended], SwapFrom(1, 2, 20))
    assert same([first], [part(A, 0, 20)])
    assert second.frames.tolist() == list(range(10, 40))
    assert np.allclose(second.xyxy[10:], A.xyxy[20:])


def test_labels_ends_boxes_and_whole_tracks() -> None:
    assert by_id(apply_repair(TRACKS, Relabel(1, "walker")))[1].label == "walker"
    assert same(apply_repair(TRACKS, Trim(2, 20, 39)), [A, part(B, 20, 40)])
    assert same(apply_repair(TRACKS, Delete(1)), [B])
    moved = by_id(apply_repair(TRACKS, MOVED))[1]
    assert moved.frames.tolist() == [*range(7), *range(9, 40)]
    assert (moved.xyxy[[5, 6, 7]] == 7).all()
    assert np.allclose(moved.xyxy[8:], A.xyxy[10:])
    assert same(apply_repair(TRACKS, Add(part(A, 0, 12, 77))), [*TRACKS, part(A, 0, 12, 3)])


@pytest.mark.parametrize(("repair", "boxes"), ALL, ids=lambda value: type(value).__name__)
def test_what_changes_is_counted_and_the_given_tracks_stay(repair: Repair, boxes: int) -> None:
    before = [(track.frames.copy(), track.xyxy.copy(), track.label) for track in TRACKS]
    apply_repair(TRACKS, repair)
    assert changed_boxes(TRACKS, repair) == boxes
    for track, (frames, xyxy, label) in zip(TRACKS, before, strict=True):
        assert np.array_equal(track.frames, frames)
        assert np.array_equal(track.xyxy, xyxy)
        assert track.label == label


@pytest.mark.parametrize(
    "repair",
    [
        Delete(9),
        Join(1, 1),
        Join(1, 9),
        SwapFrom(1, 1, 5),
        SwapFrom(1, 2, 50),
        SwapFrom(1, 2, 0),
        SplitAt(1, 0),
        SplitAt(1, 40),
        Trim(1, 50, 60),
        SetBoxes(1, 0, 39, np.zeros(0, np.int64), np.zeros((0, 4), np.float32)),
        SetBoxes(1, 5, 6, np.array([7]), np.zeros((1, 4), np.float32)),
    ],
    ids=repr,
)
def test_what_cannot_be_done_is_refused(repair: Repair) -> None:
    with pytest.raises(ValueError, match="expected"):
        apply_repair(TRACKS, repair)


def test_people_read_frames_from_one() -> None:
    texts = [describe(repair) for repair, _ in ALL]
    assert texts[0] == "Split track 1 at frame 31."
    assert texts[-1] == "Add a track of person from frame 1 to 12."
    assert len(set(texts)) == len(ALL)
