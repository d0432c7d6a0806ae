"""Numbers of what has been annotated."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from rich.console import Console

from ml_backend.datasets.annotation_reader import AnnotationReader
from ml_backend.datasets.statistics import AnnotationCounts, as_table, collect_statistics, write_csv
from ml_backend.label_studio.label_config import parse_label_config
from tests.builders import label_config
from tests.datasets.builders import key, make_annotation, make_region, make_task, write_export
from tests.datasets.test_annotations_json import run
from tests.video.builders import make_video

PERSON = make_region(key(1, 0, width=20, height=30), key(11, 0, enabled=False, width=20, height=30))
OVERLAPPING = make_region(key(6, 50, width=40, height=60), key(15, 50, enabled=False, width=40, height=60))
CAR = make_region(key(21, 0, width=5, height=5), label="car", origin="prediction")


@pytest.fixture
def export(tmp_path: Path) -> Path:
    make_video(tmp_path / "a.mp4")
    make_video(tmp_path / "b.mp4", fps=10, frames=20)
    regions = [region | {"id": f"r{n}"} for n, region in enumerate((PERSON, OVERLAPPING, CAR))]
    whole = make_region(key(1, 0), frames_count=20, duration=2)
    tasks = [
        make_task("a.mp4", make_annotation(*regions, completed_by={"email": "a@b.c"})),
        make_task("b.mp4", make_annotation(whole, completed_by={"email": "d@e.f"}), task_id=2, fps=10),
        make_task("gone.mp4", make_annotation(whole), task_id=3),
    ]
    return write_export(tmp_path / "e.json", tasks)


def test_numbers(export: Path, tmp_path: Path) -> None:
    source = AnnotationReader.from_file(export, config=parse_label_config(label_config("person", "dog")))
    done = []
    found = collect_statistics(source, lambda *each: done.append(each))
    assert (found.videos, found.video_seconds, len(source.skipped)) == (2, pytest.approx(3), 1)
    assert done == [(1, 3), (2, 3)]
    person = found.labels["person"]
    assert (person.tracks, person.manual, person.videos) == (3, 3, 2)
    assert person.boxes == 11 + 10 + 20
    assert person.frames == 15 + 20
    assert person.seconds == pytest.approx(21 / 30 + 2)
    # 64 x 72 pixels are a square of 68; 128 x 144 one of 136
    assert [person.size(q) for q in (0, 0.5, 1)] == [68, 68, 136]
    car = found.labels["car"]
    assert (car.tracks, car.manual, car.boxes) == (1, 0, 10)
    assert (found.labels["dog"].boxes, found.labels["dog"].size(0.5)) == (0, 0)
    annotator = found.annotators["a@b.c"]
    assert (annotator.tracks, annotator.boxes, annotator.frames, annotator.videos) == (3, 31, 25, 1)
    write_csv(found, tmp_path / "s.csv")
    with (tmp_path / "s.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["person", "car", "dog", "a@b.c", "d@e.f"]
    assert (rows[0]["boxes"], rows[1]["share"]) == ("41", str(round(10 / 51, 4)))


def test_a_model_is_no_annotator(export: Path) -> None:
    tasks = json.loads(export.read_text())
    tasks[1]["predictions"] = [
        {"id": 1, "model_version": "yolo11n-1.base", "result": tasks[1]["annotations"][0]["result"]}
    ]
    tasks[1]["annotations"] = []
    write_export(export, tasks)
    found = collect_statistics(AnnotationReader.from_file(export, predictions="missing"))
    assert (set(found.annotators), found.annotators["a@b.c"].tracks) == ({"a@b.c"}, 3)
    assert (set(found.models), found.models["yolo11n-1.base"].tracks) == ({"yolo11n-1.base"}, 1)
    rows = {row["name"]: row["kind"] for row in found.rows()}
    assert rows == {"person": "label", "car": "label", "a@b.c": "annotator", "yolo11n-1.base": "model"}


def test_nothing_gives_an_empty_table(tmp_path: Path) -> None:
    found = collect_statistics(AnnotationReader.from_file(write_export(tmp_path / "e.json", [])))
    console = Console(width=140, record=True)
    console.print(as_table(found))
    assert "0 videos" in console.export_text()
    write_csv(found, tmp_path / "s.csv")
    assert (tmp_path / "s.csv").read_text() == "kind,name\n"
    assert AnnotationCounts().size(0.5) == 0


def test_from_the_command_line(export: Path, tmp_path: Path) -> None:
    arguments = ["--from-json", export, "--out", "a.json", "--statistics", "--statistics-csv", "s.csv"]
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    assert "size in px" in done.stdout
    assert "a@b.c" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("{")
    assert done.stderr.count("gone.mp4") == 2  # in the list, and in the reason
    assert (tmp_path / "s.csv").is_file()
