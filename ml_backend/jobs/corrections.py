"""What people did with predictions, read from Label Studio and written down; a part of the job that learns."""

from __future__ import annotations

import logging
from datetime import datetime, timezone

from ml_backend.corrections import begun_from, compare, regions_fingerprint, was_written_over
from ml_backend.corrections_store import Correction, CorrectionStore
from ml_backend.errors import Interrupted
from ml_backend.jobs.context import Context
from ml_backend.label_studio.client import Annotation, NotFound, Task
from ml_backend.versions import is_partial

log = logging.getLogger(__name__)


def read_annotation(context: Context, project_id: int, task_id: int) -> tuple[Task | None, Annotation | None]:
    """A task and its annotation; nothing where the task is gone, or of another project than an event said."""
    try:
        task, annotation = context.client.get_annotation(task_id)
    except NotFound:
        return None, None
    return (task, annotation) if task.project_id == project_id else (None, None)


def record_corrections(context: Context, project_id: int, task_id: int) -> None:
    """Compare a task's annotation with the prediction that it was begun from, and write down what was done with it.

    A prediction is written over only while its task has no annotation: what the task has is what the person saw. A
    task without an annotation is forgotten. Needs no video.

    Raises:
        Interrupted: the process is asked to stop.
        LabelStudioError, QueueUnavailable, StorageError: a server is away, or refuses.
    """
    if context.stop.is_set():
        raise Interrupted("Stopped before the next task.", "The job is taken up again.")
    store = CorrectionStore(context.storage)
    with context.queue.learning_lock(task_id):
        _, annotation = read_annotation(context, project_id, task_id)
        if annotation is None:
            store.remove(project_id, task_id)
            return
        submitted = annotation.created_at or datetime.now(timezone.utc)
        changed = annotation.updated_at or submitted
        fingerprint = regions_fingerprint(annotation.result)
        if store.is_current(project_id, task_id, annotation.id, fingerprint, changed):
            return
        prediction = begun_from(annotation, context.client.list_predictions(task_id))
        if prediction and (is_partial(prediction.model_version) or was_written_over(annotation, prediction)):
            log.info("Task %s: it was begun from what has become more since; that is not compared.", task_id)
            prediction = None
        comparison = compare(prediction.result if prediction else [], annotation.result)
        version = prediction.model_version if prediction else ""
        correction = Correction(annotation.id, version, comparison, fingerprint, submitted, changed)
        store.put(project_id, task_id, correction)
    done = ", ".join(f"{number} {kind}" for kind, number in comparison.counts.items() if number)
    log.info("Task %s: of the prediction of %s: %s.", task_id, version or "no version", done or "nothing")
