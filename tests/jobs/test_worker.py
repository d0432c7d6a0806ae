"""Worker processes that are killed, stopped, and lose their Redis; real processes, real Label Studio."""

from __future__ import annotations

import http.server
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from rq import Worker as RQWorker
from rq.exceptions import StopRequested
from rq.serializers import JSONSerializer
from rq.worker import SimpleWorker

from ml_backend.cli.dev_stack.processes import RedisServer
from ml_backend.core.settings import Settings
from ml_backend.jobs.container import Container
from ml_backend.jobs.queue import JOB_TIMEOUT_S, JobQueue
from ml_backend.jobs.training_scheduler import TrainingScheduler
from ml_backend.jobs.worker import make_worker
from ml_backend.jobs.worker_status import WorkerStatus
from tests.builders import Outside, environment, make_clip, outside, repeat_clip, wait_for, worker_process
from tests.jobs.conftest import Site

Work = Callable[[Site], Container]


@pytest.fixture
def site(site: Callable[..., Site]) -> Callable[..., Site]:
    """Sites without embeddings, whose workers need not import PyTorch."""
    return partial(site, mode="yolo")


@pytest.fixture
def long_task(site: Callable[..., Site], tmp_path: Path) -> tuple[Site, int]:
    """A requested prediction that takes some seconds to make."""
    here = site()
    make_clip(tmp_path / "short.mp4", frames=100, size=(480, 360))
    repeat_clip(tmp_path / "short.mp4", here.videos / "long.mp4", 8)
    project = here.project()
    task = here.task(project, video="/data/local-files/?d=videos/long.mp4", fps=20)
    assert here.predict(project, task) == [[]]
    return here, task


def frames_done(here: Site) -> int:
    """How far the only job is."""
    for name in here.jobs():
        job = here.queue.fetch(name)
        if job and (progress := job.meta.get("progress")):
            return int(progress["frames"])
    return 0


def delivered(here: Site, task: int) -> bool:
    here.hurry()
    assert here.queue.failed_jobs() == []
    return here.jobs() == {} and len(here.predictions(task)) == 1


def test_killed_in_the_middle_of_a_video(long_task: tuple[Site, int], tmp_path: Path) -> None:
    here, task = long_task
    with worker_process(here.settings, tmp_path / "first.log") as worker:
        wait_for(lambda: frames_done(here), what="first progress")
        os.kill(worker.pid, signal.SIGKILL)
        worker.wait()
    states = {name: state for name, state in here.jobs().items() if name.startswith("predict-")}
    assert set(states.values()) == {"started"}  # nobody could say that it ended
    with worker_process(here.settings, tmp_path / "second.log"):
        wait_for(lambda: delivered(here, task), 900, "the second worker's delivery")
    assert here.queue.counters()["videos"] == 1
    assert here.queue.counters()["frames"] == 800
    assert len(here.predictions(task)) == 1


