"""The demo project: a sample video that the backend has pre-annotated."""

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
#: Eight seconds of 720p take a small machine well under a minute; the first import of the models comes on top.
PREDICTION_TIMEOUT = 300.0


@dataclass(frozen=True, slots=True)
class Demo:
    """Where the demo is in Label Studio."""

    project_id: int
    task_id: int

    def url(self, label_studio_url: str) -> str:
        """The page on which the task can be edited."""
        return f"{label_studio_url}/projects/{self.project_id}/data?task={self.task_id}"


def _record(stack: Stack) -> Path:
    # Beside Label Studio's database, so that the two are deleted together.
    return stack.label_studio.folder / "demo.json"


def find_demo(stack: Stack) -> Demo | None:
    """The demo that an earlier start has made; ``None`` if there was none or somebody has deleted it."""
    path = _record(stack)
    if not path.is_file():
        return None
    demo = Demo(**json.loads(path.read_text(encoding="utf-8")))
    try:
        stack.client().get_task(demo.task_id)
    except NotFound:
        return None
    return demo


def was_made(stack: Stack) -> bool:
    """Whether a demo was ever made here: one that was deleted is not forced upon people again."""
    return _record(stack).is_file()


def make_demo(stack: Stack, video: Path) -> Demo:
    """Make project, connection and task. The backend hears of the task by webhook and starts on it.

    Args:
        stack: running.
        video: the sample to upload.
    """
    client = stack.client()
    config = (ROOT / "label_config.xml").read_text(encoding="utf-8")
    project_id = client.create_project(TITLE, config)
    connect(stack, client, project_id)
    upload = client.upload_file(project_id, video)
    demo = Demo(project_id, client.create_task(project_id, {"video": upload}))
    write_private(_record(stack), json.dumps(asdict(demo)) + "\n")
    return demo


def connect(stack: Stack, client: LabelStudioClient, project_id: int) -> None:
    """Connect the backend to a project, or repair the connection (ports may have changed).

    Raises:
        StartError: Label Studio refuses it; it does not say what the backend answered, so the backend's log does.
    """
    try:
        client.connect_backend(project_id, stack.backend.url, stack.basic_auth)
    except LabelStudioError as error:
        raise StartError(error.message, f"The end of {stack.backend.log_path}:\n{stack.backend.tail(5)}") from error


def wait_for_prediction(stack: Stack, demo: Demo, tick: Callable[[], None]) -> None:
    """Wait until the task carries a prediction.

    Raises:
        StartError: its job has failed for good, or there is none in time; with the end of the worker's log.
    """
    client = stack.client()
    jobs = JobQueue(Settings(_env_file=None, redis_url=stack.redis_url))
    earlier = {job["id"] for job in jobs.failed_jobs()} - {f"prepare-{demo.task_id}"}

    def look() -> bool:
        for job in jobs.failed_jobs():
            if job["id"] not in earlier and _is_of(jobs, job["id"], demo.task_id):
                raise no_prediction(stack, f"The sample video's job has failed: {job['error']}")
        return bool(client.get_task(demo.task_id).prediction_versions)

    wait_until(stack, tick, look, "The sample video has no prediction", PREDICTION_TIMEOUT)


def wait_until(stack: Stack, tick: Callable[[], None], look: Callable[[], Any], problem: str, timeout: float) -> Any:
    """Wait for something and return it, while the stack is watched over.

    Raises:
        StartError: it is not there in time; with the end of the worker's log.
    """
    deadline = time.monotonic() + timeout
    while not (found := look()):
        if time.monotonic() > deadline:
            raise no_prediction(stack, f"{problem} after {timeout:.0f} s.")
        stack.revive()
        for _ in range(5):
            tick()
            time.sleep(0.1)
    return found


def _is_of(jobs: JobQueue, job_id: str, task_id: int) -> bool:
    """Whether a job prepares or predicts this task: those of other projects fail for reasons of their own."""
    if not job_id.startswith("predict-"):
        return job_id == f"prepare-{task_id}"
    with jobs.guard():
        job = jobs.fetch(job_id)
    asked = job.args[2] if job else None
    return asked == task_id or task_id in jobs.targets(job_id.removeprefix("predict-"))


def no_prediction(stack: Stack, message: str) -> StartError:
    """What to raise where a prediction does not come: with the end of the worker's log."""
    return StartError(message, f"The end of {stack.worker.log_path}:\n{stack.worker.tail()}")
