"""What a person's annotation teaches: boxes on decoded frames, and what he left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ml_backend.core.boxes import iou_pairs
from ml_backend.core.types import Track, VideoInfo
from ml_backend.embeddings.crop_embeddings import CropEmbedding
from ml_backend.embeddings.crop_selection import CropBox
from ml_backend.label_studio.label_config import VideoControl, parse_label_config
from ml_backend.label_studio.regions import track_to_region
from ml_backend.label_studio.timeline import Timeline, video_timeline
from ml_backend.labeling.few_shot.annotated_objects import (
    INTERPOLATED_CONF,
    MAX_BACKGROUND,
    AnnotatedObject,
    TrackOverlaps,
    annotated_objects,
    reuse_embedded_crops,
    short_id,
)
from ml_backend.tracking.track_record import TrackRecord, TrackSet
from tests.builders import TWO_VIDEOS, label_config
from tests.video.builders import make_video

WIDTH, HEIGHT = 640, 360
CONTROL = parse_label_config(label_config("person", "fallen", "medic")).video_controls[0]
SAME_RATE = Timeline(25, np.arange(100) / 25, 4.0)
HALF_RATE = Timeline(12.5, np.arange(100) / 25, 4.0)
DOUBLE_RATE = Timeline(50, np.arange(100) / 25, 4.0)


def key(frame: Any, x: Any = 10, y: Any = 20, width: Any = 25, height: Any = 50, **changes: Any) -> dict[str, Any]:
    box = {"x": x, "y": y, "width": width, "height": height}
    return {"frame": frame, "enabled": True, **box, "rotation": 0, "time": 0.0, **changes}


def make_region(
    *sequence: dict[str, Any], labels: Any = ("fallen",), count: Any = 100, **changes: Any
) -> dict[str, Any]:
    value = {"framesCount": count, "duration": 4.0, "labels": labels, "sequence": list(sequence)}
    names = {"from_name": "box", "to_name": "video", "type": "videorectangle"}
    return {"id": "r1", **names, "origin": "manual", "value": value, **changes}


def read(
    *result: dict[str, Any], timeline: Timeline = SAME_RATE, control: VideoControl = CONTROL, k: int = 4
) -> list[AnnotatedObject]:
    return annotated_objects(result, control, timeline, WIDTH, HEIGHT, k)


# -- boxes


def test_a_region_becomes_boxes_on_decoded_frames() -> None:
    (item,) = read(make_region(key(11), key(31, x=20), key(40, enabled=False)))
    assert (item.region_id, item.label) == ("r1", "fallen")
    assert item.frames.tolist() == list(range(10, 40))
    assert item.frames.dtype == np.int64
    assert item.xyxy.shape == (30, 4)
    assert item.xyxy[0].tolist() == pytest.approx([64, 72, 224, 252])
    assert item.xyxy[20].tolist() == pytest.approx([128, 72, 288, 252])
    assert item.xyxy[10].tolist() == pytest.approx([96, 72, 256, 252])
    assert 4 <= len(item.crops) <= 12
    for crop in item.crops:
        (at,) = np.flatnonzero(item.frames == crop.frame)
        assert crop.xyxy == pytest.approx(item.xyxy[at], abs=0.051)


def test_boxes_that_a_person_has_put_are_surer_than_those_between() -> None:
    (item,) = read(make_region(key(11), key(14), key(30, enabled=False)), k=12)
    conf = {crop.frame: crop.conf for crop in item.crops}
    assert {frame for frame, value in conf.items() if value == 1} == {10, 13, 29}
    assert {round(value, 6) for value in conf.values()} == {1, INTERPOLATED_CONF}


def test_a_region_is_hidden_after_a_disabled_keyframe_and_lasts_to_the_end_after_an_enabled_one() -> None:
    (item,) = read(make_region(key(5), key(8, enabled=False), key(20, enabled=False), key(96)))
    assert item.frames.tolist() == [4, 5, 6, 7, 19, 95, 96, 97, 98, 99]


def test_frames_of_a_slower_timeline() -> None:
    (item,) = read(make_region(key(6), key(10, x=20, enabled=False), count=50), timeline=HALF_RATE)
    assert item.frames.tolist() == [10, 12, 14, 16, 18]
    assert item.xyxy[:, 0].tolist() == pytest.approx([64, 80, 96, 112, 128])


def test_frames_of_a_faster_timeline() -> None:
    """Of several frames that show one picture the first counts."""
    (item,) = read(make_region(key(21), key(41, x=20, enabled=False), count=200), timeline=DOUBLE_RATE)
    assert item.frames.tolist() == list(range(10, 21))
    assert np.diff(item.frames).min() > 0
    assert item.xyxy[:, 0].tolist() == pytest.approx(np.linspace(64, 128, 11).tolist())


@pytest.mark.parametrize("rate", [10, 24, 25, 29.97, 60])
def test_what_is_drawn_is_what_is_learned_at_any_rate(tmp_path: Path, rate: float) -> None:
    """A track, written for Label Studio and accepted by a person, comes back on the pictures that it was on."""
    clip = make_video(tmp_path / "a.mp4", frames=50, fps=25)
    timeline = video_timeline(clip, rate)
    frames = np.arange(5, 45)
    boxes = np.array([100, 50, 160, 200]) + frames[:, None] * [2, 1, 2, 1]
    track = Track(1, frames, boxes.astype(np.float32), np.ones(40, np.float32), {"person": 1.0}, "fallen", 0.9)
    region = track_to_region(track, timeline, CONTROL, VideoInfo("", WIDTH, HEIGHT, 25, 50, 2.0, "h264", ""))
    assert region is not None
    (item,) = read(region, timeline=timeline)
    shown = timeline.decoded_index(np.arange(1, timeline.frames_count + 1))
    assert item.frames.tolist() == sorted(set(shown.tolist()) & set(frames.tolist()))
    assert iou_pairs(item.xyxy, boxes[item.frames - 5]).min() >= 0.89


def test_boxes_are_kept_inside_the_frame() -> None:
    (item,) = read(make_region(key(1, x=-10, y=80, width=30, height=40), key(10, x=-10, y=80, width=30, height=40)))
    assert all(crop.xyxy == (0.0, 288.0, 128.0, 360.0) for crop in item.crops)


def test_a_turned_box_is_the_upright_one_around_it() -> None:
    (item,) = read(make_region(key(1, x=50, y=20, rotation=90)))
    assert item.xyxy[0].tolist() == pytest.approx([320 - 180, 72, 320, 72 + 160])


def test_parts_that_cannot_be_seen_are_no_views() -> None:
    (item,) = read(make_region(key(1, x=-40), key(50, x=-40, width=25), key(51), key(60, enabled=False)))
    assert item.crops
    assert all(crop.frame >= 49 for crop in item.crops)


def test_as_many_views_as_there_can_be() -> None:
    assert len(read(make_region(key(50), key(51, enabled=False)))[0].crops) == 2
    assert len(read(make_region(key(50, enabled=False)), k=1)[0].crops) == 1
    assert len(read(make_region(key(1)), k=2)[0].crops) == 6


# -- what teaches nothing


@pytest.mark.parametrize(
    "region",
    [
        make_region(),
        make_region(key(1, x=120)),
        make_region(key(1, y=-60)),
        make_region(key(1, width=0)),
        make_region(key(1, height=0)),
        make_region(key(1, width=-5)),
        make_region(key(101)),
        make_region(key(5), labels=()),
        make_region(key(5), labels=None),
        make_region(key(5), labels=[""]),
        make_region(key(5), labels=5),
        make_region(key(5), labels=[["fallen"]]),
        make_region(key(5), to_name="another"),
        make_region(key(5), type="rectanglelabels"),
        make_region(key(5), type=None),
        make_region(key(5), value=None),
        make_region(key(5), value={}),
        make_region(key(5), value={"labels": ["fallen"]}),
        make_region(key(5), value={"labels": ["fallen"], "sequence": None}),
        make_region(key(5), value={"labels": ["fallen"], "sequence": [None]}),
        make_region(key(5), value={"labels": ["fallen"], "sequence": "abc"}),
        make_region(key("x")),
        make_region(key(None)),
        make_region(key(float("inf"))),
        make_region(key(5, x=None)),
        make_region(key(5, x="left")),
        make_region(key(5), count="many"),
        {"type": "choices", "to_name": "video", "value": {"choices": ["a"]}},
        {"id": "r1"},
        {},
    ],
    ids=lambda region: str(region.get("value") or region)[:60],
)
def test_regions_that_teach_nothing_do_not_hide_others(region: dict[str, Any]) -> None:
    good = make_region(key(3), id="good")
    assert [item.region_id for item in read(region)] == []
    assert [item.region_id for item in read(region, good, region)] == ["good"]


@pytest.mark.parametrize("name", ["frame", "x", "y", "width", "height"])
def test_keyframes_that_lack_what_is_needed(name: str) -> None:
    damaged = {field: value for field, value in key(5).items() if field != name}
    assert read(make_region(damaged)) == []


@pytest.mark.parametrize("name", ["enabled", "rotation", "time"])
def test_keyframes_that_lack_what_is_not_needed(name: str) -> None:
    (item,) = read(make_region({field: value for field, value in key(5).items() if field != name}))
    assert item.frames[0] == 4


def test_a_damaged_region_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    read(make_region(key("x"), id="the damaged one"))
    assert "the damaged one" in caplog.text


def test_numbers_that_come_as_text() -> None:
    (item,) = read(make_region(key("5", x="10", width="25.0")))
    assert item.xyxy[0].tolist() == pytest.approx([64, 72, 224, 252])


def test_regions_without_id() -> None:
    region = make_region(key(1))
    del region["id"]
    assert [item.region_id for item in read(region)] == [""]
    assert [item.region_id for item in read(make_region(key(1), id=17))] == ["17"]


def test_a_region_is_read_without_its_count() -> None:
    region = make_region(key(5), key(9, enabled=False))
    del region["value"]["framesCount"]
    assert read(region)[0].frames.tolist() == [4, 5, 6, 7, 8]


def test_frames_beyond_the_timeline_are_not_shown() -> None:
    (item,) = read(make_region(key(95), key(200, x=20), count=200))
    assert item.frames.tolist() == list(range(94, 100))


# -- labels and controls


def test_of_several_labels_the_first_of_the_config_counts() -> None:
    assert read(make_region(key(5), labels=["person", "medic"]))[0].label == "person"
    assert read(make_region(key(5), labels=["dragon", "medic", "person"]))[0].label == "medic"


def test_labels_are_stored_by_their_alias() -> None:
    xml = label_config("person").replace('value="person"', 'value="a person" alias="p"')
    control = parse_label_config(xml).video_controls[0]
    assert [item.label for item in read(make_region(key(5), labels=["p"]), control=control)] == ["p"]
    assert [item.label for item in read(make_region(key(5), labels=["a person"]), control=control)] == [None]


def test_each_video_has_its_own_regions() -> None:
    left, right = parse_label_config(TWO_VIDEOS).video_controls
    result = [
        make_region(key(5), labels=["thing"], to_name="left", id="l"),
        make_region(key(5), labels=["ding"], to_name="right", id="r"),
        make_region(key(5), labels=["ding"], to_name="left", id="wrong"),
    ]
    assert [(item.region_id, item.label) for item in read(*result, control=left)] == [("l", "thing"), ("wrong", None)]
    assert [(item.region_id, item.label) for item in read(*result, control=right)] == [("r", "ding")]


def test_nothing_annotated() -> None:
    assert read() == []


def test_ids_fit_into_the_database() -> None:
    assert short_id("abc") == "abc"
    assert short_id("x" * 64) == "x" * 64
    long, longer = short_id("x" * 65), short_id("x" * 66)
    assert len(long) == len(longer) == 64
    assert long != longer
    assert read(make_region(key(1), id="y" * 300))[0].region_id == short_id("y" * 300)


# -- looks that are there already


def make_object(frames: Sequence[int] = range(20, 60), **changes: Any) -> AnnotatedObject:
    frames_array = np.array(frames)
    boxes = np.tile([100.0, 50.0, 200.0, 150.0], (len(frames_array), 1))
    crops = tuple(CropBox(frame, (100.0, 50.0, 200.0, 150.0), 1.0) for frame in frames[:12])
    values = {"region_id": "r1", "label": "fallen", "frames": frames_array, "xyxy": boxes, "crops": crops} | changes
    return AnnotatedObject(**values)


def look(frame: int, dx: float = 0.0) -> CropEmbedding:
    return CropEmbedding(frame, (100.0 + dx, 50.0, 200.0 + dx, 150.0), np.ones(1, np.float32), b"")


def test_looks_of_an_accepted_track_are_taken() -> None:
    known = [look(50, 1.0), look(25), look(30, 3.0), look(44)]
    crops = reuse_embedded_crops(make_object(), known, 4)
    assert crops == tuple(CropBox(item.frame, item.xyxy, 1.0) for item in sorted(known, key=lambda item: item.frame))


def test_other_looks_are_not() -> None:
    item = make_object()
    assert reuse_embedded_crops(item, [], 4) == item.crops
    elsewhere = [look(frame, 60.0) for frame in range(20, 30)]
    before, after = [look(frame) for frame in range(5, 10)], [look(frame) for frame in range(60, 70)]
    assert reuse_embedded_crops(item, elsewhere + before + after, 4) == item.crops


def test_too_few_known_looks_are_not_enough() -> None:
    item = make_object()
    assert reuse_embedded_crops(item, [look(25), look(30), look(35)], 4) == item.crops
    assert len(reuse_embedded_crops(item, [look(25), look(30), look(35)], 3)) == 3


def test_a_short_object_needs_no_more_looks_than_it_has_frames() -> None:
    item = make_object(range(20, 22))
    assert len(reuse_embedded_crops(item, [look(20), look(21)], 4)) == 2
    assert reuse_embedded_crops(item, [look(20)], 4) == item.crops


def test_one_look_a_frame() -> None:
    crops = reuse_embedded_crops(make_object(), [look(25), look(25, 1.0), look(30)], 2)
    assert [crop.frame for crop in crops] == [25, 30]


def test_frames_on_which_the_object_is_hidden() -> None:
    item = make_object([20, 21, 40, 41])
    assert [crop.frame for crop in reuse_embedded_crops(item, [look(n) for n in (19, 20, 30, 39, 40, 42)], 2)] == [
        20,
        40,
    ]


# -- left out


def make_record(track_id: int, box: tuple[float, float, float, float], *frames: int, score: float = 0.5) -> TrackRecord:
    crops = tuple(CropBox(frame, box, 0.9) for frame in frames)
    return TrackRecord(track_id, 0, 10, score, {"person": 1.0}, {}, crops)


def make_set(*records: TrackRecord) -> TrackSet:
    return TrackSet(records, ("person",), False, WIDTH, HEIGHT, 100)


NEAR, FAR = (110.0, 50.0, 210.0, 150.0), (400.0, 50.0, 500.0, 150.0)


def ids(tracks: TrackSet, *objects: AnnotatedObject) -> list[int]:
    return [record.track_id for record in TrackOverlaps(tracks, objects).rejected()]


def test_tracks_that_nobody_has_annotated() -> None:
    tracks = make_set(
        make_record(1, NEAR, 25, 30),
        make_record(2, FAR, 25, 30),
        make_record(3, NEAR, 70, 80),  # the same place, after the object is gone
        make_record(4, FAR),  # nothing to look at
    )
    assert ids(tracks, make_object()) == [2, 3]
    assert ids(tracks) == [1, 2, 3]
    assert ids(make_set(), make_object()) == []


@pytest.mark.parametrize("label", ["dragon", "Fallen"])
def test_objects_of_a_label_that_left_the_config_are_no_background(label: str) -> None:
    """Else the best examples would speak against the label's new name."""
    old, new = read(make_region(key(11), labels=[label]), make_region(key(11, x=60), id="r2"))
    assert (old.label, new.label) == (None, "fallen")
    tracks = make_set(make_record(1, old.crops[0].xyxy, 30), make_record(2, (330.0, 250.0, 350.0, 300.0), 30))
    assert ids(tracks, old, new) == [2]


