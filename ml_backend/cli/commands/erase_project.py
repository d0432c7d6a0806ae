"""Erase what was made of a project's videos and annotations."""

from __future__ import annotations

import getpass
import shutil

import click
import sqlalchemy as sa

from ml_backend.cli.dev_stack.discover import container_in_force
from ml_backend.cli.options import PROJECT
from ml_backend.cli.progress import fail_clearly
from ml_backend.core.errors import ConfigError, StorageError
from ml_backend.db.tables import audit, embeddings, metadata
from ml_backend.jobs.container import Container
from ml_backend.label_studio.client import NotFound
from ml_backend.review.repair_json import FRAMES_FOLDER


def erase(container: Container, project: int) -> dict[str, int]:
    """Erase a project here, and the caches of all projects, whose entries name none.

    Returns:
        Numbers of removed rows, artifacts, and outputs.

    Raises:
        StorageError: the database or the store does not answer, or an artifact cannot be removed.
    """
    removed = {"rows": 0, "artifacts": 0, "outputs": 0}
    artifacts = container.artifacts
    for folder in (f"projects/{project}", f"{FRAMES_FOLDER}/{project}"):
        for name in sorted(artifacts.ages(folder)):
            if not artifacts.remove(f"{folder}/{name}"):
                raise StorageError(f"{folder}/{name} cannot be removed.", "See the log; then repeat the command.")
            removed["artifacts"] += 1
    for output in container.outputs.of_project(project):
        removed["outputs"] += container.outputs.delete(output.name)
    with container.storage.write() as connection:
        for table in metadata.sorted_tables:
            if "project_id" in table.c and table is not audit:
                removed["rows"] += connection.execute(sa.delete(table).where(table.c.project_id == project)).rowcount
        connection.execute(sa.delete(embeddings))
    data = container.settings.data_dir
    for path in (data / "training" / f"project-{project}", data / "artifact-cache", container.settings.media_dir):
        shutil.rmtree(path, ignore_errors=True)
    container.audit.record(getpass.getuser(), "erase", project)
    return removed


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@PROJECT
@click.option("--yes", is_flag=True, help="Do not ask.")
@fail_clearly
def main(project: int, yes: bool) -> None:
    """Erase what was made of a project: predictions, patterns, versions, exports, rendered videos.

    Delete the project in Label Studio first: while it exists there, it is predicted and learned again.
    """
    container = container_in_force()
    try:
        container.client.get_project(project)
    except NotFound:
        pass
    else:
        raise ConfigError(f"Project {project} exists in Label Studio.", "Delete it there first.")
    if not yes:
        click.confirm(f"Erase everything of project {project} for good?", abort=True)
    removed = erase(container, project)
    print(", ".join(f"{count} {what}" for what, count in removed.items()), "were removed.")
