"""The demo project: a sample video, pre-annotated by the backend."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ml_backend.cli.dev_stack.preflight import ROOT, StartError
from ml_backend.cli.dev_stack.stack import Stack
from ml_backend.cli.dev_stack.state import write_private
from ml_backend.core.errors import LabelStudioError
from ml_backend.core.settings import Settings
from ml_backend.jobs.queue import JobQueue
from ml_backend.label_studio.client import LabelStudioClient, NotFound

TITLE = "Video demo"
#: Seconds. Eight seconds of 720p take well under a minute on a small machine, plus the first import of the models.
PREDICTION_TIMEOUT = 300.0


@dataclass(frozen=True, slots=True)
class Demo:
    """Ids of the demo in Label Studio."""

    project_id: int
    task_id: int

    def url(self, label_studio_url: str) -> str:
        """Return the URL of the task's editor."""
        return f"{label_studio_url}/projects/{self.project_id}/data?task={self.task_id}"


def _demo_file(stack: Stack) -> Path:
    # Beside Label Studio's database, so that both are deleted together.
    return stack.label_studio.folder / "demo.json"


def find_demo(stack: Stack) -> Demo | None:
    """Return the demo of an earlier start, or ``None`` if there is none or it was deleted."""
    path = _demo_file(stack)
    if not path.is_file():
        return None
    demo = Demo(**json.loads(path.read_text(encoding="utf-8")))
    try:
        stack.client().get_task(demo.task_id)
    except NotFound:
        return None
    return demo


def was_made(stack: Stack) -> bool:
    """Return whether a demo was ever created here: a deleted one is not created again."""
    return _demo_file(stack).is_file()


def make_demo(stack: Stack, video: Path) -> Demo:
    """Create the project, its connection and the task, which the backend predicts upon the webhook.

    Args:
        stack: a running stack.
        video: sample video to upload.
    """
    client = stack.client()
    config = (ROOT / "label_config.xml").read_text(encoding="utf-8")
    project_id = client.create_project(TITLE, config)
    connect(stack, client, project_id)
    upload = client.upload_file(project_id, video)
    demo = Demo(project_id, client.create_task(project_id, {"video": upload}))
    write_private(_demo_file(stack), json.dumps(asdict(demo)) + "\n")
    return demo


def connect(stack: Stack, client: LabelStudioClient, project_id: int) -> None:
    """Connect the backend to a project, or repair the connection (ports may have changed).

    Raises:
        StartError: Label Studio refuses the connection; the hint is the end of the backend's log.
    """
    try:
        client.connect_backend(project_id, stack.backend.url, stack.credentials(project_id))
    except LabelStudioError as error:
        raise StartError(error.message, f"The end of {stack.backend.log_path}:\n{stack.backend.tail(5)}") from error


def wait_for_prediction(stack: Stack, demo: Demo, tick: Callable[[], None]) -> None:
    """Wait until the task has a prediction.

    Raises:
        StartError: its job failed or timed out; the hint is the end of the worker's log.
    """
    client = stack.client()
    jobs = JobQueue(Settings(_env_file=None, redis_url=stack.redis_url))
    earlier = {job["id"] for job in jobs.failed_jobs()} - {f"prepare-{demo.task_id}"}

    def has_prediction() -> bool:
        for job in jobs.failed_jobs():
            if job["id"] not in earlier and _is_of(jobs, job["id"], demo.task_id):
                raise no_prediction(stack, f"The sample video's job has failed: {job['error']}")
        return bool(client.get_task(demo.task_id).prediction_versions)

    wait_until(stack, tick, has_prediction, "The sample video has no prediction", PREDICTION_TIMEOUT)


def wait_until(stack: Stack, tick: Callable[[], None], poll: Callable[[], Any], problem: str, timeout: float) -> Any:
    """Poll until the result is truthy and return it; restart failed processes meanwhile.

    Raises:
        StartError: timed out; the hint is the end of the worker's log.
    """
    deadline = time.monotonic() + timeout
    while not (result := poll()):
        if time.monotonic() > deadline:
            raise no_prediction(stack, f"{problem} after {timeout:.0f} s.")
        stack.revive()
        for _ in range(10):  # Label Studio takes a fifth of a second for a task
            tick()
            time.sleep(0.1)
    return result


def _is_of(jobs: JobQueue, job_id: str, task_id: int) -> bool:
    """Return whether a job prepares or predicts this task, rather than one of another project."""
    if not job_id.startswith("predict-"):
        return job_id == f"prepare-{task_id}"
    with jobs.guard():
        job = jobs.fetch(job_id)
    requested = job.args[2] if job else None
    return requested == task_id or task_id in jobs.targets(job_id.removeprefix("predict-"))


def no_prediction(stack: Stack, message: str) -> StartError:
    """Return the error for a missing prediction, with the end of the worker's log as its hint."""
    return StartError(message, f"The end of {stack.worker.log_path}:\n{stack.worker.tail()}")
