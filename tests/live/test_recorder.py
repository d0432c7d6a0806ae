"""Recordings of cameras: what is wanted becomes short videos, and tasks of a project in a real Label Studio."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from ml_backend.core.errors import ConfigError
from ml_backend.core.settings import Settings
from ml_backend.live.cameras import Cameras, open_cameras
from ml_backend.live.page import serve_page
from ml_backend.live.recorder import RATE, RecordOptions
from ml_backend.live.source import LiveSource
from ml_backend.video.probe import probe
from ml_backend.video.reader import read_frames
from tests.builders import label_config, make_clip, outside, run_command, wait_for
from tests.live.cameras import mjpeg


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.xml"
    path.write_text(label_config("thing"))
    return path


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """Nothing happens for six of eight seconds."""
    return make_clip(tmp_path / "Tür 1.mp4", frames=160)


def recorded(cameras: Cameras) -> dict[str, Any]:
    return dict(cameras.summaries()[0]["recorded"])


def test_what_is_wanted_is_recorded_with_its_run_up(
    clip: Path, config: Path, tmp_path: Path, settings: Callable[..., Settings]
) -> None:
    """Every object with the label; without boxes, though somebody watches."""
    options, done = RecordOptions(tmp_path / "recordings", labels=frozenset({"thing"})), list[Path]()
    source = LiveSource(str(clip), repeat=True)
    with (
        open_cameras([source], config, settings(detector="motion"), None, options, done.append) as cameras,
        serve_page(cameras, 0) as address,
    ):
        wait_for(lambda: httpx.get(f"{address}cameras/1.jpg", timeout=600).status_code == 200, what="a picture")
        wait_for(lambda: list((tmp_path / "recordings").glob(".*.mp4")) or done, what="a recording")
    summary = recorded(cameras)
    assert done == sorted((tmp_path / "recordings").iterdir())
    assert summary["videos"] == len(done) >= 1
    assert summary["paused_because"] == ""
    assert all(path.name.startswith("Tür-1-mp4-1-") for path in done)
    facts = [probe(path) for path in done]
    assert {(info.codec, round(info.fps, 9), info.width, info.height) for info in facts} == {("h264", RATE, 320, 240)}
    assert summary["seconds"] == pytest.approx(sum(info.frames for info in facts) / RATE, abs=0.1)
    first = next(iter(read_frames(done[0]))).image
    plain = next(iter(read_frames(clip))).image
    assert np.abs(first[:60, :100].astype(int) - plain[:60, :100]).max() < 60, "no legend"


def test_everything_is_recorded_in_parts_and_what_is_not_wanted_is_not(
    clip: Path, config: Path, tmp_path: Path, settings: Callable[..., Settings]
) -> None:
    sources = [LiveSource(str(clip), repeat=True)]
    everything = RecordOptions(tmp_path / "all", frozenset({"all"}))
    with open_cameras(sources, config, settings(detector="motion"), None, everything) as cameras:
        wait_for(lambda: list((tmp_path / "all").glob(".*.mp4")), what="a recording")
    assert recorded(cameras)["videos"] == 1
    other = RecordOptions(tmp_path / "other", frozenset({"new"}))
    with open_cameras([LiveSource(str(clip))], config, settings(detector="motion"), None, other) as cameras:
        wait_for(lambda: not cameras.running, what="the end")
    assert recorded(cameras) == {"videos": 0, "seconds": 0, "paused_because": "", "today_s": 0, "budget_s": 3600}
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("limits", "note"), [({"seconds_a_day": 0.0}, "Today's minutes are used"), ({"max_bytes": 0.0}, "is full")]
)
def test_the_budget_is_kept_and_said(
    limits: dict[str, float], note: str, clip: Path, config: Path, tmp_path: Path, settings: Callable[..., Settings]
) -> None:
    options = RecordOptions(tmp_path / "recordings", frozenset({"all"}), **limits)  # type: ignore[arg-type]
    with open_cameras([LiveSource(str(clip))], config, settings(detector="motion"), None, options) as cameras:
        wait_for(lambda: note in recorded(cameras)["paused_because"], what="the note")
    assert recorded(cameras)["videos"] == 0


def test_a_folder_that_cannot_be_written_ends_recording_only(
    clip: Path, config: Path, tmp_path: Path, settings: Callable[..., Settings]
) -> None:
    (tmp_path / "recordings").write_text("a file")
    options = RecordOptions(tmp_path / "recordings", frozenset({"all"}))
    source = LiveSource(str(clip), repeat=True)
    with open_cameras([source], config, settings(detector="motion"), None, options) as cameras:
        wait_for(lambda: recorded(cameras)["paused_because"], what="the note")
        before = cameras.sessions[0].frames_processed
        wait_for(lambda: cameras.sessions[0].frames_processed > before, what="further frames")
    assert "recordings" in recorded(cameras)["paused_because"]


def test_recordings_become_tasks(clip: Path, config: Path, tmp_path: Path, label_studio: Any) -> None:
    project = label_studio.client().create_project("cameras", label_config("thing"))
    service = {"LABEL_STUDIO_URL": label_studio.url, "LABEL_STUDIO_API_KEY": label_studio.token}
    recording = ("--record", "recordings", "--record-when", "all", "--record-minutes", "inf", "--project", project)
    arguments = (clip, "--config", config, "--detector", "motion", "--port", 0, *recording)
    done = run_command("live", *arguments, cwd=tmp_path, **service)
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout.splitlines()[-1])["cameras"]
    assert found["recorded"]["videos"] >= 1
    assert found["recorded"]["budget_s"] == 24 * 3600, "pages and Redis are told numbers only"
    tasks = list(label_studio.client().list_task_states(project))
    assert len(tasks) == found["recorded"]["videos"] == done.stderr.count("imported Tür-1-mp4-1-")


def test_a_camera_over_http_that_changes_its_size_is_recorded(
    clip: Path, config: Path, tmp_path: Path, settings: Callable[..., Settings]
) -> None:
    """Session and recorder read each frame at once."""
    stopped, small = threading.Event(), make_clip(tmp_path / "small.mp4", size=(160, 120))
    options = RecordOptions(tmp_path / "recordings", frozenset({"all"}))
    with outside() as camera:
        camera.special["/stream"] = mjpeg(clip, 60, stopped)
        source = LiveSource(f"{camera.url}/stream")
        with open_cameras([source], config, settings(detector="motion"), None, options) as cameras:
            wait_for(lambda: source.status.state == "lost", what="the end of the connection")
            camera.special["/stream"] = mjpeg(small, 0, stopped)
            wait_for(lambda: recorded(cameras)["videos"] >= 1, what="a recording")
            frames = source.status.frames
            wait_for(lambda: source.status.frames > frames + 20, what="frames of another size")
            stopped.set()
    sizes = {(info.width, info.height) for info in map(probe, (tmp_path / "recordings").iterdir())}
    assert sizes == {(320, 240), (160, 120)}
    assert recorded(cameras)["paused_because"] == ""


def test_a_label_that_does_not_exist_is_refused(
    clip: Path, config: Path, tmp_path: Path, settings: Callable[..., Settings]
) -> None:
    options = RecordOptions(tmp_path / "recordings", labels=frozenset({"thign"}))
    with (
        pytest.raises(ConfigError, match="no label 'thign'"),
        open_cameras([LiveSource(str(clip))], config, settings(detector="motion"), None, options),
    ):
        raise AssertionError("it is opened")


def test_options_that_need_a_folder(clip: Path, config: Path, tmp_path: Path) -> None:
    done = run_command("live", clip, "--config", config, "--record-label", "thing", cwd=tmp_path)
    assert done.returncode == 2
    assert "--record" in done.stderr
