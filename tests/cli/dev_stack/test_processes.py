"""The processes of the local stack, for real."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from redis import Redis

from ml_backend.cli.dev_stack.preflight import StartError
from ml_backend.cli.dev_stack.processes import (
    LabelStudioServer,
    ManagedProcess,
    RedisServer,
    redis_is_up,
    redis_version,
)


class Script(ManagedProcess):
    """A process that runs a line of Python."""

    def __init__(self, code: str, folder: Path) -> None:
        super().__init__("Script", log_dir=folder, environment=os.environ, cwd=folder)
        self.code = code

    def command(self) -> Sequence[str]:
        return [sys.executable, "-c", self.code]

    def ready(self) -> bool:
        return (self.cwd / "ready").exists()


def test_a_failed_start_shows_the_end_of_the_log(tmp_path: Path) -> None:
    script = Script("import sys; print('the reason'); sys.exit(3)", tmp_path)
    script.start()
    with pytest.raises(StartError, match=r"(?s)exited while starting \(exit status 3\).*the reason"):
        script.wait_ready(300)


def test_the_tail_is_of_the_last_start_only(tmp_path: Path) -> None:
    for text in ("first", "second"):
        script = Script(f"print('{text}')", tmp_path)
        script.start()
        with pytest.raises(StartError):
            script.wait_ready(300)
    assert script.tail() == "second"
    assert script.log_path.read_text() == "first\nsecond\n"


@pytest.mark.slow
def test_never_ready_is_an_error_with_the_log(tmp_path: Path) -> None:
    script = Script("import time; print('waiting', flush=True); time.sleep(60)", tmp_path)
    script.start()
    try:
        with pytest.raises(StartError, match="was not ready"):
            script.wait_ready(1)
    finally:
        script.stop()
    assert not script.alive


def test_a_process_that_ignores_the_signal_is_killed(tmp_path: Path) -> None:
    code = (
        "import pathlib, signal, time; signal.signal(15, signal.SIG_IGN); pathlib.Path('ready').touch(); time.sleep(60)"
    )
    script = Script(code, tmp_path)
    script.start()
    script.wait_ready(300)
    pid = script.pid
    script.stop(grace=0.2)
    assert pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_missing_program_is_a_clear_error(tmp_path: Path) -> None:
    class Missing(Script):
        def command(self) -> Sequence[str]:
            return ["/no/such/program"]

    with pytest.raises(StartError, match="could not be started"):
        Missing("", tmp_path).start()


def test_the_password_is_not_shown_to_other_users(tmp_path: Path) -> None:
    """Everybody on a machine can list its processes with their arguments."""
    server = LabelStudioServer(
        tmp_path, port=1, username="me@example.org", password="a secret", log_dir=tmp_path, environment={}
    )
    assert not any("a secret" in word for word in server.command())
    assert server.environment["LABEL_STUDIO_PASSWORD"] == "a secret"


def test_redis_keeps_what_it_was_given_over_a_kill(tmp_path: Path) -> None:
    server = RedisServer(tmp_path / "redis", log_dir=tmp_path, environment=os.environ)
    server.start()
    server.wait_ready(300)
    with Redis.from_url(server.url) as connection:
        connection.set("kept", "yes")
        connection.config_set("appendfsync", "always")
        connection.set("also", "kept")
    server.kill()
    assert not redis_is_up(server.url)
    server.start()  # the socket's file is still there
    try:
        server.wait_ready(300)
        with Redis.from_url(server.url) as connection:
            assert connection.mget("kept", "also") == [b"yes", b"kept"]
            assert connection.config_get("port") == {"port": "0"}
    finally:
        server.stop()


def test_redis_works_in_a_folder_too_deep_for_a_socket(tmp_path: Path) -> None:
    folder = tmp_path / ("deep" * 20) / ("deeper" * 15)
    server = RedisServer(folder, log_dir=tmp_path, environment=os.environ)
    assert not server.socket.is_relative_to(folder)
    assert server.socket.parent.stat().st_mode & 0o077 == 0, "only the owner may reach the socket"
    server.start()
    try:
        server.wait_ready(300)
        assert (folder / "appendonly.aof").exists() or (folder / "appendonlydir").exists()
    finally:
        server.stop()
    assert not server.socket.parent.exists()


def test_version_of_a_program_that_is_no_redis(tmp_path: Path) -> None:
    assert redis_version("/bin/true") == (0, 0)
    assert redis_version(str(tmp_path / "missing")) == (0, 0)
