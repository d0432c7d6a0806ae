"""Helpers for child processes: import path, priority, and exiting together with the parent."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Mapping
from pathlib import Path

import ml_backend

#: Background work runs at a lower priority than the HTTP server.
NICENESS = 10


def import_path(environment: Mapping[str, str]) -> str:
    """Return a ``PYTHONPATH`` with which a child process can import this package from any working directory."""
    root = str(Path(ml_backend.__file__).resolve().parents[1])
    return os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH", "")]))


def lower_priority() -> None:
    """Lower the priority of this process."""
    with contextlib.suppress(OSError):  # not permitted everywhere
        os.nice(NICENESS)


def exit_with_parent() -> None:
    """Exit when standard input reaches its end, that is when the parent, which holds the other end, has exited."""
    threading.Thread(target=_terminate_at_eof, daemon=True).start()


def terminate() -> None:
    """Kill this process, with its whole group if it leads one."""
    # The group includes children such as data loaders.
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def _terminate_at_eof() -> None:
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
    terminate()
