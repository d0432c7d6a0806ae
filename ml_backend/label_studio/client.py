"""Client of Label Studio's API: the SDK with its errors translated.

Uses ``LabelStudioBase`` instead of ``label_studio_sdk.LabelStudio``, which imports pandas: 0.25 s of CPU time and 4 MB
in the web process instead of 2 s and 73 MB.
"""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from ml_backend.core.errors import LabelStudioError, LabelStudioUnavailable
from ml_backend.core.settings import Settings
from ml_backend.core.timestamps import ensure_utc

log = logging.getLogger(__name__)

UPLOAD_HINT = (
    "Start Label Studio with a larger DATA_UPLOAD_MAX_MEMORY_SIZE (bytes, by default 250 MiB), or put the file into "
    "its local files and import it with import_videos.py --local-files."
)
LOCAL_IP_HINT = (
    "Label Studio refuses local addresses unless it runs with "
    "SSRF_PROTECTION_ENABLED=false and ML_BLOCK_LOCAL_IP=false."
)
CONNECT_HINT = f"Set BACKEND_URL to an address at which Label Studio reaches this backend. {LOCAL_IP_HINT}"
LOGIN_HINT = (
    "Set LABEL_STUDIO_API_KEY to a token from Label Studio's Account & Settings page "
    "(a personal access token, or a legacy token where these are enabled)."
)
#: Timeout of one call in seconds; large projects take Label Studio several.
TIMEOUT_S = 30.0
#: Keeps cloud URIs as they were imported, so that a task's data can be written back.
_UNRESOLVED = {"additional_query_parameters": {"resolve_uri": "false"}}
#: Names of a backend on Label Studio's own machine, or in its compose network.
_THIS_MACHINE = frozenset({"localhost", "127.0.0.1", "host.docker.internal", "backend"})
#: Items per page.
_PAGE_SIZE = 100


class NotFound(LabelStudioError):
    """The project, task or file does not exist, or is of another organisation."""

    http_status = 404


class TokenRefused(LabelStudioError):
    """Label Studio does not take the token."""


@dataclass(frozen=True, slots=True)
class Project:
    """The fields of a project that are used."""

    id: int
    title: str
    label_config: str


@dataclass(frozen=True, slots=True)
class Task:
    """The fields of a task that are used.

    Attributes:
        data: the task's data, with storage URIs as they were imported.
        annotations: number of annotations and drafts, except empty drafts and skipped annotations without result.
        prediction_versions: model versions of the task's predictions.
    """

    id: int
    project_id: int
    data: dict[str, Any]
    annotations: int = 0
    prediction_versions: frozenset[str] = field(default_factory=frozenset)


@dataclass(frozen=True, slots=True)
class TaskState:
    """A task as listed.

    Attributes:
        annotations: number of annotations, without drafts and skipped ones.
        updated_at: last change of the task, its annotations or predictions.
        predictions: number of predictions.
    """

    id: int
    data: dict[str, Any]
    annotations: int
    updated_at: datetime | None = None
    predictions: int = 0


