"""Jobs as people see them: what runs, waits and has ended, how far it is, and giving it up."""

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
    from rq.job import Job

#: Jobs of one state and queue that are read for a list; there may be a hundred thousand.
LISTED = 100
#: How the names of jobs begin that prepare a task, and that predict.
_PREPARE, _PREDICT = "prepare-", "predict-"
#: What becomes of a job.
FINISHED, FAILED, CANCELLED = "finished", "failed", "cancelled"
#: What jobs are called, by their function.
KINDS = {
    "prepare_task": "prepare",
    "prepare_many": "prepare",
    "predict": "predict",
    "help_detect": "help",
    "learn": "learn_patterns",
    "refresh": "refresh",
    "train": "train",
}
#: Jobs whose second argument is a task.
_OF_TASK = ("prepare_task", "help_detect", "render_video", "render_custom_video")
#: What RQ's states are called here.
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
OVER = (FINISHED, FAILED, CANCELLED)


class NotCancellable(BackendError):
    """The job is over, or must not be given up."""

    http_status = 409


class JobIndex:
    """Every method raises QueueUnavailable when Redis does not answer.

    Args:
        cancel_training: gives a project's training up.
    """

    def __init__(self, queue: JobQueue, cancel_training: Callable[[int], None]) -> None:
        self._queue, self._cancel_training = queue, cancel_training

    def get(self, job_id: str) -> dict[str, Any] | None:
        """A job; ``None`` where nobody knows of it, or any more.

        Returns:
            ``id``, ``kind``, ``project``, ``task``, ``queue``, ``state`` (queued, waiting, running, cancelling,
            finished, failed or cancelled), ``progress``, ``eta_s``, ``error``, ``result`` and moments in ISO format.
        """
        with self._queue.guard():
            job = self._queue.fetch(job_id)
            return self._view(job) if job else None

    def all(self, project_id: int | None = None) -> list[dict[str, Any]]:
        """What runs, waits and has ended lately: running ones first, then waiting, then ended ones, newest first."""
        with self._queue.guard():
            ids = {name for queue in self._queue.queues.values() for name in _ids(queue)}
            items = [self._view(job) for job in self._queue.fetch_many(sorted(ids))]
        return sorted((item for item in items if project_id in (None, item["project"])), key=_order)

    def cancel(self, job_id: str) -> dict[str, Any] | None:
        """Take a job back, or have whoever works on it give it up; what it says then. ``None``: there is none.

        Raises:
            NotCancellable: it is over, or is not given up for a reason that is named.
        """
        item = self.get(job_id)
        if item is None:
            return None
        if item["state"] in OVER:
            raise NotCancellable(f"The job is over: it is {item['state']}.", "Ask for it again if it is wanted.")
        if item["kind"] == "learn_patterns":
            raise NotCancellable(
                "Learning is not given up: what people have submitted would be forgotten.",
                "It takes seconds a task. To stop using what was learned, switch the project's mode.",
            )
        with self._queue.guard():
            job = self._queue.fetch(job_id)
            if item["kind"] == "train":
                self._cancel_training(int(item["project"]))
            elif job and state_of(job) == "finished":  # its work is other jobs'
                self._cancel_predictions(job)
                job.meta["outcome"] = {"state": CANCELLED, "ended_at": time.time()}
                job.save_meta()
            else:
                self._drop(job_id)
        return self.get(job_id) or item | {"state": CANCELLED}

    def _drop(self, job_id: str) -> None:
        """Take back a job that waits; ask for the end of one that runs. To be called within the queue's guard."""
        self._queue.request_cancel(job_id)  # first: it may begin at this moment
        job = self._queue.fetch(job_id)
        if job is None:
            return
        if job.func_name.endswith(".predict") and job.args:
            self._queue.connection.delete(targets_key(str(job.args[0])))
        if state_of(job) in WAITING:
            self._queue.take_back(job)

    # -- one job

    def _view(self, job: Job) -> dict[str, Any]:
        state, result, meta = STATES.get(state_of(job), "queued"), None, job.meta
        kind, project, task = _describe(job)
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
            "queue": job.origin,
            "state": state,
            "progress": _progress(progress),
            "eta_s": (progress or {}).get("eta_s"),
            "error": error,
            "result": result,
            "requested_at": _iso(job.enqueued_at or job.created_at),
            "started_at": _iso(job.started_at),
            "ended_at": _iso(ended) if state in OVER else None,
        }

    def _outcome(self, job: Job) -> dict[str, Any]:
        """What has become of the jobs that do the work of this one. Once they are through, it is written down."""
        done, of, failures = self._predicted(job)
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

    # -- jobs whose work is the predictions of the tasks in their ``meta``; within the queue's guard

    def _predicted(self, job: Job) -> tuple[int, int, dict[int, str]]:
        """Tasks that are done (well or not), tasks in all, and why some failed, by task."""
        tasks = set(job.meta.get("tasks", ()))
        done = tasks.difference(*self._jobs(self._waiting(), tasks).values())
        failed = [name for queue in self._queues() for name in queue.failed_job_registry.get_job_ids(cleanup=False)]
        wanted = self._jobs(failed, done) if done else {}
        found = self._queue.fetch_many(list(wanted))
        return len(done), len(tasks), {task: failure_text(job) for job in found for task in wanted[job.id]}

    def _cancel_predictions(self, job: Job) -> None:
        """Take back what only its tasks wait for; other tasks that wait for the same videos keep their jobs."""
        tasks = set(job.meta.get("tasks", ()))
        redis = self._queue.connection
        for name in sorted(self._jobs(self._waiting(), tasks)):
            if name.startswith(_PREDICT):
                key = targets_key(name.removeprefix(_PREDICT))
                redis.srem(key, *tasks)
                if redis.scard(key):
                    continue
            self._drop(name)

    def _queues(self) -> list[Queue]:
        return [self._queue.queues[name] for name in ("prepare", "predict", "refresh")]

    def _waiting(self) -> list[str]:
        """Names of jobs that wait or run."""
        return [
            name
            for queue in self._queues()
            for ids in (
                queue.get_job_ids(),
                queue.started_job_registry.get_job_ids(cleanup=False),
                queue.scheduled_job_registry.get_job_ids(cleanup=False),
            )
            for name in ids
        ]

    def _jobs(self, names: Iterable[str], tasks: set[int]) -> dict[str, set[int]]:
        """Which of these tasks each job is for; jobs that are for none are left out."""
        out: dict[str, set[int]] = {}
        predicting = []
        for name in names:
            number = name.removeprefix(_PREPARE)
            if name.startswith(_PREPARE) and number.isdecimal():
                out[name] = {int(number)} & tasks
            elif name.startswith(_PREDICT):
                predicting.append(name)
        with self._queue.connection.pipeline(transaction=False) as pipeline:
            for name in predicting:
                pipeline.smembers(targets_key(name.removeprefix(_PREDICT)))
            for name, targets in zip(predicting, pipeline.execute(), strict=True):
                out[name] = {int(value) for value in targets} & tasks
        return {name: mine for name, mine in out.items() if mine}


