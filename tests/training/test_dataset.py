"""Datasets for training: what is measured is never trained on, pictures are the decoded ones, what is done stays."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml

from ml_backend.core.errors import ConfigError, Interrupted, StorageError
from ml_backend.datasets.annotation_reader import AnnotationReader
from ml_backend.db.storage import Storage
from ml_backend.label_studio.label_config import parse_label_config
from ml_backend.labeling.few_shot.pattern_store import video_key
from ml_backend.training import frame_selection
from ml_backend.training.dataset import FrameSelectionPlan, NothingToTrain, TrainingDataset, build_dataset
from ml_backend.training.splits import HELD_OUT, TRAIN, Split, SplitStore
from tests.builders import ROOT, label_config, make_tiny_yolo, wait_for
from tests.datasets.builders import UPLOAD, key, make_annotation, make_region, make_task, write_export
from tests.video.builders import make_video, read_number
from tests.video.test_reader import damage

FRAMES = 100


def thing(*keys: dict[str, Any], label: str = "person", region_id: str = "r1", **changes: Any) -> dict[str, Any]:
    """A region on a video of 100 frames; visible to the end unless the last key says otherwise."""
    return make_region(*keys, label=label, region_id=region_id, frames_count=FRAMES, **changes)


WALKER = thing(key(1, 10), key(FRAMES, 60))


@dataclass
class Project:
    """A project on disk: videos, tasks, label config, and what has been decided about its parts."""

    folder: Path
    labels: tuple[str, ...] = ("person", "car")

    def video(self, name: str, frames: int = FRAMES, **changes: Any) -> Path:
        return make_video(self.folder / name, frames=frames, size=(160, 120), **changes)

    def videos(self, count: int, *regions: dict[str, Any]) -> list[dict[str, Any]]:
        """Tasks of different videos with the same regions."""
        tasks = []
        for n in range(count):
            self.video(f"v{n}.mp4", FRAMES + n)
            tasks.append(make_task(f"v{n}.mp4", make_annotation(*(regions or [WALKER])), task_id=n + 1))
        return tasks

    @property
    def out(self) -> Path:
        return self.folder / "dataset"

    @property
    def store(self) -> SplitStore:
        return SplitStore(Storage(f"sqlite:///{self.folder / 'db.sqlite3'}"))

    def source(self, tasks: Sequence[dict[str, Any]], **options: Any) -> AnnotationReader:
        config = parse_label_config(label_config(*self.labels))
        path = write_export(self.folder / "e.json", tasks)
        return AnnotationReader.from_file(path, config=config, **options)

    def build(self, *tasks: dict[str, Any], should_stop: Any = None, **plan: Any) -> TrainingDataset:
        source = self.source(tasks)
        return build_dataset(source, self.out, self.store, 1, FrameSelectionPlan(**plan), should_stop=should_stop)

    def listed(self, part: str) -> list[tuple[str, int]]:
        """(task, frame) of each line of a list."""
        lines = (self.out / f"{part}.txt").read_text().splitlines()
        assert all((self.out / line).is_file() for line in lines)
        return [(Path(line).stem[:-7], int(Path(line).stem[-6:])) for line in lines]

    def label(self, task: str, frame: int) -> list[str]:
        [path] = (self.out / "labels").glob(f"*/{task}_{frame:06d}.txt")
        return path.read_text().splitlines()

    @property
    def held_out(self) -> list[dict[str, Any]]:
        videos: list[dict[str, Any]] = json.loads((self.out / "held_out.json").read_text())["videos"]
        return videos

    def files(self) -> dict[str, int]:
        """When each picture and label was written."""
        return {
            str(path.relative_to(self.out)): path.stat().st_mtime_ns
            for folder in ("images", "labels")
            for path in (self.out / folder).rglob("*.*")
        }


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


@pytest.fixture
def clip(project: Project) -> dict[str, Any]:
    project.video("clip.mp4")
    return make_task("clip.mp4", make_annotation(WALKER))


# -- one video


def test_the_only_video_is_trained_on_watched_and_measured(project: Project, clip: dict[str, Any]) -> None:
    data = project.build(clip)
    assert (data.classes, data.trained_classes, data.tracks) == (("person", "car"), ("person",), 1)
    assert data.annotations == {1: 1}
    train, val = project.listed("train"), project.listed("val")
    assert data.images == {"train": len(train), "val": len(val)}
    assert data.boxes == {"person": len(train)}
    assert len(train) > 20
    assert len(val) > 5
    uses = Split("blocks").uses(np.arange(FRAMES) / 30)
    measured = np.flatnonzero(uses == HELD_OUT)
    assert all(uses[frame] == TRAIN for _, frame in train)
    assert min(abs(frame - measured).min() for _, frame in train) >= 2  # a tenth of twenty frames
    [video] = project.held_out
    assert (video["name"], video["task_id"]) == ("task-1", 1)
    assert video["uri"] == UPLOAD.format("clip.mp4")
    [[first, last]] = video["spans"]
    assert set(range(first, last + 1)) <= set(measured.tolist())
    assert last - first >= 17
    assert set(video["pictures"]) <= set(range(first, last + 1))
    for frame, track, number, *box in video["boxes"]:
        left = 160 * (0.1 + 0.5 * frame / (FRAMES - 1))
        assert (track, number) == (1, 0)
        assert box == pytest.approx([left, 12, left + 32, 48], abs=0.02)
    assert [row[0] for row in video["boxes"]] == list(range(first, last + 1))
    described = yaml.safe_load(data.data_yaml.read_text())
    assert described == {
        "path": str(project.out),
        "train": "train.txt",
        "val": "val.txt",
        "names": {0: "person", 1: "car"},
    }
    assert any('"car"' in note for note in data.notes)


def test_pictures_are_the_decoded_ones(project: Project, clip: dict[str, Any]) -> None:
    project.build(clip)
    paths = list((project.out / "images").rglob("*.jpg"))
    assert {read_number(cv2.imread(str(path))) for path in paths} == {int(path.stem[-6:]) for path in paths}
    for task, frame in project.listed("train"):
        [line] = project.label(task, frame)
        assert [float(v) for v in line.split()] == pytest.approx(
            [0, 0.2 + 0.5 * frame / (FRAMES - 1), 0.25, 0.2, 0.3], abs=1e-3
        )


def test_where_objects_are_decides_where_the_blocks_are(project: Project, clip: dict[str, Any]) -> None:
    clip["annotations"][0]["result"] = [thing(key(1, 10), key(40, 10, enabled=False))]
    data = project.build(clip)
    assert data.boxes["person"] > 5
    assert len(project.held_out[0]["boxes"]) > 5
    # Nothing to watch lies elsewhere: some pictures of the part that is trained on are for that.
    assert any(project.label(*picture) for picture in project.listed("val"))
    assert not set(project.listed("val")) & set(project.listed("train"))


def test_hidden_objects(project: Project, clip: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_selection, "_NEGATIVE_SHARE", 5)
    hidden = thing(key(1, 10), key(11, 10, enabled=False), key(21, 10), key(46, 10, enabled=False), key(51, 10))
    clip["annotations"][0]["result"] = [hidden]
    project.build(clip)
    gone = {*range(11, 20), *range(46, 50)}  # the last keyframe itself is still shown
    for task, frame in project.listed("train"):
        assert bool(project.label(task, frame)) == (frame not in gone)
    rows = {row[0] for row in project.held_out[0]["boxes"]}
    [[first, last]] = project.held_out[0]["spans"]
    assert rows == set(range(first, last + 1)) - gone
    assert gone & set(range(first, last + 1))


def test_negatives_are_few(project: Project, clip: dict[str, Any]) -> None:
    clip["annotations"][0]["result"] = [thing(key(1, 10), key(50, 10, enabled=False))]
    project.build(clip)
    pictures = project.listed("train") + project.listed("val")
    empty = [picture for picture in pictures if not project.label(*picture)]
    assert 1 <= len(empty) <= 0.2 * (len(pictures) - len(empty)) + 1


def test_many_pictures_are_thinned_evenly(
    project: Project, clip: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frame_selection, "_MAX_FRAMES", 12)
    data = project.build(clip)
    assert data.images["train"] + data.images["val"] == 12
    frames = sorted(frame for part in ("train", "val") for _, frame in project.listed(part))
    assert frames[-1] > 90
    assert max(np.diff(frames)) < 40


# -- several videos


@pytest.mark.slow
def test_whole_videos_are_held_out_and_stay_so(project: Project) -> None:
    tasks = project.videos(10)
    project.build(*tasks[:3])
    [held] = project.held_out
    assert {task for part in ("train", "val") for task, _ in project.listed(part)} == {
        f"task-{n}" for n in (1, 2, 3)
    } - {held["name"]}
    assert len(held["spans"]) == 4
    project.build(*tasks)
    videos = project.held_out
    assert len(videos) == 2
    assert held in videos
    names = {video["name"] for video in videos}
    assert not names & {task for part in ("train", "val") for task, _ in project.listed(part)}
    assert not [path for path in (project.out / "images").rglob("*.jpg") if path.stem[:-7] in names]
    for task, frame in project.listed("train"):
        watched = [other for name, other in project.listed("val") if name == task]
        assert not watched or min(abs(frame - other) for other in watched) >= 2


@pytest.mark.slow
def test_tasks_on_one_video_share_its_part(project: Project) -> None:
    """Also where the same file was uploaded twice."""
    tasks = project.videos(4)
    for n, task in enumerate(tasks[:4], start=11):
        copy = make_task("x", make_annotation(WALKER, annotation_id=n), task_id=n)
        copy["data"]["video"] = task["data"]["video"]
        tasks.append(copy)
    for n in range(4):
        shutil.copy(project.folder / f"v{n}.mp4", project.folder / f"again{n}.mp4")
        tasks.append(make_task(f"again{n}.mp4", make_annotation(WALKER), task_id=n + 21))
    data = project.build(*tasks)
    held = {video["task_id"] for video in project.held_out}
    trained = {int(task[5:]) for part in ("train", "val") for task, _ in project.listed(part)}
    assert len(held) == 3
    assert {number % 10 for number in held} == {min(held)}
    assert trained == set(data.annotations) - {min(held), min(held) + 10, min(held) + 20}


@pytest.mark.slow
def test_another_process_decides_first(project: Project) -> None:
    tasks = project.videos(3)

    class Late(SplitStore):
        def add(self, project_id: int, decided: Mapping[str, Split]) -> bool:
            others = dict.fromkeys(sorted(decided)[1:], Split("train")) | {min(decided): Split("held_out")}
            project.store.add(project_id, others)
            return super().add(project_id, decided)

    late = Late(Storage(f"sqlite:///{project.folder / 'db.sqlite3'}"))
    build_dataset(project.source(tasks), project.out, late, 1, FrameSelectionPlan())
    first = min(tasks, key=lambda task: video_key(task["data"]["video"]))
    assert [video["task_id"] for video in project.held_out] == [first["id"]]


def test_an_empty_task_shows_what_is_nothing(project: Project, clip: dict[str, Any]) -> None:
    project.video("empty.mp4", 105)
    project.video("clip.mp4")
    empty = make_task("empty.mp4", make_annotation(annotation_id=5), task_id=5)
    beside = make_task("clip.mp4", make_annotation(annotation_id=6), task_id=6)
    data = project.build(clip, empty, beside)
    pictures = project.listed("train") + project.listed("val")
    assert Counter(task for task, _ in pictures)["task-5"] == 20
    assert not any(project.label(task, frame) for task, frame in pictures if task == "task-5")
    # Somebody else has found objects there.
    assert "task-6" not in {task for task, _ in pictures}
    assert set(data.annotations) == {1, 5, 6}


@pytest.mark.slow
def test_what_is_measured_is_limited(project: Project) -> None:
    tasks = project.videos(12)
    car = thing(key(1, 0, width=5), label="car", region_id="r2")
    project.build(*tasks, held_out_frames=60)
    spans = {video["name"]: video["spans"] for video in project.held_out}
    assert len(spans) == 2  # one of each, rather than two of one
    assert sum(last - first + 1 for found in spans.values() for first, last in found) <= 60
    # A label that is in few spans is measured before others are measured once more.
    held = [video["task_id"] for video in project.held_out]
    for n, task in enumerate(tasks, start=1):
        if n == held[0] or n not in held:
            task["annotations"][0]["result"] = [WALKER, car]
    project.build(*tasks, held_out_frames=30)
    assert {row[2] for video in project.held_out for row in video["boxes"]} == {0, 1}


# -- labels


def test_objects_of_a_renamed_label_are_neither_taught_nor_background(project: Project, clip: dict[str, Any]) -> None:
    old = thing(key(11, 0), key(21, 0, enabled=False), key(44, 0), key(46, 0, enabled=False), label="lorry")
    nameless = thing(key(71, 0), key(75, 0, enabled=False), label="", region_id="r3")
    clip["annotations"][0]["result"] = [WALKER, {**old, "id": "r2"}, nameless]
    data = project.build(clip)
    out = {*range(10, 21), *range(43, 46), *range(70, 75)}
    frames = {frame for part in ("train", "val") for _, frame in project.listed(part)}
    assert len(frames) > 20
    assert not frames & out
    [video] = project.held_out
    assert not {n for first, last in video["spans"] for n in range(first, last + 1)} & out
    [note] = [note for note in data.notes if "lorry" in note]
    assert '1 × "lorry"' in note
    assert "without label" in note
    assert "back" in note
    assert data.tracks == 1


def test_label_config_changes(project: Project, clip: dict[str, Any]) -> None:
    """Pictures stay; the labels' numbers are the new ones."""
    first = project.build(clip)
    images = {name: when for name, when in project.files().items() if name.startswith("images")}
    project.labels = ("dog", "person")
    second = project.build(clip)
    assert second.classes == ("dog", "person")
    assert second.digest != first.digest
    assert {line[:2] for picture in project.listed("train") for line in project.label(*picture)} == {"1 "}
    assert {name: when for name, when in project.files().items() if name.startswith("images")} == images
    assert {row[2] for row in project.held_out[0]["boxes"]} == {1}


