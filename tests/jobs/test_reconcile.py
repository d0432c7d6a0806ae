"""What Label Studio has told nobody is found: by the projects that it lists as connected, not by our own events."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import pytest

from ml_backend.core.errors import LabelStudioUnavailable
from ml_backend.jobs.container import Container
from ml_backend.jobs.reconcile import reconcile
from ml_backend.review.moment_store import MomentStore
from ml_backend.training.review_store import ReviewStore
from tests.jobs.conftest import Site

Work = Callable[[Site], Container]


@pytest.fixture
def here(site: Callable[..., Site]) -> Site:
    return site(backend_url=f"http://{uuid.uuid4().hex}.example:9090")


def connected(here: Site) -> int:
    """Return a project whose events would reach a backend that is down."""
    project = here.project()
    here.sdk.webhooks.create(
        project=project, url=f"{here.settings.backend_url}/webhook", send_payload=True, send_for_all_actions=True
    )
    return project


def check(here: Site) -> list[int]:
    """Reconcile as if a minute had passed."""
    container = Container(here.settings)
    container.queue.connection.delete("video:turn:reconcile")
    return reconcile(container)


def test_a_video_imported_while_we_were_down_is_predicted(here: Site, work: Work) -> None:
    project, other = connected(here), here.project()
    task, foreign = (here.task(number, video=here.clip()) for number in (project, other))
    assert project in check(here)
    work(here)
    assert len(here.predictions(task)) == 1
    assert here.predictions(foreign) == [], "that project is not connected"
    assert project in check(here), "its numbers have changed"
    assert project not in check(here)
    assert other not in check(here)


def test_the_first_annotation_of_a_project_is_learned(here: Site, work: Work) -> None:
    project = connected(here)
    task = here.task(project, video=here.clip(), fps=20)
    sequence = [{"frame": 1, "enabled": True, "rotation": 0, "x": 10, "y": 10, "width": 20, "height": 40}]
    value = {"framesCount": 40, "duration": 2.0, "labels": ["person"], "sequence": sequence}
    region = {"id": "a", "from_name": "box", "to_name": "video", "type": "videorectangle", "value": value}
    here.sdk.annotations.create(id=task, result=[region])
    assert project in check(here)
    work(here)
    assert set(ReviewStore(here.queue.storage).tasks(project)) == {task}


def test_a_queue_that_came_back_empty(here: Site, work: Work) -> None:
    project = connected(here)
    tasks = [here.task(project, video=here.clip()) for _ in range(3)]
    for task in tasks:
        here.queue.request_prepare(project, task)
    here.queue.connection.flushall()
    assert project in check(here)
    work(here)
    assert [len(here.predictions(task)) for task in tasks] == [1, 1, 1]


def test_a_task_that_cannot_be_predicted_is_left_alone_for_a_while(here: Site, work: Work) -> None:
    project = connected(here)
    task = here.task(project, video="/data/local-files/?d=videos/gone.mp4")
    assert project in check(here)
    work(here)
    (failed,) = here.queue.failed_jobs()
    here.task(project, video=here.clip())  # the numbers change
    assert project in check(here)
    work(here)
    assert here.queue.failed_jobs() == [failed]
    assert here.predictions(task) == []


def test_one_process_checks_for_all(here: Site) -> None:
    container: Any = Container(here.settings)
    container.queue.connection.delete("video:turn:reconcile")
    project = connected(here)
    here.task(project, video=here.clip())
    assert project in reconcile(container)
    assert reconcile(container) == []


def moment(number: int) -> dict[str, Any]:
    return {
        "id": f"{number:016}",
        "video": "video",
        "annotation_id": 0,
        "author": "v",
        "kind": "jump",
        "label": "person",
        "first": 1,
        "last": 2,
        "shown": 1,
        "time": 0.0,
        "score": 0.5,
        "gain": 1.0,
        "reason": "",
        "repair": {},
        "regions": {},
    }


def test_moments_of_what_was_deleted_while_we_were_down(here: Site, work: Work) -> None:
    kept, emptied, gone = (here.project() for _ in range(3))
    store = MomentStore(here.queue.storage)
    tasks = {project: [here.task(project, video=here.clip()) for _ in range(2)] for project in (kept, emptied, gone)}
    for task in (task for both in tasks.values() for task in both):
        store.replace_task(next(number for number, both in tasks.items() if task in both), task, [moment(task)])
    here.sdk.tasks.delete(str(tasks[emptied][0]))
    here.sdk.projects.delete(gone)
    check(here)
    # Label Studio cannot be asked: nothing is known to be gone.
    away = Container(here.settings.model_copy(update={"label_studio_url": "http://127.0.0.1:1"}))
    away.queue.connection.delete("video:turn:reconcile")
    with pytest.raises(LabelStudioUnavailable):
        reconcile(away)
    assert [store.tasks(project) for project in (kept, emptied, gone)] == [set(both) for both in tasks.values()]
    assert here.queue.storage.pending("review", emptied).keys() == {tasks[emptied][0]}
    assert here.queue.storage.pending("review", gone).keys() == set(tasks[gone])
    assert here.queue.storage.pending("review", kept) == {}
    work(here)
    assert [store.tasks(project) for project in (kept, emptied, gone)] == [set(tasks[kept]), {tasks[emptied][1]}, set()]
    assert store.projects() == sorted([kept, emptied])
    here.sdk.tasks.delete(str(tasks[kept][1]))
    check(here)
    assert here.queue.storage.pending("review", kept).keys() == {tasks[kept][1]}, "its number of tasks has changed"
