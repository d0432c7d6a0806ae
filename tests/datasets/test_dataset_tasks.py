"""Datasets of several tasks: one video in two of them, several people, videos that disappear, labels much alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from ml_backend.core.errors import ConfigError
from ml_backend.datasets.annotation_reader import AnnotationReader
from ml_backend.datasets.exporter import DatasetOptions, DatasetResult, export_dataset, plan_videos
from ml_backend.datasets.formats.annotations_json import export_annotations
from ml_backend.datasets.formats.coco import read_coco
from ml_backend.datasets.formats.cvat import read_cvat
from ml_backend.datasets.formats.mot import read_mot
from ml_backend.datasets.formats.yolo import read_yolo
from ml_backend.datasets.sampling import Sampling
from tests.datasets.builders import key, make_annotation, make_region, make_task, write_export
from tests.datasets.test_exporter import CAR, MOVING, TRAIN_ONLY, pictures, run
from tests.video.builders import make_video


def export(
    folder: Path, tasks: list[dict[str, Any]], options: DatasetOptions | None = None, **more: Any
) -> tuple[DatasetResult, AnnotationReader]:
    source = AnnotationReader.from_file(write_export(folder / "e.json", tasks), **more)
    return export_dataset(source, folder / "out", options or DatasetOptions(sampling=TRAIN_ONLY)), source


def parts(folder: Path) -> dict[str, set[str]]:
    """By the part, which pictures lie in it: ``v0 3`` also for the copy of another task."""
    found: dict[str, set[str]] = {}
    for path in (folder / "out" / "images").rglob("*.jpg"):
        video, _, frame = path.stem.rpartition("_")
        found.setdefault(path.parent.name, set()).add(f"{video.partition('-')[0]} {int(frame)}")
    return found


# -- one video in several tasks


@pytest.mark.parametrize("seed", range(4))
def test_tasks_with_one_video_lie_in_one_part(tmp_path: Path, seed: int) -> None:
    tasks = []
    for n in range(5):
        make_video(tmp_path / f"v{n}.mp4", frames=4)
        tasks += [make_task(f"v{n}.mp4", make_annotation(MOVING), task_id=10 * n + k) for k in (1, 2)]
    export(tmp_path, tasks, DatasetOptions(sampling=Sampling(split="video", ratio=(0.6, 0.2, 0.2), seed=seed)))
    found = parts(tmp_path)
    assert {split: len(names) for split, names in found.items()} == {"train": 12, "val": 4, "test": 4}
    assert len(set.union(*found.values())) == 20


@pytest.mark.parametrize("split", ["time", "ratio"])
def test_pictures_of_one_video_lie_in_one_part_for_all_tasks(tmp_path: Path, split: Any) -> None:
    """Also where the tasks have keyframes on different ones."""
    make_video(tmp_path / "v.mp4", frames=30)
    walks = [range(1, 31, 2), (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 29, 30), range(10, 31)]
    tasks = [
        make_task("v.mp4", make_annotation(make_region(*(key(n, n) for n in walk))), task_id=number)
        for number, walk in enumerate(walks, start=1)
    ]
    sampling = Sampling(keyframes=True, split=split, ratio=(0.5, 0.5, 0))
    export(tmp_path, tasks[:1], DatasetOptions(sampling=sampling))
    export(tmp_path, tasks, DatasetOptions(sampling=sampling))  # others come later
    found = parts(tmp_path)
    assert not found["train"] & found["val"]
    assert len(found["train"] | found["val"]) == 30
    if split == "time":
        assert max(int(name.split()[1]) for name in found["train"]) == 14


def test_few_videos_in_many_tasks_are_split_by_time(tmp_path: Path) -> None:
    make_video(tmp_path / "v.mp4", frames=10)
    tasks = [make_task("v.mp4", make_annotation(MOVING), task_id=n) for n in range(1, 7)]
    export(tmp_path, tasks, DatasetOptions(sampling=Sampling()))
    found = parts(tmp_path)
    assert {split: len(names) for split, names in found.items()} == {"train": 8, "val": 2}


# -- every annotator


@pytest.fixture
def two_people(tmp_path: Path) -> dict[str, Any]:
    make_video(tmp_path / "clip.mp4", frames=20)
    mine = make_annotation(MOVING, completed_by={"email": "anna@example.org"})
    others = make_annotation(MOVING, CAR, annotation_id=2, completed_by={"email": "ben@example.org"})
    return make_task("clip.mp4", mine, others)


READERS: dict[str, Any] = {"yolo-track": read_yolo, "coco": read_coco, "mot": read_mot, "cvat": read_cvat}


@pytest.mark.parametrize("name", READERS)
def test_every_annotator_has_a_version(tmp_path: Path, two_people: dict[str, Any], name: str) -> None:
    result, _ = export(tmp_path, [two_people], DatasetOptions(name, images=False), all_annotators=True)
    assert (result.videos, dict(result.boxes)) == (2, {"person": 40, "car": 10})
    assert result.names == ["clip-by-anna@example.org", "clip-by-ben@example.org"]
    tracks = sorted(len(video.read(320, 240).tracks) for video in READERS[name](tmp_path / "out"))
    assert tracks == [1, 2]


def test_a_prediction_is_nobodys_version(tmp_path: Path) -> None:
    make_video(tmp_path / "clip.mp4", frames=20)
    task = make_task("clip.mp4", predictions=[{"id": 1, "model_version": "yolo11n-1.base", "result": [MOVING]}])
    options = DatasetOptions("mot", images=False)
    result, _ = export(tmp_path, [task], options, all_annotators=True, predictions="missing")
    assert result.names == ["clip"]


def test_versions_of_one_video_lie_in_one_part(tmp_path: Path, two_people: dict[str, Any]) -> None:
    export(tmp_path, [two_people], DatasetOptions("yolo-track", Sampling()), all_annotators=True)
    found = parts(tmp_path)
    assert {split: len(names) for split, names in found.items()} == {"train": 16, "val": 4}


@pytest.mark.slow
def test_people_must_not_contradict_each_other_in_training(tmp_path: Path, two_people: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"is for training.*yolo-track, coco, mot, cvat"):
        export(tmp_path, [two_people], all_annotators=True)
    assert not (tmp_path / "out").exists()
    arguments = ("--from-json", "e.json", "--out", "out", "--all-annotators", "--format")
    assert "contradict" in run(*arguments, "yolo", cwd=tmp_path).stderr
    done = run(*arguments, "mot", "--no-images", cwd=tmp_path)
    assert json.loads(done.stdout.splitlines()[-1])["videos"] == 2, done.stderr


# -- videos that disappear


def test_a_video_that_has_disappeared_stays_in_the_dataset(tmp_path: Path) -> None:
    tasks = []
    for n in (1, 2):
        make_video(tmp_path / f"v{n}.mp4", frames=10)
        tasks.append(make_task(f"v{n}.mp4", make_annotation(MOVING), task_id=n))
    options = DatasetOptions(sampling=Sampling(split="time"), crops=True)
    export(tmp_path, tasks, options)
    content = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    (tmp_path / "v2.mp4").unlink()
    result, source = export(tmp_path, tasks, options)
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == content
    assert (result.videos, result.continued, dict(result.images)) == (2, 2, {"train": 16, "val": 4})
    assert [item.task_id for item in source.skipped] == [2]
    assert "is kept" in str(source.skipped[0])
    # What has been corrected since cannot be brought to its pictures: they go, and everything agrees on that.
    tasks[1]["annotations"][0]["result"] = [CAR]
    result, source = export(tmp_path, tasks, options)
    assert (result.videos, dict(result.images)) == (1, {"train": 8, "val": 2})
    assert "is kept" not in str(source.skipped[0])
    assert {path.name.partition("_")[0] for path in (tmp_path / "out").rglob("v?_*")} == {"v1"}


def test_classes_of_a_video_that_has_disappeared(tmp_path: Path) -> None:
    """Further classes do not matter, others in place of the old ones do; data.yaml has what there is."""
    for n in (1, 2):
        make_video(tmp_path / f"v{n}.mp4", frames=10)
    first = make_task("v1.mp4", make_annotation(MOVING), task_id=1)
    second = make_task("v2.mp4", make_annotation(CAR), task_id=2)
    export(tmp_path, [first])
    (tmp_path / "v1.mp4").unlink()
    result, _ = export(tmp_path, [first, second])
    assert (result.videos, result.classes) == (2, ("person", "car"))
    result, _ = export(tmp_path, [second, first])
    assert (result.videos, result.classes) == (1, ("car", "person"))
    assert {name[:2] for name in pictures(tmp_path / "out")} == {"v2"}
    assert yaml.safe_load((tmp_path / "out" / "data.yaml").read_text())["names"] == {0: "car", 1: "person"}


@pytest.mark.slow
def test_the_script_says_what_was_kept(tmp_path: Path) -> None:
    make_video(tmp_path / "clip.mp4", frames=5)
    write_export(tmp_path / "e.json", [make_task("clip.mp4", make_annotation(MOVING))])
    arguments = ("--format", "yolo", "--from-json", "e.json", "--out", "out")
    assert run(*arguments, cwd=tmp_path).returncode == 0
    (tmp_path / "clip.mp4").unlink()
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    assert "is kept" in done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert (summary["videos"], summary["unchanged"], summary["skipped"]) == (1, 1, 1)
    assert sum(summary["pictures"].values()) == 5


# -- labels


def test_crops_of_labels_that_are_much_alike(tmp_path: Path) -> None:
    make_video(tmp_path / "clip.mp4", frames=5)
    labels = ["a/b", "a:b", "a_b", "A_b", "...", "c"]
    regions = [
        make_region(key(1, 10 * n), label=label, region_id=label, frames_count=5) for n, label in enumerate(labels)
    ]
    task = make_task("clip.mp4", make_annotation(*regions))
    export(tmp_path, [task], DatasetOptions(sampling=Sampling(5, split="time", ratio=(1, 0, 0)), crops=True))
    crops = tmp_path / "out" / "crops" / "train"
    assert sorted(path.name for path in crops.iterdir()) == ["A_b-3", "a_b", "a_b-1", "a_b-2", "c", "video"]
    assert all(len(list(folder.iterdir())) == 1 for folder in crops.iterdir())


# -- one object in several tasks


def known(number: int | None, region_id: str, start: int = 1) -> dict[str, Any]:
    """A track from frame ``start`` on; with a global id."""
    keys = key(start, 5.0), key(start + 4, 15.0, False)
    return make_region(*keys, region_id=region_id, **({"meta": {"global_id": number}} if number else {}))


def test_global_ids_are_exported_on_request(tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_video(tmp_path / f"{name}.mp4", frames=10)
    lost = {"id": 9, "model_version": "yolo.base", "result": [known(40, "r2")]}  # its annotation has lost it
    tasks = [
        make_task("a.mp4", make_annotation(known(None, "r1"), known(7, "r2"), known(7, "r3", 6)), task_id=1),
        make_task("b.mp4", make_annotation(known(7, "r1"), known(None, "r2"), known(7, "r3")), task_id=2)
        | {"predictions": [lost]},
    ]
    plain = tmp_path / "plain"
    plain.mkdir()
    for folder in (plain, tmp_path):
        for name in ("a", "b"):
            if folder == plain:
                make_video(plain / f"{name}.mp4", frames=10)
        options = DatasetOptions("mot", images=False, global_ids=folder == tmp_path)
        export(folder, tasks, options)

    def ids(folder: Path, name: str) -> list[int]:
        lines = (folder / "out" / "train" / name / "gt" / "gt.txt").read_text().splitlines()
        return sorted({int(line.split(",")[1]) for line in lines})

    assert (ids(plain, "a"), ids(plain, "b")) == ([1, 2, 3], [1, 2, 3])
    # 40 is the largest one: the others follow, those of each video after those of the one before. Two that are visible
    # at once are not one.
    assert (ids(tmp_path, "a"), ids(tmp_path, "b")) == ([7, 41], [7, 40, 46])
    source = AnnotationReader.from_file(tmp_path / "e.json")
    export_dataset(source, tmp_path / "coco", DatasetOptions("coco", TRAIN_ONLY, images=False, global_ids=True))
    found = json.loads((tmp_path / "coco" / "annotations" / "instances_train.json").read_text())["annotations"]
    assert {item.get("global_id") for item in found} == {None, 7, 40}
    assert len({item["track_id"] for item in found}) == 6
    export_annotations(source, tmp_path / "rows.json", with_ids=True, global_ids=True)
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert {row.get("global_id") for row in rows} == {None, 7, 40}
    export_annotations(source, tmp_path / "rows.json")
    assert not any("global_id" in row for row in json.loads((tmp_path / "rows.json").read_text()))
    with pytest.raises(ConfigError, match="no global ids"):
        export_dataset(source, tmp_path / "yolo", DatasetOptions("yolo", global_ids=True))


def test_global_ids_of_one_task_do_not_depend_on_other_tasks(tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_video(tmp_path / f"{name}.mp4", frames=10)
    lost = {"id": 9, "model_version": "yolo.base", "result": [known(40, "r2")]}
    tasks = [
        make_task("a.mp4", make_annotation(known(50, "r1")), task_id=1),
        make_task("b.mp4", make_annotation(known(None, "r1"), known(None, "r2")), task_id=2) | {"predictions": [lost]},
    ]
    options = DatasetOptions("coco", TRAIN_ONLY, global_ids=True)

    def exported() -> tuple[int, set[int | None]]:
        result, _ = export(tmp_path, tasks, options)
        found = json.loads((tmp_path / "out" / "annotations" / "instances_train.json").read_text())["annotations"]
        return result.continued, {item.get("global_id") for item in found}

    assert exported() == (0, {None, 40, 50})
    tasks[0]["annotations"][0]["result"].append(known(60, "r2"))
    assert exported() == (1, {None, 40, 50, 60}), "the second video stays as it is"
    lost["result"] = [known(41, "r2")]
    assert exported() == (1, {None, 41, 50, 60}), "a number that only the prediction has"


def test_global_ids_are_not_counted_unless_they_are_asked_for(tmp_path: Path) -> None:
    tasks = [make_task(f"{name}.mp4", make_annotation(known(7, "r1")), task_id=n) for n, name in enumerate("ab", 1)]
    source = AnnotationReader.from_file(write_export(tmp_path / "e.json", tasks))
    for asked, first_ids in ((True, [7, 8]), (False, [0, 0])):
        plan, _ = plan_videos(source, TRAIN_ONLY, True, unique_ids=asked)
        assert [video.first_id for video in plan] == first_ids