#: A clock two hours ahead, for a process. Also where threads wait until a time: elapsed time stays what it is.
AHEAD = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <semaphore.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t clock, struct timespec *at) {
    int failed = syscall(SYS_clock_gettime, clock, at);
    if (!failed && clock == CLOCK_REALTIME) at->tv_sec += 7200;
    return failed;
}
int sem_timedwait(sem_t *semaphore, const struct timespec *at) {
    struct timespec then = {at->tv_sec - 7200, at->tv_nsec};
    return ((int (*)(sem_t *, const struct timespec *))dlsym(RTLD_NEXT, "sem_timedwait"))(semaphore, &then);
}
"""


@pytest.fixture
def clock_ahead(tmp_path: Path) -> Path:
    """A library that sets the clock of a process two hours ahead."""
    compiler = shutil.which("cc") if sys.platform == "linux" else None
    if compiler is None:
        pytest.skip("there is no C compiler, or no Linux, for a library that changes a process' clock")
    source, library = tmp_path / "ahead.c", tmp_path / "ahead.so"
    source.write_text(AHEAD)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return library


def test_a_worker_whose_clock_is_ahead_is_killed(
    long_task: tuple[Site, int], clock_ahead: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, _ = long_task
    with monkeypatch.context() as patch:
        patch.setenv("LD_PRELOAD", str(clock_ahead))
        told = subprocess.run(
            [sys.executable, "-c", "import time; print(time.time())"], capture_output=True, check=True
        )
        assert float(told.stdout) > time.time() + 7000
        with worker_process(here.settings, tmp_path / "first.log") as worker:
            wait_for(lambda: frames_done(here), what="first progress")
            worker.kill()
            worker.wait()
    log = tmp_path / "second.log"
    with worker_process(here.settings, log):
        wait_for(lambda: "pre-annotating" in log.read_text(), 900, "the second worker takes the job over")


#: A worker that is killed at the worst moment.
DIES = """
import os, signal
from ml_backend.jobs import worker
worker.LeaseWorker.execute_job = lambda self, job, queue: os.kill(os.getpid(), signal.SIGKILL)
worker.main()
"""


def test_killed_between_taking_a_job_and_noting_it(settings: Callable[..., Settings], redis_url: str) -> None:
    """RQ guards workers of one queue against that, but not of several."""
    chosen = settings(redis_url=redis_url, detector="motion")
    queue = JobQueue(chosen)
    queue.request_prepare(1, 2)
    killed = subprocess.run([sys.executable, "-c", DIES], env=environment(chosen), timeout=300, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert queue.depths()["prepare"] == {"queued": 0, "started": 0, "scheduled": 0, "failed": 0}
    rq = SimpleWorker(list(queue.queues.values()), connection=queue.connection, serializer=JSONSerializer)
    rq.clean_registries()
    assert not any(queue.depths()["prepare"].values()), "it is in none of its lists"
    assert queue.recover_orphaned(after_s=0) == []  # somebody may be about to begin it
    assert queue.recover_orphaned(after_s=0) == ["prepare-2"]
    # And it gives the job of a worker that was killed later back only after the longest that it may take.
    job = queue.fetch("prepare-2")
    assert job
    assert rq.get_heartbeat_ttl(job) > JOB_TIMEOUT_S > 100 * chosen.job_lease_s


def test_asked_to_end_in_the_middle_of_a_video(long_task: tuple[Site, int], tmp_path: Path) -> None:
    here, task = long_task
    (name,) = here.jobs()
    attempts = here.job(name).retries_left
    with worker_process(here.settings, tmp_path / "first.log") as worker:
        wait_for(lambda: frames_done(here), what="first progress")
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(timeout=300) == 0
    # The first reading of the project's annotations, which the prediction asked for, waits untouched.
    waiting = {n: state for n, state in here.jobs().items() if not n.startswith("learn-")}
    assert waiting in ({name: "scheduled"}, {name: "queued"}), "its pause may be over by now"
    assert here.job(name).retries_left == attempts
    assert here.queue.workers() == []
    with worker_process(here.settings, tmp_path / "second.log"):
        wait_for(lambda: delivered(here, task), 900, "the second worker's delivery")
    assert here.queue.counters()["videos"] == 1


def test_idle_worker_ends_at_once(site: Callable[..., Site], tmp_path: Path) -> None:
    here = site()
    with worker_process(here.settings, tmp_path / "log") as worker:
        wait_for(lambda: here.queue.workers())
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(timeout=300) == 0
    assert here.queue.workers() == []


def test_a_signal_during_maintenance_leaves_no_lock(container: Container) -> None:
    """An idle worker that is asked to end gives back what it holds first: others would wait for it for a minute."""
    worker = make_worker(container.settings)
    asked = []

    class Board:
        """Asks in the middle of the maintenance."""

        def tick(self, *_: Any) -> None:
            asked.append(bool(worker.connection.keys("rq:scheduler-lock:*")))
            worker.request_stop(signal.SIGTERM, None)

    class Lively(TrainingScheduler):
        def tick(self) -> None:
            asked.append(True)

    worker.worker_status, worker.training_scheduler = Board(), Lively(container)  # type: ignore[assignment]
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with pytest.raises(StopRequested):
            worker.run_maintenance_tasks()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert asked == [False, True], "what was begun is done"
    worker.run_maintenance_tasks()
    assert len(asked) == 2, "the next is for others"


def test_the_trainer_looks_between_jobs(site: Callable[..., Site], work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    """RQ's maintenance is not due after jobs that are so long that the keeper of the lease has done it."""
    here = site(job_lease_s=600)
    project = here.project()
    looks = []
    monkeypatch.setattr(TrainingScheduler, "tick", lambda self: looks.append(len(here.jobs())))
    for _ in range(3):
        here.queue.request_prepare(project, here.task(project, video=here.clip()))
    work(here)
    assert len(looks) > 3


@pytest.fixture
def slow_site() -> Iterator[Outside]:
    with outside("127.0.0.1") as running:
        yield running


def test_long_job_keeps_its_lease(site: Callable[..., Site], slow_site: Outside, tmp_path: Path) -> None:
    """With two workers and a job that is silent for longer than the lease, nothing is done twice."""
    here = site(media_allowed_hosts="127.0.0.1:*")
    slow_site.files["/a.mp4"] = make_clip(tmp_path / "a.mp4").read_bytes()

    def slowly(handler: http.server.BaseHTTPRequestHandler) -> None:
        time.sleep(here.settings.job_lease_s * 1.8)
        del slow_site.special["/a.mp4"]
        slow_site.serve(handler)

    slow_site.special["/a.mp4"] = slowly
    project = here.project()
    task = here.task(project, video=slow_site.url + "/a.mp4", fps=20)
    here.predict(project, task)
    with worker_process(here.settings, tmp_path / "1.log"), worker_process(here.settings, tmp_path / "2.log"):
        wait_for(lambda: len(here.queue.workers()) == 2)
        wait_for(lambda: delivered(here, task), 900)
    assert here.queue.counters()["videos"] == 1
    assert len(slow_site.asked("/a.mp4")) == 2  # `slowly` counts itself twice
    for name in ("1.log", "2.log"):
        assert "rq." not in (tmp_path / name).read_text(), "the log tells what was done, not the queue's inner life"


