"""Label Studio's frames against decoded pictures, by arithmetic; test_player_timeline.py asks a real browser."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml_backend.label_studio.timeline import Timeline, recommended_fps

NTSC = 30000 / 1001


def constant(fps: float, n: int, start: float = 0.0) -> Any:
    return start + np.arange(n) / fps


@pytest.mark.parametrize(
    ("frame_rate", "duration", "expected"),
    [
        (30, 10.0667, 302),
        (24, 10.0667, 242),
        (29.97, 3600, 107892),
        (25, 0.02, 1),
        (25, 0.01, 1),
        (25, 0, 1),
        (25, 0.1, 3),
    ],
)
def test_frames_count_rounds_halves_up_and_is_never_zero(frame_rate: float, duration: float, expected: int) -> None:
    assert Timeline(frame_rate, [0.0], duration).frames_count == expected


def test_player_seeks_to_the_next_but_one_step_of_two_milliseconds() -> None:
    # (f - 1) / 24 rounded to 2 ms, plus 2 ms
    assert Timeline(24, [0.0], 10).seek_times([1, 2, 3, 4]).tolist() == pytest.approx([0.002, 0.044, 0.086, 0.128])


@pytest.mark.parametrize("fps", [1.0, 12.5, 23.976, 24000 / 1001, 25.0, 29.97, NTSC, 50.0, 60000 / 1001, 120.0])
def test_equal_rates_map_one_to_one_for_an_hour(fps: float) -> None:
    n = int(fps * 3600)
    timeline = Timeline(fps, constant(fps, n), n / fps)
    assert timeline.frames_count == n
    np.testing.assert_array_equal(timeline.decoded_index(np.arange(1, n + 1)), np.arange(n))


def test_default_rate_on_a_25_fps_file_skips_one_picture_a_second() -> None:
    timeline = Timeline(24, constant(25, 250), 10)
    index = timeline.decoded_index(np.arange(1, 241))
    assert index[[0, 1, 22, 23, 24]].tolist() == [0, 1, 22, 24, 25]  # frame 24 is sought at 0.96 s, picture 24's time
    assert sorted(set(np.diff(index).tolist())) == [1, 2]
    assert (np.diff(index) == 2).sum() == 10


def test_faster_timeline_repeats_pictures() -> None:
    assert Timeline(50, constant(25, 10), 0.4).decoded_index([1, 2, 3, 4]).tolist() == [0, 0, 1, 1]


def test_variable_frame_rate_maps_by_time() -> None:
    timeline = Timeline(10, [0.0, 0.05, 0.4, 0.41, 0.9], 1.0)
    assert timeline.decoded_index(np.arange(1, 11)).tolist() == [0, 1, 1, 1, 2, 3, 3, 3, 3, 4]


def test_before_a_late_first_picture_and_after_the_last_the_nearest_is_shown() -> None:
    timeline = Timeline(10, [0.5, 0.6], 1.0)
    assert timeline.decoded_index([1, 5, 6, 7, 10, 99]).tolist() == [0, 0, 0, 1, 1, 1]


def test_picture_is_shown_from_its_exact_microsecond_on() -> None:
    # Frame 2 is sought at 0.044 s.
    assert Timeline(24, [0.0, 0.044], 1).decoded_index([2]).tolist() == [1]
    assert Timeline(24, [0.0, 0.044001], 1).decoded_index([2]).tolist() == [0]


def boxes(n: int) -> Any:
    left = np.arange(float(n))
    return np.stack([left, left, left + 10, left + 20], axis=1)


def test_resample_splits_where_the_object_is_hidden() -> None:
    timeline = Timeline(25, constant(25, 20), 0.8)
    spans = timeline.resample([2, 3, 4, 9, 15], boxes(5))
    assert [frames.tolist() for frames, _ in spans] == [[3, 4, 5], [10], [16]]
    assert spans[0][1][:, 0].tolist() == [0, 1, 2]
    assert spans[2][1][:, 0].tolist() == [4]


def test_resample_to_a_slower_timeline_may_close_or_lose_what_is_never_shown() -> None:
    timeline = Timeline(5, constant(10, 20), 2)  # shows pictures 0, 2, 4, ...
    ((frames, _),) = timeline.resample([0, 1, 2, 4, 5, 6], boxes(6))
    assert frames.tolist() == [1, 2, 3, 4]
    assert timeline.resample([3], boxes(1)) == []
    assert timeline.resample([], boxes(0)) == []


def test_audio_that_outlasts_the_pictures_keeps_the_last_box() -> None:
    ((frames, xyxy),) = Timeline(10, constant(10, 5), 1).resample([3, 4], boxes(2))
    assert frames.tolist() == [4, 5, 6, 7, 8, 9, 10]
    assert xyxy[:, 0].tolist() == [0, 1, 1, 1, 1, 1, 1]


@given(st.data())
def test_resampled_boxes_are_those_of_the_picture_on_screen(data: st.DataObject) -> None:
    times = np.cumsum(data.draw(st.lists(st.floats(0.001, 0.3), min_size=1, max_size=40)))
    timeline = Timeline(data.draw(st.floats(1, 60)), times - times[0], float(times[-1] - times[0]) + 0.1)
    frames = np.array(sorted(data.draw(st.sets(st.integers(0, len(times) - 1)))), dtype=np.int64)
    seen = {}
    for span, xyxy in timeline.resample(frames, np.repeat(frames[:, None], 4, axis=1)):
        assert (np.diff(span) == 1).all()
        seen.update(zip(span.tolist(), xyxy[:, 0].astype(int).tolist(), strict=True))
    shown = timeline.decoded_index(np.arange(1, timeline.frames_count + 1))
    assert seen == {f + 1: d for f, d in enumerate(shown.tolist()) if d in set(frames.tolist())}


@pytest.mark.parametrize(
    ("fps", "seconds", "expected"),
    [
        (25, 10, 25),
        (30, 10, 30),
        (NTSC, 10, 29.97),
        (NTSC, 3600, 29.97),
        (24000 / 1001, 3600, 23.976),
        (60000 / 1001, 3600, 59.94),
        (12.5, 60, 12.5),
        (14.985, 10, 14.985),
        (1, 60, 1),
    ],
)
def test_recommended_rate_is_what_people_call_it_and_fits(fps: float, seconds: float, expected: float) -> None:
    n = round(fps * seconds)
    times = constant(fps, n)
    rate = recommended_fps(times, n / fps)
    assert rate == pytest.approx(expected, abs=0.02)
    timeline = Timeline(rate, times, n / fps)
    assert timeline.frames_count == n
    np.testing.assert_array_equal(timeline.decoded_index(np.arange(1, n + 1)), np.arange(n))


def test_recommended_rate_names_of_the_usual_ones() -> None:
    assert [recommended_fps(constant(f, 900), 900 / f) for f in (25, NTSC, 24000 / 1001)] == [25, 29.97, 23.976]


@pytest.mark.slow
def test_usual_rate_gives_way_where_it_would_drift() -> None:
    n = int(NTSC * 24 * 3600)  # in a day 29.97 is off by more than two frames
    times = constant(NTSC, n)
    rate = recommended_fps(times, n / NTSC)
    assert rate != 29.97
    np.testing.assert_array_equal(Timeline(rate, times, n / NTSC).decoded_index(np.arange(1, n + 1)), np.arange(n))


def test_recommended_rate_where_no_rate_fits() -> None:
    assert recommended_fps([0.0, 0.05, 0.4, 0.41, 0.9], 1.0) == pytest.approx(4 / 0.9)
    assert recommended_fps(constant(25, 50, start=0.5), 2.5) == pytest.approx(25)
    assert recommended_fps(constant(0.2, 10), 50.0) == 1.0  # Label Studio would invert a rate below 1
    assert recommended_fps([0.0], 0.04) == 25
    assert recommended_fps([], 0.0) == 24


def test_recommended_rate_is_not_misled_by_longer_audio() -> None:
    assert recommended_fps(constant(30, 90), 5.013) == 30


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, [0.0], 1), "frame rate"),
        ((float("nan"), [0.0], 1), "frame rate"),
        ((25, [0.0], -1), "duration"),
        ((25, [], 1), "times"),
        ((25, [0.0, 2.0, 1.0], 1), "ascending"),
    ],
)
def test_wrong_input_is_named(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Timeline(*arguments)


def test_resample_checks_shapes() -> None:
    with pytest.raises(ValueError, match=r"shape \(2, 4\)"):
        Timeline(25, [0.0], 1).resample([1, 2], boxes(3))


@pytest.mark.parametrize(("rate", "recommended"), [(960, 960.0), (1000, 1000.0), (2000, 1000.0), (0.5, 1.0)])
def test_the_recommended_rate_is_one_that_a_timeline_may_have(rate: float, recommended: float) -> None:
    times = np.arange(40) / rate
    assert recommended_fps(times, 40 / rate) == recommended