@dataclass(frozen=True, slots=True)
class Annotation:
    """A submitted annotation.

    Attributes:
        result: regions and other results, as in Label Studio's JSON.
        parent_prediction: id of the prediction that it was started from, if known.
        created_at, updated_at: times of submission and last change, with time zone.
        lead_s: annotation time in seconds.
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
    """A prediction for a task; see :class:`Annotation`. ``model_version`` may be empty."""

    id: int
    model_version: str
    result: list[dict[str, Any]]
    created_at: datetime | None = None
    updated_at: datetime | None = None


class LabelStudioClient:
    """Thread-safe client that connects on first use, so that startup never waits for Label Studio.

    Args:
        token: a personal access token (the SDK exchanges it for access tokens), or a legacy one.
        timeout: of a response, in seconds.
        retries: of a call after a server error or no response.
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
    def sdk(self) -> Any:
        if not self._token:
            raise TokenRefused("There is no token for Label Studio.", LOGIN_HINT)
        if not self._token.isascii():
            raise TokenRefused("The token for Label Studio has characters that are not ASCII.", LOGIN_HINT)
        from label_studio_sdk.base_client import LabelStudioBase

        return LabelStudioBase(base_url=self.url, api_key=self._token, timeout=self._timeout, max_retries=self._retries)

    def _errors(self, action: str) -> Any:
        return translate_errors(self.url, action)

    def auth_headers(self) -> dict[str, str]:
        """Return headers that authenticate a plain HTTP request; refreshes an expired access token."""
        with self._errors("refresh the access token"):
            headers: dict[str, str] = self.sdk._client_wrapper.get_headers()  # noqa: SLF001 - no public way
        return {"Authorization": headers["Authorization"]}

    def whoami(self) -> str:
        """Return the e-mail of the token's user: the cheapest call that checks URL and token."""
        with self._errors("say who the token belongs to"):
            return str(self.sdk.users.whoami().email)

    def account(self) -> tuple[str, bool]:
        """Return the e-mail of the token's user, and whether the organisation is theirs."""
        import httpx

        with self._errors("say who the token belongs to"):
            user = self.sdk.users.whoami()
            if not user.active_organization:
                return str(user.email), False
            # The SDK's type of an organisation is that of Label Studio Enterprise, and lacks its owner.
            path = f"{self.url}/api/organizations/{int(user.active_organization)}"
            response = httpx.get(path, headers=self.auth_headers(), timeout=self._timeout, follow_redirects=True)
            facts = response.json() if response.status_code == 200 else {}  # some may not look at it
            return str(user.email), facts.get("created_by") == user.id

    # -- projects

    def project_ids(self) -> frozenset[int]:
        """Return the ids of every project visible to the token's user."""
        with self._errors("list its projects"):
            return frozenset(
                int(item.id) for item in _paged(self.sdk.projects.list(include="id", page_size=_PAGE_SIZE))
            )

    def list_projects(self) -> Iterator[dict[str, Any]]:
        """Yield every project visible to the token's user, newest first, as JSON of the API."""
        with self._errors("list its projects"):
            for project in _paged(self.sdk.projects.list(ordering="-id", page_size=_PAGE_SIZE)):
                yield _to_dict(project)

    def get_project(self, project_id: int) -> Project:
        """Return a project.

        Raises:
            NotFound: it does not exist, or the token's user may not see it.
        """
        try:
            with self._errors(f"read project {project_id}"):
                project = self.sdk.projects.get(project_id)
                return Project(project_id, project.title or "", project.label_config or "")
        except NotFound as error:
            raise NotFound(f"Project {project_id} was not found.", "Check the number in its address.") from error

    def create_project(self, title: str, label_config: str) -> int:
        with self._errors("create a project"):
            return int(self.sdk.projects.create(title=title, label_config=label_config).id)

    def set_label_config(self, project_id: int, label_config: str) -> None:
        """Replace a project's label config."""
        with self._errors(f"change the label config of project {project_id}"):
            self.sdk.projects.update(project_id, label_config=label_config)

    # -- tasks

    def get_task(self, task_id: int) -> Task:
        with self._errors(f"read task {task_id}"):
            task = self.sdk.tasks.get(str(task_id), request_options=_UNRESOLVED)
            annotations = [a for a in task.annotations or [] if _get(a, "result") or not _get(a, "was_cancelled")]
            drafts = [draft for draft in task.drafts or [] if _get(draft, "result")]
            versions = [_get(p, "model_version") for p in task.predictions or []]
            used_versions = frozenset(str(version) for version in versions if version)
            return Task(
                task_id, int(task.project), dict(task.data or {}), len(annotations) + len(drafts), used_versions
            )

    def get_full_task(self, task_id: int, project_id: int) -> dict[str, Any]:
        """Return one task as :meth:`list_full_tasks` does, and its ``drafts``.

        Raises:
            NotFound: it does not exist, or is of another project.
        """
        with self._errors(f"read task {task_id}"):
            task = self.sdk.tasks.get(str(task_id), request_options=_UNRESOLVED)
            if int(task.project) == project_id:
                return {
                    "id": task_id,
                    "data": dict(task.data or {}),
                    "annotations": [_to_dict(item) for item in task.annotations or []],
                    "predictions": [_to_dict(item) for item in task.predictions or []],
                    "drafts": [_to_dict(item) for item in task.drafts or []],
                }
        raise NotFound(f"Task {task_id} is not in project {project_id}.", "Look up its id in Label Studio.")

    def missing_tasks(self, project_id: int, task_ids: Collection[int]) -> list[int]:
        """Return those of some tasks, a few hundred at most, that a project does not have."""
        chosen = json.dumps({"selectedItems": {"all": False, "included": sorted(task_ids)}})
        options = {"page_size": len(task_ids), "query": chosen, "fields": "task_only", "include": ["id"]}
        with self._errors(f"look up tasks of project {project_id}"):
            found = _paged(self.sdk.tasks.list(project=project_id, **options))
            return sorted(set(task_ids) - {int(task.id) for task in found})

    def _task_page(self, project_id: int, page: int, size: int) -> Any:
        fields = ["id", "data", "total_annotations", "total_predictions", "updated_at"]
        return self.sdk.tasks.list(project=project_id, page=page, page_size=size, fields="task_only", include=fields)

    def list_task_states(self, project_id: int) -> Iterator[TaskState]:
        """Yield every task of a project with its counts, page by page."""
        with self._errors(f"list the tasks of project {project_id}"):
            yield from map(_task_state, _paged(self._task_page(project_id, 1, _PAGE_SIZE)))

    def task_page(self, project_id: int, page: int, size: int) -> tuple[list[TaskState], int]:
        """Return one page of a project's tasks, from 1, and the total number of tasks."""
        with self._errors(f"list page {page} of the tasks of project {project_id}"):
            response = self._task_page(project_id, page, size)
            return [_task_state(task) for task in response.items or []], int(response.response.total)

    def list_full_tasks(self, project_id: int) -> Iterator[dict[str, Any]]:
        """Yield every task as in Label Studio's JSON export: ``id``, ``data``, ``annotations`` and ``predictions``.

        Each task is requested separately, so that only one task's results are in memory at a time.
        Tasks that are deleted meanwhile are left out.
        """
        for state in self.list_task_states(project_id):
            try:
                full = self.get_full_task(state.id, project_id)
            except NotFound:
                continue
            yield full

    def count_predicted(self, project_id: int) -> int:
        """Return the number of a project's tasks that have a prediction; a task may have several."""
        has_prediction = {
            "filter": "filter:tasks:total_predictions",
            "operator": "greater",
            "type": "Number",
            "value": 0,
        }
        query = json.dumps({"filters": {"conjunction": "and", "items": [has_prediction]}})
        with self._errors(f"count the predicted tasks of project {project_id}"):
            # "include" limits what is computed for the one task that is returned.
            page = self.sdk.tasks.list(
                project=project_id, page=1, page_size=1, fields="task_only", include=["id"], query=query
            )
            return int(page.response.total)

    def create_task(self, project_id: int, data: Mapping[str, Any]) -> int:
        with self._errors(f"create a task in project {project_id}"):
            return int(self.sdk.tasks.create(project=project_id, data=dict(data)).id)

    def update_task_data(self, task_id: int, data: Mapping[str, Any]) -> None:
        """Replace the task's data; send all fields, not only the changed ones."""
        with self._errors(f"update the data of task {task_id}"):
            self.sdk.tasks.update(str(task_id), data=dict(data))

    # -- the Data Manager

    def set_task_field(self, project_id: int, task_id: int, name: str, value: str) -> None:
        """Set one field of a task's data, which becomes a column of the Data Manager.

        Label Studio changes this field only: other fields are neither sent nor lost, and the task does not count as
        updated. It cannot remove a field.
        """
        import httpx

        body = {"selectedItems": {"all": False, "included": [task_id]}, "project": project_id}
        body |= {"value_name": name, "value_type": "String", "value": value}
        with self._errors(f"set the field {name} of task {task_id}"):
            response = httpx.post(
                f"{self.url}/api/dm/actions",
                params={"id": "add_data_field", "project": project_id},
                json=body,
                headers=self.auth_headers(),
                timeout=self._timeout,
            )
            response.raise_for_status()

    def put_tab(
        self,
        project_id: int,
        title: str,
        filters: Sequence[Mapping[str, Any]],
        ordering: Sequence[str] = (),
        conjunction: str = "and",
    ) -> int:
        """Make a tab of the Data Manager, or change the one of this title, whose columns stay as people set them.

        Args:
            filters: each with ``filter``, ``operator``, ``type`` and ``value``, as in Label Studio's API.
            ordering: columns, as in Label Studio's API.

        Returns:
            The tab's id.
        """
        with self._errors(f"change the tab {title!r} of project {project_id}"):
            tabs = [item for item in self.sdk.views.list(project=project_id) if (item.data or {}).get("title") == title]
            chosen: dict[str, Any] = {
                "filters": {"conjunction": conjunction, "items": [dict(item) for item in filters]}
            }
            chosen |= {"ordering": list(ordering)} if ordering else {}
            if tabs:
                self.sdk.views.update(str(tabs[0].id), project=project_id, data={**tabs[0].data, **chosen})
                return int(tabs[0].id)
            facts = {"title": title, "type": "list", "target": "tasks", **chosen}
            return int(self.sdk.views.create(project=project_id, data=facts).id)

    # -- annotations and predictions

    def get_annotation(self, task_id: int) -> tuple[Task, Annotation | None]:
        """Return a task and its ground truth annotation, or else its latest.

        Skipped (cancelled) annotations and drafts are ignored.
        """
        task = self.get_task(task_id)
        with self._errors(f"read the annotations of task {task_id}"):
            annotations = [a for a in self.sdk.annotations.list(id=task_id) if not a.was_cancelled]
            if not annotations:
                return task, None
            best = max(annotations, key=lambda a: (bool(a.ground_truth), str(a.updated_at or a.created_at or ""), a.id))
            parent = best.parent_prediction
            result = [_to_dict(item) for item in best.result or []]
            times = _utc(best.created_at), _utc(best.updated_at)
            lead_s = None if best.lead_time is None else float(best.lead_time)
            return task, Annotation(int(best.id), task_id, result, int(parent) if parent else None, *times, lead_s)

    def create_annotation(
        self,
        task_id: int,
        result: Sequence[Mapping[str, Any]],
        prediction: int | None,
        *,
        annotation: int | None = None,
        ground_truth: bool = False,
    ) -> int:
        """Submit an annotation, optionally started from a prediction or another annotation; return its id."""
        with self._errors(f"annotate task {task_id}"):
            parents = {"parent_prediction": prediction, "parent_annotation": annotation}
            given = {name: value for name, value in parents.items() if value is not None}
            given |= {"ground_truth": True} if ground_truth else {}
            return int(self.sdk.annotations.create(id=task_id, result=[dict(item) for item in result], **given).id)

    def update_annotation(self, annotation_id: int, result: Sequence[Mapping[str, Any]]) -> None:
        """Replace the regions and other results of an annotation."""
        with self._errors(f"update annotation {annotation_id}"):
            self.sdk.annotations.update(id=annotation_id, result=[dict(item) for item in result])

    def delete_annotation(self, annotation_id: int) -> None:
        with self._errors(f"delete annotation {annotation_id}"):
            self.sdk.annotations.delete(id=annotation_id)

    def list_predictions(self, task_id: int) -> list[Prediction]:
        """Return the predictions of a task with their results; empty if the task was deleted."""
        with self._errors(f"read the predictions of task {task_id}"):
            return [
                Prediction(
                    int(item.id),
                    str(item.model_version or ""),
                    [_to_dict(region) for region in item.result or []],
                    _utc(item.created_at),
                    _utc(item.updated_at),
                )
                for item in self.sdk.predictions.list(task=task_id)
            ]

    def create_prediction(self, task_id: int, prediction: Mapping[str, Any]) -> None:
        """Attach ``{"result", "score", "model_version"}`` to a task, unless it has one of this version.

        Label Studio may fetch the same prediction at the same moment (when a task is opened) and has no unique
        constraint, so the later of two is deleted.
        """
        version = prediction["model_version"]
        with self._errors(f"store a prediction for task {task_id}"):
            created = self.sdk.predictions.create(
                task=task_id, result=prediction["result"], score=prediction.get("score"), model_version=version
            )
            same = [p.id for p in self.sdk.predictions.list(task=task_id) if p.model_version == version]
            if len(same) > 1 and created.id != min(same):
                self.sdk.predictions.delete(created.id)

    def renew_prediction(self, task_id: int, prediction: Mapping[str, Any], outdated: Callable[[str], bool]) -> bool:
        """Overwrite the newest prediction whose model version is ``outdated``; return whether there was one.

        It is not deleted, because Label Studio rejects annotations that were started from a deleted prediction.
        """
        with self._errors(f"renew a prediction of task {task_id}"):
            ids = [p.id for p in self.sdk.predictions.list(task=task_id) if outdated(str(p.model_version or ""))]
            if not ids:
                return False
        self.update_prediction(task_id, max(ids), prediction)
        return True

    def update_prediction(self, task_id: int, prediction_id: int, prediction: Mapping[str, Any]) -> None:
        """Overwrite a prediction with ``{"result", "score", "model_version"}``."""
        with self._errors(f"renew a prediction of task {task_id}"):
            self.sdk.predictions.update(
                prediction_id,
                task=task_id,
                result=prediction["result"],
                score=prediction.get("score"),
                model_version=prediction["model_version"],
            )

    # -- files

    def upload_file(self, project_id: int, path: Path) -> str:
        """Upload a file without creating a task; return its ``/data/upload/...`` path.

        Streams the file, unlike the SDK's ``projects.import_tasks``.
        """
        import httpx

        headers = self.auth_headers()
        url = f"{self.url}/api/projects/{project_id}/import"
        with self._errors(f"take the upload of {path.name}"), path.open("rb") as file:
            # No read timeout: Label Studio responds only once the file is stored.
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
                raise LabelStudioError(f"Label Studio received {path.name} but created no upload.")
            return "/data/" + quote(str(self.sdk.files.get(ids[0]).file).lstrip("/"))

    def local_files_folders(self, project_id: int) -> list[str]:
        """Return the folders of a project's local files storages, as Label Studio sees them."""
        with self._errors(f"list the local files storages of project {project_id}"):
            return [str(item.path) for item in self.sdk.import_storage.local.list(project=project_id) if item.path]

    def ensure_local_files_storage(self, project_id: int, folder: Path) -> None:
        """Allow Label Studio to serve a folder (below its LOCAL_FILES_DOCUMENT_ROOT) for a project's tasks.

        The storage is not synchronised, so it creates no tasks.
        """
        if any(folder.is_relative_to(served) for served in self.local_files_folders(project_id)):
            return
        with self._errors(f"serve {folder} for project {project_id}"):
            self.sdk.import_storage.local.create(
                project=project_id, path=str(folder), title=folder.name, use_blob_urls=True
            )

    # -- connecting a backend

    def list_backends(self, project_id: int) -> list[dict[str, Any]]:
        """Return the ML backends connected to a project, as JSON of the API."""
        with self._errors(f"list the models of project {project_id}"):
            return [_to_dict(item) for item in self.sdk.ml.list(project=project_id)]

    def list_webhooks(self, project_id: int | None = None) -> list[dict[str, Any]]:
        """Return the webhooks of a project, by default of all projects, as JSON of the API."""
        with self._errors("list the webhooks" + (f" of project {project_id}" if project_id else "")):
            return [_to_dict(item) for item in self.sdk.webhooks.list(project=project_id)]

    def connect_backend(self, project_id: int, backend_url: str, basic_auth: tuple[str, str] | None = None) -> None:
        """Connect this service to a project, and repair its webhook. Idempotent.

        Label Studio creates the webhook when a backend is connected, but without headers, so that its events would be
        refused if Basic auth is on. A connection by another name of this machine stays as it is.

        Raises:
            LabelStudioError: Label Studio does not reach the URL, or there is no such project.
        """
        auth: dict[str, Any] = {}
        headers: dict[str, str] = {}
        if basic_auth:
            user, password = basic_auth
            auth = {"auth_method": "BASIC_AUTH", "basic_auth_user": user, "basic_auth_pass": password}
            headers = basic_auth_header(user, password)
        backends = self.list_backends(project_id)
        connected = next((item for item in backends if is_same_backend(str(item["url"]), backend_url)), None)
        url = str(connected["url"] if connected else backend_url).rstrip("/")
        with _hint(CONNECT_HINT), self._errors(f"connect {url} to project {project_id}"):
            if connected is None:
                facts = {"url": url, "project": project_id, "title": "Video pre-annotation"}
                self.sdk.ml.create(**facts, is_interactive=True, **auth)
            elif not connected["is_interactive"]:  # drawn boxes are followed only then
                self.sdk.ml.update(connected["id"], url=url, project=project_id, is_interactive=True)
            hook_url = f"{url}/webhook"
            hooks = [hook for hook in self.list_webhooks(project_id) if hook["url"] == hook_url]
            if not hooks:
                self.sdk.webhooks.create(
                    url=hook_url, project=project_id, headers=headers, send_payload=True, send_for_all_actions=True
                )
            for hook in hooks:
                if not sends_events(hook, basic_auth):
                    switched_on = {"is_active": True, "send_payload": True, "send_for_all_actions": True}
                    self.sdk.webhooks.update(hook["id"], **switched_on, **({"headers": headers} if headers else {}))


