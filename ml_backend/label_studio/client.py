"""Label Studio's API as this project uses it: the SDK, with its errors translated once.

``label_studio_sdk.LabelStudio`` imports pandas and more for label configs and exports: 2 s of CPU time and 73 MB in the
web process. The class that it extends makes the same calls for 0.25 s and 4 MB.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ml_backend.core.errors import LabelStudioError, LabelStudioUnavailable
from ml_backend.core.settings import Settings
from ml_backend.core.timestamps import ensure_utc

log = logging.getLogger(__name__)

UPLOAD_HINT = (
    "Start Label Studio with a larger DATA_UPLOAD_MAX_MEMORY_SIZE (bytes, by default 250 MiB), or lay the file into "
    "its local files and import it with import_videos.py --local-files."
)
LOGIN_HINT = (
    "Set LABEL_STUDIO_API_KEY to a token from Label Studio's Account & Settings page "
    "(a personal access token, or a legacy token where these are enabled)."
)
#: Seconds for one call: a project of thousands of tasks takes Label Studio some, one that hangs is tried again.
TIMEOUT_S = 30.0
#: Cloud URIs stay as they were imported, so that a task's data can be written back.
_UNRESOLVED = {"additional_query_parameters": {"resolve_uri": "false"}}
#: Items that Label Studio lists at once.
_PAGE = 100


class NotFound(LabelStudioError):
    """The project, task or file is not there (deleted, or of another organisation)."""

    http_status = 404


@dataclass(frozen=True, slots=True)
class Project:
    """What is needed of a project."""

    id: int
    title: str
    label_config: str


@dataclass(frozen=True, slots=True)
class Task:
    """What is needed of a task.

    Attributes:
        data: the task's data, storage URIs as they were imported.
        annotations: how many annotations and drafts the task's timeline is in use by; those that were skipped and
            drafts do not count while they are empty.
        prediction_versions: model versions of the predictions that the task has.
    """

    id: int
    project_id: int
    data: dict[str, Any]
    annotations: int = 0
    prediction_versions: frozenset[str] = field(default_factory=frozenset)


@dataclass(frozen=True, slots=True)
class TaskState:
    """A task as lists show it.

    Attributes:
        annotations: how many; drafts and skipped ones do not count.
        updated_at: when it, or an annotation or prediction of it, was changed last.
        predictions: how many.
    """

    id: int
    data: dict[str, Any]
    annotations: int
    updated_at: datetime | None = None
    predictions: int = 0


@dataclass(frozen=True, slots=True)
class Annotation:
    """What a person submitted.

    Attributes:
        result: regions and other results, as in Label Studio's JSON.
        parent_prediction: id of the prediction that it was begun from, where Label Studio knows.
        created_at, updated_at: when it was submitted, and changed last; with time zone.
        lead_s: seconds that it took, until it was submitted.
    """

    id: int
    task_id: int
    result: list[dict[str, Any]]
    parent_prediction: int | None = None
    created_at: datetime | None = None
    updated_at: datetime | None = None
    lead_s: float | None = None


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a model said of a task; see :class:`Annotation`. ``model_version`` may be empty."""

    id: int
    model_version: str
    result: list[dict[str, Any]]
    created_at: datetime | None = None
    updated_at: datetime | None = None


