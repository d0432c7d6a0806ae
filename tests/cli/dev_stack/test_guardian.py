"""Nothing of a stack survives its supervisor."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from ml_backend.cli.dev_stack.guardian import MARK, marked, start_guardian, sweep
from ml_backend.cli.dev_stack.processes import RedisServer, redis_is_up

#: Has a child in a session of its own and ignores the polite signal, as the worst process would.
STUBBORN = """
import pathlib, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if len(sys.argv) == 2:
    subprocess.Popen([sys.executable, "-c", open(sys.argv[1]).read(), sys.argv[1], "child"], start_new_session=True)
pathlib.Path(sys.argv[1]).with_suffix(f".{len(sys.argv)}").touch()
time.sleep(120)
"""


def start_stubborn(mark: str, folder: Path) -> subprocess.Popen[bytes]:
    code = folder / "stubborn.py"
    code.write_text(STUBBORN)
    process = subprocess.Popen([sys.executable, str(code), str(code)], env=os.environ | {MARK: mark})
    deadline = time.monotonic() + 30
    while not all(code.with_suffix(f".{n}").exists() for n in (2, 3)):
        assert time.monotonic() < deadline, "the processes did not start"
        time.sleep(0.05)
    return process


@pytest.mark.slow
def test_the_guardian_ends_all_when_its_pipe_closes(tmp_path: Path) -> None:
    mark, other = uuid.uuid4().hex, uuid.uuid4().hex
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"], env=os.environ | {MARK: other})
    process = start_stubborn(mark, tmp_path)
    guardian = start_guardian(mark)
    try:
        assert len(marked(mark)) == 2
        assert guardian.stdin is not None
        guardian.stdin.close()  # as the kernel does when the supervisor is killed
        assert guardian.wait(timeout=300) == 0
        assert process.wait(timeout=300) < 0
        assert marked(mark) == []
        assert bystander.poll() is None, "processes of other stacks are left alone"
    finally:
        sweep(mark, grace=0)
        bystander.kill()
        bystander.wait()
        process.wait()


def test_sweep_without_grace_kills_at_once(tmp_path: Path) -> None:
    mark = uuid.uuid4().hex
    process = start_stubborn(mark, tmp_path)
    assert len(marked(mark)) == 2
    sweep(mark, grace=0)
    process.wait(timeout=300)
    assert process.returncode == -signal.SIGKILL
    assert marked(mark) == []


def test_every_process_of_a_stack_can_be_found(tmp_path: Path) -> None:
    """Redis would write its title over the environment that holds the mark."""
    mark = uuid.uuid4().hex
    server = RedisServer(tmp_path / "redis", log_dir=tmp_path, environment=os.environ | {MARK: mark})
    server.start()
    try:
        server.wait_ready(300)
        assert len(marked(mark)) == 1
        sweep(mark)
        assert marked(mark) == []
        assert not redis_is_up(server.url)
    finally:
        server.stop()
