"""Jobs as the API shows them: state, progress and result; and cancelling them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from ml_backend.core.errors import BackendError
from ml_backend.core.timestamps import ensure_utc
from ml_backend.jobs.queue import WAITING, JobQueue, failure_text, state_of, targets_key

if TYPE_CHECKING:
    from rq import Queue

    from ml_backend.jobs.known_job import KnownJob

#: Most jobs per state and queue in a list; there may be 100,000.
MAX_LISTED = 100
#: Prefixes of the ids of jobs that prepare and predict tasks.
_PREPARE, _PREDICT = "prepare-", "predict-"
#: States of jobs that have ended.
FINISHED, FAILED, CANCELLED = "finished", "failed", "cancelled"
#: Job function -> kind.
KINDS = {
    "prepare_task": "prepare",
    "prepare_many": "prepare",
    "predict": "predict",
    "help_detect": "help",
    "learn": "learn_patterns",
    "refresh": "refresh",
    "train": "train",
    "follow_regions": "draw",
    "track_box": "draw",
}
#: Job functions that are not listed: there are many, and nobody but the page that wants them waits for them.
_UNLISTED = ("render_moment", "render_frames", "warm")
#: Job functions whose second argument is a task id.
_OF_TASK = ("prepare_task", "help_detect", "render_video", "render_custom_video", "follow_regions", "track_box")
#: RQ state -> state in the API.
STATES = {
    "queued": "queued",
    "started": "running",
    "scheduled": "waiting",
    "deferred": "waiting",
    "created": "queued",
    "finished": FINISHED,
    "failed": FAILED,
    "stopped": CANCELLED,
    "canceled": CANCELLED,
}
ENDED_STATES = (FINISHED, FAILED, CANCELLED)


class NotCancellable(BackendError):
    """The job has ended, or must not be cancelled."""

    http_status = 409


class JobList:
    """Lists and cancels jobs. Every method raises QueueUnavailable when Redis does not answer.

    Args:
        cancel_training: cancels a project's training.
    """

    def __init__(self, queue: JobQueue, cancel_training: Callable[[int], None]) -> None:
        self._queue, self._cancel_training = queue, cancel_training

    def get(self, job_id: str) -> dict[str, Any] | None:
        """Return a job; ``None`` if it does not exist or has expired.

        Returns:
            ``id``, ``kind``, ``project``, ``task``, ``name`` (of an uploaded file), ``queue``, ``state`` (queued,
            waiting, running, cancelling, finished, failed or cancelled), ``progress``, ``eta_s``, ``error``, ``result``
            and times in ISO format.
        """
        with self._queue.guard():
            job = self._queue.fetch(job_id)
            return self._view(job) if job else None

    def all(self, project_id: int | None = None, *, listed: bool = True) -> list[dict[str, Any]]:
        """Return running jobs, then waiting ones, then those that have ended lately, newest first.

        Args:
            listed: only ``MAX_LISTED`` of each queue and state, without those that people do not ask for; else all.
        """
        with self._queue.guard():
            jobs = self._queue.fetch_many(sorted(self._ids(MAX_LISTED if listed else 0)))
            items = [self._view(job) for job in jobs if not listed or job.function not in _UNLISTED]
        return sorted((item for item in items if project_id in (None, item["project"])), key=_order)

    def cancel(self, job_id: str) -> dict[str, Any] | None:
        """Cancel a job, stopping it if it runs, and return it; ``None`` if it does not exist.

        Raises:
            NotCancellable: it has ended, or is of a kind that cannot be cancelled.
        """
        item = self.get(job_id)
        if item is None:
            return None
        if item["state"] in ENDED_STATES:
            raise NotCancellable(
                f"The job has already ended: it is {item['state']}.", "Request it again if it is needed."
            )
        if item["kind"] == "learn_patterns":
            raise NotCancellable(
                "Learning cannot be cancelled: submitted annotations would be forgotten.",
                "Wait: it takes seconds per task. To stop using what was learned, switch the project's mode.",
            )
        with self._queue.guard():
            job = self._queue.fetch(job_id)
            if item["kind"] == "train":
                self._cancel_training(int(item["project"]))
            elif job and state_of(job) == "finished":  # other jobs do its work
                self._cancel_predictions(job)
                job.meta["outcome"] = {"state": CANCELLED, "ended_at": time.time()}
                job.save_meta()
            else:
                self._cancel_job(job_id)
        return self.get(job_id) or item | {"state": CANCELLED}

    def _cancel_job(self, job_id: str) -> None:
        """Remove a waiting job, or ask a running one to stop. Call within the queue's guard."""
        self._queue.request_cancel(job_id)  # first, since it may start at any moment
        job = self._queue.fetch(job_id)
        if job is None:
            return
        if job.function == "predict" and job.args:
            self._queue.connection.delete(targets_key(str(job.args[0])))
        if state_of(job) in WAITING:
            self._queue.take_back(job)

    # -- one job

    def _view(self, job: KnownJob) -> dict[str, Any]:
        state, result, meta = STATES.get(state_of(job), "queued"), None, job.meta
        kind, project, task, name = _describe(job)
        error = failure_text(job) if state == FAILED else str(meta.get("error") or "")
        progress, ended = None, job.ended_at
        if state == "running":
            progress = meta.get("progress")
            if self._queue.is_cancelled(job.id):
                state = "cancelling"
        elif state == FINISHED:
            outcome = meta.get("outcome") or (self._outcome(job) if kind == "auto_label" else {})
            state, error = outcome.get("state", state), outcome.get("error", "")
            progress, ended = outcome.get("progress"), outcome.get("ended_at", ended)
            result = outcome["result"] if "result" in outcome else job.return_value()
        return {
            "id": job.id,
            "kind": kind,
            "project": project,
            "task": task,
            "name": name,
            "queue": job.origin,
            "state": state,
            "progress": _progress(progress),
            "eta_s": (progress or {}).get("eta_s"),
            "error": error,
            "result": result,
            "requested_at": _iso(job.enqueued_at or job.created_at),
            "started_at": _iso(job.started_at),
            "ended_at": _iso(ended) if state in ENDED_STATES else None,
        }

    def _outcome(self, job: KnownJob) -> dict[str, Any]:
        """Return state, progress and result from the jobs that do the work of this one; stored once they have ended."""
        done, of, failures = self._prediction_progress(job)
        if done < of:
            elapsed = (datetime.now(timezone.utc) - ensure_utc(job.created_at)).total_seconds()
            eta_s = round(elapsed / done * (of - done)) if done else None
            progress = {"stage": "predicting", "done": done, "of": of, "eta_s": eta_s}
            return {"state": "running", "progress": progress, "result": None}
        result = {"tasks": of, "failed": len(failures)}
        state = FAILED if failures and len(failures) == of else FINISHED
        error = next(iter(failures.values()), "")
        job.meta["outcome"] = {"state": state, "result": result, "error": error, "ended_at": time.time()}
        job.save_meta()
        return dict(job.meta["outcome"])

    # -- jobs that wait for the predictions of the tasks in their ``meta``; call within the queue's guard

    def _prediction_progress(self, job: KnownJob) -> tuple[int, int, dict[int, str]]:
        """Return the number of tasks done (or failed), the number of all tasks, and error messages by task."""
        tasks = set(job.meta.get("tasks", ()))
        done = tasks.difference(*self._tasks_by_job(self._unfinished(), tasks).values())
        failed = [job_id for queue in self._queues() for job_id in queue.failed_job_registry.get_job_ids(cleanup=False)]
        failed_tasks = self._tasks_by_job(failed, done) if done else {}
        jobs = self._queue.fetch_many(list(failed_tasks))
        return len(done), len(tasks), {task: failure_text(job) for job in jobs for task in failed_tasks[job.id]}

    def _cancel_predictions(self, job: KnownJob) -> None:
        """Cancel the predictions that only its tasks wait for."""
        tasks = set(job.meta.get("tasks", ()))
        redis = self._queue.connection
        for job_id in sorted(self._tasks_by_job(self._unfinished(), tasks)):
            if job_id.startswith(_PREDICT):
                key = targets_key(job_id.removeprefix(_PREDICT))
                redis.srem(key, *tasks)
                if redis.scard(key):
                    continue
            self._cancel_job(job_id)

    def _queues(self) -> list[Queue]:
        return [self._queue.queues[name] for name in ("prepare", "predict", "refresh")]

    def _unfinished(self) -> list[str]:
        """Return the ids of jobs that wait or run."""
        return [
            job_id
            for queue in self._queues()
            for ids in (
                queue.get_job_ids(),
                queue.started_job_registry.get_job_ids(cleanup=False),
                queue.scheduled_job_registry.get_job_ids(cleanup=False),
            )
            for job_id in ids
        ]

    def _ids(self, limit: int) -> set[str]:
        """Return the ids of all running jobs, and of each queue and other state ``limit``; 0: all.

        Call within the queue's guard.
        """
        queues, last = self._queue.queues.values(), limit - 1
        running = [queue.started_job_registry for queue in queues]
        with self._queue.connection.pipeline(transaction=False) as pipeline:
            for registry in running:
                pipeline.zrange(registry.key, 0, -1)
            for queue in queues:
                pipeline.lrange(queue.key, 0, last)
                pipeline.zrange(queue.scheduled_job_registry.key, 0, last)
                for ended in (queue.failed_job_registry, queue.finished_job_registry, queue.canceled_job_registry):
                    pipeline.zrange(ended.key, 0, last, desc=True)
            read = iter(pipeline.execute())
        ids = {registry.parse_job_id(entry) for registry in running for entry in next(read)}
        return ids | {name.decode() for names in read for name in names}

    def _tasks_by_job(self, job_ids: Iterable[str], tasks: set[int]) -> dict[str, set[int]]:
        """Return which of these tasks each job serves, by job id; jobs that serve none are left out."""
        served: dict[str, set[int]] = {}
        predicting = []
        for job_id in job_ids:
            task_id = job_id.removeprefix(_PREPARE)
            if job_id.startswith(_PREPARE) and task_id.isdecimal():
                served[job_id] = {int(task_id)} & tasks
            elif job_id.startswith(_PREDICT):
                predicting.append(job_id)
        with self._queue.connection.pipeline(transaction=False) as pipeline:
            for job_id in predicting:
                pipeline.smembers(targets_key(job_id.removeprefix(_PREDICT)))
            for job_id, targets in zip(predicting, pipeline.execute(), strict=True):
                served[job_id] = {int(value) for value in targets} & tasks
        return {job_id: ids for job_id, ids in served.items() if ids}


