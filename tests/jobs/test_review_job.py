"""What people do with predictions in a real Label Studio, written down by a worker in this process."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from pydantic import SecretStr

from ml_backend.db.storage import Storage
from ml_backend.db.tables import corrections
from ml_backend.jobs import training_scheduler
from ml_backend.jobs.container import Container
from ml_backend.jobs.training_scheduler import TrainingScheduler
from ml_backend.server.webhooks import WebhookReceiver, parse_event
from ml_backend.training.review_store import ReviewStore
from tests.builders import Gate, label_config
from tests.jobs.conftest import Site

Make = Callable[..., Site]
Work = Callable[[Site], Container]

CONFIG = label_config("person", "car")
OLD, NEW = "yolo.track.yolo.base", "yolo.track.yolo.v1"


def region(region_id: str, x: float, label: str = "person") -> dict[str, Any]:
    """As the backend predicts it: numbers with many decimals, visible on frames 1 to 30."""
    box = {"y": 20.123, "width": 10.4567, "height": 30.789, "rotation": 0}
    keys = [
        {"frame": frame, "enabled": frame < 30, "x": round(x + frame / 7, 4), **box, "time": frame / 20}
        for frame in (1, 17, 30)
    ]
    value = {"framesCount": 40, "duration": 2.0, "labels": [label], "sequence": keys}
    names = {"from_name": "box", "to_name": "video", "type": "videorectangle"}
    return {"id": region_id, **names, "value": value, "score": 0.9, "meta": {"original_class": label}}


PREDICTED = [region("aaaaaaaaaa", 5), region("bbbbbbbbbb", 25), region("cccccccccc", 45), region("dddddddddd", 65)]


def submitted(item: dict[str, Any], origin: str = "prediction", **changes: Any) -> dict[str, Any]:
    """As Label Studio's page submits it."""
    out = {**copy.deepcopy(item), "origin": origin}
    out["value"].update(changes)
    return out


def moved(item: dict[str, Any], by: float = 3.0) -> dict[str, Any]:
    keys = [{**key, "x": key["x"] + by} for key in item["value"]["sequence"]]
    return submitted(item, "prediction-changed", sequence=keys)


def submit(here: Site, task: int, result: list[dict[str, Any]], prediction: int | None = None) -> Any:
    """Submit as the page does."""
    address = f"{here.settings.label_studio_url}/api/tasks/{task}/annotations/"
    body = {"result": result, "lead_time": 3.2, "parent_prediction": prediction, "draft_id": 0}
    answer = httpx.post(address, json=body, headers=here.client.auth_headers(), timeout=300)
    assert answer.status_code == 201, answer.text[:500]
    return answer.json()["id"]


def store(here: Site) -> ReviewStore:
    return ReviewStore(Storage(here.settings.database))


def counts(here: Site, project: int, version: str = OLD) -> dict[str, int]:
    """Numbers of a version that are not 0."""
    names = ("accepted", "moved", "relabelled", "deleted", "merged", "added", "undecided")
    found = {item.model_version: item for item in store(here).by_version(project)}
    return {name: number for name in names if version in found and (number := getattr(found[version], name))}


def learn(here: Site, work: Work, project: int, *tasks: int) -> None:
    here.queue.request_learning(project, tasks or None)
    work(here)
    assert here.queue.failed_jobs() == []
    assert here.queue.storage.pending("learn", project) == {}


@pytest.fixture
def here(site: Make) -> Site:
    """Without a mode that learns labels; no task has a video."""
    return site(mode="yolo")


@pytest.fixture
def project(here: Site) -> int:
    return here.project(CONFIG)


def make_task(here: Site, project: int, version: str = OLD) -> tuple[int, int]:
    """A task and its prediction."""
    task = here.task(project, video="/data/local-files/?d=videos/gone.mp4", fps=20)
    here.client.create_prediction(task, {"result": PREDICTED, "score": 0.9, "model_version": version})
    return task, here.predictions(task)[0].id


