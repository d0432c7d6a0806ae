"""Progress for a person (stderr) and the seconds of each stage for programs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape

EVERY_S = 10.0


class Reporter:
    """Names the stage that is under way and remembers how long each took.

    On a terminal the running stage has a spinner and a clock; elsewhere a line when it begins, every ten seconds,
    and when it ends.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        self.seconds: dict[str, float] = {}

    def say(self, text: str) -> None:
        self.console.print(escape(text), soft_wrap=True)

    @contextmanager
    def stage(self, key: str, text: str) -> Iterator[Callable[[], None]]:
        """Measure a stage; yields a function to be called now and then while waiting."""
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
            elif elapsed - last >= EVERY_S:
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
