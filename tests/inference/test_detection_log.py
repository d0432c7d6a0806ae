"""Detections kept in a file."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from ml_backend.core.types import Detections, FrameFeatures
from ml_backend.inference.detection_log import DetectionLog, LoggedDetections

CLASSES = ("person", "car")


def frame(index: int, count: int) -> FrameFeatures:
    numbers = np.arange(4 * count, dtype=np.float32).reshape(count, 4) + np.float32(index + 0.37)
    conf = np.linspace(0.1, 0.9, count, dtype=np.float32)
    return FrameFeatures(index, Detections(numbers, conf, np.arange(count) % 2, np.zeros((count, 9), np.float32)))


def write(path: Path, frames: list[FrameFeatures]) -> bytes:
    with DetectionLog(path) as log:
        for features in frames:
            log.push(features)
        log.close(CLASSES)
        assert log.complete
    return path.read_bytes()


def test_comes_back_within_a_quarter_of_a_pixel(tmp_path: Path) -> None:
    frames = [frame(index, index % 3) for index in range(0, 1300)]  # several blocks; some frames have none
    logged = LoggedDetections.load(write(tmp_path / "log.zip", frames))
    assert logged.class_names == CLASSES
    back = list(logged.frames())
    assert [item.index for item in back] == [item.index for item in frames]
    for item, original in zip(back, frames, strict=True):
        found, expected = item.detections, original.detections
        assert np.abs(found.xyxy - expected.xyxy).max(initial=0) <= 0.125
        assert np.abs(found.conf - expected.conf).max(initial=0) <= 0.002
        assert found.class_id.tolist() == expected.class_id.tolist()
    assert len(list(logged.frames())) == len(frames), "can be read again"


def test_video_without_detections(tmp_path: Path) -> None:
    logged = LoggedDetections.load(write(tmp_path / "log.zip", [frame(0, 0)]))
    assert [len(item.detections) for item in logged.frames()] == [0]


def test_what_was_not_closed_is_no_log(tmp_path: Path) -> None:
    with DetectionLog(tmp_path / "log.zip") as log:
        log.push(frame(0, 2))
    assert not log.complete
    with pytest.raises(ValueError, match="invalid detections"):
        LoggedDetections.load((tmp_path / "log.zip").read_bytes())


def test_full_disk_stops_nothing() -> None:
    with DetectionLog(Path("/dev/full")) as log:
        for index in range(20_000):
            log.push(frame(index, 3))
        log.close(CLASSES)
        assert not log.complete


@pytest.mark.parametrize("damage", ["truncated", "flipped", "other"])
def test_damaged_file(tmp_path: Path, damage: str) -> None:
    data = bytearray(write(tmp_path / "log.zip", [frame(index, 3) for index in range(600)]))
    if damage == "truncated":
        data = data[: len(data) // 2]
    elif damage == "flipped":
        data[2000:2100] = bytes(100)
    else:
        with zipfile.ZipFile(tmp_path / "other.zip", "w") as file:
            file.writestr("classes.json", '{"person": 1}')
        data = bytearray((tmp_path / "other.zip").read_bytes())
    with pytest.raises(ValueError, match="invalid"):
        list(LoggedDetections.load(bytes(data)).frames())