def test_one_class(project: Project, clip: dict[str, Any]) -> None:
    project.labels = ("person",)
    data = project.build(clip)
    assert (data.classes, data.trained_classes, data.notes) == (("person",), ("person",), ())


def test_what_a_label_was_detected_as(project: Project, clip: dict[str, Any]) -> None:
    """A corrected region may have lost what its prediction said."""
    seen = [{**WALKER, "id": f"p{n}", "meta": {"original_class": name}} for n, name in enumerate(("dog", "man", "man"))]
    clip["predictions"] = [{"id": 1, "result": seen}]
    corrected = [{**item, "meta": None, "origin": "prediction-changed"} for item in seen[1:]]
    clip["annotations"][0]["result"] = [seen[0], *corrected, WALKER]
    assert project.build(clip).start_from == {"person": "man"}


# -- weights


def test_corrected_objects_are_shown_twice(project: Project, clip: dict[str, Any]) -> None:
    second = thing(key(1, 70), key(31, 70, enabled=False), region_id="r2")
    clip["annotations"][0]["result"] = [WALKER, second]
    plain = project.build(clip)
    assert len(set(project.listed("train"))) == len(project.listed("train"))
    data = project.build(clip, hard={1: frozenset({"r2", "gone"}), 9: frozenset({"r1"})})
    counts = Counter(project.listed("train"))
    assert {frame for (_, frame), count in counts.items() if count == 2} == {f for _, f in counts if f <= 30}
    assert set(counts.values()) == {1, 2}
    assert data.images == plain.images
    assert data.digest != plain.digest
    assert data.held_out_digest == plain.held_out_digest


