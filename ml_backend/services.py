"""What the web process holds; put together by :func:`ml_backend.app.create_app`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ml_backend.jobs.queue import JobQueue
from ml_backend.settings import Settings
from ml_backend.storage import Storage

if TYPE_CHECKING:
    from ml_backend.web.events import EventLog
    from ml_backend.web.metrics import Metrics


@dataclass(frozen=True, slots=True)
class Services:
    """Connections and collaborators of one app."""

    settings: Settings
    storage: Storage
    queue: JobQueue
    events: EventLog
    metrics: Metrics