def test_each_kind_of_correction(here: Site, project: int, work: Work) -> None:
    task, prediction = make_task(here, project)
    first, second, third, _ = PREDICTED
    drawn = submitted(region("eeeeeeeeee", 85), "manual")
    result = [
        submitted(first),
        moved(second),
        submitted(third, "prediction-changed", labels=["car"]),
        drawn,
    ]
    annotation = submit(here, task, result, prediction)
    learn(here, work, project, task)
    assert counts(here, project) == {"accepted": 1, "moved": 1, "relabelled": 1, "deleted": 1, "added": 1}
    (found,) = store(here).by_version(project)
    assert (found.rate, found.decided, found.tasks, found.tracks) == (0.25, 4, 1, 4)
    assert store(here).hard(project) == {task: {"bbbbbbbbbb", "cccccccccc", "dddddddddd", "eeeeeeeeee"}}
    state = store(here).tasks(project)[task]
    _, kept = here.client.get_annotation(task)
    assert kept
    assert kept.parent_prediction == prediction
    assert (state.tracks, state.changed_at) == (4, kept.updated_at)
    assert found.first == kept.created_at

    # The person goes on: two regions become one, and the label was right after all.
    halves = [submitted(first), submitted(third), moved(region("eeeeeeeeee", 25), 1)]
    here.sdk.annotations.update(annotation, result=halves)
    learn(here, work, project, task)
    assert counts(here, project) == {"accepted": 2, "deleted": 1, "merged": 1, "added": 1}
    after = store(here).tasks(project)[task]
    assert after.changed_at > state.changed_at
    assert after.fingerprint != state.fingerprint

    here.sdk.annotations.delete(annotation)
    learn(here, work, project, task)
    assert store(here).tasks(project) == {}
    assert counts(here, project) == {}


def test_untouched_predictions_are_accepted(here: Site, project: int, work: Work) -> None:
    tasks = [make_task(here, project) for _ in range(2)]
    better, prediction = make_task(here, project, NEW)
    for task, begun in tasks:
        submit(here, task, [submitted(item) for item in PREDICTED[1:]], begun)
    submit(here, better, [submitted(item) for item in PREDICTED], prediction)
    learn(here, work, project)  # as "Start training" asks: all tasks
    old, new = store(here).by_version(project)
    assert (old.model_version, old.rate, old.tasks) == (OLD, 0.75, 2)
    assert (new.model_version, new.rate, new.tasks) == (NEW, 1.0, 1)
    assert store(here).hard(project) == {task: {"aaaaaaaaaa"} for task, _ in tasks}
    assert sum(task.tracks for task in store(here).tasks(project).values()) == 10


def test_predictions_of_several_versions(here: Site, project: int, work: Work) -> None:
    """What the person began from counts, also where Label Studio does not say which it was."""
    task, _ = make_task(here, project)
    other = [region("xxxxxxxxxx", 5, "car"), region("yyyyyyyyyy", 25, "car")]
    here.client.create_prediction(task, {"result": other, "score": 0.9, "model_version": NEW})
    annotation = submit(here, task, [submitted(item) for item in PREDICTED])
    learn(here, work, project, task)
    assert (counts(here, project), counts(here, project, NEW)) == ({"accepted": 4}, {})
    here.sdk.annotations.delete(annotation)
    submit(here, task, [submitted(other[0]), submitted(region("zzzzzzzzzz", 85), "manual")])
    learn(here, work, project, task)
    assert (counts(here, project), counts(here, project, NEW)) == ({}, {"accepted": 1, "deleted": 1, "added": 1})


