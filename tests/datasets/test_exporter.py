"""Datasets: pictures are the decoded ones, interrupted exports go on, what is gone is listed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, get_args

import cv2
import numpy as np
import pytest

from ml_backend.core.errors import ConfigError, StorageError
from ml_backend.datasets.annotation_reader import AnnotationReader
from ml_backend.datasets.exporter import FORMATS, DatasetOptions, DatasetResult, export_dataset
from ml_backend.datasets.formats import FormatName
from ml_backend.datasets.images import ImageFormat
from ml_backend.datasets.sampling import Sampling, parse_ratio, split_frames, split_videos
from ml_backend.datasets.selection import chosen_classes
from ml_backend.label_studio.label_config import parse_label_config
from tests.builders import ROOT, label_config, make_tiny_yolo, run_command, wait_for
from tests.datasets.builders import key, make_annotation, make_region, make_task, write_export
from tests.video.builders import make_video, read_number
from tests.video.test_reader import damage

SCRIPT = ROOT / "scripts" / "export_dataset.py"
MOVING = make_region(key(1, 10), key(11, 30), key(21, 30, enabled=False))
CAR = make_region(key(6, 60), key(15, 60, enabled=False), label="car", region_id="r2")
TRAIN_ONLY = Sampling(split="time", ratio=(1, 0, 0))


def command(*arguments: object) -> list[str]:
    return [sys.executable, str(SCRIPT), *map(str, arguments)]


def run(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return run_command("export-dataset", *arguments, cwd=cwd)


def export(
    folder: Path, tasks: Sequence[dict[str, Any]], options: DatasetOptions | None = None, **more: Any
) -> DatasetResult:
    source = AnnotationReader.from_file(write_export(folder / "e.json", tasks), **more)
    result = export_dataset(source, folder / "out", options or DatasetOptions(sampling=TRAIN_ONLY))
    assert source.skipped == []
    return result


@pytest.fixture
def clip(tmp_path: Path) -> dict[str, Any]:
    """A task of a numbered video of 30 frames with two objects."""
    make_video(tmp_path / "clip.mp4")
    return make_task("clip.mp4", make_annotation(MOVING, CAR))


def pictures(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.suffix in (".jpg", ".png"))


# -- pictures


@pytest.mark.parametrize(
    ("name", "video"),
    [
        ("plain", {}),
        ("ntsc", {"fps": Fraction(30000, 1001)}),
        ("variable", {"pts": [n * 40 + (n % 3) * 11 for n in range(30)], "time_base": Fraction(1, 1000)}),
        ("turned", {"rotation": 90, "size": (240, 320)}),
        ("odd", {"size": (321, 241), "codec": "libx264rgb", "pix_fmt": "rgb24"}),
        ("straße läufer", {"fps": 25}),
    ],
)
@pytest.mark.parametrize("stride", [1, 7])
def test_picture_n_is_decoded_frame_n(tmp_path: Path, name: str, video: dict[str, Any], stride: int) -> None:
    make_video(tmp_path / f"{name}.mp4", **video)
    task = make_task(f"{name}.mp4", make_annotation(MOVING))
    sampling = Sampling(stride, split="time", ratio=(1, 0, 0))
    export(tmp_path, [task], DatasetOptions(sampling=sampling, image_format=ImageFormat("png")))
    found = sorted((tmp_path / "out" / "images" / "train").iterdir())
    assert [path.name for path in found] == [f"{name}_{n:06d}.png" for n in range(0, 30, stride)]
    for path in found:
        image = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)
        assert read_number(image) == int(path.stem[-6:])
        assert (image.shape[1], image.shape[0]) == video.get("size", (320, 240))


def test_the_api_knows_all_formats() -> None:
    assert set(FORMATS) == set(get_args(FormatName))


def test_boxes_follow_the_timeline_not_the_files_rate(tmp_path: Path) -> None:
    """At 24 frames a second on a file of 30, Label Studio's frame 13 is half a second in: decoded frame 15."""
    make_video(tmp_path / "clip.mp4")
    region = make_region(key(1, 0), key(13, 60), key(14, 60, enabled=False), frames_count=24, duration=1.0)
    export(tmp_path, [make_task("clip.mp4", make_annotation(region), fps=None)])
    lines = {}
    for path in (tmp_path / "out" / "labels" / "train").iterdir():
        text = path.read_text()
        lines[int(path.stem[-6:])] = float(text.split()[1]) if text else None
    assert lines[0] == pytest.approx(0.1)
    assert lines[15] == pytest.approx(0.7)
    assert lines[20] is None
    assert [frame for frame in range(30) if lines[frame] is not None] == list(range(17))


