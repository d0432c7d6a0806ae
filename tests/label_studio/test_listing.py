"""The list of projects while Label Studio is slow."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler

import pytest

from ml_backend.cli.dev_stack.preflight import ROOT
from ml_backend.label_studio import listing
from ml_backend.label_studio.listing import ProjectLister
from tests.builders import Outside, outside, send, wait_for


class _Slow:
    """Answers with one project, when it is let; its title tells how often it was asked."""

    def __init__(self, site: Outside) -> None:
        self.url, self.asked, self.let = site.url, 0, threading.Event()
        self.let.set()
        site.special["/api/projects/"] = self._answer

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        self.asked += 1
        title = str(self.asked)
        self.let.wait(30)
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
