"""The demo clip: what it claims to show is what is to be seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from ml_backend.core.boxes import iou_matrix
from ml_backend.core.types import Track
from ml_backend.video.probe import probe
from ml_backend.video.reader import read_frames
from ml_backend.video.sample import SampleTruth, make_sample
from ml_backend.video.transcode import plan_transcode


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SampleTruth]:
    path = tmp_path_factory.mktemp("sample") / "sample.mp4"
    return path, make_sample(path)


def box_at(track: Track, frame: int, *, visible: float = 0.0) -> np.ndarray[Any, Any] | None:
    """The truth's box on a frame where at least so much of the object is to be seen."""
    at = np.flatnonzero(track.frames == frame)
    return track.xyxy[at[0]] if len(at) and track.conf[at[0]] >= visible else None


@pytest.mark.slow
def test_the_file_is_as_described(clip: tuple[Path, SampleTruth]) -> None:
    path, truth = clip
    info = probe(path)
    assert (info.width, info.height, info.frames, info.fps) == (1280, 720, 200, 25.0)
    assert (truth.width, truth.height, truth.frames, truth.fps) == (1280, 720, 200, 25.0)
    assert plan_transcode(path).action == "keep"
    assert path.stat().st_size < 3_000_000


def test_the_truth_is_well_formed(clip: tuple[Path, SampleTruth]) -> None:
    _, truth = clip
    assert sorted(str(track.label) for track in truth.tracks) == ["bus", "person", "person", "person", "person"]
    assert len({track.track_id for track in truth.tracks}) == len(truth.tracks)
    for track in truth.tracks:
        assert np.all(np.diff(track.frames) == 1), "nobody disappears in between"
        assert np.all(track.xyxy[:, 2:] > track.xyxy[:, :2])
        assert np.all(track.xyxy >= 0)
        assert np.all(track.xyxy <= [1280, 720, 1280, 720])
        assert np.all((track.conf >= 0) & (track.conf <= 1))
        assert track.frames[0] > 0, "the first frame is empty, for background subtraction"
    leaving = [track for track in truth.tracks if track.frames[-1] < truth.frames - 1]
    assert len(leaving) >= 3
    hidden = [track for track in truth.tracks if track.conf[5:-5].min() < 0.5 and track.label == "person"]
    assert hidden, "somebody walks behind somebody else"


def test_what_moves_lies_inside_the_boxes_and_fills_them(clip: tuple[Path, SampleTruth]) -> None:
    path, truth = clip
    frames = {frame.index: frame.image.astype(np.int16) for frame in read_frames(path) if frame.index % 20 == 0}
    for number, image in frames.items():
        moved = (np.abs(image - frames[0]).max(axis=2) > 40).astype(np.uint8)
        moved = cv2.morphologyEx(moved, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
        inside = np.zeros_like(moved)
        for track in truth.tracks:
            box = box_at(track, number)
            if box is None:
                continue
            left, top, right, bottom = box.astype(int)
            inside[max(0, top - 3) : bottom + 3, max(0, left - 3) : right + 3] = 1
            if box_at(track, number, visible=0.95) is not None:
                ys, xs = np.nonzero(moved[top:bottom, left:right])
                seen = np.array([[left + xs.min(), top + ys.min(), left + xs.max() + 1, top + ys.max() + 1]])
                assert iou_matrix(box[None].astype(np.float32), seen.astype(np.float32))[0, 0] > 0.85
        # Outside are only shadows at the feet, and slivers of what is about to leave.
        assert np.count_nonzero(moved & (1 - inside)) < 0.06 * np.count_nonzero(moved) + 20


@pytest.mark.slow
def test_same_arguments_same_pictures(tmp_path: Path) -> None:
    made = [
        make_sample(tmp_path / f"{n}.mp4", seconds=1, size=(640, 360), seed=seed) for n, seed in enumerate((3, 3, 4))
    ]
    first, again, other = (list(read_frames(tmp_path / f"{n}.mp4")) for n in range(3))
    assert all(np.array_equal(a.image, b.image) for a, b in zip(first, again, strict=True))
    assert any(not np.array_equal(a.image, b.image) for a, b in zip(first, other, strict=True))
    for one, two in zip(made[0].tracks, made[1].tracks, strict=True):
        np.testing.assert_array_equal(one.xyxy, two.xyxy)


def test_other_sizes_and_lengths(tmp_path: Path) -> None:
    truth = make_sample(tmp_path / "small.mp4", seconds=2, fps=10, size=(320, 180))
    info = probe(tmp_path / "small.mp4")
    assert (info.width, info.height, info.frames, info.fps) == (320, 180, 20, 10.0)
    assert all(np.all(track.xyxy <= [320, 180, 320, 180]) for track in truth.tracks)


def test_yolo_finds_what_is_there(clip: tuple[Path, SampleTruth], yolo_weights: Path) -> None:
    from ultralytics import YOLO

    path, truth = clip
    model = YOLO(str(yolo_weights))
    wanted: dict[int, int] = {}
    found: dict[int, int] = {}
    for frame in read_frames(path):
        if frame.index % 10:
            continue
        boxes = model(frame.image, conf=0.25, verbose=False)[0].boxes
        names = np.array([model.names[int(number)] for number in boxes.cls])
        for track in truth.tracks:
            box = box_at(track, frame.index, visible=0.6)
            if box is None:
                continue
            wanted[track.track_id] = wanted.get(track.track_id, 0) + 1
            same = boxes.xyxy.numpy()[names == track.label]
            hit = len(same) > 0 and iou_matrix(box[None], same).max() >= 0.5
            found[track.track_id] = found.get(track.track_id, 0) + bool(hit)
    assert sum(wanted.values()) > 40
    for track_id, number in wanted.items():
        assert found[track_id] >= 0.9 * number, f"track {track_id}: {found[track_id]} of {number}"
