"""What processes that work for another one have in common."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Mapping
from pathlib import Path

import ml_backend

#: Serving answers people, who wait; work beside it may take a little longer.
NICENESS = 10


def import_path(environment: Mapping[str, str]) -> str:
    """``PYTHONPATH`` by which a child finds this package wherever it is started."""
    root = str(Path(ml_backend.__file__).resolve().parents[1])
    return os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH", "")]))


def lower_priority() -> None:
    """Let whoever answers people go first."""
    with contextlib.suppress(OSError):  # not allowed everywhere
        os.nice(NICENESS)


def exit_with_parent() -> None:
    """From now on, end when standard input does: then whoever started this process, and kept it open, is gone."""
    threading.Thread(target=_wait_for_the_end, daemon=True).start()


def terminate() -> None:
    """End this process at once."""
    # The leader of its own process group takes what it has started along, such as loaders of pictures.
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def _wait_for_the_end() -> None:
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
    terminate()
