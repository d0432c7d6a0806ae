"""Tracks as Label Studio regions, and back."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from label_studio_sdk.label_interface import LabelInterface
from label_studio_sdk.label_interface.objects import PredictionValue

from ml_backend.core.boxes import clip_xyxy, iou_pairs
from ml_backend.core.types import Track, VideoInfo
from ml_backend.label_studio.label_config import parse_label_config
from ml_backend.label_studio.regions import make_prediction, region_boxes, track_to_region, visible_frames
from ml_backend.label_studio.timeline import Timeline

WIDTH, HEIGHT = 640, 360
CONFIG = """<View><Labels name="label" toName="video"><Label value="person"/><Label value="car"/></Labels>
<Video name="video" value="$video" frameRate="$fps"/><VideoRectangle name="box" toName="video"/></View>"""
CONTROL = parse_label_config(CONFIG).video_controls[0]
VIDEO = VideoInfo("v.mp4", WIDTH, HEIGHT, 25.0, 100, 4.0, "h264", "yuv420p")
TIMELINE = Timeline(25, np.arange(100) / 25, 4.0)


def make_track(frames: npt.ArrayLike, xyxy: npt.ArrayLike | None = None, **changes: Any) -> Track:
    at = np.asarray(frames, dtype=np.int64)
    boxes = np.array([100, 50, 160, 200]) + at[:, None] * [2, 0.5, 2, 0.5] if xyxy is None else np.asarray(xyxy)
    track = Track(
        track_id=1,
        frames=at,
        xyxy=boxes.astype(np.float32),
        conf=np.ones(len(at), np.float32),
        class_scores={"person": 5.0, "dog": 1.0},
        label="person",
        score=0.87654,
    )
    return replace(track, **changes)


def region_of(track: Track, timeline: Timeline = TIMELINE, min_iou: float = 0.9) -> dict[str, Any]:
    region = track_to_region(track, timeline, CONTROL, VIDEO, min_iou)
    assert region is not None
    back: dict[str, Any] = json.loads(json.dumps(region))  # what Label Studio gets
    return back


def frames_drawn(region: dict[str, Any]) -> list[int]:
    frames, _, visible = region_boxes(region, WIDTH, HEIGHT)
    return frames[visible].tolist()


def test_region_has_every_field_that_label_studio_wants() -> None:
    region = region_of(make_track(range(10, 30)))
    assert {k: region[k] for k in ("from_name", "to_name", "type", "score")} == {
        "from_name": "box",
        "to_name": "video",
        "type": "videorectangle",
        "score": 0.8765,
    }
    assert region["meta"] == {"original_class": "person"}
    value = region["value"]
    assert (value["framesCount"], value["duration"], value["labels"]) == (100, 4.0, ["person"])
    assert [key["frame"] for key in value["sequence"]] == [11, 30]
    for key in value["sequence"]:
        assert set(key) == {"frame", "enabled", "x", "y", "width", "height", "rotation", "time"}
        assert key["rotation"] == 0
        assert key["time"] == pytest.approx(key["frame"] / 25)
    assert value["sequence"][0]["x"] == pytest.approx(100 * 120 / WIDTH, abs=0.3)


def test_label_studios_own_validator_accepts_the_prediction() -> None:
    regions = [region_of(make_track(range(10, 30))), region_of(make_track([3, 50], track_id=2, label="car"))]
    prediction = make_prediction(regions, "yolo11n-1")
    interface = LabelInterface(CONFIG)
    assert interface.validate_prediction(prediction, return_errors=True) == []
    assert PredictionValue(**prediction).model_dump() == prediction
    del prediction["result"][0]["value"]["sequence"][0]["width"]  # the validator does look
    assert interface.validate_prediction(prediction, return_errors=True) != []


def test_region_is_drawn_from_the_first_to_the_last_frame_and_hidden_in_gaps() -> None:
    region = region_of(make_track([10, 11, 12, 40, 60, 61]))
    assert frames_drawn(region) == [11, 12, 13, 41, 61, 62]
    assert [(key["frame"], key["enabled"]) for key in region["value"]["sequence"]] == [
        (11, True),
        (13, False),
        (41, False),
        (61, True),
        (62, False),
    ]


def test_life_up_to_the_end_of_the_video_stays_open() -> None:
    region = region_of(make_track(range(90, 100)))
    assert region["value"]["sequence"][-1]["enabled"] is True
    assert frames_drawn(region) == list(range(91, 101))


def test_region_follows_the_timelines_frame_rate() -> None:
    region = region_of(make_track(range(25, 75)), Timeline(50, np.arange(100) / 25, 4.0))
    assert region["value"]["framesCount"] == 200
    assert frames_drawn(region) == list(range(51, 151))


def test_one_frame_video() -> None:
    region = region_of(make_track([0]), Timeline(25, [0.0], 0.04))
    assert [(key["frame"], key["enabled"]) for key in region["value"]["sequence"]] == [(1, True)]


def test_track_without_label_or_that_is_never_shown_gives_nothing() -> None:
    slow = Timeline(5, np.arange(100) / 25, 4.0)  # shows every fifth picture
    assert track_to_region(make_track([1, 2]), slow, CONTROL, VIDEO) is None
    assert track_to_region(make_track([1, 2], label=None), TIMELINE, CONTROL, VIDEO) is None
    assert track_to_region(make_track([]), TIMELINE, CONTROL, VIDEO) is None


def test_boxes_are_cut_at_the_picture_and_hidden_outside() -> None:
    frames = np.arange(20)
    boxes = np.array([-200.0, 300, -100, 500]) + frames[:, None] * [10, 0, 10, 0]
    region = region_of(make_track(frames, boxes))
    assert frames_drawn(region)[0] == 12  # until picture 10 it ends at or before the left edge
    for key in region["value"]["sequence"]:
        assert 0 <= key["x"] < key["x"] + key["width"] <= 100
        assert 0 <= key["y"] < key["y"] + key["height"] <= 100
    assert track_to_region(make_track([0, 1], [[-9, -9, -1, -1]] * 2), TIMELINE, CONTROL, VIDEO) is None
    assert track_to_region(make_track([0, 1], [[5, 5, 5, 9]] * 2), TIMELINE, CONTROL, VIDEO) is None


def test_ids_are_stable_short_and_differ() -> None:
    track = make_track(range(10, 30))
    first = region_of(track)["id"]
    assert region_of(track)["id"] == first
    assert len(first) == 10
    assert first.isalnum()
    others = [make_track(range(10, 30), track_id=2), make_track(range(10, 31)), make_track(range(10, 30), label="car")]
    assert len({first, *(region_of(other)["id"] for other in others)}) == 4


@given(
    keys=st.lists(st.tuples(st.integers(1, 30), st.booleans()), max_size=8),
    count=st.none() | st.integers(1, 40),
)
def test_visible_frames_are_those_that_are_drawn(keys: list[tuple[int, bool]], count: int | None) -> None:
    box = {"x": 1, "y": 1, "width": 2, "height": 2, "rotation": 0}
    region = {"value": {"framesCount": count, "sequence": [{"frame": k, "enabled": v, **box} for k, v in keys]}}
    assert visible_frames(region) == len(frames_drawn(region))


@pytest.mark.slow
def test_short_tracks_of_a_long_video_cost_little() -> None:
    """An hour has thousands of tracks: none may cost as much as the hour is long (then this takes half a minute)."""
    hour = 108_000
    timeline = Timeline(30, np.arange(hour) / 30, hour / 30)
    started = time.process_time()
    still = np.full((3, 4), [100, 50, 160, 200])
    regions = [region_of(make_track(range(at, at + 3), still), timeline) for at in range(0, hour, 120)]
    make_prediction(regions, "v")
    assert len(regions) == 900
    assert time.process_time() - started < 10


def test_prediction_score_is_the_mean_over_frames() -> None:
    long, short = make_track(range(0, 30), score=0.9), make_track(range(0, 10), score=0.5, track_id=2)
    prediction = make_prediction([region_of(long), region_of(short)], "v1")
    assert prediction["score"] == pytest.approx(0.8)
    assert prediction["model_version"] == "v1"
    assert make_prediction([], "v1") == {"model_version": "v1", "score": 0.0, "result": []}


def human_region(*sequence: tuple[int, bool, float], frames_count: int = 10, **extra: Any) -> dict[str, Any]:
    keys = [{"frame": f, "enabled": on, "x": x, "y": 10, "width": 20, "height": 30} | extra for f, on, x in sequence]
    return {"value": {"framesCount": frames_count, "duration": 1, "sequence": keys}}


def test_region_is_read_as_the_player_draws_it() -> None:
    region = human_region((3, True, 10), (5, False, 20), (8, True, 40))
    frames, xyxy, visible = region_boxes(region, 1000, 100)
    assert frames.tolist() == list(range(1, 11))
    # Not before the first keyframe; on a disabled keyframe, but not after it; held after the last.
    assert frames[visible].tolist() == [3, 4, 5, 8, 9, 10]
    assert xyxy[2:5, 0].tolist() == [100, 150, 200]
    assert xyxy[7:, 0].tolist() == [400, 400, 400]
    assert xyxy[7].tolist() == [400, 10, 600, 40]
    assert not xyxy[~visible].any()


def test_region_is_read_in_any_order_at_any_frames_and_without_the_optional_fields() -> None:
    region = human_region((8, True, 40), (3, True, 10), frames_count=0)
    frames, xyxy, visible = region_boxes(region, 100, 100, [5, 1, 99])
    assert frames.tolist() == [5, 1, 99]
    assert visible.tolist() == [True, False, True]
    assert xyxy[:, 0].tolist() == pytest.approx([22, 0, 40])
    assert region_boxes({"value": {"sequence": [], "framesCount": 3}}, 9, 9)[2].tolist() == [False] * 3


def test_keyframes_without_enabled_are_drawn_on_their_frames_only() -> None:
    region = human_region((3, True, 10), (8, True, 40))
    for key in region["value"]["sequence"]:
        del key["enabled"]
    frames, _, visible = region_boxes(region, 100, 100)
    assert frames[visible].tolist() == [3, 8]
    assert visible_frames(region) == 2


def test_of_keyframes_on_one_frame_the_first_is_drawn_there_and_the_last_leads_on() -> None:
    doubled = [(3, False, 10), (3, True, 40), (5, True, 20), (5, False, 60)]
    region = human_region(*doubled)
    for key, rotation in zip(region["value"]["sequence"], (0, 0, 0, 90), strict=True):
        key["rotation"] = rotation
    frames, xyxy, visible = region_boxes(region, 100, 100)
    assert frames[visible].tolist() == [3, 4, 5]
    assert xyxy[visible, 0] == pytest.approx([10, 30, 20])
    _, xyxy, visible = region_boxes(human_region(*doubled, (5, True, 70)), 100, 100, [2, 5, 6, 7])
    assert visible.tolist() == [False, True, True, True]
    assert xyxy[:, 0].tolist() == [0, 20, 70, 70]


def test_rotated_box_becomes_the_upright_box_around_it() -> None:
    region = human_region((1, True, 50), rotation=90, frames_count=1)  # turned about its top left corner
    _, xyxy, _ = region_boxes(region, 200, 100)
    # 40 x 30 px at (100, 10): a quarter turn clockwise lets it hang to the left of that corner
    assert xyxy[0] == pytest.approx([70, 10, 100, 50])


def test_rotation_takes_the_short_way_round() -> None:
    region = human_region((1, True, 50), (3, True, 50), frames_count=3)
    for key, rotation in zip(region["value"]["sequence"], (350, 10), strict=True):
        key["rotation"] = rotation
    assert region_boxes(region, 100, 100, [2])[1][0] == pytest.approx([50, 10, 70, 40])


@st.composite
def tracks(draw: st.DrawFn) -> Track:
    stretches = draw(st.lists(st.tuples(st.integers(0, 12), st.integers(1, 40)), min_size=1, max_size=4))
    frames = np.concatenate([[False] * hidden + [True] * seen for hidden, seen in stretches])[:100].nonzero()[0]
    seed = draw(st.integers(0, 2**32 - 1))
    step, size = draw(st.sampled_from([0.0, 1.0, 8.0])), draw(st.sampled_from([0.5, 4.0, 60.0, 900.0]))
    rng = np.random.default_rng(seed)
    centre = rng.uniform([0, 0], [WIDTH, HEIGHT]) + np.cumsum(rng.normal(0, step, (len(frames), 2)), axis=0)
    half = size / 2 * np.exp(np.cumsum(rng.normal(0, 0.02, (len(frames), 2)), axis=0))
    return make_track(frames, np.concatenate([centre - half, centre + half], axis=1))


@pytest.mark.slow
@settings(deadline=None)
@given(tracks(), st.sampled_from([24.0, 25.0, 29.97, 10.0, 60.0]), st.sampled_from([0.5, 0.9, 0.97]))
def test_round_trip_keeps_the_bound_where_visible_and_hides_elsewhere(
    track: Track, frame_rate: float, min_iou: float
) -> None:
    timeline = Timeline(frame_rate, np.arange(100) / 25, 4.0)
    wanted = {}
    for span, xyxy in timeline.resample(track.frames, clip_xyxy(track.xyxy, WIDTH, HEIGHT)):
        wanted.update(zip(span.tolist(), xyxy, strict=True))
    wanted = {f: box for f, box in wanted.items() if box[2] > box[0] and box[3] > box[1]}
    region = track_to_region(track, timeline, CONTROL, VIDEO, min_iou)
    if region is None:
        assert not wanted
        return
    region = json.loads(json.dumps(region))
    frames, xyxy, visible = region_boxes(region, WIDTH, HEIGHT)
    assert frames[visible].tolist() == sorted(wanted)
    overlap = iou_pairs(xyxy[visible], np.array([wanted[f] for f in frames[visible].tolist()]))
    assert overlap.min() >= min_iou
    for key in region["value"]["sequence"]:
        assert key["x"] >= 0 < key["width"]
        assert key["y"] >= 0 < key["height"]
        assert key["x"] + key["width"] <= 100.0011  # x and width are rounded to 0.001 each
        assert key["y"] + key["height"] <= 100.0011
    assert LabelInterface(CONFIG).validate_prediction(make_prediction([region], "v"))
