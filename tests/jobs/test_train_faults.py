"""What may go wrong around a training: workers that are killed, servers that go away, disks that are full.

Two worker processes share the queue, the database and the place for weights, nothing else.
"""

from __future__ import annotations

import dataclasses
import pickle
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from ml_backend.cli.dev_stack.processes import RedisServer
from ml_backend.core.errors import TrainingFailed
from ml_backend.core.settings import Settings
from ml_backend.jobs import training_scheduler
from ml_backend.jobs.container import Container
from ml_backend.jobs.learn import record_review
from ml_backend.jobs.train import checkpoint_names
from ml_backend.jobs.training_scheduler import TrainingScheduler
from ml_backend.training import dataset
from ml_backend.training.registry import MEASURED, Registry, Version
from tests.builders import Gate, Outside, label_config, outside, wait_for, worker_process
from tests.jobs.conftest import Site
from tests.jobs.scenes import make_walk, walk_regions

Make = Callable[..., Site]
Work = Callable[[Site], Container]

CONFIG = label_config("walker", "vehicle")
#: Small and short, so that a training takes seconds: two epochs of six batches.
FAST = {
    **{"imgsz": 128, "train_args": '{"epochs": 2, "batch": 4}', "train_per_second": 4.0, "gate_frames": 30},
    "mode": "yolo",
}
#: For tests that interrupt it between two epochs.
FOUR_EPOCHS = '{"epochs": 4, "batch": 4}'


@pytest.fixture
def trained_site(site: Make, yolo_weights: Path) -> Callable[..., Site]:
    """Factory of a site with one annotated and one open task; ``site.project`` is called already."""

    def make(**values: Any) -> Site:
        return site(detector="yolo", yolo_weights=str(yolo_weights), **(FAST | values))

    return make


def fill(here: Site, *, upload: bool = False) -> tuple[int, int]:
    """A project with an annotated task and one that nobody has annotated: (project, open task)."""
    project = here.project(CONFIG)
    tasks = []
    for name, seed in (("walk", 1), ("other", 2)):
        path = make_walk(here.videos / f"{name}.mp4", seed)
        address = here.client.upload_file(project, path) if upload else f"/data/local-files/?d=videos/{name}.mp4"
        tasks.append(here.task(project, video=address, fps=20))
    here.sdk.annotations.create(id=tasks[0], result=walk_regions())
    return project, tasks[1]


def registry(here: Site) -> Registry:
    return here.services.registry


def reached(here: Site, project: int, state: str, epochs: int = 0) -> Version | None:
    """The version, once it is in this state and has so many epochs behind it."""
    last = registry(here).last(project)
    return last if last and last.state == state and len(last.history) >= epochs else None


def test_stopped_and_killed_at_every_stage_it_goes_on_elsewhere(
    trained_site: Callable[..., Site], tmp_path: Path
) -> None:
    database = tmp_path / "shared.sqlite3"
    shared = {
        "database_url": f"sqlite:///{database}",
        "artifacts_url": str(tmp_path / "artifacts"),
        "job_attempts": 12,
        "train_args": FOUR_EPOCHS,
        "local_files_root": None,
    }
    here = trained_site(**shared)
    project, open_task = fill(here, upload=True)
    machines: list[Settings] = []
    for number in (1, 2):
        folder = tmp_path / f"machine {number}"
        folder.mkdir()
        machines.append(here.settings.model_copy(update={"data_dir": folder}))
    log = tmp_path / "worker.log"
    here.services.trainings.start(project, "a test")

    def killed(machine: Settings, state: str, epochs: int = 0, by: signal.Signals = signal.SIGKILL) -> Version:
        """Run a worker there until this state, and end it."""
        with worker_process(machine, log) as process:
            found: Version = wait_for(lambda: reached(here, project, state, epochs), 900, f"{state}: {log}")
            process.send_signal(by)
            process.wait(300)
        here.queue.connection.delete("video:turn:lost")  # the next one looks for lost jobs as soon as the lease is over
        return found

    killed(machines[0], "dataset")
    before = killed(machines[1], "training", epochs=1, by=signal.SIGTERM)
    killed(machines[1], "training", epochs=len(before.history) + 1)
    gated = killed(machines[1], "gate")
    assert [item["epoch"] for item in gated.history] == list(range(1, len(gated.history) + 1))
    assert gated.history[0] == before.history[0], "it went on from its last epoch"
    # Killed in the moment of the promotion: the database keeps it waiting there.
    with worker_process(machines[0], log) as process:
        blocker = sqlite3.connect(database, timeout=300)
        wait_for(lambda: (machines[0].data_dir / "training" / f"project-{project}" / "gate").is_dir(), 900, str(log))
        blocker.execute("BEGIN IMMEDIATE")
        wait_for(lambda: "verdict" in here.job(f"train-{project}").meta.get("progress", {}), 900, str(log))
        process.send_signal(signal.SIGKILL)
        process.wait()
        blocker.rollback()
        blocker.close()
    assert registry(here).current(project) is None, "never half promoted"
    done = killed(machines[1], "promoted")
    assert registry(here).current(project).id == done.id  # type: ignore[union-attr]
    # Killed before the open task had its new prediction: another worker makes it.
    with worker_process(machines[0], log):
        wait_for(lambda: [p for p in here.predictions(open_task) if p.model_version.endswith(".v1")], 900, str(log))
    (only,) = registry(here).versions(project)
    assert only.attempts >= 5
    assert here.queue.failed_jobs() == []


