"""A project in a real Label Studio, a real Redis, and a worker in this process."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from label_studio_sdk import LabelStudio as Sdk
from rq.job import Job
from rq.registry import ScheduledJobRegistry
from rq.serializers import JSONSerializer

from ml_backend.core.settings import QUEUES, Settings, get_settings
from ml_backend.jobs.container import Container, get_container
from ml_backend.jobs.queue import JobQueue
from ml_backend.jobs.worker import make_worker
from ml_backend.label_studio.client import LabelStudioClient
from ml_backend.server.container import WebContainer
from ml_backend.server.prediction_service import PredictionService
from tests.builders import CONFIG, environment, make_clip


@dataclass
class Site:
    """What the tests act with.

    Attributes:
        videos: folder of local files that the worker sees; ``/data/local-files/?d=videos/NAME``.
        served: the same folder as Label Studio sees it.
    """

    settings: Settings
    videos: Path
    client: LabelStudioClient
    sdk: Any
    served: Path

    @cached_property
    def queue(self) -> JobQueue:
        return JobQueue(self.settings, timeout=60.0)

    @cached_property
    def services(self) -> WebContainer:
        return WebContainer(self.settings)

    @property
    def prediction_service(self) -> PredictionService:
        return self.services.prediction_service

    def project(self, config: str = CONFIG) -> int:
        project = self.client.create_project("test", config)
        # A new project has none, which ``ensure_local_files_storage`` would ask first.
        self.sdk.import_storage.local.create(project=project, path=str(self.served), title="videos", use_blob_urls=True)
        return project

    def task(self, project: int, **data: Any) -> int:
        return self.client.create_task(project, data)

    def clip(self, name: str = "clip.mp4", **values: Any) -> str:
        """A clip among the local files; returns its address."""
        if not (self.videos / name).exists():
            make_clip(self.videos / name, **values)
        return f"/data/local-files/?d=videos/{name}"

    def data(self, task: int) -> dict[str, Any]:
        return self.client.get_task(task).data

    def predictions(self, task: int) -> list[Any]:
        return list(self.sdk.predictions.list(task=task))

    def predict(self, project: int, *tasks: int, config: str = CONFIG) -> list[Any]:
        """As /predict would."""
        bodies = [{"id": task, "data": self.data(task), "annotations": []} for task in tasks]
        return self.prediction_service.predict(project, config, bodies)

    def annotate(self, task: int) -> None:
        self.sdk.annotations.create(id=task, result=[])

    def hurry(self) -> None:
        """Time passes: whatever waits for its next try is due."""
        for name in QUEUES:
            registry = ScheduledJobRegistry(name, connection=self.queue.connection, serializer=JSONSerializer)
            for job_id in registry.get_job_ids(cleanup=False):
                self.queue.connection.zadd(registry.key, {job_id: 1}, xx=True)

    def jobs(self) -> dict[str, str]:
        """State of every job that is not through."""
        queue = JobQueue(self.settings, timeout=60.0)
        names = [key.decode()[len("rq:job:") :] for key in queue.connection.keys("rq:job:*")]
        # As it was fetched: it may have ended since.
        states = {job.id: job.get_status(refresh=False) for job in queue.fetch_many(names)}
        return {name: state.value for name, state in states.items() if state and state != "finished"}

    def job(self, job_id: str) -> Job:
        return Job.fetch(job_id, connection=self.queue.connection, serializer=JSONSerializer)

    def error(self) -> str:
        """Why the only failed job failed."""
        (failed,) = self.queue.failed_jobs()
        return str(failed["error"])


@pytest.fixture(scope="session")
def clients(label_studio: Any) -> tuple[LabelStudioClient, Any]:
    """Our client and the SDK's, for all tests: each new one would first exchange the token."""
    return label_studio.client(), Sdk(base_url=label_studio.url, api_key=label_studio.token)


@pytest.fixture
def site(
    label_studio: Any,
    clients: tuple[LabelStudioClient, Any],
    redis_url: str,
    settings: Callable[..., Settings],
    tmp_path: Path,
) -> Callable[..., Site]:
    """Factory of a :class:`Site`; keyword arguments are settings of the worker."""

    def make(**values: Any) -> Site:
        videos, served = tmp_path / "local" / "videos", label_studio.local_files / "videos"
        for folder in (videos, served):
            folder.mkdir(parents=True, exist_ok=True)
        defaults = {
            "label_studio_url": label_studio.url,
            "label_studio_api_key": label_studio.token,
            "backend_url": "http://jobs.example:9090",  # no project of other tests is connected to it
            "redis_url": redis_url,
            "detector": "motion",
            "local_files_root": videos.parent,
            "job_lease_s": 5,
        }
        chosen = settings(**(defaults | values))
        return Site(chosen, videos, *clients, served)

    return make


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Container]]:
    """Do all jobs that are due, or a number of them, as a worker process would, and end when there are none."""

    def run(site: Site, max_jobs: int | None = None) -> Container:
        for name, value in environment(site.settings).items():
            monkeypatch.setenv(name, value)
        get_settings.cache_clear()
        get_container.cache_clear()
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)}
        try:
            make_worker(get_settings()).work(burst=True, logging_level="ERROR", max_jobs=max_jobs)
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        return get_container()

    yield run
    get_settings.cache_clear()
    get_container.cache_clear()


@pytest.fixture
def container(
    settings: Callable[..., Settings], redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Container]:
    """This process's, as a worker has it."""
    chosen = settings(redis_url=redis_url)
    for name, value in environment(chosen).items():
        monkeypatch.setenv(name, value)
    get_settings.cache_clear()
    get_container.cache_clear()
    yield get_container()
    get_settings.cache_clear()
    get_container.cache_clear()
