"""The list of projects, for the web process: asked for again and again, by people who wait."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import lru_cache
from itertools import islice
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from ml_backend.label_studio.client import LabelStudioClient, TaskState

#: Seconds that people wait for a list, and that one is good for.
TIMEOUT_S = 5.0
FRESH_S = 3.0
#: Seconds for which it may be shown while a newer one is fetched.
STALE_S = 30.0
#: More projects than a list can be looked through.
_PROJECTS = 2000


class ProjectLister:
    """Safe across threads; asks Label Studio for its projects at most once in a few seconds.

    Args:
        token: gives the configured token, or the one that Label Studio handed over last.
        links: where people reach it, for links; empty: ``url``.
    """

    def __init__(self, url: str, token: Callable[[], str], links: str = "") -> None:
        self._token, self._links = token, links or url
        self._client = lru_cache(maxsize=1)(lambda token: LabelStudioClient(url, token, TIMEOUT_S, retries=0))
        self._lock = threading.Lock()
        self._known: tuple[float, list[dict[str, Any]]] | None = None

    def prepare(self) -> None:
        """Load what asking needs; asks nothing."""
        sdk = LabelStudioClient("http://localhost", "none")._sdk
        _ = sdk.projects, sdk.tasks

    def projects(self) -> list[dict[str, Any]]:
        """Id, title and numbers of tasks of every project that the token's user sees, newest first.

        Raises:
            LabelStudioError: it does not answer, or refuses.
        """
        known = self._known
        age = time.monotonic() - known[0] if known else STALE_S
        if known and age < FRESH_S:
            return known[1]
        # While somebody asks, others take what is known: they would hold all of the server's threads, health's too.
        if not self._lock.acquire(blocking=age >= STALE_S) and known:
            return known[1]
        try:
            if self._known and time.monotonic() - self._known[0] < FRESH_S:
                return self._known[1]
            found = self._client(self._token()).list_projects()
            self._known = time.monotonic(), [_project(item, self._links) for item in islice(found, _PROJECTS)]
            return self._known[1]
        finally:
            self._lock.release()

    def tasks(self, project_id: int, page: int, size: int) -> tuple[list[dict[str, Any]], int]:
        """A page of a project's tasks, from 1: id, name, number of annotations and predictions; and how many there are.

        Raises:
            LabelStudioError: it does not answer, refuses, or has no such project or page.
        """
        states, total = self._client(self._token()).task_page(project_id, page, size)
        return [_task(state) for state in states], total


def _project(item: dict[str, Any], url: str) -> dict[str, Any]:
    number = int(item["id"])
    return {
        "id": number,
        "title": str(item.get("title") or ""),
        "url": f"{url}/projects/{number}/data",
        "tasks": int(item.get("task_number") or 0),
        "annotated": int(item.get("num_tasks_with_annotations") or 0),
        "annotations": int(item.get("total_annotations_number") or 0),
        "predictions": int(item.get("total_predictions_number") or 0),
    }


def _task(state: TaskState) -> dict[str, Any]:
    # Uploads are called by their file, local files by the parameter that names it.
    uri = next((value for value in state.data.values() if isinstance(value, str) and "/" in value), "")
    parts = urlsplit(uri)
    name = PurePosixPath(unquote(parts.query.removeprefix("d=") or parts.path)).name
    return {"id": state.id, "name": name, "annotations": state.annotations, "predictions": state.predictions}
