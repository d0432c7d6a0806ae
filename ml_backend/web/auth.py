"""HTTP Basic auth as label-studio-ml does it, when both user and password are set: on every route but /health.

Whatever watches over the service asks for its health, and need not know a secret for that; the answer holds none.
"""

from __future__ import annotations

import hmac

from flask import Flask, Response, request

from ml_backend.settings import Settings
from ml_backend.web.problems import is_api, problem


def require_basic_auth(app: Flask, settings: Settings) -> None:
    """Answer 401 to requests without the configured credentials."""
    user, password = settings.basic_auth_user, settings.basic_auth_pass.get_secret_value()
    if not (user and password):
        return

    @app.before_request
    def check() -> Response | None:
        if request.path == "/health":
            return None
        auth = request.authorization if request.authorization and request.authorization.type == "basic" else None
        given_user = (auth.username or "") if auth else ""
        given_password = (auth.password or "") if auth else ""
        # Bytes: compare_digest refuses text outside ASCII. Both are compared, so that time tells nothing.
        right = hmac.compare_digest(given_user.encode(), user.encode())
        right &= hmac.compare_digest(given_password.encode(), password.encode())
        if right:
            return None
        if is_api():
            answer = problem(401, "The credentials are missing or wrong.", "Send BASIC_AUTH_USER and BASIC_AUTH_PASS.")
        else:
            answer = Response("Unauthorized", 401)
        answer.headers["WWW-Authenticate"] = 'Basic realm="Login required"'
        return answer
