"""A machine behind a proxy: what is on the machine itself is reached without it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner

from ml_backend.cli.dev_stack.__main__ import main
from ml_backend.cli.dev_stack.environment import base_environment, spare_local_addresses
from ml_backend.cli.dev_stack.preflight import StartError
from ml_backend.core.settings import Settings
from ml_backend.label_studio.client import LabelStudioClient


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, "localhost,127.0.0.1"),
        ({"NO_PROXY": "a.example, .b"}, "a.example,.b,localhost,127.0.0.1"),
        ({"no_proxy": "a.example", "NO_PROXY": "c,localhost"}, "a.example,c,localhost,127.0.0.1"),
        ({"no_proxy": "*"}, "*"),
    ],
)
def test_what_was_spared_stays_spared_in_both_spellings(before: dict[str, str], after: str) -> None:
    environment = dict(before)
    spare_local_addresses(environment)
    assert environment == {"no_proxy": after, "NO_PROXY": after}
    spare_local_addresses(environment)
    assert environment == {"no_proxy": after, "NO_PROXY": after}, "once is enough"


def test_processes_of_the_stack_keep_what_was_spared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "intranet.example")
    monkeypatch.delenv("no_proxy", raising=False)
    assert base_environment(tmp_path, isolated=True)["no_proxy"] == "intranet.example,localhost,127.0.0.1"


class Project(BaseHTTPRequestHandler):
    """Label Studio, as far as one project is asked for."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.end_headers()
        self.wfile.write(b'{"id": 1, "title": "there", "label_config": "<View/>"}')

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def server() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Project)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://localhost:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_up_itself_reaches_label_studio_behind_a_proxy(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # refuses everything
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "")

    def refuse(*_: object) -> None:
        raise StartError("Stop here.", "")

    monkeypatch.setattr("ml_backend.cli.dev_stack.__main__.check_start", refuse)
    result = CliRunner().invoke(main, ["--data-dir", str(tmp_path)])
    assert "Stop here." in result.stderr
    assert LabelStudioClient(server, "a" * 40, 5).get_project(1).title == "there"
    assert os.environ["NO_PROXY"]


@pytest.mark.parametrize("setting", sorted(name for name in Settings.model_fields if name.endswith("_model")))
def test_models_of_the_operator_are_found_from_every_folder(
    setting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(setting.upper(), "models")
    assert base_environment(tmp_path, isolated=True)[setting.upper()] == str(tmp_path / "models")
