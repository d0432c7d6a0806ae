"""Label Studio's API as this project uses it: the SDK, with its errors translated once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ml_backend.errors import LabelStudioError, LabelStudioUnavailable
from ml_backend.label_studio.records import Annotation, NotFound, Prediction, Project, Task, TaskState
from ml_backend.moments import aware
from ml_backend.settings import Settings

__all__ = ["Annotation", "LabelStudioClient", "NotFound", "Prediction", "Project", "Task", "TaskState"]

log = logging.getLogger(__name__)

UPLOAD_CURE = (
    "Start Label Studio with a larger DATA_UPLOAD_MAX_MEMORY_SIZE (bytes, by default 250 MiB), or lay the file into "
    "its local files and import it with import_videos.py --local-files."
)
LOGIN_CURE = (
    "Set LABEL_STUDIO_API_KEY to a token from Label Studio's Account & Settings page "
    "(a personal access token, or a legacy token where these are enabled)."
)
#: Seconds for one call: a project of thousands of tasks takes Label Studio some, one that hangs is tried again.
TIMEOUT_S = 30.0


class LabelStudioClient:
    """A thin client; safe across threads. Connects on first use, so that starting never waits for Label Studio."""

    def __init__(self, url: str, token: str, timeout: float = TIMEOUT_S) -> None:
        self.url = url.rstrip("/")
        self._token = token
        self._timeout = timeout
        self._cached_sdk: Any = None

    @classmethod
    def from_settings(cls, settings: Settings, token: str | None = None) -> LabelStudioClient:
        return cls(settings.label_studio_url, token or settings.label_studio_api_key.get_secret_value())

    @property
    def _sdk(self) -> Any:
        if self._cached_sdk is None:
            if not self._token:
                raise LabelStudioError("There is no token for Label Studio.", LOGIN_CURE)
            if not self._token.isascii():
                raise LabelStudioError("The token for Label Studio has characters that no token has.", LOGIN_CURE)
            from label_studio_sdk import LabelStudio  # 1 s of imports, not needed to answer requests

            self._cached_sdk = LabelStudio(base_url=self.url, api_key=self._token, timeout=self._timeout)
        return self._cached_sdk

    @contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        """Turn the SDK's and httpx's errors into ours; ``what`` completes "Label Studio ... when asked to"."""
        import httpx
        from label_studio_sdk.core.api_error import ApiError
        from label_studio_sdk.core.parse_error import ParsingError

        try:
            yield
        except ApiError as error:
            raise self._refused(what, error.status_code or 0, error.body) from error
        except httpx.HTTPStatusError as error:
            status = error.response.status_code
            error.response.read()
            raise self._refused(what, status, error.response.text[:500]) from error
        except httpx.HTTPError as error:
            raise LabelStudioUnavailable(
                f"Label Studio does not answer at {self.url} ({error.__class__.__name__}) when asked to {what}.",
                "Start it, or set LABEL_STUDIO_URL to where it is reachable from this process.",
            ) from error
        except (ParsingError, ValueError, TypeError, AttributeError, httpx.InvalidURL) as error:
            # What answers is not Label Studio: the SDK and we find something else than we look for.
            log.debug("Not Label Studio's answer", exc_info=error)
            raise self._somebody_else(what) from error

    def _somebody_else(self, what: str) -> LabelStudioError:
        return LabelStudioError(
            f"What answers at {self.url} is not Label Studio's API (asked to {what}).", "Correct LABEL_STUDIO_URL."
        )

    def _refused(self, what: str, status: int, body: object) -> LabelStudioError:
        if status < 400:
            return self._somebody_else(what)
        # "detail" is only "Validation error." where "validation_errors" says which.
        detail = (body.get("validation_errors") or body.get("detail")) if isinstance(body, Mapping) else body
        if status in (401, 403):
            return LabelStudioError(f"Label Studio refuses the token ({status}) when asked to {what}.", LOGIN_CURE)
        if status == 404:
            return NotFound(f"Label Studio does not know it (404) when asked to {what}.", "It may have been deleted.")
        if status >= 500 or status == 429:
            return LabelStudioUnavailable(f"Label Studio fails ({status}) when asked to {what}.", "See its log.")
        cure = UPLOAD_CURE if "Maximum total size" in str(detail) else ""
        return LabelStudioError(f"Label Studio refuses ({status}) to {what}: {str(detail)[:500]}.", cure)

    def auth_headers(self) -> dict[str, str]:
        """Headers that authenticate a plain HTTP request to Label Studio; refreshes an expired access token."""
        with self._translated("refresh the access token"):
            headers: dict[str, str] = self._sdk._client_wrapper.get_headers()
        return {"Authorization": headers["Authorization"]}

    def whoami(self) -> str:
        """E-mail of the token's user: the cheapest call that proves URL and token."""
        with self._translated("say who the token belongs to"):
            return str(self._sdk.users.whoami().email)

    def get_project(self, project_id: int) -> Project:
        with self._translated(f"read project {project_id}"):
            project = self._sdk.projects.get(project_id)
            return Project(project_id, project.title or "", project.label_config or "")

    def get_task(self, task_id: int) -> Task:
        with self._translated(f"read task {task_id}"):
            # Unresolved: cloud URIs stay what they are, so that the data can be written back.
            raw = {"additional_query_parameters": {"resolve_uri": "false"}}
            task = self._sdk.tasks.get(str(task_id), request_options=raw)
            annotations = [a for a in task.annotations or [] if _get(a, "result") or not _get(a, "was_cancelled")]
            drafts = [draft for draft in task.drafts or [] if _get(draft, "result")]
            versions = [_get(p, "model_version") for p in task.predictions or []]
            known = frozenset(str(version) for version in versions if version)
            return Task(task_id, int(task.project), dict(task.data or {}), len(annotations) + len(drafts), known)

    def list_task_ids(self, project_id: int) -> list[int]:
        """Ids of all tasks of a project, page by page."""
        with self._translated(f"list the tasks of project {project_id}"):
            pager = self._sdk.tasks.list(project=project_id, fields="task_only", include=["id"])
            return [int(task.id) for task in pager]

    def list_task_data(self, project_id: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """Id and data of every task of a project, page by page."""
        with self._translated(f"list the tasks of project {project_id}"):
            for task in self._sdk.tasks.list(project=project_id, fields="task_only", include=["id", "data"]):
                yield int(task.id), dict(task.data or {})

    def list_task_states(self, project_id: int) -> Iterator[TaskState]:
        """Every task of a project with its number of annotations, page by page."""
        with self._translated(f"list the tasks of project {project_id}"):
            wanted = ["id", "data", "total_annotations", "updated_at"]
            for task in self._sdk.tasks.list(project=project_id, fields="task_only", include=wanted):
                annotations = int(_get(task, "total_annotations") or 0)
                yield TaskState(int(task.id), dict(task.data or {}), annotations, _moment(_get(task, "updated_at")))

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

    def update_task_data(self, task_id: int, data: Mapping[str, Any]) -> None:
        """Replace the task's data; send all fields, not only the changed ones."""
        with self._translated(f"update the data of task {task_id}"):
            self._sdk.tasks.update(str(task_id), data=dict(data))

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

    def create_project(self, title: str, label_config: str) -> int:
        with self._translated("create a project"):
            return int(self._sdk.projects.create(title=title, label_config=label_config).id)

    def create_task(self, project_id: int, data: Mapping[str, Any]) -> int:
        with self._translated(f"create a task in project {project_id}"):
            return int(self._sdk.tasks.create(project=project_id, data=dict(data)).id)

    def set_label_config(self, project_id: int, label_config: str) -> None:
        """Replace a project's label config."""
        with self._translated(f"change the label config of project {project_id}"):
            self._sdk.projects.update(project_id, label_config=label_config)

    def create_annotation(self, task_id: int, result: Sequence[Mapping[str, Any]], prediction: int | None) -> int:
        """Submit an annotation, as a person does who began from a prediction; returns its id."""
        with self._translated(f"annotate task {task_id}"):
            of = {} if prediction is None else {"parent_prediction": prediction}
            return int(self._sdk.annotations.create(id=task_id, result=[dict(item) for item in result], **of).id)

    def upload_file(self, project_id: int, path: Path) -> str:
        """Upload a file without making a task of it; returns its ``/data/upload/...`` path. Streams."""
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
            upload = httpx.get(f"{self.url}/api/import/file-upload/{ids[0]}", headers=headers, timeout=self._timeout)
            upload.raise_for_status()
        return "/data/" + quote(str(upload.json()["file"]).lstrip("/"))

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

    def connect_backend(self, project_id: int, backend_url: str, basic_auth: tuple[str, str] | None = None) -> None:
        """Connect this service to a project and make its webhook carry the credentials that it needs.

        Label Studio makes the webhook by itself when a backend is connected, but without headers; with Basic auth on,
        its events would be refused. Calling this again changes nothing that is right.
        """
        import httpx

        backend_url = backend_url.rstrip("/")
        auth: dict[str, Any] = {}
        headers: dict[str, str] = {}
        if basic_auth:
            user, password = basic_auth
            auth = {"auth_method": "BASIC_AUTH", "basic_auth_user": user, "basic_auth_pass": password}
            headers = {"Authorization": httpx.BasicAuth(user, password)._auth_header}
        with self._translated(f"connect {backend_url} to project {project_id}"):
            connected = self._sdk.ml.list(project=project_id)
            if not any((backend.url or "").rstrip("/") == backend_url for backend in connected):
                self._sdk.ml.create(url=backend_url, project=project_id, title="Video pre-annotation", **auth)
            hook_url = f"{backend_url}/webhook"
            hooks = [hook for hook in self._sdk.webhooks.list(project=project_id) if hook.url == hook_url]
            if not hooks:
                self._sdk.webhooks.create(
                    url=hook_url, project=project_id, headers=headers, send_payload=True, send_for_all_actions=True
                )
            for hook in hooks:
                if headers and hook.headers != headers:
                    self._sdk.webhooks.update(hook.id, url=hook_url, headers=headers)

    # -- exporting

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

    def get_full_task(self, task_id: int, project_id: int) -> dict[str, Any]:
        """One task as :meth:`list_full_tasks` gives it; NotFound where it is of another project."""
        raw = {"additional_query_parameters": {"resolve_uri": "false"}}
        with self._translated(f"read task {task_id}"):
            task = self._sdk.tasks.get(str(task_id), request_options=raw)
            if int(task.project) == project_id:
                return {
                    "id": task_id,
                    "data": dict(task.data or {}),
                    "annotations": [_plain(item) for item in task.annotations or []],
                    "predictions": [_plain(item) for item in task.predictions or []],
                }
        raise NotFound(f"Task {task_id} is not in project {project_id}.", "Look up its number in Label Studio.")


def _moment(value: Any) -> datetime | None:
    return aware(value) if isinstance(value, datetime) else None


def _plain(item: Any) -> dict[str, Any]:
    return dict(item) if isinstance(item, Mapping) else dict(item.dict())


def _get(item: Any, name: str) -> Any:
    return item.get(name) if isinstance(item, Mapping) else getattr(item, name, None)
