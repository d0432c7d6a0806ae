"""The page on which cameras are watched: each picture by a request, and figures each second."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from flask import Flask, Response, abort, jsonify, render_template
from werkzeug.serving import WSGIRequestHandler, make_server

from ml_backend.live.cameras import Cameras

#: Seconds for which a request waits for the next picture.
WAIT_S = 1.0


def make_page(cameras: Cameras) -> Flask:
    """Return the application. It only reads, and answers to local names only."""
    app, sessions = Flask(__name__), cameras.sessions
    # A page of another site could otherwise reach it by a name that it points to this machine.
    app.config["TRUSTED_HOSTS"] = ["localhost", "127.0.0.1", "[::1]"]

    @app.after_request
    def protect(response: Response) -> Response:
        response.headers["Content-Security-Policy"] = "default-src 'self'; frame-ancestors 'none'"
        response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Cache-Control"] = "no-store"
        return response

    @app.get("/")
    def index() -> str:
        return render_template("live.html", sessions=sessions, recorded=bool(cameras.recorders))

    @app.get("/status")
    def status() -> Response:
        return jsonify({"cameras": cameras.summaries()})

    @app.get("/cameras/<int:number>.jpg")
    def picture(number: int) -> Response:
        if not 1 <= number <= len(sessions):
            abort(404)
        jpeg = sessions[number - 1].next_picture(WAIT_S)
        return Response(jpeg, mimetype="image/jpeg") if jpeg else Response(status=204)

    return app


class _Quiet(WSGIRequestHandler):
    timeout = 30  # seconds in which a client must send or read something

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Log nothing: the page asks each second."""


@contextmanager
def serve_page(cameras: Cameras, port: int) -> Iterator[str]:
    """Serve the page on this machine; yields its address.

    Args:
        port: 0: any free one.

    Raises:
        OSError: the port is in use.
    """
    server = make_server("127.0.0.1", port, make_page(cameras), threaded=True, request_handler=_Quiet)
    thread = threading.Thread(target=server.serve_forever, name="page", daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
