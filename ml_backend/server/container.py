"""Dependency container of the web process: the job container plus what HTTP requests need."""

from __future__ import annotations

import logging
import threading
from functools import cached_property

from ml_backend.core.errors import BackendError
from ml_backend.core.settings import Settings
from ml_backend.jobs.container import Container
from ml_backend.jobs.services.patterns import Patterns
from ml_backend.jobs.services.reviews import Reviews
from ml_backend.server.drawing import DrawingService
from ml_backend.server.metrics import Metrics
from ml_backend.server.pending_jobs import PendingJobs
from ml_backend.server.people import People
from ml_backend.server.prediction_service import PredictionService
from ml_backend.server.slow_clients import DOWNLOADS, PICTURES, Slots
from ml_backend.server.webhooks import WebhookReceiver

log = logging.getLogger(__name__)


class WebContainer(Container):
    """Connections and services of one web process.

    Raises:
        StorageError: the database cannot be opened.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, redis_timeout=1.0)
        self.downloads = Slots(DOWNLOADS, "downloads")
        self.pictures = Slots(PICTURES, "pictures of cameras being sent")
        # Created eagerly, so that an unusable database fails at startup and concurrent first requests do not create
        # duplicates. None of these connects to Redis or Label Studio.
        _ = self.storage, self.queue, self.projects, self.metrics, self.webhooks, self.prediction_service
        _ = (
            self.trainings,
            self.jobs,
            self.drawing,
            self.api_queue,
            self.live_cameras,
            self.lister,
            self.outputs,
            self.patterns,
            self.pending_jobs,
        )

    @cached_property
    def prediction_service(self) -> PredictionService:
        return PredictionService(self.settings, self.storage, self.queue, self.projects)

    @cached_property
    def drawing(self) -> DrawingService:
        return DrawingService(self.queue, self.projects, self.prediction_service)

    @cached_property
    def webhooks(self) -> WebhookReceiver:
        return WebhookReceiver(self.storage, self.queue)

    @cached_property
    def metrics(self) -> Metrics:
        return Metrics(self.queue, self.storage)

    @cached_property
    def patterns(self) -> Patterns:
        return Patterns(self)

    @cached_property
    def pending_jobs(self) -> PendingJobs:
        return PendingJobs(self.queue)

    @cached_property
    def people(self) -> People:
        return People(self.settings.label_studio_url, self.storage)

    @cached_property
    def reviews(self) -> Reviews:
        return Reviews(self)

    def warm_up(self) -> None:
        """Load in a background thread what the first requests would otherwise wait for.

        These are the queue and HTTP client libraries, and the digests of the model weights, which may be gigabytes.
        ``/health`` needs none of them.
        """
        threading.Thread(target=self._warm_up, name="warm-up", daemon=True).start()

    def _warm_up(self) -> None:
        for prepare in (self.prediction_service.version, self.queue.depths, self.lister.prepare):
            try:
                prepare()
            except BackendError as error:
                log.warning("Not ready: %s", error)  # requests report it again
