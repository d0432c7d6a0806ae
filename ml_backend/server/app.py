"""Assemble the Flask application."""

from __future__ import annotations

import time

from flask import Flask, Response, g, request
from werkzeug.middleware.proxy_fix import ProxyFix

from ml_backend.core.settings import Settings, get_settings
from ml_backend.server import protocol
from ml_backend.server.access import require_credentials
from ml_backend.server.api import routing
from ml_backend.server.dashboard import views
from ml_backend.server.origin_checks import reject_cross_site_writes, require_known_host
from ml_backend.server.problems import handle_error
from ml_backend.server.slow_clients import bound_bodies

#: Maximum bytes of a request body: Label Studio sends pages of tasks with annotations. Uploads have their own limit.
MAX_REQUEST = 64 << 20


def create_app(settings: Settings | None = None) -> Flask:
    """Create the application. No thread is started and no connection to Redis or Label Studio is opened.

    Raises:
        StorageError: the database cannot be opened.
    """
    from ml_backend.server.container import WebContainer

    settings = settings or get_settings()
    app = Flask(__name__, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = MAX_REQUEST
    app.extensions["services"] = WebContainer(settings)
    hops = settings.proxy_hops
    app.wsgi_app = ProxyFix(app.wsgi_app, x_for=hops, x_proto=hops)  # type: ignore[method-assign]
    _record_request_metrics(app)
    bound_bodies(app)
    require_credentials(app, settings)
    require_known_host(app, settings)
    app.before_request(reject_cross_site_writes)
    app.register_blueprint(protocol.blueprint)
    app.register_blueprint(routing.blueprint)
    app.register_blueprint(views.blueprint)
    app.register_error_handler(Exception, handle_error)
    return app


def _record_request_metrics(app: Flask) -> None:
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
