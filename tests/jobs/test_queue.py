"""Idempotent requests, with a real Redis."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from redis import Redis
from rq import Worker
from rq.executions import prepare_execution
from rq.job import Job, JobStatus

from ml_backend.core.errors import QueueUnavailable
from ml_backend.core.settings import Settings
from ml_backend.jobs.job_list import JobList, NotCancellable
from ml_backend.jobs.known_job import KnownJob
from ml_backend.jobs.queue import JobQueue


@pytest.fixture
def queue(settings: Callable[..., Settings], redis_url: str) -> JobQueue:
    return JobQueue(settings(redis_url=redis_url))


def fetch(queue: JobQueue, job_id: str) -> Job:
    return KnownJob.fetch(job_id, connection=queue.connection)


def test_same_request_makes_one_job(queue: JobQueue) -> None:
    assert queue.request_prepare(7, 1).created
    again = queue.request_prepare(7, 1)
    assert (again.created, again.failure) == (False, "")
    assert queue.request_prepare(7, 2).created
    assert queue.request_prediction("k", 7, 1).created
    assert not queue.request_prediction("k", 7, 2).created
    assert queue.request_prepare_many(7, [1, 2]).created
    assert not queue.request_prepare_many(7, [3]).created
    assert set(queue.storage.pending("prepare", 7)) == {1, 2, 3}
    depths = queue.depths()
    assert depths["prepare"]["queued"] == 3
    assert depths["predict"]["queued"] == 1


def test_fifty_at_once_make_one_job(queue: JobQueue) -> None:
    barrier = threading.Barrier(50)

    def ask(number: int) -> bool:
        barrier.wait()
        return queue.request_prediction("k", 7, number).created

    with ThreadPoolExecutor(50) as pool:
        assert sum(pool.map(ask, range(50))) == 1
    assert queue.depths()["predict"]["queued"] == 1
    assert queue.targets("k") == set(range(50))


def test_what_is_wanted_sooner_does_not_wait_behind_the_rest(queue: JobQueue) -> None:
    for n in range(3):
        queue.request_prediction(f"k{n}", 1, n, queue="refresh")
    assert not queue.request_prediction("k2", 1, 7).created
    assert queue.queues["predict"].get_job_ids() == ["predict-k2"]
    assert queue.queues["refresh"].get_job_ids() == ["predict-k0", "predict-k1"]
    assert fetch(queue, "predict-k2").origin == "predict"
    assert queue.targets("k2") == {2, 7}
    # The other way round, and what has begun, stays where it is.
    queue.request_prediction("k2", 1, 2, queue="refresh")
    assert queue.queues["predict"].get_job_ids() == ["predict-k2"]
    fetch(queue, "predict-k0").set_status(JobStatus.STARTED)
    queue.queues["refresh"].remove("predict-k0")
    assert not queue.request_prediction("k0", 1, 0).created
    assert queue.queues["predict"].get_job_ids() == ["predict-k2"]


def test_what_was_taken_back_can_be_asked_for_again(queue: JobQueue) -> None:
    jobs = JobList(queue, lambda project: None)
    queue.request_prepare(1, 5)
    cancelled = jobs.cancel("prepare-5")
    assert cancelled
    assert cancelled["state"] == "cancelled"
    assert queue.request_prepare(1, 5).created
    assert not queue.is_cancelled("prepare-5")
    # While it is there, asking again does not undo what somebody else wants.
    queue.request_cancel("prepare-5")
    assert not queue.request_prepare(1, 5).created
    assert queue.is_cancelled("prepare-5")
    queue.request_cancel("prepare-6")  # which nobody has asked for
    assert queue.request_prepare(1, 6).created
    assert not queue.is_cancelled("prepare-6")


def test_who_asked_for_a_job_sees_that_it_was_taken_back(queue: JobQueue) -> None:
    jobs = JobList(queue, lambda project: None)
    queue.request("control", "export_project", [7, "coco", "none", None], "export-7", "control_media")
    assert jobs.cancel("export-7")
    (found,) = jobs.all(7)
    assert (found["state"], found["kind"], found["result"]) == ("cancelled", "export_project", None)
    assert found["ended_at"]
    with pytest.raises(NotCancellable, match="cancelled"):
        jobs.cancel("export-7")
    assert queue.request("control", "export_project", [7, "coco", "none", None], "export-7", "control_media").created
    assert [item["state"] for item in jobs.all(7)] == ["queued"]


def test_who_asks_need_not_wait_for_the_next_try(queue: JobQueue) -> None:
    queue.request_learning(7, [1])
    job = fetch(queue, "learn-7")
    queue.queues["patterns"].remove(job)
    queue.queues["patterns"].schedule_job(job, datetime.now(timezone.utc) + timedelta(hours=1))
    queue.start_pending("learn", 7, pause=timedelta(seconds=600))  # a worker that looks what is to be done
    assert queue.depths()["patterns"] == {"queued": 0, "started": 0, "scheduled": 1, "failed": 0}
    assert not queue.request_learning(7, [2]).created
    assert queue.depths()["patterns"] == {"queued": 1, "started": 0, "scheduled": 0, "failed": 0}


def test_arguments_are_plain_json(queue: JobQueue) -> None:
    """A pickle in Redis would be code for whoever can write there."""
    queue.request_prediction("k", 7, 1)
    raw = queue.connection.hget("rq:job:predict-k", "data")
    import json
    import zlib

    assert isinstance(raw, bytes)
    with_code = json.loads(zlib.decompress(raw))
    assert with_code == ["ml_backend.jobs.predict.predict", None, ["k", 7, 1], {}]


def test_targets_wait_until_they_are_removed(queue: JobQueue) -> None:
    queue.add_targets("k", [])
    assert queue.targets("k") == set()
    queue.add_targets("k", [3, 3, 4])
    assert queue.targets("k") == {3, 4}
    queue.remove_target("k", 3)
    queue.remove_target("k", 5)
    assert queue.targets("k") == {4}


def end(queue: JobQueue, job_id: str, status: JobStatus, error: str = "") -> Job:
    """As a worker would leave a job that is over."""
    job = fetch(queue, job_id)
    queue.queues[job.origin].remove(job)
    job.set_status(status)
    if error:
        job.meta["error"] = error
    from rq.utils import now

    job.ended_at = now()
    job.save()
    if status == JobStatus.FAILED:
        job.failed_job_registry.add(job, ttl=100)
    return job


def test_failed_job_says_why_and_is_not_repeated_at_once(queue: JobQueue) -> None:
    queue.request_prepare(7, 1)
    end(queue, "prepare-1", JobStatus.FAILED, "It is broken. Mend it.")
    again = queue.request_prepare(7, 1)
    assert (again.created, again.failure) == (False, "It is broken. Mend it.")
    assert [job["error"] for job in queue.failed_jobs()] == ["It is broken. Mend it."]
    assert queue.depths()["prepare"] == {"queued": 0, "started": 0, "scheduled": 0, "failed": 1}


def test_failed_job_is_repeated_after_the_pause(queue: JobQueue) -> None:
    queue.request_prepare(7, 1)
    end(queue, "prepare-1", JobStatus.FAILED, "It is broken.")
    queue.connection.hset("rq:job:prepare-1", "ended_at", "2020-01-01T00:00:00.000000Z")
    assert queue.request_prepare(7, 1).created
    assert queue.depths()["prepare"] == {"queued": 1, "started": 0, "scheduled": 0, "failed": 0}
    job = fetch(queue, "prepare-1")
    assert job.meta == {}
    assert job.retries_left == 3


def test_failed_job_whose_worker_was_killed_can_be_made_anew(queue: JobQueue) -> None:
    """RQ lists the dead worker's execution for a minute longer than it exists."""
    queue.request_prepare(7, 1)
    job = end(queue, "prepare-1", JobStatus.FAILED, "killed")
    queue.connection.zadd(job.execution_registry.key, {"dead": time.time() + 60})
    queue.connection.hset(job.key, "ended_at", "2020-01-01T00:00:00.000000Z")
    assert queue.request_prepare(7, 1).created