class LabelStudioClient:
    """A thin client; safe across threads. Connects on first use, so that starting never waits for Label Studio.

    Args:
        token: a personal access token (the SDK exchanges it for access tokens), or a legacy one.
        timeout: seconds for an answer.
        retries: how often a call is made again after a server's error or none at all.
    """

    def __init__(self, url: str, token: str, timeout: float = TIMEOUT_S, retries: int = 2) -> None:
        self.url = url.rstrip("/")
        self._token = token
        self._timeout = timeout
        self._retries = retries

    @classmethod
    def from_settings(cls, settings: Settings, token: str | None = None) -> LabelStudioClient:
        return cls(settings.label_studio_url, token or settings.label_studio_api_key.get_secret_value())

    @cached_property
    def _sdk(self) -> Any:
        if not self._token:
            raise LabelStudioError("There is no token for Label Studio.", LOGIN_HINT)
        if not self._token.isascii():
            raise LabelStudioError("The token for Label Studio has characters that no token has.", LOGIN_HINT)
        from label_studio_sdk.base_client import LabelStudioBase

        return LabelStudioBase(base_url=self.url, api_key=self._token, timeout=self._timeout, max_retries=self._retries)

    def _translated(self, what: str) -> Any:
        return translated(self.url, what)

    def auth_headers(self) -> dict[str, str]:
        """Headers that authenticate a plain HTTP request to Label Studio; refreshes an expired access token."""
        with self._translated("refresh the access token"):
            headers: dict[str, str] = self._sdk._client_wrapper.get_headers()
        return {"Authorization": headers["Authorization"]}

    def whoami(self) -> str:
        """E-mail of the token's user: the cheapest call that proves URL and token."""
        with self._translated("say who the token belongs to"):
            return str(self._sdk.users.whoami().email)

    # -- projects

    def list_projects(self) -> Iterator[dict[str, Any]]:
        """Every project that the token's user sees, newest first, as the API describes it."""
        with self._translated("list its projects"):
            for project in _paged(self._sdk.projects.list(ordering="-id", page_size=_PAGE)):
                yield _plain(project)

    def get_project(self, project_id: int) -> Project:
        with self._translated(f"read project {project_id}"):
            project = self._sdk.projects.get(project_id)
            return Project(project_id, project.title or "", project.label_config or "")

    def create_project(self, title: str, label_config: str) -> int:
        with self._translated("create a project"):
            return int(self._sdk.projects.create(title=title, label_config=label_config).id)

    def set_label_config(self, project_id: int, label_config: str) -> None:
        """Replace a project's label config."""
        with self._translated(f"change the label config of project {project_id}"):
            self._sdk.projects.update(project_id, label_config=label_config)

    # -- tasks

    def get_task(self, task_id: int) -> Task:
        with self._translated(f"read task {task_id}"):
            task = self._sdk.tasks.get(str(task_id), request_options=_UNRESOLVED)
            annotations = [a for a in task.annotations or [] if _get(a, "result") or not _get(a, "was_cancelled")]
            drafts = [draft for draft in task.drafts or [] if _get(draft, "result")]
            versions = [_get(p, "model_version") for p in task.predictions or []]
            known = frozenset(str(version) for version in versions if version)
            return Task(task_id, int(task.project), dict(task.data or {}), len(annotations) + len(drafts), known)

    def get_full_task(self, task_id: int, project_id: int) -> dict[str, Any]:
        """One task as :meth:`list_full_tasks` gives it; NotFound where it is of another project."""
        with self._translated(f"read task {task_id}"):
            task = self._sdk.tasks.get(str(task_id), request_options=_UNRESOLVED)
            if int(task.project) == project_id:
                return {
                    "id": task_id,
                    "data": dict(task.data or {}),
                    "annotations": [_plain(item) for item in task.annotations or []],
                    "predictions": [_plain(item) for item in task.predictions or []],
                }
        raise NotFound(f"Task {task_id} is not in project {project_id}.", "Look up its number in Label Studio.")

    def _task_page(self, project_id: int, page: int, size: int) -> Any:
        wanted = ["id", "data", "total_annotations", "total_predictions", "updated_at"]
        return self._sdk.tasks.list(project=project_id, page=page, page_size=size, fields="task_only", include=wanted)

    def list_task_states(self, project_id: int) -> Iterator[TaskState]:
        """Every task of a project with its number of annotations, page by page."""
        with self._translated(f"list the tasks of project {project_id}"):
            yield from map(_state, _paged(self._task_page(project_id, 1, _PAGE)))

    def task_page(self, project_id: int, page: int, size: int) -> tuple[list[TaskState], int]:
        """One page of a project's tasks, from 1, and how many tasks it has."""
        with self._translated(f"list page {page} of the tasks of project {project_id}"):
            found = self._task_page(project_id, page, size)
            return [_state(task) for task in found.items or []], int(found.response.total)

    def list_task_ids(self, project_id: int) -> list[int]:
        """Ids of all tasks of a project."""
        return [state.id for state in self.list_task_states(project_id)]

    def list_full_tasks(self, project_id: int) -> Iterator[dict[str, Any]]:
        """Every task as Label Studio's JSON export has it: ``id``, ``data``, ``annotations`` and ``predictions``.

        Ids come page by page and each task by a request of its own: only one task's results are in memory at a time.
        Tasks that are deleted meanwhile are left out.
        """
        for state in self.list_task_states(project_id):
            try:
                full = self.get_full_task(state.id, project_id)
            except NotFound:
                continue
            yield full

    def create_task(self, project_id: int, data: Mapping[str, Any]) -> int:
        with self._translated(f"create a task in project {project_id}"):
            return int(self._sdk.tasks.create(project=project_id, data=dict(data)).id)

    def update_task_data(self, task_id: int, data: Mapping[str, Any]) -> None:
        """Replace the task's data; send all fields, not only the changed ones."""
        with self._translated(f"update the data of task {task_id}"):
            self._sdk.tasks.update(str(task_id), data=dict(data))

    # -- annotations and predictions

    def get_annotation(self, task_id: int) -> tuple[Task, Annotation | None]:
        """A task and the annotation that counts for it: a ground truth if there is one, else the latest.

        Skipped (cancelled) ones and drafts do not count.
        """
        task = self.get_task(task_id)
        with self._translated(f"read the annotations of task {task_id}"):
            found = [a for a in self._sdk.annotations.list(id=task_id) if not a.was_cancelled]
            if not found:
                return task, None
            best = max(found, key=lambda a: (bool(a.ground_truth), str(a.updated_at or a.created_at or ""), a.id))
            parent = best.parent_prediction
            result = [_plain(item) for item in best.result or []]
            moments = _moment(best.created_at), _moment(best.updated_at)
            lead = None if best.lead_time is None else float(best.lead_time)
            return task, Annotation(int(best.id), task_id, result, int(parent) if parent else None, *moments, lead)

    def create_annotation(self, task_id: int, result: Sequence[Mapping[str, Any]], prediction: int | None) -> int:
        """Submit an annotation, as a person does who began from a prediction; returns its id."""
        with self._translated(f"annotate task {task_id}"):
            of = {} if prediction is None else {"parent_prediction": prediction}
            return int(self._sdk.annotations.create(id=task_id, result=[dict(item) for item in result], **of).id)

    def list_predictions(self, task_id: int) -> list[Prediction]:
        """The predictions of a task with their results; none where the task is gone."""
        with self._translated(f"read the predictions of task {task_id}"):
            return [
                Prediction(
                    int(item.id),
                    str(item.model_version or ""),
                    [_plain(region) for region in item.result or []],
                    _moment(item.created_at),
                    _moment(item.updated_at),
                )
                for item in self._sdk.predictions.list(task=task_id)
            ]

    def create_prediction(self, task_id: int, prediction: Mapping[str, Any]) -> None:
        """Attach ``{"result", "score", "model_version"}`` to a task, unless one of this version is there already.

        Label Studio may fetch the same prediction by itself at the same moment (somebody opens the task), and has no
        constraint against two. The later one goes.
        """
        version = prediction["model_version"]
        with self._translated(f"store a prediction for task {task_id}"):
            created = self._sdk.predictions.create(
                task=task_id, result=prediction["result"], score=prediction.get("score"), model_version=version
            )
            same = [p.id for p in self._sdk.predictions.list(task=task_id) if p.model_version == version]
            if len(same) > 1 and created.id != min(same):
                self._sdk.predictions.delete(created.id)

    def renew_prediction(self, task_id: int, prediction: Mapping[str, Any], outdated: Callable[[str], bool]) -> bool:
        """Write a prediction over the newest one whose model version is ``outdated``; whether there was one.

        It must not be removed instead: somebody may have the task open, and Label Studio refuses an annotation that
        was begun from a prediction which is gone.
        """
        with self._translated(f"renew a prediction of task {task_id}"):
            found = [p.id for p in self._sdk.predictions.list(task=task_id) if outdated(str(p.model_version or ""))]
            if not found:
                return False
            self._sdk.predictions.update(
                max(found),
                task=task_id,
                result=prediction["result"],
                score=prediction.get("score"),
                model_version=prediction["model_version"],
            )
        return True

    # -- files

    def upload_file(self, project_id: int, path: Path) -> str:
        """Upload a file without making a task of it; returns its ``/data/upload/...`` path.

        Streams, which the SDK's ``projects.import_tasks`` cannot.
        """
        import httpx

        headers = self.auth_headers()
        url = f"{self.url}/api/projects/{project_id}/import"
        with self._translated(f"take the upload of {path.name}"), path.open("rb") as file:
            # Reading the answer to an upload takes as long as Label Studio needs to store it.
            timeout = httpx.Timeout(self._timeout, read=None, write=None)
            response = httpx.post(
                url,
                params={"commit_to_project": "false"},
                files={"file": (path.name, file, "application/octet-stream")},
                headers=headers,
                timeout=timeout,
            )
            response.raise_for_status()
            ids = response.json().get("file_upload_ids") or []
            if not ids:
                raise LabelStudioError(f"Label Studio took {path.name} but made no upload of it.")
            return "/data/" + quote(str(self._sdk.files.get(ids[0]).file).lstrip("/"))

    def ensure_local_files_storage(self, project_id: int, folder: Path) -> None:
        """Allow Label Studio to serve a folder (below its LOCAL_FILES_DOCUMENT_ROOT) for a project's tasks.

        The storage is not synchronised: it makes no tasks by itself.
        """
        with self._translated(f"serve {folder} for project {project_id}"):
            for storage in self._sdk.import_storage.local.list(project=project_id):
                if storage.path and folder.is_relative_to(storage.path):
                    return
            self._sdk.import_storage.local.create(
                project=project_id, path=str(folder), title=folder.name, use_blob_urls=True
            )

    # -- connecting a backend

    def list_backends(self, project_id: int) -> list[dict[str, Any]]:
        """The ML backends that are connected to a project, as the API describes them."""
        with self._translated(f"list the models of project {project_id}"):
            return [_plain(item) for item in self._sdk.ml.list(project=project_id)]

    def list_webhooks(self, project_id: int) -> list[dict[str, Any]]:
        """The webhooks of a project, as the API describes them."""
        with self._translated(f"list the webhooks of project {project_id}"):
            return [_plain(item) for item in self._sdk.webhooks.list(project=project_id)]

    def connect_backend(self, project_id: int, backend_url: str, basic_auth: tuple[str, str] | None = None) -> None:
        """Connect this service to a project and make its webhook carry the credentials that it needs.

        Label Studio makes the webhook by itself when a backend is connected, but without headers; with Basic auth on,
        its events would be refused. Calling this again changes nothing that is right.
        """
        backend_url = backend_url.rstrip("/")
        auth: dict[str, Any] = {}
        headers: dict[str, str] = {}
        if basic_auth:
            user, password = basic_auth
            auth = {"auth_method": "BASIC_AUTH", "basic_auth_user": user, "basic_auth_pass": password}
            headers = basic_auth_header(user, password)
        hook_url = f"{backend_url}/webhook"
        connected = [str(backend["url"]).rstrip("/") for backend in self.list_backends(project_id)]
        with self._translated(f"connect {backend_url} to project {project_id}"):
            if backend_url not in connected:
                self._sdk.ml.create(url=backend_url, project=project_id, title="Video pre-annotation", **auth)
            hooks = [hook for hook in self.list_webhooks(project_id) if hook["url"] == hook_url]
            if not hooks:
                self._sdk.webhooks.create(
                    url=hook_url, project=project_id, headers=headers, send_payload=True, send_for_all_actions=True
                )
            for hook in hooks:
                if headers and hook.get("headers") != headers:
                    self._sdk.webhooks.update(hook["id"], url=hook_url, headers=headers)


