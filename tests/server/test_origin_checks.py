"""People who mean harm: pages of other sites, DNS rebinding, missing credentials, names with scripts."""

from __future__ import annotations

import io
import socket
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
from flask import json, render_template

from ml_backend.server.api.docs_page import docs_context
from ml_backend.server.api.routing import ROUTES
from tests.builders import CONFIG
from tests.server.control import Room

PROTOCOL: dict[str, dict[str, Any]] = {
    "/setup": {"project": "7.17", "schema": CONFIG, "access_token": "stolen"},
    "/predict": {"project": "7.17", "label_config": CONFIG, "tasks": [{"id": 1, "data": {"video": "x", "fps": 5}}]},
    "/webhook": {"action": "START_TRAINING", "project": {"id": 7}},
    "/versions": {"project": 7, "version": "base"},
}
FOREIGN = [
    {"Origin": "http://evil.example", "Sec-Fetch-Site": "cross-site"},
    {"Origin": "http://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://["},
    {"Origin": "http://localhost.evil.example"},
    {"Origin": "http://evil.example/localhost"},
    {"Origin": "http://localhost:81"},
    {"Origin": "http://localhost@evil.example"},
    {"Origin": "file://localhost"},
    {"Origin": ""},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Referer": "http://evil.example/page"},
]
CHANGING = [route for route in ROUTES if route.writes]
SCRIPT = "<script>alert('x')</script>\"><img src=x onerror=alert(1)>"
HTML = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
#: Of a page at evil.example that has this name point here: to the browser it is the same site.
REBOUND = {"Host": "evil.example:9090", "Origin": "http://evil.example:9090", "Sec-Fetch-Site": "same-origin"}


def _path(path: str) -> str:
    return "/api" + path.replace("<job_id>", "x").replace("<filename>", "x.mp4").replace("<number>", "7")


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
def test_pages_of_other_sites_post_nothing(room: Room, headers: dict[str, str]) -> None:
    for path, kind in product(PROTOCOL, ("application/json", "text/plain", "application/x-www-form-urlencoded")):
        answer = room.client.post(path, data=json.dumps(PROTOCOL[path]), content_type=kind, headers=headers)
        assert answer.status_code == 403
        assert "another site" in answer.get_json()["error"]
        assert answer.get_json()["hint"]
    assert room.services.jobs.all() == []
    assert room.services.storage.pending_projects() == []
    assert room.services.queue.remembered_token() == ""


@pytest.mark.parametrize("path", PROTOCOL)
def test_programs_may_use_the_protocol_by_any_name_and_rebound_pages_not(room: Room, path: str) -> None:
    answer = room.client.post(path, json=PROTOCOL[path], headers={"Host": "backend.company.example:9090"})
    assert answer.status_code in (200, 201)
    answer = room.client.post(path, json=PROTOCOL[path], headers=REBOUND)
    assert answer.status_code == 421
    assert "'evil.example'" in answer.get_json()["error"]
    assert "ALLOWED_HOSTS" in answer.get_json()["hint"]


def test_rebound_pages_cannot_use_the_api(room: Room) -> None:
    """Not even to look, where browsers send neither Origin nor Sec-Fetch-Site."""
    for route, headers in product(ROUTES, ({"Host": "evil.example:9090"}, REBOUND)):
        problem = room.ask(route.method, _path(route.path), 421, headers=headers)
        assert problem["title"] == "Foreign name"


@pytest.mark.parametrize("path", ["/versions", "/metrics", "/health"])
def test_rebound_pages_read_nothing(room: Room, path: str) -> None:
    """To what it takes for its own unencrypted server a browser tells neither Origin nor Sec-Fetch-Site."""
    evil = {"Host": "evil.example:9090"}
    assert room.client.get(path, headers=evil).status_code == 200, "a program"
    for language in ("en-US,en;q=0.9", ""):
        assert room.client.get(path, headers=evil | {"Accept-Language": language}).status_code == 421