def is_same_backend(url: str, backend_url: str) -> bool:
    """Return whether a URL that Label Studio uses is the backend's, if need be by another name of its machine.

    Label Studio may use another name than people do, such as ``http://backend:9090`` in a compose network.
    """
    if url.rstrip("/") == backend_url.rstrip("/"):
        return True
    try:
        used = urlsplit(url)
        return used.port is not None and used.port == urlsplit(backend_url).port and used.hostname in _THIS_MACHINE
    except ValueError:  # somebody's webhook has a malformed port
        return False


def sends_events(webhook: Mapping[str, Any], basic_auth: tuple[str, str] | None) -> bool:
    """Return whether a webhook is switched on, and its events name tasks and carry the backend's credentials."""
    if not (webhook.get("is_active") and webhook.get("send_payload")):
        return False
    return basic_auth is None or authorization(webhook) == basic_auth_header(*basic_auth)["Authorization"]


def authorization(webhook: Mapping[str, Any]) -> str:
    """Return the header ``Authorization`` of a webhook, or an empty string."""
    headers = {str(name).lower(): str(value) for name, value in (webhook.get("headers") or {}).items()}
    return headers.get("authorization", "")


def basic_auth_header(user: str, password: str) -> dict[str, str]:
    """Return the header of HTTP Basic authentication."""
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