# -- again


@pytest.mark.slow
def test_what_has_not_changed_is_not_read_again(project: Project) -> None:
    tasks = project.videos(4)
    first = project.build(*tasks)
    before = project.files()
    again = project.build(*tasks)
    assert project.files() == before
    assert again == first
    trained = sorted({int(task[5:]) for task, _ in project.listed("train")})
    changed = trained[0]
    tasks[changed - 1]["annotations"][0]["result"] = [thing(key(1, 20), key(FRAMES, 20))]
    second = project.build(*tasks)
    assert second.digest != first.digest
    assert second.held_out_digest == first.held_out_digest
    kept = {name: when for name, when in before.items() if f"task-{changed}_" not in name}
    assert kept.items() <= project.files().items()
    images = {name: when for name, when in before.items() if name.startswith("images")}
    assert len(images.items() & project.files().items()) > 0.9 * len(images)
    # Another video before the others: their files keep their names.
    removed = trained[1]
    third = project.build(*[task for task in tasks if task["id"] != removed])
    assert not [name for name in project.files() if f"task-{removed}_" in name]
    assert third.annotations.keys() == {1, 2, 3, 4} - {removed}
    assert project.build(*tasks).digest == second.digest


def test_only_what_counts_changes_the_digest(project: Project) -> None:
    tasks = project.videos(3)
    first = project.build(*tasks)
    tasks[0]["annotations"][0]["completed_by"] = 7
    tasks[0]["annotations"][0]["id"] = 99
    tasks[1]["annotations"].append(make_annotation(annotation_id=50, was_cancelled=True))
    again = project.build(*tasks)
    assert again.digest == first.digest
    assert again.annotations[1] == 99
    held = project.held_out[0]["task_id"]
    tasks[held - 1]["annotations"][0]["result"] = [thing(key(1, 0), key(FRAMES, 0))]
    other = project.build(*tasks)
    assert other.held_out_digest != first.held_out_digest
    assert other.digest != first.digest


