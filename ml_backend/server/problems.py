"""Error responses: RFC 9457 problem details for the API, plain JSON for the Label Studio protocol."""

from __future__ import annotations

import logging
import re
from typing import Any

from flask import Response, json, jsonify, request
from werkzeug.exceptions import HTTPException
from werkzeug.http import HTTP_STATUS_CODES

from ml_backend.core.errors import BackendError, RequestError

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
#: Reported for unexpected exceptions.
INTERNAL_ERROR = BackendError("Internal error.", "See the backend's log, and please report it.")


class Invalid(BackendError):
    """Fields of a request are invalid.

    Args:
        errors: ``field`` and ``message`` of each invalid field.
    """

    http_status = 400

    def __init__(self, message: str, hint: str = "", errors: list[dict[str, str]] | None = None) -> None:
        super().__init__(message, hint)
        self.errors = errors or []


class CrossSite(BackendError):
    """A page of another site sent the request."""

    http_status = 403


class Forbidden(BackendError):
    """The person's role does not permit it."""

    http_status = 403


class ForeignName(BackendError):
    """The Host header names another server."""

    http_status = 421


class SignedOut(BackendError):
    """Nobody is signed in any more."""

    http_status = 401


class Unknown(BackendError):
    """The requested resource does not exist."""

    http_status = 404


class WrongType(BackendError):
    """The body has an unsupported media type."""

    http_status = 415


def is_api() -> bool:
    """Return whether the current request is for the API."""
    return request.path == "/api" or request.path.startswith("/api/")


def problem(status: int, detail: str, hint: str = "", *, kind: str = "", **members: Any) -> Response:
    """Return a problem-details response.

    Args:
        kind: name of an error class; empty for the generic problem of the status.
        members: extension members.
    """
    words = re.sub(r"(?<!^)(?=[A-Z])", " ", kind).lower()
    body = {
        "type": f"urn:video-backend:{words.replace(' ', '-')}" if kind else "about:blank",
        "title": words.capitalize() or HTTP_STATUS_CODES.get(status, "Error"),
        "status": status,
        "detail": detail,
        "hint": hint,
        "cure": hint,  # its name in 0.1.0
        **members,
    }
    return Response(json.dumps(body), status, content_type=MEDIA_TYPE)


def as_backend_error(error: Exception) -> tuple[BackendError, int]:
    """Log any error, and return it as a BackendError with its HTTP status."""
    if isinstance(error, HTTPException):  # raised by Flask itself, such as for an upload that is too large
        return BackendError(error.description or error.name), error.code or 500
    if isinstance(error, BackendError):
        level = logging.ERROR if error.http_status >= 500 else logging.WARNING
        level = logging.DEBUG if error.expected else level
        log.log(level, "%s: %s", request.path, error)
        return error, error.http_status
    if type(error).__module__.startswith("gunicorn.http."):  # raised where the body is read
        return RequestError(f"The body cannot be read: {type(error).__name__}.", "Send it whole, in valid chunks."), 400
    log.exception("%s failed", request.path, exc_info=error)
    return INTERNAL_ERROR, 500


def handle_error(error: Exception) -> Response:
    """Return the response for any error, in the form of the API or of the Label Studio protocol."""
    failure, status = as_backend_error(error)
    if not is_api():
        response = jsonify({"error": failure.message, "hint": failure.hint, "cure": failure.hint})
        response.status_code = status
        return _retry_later(response)
    kind = "" if type(failure) is BackendError else type(failure).__name__
    members = {"errors": failure.errors} if isinstance(failure, Invalid) and failure.errors else {}
    response = problem(status, failure.message, failure.hint, kind=kind, **members)
    if isinstance(error, HTTPException):  # such as Allow, Location and Content-Range
        for name, value in error.get_response().headers.items():
            response.headers.setdefault(name, value)
    return _retry_later(response)


def _retry_later(response: Response) -> Response:
    if response.status_code in (429, 503):
        response.headers["Retry-After"] = "5"
    return response
