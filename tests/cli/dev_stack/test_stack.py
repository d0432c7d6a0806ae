"""The whole local stack as one command, without the demo."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from ml_backend.cli.dev_stack.preflight import ROOT, free_port
from ml_backend.cli.dev_stack.processes import http_is_up
from ml_backend.cli.dev_stack.state import StackState, read_text, running_stack, token_path, write_private
from ml_backend.core.settings import QUEUES, Settings
from ml_backend.jobs.queue import JobQueue
from ml_backend.label_studio.client import LabelStudioClient, create_token
from tests.conftest import LabelStudio

pytestmark = pytest.mark.stack

START_TIMEOUT = 300


class Command:
    """``python -m ml_backend.cli.dev_stack`` in the background."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.output = data_dir.with_suffix(".out")
        self.output.touch()
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> StackState:
        ports = ["--port", str(free_port()), "--label-studio-port", str(free_port())]
        command = [
            sys.executable,
            "-m",
            "ml_backend.cli.dev_stack",
            "--no-demo",
            "--data-dir",
            str(self.data_dir),
            *ports,
        ]
        environment = os.environ | {"DETECTOR": "motion"}
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)
        wait_until(lambda: running_stack(self.data_dir) is not None or self.ended, START_TIMEOUT)
        state = running_stack(self.data_dir)
        assert state, self.output.read_text()
        return state

    @property
    def ended(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def end(self, number: int) -> int:
        assert self.process
        self.process.send_signal(number)
        return self.process.wait(300)


def wait_until(condition: Callable[[], object], timeout: float = 60) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def processes_in(folder: Path) -> list[psutil.Process]:
    """Processes that are told about the folder: everything that the stack runs."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and any(str(folder) in value for value in process.environ().values()):
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return [process for process in found if process.status() != psutil.STATUS_ZOMBIE]


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    command = Command(tmp_path_factory.mktemp("up") / "data")
    try:
        yield command
    finally:
        if command.process and not command.ended:
            command.end(signal.SIGTERM)
        for process in processes_in(command.data_dir):
            process.kill()


@pytest.mark.slow
def test_a_clean_stop_keeps_state_and_leaves_no_process(command: Command) -> None:
    state = command.start()
    token = read_text(token_path(command.data_dir))
    assert token_path(command.data_dir).stat().st_mode & 0o077 == 0
    assert http_is_up(f"{state.backend_url}/health")
    assert len(processes_in(command.data_dir)) >= 4

    assert command.end(signal.SIGINT) == 0
    assert processes_in(command.data_dir) == []
    assert running_stack(command.data_dir) is None
    assert not http_is_up(f"{state.label_studio_url}/health")

    state = command.start()
    assert read_text(token_path(command.data_dir)) == token
    assert LabelStudioClient(state.label_studio_url, token).whoami()


@pytest.mark.slow
def test_a_worker_that_is_killed_comes_back(command: Command) -> None:
    state = running_stack(command.data_dir) or command.start()
    queue = JobQueue(Settings(_env_file=None, redis_url=state.environment["REDIS_URL"]))
    before = queue.workers()
    assert sorted(len(worker.queues) for worker in before) == [1, 1, len(QUEUES) - 2], (
        "one for trainings, one for drawn boxes"
    )
    worker = max(before, key=lambda worker: len(worker.queues))
    os.kill(worker.pid, signal.SIGKILL)
    wait_until(lambda: {other.pid for other in queue.workers()} - {other.pid for other in before})
    assert "worker exited unexpectedly" in command.output.read_text()


@pytest.mark.slow
def test_a_second_stack_on_the_same_data_is_refused(command: Command) -> None:
    state = running_stack(command.data_dir) or command.start()
    arguments = [
        "--data-dir",
        str(command.data_dir),
        "--port",
        str(free_port()),
        "--label-studio-port",
        str(free_port()),
    ]
    result = subprocess.run(
        [sys.executable, "-m", "ml_backend.cli.dev_stack", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert f"The stack is already running (process {state.pid}): {state.label_studio_url}" in result.stderr


@pytest.mark.slow
def test_a_killed_supervisor_leaves_no_process(command: Command) -> None:
    if not running_stack(command.data_dir):
        command.start()
    assert command.end(signal.SIGKILL) == -signal.SIGKILL
    wait_until(lambda: not processes_in(command.data_dir))
    assert running_stack(command.data_dir) is None


@pytest.mark.slow
def test_a_token_that_is_no_longer_valid_is_replaced(command: Command) -> None:
    if command.process and not command.ended:
        command.end(signal.SIGTERM)
    write_private(token_path(command.data_dir), "no longer valid\n")
    state = command.start()
    token = read_text(token_path(command.data_dir))
    assert token != "no longer valid"
    assert LabelStudioClient(state.label_studio_url, token).whoami()
    assert "creating a new one" in command.output.read_text()


def test_wrong_password(label_studio: LabelStudio) -> None:
    from ml_backend.core.errors import LabelStudioError

    with pytest.raises(LabelStudioError, match="refuses the password") as caught:
        create_token(label_studio.url, label_studio.username, "wrong")
    assert "Account & Settings" in caught.value.hint
