"""Actions of the page's buttons: the API's handlers, called with form data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, get_type_hints

from flask import request
from pydantic import Field, model_validator

from ml_backend.server.access import Role, person
from ml_backend.server.api import handlers, requests, responses, uploads
from ml_backend.server.api.routing import validation_errors
from ml_backend.server.problems import Invalid, Unknown


class _CancelJob(requests.RequestModel):
    """Names a job."""

    job: str


class _AutoLabel(requests.AutoLabel):
    """With ``chosen``, an empty list of tasks is an error instead of all tasks."""

    chosen: bool = False


class _DeleteFile(requests.OfProject):
    """Names a file."""

    file: requests.FileName


class _RepairTracks(requests.RepairTracks):
    """A track is its digest and its region in one field, a relabelling one button with its label."""

    tracks: Annotated[list[requests.SeenTrack], Field(max_length=500)] = []  # noqa: RUF012 -- Pydantic copies it

    @model_validator(mode="before")
    @classmethod
    def _read_fields(cls, fields: dict[str, Any]) -> dict[str, Any]:
        action, _, label = str(fields.get("action", "")).partition(":")
        tracks = [{"digest": text[:16], "region": text[16:]} for text in fields.get("tracks", ())]
        return {**fields, "action": action, "tracks": tracks} | ({"label": label} if label else {})


def _read_action(fields: dict[str, Any]) -> dict[str, Any]:
    """Split a button's action from the label that it gives."""
    action, _, label = str(fields.get("action", "")).partition(":")
    return {**fields, "action": action} | ({"new_label": label} if label else {})


class _ActOnSimilar(requests.ActOnSimilar):
    """A track is its task, part and number in one field, a labelling one button with its label."""

    tracks: Annotated[list[requests.FoundTrack], Field(max_length=200)] = []  # noqa: RUF012 -- Pydantic copies it

    @model_validator(mode="before")
    @classmethod
    def _read_fields(cls, fields: dict[str, Any]) -> dict[str, Any]:
        names = ("task", "part", "track")
        tracks = [dict(zip(names, text.split("-"), strict=False)) for text in fields.get("tracks", ())]
        return {**_read_action(fields), "tracks": tracks}


class _ActOnExemplars(requests.ActOnExemplars):
    """A labelling is one button with its label."""

    exemplars: Annotated[list[requests.ExemplarId], Field(max_length=requests.MAX_EXEMPLARS)] = Field(default=[])

    @model_validator(mode="before")
    @classmethod
    def _read_fields(cls, fields: dict[str, Any]) -> dict[str, Any]:
        return _read_action(fields)


class _IdentifyTracks(requests.IdentifyTracks):
    """A track is its task, annotation (0: none), digest and region in one field; ``every``: the object's.

    The button says which tracks: those that are ticked, which get the number or with ``out`` one of their own, or
    ``all``.
    """

    action: Literal["give", "all", "out"]
    tracks: Annotated[list[requests.IdentifiedTrack], Field(max_length=500)] = []  # noqa: RUF012 -- Pydantic copies it

    @model_validator(mode="before")
    @classmethod
    def _read_fields(cls, fields: dict[str, Any]) -> dict[str, Any]:
        names, action = ("task", "annotation", "digest", "region"), fields.get("action")
        every = fields.pop("every", ())
        chosen = every if action == "all" else fields.get("tracks", ())
        tracks = [dict(zip(names, text.split(" ", 3), strict=False)) for text in chosen]
        tracks = [{**track, "annotation": None} if track.get("annotation") == "0" else track for track in tracks]
        return {**fields, "tracks": tracks} | ({"global_id": None} if action == "out" else {})


def _identify_tracks(body: _IdentifyTracks) -> responses.TracksIdentified:
    if not body.tracks:
        raise Invalid("No track is selected.", "Select tracks of the object.")
    if body.action != "out" and body.global_id is None:
        raise Invalid("No global id is given.", "Type the number of the object that the tracks show.")
    return handlers.identify_tracks(body)


def _act_on_similar(body: _ActOnSimilar) -> responses.BulkDone:
    if not body.tracks:
        raise Invalid("No track is selected.", "Select tracks in the list.")
    return handlers.act_on_similar(body)


def _act_on_exemplars(body: _ActOnExemplars) -> responses.BulkDone:
    if not body.exemplars:
        raise Invalid("No exemplar is selected.", "Tick exemplars, or draw around points of the map.")
    return handlers.act_on_exemplars(body)


