"""Errors of the API as RFC 9457 problem details; the Label Studio protocol keeps its own form."""

from __future__ import annotations

import logging
import re
from typing import Any

from flask import Response, json, jsonify, request
from werkzeug.exceptions import HTTPException
from werkzeug.http import HTTP_STATUS_CODES

from ml_backend.core.errors import BackendError

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
#: What is said of a fault of ours.
FAULT = BackendError("Internal error.", "The backend's log says more; please report it.")


class Invalid(BackendError):
    """Fields of a request are wrong.

    Args:
        errors: message by field.
    """

    http_status = 400

    def __init__(self, message: str, hint: str = "", errors: list[dict[str, str]] | None = None) -> None:
        super().__init__(message, hint)
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


def problem(status: int, detail: str, hint: str = "", *, kind: str = "", **more: Any) -> Response:
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
        "hint": hint,
        "cure": hint,  # its name in 0.1.0
        **more,
    }
    return Response(json.dumps(body), status, content_type=MEDIA_TYPE)


def as_backend_error(error: Exception) -> tuple[BackendError, int]:
    """What to say of any error, and the status; the log has it too."""
    if isinstance(error, HTTPException):  # what Flask itself refuses, such as an upload that is too large
        return BackendError(error.description or error.name), error.code or 500
    if isinstance(error, BackendError):
        level = logging.ERROR if error.http_status >= 500 else logging.WARNING
        log.log(level, "%s: %s", request.path, error)
        return error, error.http_status
    log.exception("%s failed", request.path, exc_info=error)
    return FAULT, 500


def failed(error: Exception) -> Response:
    """Any error as an answer: a problem of the API's, or in the Label Studio protocol's own form."""
    said, status = as_backend_error(error)
    if not is_api():
        answer = jsonify({"error": said.message, "hint": said.hint, "cure": said.hint})
        answer.status_code = status
        return answer
    kind = "" if type(said) is BackendError else type(said).__name__
    more = {"errors": said.errors} if isinstance(said, Invalid) and said.errors else {}
    answer = problem(status, said.message, said.hint, kind=kind, **more)
    if isinstance(error, HTTPException):  # such as Allow, Location and Content-Range
        for name, value in error.get_response().headers.items():
            answer.headers.setdefault(name, value)
    if status == 503:
        answer.headers["Retry-After"] = "5"
    return answer
