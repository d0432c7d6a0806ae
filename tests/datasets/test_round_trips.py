"""Label Studio to each format and back gives the same boxes on every frame; and others can read what is written."""

from __future__ import annotations

import configparser
import csv
import json
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from ml_backend.core.boxes import iou_pairs
from ml_backend.core.errors import ConfigError
from ml_backend.datasets.annotation_reader import AnnotationReader
from ml_backend.datasets.exporter import DatasetOptions, export_dataset
from ml_backend.datasets.formats.coco import read_coco
from ml_backend.datasets.formats.cvat import read_cvat
from ml_backend.datasets.formats.mot import read_mot
from ml_backend.datasets.formats.yolo import read_yolo
from ml_backend.datasets.images import ImageFormat
from ml_backend.datasets.importers import ImportedBoxes, ImportResult, to_tasks
from ml_backend.datasets.sampling import Sampling
from ml_backend.datasets.video_files import VideoFolder
from ml_backend.label_studio.label_config import parse_label_config
from tests.builders import ROOT, label_config
from tests.datasets.builders import key, make_annotation, make_region, make_task, write_export
from tests.datasets.test_exporter import run
from tests.video.builders import make_video

READERS: dict[str, Any] = {"yolo-track": read_yolo, "coco": read_coco, "mot": read_mot, "cvat": read_cvat}
CONTROL = parse_label_config(label_config("person", "läufer &amp; &lt;co&gt;")).video_controls[0]

VIDEOS: dict[str, dict[str, Any]] = {
    "plain": {},
    "ntsc": {"fps": Fraction(30000, 1001)},
    "variable": {"pts": [n * 40 + (n % 3) * 11 for n in range(30)], "time_base": Fraction(1, 1000)},
    "turned": {"rotation": 270, "size": (240, 320)},
    "odd": {"size": (321, 241), "codec": "libx264rgb", "pix_fmt": "rgb24"},
    "straße 1": {"fps": 25},
}


def regions(count: int, duration: float) -> list[dict[str, Any]]:
    """A walk with two gaps, one object on a single frame, one to the end, one that overlaps the edge."""
    walk = [key(2, 3, y=5), key(7, 30, enabled=False), key(10, 30), key(14, 50, y=40, height=44), key(16, 20)]
    walk += [key(18, 21, enabled=False), key(20, 60, width=7)]
    usual = {"frames_count": count, "duration": duration}
    return [
        make_region(*walk, region_id="walk", **usual),
        make_region(key(5, 40, enabled=False), region_id="once", label="läufer & <co>", **usual),
        make_region(key(12, 70), region_id="stays", **usual),
        make_region(key(1, -10), key(9, 90, enabled=False), region_id="edge", **usual),
    ]


