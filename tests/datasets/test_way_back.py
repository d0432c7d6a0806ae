"""Foreign datasets on their way into Label Studio: which video, at which address and frame rate, and what is lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ml_backend.core.errors import ConfigError
from ml_backend.datasets.annotation_reader import AnnotationReader
from ml_backend.datasets.exporter import DatasetOptions, export_dataset
from ml_backend.datasets.formats.coco import read_coco
from ml_backend.datasets.formats.cvat import read_cvat
from ml_backend.datasets.formats.mot import read_mot
from ml_backend.datasets.formats.yolo import read_yolo
from ml_backend.datasets.importers import ImportedBoxes, ImportResult, to_tasks
from ml_backend.datasets.sampling import Sampling
from ml_backend.datasets.video_files import VideoFolder
from ml_backend.label_studio.label_config import parse_label_config
from tests.builders import label_config
from tests.datasets.builders import key, make_annotation, make_region, make_task, write_export
from tests.datasets.test_exporter import run
from tests.video.builders import make_video

READERS: dict[str, Any] = {"yolo-track": read_yolo, "coco": read_coco, "mot": read_mot, "cvat": read_cvat}
CONTROL = parse_label_config(label_config("person")).video_controls[0]


def bring(read: Any, videos: Path, prefix: str = "") -> tuple[list[dict[str, Any]], ImportResult]:
    result = ImportResult()
    return list(to_tasks(read, VideoFolder(videos), CONTROL, result, url_prefix=prefix)), result


def mot(folder: Path, name: str, rows: str = "1,1,0,0,32,24,1,1,1\n", **info: Any) -> Path:
    (folder / "gt").mkdir(parents=True)
    (folder / "gt" / "gt.txt").write_text(rows)
    lines = "".join(f"{key}={value}\n" for key, value in {"name": "x", "videoFile": name, **info}.items())
    (folder / "seqinfo.ini").write_text(f"[Sequence]\n{lines}")
    return folder


# -- frame rate


@pytest.mark.slow
@pytest.mark.parametrize(("rate", "fps", "count"), [("25", 25, 25), ("", 24, 24), ("$rate", 30, 30)])
def test_boxes_lie_at_the_frame_rate_of_the_config(tmp_path: Path, rate: str, fps: float, count: int) -> None:
    make_video(tmp_path / "clip.mp4")
    mot(tmp_path / "seq", "clip.mp4", "".join(f"{n},1,{3 * n},0,32,24,1,1,1\n" for n in range(1, 31)))
    (tmp_path / "config.xml").write_text(label_config("pedestrian", frame_rate=rate))
    arguments = ["--format", "mot", "--to-label-studio", "seq", "--videos", ".", "--out", "tasks.json"]
    done = run(*arguments, "--config", "config.xml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (task,) = json.loads((tmp_path / "tasks.json").read_text())
    config = parse_label_config(label_config("pedestrian", frame_rate=rate))
    assert config.video_controls[0].frame_rate_for(task["data"]) == fps
    (region,) = task["predictions"][0]["result"]
    assert region["value"]["framesCount"] == count
    source = AnnotationReader.from_file(tmp_path / "tasks.json", videos=tmp_path, config=config, predictions="only")
    (video,) = source.videos()
    frames, boxes = video.boxes(video.objects[0])
    assert frames.tolist() == list(range(30))
    assert boxes[:, 0] == pytest.approx(3 * (frames + 1), abs=3.1)
    # Without a config the file's own rate is what the task says.
    assert run(*arguments, cwd=tmp_path).returncode == 0
    (task,) = json.loads((tmp_path / "tasks.json").read_text())
    assert (task["data"]["fps"], task["predictions"][0]["result"][0]["value"]["framesCount"]) == (30, 30)


# -- names and addresses


@pytest.mark.parametrize("name", ["plain.mp4", "R&D+1.mp4", "cam#1.mp4", "a?b.mp4", "100%20x.mp4", "a:b.mp4"])
def test_addresses_lead_to_the_file(tmp_path: Path, name: str) -> None:
    from urllib.parse import parse_qs, urlsplit

    (tmp_path / "videos" / "day2").mkdir(parents=True)
    make_video(tmp_path / "clip.mp4", frames=4)
    (tmp_path / "clip.mp4").rename(tmp_path / "videos" / "day2" / name)
    dataset = list(read_mot(mot(tmp_path / "seq", name)))
    (task,), result = bring(dataset, tmp_path / "videos", "/data/local-files/?d=videos/")
    assert result.skipped == []
    uri = task["data"]["video"]
    assert parse_qs(urlsplit(uri).query)["d"] == [f"videos/day2/{name}"]
    assert VideoFolder(tmp_path / "videos").look_up(uri).path == tmp_path / "videos" / "day2" / name
    (task,), _ = bring(dataset, tmp_path / "videos", "s3://bucket/")
    assert task["data"]["video"] == f"s3://bucket/day2/{name}"  # Label Studio takes the key as it is
    (task,), _ = bring(dataset, tmp_path / "videos" / "day2" / name)
    assert task["data"]["video"] == name
    task |= {"id": 1, "annotations": [], "predictions": task["predictions"]}
    source = AnnotationReader.from_file(
        write_export(tmp_path / "e.json", [task]), videos=tmp_path / "videos", predictions="only"
    )
    assert [video.path.name for video in source.videos()] == [name]


def test_one_sequence_and_one_named_file_belong_together(tmp_path: Path) -> None:
    make_video(tmp_path / "street.mp4")
    gt = tmp_path / "task_12" / "gt" / "gt.txt"
    gt.parent.mkdir(parents=True)
    gt.write_text("1,1,0,0,32,24,1,1,1\n")
    (task,), result = bring(read_mot(tmp_path / "task_12"), tmp_path / "street.mp4")
    assert (task["data"]["video"], result.skipped) == ("street.mp4", [])
    # Not if that is a guess: the file is only one of a folder, there are two sequences, or it is another video.
    tasks, result = bring(read_mot(tmp_path / "task_12"), tmp_path)
    assert (tasks, len(result.skipped)) == ([], 1)
    mot(tmp_path / "task_13", "other.mp4", imWidth=640, imHeight=480)
    tasks, result = bring(read_mot(tmp_path), tmp_path / "street.mp4")
    assert (tasks, len(result.skipped)) == ([], 2)
    tasks, result = bring(read_mot(tmp_path / "task_13"), tmp_path / "street.mp4")
    assert tasks == []
    assert "320x240 pixels instead of 640x480" in result.skipped[0].reason


# -- several videos of one name


def coco(path: Path, name: str = "clip.mp4", last: int = 0, **size: int) -> Path:
    data = {
        "videos": [{"id": 1, "file_name": name, "name": "x"}],
        "images": [{"id": n, "video_id": 1, "frame_id": n, **size} for n in (0, last)[: 1 + bool(last)]],
        "annotations": [{"image_id": 0, "bbox": [0, 0, 9, 9], "track_id": 1, "category_id": 1}],
        "categories": [{"id": 1, "name": "person"}],
    }
    path.write_text(json.dumps(data))
    return path


@pytest.fixture
def days(tmp_path: Path) -> Path:
    for day, made in (("day1", {}), ("day2", {"size": (160, 120), "frames": 45})):
        (tmp_path / "videos" / day).mkdir(parents=True)
        make_video(tmp_path / "videos" / day / "clip.mp4", **made)  # type: ignore[arg-type]
    return tmp_path / "videos"


def test_size_and_length_tell_which_video_is_meant(days: Path, tmp_path: Path) -> None:
    datasets = [
        list(read_mot(mot(tmp_path / "a", "clip.mp4", imWidth=160, imHeight=120))),
        list(read_mot(mot(tmp_path / "b", "clip.mp4", seqLength=45))),
        list(read_mot(mot(tmp_path / "c", "clip.mp4", seqLength=9, stride=5))),
        list(read_coco(coco(tmp_path / "a.json", width=160, height=120))),
        list(read_coco(coco(tmp_path / "b.json", last=40))),
        list(read_coco(coco(tmp_path / "c.json", "day2/clip.mp4"))),
    ]
    for dataset in datasets:
        (task,), result = bring(dataset, days)
        assert (task["data"]["video"], result.skipped) == ("day2/clip.mp4", [])
    for dataset in (read_mot(mot(tmp_path / "d", "clip.mp4")), read_coco(coco(tmp_path / "d.json"))):
        tasks, result = bring(dataset, days)
        assert tasks == []
        assert all(str(days / day / "clip.mp4") in result.skipped[0].reason for day in ("day1", "day2"))
    tasks, result = bring(datasets[0], days / "day1")
    assert tasks == []
    assert "320x240 pixels instead of 160x120" in result.skipped[0].reason


@pytest.mark.parametrize("name", READERS)
def test_own_exports_of_two_videos_of_one_name(days: Path, tmp_path: Path, name: str) -> None:
    tasks = []
    for number, (day, count, x) in enumerate((("day1", 30, 10), ("day2", 45, 50)), start=1):
        region = make_region(key(1, x), frames_count=count, duration=count / 30)
        tasks.append(make_task("x", make_annotation(region), task_id=number))
        tasks[-1]["data"]["video"] = f"/data/local-files/?d={day}/clip.mp4"
    source = AnnotationReader.from_file(write_export(tmp_path / "e.json", tasks), videos=days)
    export_dataset(source, tmp_path / "out", DatasetOptions(name, images=False))
    assert source.skipped == []
    back, result = bring(READERS[name](tmp_path / "out"), days)
    found = {task["data"]["video"]: task["predictions"][0]["result"][0]["value"]["sequence"][0]["x"] for task in back}
    if name == "yolo-track":  # it has neither size nor length, and calls the second one clip-2
        assert [item.name for item in result.skipped] == ["clip", "clip-2"]
        assert found == {}
    else:
        assert found == {"day1/clip.mp4": pytest.approx(10, abs=0.1), "day2/clip.mp4": pytest.approx(50, abs=0.1)}


# -- frames without labels


def yolo(folder: Path, lines: dict[int, str]) -> Path:
    (folder / "labels").mkdir(parents=True)
    (folder / "data.yaml").write_text("names: [person]")
    for frame, text in lines.items():
        (folder / "labels" / f"clip_{frame}.txt").write_text(text)
    return folder


def visible(read: ImportedBoxes) -> list[int]:
    (track,) = read.tracks
    return read.interpolated(track).frames.tolist()


@pytest.mark.parametrize("stride", [1, 5])
def test_no_boxes_where_a_dataset_has_only_frames_with_boxes(tmp_path: Path, stride: int) -> None:
    frames = [*range(0, 30, stride), *range(70, 90, stride)]
    (video,) = read_yolo(yolo(tmp_path, dict.fromkeys(frames, "0 0.5 0.5 0.2 0.2 1")))
    read = video.read(320, 240, 120)
    assert visible(read) == [*range(31 - stride), *range(70, 91 - stride)]
    assert not read.left_out


@pytest.mark.parametrize("name", ["yolo-track", "coco"])
@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(negatives=0), [*range(3), *range(20, 23)]),
        (Sampling(2, negatives=0), [*range(3), *range(20, 23)]),
        (Sampling(keyframes=True), list(range(23))),
    ],
)
def test_gaps_of_own_exports(tmp_path: Path, name: str, sampling: Sampling, expected: list[int]) -> None:
    make_video(tmp_path / "clip.mp4")
    region = make_region(key(1, 0), key(3, 4, enabled=False), key(21, 9), key(23, 20, enabled=False))
    source = AnnotationReader.from_file(
        write_export(tmp_path / "e.json", [make_task("clip.mp4", make_annotation(region))])
    )
    export_dataset(source, tmp_path / "out", DatasetOptions(name, sampling, images=False))
    (video,) = READERS[name](tmp_path / "out")
    read = video.read(320, 240, 30)
    assert visible(read) == expected
    assert sum(read.left_out.values()) == sampling.keyframes  # frames in between cannot be told: it is said


# -- frames counted from 0 or 1


def numbered(folder: Path, name: str, numbers: range) -> Path:
    if name == "yolo-track":
        return yolo(folder, dict.fromkeys(numbers, "0 0.5 0.5 0.2 0.2 1"))
    data = {
        "videos": [{"id": 1, "file_name": "clip.mp4"}],
        "images": [{"id": n, "video_id": 1, "frame_id": n} for n in numbers],
        "annotations": [{"image_id": n, "bbox": [0, 0, 32, 24], "track_id": 1, "category_id": 1} for n in numbers],
        "categories": [{"id": 1, "name": "person"}],
    }
    path = folder / "a.json"
    path.write_text(json.dumps(data))
    return path


@pytest.mark.parametrize("name", ["yolo-track", "coco"])
@pytest.mark.parametrize(
    ("numbers", "first", "expected", "noted"),
    [
        (range(30), None, range(30), []),
        (range(1, 31), None, range(30), []),  # there is no frame 30 if frames count from 0
        (range(1, 30), None, None, ["--first-frame"]),
        (range(1, 30), 0, range(1, 30), []),
        (range(1, 30), 1, range(29), []),
        (range(31), None, range(30), ["the video does not have"]),
    ],
)
def test_the_number_of_the_first_frame(
    tmp_path: Path, name: str, numbers: range, first: int | None, expected: range | None, noted: list[str]
) -> None:
    # Where numbers do not tell: ultralytics counts from 1.
    expected = expected or (range(29) if name == "yolo-track" else range(1, 30))
    make_video(tmp_path / "clip.mp4")
    (task,), result = bring(READERS[name](numbered(tmp_path, name, numbers), first_frame=first), tmp_path)
    (region,) = task["predictions"][0]["result"]
    first_key, last_key = region["value"]["sequence"][0], region["value"]["sequence"][-1]
    assert (first_key["frame"], last_key["frame"]) == (expected[0] + 1, expected[-1] + 1)
    assert len(result.left_out) == len(noted)
    assert all(part in reason for part, reason in zip(noted, result.left_out, strict=True))


def test_padded_numbers_are_not_those_of_ultralytics(tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    (tmp_path / "data.yaml").write_text("names: [person]")  # without a stride, as of an earlier release
    for number in range(5, 20):
        (tmp_path / "labels" / f"clip_{number:06d}.txt").write_text("0 0.5 0.5 0.2 0.2 1")
    (video,) = read_yolo(tmp_path)
    read = video.read(320, 240, 30)
    assert visible(read) == list(range(5, 20))
    assert ["--first-frame 1" in reason for reason in read.left_out] == [True]


def test_a_frame_0_in_another_video_tells_as_well(tmp_path: Path) -> None:
    folder = numbered(tmp_path, "yolo-track", range(1, 30))
    (folder / "labels" / "other_0.txt").write_text("")
    video, _ = read_yolo(folder)
    read = video.read(320, 240, 30)
    assert (visible(read), read.left_out) == (list(range(1, 30)), {})


@pytest.mark.parametrize("name", ["mot", "cvat"])
def test_boxes_beyond_the_video_are_counted(tmp_path: Path, name: str) -> None:
    make_video(tmp_path / "clip.mp4")
    (tmp_path / "clip.txt").write_text("".join(f"{n},1,0,0,32,24\n" for n in (29, 30, 31, 32)))
    boxes = "".join(cvat_box(n, (0, 0, 32, 24)) for n in (28, 29, 30, 31))
    (tmp_path / "clip.xml").write_text(f"<annotations>{cvat_track(boxes)}</annotations>")
    (_,), result = bring(READERS[name](tmp_path / {"mot": "clip.txt", "cvat": "clip.xml"}[name]), tmp_path)
    assert list(result.left_out.values()) == [2]


@pytest.mark.slow
def test_the_first_frame_is_an_option(tmp_path: Path) -> None:
    make_video(tmp_path / "clip.mp4")
    numbered(tmp_path, "coco", range(1, 30))
    arguments = ["--to-label-studio", "a.json", "--videos", ".", "--out", "tasks.json", "--first-frame", "1"]
    done = run("--format", "coco", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (task,) = json.loads((tmp_path / "tasks.json").read_text())
    assert task["predictions"][0]["result"][0]["value"]["sequence"][0]["frame"] == 1
    done = run("--format", "mot", *arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert "--first-frame" in done.stderr


# -- boxes without tracks


@pytest.mark.parametrize("extra", ["", " 0.63", " -1"])
def test_lines_without_track_are_counted(tmp_path: Path, extra: str) -> None:
    lines = dict.fromkeys(range(20), f"0 0.5 0.5 0.2 0.2{' 0.8' if extra == ' 0.63' else ''} 1")
    (video,) = read_yolo(yolo(tmp_path, lines | {7: f"0 0.5 0.5 0.2 0.2{extra}"}))
    read = video.read(320, 240, 30)
    assert visible(read) == [*range(7), *range(8, 20)]
    assert list(read.left_out.values()) == [1]


def test_some_boxes_of_mot_and_coco_without_track(tmp_path: Path) -> None:
    lines = "1,-1,9,9,9,9,1,-1,-1,-1\n1,-1,0,0,9,9,1,-1,-1,-1\n1,3,9,9,9,9,1,-1,-1,-1\n"
    (tmp_path / "clip.txt").write_text(lines)
    data = json.loads(coco(tmp_path / "a.json").read_text())
    (box,) = data["annotations"]
    without = {key: value for key, value in box.items() if key != "track_id"}
    data["annotations"] += [without, {**box, "track_id": -1}]
    (tmp_path / "a.json").write_text(json.dumps(data))
    for name, path in (("mot", "clip.txt"), ("coco", "a.json")):
        (video,) = READERS[name](tmp_path / path)
        read = video.read(320, 240, 30)
        assert len(read.tracks) == 1
        assert list(read.left_out.values()) == [2]


@pytest.mark.parametrize("name", ["mot", "coco", "yolo-track"])
def test_detections_are_not_one_track(tmp_path: Path, name: str) -> None:
    make_video(tmp_path / "clip.mp4")
    if name == "mot":
        (tmp_path / "clip.txt").write_text("1,-1,9,9,9,9,0.8\n1,-1,0,0,9,9,0.8\n2,-1,9,9,9,9,0.8\n")
    elif name == "coco":
        text = coco(tmp_path / "clip.json").read_text()
        (tmp_path / "clip.json").write_text(text.replace('"track_id": 1', '"track_id": -1'))
    else:
        yolo(tmp_path, dict.fromkeys(range(3), "0 0.5 0.5 0.2 0.2 0.9"))
    path = {"mot": "clip.txt", "coco": "clip.json", "yolo-track": ""}[name]
    tasks, result = bring(READERS[name](tmp_path / path), tmp_path)
    assert tasks == []
    (skipped,) = result.skipped
    assert f"none of {1 if name == 'coco' else 3} boxes has a track" in skipped.reason


def test_crowds_of_coco_are_no_objects(tmp_path: Path) -> None:
    data = json.loads(coco(tmp_path / "a.json").read_text())
    (box,) = data["annotations"]
    crowd = {**box, "track_id": 2, "iscrowd": 1, "bbox": None}
    data["annotations"] = [{**box, "iscrowd": 0}, crowd, crowd]
    (tmp_path / "a.json").write_text(json.dumps(data))
    (video,) = read_coco(tmp_path / "a.json")
    read = video.read(320, 240, 30)
    assert [track.track_id for track in read.tracks] == [1]
    assert [(count, "iscrowd" in reason) for reason, count in read.left_out.items()] == [(2, True)]


# -- CVAT


def cvat_box(frame: int, corners: tuple[float, float, float, float], **more: object) -> str:
    place = {"frame": frame, **dict(zip(("xtl", "ytl", "xbr", "ybr"), corners, strict=True)), **more}
    return "<box" + "".join(f' {name}="{value}"' for name, value in place.items()) + "/>"


def cvat_track(*shapes: str, label: str = "person", **more: object) -> str:
    extra = "".join(f' {name}="{value}"' for name, value in more.items())
    return f'<track id="0" label="{label}"{extra}>{"".join(shapes)}</track>'


def cvat_task(number: int, name: str, source: str, width: int, height: int, stop: int, step: str = "") -> str:
    return (
        f"<task><id>{number}</id><name>{name}</name><stop_frame>{stop}</stop_frame><frame_filter>{step}</frame_filter>"
        f"<segments><segment><id>99</id></segment></segments>"
        f"<original_size><width>{width}</width><height>{height}</height></original_size>{source}</task>"
    )


def test_a_cvat_project_has_a_task_for_each_video(days: Path, tmp_path: Path) -> None:
    make_video(days / "other.mp4")
    tasks = cvat_task(4, "x", "<source>clip.mp4</source>", 320, 240, 29)
    tasks += cvat_task(7, "y", "<source>clip.mp4</source>", 160, 120, 44) + cvat_task(9, "other", "", 320, 240, 20)
    tracks = [
        cvat_track(cvat_box(3, (32, 0, 64, 24)), task_id=4),
        cvat_track(cvat_box(3, (64, 0, 96, 24)), task_id=7, label="car"),
        cvat_track(cvat_box(3, (96, 0, 128, 24)), task_id=9),
        cvat_track(cvat_box(9, (96, 0, 128, 24)), task_id=9),
    ]
    text = f"<annotations><meta><project><tasks>{tasks}</tasks></project></meta>{''.join(tracks)}</annotations>"
    (tmp_path / "annotations.xml").write_text(text)
    back, result = bring(read_cvat(tmp_path / "annotations.xml"), days)
    assert result.skipped == []
    found = {
        task["data"]["video"]: [
            (region["value"]["labels"], region["value"]["sequence"][0]["x"], region["value"]["sequence"][0]["frame"])
            for region in task["predictions"][0]["result"]
        ]
        for task in back
    }
    assert found == {
        "day1/clip.mp4": [(["person"], 10, 4)],
        "day2/clip.mp4": [(["car"], 40, 4)],
        "other.mp4": [(["person"], 30, 4), (["person"], 30, 10)],
    }


def test_the_head_of_a_single_cvat_task(tmp_path: Path) -> None:
    meta = f"<meta>{cvat_task(4, 'x', '', 320, 240, 29, 'step=3')}<source>clip.mp4</source></meta>"
    boxes = cvat_box(0, (0, 0, 9, 9)) + cvat_box(9, (0, 0, 9, 9), outside=1)
    (tmp_path / "a.xml").write_text(f"<annotations>{meta}{cvat_track(boxes)}</annotations>")
    (video,) = read_cvat(tmp_path / "a.xml")
    assert (video.name, video.facts.size, video.facts.frames) == ("clip.mp4", (320, 240), (30, None))
    assert video.read(320, 240).tracks[0].frames.tolist() == list(range(7))


def test_rotated_boxes_become_upright_ones_around_them(tmp_path: Path) -> None:
    quarter = cvat_box(0, (100, 100, 140, 120), rotation=90)
    tilted = cvat_box(2, (100, 100, 140, 120), rotation=45)
    (tmp_path / "clip.xml").write_text(
        f"<annotations>{cvat_track(quarter)}{cvat_track(tilted)}{cvat_track(cvat_box(0, (1, 2, 3, 4)))}"
        f"{cvat_track(cvat_box(0, (0, 0, 40, 20), rotation=350), cvat_box(2, (0, 0, 40, 20), rotation=10))}"
        "</annotations>"
    )
    (video,) = read_cvat(tmp_path / "clip.xml")
    read = video.read(320, 240)
    boxes = [track.xyxy for track in read.tracks]
    assert boxes[0][0] == pytest.approx([110, 90, 130, 130])
    half = (40 + 20) / 2 * np.sqrt(0.5)
    assert boxes[1][0] == pytest.approx([120 - half, 110 - half, 120 + half, 110 + half])
    assert boxes[2][0].tolist() == [1, 2, 3, 4]
    assert boxes[3][1] == pytest.approx([0, 0, 40, 20])  # half-way from -10 to 10 degrees
    assert [count for what, count in read.left_out.items() if "otated" in what] == [3]


def test_what_of_cvat_becomes_no_box_is_said(tmp_path: Path) -> None:
    make_video(tmp_path / "clip.mp4")
    polygon = '<polygon frame="0" points="0,0;9,0;9,9" outside="0"/><polygon frame="1" points="0,0;9,0;9,9"/>'
    tracks = [cvat_track(polygon), cvat_track(polygon), cvat_track(cvat_box(0, (0, 0, 9, 9), rotation=30))]
    (tmp_path / "clip.xml").write_text(f"<annotations>{''.join(tracks)}</annotations>")
    arguments = ["--format", "cvat", "--to-label-studio", "clip.xml", "--out", "tasks.json"]
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "polygon: 2." in done.stderr
    assert "otated" in done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["regions"] == 1


def test_damaged_frame_numbers_do_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    arange = np.arange

    def counted(*bounds: Any, **options: Any) -> Any:
        found = arange(*bounds, **options)
        made.append(found.size)
        return found

    make_video(tmp_path / "clip.mp4")
    boxes = cvat_box(0, (0, 0, 32, 24)) + cvat_box(9_000_000, (0, 0, 32, 24))
    (tmp_path / "clip.xml").write_text(f"<annotations>{cvat_track(boxes)}</annotations>")
    monkeypatch.setattr(np, "arange", counted)
    (task,), _ = bring(read_cvat(tmp_path / "clip.xml"), tmp_path)
    assert len(task["predictions"][0]["result"]) == 1
    read = ImportedBoxes.from_rows([(0, 1, "a"), (9_000_000, 1, "a")], [[0, 0, 8, 8]] * 2, [0, 9_000_000])
    assert read.interpolated(read.tracks[0], 30).frames.tolist() == list(range(30))
    assert max(made) < 1000


COCO_OF_TWO = """{"categories": [{"id": 1, "name": "a"}],
"videos": [{"id": 1, "name": "good"}, {"id": 2, "name": "bad"}],
"images": [{"id": 1, "video_id": 1, "frame_id": 0}, {"id": 2, "video_id": 2, "frame_id": %s}], "annotations": [
{"image_id": 1, "bbox": [0, 0, 9, 9], "category_id": 1, "track_id": 1},
{"id": 7, "image_id": 2, "bbox": %s, "category_id": 1, "track_id": 1}]}"""
CVAT_OF_ONE = cvat_track(cvat_box(0, (0, 0, 9, 9)))


@pytest.mark.parametrize(
    ("name", "files"),
    [
        (
            "mot",
            {
                "good/gt/gt.txt": "1,1,0,0,9,9,1\n",
                "bad/gt/gt.txt": "1,1,0,0,9,9,1\n",
                "bad/seqinfo.ini": "no section",
            },
        ),
        (
            "yolo-track",
            {
                "data.yaml": "names: [a]",
                "labels/good_000000.txt": "0 0.5 0.5 0.1 0.1 1\n",
                "labels/bad_000000.txt": "0 0.5 0.5 0.1 0.1 1\n",
                "labels/bad_99999999999.txt": "0 0.5 0.5 0.1 0.1 1\n",
            },
        ),
        ("coco", {"annotations/a.json": COCO_OF_TWO % (0, "[0, 0, 9]")}),
        ("coco", {"annotations/a.json": COCO_OF_TWO % (0, "null")}),
        ("coco", {"annotations/a.json": COCO_OF_TWO % ("-1", "[0, 0, 9, 9]")}),
        ("cvat", {"good.xml": f"<annotations>{CVAT_OF_ONE}</annotations>", "bad.xml": "<annotations>"}),
    ],
)
def test_a_damaged_video_of_a_dataset_keeps_no_other_from_being_imported(
    name: str, files: dict[str, str], tmp_path: Path
) -> None:
    for place, text in files.items():
        path = tmp_path / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    videos = {video.name.removesuffix(".xml"): video for video in READERS[name](tmp_path)}
    assert set(videos) == {"good", "bad"}
    assert len(videos["good"].read(100, 100, 10).tracks) == 1
    with pytest.raises(ConfigError, match=r"bad|annotation 7|image 2"):
        videos["bad"].read(100, 100, 10)


def test_a_damaged_file_of_coco_keeps_no_other_from_being_imported(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    coco(tmp_path / "annotations" / "instances_train.json")
    (tmp_path / "annotations" / "instances_val.json").write_text('{"videos": [')
    good, bad = sorted(read_coco(tmp_path), key=lambda video: video.name)
    assert (good.name, len(good.read(320, 240, 30).tracks)) == ("clip.mp4", 1)
    assert bad.name == "instances_val.json"
    with pytest.raises(ConfigError, match=r"instances_val.json is not a COCO file"):
        bad.read(320, 240, 30)