def test_a_lease_is_renewed_whatever_else_fails(
    site: Callable[..., Site], slow_site: Outside, tmp_path: Path, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = site(media_allowed_hosts="127.0.0.1:*")
    slow_site.files["/a.mp4"] = make_clip(tmp_path / "a.mp4").read_bytes()
    failed, again = threading.Event(), threading.Event()

    def fails(self: WorkerStatus, worker: str, lease_s: int) -> None:
        if threading.current_thread() is not threading.main_thread():
            (again if failed.is_set() else failed).set()
            raise AttributeError("as of a module that is being imported")

    def slowly(handler: http.server.BaseHTTPRequestHandler) -> None:
        again.wait(120)
        del slow_site.special["/a.mp4"]
        slow_site.serve(handler)

    monkeypatch.setattr(WorkerStatus, "tick", fails)
    slow_site.special["/a.mp4"] = slowly
    project = here.project()
    task = here.task(project, video=slow_site.url + "/a.mp4", fps=20)
    here.predict(project, task)
    work(here)
    assert again.is_set(), "the keeper of the lease has gone on"
    assert delivered(here, task)


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis that a test may restart."""
    folder = tmp_path / "redis"
    folder.mkdir()
    server = RedisServer(folder, log_dir=folder, environment=os.environ)
    server.start()
    server.wait_ready(300)
    yield server
    server.stop()


def restart(server: RedisServer) -> None:
    server.stop()
    time.sleep(5)
    server.start()
    server.wait_ready(300)


def test_redis_restarts_while_the_worker_waits(
    site: Callable[..., Site], own_redis: RedisServer, tmp_path: Path
) -> None:
    here = site(redis_url=own_redis.url)
    project = here.project()
    task = here.task(project, video=here.clip(), fps=20)
    with worker_process(here.settings, tmp_path / "log") as worker:
        # Registered is not yet waiting: until then it ends when Redis goes, and is started again.
        wait_for(lambda: [w.get_state() for w in RQWorker.all(here.queue.connection)] == ["idle"])
        restart(own_redis)
        here.predict(project, task)
        wait_for(lambda: delivered(here, task), 900)
        assert worker.poll() is None


def test_redis_restarts_in_the_middle_of_a_video(
    site: Callable[..., Site], own_redis: RedisServer, tmp_path: Path
) -> None:
    here = site(redis_url=own_redis.url)
    make_clip(tmp_path / "short.mp4", frames=100, size=(480, 360))
    repeat_clip(tmp_path / "short.mp4", here.videos / "long.mp4", 8)
    project = here.project()
    task = here.task(project, video="/data/local-files/?d=videos/long.mp4", fps=20)
    here.predict(project, task)
    with worker_process(here.settings, tmp_path / "log") as worker:
        wait_for(lambda: frames_done(here))
        restart(own_redis)
        wait_for(lambda: delivered(here, task), 900)
        assert worker.poll() is None
    assert len(here.predictions(task)) == 1


@pytest.mark.slow
def test_no_redis_at_the_start(settings: Callable[..., Settings], tmp_path: Path) -> None:
    values = settings(redis_url=f"unix://{tmp_path}/none.sock", detector="motion")
    with worker_process(values, tmp_path / "log") as worker:
        assert worker.wait(timeout=300) == 1
    log = (tmp_path / "log").read_text()
    assert "queue does not answer" in log
    assert "Traceback" not in log


def test_missing_weights_are_said_by_the_job_and_the_worker_stays(site: Callable[..., Site], tmp_path: Path) -> None:
    here = site(detector="yolo", yolo_weights=str(tmp_path / "no.pt"))
    project = here.project()
    task = here.task(project, video=here.clip(), fps=20)
    here.queue.request_prepare(project, task)
    with worker_process(here.settings, tmp_path / "log") as worker:
        wait_for(lambda: here.queue.failed_jobs())
        assert "no.pt" in here.error()
        assert worker.poll() is None
    assert "no.pt" in (tmp_path / "log").read_text()


def test_events_become_predictions_without_anybody_asking(site: Callable[..., Site], tmp_path: Path) -> None:
    """Webhook in, prediction out: web process and worker only share Redis and the database."""
    from ml_backend.server.app import create_app

    here = site()
    project = here.project()
    tasks = [here.task(project, video=here.clip()) for _ in range(2)]
    web = create_app(here.settings).test_client()
    body: dict[str, Any] = {"action": "TASKS_CREATED", "project": {"id": project}, "tasks": [{"id": t} for t in tasks]}
    with worker_process(here.settings, tmp_path / "log"):
        assert web.post("/webhook", json=body).status_code == 201
        wait_for(lambda: all(here.predictions(task) for task in tasks), 900)
    assert [len(here.predictions(task)) for task in tasks] == [1, 1]
    assert here.data(tasks[0])["fps"] == 20
