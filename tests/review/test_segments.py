"""Segments of a predicted video: what is uncertain in each, and how much work it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ml_backend.review.segments import CORRECTION_S, TRACK_S, SegmentMoment, find_segments
from ml_backend.review.track_rows import TrackRow, track_rows
from tests.review.test_region_repairs import region

FRAMES, RATE = 600, 20.0


def rows(*regions: dict[str, Any]) -> list[TrackRow]:
    long = [{**item, "value": {**item["value"], "framesCount": FRAMES, "duration": 30.0}} for item in regions]
    return track_rows(long, ["person", "car"], FRAMES)


def test_each_has_the_tracks_and_moments_that_it_shows() -> None:
    through = region("through", [(1, 0.0, True), (600, 80.0, True)], score=0.9)
    short = region("short", [(210, 0.0, True), (390, 50.0, False)], "car", score=0.3)
    tracks = rows(through, short)
    vectors = {"through": np.array([1.0, 0.0], np.float32), "short": np.array([0.0, 1.0], np.float32)}
    found = find_segments(tracks, [SegmentMoment(201, "jump", 0.7), SegmentMoment(200, "label", 0.2)], 600, 20, vectors)
    assert [(item.first, item.last, item.start, item.end) for item in found] == [
        (1, 200, 0, 10),
        (201, 400, 10, 20),
        (401, 600, 20, 30),
    ]
    first, middle, last = found
    assert (first.need, middle.need, last.need) == pytest.approx((0.3, 1.5, 0.1))
    assert (first.kinds, middle.kinds, last.kinds) == ({"label": 1}, {"jump": 1}, {})
    assert (middle.tracks, middle.uncertain, middle.region, middle.label, middle.score) == (2, 1, "short", "car", 0.3)
    assert middle.work_s == pytest.approx(2 * TRACK_S + 1.5 * CORRECTION_S)
    assert middle.vector is not None
    assert middle.vector.tolist() == pytest.approx([0.1, 0.7])
    assert last.vector is not None
    assert last.vector.tolist() == pytest.approx([0.1, 0.0])


def test_a_track_that_is_hidden_for_a_while_is_not_in_between() -> None:
    keys = [(1, 0.0, True), (100, 10.0, False), (500, 40.0, True), (600, 50.0, True)]
    found = find_segments(rows(region("r", keys, score=0.5)), [], FRAMES, RATE, {})
    assert [(item.first, item.tracks) for item in found] == [(1, 1), (401, 1)]
    assert all(item.vector is None for item in found)


def test_where_nothing_is_uncertain_nothing_is_to_do() -> None:
    sure = region("r", [(1, 0.0, True), (600, 50.0, True)], score=1.0)
    assert find_segments(rows(sure), [], FRAMES, RATE, {}) == []
    (only,) = find_segments([], [SegmentMoment(3, "no_box", 0.8)], FRAMES, RATE, {})
    assert (only.first, only.tracks, only.region, only.score) == (1, 0, "", None)


@pytest.mark.parametrize(("frames", "parts"), [(20, 1), (299, 1), (301, 2), (6000, 30)])
def test_about_ten_seconds_each(frames: int, parts: int) -> None:
    every = [SegmentMoment(frame, "jump", 1.0) for frame in range(1, frames + 1)]
    found = find_segments([], every, frames, RATE, {})
    assert len(found) == parts
    assert (found[0].first, found[-1].last) == (1, frames)
    assert sum(item.need for item in found) == pytest.approx(frames), "each frame is in one segment"