def test_data_yaml_and_labels(tmp_path: Path, clip: dict[str, Any]) -> None:
    result = export(tmp_path, [clip], DatasetOptions())
    assert (result.videos, dict(result.images), dict(result.boxes)) == (
        1,
        {"train": 24, "val": 6},
        {"person": 21, "car": 10},
    )
    assert (tmp_path / "out" / "data.yaml").read_text() == (
        "train: images/train\nval: images/val\nnc: 2\nnames:\n  0: person\n  1: car\n"
    )
    labels = tmp_path / "out" / "labels"
    assert (labels / "train" / "clip_000000.txt").read_text() == "0 0.200000 0.250000 0.200000 0.300000\n"
    assert len((labels / "train" / "clip_000005.txt").read_text().splitlines()) == 2
    assert (labels / "val" / "clip_000029.txt").read_text() == ""
    assert {path.stem for path in labels.rglob("*.txt")} == {Path(name).stem for name in pictures(tmp_path / "out")}


def test_classes_are_those_of_the_config_or_as_chosen(tmp_path: Path, clip: dict[str, Any]) -> None:
    config = parse_label_config(label_config("dog", "car", "person"))
    assert export(tmp_path, [clip], config=config).classes == ("dog", "car", "person")
    folder = tmp_path / "chosen"
    folder.mkdir()
    (tmp_path / "clip.mp4").rename(folder / "clip.mp4")
    unlabelled = make_region(key(1, 0), label="", region_id="r3")
    clip["annotations"][0]["result"].append(unlabelled)
    result = export(folder, [clip], DatasetOptions(sampling=TRAIN_ONLY, classes=("car",)))
    assert dict(result.left_out) == {"person": 1, "": 1}
    texts = [path.read_text() for path in (folder / "out" / "labels").rglob("*.txt")]
    assert {text[:2] for text in texts} == {"0 ", ""}


def test_keyframes_negatives_and_near_duplicates(tmp_path: Path, clip: dict[str, Any]) -> None:
    options = DatasetOptions(sampling=Sampling(keyframes=True, split="time", ratio=(1, 0, 0)))
    export(tmp_path, [clip], options)
    assert pictures(tmp_path / "out") == [f"clip_{n:06d}.jpg" for n in (0, 5, 10, 14, 20)]
    for share, negatives in ((0.0, 0), (0.2, 4), (9.0, 9)):
        folder = tmp_path / f"negatives {share}"
        folder.mkdir()
        (folder / "clip.mp4").hardlink_to(tmp_path / "clip.mp4")
        export(folder, [clip], DatasetOptions(sampling=Sampling(negatives=share, split="time", ratio=(1, 0, 0))))
        assert len(pictures(folder / "out")) == 21 + negatives
    still = tmp_path / "still"
    still.mkdir()
    # The picture's number hardly changes it; the box moves until picture 10 and is gone after 20.
    make_video(still / "clip.mp4", pts=range(30), size=(1280, 720))
    standing = make_region(key(1, 10), key(11, 30), key(21, 30, enabled=False))
    result = export(
        still,
        [make_task("clip.mp4", make_annotation(standing))],
        DatasetOptions(sampling=Sampling(near_duplicates=False, split="time", ratio=(1, 0, 0))),
    )
    kept = pictures(still / "out")
    assert len(kept) == result.images["train"] == len(list((still / "out" / "labels" / "train").iterdir()))
    assert len(kept) >= 11


def test_near_duplicates_are_those_on_which_nothing_moves(tmp_path: Path) -> None:
    from ml_backend.video.writer import VideoWriter

    image = np.full((120, 160, 3), 90, np.uint8)
    with VideoWriter(tmp_path / "clip.mp4", 160, 120, 30) as writer:
        for n in range(30):
            picture = image.copy()
            if n >= 20:
                picture[20:60, 20:60] = 250
            writer.write(picture)
    region = make_region(key(1, 50), key(10, 50), key(15, 70))
    sampling = Sampling(near_duplicates=False, split="time", ratio=(1, 0, 0))
    export(tmp_path, [make_task("clip.mp4", make_annotation(region))], DatasetOptions(sampling=sampling))
    assert [int(name[5:11]) for name in pictures(tmp_path / "out")] == [0, 10, 11, 12, 13, 14, 20]


