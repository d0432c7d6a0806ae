"""API jobs: work that takes longer than a request may. Running one twice does no harm.

Files appear under unique names when they are complete; a job that is retried makes another.
"""

from __future__ import annotations

import logging
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import StringConstraints
from rq import get_current_job

from ml_backend.core.errors import BackendError, Interrupted, MediaError, VideoError
from ml_backend.core.outputs import STALE_S
from ml_backend.embeddings.loading import use_embedder
from ml_backend.jobs.api_queue import agreement_name, data_url, patterns_name, similar_name, stats_name
from ml_backend.jobs.container import Container, job
from ml_backend.jobs.job_context import JobContext, api_job

if TYPE_CHECKING:
    from ml_backend.datasets.task_files import RawTask

log = logging.getLogger(__name__)

#: Name of a file or folder, not a path.
PlainName = Annotated[str, StringConstraints(pattern=r"^[^/\x00]*[^./\x00][^/\x00]*$")]
#: Most tracks of a similarity search that come with a thumbnail.
MAX_THUMBNAILS = 200


@api_job
def init_models(context: JobContext, project_id: int) -> dict[str, Any]:
    """Load the models that a project's next prediction needs; they stay loaded while memory allows."""
    from ml_backend.detectors.loading import yolo_detector
    from ml_backend.inference.text_detector import use_text_detector

    models = context.container.projects.models(project_id, download=True)
    classifier = models.classifier
    loaded = []
    resolved = [model for model in (classifier.embedder, classifier.clip) if model]
    report, total = context.step("loading"), len(resolved) + (2 if classifier.text_detector else 1)
    if models.detector.kind == "yolo":
        with yolo_detector(models.detector, context.settings):
            loaded.append(models.detector.name)
    report(1, total)
    for done, model in enumerate(resolved, start=2):
        with use_embedder(model, context.settings):
            loaded.append(model.name)
        report(done, total)
    if classifier.text_detector:
        with use_text_detector(classifier.text_detector, context.settings):
            loaded.append(classifier.text_detector.name)
        report(total, total)
    notes = [note for note in (models.detector.note, *classifier.notes) if note]
    return {"loaded": loaded, "mode": models.mode, "model_version": models.version, "notes": notes}


@job
def auto_label(container: Container, project_id: int, task_ids: list[int]) -> None:
    """Request predictions for these tasks; an empty list means all unannotated tasks."""
    tasks = task_ids or [state.id for state in container.client.list_task_states(project_id) if not state.annotations]
    context = JobContext(container)
    report = context.step("requesting")
    for done, task_id in enumerate(tasks, start=1):
        container.queue.request_prepare(project_id, task_id)
        report(done, len(tasks))
    if current := get_current_job():
        # From now on the job's progress is that of these predictions.
        current.meta["tasks"] = tasks
        current.save_meta()
        log.info("Job %s waits for the predictions of %d tasks.", current.id, len(tasks))


@api_job
def import_video(context: JobContext, project_id: int, folder: PlainName, name: PlainName) -> dict[str, Any]:
    """Make an uploaded video playable and create a task for it.

    Args:
        folder, name: of the file, below the uploads folder. The file is removed unless a retry may succeed.
    """
    from ml_backend.label_studio.importer import Importer

    context.container.clean_up_files()  # space is needed now
    path = context.container.uploads.open(folder, name)
    with _cleaned_up(context, project_id, path):
        importer = Importer(context.container.client, project_id, context.settings)
        (outcome,) = importer.run([path], context.step("importing"))
        if outcome.error:
            raise outcome.error
        return {"task": outcome.task_id, "status": outcome.status, "detail": outcome.detail}


@contextmanager
def _cleaned_up(context: JobContext, project_id: int, path: Path) -> Iterator[None]:
    """Remove an upload after the import, or if it is unusable; keep it if something else failed."""
    try:
        yield
    except Interrupted:
        if context.container.is_cancelled(context.id):
            context.container.uploads.remove(path.parent.name, path.name)
        raise
    except BackendError as error:
        if isinstance(error, (VideoError, MediaError)) and not error.retryable:
            context.container.uploads.remove(path.parent.name, path.name)
        else:
            _keep(project_id, path, error)
        raise
    context.container.uploads.remove(path.parent.name, path.name)


