"""Keeps the lock of a training alive, and tells it when to stop."""

from __future__ import annotations

import logging
import threading
from types import TracebackType
from typing import TYPE_CHECKING

from ml_backend.errors import Interrupted, QueueUnavailable
from ml_backend.jobs.training_queue import TrainingLock

if TYPE_CHECKING:
    from ml_backend.jobs.context import Context

log = logging.getLogger(__name__)

#: Seconds within which a training notices that it has been cancelled.
_LOOK_S = 1.0


class Watch:
    """A thread beside a training; use as a context manager.

    Attributes:
        cancelled: somebody has asked for the training's end.
        lost: the lock has expired and may be another worker's.
    """

    def __init__(self, context: Context, project_id: int, lock: TrainingLock) -> None:
        self._context, self._project, self._lock = context, project_id, lock
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="training-watch", daemon=True)
        self.cancelled = False
        self.lost = False

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join(timeout=10)

    def should_stop(self) -> bool:
        """Whether the work has to end now: the process ends, it was cancelled, or it is another's."""
        return self.cancelled or self.lost or self._context.stop.is_set()

    def check(self) -> None:
        """Raise Interrupted if the work has to end now."""
        if self.should_stop():
            raise Interrupted("The training was stopped.", "It is taken up again unless it was cancelled.")

    def _run(self) -> None:
        renew_s = self._context.settings.job_lease_s / 3
        waited = renew_s
        while True:
            try:
                if waited >= renew_s:
                    self._lock.renew()
                    waited = 0.0
                self.cancelled |= self._context.trainings.is_cancelled(self._project)
            except Interrupted as error:
                log.warning("%s", error)
                self.lost = True
                return
            except QueueUnavailable as error:  # it may come back before the lock runs out
                log.debug("The lock was not renewed: %s", error)
            if self._over.wait(_LOOK_S):
                return
            waited += _LOOK_S
