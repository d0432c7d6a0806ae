"""Progress reports and previews of long jobs."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError
from rq import get_current_job
from rq.job import Job

from ml_backend.core.errors import BackendError, Interrupted

if TYPE_CHECKING:
    from ml_backend.tracking.track_record import TrackSet

log = logging.getLogger(__name__)


def report_progress(job: Job | None, **facts: Any) -> None:
    """Store progress in a job's metadata."""
    if job is None:
        return
    job.meta["progress"] = facts
    try:
        job.save_meta()
    except RedisError as error:  # must not fail hours of work
        log.warning("Progress was not reported: %s", error)


class VideoProgress:
    """Reports the progress of one of a task's videos, at most once a second."""

    def __init__(self, video_index: int, videos: int) -> None:
        self._video_index, self._videos = video_index, videos
        self._job = get_current_job()
        self._started = self._last = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now, job = time.monotonic(), self._job
        if job is None or now - self._last < 1.0:
            return
        self._last = now
        rate = done / (now - self._started)
        eta_s = round((total - done) / rate) if rate and total > done else 0
        facts = {
            "part": self._video_index + 1,
            "parts": self._videos,
            "frames": done,
            "of": total,
            "fps": round(rate, 1),
        }
        report_progress(job, **facts, eta_s=eta_s)


class PreviewThrottle:
    """Shows partial results: first after a while, then whenever the work has taken half as long again.

    So all previews together take about as long as labelling the whole video once.

    Args:
        after_s: seconds of work before the first preview; 0: never.
    """

    def __init__(self, after_s: float, show: Callable[[TrackSet], None]) -> None:
        self._started: float | None = None
        self._after = after_s if after_s > 0 else math.inf
        self._show = show

    def __call__(self, so_far: Callable[[], TrackSet]) -> None:
        # Do not count fetching the video and loading the model.
        self._started = self._started or time.monotonic()
        worked = time.monotonic() - self._started
        if worked < self._after:
            return
        self._after = max(1.5 * worked, self._after)
        try:
            self._show(so_far())
        except Interrupted:
            raise
        except BackendError as error:  # must not fail hours of work
            log.warning("The preview was not shown: %s", error)
