"""Webhook events: what they ask for is written down first, and handed to the queue second, so that none is lost."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ml_backend.core.errors import BackendError, RequestError
from ml_backend.db.storage import Storage
from ml_backend.jobs.queue import JobQueue

log = logging.getLogger(__name__)

#: Something is learned from these. Label Studio sends these names.
_ANNOTATIONS = frozenset(f"ANNOTATION{many}_{what}" for many in ("", "S") for what in ("CREATED", "UPDATED", "DELETED"))
QUEUED_EVENTS = frozenset({"TASKS_CREATED", "TASKS_DELETED", "START_TRAINING"}) | _ANNOTATIONS
#: Seconds in which events are gathered before the queue is told.
GATHER_S = 0.2


@dataclass(frozen=True, slots=True)
class Event:
    """A webhook event reduced to what it points at; the truth is fetched from Label Studio."""

    action: str
    project_id: int | None
    task_ids: tuple[int, ...] = ()
    annotation_ids: tuple[int, ...] = ()


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
    """Takes events in; a thread hands over what they ask for.

    What it cannot hand over, since the queue is away or this process ends, workers find in the database: see
    :class:`ml_backend.jobs.training_scheduler.TrainingScheduler`.
    """

    def __init__(self, storage: Storage, queue: JobQueue) -> None:
        self._storage, self._queue = storage, queue
        self._asked: set[tuple[str, int]] = set()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def receive(self, event: Event) -> str:
        """Write down what an event asks for; returns what happens with it: ``"ignored"`` or ``"queued"``.

        The queue is told from a thread: a webhook must be answered at once even when Redis is slow to refuse.
        """
        if event.action not in QUEUED_EVENTS:
            return "ignored"
        asked = self._note(event)
        with self._lock:
            self._asked |= asked
            if self._thread is None or not self._thread.is_alive():  # not before: gunicorn forks
                self._thread = threading.Thread(target=self._run, name="events", daemon=True)
                self._thread.start()
        self._wake.set()
        return "queued"

    def _note(self, event: Event) -> set[tuple[str, int]]:
        """Kind and project of what is to be done now."""
        storage, project_id = self._storage, event.project_id
        if event.action in ("TASKS_CREATED", "START_TRAINING"):
            kinds = ("prepare",) if event.action == "TASKS_CREATED" else ("learn", "train")
            if project_id is None:
                return set()
            for kind in kinds:
                storage.note_pending(kind, project_id, event.task_ids if kind == "prepare" and event.task_ids else (0,))
            return {(kind, project_id) for kind in kinds}
        if project_id is not None and len(event.task_ids) == 1:
            storage.note_annotations(project_id, event.task_ids[0], event.annotation_ids)
        # Events of deletions name annotations only, and maybe no project.
        tasks = storage.tasks_of_annotations(event.annotation_ids)
        if project_id is not None:
            tasks |= dict.fromkeys(event.task_ids, project_id)
        projects = set(tasks.values())
        for number in projects:
            storage.note_pending("learn", number, [task for task, project in tasks.items() if project == number])
        return {("learn", number) for number in projects}

    def hand_over(self) -> None:
        """Have the queue do what was asked for since the last time. Doing it twice makes no second job."""
        with self._lock:
            asked, self._asked = sorted(self._asked), set()
        for kind, project_id in asked:
            self._queue.start_pending(kind, project_id)

    def _run(self) -> None:
        while True:
            self._wake.wait()
            # More may come at once; handing each over by itself would keep others from being answered.
            time.sleep(GATHER_S)
            self._wake.clear()
            try:
                self.hand_over()
            except BackendError as error:
                log.warning("What events ask for is left to workers: %s", error)