def test_annotation_without_prediction(here: Site, project: int, work: Work) -> None:
    task = here.task(project, video="/data/local-files/?d=videos/gone.mp4", fps=20)
    submit(here, task, [submitted(item, "manual") for item in PREDICTED])
    learn(here, work, project, task)
    assert store(here).by_version(project) == []
    assert sum(task.tracks for task in store(here).tasks(project).values()) == 4
    # A model that says something afterwards is not judged by it.
    here.client.create_prediction(task, {"result": PREDICTED, "score": 0.9, "model_version": NEW})
    learn(here, work, project)
    assert store(here).by_version(project) == []


def test_skipped_tasks_and_empty_annotations(here: Site, project: int, work: Work) -> None:
    skipped, _ = make_task(here, project)
    here.sdk.annotations.create(id=skipped, result=[submitted(PREDICTED[0])], was_cancelled=True)
    empty, _ = make_task(here, project)
    here.annotate(empty)
    cleared, prediction = make_task(here, project)
    submit(here, cleared, [], prediction)
    learn(here, work, project)
    assert counts(here, project) == {"deleted": 4}
    assert set(store(here).tasks(project)) == {empty, cleared}


def test_damaged_regions_do_not_stop_the_others(here: Site, project: int, work: Work) -> None:
    task, prediction = make_task(here, project)
    broken = submitted(PREDICTED[1], "prediction-changed", sequence=[{"frame": "x"}])
    submit(here, task, [submitted(PREDICTED[0]), broken], prediction)
    learn(here, work, project, task)
    assert counts(here, project) == {"accepted": 1, "deleted": 3}


def test_deletion_whose_event_names_the_annotation_only(here: Site, project: int, work: Work) -> None:
    """And that was read with all others, so that no event has said whose it is."""
    task, prediction = make_task(here, project)
    annotation = submit(here, task, [submitted(item) for item in PREDICTED], prediction)
    learn(here, work, project)
    here.sdk.annotations.delete(annotation)
    storage = Storage(here.settings.database)
    receiver = WebhookReceiver(storage, here.queue)
    receiver.receive(parse_event({"action": "ANNOTATIONS_DELETED", "annotations": [{"id": annotation}]}))
    receiver.flush()
    work(here)
    assert store(here).tasks(project) == {}


def test_tasks_and_projects_that_are_gone(here: Site, project: int, work: Work) -> None:
    tasks = []
    for _ in range(2):
        task, prediction = make_task(here, project)
        submit(here, task, [submitted(item) for item in PREDICTED], prediction)
        tasks.append(task)
    learn(here, work, project)
    here.sdk.tasks.delete(tasks[0])
    learn(here, work, project)  # also where the event was lost
    assert set(store(here).tasks(project)) == {tasks[1]}
    here.sdk.projects.delete(project)
    learn(here, work, project)
    assert store(here).tasks(project) == {}


def test_label_studio_away_loses_nothing(here: Site, project: int, work: Work) -> None:
    task, prediction = make_task(here, project)
    submit(here, task, [submitted(item) for item in PREDICTED], prediction)
    here.queue.request_learning(project, [task])
    gate = Gate(here.settings.label_studio_url.replace("localhost", "127.0.0.1"))
    try:
        gate.shut()
        settings = here.settings.model_copy(update={"label_studio_url": gate.url})
        behind = dataclasses.replace(here, settings=settings)
        work(behind)
        assert set(here.queue.storage.pending("learn", project)) == {task}
        gate.open()
        behind.hurry()
        work(behind)
    finally:
        gate.close()
    assert counts(here, project) == {"accepted": 4}
    assert here.queue.storage.pending("learn", project) == {}


