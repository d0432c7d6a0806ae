"""Erase what was made of a project's videos and annotations."""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING

import sqlalchemy as sa

from ml_backend.core.errors import Conflict, StorageError
from ml_backend.db.tables import audit, embeddings, metadata
from ml_backend.jobs.job_list import ENDED_STATES
from ml_backend.jobs.queue import forget_executions
from ml_backend.review.repair_json import FRAMES_FOLDER

if TYPE_CHECKING:
    from ml_backend.jobs.container import Container


def check_deleted(container: Container, project: int) -> None:
    """Check that a project does not exist in Label Studio, where it would be predicted and learned again.

    Raises:
        Conflict: it exists.
        LabelStudioError: Label Studio does not answer.
    """
    # Of all projects: a wrong address, or a proxy's, answers "not found" for each one.
    if project in container.client.project_ids():
        raise Conflict(f"Project {project} exists in Label Studio.", "Delete it there first.")


def erase(container: Container, project: int, who: str) -> dict[str, int]:
    """Erase a project here, and the caches of all projects, whose entries name none.

    Videos that other projects' jobs are reading stay cached.

    Args:
        who: for the record.

    Returns:
        Numbers of removed rows, artifacts, outputs, uploads and jobs.

    Raises:
        Conflict: jobs of the project still run. They are asked to stop; nothing else is erased.
        QueueUnavailable: Redis does not answer.
        StorageError: the database or the store does not answer, or a file cannot be removed.
    """
    removed = dict.fromkeys(("rows", "artifacts", "outputs", "uploads", "jobs"), 0)
    removed["jobs"] = _remove_jobs(container, project)
    artifacts = container.artifacts
    for folder in (f"projects/{project}", f"{FRAMES_FOLDER}/{project}"):
        for name in sorted(artifacts.ages(folder)):
            if not artifacts.remove(f"{folder}/{name}"):
                raise StorageError(f"{folder}/{name} cannot be removed.", "See the log; then repeat it.")
            removed["artifacts"] += 1
    for output in container.outputs.of_project(project):
        removed["outputs"] += container.outputs.delete(output.name)
    removed["uploads"] = container.uploads.remove_project(project)
    container.media.clear_cache()
    with container.storage.write() as connection:
        for table in metadata.sorted_tables:
            if "project_id" in table.c and table is not audit:
                removed["rows"] += connection.execute(sa.delete(table).where(table.c.project_id == project)).rowcount
        connection.execute(sa.delete(embeddings))
    data = container.settings.data_dir
    for path in (data / "training" / f"project-{project}", data / "artifact-cache"):
        shutil.rmtree(path, ignore_errors=True)
    container.audit.record(who, "erase", project)
    return removed


def _remove_jobs(container: Container, project: int) -> int:
    """Remove the jobs of a project and the results that Redis keeps; return the number of jobs."""
    queue = container.queue
    jobs = container.jobs.all(project, listed=False)
    for job in jobs:
        if job["state"] not in ENDED_STATES and job["kind"] != "learn_patterns":
            container.jobs.cancel(job["id"])
    with queue.guard():
        found = queue.fetch_many([job["id"] for job in jobs])
        running = [job.id for job in found if job.is_started]
        if running:
            raise Conflict(
                f"Jobs of project {project} still run: {', '.join(running)}.",
                "They were asked to stop: repeat it in a few seconds.",
            )
        for job in found:
            forget_executions(job)
            job.delete()
        ours = re.compile(rb"video:(?:found:[a-z-]+-%d(?:-|$)|answered:%d:|global-ids:%d$)" % ((project,) * 3))
        names = [name for name in queue.connection.scan_iter("video:*", count=1000) if ours.match(name)]
        if names:
            queue.connection.delete(*names)
    return len(found)
