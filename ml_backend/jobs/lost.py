"""Jobs that a worker has lost while it was killed."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ml_backend.jobs.queue import JobQueue

log = logging.getLogger(__name__)


def recover(queue: JobQueue, after_s: float) -> list[str]:
    """Put jobs back that are in no list.

    A worker takes a job's name from the queue and then notes that it began. Killed in between, it leaves a job
    that calls itself queued (or scheduled for another try), is nowhere, and blocks every new request for the same
    work. What is seen so twice, ``after_s`` apart, is lost; workers call this all the time.

    Returns:
        Ids of the jobs that were put back.
    """
    from rq.job import Job

    recovered = []
    with queue.guard():
        prefix = Job.redis_job_namespace_prefix
        keys = [key.decode() for key in queue.connection.scan_iter(f"{prefix}*", count=1000)]
        pipeline = queue.connection.pipeline(transaction=False)
        for key in keys:
            pipeline.type(key)
        kinds = pipeline.execute()
        hashes = [key for key, kind in zip(keys, kinds, strict=True) if kind == b"hash"]
        for key in hashes:
            pipeline.hget(key, "status")
        states = pipeline.execute()
        pending = {
            key.removeprefix(prefix)
            for key, state in zip(hashes, states, strict=True)
            if state in (b"queued", b"scheduled")
        }
        for other in queue.queues.values():
            pending -= {*other.get_job_ids(), *other.scheduled_job_registry.get_job_ids(cleanup=False)}
        for job_id in pending:
            mark, now = f"video:lost:{job_id}", time.time()
            if queue.connection.set(mark, now, nx=True, ex=int(10 * after_s) + 10):
                continue
            seen = queue.connection.get(mark)
            if seen is None or now - float(seen) < after_s:
                continue
            job = queue.fetch(job_id)
            still = job is not None and job.get_status() in ("queued", "scheduled")
            if job and still and queue.connection.delete(mark):
                log.warning("Job %s was lost by a worker that ended; it is queued again.", job_id)
                queue.queues[job.origin].enqueue_job(job)
                recovered.append(job_id)
    return recovered
