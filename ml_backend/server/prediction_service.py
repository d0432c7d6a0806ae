"""The Label Studio protocol without HTTP: look up finished predictions and request missing ones.

No call loads a model, decodes video or downloads anything.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Container, Mapping, Sequence
from typing import Any

from ml_backend.core.errors import BackendError, PredictionFailed, QueueUnavailable, RequestError
from ml_backend.core.ids import MAX_ID
from ml_backend.core.settings import Settings
from ml_backend.db.storage import Storage
from ml_backend.jobs.project_models import ProjectModels, ProjectModelStore
from ml_backend.jobs.queue import JobQueue
from ml_backend.jobs.services.reviews import repaired_tasks, with_repairs
from ml_backend.jobs.task_plan import TaskPlan, cached_label_config, plan_task
from ml_backend.labeling.model_version import same_kind
from ml_backend.training.policy import PolicyStore

log = logging.getLogger(__name__)

#: With more missing tasks than this, one job requests them all, so that the response stays fast.
DIRECT_REQUESTS = 20
#: Maximum bytes of predictions in one response; workers push the others.
MAX_RESPONSE_BYTES = 32 << 20


class PredictionService:
    """Look up and request predictions for Label Studio. Thread-safe."""

    def __init__(self, settings: Settings, storage: Storage, queue: JobQueue, projects: ProjectModelStore) -> None:
        self._settings = settings
        self._storage = storage
        self._queue = queue
        self._projects = projects
        self._policies = PolicyStore(storage)

    def version(self, project_id: int | None = None) -> str:
        """Return the model version of new predictions. Takes milliseconds.

        Raises:
            WeightsError: the configured weights do not exist.
        """
        return self._projects.models(project_id).version

    def versions(self, project_id: int | None = None) -> list[str]:
        """Return the current version, then earlier ones with stored predictions."""
        current = self.version(project_id)
        return [current, *(version for version in self._storage.versions(project_id) if version != current)]

    def setup(self, project_id: int, label_config: str, extra_params: Any) -> str:
        """Apply what Label Studio sends on connecting a project, and return its model version.

        The first time, the tasks that are there already are predicted. Label Studio sends the same before each
        prediction and on each view of the settings.

        Args:
            label_config: may be empty.
            extra_params: see :meth:`ml_backend.jobs.project_models.ProjectModelStore.setup_mode`.

        Raises:
            ConfigError: the label config has no video tracks, or the mode or training policy is unknown.
        """
        before = self.version(project_id)
        if label_config:
            self._projects.remember_labels(project_id, cached_label_config(label_config))
        self._projects.setup_mode(project_id, extra_params)
        self._policies.setup(project_id, extra_params)
        version = self.version(project_id)
        try:
            if version != before:
                self._queue.request_refresh(project_id)
            if label_config and project_id not in self._queue.set_up_projects():
                self._queue.request_prepare_many(project_id, [])
                self._queue.note_set_up(project_id)
        except QueueUnavailable as error:  # opened tasks are predicted anyway
            log.warning("Predictions of project %s were not requested: %s", project_id, error)
        return version

    def remember_token(self, token: Any) -> None:
        """Store the legacy token that Label Studio sends, unless a token is configured."""
        if self._settings.label_studio_api_key.get_secret_value() or not isinstance(token, str):
            return
        if not token or not token.isascii():  # cannot be sent in a header
            return
        try:
            self._queue.remember_token(token[:4096])
        except QueueUnavailable as error:
            log.warning("The token of /setup was not stored: %s", error)

    def predict(self, project_id: int, label_config: str, tasks: Sequence[Mapping[str, Any]]) -> list[Any]:
        """Return the parsed results of :meth:`predict_json`."""
        return [json.loads(text) for text in self.predict_json(project_id, label_config, tasks)]

    def predict_json(self, project_id: int, label_config: str, tasks: Sequence[Mapping[str, Any]]) -> list[bytes]:
        """Return finished predictions, and request a job for each missing one.

        Returns:
            One JSON text per task, in order: a prediction, or ``[]`` while there is none.

        Raises:
            BackendError: all tasks failed; the first one's error. If only some failed, their errors are logged.
        """
        if not tasks:
            return []
        self._projects.remember_labels(project_id, cached_label_config(label_config))
        models = self._projects.models(project_id)
        plans: list[TaskPlan | BackendError] = []
        for task in tasks:
            try:
                plans.append(self.plan(task, project_id, label_config, models))
            except BackendError as error:
                plans.append(error)
        predictions = self._finished(plans)
        errors = [plan for plan in plans if isinstance(plan, BackendError)]
        missing = [
            plan
            for plan, task in zip(plans, tasks, strict=True)
            # Annotated tasks are not predicted again for newly learned patterns, which may come from them.
            if isinstance(plan, TaskPlan) and plan.key not in predictions and not _is_settled(plan, task)
        ]
        if missing:
            try:
                errors += self._request(project_id, missing, predictions)
            except QueueUnavailable as error:
                if not predictions:
                    raise
                errors.append(error)  # finished predictions are returned anyway
        for failure in errors:
            log.warning("Predictions for project %s: %s", project_id, failure)
        if len(errors) == len(tasks):
            raise errors[0]
        repaired = repaired_tasks(self._storage, [plan.task_id for plan in plans if isinstance(plan, TaskPlan)])
        return [
            b"[]" if isinstance(plan, BackendError) else self._of_task(plan, predictions.get(plan.key), repaired)
            for plan in plans
        ]

    def _of_task(self, plan: TaskPlan, prediction: bytes | None, repaired: Container[int]) -> bytes:
        """Return a task's prediction, with the repairs of an earlier one."""
        if prediction is None or plan.task_id not in repaired:
            return prediction or b"[]"
        return json.dumps(with_repairs(self._storage, plan.task_id, json.loads(prediction))).encode()

    def plan(self, task: Mapping[str, Any], project_id: int, label_config: str, models: ProjectModels) -> TaskPlan:
        """Return what is to be predicted of a task.

        Raises:
            BackendError: the task has no id, no usable video, or the label config no video tracks.
        """
        task_id = task.get("id")
        if not isinstance(task_id, int) or isinstance(task_id, bool) or not 0 <= task_id <= MAX_ID:
            raise RequestError("A task has no id, or an impossible one.", "See the Label Studio ML protocol.")
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
        """Return stored predictions by key, as many as fit into one response."""
        keys = [plan.key for plan in plans if isinstance(plan, TaskPlan) and not plan.needs_probe]
        keys = list(dict.fromkeys(keys))
        sizes = self._storage.prediction_sizes(keys)
        selected: list[str] = []
        total = 0
        for key in keys:
            if key in sizes:
                total += sizes[key]
                if total > MAX_RESPONSE_BYTES and selected:
                    break
                selected.append(key)
        return self._storage.prediction_bodies(selected)

    def _request(
        self, project_id: int, missing: Sequence[TaskPlan], predictions: dict[str, bytes]
    ) -> list[BackendError]:
        """Request missing predictions, add those finished meanwhile to ``predictions``, and return failures."""
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
                # The job may have finished between the look-up and the request.
                predictions.update(self._storage.prediction_bodies([plan.key]))
        return errors


def _is_settled(plan: TaskPlan, task: Mapping[str, Any]) -> bool:
    """Return whether a task is annotated and its prediction is outdated only by newly learned patterns."""
    predictions = task.get("predictions")
    if not task.get("annotations") or not isinstance(predictions, list):
        return False
    versions = [item.get("model_version") for item in predictions if isinstance(item, Mapping)]
    return any(same_kind(plan.version, version) for version in versions if isinstance(version, str))