def test_a_track_that_is_annotated_in_part_is_annotated() -> None:
    tracks = make_set(make_record(1, NEAR, 10, 59, 90), make_record(2, NEAR, 10, 60, 90))
    assert ids(tracks, make_object()) == [2]


def test_any_of_the_objects_will_do() -> None:
    tracks = make_set(make_record(1, NEAR, 30), make_record(2, FAR, 30))
    second = make_object(xyxy=np.tile(np.array(FAR), (40, 1)))
    assert ids(tracks, make_object(), second) == []


@pytest.mark.parametrize(("dx", "expected"), [(53.0, []), (55.0, [1])])
def test_how_much_overlap_is_the_same_object(dx: float, expected: list[int]) -> None:
    record = make_record(1, (100.0 + dx, 50.0, 200.0 + dx, 150.0), 30)
    assert ids(make_set(record), make_object()) == expected


def test_the_best_tracks_are_background_enough() -> None:
    records = [make_record(n, FAR, 30, score=1 - abs(n - 50) / 100) for n in range(100)]
    chosen = ids(make_set(*records))
    assert len(chosen) == MAX_BACKGROUND
    assert chosen == sorted(chosen)
    assert set(range(31, 70)) < set(chosen)


@pytest.mark.parametrize("absurd", [10**9, 10**13])
def test_a_region_may_claim_any_length(absurd: int) -> None:
    """Nothing as long as that is made room for."""
    (item,) = read(make_region(key(11), key(absurd), count=absurd))
    assert item.frames.tolist() == list(range(10, 100))