class Touch:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_replaced_checkpoints_are_not_opened(trained_site: Callable[..., Site], tmp_path: Path) -> None:
    """A checkpoint is code: who can write where they lie must not run any on the workers."""
    place, made = tmp_path / "artifacts", tmp_path / "made"
    here = trained_site(artifacts_url=str(place), train_args='{"epochs": 3}')
    project, _ = fill(here)
    here.services.trainings.start(project, "a test")
    log = tmp_path / "worker.log"
    with worker_process(here.settings, log) as process:
        version: Version = wait_for(lambda: reached(here, project, "training", 1), 900, str(log))
        process.send_signal(signal.SIGKILL)
        process.wait(300)
    run = here.settings.data_dir / "training" / f"project-{project}" / "runs" / version.name
    stored = place / "projects" / str(project)
    targets = [*run.rglob("*.pt"), *(stored / Path(name).name for name in checkpoint_names(version))]
    assert len(targets) >= 6
    for path in targets:
        path.unlink(missing_ok=True)
        path.write_bytes(pickle.dumps(Touch(made)))
    with worker_process(here.settings, log):
        wait_for(lambda: registry(here).running(project) is None, 900, str(log))
    (only,) = registry(here).versions(project)
    assert only.state in MEASURED, only.reason
    assert [item["epoch"] for item in only.history] == [1, 2, 3]
    assert not made.exists()


def test_redis_forgets_everything_and_there_is_no_room_for_the_weights(
    trained_site: Callable[..., Site], redis_server: RedisServer, tmp_path: Path
) -> None:
    place, full = tmp_path / "artifacts", tmp_path / "set aside"
    here = trained_site(artifacts_url=str(place), train_args=FOUR_EPOCHS)
    project, _ = fill(here)
    here.services.trainings.start(project, "a test")
    log = tmp_path / "worker.log"
    with worker_process(here.settings, log):
        wait_for(lambda: reached(here, project, "training", 1), 900, str(log))
        place.rename(full)
        place.write_text("a file where a folder should be")
        redis_server.stop()
        time.sleep(2)
        redis_server.start()
        redis_server.wait_ready(300)
        here.queue.connection.flushall()
        wait_for(lambda: "could not be stored" in log.read_text(), 900, str(log))
        (waiting,) = wait_for(lambda: [name for name in here.jobs() if name.startswith("train-")], 900, str(log))
        wait_for(lambda: "could not be stored" in here.job(waiting).meta.get("error", ""), 900, "its reason")
        stopped = registry(here).running(project)
        assert stopped is not None
        assert registry(here).current(project) is None
        place.unlink()
        full.rename(place)
        here.hurry()
        version = wait_for(lambda: reached(here, project, "promoted"), 900, str(log))
    epochs = [item["epoch"] for item in version.history]
    assert version.history[: len(stopped.history)] == stopped.history, "no epoch was trained twice"
    assert epochs == list(range(1, len(epochs) + 1))
    assert len(registry(here).versions(project)) == 1


def test_label_studio_is_away_for_a_while_and_a_video_for_good(
    trained_site: Callable[..., Site], label_studio: Any, work: Work
) -> None:
    gate = Gate(label_studio.url)
    try:
        here = trained_site(label_studio_url=gate.url)
        project, _ = fill(here)
        lost = here.task(project, video="/data/local-files/?d=videos/lost.mp4", fps=20)
        here.sdk.annotations.create(id=lost, result=walk_regions())
        here.services.trainings.start(project, "a test")
        gate.shut()
        work(here)
        (version,) = registry(here).versions(project)
        assert version.state == "dataset", "it waits for its next try"
        gate.open()
        here.hurry()
        work(here)
    finally:
        gate.close()
    (version,) = registry(here).versions(project)
    assert version.state == "promoted", version.reason
    assert version.attempts == 1, "a server that was away is not the run's fault"
    assert any("lost.mp4" in note for note in version.lineage["notes"])


def test_cancelled_for_good(trained_site: Callable[..., Site], tmp_path: Path) -> None:
    here = trained_site(train_args='{"epochs": 500}')
    project, _ = fill(here)
    here.services.trainings.start(project, "a test")
    with worker_process(here.settings, tmp_path / "worker.log"):
        wait_for(lambda: reached(here, project, "training", 1), 900, "the first epoch")
        here.services.trainings.cancel(project)
        wait_for(lambda: reached(here, project, "cancelled"), 900, "its end")
        wait_for(lambda: not [name for name in here.jobs() if name.startswith("train-")], 900, "no job is left")
    assert registry(here).current(project) is None


