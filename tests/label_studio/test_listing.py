"""The list of projects while Label Studio is slow."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

from ml_backend.cli.dev_stack.preflight import ROOT
from ml_backend.label_studio import listing
from ml_backend.label_studio.client import LabelStudioClient
from ml_backend.label_studio.listing import ProjectLister
from tests.builders import CONFIG, NO_RECTANGLE, Outside, outside, send, wait_for


class _Slow:
    """Answers with one project, when it is let; its title tells how often it was asked."""

    def __init__(self, site: Outside) -> None:
        self.url, self.asked, self.let = site.url, 0, threading.Event()
        self.let.set()
        site.special["/api/projects/"] = self._answer

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        self.asked += 1
        title = str(self.asked)
        self.let.wait(300)
        send(handler, 200, json.dumps({"next": None, "results": [{"id": 7, "title": title}]}).encode())


ASK = """
import sys
from ml_backend.label_studio.listing import ProjectLister
assert ProjectLister(sys.argv[1], lambda: "token").projects()[0]["id"] == 7
assert not {"pandas", "numpy", "PIL", "nltk"} & sys.modules.keys()
"""


def test_asking_loads_little(slow: _Slow) -> None:
    """The web process lists projects: of the SDK it loads only what that takes."""
    subprocess.run([sys.executable, "-c", ASK, slow.url], cwd=ROOT, check=True)


@pytest.fixture
def slow() -> Iterator[_Slow]:
    with outside() as site:
        found = _Slow(site)
        yield found
        found.let.set()


def test_one_waits_for_label_studio_and_others_take_what_is_known(slow: _Slow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "FRESH_S", 0.0)
    monkeypatch.setattr(listing, "MAX_WAIT_S", 0.01)
    lister = ProjectLister(slow.url, lambda: "token")
    assert lister.projects()[0]["title"] == "1"
    slow.let.clear()
    found: list[str] = []
    waiting = threading.Thread(target=lambda: found.append(lister.projects()[0]["title"]))
    waiting.start()
    wait_for(lambda: slow.asked == 2)
    started = time.monotonic()
    assert [lister.projects()[0]["title"] for _ in range(20)] == ["1"] * 20
    assert time.monotonic() - started < 10
    assert (slow.asked, found) == (2, [])
    slow.let.set()
    waiting.join(120)
    assert found == ["2"]


def test_what_is_old_is_not_shown(slow: _Slow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "FRESH_S", 0.0)
    monkeypatch.setattr(listing, "STALE_S", 0.0)
    lister = ProjectLister(slow.url, lambda: "token")
    lister.projects()
    slow.let.clear()
    found: list[str] = []
    waiting = [threading.Thread(target=lambda: found.append(lister.projects()[0]["title"])) for _ in range(2)]
    for thread in waiting:
        thread.start()
    wait_for(lambda: slow.asked == 2)
    time.sleep(0.2)
    assert found == []
    slow.let.set()
    for thread in waiting:
        thread.join(10)
    assert found == ["2", "3"]


URL = "http://localhost:9090"


def hook(client: LabelStudioClient, project: int, url: str, **changes: Any) -> None:
    on = {"send_payload": True, "send_for_all_actions": True, "is_active": True}
    client.sdk.webhooks.create(project=project, url=url, **(on | changes))


def test_which_projects_are_connected(label_studio: Any) -> None:
    client: LabelStudioClient = label_studio.client()
    ours, by_another_name, set_up, of_others, switched_off, without = (
        client.create_project("test", CONFIG) for _ in range(6)
    )
    hook(client, ours, f"{URL}/webhook")
    hook(client, by_another_name, "http://127.0.0.1:9090/webhook")
    hook(client, set_up, "http://10.1.2.3:7000/webhook")
    hook(client, of_others, "http://10.1.2.3:7000/webhook")
    hook(client, switched_off, f"{URL}/webhook", is_active=False)
    lister = ProjectLister(label_studio.url, lambda: label_studio.token, backend_url=URL, set_up=lambda: {set_up})
    connected = {item["id"] for item in lister.projects() if item["connected"]}
    assert {ours, by_another_name, set_up} <= connected
    assert not {of_others, switched_off, without} & connected
    hook(client, without, f"{URL}/webhook")
    lister.forget()
    assert without in {item["id"] for item in lister.projects() if item["connected"]}


def test_a_webhook_without_the_credentials_connects_nothing(label_studio: Any) -> None:
    client: LabelStudioClient = label_studio.client()
    project = client.create_project("test", CONFIG)
    hook(client, project, f"{URL}/webhook")
    for basic_auth, connected in ((None, True), (("user", "password"), False)):
        lister = ProjectLister(
            label_studio.url,
            lambda: label_studio.token,
            backend_url=URL,
            credentials={project: basic_auth}.get,
        )
        assert next(item for item in lister.projects() if item["id"] == project)["connected"] is connected


def test_predicted_tasks_and_refused_label_configs(label_studio: Any) -> None:
    client: LabelStudioClient = label_studio.client()
    project, wrong = client.create_project("test", CONFIG), client.create_project("test", NO_RECTANGLE)
    tasks = [client.create_task(project, {"video": f"{number}.mp4"}) for number in range(3)]
    lister = ProjectLister(label_studio.url, lambda: label_studio.token)

    def listed(number: int) -> dict[str, Any]:
        lister.forget()
        return next(item for item in lister.projects() if item["id"] == number)

    def predict(task: int, version: str) -> None:
        client.create_prediction(task, {"result": [], "score": 0.5, "model_version": version})

    assert (listed(project)["predicted"], listed(project)["config_problem"]) == (0, None)
    for version in ("one", "two"):
        predict(tasks[0], version)
    assert (listed(project)["predictions"], listed(project)["predicted"]) == (2, 1)
    predict(tasks[1], "one")
    assert (listed(project)["predictions"], listed(project)["predicted"]) == (3, 2)
    problem = listed(wrong)["config_problem"]
    assert "VideoRectangle" in problem["message"]
    assert "<VideoRectangle" in problem["hint"]


def test_counting_does_not_delay_the_list(label_studio: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    client: LabelStudioClient = label_studio.client()
    project = client.create_project("test", CONFIG)
    for number in range(2):
        task = client.create_task(project, {"video": f"{number}.mp4"})
        client.create_prediction(task, {"result": [], "score": 0.5, "model_version": "one"})
    lister = ProjectLister(label_studio.url, lambda: label_studio.token)
    monkeypatch.setattr(listing, "COUNT_S", -1.0)
    assert next(item for item in lister.projects() if item["id"] == project)["predicted"] is None
    monkeypatch.setattr(listing, "COUNT_S", 60.0)
    lister.forget()
    assert next(item for item in lister.projects() if item["id"] == project)["predicted"] == 2


def test_a_token_that_may_not_see_webhooks(slow: _Slow) -> None:
    """The stand-in has none: 404."""
    (project,) = ProjectLister(slow.url, lambda: "token").projects()
    assert project["connected"] is None


def test_two_at_once_see_the_same(slow: _Slow, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two parts of a page are drawn again by one event: neither from what was known before it."""
    monkeypatch.setattr(listing, "MAX_WAIT_S", 120.0)
    lister = ProjectLister(slow.url, lambda: "token")
    slow.let.clear()
    threading.Timer(1.5, slow.let.set).start()  # the first list takes that long, and is no longer fresh
    assert lister.projects()[0]["title"] == "1"
    slow.let.clear()
    found: list[str] = []
    waiting = [threading.Thread(target=lambda: found.append(lister.projects()[0]["title"])) for _ in range(2)]
    for thread in waiting:
        thread.start()
    wait_for(lambda: slow.asked == 2)
    slow.let.set()
    for thread in waiting:
        thread.join(120)
    assert "1" not in found
