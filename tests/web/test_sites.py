"""Pages of other sites, and pages that have their own name point to this machine (DNS rebinding)."""

from __future__ import annotations

import socket
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
from flask import json

from ml_backend.web.api import ROUTES
from tests.builders import CONFIG
from tests.web.control import Room

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
    {"Sec-Fetch-Site": "same-site"},
    {"Referer": "http://evil.example/page"},
]
HTML = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
#: Of a page at evil.example that has this name point here: to the browser it is the same site.
REBOUND = {"Host": "evil.example:9090", "Origin": "http://evil.example:9090", "Sec-Fetch-Site": "same-origin"}


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
def test_pages_of_other_sites_post_nothing(room: Room, headers: dict[str, str]) -> None:
    for path, kind in product(PROTOCOL, ("application/json", "text/plain", "application/x-www-form-urlencoded")):
        answer = room.client.post(path, data=json.dumps(PROTOCOL[path]), content_type=kind, headers=headers)
        assert answer.status_code == 403
        assert "another site" in answer.get_json()["error"]
        assert answer.get_json()["cure"]
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
    assert "ALLOWED_HOSTS" in answer.get_json()["cure"]


def test_rebound_pages_cannot_use_the_api(room: Room) -> None:
    """Not even to look, where browsers send neither Origin nor Sec-Fetch-Site."""
    for route, headers in product(ROUTES, ({"Host": "evil.example:9090"}, REBOUND)):
        path = "/api" + route.path.replace("<job_id>", "x").replace("<filename>", "x.mp4")
        problem = room.ask(route.method, path, 421, headers=headers)
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
