"""Basic auth as label-studio-ml does it."""

from __future__ import annotations

import base64
from collections.abc import Callable

import pytest
from flask.testing import FlaskClient

from ml_backend.core.settings import Settings
from ml_backend.server.app import create_app

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


@pytest.mark.parametrize(("user", "password"), [("", ""), ("user", ""), ("", "secret")])
def test_off_unless_both_are_set(client: Callable[..., FlaskClient], user: str, password: str) -> None:
    assert client(user, password).get("/").status_code == 200


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
