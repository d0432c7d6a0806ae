"""The container: connections and services of one process, each created on first use."""

from __future__ import annotations

import functools
import hmac
import logging
import math
import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

from ml_backend.core.artifacts import Artifacts
from ml_backend.core.errors import (
    BackendError,
    Interrupted,
    LabelStudioUnavailable,
    Postponed,
    QueueUnavailable,
    StorageError,
)
from ml_backend.core.outputs import Outputs
from ml_backend.core.settings import Settings, get_settings
from ml_backend.core.shared_files import Uploads, make_outputs, make_uploads
from ml_backend.core.timestamps import ensure_utc
from ml_backend.db.audit import AuditLog
from ml_backend.db.storage import Storage
from ml_backend.jobs.api_queue import ApiQueue
from ml_backend.jobs.job_list import JobList
from ml_backend.jobs.live_cameras import LiveCameras
from ml_backend.jobs.project_models import ProjectModelStore
from ml_backend.jobs.queue import RQ_ENDED, JobQueue, state_of
from ml_backend.jobs.services.trainings import Trainings
from ml_backend.jobs.training_queue import TrainingQueue
from ml_backend.jobs.worker_status import WorkerStatus
from ml_backend.label_studio.client import LabelStudioClient
from ml_backend.label_studio.listing import ProjectLister
from ml_backend.label_studio.media import MediaStore
from ml_backend.review.repair_json import FRAMES_FOLDER
from ml_backend.training.policy import PolicyStore
from ml_backend.training.registry import Registry

if TYPE_CHECKING:
    from rq.job import Job

log = logging.getLogger(__name__)

#: Seconds between two checks whether a job was cancelled.
CANCEL_POLL_S = 1.0
#: A job for which Label Studio does not answer is tried again every so many seconds, for so long: what is computed is
#: delivered soon after Label Studio is back.
LABEL_STUDIO_PAUSE_S, LABEL_STUDIO_PATIENCE = 30, timedelta(days=5)
#: Archives of frames that are kept, about a gigabyte, and for how many seconds.
FRAMES_KEPT, FRAMES_KEPT_S = 500, 24 * 3600
#: Seconds for which a job waits for a Redis that is away, as during its restart.
JOB_PATIENCE_S = 10