def test_crops_for_a_classifier(tmp_path: Path, clip: dict[str, Any]) -> None:
    sampling = Sampling(10, split="time", ratio=(1, 0, 0))
    export(tmp_path, [clip], DatasetOptions(sampling=sampling, crops=True, image_format=ImageFormat("png")))
    crops = tmp_path / "out" / "crops" / "train"
    assert sorted(str(path.relative_to(crops)) for path in crops.rglob("*.png")) == [
        "car/clip_000010_2.png",
        "person/clip_000000_1.png",
        "person/clip_000010_1.png",
        "person/clip_000020_1.png",
    ]
    assert cv2.imread(str(crops / "person" / "clip_000000_1.png")).shape == (72, 64, 3)


# -- splits


def test_splits() -> None:
    sampling = Sampling(ratio=(0.7, 0.2, 0.1), seed=3)
    assert sorted(split_videos(10, sampling)) == ["test"] + ["train"] * 7 + ["val"] * 2
    assert split_videos(10, sampling) == split_videos(10, sampling)
    assert split_videos(10, sampling) != split_videos(10, Sampling(ratio=(0.7, 0.2, 0.1), seed=4))
    assert sorted(split_videos(2, Sampling())) == ["train", "val"]
    assert split_videos(1, Sampling()) == ["train"]
    assert split_videos(0, Sampling()) == []
    at = np.arange(100)
    assert split_frames(at, "a", "time", sampling) == ["train"] * 70 + ["val"] * 20 + ["test"] * 10
    assert set(split_frames(at, "a", "time", Sampling(ratio=(1, 0, 0)))) == {"train"}
    drawn = split_frames(at, "a", "ratio", sampling)
    assert 55 < drawn.count("train") < 85
    assert split_frames(at[::2], "a", "ratio", sampling) == drawn[::2]


@pytest.mark.parametrize("text", ["", "a", "80:20:0:0", "0:1", "-1:2", "nan"])
def test_ratios_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError):
        Sampling(ratio=parse_ratio(text))
    assert parse_ratio("7,2,1") == (7, 2, 1)


def test_whole_videos_are_split_with_a_seed(tmp_path: Path) -> None:
    tasks = []
    for n in range(5):
        make_video(tmp_path / f"v{n}.mp4", frames=6)
        tasks.append(make_task(f"v{n}.mp4", make_annotation(MOVING), task_id=n))
    export(tmp_path, tasks, DatasetOptions())
    parts = {path.name[:2]: path.parent.name for path in (tmp_path / "out" / "images").rglob("*.jpg")}
    assert sorted(parts.values()) == ["train"] * 4 + ["val"]


# -- names, several tasks, several people


def test_videos_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for folder, frames in (("a", 4), ("b", 5)):
        (tmp_path / folder).mkdir()
        make_video(tmp_path / folder / "clip.mp4", frames=frames)
    tasks = [make_task("x", make_annotation(), task_id=n) for n in (3, 8)]
    for task, folder in zip(tasks, "ab", strict=True):
        task["data"]["video"] = f"/data/local-files/?d={folder}/clip.mp4"
    export(tmp_path, tasks, videos=tmp_path)
    names = pictures(tmp_path / "out")
    assert names == [f"clip-8_{n:06d}.jpg" for n in range(5)] + [f"clip_{n:06d}.jpg" for n in range(4)]


def test_only_the_annotation_that_counts(tmp_path: Path, clip: dict[str, Any]) -> None:
    clip["annotations"].append(make_annotation(annotation_id=2, completed_by=2))
    assert dict(export(tmp_path, [clip]).boxes) == {}


# -- interrupted, changed, broken


@pytest.mark.slow
def test_an_export_that_was_killed_goes_on(tmp_path: Path) -> None:
    make_video(tmp_path / "clip.mp4", frames=400, size=(1280, 720), options={"preset": "ultrafast"})
    region = make_region(key(1, 10), frames_count=400, duration=400 / 30)
    write_export(tmp_path / "e.json", [make_task("clip.mp4", make_annotation(region))])
    arguments = ("--format", "yolo", "--from-json", "e.json", "--out", "out")
    images = tmp_path / "out" / "images" / "train"
    process = subprocess.Popen(command(*arguments), cwd=tmp_path, stderr=subprocess.DEVNULL)
    wait_for(lambda: images.is_dir() and len(list(images.glob("*.jpg"))) > 20)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out" / "data.yaml").exists()
    before = {path: path.stat().st_mtime_ns for path in images.glob("*.jpg")}
    assert 20 < len(before) < 320
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {path: path.stat().st_mtime_ns for path in before} == before
    numbers = {path.name: read_number(cv2.imread(str(path))) for path in (tmp_path / "out" / "images").rglob("*.jpg")}
    assert numbers == {f"clip_{n:06d}.jpg": n for n in range(400)}
    assert len(list((tmp_path / "out" / "labels").rglob("*.txt"))) == 400
    assert not list((tmp_path / "out").rglob(".*.part"))
    started = time.monotonic()
    done = run(*arguments, cwd=tmp_path)
    assert json.loads(done.stdout.splitlines()[-1])["unchanged"] == 1
    assert time.monotonic() - started < 60