def test_a_token_that_is_refused_loses_nothing(
    here: Site, project: int, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, prediction = make_task(here, project)
    submit(here, task, [submitted(item) for item in PREDICTED], prediction)
    here.queue.request_learning(project, [task])
    settings = here.settings.model_copy(update={"label_studio_api_key": SecretStr("0" * 40)})
    work(dataclasses.replace(here, settings=settings))
    assert set(here.queue.storage.pending("learn", project)) == {task}
    assert "token" in here.error()
    # Somebody mends it, and nobody annotates in this project again.
    container = work(here)
    here.queue.connection.delete("video:turn:trainer")
    monkeypatch.setattr(training_scheduler, "RETRY_PAUSE", timedelta(0))  # ten minutes later
    TrainingScheduler(container).tick()
    work(here)
    assert counts(here, project) == {"accepted": 4}
    assert here.queue.storage.pending("learn", project) == {}


def test_what_nobody_told_us_of_is_found(
    here: Site, project: int, work: Work, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Label Studio does not repeat what it sent while this server was away."""
    caplog.set_level("INFO")

    def catch_up() -> int:
        """How many tasks were looked at again."""
        caplog.clear()
        here.queue.connection.delete("video:turn:trainer", "video:turn:catch-up")  # half an hour later
        TrainingScheduler(container).tick()
        work(here)
        assert here.queue.failed_jobs() == []
        assert here.queue.storage.pending("learn", project) == {}
        said = [record.args for record in caplog.records if "annotations again" in record.msg]
        return int(said[0][1]) if said else 0  # type: ignore[index,arg-type]

    def a_minute_passes(task: int) -> None:
        """Since a task's annotation was read."""
        of = corrections.c.task_id == task
        changed = store(here).tasks(project)[task].changed_at - timedelta(minutes=1)
        with Storage(here.settings.database).engine.begin() as connection:
            assert connection.execute(sa.update(corrections).where(of).values(changed_at=changed)).rowcount == 1

    first, prediction = make_task(here, project)
    submit(here, first, [submitted(item) for item in PREDICTED], prediction)
    make_task(here, project)  # which nobody annotates
    learn(here, work, project, first)
    container = work(here)
    assert catch_up() == 0
    second, prediction = make_task(here, project)
    made = submit(here, second, [submitted(item) for item in PREDICTED], prediction)
    assert catch_up() == 1
    assert counts(here, project) == {"accepted": 8}
    a_minute_passes(second)
    here.sdk.annotations.update(made, result=[submitted(item) for item in PREDICTED[:3]])
    assert catch_up() == 1
    assert counts(here, project) == {"accepted": 7, "deleted": 1}
    assert catch_up() == 0
    here.sdk.annotations.delete(made)
    assert catch_up() == 1
    assert counts(here, project) == {"accepted": 4}
    # A prediction changes the task, not its annotation, which stays behind for good.
    monkeypatch.setattr("ml_backend.jobs.learn.SAME_CHANGE", timedelta(0))
    assert catch_up() == 0
    here.sdk.predictions.create(task=first, result=PREDICTED, score=0.9, model_version=NEW)
    assert [catch_up() for _ in range(3)] == [1, 0, 0]
    assert counts(here, project) == {"accepted": 4}
    here.sdk.tasks.delete(first)
    assert catch_up() == 1
    assert counts(here, project) == {}


def test_a_mode_that_learns_labels_needs_no_video_for_it(site: Make, work: Work) -> None:
    here = site(mode="yolo_dinov2")
    project = here.project(CONFIG)
    task, prediction = make_task(here, project)
    submit(here, task, [submitted(PREDICTED[0]), moved(PREDICTED[1])], prediction)
    learn(here, work, project, task)
    assert counts(here, project) == {"accepted": 1, "moved": 1, "deleted": 2}


def test_real_predictions_that_are_submitted_untouched(here: Site, project: int, work: Work) -> None:
    """What comes back from Label Studio equals what was predicted."""
    task = here.task(project, video=here.clip())
    here.queue.request_prepare(project, task)
    work(here)
    (prediction,) = here.predictions(task)
    labelled = [submitted(item, labels=["person"]) for item in prediction.result]
    assert labelled
    submit(here, task, labelled, prediction.id)
    learn(here, work, project, task)
    assert counts(here, project, prediction.model_version) == {"relabelled": len(labelled)}
    assert sum(task.tracks for task in store(here).tasks(project).values()) == len(labelled)
