"""What the page's buttons do: the same handlers as the API's, fed from forms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from flask import request
from pydantic import ValidationError
from werkzeug.datastructures import MultiDict

from ml_backend.web import bodies, control_room, uploads
from ml_backend.web.problems import Invalid, Unknown


class _NoBody(bodies.Model):
    """Nothing is sent."""


class _OfJob(bodies.Model):
    """Names a job."""

    job: str


class _AutoLabel(bodies.AutoLabel):
    """With ``chosen``, no tasks are none, and not all."""

    chosen: bool = False


def _auto_label(body: _AutoLabel) -> Any:
    if body.chosen and not body.tasks:
        raise Invalid("No task is chosen.", "Tick one, or auto-label everything without annotations.")
    return control_room.auto_label(body)


def _use(body: bodies.SwitchModel) -> Any:
    """Trained versions are loaded at once as well."""
    if body.mode is None and body.version and body.version != "base":
        return control_room.load_custom_model(bodies.LoadCustomModel(project=body.project, version=body.version))
    return control_room.switch_model(body)


@dataclass(frozen=True, slots=True)
class Action:
    """A button's work.

    Attributes:
        body: model of the form.
        handler: of the API; gets the body.
        changes: parts of the page that look different afterwards.
    """

    body: type[bodies.Model]
    handler: Callable[[Any], Any]
    changes: tuple[str, ...] = ()


ACTIONS: Mapping[str, Action] = {
    "use": Action(bodies.SwitchModel, _use, ("version", "status", "mode")),
    "rollback": Action(bodies.Rollback, control_room.rollback, ("version", "status", "current")),
    "learn": Action(bodies.OfProject, control_room.learn_patterns),
    "train": Action(bodies.Train, control_room.train, ("version",)),
    "auto_label": Action(_AutoLabel, _auto_label),
    "init_models": Action(bodies.OfProject, control_room.init_models),
    "optimize": Action(_NoBody, lambda _: control_room.optimize_memory(), ("status",)),
    "render": Action(bodies.AnnotatedVideo, control_room.create_annotated_video),
    "render_version": Action(bodies.CustomModelVideo, control_room.create_custom_model_video),
    "export": Action(bodies.Export, control_room.export),
    "cancel": Action(_OfJob, lambda body: control_room.cancel(body.job)),
}


def perform(name: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Do what a form asks for; the API's answer, and which parts have changed.

    Raises:
        Unknown: there is no such action.
        Invalid: a field is wrong.
        BackendError: as the API's handlers do.
    """
    if name == "upload":
        return dict(uploads.upload_video()), ("jobs",)
    action = ACTIONS.get(name)
    if action is None:
        raise Unknown("There is no such action.")
    return dict(action.handler(_read(action.body, request.form))), ("jobs", *action.changes)


def _read(model: type[bodies.Model], form: MultiDict[str, str]) -> Any:
    """A form as a body; empty fields are not sent."""
    given: dict[str, Any] = {}
    for name, values in form.lists():
        kept = [value for value in values if value]
        if kept:
            given[name] = kept if name == "tasks" else kept[-1]
    try:
        return model.model_validate(given, strict=False)
    except ValidationError as error:
        wrong = ", ".join(
            sorted({".".join(str(part)[:80] for part in item["loc"]) or "form" for item in error.errors()})
        )
        raise Invalid(f"The form is wrong or not complete: {wrong}.", "Load the page again.") from error
