"""Server-sent events, and the server under load: real gunicorn, real Redis."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from ml_backend.jobs.control_queue import ControlQueue
from ml_backend.jobs.listing import Jobs
from ml_backend.jobs.queue import JobQueue
from ml_backend.local.preflight import free_port
from ml_backend.projects import Projects
from ml_backend.settings import Settings
from ml_backend.storage import Storage
from ml_backend.training.service import Trainings
from ml_backend.web.live import LISTENERS
from tests.builders import environment, wait_for
from tests.web.control import Room

#: Seconds that the server gives its requests to end.
GRACE_S = 60


def parsed(text: str) -> list[tuple[str, Any]]:
    """Events of a stream: name and data."""
    found = []
    for block in text.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line and not line.startswith(":"))
        if "event" in lines:
            found.append((lines["event"], json.loads(lines["data"])))
    return found


def control(settings: Settings) -> ControlQueue:
    queue, storage = JobQueue(settings), Storage(settings.database)
    trainings = Trainings(Projects(settings, storage), queue, storage)
    return ControlQueue(queue, trainings, Jobs(queue, trainings.cancel))


@pytest.fixture
def served(settings: Callable[..., Settings], redis_url: str, tmp_path: Path) -> Iterator[tuple[str, Settings, Any]]:
    """URL, settings and process of a backend under gunicorn, as the local stack runs it."""
    chosen = settings(redis_url=redis_url, detector="motion")
    port = free_port()
    command = [sys.executable, "-m", "gunicorn", "ml_backend.wsgi:app", "--bind", f"127.0.0.1:{port}"]
    command += ["--threads", "16", "--graceful-timeout", str(GRACE_S), "--no-control-socket"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment(chosen), cwd=tmp_path, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(lambda: _answers(url), what=(tmp_path / "log").read_text())
        yield url, chosen, process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def _answers(url: str) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(f"{url}/health", timeout=60).status_code == 200
    return False


def test_events_tell_all_first_and_then_what_changes(served: tuple[str, Settings, Any]) -> None:
    url, settings, _ = served
    asking = control(settings)
    asking.init_models(7)
    asking.init_models(8)
    text = ""
    with httpx.stream("GET", f"{url}/api/events?project=7", timeout=60) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        for chunk in stream.iter_text():
            text += chunk
            names = [name for name, _ in parsed(text)]
            if names.count("jobs") == 1 and "version" in names:
                break
        found = dict(parsed(text))
        assert [job["id"] for job in found["jobs"]["jobs"]] == ["init-7"]
        assert found["jobs"]["all"] is True
        assert found["version"] == {"project": 7, "current": "base", "training": None}
        assert found["status"]["queues"]["control"]["queued"] == 2
    text, is_cancelled = "", False
    with httpx.stream("GET", f"{url}/api/events?project=7", timeout=60) as stream:
        for chunk in stream.iter_text():
            text += chunk
            told = [data for name, data in parsed(text) if name == "jobs"]
            if told and not is_cancelled:
                httpx.delete(f"{url}/api/jobs/init-7", timeout=60).raise_for_status()
                is_cancelled = True
            if len(told) == 2:
                break
    assert [job["state"] for job in told[1]["jobs"]] == ["cancelled"]
    assert told[1]["all"] is False


def test_listeners_are_bounded_and_leave_room_for_others(served: tuple[str, Settings, Any]) -> None:
    url, _, _ = served
    with contextlib.ExitStack() as stack:
        for _ in range(LISTENERS):
            stream = stack.enter_context(httpx.stream("GET", f"{url}/api/events", timeout=60))
            next(stream.iter_bytes())
        refused = httpx.get(f"{url}/api/events", timeout=60)
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "5")
        assert httpx.get(f"{url}/health", timeout=60).status_code == 200
    # Those that have gone are noticed at the latest with the next sign of life.
    wait_for(lambda: _listens(url))


def _listens(url: str) -> bool:
    with httpx.stream("GET", f"{url}/api/events", timeout=60) as stream:
        return stream.status_code == 200


def test_streams_end_when_the_server_does(served: tuple[str, Settings, Any]) -> None:
    url, _, process = served
    with httpx.stream("GET", f"{url}/api/events", timeout=60) as stream:
        chunks = stream.iter_text()
        text = next(chunks)
        started = time.monotonic()
        process.send_signal(signal.SIGTERM)
        text += "".join(chunks)
        assert parsed(text)[-1][0] == "bye"
        assert time.monotonic() - started < GRACE_S
    assert process.wait(timeout=120) == 0


def test_a_listener_while_redis_is_away(make_room: Callable[..., Room], tmp_path: Path) -> None:
    room = make_room(redis_url=f"unix://{tmp_path}/none.sock")
    room.get("/api/events", 503)


def test_places_are_given_back(room: Room) -> None:
    for _ in range(3 * LISTENERS):
        answer = room.client.get("/api/events")
        assert answer.status_code == 200
        next(iter(answer.response))
        answer.close()


def test_fifty_at_once_are_answered(served: tuple[str, Settings, Any]) -> None:
    """None fails; how fast it is depends on the machine and is measured elsewhere."""
    url, settings, _ = served
    control(settings).init_models(7)

    def ask(number: int) -> int:
        with httpx.Client(base_url=url, timeout=120) as client:
            paths = ("/api/status", "/api/jobs", "/api/status?project=7")
            return sum(client.get(paths[(number + n) % 3]).status_code != 200 for n in range(6))

    with ThreadPoolExecutor(50) as pool:
        assert sum(pool.map(ask, range(50))) == 0
