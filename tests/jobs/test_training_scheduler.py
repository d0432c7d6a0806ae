"""Trainings that begin by themselves, and requests that come in crowds; on a real Redis and database."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from rq.job import JobStatus

from ml_backend.core.errors import Interrupted, Postponed
from ml_backend.core.settings import Settings
from ml_backend.jobs.container import Container
from ml_backend.jobs.services.trainings import Trainings
from ml_backend.jobs.train import TrainingWatcher
from ml_backend.jobs.training_scheduler import TrainingScheduler
from ml_backend.server.webhooks import Event, WebhookReceiver
from ml_backend.training.annotation_review import AnnotationReview, RegionDiff
from ml_backend.training.policy import PolicyStore, TrainingPolicy, is_due
from ml_backend.training.review_store import ReviewStore, TaskReview
from tests.builders import wait_for


@pytest.fixture
def container(settings: Callable[..., Settings], redis_url: str) -> Container:
    container = Container(settings(redis_url=redis_url, job_lease_s=5, detector="auto"))
    container.policies = PolicyStore(container.storage, TrainingPolicy(quiet_s=30, min_tracks=5))
    return container


def annotate(container: Container, task: int, tracks: int = 5, seconds_ago: float = 60, fingerprint: str = "a") -> None:
    changed = datetime.now(timezone.utc) - timedelta(seconds=seconds_ago)
    facts = TaskReview(task, "version", AnnotationReview(tracks=tracks), fingerprint, changed, changed)
    ReviewStore(container.storage).put(1, task, facts)


def jobs(container: Container) -> list[str]:
    return list(container.queue.queues["train"].get_job_ids())


def test_annotations_lead_to_one_training(container: Container) -> None:
    trainer = TrainingScheduler(container)
    annotate(container, 1, tracks=3)
    assert trainer.request_due() == []
    annotate(container, 2, tracks=2)
    assert trainer.request_due() == [1]
    assert trainer.request_due() == [], "it waits already"
    rows, total = container.audit.find(1, 10)
    assert ([(row["who"], row["action"]) for row in rows], total) == ([("automatic", "train")], 1)
    assert jobs(container) == ["train-1"]


def test_while_people_work_nothing_begins(container: Container) -> None:
    annotate(container, 1, seconds_ago=10)
    assert TrainingScheduler(container).request_due() == []


def test_only_what_is_new_since_the_last_training_counts(container: Container) -> None:
    annotate(container, 1)
    registry = container.registry
    run = registry.advance(registry.begin(1, "me", "t", None), lineage={"seen": {"1": "a"}})
    registry.finish(run, "refused", "worse")
    trainer = TrainingScheduler(container)
    assert trainer.state(1).new_tracks == 0
    annotate(container, 1, fingerprint="b")
    assert trainer.state(1).new_tracks == 5
    assert trainer.request_due() == [], "too soon after the last one"
    container.policies.set(1, {"every_s": 0})
    assert trainer.request_due() == [1]


def test_a_run_that_the_queue_forgot_is_taken_up_again(container: Container) -> None:
    container.registry.begin(1, "a worker that died", "Start training", None)
    container.queue.connection.flushall()
    assert TrainingScheduler(container).request_due() == [1]
    (job,) = jobs(container)
    assert container.queue.fetch(job).args == [1, "Start training"]  # type: ignore[union-attr]


def test_workers_take_turns(container: Container) -> None:
    annotate(container, 1)
    assert container.training_queue.acquire_turn("trainer", 10)
    TrainingScheduler(container).tick()
    assert jobs(container) == []


def test_without_redis_it_is_quiet(container: Container, settings: Callable[..., Settings]) -> None:
    away = Container(settings(redis_url="redis://127.0.0.1:1/0", detector="auto"))
    TrainingScheduler(away).tick()


def test_a_thousand_requests_make_one_job_and_one_more_while_it_runs(container: Container) -> None:
    for _ in range(1000):
        container.training_queue.request(1, "Start training")
    assert jobs(container) == ["train-1"]
    running = container.queue.queues["train"].fetch_job("train-1")
    assert running
    container.queue.queues["train"].remove("train-1")
    running.set_status(JobStatus.STARTED)
    container.training_queue.begin(1)
    for _ in range(1000):
        container.training_queue.request(1, "Start training")
    TrainingScheduler(container).start_pending()
    assert jobs(container) == []
    running.delete()  # it has ended
    for _ in range(2):
        TrainingScheduler(container).start_pending()
    assert jobs(container) == ["train-1"]


def test_the_button_is_written_down_and_handed_over(container: Container) -> None:
    receiver = WebhookReceiver(container.storage, container.queue)
    for _ in range(3):
        receiver.receive(Event("START_TRAINING", 1))
    receiver.flush()
    wait_for(lambda: jobs(container))
    assert jobs(container) == ["train-1"]


def test_two_workers_never_train_one_project(container: Container, settings: Callable[..., Settings]) -> None:
    with container.training_queue.lock(1) as lock:
        with pytest.raises(Postponed, match="another worker"), container.training_queue.lock(1):
            pass
        with container.training_queue.lock(2):
            pass
        # Its holder sleeps for too long: the lock expires, and he finds that somebody else may have it.
        container.queue.connection.delete("video:train:lock:1")
        with container.training_queue.lock(1), TrainingWatcher(container, 1, lock) as watch:
            wait_for(lambda: watch.lost)
            with pytest.raises(Interrupted):
                watch.check()


def test_a_lock_is_kept_while_its_holder_works(container: Container) -> None:
    with container.training_queue.lock(1) as lock:
        container.queue.connection.pexpire("video:train:lock:1", 2000)
        with TrainingWatcher(container, 1, lock) as watch:
            wait_for(lambda: int(container.queue.connection.pttl("video:train:lock:1")) > 5000)  # type: ignore[arg-type]
            assert not watch.should_stop()


def test_a_lock_expires(container: Container) -> None:
    with container.training_queue.lock(1):
        left: Any = container.queue.connection.pttl("video:train:lock:1")
    assert 0 < left <= 10_000


def test_cancelling_takes_waiting_requests_back(container: Container) -> None:
    container.training_queue.request(1, "somebody")
    container.training_queue.request(2, "somebody")
    assert container.training_queue.cancel(1)
    assert jobs(container) == ["train-2"]
    assert not container.training_queue.is_wanted(1)
    assert not container.training_queue.is_cancelled(2)
    assert not container.training_queue.cancel(1), "none is left"


def test_a_run_that_waits_for_another_try_is_cancelled(container: Container) -> None:
    run = container.registry.begin(1, "a worker that was asked to end", "somebody", None)
    assert TrainingScheduler(container).request_due() == [1]
    Trainings(container.projects, container.queue, container.storage).cancel(1)
    found = container.registry.get(run.id)
    assert found is not None
    assert found.state == "cancelled"
    assert TrainingScheduler(container).request_due() == []


def test_what_was_cancelled_before_it_began_does_not_begin_by_itself(container: Container) -> None:
    annotate(container, 1)
    trainer = TrainingScheduler(container)
    assert trainer.request_due() == [1]
    trainings = Trainings(container.projects, container.queue, container.storage)
    trainings.cancel(1)
    assert jobs(container) == []
    container.policies.set(1, {"every_s": 0})
    assert trainer.request_due() == []
    annotate(container, 1, fingerprint="b")
    assert trainer.request_due() == [1]


def test_a_request_after_a_cancellation_is_meant(container: Container) -> None:
    trainings = Trainings(container.projects, container.queue, container.storage)
    trainings.cancel(1)
    trainings.start(1, "somebody")
    assert not container.training_queue.is_cancelled(1)


def test_that_a_training_is_forced_holds_for_whichever_comes_next(container: Container) -> None:
    trainings = Trainings(container.projects, container.queue, container.storage)
    trainings.start(1, "annotations")
    trainings.start(1, "somebody", force=True)
    assert jobs(container) == ["train-1"]
    assert container.training_queue.take_force(1)
    assert not container.training_queue.take_force(1)


def test_failures_are_repeated_with_growing_pauses(container: Container) -> None:
    annotate(container, 1)
    container.policies.set(1, {"every_s": 100})
    registry, trainer = container.registry, TrainingScheduler(container)
    for failures in (1, 2):
        registry.finish(registry.begin(1, "me", "t", None), "failed", "the disk is full", lineage={})
        state = trainer.state(1)
        assert (state.failures, state.new_tracks) == (failures, 5)
        assert state.started_at is not None
        policy = container.policies.get(1)
        pause = timedelta(seconds=100 * 2**failures)
        assert not is_due(policy, state, state.started_at + pause - timedelta(seconds=1))
        assert is_due(policy, state, state.started_at + pause)


def test_a_queue_that_forgot_everything_is_told_again(container: Container) -> None:
    receiver, trainer = WebhookReceiver(container.storage, container.queue), TrainingScheduler(container)
    receiver.receive(Event("ANNOTATION_CREATED", 7, (3,), (4,)))
    receiver.flush()
    container.queue.connection.flushall()
    trainer.start_pending()
    assert container.queue.queues["patterns"].get_job_ids() == ["learn-7"]
    assert list(container.storage.pending("learn", 7)) == [3]


def test_going_back_twice_goes_back_two_versions(container: Container, tmp_path: Path) -> None:
    registry, trainings = container.registry, Trainings(container.projects, container.queue, container.storage)
    for number in range(3):
        weights = tmp_path / "best.pt"
        weights.write_bytes(b"PK%d" % number)
        sha256 = container.artifacts.put(weights, f"v{number}.pt")
        run = registry.begin(1, "me", "t", registry.current(1))
        run = registry.advance(run, weights_sha256=sha256, artifact=f"v{number}.pt", detector="yolo11n")
        current = registry.current(1)
        registry.promote(run, "better", "gate", current.id if current else None)
    used = []
    for _ in range(4):
        used.append(trainings.rollback_target(1))
        trainings.activate(1, used[-1], "somebody")
    assert used == ["v2", "v1", "base", "base"]


def test_after_a_failure_only_the_newest_run_is_read_whole(container: Container) -> None:
    """It is looked at every ten seconds, and each run has lines for every task."""
    annotate(container, 1)
    registry, trainings = container.registry, Trainings(container.projects, container.queue, container.storage)
    registry.finish(registry.begin(1, "me", "t", None), "refused", "worse", lineage={"seen": {"1": "b"}})
    for _ in range(2):
        registry.finish(registry.begin(1, "me", "t", None), "failed", "no luck", lineage={"seen": {"1": "a"}})
    with sqlite3.connect(container.settings.data_dir / "backend.sqlite3") as connection:
        connection.execute("UPDATE model_versions SET lineage = '{', history = '[' WHERE number < 3")
    state = TrainingScheduler(container).state(1)
    assert (state.failures, state.new_tracks) == (2, 0)
    assert trainings.rollback_target(1) == "base"
    assert trainings.usable_versions(1) == ["v1"]


def test_what_a_failed_training_lacked_may_come_with_few_annotations(container: Container) -> None:
    """It said: annotate another video. Who does so need not annotate as much as for a training of its own."""
    registry, trainer = container.registry, TrainingScheduler(container)
    annotate(container, 1, tracks=12)
    registry.finish(registry.begin(1, "me", "t", None), "refused", "worse", lineage={"seen": {}})
    annotate(container, 2, tracks=7)
    registry.finish(registry.begin(1, "me", "t", None), "failed", "lacks", lineage={"seen": {"1": "a", "2": "a"}})
    assert trainer.state(1).new_tracks == 0
    annotate(container, 3, tracks=1)
    assert trainer.state(1).new_tracks == 20


def test_false_alarms_that_were_removed_count(container: Container) -> None:
    changed = datetime.now(timezone.utc)
    removed = tuple(RegionDiff("deleted", predicted_id=name) for name in "abcd")
    facts = TaskReview(1, "version", AnnotationReview(removed, tracks=1), "a", changed, changed)
    ReviewStore(container.storage).put(1, 1, facts)
    assert TrainingScheduler(container).state(1).new_tracks == 4


def predicted(container: Container, version: str, hours_ago: float, project: int = 1, keys: int = 1) -> list[str]:
    """Predictions of a version that were made then; their keys."""
    names = [f"{project}-{version}-{hours_ago}-{number}" for number in range(keys)]
    for name in names:
        container.storage.save_prediction(name, project, {"result": [], "model_version": version})
    moment = datetime.now(timezone.utc).replace(tzinfo=None) - timedelta(hours=hours_ago)
    with sqlite3.connect(container.settings.data_dir / "backend.sqlite3") as connection:
        rows = [(f"{moment:%Y-%m-%d %H:%M:%S.%f}", name) for name in names]
        connection.executemany("UPDATE predictions SET created_at = ? WHERE key = ?", rows)
    return names


def present(container: Container, project: int = 1) -> str:
    return container.projects.models(project).version


def learned(version: str, digest: str) -> str:
    """The version as it would be had the project learned something."""
    base, tracker, mode, last = version.split(".")
    return f"{base}.{tracker}.{mode.split('-')[0]}-{digest}.{last}"


def test_what_was_learned_since_takes_the_place_of_older_predictions(container: Container) -> None:
    """An annotation after the other: only the last versions' predictions stay, and the names of all."""
    now = present(container)
    versions = [learned(now, f"{number:08x}") for number in range(48)]
    for number, version in enumerate(versions):
        predicted(container, version, hours_ago=23.9 - number / 2, keys=5)
    kept = predicted(container, now, hours_ago=0, keys=5)
    before = container.storage.versions(1)
    assert TrainingScheduler(container).remove_superseded_predictions() == 5 * 46, (
        "those of the last hour stay for a moment"
    )
    assert container.storage.count_predictions() == 5 * 3
    assert set(container.storage.prediction_bodies(kept)) == set(kept)
    assert container.storage.versions(1) == before
    assert TrainingScheduler(container).remove_superseded_predictions() == 0


