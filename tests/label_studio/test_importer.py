"""Importing videos into a real Label Studio: playable, each once, with the facts that its timeline needs."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from ml_backend.core.errors import (
    BackendError,
    ConfigError,
    Interrupted,
    LabelStudioError,
    LabelStudioUnavailable,
    StorageError,
    VideoError,
)
from ml_backend.core.settings import Settings
from ml_backend.label_studio import importer
from ml_backend.label_studio.client import LabelStudioClient, NotFound
from ml_backend.label_studio.importer import Importer, Outcome, find_videos
from ml_backend.video.probe import probe
from ml_backend.video.transcode import plan_transcode
from tests.builders import label_config, run_command
from tests.video.builders import make_audio, make_video

FRONT = {"movflags": "+faststart"}


@pytest.fixture
def client(label_studio: Any) -> LabelStudioClient:
    found: LabelStudioClient = label_studio.client()
    return found


@pytest.fixture
def project(client: LabelStudioClient) -> int:
    return client.create_project("import", label_config("person"))


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """One that plays, one that does not, one that is none, and things to pass over."""
    folder = tmp_path / "videos"
    (folder / "more" / ".hidden").mkdir(parents=True)
    make_video(folder / "fine ünï.mp4", frames=10, fps=25, container_options=FRONT)
    make_video(folder / "more" / "old.avi", frames=20, codec="mpeg4")
    make_audio(folder / "more" / "sound.mp4")
    make_video(folder / "more" / ".hidden" / "no.mp4", frames=5)
    (folder / "notes.txt").write_text("not to be imported")
    return folder


def by_name(outcomes: list[Outcome]) -> dict[str, Outcome]:
    return {outcome.path.name: outcome for outcome in outcomes}


def test_folders_and_files_are_found_once(videos: Path) -> None:
    found = find_videos([videos, videos / "more" / "old.avi", videos / "notes.txt", videos / "nowhere.mp4"])
    assert [path.name for path in found] == ["fine ünï.mp4", "old.avi", "sound.mp4", "notes.txt", "nowhere.mp4"]


def test_import_by_upload(
    client: LabelStudioClient, project: int, videos: Path, settings: Callable[..., Settings], tmp_path: Path
) -> None:
    done = by_name(list(Importer(client, project, settings()).run(find_videos([videos]))))
    assert {name: outcome.status for name, outcome in done.items()} == {
        "fine ünï.mp4": "imported",
        "old.avi": "imported",
        "sound.mp4": "failed",
    }
    assert "only audio" in done["sound.mp4"].detail
    assert "browsers do not play mpeg4" in done["old.avi"].detail

    for name, fps, frames in (("fine ünï.mp4", 25, 10), ("old.avi", 30, 20)):
        data = client.get_task(done[name].task_id or 0).data
        assert (data["fps"], data["frames"], data["width"], data["height"]) == (fps, frames, 320, 240)
        assert data["duration"] == pytest.approx(frames / fps, abs=1e-3)
        served = httpx.get(client.url + data["video"], headers=client.auth_headers(), timeout=300)
        copy = tmp_path / "served.mp4"
        copy.write_bytes(served.raise_for_status().content)
        assert plan_transcode(copy).action == "keep"
        assert probe(copy).frames == frames
    assert not list((tmp_path / "data").rglob("*.mp4")), "uploaded copies are not kept"

    again = by_name(list(Importer(client, project, settings()).run(find_videos([videos]))))
    assert again["fine ünï.mp4"].status == again["old.avi"].status == "skipped"
    assert len([state.id for state in client.list_task_states(project)]) == 2


def test_same_content_twice_is_one_task(
    client: LabelStudioClient, project: int, tmp_path: Path, settings: Callable[..., Settings]
) -> None:
    make_video(tmp_path / "a.mp4", frames=5, container_options=FRONT)
    shutil.copy(tmp_path / "a.mp4", tmp_path / "b.mp4")
    done = list(Importer(client, project, settings()).run(find_videos([tmp_path])))
    assert [outcome.status for outcome in done] == ["imported", "skipped"]
    assert done[0].task_id == done[1].task_id


def test_dry_run_changes_nothing(
    client: LabelStudioClient, project: int, videos: Path, settings: Callable[..., Settings]
) -> None:
    done = by_name(list(Importer(client, project, settings(), dry_run=True).run(find_videos([videos]))))
    assert "playable copy" in done["old.avi"].detail
    assert done["sound.mp4"].status == "failed"
    assert [state.id for state in client.list_task_states(project)] == []
    assert not settings().data_dir.exists()


def test_local_files_are_served_in_place(
    client: LabelStudioClient, project: int, label_studio: Any, settings: Callable[..., Settings], tmp_path: Path
) -> None:
    root: Path = label_studio.local_files
    folder = root / "street & co" / "deep"
    folder.mkdir(parents=True, exist_ok=True)
    fine = make_video(folder / "fine #1.mp4", frames=10, container_options=FRONT)
    old = make_video(folder / "old.avi", frames=20, codec="mpeg4")
    outside = make_video(tmp_path / "outside.mp4", frames=30, container_options=FRONT)
    top = make_video(root / "top.mp4", frames=40, container_options=FRONT)
    importing = Importer(client, project, settings(local_files_root=root), local_files=True)
    done = by_name(list(importing.run([fine, old, outside, top])))
    assert [done[path.name].status for path in (fine, old, outside, top)] == [
        "imported",
        "imported",
        "failed",
        "failed",
    ]
    assert "is outside" in done["outside.mp4"].detail
    assert "is directly in" in done["top.mp4"].detail
    for path, frames in ((fine, 10), (old, 20)):
        url = client.get_task(done[path.name].task_id or 0).data["video"]
        assert url.startswith("/data/local-files/?d=")
        served = httpx.get(client.url + url, headers=client.auth_headers(), follow_redirects=True, timeout=300)
        served.raise_for_status()
        (tmp_path / "served.mp4").write_bytes(served.content)
        assert probe(tmp_path / "served.mp4").frames == frames
        if path == fine:
            assert served.content == fine.read_bytes()


def test_local_files_need_a_root(client: LabelStudioClient, project: int, settings: Callable[..., Settings]) -> None:
    with pytest.raises(ConfigError, match="LOCAL_FILES_DOCUMENT_ROOT"):
        Importer(client, project, settings(), local_files=True)


def test_projects_that_cannot_take_videos(client: LabelStudioClient, settings: Callable[..., Settings]) -> None:
    with pytest.raises(NotFound):
        Importer(client, 999_999, settings())
    text = '<View><Text name="t" value="$text"/><Choices name="c" toName="t"><Choice value="a"/></Choices></View>'
    with pytest.raises(ConfigError):
        Importer(client, client.create_project("texts", text), settings())


def test_fields_are_named_by_the_label_config(
    client: LabelStudioClient, tmp_path: Path, settings: Callable[..., Settings]
) -> None:
    config = label_config("person", frame_rate="$speed").replace("$video", "$film")
    project = client.create_project("other fields", config)
    make_video(tmp_path / "a.mp4", frames=5, fps=25, container_options=FRONT)
    (done,) = Importer(client, project, settings()).run(find_videos([tmp_path]))
    data = client.get_task(done.task_id or 0).data
    assert data["speed"] == data["fps"] == 25
    assert data["film"].startswith("/data/upload/")


def test_what_is_not_the_video_s_fault_is_told_apart(
    client: LabelStudioClient,
    project: int,
    tmp_path: Path,
    settings: Callable[..., Settings],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_video(tmp_path / "a.mp4", frames=5, container_options=FRONT)
    make_audio(tmp_path / "b.mp4")
    importing = Importer(client, project, settings())

    def revoked(_: httpx.Client, request: httpx.Request, **__: Any) -> httpx.Response:
        return httpx.Response(401, json={"detail": "Invalid token."}, request=request)

    with monkeypatch.context() as patch:
        patch.setattr(httpx.Client, "send", revoked)
        refused, sound = importing.run(find_videos([tmp_path]))
    assert isinstance(refused.error, LabelStudioError)
    assert refused.detail == str(refused.error)
    assert "refuses the token" in refused.detail
    assert isinstance(sound.error, VideoError)
    (done,) = importing.run([tmp_path / "a.mp4"])
    assert (done.status, done.error) == ("imported", None)


def test_an_end_in_the_middle_of_a_copy_is_no_failure(
    client: LabelStudioClient, project: int, tmp_path: Path, settings: Callable[..., Settings]
) -> None:
    video = make_video(tmp_path / "old.avi", frames=20, codec="mpeg4")

    def stop(_done: int, _of: int) -> None:
        raise Interrupted("The job was stopped.")

    with pytest.raises(Interrupted):
        list(Importer(client, project, settings()).run([video], stop))
    assert not list((settings().data_dir / "playable").rglob("*.mp4")), "nothing half-made is left"


def test_no_file_ends_the_import_of_the_others(
    client: LabelStudioClient,
    project: int,
    tmp_path: Path,
    settings: Callable[..., Settings],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = ("copy.avi", "odd.mp4", "rejected.mp4", "fine.mp4")
    paths = [tmp_path / name for name in ("missing.mp4", *names)]
    for number, path in enumerate(paths[1:], 5):
        options = {"codec": "mpeg4"} if path.suffix == ".avi" else {"container_options": FRONT}
        make_video(path, frames=number, **options)
    send, plan = httpx.Client.send, importer.plan_transcode

    def too_large(client: httpx.Client, request: httpx.Request, **given: Any) -> httpx.Response:
        if request.method == "POST" and b"rejected.mp4" in request.read():
            raise httpx.WriteError("Broken pipe", request=request)
        return send(client, request, **given)

    def failing(path: Path) -> Any:
        return plan(path) if path.name != "odd.mp4" else 1 / 0

    monkeypatch.setattr(httpx.Client, "send", too_large)
    monkeypatch.setattr(importer, "plan_transcode", failing)
    settings().data_dir.mkdir(parents=True, exist_ok=True)
    (settings().data_dir / "playable").write_text("not a folder")
    done = by_name(list(Importer(client, project, settings()).run(paths)))
    assert {name: type(outcome.error) for name, outcome in done.items()} == {
        "missing.mp4": VideoError,
        "copy.avi": StorageError,
        "odd.mp4": BackendError,
        "rejected.mp4": LabelStudioUnavailable,
        "fine.mp4": type(None),
    }
    assert all(outcome.error.hint for outcome in done.values() if outcome.error)
    assert "ZeroDivisionError" in done["odd.mp4"].detail
    assert [state.id for state in client.list_task_states(project)] == [done["fine.mp4"].task_id]


def run(label_studio: Any, tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    variables = {"LABEL_STUDIO_URL": label_studio.url, "LABEL_STUDIO_API_KEY": label_studio.token}
    return run_command("import-videos", *arguments, cwd=tmp_path, DATA_DIR=str(tmp_path / "data"), **variables)


def test_command(label_studio: Any, project: int, videos: Path, tmp_path: Path) -> None:
    done = run(label_studio, tmp_path, str(videos / "nowhere"), str(videos), "--project", str(project))
    assert done.returncode == 3, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {"imported": 2, "skipped": 0, "failed": 2}
    assert "only audio" in done.stdout
    listed = done.stderr[done.stderr.index("Failed, 2:") :].splitlines()
    assert "does not exist. Check the path." in listed[1]
    assert "only audio" in listed[2]

    (videos / "more" / "sound.mp4").unlink()
    done = run(label_studio, tmp_path, str(videos), "--project", str(project))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {"imported": 0, "skipped": 2, "failed": 0}


def test_command_without_a_server(label_studio: Any, videos: Path, tmp_path: Path) -> None:
    class Nowhere:
        url = "http://127.0.0.1:9"
        token = label_studio.token

    done = run(Nowhere, tmp_path, str(videos), "--project", "1")
    assert done.returncode == 1
    assert "does not answer" in done.stderr
    assert "Fix:" in done.stderr
    assert "Traceback" not in done.stderr
