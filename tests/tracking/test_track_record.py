"""Finished tracks are kept and come back as they were."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from ml_backend.core.settings import Settings
from ml_backend.detectors.weights import MOTION
from ml_backend.embeddings.crop_selection import CropBox
from ml_backend.inference.pipeline import detect_tracks
from ml_backend.tracking.track_record import FORMAT, TrackRecord, TrackSet
from tests.builders import make_clip


def make_record(track_id: int = 1, **changes: Any) -> TrackRecord:
    key = {"frame": 3, "enabled": True, "x": 1.25, "y": 2, "width": 10.5, "height": 20, "rotation": 0, "time": 0.12}
    value = {"framesCount": 50, "duration": 2.0, "sequence": [key, {**key, "frame": 9, "enabled": False}]}
    crops = (CropBox(2, (0.1, 0.0, 10.3, 99.9), 0.875), CropBox(7, (1.0, 2.0, 3.0, 4.0), 0.0))
    record = TrackRecord(track_id, 2, 7, 0.75, {"person": 5.5, "fußgänger": 0.25}, value, crops)
    return replace(record, **changes)


def make_set(*records: TrackRecord, **changes: Any) -> TrackSet:
    return replace(TrackSet(tuple(records), ("person", "fußgänger"), False, 640, 360, 50, 1.5), **changes)


@pytest.mark.parametrize(
    "tracks",
    [
        make_set(),
        make_set(make_record()),
        make_set(
            make_record(2, crops=(), class_scores={}), make_record(1), class_agnostic=True, class_names=("object",)
        ),
        make_set(*(make_record(number) for number in range(300))),
        make_set(make_record(1), dropped=(make_record(2), make_record(3, crops=()))),
    ],
    ids=["none", "one", "bare", "many", "dropped"],
)
def test_there_and_back(tracks: TrackSet) -> None:
    back = TrackSet.load(tracks.dump())
    assert back == tracks
    assert back is not None
    assert back.seconds == tracks.seconds
    for record in back.tracks:
        assert isinstance(record.crops, tuple)
        assert all(type(value) is float for crop in record.crops for value in crop.xyxy)  # part of a look's key
    assert isinstance(back.class_names, tuple)
    assert back.dump() == tracks.dump() or gzip.decompress(back.dump()) == gzip.decompress(tracks.dump())


def test_time_that_it_took_is_no_difference() -> None:
    assert make_set(make_record(), seconds=1.0) == make_set(make_record(), seconds=2.0)
    assert make_set(make_record()) != make_set(make_record(score=0.5))


def other_format(value: Any) -> bytes:
    body = json.loads(gzip.decompress(make_set(make_record()).dump()))
    if value is None:
        del body["format"]
    else:
        body["format"] = value
    return gzip.compress(json.dumps(body).encode())


@pytest.mark.parametrize("value", [FORMAT - 1, FORMAT + 1, None, "1"])
def test_what_another_release_has_written_is_none(value: Any) -> None:
    assert TrackSet.load(other_format(value)) is None


def test_of_a_release_that_kept_no_dropped_tracks() -> None:
    body = json.loads(gzip.decompress(make_set(make_record()).dump()))
    del body["dropped"]
    assert TrackSet.load(gzip.compress(json.dumps(body).encode())) == make_set(make_record())


def test_what_an_earlier_release_may_have_had_does_not_matter() -> None:
    assert TrackSet.load(gzip.compress(b'{"format": 0, "boxes": {}}')) is None
    assert TrackSet.load(gzip.compress(b"{}")) is None


def test_compressed() -> None:
    tracks = make_set(*(make_record(number) for number in range(100)))
    assert len(tracks.dump()) < len(json.dumps([dict(record.value) for record in tracks.tracks])) / 10


@pytest.mark.parametrize(
    ("scores", "expected"),
    [({"car": 2.0, "person": 3.0}, "person"), ({"car": 2.0, "bus": 2.0}, "bus"), ({}, "object")],
)
def test_top_class(scores: dict[str, float], expected: str) -> None:
    assert make_record(class_scores=scores).top_class == expected


coordinate = st.floats(0, 4000).map(lambda value: round(value, 1))


@hypothesis_settings(deadline=None)
@given(
    st.lists(
        st.builds(
            make_record,
            st.integers(0, 10**6),
            first=st.integers(0, 10**7),
            boxes=st.integers(1, 10**6),
            score=st.floats(0, 1),
            class_scores=st.dictionaries(st.text(max_size=10), st.floats(0, 1e6), max_size=4),
            crops=st.lists(
                st.builds(CropBox, st.integers(0, 10**7), st.tuples(*[coordinate] * 4), st.floats(0, 1)), max_size=5
            ).map(tuple),
        ),
        max_size=5,
    ),
    st.lists(st.text(max_size=20), max_size=4).map(tuple),
    st.booleans(),
)
def test_everything_comes_back(records: list[TrackRecord], names: tuple[str, ...], agnostic: bool) -> None:
    tracks = make_set(*records, class_names=names, class_agnostic=agnostic)
    assert TrackSet.load(tracks.dump()) == tracks


def test_what_the_pipeline_makes_can_be_kept(tmp_path: Path, settings: Callable[..., Settings]) -> None:
    clip = make_clip(tmp_path / "a.mp4")
    tracks = detect_tracks(clip, 24, settings(detector="motion"), MOTION)
    assert len(tracks.tracks) == 1
    assert tracks.tracks[0].crops
    assert TrackSet.load(tracks.dump()) == tracks
