"""How a run of a training begins, is handed on, and ends, whatever happens in between."""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
import socket
import uuid
from typing import Any

from redis.exceptions import RedisError
from rq import get_current_job

from ml_backend.corrections_store import CorrectionStore
from ml_backend.errors import BackendError, ConfigError
from ml_backend.jobs.board import CANCELLED, FAILED, FINISHED
from ml_backend.jobs.context import Context
from ml_backend.jobs.training_facts import checkpoint_name, unread_before
from ml_backend.jobs.training_queue import TrainingLock
from ml_backend.jobs.training_watch import Watch
from ml_backend.training.keeping import remove_old_weights
from ml_backend.training.registry import ACTIVE, RunLost, Version

log = logging.getLogger(__name__)


class TrainingLife:
    """What a run has beside its steps."""

    def __init__(self, context: Context, project_id: int, trigger: str, lock: TrainingLock) -> None:
        self._context, self._project, self._trigger, self._lock = context, project_id, trigger, lock
        self._settings, self._registry = context.settings, context.projects.registry
        self._owner = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"[:64]
        self._folder = context.settings.data_dir / "training" / f"project-{project_id}"
        self._watch = Watch(context, project_id, lock)
        self._force = False
        self._seen: dict[str, str] | None = None
        self._began: int | None = None

    def _begin(self) -> Version | None:
        active = self._registry.active(self._project)
        cancelled = self._context.trainings.is_cancelled(self._project)
        self._context.trainings.clear_cancelled(self._project)
        if self._settings.detector == "motion":
            if active:
                self._end(self._registry.take_over(active, self._owner), "cancelled", "DETECTOR=motion is set.")
            raise ConfigError(
                "DETECTOR=motion is set: there is no network that could be trained.", "Set DETECTOR=auto or yolo."
            )
        if active is None:
            parent = self._registry.current(self._project)
            version = self._registry.begin(self._project, self._owner, self._trigger, parent)
        else:
            version = self._registry.take_over(active, self._owner)
        self._began = version.id
        self._force = self._context.trainings.take_force(self._project) or version.trigger.startswith("force")
        if cancelled:
            self._end(version, "cancelled", "Cancelled on request.")
            return None
        if active is None:
            return version
        if active.attempts >= self._settings.job_attempts:
            reason = f"Its worker died {active.attempts} times while it was in state {active.state!r}."
            self._end(version, "failed", f"{reason} The worker's log, or the machine's, may say why.")
            return None
        log.info("Project %s: %s is taken up again in state %s", self._project, version.name, version.state)
        return version

    def _hand_back(self, version: Version) -> None:
        """An orderly end is no death: it does not count against the run."""
        try:
            mine = dataclasses.replace(version, owner=self._owner)
            self._registry.advance(mine, attempts=max(0, version.attempts - 1))
        except BackendError as error:
            log.warning("Project %s: %s was not handed back: %s", self._project, version.name, error)

    def _end(self, version: Version, state: str, reason: str, *, again: bool = False) -> None:
        """End a run that came to nothing; unless ``again``, the annotations as they are do not begin another one."""
        last = self._registry.get(version.id) or version
        lineage = dict(last.lineage)
        seen = lineage.pop("seen", None) or self._seen
        if not again:
            # What was annotated while it ran is new to the next one.
            lineage["seen"] = CorrectionStore(self._context.storage).seen(self._project) if seen is None else seen
            lineage.setdefault("unread", unread_before(self._registry, last))
        try:
            self._registry.finish(dataclasses.replace(version, owner=self._owner), state, reason, lineage=lineage)
        except RunLost:  # it has ended already, or is another worker's, who needs its files
            log.info("Project %s: %s is not this worker's any more.", self._project, version.name)
        else:
            self._tidy_up(version)
            if last.artifact:
                self._context.projects.artifacts.remove(last.artifact)

    def tell_outcome(self) -> None:
        """Keep what came of it as the job's result, for whoever asked for it, or looks at the list of jobs."""
        current = get_current_job()
        last = self._registry.get(self._began) if self._began else None
        if current is None or (last is not None and last.state in ACTIVE):  # another worker goes on with it
            return
        facts: dict[str, Any] = {"version": None, "state": "unchanged", "reason": "Nothing new has been annotated."}
        if last is not None:
            facts = {"version": last.name, "state": last.state, "reason": last.reason, "metrics": last.metrics}
        state = {"cancelled": CANCELLED, "failed": FAILED}.get(facts["state"], FINISHED)
        board = self._context.board
        try:
            if board.get(current.id) is None:  # nobody has asked for it by name
                board.note(current.id, "train", self._project)
            board.end(current.id, state, result=facts, error=facts["reason"] if state == FAILED else "")
        except BackendError as error:  # the registry knows it all the same
            log.warning("Project %s: the job's result was not kept: %s", self._project, error)

    def _refresh(self, version: Version) -> None:
        last = self._registry.get(version.id)
        promoted = last.state == "promoted" if last else self._registry.current(self._project) is not None
        if promoted:
            self._context.queue.request_refresh(self._project)

    def _report(self, **facts: Any) -> None:
        current = get_current_job()
        if current is None:
            return
        current.meta["progress"] = facts
        try:
            current.save_meta()
        except RedisError as error:  # a training must not end for a report
            log.warning("Progress was not reported: %s", error)

    def _tidy_up(self, version: Version) -> None:
        for name in ("runs", "gate"):
            shutil.rmtree(self._folder / name / version.name, ignore_errors=True)
        artifacts = self._context.projects.artifacts
        artifacts.remove(checkpoint_name(version))
        last = self._registry.get(version.id)
        if last and (kept := last.lineage.get("held_out_file")):
            artifacts.remove(kept["name"])
        self._remove_old_weights()

    def _remove_old_weights(self) -> None:
        context = self._context
        try:
            remove_old_weights(self._project, self._settings, context.storage, context.projects.artifacts)
        except BackendError as error:  # a training must not end for it; the next one tries again
            log.warning("Project %s: weights of old versions were not removed: %s", self._project, error)
