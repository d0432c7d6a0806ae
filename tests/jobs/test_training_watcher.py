"""A training on a CPU pauses while other workers of its machine do what people wait for."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from rq import SimpleWorker
from rq.serializers import JSONSerializer

from ml_backend.core.settings import Settings
from ml_backend.jobs import train
from ml_backend.jobs.container import Container
from tests.builders import wait_for


@pytest.mark.parametrize(("queue", "pauses"), [("prepare", True), ("train", False)])
def test_it_pauses_for_other_jobs_but_not_for_trainings(
    queue: str, pauses: bool, settings: Callable[..., Settings], redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "PAUSED_S", 60.0)  # all of each minute
    chosen = settings(redis_url=redis_url, device="cpu")
    container = Container(chosen)
    jobs = container.queue
    worker = SimpleWorker([jobs.queues[queue]], connection=jobs.connection, serializer=JSONSerializer)
    if queue == "train":
        job_id = container.training_queue.request(8, "test").job_id
    else:
        job_id = jobs.request_prepare(8, 1).job_id
    job = jobs.fetch(job_id)
    assert job is not None
    worker.register_birth()
    execution = worker.prepare_execution(job)
    with container.training_queue.lock(7) as lock, train.TrainingWatcher(container, 7, lock) as watcher:
        if not pauses:
            with pytest.raises(AssertionError):
                wait_for(lambda: watcher.paused, timeout=3)
            return
        wait_for(lambda: watcher.paused)
        with jobs.connection.pipeline() as pipeline:
            worker.cleanup_execution(job, pipeline=pipeline, execution=execution)
            pipeline.execute()
        wait_for(lambda: not watcher.paused)