class Container:
    """The connections and services of a process. Creating it opens no connection.

    Args:
        redis_timeout: seconds to wait for Redis; shorter for requests than for jobs.
        redis_patience_s: seconds for which jobs wait for a Redis that is away: a restart must not cost their work.
    """

    def __init__(self, settings: Settings, redis_timeout: float = 10.0, redis_patience_s: int = 0) -> None:
        self.settings = settings
        self._redis_timeout, self._redis_patience_s = redis_timeout, redis_patience_s
        #: Set when the process is asked to stop: jobs stop at the next frame and are retried later.
        self.stop = threading.Event()
        #: Servers that did not answer during the current job.
        self.unreachable: set[str] = set()
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
        return JobQueue(
            self.settings, storage=self.storage, timeout=self._redis_timeout, patience_s=self._redis_patience_s
        )

    @cached_property
    def training_queue(self) -> TrainingQueue:
        return TrainingQueue(self.queue)

    @cached_property
    def trainings(self) -> Trainings:
        return Trainings(self.projects, self.queue, self.storage)

    @cached_property
    def jobs(self) -> JobList:
        return JobList(self.queue, self.trainings.cancel)

    @cached_property
    def api_queue(self) -> ApiQueue:
        return ApiQueue(self.queue, self.trainings, self.jobs, self.lister)

    @cached_property
    def audit(self) -> AuditLog:
        return AuditLog(self.storage)

    def project_credentials(self, project_id: int) -> tuple[str, str]:
        """Return the user and the token with which Label Studio's requests about one project may come."""
        name = f"project-{project_id}"
        return name, hmac.new(self._token_secret.encode(), name.encode(), "sha256").hexdigest()[:40]

    @cached_property
    def _token_secret(self) -> str:
        return self.storage.secret("project tokens")

    def credentials(self, project_id: int) -> tuple[str, str] | None:
        """Return the user and password that a project's connection carries; ``None`` if none are required."""
        return self.project_credentials(project_id) if self.settings.project_tokens else self.settings.basic_auth

    @cached_property
    def lister(self) -> ProjectLister:
        settings = self.settings
        return ProjectLister(
            settings.label_studio_url,
            self._token,
            settings.label_studio_links,
            backend_url=settings.backend_url,
            credentials=self.credentials,
            set_up=self.queue.set_up_projects,
        )

    @cached_property
    def outputs(self) -> Outputs:
        return make_outputs(self.settings)

    @cached_property
    def uploads(self) -> Uploads:
        return make_uploads(self.settings)

    def stopper(self) -> Callable[[], bool]:
        """Return a function that tells whether the current job must stop (cancelled, or the process stops)."""
        from rq import get_current_job

        current = get_current_job()
        if current is None:
            return self.stop.is_set
        checked_at, cancelled = -math.inf, False

        def stop() -> bool:
            nonlocal checked_at, cancelled
            if not cancelled and time.monotonic() - checked_at >= CANCEL_POLL_S:
                checked_at = time.monotonic()
                cancelled = self.is_cancelled(current.id)
            return cancelled or self.stop.is_set()

        return stop

    @cached_property
    def worker_status(self) -> WorkerStatus:
        """The models that workers have loaded."""
        return WorkerStatus(self.queue)

    @cached_property
    def live_cameras(self) -> LiveCameras:
        return LiveCameras(self.queue)

    @property
    def client(self) -> LabelStudioClient:
        return self._client(self._token())

    @property
    def media(self) -> MediaStore:
        return MediaStore(self.settings, self.client, self.stopper(), self.unreachable)

    def count(self, name: str, amount: float = 1) -> None:
        """Add to a counter; without Redis nothing is counted, since no job should fail for it."""
        try:
            self.queue.count(name, amount)
        except QueueUnavailable as error:
            log.warning("Not counted: %s", error)

    def clean_up_files(self) -> list[str]:
        """Remove old outputs, frames and files of crashed processes; safe at any time and in several processes at once.

        Returns:
            Names of the removed outputs; empty if Redis or the artifact store does not answer.
        """

        def needed(folder: str) -> bool:
            with self.queue.guard():
                job = self.queue.fetch(f"import-{folder}")  # as ApiQueue names it
                return job is not None and state_of(job) not in RQ_ENDED

        try:
            self.uploads.clean(needed)
            removed = self.outputs.clean(needed=needed)
            ages = sorted(self.artifacts.ages(FRAMES_FOLDER).items(), key=lambda item: item[1])
            for number, (name, age_s) in enumerate(ages):
                if number >= FRAMES_KEPT or age_s > FRAMES_KEPT_S:  # rendered again on demand
                    self.artifacts.remove(f"{FRAMES_FOLDER}/{name}")
            return removed
        except (QueueUnavailable, StorageError) as error:
            log.warning("Old uploads and outputs were not removed: %s", error)
            return []

    def is_cancelled(self, job_id: str) -> bool:
        """Return whether a job was cancelled; ``False`` while Redis does not answer."""
        try:
            return bool(job_id) and self.queue.is_cancelled(job_id)
        except QueueUnavailable as error:
            log.warning("Could not check whether job %s was cancelled: %s", job_id, error)
            return False

    def _token(self) -> str:
        # Without a configured token, the one that Label Studio sent in the last /setup may work (legacy tokens).
        return self.settings.label_studio_api_key.get_secret_value() or self.queue.remembered_token()


@lru_cache(maxsize=1)
def get_container() -> Container:
    """Return the worker's container."""
    return Container(get_settings(), redis_patience_s=JOB_PATIENCE_S)


def job(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a job: pass it the container, keep the message of its error, and retry it only if that can help."""

    @functools.wraps(function)
    def run(*args: Any) -> Any:
        from rq import get_current_job

        from ml_backend.jobs.known_job import checked_arguments

        current = get_current_job()
        container = get_container()
        container.unreachable.clear()
        if current and "retry_intervals" in current.meta:
            current.retry_intervals = current.meta.pop("retry_intervals")
        try:
            return function(container, *checked_arguments(function, args))
        except Interrupted as error:
            if current and container.is_cancelled(current.id):
                current.meta["outcome"] = {"state": "cancelled"}
                current.save_meta()
                log.info("Job %s was cancelled.", current.id)
                return None
            if current:  # a stop request is no failure
                _retry_without_attempt(current, error.delay_s if isinstance(error, Postponed) else 1)
            raise
        except BackendError as error:
            log.error("%s%s failed: %s", function.__name__, args, error)
            if current:
                current.meta["error"] = str(error)
                if isinstance(error, LabelStudioUnavailable) and _age(current) < LABEL_STUDIO_PATIENCE:
                    _retry_without_attempt(current, LABEL_STUDIO_PAUSE_S)
                elif not error.retryable:
                    current.retries_left = 0
                current.save()
            raise

    return run


def _retry_without_attempt(current: Job, pause_s: int) -> None:
    """Have a job retried after a pause, without counting this attempt; the usual pauses are kept for the next ones."""
    current.retries_left = (current.retries_left or 0) + 1
    current.meta["retry_intervals"], current.retry_intervals = current.retry_intervals, [pause_s]


def _age(current: Job) -> timedelta:
    return datetime.now(timezone.utc) - ensure_utc(current.created_at)
