"""The control room's API and people who mean harm: pages of other sites, missing credentials, names with scripts."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from typing import Any

import pytest
from flask import render_template

from ml_backend.web.api import ROUTES
from tests.web.control import Room

CHANGING = [route for route in ROUTES if route.changes]
SCRIPT = "<script>alert('x')</script>\"><img src=x onerror=alert(1)>"


def _path(path: str) -> str:
    return "/api" + path.replace("<job_id>", "x").replace("<filename>", "x.mp4")


def _basic(user: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


def test_every_route_asks_for_credentials(make_room: Callable[..., Room]) -> None:
    client = make_room(basic_auth_user="user", basic_auth_pass="secret").client
    for route in ROUTES:
        for headers in ({}, _basic("user", "wrong"), _basic("wrong", "secret"), {"Authorization": "Bearer secret"}):
            answer = client.open(_path(route.path), method=route.method, headers=headers)
            assert answer.status_code == 401, route.name
            assert answer.content_type == "application/problem+json"
            assert answer.headers["WWW-Authenticate"].startswith("Basic")
            assert set(answer.get_json()) == {"type", "title", "status", "detail", "cure"}
        answer = client.open(_path(route.path), method=route.method, headers=_basic("user", "secret"))
        assert answer.status_code != 401, route.name
        answer.close()


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"},
        {"Origin": "null"},
        {"Origin": "http://localhost.evil.example"},
        {"Origin": "http://evil.example/localhost"},
        {"Origin": "http://localhost:81"},
        {"Origin": "http://localhost@evil.example"},
        {"Origin": "file://localhost"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": ""},
    ],
    ids=str,
)
def test_pages_of_other_sites_change_nothing(room: Room, headers: dict[str, str]) -> None:
    for route in CHANGING:
        body: dict[str, Any] = {"json": {"project": 7}}
        if route.form:
            file = (io.BytesIO(b"x"), "a.mp4")
            body = {"data": {"project": "7", "file": file}, "content_type": "multipart/form-data"}
        problem = room.ask(route.method, _path(route.path), 403, headers=headers, **body)
        assert "another site" in problem["detail"]
    assert room.services.jobs.all() == []


@pytest.mark.parametrize(
    "headers",
    [{}, {"Origin": "http://localhost"}, {"Origin": "https://localhost", "Sec-Fetch-Site": "same-origin"}],
    ids=str,
)
def test_its_own_pages_and_programs_may(room: Room, headers: dict[str, str]) -> None:
    room.post("/api/init_models", {"project": 7}, 202, headers=headers)


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "", "text/json"]
)
def test_what_a_foreign_form_could_send_is_no_json(room: Room, kind: str) -> None:
    for route in CHANGING:
        if route.body:
            room.ask("POST", _path(route.path), 415, data=b'{"project": 7}', content_type=kind)
    assert room.services.jobs.all() == []


def test_nobody_may_read_from_another_site(room: Room) -> None:
    answer = room.client.get("/api/status", headers={"Origin": "http://evil.example"})
    assert not any(name.lower().startswith("access-control") for name, _ in answer.headers)
    options = room.client.options("/api/init_models", headers={"Origin": "http://evil.example"})
    assert not any(name.lower().startswith("access-control") for name, _ in options.headers)


def test_names_with_scripts_are_text(room: Room) -> None:
    """In answers they are JSON, which no browser takes for a page."""
    for path in (f"/api/similar?project=7&label={SCRIPT}", f"/api/versions?project={SCRIPT}", f"/api/jobs?{SCRIPT}=1"):
        answer = room.client.get(path)
        assert answer.status_code in (400, 422)
        assert answer.content_type == "application/problem+json"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
    name = "<img src=x onerror=alert(1)>.mp4"
    data = {"project": "7", "file": (io.BytesIO(b"x"), name)}
    job = room.ask("POST", "/api/upload_video", 202, data=data, content_type="multipart/form-data")["job"]
    assert "<" not in room.services.queue.fetch(job["id"]).args[2]


def test_names_with_scripts_are_escaped_in_the_page(room: Room) -> None:
    document = room.document | {"info": {"title": SCRIPT, "version": "1", "description": SCRIPT}}
    document["components"] = {"schemas": {SCRIPT: {"description": SCRIPT, "enum": [SCRIPT]}}}
    with room.app.test_request_context("/api/docs"):
        page = render_template("api_docs.html", document=document)
    assert "<script" not in page
    assert "<img" not in page


def test_secrets_are_not_told(make_room: Callable[..., Room]) -> None:
    room = make_room(label_studio_api_key="geheim", redis_url="redis://user:geheim@127.0.0.1:1/0")
    for path in ("/api/status", "/api/jobs", "/api/memory_status", "/api/projects"):
        assert b"geheim" not in room.client.get(path).data