def test_ground_truth_counts_first(project: Project, clip: dict[str, Any]) -> None:
    clip["annotations"] = [
        make_annotation(thing(key(1, 0), label="car"), annotation_id=3, ground_truth=True),
        make_annotation(WALKER, annotation_id=4),
    ]
    data = project.build(clip)
    assert (data.trained_classes, data.annotations) == (("car",), {1: 3})


def test_a_video_that_is_gone(project: Project) -> None:
    tasks = project.videos(4)
    first = project.build(*tasks)
    gone = next(int(task[5:]) for task, _ in project.listed("train"))
    path = project.folder / f"v{gone - 1}.mp4"
    path.rename(project.folder / "elsewhere")
    data = project.build(*tasks)
    assert any(path.name in note for note in data.notes)
    assert data.annotations.keys() == {1, 2, 3, 4} - {gone}
    assert f"task-{gone}" not in {task for part in ("train", "val") for task, _ in project.listed(part)}
    (project.folder / "elsewhere").rename(path)
    assert project.build(*tasks).digest == first.digest
    for task in tasks:
        (project.folder / f"v{task['id'] - 1}.mp4").unlink()
    with pytest.raises(NothingToTrain, match=r"can be read.*v0\.mp4"):
        project.build(*tasks)


def test_the_end_of_a_video_is_damaged(project: Project, clip: dict[str, Any]) -> None:
    path = project.folder / "clip.mp4"
    damage(make_video(path, frames=FRAMES, size=(160, 120), options={"bf": "0", "g": "10"}), slice(50, None))
    data = project.build(clip)
    frames = [frame for part in ("train", "val") for _, frame in project.listed(part)]
    assert max(frames) < 50
    assert data.images["val"] > 0
    [video] = project.held_out
    assert video["spans"] == [[41, 49]]
    assert {row[0] for row in video["boxes"]} == set(range(41, 50))


