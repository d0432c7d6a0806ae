"""The Label Studio ML protocol, wire-compatible with label-studio-ml 2.x.

No request loads a model, decodes video or fetches anything: requests look up, enqueue and return.
"""

from __future__ import annotations

import hashlib
import logging
from typing import Any

from flask import Blueprint, Response, current_app, jsonify, request
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from ml_backend.errors import BackendError, PredictionFailed, QueueUnavailable, RequestError
from ml_backend.jobs.plan import TaskPlan, cached_label_config, plan_task
from ml_backend.models.weights import resolve_detector
from ml_backend.services import Services
from ml_backend.versions import model_version
from ml_backend.web.events import parse_event

log = logging.getLogger(__name__)

blueprint = Blueprint("protocol", __name__)

MODEL_CLASS = "VideoBackend"
#: More tasks than this are handed to one job that requests the rest, so that the answer stays quick.
DIRECT_REQUESTS = 20
#: Predictions that would make the answer larger are pushed by the worker instead.
ANSWER_BYTES = 32 << 20


def services() -> Services:
    """What :func:`ml_backend.app.create_app` put together."""
    found: Services = current_app.extensions["services"]
    return found


def _body() -> dict[str, Any]:
    body = request.get_json(force=True, silent=True)
    if not isinstance(body, dict):
        raise RequestError("The body must be a JSON object.", "See the Label Studio ML protocol.")
    return body


def _project_id(value: Any) -> int:
    """Label Studio sends ``"7.1700000000"``: id and creation time."""
    text = str(value if value is not None else "").split(".", 1)[0]
    if not text.isdecimal():
        raise RequestError(f"The project {str(value)[:80]!r} is not of the form 'ID.TIMESTAMP'.")
    return int(text)


def current_version() -> str:
    """The version that predictions made now would carry. Takes milliseconds; loads nothing."""
    settings = services().settings
    return model_version(settings, resolve_detector(settings))


@blueprint.get("/health")
@blueprint.get("/")
def health() -> Response:
    return jsonify({"status": "UP", "model_class": MODEL_CLASS})


@blueprint.post("/setup")
def setup() -> Response:
    """Tell the version; refuse a label config that cannot hold video tracks, so that the person connecting sees it."""
    body = _body()
    _project_id(body.get("project"))
    schema = body.get("schema")
    if isinstance(schema, str) and schema.strip():
        cached_label_config(schema)
    _remember_token(body.get("access_token"))
    return jsonify({"model_version": current_version()})


def _remember_token(token: Any) -> None:
    """Legacy tokens handed over by Label Studio serve where no other is configured."""
    if services().settings.label_studio_api_key.get_secret_value() or not isinstance(token, str) or not token:
        return
    try:
        services().queue.remember_token(token[:4096])
    except QueueUnavailable as error:
        log.warning("The token of /setup was not kept: %s", error)


@blueprint.post("/predict")
def predict() -> Response:
    """Finished predictions at once; for the others one job each, and ``[]`` meanwhile.

    Answers one entry per task, in order. Where nothing can be done for any of the tasks the error is the answer,
    since Label Studio shows it; beside tasks that are well, it is logged.
    """
    body = _body()
    tasks = body.get("tasks")
    if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
        raise RequestError("'tasks' must be a list of tasks.", "See the Label Studio ML protocol.")
    label_config = body.get("label_config")
    if not isinstance(label_config, str):
        raise RequestError("'label_config' must be the project's label config.")
    if not tasks:
        return jsonify({"results": []})
    project_id = _project_id(body.get("project"))
    version = current_version()
    cached_label_config(label_config)

    plans: list[TaskPlan | BackendError] = []
    for task in tasks:
        try:
            plans.append(_plan(task, project_id, label_config, version))
        except BackendError as error:
            plans.append(error)
    found = _finished(plans)
    errors = [plan for plan in plans if isinstance(plan, BackendError)]
    missing = [plan for plan in plans if isinstance(plan, TaskPlan) and plan.key not in found]
    if missing:
        try:
            errors += _request(project_id, missing, found)
        except QueueUnavailable as error:
            if not found:
                raise
            errors.append(error)  # what is finished is handed out all the same
    results: list[Any] = [[] if isinstance(plan, BackendError) else found.get(plan.key) or [] for plan in plans]
    for failure in errors:
        log.warning("/predict: %s", failure)
    if len(errors) == len(tasks):
        raise errors[0]
    return jsonify({"results": results, "model_version": version})


def _plan(task: dict[str, Any], project_id: int, label_config: str, version: str) -> TaskPlan:
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
        version,
        annotated=bool(annotations) if isinstance(annotations, list) else False,
        label_studio_url=services().settings.label_studio_url,
    )


def _finished(plans: list[TaskPlan | BackendError]) -> dict[str, Any]:
    """Stored predictions by key, as many as fit into one answer."""
    keys = [plan.key for plan in plans if isinstance(plan, TaskPlan) and not plan.needs_probe]
    storage = services().storage
    sizes = storage.prediction_sizes(list(dict.fromkeys(keys)))
    chosen: list[str] = []
    total = 0
    for key in keys:
        if key in sizes:
            total += sizes[key]
            if total > ANSWER_BYTES and chosen:
                break
            chosen.append(key)
    return storage.get_predictions(list(dict.fromkeys(chosen)))


def _request(project_id: int, missing: list[TaskPlan], found: dict[str, Any]) -> list[BackendError]:
    """Enqueue what is missing. Adds to ``found`` what was finished meanwhile; returns what failed for good."""
    queue, storage = services().queue, services().storage
    if len(missing) > DIRECT_REQUESTS:
        ids = [plan.task_id for plan in missing]
        digest = hashlib.sha256(repr(ids).encode()).hexdigest()[:16]
        queue.request_prepare_many(project_id, ids, f"predict-{project_id}-{digest}")
        return []
    errors: list[BackendError] = []
    for plan in missing:
        if plan.needs_probe:
            outcome = queue.request_prepare(project_id, plan.task_id)
        else:
            outcome = queue.request_prediction(plan.key, project_id, plan.task_id)
        if outcome.failure:
            errors.append(PredictionFailed(f"Task {plan.task_id}: {outcome.failure}"))
        elif not outcome.created and not plan.needs_probe:
            # The job may have ended between the look-up and the request.
            finished = storage.get_prediction(plan.key)
            if finished is not None:
                found[plan.key] = finished
    return errors


@blueprint.post("/webhook")
def webhook() -> tuple[Response, int]:
    event = parse_event(_body())
    outcome = services().events.receive(event)
    if outcome == "ignored":
        return jsonify({"status": "Unknown event"}), 200
    return jsonify({"result": outcome, "status": "ok"}), 201


@blueprint.get("/versions")
def versions() -> Response:
    """The present version first, then earlier ones that made predictions."""
    project = request.args.get("project")
    project_id = _project_id(project) if project else None
    present = current_version()
    earlier = [version for version in services().storage.versions(project_id) if version != present]
    return jsonify({"versions": [present, *earlier]})


@blueprint.get("/metrics")
def metrics() -> Response:
    return Response(generate_latest(services().metrics.registry), content_type=CONTENT_TYPE_LATEST)
