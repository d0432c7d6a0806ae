"""The list of projects while Label Studio is slow."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from ml_backend.label_studio import listing
from ml_backend.label_studio.listing import ProjectLister
from tests.builders import wait_for


class _Slow(ThreadingHTTPServer):
    """Answers with one project, when it is let; its title tells how often it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked, self.let = 0, threading.Event()
        self.let.set()


class _Handler(BaseHTTPRequestHandler):
    server: _Slow

    def do_GET(self) -> None:
        self.server.asked += 1
        title = str(self.server.asked)
        self.server.let.wait(30)
        content = json.dumps({"next": None, "results": [{"id": 7, "title": title}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Tests' output is not for requests."""


@pytest.fixture
def slow() -> Iterator[_Slow]:
    server = _Slow()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.let.set()
    server.shutdown()
    server.server_close()


def test_one_waits_for_label_studio_and_others_take_what_is_known(slow: _Slow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "FRESH_S", 0.0)
    lister = ProjectLister(f"http://127.0.0.1:{slow.server_port}", lambda: "token")
    assert lister.projects()[0]["title"] == "1"
    slow.let.clear()
    found: list[str] = []
    waiting = threading.Thread(target=lambda: found.append(lister.projects()[0]["title"]))
    waiting.start()
    wait_for(lambda: slow.asked == 2)
    started = time.monotonic()
    assert [lister.projects()[0]["title"] for _ in range(20)] == ["1"] * 20
    assert time.monotonic() - started < 1
    assert (slow.asked, found) == (2, [])
    slow.let.set()
    waiting.join(10)
    assert found == ["2"]


def test_what_is_old_is_not_shown(slow: _Slow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "FRESH_S", 0.0)
    monkeypatch.setattr(listing, "STALE_S", 0.0)
    lister = ProjectLister(f"http://127.0.0.1:{slow.server_port}", lambda: "token")
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
