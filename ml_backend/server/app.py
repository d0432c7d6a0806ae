"""Builds the web application; the only place that knows every part."""

from __future__ import annotations

import time

from flask import Flask, Response, g, request

from ml_backend.core.settings import Settings, get_settings
from ml_backend.server import protocol
from ml_backend.server.api import routing as api
from ml_backend.server.dashboard import views as page
from ml_backend.server.origin_checks import refuse_foreign_changes, refuse_foreign_names, require_basic_auth
from ml_backend.server.problems import failed

#: Bytes of a request's body: Label Studio sends pages of tasks with their annotations. Uploads have their own limit.
MAX_REQUEST = 64 << 20


def create_app(settings: Settings | None = None) -> Flask:
    """A fresh application. Starts no thread and opens no connection to Redis or Label Studio by itself.

    Raises:
        StorageError: the database cannot be opened.
    """
    from ml_backend.server.container import WebContainer

    settings = settings or get_settings()
    app = Flask(__name__, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = MAX_REQUEST
    app.extensions["services"] = WebContainer(settings)
    _measure(app)
    require_basic_auth(app, settings)
    refuse_foreign_names(app, settings)
    app.before_request(refuse_foreign_changes)
    app.register_blueprint(protocol.blueprint)
    app.register_blueprint(api.blueprint)
    app.register_blueprint(page.blueprint)
    app.register_error_handler(Exception, failed)
    return app


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
