"""The demo project on a stack that asks for Basic auth, and what is kept of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest
from rq.job import Job
from rq.serializers import JSONSerializer

from ml_backend.cli.dev_stack.demo import Demo, connect, find_demo, make_demo, wait_for_prediction, was_made
from ml_backend.cli.dev_stack.preflight import StartError
from ml_backend.cli.dev_stack.stack import Stack
from ml_backend.cli.dev_stack.verify import check_prediction
from ml_backend.core.settings import Settings
from ml_backend.jobs.queue import JobQueue
from ml_backend.video.sample import SampleTruth, make_sample
from tests.builders import CONFIG

pytestmark = pytest.mark.stack


@pytest.fixture(scope="module")
def stack(make_stack: Callable[..., Stack]) -> Iterator[Stack]:
    stack = make_stack(detector="motion", mode="yolo", basic_auth_user="someone", basic_auth_pass="p:ss word")
    yield stack
    stack.stop()  # nobody else uses it, and its processes would go on looking for work


@pytest.fixture(scope="module")
def truth(stack: Stack) -> SampleTruth:
    return make_sample(stack.data_dir / "sample.mp4", seconds=6, size=(640, 360))


@pytest.fixture(scope="module")
def demo(stack: Stack, truth: SampleTruth) -> Demo:
    assert not was_made(stack)
    assert find_demo(stack) is None
    return make_demo(stack, stack.data_dir / "sample.mp4")


def test_the_sample_gets_tracks_although_the_backend_asks_for_a_password(
    stack: Stack, demo: Demo, truth: SampleTruth
) -> None:
    """Label Studio's webhook brings no credentials of its own, so this needs the header that connecting adds."""
    wait_for_prediction(stack, demo, lambda: None)
    report = check_prediction(stack.client().get_full_task(demo.task_id, demo.project_id), truth)
    assert not report.problems, report
    assert report.model_version.startswith("motion")


def test_it_is_found_again(stack: Stack, demo: Demo) -> None:
    assert find_demo(stack) == demo
    assert demo.url(stack.label_studio.url).endswith(f"/projects/{demo.project_id}/data?task={demo.task_id}")


@pytest.mark.parametrize("own", ["prepare", "predict", "predict of many"])
def test_jobs_of_other_tasks_may_fail(stack: Stack, own: str) -> None:
    client, jobs = stack.client(), JobQueue(Settings(_env_file=None, redis_url=stack.redis_url))
    project = client.create_project("not connected", CONFIG)
    task = client.create_task(project, {"video": "/data/upload/1/a.mp4"})
    failed = jobs.queues["predict"].failed_job_registry

    def fail(job_id: str, args: list[Any], reason: str) -> None:
        job = Job.create("none", args, id=job_id, connection=jobs.connection, serializer=JSONSerializer)
        job.meta["error"] = reason
        job.save()
        failed.add(job, ttl=1000)

    def fail_another() -> None:
        fail("prepare-987", [1, 987], "another task's")
        fail("predict-other", ["other", 1, 987], "another task's")
        fail("learn-1-0", [task], "another task's")

    def fail_own() -> None:
        if own == "prepare":
            fail(f"prepare-{task}", [project, task], "its own")
        elif own == "predict":
            fail("predict-mine", ["mine", project, task], "its own")
        else:
            jobs.add_targets("shared", [987, task])
            fail("predict-shared", ["shared", 1, 987], "its own")

    ticks = count()

    def tick() -> None:
        number = next(ticks)
        if number == 0:
            fail_another()
        elif number == 10:  # two looks later
            fail_own()

    try:
        with pytest.raises(StartError, match="The sample video's job has failed: its own"):
            wait_for_prediction(stack, Demo(project, task), tick)
    finally:
        for job_id in failed.get_job_ids(cleanup=False):
            failed.remove(job_id, delete_job=True)


def test_connecting_again_changes_nothing(stack: Stack, demo: Demo) -> None:
    connect(stack, stack.client(), demo.project_id)
    with httpx.Client(base_url=stack.label_studio.url, headers=stack.client().auth_headers()) as session:
        for path in ("/api/ml", "/api/webhooks/"):
            assert len(session.get(path, params={"project": demo.project_id}).json()) == 1


def test_a_demo_that_was_deleted_stays_deleted(stack: Stack, demo: Demo, tmp_path: Path) -> None:
    headers = stack.client().auth_headers()
    httpx.delete(f"{stack.label_studio.url}/api/projects/{demo.project_id}/", headers=headers).raise_for_status()
    assert find_demo(stack) is None
    assert was_made(stack)


def test_a_sample_that_cannot_be_used_is_said_at_once(stack: Stack, tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video at all" * 1000)
    with pytest.raises(StartError, match="The sample video's job has failed: ") as caught:
        wait_for_prediction(stack, make_demo(stack, broken), lambda: None)
    assert "worker.log" in caught.value.hint
