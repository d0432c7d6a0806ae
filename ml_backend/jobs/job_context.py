"""What the jobs of the control room share: telling how far they are, stopping when they are cancelled, their result."""

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
from ml_backend.jobs.container import Container, job
from ml_backend.jobs.progress import report_progress
from ml_backend.label_studio.label_config import parse_label_config
from ml_backend.label_studio.media import MediaStore

if TYPE_CHECKING:
    from ml_backend.datasets.selection import Predictions

log = logging.getLogger(__name__)


class JobContext:
    """One job at work.

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
        self._last = 0.0

    def check(self) -> None:
        """Raise Interrupted if the work is to end now."""
        if self.should_stop():
            raise Interrupted("The job was stopped.", "It is taken up again unless it was cancelled.")

    def step(self, stage: str) -> Callable[[int, int], None]:
        """What is called with steps done and in all of a stage; it raises Interrupted if the work is to end."""
        started = time.monotonic()
        self._tell(stage=stage)

        def report(done: int, of: int) -> None:
            self.check()
            now = time.monotonic()
            if now - self._last < 1.0:
                return
            rate = done / (now - started) if now > started else 0.0
            eta = round((of - done) / rate) if rate and of >= done else None
            self._tell(stage=stage, done=done, of=of, eta_s=eta)

        return report

    def _tell(self, **progress: Any) -> None:
        self._last = time.monotonic()
        report_progress(self._job, **progress)

    def label_config(self, project_id: int) -> str:
        """A project's label config, as it is written in Label Studio."""
        return self.container.client.get_project(project_id).label_config

    def source(self, project_id: int, *, predictions: Predictions = "none") -> AnnotationReader:
        """A project's annotated tasks.

        Raises:
            LabelStudioError: it cannot be read.
            ConfigError: the label config has no video.
        """
        client, settings = self.container.client, self.settings
        return AnnotationReader.from_project(
            client, project_id, settings, predictions=predictions, should_stop=self.should_stop
        )

    def source_of_task(self, project_id: int, task_id: int, *, predictions: Predictions) -> AnnotationReader:
        """As :meth:`source`, of a single task, without reading the others.

        Raises:
            NotFound: the task is not in the project.
        """
        config = parse_label_config(self.label_config(project_id))
        task = self.container.client.get_full_task(task_id, project_id)
        return AnnotationReader(lambda: iter([task]), self._store().open, config, predictions=predictions)

    @contextmanager
    def video(self, project_id: int, task_id: int) -> Iterator[Path]:
        """The file of a task's first video, for the duration of the block.

        Raises:
            NotFound: the task is not in the project.
            ConfigError: it has no video.
            MediaError: the file is not to be had.
        """
        control = parse_label_config(self.label_config(project_id)).video_controls[0]
        uri = control.media_uri(self.container.client.get_full_task(task_id, project_id)["data"])
        if uri is None:
            raise ConfigError(
                f'Task {task_id} has no field "{control.value_key}" with a video.', "Choose another task."
            )
        with self._store().open(uri, task_id) as path:
            yield path

    def _store(self) -> MediaStore:
        return MediaStore(self.settings, self.container.client, self.should_stop)


def api_job(function: Callable[..., Any]) -> Callable[..., Any]:
    """A job that gets its :class:`JobContext` first. What it returns is kept for whoever asked for it."""

    @functools.wraps(function)
    def run(container: Container, *args: Any) -> Any:
        return function(JobContext(container), *args)

    return job(run)
