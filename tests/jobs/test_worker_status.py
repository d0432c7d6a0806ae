"""What workers hold is seen from outside, and let go on request."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ml_backend.core.errors import QueueUnavailable
from ml_backend.core.model_cache import get_model_cache
from ml_backend.core.settings import Settings
from ml_backend.jobs.queue import JobQueue
from ml_backend.jobs.worker_status import WorkerStatus, differing_settings
from ml_backend.labeling.model_version import version_settings


class Model:
    device = "cpu"
    memory_bytes = {"cpu": 1000}  # noqa: RUF012


def test_status_and_optimize(settings: Callable[..., Settings], redis_url: str) -> None:
    queue = JobQueue(settings(redis_url=redis_url))
    worker, outside = WorkerStatus(queue), WorkerStatus(queue)
    cache = get_model_cache(settings())
    cache.optimize()
    worker.tick("one", 60)
    assert outside.disks(["one", "two"])["one"] > 0
    worker.tick("one", 5)
    with cache.use("a", Model, name="a"):
        worker.tick("one", 5)
        (model,) = outside.status()["one"]["models"]
        assert (model["name"], model["bytes"], model["in_use"]) == ("a", 1000, 1)
        outside.optimize()
        worker.tick("one", 5)
        assert [m["name"] for m in outside.status()["one"]["models"]] == ["a"]  # in use
    worker.tick("one", 5)  # nothing was asked since
    assert [m["in_use"] for m in outside.status()["one"]["models"]] == [0]
    outside.optimize()
    worker.tick("one", 5)
    assert outside.status()["one"]["models"] == []


def test_what_was_asked_before_a_worker_began_is_not_for_it(settings: Callable[..., Settings], redis_url: str) -> None:
    queue = JobQueue(settings(redis_url=redis_url))
    WorkerStatus(queue).optimize()
    cache = get_model_cache(settings())
    with cache.use("b", Model, name="b"):
        pass
    worker = WorkerStatus(queue)
    worker.tick("two", 5)
    assert "b" in [m["name"] for m in WorkerStatus(queue).status()["two"]["models"]]
    cache.optimize()


def test_workers_with_other_settings_are_named(settings: Callable[..., Settings], redis_url: str) -> None:
    queue = JobQueue(settings(redis_url=redis_url))
    mine = version_settings(settings(stride=3))
    WorkerStatus(queue, mine).tick("same", 60)
    WorkerStatus(
        queue, version_settings(settings(stride=1, conf=0.3, yolo_weights="/models/a.pt", device="cuda"))
    ).tick("other", 60)
    WorkerStatus(queue).tick("silent", 60)
    found = WorkerStatus(queue).version_settings(["same", "other", "silent", "gone"])
    assert set(found) == {"same", "other"}
    (told,) = differing_settings(mine, found)
    assert told.startswith("Worker other runs with CONF 0.3 instead of 0.1, STRIDE 1 instead of 3, YOLO_WEIGHTS a.pt")
    assert version_settings(settings(yolo_weights="/here/a.pt")) == version_settings(
        settings(yolo_weights="/there/a.pt")
    )
    (told,) = differing_settings(mine, {"old": {**mine, "pipeline": 1, "gone": 5} | {"views": mine["views"]}})
    assert "GONE 5 instead of None, PIPELINE 1 instead of" in told


def test_redis_away(settings: Callable[..., Settings], tmp_path: object) -> None:
    board = WorkerStatus(JobQueue(settings(redis_url=f"unix://{tmp_path}/none.sock")))
    with pytest.raises(QueueUnavailable):
        board.status()
    with pytest.raises(QueueUnavailable):
        board.version_settings(["three"])
    with pytest.raises(QueueUnavailable):
        board.optimize()
    board.tick("three", 5)  # a worker goes on
