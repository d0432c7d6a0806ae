"""What many people look at at once is looked up once a second."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")

#: Seconds for which an answer is good.
FRESH_S = 1.0


class Once(Generic[T]):
    """The value of a function, asked for at most once in a while; callers that come meanwhile wait for the same one."""

    def __init__(self, ask: Callable[[], T], fresh_s: float = FRESH_S) -> None:
        self._ask, self._fresh_s = ask, fresh_s
        self._lock = threading.Lock()
        self._known: tuple[float, T] | None = None

    def __call__(self) -> T:
        known = self._known
        if known is not None and time.monotonic() - known[0] < self._fresh_s:
            return known[1]
        with self._lock:
            known = self._known
            if known is not None and time.monotonic() - known[0] < self._fresh_s:
                return known[1]
            value = self._ask()
            self._known = time.monotonic(), value
            return value

    def forget(self) -> None:
        """What is known may be outdated."""
        self._known = None


class Pulse:
    """The state of workers, queues and jobs. Values are shared: they are not to be changed.

    Args:
        state, jobs: look it up.
    """

    def __init__(self, state: Callable[[], dict[str, Any]], jobs: Callable[[], list[dict[str, Any]]]) -> None:
        self.state = Once(state)
        self.jobs = Once(jobs)