def _keep(project_id: int, path: Path, error: BackendError) -> None:
    """Restart the time for which an upload is kept, and add to the final error how to import it."""
    with suppress(OSError):
        os.utime(path.parent)
    job = get_current_job()
    if not error.retryable or not (job and job.retries_left):
        command = f"python scripts/import_videos.py --project {project_id} {shlex.quote(str(path))}"
        days = STALE_S // (24 * 3600)
        retry = f"The upload is kept for {days} days: retry once this is fixed, or run on the worker's machine:"
        error.hint = f"{error.hint} {retry} {command}".lstrip()


@api_job
def count_statistics(context: JobContext, project_id: int) -> dict[str, Any]:
    """Count a project's annotations by label and by person."""
    from ml_backend.datasets.statistics import collect_statistics

    reader = context.reader(project_id)
    statistics = collect_statistics(reader, context.step("counting"))
    facts = {
        "videos": statistics.videos,
        "video_seconds": round(statistics.video_seconds, 3),
        "rows": statistics.rows(),
        "skipped": [str(item) for item in reader.skipped],
    }
    context.container.queue.publish(stats_name(project_id), facts)
    return {"videos": statistics.videos}


@api_job
def describe_patterns(context: JobContext, project_id: int) -> dict[str, Any]:
    """Publish labels, clusters, thresholds and the embedding map of a project's pattern bank."""
    from ml_backend.jobs.services.patterns import Patterns
    from ml_backend.labeling.few_shot.embedding_map import embedding_map

    context.step("clustering")
    info = Patterns(context.container).info(project_id)
    embedder, store = info["embedder"], context.container.projects.patterns
    points: list[dict[str, Any]] = []
    digest: str | None = None
    if embedder:
        digest = store.digest(project_id, embedder)
        points = embedding_map(*store.exemplars(project_id, embedder))
    facts = {"digest": digest or "", "labels": info["labels"], "map": points}
    context.container.queue.publish(patterns_name(project_id), facts)
    return {"labels": len(info["labels"])}


@api_job
def find_similar(context: JobContext, project_id: int, label: str, limit: int, safe: bool) -> dict[str, Any]:
    """Find unannotated tracks that look like a label's exemplars."""
    from ml_backend.jobs.services.patterns import Patterns

    context.step("searching")
    patterns = Patterns(context.container)
    tracks, skipped = patterns.similar(project_id, label, limit=limit, safe_only=safe)
    embedder = context.container.projects.models(project_id).classifier.embedder
    digest = context.container.projects.patterns.digest(project_id, embedder.model_id) if embedder else None
    rows = [
        track.summary() | {"thumbnail": data_url(track.thumbnail) if index < MAX_THUMBNAILS else None}
        for index, track in enumerate(tracks)
    ]
    facts = {"digest": digest or "", "tracks": rows, "skipped": skipped}
    context.container.queue.publish(similar_name(project_id, label, limit, safe), facts)
    return {"tracks": len(rows)}


@api_job
def measure_agreement(context: JobContext, project_id: int, model: bool) -> dict[str, Any]:
    """Measure how people agree who annotated the same tasks; with ``model``, the newest prediction counts as one."""
    from ml_backend.jobs.agreement import measure
    from ml_backend.label_studio.label_config import parse_label_config

    container, report = context.container, context.step("counting")
    controls = parse_label_config(context.label_config(project_id)).video_controls

    def tasks() -> Iterator[RawTask]:
        for number, task in enumerate(container.client.list_full_tasks(project_id)):
            report(number, 0)
            yield task

    facts = measure(container.storage, project_id, tasks(), controls, model=model)
    container.queue.publish(agreement_name(project_id, model), facts)
    return {"pairs": len(facts["pairs"])}
