"""``python scripts/check_annotations.py`` as a person runs it."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest

from tests.builders import CONFIG, ROOT, make_clip, make_tiny_yolo, run_command
from tests.conftest import LabelStudio
from tests.rendering.drawing import Key, make_region, write_export, write_prediction

pytestmark = pytest.mark.slow

COUNT, FPS = 40, 20
#: The bright block of the clip, in percent.
BLOCK: list[Key] = [(11, 3.1, 33.3, 12.5, 33.3, True), (40, 79.0, 33.3, 12.5, 33.3, True)]
#: A box on nothing that jumps over the picture at frame 21.
JUMPING: list[Key] = [
    (1, 5, 70, 10, 20, True),
    (20, 8, 70, 10, 20, True),
    (21, 70, 5, 10, 20, True),
    (40, 73, 5, 10, 20, True),
]


def region(keys: list[Key], name: str, **more: Any) -> dict[str, Any]:
    return make_region(keys, count=COUNT, fps=FPS, name=name, **more)


def run(*arguments: object, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    chosen = {"DATA_DIR": str(cwd / "data"), "EMBEDDER": "fallback", "IMGSZ": "96", **variables}
    return run_command("check-annotations", *arguments, cwd=cwd, **chosen)


def run_script(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "check_annotations.py"), *map(str, arguments)]
    environment = os.environ | {"DATA_DIR": str(cwd / "data")}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=300, check=False)


def summary(done: subprocess.CompletedProcess[str], code: int) -> dict[str, Any]:
    assert done.returncode == code, done.stdout + done.stderr
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return make_clip(tmp_path / "ein film.mp4", frames=COUNT, fps=FPS)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_yolo(tmp_path_factory.mktemp("weights") / "tiny.pt", {0: "person", 1: "bicycle"})


def test_a_fault_is_listed_and_shown(clip: Path, tiny: Path, tmp_path: Path) -> None:
    export = write_export(tmp_path / "export.json", clip.name, [region(BLOCK, "good"), region(JUMPING, "bad")])
    done = run("--from-json", export, "--report", "out/report.html", cwd=tmp_path, YOLO_WEIGHTS=str(tiny))
    facts = summary(done, 1)
    assert facts == {
        "videos": 1,
        "without_video": 0,
        "skipped": 0,
        "moments": 1,
        "severe": 1,
        "kinds": {"jump": 1},
        "report": "out/report.html",
    }
    (line,) = done.stdout.strip().splitlines()[:-1]
    for text in ("task 7", "frame 21", "1.00 s", "(bad)", "jump (severe)", "Split track", "at frame 21", "gain"):
        assert text in line
    page = (tmp_path / "out" / "report.html").read_text()
    assert "frame 21" in page
    assert "<script" not in page
    assert not re.search(r"(?:src|href)=\"(?!data:image/jpeg;base64,)", page)
    pictures = re.findall(r"data:image/jpeg;base64,([^\"]+)", page)
    before, after = (
        cv2.imdecode(np.frombuffer(base64.b64decode(text), np.uint8), cv2.IMREAD_COLOR) for text in pictures
    )
    assert before.shape == after.shape == (240, 320, 3)
    assert np.abs(before.astype(int) - after).max() > 50


def test_clean_annotations(clip: Path, tiny: Path, tmp_path: Path) -> None:
    export = write_export(tmp_path / "export.json", clip.name, [region(BLOCK, "good")])
    facts = summary(run("--from-json", export, cwd=tmp_path, YOLO_WEIGHTS=str(tiny)), 0)
    assert (facts["moments"], facts["videos"]) == (0, 1)


def test_a_prediction_without_its_video(tmp_path: Path) -> None:
    prediction = write_prediction(tmp_path / "p.json", [region(JUMPING, "bad", score=0.8)])
    done = run_script("--from-json", prediction, "--report", "r.html", "--no-detector", cwd=tmp_path)
    facts = summary(done, 1)
    assert (facts["without_video"], facts["kinds"]) == (1, {"jump": 1})
    assert "frame 21  1.00 s" in done.stdout
    assert "Without pictures and detections" in done.stderr
    page = (tmp_path / "r.html").read_text()
    assert "Without pictures and detections" in page
    assert "<img" not in page


def test_malformed_regions_are_named_and_the_others_reviewed(tmp_path: Path) -> None:
    bad = [
        {**region(BLOCK, "broken1"), "value": {"sequence": [{"frame": 1}]}},
        {**region(BLOCK, "broken2"), "value": None},
        region([(1 << 40, 1, 1, 5, 5, True)], "broken3"),
        region([(1, 1, 1, 5, 5, False)], "short"),
    ]
    export = write_export(tmp_path / "e.json", "gone.mp4", [*bad, region(JUMPING, "bad")])
    done = run("--from-json", export, "--no-detector", cwd=tmp_path)
    assert summary(done, 1)["moments"] == 1
    assert "Traceback" not in done.stderr
    for name in ("broken1", "broken2", "broken3"):
        assert name in done.stderr


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--from-json", "missing.json"], "missing.json cannot be read"),
        ([], "Give either --project or --from-json."),
        (["--from-json", "e.json", "--report", "r.pdf"], "wrong suffix"),
        (["--from-json", "e.json", "--report", "e.html"], "already exists"),
    ],
)
def test_errors(tmp_path: Path, arguments: list[str], text: str) -> None:
    write_export(tmp_path / "e.json", "gone.mp4", [region(BLOCK, "good")])
    (tmp_path / "e.html").write_text("mine")
    done = run(*arguments, "--no-detector", cwd=tmp_path)
    assert done.returncode == 2
    assert text in done.stderr
    assert "Fix:" in done.stderr
    assert (tmp_path / "e.html").read_text() == "mine"


def test_a_live_project(clip: Path, label_studio: LabelStudio, tmp_path: Path) -> None:
    """The prediction of one task and the annotation of another; a third has neither."""
    client = label_studio.client()
    project = client.create_project("Review", CONFIG)
    upload = client.upload_file(project, clip)
    predicted, annotated, _ = (client.create_task(project, {"video": upload, "fps": FPS}) for _ in range(3))
    bad = [region(JUMPING, "bad", score=0.8)]
    client.create_prediction(predicted, {"result": bad, "score": 0.8, "model_version": "v1"})
    client.create_prediction(annotated, {"result": bad, "score": 0.8, "model_version": "v1"})
    answer = httpx.post(
        f"{label_studio.url}/api/tasks/{annotated}/annotations/",
        headers=client.auth_headers(),
        json={"result": [region(BLOCK, "good", origin="manual")]},
        timeout=120,
    )
    answer.raise_for_status()
    where = {"LABEL_STUDIO_URL": label_studio.url, "LABEL_STUDIO_API_KEY": label_studio.token}
    done = run("--project", project, "--no-detector", cwd=tmp_path, **where)
    facts = summary(done, 1)
    assert (facts["videos"], facts["without_video"], facts["moments"]) == (2, 0, 1)
    assert done.stdout.startswith(f"task {predicted}  frame 21 ")
    only = run("--project", project, "--no-detector", "--predictions", "none", cwd=tmp_path, **where)
    assert summary(only, 0)["videos"] == 1
