"""Outputs and uploads of hosts that share nothing but a store."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ml_backend.core.errors import MediaError, StorageError
from ml_backend.core.outputs import MAX_AGE_S, STALE_S, OutputFacts, Outputs
from ml_backend.core.settings import Settings
from ml_backend.core.shared_files import make_outputs, make_uploads

FACTS = OutputFacts(source="annotations", format="yolo", videos=2)


@pytest.fixture(params=["file://", "memory://"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"file://{tmp_path / 'store'}" if request.param == "file://" else f"memory://{tmp_path.name}"


@pytest.fixture
def host(settings: Callable[..., Settings], tmp_path: Path, url: str) -> Callable[[str], Settings]:
    """Settings of a host of that name."""
    return lambda name: settings(data_dir=tmp_path / name, artifacts_url=url)


def make(outputs: Outputs, content: bytes = b"zip", project: int = 7) -> str:
    outputs.folder.mkdir(parents=True, exist_ok=True)
    path = outputs.folder / "made.zip"
    path.write_bytes(content)
    return outputs.add(path, FACTS, "project", project, "yolo").name


def test_another_host_lists_opens_and_deletes_what_one_has_made(host: Callable[[str], Settings]) -> None:
    here, there = make_outputs(host("here")), make_outputs(host("there"))
    name = make(here, b"content")
    make(here, project=70)
    (listed,) = there.of_project(7)
    assert (listed.name, listed.bytes, listed.facts) == (name, 7, FACTS)
    assert abs(listed.created_at.timestamp() - time.time()) < 60
    path = there.find(name)
    assert path is not None
    assert path.read_bytes() == b"content"
    assert path.is_relative_to(there.folder)
    assert there.find("project-7-none.zip") is None
    assert there.find("../made.zip") is None
    assert there.delete(name)
    assert there.of_project(7) == []
    assert not there.delete(name)
    assert here.find(name) is None


def test_newest_first_and_what_is_too_much_goes_from_the_store(
    host: Callable[[str], Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = host("here").model_copy(update={"outputs_gb": 25 / (1 << 30)})
    outputs = make_outputs(settings)
    names = []
    for second in range(3):
        with monkeypatch.context() as patch:
            patch.setattr("ml_backend.core.outputs.datetime", _At(second))
            names.append(make(outputs, b"0123456789"))
    elsewhere = make_outputs(host("there"))
    assert [item.name for item in elsewhere.of_project(7)] == names[::-1]
    now = time.time()
    outputs.clean(now)
    assert [item.name for item in make_outputs(host("third")).of_project(7)] == names[:0:-1]
    outputs.clean(now + 40 * MAX_AGE_S)
    assert [item.name for item in make_outputs(host("fourth")).of_project(7)] == names[2:], "the newest stays"


class _At:
    """A clock that is so many seconds ahead."""

    def __init__(self, seconds: int) -> None:
        self._seconds = seconds

    def now(self, zone: object) -> object:
        from datetime import datetime, timedelta, timezone

        return datetime.now(timezone.utc) + timedelta(seconds=self._seconds)


def test_an_upload_is_imported_by_any_host(host: Callable[[str], Settings], tmp_path: Path) -> None:
    web, worker = make_uploads(host("web")), make_uploads(host("worker"))
    received = tmp_path / "received"
    received.write_bytes(b"video")
    web.add(received, "7-abc", "film.mp4")
    assert not received.exists()
    path = worker.open("7-abc", "film.mp4")
    assert path.read_bytes() == b"video"
    worker.remove("7-abc", "film.mp4")
    for uploads in (web, worker):
        with pytest.raises(MediaError, match="not on this machine"):
            uploads.open("7-abc", "film.mp4")
    worker.remove("7-abc", "film.mp4")


def test_uploads_that_no_job_needs_go_after_a_while(settings: Callable[..., Settings], tmp_path: Path) -> None:
    store = tmp_path / "store"
    uploads = make_uploads(settings(data_dir=tmp_path / "here", artifacts_url=str(store)))
    for name in ("7-old", "7-needed", "7-new"):
        (tmp_path / "received").write_bytes(b"video")
        uploads.add(tmp_path / "received", name, "film.mp4")
        if name != "7-new":
            old = time.time() - STALE_S - 60
            os.utime(store / "uploads" / name / "film.mp4", (old, old))
    uploads.clean(lambda upload_id: upload_id == "7-needed")
    assert {path.parent.name for path in store.rglob("film.mp4")} == {"7-needed", "7-new"}


def test_one_host_alone_keeps_its_files(settings: Callable[..., Settings], tmp_path: Path) -> None:
    values = settings(data_dir=tmp_path / "here")
    outputs, uploads = make_outputs(values), make_uploads(values)
    name = make(outputs)
    assert [item.name for item in outputs.of_project(7)] == [name]
    values.uploads_dir.mkdir(parents=True)
    (tmp_path / "received").write_bytes(b"video")
    uploads.add(tmp_path / "received", "7-abc", "film.mp4")
    assert uploads.open("7-abc", "film.mp4").read_bytes() == b"video"
    uploads.clean(lambda _: False)
    assert not (values.data_dir / "artifacts").exists()


def test_a_store_that_cannot_be_written_leaves_nothing_behind(
    settings: Callable[..., Settings], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no folder")
    values = settings(data_dir=tmp_path / "here", artifacts_url=str(tmp_path / "file" / "store"))
    outputs = make_outputs(values)
    with pytest.raises(StorageError, match="could not be stored"):
        make(outputs)
    assert list(outputs.folder.iterdir()) == []
    received = tmp_path / "received"
    received.write_bytes(b"video")
    with pytest.raises(StorageError, match="could not be stored"):
        make_uploads(values).add(received, "7-abc", "film.mp4")
    assert received.exists()
