"""Tracks of several made-up videos, and which of them are found to be one object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ml_backend.core.types import Track
from ml_backend.review.global_ids import SeenTrack, match_tracks
from ml_backend.review.video import Evidence
from tests.review.builders import FRAMES, part, street, video

HALF = FRAMES // 2
EARLY = [part(track, 0, HALF) for track in street()]
LATE = [part(track, HALF, FRAMES) for track in street()]


def seen(name: str, tracks: Sequence[Track], truth: Sequence[Track]) -> list[SeenTrack]:
    """Tracks as a camera sees them; ``truth`` says what their boxes show."""
    views = Evidence(video(tracks, truth)).views
    return [
        SeenTrack(name, str(track.label), track.frames, views[track.track_id].looks)
        for track in tracks
        if track.track_id in views
    ]


A, B = seen("a", EARLY, EARLY), seen("b", LATE, LATE)


def test_objects_are_found_in_another_video_and_only_there() -> None:
    # Person 1 is in the first video only, person 6 in the second.
    tracks = [*A[:5], *A[6:], *B[1:]]
    names = [*range(1, 6), 7, 8, *range(2, 9)]
    ids = match_tracks(tracks, first_id=40)
    assert set(ids) == set(range(len(tracks))) - {names.index(1), names.index(6)}
    objects = {name: {ids[i] for i, other in enumerate(names) if other == name and i in ids} for name in names}
    assert [len(found) for found in objects.values()] == [0, 1, 1, 1, 1, 1, 1, 0]
    assert sorted(ids.values()) == sorted([*range(40, 46)] * 2)


def test_ids_stay_and_are_taken_over() -> None:
    known = [replace(A[0], global_id=7), *A[1:]]
    ids = match_tracks([*known, *B], first_id=50)
    assert 0 not in ids
    assert ids[len(A)] == 7
    # A person has said that they are two objects.
    apart = match_tracks([*known, replace(B[0], global_id=8), *B[1:]], first_id=50)
    assert {0, len(A)}.isdisjoint(apart)
    assert {7, 8}.isdisjoint(apart.values())
    # Nothing is left to find.
    done = [replace(track, global_id=number) for track, number in zip([*A, *B], [*range(1, 9)] * 2, strict=True)]
    assert match_tracks(done) == {}


def test_what_one_video_shows_at_once_is_two_objects() -> None:
    twin = replace(A[1], looks=A[0].looks)  # dressed alike
    ids = match_tracks([A[0], twin, *A[2:], *B])
    assert {0, 1}.isdisjoint(ids), "nothing tells which of the two it is"
    both = [replace(A[0], global_id=3), replace(A[1], global_id=3), *A[2:], *B]
    assert 3 not in match_tracks(both, first_id=50).values(), "a person's own mistake does not spread"
    later = replace(twin, frames=twin.frames + 1000, global_id=3)
    same = match_tracks([replace(A[0], global_id=3), later, *A[2:], *B], first_id=50)
    assert same.get(len(A)) in (None, 3)


def test_other_kinds_other_looks_and_too_little() -> None:
    renamed = [replace(track, kind=f"{track.kind}s") for track in B]
    assert match_tracks([*A, *renamed]) == {}
    strangers = [replace(track, track_id=track.track_id + 100) for track in LATE]
    assert match_tracks([*A, *seen("c", strangers, strangers)]) == {}
    assert match_tracks([]) == match_tracks(A[:1]) == match_tracks(A) == {}


def test_three_cameras() -> None:
    third = seen("c", EARLY[::2], EARLY[::2])
    ids = match_tracks([*A, *B, *third])
    for place, index in enumerate(range(0, len(A), 2)):
        assert ids[index] == ids[len(A) + index] == ids[len(A) + len(B) + place]
