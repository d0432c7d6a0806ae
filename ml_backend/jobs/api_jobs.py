"""Jobs of the control room: what takes longer than a request may. Each may be run twice without harm.

Files appear under names of their own when they are complete; a job that is taken up again makes another.
"""

from __future__ import annotations

import logging
import os
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rq import get_current_job

from ml_backend.core.errors import BackendError, Interrupted, MediaError, VideoError
from ml_backend.core.outputs import STALE_S
from ml_backend.jobs.api_queue import data_url, patterns_name, similar_name, stats_name
from ml_backend.jobs.container import Container, job
from ml_backend.jobs.job_context import JobContext, api_job
from ml_backend.labeling.track_classifier import use_embedder

log = logging.getLogger(__name__)

#: Tracks of a "find more like this" that come with a picture.
THUMBNAILS = 200


@api_job
def init_models(work: JobContext, project_id: int) -> dict[str, Any]:
    """Load the models that a project's next prediction needs; they stay loaded while memory allows."""
    from ml_backend.inference.pipeline import yolo_detector

    models = work.container.projects.models(project_id, download=True)
    hybrid = models.hybrid
    loaded = []
    wanted = [item for item in (hybrid.embedder, hybrid.clip) if item]
    report, total = work.step("loading"), len(wanted) + 1
    if models.detector.kind == "yolo":
        with yolo_detector(models.detector, work.settings):
            loaded.append(models.detector.name)
    report(1, total)
    for number, item in enumerate(wanted, start=2):
        with use_embedder(item, work.settings):
            loaded.append(item.name)
        report(number, total)
    notes = [note for note in (models.detector.note, *hybrid.notes) if note]
    return {"loaded": loaded, "mode": models.mode, "model_version": models.version, "notes": notes}


@job
def auto_label(container: Container, project_id: int, task_ids: list[int]) -> None:
    """Request predictions of these tasks; an empty list means all that nobody has annotated."""
    tasks = task_ids or [state.id for state in container.client.list_task_states(project_id) if not state.annotations]
    work = JobContext(container)
    report = work.step("requesting")
    for number, task_id in enumerate(tasks, start=1):
        container.queue.request_prepare(project_id, task_id)
        report(number, len(tasks))
    if current := get_current_job():
        # From now on it is as far as their predictions are.
        current.meta["tasks"] = tasks
        current.save_meta()
        log.info("Job %s is as far as the predictions of %d tasks.", current.id, len(tasks))


@api_job
def import_video(work: JobContext, project_id: int, folder: str, name: str) -> dict[str, Any]:
    """Make an uploaded video playable and a task of it.

    Args:
        folder, name: of the file, below the folder of uploads; it is removed once nothing more can be done with it.
    """
    from ml_backend.label_studio.importer import Importer

    work.container.remove_leftovers()  # now that room is needed
    path = work.settings.uploads_dir / folder / name
    if not path.is_file():
        raise MediaError(
            "The uploaded file is not on this machine.",
            "Upload it again; a worker on another machine needs the same DATA_DIR.",
        )
    with _kept_if_it_is_fine(work, project_id, path):
        importer = Importer(work.container.client, project_id, work.settings)
        (outcome,) = importer.run([path], work.step("importing"))
        if outcome.error:
            raise outcome.error
        return {"task": outcome.task_id, "status": outcome.status, "detail": outcome.detail}


@contextmanager
def _kept_if_it_is_fine(work: JobContext, project_id: int, path: Path) -> Iterator[None]:
    """Remove an upload when it is a task, or none can be made of it; keep it when something else was at fault."""
    try:
        yield
    except Interrupted:
        if work.container.is_given_up(work.id):
            shutil.rmtree(path.parent, ignore_errors=True)
        raise
    except BackendError as error:
        if isinstance(error, (VideoError, MediaError)) and not error.retryable:
            shutil.rmtree(path.parent, ignore_errors=True)
        else:
            _keep(project_id, path, error)
        raise
    shutil.rmtree(path.parent, ignore_errors=True)


def _keep(project_id: int, path: Path, error: BackendError) -> None:
    """Have an upload stay for a while from now on, and the error say where it is if nobody tries again by himself."""
    with suppress(OSError):
        os.utime(path.parent)
    job = get_current_job()
    if not error.retryable or not (job and job.retries_left):
        command = f"python scripts/import_videos.py --project {project_id} {shlex.quote(str(path))}"
        days = STALE_S // (24 * 3600)
        kept = f"The upload is kept for {days} days: repeat it once this is mended, or run where the worker does:"
        error.hint = f"{error.hint} {kept} {command}".lstrip()


@api_job
def count_statistics(work: JobContext, project_id: int) -> dict[str, Any]:
    """Count what has been annotated in a project, by label and by person."""
    from ml_backend.datasets.statistics import collect_statistics

    source = work.source(project_id)
    counted = collect_statistics(source, work.step("counting"))
    facts = {
        "videos": counted.videos,
        "video_seconds": round(counted.video_seconds, 3),
        "rows": counted.rows(),
        "skipped": [str(item) for item in source.skipped],
    }
    work.container.queue.publish(stats_name(project_id), facts)
    return {"videos": counted.videos}


@api_job
def describe_patterns(work: JobContext, project_id: int) -> dict[str, Any]:
    """Clusters and thresholds of what a project has learned, for the state of its patterns at this moment."""
    from ml_backend.jobs.services.patterns import Patterns
    from ml_backend.labeling.few_shot.embedding_map import embedding_map

    work.step("clustering")
    info = Patterns(work.container).info(project_id)
    embedder, store = info["embedder"], work.container.projects.patterns
    points: list[dict[str, Any]] = []
    digest: str | None = None
    if embedder:
        digest = store.digest(project_id, embedder)
        points = embedding_map(*store.exemplars(project_id, embedder))
    facts = {"digest": digest or "", "labels": info["labels"], "map": points}
    work.container.queue.publish(patterns_name(project_id), facts)
    return {"labels": len(info["labels"])}


@api_job
def find_similar(work: JobContext, project_id: int, label: str, limit: int, safe: bool) -> dict[str, Any]:
    """Find tracks that nobody has annotated and that look like a label's exemplars."""
    from ml_backend.jobs.services.patterns import Patterns

    work.step("searching")
    patterns = Patterns(work.container)
    found, skipped = patterns.similar(project_id, label, limit=limit, safe_only=safe)
    embedder = work.container.projects.models(project_id).hybrid.embedder
    digest = work.container.projects.patterns.digest(project_id, embedder.model_id) if embedder else None
    rows = [
        item.summary() | {"thumbnail": data_url(item.thumbnail) if number < THUMBNAILS else None}
        for number, item in enumerate(found)
    ]
    facts = {"digest": digest or "", "tracks": rows, "skipped": skipped}
    work.container.queue.publish(similar_name(project_id, label, limit, safe), facts)
    return {"tracks": len(rows)}
