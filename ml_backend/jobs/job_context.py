"""What API jobs share: progress reports, cancellation, and access to annotations and videos."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rq import get_current_job

from ml_backend.core.errors import ConfigError, Interrupted
from ml_backend.datasets.annotation_reader import AnnotationReader
from ml_backend.datasets.video_files import video_name
from ml_backend.jobs.container import Container, job
from ml_backend.jobs.progress import report_progress
from ml_backend.label_studio.label_config import parse_label_config
from ml_backend.label_studio.media import MediaStore

if TYPE_CHECKING:
    from ml_backend.datasets.selection import Predictions

log = logging.getLogger(__name__)


class JobContext:
    """The context of a running job.

    Attributes:
        id: of the job; empty outside of a worker.
    """

    def __init__(self, container: Container) -> None:
        self._job = get_current_job()
        self.container = container
        self.settings = container.settings
        self.id = self._job.id if self._job else ""
        self.outputs = container.outputs
        self.should_stop = container.stopper()
        self._reported_at = 0.0

    def check(self) -> None:
        """Raise Interrupted if the job has to stop now."""
        if self.should_stop():
            raise Interrupted("The job was stopped.", "Wait: it is retried unless it was cancelled.")

    def step(self, stage: str) -> Callable[[int, int], None]:
        """Begin a stage and return its progress function ``(done, of)``, which raises Interrupted as :meth:`check`."""
        started = time.monotonic()
        self._report(stage=stage)

        def report(done: int, of: int) -> None:
            self.check()
            now = time.monotonic()
            if now - self._reported_at < 1.0:
                return
            rate = done / (now - started) if now > started else 0.0
            eta = round((of - done) / rate) if rate and of >= done else None
            self._report(stage=stage, done=done, of=of, eta_s=eta)

        return report

    def _report(self, **progress: Any) -> None:
        self._reported_at = time.monotonic()
        report_progress(self._job, **progress)

    def label_config(self, project_id: int) -> str:
        """Return a project's label config, as XML."""
        return self.container.client.get_project(project_id).label_config

    def reader(
        self, project_id: int, *, predictions: Predictions = "none", all_annotators: bool = False
    ) -> AnnotationReader:
        """Return a reader of a project's annotated tasks; with ``all_annotators``, of every annotation.

        Raises:
            LabelStudioError: the project cannot be read.
            ConfigError: the label config has no video.
        """
        client, settings = self.container.client, self.settings
        return AnnotationReader.from_project(
            client,
            project_id,
            settings,
            predictions=predictions,
            all_annotators=all_annotators,
            should_stop=self.should_stop,
        )

    def task_reader(self, project_id: int, task_id: int, *, predictions: Predictions) -> AnnotationReader:
        """Return a reader of a single task.

        Raises:
            NotFound: the task is not in the project.
        """
        config = parse_label_config(self.label_config(project_id))
        task = self.container.client.get_full_task(task_id, project_id)
        return AnnotationReader.of_task(task, self._store().opener(project_id), config, predictions)

    @contextmanager
    def video(self, project_id: int, task_id: int) -> Iterator[tuple[Path, str]]:
        """Yield the file of a task's first video, and the video's name.

        Raises:
            NotFound: the task is not in the project.
            ConfigError: the task has no video.
            MediaError: the file is unavailable.
        """
        control = parse_label_config(self.label_config(project_id)).video_controls[0]
        uri = control.media_uri(self.container.client.get_full_task(task_id, project_id)["data"])
        if uri is None:
            raise ConfigError(
                f'Task {task_id} has no field "{control.value_key}" with a video.', "Choose another task."
            )
        with self._store().open(uri, task_id, project_id) as path:
            yield path, video_name(uri)

    def _store(self) -> MediaStore:
        return MediaStore(self.settings, self.container.client, self.should_stop)


def api_job(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a job that takes a :class:`JobContext` first and whose result is kept."""

    @functools.wraps(function)
    def run(container: Container, *args: Any) -> Any:
        return function(JobContext(container), *args)

    return job(run)
