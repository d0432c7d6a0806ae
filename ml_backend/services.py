"""What the web process holds, put together in one place."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass

from ml_backend.errors import BackendError
from ml_backend.events import EventLog
from ml_backend.jobs.context import Context
from ml_backend.jobs.control_queue import ControlQueue
from ml_backend.jobs.listing import Jobs
from ml_backend.jobs.memory_board import MemoryBoard
from ml_backend.jobs.queue import JobQueue
from ml_backend.label_studio.listing import ProjectLister
from ml_backend.metrics import Metrics
from ml_backend.outputs import Outputs
from ml_backend.patterns.service import Patterns
from ml_backend.projects import Projects
from ml_backend.serving import Serving
from ml_backend.settings import Settings
from ml_backend.storage import Storage
from ml_backend.training.service import Trainings

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Services:
    """Connections and collaborators of one process that answers Label Studio."""

    settings: Settings
    storage: Storage
    queue: JobQueue
    projects: Projects
    serving: Serving
    events: EventLog
    metrics: Metrics
    trainings: Trainings
    jobs: Jobs
    control: ControlQueue
    patterns: Patterns
    lister: ProjectLister
    outputs: Outputs

    @classmethod
    def build(cls, settings: Settings) -> Services:
        """Starts no thread and opens no connection to Redis or Label Studio by itself.

        Raises:
            StorageError: the database cannot be opened.
        """
        storage = Storage(settings.database)
        queue = JobQueue(settings, storage=storage)
        projects = Projects(settings, storage)
        trainings = Trainings(projects, queue, storage)
        jobs = Jobs(queue, trainings.cancel)
        context = Context(settings)
        # The same connections as everybody's.
        context.storage, context.projects, context.queue = storage, projects, queue

        def token() -> str:
            return settings.label_studio_api_key.get_secret_value() or queue.remembered_token()

        return cls(
            settings,
            storage,
            queue,
            projects,
            Serving(settings, storage, queue, projects),
            EventLog(storage, queue),
            Metrics(queue, storage),
            trainings,
            jobs,
            ControlQueue(queue, trainings, jobs),
            Patterns(settings, context),
            ProjectLister(settings.label_studio_url, token, settings.label_studio_links),
            Outputs(settings),
        )

    @property
    def memory(self) -> MemoryBoard:
        """What models workers hold."""
        return MemoryBoard(self.queue.connection)

    def warm_up(self) -> None:
        """Begin to load, in a thread, what the first requests need, so that none waits for it for long.

        What answers ``/health`` is there already; these are the libraries of the queue and of HTTP, and the digests
        of the models' weights, of which there may be gigabytes.
        """
        threading.Thread(target=self._warm_up, name="warm-up", daemon=True).start()

    def _warm_up(self) -> None:
        for prepare in (self.serving.version, self.queue.depths, self.lister.prepare):
            try:
                prepare()
            except BackendError as error:
                log.warning("Not ready: %s", error)  # requests say so again