def server_version(url: str, timeout: float = 30.0) -> str:
    """Return the release of the Label Studio at ``url``, without a token.

    Raises:
        LabelStudioError: there is no response, or not from Label Studio.
    """
    import httpx

    with translate_errors(url, "return its version"):
        response = httpx.get(f"{url}/api/version", timeout=timeout, follow_redirects=True)
        return str(response.raise_for_status().json()["release"])


def create_token(url: str, username: str, password: str) -> str:
    """Log in as the web page does and create a personal access token, the only way to get a first one.

    Label Studio allows one per user: an older one is revoked.

    Raises:
        LabelStudioError: wrong password, tokens are disabled, or there is no response.
    """
    import httpx

    with translate_errors(url, "create a token"), httpx.Client(base_url=url, timeout=120.0, trust_env=False) as session:
        session.get("/user/login/")
        form = {
            "email": username,
            "password": password,
            "csrfmiddlewaretoken": session.cookies.get("csrftoken") or "",
        }
        response = session.post("/user/login/", data=form, headers={"Referer": f"{url}/user/login/"})
        if response.status_code not in (301, 302):
            raise LabelStudioError(
                f"Label Studio refuses the password of {username}.",
                "If it was changed in Label Studio, create a personal access token there (Account & Settings) and put "
                "it into the data folder's file label-studio-token.",
            )
        headers = {"X-CSRFToken": session.cookies.get("csrftoken") or "", "Referer": url}
        created = session.post("/api/token/", headers=headers)
        if created.status_code == 409:
            for token in session.get("/api/token/").raise_for_status().json():
                session.post("/api/token/blacklist/", json={"refresh": token["token"]}, headers=headers)
            created = session.post("/api/token/", headers=headers)
        if created.status_code != 201:
            raise LabelStudioError(
                f"Label Studio creates no personal access token ({created.status_code}): {created.text[:200]}.",
                "Enable personal access tokens under Organization > Access Token Settings.",
            )
        return str(created.json()["token"])


