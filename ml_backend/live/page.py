"""The page on which cameras are watched: their pictures as MJPEG, and figures each second."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from flask import Flask, Response, abort, jsonify, render_template
from werkzeug.serving import WSGIRequestHandler, make_server

from ml_backend.live.cameras import Cameras
from ml_backend.live.session import LiveSession

#: People who may watch one camera at a time: each has a thread.
MAX_VIEWERS = 8
#: Seconds without a new picture after which the last one is sent again, so that a viewer who has gone is noticed.
IDLE_S = 5.0
_BOUNDARY = "frame"


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

    @app.get("/cameras/<int:number>.mjpg")
    def picture(number: int) -> Response:
        if number >= len(sessions):
            abort(404)
        session = sessions[number]
        if session.viewers >= MAX_VIEWERS:
            abort(503)
        session.viewers += 1
        response = Response(_parts(session), mimetype=f"multipart/x-mixed-replace; boundary={_BOUNDARY}")

        @response.call_on_close
        def gone() -> None:
            session.viewers -= 1

        return response

    return app


def _parts(session: LiveSession) -> Iterator[bytes]:
    number = 0
    while not session.over:
        number, jpeg = session.picture(number, IDLE_S)
        if not jpeg:
            continue
        head = f"--{_BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
        yield head.encode() + jpeg + b"\r\n"


class _Quiet(WSGIRequestHandler):
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
