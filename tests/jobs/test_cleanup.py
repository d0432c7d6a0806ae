"""What crashes and failures leave in the data folder: removed by workers, unless a job needs it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ml_backend.core.errors import MediaError
from ml_backend.core.outputs import STALE_S
from ml_backend.core.settings import Settings
from ml_backend.jobs.api_file_jobs import export_project
from ml_backend.jobs.api_jobs import import_video
from ml_backend.jobs.container import FRAMES_KEPT_S, Container
from ml_backend.jobs.worker import CLEANUP_INTERVAL_S, CLEANUP_THREAD, make_worker
from ml_backend.review.repair_json import frames_name
from tests.builders import wait_for
from tests.jobs.conftest import Site


@pytest.fixture
def here(settings: Callable[..., Settings], redis_url: str) -> Settings:
    return settings(redis_url=redis_url, detector="motion", label_studio_url="http://127.0.0.1:1", job_lease_s=5)


def old_upload(here: Settings, name: str) -> Path:
    """An upload of long ago; its folder."""
    path = here.uploads_dir / name / "clip.mp4"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"video")
    moment = time.time() - STALE_S - 60
    for item in (path, path.parent):
        os.utime(item, (moment, moment))
    return path.parent


def test_an_upload_stays_while_its_job_waits(here: Settings) -> None:
    """All workers may have been away over the weekend."""
    container = Container(here)
    folder, other = old_upload(here, "7-aaaa"), old_upload(here, "7-bbbb")
    arguments = [7, "7-aaaa", "clip.mp4"]
    job = container.queue.request("control", "import_video", arguments, "import-7-aaaa", "api_file_jobs")
    container.clean_up_files()
    assert (folder.exists(), other.exists()) == (True, False)
    found = container.queue.fetch(job.job_id)
    assert found is not None
    for state in ("scheduled", "started", "deferred"):
        found.set_status(state)
        container.clean_up_files()
        assert folder.exists(), state
    found.set_status("failed")
    container.clean_up_files()
    assert not folder.exists()


def test_without_a_queue_uploads_stay(settings: Callable[..., Settings], tmp_path: Path) -> None:
    here = settings(redis_url=f"unix://{tmp_path}/none.sock")
    folder = old_upload(here, "7-aaaa")
    assert Container(here).clean_up_files() == []
    assert folder.exists()


def test_frames_are_kept_for_a_day(here: Settings) -> None:
    container = Container(here)
    names = [frames_name(7, 1, "0" * 16, first) for first in (1, 33)]
    for name in names:
        container.artifacts.write(name, b"an archive")
    old = time.time() - FRAMES_KEPT_S - 60
    os.utime(container.artifacts.local_path(names[0], ""), (old, old))
    container.clean_up_files()
    assert [container.artifacts.exists(name) for name in names] == [False, True]


def test_an_upload_and_an_export_make_room(site: Callable[..., Site], work: Callable[[Site], Container]) -> None:
    here = site()
    container = work(here)  # its own look, at its start, is over
    wait_for(lambda: not cleaning())
    old = old_upload(here.settings, "7-bbbb")
    with pytest.raises(MediaError):
        import_video(7, "7-aaaa", "gone.mp4")
    assert not old.exists()
    old = old_upload(here.settings, "7-bbbb")
    project = here.project()
    here.annotate(here.task(project, video=here.clip(), fps=20))
    export_project(project, "annotations", "none")
    assert not old.exists()
    assert container.queue.failed_jobs() == []


def cleaning() -> bool:
    return any(thread.name == CLEANUP_THREAD for thread in threading.enumerate())


def test_workers_look_once_an_hour(
    site: Callable[..., Site], work: Callable[[Site], Container], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = site()
    first = old_upload(here.settings, "7-aaaa")
    work(here)
    wait_for(lambda: not first.exists())
    worker = make_worker(here.settings)
    worker.run_maintenance_tasks()
    wait_for(lambda: not cleaning())
    second = old_upload(here.settings, "7-bbbb")
    worker.run_maintenance_tasks()
    wait_for(lambda: not cleaning())
    assert second.exists()
    clock = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: clock() + CLEANUP_INTERVAL_S)  # time passes
    worker.run_maintenance_tasks()
    wait_for(lambda: not second.exists())
