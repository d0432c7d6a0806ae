"""Errors of the API as RFC 9457 problem details; the Label Studio protocol keeps its own form."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from typing import Any

from flask import Response, json, jsonify, request
from werkzeug.exceptions import HTTPException
from werkzeug.http import HTTP_STATUS_CODES

from ml_backend.errors import BackendError

log = logging.getLogger(__name__)

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


def is_api() -> bool:
    """Whether the present request is for the API."""
    return request.path == "/api" or request.path.startswith("/api/")


def problem(status: int, detail: str, cure: str = "", *, kind: str = "", **more: Any) -> Response:
    """A problem as an answer.

    Args:
        kind: name of a class of errors; empty: that of the status.
        more: further members.
    """
    words = re.sub(r"(?<!^)(?=[A-Z])", " ", kind).lower()
    body = {
        "type": f"urn:video-backend:{words.replace(' ', '-')}" if kind else "about:blank",
        "title": words.capitalize() or HTTP_STATUS_CODES.get(status, "Error"),
        "status": status,
        "detail": detail,
        "cure": cure,
        **more,
    }
    return Response(json.dumps(body), status, content_type=MEDIA_TYPE)


def failed(error: Exception) -> Response:
    """Any error as an answer: a problem of the API's, or in the Label Studio protocol's own form."""
    headers: Iterable[tuple[str, str]] = ()
    kind, more = "", {}
    if isinstance(error, HTTPException):
        given = error.get_response()
        status, detail, cure = given.status_code, error.description or error.name, ""
        headers = [(name, value) for name, value in given.headers.items() if name.lower() not in _OF_BODY]
    elif isinstance(error, BackendError):
        status, detail, cure, kind = error.http_status, error.message, error.cure, type(error).__name__
        log.log(logging.ERROR if status >= 500 else logging.WARNING, "%s: %s", request.path, error)
        more = {"errors": error.errors} if isinstance(error, Invalid) and error.errors else {}
        headers = [("Retry-After", "5")] if status == 503 else ()
    else:
        log.exception("%s failed", request.path, exc_info=error)
        status, detail, cure = 500, "Internal error.", "The backend's log says more; please report it."
    if not is_api():
        answer = jsonify({"error": detail, "cure": cure})
        answer.status_code = status
        return answer
    answer = problem(status, detail, cure, kind=kind, **more)
    answer.headers.extend(headers)
    return answer
