"""Deliver predictions to the tasks that wait for them."""

from __future__ import annotations

import logging
from typing import Any

from ml_backend.core.errors import LabelStudioError
from ml_backend.jobs.container import Container
from ml_backend.jobs.services.reviews import with_repairs
from ml_backend.label_studio.client import NotFound, Task
from ml_backend.labeling.model_version import is_outdated, is_partial, same_kind

log = logging.getLogger(__name__)


def deliver(container: Container, key: str, project_id: int, prediction: dict[str, Any], task_ids: list[int]) -> None:
    """Push a prediction to all tasks of its project that wait for it, each once.

    Raises:
        LabelStudioError: the first error, after all other tasks are served. Tasks that failed keep waiting.
    """
    first_error: LabelStudioError | None = None
    done: set[int] = set()
    container.queue.add_targets(key, task_ids)
    while waiting := container.queue.targets(key) - done:  # more may be added meanwhile
        for task_id in sorted(waiting):
            done.add(task_id)
            try:
                deliver_one(container, project_id, task_id, prediction)
            except LabelStudioError as error:
                log.warning("The prediction for task %s was not delivered: %s", task_id, error)
                first_error = first_error or error
            else:
                container.queue.remove_target(key, task_id)
    if first_error:
        raise first_error


def deliver_partial(container: Container, key: str, project_id: int, prediction: dict[str, Any]) -> None:
    """Push a partial prediction to all tasks that wait for it and have no complete one."""
    for task_id in sorted(container.queue.targets(key)):
        with container.queue.task_lock("deliver", task_id):
            try:
                task = container.client.get_task(task_id)
                # Annotated tasks are not touched, and a complete prediction stays until there is a new one.
                if task.annotations or not all(map(is_partial, task.prediction_versions)):
                    continue
                if _is_foreign(task, project_id):
                    continue
                if not container.client.renew_prediction(task_id, prediction, is_partial):
                    container.client.create_prediction(task_id, prediction)
            except NotFound:
                continue
        log.info("Task %s has a partial prediction with %d regions.", task_id, len(prediction["result"]))


def _is_foreign(task: Task, project_id: int) -> bool:
    """Return whether a task is of another project: a request may name any."""
    if task.project_id != project_id:
        log.warning("Task %s gets no prediction: it is not of project %s.", task.id, project_id)
    return task.project_id != project_id


def deliver_one(container: Container, project_id: int, task_id: int, prediction: dict[str, Any]) -> None:
    """Push a prediction to a task, with the repairs of an earlier one where it finds the same tracks."""
    version = prediction["model_version"]
    with container.queue.task_lock("deliver", task_id):
        try:
            task = container.client.get_task(task_id)
            if _is_foreign(task, project_id):
                return
            prediction = with_repairs(container.storage, task_id, prediction)
            if version in task.prediction_versions:
                # Label Studio may have requested it itself, beside the partial one.
                if not task.annotations and any(map(is_partial, task.prediction_versions)):
                    container.client.renew_prediction(task_id, prediction, is_partial)
                return
            if task.annotations and any(same_kind(version, other) for other in task.prediction_versions):
                return  # annotated meanwhile: newly learned labels no longer matter to it
            # Replace outdated predictions, so that people need not find the new one among dozens. In an annotated task
            # the prediction that the annotation started from stays, even a partial one.
            if task.annotations or not container.client.renew_prediction(
                task_id, prediction, lambda other: is_outdated(version, other)
            ):
                container.client.create_prediction(task_id, prediction)
        except NotFound:
            log.info("Task %s was deleted; it needs no prediction.", task_id)
            return
    container.storage.note_score(task.project_id, task_id, float(prediction.get("score") or 0.0))
    container.count("delivered")
    container.queue.request_review(task.project_id, [task_id])
    log.info("Task %s has a prediction of %s with %d regions.", task_id, version, len(prediction["result"]))