@pytest.fixture
def elsewhere(trained_site: Callable[..., Site]) -> Iterator[tuple[Site, Outside, Callable[[int], int]]]:
    """A site, a server of videos that is away, and what makes an annotated task with a video of it."""
    with outside() as server:
        here = trained_site(media_allowed_hosts="127.0.0.1:*", job_attempts=2)
        path = make_walk(here.videos / "away.mp4", 3)
        server.files["/away.mp4"] = path.read_bytes()
        path.unlink()
        server.answer("/away.mp4", 503)

        def annotate(project: int) -> int:
            task = here.task(project, video=f"{server.url}/away.mp4", fps=20)
            here.sdk.annotations.create(id=task, result=walk_regions())
            return task

        yield here, server, annotate


def test_what_was_away_is_trained_on_once_it_is_back(
    elsewhere: tuple[Site, Outside, Callable[[int], int]], work: Work
) -> None:
    here, server, annotate = elsewhere
    project, _ = fill(here)
    task = annotate(project)
    here.queue.request_learning(project, None)
    container = work(here)

    def new_tracks() -> int:
        here.queue.connection.delete("video:turn:trainer", "video:turn:catch-up")  # half an hour later
        trainer = TrainingScheduler(container)
        trainer.tick()
        work(here)
        return trainer.state(project).new_tracks

    here.services.trainings.start(project, "a test")
    work(here)
    (first,) = registry(here).versions(project)
    assert first.state == "dataset", "at first it waits"
    wait_for(lambda: (here.hurry(), work(here), registry(here).running(project) is None)[-1])
    (first,) = registry(here).versions(project)
    assert first.state in MEASURED, first.reason
    assert str(task) not in first.lineage["annotations"]
    assert any("away.mp4" in note for note in first.lineage["notes"])
    assert new_tracks() == 0, "it would be left out again"
    del server.special["/away.mp4"]
    assert new_tracks() == len(walk_regions())
    here.services.trainings.start(project, "a test")
    work(here)
    assert str(task) in registry(here).versions(project)[0].lineage["annotations"]
    assert len(registry(here).versions(project)) == 2
    assert new_tracks() == 0


def test_a_training_waits_for_its_only_videos(
    elsewhere: tuple[Site, Outside, Callable[[int], int]], work: Work
) -> None:
    here, server, annotate = elsewhere
    project = here.project(CONFIG)
    annotate(project)
    here.services.trainings.start(project, "a test")
    work(here)
    (version,) = registry(here).versions(project)
    assert version.state == "dataset", "it waits for its next try"
    del server.special["/away.mp4"]
    here.hurry()
    work(here)
    (version,) = registry(here).versions(project)
    assert version.state in MEASURED, version.reason
    assert version.attempts == 1


def test_what_was_annotated_while_a_training_failed_is_new(
    trained_site: Callable[..., Site], work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = trained_site()
    project, other = fill(here)
    here.queue.request_learning(project, None)
    container = work(here)
    run = registry(here).begin(project, "me", "t", None)
    registry(here).finish(run, "refused", "worse", lineage={"seen": {}, "unread": ["77"]})

    def fails(*_: Any, **__: Any) -> Any:
        here.sdk.annotations.create(id=other, result=walk_regions())
        record_review(container, project, other)
        raise TrainingFailed("It cannot be.")

    monkeypatch.setattr(dataset, "build_dataset", fails)
    here.services.trainings.start(project, "a test")
    work(here)
    last = registry(here).last(project)
    assert last is not None
    assert (last.state, last.lineage["unread"]) == ("failed", ["77"])
    assert str(other) not in last.lineage["seen"]
    assert len(last.lineage["seen"]) == 1


def test_a_host_that_is_allowed_later(site: Make, work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was annotated before is learned once somebody has mended the setting."""
    with outside() as server:
        here = site(mode="yolo_dinov2")
        path = make_walk(here.videos / "walk.mp4", 1)
        server.files["/walk.mp4"] = path.read_bytes()
        project = here.project(CONFIG)
        task = here.task(project, video=f"{server.url}/walk.mp4", fps=20)
        here.sdk.annotations.create(id=task, result=walk_regions())
        here.queue.request_learning(project, [task])
        work(here)
        assert "MEDIA_ALLOWED_HOSTS" in here.error()
        assert list(here.queue.storage.pending("learn", project)) == [task]
        allowed = here.settings.model_copy(update={"media_allowed_hosts": ("127.0.0.1:*",)})
        there = dataclasses.replace(here, settings=allowed)
        container = work(there)
        there.queue.connection.delete("video:turn:trainer")
        monkeypatch.setattr(training_scheduler, "RETRY_PAUSE", timedelta(0))  # ten minutes later
        TrainingScheduler(container).tick()
        work(there)
        assert there.queue.storage.pending("learn", project) == {}
        assert there.queue.counters()["learned"] >= 1
