"""Erasing a project leaves nothing of it, and everything of the others."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timezone

import numpy as np
import pytest
import sqlalchemy as sa
from rq.job import JobStatus

from ml_backend.cli.dev_stack.preflight import ROOT
from ml_backend.core.errors import Conflict
from ml_backend.core.outputs import OutputFacts
from ml_backend.core.settings import Settings
from ml_backend.db.tables import audit, embeddings, metadata
from ml_backend.inference.redraw import Answer
from ml_backend.jobs.api_queue import objects_name, stats_name
from ml_backend.jobs.container import Container
from ml_backend.jobs.draw import recall, remember
from ml_backend.jobs.services.erasure import erase
from ml_backend.jobs.services.reviews import Reviews
from ml_backend.server.app import create_app
from tests.builders import Outside, environment, outside, run_command
from tests.server.control import Room


def filled(settings: Settings) -> Container:
    """A container with a row of each of two projects in every table, and files of both."""
    container = Container(settings)
    now = datetime.now(timezone.utc)
    samples = {sa.String: "x", sa.Text: "x", sa.Integer: 1, sa.Float: 0.5, sa.JSON: {}, sa.LargeBinary: b"x"}
    with container.storage.write() as connection:
        for table in metadata.sorted_tables:
            for project in (7, 8):
                row = {column.name: samples.get(type(column.type), now) for column in table.columns}
                row |= {
                    column.name: project for column in table.columns if column.name in ("project_id", "id", "number")
                }
                row |= {
                    column.name: f"{project}" if isinstance(column.type, sa.String) else project
                    for column in table.primary_key.columns
                }
                connection.execute(sa.insert(table).values(**row))
    for project in (7, 8):
        container.artifacts.write(f"projects/{project}/v1.pt", b"weights")
        container.artifacts.write(f"projects/{project}/moments/0.mp4", b"clip")
        made = settings.data_dir / "made.json"
        made.write_text("[]")
        container.outputs.add(made, OutputFacts(source="annotations"), "project", project)
        (settings.uploads_dir / f"{project}-0123").mkdir(parents=True)
        (settings.uploads_dir / f"{project}-0123" / "a.mp4").write_bytes(b"video")
        container.queue.request("control", "init_models", [project], f"init-{project}", "api_jobs")
        for name in (stats_name(project), objects_name(project)):
            container.queue.publish(name, {"labels": ["x"]})
        Reviews(container).new_global_ids(project)
        remember(container, project, 1, {"id": "drawn"}, Answer((), frozenset(), (True, True)))
        folder = settings.data_dir / "training" / f"project-{project}"
        folder.mkdir(parents=True)
        np.save(folder / "frame.npy", np.zeros(3))
    return container


def check_erased(container: Container, removed: Mapping[str, int], who: str) -> None:
    """Nothing of project 7 is left, and everything of 8."""
    with container.storage.read() as connection:
        for table in metadata.sorted_tables:
            if "project_id" in table.c and table is not audit:
                assert list(connection.scalars(sa.select(table.c.project_id))) == [8], table.name
        assert connection.scalar(sa.select(sa.func.count()).select_from(embeddings)) == 0
    counts = {name: removed[name] for name in ("artifacts", "outputs", "uploads", "jobs")}
    assert counts == {"artifacts": 2, "outputs": 1, "uploads": 1, "jobs": 1}
    data_dir = container.settings.data_dir
    left = [str(path.relative_to(data_dir)) for path in data_dir.rglob("*") if path.is_file()]
    assert [name for name in left if "project-7" in name or "projects/7" in name or "/7-" in name] == []
    assert len([name for name in left if "project-8" in name or "projects/8" in name or "/8-" in name]) == 6
    assert [job["project"] for job in container.jobs.all()] == [8]
    for name_of in (stats_name, objects_name):
        assert [container.queue.published(name_of(project)) is None for project in (7, 8)] == [True, False]
    assert [Reviews(container).new_global_ids(project) for project in (7, 8)] == [1, 2]
    drawn = {"id": "drawn", "value": {"sequence": []}}
    assert [recall(container, project, 1, drawn) is None for project in (7, 8)] == [True, False]
    rows, _ = container.audit.find(7, 1)
    assert (rows[0]["action"], rows[0]["who"]) == ("erase", who)


def test_nothing_of_it_is_left(settings: Callable[..., Settings], redis_url: str) -> None:
    container = filled(settings(redis_url=redis_url))
    check_erased(container, erase(container, 7, "me"), "me")


def test_nothing_is_erased_while_a_job_runs(settings: Callable[..., Settings], redis_url: str) -> None:
    container = filled(settings(redis_url=redis_url))
    queue = container.queue
    with queue.guard():
        job = queue.fetch("init-7")
        assert job is not None
        queue.connection.lrem(queue.queues["control"].key, 1, job.id)
        job.set_status(JobStatus.STARTED)
        queue.connection.zadd(queue.queues["control"].started_job_registry.key, {f"{job.id}:1": time.time() + 60})
    with pytest.raises(Conflict, match="still run: init-7"):
        erase(container, 7, "me")
    assert queue.is_cancelled("init-7")
    assert len(container.outputs.of_project(7)) == 1
    assert container.storage.versions(7)


def test_over_http(settings: Callable[..., Settings], redis_url: str) -> None:
    with outside() as studio:
        values = settings(redis_url=redis_url, label_studio_url=studio.url, label_studio_api_key="token")
        room = Room(create_app(values))
        filled(values)
        for confirm in (8, 7):
            listed(studio, 7)
            room.delete("/api/projects/7/data", 409, json={"confirm": confirm})
        studio.answer("/api/projects/", 404, b"{}", content_type="application/json")
        room.delete("/api/projects/7/data", 404, json={"confirm": 7})  # it may be no Label Studio
        listed(studio, 77)
        room.delete("/api/projects/7/data", 409, json={"confirm": 8})
        room.delete("/api/projects/7/data", 400, json={})
        assert room.services.storage.versions(7)
        removed = room.delete("/api/projects/7/data", json={"confirm": 7})
        assert removed.pop("project") == 7
        check_erased(room.services, removed, "control room")


def test_a_project_that_exists_is_refused(settings: Callable[..., Settings], redis_url: str) -> None:
    with outside() as studio:
        values = settings(redis_url=redis_url, label_studio_url=studio.url, label_studio_api_key="token")
        listed(studio, 7)
        refused = run(values)
        assert "exists in Label Studio" in refused.stderr + refused.stdout
        assert refused.returncode == 1
        listed(studio, 77)
        done = run(values)
        assert done.returncode == 0, done.stderr
        assert "0 rows, 0 artifacts, 0 outputs, 0 uploads, 0 jobs were removed" in done.stdout


def listed(studio: Outside, project: int) -> None:
    """Label Studio has this project only."""
    found = {"count": 1, "next": None, "previous": None, "results": [{"id": project}]}
    studio.answer("/api/projects/", 200, json.dumps(found).encode(), content_type="application/json")


def run(values: Settings) -> subprocess.CompletedProcess[str]:
    return run_command("erase-project", "--project", 7, "--yes", cwd=ROOT, **environment(values))
