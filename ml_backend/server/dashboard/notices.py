"""Messages about jobs: what this browser has requested, how trainings ended, and what failed; shown until dismissed.

Two cookies keep them across reloads, also without scripts: which jobs were requested, and what was dismissed.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import Any

from flask import Response

from ml_backend.jobs.job_list import ENDED_STATES, FAILED

#: Names of the cookies.
REQUESTED, DISMISSED = "requested", "dismissed"
#: Older outcomes are not shown.
DAY_S = 24 * 3600
#: Entries of a cookie, of which browsers keep 4 kB.
_MAX_REQUESTED, _MAX_DISMISSED = 50, 100
#: Kinds of jobs that a part of the page starts, which shows their errors itself.
_OF_PARTS = (
    *("count_statistics", "describe_patterns", "find_similar", "search_text", "choose_next", "measure_agreement"),
    "list_objects",
)
_KEY, _AT = re.compile(r"[0-9a-f]{12}"), re.compile(r"[0-9]{1,14}")


@dataclass(frozen=True, slots=True)
class Notice:
    """A message about a job, or about several that failed for one reason.

    Attributes:
        key: identifies the job or the reason.
        at: when its last job ended or was requested, in milliseconds since 1970.
        error: the reason; empty unless they failed.
        jobs: of the API, newest first.
    """

    key: str
    at: int
    error: str
    jobs: tuple[Mapping[str, Any], ...]

    @property
    def kinds(self) -> list[str]:
        return list(dict.fromkeys(job["kind"] for job in self.jobs))

    @property
    def tasks(self) -> list[int]:
        return sorted({job["task"] for job in self.jobs if job["task"]})


def job_notices(
    jobs: Iterable[Mapping[str, Any]], requested: Sequence[str], dismissed: Mapping[str, int]
) -> list[Notice]:
    """Return what has not been dismissed, newest first.

    Args:
        jobs: of a project, as the API returns them.
        requested: keys of the jobs that this browser has requested.
        dismissed: time by key, in milliseconds since 1970: what is newer is shown.
    """
    groups: dict[tuple[str, str], list[tuple[int, Mapping[str, Any]]]] = {}
    oldest = (time.time() - DAY_S) * 1000
    for job in jobs:
        ended = job["state"] in ENDED_STATES
        at = _milliseconds(job["ended_at"] if ended else job["requested_at"])
        error = failure(job)
        key = key_of(job["id"])
        wanted = key in requested or (ended and _is_training_outcome(job))
        if (error and job["kind"] in _OF_PARTS) or not (error or wanted) or (ended and at < oldest):
            continue
        key = key_of(error) if error else key
        if at > dismissed.get(key, 0):
            groups.setdefault((key, error), []).append((at, job))
    notices = []
    for (key, error), items in groups.items():
        items.sort(key=lambda item: -item[0])
        notices.append(Notice(key, items[0][0], error, tuple(job for _, job in items)))
    return sorted(notices, key=lambda notice: -notice.at)


def key_of(text: str) -> str:
    """Return the key of a job's id or of an error, 12 hex digits."""
    return sha256(text.encode()).hexdigest()[:12]


def failure(job: Mapping[str, Any]) -> str:
    """Return why a job, or the training that it ran, failed; empty if it did not."""
    if job["state"] == FAILED:
        return str(job["error"]) or "The job failed."
    result = job["result"]
    failed = isinstance(result, Mapping) and job["kind"] == "train" and result.get("state") == FAILED
    return str(result["reason"]) if failed else ""


def _is_training_outcome(job: Mapping[str, Any]) -> bool:
    """Return whether a training made a version, which is told also to those who did not request it."""
    return job["kind"] == "train" and isinstance(job["result"], Mapping) and bool(job["result"].get("version"))


def _milliseconds(iso: str | None) -> int:
    return round(datetime.fromisoformat(iso).timestamp() * 1000) if iso else 0


# -- cookies


def read_requested(cookies: Mapping[str, str]) -> tuple[str, ...]:
    """Return the keys of the jobs that this browser has requested."""
    return tuple(filter(_KEY.fullmatch, cookies.get(REQUESTED, "").split(".")))


def add_requested(
    jobs: Iterable[Mapping[str, Any]], before: Sequence[str], new: Iterable[Mapping[str, Any]]
) -> tuple[str, ...]:
    """Return the keys of new jobs, and of those requested before whose outcome is still to come.

    Args:
        jobs: all, as the API returns them.
        before: keys of those requested before.
        new: the requested jobs.
    """
    live = {key_of(job["id"]) for job in jobs if job["state"] not in ENDED_STATES}
    added = (key_of(job["id"]) for job in new)
    return tuple(dict.fromkeys([*added, *(key for key in before if key in live)]))[:_MAX_REQUESTED]


def read_dismissed(cookies: Mapping[str, str]) -> dict[str, int]:
    """Return what was dismissed: time by key, see :func:`job_notices`."""
    items = (entry.partition("-") for entry in cookies.get(DISMISSED, "").split("."))
    return {key: int(at) for key, _, at in items if _KEY.fullmatch(key) and _AT.fullmatch(at)}


def add_dismissed(before: Mapping[str, int], key: str, at: str) -> dict[str, int]:
    """Return ``before`` with an entry more, without those that are too old to matter; unchanged if it is malformed."""
    if not (_KEY.fullmatch(key) and _AT.fullmatch(at)):
        return dict(before)
    oldest = (time.time() - DAY_S) * 1000
    recent = [(name, moment) for name, moment in before.items() if moment > oldest and name != key]
    return dict([*recent, (key, int(at))][-_MAX_DISMISSED:])


def set_requested(response: Response, requested: Sequence[str]) -> None:
    """Store the keys of requested jobs."""
    response.set_cookie(REQUESTED, ".".join(requested), max_age=DAY_S, samesite="Lax", httponly=True)


def set_dismissed(response: Response, dismissed: Mapping[str, int]) -> None:
    """Store what was dismissed."""
    value = ".".join(f"{key}-{at}" for key, at in dismissed.items())
    response.set_cookie(DISMISSED, value, max_age=DAY_S, samesite="Lax", httponly=True)
