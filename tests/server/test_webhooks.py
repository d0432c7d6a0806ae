"""Webhook events: what is taken from them, and that none is lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis import Redis
from rq import Queue
from rq.job import Job
from rq.serializers import JSONSerializer

from ml_backend.core.errors import RequestError
from ml_backend.core.settings import Settings
from ml_backend.db.storage import Storage
from ml_backend.jobs.container import Container
from ml_backend.jobs.queue import ALL_TASKS, JobQueue
from ml_backend.jobs.training_scheduler import TrainingScheduler
from ml_backend.server import webhooks
from ml_backend.server.webhooks import MAX_IDS, Event, WebhookReceiver, parse_event
from tests.builders import wait_for


@pytest.mark.parametrize(
    ("body", "tasks", "annotations"),
    [
        ({"action": "TASKS_CREATED", "tasks": [{"id": 1, "data": {}}, {"id": 2}]}, (1, 2), ()),
        ({"action": "TASKS_CREATED", "tasks": [3, 4, 3]}, (3, 4), ()),
        ({"action": "ANNOTATION_CREATED", "task": {"id": 5}, "annotation": {"id": 6, "task": 5}}, (5,), (6,)),
        (
            {"action": "ANNOTATIONS_CREATED", "annotations": [{"id": 7, "task": 8}, {"id": 9, "task": 10}]},
            (8, 10),
            (7, 9),
        ),
        ({"action": "ANNOTATIONS_DELETED", "annotations": [{"id": 11}, {"id": 12}]}, (), (11, 12)),
        ({"action": "START_TRAINING"}, (), ()),
        ({"action": "TASKS_CREATED", "tasks": [None, "1", True, -1, 0, 1.5, {"id": "2"}, [], 2**40, {}]}, (), ()),
        ({"action": "TASKS_CREATED", "tasks": {"id": 1}}, (), ()),
        ({"action": "ANNOTATION_CREATED", "annotation": {"id": 1, "task": {"id": 2}}}, (2,), (1,)),
        (
            {
                "action": "ANNOTATIONS_CREATED",
                "annotation": [{"id": 1, "task": 3}, {"id": 2, "task": 4}],
                "task": [{"id": 3}, {"id": 4}],
            },
            (3, 4),
            (1, 2),
        ),
    ],
    ids=lambda value: value["action"] if isinstance(value, dict) else "",
)
def test_what_an_event_points_at(body: dict[str, Any], tasks: tuple[int, ...], annotations: tuple[int, ...]) -> None:
    event = parse_event({**body, "project": {"id": 7, "title": "x"}})
    assert (event.action, event.project_id) == (body["action"], 7)
    assert (event.task_ids, event.annotation_ids) == (tasks, annotations)


@pytest.mark.parametrize(("project", "number"), [({"id": 7}, 7), (7, 7), ("7", None), (None, None), ([], None)])
def test_project(project: Any, number: int | None) -> None:
    assert parse_event({"action": "TASKS_CREATED", "project": project}).project_id == number


@pytest.mark.parametrize(
    "body", [None, [], "x", 7, {}, {"action": None}, {"action": ""}, {"action": 7}, {"actio": "x"}]
)
def test_not_an_event(body: Any) -> None:
    with pytest.raises(RequestError, match="'action'"):
        parse_event(body)


json_value = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(
    body=st.fixed_dictionaries(
        {"action": st.text(min_size=1)},
        optional=dict.fromkeys(("project", "task", "tasks", "annotation", "annotations"), json_value),
    )
)
def test_any_event_becomes_something_that_can_be_stored(body: dict[str, Any]) -> None:
    event = parse_event(body)
    assert all(0 < number < 2**31 for number in (*event.task_ids, *event.annotation_ids))
    assert event.project_id is None or 0 < event.project_id < 2**31
    assert len(event.action) <= 64


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(f"sqlite:///{tmp_path}/db")


@pytest.fixture
def queue(storage: Storage, settings: Callable[..., Settings], redis_url: str) -> JobQueue:
    return JobQueue(settings(redis_url=redis_url), storage=storage)


@pytest.fixture
def receiver(storage: Storage, queue: JobQueue) -> WebhookReceiver:
    return WebhookReceiver(storage, queue)


def jobs(url: str, name: str = "prepare") -> list[tuple[Any, ...]]:
    with Redis.from_url(url) as connection:
        queue = Queue(name, connection=connection, serializer=JSONSerializer)
        fetched = Job.fetch_many(queue.get_job_ids(), connection=connection, serializer=JSONSerializer)
        return [tuple(job.args) for job in fetched if job]


def test_outcomes(receiver: WebhookReceiver, storage: Storage, redis_url: str) -> None:
    assert receiver.receive(parse_event({"action": "PROJECT_UPDATED"})) == "ignored"
    assert receiver.receive(parse_event({"action": "ANNOTATION_UPDATED", "annotation": {"id": 1}})) == "queued"
    assert receiver.receive(parse_event({"action": "TASKS_CREATED", "project": {"id": 1}})) == "queued"
    wait_for(lambda: jobs(redis_url))
    assert storage.pending_projects() == [("prepare", 1)]
    assert set(storage.pending("prepare", 1)) == {ALL_TASKS}


def annotation_event(action: str, annotation: int, task: int | None = None, project: int | None = 7) -> Event:
    body: dict[str, Any] = {"action": action, "annotation": {"id": annotation, "task": task}}
    return parse_event(body | ({"project": {"id": project}} if project else {}))


def test_annotations_are_learned_from(receiver: WebhookReceiver, storage: Storage, redis_url: str) -> None:
    for number in range(1000):
        receiver.receive(annotation_event("ANNOTATION_UPDATED", number % 10 + 1, number % 3 + 1))
    wait_for(lambda: jobs(redis_url, "patterns"))
    assert set(storage.pending("learn", 7)) == {1, 2, 3}
    assert jobs(redis_url, "patterns") == [(7,)]
    assert storage.annotated_projects() == [7]


def test_deletion_names_the_annotation_only(receiver: WebhookReceiver, storage: Storage) -> None:
    receiver.receive(annotation_event("ANNOTATION_CREATED", 5, 3))
    storage.settle("learn", 7, storage.pending("learn", 7))
    receiver.receive(parse_event({"action": "ANNOTATIONS_DELETED", "annotations": [{"id": 5}, {"id": 6}]}))
    assert set(storage.pending("learn", 7)) == {3}


def test_start_training_reads_everything(receiver: WebhookReceiver, storage: Storage, redis_url: str) -> None:
    receiver.receive(parse_event({"action": "START_TRAINING", "project": {"id": 7}}))
    wait_for(lambda: jobs(redis_url, "train"))
    assert set(storage.pending("learn", 7)) == {ALL_TASKS}
    assert jobs(redis_url, "patterns") == [(7,)]
    assert jobs(redis_url, "train") == [(7, "Start training")]


def test_what_is_asked_for_again_meanwhile_is_not_struck_off(queue: JobQueue, storage: Storage, redis_url: str) -> None:
    queue.request_learning(7, [1, 3])
    seen = storage.pending("learn", 7)  # the job begins
    for _ in range(5):
        queue.request_learning(7, [1, 2])
    storage.settle("learn", 7, seen)
    assert set(storage.pending("learn", 7)) == {1, 2}
    assert jobs(redis_url, "patterns") == [(7,)]
    storage.settle("learn", 7, storage.pending("learn", 7))
    assert storage.pending_projects() == []
    queue.request_learning(7, [3])
    storage.settle("learn", 7, seen)  # by a worker that was thought dead: it has not seen this one
    assert set(storage.pending("learn", 7)) == {3}


def test_tasks_are_prepared_once(receiver: WebhookReceiver, storage: Storage, redis_url: str) -> None:
    for number in range(130):
        receiver.receive(Event("TASKS_CREATED", 7, (number + 1,)))
    wait_for(lambda: jobs(redis_url))
    assert jobs(redis_url) == [(7,)]
    assert set(storage.pending("prepare", 7)) == set(range(1, 131))


def test_event_without_project_does_not_block_the_others(receiver: WebhookReceiver, redis_url: str) -> None:
    receiver.receive(Event("TASKS_CREATED", None, (1,)))
    receiver.receive(Event("TASKS_CREATED", 7, (2,)))
    wait_for(lambda: jobs(redis_url) == [(7,)])


def test_without_redis_nothing_is_forgotten(
    storage: Storage,
    settings: Callable[..., Settings],
    redis_url: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    receiver = WebhookReceiver(storage, JobQueue(settings(redis_url=f"unix://{tmp_path}/none"), storage=storage))
    receiver.receive(Event("TASKS_CREATED", 7, (1,)))
    wait_for(lambda: "could not be queued" in caplog.text)
    assert set(storage.pending("prepare", 7)) == {1}
    # The process ends; workers find what is to be done.
    container = Container(settings(redis_url=redis_url))
    container.storage = storage
    TrainingScheduler(container).start_pending()
    assert jobs(redis_url) == [(7,)]


@pytest.mark.parametrize(
    "body",
    [
        {"action": "TASKS_CREATED", "tasks": list(range(1, 60_000))},
        {"action": "ANNOTATION_UPDATED", "task": {"id": 3}, "annotations": list(range(1, 60_000))},
        {"action": "ANNOTATIONS_CREATED", "annotations": [{"id": n, "task": n} for n in range(1, MAX_IDS + 2)]},
        {"action": "ANNOTATIONS_DELETED", "annotations": list(range(1, MAX_IDS + 2))},
    ],
    ids=lambda body: body["action"],
)
def test_a_body_with_many_ids_is_stored_as_the_whole_project(
    receiver: WebhookReceiver, storage: Storage, body: dict[str, Any]
) -> None:
    """Whatever anybody may send, it costs a row and a job."""
    event = parse_event(body | {"project": {"id": 7}})
    receiver.receive(event)
    kind = "prepare" if body["action"] == "TASKS_CREATED" else "learn"
    assert set(storage.pending(kind, 7)) == {ALL_TASKS}
    assert storage.annotated_projects() == []


def test_as_many_ids_as_an_event_may_have_are_kept(receiver: WebhookReceiver, storage: Storage) -> None:
    receiver.receive(parse_event({"action": "TASKS_CREATED", "project": 7, "tasks": list(range(1, MAX_IDS + 1))}))
    assert set(storage.pending("prepare", 7)) == set(range(1, MAX_IDS + 1))


def test_many_events_are_stored_as_the_whole_project(
    receiver: WebhookReceiver, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "MAX_PENDING", 250)
    for first in range(1, 200, 100):
        receiver.receive(Event("TASKS_CREATED", 7, tuple(range(first, first + 100))))
    assert len(storage.pending("prepare", 7)) == 200
    seen = storage.pending("prepare", 7)
    receiver.receive(Event("TASKS_CREATED", 7, tuple(range(1001, 1101))))
    assert set(storage.pending("prepare", 7)) == {ALL_TASKS}
    storage.settle("prepare", 7, seen)
    assert set(storage.pending("prepare", 7)) == {ALL_TASKS}, "what is done stays apart from what was asked since"