def test_pictures_that_cannot_be_decoded_are_left_out(tmp_path: Path) -> None:
    """The end of a recording is damaged: what can be decoded is exported, also when that is continued."""
    damage(make_video(tmp_path / "clip.mp4", options={"bf": "0", "g": "10"}), slice(20, None))
    task = make_task("clip.mp4", make_annotation(MOVING))
    result = export(tmp_path, [task])
    assert result.images["train"] == len(pictures(tmp_path / "out")) == 20
    assert len(list((tmp_path / "out" / "labels").rglob("*.txt"))) == 20
    task["annotations"][0]["result"] = []
    result = export(tmp_path, [task])
    assert (result.images["train"], result.boxes.total()) == (20, 0)


@pytest.mark.slow
def test_interrupting_says_so_and_leaves_whole_files(tmp_path: Path) -> None:
    make_video(tmp_path / "clip.mp4", frames=400, size=(1280, 720), options={"preset": "ultrafast"})
    write_export(tmp_path / "e.json", [make_task("clip.mp4", make_annotation(MOVING))])
    images = tmp_path / "out" / "images" / "train"
    process = subprocess.Popen(
        command("--format", "yolo", "--from-json", "e.json", "--out", "out"), cwd=tmp_path, stderr=subprocess.PIPE
    )
    wait_for(lambda: images.is_dir() and len(list(images.glob("*.jpg"))) > 5)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=300)
    assert process.returncode != 0
    assert all(cv2.imread(str(path)) is not None for path in images.glob("*.jpg"))


def test_what_has_changed_is_done_again(tmp_path: Path, clip: dict[str, Any]) -> None:
    make_video(tmp_path / "other.mp4", frames=5)
    other = make_task("other.mp4", make_annotation(), task_id=2)
    export(tmp_path, [clip, other])
    images = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.jpg")}
    clip["annotations"][0]["result"] = [MOVING, {**CAR, "value": {**CAR["value"], "sequence": [key(1, 0)]}}]
    result = export(tmp_path, [clip, other])
    assert (result.videos, result.continued, result.boxes["car"]) == (2, 1, 30)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.jpg")} == images
    # Another video under the old name: none of the old pictures may stay.
    make_video(tmp_path / "clip.mp4", frames=12)
    export(tmp_path, [clip, other])
    assert len(pictures(tmp_path / "out")) == 12 + 5
    export(tmp_path, [other])
    assert len(pictures(tmp_path / "out")) == 5
    assert len(list((tmp_path / "out" / "labels").rglob("*.txt"))) == 5


def test_other_options_or_other_content_in_the_folder(tmp_path: Path, clip: dict[str, Any]) -> None:
    export(tmp_path, [clip])
    with pytest.raises(ConfigError, match=r"other options \(sampling\)"):
        export(tmp_path, [clip], DatasetOptions(sampling=Sampling(5)))
    strange = tmp_path / "strange"
    (strange / "out").mkdir(parents=True)
    (strange / "out" / "thesis.txt").write_text("")
    with pytest.raises(ConfigError, match="other files"):
        export(strange, [clip], videos=tmp_path)


@pytest.mark.parametrize("changes", [{"keyframes": True}, {"negatives": 1.0}, {"near_duplicates": False}])
@pytest.mark.parametrize("name", ["mot", "cvat"])
def test_sequences_have_no_holes(tmp_path: Path, clip: dict[str, Any], name: str, changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="--stride"):
        export(tmp_path, [clip], DatasetOptions(name, sampling=Sampling(**changes)))


def test_nothing_to_export(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="include predictions"):
        export(tmp_path, [])
    make_video(tmp_path / "clip.mp4")
    result = export(tmp_path, [make_task("clip.mp4", make_annotation())])
    assert (result.images["train"], result.classes) == (30, ())
    assert (tmp_path / "out" / "data.yaml").read_text().endswith("nc: 0\nnames: {}\n")


