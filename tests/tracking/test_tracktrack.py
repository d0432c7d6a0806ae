"""Our TrackTrack gives the tracks of ultralytics' implementation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ml_backend.core.types import Detections, FrameFeatures
from ml_backend.detectors.motion import MotionDetector
from ml_backend.inference.detection_stream import detection_stream
from ml_backend.tracking import appearance
from ml_backend.tracking.association import Thresholds
from ml_backend.tracking.tracktrack import TrackTrack
from ml_backend.tracking.ultralytics_tracker import UltralyticsTracker
from ml_backend.video.probe import probe
from ml_backend.video.sample import make_sample

THRESHOLDS = Thresholds(high=0.25, low=0.1, new=0.25)
STREET = Path(__file__).resolve().parents[1] / "data" / "street_detections.npz"


def street() -> Iterator[FrameFeatures]:
    """A crowded street: what YOLO11n finds in 302 frames of a real video, with colours and camera motion."""
    with np.load(STREET) as data:
        offsets, cameras = data["offsets"], data["cameras"]
        columns = {name: data[name].astype(np.float32) for name in ("xyxy", "conf", "colours")}
        class_id = data["class_id"].astype(np.int64)
    for index, camera in enumerate(cameras):
        rows = slice(offsets[index], offsets[index + 1])
        found = Detections(columns["xyxy"][rows], columns["conf"][rows], class_id[rows], columns["colours"][rows])
        yield FrameFeatures(index, found, None if np.isnan(camera).any() else camera)


def random_scene(seed: int) -> Iterator[FrameFeatures]:
    """Objects that come, go, turn, cross, hide, change class and are seen badly, by a camera that shakes."""
    rng = np.random.default_rng(seed)
    count = rng.integers(3, 40)
    position = rng.uniform(0, 1000, (count, 2))
    velocity, size = rng.normal(0, 6, (count, 2)), rng.uniform(20, 200, (count, 2))
    colours = rng.uniform(0, 255, (count, appearance.SIZE))
    class_id = rng.integers(0, 3, count)
    begin, end = rng.integers(0, 60, count), rng.integers(60, 150, count)
    for index in range(150):
        velocity += rng.normal(0, 0.7, velocity.shape)
        camera = np.column_stack([np.eye(2) + rng.normal(0, 0.002, (2, 2)), rng.normal(0, 3, 2)])
        position = (position + velocity) @ camera[:, :2].T + camera[:, 2]
        seen = (begin <= index) & (index < end) & (rng.random(count) < 0.85)
        corner = position + rng.normal(0, 2, position.shape)
        xyxy = np.concatenate([corner, corner + size + rng.normal(0, 3, size.shape)], axis=1)
        looks = colours + rng.normal(0, 8, colours.shape)
        looks[rng.random(count) < 0.1] = np.nan
        classes = np.where(rng.random(count) < 0.1, 3, class_id)
        found = Detections(
            xyxy[seen].astype(np.float32),
            rng.beta(3, 2, count)[seen].astype(np.float32),
            classes[seen],
            looks[seen].astype(np.float32),
        )
        yield FrameFeatures(index, found, camera if index else None)


def compare(frames: Iterator[FrameFeatures], thresholds: Thresholds = THRESHOLDS, buffer: int = 30) -> int:
    """Assert that both trackers give each detection the same id in each frame; return the number of tracks."""
    ours, theirs = TrackTrack(thresholds, buffer), UltralyticsTracker("tracktrack", thresholds, buffer)
    seen: set[int] = set()
    for frame in frames:
        got, expected = (
            dict(zip(chosen.tolist(), ids.tolist(), strict=True))
            for ids, chosen in (tracker.update(frame.detections, frame.camera) for tracker in (ours, theirs))
        )
        assert got == expected, f"frame {frame.index}"
        seen.update(got.values())
    return len(seen)


def test_street() -> None:
    assert compare(street()) > 40


@pytest.mark.parametrize("seed", range(8))
def test_random_scenes(seed: int) -> None:
    assert compare(random_scene(seed)) > 2


@pytest.mark.slow
def test_sample_clip(tmp_path: Path) -> None:
    video = tmp_path / "sample.mp4"
    make_sample(video, seconds=3.0)
    info = probe(video)
    stream = detection_stream(video, info, MotionDetector(info.fps), batch=4)
    assert compare(stream, Thresholds(high=0.3, low=0.1, new=0.3), round(info.fps)) > 2
