"""Routes below ``/api``: a handler's signature and docstring define its validation and its OpenAPI operation.

``query`` and ``body`` are models of :mod:`ml_backend.server.api.requests`, other parameters come from the path, and the
return type is one of :mod:`ml_backend.server.api.responses`. Pydantic validates requests and writes all schemas.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, wraps
from http import HTTPStatus
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from flask import Blueprint, Response, jsonify, request
from pydantic import BaseModel, TypeAdapter, ValidationError

import ml_backend
from ml_backend.server.access import COOKIE, Role, person, record_fields
from ml_backend.server.api import responses
from ml_backend.server.api.requests import NoQuery
from ml_backend.server.origin_checks import reject_cross_site
from ml_backend.server.problems import MEDIA_TYPE, Invalid, Unknown, WrongType

blueprint = Blueprint("control", __name__, url_prefix="/api", template_folder="templates")

#: Maximum bytes of a JSON body; ten thousand task ids are 120 kB.
MAX_JSON = 1 << 20
#: Error statuses of every route, and of those that are not GET.
_COMMON_ERRORS = {400, 401, 408, 421, 429, 503, 507}
_WRITE_ERRORS = {403, 413, 415, 422}
#: Error statuses of routes that ask Label Studio for the project that they are given.
_PROJECT_ERRORS = {404, 502}


@dataclass(frozen=True, slots=True)
class Route:
    """A handler and its route.

    Attributes:
        path: Flask URL rule below ``/api``.
        statuses: success statuses; with several, the handler returns one with its content.
        errors: error statuses beside the common ones.
        starts_job: whether a GET may start a job, or make a camera's process work; if so, cross-site requests are
            rejected.
        form: model of a multipart body, which the handler reads itself.
        media: media types of the response.
        headers: request headers that the handler reads.
        role: that a signed-in person needs.
        query, body: models of the handler's parameters of these names.
        path_params: validators of the path's parameters, by name.
        response: type of the JSON response; ``None`` for other responses.
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
    role: Role
    query: type[BaseModel] | None
    body: type[BaseModel] | None
    path_params: Mapping[str, TypeAdapter[str]]
    response: Any

    @property
    def name(self) -> str:
        return f"{self.method.lower()}{re.sub(r'[^a-z_]+', '_', self.path)}".rstrip("_")

    @property
    def writes(self) -> bool:
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
    role: Role | None = None,
    audited: bool = True,
) -> Callable[[Handler], Handler]:
    """Register a handler, and return it with a check of who calls it, which the page's calls pass, too.

    For the arguments see :class:`Route`.

    Args:
        role: by default viewer for GET, else trainer.
        audited: whether calls are recorded, unless the method is GET.
    """
    needed: Role = role or ("viewer" if method == "GET" else "trainer")

    def guard(handler: Handler, name: str) -> Handler:
        @wraps(handler)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            caller = person()
            caller.require(needed)
            models = [value for value in (*args, *kwargs.values()) if isinstance(value, BaseModel)]
            for model in models:
                if project := getattr(model, "project", None):
                    caller.require_project(project)
            result = handler(*args, **kwargs)
            if method != "GET" and audited:
                told = {key: value for key, value in kwargs.items() if isinstance(value, str)}
                told |= {key: value for model in models for key, value in model.model_dump(mode="json").items()}
                record_fields(name, told)
            return result

        guarded.role = needed  # type: ignore[attr-defined]
        return guarded  # type: ignore[return-value]

    def add(handler: Handler) -> Handler:
        hints = get_type_hints(handler, include_extras=True)
        returned, query, body = (hints.pop(name, None) for name in ("return", "query", "body"))
        returned = get_args(returned)[0] if get_origin(returned) is tuple else returned  # content and status
        path_params = {name: TypeAdapter(hint) for name, hint in hints.items()}
        response = None if returned is Response else returned
        guarded = guard(handler, handler.__name__)
        options = (method, path, guarded, tag, statuses or (200,), errors, starts_job, form, media, headers, needed)
        added = Route(*options, query, body, path_params, response)
        ROUTES.append(added)
        blueprint.add_url_rule(path, added.name, _view(added), methods=[method])
        return guarded

    return add


@blueprint.after_request
def harden(response: Response) -> Response:
    """Forbid content sniffing, caching, and framing by other sites."""
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["X-Frame-Options"] = "SAMEORIGIN"
    response.headers.setdefault("Cache-Control", "no-store")
    return response


# -- requests


def _view(route: Route) -> Callable[..., Response | tuple[Response, int]]:
    def view(**arguments: Any) -> Response | tuple[Response, int]:
        if route.starts_job:
            reject_cross_site()
        for name, value in arguments.items():
            try:
                route.path_params[name].validate_python(value)
            except ValidationError as error:
                raise Unknown(f"There is no such {name.replace('_', ' ')}.") from error
        with validation_errors("parameter"):  # a repeated parameter is a list, which no model accepts
            args = {name: values if values[1:] else values[0] for name, values in request.args.lists()}
            query = (route.query or NoQuery).model_validate_strings(args, strict=False)
        if route.query is not None:
            arguments["query"] = query
        if route.body is not None:
            arguments["body"] = _parse_body(route.body)
        elif route.writes and route.form is None and request.content_length:
            raise Invalid("The request must have no body.", "Remove the body.")
        result = route.handler(**arguments)
        if isinstance(result, Response):
            return result
        content, status = result if isinstance(result, tuple) else (result, route.statuses[0])
        return jsonify(content), status

    return view