def test_programs_get_health_at_the_root_by_any_name(room: Room) -> None:
    answer = room.client.get("/", headers={"Host": "backend.company.example:9090"})
    assert (answer.status_code, answer.get_json()["status"]) == (200, "UP")
    for marks in (REBOUND, {"Host": "evil.example"} | HTML, {"Host": "evil.example", "Sec-Fetch-Site": "cross-site"}):
        assert room.client.get("/", headers=marks).status_code == 421


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
def test_pages_of_other_sites_start_no_work_by_looking(room: Room, headers: dict[str, str]) -> None:
    for path in (f"/api{route.path}?project=7" for route in ROUTES if route.starts_job):
        problem = room.get(f"{path}&label=car" if "similar" in path else path, 403, headers=headers)
        assert problem["title"] == "Cross site"
    assert room.services.jobs.all() == []


def test_names_that_are_its_own_and_others(room: Room) -> None:
    own = ("localhost", "LOCALHOST:9090", "localhost.", "a.localhost:80", "127.0.0.1:9090", "192.168.1.5", "[::1]:9090")
    for host in (*own, "[fe80::1]", "backend:9090", "ml-backend", socket.gethostname()):
        assert room.client.get("/api/status", headers={"Host": host}).status_code == 200, host
    evil = ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "evil.example.", "1.2.3", "a.local")
    odd = ("x@localhost.example", "localhost@evil.example", "[evil.example]", "evil.example#localhost")
    for host in (*evil, *odd):
        assert room.client.get("/api/status", headers={"Host": host}).status_code in (400, 421), host


@pytest.mark.parametrize(
    ("allowed", "host", "status"),
    [
        ("control.example", "control.example:8443", 200),
        ("Control.Example, other.example", "CONTROL.example", 200),
        ("control.example", "evil-control.example", 421),
        ("control.example", "a.control.example", 421),
        (".example.org", "a.b.example.org", 200),
        (".example.org", "evilexample.org", 421),
        ("control.example", "localhost", 200),
        ("*", "evil.example", 200),
    ],
)
def test_names_that_are_listed(make_room: Callable[..., Room], allowed: str, host: str, status: int) -> None:
    client = make_room(allowed_hosts=allowed).client
    assert client.get("/api/status", headers={"Host": host}).status_code == status


def test_credentials_make_the_check_needless(make_room: Callable[..., Room]) -> None:
    """A browser sends them only to the name that they were entered for."""
    client = make_room(basic_auth_user="u", basic_auth_pass="p").client
    assert client.get("/api/status", headers={"Host": "control.example"}, auth=("u", "p")).status_code == 200
    assert client.get("/api/status", headers={"Host": "control.example"}).status_code == 401


def test_every_route_asks_for_credentials(make_room: Callable[..., Room]) -> None:
    client = make_room(basic_auth_user="user", basic_auth_pass="secret").client
    for number, route in enumerate(ROUTES):
        somebody = {"REMOTE_ADDR": f"192.0.2.{number}"}  # else the tries would be slowed
        for user, password in (("", ""), ("user", "wrong"), ("wrong", "secret")):
            answer = client.open(_path(route.path), method=route.method, auth=(user, password), environ_base=somebody)
            assert answer.status_code == 401, route.name
            assert answer.content_type == "application/problem+json"
            assert answer.headers["WWW-Authenticate"].startswith("Basic")
            assert set(answer.get_json()) == {"type", "title", "status", "detail", "hint", "cure"}
        answer = client.open(_path(route.path), method=route.method, auth=("user", "secret"))
        assert answer.status_code != 401, route.name
        answer.close()


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
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
            room.ask(route.method, _path(route.path), 415, data=b'{"project": 7}', content_type=kind)
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
    hostile = {"description": SCRIPT, "properties": {SCRIPT: {"description": SCRIPT, "enum": [SCRIPT]}}}
    document["components"] = {"schemas": document["components"]["schemas"] | {SCRIPT: hostile}}
    with room.app.test_request_context("/api/docs"):
        page = render_template("api_docs.html", **docs_context(document, "http://localhost"))
    assert "<script" not in page
    assert "<img" not in page


def test_secrets_are_not_told(make_room: Callable[..., Room]) -> None:
    room = make_room(label_studio_api_key="geheim", redis_url="redis://user:geheim@127.0.0.1:1/0")
    for path in ("/api/status", "/api/jobs", "/api/memory_status", "/api/projects"):
        assert b"geheim" not in room.client.get(path).data
