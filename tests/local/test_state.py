"""Secrets and the whereabouts of a running stack."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ml_backend.local.discover import settings_in_force
from ml_backend.local.state import StackState, login_password, running_stack, state_path, write_private


def make_state(pid: int) -> StackState:
    return StackState(pid, "http://localhost:1", "http://localhost:2", "unix:///r", environment={"A": "b"})


def test_password_is_made_once_and_private(tmp_path: Path) -> None:
    password = login_password(tmp_path / "data")
    assert len(password) >= 12
    assert login_password(tmp_path / "data") == password
    assert login_password(tmp_path / "other") != password
    (file,) = (tmp_path / "data").iterdir()
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_private_file_is_private_also_where_an_open_one_was(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("old")
    path.chmod(0o644)
    write_private(path, "new")
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("new", 0o600)
    assert list(tmp_path.iterdir()) == [path]


def test_a_running_stack_is_found(tmp_path: Path) -> None:
    assert running_stack(tmp_path) is None
    make_state(os.getpid()).save(tmp_path)
    assert running_stack(tmp_path) == make_state(os.getpid())


def test_a_stack_that_was_killed_is_not(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    make_state(process.pid).save(tmp_path)
    assert running_stack(tmp_path) is None


def test_a_damaged_state_is_no_running_stack(tmp_path: Path) -> None:
    for text in ("", "{", "[]", '{"pid": 1, "unknown": 2}'):
        state_path(tmp_path).write_text(text)
        assert running_stack(tmp_path) is None


def test_commands_find_a_running_stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    assert settings_in_force()[0].redis_url == "redis://localhost:6379/0"
    state = make_state(os.getpid())
    state.environment = {"REDIS_URL": "unix:///stack", "LABEL_STUDIO_URL": "http://localhost:1"}
    state.save(tmp_path)
    monkeypatch.setenv("LABEL_STUDIO_URL", "http://chosen")
    settings, backend_url = settings_in_force()
    assert settings.redis_url == "unix:///stack"
    assert settings.label_studio_url == "http://chosen", "what the environment says wins"
    assert backend_url == "http://localhost:2"
