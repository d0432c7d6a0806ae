"""The server under load: real gunicorn, real Redis."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from ml_backend.cli.dev_stack.preflight import free_port
from ml_backend.core.settings import Settings
from ml_backend.jobs.queue import JobQueue
from tests.builders import environment, wait_for


@pytest.fixture
def served(settings: Callable[..., Settings], redis_url: str, tmp_path: Path) -> Iterator[tuple[str, Settings]]:
    """URL and settings of a backend under gunicorn, as the local stack runs it."""
    chosen = settings(redis_url=redis_url, detector="motion")
    port = free_port()
    command = [sys.executable, "-m", "gunicorn", "--config", "python:ml_backend.server.gunicorn_config"]
    command += ["--bind", f"127.0.0.1:{port}"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment(chosen), cwd=tmp_path, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(lambda: _answers(url), what=(tmp_path / "log").read_text())
        yield url, chosen
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def _answers(url: str) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(f"{url}/health", timeout=300).status_code == 200
    return False


def test_fifty_at_once_are_answered(served: tuple[str, Settings]) -> None:
    """None fails; how fast it is depends on the machine and is measured elsewhere."""
    url, settings = served
    JobQueue(settings).request("control", "init_models", [7], "init-7", "api_jobs")

    def ask(number: int) -> int:
        with httpx.Client(base_url=url, timeout=300) as client:
            paths = ("/api/status", "/ui/live?project=7", "/api/status?project=7")
            return sum(client.get(paths[(number + n) % 3]).status_code != 200 for n in range(6))

    with ThreadPoolExecutor(50) as pool:
        assert sum(pool.map(ask, range(50))) == 0
