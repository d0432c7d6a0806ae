"""Making room in the data folder: old outputs, and what crashes and failures have left there."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ml_backend.errors import QueueUnavailable
from ml_backend.jobs.queue import OVER, state_of
from ml_backend.outputs import Outputs

if TYPE_CHECKING:
    from ml_backend.jobs.container import Container

log = logging.getLogger(__name__)

#: Seconds between two looks of a worker that has nothing to do with files.
EVERY_S = 3600
#: Name of the thread that does it there.
CLEANER = "leftovers"


def remove_leftovers(container: Container) -> list[str]:
    """Remove what nobody needs any more; may be done at any time, by many at once.

    Returns:
        Names of the outputs that are gone. Where Redis does not answer, the rest stays for the next time.
    """

    def needed(folder: str) -> bool:
        with container.queue.guard():
            job = container.queue.fetch(f"import-{folder}")  # so ControlQueue calls it
            return job is not None and state_of(job) not in OVER

    try:
        return Outputs(container.settings).clean(needed=needed)
    except QueueUnavailable as error:
        log.warning("What is left of old uploads stays for now: %s", error)
        return []
