"""``python scripts/predict_video.py`` as a person runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ml_backend.cli.dev_stack.state import StackState
from tests.builders import CONFIG, NO_RECTANGLE, ROOT, label_config, make_clip, make_tiny_yolo, run_command

pytestmark = pytest.mark.slow

SCRIPT = ROOT / "scripts" / "predict_video.py"


def run(*arguments: object, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return run_command("predict-video", *arguments, cwd=cwd, DATA_DIR=str(cwd / "data"), **variables)


def run_script(*arguments: object, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own, whose stderr lists what it has imported."""
    command = [sys.executable, "-X", "importtime", str(SCRIPT), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DATA_DIR": str(cwd / "data"), **variables}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=300, check=False)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return make_clip(tmp_path / "ein film.mp4")


def test_writes_a_prediction_that_label_studio_can_import(clip: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.xml"
    config.write_text(CONFIG)
    out, mot = tmp_path / "new" / "folder" / "p.json", tmp_path / "tracks.txt"
    done = run_script(clip, "--out", out, "--config", config, "--detector", "motion", "--tracks", mot, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.strip().splitlines()[-1])
    assert {"frames", "seconds", "fps", "tracks", "keyframes", "model_version"} <= set(summary)
    assert (summary["frames"], summary["tracks"], summary["detector"]) == (40, 1, "motion")
    prediction = json.loads(out.read_text())
    assert set(prediction) == {"result", "score", "model_version"}
    assert prediction["model_version"] == summary["model_version"]
    (region,) = prediction["result"]
    assert len(region["value"]["sequence"]) == summary["keyframes"]
    assert region["value"]["framesCount"] == 40
    rows = [line.split(",") for line in mot.read_text().splitlines()]
    assert len(rows) == summary["boxes"]
    assert {len(row) for row in rows} == {10}
    assert [int(row[0]) for row in rows] == sorted({int(row[0]) for row in rows})
    assert not [file for file in out.parent.iterdir() if file != out]
    assert "40/40" in done.stderr


def test_frame_rate_and_default_config(clip: Path, tmp_path: Path) -> None:
    done = run(clip, "--out", "p.json", "--detector", "motion", "--frame-rate", "10", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (region,) = json.loads((tmp_path / "p.json").read_text())["result"]
    assert region["value"]["framesCount"] == 20
    assert region["value"]["labels"] == ["object"]


@pytest.mark.parametrize(("rate", "count"), [("25", 50), ("", 48), ("$rate", 40)])
def test_the_configs_frame_rate_is_label_studios(clip: Path, tmp_path: Path, rate: str, count: int) -> None:
    (tmp_path / "config.xml").write_text(label_config("thing", frame_rate=rate))
    done = run(clip, "--out", "p.json", "--detector", "motion", "--config", "config.xml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (region,) = json.loads((tmp_path / "p.json").read_text())["result"]
    assert region["value"]["framesCount"] == count


def test_real_weights(clip: Path, tmp_path: Path, yolo_weights: Path) -> None:
    done = run(clip, "--out", "p.json", "--weights", yolo_weights, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["model_version"].startswith(yolo_weights.stem)


def test_openvino_predicts_without_what_takes_long_to_import(clip: Path, tmp_path: Path) -> None:
    weights = make_tiny_yolo(tmp_path / "tiny.pt", {0: "person", 1: "bicycle"})
    (tmp_path / "config.xml").write_text(CONFIG)
    for _ in range(2):  # the first makes the export, in another process
        done = run_script(
            *(clip, "--out", "p.json", "--weights", weights, "--config", "config.xml"), cwd=tmp_path, ENGINE="openvino"
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert json.loads(done.stdout.splitlines()[-1])["engine"] == "openvino fp32"
        imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
        assert "openvino" in imported
        assert not imported & {"torch", "torchvision", "ultralytics", "transformers"}
        assert not imported & {"scipy", "sklearn", "sqlalchemy", "joblib", "rich"}


def test_a_running_stacks_settings_are_used(clip: Path, tmp_path: Path) -> None:
    settings = {"YOLO_WEIGHTS": "of-the-stack.pt", "DETECTOR": "motion"}
    StackState(os.getpid(), "http://localhost:1", "http://localhost:2", settings).save(tmp_path / "data")
    done = run(clip, "--out", "p.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["detector"] == "motion"
    fails(run(clip, "--out", "p.json", "--detector", "yolo", cwd=tmp_path), "of-the-stack.pt")


def test_the_motion_detector_in_place_of_missing_weights_is_said(clip: Path, tmp_path: Path) -> None:
    done = run(clip, "--out", "p.json", "--mode", "yolo", cwd=tmp_path, HTTPS_PROXY="http://127.0.0.1:1")
    assert done.returncode == 0, done.stderr
    (note,) = [line for line in done.stderr.splitlines() if line.startswith("Note: ")]
    assert "yolo11n.pt is not available" in note
    assert "motion detector" in note
    assert f"put the file at {tmp_path}/data/weights/yolo11n.pt or set YOLO_WEIGHTS" in note


def fails(done: subprocess.CompletedProcess[str], *texts: str) -> None:
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "Error: " in done.stderr
    for text in texts:
        assert text in done.stderr


@pytest.mark.parametrize("content", [None, b"", b"this is no video"])
def test_unusable_video(tmp_path: Path, content: bytes | None) -> None:
    video, out = tmp_path / "v.mp4", tmp_path / "p.json"
    if content is not None:
        video.write_bytes(content)
    out.write_text("from earlier")
    fails(run(video, "--out", out, "--detector", "motion", cwd=tmp_path), "v.mp4", "Fix: ")
    assert out.read_text() == "from earlier"
    assert sorted(file.name for file in tmp_path.iterdir()) in (["p.json"], ["p.json", "v.mp4"])


def test_missing_weights(clip: Path, tmp_path: Path) -> None:
    fails(run(clip, "--out", "p.json", "--weights", "no.pt", cwd=tmp_path), "no.pt", "YOLO_WEIGHTS")


@pytest.mark.parametrize("config", [None, NO_RECTANGLE, "<View", label_config("a").replace("$video", "video")])
def test_unusable_config(clip: Path, tmp_path: Path, config: str | None) -> None:
    path = tmp_path / "config.xml"
    if config:
        path.write_text(config)
    done = run(clip, "--out", "p.json", "--config", path, "--detector", "motion", cwd=tmp_path)
    fails(done, "Fix: ")
    assert not (tmp_path / "p.json").exists()


def test_config_in_another_encoding(clip: Path, tmp_path: Path) -> None:
    path = tmp_path / "config.xml"
    path.write_bytes(CONFIG.replace("thing", "dïng").encode("latin-1"))
    fails(run(clip, "--out", "p.json", "--config", path, "--detector", "motion", cwd=tmp_path), "config.xml")


def test_wrong_setting(clip: Path, tmp_path: Path) -> None:
    fails(run(clip, "--out", "p.json", cwd=tmp_path, CONF="high"), "CONF")


@pytest.mark.parametrize("rate", ["0", "-5", "nan", "1e12"])
def test_frame_rate_that_is_none(clip: Path, tmp_path: Path, rate: str) -> None:
    done = run(clip, "--out", "p.json", "--detector", "motion", "--frame-rate", rate, cwd=tmp_path)
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
    assert "frame" in done.stderr.lower()
    assert not (tmp_path / "p.json").exists()


def test_place_that_cannot_be_written(clip: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run(clip, "--out", tmp_path / "file" / "p.json", "--detector", "motion", cwd=tmp_path)
    fails(done, "cannot be created", "--out")
