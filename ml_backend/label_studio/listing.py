"""List projects and tasks for the web process, with short timeouts and a cache."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable
from functools import lru_cache
from itertools import islice
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from cachetools import TTLCache, cached

from ml_backend.core.errors import BackendError, ConfigError, LabelStudioUnavailable
from ml_backend.label_studio.client import LabelStudioClient, NotFound, TaskState, is_same_backend, sends_events
from ml_backend.label_studio.label_config import parse_label_config

log = logging.getLogger(__name__)

#: Timeout of a request, since people wait for it.
TIMEOUT_S = 5.0
#: Seconds for which a list is cached.
FRESH_S = 1.0
#: Seconds for which a list is shown while a newer one is fetched.
STALE_S = 30.0
#: Seconds to wait for the list that another thread is requesting, at most.
MAX_WAIT_S = 1.0
#: Seconds that a list may spend on counting the predicted tasks of projects, one request each; the next goes on.
COUNT_S = 1.0
#: Maximum length of the list.
_MAX_PROJECTS = 2000
#: Projects that are remembered to exist.
_PROJECTS_FOUND = 100
#: Tasks that are looked up by one request, whose address contains their ids.
TASKS_AT_ONCE = 500


class ProjectLister:
    """Lists projects and tasks; thread-safe. Requests the projects at most once in ``FRESH_S``.

    Args:
        token: returns the configured token, or the last one that Label Studio sent.
        links: URL of Label Studio for people's browsers; empty: ``url``.
        backend_url: URL to which projects are connected.
        credentials: returns the user and password that a project's events carry; ``None``: they need none.
        set_up: returns the projects that Label Studio has set up here, under whatever URL.
    """

    def __init__(
        self,
        url: str,
        token: Callable[[], str],
        links: str = "",
        *,
        backend_url: str = "",
        credentials: Callable[[int], tuple[str, str] | None] = lambda _: None,
        set_up: Callable[[], Collection[int]] = tuple,
    ) -> None:
        self._token, self._links = token, links or url
        self._backend_url, self._credentials, self._set_up = backend_url, credentials, set_up
        self._client = lru_cache(maxsize=1)(lambda token: LabelStudioClient(url, token, TIMEOUT_S, retries=0))
        self._lock = threading.Lock()
        self._cached: tuple[float, list[dict[str, Any]]] | None = None
        self._took_s = 0.0
        #: By project: the numbers of predictions and tasks when the predicted tasks were counted, and their number.
        self._predicted: dict[int, tuple[tuple[int, int], int]] = {}
        self._project = cached(TTLCache(_PROJECTS_FOUND, STALE_S), lock=threading.Lock())(
            lambda token, project_id: self._client(token).get_project(project_id)
        )

    def prepare(self) -> None:
        """Import the SDK, without a request."""
        sdk = LabelStudioClient("http://localhost", "none").sdk
        _ = sdk.projects, sdk.tasks, sdk.webhooks

    def projects(self) -> list[dict[str, Any]]:
        """Return every project visible to the token's user, newest first.

        Returns:
            Of each: ``id``, ``title``, ``url``, the numbers of ``tasks``, of those ``annotated`` and ``predicted``
            (``None``: not counted yet), of ``annotations`` and ``predictions``, whether it is ``connected`` to this
            backend (``None``: unknown), and ``config_problem``: ``message`` and ``hint`` if its label config is
            refused, else ``None``.

        Raises:
            LabelStudioError: Label Studio does not answer, or rejects the token.
        """
        cached = self._cached
        age = time.monotonic() - cached[0] if cached else STALE_S
        if cached and age < FRESH_S:
            return cached[1]
        # During a request others wait for as long as one usually takes, then use the cached list: waiting for a slow
        # Label Studio would block all of the server's threads.
        wait_s = -1 if age >= STALE_S else min(2 * self._took_s, MAX_WAIT_S)
        if not self._lock.acquire(timeout=wait_s) and cached:
            return cached[1]
        try:
            if self._cached and time.monotonic() - self._cached[0] < FRESH_S:
                return self._cached[1]
            started = time.monotonic()
            self._cached = started, self._list(self._client(self._token()))
            self._took_s = time.monotonic() - started
            return self._cached[1]
        finally:
            self._lock.release()

    def forget(self) -> None:
        """Request the projects again the next time."""
        self._cached = None

    def _list(self, client: LabelStudioClient) -> list[dict[str, Any]]:
        projects = [_project(item, self._links) for item in islice(client.list_projects(), _MAX_PROJECTS)]
        connected = self._connected(client)
        until = time.monotonic() + COUNT_S
        for project in projects:
            project["connected"] = None if connected is None else project["id"] in connected
            project["predicted"] = self._count_predicted(client, project, until)
        return projects

    def _connected(self, client: LabelStudioClient) -> set[int] | None:
        """Return the projects whose events reach this backend; ``None`` if that is unknown.

        Webhooks rather than models: they are listed in one request, and without Label Studio trying each model.
        """
        try:
            webhooks, set_up = client.list_webhooks(), self._set_up()
        except LabelStudioUnavailable:
            raise
        except BackendError as error:
            log.debug("Which projects are connected is unknown: %s", error)
            return None
        found: set[int] = set()
        for webhook in webhooks:
            base, _, path = str(webhook["url"]).rpartition("/")
            project = webhook.get("project")
            ours = project in set_up or is_same_backend(base, self._backend_url)
            if project and ours and path == "webhook" and sends_events(webhook, self._credentials(int(project))):
                found.add(int(project))
        return found

    def _count_predicted(self, client: LabelStudioClient, project: dict[str, Any], until: float) -> int | None:
        """Return how many tasks have a prediction, counted again only if the number of predictions or tasks changed."""
        totals = int(project["predictions"]), int(project["tasks"])
        if min(totals) <= 1:  # then each is of another
            return min(totals)
        counted = self._predicted.get(project["id"])
        if counted is None or counted[0] != totals:
            if time.monotonic() > until:
                return counted[1] if counted else None
            try:
                counted = self._predicted[project["id"]] = totals, client.count_predicted(project["id"])
            except NotFound:  # deleted meanwhile
                return None
        return counted[1]

    def check(self, project_id: int, task_ids: Iterable[int] = ()) -> None:
        """Raise unless a project, and these tasks of it, exist. A project is asked for once in ``STALE_S``.

        Raises:
            NotFound: the project or a task does not exist, or the token's user may not see it.
            LabelStudioError: Label Studio does not answer, or rejects the token.
        """
        token = self._token()
        self._project(token, project_id)
        ids = sorted(set(task_ids))
        for start in range(0, len(ids), TASKS_AT_ONCE):
            if missing := self._client(token).missing_tasks(project_id, ids[start : start + TASKS_AT_ONCE]):
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
        "config_problem": _config_problem(str(item.get("label_config") or "")),
    }


@lru_cache(maxsize=_MAX_PROJECTS)
def _config_problem(label_config: str) -> dict[str, str] | None:
    try:
        parse_label_config(label_config)
    except ConfigError as error:
        return {"message": error.message, "hint": error.hint}
    return None


def _task(state: TaskState) -> dict[str, Any]:
    # The file name of an upload is in the path, that of a local file in the parameter d.
    uri = next((value for value in state.data.values() if isinstance(value, str) and "/" in value), "")
    parts = urlsplit(uri)
    name = PurePosixPath(unquote(parts.query.removeprefix("d=") or parts.path)).name
    return {"id": state.id, "name": name, "annotations": state.annotations, "predictions": state.predictions}
