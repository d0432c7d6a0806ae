"""Requests of the control room: the same request is the same job for as long as that waits or runs."""

from __future__ import annotations

import base64
import getpass
import hashlib
import json
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from ml_backend.core.errors import QueueUnavailable
from ml_backend.jobs.job_list import OVER, JobIndex
from ml_backend.jobs.queue import JobQueue

if TYPE_CHECKING:  # with the database's library, which the first requests load
    from ml_backend.jobs.services.trainings import Trainings

#: Of datasets that are trained on, every so many pictures: two a second at usual rates. Neighbours hardly differ, and
#: an hour of them all takes 50 GB.
STRIDE = 15

Job = dict[str, Any]


class ApiQueue:
    """Every method raises QueueUnavailable when Redis does not answer, and returns the job as ``JobIndex.get`` does."""

    def __init__(self, queue: JobQueue, trainings: Trainings, jobs: JobIndex) -> None:
        self._queue, self._trainings, self._jobs = queue, trainings, jobs

    # -- models and labels

    def init_models(self, project_id: int) -> Job:
        return self._request("init_models", [project_id], f"init-{project_id}")

    def auto_label(self, project_id: int, tasks: Sequence[int]) -> Job:
        """Predictions of these tasks; of all that nobody has annotated where there are none."""
        wanted = sorted(set(tasks))
        name = f"auto-{project_id}-{digest(wanted) if wanted else 'all'}"
        known = self._jobs.get(name)
        if known and known["state"] not in OVER:  # also while the predictions themselves are under way
            return known
        return self._request("auto_label", [project_id, wanted], name)

    def learn(self, project_id: int) -> Job:
        """Have all annotations read anew."""
        return self._found(self._queue.request_learning(project_id, None).job_id)

    def train(self, project_id: int, *, force: bool) -> Job:
        requested = self._trainings.start(project_id, f"{getpass.getuser()}, control room", force=force)
        return self._found(requested.job_id)

    # -- files

    def import_video(self, project_id: int, folder: str, name: str) -> Job:
        return self._request("import_video", [project_id, folder, name], f"import-{folder}")

    def render(self, project_id: int, task_id: int, what: str) -> Job:
        name = f"render-{project_id}-{task_id}-{what}"
        return self._request("render_video", [project_id, task_id, what], name, "api_export_jobs")

    def render_custom(self, project_id: int, task_id: int, version: str) -> Job:
        name = f"render-{project_id}-{task_id}-{version or 'current'}"
        args = [project_id, task_id, version]
        return self._request("render_custom_video", args, name, "api_export_jobs")

    def export(self, project_id: int, format_name: str, predictions: str, stride: int | None = None) -> Job:
        name = f"export-{project_id}-{format_name}-{predictions}" + (f"-{stride}" if stride else "")
        args = [project_id, format_name, predictions, stride]
        return self._request("export_project", args, name, "api_export_jobs")

    # -- what is found out for whoever asks again

    def statistics(self, project_id: int) -> Job:
        return self._request("count_statistics", [project_id], stats_name(project_id))

    def patterns(self, project_id: int) -> Job:
        return self._request("describe_patterns", [project_id], patterns_name(project_id))

    def similar(self, project_id: int, label: str, limit: int, safe: bool) -> Job:
        name = similar_name(project_id, label, limit, safe)
        return self._request("find_similar", [project_id, label, limit, safe], name)

    # -- how

    def _request(self, function: str, args: list[Any], name: str, module: str = "api_jobs") -> Job:
        # Somebody asks on purpose: the pause after a failure is not for him.
        self._queue.request("control", function, args, name, module, pause=timedelta(0))
        return self._found(name)

    def _found(self, name: str) -> Job:
        found = self._jobs.get(name)
        if found is None:
            raise QueueUnavailable("The queue has lost the job that was just requested.", "Ask for it again.")
        return found


def digest(*values: Any) -> str:
    """16 hex digits over plain JSON values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def stats_name(project_id: int) -> str:
    return f"stats-{project_id}"


def patterns_name(project_id: int) -> str:
    return f"patterns-{project_id}"


def similar_name(project_id: int, label: str, limit: int, safe: bool) -> str:
    return f"similar-{project_id}-{digest(label, limit, safe)}"


def data_url(jpeg: bytes) -> str | None:
    """A picture as an address that holds it; ``None`` where there is none."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode() if jpeg else None