@pytest.mark.slow
def test_a_disk_that_takes_no_more(tmp_path: Path, clip: dict[str, Any]) -> None:
    """The system refuses files past 5,000 bytes: pictures do not fit, the script says so and leaves none half."""
    write_export(tmp_path / "e.json", [clip])
    code = (
        "import resource, runpy, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000)); sys.argv = sys.argv[1:];"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    arguments = ["--format", "yolo", "--from-json", "e.json", "--out", "out"]
    done = subprocess.run(
        [sys.executable, "-c", code, str(SCRIPT), *arguments],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 1, done.stderr
    assert "Cannot write" in done.stderr or "No space" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "out").rglob("*.jpg"))
    assert not list((tmp_path / "out").rglob("*.part"))
    assert run(*arguments, cwd=tmp_path).returncode == 0


def test_a_place_that_cannot_be_written(tmp_path: Path, clip: dict[str, Any]) -> None:
    (tmp_path / "file").write_text("")
    source = AnnotationReader.from_file(write_export(tmp_path / "e.json", [clip]))
    with pytest.raises((StorageError, ConfigError)):
        export_dataset(source, tmp_path / "file" / "out", DatasetOptions())


# -- the script


def test_the_script_lists_what_is_gone(tmp_path: Path, clip: dict[str, Any]) -> None:
    gone = make_task("gone.mp4", make_annotation(MOVING), task_id=2)
    write_export(tmp_path / "e.json", [clip, gone])
    arguments = ("--format", "coco", "--from-json", "e.json", "--out", "out", "--stride", 10, "--videos", ".")
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    assert "gone.mp4" in done.stderr
    assert "2/2" in done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert (summary["videos"], summary["pictures"], summary["skipped"]) == (1, {"train": 2, "val": 1}, 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--project"),
        (["--from-json", "e.json", "--stride", "0"], "stride"),
        (["--from-json", "e.json", "--quality", "0"], "quality"),
        (["--from-json", "e.json", "--ratio", "x"], "ratio"),
        (["--from-json", "e.json"], "include predictions"),
        (["--to-label-studio", "e.json"], "yolo-track"),
    ],
)
def test_the_script_says_what_is_wrong(tmp_path: Path, arguments: list[str], said: str) -> None:
    write_export(tmp_path / "e.json", [])
    done = run("--format", "yolo", *arguments, "--out", "out", cwd=tmp_path)
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_ultralytics_trains_on_it_as_it_is(tmp_path: Path) -> None:
    """One epoch with a tiny model, on a dataset that has been moved since, with a label that is no ASCII."""
    from ml_backend.detectors.setup import setup_ultralytics

    setup_ultralytics()
    from ultralytics import YOLO

    make_video(tmp_path / "straße.mp4", frames=20)
    region = {**MOVING, "value": {**MOVING["value"], "labels": ["läufer: 1"]}}
    export(tmp_path, [make_task("straße.mp4", make_annotation(region, CAR))], DatasetOptions())
    moved = (tmp_path / "out").rename(tmp_path / "moved")
    weights = make_tiny_yolo(tmp_path / "tiny.pt", {0: "läufer: 1", 1: "car"})
    model = YOLO(weights)
    options: dict[str, Any] = {"epochs": 1, "imgsz": 64, "batch": 4, "workers": 0, "device": "cpu", "plots": False}
    model.train(data=str(moved / "data.yaml"), project=str(tmp_path / "runs"), exist_ok=True, verbose=False, **options)
    assert model.trainer is not None
    dataset = model.trainer.train_loader.dataset
    assert len(dataset) == 16
    assert sorted(len(item["cls"]) for item in dataset.labels) == [1] * 6 + [2] * 10
    assert model.trainer.data["names"] == {0: "läufer: 1", 1: "car"}
    assert len(model.trainer.test_loader.dataset) == 4


def test_a_label_with_a_comma_can_be_chosen(tmp_path: Path) -> None:
    make_video(tmp_path / "clip.mp4", frames=4)
    labels = [("a,b", "r1"), ("c", "r2"), ("d", "r3")]
    regions = [make_region(key(1, 10), label=label, region_id=region_id) for label, region_id in labels]
    write_export(tmp_path / "e.json", [make_task("clip.mp4", make_annotation(*regions))])
    usual = ["--format", "yolo", "--from-json", "e.json", "--no-images"]
    done = run(*usual, "--out", "out", "--classes", "c", "--classes", "a,b", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["classes"] == ["c", "a,b"]
    assert chosen_classes(["a, b,c"], {"a", "b", "c"}) == ("a", "b", "c")
    assert chosen_classes(["a,b", "c,a"], {"a,b", "b,c"}) == ("a,b", "c", "a")
