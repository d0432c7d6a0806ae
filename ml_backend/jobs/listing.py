"""Jobs as people see them: what runs, waits and has ended, how far it is, and giving it up."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from ml_backend.errors import BackendError
from ml_backend.jobs.board import CANCELLED, FAILED, FINISHED, REQUESTED, SPREAD, JobBoard
from ml_backend.jobs.queue import JobQueue, _targets_key
from ml_backend.jobs.records import failure_text, forget_executions, state_of
from ml_backend.jobs.spread import Spread
from ml_backend.jobs.training_queue import TrainingQueue
from ml_backend.moments import aware

if TYPE_CHECKING:
    from rq import Queue
    from rq.job import Job

#: Jobs of one state and queue that are read for a list; there may be a hundred thousand.
LISTED = 100
#: What jobs are called, by their function.
KINDS = {
    "prepare_task": "prepare",
    "prepare_many": "prepare",
    "predict": "predict",
    "help_observe": "help",
    "learn": "learn_patterns",
    "refresh": "refresh",
    "train": "train",
}
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


class Jobs:
    """Every method raises QueueUnavailable when Redis does not answer.

    Args:
        cancel_training: gives a project's training up.
    """

    def __init__(self, queue: JobQueue, cancel_training: Callable[[int], None]) -> None:
        self._queue, self._cancel_training = queue, cancel_training
        self.board = JobBoard(queue)
        self._spread = Spread(queue, self.board)

    def get(self, job_id: str) -> dict[str, Any] | None:
        """A job; ``None`` where nobody knows of it, or any more.

        Returns:
            ``id``, ``kind``, ``project``, ``task``, ``queue``, ``state`` (queued, waiting, running, cancelling,
            finished, failed or cancelled), ``progress``, ``eta_s``, ``error``, ``result`` and moments in ISO format.
        """
        with self._queue.guard():
            job = self._queue.fetch(job_id)
            record = self.board.get(job_id)
            if job is not None:
                return self._view(job, record)
        return self._recorded(record) if record else None

    def all(self, project_id: int | None = None) -> list[dict[str, Any]]:
        """What runs, waits and has ended lately: running ones first, then waiting, then ended ones, newest first."""
        with self._queue.guard():
            ids = [name for queue in self._queue.queues.values() for name in _ids(queue)]
            live = {job.id: job for job in self._queue.fetch_many(ids)}
            records = {record["id"]: record for record in self.board.recent()}
            older = self.board.records([name for name in live if name not in records])
            records |= {record["id"]: record for record in older}
            items = [self._view(job, records.get(name)) for name, job in live.items()]
        items += [self._recorded(record) for name, record in records.items() if name not in live]
        if project_id is not None:
            items = [item for item in items if item["project"] == project_id]
        return sorted(items, key=_order)

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
            if item["kind"] == "train":
                self._cancel_training(int(item["project"]))
                self.board.end(job_id, CANCELLED)  # what is said of it once it has ended
            elif item["kind"] == "auto_label" and item["state"] == "running" and self._queue.fetch(job_id) is None:
                self._spread.cancel(job_id, self._drop)
                self.board.end(job_id, CANCELLED)
            else:
                self._drop(job_id)
        return self.get(job_id) or item | {"state": CANCELLED}

    def _drop(self, job_id: str) -> None:
        """Delete a job that waits; ask for the end of one that runs. To be called within the queue's guard."""
        job = self._queue.fetch(job_id)
        if job is None:
            return
        self.board.request_cancel(job_id)  # first: it may begin at this moment
        if job.func_name.endswith(".predict") and job.args:
            self._queue.connection.delete(_targets_key(str(job.args[0])))
        if job.get_status() != "started":
            forget_executions(job)
            job.delete()
            self.board.end(job_id, CANCELLED)

    # -- one job

    def _view(self, job: Job, record: Mapping[str, Any] | None) -> dict[str, Any]:
        state = STATES.get(state_of(job), "queued")
        if state == "running" and self.board.is_cancelled(job.id):
            state = "cancelling"
        kind, project, task = _describe(job)
        if record:
            kind, project, task = record["kind"], record["project"], record.get("task", task)
        if kind == "train" and state == "running" and TrainingQueue(self._queue).is_cancelled(project or 0):
            state = "cancelling"
        progress = job.meta.get("progress") if state in ("running", "cancelling") else None
        return {
            "id": job.id,
            "kind": kind,
            "project": project,
            "task": task,
            "queue": job.origin,
            "state": state,
            "progress": _progress(progress),
            "eta_s": (progress or {}).get("eta_s"),
            "error": failure_text(job) if state == FAILED else str(job.meta.get("error") or ""),
            "result": None,
            "requested_at": _iso(job.enqueued_at or job.created_at),
            "started_at": _iso(job.started_at),
            "ended_at": _iso(job.ended_at) if state in OVER else None,
        }

    def _recorded(self, record: dict[str, Any]) -> dict[str, Any]:
        """A job that RQ has forgotten: it is over, or the jobs that do its work are looked at."""
        progress: dict[str, Any] | None = None
        state = str(record["state"])
        result, error, ended = record.get("result"), str(record.get("error") or ""), record.get("ended_at")
        if state == SPREAD:
            done, of, failures = self._spread.progress(record["id"])
            state, ended = "running", None
            if done >= of:
                result = {"tasks": of, "failed": len(failures)}
                error = next(iter(failures.values()), "")
                state, ended = (FAILED if failures and len(failures) == of else FINISHED), time.time()
                self.board.end(record["id"], state, result=result, error=error)
            else:
                progress = {"stage": "predicting", "done": done, "of": of}
                elapsed = time.time() - float(record["requested_at"])
                progress["eta_s"] = round(elapsed / done * (of - done)) if done else None
        elif state == REQUESTED:
            # Only a job that has ended well disappears without a word.
            state = FINISHED
        return {
            "id": record["id"],
            "kind": record["kind"],
            "project": record["project"],
            "task": record.get("task"),
            "queue": None,
            "state": state,
            "progress": _progress(progress),
            "eta_s": (progress or {}).get("eta_s"),
            "error": error,
            "result": result,
            "requested_at": _iso(record.get("requested_at")),
            "started_at": None,
            "ended_at": _iso(ended),
        }


def _ids(queue: Queue) -> list[str]:
    """Some jobs of each state. To be called within the queue's guard."""
    return [
        *queue.started_job_registry.get_job_ids(cleanup=False),
        *queue.get_job_ids(0, LISTED),
        *queue.scheduled_job_registry.get_job_ids(0, LISTED, cleanup=False),
        *queue.failed_job_registry.get_job_ids(0, LISTED, desc=True, cleanup=False),
    ]


def _describe(job: Job) -> tuple[str, int | None, int | None]:
    """Kind, project and task, as far as a job's name and arguments tell."""
    name = str(job.func_name).rsplit(".", 1)[-1]
    args = list(job.args or ())
    kind = KINDS.get(name, name)
    if name == "predict" and len(args) == 3:
        return kind, int(args[1]), int(args[2])
    project = int(args[0]) if args and isinstance(args[0], int) else None
    task = int(args[1]) if name in ("prepare_task", "help_observe") and len(args) > 1 else None
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
    return aware(moment).isoformat(timespec="milliseconds")
