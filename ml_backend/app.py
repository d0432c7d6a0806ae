"""Builds the web application; the only place that knows every part."""

from __future__ import annotations

import logging
import time

from flask import Flask, Response, g, jsonify, request
from werkzeug.exceptions import HTTPException

from ml_backend.errors import BackendError
from ml_backend.settings import Settings, get_settings
from ml_backend.web import api, protocol
from ml_backend.web.auth import require_basic_auth
from ml_backend.web.page import views as page
from ml_backend.web.problems import http_problem, is_api, known_problem, problem
from ml_backend.web.sites import refuse_foreign_names

log = logging.getLogger(__name__)


def create_app(settings: Settings | None = None) -> Flask:
    """A fresh application. Starts no thread and opens no connection to Redis or Label Studio by itself.

    Raises:
        StorageError: the database cannot be opened.
    """
    from ml_backend.services import Services  # with the database's library, as much as everything else together

    settings = settings or get_settings()
    app = Flask(__name__, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = settings.max_request_mb << 20
    app.extensions["services"] = Services.build(settings)
    _measure(app)
    require_basic_auth(app, settings)
    refuse_foreign_names(app, settings)
    app.register_blueprint(protocol.blueprint)
    app.register_blueprint(api.blueprint)
    app.register_blueprint(page.blueprint)
    app.register_error_handler(BackendError, _known_error)
    app.register_error_handler(HTTPException, _http_error)
    app.register_error_handler(Exception, _unknown_error)
    return app


def _known_error(error: BackendError) -> Response | tuple[Response, int]:
    if error.http_status >= 500:
        log.error("%s: %s", request.path, error)
    else:
        log.warning("%s: %s", request.path, error)
    if is_api():
        return known_problem(error)
    return jsonify({"error": error.message, "cure": error.cure}), error.http_status


def _http_error(error: HTTPException) -> Response | tuple[Response, int]:
    if is_api():
        return http_problem(error)
    return jsonify({"error": error.description or error.name, "cure": ""}), error.code or 500


def _unknown_error(error: Exception) -> Response | tuple[Response, int]:
    log.exception("%s failed", request.path, exc_info=error)
    if is_api():
        return problem(500, "Internal error.", "The backend's log says more; please report it.")
    body = {"error": "Internal error.", "cure": "The backend's log says more; please report it."}
    return jsonify(body), 500


def _measure(app: Flask) -> None:
    @app.before_request
    def start() -> None:
        g.started = time.perf_counter()

    @app.after_request
    def stop(response: Response) -> Response:
        metrics = app.extensions["services"].metrics
        endpoint = request.endpoint or "unknown"
        metrics.requests.labels(endpoint, str(response.status_code)).inc()
        if "started" in g:
            metrics.latency.labels(endpoint).observe(time.perf_counter() - g.started)
        return response