@pytest.mark.parametrize("status", [JobStatus.STOPPED, JobStatus.CANCELED, JobStatus.FINISHED])
def test_job_that_is_over_otherwise_does_not_block(queue: JobQueue, status: JobStatus) -> None:
    queue.request_prepare(7, 1)
    job = end(queue, "prepare-1", status)
    job.connection.hset(job.key, "ended_at", "2020-01-01T00:00:00.000000Z")
    assert queue.request_prepare(7, 1).created


def test_job_that_fell_out_of_every_list_is_put_back(queue: JobQueue) -> None:
    """A worker that is killed between taking a job's name and noting that it began leaves it "queued" nowhere."""
    for number in range(3):
        queue.request_prepare(7, number)
    queue.request_prediction("k", 7, 1)
    queue.connection.lpop("rq:queue:prepare")
    assert not queue.request_prepare(7, 0).created  # it blocks
    assert queue.recover_orphaned(after_s=60) == []  # somebody may be about to begin it
    assert queue.recover_orphaned(after_s=60) == []
    queue.connection.expire("video:lost:prepare-0", queue.connection.ttl("video:lost:prepare-0") - 61)  # a minute later
    assert queue.recover_orphaned(after_s=60) == ["prepare-0"]
    assert queue.recover_orphaned(after_s=60) == []
    assert queue.depths()["prepare"]["queued"] == 3
    assert queue.queues["prepare"].get_job_ids() == ["prepare-1", "prepare-2", "prepare-0"]


