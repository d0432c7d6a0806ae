"""Basic auth as label-studio-ml does it."""

from __future__ import annotations

import base64
import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask.testing import FlaskClient

from ml_backend.cli.dev_stack.preflight import ROOT, free_port
from ml_backend.core.errors import ConfigError
from ml_backend.core.settings import Settings
from ml_backend.server.access import MAX_TRIES, TRIES_S
from ml_backend.server.app import create_app
from ml_backend.server.exposure import check_exposure
from tests.builders import environment

ROUTES = [
    ("GET", "/"),
    ("GET", "/health/"),
    ("GET", "/ready/"),
    ("GET", "//health"),
    ("POST", "/setup"),
    ("POST", "/predict"),
    ("POST", "/webhook"),
    ("GET", "/versions"),
    ("GET", "/metrics"),
    ("GET", "/ui/live"),
    ("GET", "/ui/part/jobs"),
    ("GET", "/ui/static/page.css"),
    ("GET", "/no/such/route"),
    ("DELETE", "/predict"),
]


def basic(user: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


@pytest.fixture
def client(settings: Callable[..., Settings]) -> Callable[..., FlaskClient]:
    return lambda user="", password="": create_app(
        settings(basic_auth_user=user, basic_auth_pass=password, redis_url="redis://127.0.0.1:1")
    ).test_client()


def test_every_route_asks_for_credentials(client: Callable[..., FlaskClient]) -> None:
    browser = client("user", "secret")
    for method, route in ROUTES:
        answer = browser.open(route, method=method)
        assert answer.status_code == 401, route
        assert answer.headers["WWW-Authenticate"] == 'Basic realm="Login required"'
        assert answer.data == b"Unauthorized"
        assert browser.open(route, method=method, headers=basic("user", "secret")).status_code != 401, route


def test_off_if_none_is_set(client: Callable[..., FlaskClient]) -> None:
    assert client().get("/").status_code == 200


def test_wrong_passwords_are_slowed_by_address(client: Callable[..., FlaskClient], monkeypatch: Any) -> None:
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    browser, right = client("user", "secret"), basic("user", "secret")
    other = {"REMOTE_ADDR": "192.0.2.7"}
    for attempt in range(MAX_TRIES):
        assert browser.get("/", headers=right).status_code == 200, "until then"
        assert browser.get("/").status_code == 401, "a browser's first request has none"
        assert browser.get("/", headers=basic("user", f"wrong {attempt}")).status_code == 401
        now += 1
    for headers in (right, basic("user", "wrong")):
        refused = browser.get("/api/jobs", headers=headers)
        assert (refused.status_code, refused.headers["Retry-After"]) == (429, str(round(TRIES_S) - MAX_TRIES))
        assert browser.get("/", headers=headers).status_code == 429
    assert browser.get("/health", headers=right).status_code == 200
    assert browser.get("/", headers=right, environ_base=other).status_code == 200
    now += TRIES_S - MAX_TRIES
    assert browser.get("/", headers=right).status_code == 200


def test_behind_a_proxy_each_client_has_tries_of_its_own(settings: Callable[..., Settings]) -> None:
    def tries(hops: int) -> tuple[int, int]:
        """Return what the right password gets after a client's wrong ones: of that client, and of another."""
        app = create_app(
            settings(
                **{"basic_auth_user": "user", "basic_auth_pass": "secret"},
                **{"redis_url": "redis://127.0.0.1:1", "proxy_hops": hops},
            )
        )

        def status(password: str, forwarded: str) -> int:
            headers = basic("user", password) | {"X-Forwarded-For": forwarded}
            return app.test_client().get("/", headers=headers).status_code

        for attempt in range(MAX_TRIES):
            status("wrong", f"192.0.2.{attempt}, 198.51.100.1")  # what a client itself has sent is not believed
        return status("secret", "198.51.100.1"), status("secret", "198.51.100.2")

    assert tries(0) == (429, 429)
    assert tries(1) == (429, 200)


@pytest.fixture
def listen() -> Iterator[Callable[..., None]]:
    """Open a socket as a server does."""
    with contextlib.ExitStack() as stack:

        def open_socket(address: str, family: socket.AddressFamily = socket.AF_INET) -> None:
            listener = stack.enter_context(socket.socket(family))
            listener.bind((address, 0))
            listener.listen()

        yield open_socket


def test_without_credentials_only_this_machine_is_served(
    settings: Callable[..., Settings], listen: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    listen("127.0.0.1")
    listen("127.0.0.2")
    check_exposure(settings())
    listen("0.0.0.0")
    with pytest.raises(ConfigError, match=r"listens at 0\.0\.0\.0 without credentials") as failure:
        check_exposure(settings())
    assert "BASIC_AUTH_USER" in failure.value.hint
    assert not caplog.messages
    check_exposure(settings(basic_auth_user="me", basic_auth_pass="secret"))
    assert not caplog.messages
    check_exposure(settings(allow_anonymous=True))
    assert "without credentials" in caplog.text


@pytest.mark.slow
def test_a_refused_start_says_why_in_one_line(settings: Callable[..., Settings]) -> None:
    command = [sys.executable, "-m", "gunicorn", "ml_backend.wsgi:app", "--bind", f"0.0.0.0:{free_port()}"]
    done = subprocess.run(
        command, env=environment(settings()), cwd=ROOT, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 3
    assert "ALLOW_ANONYMOUS=true" in done.stderr
    assert "Traceback" not in done.stderr


def test_health_asks_for_none_and_tells_nothing(client: Callable[..., FlaskClient]) -> None:
    for headers in ({}, basic("user", "wrong")):
        answer = client("user", "secret").get("/health", headers=headers)
        assert answer.status_code == 200
        assert answer.json == {"status": "UP", "model_class": "VideoBackend"}


@pytest.mark.parametrize(
    ("user", "password"),
    [("üser", "pässwörd"), ("用户", "密码🔑"), ("user", "with:colon"), ("user", " spaces "), ("user", "p%40ss")],
)
def test_credentials_of_any_script(client: Callable[..., FlaskClient], user: str, password: str) -> None:
    browser = client(user, password)
    assert browser.get("/", headers=basic(user, password)).status_code == 200
    assert browser.get("/", headers=basic(user, password + "x")).status_code == 401
    assert browser.get("/", headers=basic("x" + user, password)).status_code == 401
    assert browser.get("/", headers=basic(user, "")).status_code == 401


@pytest.mark.slow
@pytest.mark.parametrize(
    "header",
    [
        "",
        "Basic",
        "Basic ",
        "Basic !!!",
        "Basic " + base64.b64encode(b"user").decode(),
        "Basic " + base64.b64encode(b"\xff\xfe:\xff").decode(),
        "Basic " + base64.b64encode(b"user:secret\n").decode(),
        "Basic " + base64.b64encode(b"USER:secret").decode(),
        "Bearer " + base64.b64encode(b"user:secret").decode(),
        'Digest username="user", password="secret"',
        "user:secret",
        "Basic " + "A" * 5000,
    ],
)
def test_malformed_headers_are_refused(client: Callable[..., FlaskClient], header: str) -> None:
    assert client("user", "secret").get("/", headers={"Authorization": header}).status_code == 401
