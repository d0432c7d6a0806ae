"""The Label Studio ML protocol over HTTP, wire-compatible with label-studio-ml 2.x."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from flask import Blueprint, Response, current_app, jsonify, request
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from ml_backend.core.errors import BackendError, RequestError
from ml_backend.core.ids import MAX_ID

if TYPE_CHECKING:
    from ml_backend.server.container import WebContainer

log = logging.getLogger(__name__)

blueprint = Blueprint("protocol", __name__)

MODEL_CLASS = "VideoBackend"
_PROTOCOL = "See the Label Studio ML protocol."


def services() -> WebContainer:
    """Return the container of the current app."""
    container: WebContainer = current_app.extensions["services"]
    return container


def _json_body() -> dict[str, Any]:
    try:
        body = request.get_json(force=True, silent=True)
    except RecursionError:  # deeply nested brackets
        body = None
    if not isinstance(body, dict):
        raise RequestError("The body must be a JSON object.", _PROTOCOL)
    return body


def project_id(value: Any) -> int:
    """Parse Label Studio's ``"7.1700000000"`` (id and creation time).

    Raises:
        RequestError: the value does not have that form.
    """
    text = str(value if value is not None else "").split(".", 1)[0]
    if not (text.isascii() and text.isdecimal() and len(text) < 16 and int(text) <= MAX_ID):
        raise RequestError(f"The project {str(value)[:80]!r} does not have the form 'ID.TIMESTAMP'.", _PROTOCOL)
    return int(text)


@blueprint.get("/health")
def health() -> Response:
    return jsonify({"status": "UP", "model_class": MODEL_CLASS})


@blueprint.get("/ready")
def ready() -> tuple[Response, int]:
    """Return whether requests can be served, for orchestrators: 503 while the database or the queue does not answer."""
    problems: dict[str, str] = {}
    for name, ping in (("database", services().storage.ping), ("queue", services().queue.ping)):
        try:
            ping()
        except BackendError as error:
            log.warning("Not ready: %s", error)
            problems[name] = f"The {name} does not answer; the log says why."
    return jsonify({"ready": not problems, "problems": problems}), 503 if problems else 200


@blueprint.post("/setup")
def setup() -> Response:
    """Return the model version; reject label configs without video tracks, so that the person connecting sees it."""
    from ml_backend.server.access import person

    body = _json_body()
    project = project_id(body.get("project"))
    schema = body.get("schema")
    label_config = schema if isinstance(schema, str) and schema.strip() else ""
    version = services().prediction_service.setup(project, label_config, body.get("extra_params"))
    if person().projects is None:  # else the caller speaks for one project only
        services().prediction_service.remember_token(body.get("access_token"))
    return jsonify({"model_version": version})


@blueprint.post("/predict")
def predict() -> Response:
    """Return predictions; for boxes that a person has drawn in a task (``params.context``), their objects' tracks."""
    body = _json_body()
    tasks = body.get("tasks")
    if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
        raise RequestError("'tasks' must be a list of tasks.", _PROTOCOL)
    label_config = body.get("label_config")
    if not isinstance(label_config, str):
        raise RequestError("'label_config' must be the project's label config.", _PROTOCOL)
    service, project = services().prediction_service, project_id(body.get("project"))
    params = body.get("params")
    context = params.get("context") if isinstance(params, dict) else None
    drawing = services().drawing
    if isinstance(context, dict) and context and len(tasks) == 1:
        return jsonify({"results": drawing.answer(project, label_config, tasks[0], context)})
    if len(tasks) == 1:
        drawing.warm(project, label_config, tasks[0])
    results = service.predict_json(project, label_config, tasks)
    return Response(b'{"results":[' + b",".join(results) + b"]}\n", mimetype="application/json")


@blueprint.post("/webhook")
def webhook() -> tuple[Response, int]:
    from ml_backend.server.access import person
    from ml_backend.server.webhooks import parse_event

    outcome = services().webhooks.receive(parse_event(_json_body()), person().sees)
    if outcome == "ignored":
        return jsonify({"status": "Unknown event"}), 200
    return jsonify({"result": outcome, "status": "ok"}), 201


@blueprint.get("/versions")
def versions() -> Response:
    """Return model versions; with a project also its registry, its activations, and acceptance rates."""
    from ml_backend.server.access import person

    project = request.args.get("project")
    if project:
        person().require_project(project_id(project))
    service = services().prediction_service
    if project or person().projects is None:
        versions = service.versions(project_id(project) if project else None)
    else:  # those of all projects are not for everybody
        versions = [service.version()]
    content: dict[str, Any] = {"versions": versions}
    if project:
        registry = services().trainings.versions(project_id(project))
        content |= {"registry": registry.pop("versions"), **registry}
    return jsonify(content)


@blueprint.post("/versions")
def use_version() -> Response:
    """Switch a project to a version: ``{"project": 7, "version": "v2"}``; ``base`` is the configured detector.

    Only as ``application/json``, which a page of another site cannot send without a preflight.
    """
    if not request.is_json:
        raise RequestError(
            "The body must have the media type application/json.", 'Send {"project": 7, "version": "v2"}.'
        )
    from ml_backend.server.access import person, record

    body = _json_body()
    name = body.get("version")
    if not isinstance(name, str):
        raise RequestError("'version' must be the name of a version.", "Choose one of GET /versions?project=7.")
    project, caller = project_id(body.get("project")), person()
    caller.require("trainer")
    caller.require_project(project)
    model_version = services().trainings.activate(project, name, caller.name)
    record("switch_model", project, name)
    return jsonify({"model_version": model_version})


@blueprint.get("/metrics")
def metrics() -> Response:
    return Response(generate_latest(services().metrics.registry), content_type=CONTENT_TYPE_LATEST)