def boxes_by_frame(source: AnnotationReader) -> dict[tuple[int, str], list[list[float]]]:
    (video,) = source.videos()
    found: dict[tuple[int, str], list[list[float]]] = {}
    for item in video.objects:
        for frame, box in zip(*video.boxes(item), strict=True):
            found.setdefault((int(frame), item.label), []).append(box.tolist())
    return {place: sorted(boxes) for place, boxes in found.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("kind", VIDEOS)
def test_the_same_boxes_on_every_frame(tmp_path: Path, name: str, kind: str) -> None:
    make_video(tmp_path / f"{kind}.mp4", **VIDEOS[kind])
    rate = {"ntsc": 29.97, "straße 1": 25}.get(kind, 30)
    if kind == "variable":
        rate = 25
    task = make_task(f"{kind}.mp4", make_annotation(*regions(30, 30 / rate)), fps=rate)
    options = DatasetOptions(name, image_format=ImageFormat(quality=50), images=False)
    original = AnnotationReader.from_file(
        write_export(tmp_path / "e.json", [task]), config=parse_label_config(label_config("a"))
    )
    export_dataset(original, tmp_path / "out", options)
    result = ImportResult()
    tasks = list(to_tasks(READERS[name](tmp_path / "out"), VideoFolder(tmp_path), CONTROL, result, kind="annotations"))
    assert (result.skipped, result.tasks) == ([], 1)
    config = parse_label_config(label_config("person"))
    back = AnnotationReader.from_file(write_export(tmp_path / "back.json", [{"id": 1, **tasks[0]}]), config=config)
    # On every picture that the player shows: at a variable rate, no timeline has all of the file's.
    (video,) = back.videos()
    shown = set(video.timeline.decoded_index(np.arange(1, video.timeline.frames_count + 1)).tolist())
    assert len(shown) == 30 or kind == "variable"
    wanted, got = ({k: v for k, v in boxes_by_frame(s).items() if k[0] in shown} for s in (original, back))
    assert got.keys() == wanted.keys()
    for place, boxes in wanted.items():
        assert len(got[place]) == len(boxes)
        assert iou_pairs(got[place], boxes).min() >= 0.99, place
    assert set(result.labels) == {"person", "läufer & <co>"}


@pytest.mark.parametrize("name", READERS)
def test_a_stride_is_filled_in(tmp_path: Path, name: str) -> None:
    make_video(tmp_path / "clip.mp4")
    straight = make_region(key(1, 0), key(30, 58))
    short = make_region(key(1, 0), key(11, 20, enabled=False), region_id="r2", label="short")
    task = make_task("clip.mp4", make_annotation(straight, short))
    options = DatasetOptions(name, sampling=Sampling(5), images=False)
    export_dataset(AnnotationReader.from_file(write_export(tmp_path / "e.json", [task])), tmp_path / "out", options)
    (video,) = READERS[name](tmp_path / "out")
    read = video.read(320, 240)
    dense = {track.label: read.interpolated(track) for track in read.tracks}
    assert dense["person"].frames.tolist() == list(range(26))
    assert dense["person"].xyxy[:, 0] == pytest.approx(np.arange(26) * 2 * 3.2, abs=0.02)
    # It is on the samples 0, 5 and 10 but not on 15.
    assert dense["short"].frames.tolist()[:11] == list(range(11))
    assert len(dense["short"].frames) < 15


@pytest.mark.slow
def test_through_the_scripts(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    make_video(tmp_path / "videos" / "clip.mp4")
    write_export(tmp_path / "e.json", [make_task("clip.mp4", make_annotation(*regions(30, 1.0)))])
    (tmp_path / "config.xml").write_text(label_config("person", "other"), encoding="utf-8")
    done = run("--format", "mot", "--from-json", "e.json", "--videos", "videos", "--out", "mot", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    arguments = ["--format", "mot", "--to-label-studio", "mot", "--videos", "videos", "--out", "tasks.json"]
    arguments += ["--config", "config.xml", "--url-prefix", "/data/local-files/?d="]
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "läufer & <co>" in done.stderr
    (task,) = json.loads((tmp_path / "tasks.json").read_text())
    assert task["data"]["video"] == "/data/local-files/?d=clip.mp4"
    assert task["data"]["fps"] == 30
    from label_studio_sdk.label_interface import LabelInterface

    interface = LabelInterface(label_config("person", "läufer &amp; &lt;co&gt;"))
    assert interface.validate_prediction(task["predictions"][0], return_errors=True) == []
    make_video(tmp_path / "other.mp4")
    (tmp_path / "videos" / "clip.mp4").unlink()
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 3
    assert "clip" in done.stderr
    assert json.loads((tmp_path / "tasks.json").read_text()) == []


def test_between_samples_a_track_is_interpolated_and_hidden_where_a_sample_lacks_it() -> None:
    rows = [(0, 1, "a"), (4, 1, "a"), (12, 1, "a")]
    read = ImportedBoxes.from_rows(rows, [[0, 0, 8, 8], [4, 0, 12, 8], [0, 0, 8, 8]], [0, 4, 8, 12])
    dense = read.interpolated(read.tracks[0])
    assert dense.frames.tolist() == [0, 1, 2, 3, 4, 12]
    assert dense.xyxy[:5, 0].tolist() == [0, 1, 2, 3, 4]


# -- what others read


def coco_file(tmp_path: Path) -> Path:
    make_video(tmp_path / "a.mp4")
    make_video(tmp_path / "b.mp4")
    tasks = [
        make_task("a.mp4", make_annotation(*regions(30, 1.0))),
        make_task("b.mp4", make_annotation(make_region(key(1, 0))), task_id=2),
    ]
    options = DatasetOptions("coco", sampling=Sampling(10, split="time", ratio=(2, 1, 0)))
    export_dataset(AnnotationReader.from_file(write_export(tmp_path / "e.json", tasks)), tmp_path / "out", options)
    return tmp_path / "out" / "annotations" / "instances_train.json"


def test_coco_tracks_have_one_number_in_all_parts(tmp_path: Path) -> None:
    train = json.loads(coco_file(tmp_path).read_text())
    val = json.loads((tmp_path / "out" / "annotations" / "instances_val.json").read_text())
    assert [image["file_name"] for image in train["images"]] == [
        "a_000000.jpg",
        "a_000010.jpg",
        "b_000000.jpg",
        "b_000010.jpg",
    ]
    assert [image["file_name"] for image in val["images"]] == ["a_000020.jpg", "b_000020.jpg"]
    for data, part in ((train, "train"), (val, "val")):
        for image in data["images"]:
            assert (tmp_path / "out" / "images" / part / image["file_name"]).is_file()
    of_b = {item["track_id"] for data in (train, val) for item in data["annotations"] if item["video_id"] == 2}
    assert of_b == {5}
    assert [video["file_name"] for video in train["videos"]] == ["a.mp4", "b.mp4"]
    assert not (tmp_path / "out" / "annotations" / "instances_test.json").exists()


@pytest.mark.parametrize("module", ["pycocotools.coco", "faster_coco_eval"])
def test_coco_is_read_by_coco(tmp_path: Path, module: str) -> None:
    loaded = pytest.importorskip(module)
    coco = loaded.COCO(str(coco_file(tmp_path)))
    assert len(coco.getImgIds()) == 4
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == ["person", "läufer & <co>"]
    annotations = coco.loadAnns(coco.getAnnIds())
    assert all(item["area"] == pytest.approx(item["bbox"][2] * item["bbox"][3], abs=1e-3) for item in annotations)
    detections = [
        {key: item[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.9} for item in annotations
    ]
    name = "pycocotools.cocoeval" if module.startswith("pycocotools") else module
    evaluator = getattr(__import__(name, fromlist=["x"]), "COCOeval", None) or loaded.COCOeval_faster
    evaluation = evaluator(coco, coco.loadRes(detections), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1.0)


def mot_dataset(tmp_path: Path) -> Path:
    make_video(tmp_path / "clip.mp4")
    task = make_task("clip.mp4", make_annotation(*regions(30, 1.0)))
    options = DatasetOptions("mot", classes=("person",))
    export_dataset(AnnotationReader.from_file(write_export(tmp_path / "e.json", [task])), tmp_path / "out", options)
    return tmp_path / "out"


def test_mot_has_the_published_layout(tmp_path: Path) -> None:
    out = mot_dataset(tmp_path)
    sequence = out / "train" / "clip"
    parser = configparser.ConfigParser()
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(sequence / "seqinfo.ini")
    info = dict(parser["Sequence"])
    assert {name: info[name] for name in list(info)[:7]} == {
        "name": "clip",
        "imDir": "img1",
        "frameRate": "30",
        "seqLength": "30",
        "imWidth": "320",
        "imHeight": "240",
        "imExt": ".jpg",
    }
    assert sorted(path.name for path in (sequence / "img1").iterdir()) == [f"{n:06d}.jpg" for n in range(1, 31)]
    rows = [line.split(",") for line in (sequence / "gt" / "gt.txt").read_text().splitlines()]
    assert {len(row) for row in rows} == {9}
    seen = set()
    for frame, track, left, top, width, height, conf, class_id, visibility in rows:
        assert 1 <= int(frame) <= 30
        assert int(track) >= 1
        assert (frame, track) not in seen
        seen.add((frame, track))
        assert 0 <= float(left) < float(left) + float(width) <= 320.001
        assert 0 <= float(top) < float(top) + float(height) <= 240.001
        assert (conf, class_id, visibility) == ("1", "1", "1")
    assert [int(row[0]) for row in rows] == sorted(int(row[0]) for row in rows)
    assert (out / "seqmaps" / "train.txt").read_text() == "name\nclip\n"


def test_mot_is_read_by_trackeval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trackeval = pytest.importorskip("trackeval")
    for name, kind in (("float", float), ("int", int), ("bool", bool)):
        if name not in np.__dict__:
            monkeypatch.setattr(np, name, kind, raising=False)  # TrackEval is older than numpy 1.24
    out = mot_dataset(tmp_path)
    results = tmp_path / "trackers" / "ours" / "data"
    results.mkdir(parents=True)
    lines = (out / "train" / "clip" / "gt" / "gt.txt").read_text().splitlines()
    (results / "clip.txt").write_text("".join(",".join(line.split(",")[:6]) + ",1,-1,-1,-1\n" for line in lines))
    dataset = trackeval.datasets.MotChallenge2DBox(
        {
            "GT_FOLDER": str(out / "train"),
            "TRACKERS_FOLDER": str(tmp_path / "trackers"),
            "SEQMAP_FILE": str(out / "seqmaps" / "train.txt"),
            "SKIP_SPLIT_FOL": True,
            "PRINT_CONFIG": False,
            "BENCHMARK": "MOT17",
        }
    )
    raw = dataset.get_raw_seq_data("ours", "clip")
    data = dataset.get_preprocessed_seq_data(raw, "pedestrian")
    assert trackeval.metrics.HOTA().eval_sequence(data)["HOTA"].min() == pytest.approx(1.0)
    assert trackeval.metrics.Identity({"PRINT_CONFIG": False}).eval_sequence(data)["IDF1"] == pytest.approx(1.0)


def test_cvat_has_the_published_structure(tmp_path: Path) -> None:
    make_video(tmp_path / "clip.mp4")
    task = make_task("clip.mp4", make_annotation(*regions(30, 1.0)))
    config = parse_label_config(
        label_config("person", "läufer &amp; &lt;co&gt;").replace('"person"', '"person" background="#AABB00"')
    )
    source = AnnotationReader.from_file(write_export(tmp_path / "e.json", [task]), config=config)
    export_dataset(source, tmp_path / "out", DatasetOptions("cvat"))
    root = ElementTree.parse(tmp_path / "out" / "clip.xml").getroot()
    assert (root.tag, root.findtext("version")) == ("annotations", "1.1")
    assert [child.tag for child in root] == ["version", "meta", *["track"] * 4]
    meta = root.find("meta/task")
    assert meta is not None
    assert [label.findtext("name") for label in meta.iter("label")] == ["person", "läufer & <co>"]
    assert [label.findtext("color") for label in meta.iter("label")] == ["#aabb00", None]
    assert (meta.findtext("size"), meta.findtext("mode"), meta.findtext("source")) == (
        "30",
        "interpolation",
        "clip.mp4",
    )
    assert (meta.findtext("original_size/width"), meta.findtext("original_size/height")) == ("320", "240")
    for number, track in enumerate(root.iter("track")):
        assert track.attrib["id"] == str(number)
        assert track.attrib["source"] == "manual"
        boxes = list(track)
        frames = [int(box.attrib["frame"]) for box in boxes]
        assert frames == sorted(set(frames))
        names = {"frame", "outside", "occluded", "keyframe", "xtl", "ytl", "xbr", "ybr", "z_order"}
        assert all(set(box.attrib) == names for box in boxes)
        assert boxes[0].attrib["keyframe"] == "1"
        assert boxes[-1].attrib["outside"] == "1" or frames[-1] == 29
        assert all(box.attrib["keyframe"] == "1" for box in boxes if box.attrib["outside"] == "1")
    walk = [box.attrib for track in root.iter("track") if track.attrib["label"] == "person" for box in track]
    assert 0 < sum(box["keyframe"] == "0" for box in walk) < len(walk)


def cvat_text(*boxes: str, before: str = "") -> str:
    return f'{before}<annotations><version>1.1</version><track id="0" label="a">{"".join(boxes)}</track></annotations>'


def box(frame: int, x: float, **more: object) -> str:
    extra = "".join(f' {name}="{value}"' for name, value in more.items())
    return f'<box frame="{frame}" xtl="{x}" ytl="0" xbr="{x + 10}" ybr="10"{extra}/>'


def test_cvat_with_keyframes_only(tmp_path: Path) -> None:
    path = tmp_path / "clip.xml"
    path.write_text(cvat_text(box(0, 0), box(4, 8), box(8, 99, outside=1), box(12, 20), box(14, 24)))
    (video,) = read_cvat(path)
    assert video.name == "clip"
    (track,) = video.read(100, 100).tracks
    assert track.frames.tolist() == [*range(8), 12, 13, 14]
    assert track.xyxy[:, 0].tolist() == [0, 2, 4, 6, 8, 8, 8, 8, 20, 22, 24]


BOMB = '<!DOCTYPE a [<!ENTITY b "bbbb">]>'


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("cvat", {"a.xml": "<nonsense/>"}),
        ("cvat", {"a.xml": "no xml"}),
        ("cvat", {"a.xml": cvat_text(box(0, 0), before=BOMB)}),
        ("cvat", {"a.xml": cvat_text('<box frame="x"/>')}),
        ("cvat", {"a.xml": '<annotations><image id="0" name="a.jpg"/></annotations>'}),
        ("cvat", {}),
        ("mot", {"s/gt/gt.txt": "1,2,3\n"}),
        ("mot", {"s/gt/gt.txt": "1,2,3,x,4,5\n"}),
        ("mot", {"s/gt/gt.txt": "", "s/seqinfo.ini": "[Sequence]\nstride=0\n"}),
        ("mot", {}),
        ("yolo-track", {"data.yaml": "names: [a]", "labels/a_000000.txt": "0 0.5 0.5 0.1 0.1\n"}),
        ("yolo-track", {"data.yaml": "names: [a]", "labels/a_000000.txt": "0 x 0.5 0.1 0.1 1\n"}),
        ("yolo-track", {"data.yaml": "nothing: 1", "labels/a_000000.txt": ""}),
        ("yolo-track", {"data.yaml": "names: [a]"}),
        ("yolo-track", {}),
        ("coco", {"annotations/a.json": "[]"}),
        ("coco", {"annotations/a.json": '{"images": [], "annotations": [], "categories": []}'}),
        ("coco", {}),
    ],
)
def test_files_that_are_something_else(tmp_path: Path, name: str, files: dict[str, str]) -> None:
    for place, text in files.items():
        path = tmp_path / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    with pytest.raises(ConfigError, match=str(tmp_path)):
        [video.read(100, 100) for video in READERS[name](tmp_path)]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("mot", "1,1,0,0,9,9\n1e400,1,0,0,9,9\n", "line 2.*1e400"),
        ("mot", "99999999999999999999,1,0,0,9,9\n", "line 1.*99999"),
        ("mot", "1,1e400,0,0,9,9\n", "line 1"),
        ("mot", "1.5,1,0,0,9,9\n", "line 1.*1.5"),
        ("mot", "0,1,0,0,9,9\n", "line 1.*counts from 1"),
        ("mot", "-3,1,0,0,9,9\n", "line 1.*-3"),
        ("mot", "1,1,inf,0,9,9\n", "line 1.*finite"),
        ("mot", "1,1,0,0,9,9\n2,1,0,0,9,9\n2,1,4,4,9,9\n", "line 3.*second box on frame 2"),
        ("cvat", cvat_text(box(4, 0), box(4, 5)), "track 0.*two boxes on frame 4"),
        ("cvat", cvat_text(box(0, 0), box(10**12, 5)), "track 0.*1000000000000"),
        ("cvat", cvat_text(f'<box frame="{"9" * 5000}" xtl="0" ytl="0" xbr="1" ybr="1"/>'), "track 0.*999"),
        ("cvat", cvat_text('<box frame="3" xtl="nan" ytl="0" xbr="1" ybr="1"/>'), "track 0.*frame 3.*finite"),
        ("cvat", cvat_text('<box frame="3" xtl="0" ytl="0" xbr="1"/>'), "track 0.*ybr.*missing"),
    ],
)
def test_absurd_numbers_are_named_where_they_stand(tmp_path: Path, name: str, text: str, said: str) -> None:
    path = tmp_path / {"mot": "clip.txt", "cvat": "clip.xml"}[name]
    path.write_text(text)
    (video,) = READERS[name](path)
    with pytest.raises(ConfigError, match=said):
        video.read(100, 100)


