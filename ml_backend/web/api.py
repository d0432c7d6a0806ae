"""The routes below ``/api``: a handler's signature and docstring are its route, its checks, and its part of OpenAPI.

``query`` and ``body`` are models of :mod:`ml_backend.web.bodies`, other parameters are the path's, and what is returned
is a type of :mod:`ml_backend.web.answers`; Pydantic checks the ones and writes the schemas of all.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from flask import Blueprint, Response, jsonify, request
from pydantic import BaseModel, TypeAdapter, ValidationError

import ml_backend
from ml_backend.web import answers
from ml_backend.web.bodies import NoQuery
from ml_backend.web.problems import MEDIA_TYPE, Invalid, Unknown, WrongType
from ml_backend.web.sites import refuse_other_sites

blueprint = Blueprint("control", __name__, url_prefix="/api", template_folder="templates")

#: Bytes of a JSON body; ten thousand task ids are 120 kB.
MAX_JSON = 1 << 20
#: Statuses of problems, and what they mean.
ERRORS = {
    400: "A parameter or a field is wrong; `errors` names each.",
    401: "The credentials are missing or wrong (only with BASIC_AUTH_USER and BASIC_AUTH_PASS).",
    403: "A page of another site sent the request.",
    404: "There is no such thing.",
    405: "The path does not take this method.",
    409: "It does not fit the present state.",
    413: "The body is too large.",
    415: "The body is of a type that is not taken.",
    416: "The file does not have this range.",
    421: "The header Host names another server; see ALLOWED_HOSTS.",
    422: "It is understood, but cannot be done as things are configured.",
    500: "A fault of the server; its log says more.",
    502: "Label Studio refuses.",
    503: "A part that is needed does not answer, or too many ask at once; Retry-After says when to try again.",
    507: "The database or the disk takes no data.",
}
#: Those of every route, and of those that change something.
_ALWAYS = (400, 401, 421, 503, 507)
_CHANGING = (403, 413, 415, 422)


@dataclass(frozen=True, slots=True)
class Route:
    """A handler and how it is reached.

    Attributes:
        path: as Flask writes it, below ``/api``.
        statuses: of answers that are no problem; with two, the handler tells which.
        errors: statuses of problems beside those of all routes.
        starts_job: whether a GET may start work: pages of other sites cannot make it do so.
        more: what the signature does not tell: ``form``, model of a multipart body that the handler reads itself, and
            of the OpenAPI operation ``responses`` and further ``parameters``.
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
    more: Mapping[str, Any]
    query: type[BaseModel] | None
    body: type[BaseModel] | None
    of_path: Mapping[str, TypeAdapter[str]]
    answer: Any

    @property
    def name(self) -> str:
        return f"{self.method.lower()}{re.sub(r'[^a-z_]+', '_', self.path)}"

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
    **more: Any,
) -> Callable[[Handler], Handler]:
    """Serve a handler, which stays what it is for others to call. For the arguments see :class:`Route`."""

    def add(handler: Handler) -> Handler:
        hints = get_type_hints(handler, include_extras=True)
        shape, query, body = (hints.pop(name, None) for name in ("return", "query", "body"))
        shape = get_args(shape)[0] if get_origin(shape) is tuple else shape  # of an answer and its status
        of_path = {name: TypeAdapter(hint) for name, hint in hints.items()}
        answer = None if shape is Response else shape
        given = (method, path, handler, tag, statuses or (200,), errors, starts_job, more)
        added = Route(*given, query, body, of_path, answer)
        ROUTES.append(added)
        blueprint.add_url_rule(path, added.name, _view(added), methods=[method])
        return handler

    return add


@blueprint.after_request
def harden(response: Response) -> Response:
    """Answers are what they say they are, are for nobody's cache, and are shown in nobody else's page."""
    response.headers.setdefault("X-Content-Type-Options", "nosniff")
    response.headers.setdefault("X-Frame-Options", "SAMEORIGIN")
    if request.endpoint and "download" not in request.endpoint:
        response.headers.setdefault("Cache-Control", "no-store")
    return response


# -- requests


def _view(route: Route) -> Callable[..., Response | tuple[Response, int]]:
    def view(**found: Any) -> Response | tuple[Response, int]:
        if route.changes or route.starts_job:
            refuse_other_sites()
        for name, value in found.items():
            try:
                route.of_path[name].validate_python(value)
            except ValidationError as error:
                raise Unknown(f"There is no such {name.replace('_', ' ')}.") from error
        query = _query(route.query or NoQuery)
        if route.query is not None:
            found["query"] = query
        if route.body is not None:
            found["body"] = _body(route.body)
        elif route.changes and "form" not in route.more and request.content_length:
            raise Invalid("The request must have no body.", "Leave it out.")
        answer = route.handler(**found)
        if isinstance(answer, Response):
            return answer
        content, status = answer if isinstance(answer, tuple) else (answer, route.statuses[0])
        return jsonify(content), status

    return view


