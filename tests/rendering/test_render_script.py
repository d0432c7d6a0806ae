"""``render_video``, in this process where nothing is said about processes."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ml_backend.video.probe import probe
from ml_backend.video.reader import read_frames
from tests.builders import CONFIG as THING
from tests.builders import ROOT, make_clip, make_tiny_yolo, repeat_clip, run_command
from tests.rendering.drawing import CONFIG, GREEN, MAGENTA, make_region, painted, write_export, write_prediction
from tests.video.builders import make_video

pytestmark = pytest.mark.slow

SCRIPT = ROOT / "scripts" / "render_video.py"
MOVING = [(4, 20, 50, 10, 20, True), (25, 60, 40, 20, 30, False)]


def command(*arguments: object) -> list[str]:
    return [sys.executable, str(SCRIPT), *map(str, arguments)]


def run(*arguments: object, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return run_command("render-video", *arguments, cwd=cwd, **variables)


def run_script(*arguments: object, cwd: Path, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), cwd=cwd, capture_output=True, text=True, check=False, **more)


def summary(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def fails(done: subprocess.CompletedProcess[str], *texts: str, code: int = 1) -> None:
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    for text in texts:
        assert text in done.stderr


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return make_video(tmp_path / "mein Film.mp4", size=(640, 480), audio_s=1.0)


@pytest.fixture
def export(tmp_path: Path, clip: Path) -> Path:
    by_hand = make_region(MOVING, count=30, fps=30, label="thing", origin="manual")
    predicted = make_region(MOVING, count=30, fps=30, label="ding", name="p", score=0.75)
    return write_export(tmp_path / "export.json", clip.name, [by_hand], [predicted])


def test_an_export(clip: Path, export: Path, tmp_path: Path) -> None:
    (tmp_path / "config.xml").write_text(CONFIG)
    out = tmp_path / "new" / "out.mp4"
    drawn = ["--trails", "--legend", "--config", tmp_path / "config.xml"]
    done = run_script(clip, "--from-json", export, "--task", 7, "--out", out, *drawn, cwd=tmp_path)
    facts = summary(done)
    assert {"frames", "seconds", "fps", "width", "height", "tracks", "labels", "note"} == set(facts)
    assert (facts["frames"], facts["labels"]) == (30, [{"thing": 1}])
    assert "30/30" in done.stderr
    assert probe(out).has_audio
    image = list(read_frames(out))[15].image
    assert painted(image, GREEN, 90).any()
    assert list(out.parent.iterdir()) == [out]


def test_a_prediction_and_a_stretch(clip: Path, tmp_path: Path) -> None:
    prediction = write_prediction(tmp_path / "p.json", [make_region(MOVING, count=30, fps=30, label="사람")])
    options = [
        "--start",
        "0.5",
        "--end",
        "0.8",
        "--height",
        "120",
        "--no-sound",
        "--hide",
        "ids",
        "--hide",
        "confidence",
    ]
    done = run(clip, "--prediction", prediction, "--out", "o.mp4", *options, cwd=tmp_path)
    facts = summary(done)
    assert (facts["frames"], facts["width"], facts["height"]) == (9, 160, 120)
    assert not probe(tmp_path / "o.mp4").has_audio


def test_two_side_by_side(clip: Path, export: Path, tmp_path: Path) -> None:
    (tmp_path / "config.xml").write_text(CONFIG)
    config = ["--config", tmp_path / "config.xml"]
    words = ["annotations", "predictions"]
    facts = summary(run(clip, "--from-json", export, "--compare", *words, "--out", "o.mp4", *config, cwd=tmp_path))
    assert facts["labels"] == [{"thing": 1}, {"ding": 1}]
    assert facts["width"] > 1280
    image = list(read_frames(tmp_path / "o.mp4"))[15].image
    assert painted(image[:, :640], GREEN, 90).any()
    assert painted(image[:, 650:], MAGENTA, 110).any()
    prediction = write_prediction(tmp_path / "p.json", [])
    facts = summary(run(clip, "--compare", export, prediction, "--out", "p.mp4", cwd=tmp_path))
    assert facts["tracks"] == [1, 0]


def test_a_model_looks_now(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mp4")
    facts = summary(run(clip, "--detector", "motion", "--out", "motion.mp4", "--legend", cwd=tmp_path))
    assert (facts["frames"], facts["tracks"]) == (40, [1])
    (tmp_path / "c.xml").write_text(THING.replace('value="thing"', 'value="thing" predicted_values="thing,object"'))
    weights = make_tiny_yolo(tmp_path / "tiny.pt", {0: "thing"})
    both = ["--compare", weights, "motion", "--mode", "yolo", "--config", tmp_path / "c.xml"]
    done = run(clip, *both, "--out", "both.mp4", cwd=tmp_path)
    facts = summary(done)
    assert facts["tracks"][1] == 1
    assert facts["width"] > 640
    assert "Pre-annotating" in done.stderr


def test_nothing_is_overwritten_unasked(clip: Path, export: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.mp4"
    out.write_bytes(b"from earlier")
    fails(run(clip, "--from-json", export, "--out", out, cwd=tmp_path), "o.mp4 already exists", "--force")
    assert out.read_bytes() == b"from earlier"
    summary(run(clip, "--from-json", export, "--out", out, "--force", cwd=tmp_path))
    assert probe(out).frames == 30
    fails(run(clip, "--from-json", export, "--out", clip, "--force", cwd=tmp_path), "the video itself")


def test_what_cannot_be_done_is_said(clip: Path, export: Path, tmp_path: Path) -> None:
    usage = {"code": 2}
    fails(run(clip, "--out", "o.mp4", cwd=tmp_path), "--from-json", **usage)
    fails(run(clip, "--out", "o.mp4", "--from-json", export, "--prediction", export, cwd=tmp_path), "one", **usage)
    fails(run(tmp_path / "no.mp4", "--from-json", export, "--out", "o.mp4", cwd=tmp_path), "no.mp4")
    fails(run(clip, "--from-json", tmp_path / "no.json", "--out", "o.mp4", cwd=tmp_path), "no.json")
    fails(run(clip, "--from-json", export, "--task", 5, "--out", "o.mp4", cwd=tmp_path), "task 5")
    fails(run(clip, "--from-json", export, "--start", 7, "--out", "o.mp4", cwd=tmp_path), "--start")
    fails(run(clip, "--from-json", export, "--font", export, "--out", "o.mp4", cwd=tmp_path), "font")
    fails(run(clip, "--weights", "no.pt", "--out", "o.mp4", "--mode", "yolo", cwd=tmp_path), "no.pt")
    assert not (tmp_path / "o.mp4").exists()


def test_a_full_disk_is_said(clip: Path, export: Path, tmp_path: Path) -> None:
    """The system refuses to write more than a few kilobytes to one file."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    before = sorted(tmp_path.iterdir())
    done = run_script(clip, "--from-json", export, "--out", "o.mp4", cwd=tmp_path, preexec_fn=limit)
    fails(done, "Cannot write", "o.mp4", "Fix:")
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT])
def test_ended_from_outside(tmp_path: Path, ending: signal.Signals) -> None:
    clip = repeat_clip(make_clip(tmp_path / "short.mp4", frames=100, size=(640, 480)), tmp_path / "clip.mp4", 20)
    prediction = write_prediction(tmp_path / "p.json", [make_region(MOVING, count=2000, fps=20)])
    before = sorted(tmp_path.iterdir())
    process = subprocess.Popen(
        command(clip, "--prediction", prediction, "--out", "o.mp4"), cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while sorted(tmp_path.iterdir()) == before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert sorted(tmp_path.iterdir()) != before, "it has begun to write"
    process.send_signal(ending)
    _, errors = process.communicate(timeout=300)
    assert process.returncode != 0
    assert "Traceback" not in errors
    assert sorted(tmp_path.iterdir()) == before


def test_the_street(people_video: Path, yolo_weights: Path, tmp_path: Path) -> None:
    """The whole way with real weights: what is found in a second stands on the pictures."""
    short = ["--height", "360", "--end", "1", "--mode", "yolo", "--legend"]
    done = run(people_video, "--weights", yolo_weights, "--out", "o.mp4", *short, cwd=tmp_path, IMGSZ="384")
    facts = summary(done)
    assert (facts["frames"], facts["width"], facts["height"]) == (30, 640, 360)
    assert facts["labels"][0]["person"] > 5
    plain = next(read_frames(people_video, size=(640, 360))).image
    drawn = next(read_frames(tmp_path / "o.mp4")).image
    changed = np.abs(plain.astype(int) - drawn).max(axis=2) > 60
    assert 0.01 < changed.mean() < 0.3
