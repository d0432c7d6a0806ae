"""Starts trainings that are due, and takes up those that were lost. Every worker does this between jobs, one at a time.

It looks at the database, so that a queue that has forgotten everything forgets no annotation and no training.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ml_backend.corrections_store import CorrectionStore
from ml_backend.errors import BackendError
from ml_backend.training.policy import TrainingState, is_due

if TYPE_CHECKING:
    from ml_backend.jobs.context import Context

log = logging.getLogger(__name__)

#: Seconds between two looks, of all workers together.
EVERY_S = 10


class Trainer:
    """See the module."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def tick(self) -> None:
        """For workers, now and then. Never raises what belongs to a server that is away."""
        try:
            if self._context.trainings.my_turn("trainer", EVERY_S):
                self.remember()
                self.look()
        except BackendError as error:
            log.warning("Trainings that may be due were not looked for: %s", error)

    def remember(self) -> None:
        """Read all annotations anew where the queue has forgotten which were to be read."""
        if not self._context.trainings.has_forgotten():
            return
        for project_id in self._context.storage.annotated_projects():
            log.info("Project %s: its annotations are read anew, since the queue has forgotten them.", project_id)
            self._context.queue.request_learning(project_id, None)

    def look(self) -> list[int]:
        """Request what is due; returns the projects."""
        context = self._context
        if context.settings.detector == "motion":
            return []
        lost = {version.project_id: version for version in context.projects.registry.all_active()}
        requested = []
        for project_id in sorted({*CorrectionStore(context.storage).projects(), *lost}):
            due = project_id not in lost and is_due(context.projects.policies.get(project_id), self.state(project_id))
            if (due or project_id in lost) and not context.trainings.is_wanted(project_id):
                reason = "annotations" if due else lost[project_id].trigger
                log.info("Project %s: a training is %s.", project_id, "due" if due else "taken up again")
                context.trainings.request(project_id, reason)
                requested.append(project_id)
        return requested

    def state(self, project_id: int) -> TrainingState:
        """What has been annotated since the last training."""
        registry = self._context.projects.registry
        last = registry.last(project_id)
        failures = 0
        if last and last.state == "failed":
            states = [version.state for version in registry.versions(project_id)]
            failures = next((n for n, state in enumerate(states) if state != "failed"), len(states))
        seen = (last.lineage.get("seen") or {}) if last else {}
        tasks = CorrectionStore(self._context.storage).tasks(project_id)
        new = [task for number, task in tasks.items() if seen.get(str(number)) != task.fingerprint]
        return TrainingState(
            sum(task.tracks for task in new),
            max((task.changed_at for task in new), default=None),
            last.created_at if last else None,
            failures,
        )
