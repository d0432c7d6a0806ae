"""Server-sent events: what changes about jobs and versions, as it changes."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

from flask import Response, current_app

from ml_backend.errors import BackendError
from ml_backend.versions import BASE
from ml_backend.web import bodies
from ml_backend.web.control_room import pulse
from ml_backend.web.problems import Busy
from ml_backend.web.protocol import services

if TYPE_CHECKING:
    from ml_backend.services import Services

#: Listeners at once. Each holds one of the server's sixteen threads, and Label Studio needs the others.
LISTENERS = 6
#: Seconds between two looks, between two signs of life, and until a listener is asked to come again. Only writing shows
#: that a listener has gone, and whoever turns pages quickly needs his place again.
LOOK_S, BEAT_S, LAST_S = 1.0, 1.0, 600.0


class Listeners:
    """Counts who listens, and sends all of them home when the server stops."""

    def __init__(self, most: int = LISTENERS) -> None:
        self._places = threading.BoundedSemaphore(most)
        self.closing = threading.Event()

    def enter(self) -> None:
        """Take a place.

        Raises:
            Busy: there is none.
        """
        if self.closing.is_set() or not self._places.acquire(blocking=False):
            raise Busy("Too many listen already.", "Ask /api/jobs every few seconds instead, or try again later.")

    def leave(self) -> None:
        self._places.release()


def events(query: bodies.OfAnyProject) -> Response:
    """Open a stream; the first event of each kind tells everything, further ones what has changed."""
    listeners: Listeners = current_app.extensions["listeners"]
    found, beat = services(), pulse()
    beat.jobs()  # whoever cannot be told anything is told so at once
    listeners.enter()
    stream = _Stream(found, listeners, query.project, beat.jobs, beat.state)
    answer = Response(stream, content_type="text/event-stream; charset=utf-8")
    # Proxies pass each event on at once.
    answer.headers["X-Accel-Buffering"] = "no"
    answer.call_on_close(stream.close)
    return answer


class _Stream:
    """The events of one listener. Its place is free again when it is closed, which servers always do."""

    def __init__(self, found: Services, listeners: Listeners, project: int | None, jobs: Any, state: Any) -> None:
        self._found, self._listeners, self._project = found, listeners, project
        self._look_at_jobs, self._look_at_state = jobs, state
        self._told: dict[str, str] = {}
        self._events = self._run()
        self._closed = threading.Lock()

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        return next(self._events)

    def close(self) -> None:
        if self._closed.acquire(blocking=False):  # once
            self._events.close()
            self._listeners.leave()

    def _run(self) -> Generator[bytes, None, None]:
        began = spoke = time.monotonic()
        # The time after which a browser comes again.
        yield b"retry: 3000\n\n"
        while not self._listeners.closing.is_set() and time.monotonic() - began < LAST_S:
            said = b"".join(self._news())
            if not said and time.monotonic() - spoke >= BEAT_S:
                said = b": still there\n\n"
            if said:
                spoke = time.monotonic()
                yield said
            self._listeners.closing.wait(LOOK_S)
        yield _event("bye", {"again": True})

    def _news(self) -> Iterator[bytes]:
        try:
            jobs = [item for item in self._look_at_jobs() if self._project in (None, item["project"])]
            yield from self._changed_jobs(jobs)
            state = self._look_at_state()
            workers = [{key: item[key] for key in ("name", "queues")} for item in state["workers"]]
            yield from self._changed("status", {"queues": state["queues"], "workers": workers})
            if self._project is not None:
                yield from self._changed("version", self._version(self._project))
        except BackendError as error:
            yield from self._changed("problem", {"detail": error.message, "cure": error.cure})

    def _changed_jobs(self, jobs: list[dict[str, Any]]) -> Iterator[bytes]:
        texts = {f"job:{item['id']}": json.dumps(item) for item in jobs}
        first = "jobs" not in self._told
        new = [item for item in jobs if self._told.get(f"job:{item['id']}") != texts[f"job:{item['id']}"]]
        gone = sorted(name.removeprefix("job:") for name in self._told.keys() - texts.keys() if name[:4] == "job:")
        self._told = {name: text for name, text in self._told.items() if name[:4] != "job:"} | texts | {"jobs": ""}
        if new or gone or first:
            yield _event("jobs", {"jobs": new, "gone": gone, "all": first})

    def _changed(self, name: str, facts: dict[str, Any]) -> Iterator[bytes]:
        text = json.dumps(facts)
        if self._told.get(name) != text:
            self._told[name] = text
            yield _event(name, facts)

    def _version(self, project: int) -> dict[str, Any]:
        """What the project uses, and how far its training is."""
        registry = self._found.projects.registry
        current, active = registry.current(project), registry.active(project)
        return {
            "project": project,
            "current": current.name if current else BASE,
            "training": {"version": active.name, "state": active.state, "history": active.history} if active else None,
        }


def _event(name: str, facts: dict[str, Any]) -> bytes:
    return f"event: {name}\ndata: {json.dumps(facts)}\n\n".encode()
