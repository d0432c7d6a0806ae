"""Job requests of the API: while a job waits or runs, the same request returns that job."""

from __future__ import annotations

import base64
import getpass
import hashlib
import json
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from ml_backend.core.errors import QueueUnavailable
from ml_backend.jobs.job_list import ENDED_STATES, JobList
from ml_backend.jobs.queue import JobQueue

if TYPE_CHECKING:  # slow imports, left to the first requests
    from ml_backend.jobs.services.trainings import Trainings
    from ml_backend.label_studio.listing import ProjectLister

Job = dict[str, Any]


class ApiQueue:
    """Requests jobs and returns them as ``JobList.get`` does.

    Every method raises NotFound if Label Studio has no such project or task, LabelStudioError when it does not answer,
    and QueueUnavailable when Redis does not.
    """

    def __init__(self, queue: JobQueue, trainings: Trainings, jobs: JobList, lister: ProjectLister) -> None:
        self._queue, self._trainings, self._jobs, self._lister = queue, trainings, jobs, lister

    # -- models and labels

    def init_models(self, project_id: int) -> Job:
        return self._request("init_models", [project_id], f"init-{project_id}")

    def auto_label(self, project_id: int, tasks: Sequence[int]) -> Job:
        """Request predictions for these tasks; none means all unannotated tasks."""
        task_ids = sorted(set(tasks))
        self._lister.check(project_id, task_ids)
        job_id = f"auto-{project_id}-{digest(task_ids) if task_ids else 'all'}"
        current = self._jobs.get(job_id)
        if current and current["state"] not in ENDED_STATES:  # its predictions may still be running
            return current
        return self._request("auto_label", [project_id, task_ids], job_id)

    def learn(self, project_id: int) -> Job:
        """Request that all annotations are read again."""
        self._lister.check(project_id)
        return self._get_requested(self._queue.request_learning(project_id, None).job_id)

    def train(self, project_id: int, *, force: bool) -> Job:
        """Request a training.

        Raises:
            Conflict: there is nothing new to train on.
        """
        self._lister.check(project_id)
        requested = self._trainings.start(project_id, f"{getpass.getuser()}, control room", force=force)
        return self._get_requested(requested.job_id)

    # -- files

    def import_video(self, project_id: int, folder: str, name: str) -> Job:
        return self._request("import_video", [project_id, folder, name], f"import-{folder}")

    def render(self, project_id: int, task_id: int, what: str) -> Job:
        self._lister.check(project_id, [task_id])
        name = f"render-{project_id}-{task_id}-{what}"
        return self._request("render_video", [project_id, task_id, what], name, "api_file_jobs")

    def render_custom(self, project_id: int, task_id: int, version: str) -> Job:
        self._lister.check(project_id, [task_id])
        name = f"render-{project_id}-{task_id}-{version or 'current'}"
        args = [project_id, task_id, version]
        return self._request("render_custom_video", args, name, "api_file_jobs")

    def export(
        self, project_id: int, format_name: str, predictions: str, stride: int, with_ids: bool, global_ids: bool
    ) -> Job:
        name = f"export-{project_id}-{format_name}-{predictions}-{stride}" + ("-ids" if with_ids else "")
        name += "-global" if global_ids else ""
        args = [project_id, format_name, predictions, stride, with_ids, global_ids]
        return self._request("export_project", args, name, "api_file_jobs")

    # -- objects

    def match_objects(self, project_id: int, by: str) -> Job:
        return self._request("match_objects", [project_id, by], f"objects-{project_id}", "match_objects")

    def objects(self, project_id: int) -> Job:
        return self._request("list_objects", [project_id], objects_name(project_id), "match_objects")

    # -- published results

    def statistics(self, project_id: int) -> Job:
        return self._request("count_statistics", [project_id], stats_name(project_id))

    def patterns(self, project_id: int) -> Job:
        return self._request("describe_patterns", [project_id], patterns_name(project_id))

    def similar(self, project_id: int, label: str, limit: int, safe: bool) -> Job:
        name = similar_name(project_id, label, limit, safe)
        return self._request("find_similar", [project_id, label, limit, safe], name)

    def text_search(self, project_id: int, phrase: str, tasks: Sequence[int], frames: int) -> Job:
        self._lister.check(project_id, tasks)
        name = text_search_name(project_id, phrase, tasks, frames)
        return self._request("search_text", [project_id, phrase, list(tasks), frames], name, "search_text")

    def agreement(self, project_id: int, *, model: bool) -> Job:
        return self._request("measure_agreement", [project_id, model], agreement_name(project_id, model))

    def next_segments(self, project_id: int, segments: int, minutes: int) -> Job:
        name = next_name(project_id, segments, minutes)
        return self._request("choose_next", [project_id, segments, minutes], name, "annotate_next")

    def order_tasks(self, project_id: int, segments: int, minutes: int) -> Job:
        arguments = [project_id, segments, minutes]
        return self._request("order_tasks", arguments, f"order-{project_id}", "annotate_next")

    def _request(self, function: str, args: list[Any], name: str, module: str = "api_jobs") -> Job:
        self._lister.check(args[0])
        # A person asks: no pause after a failure.
        self._queue.request("control", function, args, name, module, pause=timedelta(0))
        return self._get_requested(name)

    def _get_requested(self, name: str) -> Job:
        requested = self._jobs.get(name)
        if requested is None:
            raise QueueUnavailable("The queue has lost the job that was just requested.", "Request it again.")
        return requested


def digest(*values: Any) -> str:
    """Return a digest of plain JSON values, 16 hex digits."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def stats_name(project_id: int) -> str:
    return f"stats-{project_id}"


def patterns_name(project_id: int) -> str:
    return f"patterns-{project_id}"


def agreement_name(project_id: int, model: bool) -> str:
    return f"agreement-{project_id}" + ("-model" if model else "")


def objects_name(project_id: int) -> str:
    return f"object-list-{project_id}"


def next_name(project_id: int, segments: int, minutes: int) -> str:
    return f"next-{project_id}-{segments}-{minutes}"


def similar_name(project_id: int, label: str, limit: int, safe: bool) -> str:
    return f"similar-{project_id}-{digest(label, limit, safe)}"


def text_search_name(project_id: int, phrase: str, tasks: Sequence[int], frames: int) -> str:
    return f"text-{project_id}-{digest(phrase, list(tasks), frames)}"


def data_url(jpeg: bytes) -> str | None:
    """Return a data URL of a JPEG image; ``None`` if it is empty."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode() if jpeg else None
