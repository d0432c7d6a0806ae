"""annotations.json: the format to the letter, and the script as a person runs it."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from ml_backend.core.errors import ConfigError, StorageError
from ml_backend.core.files import UniqueNames, safe_name
from ml_backend.datasets.annotation_reader import AnnotationReader
from ml_backend.datasets.formats.annotations_json import (
    WrittenAnnotations,
    export_annotations,
    frames_at_rate,
    parse_sample,
    whole_pixels,
)
from tests.builders import CONFIG, ROOT, run_command, wait_for
from tests.datasets.builders import key, make_annotation, make_region, make_task, write_export
from tests.video.builders import make_video

SCRIPT = ROOT / "scripts" / "export_annotations.py"
SCHEMA = json.loads((ROOT / "docs" / "annotations.schema.json").read_text())
MOVING = make_region(key(1, 10), key(11, 30), key(21, 30, enabled=False))


def run(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return run_command("export-annotations", *arguments, cwd=cwd)


def rows_of(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(rows, SCHEMA)
    return rows


def rows_for(tmp_path: Path, *regions: dict[str, Any], sample: str = "all", **video: Any) -> list[dict[str, Any]]:
    make_video(tmp_path / "clip.mp4", **video)
    task = make_task("clip.mp4", make_annotation(*regions), fps=float(video.get("fps", 30)))
    source = AnnotationReader.from_file(write_export(tmp_path / "e.json", [task]))
    export_annotations(source, tmp_path / "out" / "annotations.json", sample=parse_sample(sample))
    assert source.skipped == []
    return rows_of(tmp_path / "out" / "annotations.json")


def test_rows_are_exactly_as_agreed(tmp_path: Path) -> None:
    auto = make_region(key(1, 50), key(3, 50, enabled=False), label="car", region_id="r2", origin="prediction")
    auto |= {"score": 0.85, "meta": {"original_class": "truck"}}
    rows = rows_for(tmp_path, MOVING, auto)
    assert rows[0] == {"frame": "0.000", "label": "person", "bbox": [32, 24, 64, 72], "source": "manual"}
    assert rows[1] == {
        "frame": "0.000",
        "label": "car",
        "bbox": [160, 24, 64, 72],
        "confidence": 0.85,
        "source": "auto",
        "original_class": "truck",
    }
    assert list(rows[1]) == ["frame", "label", "bbox", "confidence", "source", "original_class"]
    assert len(rows) == 21 + 3
    assert [(float(row["frame"]), row["label"] != "person") for row in rows] == sorted(
        (float(row["frame"]), row["label"] != "person") for row in rows
    )
    assert rows[2]["frame"] == "0.033"


def test_ids_on_request(tmp_path: Path) -> None:
    """A row is found again in a dataset's images, and a track is followed through the rows."""
    make_video(tmp_path / "clip.mp4")
    later = make_region(key(6, 50), key(8, 50, enabled=False), label="car", region_id="r2")
    write_export(tmp_path / "e.json", [make_task("clip.mp4", make_annotation(later, MOVING))])
    done = run("--from-json", "e.json", "--out", "a.json", "--sample", "keyframes", "--with-ids", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = [(row["frame"], row["frame_number"], row["track_id"], row["label"]) for row in rows_of(tmp_path / "a.json")]
    assert found == [
        ("0.000", 0, 1, "person"),
        ("0.167", 5, 2, "car"),
        ("0.233", 7, 2, "car"),
        ("0.333", 10, 1, "person"),
        ("0.667", 20, 1, "person"),
    ]


def test_keyframes_only_of_each_track(tmp_path: Path) -> None:
    other = make_region(key(6, 50), key(8, 50, enabled=False), label="car", region_id="r2")
    rows = rows_for(tmp_path, MOVING, other, sample="keyframes")
    assert [(row["frame"], row["label"]) for row in rows] == [
        ("0.000", "person"),
        ("0.167", "car"),
        ("0.233", "car"),
        ("0.333", "person"),
        ("0.667", "person"),
    ]


@pytest.mark.parametrize(
    ("sample", "frames"), [("3", ["0.000", "0.333", "0.667"]), ("1", ["0.000"]), ("0.1", ["0.000"])]
)
def test_so_many_a_second(tmp_path: Path, sample: str, frames: list[str]) -> None:
    assert [row["frame"] for row in rows_for(tmp_path, MOVING, sample=sample)] == frames


def test_frames_at_rate_of_a_variable_rate() -> None:
    times = np.array([0, 0.1, 0.26, 0.49, 0.5, 1.3, 1.31, 1.6])
    assert frames_at_rate(times, 2).tolist() == [0, 4, 5, 7]
    assert frames_at_rate(times, 1000).tolist() == list(range(8))
    assert frames_at_rate(np.arange(300) / 29.97, 29.97).tolist() == list(range(300))


@pytest.mark.parametrize("text", ["", "some", "0", "-1", "nan", "inf"])
def test_samplings_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match="sampling"):
        parse_sample(text)


