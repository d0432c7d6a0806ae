"""The routes below ``/api``: a handler's signature and docstring are its route, its checks, and its part of OpenAPI.

``query`` and ``body`` are models of :mod:`ml_backend.server.api.requests`, other parameters are the path's, and what is
returned is a type of :mod:`ml_backend.server.api.responses`; Pydantic checks the ones and writes the schemas of all.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from http import HTTPStatus
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from flask import Blueprint, Response, jsonify, request
from pydantic import BaseModel, TypeAdapter, ValidationError

import ml_backend
from ml_backend.server.api import responses as answers
from ml_backend.server.api.requests import NoQuery
from ml_backend.server.origin_checks import refuse_other_sites
from ml_backend.server.problems import MEDIA_TYPE, Invalid, Unknown, WrongType

blueprint = Blueprint("control", __name__, url_prefix="/api", template_folder="templates")

#: Bytes of a JSON body; ten thousand task ids are 120 kB.
MAX_JSON = 1 << 20
#: Statuses of problems of every route, and of those that change something.
_ALWAYS = {400, 401, 421, 503, 507}
_CHANGING = {403, 413, 415, 422}


@dataclass(frozen=True, slots=True)
class Route:
    """A handler and how it is reached.

    Attributes:
        path: as Flask writes it, below ``/api``.
        statuses: of answers that are no problem; with two, the handler tells which.
        errors: statuses of problems beside those of all routes.
        starts_job: whether a GET may start work: pages of other sites cannot make it do so.
        form: model of a multipart body, which the handler reads itself.
        media: types of what is answered.
        headers: of the request, which the handler minds.
        query, body: models of the handler's parameters of these names.
        of_path: checks of the path's parameters, by name.
        answer: type of the JSON that is answered; ``None`` where it is none.
    """

    method: str
    path: str
    handler: Callable[..., Any]
    tag: str
    statuses: tuple[int, ...]
    errors: tuple[int, ...]
    starts_job: bool
    form: type[BaseModel] | None
    media: tuple[str, ...]
    headers: tuple[str, ...]
    query: type[BaseModel] | None
    body: type[BaseModel] | None
    of_path: Mapping[str, TypeAdapter[str]]
    answer: Any

    @property
    def name(self) -> str:
        return f"{self.method.lower()}{re.sub(r'[^a-z_]+', '_', self.path)}".rstrip("_")

    @property
    def changes(self) -> bool:
        return self.method != "GET"


ROUTES: list[Route] = []
Handler = TypeVar("Handler", bound=Callable[..., Any])


def route(
    method: str,
    path: str,
    tag: str,
    *statuses: int,
    errors: tuple[int, ...] = (),
    starts_job: bool = False,
    form: type[BaseModel] | None = None,
    media: tuple[str, ...] = ("application/json",),
    headers: tuple[str, ...] = (),
) -> Callable[[Handler], Handler]:
    """Serve a handler, which stays what it is for others to call. For the arguments see :class:`Route`."""

    def add(handler: Handler) -> Handler:
        hints = get_type_hints(handler, include_extras=True)
        shape, query, body = (hints.pop(name, None) for name in ("return", "query", "body"))
        shape = get_args(shape)[0] if get_origin(shape) is tuple else shape  # of an answer and its status
        of_path = {name: TypeAdapter(hint) for name, hint in hints.items()}
        answer = None if shape is Response else shape
        given = (method, path, handler, tag, statuses or (200,), errors, starts_job, form, media, headers)
        added = Route(*given, query, body, of_path, answer)
        ROUTES.append(added)
        blueprint.add_url_rule(path, added.name, _view(added), methods=[method])
        return handler

    return add


@blueprint.after_request
def harden(response: Response) -> Response:
    """Answers are what they say they are, are for nobody's cache, and are shown in nobody else's page."""
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["X-Frame-Options"] = "SAMEORIGIN"
    response.headers.setdefault("Cache-Control", "no-store")
    return response


# -- requests


def _view(route: Route) -> Callable[..., Response | tuple[Response, int]]:
    def view(**found: Any) -> Response | tuple[Response, int]:
        if route.starts_job:
            refuse_other_sites()
        for name, value in found.items():
            try:
                route.of_path[name].validate_python(value)
            except ValidationError as error:
                raise Unknown(f"There is no such {name.replace('_', ' ')}.") from error
        with naming_errors("parameter"):  # what is given twice is a list, which no parameter is
            given = {name: values if values[1:] else values[0] for name, values in request.args.lists()}
            query = (route.query or NoQuery).model_validate_strings(given, strict=False)
        if route.query is not None:
            found["query"] = query
        if route.body is not None:
            found["body"] = _body(route.body)
        elif route.changes and route.form is None and request.content_length:
            raise Invalid("The request must have no body.", "Leave it out.")
        answer = route.handler(**found)
        if isinstance(answer, Response):
            return answer
        content, status = answer if isinstance(answer, tuple) else (answer, route.statuses[0])
        return jsonify(content), status

    return view


def _body(model: type[BaseModel]) -> Any:
    if request.mimetype != "application/json":
        raise WrongType("The body must be of the type application/json.", "Set the header Content-Type.")
    request.max_content_length = MAX_JSON
    with naming_errors("field"):
        return model.model_validate_json(request.get_data() or b"{}")


@contextmanager
def naming_errors(what: str, hint: str = "See /api/docs.") -> Iterator[None]:
    """Refuse what a model refuses, with every field that is wrong by name, and why.

    Args:
        what: a field is called so.

    Raises:
        Invalid: a field is wrong.
    """
    try:
        yield
    except ValidationError as error:
        found = []
        for item in error.errors(include_url=False, include_context=False, include_input=False):
            name = ".".join(str(part)[:80] for part in item["loc"])
            reason = item["msg"].removeprefix("Value error, ")
            message = f"The {what} '{name[:80]}' is wrong: {reason}." if name else f"{reason}."
            found.append({"field": name, "message": message})
        raise Invalid(" ".join(item["message"] for item in found[:5]), hint, found[:50]) from error


# -- OpenAPI


@cache
def document(*, auth: bool) -> dict[str, Any]:
    """OpenAPI 3.1 of all routes.

    Args:
        auth: whether credentials are asked for.
    """
    shapes: set[Any] = {
        answers.Problem,
        *(shape for route in ROUTES for shape in (route.body, route.answer, route.form)),
    }
    adapters = [(shape, "validation", TypeAdapter(shape)) for shape in shapes - {None}]
    refs, found = TypeAdapter.json_schemas(adapters, ref_template="#/components/schemas/{model}")  # type: ignore[arg-type]
    schemas = {shape: schema for (shape, _), schema in refs.items()}
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        path = "/api" + re.sub(r"<(\w+)>", r"{\1}", route.path)
        paths.setdefault(path, {})[route.method.lower()] = _operation(route, schemas)
    made: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "Control room",
            "version": ml_backend.__version__,
            "description": "Label, learn, auto-label, review and export. Long work is a job: the answer names it, and "
            "`/api/jobs/{job_id}` says how far it is.",
        },
        "paths": paths,
        "components": {"schemas": dict(sorted(found["$defs"].items()))},
    }
    if auth:
        made["components"]["securitySchemes"] = {"basic": {"type": "http", "scheme": "basic"}}
        made["security"] = [{"basic": []}]
    return made


def _operation(route: Route, schemas: Mapping[Any, Any]) -> dict[str, Any]:
    summary, _, about = " ".join((route.handler.__doc__ or "").split()).partition(". ")
    if route.answer is answers.JobAnswer:
        about += " The same request is the same job for as long as that waits or runs."
    out: dict[str, Any] = {
        "operationId": route.name,
        "tags": [route.tag],
        "summary": summary.rstrip("."),
        "description": about,
        "parameters": _parameters(route),
    }
    for media_type, shape in (("application/json", route.body), ("multipart/form-data", route.form)):
        if shape is not None:
            out["requestBody"] = {"required": True, "content": {media_type: {"schema": schemas[shape]}}}
    errors = {*_ALWAYS, *route.errors}
    errors |= _CHANGING if route.changes else set()
    errors |= {403} if route.starts_job else set()
    errors |= {404} if route.of_path else set()
    content = {kind: {"schema": schemas.get(route.answer, {})} for kind in route.media}
    problem = {MEDIA_TYPE: {"schema": schemas[answers.Problem]}}
    told = [(status, {} if status == 304 else content) for status in route.statuses]
    told += [(status, problem) for status in sorted(errors)]
    responses = {str(status): {"description": HTTPStatus(status).phrase, "content": kind} for status, kind in told}
    return out | {"responses": responses}


def _parameters(route: Route) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": adapter.json_schema()}
        for name, adapter in route.of_path.items()
    ]
    found += [{"name": name, "in": "header", "schema": {"type": "string"}} for name in route.headers]
    model = (route.query or NoQuery).model_json_schema()
    for name, schema in model.get("properties", {}).items():
        del schema["title"]  # the name once more
        about, needed = schema.pop("description", ""), name in model.get("required", ())
        found.append({"name": name, "in": "query", "required": needed, "description": about, "schema": schema})
    return found