# -- what the detector calls them


def classes_of(tracks: TrackSet, *objects: AnnotatedObject) -> list[str]:
    return TrackOverlaps(tracks, objects).detector_classes()


def test_the_class_of_an_object_is_its_track_s() -> None:
    person = make_record(1, NEAR, 25, 30, 40)
    bicycle = replace(make_record(2, (150.0, 60.0, 250.0, 160.0), 25, 30, 40), class_scores={"bicycle": 3.0})
    elsewhere = replace(make_record(3, FAR, 25), class_scores={"car": 1.0, "truck": 2.0})
    tracks = make_set(bicycle, person, elsewhere)
    far = make_object(xyxy=np.tile(np.array(FAR), (40, 1)))
    nowhere = make_object(xyxy=np.tile([10.0, 200.0, 60.0, 300.0], (40, 1)))
    assert classes_of(tracks, make_object(), far, nowhere) == ["person", "truck", ""]


def test_the_track_that_overlaps_longest_counts() -> None:
    brief = replace(make_record(1, NEAR, 25, 5, 6, 7), class_scores={"bicycle": 1.0})
    assert classes_of(make_set(brief, make_record(2, NEAR, 30, 40)), make_object()) == ["person"]


def test_objects_without_a_class() -> None:
    motion = replace(make_set(make_record(1, NEAR, 25, 30)), class_agnostic=True)
    assert classes_of(motion, make_object()) == [""]
    assert classes_of(make_set(), make_object()) == [""]
    assert classes_of(make_set(replace(make_record(1, NEAR, 25), class_scores={})), make_object()) == [""]
