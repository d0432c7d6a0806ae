"""What the web process holds, put together in one place."""

from __future__ import annotations

from dataclasses import dataclass

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
    memory: MemoryBoard
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
        queue = JobQueue(settings)
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
            MemoryBoard(queue.connection),
            Patterns(settings, context),
            ProjectLister(settings.label_studio_url, token, settings.label_studio_links),
            Outputs(settings),
        )
