"""Webhook events: written down first, handed to the queue second, so that none is lost when Redis is away."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ml_backend.errors import BackendError, QueueUnavailable, RequestError
from ml_backend.jobs.queue import JobQueue
from ml_backend.jobs.training_queue import TrainingQueue
from ml_backend.storage import Event, Storage

log = logging.getLogger(__name__)

#: Kept for retraining once their labels are learned. Label Studio sends these names.
ANNOTATION_EVENTS = frozenset(
    {
        "ANNOTATION_CREATED",
        "ANNOTATION_UPDATED",
        "ANNOTATION_DELETED",
        "ANNOTATIONS_CREATED",
        "ANNOTATIONS_UPDATED",
        "ANNOTATIONS_DELETED",
        "START_TRAINING",
    }
)
#: Events that are handed over at a time, and seconds in which they are gathered.
READ, GATHER_S = 1000, 0.2
QUEUED_EVENTS = frozenset({"TASKS_CREATED", "TASKS_DELETED"}) | ANNOTATION_EVENTS


def parse_event(body: Any) -> Event:
    """Reduce a webhook's body to what it points at. Everything but ``action`` may be missing.

    Raises:
        RequestError: not an object with an ``action``.
    """
    if not isinstance(body, dict) or not isinstance(body.get("action"), str) or not body["action"]:
        raise RequestError("A webhook's body must be a JSON object with an 'action'.", "Connect it from Label Studio.")
    action = body["action"]
    annotations = _items(body, "annotation", "annotations")
    tasks = _ids(_items(body, "task", "tasks")) + _ids([a.get("task") for a in annotations if isinstance(a, Mapping)])
    return Event(
        action=action[:64],
        project_id=_id(body.get("project")),
        task_ids=tuple(dict.fromkeys(tasks)),
        annotation_ids=tuple(dict.fromkeys(_ids(annotations))),
    )


def _items(body: Mapping[str, Any], one: str, many: str) -> list[Any]:
    found = body.get(many)
    items = list(found) if isinstance(found, list) else []
    single = body.get(one)
    if isinstance(single, list):  # Label Studio's bulk events use the singular name too
        items += single
    elif single is not None:
        items.append(single)
    return items


def _ids(items: list[Any]) -> list[int]:
    return [number for number in map(_id, items) if number is not None]


def _id(item: Any) -> int | None:
    value = item.get("id") if isinstance(item, Mapping) else item
    # Larger ones are no ids of Label Studio, and no database takes them.
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 31 else None


class EventLog:
    """Takes events in and hands the pending ones to the queue; a thread tries again what could not be handed over."""

    def __init__(self, storage: Storage, queue: JobQueue, retry_s: float = 5.0) -> None:
        self._storage = storage
        self._queue = queue
        self._trainings = TrainingQueue(queue)
        self._retry_s = retry_s
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def receive(self, event: Event) -> str:
        """Record an event; returns what happens with it: ``"ignored"`` or ``"queued"``.

        The queue is told from a thread: a webhook must be answered at once even when Redis is slow to refuse.
        """
        if event.action not in QUEUED_EVENTS:
            return "ignored"
        self._storage.add_event(event)
        self.start()
        self._wake.set()
        return "queued"

    def start(self) -> None:
        """Start the thread, once per process (after gunicorn's fork)."""
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="events", daemon=True)
                self._thread.start()

    def hand_over(self) -> int:
        """Hand pending events to the queue; returns how many. Doing it twice makes no second job.

        What many events of a storm ask for is asked for once: the queue would make one job of it anyhow.
        """
        pending = self._storage.list_events("pending", limit=READ)
        self._storage.note_annotations(pending)
        dirty: dict[int, set[int] | None] = {}
        trained: set[int] = set()
        for event in pending:
            if event.action == "TASKS_CREATED":
                if event.project_id is not None:
                    self._queue.request_prepare_many(event.project_id, event.task_ids, f"event-{event.id}")
            elif event.action == "START_TRAINING" and event.project_id is not None:
                dirty[event.project_id] = None
                trained.add(event.project_id)
        self._learn([event for event in pending if event.action not in ("TASKS_CREATED", "START_TRAINING")], dirty)
        for project_id, tasks in sorted(dirty.items()):
            self._queue.request_learning(project_id, None if tasks is None else sorted(tasks))
        for project_id in sorted(trained):
            self._trainings.request(project_id, "Start training")
        for kept in (True, False):
            ids = [event.id for event in pending if (event.action in ANNOTATION_EVENTS) is kept]
            self._storage.set_event_states(ids, "recorded" if kept else "done")
        return len(pending)

    def _learn(self, events: Sequence[Event], dirty: dict[int, set[int] | None]) -> None:
        """What people annotate, change or delete changes what is known of their labels.

        Args:
            dirty: by project the tasks that are to be read, ``None`` for all; they are added there.
        """
        # Events of deletions name annotations only, and maybe no project.
        annotations = sorted({number for event in events for number in event.annotation_ids})
        tasks = self._storage.tasks_of_annotations(annotations)
        for event in events:
            if event.project_id is not None:
                tasks |= dict.fromkeys(event.task_ids, event.project_id)
        for task_id, project_id in tasks.items():
            known = dirty.setdefault(project_id, set())
            if known is not None:
                known.add(task_id)

    def _run(self) -> None:
        while True:
            try:
                while self.hand_over():
                    pass
            except QueueUnavailable as error:
                log.warning("Events wait for the queue: %s", error)
            except BackendError as error:
                log.error("Events cannot be handed over: %s", error)
            self._wake.wait(self._retry_s)
            # More may come at once; handing each over by itself would keep others from being answered.
            time.sleep(GATHER_S)
            self._wake.clear()
