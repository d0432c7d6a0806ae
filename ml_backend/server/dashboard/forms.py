"""What the page's buttons do: the same handlers as the API's, fed from forms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

from flask import request

from ml_backend.server.api import handlers as control_room
from ml_backend.server.api import requests as bodies
from ml_backend.server.api import responses as answers
from ml_backend.server.api import uploads
from ml_backend.server.api.routing import naming_errors
from ml_backend.server.problems import Invalid, Unknown


class _OfJob(bodies.RequestModel):
    """Names a job."""

    job: str


class _AutoLabel(bodies.AutoLabel):
    """With ``chosen``, no tasks are none, and not all."""

    chosen: bool = False


def _auto_label(body: _AutoLabel) -> answers.JobAnswer:
    if body.chosen and not body.tasks:
        raise Invalid("No task is chosen.", "Tick one, or auto-label everything without annotations.")
    return control_room.auto_label(body)


def _use(body: bodies.SwitchModel) -> answers.Loading | answers.Switched:
    """Trained versions are loaded at once as well."""
    if body.mode is None and body.version and body.version != "base":
        return control_room.load_custom_model(bodies.LoadCustomModel(project=body.project, version=body.version))
    return control_room.switch_model(body)


def _cancel(body: _OfJob) -> answers.Job:
    return control_room.cancel(body.job)


#: By the name of the button; those with a body get the form as one.
ACTIONS: Mapping[str, Callable[..., Any]] = {
    "use": _use,
    "rollback": control_room.rollback,
    "learn": control_room.learn_patterns,
    "train": control_room.train,
    "auto_label": _auto_label,
    "init_models": control_room.init_models,
    "optimize": control_room.optimize_memory,
    "render": control_room.create_annotated_video,
    "render_version": control_room.create_custom_model_video,
    "export": control_room.export,
    "cancel": _cancel,
    "upload": uploads.upload_video,
}


def perform(name: str) -> dict[str, Any]:
    """Do what a form asks for; the API's answer.

    Raises:
        Unknown: there is no such action.
        Invalid: a field is wrong.
        BackendError: as the API's handlers do.
    """
    action = ACTIONS.get(name)
    if action is None:
        raise Unknown("There is no such action.")
    model = get_type_hints(action).get("body")
    found = action(_read(model)) if model else action()
    for look in (control_room.all_jobs, control_room.look):
        look.cache_clear()  # whoever has pressed a button sees what came of it at once
    return dict(found)


def _read(model: type[bodies.RequestModel]) -> Any:
    """The form as a body; empty fields are not sent."""
    sent = {name: [value for value in values if value] for name, values in request.form.lists()}
    given = {name: kept if name == "tasks" else kept[-1] for name, kept in sent.items() if kept}
    with naming_errors("field", "Load the page again."):
        return model.model_validate(given, strict=False)
