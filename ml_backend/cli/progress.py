"""Progress bars, logging and error messages of the command-line scripts."""

from __future__ import annotations

import functools
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, get_args

from pydantic import ValidationError

from ml_backend.core.errors import BackendError
from ml_backend.core.settings import LogLevel, describe_invalid_settings

Function = TypeVar("Function", bound=Callable[..., Any])


def fail_clearly(function: Function, exit_code: int = 1) -> Function:
    """Make known errors end a script with a message on stderr and an exit code."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        level = os.environ.get("LOG_LEVEL", "").upper()
        if level not in get_args(LogLevel):  # scripts that read the settings report it
            level = "WARNING"
        logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s")
        try:
            return function(*args, **kwargs)
        except BackendError as error:
            print(f"Error: {error.message}", file=sys.stderr)
            if error.hint:
                print(f"Fix:   {error.hint}", file=sys.stderr)
            sys.exit(exit_code)
        except ValidationError as error:
            print(f"Error: {describe_invalid_settings(error)}", file=sys.stderr)
            sys.exit(exit_code)

    return run  # type: ignore[return-value]


@contextmanager
def progress_bar(title: str, every_s: float = 5.0) -> Iterator[Callable[[int, int], None]]:
    """Show progress on stderr: a bar on a terminal, else a line every few seconds. Yields ``update(done, total)``."""
    if not sys.stderr.isatty():
        last = time.monotonic()

        def print_line(done: int, total: int) -> None:
            nonlocal last
            if time.monotonic() - last >= every_s or done == total:
                last = time.monotonic()
                print(f"{title}: {done}/{total}", file=sys.stderr, flush=True)

        yield print_line
        return
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress

    with Progress(*Progress.get_default_columns(), MofNCompleteColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
