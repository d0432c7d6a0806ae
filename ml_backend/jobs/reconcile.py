"""Find what nobody told us: Label Studio sends events once, also while this server is down, and Redis may lose jobs.

The list of projects comes from Label Studio, and is compared with what was seen last: a project whose numbers of tasks,
predictions and annotations have not changed costs no request of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ml_backend.core.errors import LabelStudioError, LabelStudioUnavailable
from ml_backend.label_studio.client import NotFound
from ml_backend.label_studio.listing import TASKS_AT_ONCE

if TYPE_CHECKING:
    from ml_backend.jobs.container import Container

log = logging.getLogger(__name__)

#: Seconds between two checks of the projects' numbers, and of all projects whatever their numbers.
CHECK_S, CHECK_ALL_S = 60, 1800
_SEEN, _COUNTED = "video:reconciled", "video:reconciled:moments"


def reconcile(container: Container) -> list[int]:
    """Request missing predictions and unread annotations of the projects that are connected to this backend.

    Tasks that were deleted, also with their whole project, lose their suspicious moments: each is looked at again,
    which forgets it if Label Studio says that it is gone.

    Returns:
        The connected projects that were checked; empty if another process has done so within ``CHECK_S``.

    Raises:
        LabelStudioError: Label Studio does not answer, or rejects the token.
        QueueUnavailable: Redis does not answer.
    """
    if not container.training_queue.acquire_turn("reconcile", CHECK_S):
        return []
    with container.queue.guard():
        if container.training_queue.acquire_turn("reconcile-all", CHECK_ALL_S):
            container.queue.connection.delete(_SEEN, _COUNTED)
        seen = {int(key): value.decode() for key, value in container.queue.connection.hgetall(_SEEN).items()}  # type: ignore[union-attr]
    checked = []
    listed = {int(project["id"]): project for project in container.lister.projects()}
    for project_id, project in listed.items():
        numbers = " ".join(str(project[name]) for name in ("tasks", "predicted", "annotated", "annotations"))
        if not project["connected"] or project["config_problem"] or seen.get(project_id) == numbers:
            continue
        if project["predicted"] is None or project["predicted"] < project["tasks"]:
            container.queue.request_prepare_many(project_id, [])
        if project["annotations"]:
            container.queue.request("patterns", "catch_up", [project_id], f"catch-up-{project_id}", module="learn")
        with container.queue.guard():
            container.queue.connection.hset(_SEEN, str(project_id), numbers)
        checked.append(project_id)
    _check_moments(container, {number: str(project["tasks"]) for number, project in listed.items()})
    if checked:
        log.debug("Checked projects %s for what nobody told us.", checked)
    return checked


def _check_moments(container: Container, numbers: Mapping[int, str]) -> None:
    """Request that tasks with moments which do not exist any more are looked at.

    Args:
        numbers: how many tasks the listed projects have; projects are checked when that changes.
    """
    from ml_backend.review.moment_store import MomentStore

    store = MomentStore(container.storage)
    with container.queue.guard():
        seen = {int(key): value.decode() for key, value in container.queue.connection.hgetall(_COUNTED).items()}  # type: ignore[union-attr]
    projects = store.projects()
    if not numbers.keys() & set(projects):
        return  # another Label Studio, or another organisation's token: nothing is known to be gone
    for project_id in projects:
        number = numbers.get(project_id, "")  # that of a deleted project, or of one beyond the end of the list
        if seen.get(project_id) == number:
            continue
        tasks = sorted(store.tasks(project_id))
        missing: list[int] = []
        try:
            for start in range(0, len(tasks), TASKS_AT_ONCE):
                missing += container.client.missing_tasks(project_id, tasks[start : start + TASKS_AT_ONCE])
        except NotFound:
            missing = tasks
        except LabelStudioUnavailable:
            raise
        except LabelStudioError as error:
            log.warning("It is not known which tasks of project %d are gone: %s", project_id, error)
            continue
        if missing:
            container.queue.request_review(project_id, missing)
        with container.queue.guard():
            container.queue.connection.hset(_COUNTED, str(project_id), number)
