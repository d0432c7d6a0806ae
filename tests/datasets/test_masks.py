"""Masks in exports: each format read back by the tools it is for gives the masks that were made."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from ml_backend.cli.commands.export_dataset import main as export_command
from ml_backend.cli.commands.render_video import main as render_command
from ml_backend.core.errors import ConfigError, WeightsError
from ml_backend.core.types import BoolArray, Float64Array, Image
from ml_backend.datasets.annotation_reader import AnnotationReader
from ml_backend.datasets.exporter import DatasetOptions, DatasetResult, export_dataset
from ml_backend.datasets.formats import MASK_FORMATS
from ml_backend.datasets.formats.coco import read_coco
from ml_backend.datasets.masks import decode, encode, polygon
from ml_backend.datasets.sampling import Sampling
from ml_backend.inference.segmenter import Segmenter
from ml_backend.video.reader import read_frames
from ml_backend.video.writer import VideoWriter
from tests.builders import make_tiny_yolo
from tests.datasets.builders import key, make_annotation, make_region, make_task, write_export
from tests.tiny_sam import save_tiny_sam

WIDTH, HEIGHT, FRAMES = 320, 240, 12
Masks = dict[tuple[int, int], BoolArray]


@dataclass
class Bright:
    """Everything bright in a box: what the drawn objects are.

    Attributes:
        fails_at: call that fails.
    """

    name: str = "bright"
    model_id: str = "bright-1"
    fails_at: int = -1
    calls: int = 0

    def segment(self, image: Image, xyxy: Float64Array) -> BoolArray:
        self.calls += 1
        if self.calls == self.fails_at:
            raise WeightsError("bright failed.", "Set SEGMENTER to another model.")
        masks = np.zeros((len(xyxy), *image.shape[:2]), bool)
        for mask, (x1, y1, x2, y2) in zip(masks, xyxy.round().astype(int), strict=True):
            mask[y1:y2, x1:x2] = image[y1:y2, x1:x2].mean(axis=2) > 128
        return masks


def write_video(path: Path, frames: int = FRAMES) -> Path:
    """A ring and a disc beside it walk to the right; below is another disc."""
    with VideoWriter(path, WIDTH, HEIGHT, 30) as writer:
        for number in range(frames):
            image = np.full((HEIGHT, WIDTH, 3), 40, np.uint8)
            cv2.circle(image, (60 + 4 * number, 60), 30, (250, 250, 250), 12)
            cv2.circle(image, (120 + 4 * number, 60), 15, (250, 250, 250), -1)
            cv2.ellipse(image, (160, 180), (50, 25), 20, 0, 360, (250, 250, 250), -1)
            writer.write(image)
    return path


def walking(left: float, width: float, **more: Any) -> dict[str, Any]:
    """Along with the ring, 4 pixels a frame."""
    box = {"y": 5.0, "width": width, "height": 40.0}
    return make_region(key(1, left, **box), key(FRAMES, left + 1.25 * (FRAMES - 1), **box), **more)


#: The ring with the disc, the disc alone, the ellipse, and one where nothing is.
REGIONS = [
    walking(5, 40),
    walking(30, 15, label="car", region_id="r2"),
    make_region(key(1, 30, y=60.0, width=40.0, height=32.0), key(FRAMES, 30, y=60.0, width=40.0, height=32.0),
                label="car", region_id="r3"),
]  # fmt: skip
NOTHING = make_region(key(1, 1, y=80.0, width=5.0, height=10.0), region_id="r4")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """An export of Label Studio with one task, beside its video."""
    write_video(tmp_path / "clip.mp4")
    return write_export(tmp_path / "e.json", [make_task("clip.mp4", make_annotation(*REGIONS))])


def export(source: Path, options: DatasetOptions, segmenter: Segmenter | None = None) -> DatasetResult:
    reader = AnnotationReader.from_file(source)
    result = export_dataset(reader, source.parent / "out", options, segmenter=segmenter or Bright())
    assert reader.skipped == []
    return result


def made_masks(source: Path) -> Masks:
    """The masks that :class:`Bright` makes, by decoded frame and track."""
    (video,) = AnnotationReader.from_file(source).videos()
    out: Masks = {}
    for image, frame in zip(read_frames(video.path), video.frames(), strict=True):
        masks = Bright().segment(image.image, frame.xyxy)
        out |= {(frame.index, item.track_id): mask for item, mask in zip(frame.objects, masks, strict=True)}
    return out


def iou(a: BoolArray, b: BoolArray) -> float:
    return float((a & b).sum() / (a | b).sum())


def options(name: str, **more: Any) -> DatasetOptions:
    return DatasetOptions(name, Sampling(), **more)


# -- round trips


def test_run_lengths_are_those_of_pycocotools() -> None:
    mask = np.random.default_rng(0).random((24, 32)) > 0.5
    theirs = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
    assert encode(mask) == theirs
    assert (decode(theirs, 32, 24) == mask).all()


def test_coco_and_back(source: Path, tmp_path: Path) -> None:
    export(source, options("coco-seg", tight_boxes=True))
    wanted, found = made_masks(source), {}
    for path in sorted((tmp_path / "out" / "annotations").glob("*.json")):
        coco = COCO(str(path))
        for item in coco.anns.values():
            frame = coco.imgs[item["image_id"]]["frame_id"]
            found[frame, item["track_id"]] = mask = coco.annToMask(item).astype(bool)
            assert item["area"] == mask.sum()
            assert item["bbox"] == coco_mask.toBbox(coco.annToRLE(item)).tolist()
    assert found.keys() == wanted.keys()
    assert all((found[place] == mask).all() for place, mask in wanted.items())
    (video,) = read_coco(tmp_path / "out")
    assert len(video.read(WIDTH, HEIGHT).tracks) == 3
    assert not list((tmp_path / "out" / ".export").glob("*.masks*"))


def test_boxes_stay_as_drawn_unless_they_shall_be_tight(source: Path, tmp_path: Path) -> None:
    export(source, options("coco-seg"))
    (path, _) = sorted((tmp_path / "out" / "annotations").glob("*.json"))
    first = json.loads(path.read_text())["annotations"][0]
    assert first["bbox"] == [16.0, 12.0, 128.0, 96.0]
    tight = tmp_path / "tight"
    export_dataset(AnnotationReader.from_file(source), tight, options("mot", tight_boxes=True), segmenter=Bright())
    line = (tight / "train" / "clip" / "gt" / "gt.txt").read_text().splitlines()[0].split(",")
    mask = made_masks(source)[0, 1]
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    size = [columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0]]
    assert [float(value) for value in line[2:6]] == [columns[0], rows[0], *size]


def test_yolo_polygons_and_back(source: Path, tmp_path: Path) -> None:
    result = export(source, options("yolo-seg"))
    assert (dict(result.images), result.notes) == ({"train": 10, "val": 2}, [])
    wanted = made_masks(source)
    for path in (tmp_path / "out" / "labels").rglob("*.txt"):
        lines = [line.split() for line in path.read_text().splitlines()]
        assert [line[0] for line in lines] == ["0", "1", "1"]
        for track, (_, *values) in enumerate(lines, start=1):
            points = np.array(values, float).reshape(-1, 2) * [WIDTH, HEIGHT]
            drawn = np.zeros((HEIGHT, WIDTH), np.uint8)
            cv2.fillPoly(drawn, [points.round().astype(np.int32)], (1,))
            mask = wanted[int(path.stem[-6:]), track]
            if track == 1:  # the ring's hole is filled, and a line joins the disc
                parts, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
                assert len(parts) == 2
                filled = np.zeros_like(drawn)
                cv2.fillPoly(filled, parts, (1,))
                mask = filled.astype(bool)
            assert iou(drawn.astype(bool), mask) > 0.98


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (2, 2), (5, 7)])
def test_a_polygon_of_little_is_one(shape: tuple[int, int]) -> None:
    mask = np.zeros((20, 20), bool)
    mask[3 : 3 + shape[0], 4 : 4 + shape[1]] = True
    points = polygon(mask)
    assert len(points) >= 4, "fewer numbers would be a box"
    drawn = np.zeros((20, 20), np.uint8)
    cv2.fillPoly(drawn, [points.astype(np.int32)], (1,))
    assert (drawn.astype(bool) == mask).all()


def without_overlaps(source: Path) -> Masks:
    """The masks without what they share with a smaller one."""
    masks = made_masks(source)
    for frame in range(FRAMES):
        masks[frame, 1] &= ~masks[frame, 2]
    return masks


def test_mots_and_back(source: Path, tmp_path: Path) -> None:
    export(source, options("mots"))
    folder, found = tmp_path / "out" / "train" / "clip", {}
    for line in (folder / "gt" / "gt.txt").read_text().splitlines():
        frame, number, class_id, height, width, rle = line.split(" ")
        assert (int(height), int(width)) == (HEIGHT, WIDTH)
        assert int(number) // 1000 == int(class_id) == (1 if number == "1001" else 2)
        read = coco_mask.decode({"size": [HEIGHT, WIDTH], "counts": rle.encode()}).astype(bool)
        found[int(frame) - 1, int(number) % 1000] = read
    wanted = without_overlaps(source)
    assert found.keys() == wanted.keys()
    assert all((found[place] == mask).all() for place, mask in wanted.items())
    assert sum(mask.astype(int) for place, mask in found.items() if place[0] == 0).max() == 1
    assert len(list((folder / "img1").iterdir())) == FRAMES


def test_pictures_of_masks_and_back(source: Path, tmp_path: Path) -> None:
    export(source, options("mask-png"))
    wanted = without_overlaps(source)
    paths = sorted((tmp_path / "out").glob("*/instances/*.png"))
    assert [int(path.stem[-6:]) for path in paths] == list(range(FRAMES))
    for path in paths:
        pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert set(np.unique(pixels)) == {0, 1001, 2002, 2003}
        for number in (1001, 2002, 2003):
            assert ((pixels == number) == wanted[int(path.stem[-6:]), number % 1000]).all()
        assert (path.parents[1] / "images" / f"{path.stem}.jpg").exists()
    assert (tmp_path / "out" / "train" / "instances" / "labels.txt").read_text() == "person\ncar\n"


@pytest.mark.slow
def test_ultralytics_trains_on_polygons(source: Path, tmp_path: Path) -> None:
    from ml_backend.detectors.setup import setup_ultralytics

    export(source, options("yolo-seg"))
    setup_ultralytics()
    from ultralytics import YOLO

    model = YOLO(make_tiny_yolo(tmp_path / "tiny-seg.pt", {0: "person", 1: "car"}, masks=True))
    training: dict[str, Any] = {"epochs": 1, "imgsz": 64, "batch": 4, "workers": 0, "device": "cpu", "plots": False}
    model.train(data=str(tmp_path / "out" / "data.yaml"), project=str(tmp_path / "runs"), verbose=False, **training)
    assert model.trainer is not None
    dataset = model.trainer.train_loader.dataset
    assert (len(dataset), sum(len(item["segments"]) for item in dataset.labels)) == (10, 30)
    losses = {name: float(value) for name, value in model.trainer.tloss.items()}
    assert losses["seg_loss"] > 0
    assert np.isfinite(list(losses.values())).all()
    assert (tmp_path / "runs" / "train" / "weights" / "last.pt").exists()


# -- what is missing, fails or changes


@pytest.mark.parametrize("name", [*sorted(MASK_FORMATS), "tight"])
def test_without_a_segmenter_nothing_is_written(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.delenv("SEGMENTER", raising=False)
    out = tmp_path / "out"
    arguments = ["--from-json", str(source), "--out", str(out)]
    wanted = ["--format", "yolo", "--tight-boxes"] if name == "tight" else ["--format", name]
    told = CliRunner().invoke(export_command, [*arguments, *wanted])
    assert told.exit_code == 1
    assert "Error: Masks are made by a model, and SEGMENTER is not set.\nFix:   Set SEGMENTER to" in told.output
    assert not out.exists()
    with pytest.raises(ConfigError, match="needs masks"):
        export_dataset(AnnotationReader.from_file(source), out, options("mots"))
    assert not out.exists()


def test_a_missing_segmenter_is_said_before_a_model_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SEGMENTER", raising=False)
    video = tmp_path / "clip.mp4"
    video.write_text("no model can look at this")
    told = CliRunner().invoke(
        render_command, [str(video), "--detector", "motion", "--masks", "--out", str(tmp_path / "out.mp4")]
    )
    assert (told.exit_code, "SEGMENTER is not set" in told.output) == (1, True), told.output


def test_tracks_of_masks_are_not_read(tmp_path: Path) -> None:
    arguments = ["--format", "mots", "--to-label-studio", str(tmp_path), "--out", str(tmp_path / "tasks.json")]
    told = CliRunner().invoke(export_command, arguments)
    assert (told.exit_code, "Tracks are not read from the format mots." in told.output) == (1, True), told.output


def test_boxes_as_drawn_cannot_be_tight(source: Path) -> None:
    with pytest.raises(ConfigError, match=r"cvat.*--tight-boxes"):
        export(source, options("cvat", tight_boxes=True))


def test_a_model_that_fails_ends_the_export_and_another_one_resumes_it(source: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="bright failed"):
        export(source, options("yolo-seg"), Bright(fails_at=5))
    out = tmp_path / "out"
    assert not (out / "data.yaml").exists()
    assert not list(out.rglob("*.txt"))
    assert export(source, options("yolo-seg")).continued == 0
    assert len(list((out / "labels").rglob("*.txt"))) == FRAMES
    again = Bright()
    assert (export(source, options("yolo-seg"), again).continued, again.calls) == (1, 0)
    other = Bright(model_id="bright-2")
    assert (export(source, options("yolo-seg"), other).continued, other.calls) == (0, FRAMES)


def test_too_many_tracks_for_pictures_are_said_before_masks_are_made(source: Path, tmp_path: Path) -> None:
    many = [walking(5, 40, region_id=f"r{number}") for number in range(1000)]
    write_export(source, [make_task("clip.mp4", make_annotation(*many))])
    reader, segmenter = AnnotationReader.from_file(source), Bright()
    export_dataset(reader, tmp_path / "out", options("mask-png"), segmenter=segmenter)
    (skipped,) = reader.skipped
    assert "1000 tracks do not fit" in str(skipped)
    assert (segmenter.calls, list((tmp_path / "out").rglob("*.png"))) == (0, [])


def test_where_the_model_finds_nothing_the_box_is_the_mask(source: Path, tmp_path: Path) -> None:
    write_export(source, [make_task("clip.mp4", make_annotation(*REGIONS, NOTHING))])
    result = export(source, replace(options("coco-seg"), classes=("person", "car")))
    assert result.notes == [f"bright found nothing in {FRAMES} of {4 * FRAMES} boxes: the box is the mask."]
    (path, _) = sorted((tmp_path / "out" / "annotations").glob("*.json"))
    coco = COCO(str(path))
    item = next(item for item in coco.anns.values() if item["bbox"] == [3.2, 192.0, 16.0, 24.0])
    rows, columns = np.nonzero(coco.annToMask(item))
    assert (columns.min(), rows.min(), columns.max(), rows.max()) == (3, 192, 19, 215)


def test_the_scripts_use_the_configured_model(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGMENTER", str(save_tiny_sam("sam2_video", tmp_path / "sam")))
    monkeypatch.setenv("DEVICE", "cpu")
    out = tmp_path / "out"
    arguments = ["--from-json", str(source), "--out", str(out), "--stride", "4"]
    told = CliRunner().invoke(export_command, ["--format", "mots", *arguments])
    assert told.exit_code == 0, told.output
    assert len((out / "train" / "clip" / "gt" / "gt.txt").read_text().splitlines()) >= 3
    video = str(tmp_path / "clip.mp4")
    plain, masked = tmp_path / "plain.mp4", tmp_path / "masked.mp4"
    for path, more in ((plain, []), (masked, ["--masks"])):
        told = CliRunner().invoke(render_command, [video, "--from-json", str(source), "--out", str(path), *more])
        assert told.exit_code == 0, told.output
    changed = np.array([difference.max() for difference in differences(plain, masked)])
    assert len(changed) == FRAMES
    assert changed.max() > 50


def differences(first: Path, second: Path) -> Iterator[np.ndarray]:
    for one, other in zip(read_frames(first), read_frames(second), strict=True):
        yield np.abs(one.image.astype(int) - other.image)
