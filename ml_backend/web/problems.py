"""Errors of the API as RFC 9457 problem details; the Label Studio protocol keeps its own form."""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import Any

from flask import Response, json, request
from werkzeug.exceptions import HTTPException

from ml_backend.errors import BackendError

MEDIA_TYPE = "application/problem+json"
#: Headers of Werkzeug's answers that describe the body which is replaced here.
_OF_BODY = frozenset({"content-type", "content-length"})


class Invalid(BackendError):
    """Fields of a request are wrong.

    Args:
        errors: message by field.
    """

    http_status = 400

    def __init__(self, message: str, cure: str = "", errors: list[dict[str, str]] | None = None) -> None:
        super().__init__(message, cure)
        self.errors = errors or []


class CrossSite(BackendError):
    """A page of another site is behind the request."""

    http_status = 403


class ForeignName(BackendError):
    """The request is for a server of another name."""

    http_status = 421


class Unknown(BackendError):
    """There is no such thing."""

    http_status = 404


class Conflict(BackendError):
    """The request does not fit the present state."""

    http_status = 409


class WrongType(BackendError):
    """The body is of a type that is not taken."""

    http_status = 415


class Busy(BackendError):
    """Too many ask for the same at once."""

    http_status = 503


def is_api() -> bool:
    """Whether the present request is for the API."""
    return request.path == "/api" or request.path.startswith("/api/")


def problem(status: int, detail: str, cure: str = "", *, kind: str = "", **more: Any) -> Response:
    """A problem as an answer."""
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = "Error"
    words = re.sub(r"(?<!^)(?=[A-Z])", " ", kind).lower()
    body = {
        "type": f"urn:video-backend:{words.replace(' ', '-')}" if kind else "about:blank",
        "title": words.capitalize() if kind else phrase,
        "status": status,
        "detail": detail,
        "cure": cure,
        **more,
    }
    return Response(json.dumps(body), status, content_type=MEDIA_TYPE)


def known_problem(error: BackendError) -> Response:
    """Of an error that was raised on purpose."""
    more = {"errors": error.errors} if isinstance(error, Invalid) and error.errors else {}
    answer = problem(error.http_status, error.message, error.cure, kind=type(error).__name__, **more)
    if error.http_status == 503:
        answer.headers["Retry-After"] = "5"
    return answer


def http_problem(error: HTTPException) -> Response:
    """Of what Flask itself answers, with the headers that belong to it."""
    given = error.get_response()
    answer = problem(given.status_code, error.description or error.name)
    for name, value in given.headers.items():
        if name.lower() not in _OF_BODY:
            answer.headers[name] = value
    return answer