def _describe(job: KnownJob) -> tuple[str, int | None, int | None, str | None]:
    """Return kind, project, task and the name of an uploaded file, as far as a job's function and arguments tell."""
    name, args = job.function, job.args
    kind = KINDS.get(name, name)
    numbers = [value if isinstance(value, int) else None for value in args]
    if name == "predict" and len(args) == 3:
        return kind, numbers[1], numbers[2], None
    project = numbers[0] if numbers else None
    task = numbers[1] if name in _OF_TASK and len(args) > 1 else None
    return kind, project, task, str(args[2]) if name == "import_video" and len(args) == 3 else None


def _progress(reported: Any) -> dict[str, Any] | None:
    """Return the progress that a job reports and its ``share``, 0..1, or ``None`` if that is unknown."""
    if not isinstance(reported, Mapping):
        return None
    facts = {str(name): value for name, value in reported.items() if name != "eta_s"}
    done, of = facts.get("done", facts.get("frames", facts.get("epoch"))), facts.get("of", facts.get("epochs"))
    share: float | None = None
    if isinstance(done, (int, float)) and isinstance(of, (int, float)) and of > 0:
        part, parts = facts.get("part", 1), facts.get("parts", 1)
        share = round(min(max((part - 1 + min(done / of, 1.0)) / parts, 0.0), 1.0), 4)
    return {**facts, "share": share}


def _order(item: Mapping[str, Any]) -> tuple[int, float]:
    rank = {"running": 0, "cancelling": 0, "queued": 1, "waiting": 1}.get(item["state"], 2)
    moment = item["ended_at"] if rank == 2 else item["requested_at"]
    seconds = datetime.fromisoformat(moment).timestamp() if moment else 0.0
    return rank, seconds if rank == 1 else -seconds


def _iso(moment: Any) -> str | None:
    if moment is None:
        return None
    if isinstance(moment, (int, float)):
        moment = datetime.fromtimestamp(moment, timezone.utc)
    return ensure_utc(moment).isoformat(timespec="milliseconds")
