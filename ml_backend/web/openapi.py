"""The OpenAPI document of a table of routes, and the page that shows it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from flask import render_template
from pydantic import BaseModel, TypeAdapter

import ml_backend
from ml_backend.web import problems
from ml_backend.web.bodies import NoQuery
from ml_backend.web.routing import Answer, Route

_REF = "#/components/schemas/{model}"
#: Statuses that every route may answer, and what they mean.
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
_ALWAYS = (400, 401, 421, 503, 507)
_CHANGING = (403, 413, 415, 422)


def document(routes: tuple[Route, ...], *, auth: bool) -> dict[str, Any]:
    """OpenAPI 3.1.

    Args:
        auth: whether credentials are asked for.
    """
    schemas: dict[str, Any] = {"Problem": problems.SCHEMA}
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        path = "/api" + re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", route.path)
        paths.setdefault(path, {})[route.method.lower()] = _operation(route, schemas)
    found: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "Control room",
            "version": ml_backend.__version__,
            "description": "Label, learn, auto-label, review and export. Long work is a job: the answer names it, and "
            "`/api/jobs/{job_id}` says how far it is.",
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {"schemas": dict(sorted(schemas.items()))},
    }
    if auth:
        found["components"]["securitySchemes"] = {"basic": {"type": "http", "scheme": "basic"}}
        found["security"] = [{"basic": []}]
    return found


def _operation(route: Route, schemas: dict[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {
        "operationId": f"{route.method.lower()}{re.sub(r'[^a-zA-Z0-9]+', '_', route.path)}".rstrip("_"),
        "tags": [route.tag],
        "summary": route.summary,
        "description": route.about,
        "parameters": [
            *({"name": n, "in": "path", "required": True, "schema": dict(s)} for n, s in route.path_schemas.items()),
            *_query_parameters(route, schemas),
            *(dict(parameter) for parameter in route.parameters),
        ],
    }
    if route.body is not None:
        schema = _schema(route.body, schemas)
        out["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    elif route.form is not None:
        out["requestBody"] = {"required": True, "content": {"multipart/form-data": {"schema": dict(route.form)}}}
    errors = {*_ALWAYS, *(_CHANGING if route.changes else ()), *route.errors}
    if route.starts_job:
        errors.add(403)
    if route.path_schemas:
        errors.add(404)
    out["responses"] = {str(status): _answer(answer, schemas) for status, answer in sorted(route.answers.items())}
    problem = {problems.MEDIA_TYPE: {"schema": {"$ref": _REF.format(model="Problem")}}}
    for status in sorted(errors):
        out["responses"][str(status)] = {"description": ERRORS[status], "content": problem}
    return out


def _query_parameters(route: Route, schemas: dict[str, Any]) -> list[dict[str, Any]]:
    if route.query is NoQuery:
        return []
    model = route.query.model_json_schema(ref_template=_REF)
    schemas.update(model.pop("$defs", {}))
    return [
        {
            "name": name,
            "in": "query",
            "required": name in model.get("required", ()),
            "description": schema.get("description", ""),
            "schema": {key: value for key, value in schema.items() if key not in ("title", "description")},
        }
        for name, schema in model["properties"].items()
    ]


def _answer(answer: Answer, schemas: dict[str, Any]) -> dict[str, Any]:
    schema = dict(answer.schema) if answer.shape is None else _schema(answer.shape, schemas)
    out: dict[str, Any] = {"description": answer.description}
    if answer.media_types:
        out["content"] = {media_type: {"schema": schema} for media_type in answer.media_types}
    if answer.headers:
        out["headers"] = {
            name: {"description": text, "schema": {"type": "string"}} for name, text in answer.headers.items()
        }
    return out


def _schema(shape: Any, schemas: dict[str, Any]) -> dict[str, Any]:
    """A reference to a shape's schema, which is put among ``schemas`` with all that it refers to."""
    adapter = TypeAdapter(shape)
    found = adapter.json_schema(ref_template=_REF)
    schemas.update(found.pop("$defs", {}))
    name = getattr(shape, "__name__", "")
    if "$ref" in found or not name:
        return found
    if isinstance(shape, type) and issubclass(shape, BaseModel | dict):
        schemas[name] = found
        return {"$ref": _REF.format(model=name)}
    return found


def page(found: Mapping[str, Any]) -> str:
    """The document for people, as HTML; everything in it is escaped."""
    return render_template("api_docs.html", document=found)