@pytest.mark.parametrize("number", ["1" + "0" * 400, "20000000"])
def test_absurd_frames_of_coco_and_yolo(tmp_path: Path, number: str) -> None:
    image = f'{{"id": 1, "video_id": 1, "frame_id": {number}}}'
    text = f'{{"videos": [{{"id": 1, "name": "a"}}], "images": [{image}], "annotations": [], "categories": []}}'
    (tmp_path / "a.json").write_text(text)
    (video,) = read_coco(tmp_path / "a.json")
    with pytest.raises(ConfigError, match=r"a.json.*frame"):
        video.read(100, 100)
    (tmp_path / "labels").mkdir()
    (tmp_path / "data.yaml").write_text("names: [a]")
    (tmp_path / "labels" / f"a_{number[:100]}.txt").write_text("")
    with pytest.raises(
        ConfigError, match=r"not a frame number|no labels" if len(number) < 100 else "not a frame number"
    ):
        [video.read(100, 100) for video in read_yolo(tmp_path)]


def test_coco_videos_of_one_file_name_stay_apart(tmp_path: Path) -> None:
    for folder in "ab":
        (tmp_path / folder).mkdir()
        make_video(tmp_path / folder / "clip.mp4", frames=10)
    tasks = [make_task("x", make_annotation(*regions(10, 1 / 3)), task_id=n) for n in (3, 8)]
    for task, folder in zip(tasks, "ab", strict=True):
        task["data"]["video"] = f"/data/local-files/?d={folder}/clip.mp4"
    source = AnnotationReader.from_file(write_export(tmp_path / "e.json", tasks), videos=tmp_path)
    parts: list[Any] = ["time", "video"]
    for split in parts:
        out = tmp_path / split
        export_dataset(source, out, DatasetOptions("coco", Sampling(split=split), images=False))
        found = list(read_coco(out))
        assert [video.name for video in found] == ["clip.mp4", "clip.mp4"]
        assert [np.size(video.read(320, 240).samples) for video in found] == [10, 10]
    # Of others: nothing but the id tells them apart, and only within a file.
    videos = [{"id": n, "file_name": "clip.mp4"} for n in (1, 2)]
    images = [{"id": n, "video_id": n, "frame_id": 0} for n in (1, 2)]
    boxes = [{"image_id": n, "bbox": [n, 0, 5, 5], "track_id": 1, "category_id": 1} for n in (1, 2)]
    data = {"videos": videos, "images": images, "annotations": boxes, "categories": [{"id": 1, "name": "a"}]}
    (tmp_path / "of.json").write_text(json.dumps(data))
    read = [video.read(320, 240).tracks[0].xyxy[0, 0] for video in read_coco(tmp_path / "of.json")]
    assert read == [1, 2]


