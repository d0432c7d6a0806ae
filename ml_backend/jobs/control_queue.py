"""Requests of the control room: the same request is the same job for as long as that waits or runs."""

from __future__ import annotations

import getpass
from collections.abc import Sequence
from typing import Any

from ml_backend.errors import QueueUnavailable
from ml_backend.jobs.control_names import digest, patterns_name, similar_name, stats_name
from ml_backend.jobs.listing import OVER, STATES, Jobs
from ml_backend.jobs.queue import JobQueue, Requested
from ml_backend.jobs.records import forget_executions, state_of
from ml_backend.training.service import Trainings

Job = dict[str, Any]


class ControlQueue:
    """Every method raises QueueUnavailable when Redis does not answer, and returns the job as ``Jobs.get`` does."""

    def __init__(self, queue: JobQueue, trainings: Trainings, jobs: Jobs) -> None:
        self._queue, self._trainings, self._jobs = queue, trainings, jobs

    # -- models and labels

    def init_models(self, project_id: int) -> Job:
        return self._request("init_models", [project_id], f"init-{project_id}", project_id)

    def auto_label(self, project_id: int, tasks: Sequence[int]) -> Job:
        """Predictions of these tasks; of all that nobody has annotated where there are none."""
        wanted = sorted(set(tasks))
        name = f"auto-{project_id}-{digest(wanted) if wanted else 'all'}"
        known = self._jobs.get(name)
        if known and known["state"] not in OVER:  # also while the predictions themselves are under way
            return known
        return self._request("auto_label", [project_id, wanted], name, project_id)

    def learn(self, project_id: int) -> Job:
        """Have all annotations read anew."""
        requested = self._queue.request_learning(project_id, None)
        return self._noted(requested, "learn_patterns", project_id)

    def train(self, project_id: int, *, force: bool) -> Job:
        requested = self._trainings.request(project_id, f"{getpass.getuser()}, control room", force=force)
        return self._noted(requested, "train", project_id)

    # -- files

    def import_video(self, project_id: int, folder: str, name: str) -> Job:
        return self._request("import_video", [project_id, folder, name], f"import-{folder}", project_id)

    def render(self, project_id: int, task_id: int, what: str) -> Job:
        name = f"render-{project_id}-{task_id}-{what}"
        return self._request("render_video", [project_id, task_id, what], name, project_id, task_id, "control_media")

    def render_custom(self, project_id: int, task_id: int, version: str) -> Job:
        name = f"render-{project_id}-{task_id}-{version or 'current'}"
        args = [project_id, task_id, version]
        return self._request("render_custom_video", args, name, project_id, task_id, "control_media")

    def export(self, project_id: int, format_name: str, predictions: str, stride: int | None = None) -> Job:
        name = f"export-{project_id}-{format_name}-{predictions}" + (f"-{stride}" if stride else "")
        args = [project_id, format_name, predictions, stride]
        return self._request("export_project", args, name, project_id, module="control_media")

    # -- what is found out for whoever asks again

    def statistics(self, project_id: int) -> Job:
        return self._request("count_statistics", [project_id], stats_name(project_id), project_id)

    def patterns(self, project_id: int) -> Job:
        return self._request("describe_patterns", [project_id], patterns_name(project_id), project_id)

    def similar(self, project_id: int, label: str, limit: int, safe: bool) -> Job:
        name = similar_name(project_id, label, limit, safe)
        return self._request("find_similar", [project_id, label, limit, safe], name, project_id)

    # -- how

    def _request(
        self,
        function: str,
        args: list[Any],
        name: str,
        project_id: int,
        task_id: int | None = None,
        module: str = "control",
    ) -> Job:
        facts = {} if task_id is None else {"task": task_id}
        with self._queue.guard():
            present = self._queue.fetch(name)
            if present is None or STATES.get(state_of(present)) in OVER:
                if present is not None:  # somebody asks again on purpose: the pause after a failure is not for him
                    forget_executions(present)
                    present.delete()
                # Before the job can begin, so that it finds its record.
                self._jobs.board.note(name, function, project_id, **facts)
        self._queue.request("control", function, args, name, module)
        return self._found(name)

    def _noted(self, requested: Requested, kind: str, project_id: int) -> Job:
        """A job of other queues, of which nobody else keeps a record."""
        if requested.created or self._jobs.board.get(requested.job_id) is None:
            self._jobs.board.note(requested.job_id, kind, project_id)
        return self._found(requested.job_id)

    def _found(self, name: str) -> Job:
        found = self._jobs.get(name)
        if found is None:
            raise QueueUnavailable("The queue has lost the job that was just requested.", "Ask for it again.")
        return found
