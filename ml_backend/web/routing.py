"""One table of routes is the API: it registers them, checks requests, and the OpenAPI document is written from it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flask import Blueprint, Response, jsonify, request
from pydantic import BaseModel, ValidationError

from ml_backend.web.bodies import NoQuery
from ml_backend.web.problems import Invalid, Unknown, WrongType
from ml_backend.web.sites import refuse_other_sites

#: Bytes of a JSON body; ten thousand task ids are 120 kB.
MAX_JSON = 1 << 20


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer that is no error.

    Attributes:
        shape: type of the JSON body; ``None`` where the body is of another media type.
        schema: of a body that is no JSON.
        headers: descriptions by name.
    """

    description: str
    shape: Any = None
    media_types: tuple[str, ...] = ("application/json",)
    schema: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Route:
    """A row of the table.

    Attributes:
        path: as Flask writes it, below ``/api``.
        handler: gets the path's parameters, and ``query`` and ``body`` where these have a model of their own.
        about: what it does; why it may be sent again, where it changes anything.
        path_schemas: JSON schema of each parameter of the path, with a pattern; what it does not match is not there.
        form: JSON schema of a multipart body, which the handler reads itself.
        starts_job: whether a GET may start work: pages of other sites cannot make it do so.
        errors: statuses that it answers beside those of all routes.
        parameters: further OpenAPI parameters (headers).
    """

    method: str
    path: str
    handler: Callable[..., Any]
    tag: str
    summary: str
    about: str
    answers: Mapping[int, Answer]
    query: type[BaseModel] = NoQuery
    body: type[BaseModel] | None = None
    form: Mapping[str, Any] | None = None
    path_schemas: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    starts_job: bool = False
    errors: tuple[int, ...] = ()
    parameters: tuple[Mapping[str, Any], ...] = ()

    @property
    def changes(self) -> bool:
        return self.method != "GET"


def register(blueprint: Blueprint, routes: tuple[Route, ...]) -> None:
    """Serve all routes of a table."""
    for route in routes:
        endpoint = f"{route.method.lower()}{re.sub(r'[^a-z_]+', '_', route.path)}"
        blueprint.add_url_rule(route.path, endpoint, _view(route), methods=[route.method])


def _view(route: Route) -> Callable[..., Response]:
    def view(**found: Any) -> Response:
        if route.changes or route.starts_job:
            refuse_other_sites()
        for name, schema in route.path_schemas.items():
            if not re.fullmatch(str(schema["pattern"]).strip("^$"), found[name], re.ASCII):
                raise Unknown(f"There is no such {name.replace('_', ' ')}.")
        if route.query is not NoQuery:
            found["query"] = _query(route.query)
        elif request.args:
            _query(NoQuery)
        if route.body is not None:
            found["body"] = _body(route.body)
        elif route.changes and route.form is None and request.content_length:
            raise Invalid("The request must have no body.", "Leave it out.")
        answer = route.handler(**found)
        if isinstance(answer, Response):
            return answer
        content, status = answer if isinstance(answer, tuple) else (answer, 200)
        response = jsonify(content)
        response.status_code = status
        return response

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
        raise _invalid(error, "parameter") from error


def _body(model: type[BaseModel]) -> Any:
    if request.mimetype != "application/json":
        raise WrongType("The body must be of the type application/json.", "Set the header Content-Type.")
    request.max_content_length = MAX_JSON
    try:
        return model.model_validate_json(request.get_data() or b"{}")
    except ValidationError as error:
        raise _invalid(error, "field") from error


def _invalid(error: ValidationError, what: str) -> Invalid:
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
    return Invalid(detail, "See /api/docs.", found[:50])


def _quoted(name: str) -> str:
    return f"'{name[:80]}'"
