"""Operations on trainings and versions, for scripts and the web application."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ml_backend.core.errors import Conflict, QueueUnavailable
from ml_backend.jobs.training_inputs import is_unchanged_since, training_settings_digest
from ml_backend.jobs.training_queue import TrainingQueue, unread_before
from ml_backend.labeling.model_version import BASE
from ml_backend.training.policy import PolicyStore, TrainingPolicy
from ml_backend.training.registry import Registry, Version

if TYPE_CHECKING:
    from ml_backend.db.storage import Storage
    from ml_backend.jobs.project_models import ProjectModelStore
    from ml_backend.jobs.queue import JobQueue, JobRequest

log = logging.getLogger(__name__)

_REMOVED = "Its weights were removed, since there are newer versions."


class Trainings:
    """The trainings and versions of all projects. Long work is done by workers."""

    def __init__(self, projects: ProjectModelStore, queue: JobQueue, storage: Storage) -> None:
        self._projects, self._queue, self._storage = projects, queue, storage
        self._requests, self._registry, self._policies = TrainingQueue(queue), Registry(storage), PolicyStore(storage)

    def start(self, project_id: int, by: str, *, force: bool = False) -> JobRequest:
        """Request a training now, whatever the policy says.

        Args:
            by: who asks.
            force: train even if nothing has changed since the last time.

        Raises:
            Conflict: nothing has changed.
            QueueUnavailable: Redis does not answer.
        """
        if not force and not self.is_wanted(project_id):
            self._require_changes(project_id)
        return self._requests.request(project_id, f"force: {by}" if force else by, force=force)

    def _require_changes(self, project_id: int) -> None:
        from ml_backend.training.review_store import ReviewStore

        last = self._registry.last(project_id)
        if last is None or self._storage.pending("learn", project_id):
            return
        digest = training_settings_digest(self._queue.settings, self._projects.models(None).detector.sha256)
        if is_unchanged_since(ReviewStore(self._storage).tasks(project_id), digest, last):
            raise Conflict(
                f"Nothing new has been annotated since {last.name}.",
                "Annotate something and submit it; or train nevertheless with force (train.py: --force).",
            )

    def is_wanted(self, project_id: int) -> bool:
        """Return whether a training waits or runs.

        Raises:
            QueueUnavailable: Redis does not answer.
        """
        return self._requests.is_wanted(project_id)

    def cancel(self, project_id: int) -> None:
        """Cancel a project's training, running or waiting. Its progress is lost.

        Raises:
            QueueUnavailable: Redis does not answer.
        """
        from ml_backend.training.review_store import ReviewStore

        was_waiting = self._requests.cancel(project_id)
        registry = self._registry
        if was_waiting:
            # Recorded as a run, so that the same annotations do not start another one.
            running = registry.running(project_id)
            if running:  # it waited to be resumed
                run = registry.take_over(running, "cancelled")
            else:
                run = registry.begin(project_id, "cancelled", "cancelled", registry.current(project_id))
            lineage = {"seen": ReviewStore(self._storage).seen(project_id), "unread": unread_before(registry, run)}
            registry.finish(run, "cancelled", "Cancelled before it finished.", lineage={**run.lineage, **lineage})

    def versions(self, project_id: int, limit: int | None = None) -> dict[str, Any]:
        """Return all facts about a project's versions, or the newest ``limit``, newest first, as plain JSON."""
        registry = self._registry
        current, proposed = registry.current(project_id), registry.proposed(project_id)
        versions = registry.versions(project_id, limit)
        names = {version.id: version.name for version in registry.outline(project_id)}
        return {
            "project": project_id,
            "current": current.name if current else BASE,
            "proposed": proposed.name if proposed else None,
            "model_version": self._projects.models(project_id).version,
            "policy": asdict(self.policy(project_id)),
            "versions": [_version_facts(version, names) for version in versions],
            "activations": [{**item, "at": item["at"].isoformat()} for item in registry.activations(project_id)],
            "acceptance": self.acceptance(project_id),
        }

    def acceptance(self, project_id: int) -> list[dict[str, Any]]:
        """Return how people corrected the predictions of each model version, oldest first, as plain JSON."""
        from ml_backend.training.review_store import ReviewStore

        return [
            asdict(item)
            | {"first": item.first.isoformat(), "last": item.last.isoformat()}
            | {"decided": item.decided, "acceptance_rate": item.rate}
            for item in ReviewStore(self._storage).by_version(project_id)
        ]

    def activate(self, project_id: int, name: str, by: str) -> str:
        """Switch a project to a version (``v2``) or to the settings' detector (``base``).

        Unannotated tasks are predicted again in the background.

        Returns:
            The new model version.

        Raises:
            ConfigError: the version does not exist, or has no evaluated weights.
            WeightsError: its weights are gone.
        """
        version = self._registry.find(project_id, name)
        if version is not None and version.artifact:
            self._projects.check_weights(version)  # activating missing weights would stop all work
        if self._registry.activate(project_id, version, by):
            try:
                self._queue.request_refresh(project_id)
            except QueueUnavailable as error:  # tasks get new predictions when they are opened
                log.warning("Project %s is not refreshed: %s", project_id, error)
        return self._projects.models(project_id).version

    def decline(self, project_id: int, name: str, by: str) -> None:
        """Refuse a proposed version; to accept it, :meth:`activate` it.

        Raises:
            ConfigError: the version does not exist.
            Conflict: it is not proposed.
        """
        version = self._registry.find(project_id, name)
        if version is None:
            raise Conflict("base cannot be declined.", "Name a version that is proposed.")
        self._registry.decline(version, by)

    def usable_versions(self, project_id: int) -> list[str]:
        """Return the names of the versions that a project can be switched to besides ``base``, newest first."""
        return [version.name for version in self._registry.outline(project_id) if version.has_weights]

    def rollback_target(self, project_id: int) -> str:
        """Return the target of a rollback: the newest promoted version before the one in use, else ``base``.

        So two rollbacks go back two versions, not back and forth.
        """
        registry = self._registry
        current = registry.current(project_id)
        older = (
            version.name
            for version in (registry.outline(project_id) if current else ())
            if current and version.state == "promoted" and version.has_weights and version.number < current.number
        )
        return next(older, BASE)

    def rollback(self, project_id: int, by: str) -> str:
        """Roll back to :meth:`rollback_target`, as :meth:`activate` does.

        Raises:
            Conflict: no trained version is in use.
        """
        if self._registry.current(project_id) is None:
            raise Conflict(
                f"There is nothing to roll back to: project {project_id} uses the configured detector.",
                "Choose one of its versions to use a trained one.",
            )
        return self.activate(project_id, self.rollback_target(project_id), by)

    def policy(self, project_id: int) -> TrainingPolicy:
        """Return when the project retrains."""
        return self._policies.get(project_id)

    def set_policy(self, project_id: int, values: Mapping[str, Any]) -> TrainingPolicy:
        """Change when the project retrains; see :meth:`ml_backend.training.policy.PolicyStore.set`."""
        return self._policies.set(project_id, values)


def _version_facts(version: Version, names: Mapping[int, str]) -> dict[str, Any]:
    return {
        "version": version.name,
        "state": version.state,
        "reason": f"{version.reason} {_REMOVED}".lstrip() if version.weights_removed else version.reason,
        "weights_removed": version.weights_removed,
        "trigger": version.trigger,
        "parent": names.get(version.parent_id or 0, BASE),
        "created_at": version.created_at.isoformat(),
        "finished_at": version.finished_at.isoformat() if version.finished_at else None,
        "weights_sha256": version.weights_sha256,
        "dataset": version.dataset,
        "held_out": version.held_out,
        "classes": list(version.classes),
        "annotations": (version.lineage.get("annotations") or {}),
        "pictures": version.lineage.get("pictures"),
        "tracks": version.lineage.get("tracks"),
        "notes": version.lineage.get("notes") or [],
        "config": version.config,
        "metrics": version.metrics,
        "history": version.history,
    }
