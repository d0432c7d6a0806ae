"""Start trainings that are due or were orphaned, and remove superseded predictions.

Workers do this between jobs, one at a time. It relies on the database only, so that no annotation and no training is
lost with the queue.
"""

from __future__ import annotations

import itertools
import logging
import time
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

from ml_backend.core.errors import BackendError
from ml_backend.jobs.reconcile import reconcile
from ml_backend.jobs.training_inputs import changed_since
from ml_backend.labeling.model_version import same_kind
from ml_backend.training.policy import TrainingState, is_due
from ml_backend.training.registry import MEASURED
from ml_backend.training.review_store import ReviewStore

if TYPE_CHECKING:
    from ml_backend.jobs.container import Container

log = logging.getLogger(__name__)

#: Seconds between two checks, over all workers.
TICK_S = 10
#: Pause after the last attempt of a job whose work is still pending: people need time to fix a token, for example.
RETRY_PAUSE = timedelta(seconds=600)
#: Seconds between two checks for missed events.
CATCH_UP_S = 1800
#: Seconds between two removals of superseded predictions.
SWEEP_S = 60
#: Seconds that one removal may take: a job may arrive.
MAX_SWEEP_S = 5.0
#: How long superseded predictions are kept: those that differ from the current ones only in labels learned since, which
#: are never requested again, and others, which are if a mode, a setting or a version is switched back.
SAME_KIND_TTL, PREDICTION_TTL = timedelta(hours=1), timedelta(days=1)
#: Seconds between two cleanups of this machine's artifact cache.
TIDY_S = 24 * 3600.0


class TrainingScheduler:
    """Periodic work of all workers."""

    def __init__(self, container: Container) -> None:
        self._container = container
        self._tidied_at: float | None = None

    def tick(self) -> None:
        """Do what is due; workers call this periodically. Errors of unreachable servers are logged."""
        self._tidy()
        try:
            if self._container.training_queue.acquire_turn("trainer", TICK_S):
                self.start_pending()
                self.catch_up()
                self.request_due()
        except BackendError as error:
            log.warning("Could not check which trainings are due: %s", error)
        try:
            reconcile(self._container)
        except BackendError as error:
            log.warning("Could not check which predictions and annotations were missed: %s", error)
        try:
            if self._container.training_queue.acquire_turn("predictions", SWEEP_S):
                self.remove_superseded_predictions()
        except BackendError as error:
            log.warning("Superseded predictions were not removed: %s", error)

    def _tidy(self) -> None:
        """Clean this machine's artifact cache; every worker does so for its own."""
        now = time.monotonic()
        if self._tidied_at is None or now - self._tidied_at >= TIDY_S:
            self._tidied_at = now
            self._container.artifacts.tidy()

    def remove_superseded_predictions(self) -> int:
        """Remove superseded predictions, for some seconds at most; return how many.

        Each submitted annotation makes a version, and each version a prediction of every open task. If a removed one is
        requested again, it is made from the stored tracks in milliseconds. Predictions of a project's current version
        are kept, and those made last, since this worker may have other settings than those that predict.
        """
        storage, now, removed = self._container.storage, datetime.now(timezone.utc), 0
        until = time.monotonic() + MAX_SWEEP_S
        for project_id, group in itertools.groupby(storage.prediction_runs(), lambda item: item.project_id):
            versions = list(group)
            last = max(item.last for item in versions)
            old = [item for item in versions if item.first < now - SAME_KIND_TTL and item.last != last]
            if not old:
                continue
            try:
                current = self._container.projects.models(project_id).version
            except BackendError as error:  # its weights are unavailable; try again later
                log.debug("Project %s: the current version is unknown: %s", project_id, error)
                continue
            for item in old:
                before = now - (SAME_KIND_TTL if same_kind(current, item.model_version) else PREDICTION_TTL)
                if item.model_version != current and item.first < before:
                    removed += storage.remove_predictions(project_id, item.model_version, before)
                    if time.monotonic() >= until:  # a job may arrive; the rest follows next time
                        log.info("%d superseded predictions were removed; there may be more.", removed)
                        return removed
        if removed:
            log.info("%d superseded predictions were removed.", removed)
        return removed

    def start_pending(self) -> None:
        """Create the jobs of pending work that has none, for example because Redis has lost it."""
        for kind, project_id in self._container.storage.pending_projects():
            self._container.queue.start_pending(kind, project_id, pause=RETRY_PAUSE)

    def catch_up(self) -> None:
        """Request :func:`ml_backend.jobs.learn.catch_up` for all projects that have annotations."""
        container = self._container
        if not container.training_queue.acquire_turn("catch-up", CATCH_UP_S):
            return
        for project_id in {*container.storage.annotated_projects(), *ReviewStore(container.storage).projects()}:
            container.queue.request("patterns", "catch_up", [project_id], f"catch-up-{project_id}", module="learn")

    def request_due(self) -> list[int]:
        """Request trainings that are due or were orphaned. Return their projects."""
        container = self._container
        if container.settings.detector == "motion":
            return []
        active = {version.project_id: version for version in container.registry.all_active()}
        requested = []
        for project_id in sorted({*ReviewStore(container.storage).projects(), *active}):
            due = project_id not in active and is_due(container.policies.get(project_id), self.state(project_id))
            if (due or project_id in active) and not container.training_queue.is_wanted(project_id):
                trigger = "annotations" if due else active[project_id].trigger
                log.info("Project %s: a training is %s.", project_id, "due" if due else "resumed")
                container.training_queue.request(project_id, trigger)
                requested.append(project_id)
                if due:
                    container.audit.record("automatic", "train", project_id)
        return requested

    def state(self, project_id: int) -> TrainingState:
        """Return what has been annotated since the last training."""
        registry = self._container.registry
        last = registry.last(project_id)
        failures = 0
        if last and last.state == "failed":
            states = [version.state for version in registry.outline(project_id)]
            failures = next((n for n, state in enumerate(states) if state != "failed"), len(states))
        tasks = ReviewStore(self._container.storage).tasks(project_id)
        new = changed_since(tasks, last)
        if new and failures:
            # The cause of the failure may be fixed now: count all changes since the last evaluated version.
            evaluated = next((entry for entry in registry.outline(project_id) if entry.state in MEASURED), None)
            new = changed_since(tasks, registry.get(evaluated.id) if evaluated else None)
        return TrainingState(
            sum(max(task.tracks, task.hard) for task in new),
            max((task.changed_at for task in new), default=None),
            last.created_at if last else None,
            failures,
        )
