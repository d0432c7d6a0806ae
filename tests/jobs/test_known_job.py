"""Jobs that somebody else has written into Redis: workers run none of them, and say so."""

from __future__ import annotations

import json
import pickle
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from rq import Callback, Queue
from rq.registry import StartedJobRegistry
from rq.serializers import JSONSerializer, PickleSerializer

from ml_backend.jobs.container import Container
from ml_backend.jobs.job_list import JobList
from ml_backend.jobs.worker import make_worker


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


class Touch:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def work(container: Container) -> list[dict[str, Any]]:
    """Do all jobs as a worker would; return those that failed."""
    make_worker(container.settings).work(burst=True, logging_level="CRITICAL")
    return container.queue.failed_jobs()


def queue(container: Container, serializer: Any = JSONSerializer) -> Queue:
    """As somebody else's program has it."""
    return Queue("predict", connection=container.queue.connection, serializer=serializer)


@pytest.mark.parametrize(
    ("function", "kwargs"),
    [
        ("os.system", {}),
        ("ml_backend.jobs.api_jobs.shutil.rmtree", {}),
        ("ml_backend.jobs.container.get_container", {}),
        ("ml_backend.jobs.predict.subprocess.run", {"shell": True}),
        ("elsewhere.ml_backend.jobs.predict.predict", {}),
    ],
)
def test_foreign_functions(container: Container, tmp_path: Path, function: str, kwargs: Any) -> None:
    made = tmp_path / "made"
    queue(container).enqueue_call(function, args=[f"touch {made}"], kwargs=kwargs, job_id="foreign", retry=None)
    (failed,) = work(container)
    assert not made.exists()
    assert "no job of this program" in failed["error"]
    assert "Request the work again" in failed["error"]


@pytest.mark.parametrize("field", ["data", "meta", "result"])
def test_nothing_is_unpickled(container: Container, tmp_path: Path, field: str) -> None:
    """Wherever RQ would do it: in the queue, as a job that a dead worker has left, and in a list for people."""
    made, redis = tmp_path / "made", container.queue.connection
    for name in ("waits", "runs"):
        queue(container).enqueue_call("os.getpid", job_id=name)
        redis.hset(f"rq:job:{name}", field, pickle.dumps(Touch(made)))
    queue(container).remove("runs")
    redis.hset("rq:job:runs", "status", "started")
    redis.zadd(StartedJobRegistry("predict", connection=redis).key, {"runs:1": 1})
    listed = JobList(container.queue, lambda project: None).all()
    assert {item["id"] for item in listed} == {"waits", "runs"}
    failed = {item["id"]: item["error"] for item in work(container)}
    assert not made.exists()
    assert set(failed) == {"waits", "runs"}
    if field == "data":
        assert "another program or release" in failed["waits"]


def test_pickled_jobs_are_not_lost_silently(container: Container) -> None:
    queue(container, PickleSerializer).enqueue_call("ml_backend.jobs.learn.learn", args=[7], job_id="old")
    (failed,) = work(container)
    assert failed["id"] == "old"
    assert "Request the work again" in failed["error"]
    (listed,) = JobList(container.queue, lambda project: None).all()
    assert listed["state"] == "failed"
    assert listed["error"] == failed["error"]


def test_callbacks_and_webhooks_of_a_record_are_ignored(container: Container, tmp_path: Path) -> None:
    module = tmp_path / "poison.py"
    module.write_text(f"open({str(tmp_path / 'made')!r}, 'w')\ndef call(*args): pass\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        call = Callback("poison.call")
        queue(container).enqueue_call("os.getpid", job_id="calls", on_success=call, on_failure=call, on_stopped=call)
        redis: Redis = container.queue.connection
        redis.hset("rq:job:calls", "webhooks", json.dumps([{"url": "http://127.0.0.1:9/", "job_status": "failed"}]))
        fetched = container.queue.fetch("calls")
        assert fetched
        assert fetched.webhooks == []
        assert [item["id"] for item in work(container)] == ["calls"]
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("function", "args", "expected"),
    [
        ("import_video", [7, "../../..", "x"], "'folder'"),
        ("import_video", [7, "upload-1", "../x.mp4"], "'name'"),
        ("import_video", [7, "upload-1", ".."], "'name'"),
        ("help_detect", [7, 1, 0, "../../secret", 3], "'key'"),
        ("export_project", [7, "../x", "none"], "'format_name'"),
        ("render_video", [7, 1, "../x"], "'what'"),
        ("learn", ["7"], "'project_id'"),
        ("learn", [], "'project_id'"),
        ("learn", [7, 8], "takes 1 arguments, but was queued with 2"),
    ],
)
def test_arguments_are_checked(container: Container, function: str, args: list[Any], expected: str) -> None:
    """Before the job does anything: an import removes the folder that it is given."""
    container.queue.request("control", function, args, "job")
    (failed,) = work(container)
    assert expected in failed["error"]
    assert "Request the work again" in failed["error"]
