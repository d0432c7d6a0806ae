"""Webhook events: the work they leave pending is stored first and queued second, so that none is lost."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ml_backend.core.errors import BackendError, RequestError
from ml_backend.core.ids import MAX_ID
from ml_backend.db.storage import Storage
from ml_backend.jobs.queue import ALL_TASKS, JobQueue

log = logging.getLogger(__name__)

#: Actions that change what can be learned.
_ANNOTATION_ACTIONS = frozenset(
    f"ANNOTATION{plural}_{verb}" for plural in ("", "S") for verb in ("CREATED", "UPDATED", "DELETED")
)
QUEUED_EVENTS = frozenset({"TASKS_CREATED", "TASKS_DELETED", "START_TRAINING"}) | _ANNOTATION_ACTIONS
#: Ids that an event may name, and tasks that events may leave pending in a project. More stand for the whole project.
MAX_IDS, MAX_PENDING = 1000, 10_000
#: Seconds for which events are batched before they are queued.
BATCH_S = 0.2


@dataclass(frozen=True, slots=True)
class Event:
    """The ids that a webhook event refers to; their current state is fetched from Label Studio."""

    action: str
    project_id: int | None
    task_ids: tuple[int, ...] = ()
    annotation_ids: tuple[int, ...] = ()


def parse_event(body: Any) -> Event:
    """Extract ids from a webhook's body. Everything but ``action`` may be missing.

    An event that names more than :data:`MAX_IDS` stands for the whole project.

    Raises:
        RequestError: the body is not an object with an ``action``.
    """
    if not isinstance(body, dict) or not isinstance(body.get("action"), str) or not body["action"]:
        raise RequestError(
            "A webhook's body must be a JSON object with an 'action'.", "Connect the webhook from Label Studio."
        )
    action = body["action"]
    annotations = _items(body, "annotation", "annotations")
    tasks = _ids(_items(body, "task", "tasks")) + _ids([a.get("task") for a in annotations if isinstance(a, Mapping)])
    task_ids, annotation_ids = tuple(dict.fromkeys(tasks)), tuple(dict.fromkeys(_ids(annotations)))
    if max(len(task_ids), len(annotation_ids)) > MAX_IDS:
        task_ids, annotation_ids = (ALL_TASKS,), ()
    return Event(action[:64], _id(body.get("project")), task_ids, annotation_ids)


def _items(body: Mapping[str, Any], singular: str, plural: str) -> list[Any]:
    values = body.get(plural)
    items = list(values) if isinstance(values, list) else []
    value = body.get(singular)
    if isinstance(value, list):  # Label Studio's bulk events use the singular name too
        items += value
    elif value is not None:
        items.append(value)
    return items


def _ids(items: list[Any]) -> list[int]:
    return [item_id for item_id in map(_id, items) if item_id is not None]


def _id(item: Any) -> int | None:
    value = item.get("id") if isinstance(item, Mapping) else item
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MAX_ID else None


class WebhookReceiver:
    """Store the pending work of webhook events, and queue its jobs from a thread.

    Jobs that cannot be queued, because Redis is down or this process ends, are started by workers from the database:
    see :class:`ml_backend.jobs.training_scheduler.TrainingScheduler`.
    """

    def __init__(self, storage: Storage, queue: JobQueue) -> None:
        self._storage, self._queue = storage, queue
        self._pending: set[tuple[str, int]] = set()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def receive(self, event: Event, allowed: Callable[[int], bool] = lambda project: True) -> str:
        """Record an event; return ``"ignored"`` or ``"queued"``.

        A thread talks to Redis: a webhook must be answered at once even when Redis is slow to fail.

        Args:
            allowed: whether the sender may speak for a project.
        """
        if event.action not in QUEUED_EVENTS:
            return "ignored"
        pending = self._record(event, allowed)
        with self._lock:
            self._pending |= pending
            if self._thread is None or not self._thread.is_alive():  # not earlier, since gunicorn forks
                self._thread = threading.Thread(target=self._run, name="events", daemon=True)
                self._thread.start()
        self._wake.set()
        return "queued"

    def _record(self, event: Event, allowed: Callable[[int], bool]) -> set[tuple[str, int]]:
        """Store an event's work in the database; return the kind and project of each job to start."""
        storage, project_id = self._storage, event.project_id
        if event.action in ("TASKS_CREATED", "START_TRAINING"):
            kinds = ("prepare",) if event.action == "TASKS_CREATED" else ("learn", "train")
            if project_id is None or not allowed(project_id):
                return set()
            for kind in kinds:
                self._note(kind, project_id, event.task_ids if kind == "prepare" and event.task_ids else (ALL_TASKS,))
            return {(kind, project_id) for kind in kinds}
        # Deletion events name only annotations, and may lack the project.
        known = storage.tasks_of_annotations(event.annotation_ids)
        tasks = {task: project for task, project in known.items() if allowed(project)}
        if project_id is not None and allowed(project_id):
            if len(event.task_ids) == 1 and event.annotation_ids and len(tasks) == len(known):
                storage.note_annotations(project_id, event.task_ids[0], event.annotation_ids)
            tasks |= dict.fromkeys(event.task_ids, project_id)
        projects = set(tasks.values())
        for project in projects:
            self._note("learn", project, [task for task, owner in tasks.items() if owner == project])
        return {("learn", project) for project in projects}

    def _note(self, kind: str, project_id: int, task_ids: Sequence[int]) -> None:
        if ALL_TASKS in task_ids or self._storage.count_pending(kind, project_id) + len(task_ids) > MAX_PENDING:
            self._storage.note_project_pending(kind, project_id)
        else:
            self._storage.note_pending(kind, project_id, task_ids)

    def flush(self) -> None:
        """Queue the jobs recorded since the last call. Queueing one twice makes no second job."""
        with self._lock:
            pending, self._pending = sorted(self._pending), set()
        for kind, project_id in pending:
            self._queue.start_pending(kind, project_id)

    def _run(self) -> None:
        while True:
            self._wake.wait()
            # Bulk actions send many events; queueing each by itself would delay the responses to the others.
            time.sleep(BATCH_S)
            self._wake.clear()
            try:
                self.flush()
            except BackendError as error:
                log.warning("Events could not be queued and are left to workers: %s", error)
