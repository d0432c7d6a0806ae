"""Find what nobody told us: Label Studio sends events once, also while this server is down, and Redis may lose jobs.

The list of projects comes from Label Studio, and is compared with what was seen last: a project whose numbers of tasks,
predictions and annotations have not changed costs no request of its own.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ml_backend.jobs.container import Container

log = logging.getLogger(__name__)

#: Seconds between two checks of the projects' numbers, and of all projects whatever their numbers.
CHECK_S, CHECK_ALL_S = 60, 1800
_SEEN = "video:reconciled"


def reconcile(container: Container) -> list[int]:
    """Request missing predictions and unread annotations of the projects that are connected to this backend.

    Returns:
        The projects that were checked; empty if another process has done so within ``CHECK_S``.

    Raises:
        LabelStudioError: Label Studio does not answer, or rejects the token.
        QueueUnavailable: Redis does not answer.
    """
    if not container.training_queue.acquire_turn("reconcile", CHECK_S):
        return []
    with container.queue.guard():
        if container.training_queue.acquire_turn("reconcile-all", CHECK_ALL_S):
            container.queue.connection.delete(_SEEN)
        seen = {int(key): value.decode() for key, value in container.queue.connection.hgetall(_SEEN).items()}  # type: ignore[union-attr]
    checked = []
    for project in container.lister.projects():
        project_id = int(project["id"])
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
    if checked:
        log.debug("Checked projects %s for what nobody told us.", checked)
    return checked
