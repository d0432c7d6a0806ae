"""List projects and tasks for the web process, with short timeouts and a cache."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from functools import lru_cache
from itertools import islice
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from cachetools import TTLCache, cached

from ml_backend.label_studio.client import LabelStudioClient, NotFound, TaskState

#: Timeout of a request, since people wait for it.
TIMEOUT_S = 5.0
#: Seconds for which a list is cached.
FRESH_S = 3.0
#: Seconds for which a list is shown while a newer one is fetched.
STALE_S = 30.0
#: Maximum length of the list.
_MAX_PROJECTS = 2000
#: Projects that are remembered to exist.
_PROJECTS_FOUND = 100
#: Tasks that are looked up by one request, whose address contains their ids.
_TASKS_AT_ONCE = 500


class ProjectLister:
    """Lists projects and tasks; thread-safe. Requests the projects at most once in ``FRESH_S``.

    Args:
        token: returns the configured token, or the last one that Label Studio sent.
        links: URL of Label Studio for people's browsers; empty: ``url``.
    """

    def __init__(self, url: str, token: Callable[[], str], links: str = "") -> None:
        self._token, self._links = token, links or url
        self._client = lru_cache(maxsize=1)(lambda token: LabelStudioClient(url, token, TIMEOUT_S, retries=0))
        self._lock = threading.Lock()
        self._cached: tuple[float, list[dict[str, Any]]] | None = None
        self._project = cached(TTLCache(_PROJECTS_FOUND, STALE_S), lock=threading.Lock())(
            lambda token, project_id: self._client(token).get_project(project_id)
        )

    def prepare(self) -> None:
        """Import the SDK, without a request."""
        sdk = LabelStudioClient("http://localhost", "none").sdk
        _ = sdk.projects, sdk.tasks

    def projects(self) -> list[dict[str, Any]]:
        """Return id, title and task counts of every project visible to the token's user, newest first.

        Raises:
            LabelStudioError: Label Studio does not answer, or rejects the token.
        """
        cached = self._cached
        age = time.monotonic() - cached[0] if cached else STALE_S
        if cached and age < FRESH_S:
            return cached[1]
        # During a request others use the cached list: waiting would block all of the server's threads.
        if not self._lock.acquire(blocking=age >= STALE_S) and cached:
            return cached[1]
        try:
            if self._cached and time.monotonic() - self._cached[0] < FRESH_S:
                return self._cached[1]
            projects = self._client(self._token()).list_projects()
            self._cached = time.monotonic(), [_project(item, self._links) for item in islice(projects, _MAX_PROJECTS)]
            return self._cached[1]
        finally:
            self._lock.release()

    def check(self, project_id: int, task_ids: Iterable[int] = ()) -> None:
        """Raise unless a project, and these tasks of it, exist. A project is asked for once in ``STALE_S``.

        Raises:
            NotFound: the project or a task does not exist, or the token's user may not see it.
            LabelStudioError: Label Studio does not answer, or rejects the token.
        """
        token = self._token()
        self._project(token, project_id)
        ids = sorted(set(task_ids))
        for start in range(0, len(ids), _TASKS_AT_ONCE):
            if missing := self._client(token).missing_tasks(project_id, ids[start : start + _TASKS_AT_ONCE]):
                raise NotFound(f"Task {missing[0]} is not in project {project_id}.", "Look up its id in Label Studio.")

    def tasks(self, project_id: int, page: int, size: int) -> tuple[list[dict[str, Any]], int]:
        """Return a page of a project's tasks, from 1 (id, name, annotation and prediction counts), and their total.

        Raises:
            LabelStudioError: Label Studio does not answer, rejects the token, or has no such project or page.
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
    # The file name of an upload is in the path, that of a local file in the parameter d.
    uri = next((value for value in state.data.values() if isinstance(value, str) and "/" in value), "")
    parts = urlsplit(uri)
    name = PurePosixPath(unquote(parts.query.removeprefix("d=") or parts.path)).name
    return {"id": state.id, "name": name, "annotations": state.annotations, "predictions": state.predictions}