def _repair_tracks(body: _RepairTracks) -> responses.Repair:
    if not body.tracks:
        raise Invalid("No track is selected.", "Select tracks in the list.")
    return handlers.repair_tracks(body)


def _auto_label(body: _AutoLabel) -> responses.JobAnswer:
    if body.chosen and not body.tasks:
        raise Invalid("No task is selected.", "Select a task, or auto-label everything without annotations.")
    return handlers.auto_label(body)


def _use(body: requests.SwitchModel) -> responses.Loading | responses.Switched:
    """Switch the mode or version; a trained version is also loaded."""
    if body.mode is None and body.version and body.version != "base":
        return handlers.load_custom_model(requests.LoadCustomModel(project=body.project, version=body.version))
    return handlers.switch_model(body)


def _cancel(body: _CancelJob) -> responses.Job:
    return handlers.cancel(body.job)


def _delete_file(body: _DeleteFile) -> responses.Deleted:
    return handlers.delete_file(body.file)


#: By the name of the button. Handlers with a ``body`` parameter get the form.
ACTIONS: Mapping[str, Callable[..., Any]] = {
    "use": _use,
    "connect": handlers.connect,
    "rollback": handlers.rollback,
    "decline": handlers.decline,
    "learn": handlers.learn_patterns,
    "train": handlers.train,
    "auto_label": _auto_label,
    "init_models": handlers.init_models,
    "optimize": handlers.optimize_memory,
    "render": handlers.create_annotated_video,
    "render_version": handlers.create_custom_model_video,
    "export": handlers.export,
    "delete_file": _delete_file,
    "cancel": _cancel,
    "repair": handlers.repair,
    "repair_tracks": _repair_tracks,
    "accept_similar": handlers.accept_similar,
    "undo_repair": handlers.undo_repair,
    "write_consensus": handlers.write_consensus,
    "order_tasks": handlers.order_tasks,
    "match_objects": handlers.match_objects,
    "identify_tracks": _identify_tracks,
    "act_on_similar": _act_on_similar,
    "act_on_exemplars": _act_on_exemplars,
    "upload": uploads.upload_videos,
    "give_role": handlers.give_role,
    "add_prompt": handlers.add_prompt,
}


#: Handlers that say which role a button needs, where that is not its own one.
_ROLES_OF: Mapping[str, Callable[..., Any]] = {
    "use": handlers.switch_model,
    "auto_label": handlers.auto_label,
    "cancel": handlers.cancel,
    "delete_file": handlers.delete_file,
    "repair_tracks": handlers.repair_tracks,
    "act_on_similar": handlers.act_on_similar,
    "identify_tracks": handlers.identify_tracks,
    "act_on_exemplars": handlers.act_on_exemplars,
    "upload": uploads.upload_video,
}


def may(name: str, kind: str = "") -> bool:
    """Return whether the current person may press a button.

    Args:
        kind: of the job that it cancels.
    """
    role: Role = "trainer" if kind == "train" else _ROLES_OF.get(name, ACTIONS[name]).role  # type: ignore[attr-defined]
    return person().may(role)


def jobs_of(answer: Mapping[str, Any]) -> list[responses.Job]:
    """Return the jobs that an action has requested."""
    answers = [answer, *answer.get("uploads", ())]
    return [item["job"] for item in answers if item.get("job")]


def perform(name: str) -> dict[str, Any]:
    """Perform the current request's form action; return the API's response.

    Raises:
        Unknown: there is no such action.
        Invalid: a field is invalid.
        BackendError: raised by the API's handler.
    """
    action = ACTIONS.get(name)
    if action is None:
        raise Unknown("There is no such action.")
    model = get_type_hints(action).get("body")
    response = action(_parse_form(model)) if model else action()
    for cached in (handlers.all_jobs, handlers.system_state):
        cached.cache_clear()  # show the effect of the button at once
    return dict(response)


def _parse_form(model: type[requests.RequestModel]) -> Any:
    """Parse the form as a request body; empty fields are dropped."""
    fields = {name: [value for value in values if value] for name, values in request.form.lists()}
    body = {
        name: values if name in ("tasks", "tracks", "every", "exemplars") else values[-1]
        for name, values in fields.items()
        if values
    }
    with validation_errors("field", "Reload the page."):
        return model.model_validate(body, strict=False)