def test_what_may_be_switched_back_to_stays_for_a_day(container: Container) -> None:
    now = present(container)
    other = now.replace("tracktrack", "botsort")
    (recent,), (old,) = predicted(container, other, 20), predicted(container, other, 25)
    (last,) = predicted(container, now, 1)
    assert TrainingScheduler(container).remove_superseded_predictions() == 1
    assert set(container.storage.prediction_bodies([recent, old, last])) == {recent, last}


def test_what_is_in_use_stays_however_old(container: Container) -> None:
    """A library that was predicted a month ago; since then somebody has tried something else, and switched back."""
    now = present(container)
    kept = predicted(container, now, 24 * 30, keys=3)
    last = predicted(container, learned(now, "ab" * 4), 24 * 7, keys=2)  # by a worker that is set differently, perhaps
    gone = predicted(container, learned(now, "cd" * 4), 24 * 8, keys=2)
    of_another = predicted(container, learned(now, "cd" * 4), 24 * 8, project=2, keys=2)
    assert TrainingScheduler(container).remove_superseded_predictions() == 2
    assert set(container.storage.prediction_bodies([*kept, *last, *gone, *of_another])) == {*kept, *last, *of_another}


def test_every_minute_somebody_removes_them_and_nobody_twice(container: Container) -> None:
    now = present(container)
    predicted(container, learned(now, "ab" * 4), 48)
    predicted(container, now, 0)
    TrainingScheduler(container).tick()
    assert container.storage.count_predictions() == 1
    predicted(container, learned(now, "cd" * 4), 48)
    TrainingScheduler(container).tick()
    assert container.storage.count_predictions() == 2, "the others have just looked"


def test_a_project_whose_weights_are_away_keeps_its_predictions(
    container: Container, settings: Callable[..., Settings], redis_url: str
) -> None:
    now = present(container)
    predicted(container, learned(now, "ab" * 4), 48)
    predicted(container, now, 0)
    away = Container(settings(redis_url=redis_url, detector="yolo", yolo_weights="/nowhere/mine.pt"))
    assert TrainingScheduler(away).remove_superseded_predictions() == 0
    assert TrainingScheduler(container).remove_superseded_predictions() == 1


def test_each_worker_tidies_up_its_machine(container: Container) -> None:
    left = container.settings.data_dir / "artifact-cache" / "left.part"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    os.utime(left, (0, 0))
    assert container.training_queue.acquire_turn("trainer", 10)
    TrainingScheduler(container).tick()
    assert not left.exists()
