"""Erasing a project leaves nothing of it, and everything of the others."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import sqlalchemy as sa

from ml_backend.cli.commands.erase_project import erase
from ml_backend.cli.dev_stack.preflight import ROOT
from ml_backend.core.outputs import OutputFacts
from ml_backend.core.settings import Settings
from ml_backend.db.tables import audit, embeddings, metadata
from ml_backend.jobs.container import Container
from tests.builders import Outside, environment, outside


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
        folder = settings.data_dir / "training" / f"project-{project}"
        folder.mkdir(parents=True)
        np.save(folder / "frame.npy", np.zeros(3))
    return container


def test_nothing_of_it_is_left(settings: Callable[..., Settings]) -> None:
    values = settings()
    container = filled(values)
    removed = erase(container, 7)
    with container.storage.read() as connection:
        for table in metadata.sorted_tables:
            if "project_id" in table.c and table is not audit:
                assert list(connection.scalars(sa.select(table.c.project_id))) == [8], table.name
        assert connection.scalar(sa.select(sa.func.count()).select_from(embeddings)) == 0
    assert (removed["artifacts"], removed["outputs"]) == (2, 1)
    left = [str(path.relative_to(values.data_dir)) for path in values.data_dir.rglob("*") if path.is_file()]
    assert [name for name in left if "project-7" in name or "projects/7" in name] == []
    assert len([name for name in left if "project-8" in name or "projects/8" in name]) == 5
    rows, _ = container.audit.find(7, 1)
    assert rows[0]["action"] == "erase"


def test_a_project_that_exists_is_refused(settings: Callable[..., Settings], tmp_path: Path) -> None:
    with outside() as studio:
        values = settings(label_studio_url=studio.url, label_studio_api_key="token")
        refused = run(values, studio, 200)
        assert "exists in Label Studio" in refused.stderr + refused.stdout
        assert refused.returncode == 1
        done = run(values, studio, 404)
        assert done.returncode == 0, done.stderr
        assert "0 rows, 0 artifacts, 0 outputs were removed" in done.stdout


def run(values: Settings, studio: Outside, status: int) -> subprocess.CompletedProcess[str]:
    body = b'{"id": 7, "title": "t", "label_config": ""}'
    studio.answer("/api/projects/7/", status, body, content_type="application/json")
    command = [sys.executable, "scripts/erase_project.py", "--project", "7", "--yes"]
    return subprocess.run(command, env=environment(values), cwd=ROOT, capture_output=True, text=True, check=False)
