"""The demo project on a stack that asks for Basic auth, and what is kept of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from rq.job import Job
from rq.serializers import JSONSerializer

from ml_backend.cli.dev_stack.demo import Demo, _is_of, connect, find_demo, make_demo, wait_for_prediction, was_made
from ml_backend.cli.dev_stack.preflight import StartError
from ml_backend.cli.dev_stack.stack import Stack
from ml_backend.cli.dev_stack.verify import check_prediction
from ml_backend.core.settings import Settings
from ml_backend.jobs.queue import JobQueue
from ml_backend.video.sample import SampleTruth, make_sample

pytestmark = pytest.mark.stack


@pytest.fixture(scope="module")
def stack(make_stack: Callable[..., Stack]) -> Stack:
    return make_stack(detector="motion", basic_auth_user="someone", basic_auth_pass="p:ss word")


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


def test_jobs_of_other_tasks_may_fail(stack: Stack, demo: Demo) -> None:
    jobs = JobQueue(Settings(_env_file=None, redis_url=stack.redis_url))
    for job_id, args, task in (
        (f"prepare-{demo.task_id}", [demo.project_id, demo.task_id], True),
        ("prepare-987", [1, 987], False),
        ("predict-mine", ["mine", demo.project_id, demo.task_id], True),
        ("predict-other", ["other", 1, 987], False),
        ("learn-1-0", [demo.task_id], False),
    ):
        Job.create("none", args, id=job_id, connection=jobs.connection, serializer=JSONSerializer).save()
        assert _is_of(jobs, job_id, demo.task_id) is task, job_id
        jobs.connection.delete(Job.key_for(job_id))


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
