"""Gives predictions to the tasks that wait for them."""

from __future__ import annotations

import logging
from typing import Any

from ml_backend.core.errors import LabelStudioError
from ml_backend.jobs.container import Container
from ml_backend.label_studio.client import NotFound
from ml_backend.labeling.model_version import is_outdated, is_partial, same_kind

log = logging.getLogger(__name__)


def deliver(container: Container, key: str, prediction: dict[str, Any], task_ids: list[int]) -> None:
    """Push a prediction to all tasks that wait for it, each once.

    Raises the first error after all others are served; the tasks that it concerns go on waiting.
    """
    first: LabelStudioError | None = None
    done: set[int] = set()
    container.queue.add_targets(key, task_ids)
    while waiting := container.queue.targets(key) - done:  # others may ask meanwhile
        for task_id in sorted(waiting):
            done.add(task_id)
            try:
                deliver_one(container, task_id, prediction)
            except LabelStudioError as error:
                log.warning("The prediction for task %s was not delivered: %s", task_id, error)
                first = first or error
            else:
                container.queue.remove_target(key, task_id)
    if first:
        raise first


def deliver_partial(container: Container, key: str, prediction: dict[str, Any]) -> None:
    """Show what was found so far in all tasks that wait for the rest, unless they have something whole."""
    for task_id in sorted(container.queue.targets(key)):
        with container.queue.task_lock("deliver", task_id):
            try:
                task = container.client.get_task(task_id)
                # People's work is not touched, and what is whole stays until something else is.
                if task.annotations or not all(map(is_partial, task.prediction_versions)):
                    continue
                if not container.client.renew_prediction(task_id, prediction, is_partial):
                    container.client.create_prediction(task_id, prediction)
            except NotFound:
                continue
        log.info("Task %s shows what was found so far: %d regions.", task_id, len(prediction["result"]))


def deliver_one(container: Container, task_id: int, prediction: dict[str, Any]) -> None:
    version = prediction["model_version"]
    with container.queue.task_lock("deliver", task_id):
        try:
            task = container.client.get_task(task_id)
            if version in task.prediction_versions:
                # Label Studio may have asked for it itself, beside what was shown until then.
                if not task.annotations and any(map(is_partial, task.prediction_versions)):
                    container.client.renew_prediction(task_id, prediction, is_partial)
                return
            if task.annotations and any(same_kind(version, other) for other in task.prediction_versions):
                return  # somebody annotated it meanwhile: what was learned since is not for it
            # What was learned since is in the new one; people would have to find it among dozens of older ones. Beside
            # an annotation stays what it was begun from, though it was of a part of the video.
            if task.annotations or not container.client.renew_prediction(
                task_id, prediction, lambda other: is_outdated(version, other)
            ):
                container.client.create_prediction(task_id, prediction)
        except NotFound:
            log.info("Task %s is gone; its prediction is not needed.", task_id)
            return
    container.storage.note_score(task.project_id, task_id, float(prediction.get("score") or 0.0))
    container.count("delivered")
    log.info("Task %s has a prediction of %s with %d regions.", task_id, version, len(prediction["result"]))
