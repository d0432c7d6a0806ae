"""The outcome of a training, as a configured address gets it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from ml_backend.core.settings import Settings
from ml_backend.db.storage import Storage
from ml_backend.jobs.announce import announce
from ml_backend.training.registry import Registry, Version


class Chat(HTTPServer):
    """Keeps what it gets."""

    def __init__(self, status: int) -> None:
        super().__init__(("127.0.0.1", 0), Receiver)
        self.status, self.received = status, list[Any]()


class Receiver(BaseHTTPRequestHandler):
    server: Chat

    def do_POST(self) -> None:
        self.server.received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture(params=[200, 500])
def chat(request: pytest.FixtureRequest) -> Iterator[Chat]:
    with Chat(request.param) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def refused(settings: Callable[..., Settings]) -> Version:
    registry = Registry(Storage(settings().database))
    version = registry.begin(7, "me", "test", None)
    registry.finish(version, "refused", "Worse than the present model.", metrics={"candidate": {"map50": 0.5}})
    found = registry.get(version.id)
    assert found is not None
    return found


def test_an_outcome_is_told(chat: Chat, refused: Version, settings: Callable[..., Settings]) -> None:
    announce(settings(notify_url=f"http://127.0.0.1:{chat.server_port}/hook"), refused)
    (told,) = chat.received
    assert told["text"] == "v1 of project 7 was refused. Worse than the present model."
    assert (told["project"], told["version"], told["state"]) == (7, "v1", "refused")
    assert told["metrics"] == {"candidate": {"map50": 0.5}}


@pytest.mark.parametrize("url", ["", "http://127.0.0.1:1/", "chat", "http://[", "ftp://127.0.0.1/"])
def test_an_address_that_cannot_be_told_harms_nothing(
    url: str, refused: Version, settings: Callable[..., Settings], caplog: pytest.LogCaptureFixture
) -> None:
    announce(settings(notify_url=url), refused)
    assert ("was not announced" in caplog.text) is bool(url)
