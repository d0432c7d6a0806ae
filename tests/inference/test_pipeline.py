"""One video in, regions out: with the motion detector and a tiny YOLO of random weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from ml_backend.core.errors import ConfigError, Interrupted, VideoError, WeightsError
from ml_backend.core.settings import Settings
from ml_backend.core.types import UNLABELLED, Track
from ml_backend.detectors.weights import resolve_detector
from ml_backend.inference.pipeline import predict_video
from ml_backend.label_studio import timeline
from ml_backend.label_studio.label_config import VideoControl, parse_label_config
from ml_backend.labeling.label_assignment import DetectorLabels
from tests.builders import label_config, make_clip, make_tiny_yolo
from tests.video.builders import make_audio, make_video


def control(*labels: str, **predicted: str) -> VideoControl:
    return parse_label_config(label_config(*labels, predicted=predicted)).video_controls[0]


def labels(*names: str, classes: Mapping[int, str] | None = None, agnostic: bool = False, **predicted: str) -> Any:
    return DetectorLabels(control(*names, **predicted), tuple((classes or NAMES).values()), agnostic)


NAMES = {0: "person", 1: "chair", 2: "car", 3: "truck"}


# -- labels


def test_label_is_a_vote_over_the_whole_life() -> None:
    label = labels("person", "vehicle", vehicle="car,truck")
    assert label({"person": 3.0, "car": 2.9}) == "person"
    assert label({"person": 3.0, "car": 2.0, "truck": 2.0}) == "vehicle"  # two classes of one label vote together


def test_class_without_label_votes_too() -> None:
    label = labels("person")
    assert label({"chair": 5.0, "person": 1.0}) is None
    assert label({"chair": 1.0, "person": 5.0}) == "person"
    assert label({"chair": 5.0}) is None


def test_track_without_votes_has_no_label() -> None:
    assert labels("person")({}) is None


def test_ties_are_broken_the_same_way_every_time() -> None:
    for votes in ({"car": 1.0, "person": 1.0}, {"person": 1.0, "car": 1.0}):
        assert labels("car", "person")(votes) == "car"


def test_class_agnostic_tracks_are_kept() -> None:
    one = {"object": 1.0}
    assert labels("person", classes={0: "object"}, agnostic=True)(one) == "person"
    assert labels("person", "car", classes={0: "object"}, agnostic=True)(one) == UNLABELLED  # a person chooses
    assert labels("person", "thing", classes={0: "object"}, agnostic=True, thing="object")(one) == "thing"
    found_by_text = {"object": 5.0, "vest": 1.0}
    assert labels("person", "vest", classes={0: "object", 1: "vest"}, agnostic=True)(found_by_text) == "vest"


def test_shares_of_votes() -> None:
    label = labels("person", "vehicle", vehicle="car,truck")
    assert label.trained_labels == ("person", "vehicle")
    assert label.shares({"person": 1.0, "car": 1.0, "truck": 1.0, "chair": 1.0}) == {"person": 0.25, "vehicle": 0.5}
    assert label.shares({}) == {}


# -- videos


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clip") / "clip.mp4")


@pytest.fixture(scope="module")
def tiny_yolo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_yolo(tmp_path_factory.mktemp("yolo") / "tiny.pt", {0: "person", 1: "chair"})


@pytest.mark.slow
def test_motion(clip: Path, settings: Callable[..., Settings]) -> None:
    seen: list[tuple[int, int]] = []
    tracks: list[Track] = []
    result = predict_video(
        clip,
        control("thing"),
        20,
        settings(detector="motion"),
        progress=lambda done, total: seen.append((done, total)),
        on_track=tracks.append,
    )
    assert (result.frames, result.info.frames, result.detector.kind) == (40, 40, "motion")
    assert seen == [(done, 40) for done in (1, 9, 17, 25, 33, 40)]
    (region,) = result.regions
    assert region["value"]["labels"] == ["thing"]
    assert region["value"]["framesCount"] == 40
    assert result.boxes == sum(map(len, tracks)) > 0
    assert result.keyframes == len(region["value"]["sequence"])
    assert result.seconds > 0
    # The block walks from left to right, at a third of the height.
    keys = region["value"]["sequence"]
    assert keys[0]["frame"] > 8
    assert keys[-1]["x"] > keys[0]["x"] + 20
    assert all(25 < key["y"] < 45 for key in keys)


@pytest.mark.slow
def test_same_video_gives_the_same_regions_again(clip: Path, settings: Callable[..., Settings]) -> None:
    first, second = (predict_video(clip, control("thing"), 20, settings(detector="motion")) for _ in range(2))
    assert first.regions == second.regions


@pytest.mark.slow
@pytest.mark.parametrize(("rate", "count"), [(20, 40), (24, 48), (10, 20), (29.97, 60), (1, 2)])
def test_timeline_is_label_studio_s_not_the_file_s(
    clip: Path, settings: Callable[..., Settings], rate: float, count: int
) -> None:
    (region,) = predict_video(clip, control("thing"), rate, settings(detector="motion")).regions
    assert region["value"]["framesCount"] == count
    frames = [key["frame"] for key in region["value"]["sequence"]]
    assert 1 <= frames[0] <= frames[-1] <= count
    assert frames == sorted(set(frames))
    assert frames[-1] > 0.9 * count


def test_tiny_yolo(clip: Path, tiny_yolo: Path, settings: Callable[..., Settings]) -> None:
    values = settings(yolo_weights=str(tiny_yolo), conf=0.25, imgsz=320, device="cpu", min_track_s=0)
    result = predict_video(clip, control("person", "chair"), 20, values)
    assert (result.detector.kind, result.detector.name) == ("yolo", "tiny")
    assert result.detector.sha256 == resolve_detector(values).sha256
    assert result.frames == 40
    assert {label for region in result.regions for label in region["value"]["labels"]} == {"person"}


def test_unmapped_classes_are_left_out_counted_and_logged_once(
    clip: Path, tiny_yolo: Path, settings: Callable[..., Settings], caplog: pytest.LogCaptureFixture
) -> None:
    values = settings(yolo_weights=str(tiny_yolo), conf=0.25, imgsz=320, device="cpu", min_track_s=0)
    whole = predict_video(clip, control("person", "chair"), 20, values)
    with caplog.at_level("INFO", logger="ml_backend.labeling.label_assignment"):
        none = predict_video(clip, control("elephant"), 20, values)
    assert none.regions == []
    assert sum(none.labelled.unmapped.values()) == len(whole.regions) > 0
    assert set(none.labelled.unmapped) == {"person"}
    assert len([record for record in caplog.records if record.name == "ml_backend.labeling.label_assignment"]) == 1


def test_asked_to_stop(clip: Path, settings: Callable[..., Settings]) -> None:
    done = 0

    def progress(frames: int, _: int) -> None:
        nonlocal done
        done = frames

    with pytest.raises(Interrupted, match="frame 17 of 40") as failure:
        predict_video(
            clip, control("thing"), 20, settings(detector="motion"), progress=progress, should_stop=lambda: done >= 16
        )
    assert failure.value.retryable


@pytest.mark.slow
def test_memory_does_not_hold_the_video(tmp_path: Path, settings: Callable[..., Settings]) -> None:
    """No more frames are alive than are read ahead, collected, looked at, waiting and filled in: a batch each."""
    import gc

    from ml_backend.core.types import Frame

    clip = make_clip(tmp_path / "a.mp4", frames=100)
    most = 0

    def progress(*_: int) -> None:
        nonlocal most
        most = max(most, sum(isinstance(item, Frame) for item in gc.get_objects()))

    predict_video(clip, control("thing"), 20, settings(detector="motion"), progress=progress)
    assert 0 < most <= 6 * 8


def test_unusable_videos(tmp_path: Path, settings: Callable[..., Settings]) -> None:
    empty, audio = tmp_path / "empty.mp4", make_audio(tmp_path / "audio.mp4")
    empty.write_bytes(b"")
    for path in (empty, audio, tmp_path / "missing.mp4", tmp_path):
        with pytest.raises(VideoError) as failure:
            predict_video(path, control("thing"), 20, settings(detector="motion"))
        assert failure.value.hint


def test_one_frame(tmp_path: Path, settings: Callable[..., Settings]) -> None:
    result = predict_video(
        make_video(tmp_path / "one.mp4", frames=1), control("thing"), 24, settings(detector="motion")
    )
    assert (result.frames, result.regions) == (1, [])


@pytest.mark.parametrize("rate", [1000.5, 1e9, 1e300])
def test_absurd_frame_rate(clip: Path, settings: Callable[..., Settings], rate: float) -> None:
    with pytest.raises(ConfigError, match="frames per second are more than the 1000"):
        predict_video(clip, control("thing"), rate, settings(detector="motion"))


def test_absurd_length(clip: Path, settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeline, "MAX_TIMELINE", 1000)
    with pytest.raises(ConfigError, match="of video have more than 1000 frames"):
        predict_video(clip, control("thing"), 1000, settings(detector="motion"))


def test_file_that_is_no_checkpoint(clip: Path, tmp_path: Path, settings: Callable[..., Settings]) -> None:
    (tmp_path / "x.pt").write_bytes(b"PK\x03\x04 but not really")
    with pytest.raises(WeightsError, match=r"x\.pt"):
        predict_video(clip, control("thing"), 20, settings(yolo_weights=str(tmp_path / "x.pt")))