def _query(model: type[BaseModel]) -> Any:
    given: dict[str, str] = {}
    for name, values in request.args.lists():
        if len(values) > 1:
            raise Invalid(f"The parameter {_quoted(name)} is given {len(values)} times.", "Give it once.")
        given[name] = values[0]
    try:
        return model.model_validate_strings(given, strict=False)
    except ValidationError as error:
        raise invalid(error, "parameter") from error


def _body(model: type[BaseModel]) -> Any:
    if request.mimetype != "application/json":
        raise WrongType("The body must be of the type application/json.", "Set the header Content-Type.")
    request.max_content_length = MAX_JSON
    try:
        return model.model_validate_json(request.get_data() or b"{}")
    except ValidationError as error:
        raise invalid(error, "field") from error


def invalid(error: ValidationError, what: str, cure: str = "See /api/docs.") -> Invalid:
    """Every field that is wrong by name, and why."""
    found = []
    for item in error.errors(include_url=False, include_context=False, include_input=False):
        name = ".".join(str(part)[:80] for part in item["loc"])
        if item["type"] == "extra_forbidden":
            message = f"There is no {what} {_quoted(name)}."
        elif item["type"] == "missing":
            message = f"The {what} {_quoted(name)} is missing."
        elif not name:
            message = f"{item['msg'].removeprefix('Value error, ')}."
        else:
            message = f"The {what} {_quoted(name)} is wrong: {item['msg']}."
        found.append({"field": name, "message": message})
    detail = " ".join(item["message"] for item in found[:5])
    return Invalid(detail, cure, found[:50])


def _quoted(name: str) -> str:
    return f"'{name[:80]}'"


# -- OpenAPI


@cache
def document(*, auth: bool) -> dict[str, Any]:
    """OpenAPI 3.1 of all routes.

    Args:
        auth: whether credentials are asked for.
    """
    shapes: set[Any] = {shape for route in ROUTES for shape in (route.body, route.answer, route.more.get("form"))}
    shapes = {answers.Problem, *shapes} - {None}
    adapters = [(shape, "validation", TypeAdapter(shape)) for shape in shapes]
    refs, found = TypeAdapter.json_schemas(adapters, ref_template="#/components/schemas/{model}")  # type: ignore[arg-type]
    schemas = {shape: schema for (shape, _), schema in refs.items()}
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        path = "/api" + re.sub(r"<(\w+)>", r"{\1}", route.path)
        paths.setdefault(path, {})[route.method.lower()] = _operation(route, schemas)
    components: dict[str, Any] = {"schemas": dict(sorted(found["$defs"].items()))}
    if auth:
        components["securitySchemes"] = {"basic": {"type": "http", "scheme": "basic"}}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Control room",
            "version": ml_backend.__version__,
            "description": "Label, learn, auto-label, review and export. Long work is a job: the answer names it, and "
            "`/api/jobs/{job_id}` says how far it is.",
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": components,
        **({"security": [{"basic": []}]} if auth else {}),
    }


def _operation(route: Route, schemas: Mapping[Any, Any]) -> dict[str, Any]:
    summary, _, about = (inspect.getdoc(route.handler) or "").partition("\n")
    if route.answer is answers.JobAnswer:
        about += " The same request is the same job for as long as that waits or runs."
    out: dict[str, Any] = {
        "operationId": route.name.rstrip("_"),
        "tags": [route.tag],
        "summary": summary.rstrip("."),
        "description": " ".join(about.split()),
        "parameters": [*_parameters(route), *route.more.get("parameters", ())],
    }
    for media_type, shape in (("application/json", route.body), ("multipart/form-data", route.more.get("form"))):
        if shape is not None:
            out["requestBody"] = {"required": True, "content": {media_type: {"schema": schemas[shape]}}}
    told = inspect.getdoc(route.answer).splitlines()[0] if route.answer else ""  # type: ignore[union-attr]
    responses = route.more.get("responses") or {
        str(status): {
            "description": told if status == route.statuses[0] else "A job does it: ask again when it has ended.",
            "content": {"application/json": {"schema": schemas[route.answer]}},
        }
        for status in route.statuses
    }
    errors = {*_ALWAYS, *(_CHANGING if route.changes else ()), *route.errors}
    errors |= {403} if route.starts_job else set()
    errors |= {404} if route.of_path else set()
    problem = {MEDIA_TYPE: {"schema": schemas[answers.Problem]}}
    problems = {str(status): {"description": ERRORS[status], "content": problem} for status in sorted(errors)}
    return out | {"responses": responses | problems}


def _parameters(route: Route) -> list[dict[str, Any]]:
    found = [
        {"name": name, "in": "path", "required": True, "schema": adapter.json_schema()}
        for name, adapter in route.of_path.items()
    ]
    model = (route.query or NoQuery).model_json_schema()
    for name, schema in model.get("properties", {}).items():
        facts = {key: value for key, value in schema.items() if key not in ("title", "description")}
        about, needed = schema.get("description", ""), name in model.get("required", ())
        found.append({"name": name, "in": "query", "required": needed, "description": about, "schema": facts})
    return found
