"""What a worker process holds between jobs: connections, and the model that is loaded."""

from __future__ import annotations

import threading
from functools import cached_property, lru_cache

from ml_backend.jobs.queue import JobQueue, connect
from ml_backend.label_studio.client import LabelStudioClient
from ml_backend.label_studio.media import MediaStore
from ml_backend.settings import Settings, get_settings
from ml_backend.storage import Storage


class Context:
    """Built once per process, each part on first use."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        #: Set when the process is asked to end: long work stops at the next frame and is taken up again later.
        self.stop = threading.Event()
        self._client = lru_cache(maxsize=1)(self._make_client)

    @cached_property
    def storage(self) -> Storage:
        return Storage(self.settings.database)

    @cached_property
    def queue(self) -> JobQueue:
        return JobQueue(self.settings, connect(self.settings, timeout=10.0))

    @property
    def client(self) -> LabelStudioClient:
        configured = self.settings.label_studio_api_key.get_secret_value()
        # Without a configured token, the one that Label Studio handed over in the last /setup may do (legacy tokens).
        return self._client(configured or self.queue.remembered_token())

    @property
    def media(self) -> MediaStore:
        return MediaStore(self.settings, self.client, self.stop.is_set)

    def _make_client(self, token: str) -> LabelStudioClient:
        return LabelStudioClient.from_settings(self.settings, token)


@lru_cache(maxsize=1)
def get_context() -> Context:
    """The process's context."""
    return Context(get_settings())
