"""Making exports while others serve: one of a kind at a time, and what failed is left alone for a while."""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ml_backend.errors import BackendError
from ml_backend.models.downloads import RETRY_AFTER_S

log = logging.getLogger(__name__)

T = TypeVar("T")

#: A process that ends waits so long for an export: what runs into the interpreter's end can crash it.
EXIT_WAIT_S = 10.0

_making: dict[Path, threading.Thread] = {}
_making_lock = threading.Lock()
#: Why, and when, it could not be made: where the disk is what fails, nothing can be remembered on it.
_failed: dict[Path, tuple[str, float]] = {}


def make(target: Path, work: Callable[[], T]) -> T:
    """Do the work now.

    Args:
        target: what is made, by which a failure is remembered.

    Raises:
        BackendError: what ``work`` raises.
    """
    try:
        made = work()
    except BackendError as error:
        _failed[target] = (error.message, time.monotonic())
        raise
    _failed.pop(target, None)
    return made


def make_beside(target: Path, failure: str, work: Callable[[], object]) -> None:
    """Do the work in a thread, unless one is at it.

    Args:
        target: as in :func:`make`.
        failure: what it means when it fails, for the log.
    """

    def run() -> None:
        try:
            make(target, work)
        except BackendError as error:
            log.warning("%s: %s", failure, error)
        finally:
            with _making_lock:
                del _making[target]

    with _making_lock:
        if target in _making:
            return
        _making[target] = thread = threading.Thread(target=run, name=f"export {target.name}", daemon=True)
    thread.start()


def recently_failed(target: Path) -> str | None:
    """Why it could not be made within the last ``RETRY_AFTER_S``."""
    reason, when = _failed.get(target, ("", 0.0))
    return reason if reason and time.monotonic() - when < RETRY_AFTER_S else None


def wait_for_exports(timeout_s: float) -> bool:
    """Whether all exports that this process makes in the background have ended within a time."""
    until = time.monotonic() + timeout_s
    with _making_lock:
        threads = list(_making.values())
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    return not any(thread.is_alive() for thread in threads)


atexit.register(wait_for_exports, EXIT_WAIT_S)
