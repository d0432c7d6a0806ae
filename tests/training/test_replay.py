"""Which frames of videos without annotations a training replays."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import cv2
import pytest

from ml_backend.core.files import file_sha256
from ml_backend.datasets.annotation_reader import AnnotationReader
from ml_backend.label_studio.label_config import parse_label_config
from ml_backend.training import replay
from ml_backend.training.replay import Replay, sample_replay
from tests.builders import label_config
from tests.datasets.builders import key, make_annotation, make_region, make_task, write_export
from tests.video.builders import make_video, read_number

ANNOTATION = make_annotation(make_region(key(1, 10), label="person"))


def sample(folder: Path, *tasks: dict[str, Any], annotated: tuple[str, ...] = ()) -> Replay:
    config = parse_label_config(label_config("person"))
    reader = AnnotationReader.from_file(write_export(folder / "e.json", tasks), config=config)
    return sample_replay(reader, folder / "replay", annotated, 64)


@pytest.fixture
def tasks(tmp_path: Path) -> list[dict[str, Any]]:
    """One annotated and two other videos of 100 frames that show their number."""
    for name in "abc":
        make_video(tmp_path / f"{name}.mp4", frames=100, size=(160, 120))
    return [make_task("a.mp4", ANNOTATION, task_id=1), make_task("b.mp4", task_id=2), make_task("c.mp4", task_id=3)]


def test_videos_without_annotations_are_sampled_over_their_time(tmp_path: Path, tasks: list[dict[str, Any]]) -> None:
    found = sample(tmp_path, *tasks)
    assert len(found.images) == replay.MAX_IMAGES
    assert found.notes == ()
    by_video = {image.parent for image in found.images}
    assert len(by_video) == 2
    for video in by_video:
        frames = [int(image.stem) for image in found.images if image.parent == video]
        assert (len(frames), min(frames), max(frames)) == (32, 1, 98)
    image = cv2.imread(str(found.images[0]))
    assert image.shape == (48, 64, 3)
    assert read_number(cv2.resize(image, (160, 120), interpolation=cv2.INTER_NEAREST)) == int(found.images[0].stem)


def test_without_other_videos_there_is_nothing_to_replay(tmp_path: Path, tasks: list[dict[str, Any]]) -> None:
    assert sample(tmp_path, tasks[0]) == Replay((), ())


def test_what_people_have_annotated_elsewhere_is_not_replayed(tmp_path: Path, tasks: list[dict[str, Any]]) -> None:
    shutil.copyfile(tmp_path / "a.mp4", tmp_path / "copy of a.mp4")
    twice = make_task("a.mp4", task_id=8)
    copy = make_task("copy of a.mp4", task_id=9)
    found = sample(tmp_path, tasks[0], twice, copy, annotated=(file_sha256(tmp_path / "a.mp4"),))
    assert found.images == ()


def test_images_are_used_again_and_removed_with_their_task(tmp_path: Path, tasks: list[dict[str, Any]]) -> None:
    first = sample(tmp_path, *tasks)
    for name in "bc":
        (tmp_path / f"{name}.mp4").unlink()
    assert sample(tmp_path, *tasks) == first
    make_video(tmp_path / "b.mp4", frames=100, size=(160, 120))
    fewer = sample(tmp_path, *tasks[:2])
    assert len(fewer.images) == replay.MAX_IMAGES
    assert len(list((tmp_path / "replay").iterdir())) == 1


def test_a_video_that_cannot_be_read_is_left_out(tmp_path: Path, tasks: list[dict[str, Any]]) -> None:
    (tmp_path / "b.mp4").write_bytes(b"no video")
    found = sample(tmp_path, *tasks)
    assert len(found.images) == 32
    assert len(found.notes) == 1
    assert "b.mp4" in found.notes[0]


def test_many_videos_are_not_all_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "MAX_VIDEOS", 2)
    monkeypatch.setattr(replay, "MAX_IMAGES", 7)
    tasks = [make_task(f"{n}.mp4", task_id=n) for n in range(4)]
    for n in range(4):
        make_video(tmp_path / f"{n}.mp4", frames=10 + n, size=(160, 120))
    found = sample(tmp_path, *tasks)
    assert len(found.images) == 6
    assert sample(tmp_path, *reversed(tasks)) == found
