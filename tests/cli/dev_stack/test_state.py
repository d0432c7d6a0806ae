"""Secrets and the whereabouts of a running stack."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ml_backend.cli.dev_stack import discover
from ml_backend.cli.dev_stack.discover import settings_in_force
from ml_backend.cli.dev_stack.preflight import ROOT
from ml_backend.cli.dev_stack.state import (
    StackState,
    announce,
    announced,
    announcements,
    keep_secret_key,
    lock_path,
    login_password,
    running_stack,
    state_path,
    write_private,
)


def make_state(pid: int) -> StackState:
    return StackState(pid, "http://localhost:1", "http://localhost:2", {"A": "b"})


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


#: What Label Studio does at its start; prints the key that it then has.
LABEL_STUDIO_KEY = """
import sys
from label_studio.core.utils.secret_key import generate_secret_key_if_missing
print(generate_secret_key_if_missing(sys.argv[1]))
"""


def key_of_label_studio(folder: Path) -> str:
    python = ROOT / ".venv-label-studio" / "bin" / "python"
    command = [str(python), "-c", LABEL_STUDIO_KEY, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1]


@pytest.mark.parametrize(
    "before", [None, "A=b\n", "\nSECRET_KEY=$ecret\n", "\nSECRET_KEY=$ecret\n\nSECRET_KEY=the-second\n"]
)
def test_label_studio_has_the_same_secret_key_after_each_start(tmp_path: Path, before: str | None) -> None:
    path = tmp_path / ".env"
    if before is not None:
        path.write_text(before)
    keep_secret_key(tmp_path)
    text = path.read_text()
    assert ("A=b" in text) == ("A=b" in (before or ""))
    assert path.stat().st_mode & 0o777 == 0o600
    key = key_of_label_studio(tmp_path)
    assert key
    assert f"SECRET_KEY={key}\n" in text
    keep_secret_key(tmp_path)
    assert path.read_text() == text
    assert key_of_label_studio(tmp_path) == key


def test_a_key_that_label_studio_has_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("\nSECRET_KEY=#a$b\n")
    keep_secret_key(tmp_path)
    assert (tmp_path / ".env").read_text() == "\nSECRET_KEY=#a$b\n"
    assert key_of_label_studio(tmp_path) == "#a$b"


def test_a_running_stack_is_found(tmp_path: Path) -> None:
    assert running_stack(tmp_path) is None
    make_state(os.getpid()).save(tmp_path)
    assert running_stack(tmp_path) == make_state(os.getpid())


def test_a_stack_that_was_killed_is_not(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    make_state(process.pid).save(tmp_path)
    assert running_stack(tmp_path) is None


def test_a_stack_whose_process_id_is_another_process_now_does_not_run(tmp_path: Path) -> None:
    """After a power cut; the lock went with the stack."""
    make_state(os.getpid()).save(tmp_path)
    with lock_path(tmp_path).open("a") as held:
        assert running_stack(tmp_path) is None
        fcntl.flock(held, fcntl.LOCK_SH)
        assert running_stack(tmp_path) is None, "another command that looks is no stack"
        fcntl.flock(held, fcntl.LOCK_EX)
        assert running_stack(tmp_path) == make_state(os.getpid())
    assert running_stack(tmp_path) is None


def test_a_damaged_state_is_no_running_stack(tmp_path: Path) -> None:
    for text in ("", "{", "[]", '{"pid": 1, "unknown": 2}'):
        state_path(tmp_path).write_text(text)
        assert running_stack(tmp_path) is None


def test_commands_find_a_running_stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    assert settings_in_force().redis_url == "redis://localhost:6379/0"
    state = make_state(os.getpid())
    state.environment = {"REDIS_URL": "unix:///stack", "LABEL_STUDIO_URL": "http://localhost:1"}
    state.save(tmp_path)
    monkeypatch.setenv("LABEL_STUDIO_URL", "http://chosen")
    settings = settings_in_force()
    assert settings.redis_url == "unix:///stack"
    assert settings.label_studio_url == "http://chosen", "what the environment says wins"
    assert settings.backend_url == "http://localhost:2"
    monkeypatch.setenv("BACKEND_URL", "http://backend.example:9090")
    assert settings_in_force().backend_url == "http://backend.example:9090"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project's folder for :func:`settings_in_force`, which is called from elsewhere."""
    folder = tmp_path / "project"
    (tmp_path / "videos").mkdir()
    monkeypatch.chdir(tmp_path / "videos")
    monkeypatch.setattr(discover, "ROOT", folder)
    monkeypatch.delenv("DATA_DIR")
    return folder


def run_on(data_dir: Path, redis_url: str) -> None:
    """Leave the state of a running stack."""
    state = make_state(os.getpid())
    state.environment = {"REDIS_URL": redis_url, "DATA_DIR": str(data_dir)}
    state.save(data_dir)


def test_commands_find_the_stack_from_any_folder(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_on(root / "data", "unix:///in-root")
    settings = settings_in_force()
    assert (settings.redis_url, settings.data_dir) == ("unix:///in-root", root / "data")
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "chosen"))
    assert settings_in_force().redis_url == "redis://localhost:6379/0", "a folder that was chosen counts alone"
    assert capsys.readouterr() == ("", "")


def test_commands_find_a_stack_with_another_data_folder(root: Path, tmp_path: Path) -> None:
    for name in ("big", "bigger"):
        run_on(tmp_path / name, f"unix:///{name}")
        announce(root, tmp_path / name)
    assert announcements(root).stat().st_mode & 0o777 == 0o600
    assert settings_in_force().redis_url == "unix:///bigger", "the newest"
    assert settings_in_force().data_dir == tmp_path / "bigger"

    state_path(tmp_path / "bigger").unlink()  # it was killed
    assert settings_in_force().redis_url == "unix:///big"
    announce(root, tmp_path / "big")
    assert announced(root) == [tmp_path / "big"], "what no longer runs is forgotten"
    state_path(tmp_path / "big").unlink()
    announce(root)
    assert announced(root) == []
    assert not (root / "data").exists()


def test_the_usual_data_folder_is_not_announced(root: Path) -> None:
    run_on(root / "data", "unix:///in-root")
    announce(root, root / "data")
    assert not announcements(root).exists()


def test_without_a_stack_the_folder_that_is_used_is_named(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings_in_force()
    out, err = capsys.readouterr()
    assert out == "", "stdout is for programs"
    assert len(err.splitlines()) == 1
    assert str(tmp_path / "videos" / "data") in err
    assert list((tmp_path / "videos").iterdir()) == []
    monkeypatch.setenv("LABEL_STUDIO_URL", "http://elsewhere")
    settings_in_force()
    assert capsys.readouterr() == ("", "")


def test_commands_reach_local_servers_without_the_proxy(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "intranet.example")
    monkeypatch.delenv("no_proxy", raising=False)
    settings_in_force()
    assert os.environ["no_proxy"] == os.environ["NO_PROXY"] == "intranet.example,localhost,127.0.0.1"
