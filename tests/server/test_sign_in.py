"""Signing in with a Label Studio account, what each role may do, project tokens, and the record of what was done."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from flask.testing import FlaskClient

from ml_backend.cli.dev_stack.preflight import ROOT, free_port
from ml_backend.core.outputs import OutputFacts
from ml_backend.db.audit import MAX_ROWS, SLACK, AuditLog
from ml_backend.db.storage import Storage
from ml_backend.db.tables import audit, sessions
from ml_backend.label_studio.client import LabelStudioClient, basic_auth_header
from ml_backend.server.access import COOKIE, LIFETIME, MAX_TRIES, TRIES_S
from ml_backend.server.api.routing import ROUTES
from ml_backend.server.dashboard import texts
from ml_backend.server.people import MAX_SESSIONS
from tests.builders import CONFIG, Outside, environment, outside, send, wait_for
from tests.conftest import LabelStudio
from tests.server.control import Room, answer_as_label_studio, camera

TITLES = {7: "heron", 8: "stork"}
#: By token: id and e-mail of its user, and the projects that Label Studio shows to it. The organisation is the first's.
USERS: dict[str, tuple[int, str, tuple[int, ...]]] = {
    "owner-token": (1, "owner@example.org", (7, 8)),
    "other-token": (2, "other@example.org", (7,)),
    "backend": (1, "owner@example.org", (7, 8)),
}
HTML = {"Accept": "text/html", "Sec-Fetch-Site": "same-origin"}
RIGHT = {"Authorization": "Basic " + base64.b64encode(b"machine:secret").decode()}


@pytest.fixture
def users() -> dict[str, tuple[int, str, tuple[int, ...]]]:
    return dict(USERS)


@pytest.fixture
def studio(users: dict[str, tuple[int, str, tuple[int, ...]]]) -> Iterator[Outside]:
    """A Label Studio with two users, of whom it shows one project to the second."""
    with outside() as site:
        answer_as_label_studio(site, TITLES, tasks=3)

        def user_of(handler: BaseHTTPRequestHandler) -> tuple[int, str, tuple[int, ...]] | None:
            found = users.get(handler.headers.get("Authorization", "").removeprefix("Token "))
            if found is None:
                send(handler, 401, b'{"detail": "Invalid token."}', content_type="application/json")
            return found

        def whoami(handler: BaseHTTPRequestHandler) -> None:
            if user := user_of(handler):
                facts = {"id": user[0], "email": user[1], "username": user[1], "active_organization": 1}
                send(handler, 200, json.dumps(facts).encode())

        def projects(handler: BaseHTTPRequestHandler) -> None:
            if user := user_of(handler):
                rows = [{"id": n, "title": TITLES[n], "task_number": 3, "label_config": CONFIG} for n in user[2]]
                send(handler, 200, json.dumps({"next": None, "results": rows}).encode())

        site.special["/api/current-user/whoami"] = whoami
        site.special["/api/projects/"] = projects
        site.answer("/api/organizations/1", 200, b'{"id": 1, "created_by": 1}')
        yield site


@pytest.fixture
def guarded(make_room: Callable[..., Room], studio: Outside) -> Callable[..., Room]:
    """Factory of rooms that people sign in to."""

    def make(**values: Any) -> Room:
        return make_room(
            **({"label_studio_url": studio.url, "label_studio_api_key": "backend", "sign_in": True} | values)
        )

    return make


def sign_in(room: Room, token: str) -> FlaskClient:
    """A browser that has signed in."""
    browser = room.app.test_client()
    answer = browser.post("/sign-in", data={"token": token, "next": "/?project=7"}, headers=HTML)
    assert (answer.status_code, answer.location) == (303, "/?project=7"), answer.get_data(as_text=True)
    return browser


def promote_to(room: Room, name: str, role: str) -> None:
    room.services.people.give(name, role, "a test")  # type: ignore[arg-type]


def actions(room: Room) -> list[tuple[str, str, int | None, str]]:
    rows, _ = room.services.audit.find(None, 100)
    return [(row["who"], row["action"], row["project"], row["detail"]) for row in reversed(rows)]


def test_a_person_has_few_sessions_at_once(guarded: Callable[..., Room]) -> None:
    room = guarded()
    other = sign_in(room, "other-token")
    browsers = [sign_in(room, "owner-token") for _ in range(MAX_SESSIONS + 2)]
    statuses = [browser.get("/api/projects").status_code for browser in browsers]
    assert statuses == [401] * 2 + [200] * MAX_SESSIONS
    assert other.get("/api/projects").status_code == 200


def test_nobody_gets_in_without_signing_in(guarded: Callable[..., Room]) -> None:
    browser = guarded().app.test_client()
    for path in ("/", "/?project=7&step=learn", "/ui/part/jobs"):
        answer = browser.get(path, headers=HTML)
        assert answer.status_code == 303
        assert answer.location.startswith("/sign-in")
    assert "next=%2F%3Fproject%3D7%26step%3Dlearn" in browser.get("/?project=7&step=learn", headers=HTML).location
    for path in ("/api/status", "/api/projects", "/api/openapi.json", "/api/download/a.mp4", "/metrics", "/api/none"):
        answer = browser.get(path)
        assert answer.status_code == 401, path
        assert "WWW-Authenticate" not in answer.headers or not path.startswith("/api"), (
            "browsers would ask for a password"
        )
    part = browser.get("/ui/part/jobs", headers=HTML | {"HX-Request": "true"})
    assert (part.status_code, part.headers["HX-Redirect"]) == (401, "/sign-in")
    assert browser.post("/ui/do/train", data={"project": "7"}, headers=HTML).status_code == 303
    assert browser.get("/health").status_code == 200
    assert 'type="password"' in browser.get("/sign-in", headers=HTML).get_data(as_text=True)


def test_signing_in_and_out(guarded: Callable[..., Room]) -> None:
    room = guarded()
    browser = room.app.test_client()
    answer = browser.post("/sign-in", data={"token": " owner-token\n", "next": "/?a\r\nX: y"}, headers=HTML)
    assert answer.location == "/", "only this page"
    cookie = answer.headers["Set-Cookie"]
    assert all(word in cookie for word in (f"{COOKIE}=", "HttpOnly", "SameSite=Lax", "Path=/"))
    assert f"Max-Age={round(LIFETIME.total_seconds())}" in cookie
    assert "Secure" not in cookie
    tls = room.app.test_client().post("/sign-in", data={"token": "owner-token"}, headers={"X-Forwarded-Proto": "https"})
    assert "Secure" in tls.headers["Set-Cookie"]
    text = browser.get("/", headers=HTML).get_data(as_text=True)
    assert "owner@example.org" in text
    assert "heron" in text
    assert "stork" in text
    with room.services.storage.read() as connection:
        stored = json.dumps([list(map(str, row)) for row in connection.execute(sa.select(sessions))])
    assert "owner-token" not in stored
    assert cookie.split(";")[0].partition("=")[2] not in stored
    kept = browser.get_cookie(COOKIE)
    assert kept is not None
    assert browser.post("/sign-out", headers=HTML).status_code == 303
    assert browser.get("/api/projects").status_code == 401
    browser.set_cookie(COOKIE, kept.value)
    assert browser.get("/api/projects").status_code == 401, "it has ended here, not only in the browser"
    assert [row[1] for row in actions(room)] == ["sign_in", "sign_in", "sign_out"]


def test_a_session_ends_by_itself(guarded: Callable[..., Room]) -> None:
    room = guarded()
    browser = sign_in(room, "owner-token")
    assert browser.get("/api/projects").status_code == 200
    with room.services.storage.write() as connection:
        connection.execute(sa.update(sessions).values(expires_at=datetime.now(timezone.utc) - timedelta(seconds=1)))
    assert browser.get("/api/projects").status_code == 401
    sign_in(room, "other-token")
    with room.services.storage.read() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(sessions)) == 1, "ended ones are removed"


def test_wrong_tokens_are_refused_and_slowed(guarded: Callable[..., Room], monkeypatch: pytest.MonkeyPatch) -> None:
    browser, now = guarded().app.test_client(), time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    for number in range(MAX_TRIES):
        answer = browser.post("/sign-in", data={"token": f"wrong-{number}"}, headers=HTML)
        assert answer.status_code == 403
        assert "does not know this token" in answer.get_data(as_text=True)
    answer = browser.post("/sign-in", data={"token": "owner-token"}, headers=HTML)
    assert (answer.status_code, answer.headers["Retry-After"]) == (429, str(round(TRIES_S)))
    now += TRIES_S
    assert browser.post("/sign-in", data={"token": "owner-token"}, headers=HTML).status_code == 303
    foreign = {"Origin": "https://evil.example", "Accept": "text/html"}
    assert browser.post("/sign-in", data={"token": "owner-token"}, headers=foreign).status_code == 403


def test_the_page_to_sign_in_speaks_korean(guarded: Callable[..., Room]) -> None:
    browser = guarded().app.test_client()
    answer = browser.get("/sign-in?lang=ko&next=/?project=7", headers=HTML)
    assert (answer.status_code, answer.location) == (303, "/sign-in?next=%2F%3Fproject%3D7")
    text = browser.get(answer.location, headers=HTML).get_data(as_text=True)
    assert texts.load_texts("ko")["sign_in_lead"] in text
    assert 'name="next" value="/?project=7"' in text


def test_label_studio_away(guarded: Callable[..., Room]) -> None:
    browser = guarded(label_studio_url="http://127.0.0.1:1").app.test_client()
    for _ in range(MAX_TRIES + 1):
        answer = browser.post("/sign-in", data={"token": "owner-token"}, headers=HTML)
        assert answer.status_code == 503, "which is nobody's wrong token"
    assert "does not answer" in answer.get_data(as_text=True)


def test_a_camera_is_watched_by_those_who_see_its_project(guarded: Callable[..., Room]) -> None:
    """One of no project is watched by admins."""
    room = guarded()
    owner, other = sign_in(room, "owner-token"), sign_in(room, "other-token")
    with (
        camera(room, name="a", project=7) as seven,
        camera(room, name="b", project=8) as eight,
        camera(room, name="c", project=None) as none,
    ):
        for browser, shown in ((owner, {seven, eight, none}), (other, {seven})):
            assert {item["id"] for item in browser.get("/api/cameras").get_json()["cameras"]} == shown
            part = browser.get("/ui/part/cameras").get_data(as_text=True)
            assert {number for number in (seven, eight, none) if number in part} == shown
            for number in (seven, eight, none):
                answer = browser.get(f"/api/cameras/{number}/picture")
                assert answer.status_code == (200 if number in shown else 404)
        assert room.client.get(f"/api/cameras/{seven}/picture").status_code == 401


def test_only_the_projects_that_label_studio_shows(guarded: Callable[..., Room]) -> None:
    room = guarded()
    browser, folder = sign_in(room, "other-token"), room.services.outputs.folder
    for project in TITLES:
        room.services.api_queue.learn(project)
        made = folder.parent / f"{project}.json"
        made.parent.mkdir(parents=True, exist_ok=True)
        made.write_text("[]")
        room.services.outputs.add(made, OutputFacts(format="annotations", source="annotations"), "project", project)
    names = {project: room.services.outputs.of_project(project)[0].name for project in TITLES}
    assert [item["id"] for item in browser.get("/api/projects").json["projects"]] == [7]
    assert {item["project"] for item in browser.get("/api/jobs").json["jobs"]} == {7}
    for path, body in {
        "/api/versions": None,
        "/api/files": None,
        "/api/stats": None,
        "/versions": None,
        "/api/export": {"format": "annotations"},
        "/api/auto_label": {},
        "/ui/part/versions": None,
        "/ui/live": None,
    }.items():
        for project, wrong in ((7, False), (8, True)):
            if body is None:
                answer = browser.get(path, query_string={"project": project}, headers={"Sec-Fetch-Site": "same-origin"})
            else:
                answer = browser.post(path, json=body | {"project": project})
            assert (answer.status_code == 404) is wrong, (path, project, answer.get_data(as_text=True))
    assert browser.get(f"/api/download/{names[7]}").status_code == 200
    assert browser.get(f"/api/download/{names[8]}").status_code == 404
    promote_to(room, "other@example.org", "trainer")
    assert browser.delete(f"/api/files/{names[8]}").status_code == 404
    (job,) = [item for item in room.services.jobs.all() if item["project"] == 8]
    assert browser.get(f"/api/jobs/{job['id']}").status_code == 404
    assert browser.delete(f"/api/jobs/{job['id']}").status_code == 404
    text = browser.get("/?project=8", headers=HTML).get_data(as_text=True)
    assert "stork" not in text
    assert "Project 8 was not found" in text
    form = {"project": "8", "format": "coco", "predictions": "none", "stride": "1"}
    assert browser.post("/ui/do/export?project=7", data=form, headers=HTML | {"HX-Request": "true"}).status_code == 404


def test_a_token_that_is_revoked_ends_the_session(
    guarded: Callable[..., Room], users: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ml_backend.server.people.FRESH", timedelta(0))
    browser = sign_in(guarded(), "other-token")
    assert browser.get("/api/projects").status_code == 200
    del users["other-token"]
    answer = browser.get("/api/projects")
    assert answer.status_code == 401
    assert "Sign in again" in answer.json["hint"]
    assert browser.get("/", headers=HTML).location.startswith("/sign-in")


def test_an_admin_who_was_removed_gives_no_role(
    guarded: Callable[..., Room], users: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ml_backend.server.people.FRESH", timedelta(0))
    room = guarded()
    browser = sign_in(room, "owner-token")
    del users["owner-token"]
    assert browser.post("/api/people", json={"name": "friend@example.org", "role": "admin"}).status_code == 401
    assert browser.get("/api/audit").status_code == 401
    assert "friend@example.org" not in [row["name"] for row in room.services.people.all()]


@pytest.mark.parametrize(
    ("role", "may", "may_not"),
    [
        ("viewer", [], ["export", "auto_label", "train", "optimize_memory"]),
        ("annotator", ["export", "auto_label"], ["train", "init_models", "optimize_memory"]),
        ("trainer", ["export", "train", "init_models"], ["optimize_memory"]),
        ("admin", ["export", "train", "init_models", "optimize_memory"], []),
    ],
)
def test_roles_on_the_api_and_the_page(
    guarded: Callable[..., Room], role: str, may: list[str], may_not: list[str]
) -> None:
    room = guarded(detector="auto")
    browser = sign_in(room, "other-token")
    promote_to(room, "other@example.org", role)
    paths, buttons = {"train": "/api/train_custom_model"}, {"optimize_memory": "optimize"}
    for name in may + may_not:
        body: dict[str, Any] = {} if name == "optimize_memory" else {"project": 7}
        body |= {"format": "annotations"} if name == "export" else {}
        answer = browser.post(paths.get(name, f"/api/{name}"), json=body)
        assert answer.status_code == (202 if name in may else 403), (name, answer.get_data(as_text=True))
    steps = ("auto", "learn", "review", "access")
    pages = {step: browser.get(f"/?project=7&step={step}", headers=HTML).get_data(as_text=True) for step in steps}
    text = "".join(pages.values())
    offered = {name for name in may + may_not if f'action="/ui/do/{buttons.get(name, name)}?' in text}
    assert offered == set(may)
    assert ("/ui/part/audit" in pages["access"]) is (role == "admin")
    for name in may_not:
        form = {} if name == "optimize_memory" else {"project": "7", "format": "annotations"}
        form = form if name == "export" else {key: value for key, value in form.items() if key == "project"}
        answer = browser.post(f"/ui/do/{buttons.get(name, name)}?project=7", data=form, headers=HTML)
        assert answer.status_code == 403, name
    assert (browser.get("/api/audit").status_code == 200) is (role == "admin")
    assert browser.get("/api/versions?project=7").status_code == 200


def test_defaults_come_from_label_studio_and_admins_change_them(guarded: Callable[..., Room]) -> None:
    room = guarded()
    owner, other = sign_in(room, "owner-token"), sign_in(room, "other-token")
    found = {item["name"]: (item["role"], item["is_default"]) for item in owner.get("/api/people").json["people"]}
    assert found == {"owner@example.org": ("admin", True), "other@example.org": ("annotator", True)}
    assert other.get("/api/people").status_code == 403
    assert owner.post("/api/people", json={"name": "owner@example.org", "role": "viewer"}).status_code == 409
    given = owner.post("/api/people", json={"name": " OTHER@example.org ", "role": "viewer"})
    assert (given.status_code, given.json["role"], given.json["given_by"]) == (200, "viewer", "owner@example.org")
    assert other.post("/api/auto_label", json={"project": 7}).status_code == 403, "at once"
    sign_in(room, "other-token")
    assert other.post("/api/auto_label", json={"project": 7}).status_code == 403, "signing in again changes no role"
    form = {"name": "other@example.org", "role": "default"}
    assert owner.post("/ui/do/give_role?step=access", data=form, headers=HTML).status_code == 200
    assert other.post("/api/auto_label", json={"project": 7}).status_code == 202
    assert owner.post("/api/people", json={"name": "new@example.org", "role": "trainer"}).json["signed_in_at"] is None
    assert ("owner@example.org", "give_role", None, "name new@example.org, role trainer") in actions(room)


def test_programs_use_basic_auth_beside_it(guarded: Callable[..., Room]) -> None:
    room = guarded(basic_auth_user="machine", basic_auth_pass="secret")
    program = room.app.test_client()
    assert program.post("/api/optimize_memory", json={}, headers=RIGHT).status_code == 202
    assert program.post("/setup", json={"project": "7.1", "schema": CONFIG}, headers=RIGHT).status_code == 200
    refused = program.post("/setup", json={"project": "7.1", "schema": CONFIG})
    assert (refused.status_code, "WWW-Authenticate" in refused.headers) == (401, True)
    assert program.get("/").status_code == 401
    browser = sign_in(room, "other-token")
    assert browser.get("/api/projects").status_code == 200
    bodies = {"/setup": {"project": "7.1", "schema": CONFIG}, "/webhook": {"action": "START_TRAINING", "project": 8}}
    bodies["/predict"] = {"project": "7.1", "label_config": CONFIG, "tasks": []}
    for path, body in bodies.items():
        assert browser.post(path, json=body).status_code == 401, "a person is not Label Studio"
    assert actions(room)[0][:2] == ("machine", "optimize_memory")
    assert "session" in browser.get("/api/openapi.json").json["components"]["securitySchemes"]


def test_repairs_are_recorded_under_the_persons_own_name(guarded: Callable[..., Room]) -> None:
    room = guarded()
    browser = sign_in(room, "other-token")
    form = {"project": 7, "moment": "0" * 16, "action": "skip", "by": "somebody else"}
    assert browser.post("/api/repairs", json=form).status_code == 404
    text = browser.get("/?project=7&step=repair", headers=HTML).get_data(as_text=True)
    assert 'name="reviewer"' not in text


def test_what_is_done_is_recorded_and_what_fails_is_not(guarded: Callable[..., Room]) -> None:
    room = guarded()
    owner = sign_in(room, "owner-token")
    owner.post("/api/export", json={"project": 7, "format": "coco"})
    owner.post("/ui/do/learn?project=7", data={"project": "7"}, headers=HTML)
    assert owner.post("/api/versions/rollback", json={"project": 7, "instead_of": "v3"}).status_code == 409
    made = room.services.outputs.folder.parent / "made.mp4"
    made.parent.mkdir(parents=True, exist_ok=True)
    made.write_bytes(bytes(100))
    name = room.services.outputs.add(made, OutputFacts(source="base"), "project", 7).name
    for start in (0, 50):
        assert owner.get(f"/api/download/{name}", headers={"Range": f"bytes={start}-"}).status_code == 206
    owner.delete(f"/api/files/{name}")
    me = "owner@example.org"
    told = actions(room)
    assert told[0][:2] == (me, "sign_in")
    assert told[1][:3] == (me, "export", 7)
    assert "format coco" in told[1][3]
    assert told[2:] == [
        (me, "learn_patterns", 7, ""),
        (me, "download", 7, name),
        (me, "delete_file", 7, name),
    ]
    found = owner.get("/api/audit?project=7&limit=2").json
    assert (found["total"], [item["action"] for item in found["actions"]]) == (4, ["delete_file", "download"])
    page = owner.get("/?project=7&step=access", headers=HTML).get_data(as_text=True)
    assert texts.load_texts("en")["action_delete_file"] in page
    assert name in page


def test_every_recorded_action_has_words() -> None:
    words = texts.load_texts("en")
    recorded = {route.handler.__name__ for route in ROUTES if route.writes}
    for name in {*recorded, "sign_in", "sign_out", "promote", "download"}:
        assert f"action_{name}" in words


def test_old_records_are_removed(tmp_path: Path) -> None:
    storage = Storage(f"sqlite:///{tmp_path}/db.sqlite3")
    log, now = AuditLog(storage), datetime.now(timezone.utc)
    row = {"at": now, "who": "me", "action": "train", "project_id": 1, "detail": ""}
    with storage.write() as connection:
        connection.execute(sa.insert(audit), [row] * (MAX_ROWS + SLACK - 1))
    log.record("me\0", "export", 2, "x" * 1000)
    rows, total = log.find(None, 1)
    assert total == MAX_ROWS
    assert (rows[0]["who"], rows[0]["project"], len(rows[0]["detail"])) == ("me", 2, 500)


# -- tokens of projects


def test_a_token_opens_its_project_only(make_room: Callable[..., Room]) -> None:
    room = make_room(project_tokens=True)
    client = room.app.test_client()
    (user, token), (_, other) = (room.services.project_credentials(project) for project in (7, 8))
    setup, event = {"project": "7.1", "schema": CONFIG}, {"action": "PROJECT_UPDATED", "project": {"id": 7}}
    predict = {"project": "7.1", "label_config": CONFIG, "tasks": []}
    for number, (path, body) in enumerate((("/setup", setup), ("/predict", predict), ("/webhook", event))):
        client.environ_base["REMOTE_ADDR"] = f"192.0.2.{number}"  # wrong tokens are counted by address
        assert client.post(path, json=body).status_code == 401
        assert client.post(f"{path}?token={other}", json=body).status_code == 401
        assert client.post(path, json=body, auth=(user, other)).status_code == 401
        assert client.post(path, json=body, auth=("project-8", token)).status_code == 401
        assert client.post(f"{path}?token={token}", json=body).status_code in (200, 201)
        assert client.post(path, json=body, auth=(user, token)).status_code in (200, 201)
    assert client.post("/webhook?token=x", data="[" * 2000).status_code == 401, "too deep to be read"
    assert client.get("/versions", auth=(user, token)).status_code == 200
    assert client.get("/versions?project=8", auth=(user, token)).status_code == 404
    assert client.post("/versions", json={"project": 7, "version": "base"}, auth=(user, token)).status_code == 401
    assert client.get("/health").status_code == 200
    assert room.services.credentials(7) == (user, token)


def test_a_token_speaks_for_its_project_only(make_room: Callable[..., Room], monkeypatch: pytest.MonkeyPatch) -> None:
    room = make_room(project_tokens=True, label_studio_api_key="")
    told: list[str] = []
    monkeypatch.setattr(room.services.prediction_service, "remember_token", told.append)
    client, storage = room.app.test_client(), room.services.storage
    credentials = room.services.project_credentials(7)
    storage.note_annotations(8, 80, [555])
    for action in ("ANNOTATION_UPDATED", "ANNOTATIONS_DELETED"):
        event = {"action": action, "project": {"id": 7}, "task": {"id": 70}, "annotation": {"id": 555}}
        event |= {"annotations": [{"id": 555}]} if action == "ANNOTATIONS_DELETED" else {}
        assert client.post("/webhook", json=event, auth=credentials).status_code == 201
    assert storage.tasks_of_annotations([555]) == {80: 8}
    assert storage.pending("learn", 8) == {}
    setup = {"project": "7.1", "schema": CONFIG, "access_token": "somebody's"}
    assert client.post("/setup", json=setup, auth=credentials).status_code == 200
    assert told == [], "it is used for all projects"


def test_a_webhook_needs_the_token_of_its_project(make_room: Callable[..., Room], label_studio: LabelStudio) -> None:
    client = label_studio.client()
    project = client.create_project("tokens", CONFIG)
    room = make_room(project_tokens=True, label_studio_url=label_studio.url, label_studio_api_key=label_studio.token)
    hook = client.sdk.webhooks.create(
        project=project, url="http://localhost:9090/webhook", send_payload=True, send_for_all_actions=True
    )

    def connected() -> bool:
        room.services.lister.forget()
        return next(item["connected"] for item in room.services.lister.projects() if item["id"] == project)

    assert connected() is False
    credentials = room.services.credentials(project)
    assert credentials is not None
    client.sdk.webhooks.update(hook.id, headers=basic_auth_header(*credentials))
    assert connected() is True


def test_a_token_is_in_no_log(settings: Callable[..., Any], tmp_path: Path) -> None:
    """Of a server that logs every request."""
    values, port = (
        settings(project_tokens=True, redis_url=f"unix://{tmp_path}/none.sock", detector="motion"),
        free_port(),
    )
    command = [sys.executable, "-m", "gunicorn", "--config", "python:ml_backend.server.gunicorn_config"]
    options = ["--bind", f"127.0.0.1:{port}", "--access-logfile", "-", "--access-logformat", "%(r)s %(q)s %(s)s"]
    with (
        (tmp_path / "log").open("wb") as log,
        subprocess.Popen(
            [*command, *options], env=environment(values), cwd=ROOT, stdout=log, stderr=subprocess.STDOUT
        ) as server,
    ):
        try:
            url = f"http://127.0.0.1:{port}"

            def up() -> bool:
                try:
                    return httpx.get(f"{url}/health", trust_env=False, timeout=60).status_code == 200
                except httpx.HTTPError:
                    assert server.poll() is None
                    return False

            wait_for(up)
            address, event = f"{url}/webhook?a=1&token=abc123secret", {"action": "x", "project": 7}
            answer = httpx.post(address, json=event, trust_env=False, timeout=300)
            assert answer.status_code == 401
        finally:
            server.terminate()
    text = (tmp_path / "log").read_text()
    assert "POST /webhook?a=1&token=..." in text
    assert "abc123secret" not in text


# -- a real Label Studio


def test_a_real_label_studio(make_room: Callable[..., Room], label_studio: LabelStudio) -> None:
    client = label_studio.client()
    project = client.create_project("sign in", CONFIG)
    assert client.account() == (label_studio.username, True)
    assert project in client.project_ids()
    room = make_room(sign_in=True, label_studio_url=label_studio.url, label_studio_api_key=label_studio.token)
    browser = sign_in_anywhere(room, label_studio.token)
    assert project in {item["id"] for item in browser.get("/api/projects").json["projects"]}
    (me,) = browser.get("/api/people").json["people"]
    assert (me["name"], me["role"], me["is_default"]) == (label_studio.username, "admin", True)
    refused = room.app.test_client().post("/sign-in", data={"token": "a wrong one"}, headers=HTML)
    assert refused.status_code == 403
    assert LabelStudioClient(label_studio.url, label_studio.token).project_ids() == client.project_ids()


def sign_in_anywhere(room: Room, token: str) -> FlaskClient:
    browser = room.app.test_client()
    assert browser.post("/sign-in", data={"token": token}, headers=HTML).status_code == 303
    return browser
