"""RQ's records of jobs, read."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rq.job import Job


def state_of(job: Job) -> str:
    """RQ's name of a job's state, as it was when the job was read; empty where it has none."""
    state = job.get_status(refresh=False)
    return state.value if state else ""


def forget_executions(job: Job, keep: str = "") -> None:
    """Strike executions of workers that died from a job's list, all but ``keep``.

    RQ keeps them there for a minute longer than it keeps what they point to, and cannot delete the job meanwhile.
    """
    registry = job.execution_registry
    dead = [name for name in registry.get_execution_ids() if name != keep]
    if dead:
        registry.connection.zrem(registry.key, *dead)


def failure_text(job: Job) -> str:
    """Why a job failed, in the words of the error that was raised."""
    text = job.meta.get("error")
    if text:
        return str(text)
    result = job.latest_result() if state_of(job) == "failed" else None
    trace = (result.exc_string or "").strip() if result else ""
    return trace.rsplit("\n", 1)[-1]