@pytest.mark.parametrize("name", ["mot", "cvat"])
@pytest.mark.parametrize("split", ["time", "ratio"])
def test_whole_videos_are_not_split_by_pictures(tmp_path: Path, name: str, split: Any) -> None:
    make_video(tmp_path / "clip.mp4", frames=4)
    source = AnnotationReader.from_file(write_export(tmp_path / "e.json", [make_task("clip.mp4", make_annotation())]))
    sampling = Sampling(split=split)
    with pytest.raises(ConfigError, match=f"{split}.*--split video"):
        export_dataset(source, tmp_path / "out", DatasetOptions(name, sampling))
    assert not (tmp_path / "out").exists()


def test_sequence_names_with_commas(tmp_path: Path) -> None:
    make_video(tmp_path / "a, b.mp4", frames=4)
    task = make_task("a, b.mp4", make_annotation())
    export_dataset(
        AnnotationReader.from_file(write_export(tmp_path / "e.json", [task])), tmp_path / "out", DatasetOptions("mot")
    )
    with (tmp_path / "out" / "seqmaps" / "train.txt").open(newline="") as file:
        assert list(csv.reader(file)) == [["name"], ["a, b"]]
    assert (tmp_path / "out" / "train" / "a, b").is_dir()


def test_mot_of_others(tmp_path: Path) -> None:
    """Of MOT17: classes by number, boxes that do not count; of a tracker: ten fields and no class."""
    gt = tmp_path / "MOT17-02" / "gt" / "gt.txt"
    gt.parent.mkdir(parents=True)
    gt.write_text("1,1,10,10,20,20,1,1,1\n1,2,10,10,20,20,0,8,1\n2, 1, 12, 10, 20, 20, 1, 1, 0.5\n")
    (video,) = read_mot(tmp_path)
    assert [(track.label, track.frames.tolist()) for track in video.read(100, 100).tracks] == [("pedestrian", [0, 1])]
    text = tmp_path / "people.txt"
    text.write_text("1,1,10.5,10,20,20,0.9,-1,-1,-1\n")
    (video,) = read_mot(text, default_label="person")
    assert video.name == "people"
    assert [track.label for track in video.read(100, 100).tracks] == ["person"]


@pytest.mark.slow
def test_the_script_is_documented() -> None:
    sys.path.insert(0, str(ROOT))
    done = run("--help", cwd=ROOT)
    for option in ("--stride", "--to-label-studio", "--classes", "--crops", "--negatives"):
        assert option in done.stdout