@pytest.mark.slow
def test_stopping_and_going_on(project: Project) -> None:
    tasks = project.videos(3)
    calls = 0

    def later() -> bool:
        nonlocal calls
        calls += 1
        return calls > 40

    with pytest.raises(Interrupted):
        project.build(*tasks, should_stop=lambda: True)
    with pytest.raises(Interrupted):
        project.build(*tasks, should_stop=later)
    assert calls > 40
    data = project.build(*tasks)
    fresh = Project(project.folder / "fresh")
    fresh.folder.mkdir()
    assert fresh.build(*fresh.videos(3)).digest == data.digest


def in_a_process(project: Project, before: str = "") -> list[str]:
    code = (
        "import sys; from pathlib import Path; from tests.training.test_dataset import Project; import json\n"
        "folder = Path(sys.argv[1]); project = Project(folder); tasks = json.loads((folder / 'e.json').read_text())\n"
        f"{before}\nproject.build(*tasks, per_second=100)\n"
    )
    return [sys.executable, "-c", code, str(project.folder)]


@pytest.mark.slow
def test_killed_and_going_on(project: Project, clip: dict[str, Any]) -> None:
    make_video(project.folder / "clip.mp4", frames=200, size=(960, 540), options={"preset": "ultrafast"})
    write_export(project.folder / "e.json", [clip])
    process = subprocess.Popen(in_a_process(project), cwd=ROOT, stderr=subprocess.DEVNULL)
    wait_for(lambda: len(list((project.out / "images").rglob("*.jpg"))) > 20)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {name: when for name, when in project.files().items() if name.endswith(".jpg") and "/." not in name}
    data = project.build(clip, per_second=100)
    assert len(before) < sum(data.images.values())
    assert before.items() <= project.files().items()
    assert not list(project.out.rglob("*.part"))


