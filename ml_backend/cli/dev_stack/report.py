"""Progress on stderr, and the duration of each stage."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape

INTERVAL_S = 10.0


class Reporter:
    """Shows the current stage and measures all stages.

    On a terminal it shows a spinner and a clock; elsewhere it prints a line at the start, every ten seconds, and at the
    end.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        self.seconds: dict[str, float] = {}

    def say(self, text: str) -> None:
        self.console.print(escape(text), soft_wrap=True)

    @contextmanager
    def stage(self, key: str, text: str) -> Iterator[Callable[[], None]]:
        """Measure a stage. Yields a function to call regularly while waiting."""
        started = time.monotonic()
        status = self.console.status(escape(text)) if self.console.is_terminal else None
        last = 0.0
        if status:
            status.start()
        else:
            self.say(f"{text} ...")

        def tick() -> None:
            nonlocal last
            elapsed = time.monotonic() - started
            if status:
                status.update(f"{escape(text)} [dim]{elapsed:.0f} s[/dim]")
            elif elapsed - last >= INTERVAL_S:
                last = elapsed
                self.say(f"{text} ... {elapsed:.0f} s")

        try:
            yield tick
        finally:
            if status:
                status.stop()
            elapsed = time.monotonic() - started
            self.seconds[key] = round(self.seconds.get(key, 0.0) + elapsed, 2)
        self.say(f"{text}: done after {elapsed:.1f} s")