def basic_auth_header(user: str, password: str) -> dict[str, str]:
    """The header of HTTP's Basic authentication."""
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


def server_version(url: str, timeout: float = 30.0) -> str:
    """The release of the Label Studio at ``url``; asks without a token.

    Raises:
        LabelStudioError: nobody answers, or something else does.
    """
    import httpx

    with translated(url, "say its version"):
        response = httpx.get(f"{url}/api/version", timeout=timeout, follow_redirects=True)
        return str(response.raise_for_status().json()["release"])


def create_token(url: str, username: str, password: str) -> str:
    """Log in as the web page does and make a personal access token: the one way to get a first one.

    Label Studio allows one per user: an older one is revoked.

    Raises:
        LabelStudioError: wrong password, tokens are switched off, or nobody answers.
    """
    import httpx

    with translated(url, "make a token"), httpx.Client(base_url=url, timeout=30.0, trust_env=False) as session:
        session.get("/user/login/")
        form = {
            "email": username,
            "password": password,
            "csrfmiddlewaretoken": session.cookies.get("csrftoken") or "",
        }
        answer = session.post("/user/login/", data=form, headers={"Referer": f"{url}/user/login/"})
        if answer.status_code not in (301, 302):
            raise LabelStudioError(
                f"Label Studio refuses the password of {username}.",
                "If it was changed in Label Studio, make a personal access token there (Account & Settings) and put it "
                "into the data folder's file label-studio-token.",
            )
        headers = {"X-CSRFToken": session.cookies.get("csrftoken") or "", "Referer": url}
        created = session.post("/api/token/", headers=headers)
        if created.status_code == 409:
            for known in session.get("/api/token/").raise_for_status().json():
                session.post("/api/token/blacklist/", json={"refresh": known["token"]}, headers=headers)
            created = session.post("/api/token/", headers=headers)
        if created.status_code != 201:
            raise LabelStudioError(
                f"Label Studio makes no personal access token ({created.status_code}): {created.text[:200]}.",
                "Switch personal access tokens on under Organization > Access Token Settings.",
            )
        return str(created.json()["token"])


