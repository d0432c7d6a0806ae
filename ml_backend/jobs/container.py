"""The container: connections and collaborators of one process, each made on first use."""

from __future__ import annotations

import functools
import logging
import math
import threading
import time
from collections.abc import Callable
from functools import cached_property, lru_cache
from typing import Any

from ml_backend.core.errors import BackendError, Interrupted, Postponed, QueueUnavailable
from ml_backend.core.outputs import Outputs
from ml_backend.core.settings import Settings, get_settings
from ml_backend.db.storage import Storage
from ml_backend.jobs.api_queue import ApiQueue
from ml_backend.jobs.job_list import JobIndex
from ml_backend.jobs.project_models import ProjectModelStore
from ml_backend.jobs.queue import OVER, JobQueue, state_of
from ml_backend.jobs.services.trainings import Trainings
from ml_backend.jobs.training_queue import TrainingQueue
from ml_backend.jobs.worker_status import WorkerStatus
from ml_backend.label_studio.client import LabelStudioClient
from ml_backend.label_studio.listing import ProjectLister
from ml_backend.label_studio.media import MediaStore
from ml_backend.training.artifacts import Artifacts
from ml_backend.training.policy import PolicyStore
from ml_backend.training.registry import Registry

log = logging.getLogger(__name__)

#: Seconds within which a job notices that it was cancelled.
ASK_S = 1.0


class Container:
    """What a process holds: built once, each part on first use, so that making it opens no connection.

    Args:
        redis_timeout: seconds to wait for an answer of Redis; requests should not wait for as long as jobs may.
    """

    def __init__(self, settings: Settings, redis_timeout: float = 10.0) -> None:
        self.settings = settings
        self._redis_timeout = redis_timeout
        #: Set when the process is asked to end: long work stops at the next frame and is taken up again later.
        self.stop = threading.Event()
        #: Servers that did not answer during the present job.
        self.silent: set[str] = set()
        self._client = lru_cache(maxsize=1)(functools.partial(LabelStudioClient.from_settings, settings))

    @cached_property
    def storage(self) -> Storage:
        return Storage(self.settings.database)

    @cached_property
    def registry(self) -> Registry:
        return Registry(self.storage)

    @cached_property
    def policies(self) -> PolicyStore:
        return PolicyStore(self.storage)

    @cached_property
    def artifacts(self) -> Artifacts:
        return Artifacts(self.settings)

    @cached_property
    def projects(self) -> ProjectModelStore:
        return ProjectModelStore(self.settings, self.storage)

    @cached_property
    def queue(self) -> JobQueue:
        return JobQueue(self.settings, storage=self.storage, timeout=self._redis_timeout)

    @cached_property
    def training_queue(self) -> TrainingQueue:
        return TrainingQueue(self.queue)

    @cached_property
    def trainings(self) -> Trainings:
        return Trainings(self.projects, self.queue, self.storage)

    @cached_property
    def jobs(self) -> JobIndex:
        return JobIndex(self.queue, self.trainings.cancel)

    @cached_property
    def control(self) -> ApiQueue:
        return ApiQueue(self.queue, self.trainings, self.jobs)

    @cached_property
    def lister(self) -> ProjectLister:
        return ProjectLister(self.settings.label_studio_url, self._token, self.settings.label_studio_links)

    @cached_property
    def outputs(self) -> Outputs:
        return Outputs(self.settings)

    def stopper(self) -> Callable[[], bool]:
        """For long work of the present job: whether it has to end, since the process does or somebody cancelled it."""
        from rq import get_current_job

        current = get_current_job()
        if current is None:
            return self.stop.is_set
        asked, cancelled = -math.inf, False

        def stop() -> bool:
            nonlocal asked, cancelled
            if not cancelled and time.monotonic() - asked >= ASK_S:
                asked = time.monotonic()
                cancelled = self.is_given_up(current.id)
            return cancelled or self.stop.is_set()

        return stop

    @property
    def memory(self) -> WorkerStatus:
        """What models workers hold."""
        return WorkerStatus(self.queue)

    @property
    def client(self) -> LabelStudioClient:
        return self._client(self._token())

    @property
    def media(self) -> MediaStore:
        return MediaStore(self.settings, self.client, self.stop.is_set, self.silent)

    def count(self, name: str, amount: float = 1) -> None:
        """A counter is not worth the work that it counts: without Redis it is left out."""
        try:
            self.queue.count(name, amount)
        except QueueUnavailable as error:
            log.warning("Not counted: %s", error)

    def remove_leftovers(self) -> list[str]:
        """Remove old outputs and what crashes have left; may be done at any time, by many at once.

        Returns:
            Names of the outputs that are gone. Where Redis does not answer, the rest stays for the next time.
        """

        def needed(folder: str) -> bool:
            with self.queue.guard():
                job = self.queue.fetch(f"import-{folder}")  # so ControlQueue calls it
                return job is not None and state_of(job) not in OVER

        try:
            return self.outputs.clean(needed=needed)
        except QueueUnavailable as error:
            log.warning("What is left of old uploads stays for now: %s", error)
            return []

    def is_given_up(self, job_id: str) -> bool:
        """Whether somebody has cancelled a job; where Redis is away it is not known, and asked again later."""
        try:
            return bool(job_id) and self.queue.is_cancelled(job_id)
        except QueueUnavailable as error:
            log.warning("Whether job %s was cancelled is not known: %s", job_id, error)
            return False

    def _token(self) -> str:
        # Without a configured token, the one that Label Studio handed over in the last /setup may do (legacy tokens).
        return self.settings.label_studio_api_key.get_secret_value() or self.queue.remembered_token()


@lru_cache(maxsize=1)
def get_container() -> Container:
    """The worker's container."""
    return Container(get_settings())


def job(function: Callable[..., Any]) -> Callable[..., Any]:
    """Errors of jobs become what a person reads, and decide whether another try makes sense."""

    @functools.wraps(function)
    def run(*args: Any) -> Any:
        from rq import get_current_job

        current = get_current_job()
        container = get_container()
        container.silent.clear()
        if current and "retry_intervals" in current.meta:
            current.retry_intervals = current.meta.pop("retry_intervals")
        try:
            return function(container, *args)
        except Interrupted as error:
            if current and container.is_given_up(current.id):
                current.meta["outcome"] = {"state": "cancelled"}
                current.save_meta()
                log.info("Job %s was cancelled.", current.id)
                return None
            if current:
                current.retries_left = (current.retries_left or 0) + 1  # being asked to stop is no failure
                pause = error.delay_s if isinstance(error, Postponed) else 1
                current.meta["retry_intervals"], current.retry_intervals = current.retry_intervals, [pause]
            raise
        except BackendError as error:
            log.error("%s%s failed: %s", function.__name__, args, error)
            if current:
                current.meta["error"] = str(error)
                if not error.retryable:
                    current.retries_left = 0
                current.save()
            raise

    return run