def test_job_whose_next_try_was_not_noted_is_put_back(queue: JobQueue) -> None:
    queue.request_prepare(7, 1)
    job = fetch(queue, "prepare-1")
    queue.queues["prepare"].remove(job)
    job.set_status(JobStatus.SCHEDULED)
    assert queue.recover_orphaned(after_s=0) == []
    assert queue.recover_orphaned(after_s=0) == ["prepare-1"]
    assert queue.depths()["prepare"]["queued"] == 1


def test_a_heartbeat_of_a_job_that_redis_has_forgotten_hides_no_other(queue: JobQueue) -> None:
    queue.request_prepare(7, 1)
    (job_id,) = queue.queues["prepare"].get_job_ids()
    running = KnownJob("train-7", connection=queue.connection)
    queue.connection.hset(running.key, "last_heartbeat", "2026-01-01T00:00:00Z")
    with queue.guard():
        assert [job.id for job in queue.fetch_many(["train-7", "unknown", job_id])] == [job_id]
        assert queue.fetch("train-7") is None


def test_jobs_that_are_somewhere_are_left_alone(queue: JobQueue) -> None:
    for number in range(4):
        queue.request_prepare(7, number)
    end(queue, "prepare-1", JobStatus.FAILED, "x")
    end(queue, "prepare-3", JobStatus.STARTED)
    job = fetch(queue, "prepare-2")
    queue.queues["prepare"].remove(job)
    queue.queues["prepare"].schedule_job(job, datetime.now(timezone.utc) + timedelta(hours=1))
    for _ in range(3):
        assert queue.recover_orphaned(after_s=0) == []


@pytest.mark.parametrize(("attempts", "pauses"), [(2, [5]), (3, [5, 60]), (4, [5, 60, 600]), (6, [5, 5, 5, 60, 600])])
def test_pauses_between_attempts_grow(
    settings: Callable[..., Settings], redis_url: str, attempts: int, pauses: list[int]
) -> None:
    queue = JobQueue(settings(redis_url=redis_url, job_attempts=attempts))
    queue.request_prepare(7, 1)
    job = fetch(queue, "prepare-1")
    seen = []
    while job.retries_left:
        seen.append(job.get_retry_interval())
        job.retries_left -= 1
    assert seen == pauses