def _ids(queue: Queue) -> list[str]:
    """Some jobs of each state. To be called within the queue's guard."""
    return [
        *queue.started_job_registry.get_job_ids(cleanup=False),
        *queue.get_job_ids(0, LISTED),
        *queue.scheduled_job_registry.get_job_ids(0, LISTED, cleanup=False),
        *(
            name
            for registry in (queue.failed_job_registry, queue.finished_job_registry, queue.canceled_job_registry)
            for name in registry.get_job_ids(0, LISTED, desc=True, cleanup=False)
        ),
    ]


def _describe(job: Job) -> tuple[str, int | None, int | None]:
    """Kind, project and task, as far as a job's name and arguments tell."""
    name = str(job.func_name).rsplit(".", 1)[-1]
    args = list(job.args or ())
    kind = KINDS.get(name, name)
    if name == "predict" and len(args) == 3:
        return kind, int(args[1]), int(args[2])
    project = int(args[0]) if args and isinstance(args[0], int) else None
    task = int(args[1]) if name in _OF_TASK and len(args) > 1 else None
    return kind, project, task


def _progress(found: Any) -> dict[str, Any] | None:
    """What a job says of its progress, with the share that is done, 0..1, where that can be told."""
    if not isinstance(found, Mapping):
        return None
    facts = {str(name): value for name, value in found.items() if name != "eta_s"}
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
