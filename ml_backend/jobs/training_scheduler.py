"""Starts trainings that are due, and takes up those that were lost. Every worker does this between jobs, one at a time.

It looks at the database, so that a queue that has forgotten everything forgets no annotation and no training. What
nobody needs any more is removed on the same occasion.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

from ml_backend.core.errors import BackendError
from ml_backend.labeling.model_version import same_kind
from ml_backend.training.policy import TrainingState, is_due
from ml_backend.training.registry import MEASURED, Version
from ml_backend.training.review_store import AnnotatedTask, ReviewStore

if TYPE_CHECKING:
    from ml_backend.jobs.container import Container

log = logging.getLogger(__name__)

#: Seconds between two looks, of all workers together.
EVERY_S = 10
#: Pause after the last try of a job whose work is still to be done: tokens, for example, are mended by people.
REPEAT = timedelta(seconds=600)
#: Seconds between two looks for what nobody has told us of.
CATCH_UP_EVERY_S = 1800
#: Seconds between two looks for predictions that have been superseded.
SWEEP_S = 60
#: Seconds that one sweep may take: the worker is idle, but a job may come.
SWEEP_FOR_S = 5.0
#: How long predictions are kept that differ from the present ones only in what was learned since, which nobody asks for
#: again, and all others, which are asked for again if a mode, a setting or a version is switched back.
LEARNED_SINCE, OTHERWISE = timedelta(hours=1), timedelta(days=1)
#: Seconds between two looks for what this machine's cache of artifacts does not need.
TIDY_S = 24 * 3600.0


class TrainingScheduler:
    """See the module."""

    def __init__(self, container: Container) -> None:
        self._container = container
        self._tidied: float | None = None

    def tick(self) -> None:
        """For workers, now and then. Never raises what belongs to a server that is away."""
        self._tidy()
        try:
            if self._container.training_queue.my_turn("trainer", EVERY_S):
                self.start_pending()
                self.catch_up()
                self.look()
        except BackendError as error:
            log.warning("Trainings that may be due were not looked for: %s", error)
        try:
            if self._container.training_queue.my_turn("predictions", SWEEP_S):
                self.forget_predictions()
        except BackendError as error:
            log.warning("Predictions that nobody needs any more were not removed: %s", error)

    def _tidy(self) -> None:
        """Every machine has a cache of its own, so every worker does this for itself."""
        now = time.monotonic()
        if self._tidied is None or now - self._tidied >= TIDY_S:
            self._tidied = now
            self._container.artifacts.tidy()

    def forget_predictions(self) -> int:
        """Remove predictions that others have taken the place of, for some seconds; returns how many.

        Each annotation that is submitted makes a version, and each version a prediction of every open task. One that is
        gone and asked for again is made of the video's tracks in milliseconds. What a project's present version has
        made is kept, and what was made last, in case this worker and those that predict are set differently.
        """
        storage, now, removed = self._container.storage, datetime.now(timezone.utc), 0
        until = time.monotonic() + SWEEP_FOR_S
        for project_id, versions in itertools.groupby(storage.prediction_runs(), lambda made: made.project_id):
            made = list(versions)
            last = max(item.last for item in made)
            old = [item for item in made if item.first < now - LEARNED_SINCE and item.last != last]
            if not old:
                continue
            try:
                present = self._container.projects.models(project_id).version
            except BackendError as error:  # its weights are away: what is superseded shows once they are back
                log.debug("Project %s: the present version is not known: %s", project_id, error)
                continue
            for item in old:
                before = now - (LEARNED_SINCE if same_kind(present, item.model_version) else OTHERWISE)
                if item.model_version != present and item.first < before:
                    removed += storage.remove_predictions(project_id, item.model_version, before)
                    if time.monotonic() >= until:  # a job may come; the rest at the next look
                        log.info("%d superseded predictions were removed; there may be more.", removed)
                        return removed
        if removed:
            log.info("%d superseded predictions were removed.", removed)
        return removed

    def start_pending(self) -> None:
        """Make the jobs of what is to be done where none is, be it that Redis has forgotten it."""
        for kind, project_id in self._container.storage.pending_projects():
            self._container.queue.start_pending(kind, project_id, pause=REPEAT)

    def catch_up(self) -> None:
        """See :func:`ml_backend.jobs.learn.catch_up`."""
        container = self._container
        if not container.training_queue.my_turn("catch-up", CATCH_UP_EVERY_S):
            return
        for project_id in {*container.storage.annotated_projects(), *ReviewStore(container.storage).projects()}:
            container.queue.request("patterns", "catch_up", [project_id], f"catch-up-{project_id}", module="learn")

    def look(self) -> list[int]:
        """Request what is due; returns the projects."""
        container = self._container
        if container.settings.detector == "motion":
            return []
        lost = {version.project_id: version for version in container.registry.all_active()}
        requested = []
        for project_id in sorted({*ReviewStore(container.storage).projects(), *lost}):
            due = project_id not in lost and is_due(container.policies.get(project_id), self.state(project_id))
            if (due or project_id in lost) and not container.training_queue.is_wanted(project_id):
                reason = "annotations" if due else lost[project_id].trigger
                log.info("Project %s: a training is %s.", project_id, "due" if due else "taken up again")
                container.training_queue.request(project_id, reason)
                requested.append(project_id)
        return requested

    def state(self, project_id: int) -> TrainingState:
        """What has been annotated since the last training."""
        registry = self._container.registry
        last = registry.last(project_id)
        failures = 0
        if last and last.state == "failed":
            states = [version.state for version in registry.outline(project_id)]
            failures = next((n for n, state in enumerate(states) if state != "failed"), len(states))
        tasks = ReviewStore(self._container.storage).tasks(project_id)
        new = _unlike(tasks, last)
        if new and failures:
            # What was missing may be there now; then all that has not been learned counts.
            measured = next((entry for entry in registry.outline(project_id) if entry.state in MEASURED), None)
            new = _unlike(tasks, registry.get(measured.id) if measured else None)
        return TrainingState(
            sum(max(task.tracks, task.hard) for task in new),
            max((task.changed_at for task in new), default=None),
            last.created_at if last else None,
            failures,
        )


def _unlike(tasks: Mapping[int, AnnotatedTask], last: Version | None) -> list[AnnotatedTask]:
    """The tasks that are not as a training has seen them."""
    seen = (last.lineage.get("seen") or {}) if last else {}
    return [task for number, task in tasks.items() if seen.get(str(number)) != task.fingerprint]