@pytest.mark.parametrize(
    ("fps", "times"), [(Fraction(30000, 1001), ["0.000", "0.033", "0.067"]), (25, ["0.000", "0.040", "0.080"])]
)
def test_times_are_the_files(tmp_path: Path, fps: Any, times: list[str]) -> None:
    rows = rows_for(tmp_path, make_region(key(1, 10), frames_count=30, duration=float(30 / fps)), fps=fps)
    assert [row["frame"] for row in rows[:3]] == times
    assert len(rows) == 30


def test_times_of_a_variable_rate(tmp_path: Path) -> None:
    pts = [0, 40, 100, 300, 320, 800]
    rows = rows_for(tmp_path, make_region(key(1, 10), frames_count=24), frames=6, pts=pts, time_base=Fraction(1, 1000))
    assert [row["frame"] for row in rows] == ["0.000", "0.040", "0.100", "0.300", "0.320", "0.800"]


def test_turned_video_of_odd_size(tmp_path: Path) -> None:
    region = make_region(key(1, 0, y=0, width=100, height=100))
    rows = rows_for(tmp_path, region, rotation=90, size=(182, 320), codec="libx264")
    assert rows[0]["bbox"] == [0, 0, 182, 320]
    odd = rows_for(tmp_path, region, size=(321, 241), codec="libx264rgb", pix_fmt="rgb24")
    assert odd[0]["bbox"] == [0, 0, 321, 241]


def test_whole_pixels_stay_in_the_picture() -> None:
    assert whole_pixels([0.4, 0.5, 10.49, 10.5], 320, 240) == [0, 1, 10, 10]
    assert whole_pixels([319.8, 239.9, 320, 240], 320, 240) == [319, 239, 1, 1]
    assert whole_pixels([5.1, 5.1, 5.2, 5.2], 320, 240) == [5, 5, 1, 1]


def test_regions_without_label_are_left_out_and_counted(tmp_path: Path) -> None:
    make_video(tmp_path / "clip.mp4")
    task = make_task("clip.mp4", make_annotation(MOVING, make_region(key(1, 10), label="", region_id="r2")))
    written = export_annotations(
        AnnotationReader.from_file(write_export(tmp_path / "e.json", [task])), tmp_path / "a.json", sample="keyframes"
    )
    assert (written.rows, written.unlabelled) == (3, 1)


@pytest.mark.slow
def test_the_script(tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    make_video(videos / "straße 1.mp4")
    make_video(videos / "other.mp4")
    tasks = [
        make_task("straße_1.mp4", make_annotation(MOVING | {"value": {**MOVING["value"], "labels": ["läufer"]}})),
        make_task("other.mp4", make_annotation(), task_id=2),
        make_task("gone.mp4", make_annotation(MOVING), task_id=3),
    ]
    write_export(tmp_path / "e.json", tasks)
    arguments = (
        "--from-json",
        "e.json",
        "--videos",
        "videos",
        "--out",
        "a.json",
        "--with-video",
        "--sample",
        "keyframes",
    )
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    assert "gone.mp4" in done.stderr
    assert "3/3" in done.stderr
    assert "Traceback" not in done.stderr
    rows = rows_of(tmp_path / "a.json")
    assert [(row["label"], row["video"]) for row in rows] == [("läufer", "straße_1.mp4")] * 3
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary == {"videos": 2, "rows": 3, "files": ["a.json"], "skipped": 1}
    done = run("--from-json", "e.json", "--videos", "videos", "--out", "one.json", "--task", 1, cwd=tmp_path)
    assert json.loads(done.stdout.splitlines()[-1])["videos"] == 1


def test_the_script_with_a_label_config(tmp_path: Path) -> None:
    make_video(tmp_path / "clip.mp4", fps=25)
    (tmp_path / "config.xml").write_text(CONFIG)
    first = make_annotation(MOVING)
    task = make_task("clip.mp4", first, make_annotation(annotation_id=2, completed_by={"email": "b@c.d"}), fps=25)
    write_export(tmp_path / "e.json", [task])
    done = run("--from-json", "e.json", "--config", "config.xml", "--out", "a.json", "--all-annotators", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {row["annotator"] for row in rows_of(tmp_path / "a.json")} == {"1"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--project"),
        (["--project", "1", "--from-json", "e.json"], "--project"),
        (["--from-json", "absent.json"], "absent.json"),
        (["--from-json", "e.json", "--sample", "x"], "sampling"),
        (["--from-json", "e.json", "--videos", "absent"], "absent"),
        (["--from-json", "e.json", "--config", "absent.xml"], "absent.xml"),
    ],
)
def test_the_script_says_what_is_wrong(tmp_path: Path, arguments: list[str], said: str) -> None:
    write_export(tmp_path / "e.json", [])
    done = run(*arguments, "--out", "a.json", cwd=tmp_path)
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "a.json").exists()