@contextmanager
def translated(url: str, what: str) -> Iterator[None]:
    """Turn the SDK's and httpx's errors into ours; ``what`` completes "Label Studio ... when asked to"."""
    import httpx
    from label_studio_sdk.core.api_error import ApiError
    from label_studio_sdk.core.parse_error import ParsingError

    try:
        yield
    except ApiError as error:
        raise _refused(url, what, error.status_code or 0, error.body) from error
    except httpx.HTTPStatusError as error:
        error.response.read()
        raise _refused(url, what, error.response.status_code, error.response.text[:500]) from error
    except httpx.HTTPError as error:
        raise LabelStudioUnavailable(
            f"Label Studio does not answer at {url} ({error.__class__.__name__}) when asked to {what}.",
            "Start it, or set LABEL_STUDIO_URL to where it is reachable from this process.",
        ) from error
    except (ParsingError, ValueError, TypeError, KeyError, AttributeError, httpx.InvalidURL) as error:
        # What answers is not Label Studio: the SDK and we find something else than we look for.
        log.debug("Not Label Studio's answer", exc_info=error)
        raise _refused(url, what, 0, "") from error


def _refused(url: str, what: str, status: int, body: object) -> LabelStudioError:
    if status < 400:
        return LabelStudioError(
            f"What answers at {url} is not Label Studio's API (asked to {what}).", "Correct LABEL_STUDIO_URL."
        )
    # "detail" is only "Validation error." where "validation_errors" says which.
    detail = (body.get("validation_errors") or body.get("detail")) if isinstance(body, Mapping) else body
    if status in (401, 403):
        return LabelStudioError(f"Label Studio refuses the token ({status}) when asked to {what}.", LOGIN_HINT)
    if status == 404:
        return NotFound(f"Label Studio does not know it (404) when asked to {what}.", "It may have been deleted.")
    if status >= 500 or status == 429:
        return LabelStudioUnavailable(f"Label Studio fails ({status}) when asked to {what}.", "See its log.")
    hint = UPLOAD_HINT if "Maximum total size" in str(detail) else ""
    return LabelStudioError(f"Label Studio refuses ({status}) to {what}: {str(detail)[:500]}.", hint)


def _paged(page: Any) -> Iterator[Any]:
    """The items of a page and of those after it; asks for no page after the last, which Label Studio answers by 404."""
    from label_studio_sdk.core.api_error import ApiError

    seen = 0
    while page is not None and page.items:
        yield from page.items
        seen += len(page.items)
        if not (page.response.next if hasattr(page.response, "next") else seen < page.response.total):
            return
        try:
            page = page.next_page()
        except ApiError as error:  # some were deleted meanwhile, and with them the last page
            if error.status_code != 404:
                raise
            return


def _state(task: Any) -> TaskState:
    annotations, predictions = (int(_get(task, name) or 0) for name in ("total_annotations", "total_predictions"))
    return TaskState(int(task.id), dict(task.data or {}), annotations, _moment(_get(task, "updated_at")), predictions)


def _moment(value: Any) -> datetime | None:
    return ensure_utc(value) if isinstance(value, datetime) else None


def _plain(item: Any) -> dict[str, Any]:
    return dict(item) if isinstance(item, Mapping) else dict(item.dict())


def _get(item: Any, name: str) -> Any:
    return item.get(name) if isinstance(item, Mapping) else getattr(item, name, None)