@pytest.mark.slow
def test_a_disk_that_takes_no_more(project: Project, clip: dict[str, Any]) -> None:
    """The system refuses files past 4,500 bytes: pictures do not fit."""
    write_export(project.folder / "e.json", [clip])
    limit = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); project.store\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4500, 4500))"
    )
    make_video(project.folder / "clip.mp4", frames=FRAMES, size=(640, 480))
    done = subprocess.run(
        in_a_process(project, limit), cwd=ROOT, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 1
    assert StorageError.__name__ in done.stderr
    assert not list(project.out.rglob("*.part"))
    assert project.build(clip).images["train"] > 0


def test_a_folder_of_another_release(project: Project, clip: dict[str, Any]) -> None:
    data = project.build(clip)
    options = project.out / ".export" / "options.json"
    options.write_text(options.read_text().replace("95", "80"))
    assert project.build(clip) == data
    with pytest.raises(ConfigError, match="other files"):
        build_dataset(project.source([clip]), project.folder, project.store, 1, FrameSelectionPlan())


# -- nothing to train


@pytest.mark.parametrize(
    ("regions", "said"),
    [
        (None, "Nobody has annotated"),
        ([], "empty"),
        ([thing(key(1, 0), label="lorry")], "back to what they were"),
        ([thing(key(5, 0), key(9, 0, enabled=False))], "second video"),
    ],
)
def test_nothing_to_train(project: Project, regions: list[Mapping[str, Any]] | None, said: str) -> None:
    project.video("clip.mp4")
    task = make_task("clip.mp4", *([] if regions is None else [make_annotation(*map(dict, regions))]))
    with pytest.raises(NothingToTrain, match=said) as caught:
        project.build(task)
    assert caught.value.hint
    # Nothing stands that more annotations would regret.
    assert project.store.splits(1) == {}
    task["annotations"] = [make_annotation(WALKER)]
    assert project.build(task).trained_classes == ("person",)


def test_a_measure_that_was_lost(project: Project, clip: dict[str, Any]) -> None:
    """What is held out stays so, even if nothing is annotated there any more: another video helps."""
    project.build(clip)
    clip["annotations"][0]["result"] = [thing(key(1, 0), key(35, 0, enabled=False))]
    with pytest.raises(NothingToTrain, match="another video"):
        project.build(clip)
    project.video("other.mp4", 90)
    other = make_task("other.mp4", make_annotation(WALKER, annotation_id=2), task_id=2)
    project.build(clip, other)
    assert {video["task_id"]: bool(video["boxes"]) for video in project.held_out} == {1: False, 2: True}


def test_no_label_config(project: Project, clip: dict[str, Any]) -> None:
    source = AnnotationReader.from_file(write_export(project.folder / "e.json", [clip]))
    with pytest.raises(ConfigError, match="label config"):
        build_dataset(source, project.out, project.store, 1, FrameSelectionPlan())


# -- what trains on it


@pytest.mark.slow
def test_ultralytics_trains_on_it(project: Project, clip: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures that are listed twice are shown twice."""
    from ml_backend.detectors.setup import setup_ultralytics

    setup_ultralytics()
    from ultralytics import YOLO

    project.labels = ("läufer: 1", "person")
    monkeypatch.setattr(frame_selection, "_MAX_FRAMES", 20)
    data = project.build(clip, hard={1: frozenset({"r1"})})
    weights = make_tiny_yolo(project.folder / "tiny.pt", dict(enumerate(project.labels)))
    model = YOLO(weights)
    options: dict[str, Any] = {"epochs": 1, "imgsz": 64, "batch": 4, "workers": 0, "device": "cpu", "plots": False}
    model.train(data=str(data.data_yaml), project=str(project.folder / "runs"), exist_ok=True, verbose=False, **options)
    assert model.trainer is not None
    dataset = model.trainer.train_loader.dataset
    assert len(dataset) == 2 * data.images["train"]
    assert sum(len(item["cls"]) for item in dataset.labels) == 2 * data.boxes["person"]
    assert {float(item["cls"][0, 0]) for item in dataset.labels} == {1.0}
    assert model.trainer.data["names"] == dict(enumerate(project.labels))
    assert len(model.trainer.test_loader.dataset) == data.images["val"]
