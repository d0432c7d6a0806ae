"""The list of projects, for the web process: a plain request, since the SDK takes seconds and 200 MB to load."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from ml_backend.errors import LabelStudioError, LabelStudioUnavailable
from ml_backend.label_studio.client import LOGIN_CURE

if TYPE_CHECKING:
    import httpx

#: Seconds that people wait for a list, and that one is good for.
TIMEOUT_S = 5.0
FRESH_S = 3.0
#: Seconds for which it may be shown while a newer one is fetched.
STALE_S = 30.0
#: An access token is good for five minutes.
TOKEN_S = 240.0
_PAGE = 100
#: More projects than a list can be looked through.
_PAGES = 20


class ProjectLister:
    """Safe across threads; asks Label Studio at most once in a few seconds.

    Args:
        token: gives the configured token: a personal access token (a JWT), or a legacy one.
        links: where people reach it, for links; empty: ``url``.
    """

    def __init__(self, url: str, token: Callable[[], str], links: str = "") -> None:
        self._url, self._token, self._links = url, token, links or url
        self._lock = threading.Lock()
        self._known: tuple[float, list[dict[str, Any]]] | None = None
        self._access: tuple[float, str, str] | None = None

    def prepare(self) -> None:
        """Load what asking needs."""
        self._connected().close()

    def projects(self) -> list[dict[str, Any]]:
        """Id, title and numbers of tasks of every project that the token's user sees, newest first.

        Raises:
            LabelStudioUnavailable: it does not answer.
            LabelStudioError: it refuses.
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
            with self._translated():
                found = self._fetch()
            self._known = time.monotonic(), found
            return found
        finally:
            self._lock.release()

    def tasks(self, project_id: int, page: int, size: int) -> tuple[list[dict[str, Any]], int]:
        """A page of a project's tasks, from 1: id, name, number of annotations and predictions; and how many there are.

        Raises:
            LabelStudioUnavailable: it does not answer.
            LabelStudioError: it refuses, or has no such project.
        """
        wanted: dict[str, Any] = {
            "project": project_id,
            "page": page,
            "page_size": size,
            "fields": "task_only",
            "include": ["id", "data", "total_annotations", "total_predictions"],
        }
        with self._lock, self._translated():
            with self._connected() as client:
                answer = client.get(
                    "/api/tasks/", params=wanted, headers={"Authorization": self._authorization(client)}
                )
            if answer.status_code == 404:
                raise LabelStudioError(
                    f"Label Studio shows no tasks of project {project_id} on page {page}.",
                    "Go back to the first page, or choose another project.",
                )
            self._check(answer)
            body = answer.json()
            return [_task(item) for item in body["tasks"]], int(body["total"])

    def _connected(self) -> httpx.Client:
        import httpx  # with its command line's libraries as much as everything else of the web process's

        return httpx.Client(base_url=self._url, timeout=TIMEOUT_S)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        import httpx

        try:
            yield
        except httpx.HTTPError as error:
            raise LabelStudioUnavailable(
                f"Label Studio does not answer at {self._url} ({error.__class__.__name__}).",
                "Start it, or set LABEL_STUDIO_URL to where it is reachable from this process.",
            ) from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise LabelStudioError(
                f"What answers at {self._url} is not Label Studio's API.", "Correct LABEL_STUDIO_URL."
            ) from error

    def _check(self, answer: httpx.Response) -> None:
        if answer.status_code in (401, 403):
            self._access = None
            raise LabelStudioError(f"Label Studio refuses the token ({answer.status_code}).", LOGIN_CURE)
        answer.raise_for_status()

    def _fetch(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        with self._connected() as client:
            headers = {"Authorization": self._authorization(client)}
            for page in range(1, _PAGES + 1):
                parameters: dict[str, int | str] = {"page": page, "page_size": _PAGE, "ordering": "-id"}
                answer = client.get("/api/projects/", params=parameters, headers=headers)
                self._check(answer)
                body = answer.json()
                found += [_project(item, self._links) for item in body["results"]]
                if not body.get("next"):
                    break
        return found

    def _authorization(self, client: httpx.Client) -> str:
        token = self._token()
        if not token or not token.isascii():
            raise LabelStudioError("There is no token for Label Studio.", LOGIN_CURE)
        if token.count(".") != 2:  # not a JWT
            return f"Token {token}"
        now = time.monotonic()
        if self._access and self._access[1] == token and now - self._access[0] < TOKEN_S:
            return f"Bearer {self._access[2]}"
        answer = client.post("/api/token/refresh", json={"refresh": token})
        if answer.status_code in (400, 401, 403):
            raise LabelStudioError(f"Label Studio refuses the token ({answer.status_code}).", LOGIN_CURE)
        answer.raise_for_status()
        access = str(answer.json()["access"])
        self._access = now, token, access
        return f"Bearer {access}"


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


def _task(item: dict[str, Any]) -> dict[str, Any]:
    data = item.get("data") or {}
    # Uploads are called by their file, local files by the parameter that names it.
    uri = next((value for value in data.values() if isinstance(value, str) and "/" in value), "")
    parts = urlsplit(uri)
    return {
        "id": int(item["id"]),
        "name": PurePosixPath(unquote(parts.query.removeprefix("d=") or parts.path)).name,
        "annotations": int(item.get("total_annotations") or 0),
        "predictions": int(item.get("total_predictions") or 0),
    }
