"""Videos whose pixels are not square: other programs count the stored pixels, Label Studio the displayed ones."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from ml_backend.datasets.exporter import DatasetOptions
from ml_backend.datasets.formats.coco import read_coco
from ml_backend.datasets.formats.cvat import read_cvat
from ml_backend.datasets.formats.mot import read_mot
from ml_backend.datasets.formats.yolo import read_yolo
from ml_backend.datasets.importers import ImportedVideo, ImportResult, to_tasks
from ml_backend.datasets.sampling import Sampling
from ml_backend.datasets.video_files import VideoFolder
from ml_backend.label_studio.label_config import parse_label_config
from tests.builders import label_config
from tests.datasets.builders import key, make_annotation, make_region, make_task
from tests.datasets.test_exporter import export
from tests.video.builders import make_video

CONTROL = parse_label_config(label_config("person")).video_controls[0]
BOX = {"x": 25.0, "y": 25.0, "width": 10.0, "height": 20.0}  # percent; stored pixels: 80-112, 60-108 of 320x240


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    """A video of 320x240 pixels that is displayed at 640x240."""
    return make_video(tmp_path / "wide.mp4", aspect=Fraction(2), frames=10)


def first_box(videos: Iterable[ImportedVideo], folder: Path) -> dict[str, float]:
    result = ImportResult()
    (task,) = to_tasks(videos, VideoFolder(folder), CONTROL, result)
    assert not result.skipped
    keyframe = task["predictions"][0]["result"][0]["value"]["sequence"][0]
    return {name: keyframe[name] for name in BOX}


@pytest.mark.parametrize(
    ("seqinfo", "box"),
    [
        ("", "80,60,32,48"),
        ("[Sequence]\nname=wide\nimWidth=320\nimHeight=240\n", "80,60,32,48"),
        ("[Sequence]\nname=wide\nimWidth=640\nimHeight=240\n", "160,60,64,48"),
    ],
)
def test_mot(wide: Path, tmp_path: Path, seqinfo: str, box: str) -> None:
    (tmp_path / "wide" / "gt").mkdir(parents=True)
    (tmp_path / "wide" / "gt" / "gt.txt").write_text(f"1,1,{box},1,1,1\n2,1,{box},1,1,1\n")
    if seqinfo:
        (tmp_path / "wide" / "seqinfo.ini").write_text(seqinfo)
    assert first_box(read_mot(tmp_path / "wide"), wide.parent) == pytest.approx(BOX, abs=0.01)


READERS: dict[str, Any] = {"yolo-track": read_yolo, "coco": read_coco, "mot": read_mot, "cvat": read_cvat}


@pytest.mark.parametrize("name", READERS)
def test_there_and_back(wide: Path, tmp_path: Path, name: str) -> None:
    region = make_region(key(1, 25.0, y=25.0, width=10.0, height=20.0), frames_count=10, duration=10 / 30)
    options = DatasetOptions(format=name, sampling=Sampling())
    export(tmp_path, [make_task("wide.mp4", make_annotation(region))], options)
    out = tmp_path / "out"
    if name == "cvat":
        written = ElementTree.parse(out / "wide.xml")
        size = [written.findtext(f"meta/task/original_size/{side}") for side in ("width", "height")]
        box = written.find("track/box")
        assert size == ["320", "240"]
        assert box is not None
        assert [float(box.attrib[side]) for side in ("xtl", "ytl", "xbr", "ybr")] == [80, 60, 112, 108]
    assert first_box(READERS[name](out), wide.parent) == pytest.approx(BOX, abs=0.2)