def test_one_attempt_only(settings: Callable[..., Settings], redis_url: str) -> None:
    queue = JobQueue(settings(redis_url=redis_url, job_attempts=1))
    queue.request_prepare(7, 1)
    assert not fetch(queue, "prepare-1").retries_left


def test_delivery_lock_lets_one_in(queue: JobQueue) -> None:
    inside: list[int] = []
    overlaps: list[int] = []

    def enter(number: int) -> None:
        with queue.task_lock("deliver", 5):
            inside.append(number)
            overlaps.append(len(inside))
            time.sleep(0.02)
            inside.remove(number)

    with ThreadPoolExecutor(5) as pool:
        list(pool.map(enter, range(5)))
    assert overlaps == [1] * 5
    with queue.task_lock("deliver", 6), queue.task_lock("deliver", 7):
        pass


def test_counters(queue: JobQueue) -> None:
    queue.count("frames", 3)
    queue.count("frames", 0.5)
    assert queue.counters() == {"frames": 3.5}
    assert queue.workers() == []


def test_workers_and_what_they_run(queue: JobQueue) -> None:
    redis, job_id = queue.connection, queue.request_prepare(7, 1).job_id
    names = ("idle", "killed", "busy", "gone")
    workers = {name: Worker([queue.queues["prepare"]], name=name, connection=redis) for name in names}
    for worker in workers.values():
        worker.register_birth()
    job = fetch(queue, job_id)
    for name in ("killed", "busy"):  # what a process that was killed ran stays listed
        redis.delete(prepare_execution(workers[name], job).key)
    prepare_execution(workers["busy"], job)
    redis.delete(workers["gone"].key)
    running = {"busy": job_id, "idle": "", "killed": ""}
    found = queue.workers()
    assert [(worker.name, worker.job_id) for worker in found] == sorted(running.items())
    assert {(worker.pid, worker.hostname, worker.queues) for worker in found} == {
        (os.getpid(), socket.gethostname(), ("prepare",))
    }


def test_everything_says_when_redis_is_away(settings: Callable[..., Settings], tmp_path: Path) -> None:
    queue = JobQueue(settings(redis_url=f"unix://{tmp_path}/none"))
    calls: list[Callable[[], object]] = [
        queue.ping,
        lambda: queue.request_prepare(7, 1),
        lambda: queue.request_prediction("k", 7, 1),
        lambda: queue.targets("k"),
        lambda: queue.remove_target("k", 1),
        lambda: queue.add_targets("k", [1]),
        lambda: queue.task_lock("deliver", 1).__enter__(),
        lambda: queue.remember_token("x"),
        queue.remembered_token,
        lambda: queue.count("x"),
        queue.counters,
        queue.depths,
        queue.workers,
        lambda: queue.is_cancelled("x"),
        lambda: queue.request_cancel("x"),
        queue.failed_jobs,
    ]
    for call in calls:
        started = time.monotonic()
        with pytest.raises(QueueUnavailable) as failure:
            call()
        assert failure.value.retryable
        assert "REDIS_URL" in failure.value.hint
        assert time.monotonic() - started < 5


def test_redis_that_refuses_writes(queue: JobQueue, redis_url: str) -> None:
    """Out of memory, read-only replica, disk full with append-only file: an answer, but no."""
    with Redis.from_url(redis_url) as connection:
        connection.config_set("maxmemory", "1")
        try:
            with pytest.raises(QueueUnavailable):
                queue.request_prepare(7, 1)
        finally:
            connection.config_set("maxmemory", "0")
    assert queue.request_prepare(7, 1).created