def test_predictions_are_left_out_unless_asked_for(tmp_path: Path) -> None:
    make_video(tmp_path / "clip.mp4")
    write_export(tmp_path / "e.json", [make_task("clip.mp4", predictions=[predicted()])])
    done = run("--from-json", "e.json", "--out", "a.json", cwd=tmp_path)
    assert done.returncode == 0
    assert "--predictions missing" in done.stderr
    assert rows_of(tmp_path / "a.json") == []
    arguments = ["--from-json", "e.json", "--out", "a.json", "--predictions", "missing", "--all-annotators"]
    done = run(*arguments, cwd=tmp_path)
    assert (done.returncode, "--predictions" in done.stderr) == (0, False)
    rows = rows_of(tmp_path / "a.json")
    assert [row["source"] for row in rows] == ["auto"] * 21
    assert not any("annotator" in row for row in rows), "a model is no annotator"


def predicted() -> dict[str, Any]:
    return {"id": 1, "model_version": "yolo11n-1.base", "score": 0.5, "result": [MOVING]}


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    source = AnnotationReader.from_file(write_export(tmp_path / "e.json", []))
    with pytest.raises(StorageError):
        export_annotations(source, tmp_path / "file" / "a.json")


# -- whole files or none


@pytest.fixture
def tasks(tmp_path: Path) -> list[dict[str, Any]]:
    """Three videos, ten rows each."""
    made = []
    for n in range(1, 4):
        make_video(tmp_path / f"v{n}.mp4", frames=10)
        regions = [make_region(key(1, 10 * n), frames_count=10)]
        made.append(make_task(f"v{n}.mp4", make_annotation(*regions), task_id=n))
    return made


def export(tmp_path: Path, tasks: list[dict[str, Any]], **options: Any) -> tuple[WrittenAnnotations, AnnotationReader]:
    source = AnnotationReader.from_file(write_export(tmp_path / "e.json", tasks))
    return export_annotations(source, tmp_path / "out", with_video=True, **options), source


def test_an_interrupted_export_leaves_whole_files(tmp_path: Path, tasks: list[dict[str, Any]]) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    export(tmp_path, tasks)
    before = (tmp_path / "out").read_bytes()
    for task in tasks:
        task["annotations"][0]["result"][0]["value"]["labels"] = ["truck"]
    with pytest.raises(KeyboardInterrupt):
        export(tmp_path, tasks, progress=interrupt)
    assert {path.name for path in tmp_path.iterdir()} == {"e.json", "out", "v1.mp4", "v2.mp4", "v3.mp4"}
    assert (tmp_path / "out").read_bytes() == before
    written, _ = export(tmp_path, tasks)
    assert (written.videos, written.rows) == (3, 30)
    assert {row["label"] for row in rows_of(tmp_path / "out")} == {"truck"}


def test_rows_of_a_video_that_has_disappeared_go(tmp_path: Path, tasks: list[dict[str, Any]]) -> None:
    export(tmp_path, tasks)
    (tmp_path / "v2.mp4").unlink()
    written, source = export(tmp_path, tasks)
    assert (written.videos, written.rows, len(source.skipped)) == (2, 20, 1)
    assert {row["video"] for row in rows_of(tmp_path / "out")} == {"v1.mp4", "v3.mp4"}


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT])
def test_a_script_that_is_ended_leaves_nothing(tmp_path: Path, ending: signal.Signals) -> None:
    make_video(tmp_path / "v.mp4", frames=4000, size=(32, 32), options={"preset": "ultrafast"})
    regions = [make_region(key(1, x), frames_count=4000, duration=4000 / 30, region_id=f"{x}") for x in range(60)]
    write_export(tmp_path / "e.json", [make_task("v.mp4", make_annotation(*regions), task_id=1)])
    before = sorted(tmp_path.iterdir())
    command = [sys.executable, str(SCRIPT), "--from-json", "e.json", "--out", "a.json"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: sorted(tmp_path.iterdir()) != before)
    process.send_signal(ending)
    _, errors = process.communicate(timeout=300)
    assert process.returncode != 0
    assert "Traceback" not in errors
    assert sorted(tmp_path.iterdir()) == before


def test_a_disk_that_takes_no_more(tmp_path: Path, tasks: list[dict[str, Any]]) -> None:
    """The system refuses files past 2,000 bytes."""
    write_export(tmp_path / "e.json", tasks)
    before = sorted(tmp_path.iterdir())

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))

    command = [sys.executable, "-B", str(SCRIPT), "--from-json", "e.json", "--out", "a.json", "--with-video"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, timeout=120, check=False, preexec_fn=limit
    )
    assert done.returncode == 1, done.stderr
    assert "Cannot write" in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(tmp_path.iterdir()) == before


def test_names() -> None:
    names = UniqueNames()
    assert [names.take(*each) for each in (("clip", 1), ("Clip", 2), ("clip", 2), ("clip", 2))] == [
        "clip",
        "Clip-2",
        "clip-2-2",
        "clip-2-3",
    ]
    assert safe_name("../a/b:c") == "_a_b_c"
    assert safe_name("straße läufer") == "straße läufer"
    assert safe_name("...") == "video"
    assert len(safe_name("ä" * 500).encode()) <= 180