@contextmanager
def translate_errors(url: str, action: str) -> Iterator[None]:
    """Convert errors of the SDK and httpx to ours; ``action`` completes "Label Studio ... when asked to"."""
    import httpx
    from label_studio_sdk.core.api_error import ApiError
    from label_studio_sdk.core.parse_error import ParsingError

    try:
        yield
    except ApiError as error:
        raise _status_error(url, action, error.status_code or 0, error.body) from error
    except httpx.HTTPStatusError as error:
        error.response.read()
        raise _status_error(url, action, error.response.status_code, error.response.text[:500]) from error
    except httpx.HTTPError as error:
        raise LabelStudioUnavailable(
            f"Label Studio does not answer at {url} ({error.__class__.__name__}) when asked to {action}.",
            "Start it, or set LABEL_STUDIO_URL to an address that is reachable from this process.",
        ) from error
    except (ParsingError, ValueError, TypeError, KeyError, AttributeError, httpx.InvalidURL) as error:
        # Not Label Studio's API: the response has an unexpected shape.
        log.debug("Not a response of Label Studio", exc_info=error)
        raise _status_error(url, action, 0, "") from error


@contextmanager
def _hint(hint: str) -> Iterator[None]:
    """Give errors of Label Studio that have no hint this one."""
    try:
        yield
    except LabelStudioError as error:
        error.hint = error.hint or hint
        raise