def _parse_body(model: type[BaseModel]) -> Any:
    request.max_content_length = MAX_JSON
    body = request.get_data()
    if request.mimetype != "application/json" and (body or _is_required(model)):
        raise WrongType("The body must have the media type application/json.", "Set the Content-Type header.")
    with validation_errors("field"):
        return model.model_validate_json(body or b"{}")


def _is_required(model: type[BaseModel]) -> bool:
    """Return whether a request needs a body of this model: it has required fields."""
    return any(field.is_required() for field in model.model_fields.values())


@contextmanager
def validation_errors(noun: str, hint: str = "See /api/docs.") -> Iterator[None]:
    """Turn a Pydantic ValidationError into one that names every invalid field and the reason.

    Args:
        noun: what a field is called in messages.

    Raises:
        Invalid: a field is invalid.
    """
    try:
        yield
    except ValidationError as error:
        errors = []
        for item in error.errors(include_url=False, include_context=False, include_input=False):
            name = ".".join(str(part)[:80] for part in item["loc"])
            reason = item["msg"].removeprefix("Value error, ")
            message = f"The {noun} '{name[:80]}' is wrong: {reason}." if name else f"{reason}."
            errors.append({"field": name, "message": message})
        raise Invalid(" ".join(item["message"] for item in errors[:5]), hint, errors[:50]) from error


# -- OpenAPI


@cache
def document(*, auth: bool, sign_in: bool = False) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of all routes.

    Args:
        auth: whether Basic auth is required.
        sign_in: whether people may sign in instead.
    """
    types: set[Any] = {
        responses.Problem,
        *(model for route in ROUTES for model in (route.body, route.response, route.form)),
    }
    adapters = [(model, "validation", TypeAdapter(model)) for model in types - {None}]
    refs, definitions = TypeAdapter.json_schemas(adapters, ref_template="#/components/schemas/{model}")  # type: ignore[arg-type]
    schemas = {model: schema for (model, _), schema in refs.items()}
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        path = "/api" + re.sub(r"<(\w+)>", r"{\1}", route.path)
        paths.setdefault(path, {})[route.method.lower()] = _operation(route, schemas)
    openapi: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "Control room",
            "version": ml_backend.__version__,
            "description": "Label, learn, auto-label, review and export. Long-running work is a job: the response "
            "names it, and `/api/jobs/{job_id}` reports its progress.",
        },
        "paths": paths,
        "components": {"schemas": dict(sorted(definitions["$defs"].items()))},
    }
    schemes: dict[str, dict[str, str]] = {"basic": {"type": "http", "scheme": "basic"}} if auth else {}
    schemes |= {"session": {"type": "apiKey", "in": "cookie", "name": COOKIE}} if sign_in else {}
    if schemes:
        openapi["components"]["securitySchemes"] = schemes
        openapi["security"] = [{name: []} for name in schemes]
    return openapi


def _operation(route: Route, schemas: Mapping[Any, Any]) -> dict[str, Any]:
    summary, _, description = " ".join((route.handler.__doc__ or "").split()).partition(". ")
    if route.role != "viewer":
        description += f" Needs the role {route.role} where people sign in."
    if route.response is responses.JobAnswer:
        description += " Repeating the request while its job waits or runs returns the same job."
    operation: dict[str, Any] = {
        "operationId": route.name,
        "tags": [route.tag],
        "summary": summary.rstrip("."),
        "description": description,
        "parameters": _parameters(route),
    }
    for media_type, model in (("application/json", route.body), ("multipart/form-data", route.form)):
        if model is not None:
            operation["requestBody"] = {
                "required": _is_required(model),
                "content": {media_type: {"schema": schemas[model]}},
            }
    errors = {*_COMMON_ERRORS, *route.errors}
    errors |= _WRITE_ERRORS if route.writes else set()
    errors |= {403} if route.starts_job or route.role != "viewer" else set()
    names_project = "project" in getattr(route.body or route.form or route.query, "model_fields", ())
    errors |= _PROJECT_ERRORS if names_project else set()
    errors |= {404} if route.path_params else set()
    content = {media_type: {"schema": schemas.get(route.response, {})} for media_type in route.media}
    problem = {MEDIA_TYPE: {"schema": schemas[responses.Problem]}}
    contents = [(status, {} if status == 304 else content) for status in route.statuses]
    contents += [(status, problem) for status in sorted(errors)]
    described = {
        str(status): {"description": HTTPStatus(status).phrase, "content": content} for status, content in contents
    }
    return operation | {"responses": described}


def _parameters(route: Route) -> list[dict[str, Any]]:
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "description": schema.pop("description", ""), "schema": schema}
        for name, schema in ((name, adapter.json_schema()) for name, adapter in route.path_params.items())
    ]
    parameters += [{"name": name, "in": "header", "schema": {"type": "string"}} for name in route.headers]
    model = (route.query or NoQuery).model_json_schema()
    for name, schema in model.get("properties", {}).items():
        del schema["title"]  # repeats the name
        description, required = schema.pop("description", ""), name in model.get("required", ())
        parameters.append(
            {"name": name, "in": "query", "required": required, "description": description, "schema": schema}
        )
    return parameters
