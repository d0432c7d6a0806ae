"""What the protocol does, without HTTP: look up finished predictions, request the others, take events in.

No call loads a model, decodes video or fetches anything.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from ml_backend.core.errors import BackendError, PredictionFailed, QueueUnavailable, RequestError
from ml_backend.core.settings import Settings
from ml_backend.db.storage import Storage
from ml_backend.jobs.project_models import ProjectModels, ProjectModelStore
from ml_backend.jobs.queue import JobQueue
from ml_backend.jobs.task_plan import TaskPlan, cached_label_config, plan_task
from ml_backend.labeling.model_version import same_kind
from ml_backend.training.policy import PolicyStore

log = logging.getLogger(__name__)

#: More tasks than this are handed to one job that requests the rest, so that the answer stays quick.
DIRECT_REQUESTS = 20
#: Predictions that would make the answer larger are pushed by the worker instead.
ANSWER_BYTES = 32 << 20


class PredictionService:
    """Answers for Label Studio. Safe across threads."""

    def __init__(self, settings: Settings, storage: Storage, queue: JobQueue, projects: ProjectModelStore) -> None:
        self._settings = settings
        self._storage = storage
        self._queue = queue
        self._projects = projects
        self._policies = PolicyStore(storage)

    def version(self, project_id: int | None = None) -> str:
        """The version that predictions made now would carry. Takes milliseconds.

        Raises:
            WeightsError: the configured weights do not exist.
        """
        return self._projects.models(project_id).version

    def versions(self, project_id: int | None = None) -> list[str]:
        """The present version first, then earlier ones that made predictions."""
        present = self.version(project_id)
        return [present, *(version for version in self._storage.versions(project_id) if version != present)]

    def setup(self, project_id: int, label_config: str, extra_params: Any) -> str:
        """Take over what Label Studio says of the project; the version from now on.

        Args:
            label_config: may be empty.
            extra_params: see :meth:`ml_backend.jobs.project_models.ProjectModelStore.setup_mode`.

        Raises:
            ConfigError: the label config cannot hold video tracks, or there is no such mode or training policy.
        """
        before = self.version(project_id)
        if label_config:
            self._projects.remember_labels(project_id, cached_label_config(label_config))
        self._projects.setup_mode(project_id, extra_params)
        self._policies.setup(project_id, extra_params)
        version = self.version(project_id)
        if version != before:
            try:
                self._queue.request_refresh(project_id)
            except QueueUnavailable as error:  # tasks that are opened get their labels all the same
                log.warning("Project %s is not refreshed: %s", project_id, error)
        return version

    def remember_token(self, token: Any) -> None:
        """Legacy tokens handed over by Label Studio serve where no other is configured."""
        if self._settings.label_studio_api_key.get_secret_value() or not isinstance(token, str):
            return
        if not token or not token.isascii():  # could not be sent in a header
            return
        try:
            self._queue.remember_token(token[:4096])
        except QueueUnavailable as error:
            log.warning("The token of /setup was not kept: %s", error)

    def predict(self, project_id: int, label_config: str, tasks: Sequence[Mapping[str, Any]]) -> list[Any]:
        """As :meth:`predict_json`, parsed."""
        return [json.loads(text) for text in self.predict_json(project_id, label_config, tasks)]

    def predict_json(self, project_id: int, label_config: str, tasks: Sequence[Mapping[str, Any]]) -> list[bytes]:
        """Finished predictions at once; for the others one job each, and ``[]`` meanwhile.

        Returns:
            One JSON text per task, in order: a prediction or ``[]``.

        Raises:
            BackendError: nothing can be done for any of the tasks; the first one's reason. Beside tasks that are
                well, a reason is logged.
        """
        if not tasks:
            return []
        self._projects.remember_labels(project_id, cached_label_config(label_config))
        models = self._projects.models(project_id)
        plans: list[TaskPlan | BackendError] = []
        for task in tasks:
            try:
                plans.append(self._plan(task, project_id, label_config, models))
            except BackendError as error:
                plans.append(error)
        found = self._finished(plans)
        errors = [plan for plan in plans if isinstance(plan, BackendError)]
        missing = [
            plan
            for plan, task in zip(plans, tasks, strict=True)
            # People's work is not predicted anew for what was learned since: a part of it was learned from them.
            if isinstance(plan, TaskPlan) and plan.key not in found and not _is_settled(plan, task)
        ]
        if missing:
            try:
                errors += self._request(project_id, missing, found)
            except QueueUnavailable as error:
                if not found:
                    raise
                errors.append(error)  # what is finished is handed out all the same
        for failure in errors:
            log.warning("Predictions for project %s: %s", project_id, failure)
        if len(errors) == len(tasks):
            raise errors[0]
        return [b"[]" if isinstance(plan, BackendError) else found.get(plan.key, b"[]") for plan in plans]

    def _plan(self, task: Mapping[str, Any], project_id: int, label_config: str, models: ProjectModels) -> TaskPlan:
        task_id = task.get("id")
        if not isinstance(task_id, int) or isinstance(task_id, bool):
            raise RequestError("A task lacks its id.", "See the Label Studio ML protocol.")
        data = task.get("data")
        annotations = task.get("annotations")
        return plan_task(
            project_id,
            task_id,
            data if isinstance(data, dict) else {},
            label_config,
            models.version,
            annotated=bool(annotations) if isinstance(annotations, list) else False,
            label_studio_url=self._settings.label_studio_url,
        )

    def _finished(self, plans: Sequence[TaskPlan | BackendError]) -> dict[str, bytes]:
        """Stored predictions by key, as many as fit into one answer."""
        keys = [plan.key for plan in plans if isinstance(plan, TaskPlan) and not plan.needs_probe]
        unique = list(dict.fromkeys(keys))
        sizes = self._storage.prediction_sizes(unique)
        chosen: list[str] = []
        total = 0
        for key in unique:
            if key in sizes:
                total += sizes[key]
                if total > ANSWER_BYTES and chosen:
                    break
                chosen.append(key)
        return self._storage.prediction_bodies(chosen)

    def _request(self, project_id: int, missing: Sequence[TaskPlan], found: dict[str, bytes]) -> list[BackendError]:
        """Enqueue what is missing. Adds to ``found`` what was finished meanwhile; returns what failed for good."""
        if len(missing) > DIRECT_REQUESTS:
            self._queue.request_prepare_many(project_id, [plan.task_id for plan in missing])
            return []
        errors: list[BackendError] = []
        for plan in missing:
            if plan.needs_probe:
                outcome = self._queue.request_prepare(project_id, plan.task_id)
            else:
                outcome = self._queue.request_prediction(plan.key, project_id, plan.task_id)
            if outcome.failure:
                errors.append(PredictionFailed(f"Task {plan.task_id}: {outcome.failure}"))
            elif not outcome.created and not plan.needs_probe:
                # The job may have ended between the look-up and the request.
                found.update(self._storage.prediction_bodies([plan.key]))
        return errors


def _is_settled(plan: TaskPlan, task: Mapping[str, Any]) -> bool:
    """Whether a task has annotations, and a prediction that differs only in what was learned since."""
    predictions = task.get("predictions")
    if not task.get("annotations") or not isinstance(predictions, list):
        return False
    versions = [item.get("model_version") for item in predictions if isinstance(item, Mapping)]
    return any(same_kind(plan.version, version) for version in versions if isinstance(version, str))