def _status_error(url: str, action: str, status: int, body: object) -> LabelStudioError:
    if status < 400:
        return LabelStudioError(
            f"The server at {url} is not Label Studio (asked to {action}).", "Correct LABEL_STUDIO_URL."
        )
    # "detail" is just "Validation error." if there are "validation_errors".
    detail = (body.get("validation_errors") or body.get("detail")) if isinstance(body, Mapping) else body
    if status in (401, 403):
        return TokenRefused(f"Label Studio refuses the token ({status}) when asked to {action}.", LOGIN_HINT)
    if status == 404:
        return NotFound(f"Label Studio answers 'not found' (404) when asked to {action}.", "It may have been deleted.")
    if status >= 500 or status == 429:
        return LabelStudioUnavailable(f"Label Studio fails ({status}) when asked to {action}.", "Check its log.")
    hint = UPLOAD_HINT if "Maximum total size" in str(detail) else ""
    return LabelStudioError(f"Label Studio refuses ({status}) to {action}: {str(detail)[:500]}.", hint)


def _paged(page: Any) -> Iterator[Any]:
    """Yield the items of a page and all following pages, without requesting one after the last, which is a 404."""
    from label_studio_sdk.core.api_error import ApiError

    seen = 0
    while page is not None and page.items:
        yield from page.items
        seen += len(page.items)
        if not (page.response.next if hasattr(page.response, "next") else seen < page.response.total):
            return
        try:
            page = page.next_page()
        except ApiError as error:  # the last page vanished because items were deleted
            if error.status_code != 404:
                raise
            return


def _task_state(task: Any) -> TaskState:
    annotations, predictions = (int(_get(task, name) or 0) for name in ("total_annotations", "total_predictions"))
    return TaskState(int(task.id), dict(task.data or {}), annotations, _utc(_get(task, "updated_at")), predictions)


def _utc(value: Any) -> datetime | None:
    return ensure_utc(value) if isinstance(value, datetime) else None


def _to_dict(item: Any) -> dict[str, Any]:
    return dict(item) if isinstance(item, Mapping) else dict(item.dict())


def _get(item: Any, name: str) -> Any:
    return item.get(name) if isinstance(item, Mapping) else getattr(item, name, None)
