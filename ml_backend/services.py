"""What the web process holds, put together in one place."""

from __future__ import annotations

from dataclasses import dataclass

from ml_backend.events import EventLog
from ml_backend.jobs.queue import JobQueue
from ml_backend.metrics import Metrics
from ml_backend.projects import Projects
from ml_backend.serving import Serving
from ml_backend.settings import Settings
from ml_backend.storage import Storage
from ml_backend.training.service import Trainings


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

    @classmethod
    def build(cls, settings: Settings) -> Services:
        """Starts no thread and opens no connection to Redis or Label Studio by itself.

        Raises:
            StorageError: the database cannot be opened.
        """
        storage = Storage(settings.database)
        queue = JobQueue(settings)
        projects = Projects(settings, storage)
        return cls(
            settings,
            storage,
            queue,
            projects,
            Serving(settings, storage, queue, projects),
            EventLog(storage, queue),
            Metrics(queue, storage),
            Trainings(projects, queue, storage),
        )
