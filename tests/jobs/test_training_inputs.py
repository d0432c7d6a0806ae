"""What is said at once of a training that would repeat the last one, and what only the job can tell."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from ml_backend.core.errors import Conflict
from ml_backend.core.settings import Settings
from ml_backend.jobs.container import Container
from ml_backend.jobs.training_inputs import (
    MAX_SEARCHED,
    is_unchanged_since,
    labels_found_by_text,
    training_settings_digest,
)
from ml_backend.labeling.few_shot.pattern_store import PatternStore, StoredTracks
from ml_backend.tracking.track_record import SearchedFor, TrackRecord, TrackSet
from ml_backend.training.registry import Version
from ml_backend.training.review_store import AnnotatedTask, ReviewStore
from tests.server.control import annotated, refused


@pytest.fixture
def trained(settings: Callable[..., Settings], redis_url: str) -> Container:
    """Nothing has been annotated in project 7 since its last training."""
    container = Container(settings(redis_url=redis_url, detector="auto"))
    annotated(container, "a")
    refused(container)
    return container


def start(container: Container) -> None:
    container.trainings.start(7, "a test")


def test_nothing_has_changed(trained: Container) -> None:
    with pytest.raises(Conflict, match="Nothing new has been annotated since v1"):
        start(trained)
    assert not trained.jobs.all()


def test_an_annotation_has_changed(trained: Container) -> None:
    annotated(trained, "b")
    start(trained)


def test_an_annotation_was_deleted(trained: Container) -> None:
    ReviewStore(trained.storage).remove(7, 1)
    start(trained)


def test_a_setting_has_changed(trained: Container) -> None:
    start(Container(trained.settings.model_copy(update={"train_args": '{"epochs": 3}'})))


def test_annotations_are_yet_to_be_read(trained: Container) -> None:
    trained.storage.note_pending("learn", 7, [2])
    start(trained)


def test_the_last_training_failed(trained: Container) -> None:
    registry = trained.registry
    registry.finish(registry.begin(7, "me", "a test", None), "failed", "Out of memory.")
    start(trained)


def test_what_only_the_job_can_tell(trained: Container) -> None:
    last = trained.registry.last(7)
    assert last is not None
    digest = training_settings_digest(trained.settings, trained.projects.models(None).detector.sha256)
    tasks = ReviewStore(trained.storage).tasks(7)

    def unchanged(last: Version, tasks: dict[int, AnnotatedTask] = tasks, **lineage: object) -> bool:
        return is_unchanged_since(tasks, digest, replace(last, lineage={**last.lineage, **lineage}))

    assert unchanged(last)
    assert not unchanged(last, unread=["2"]), "a video could not be read"
    assert not unchanged(last, annotations={"1": 1, "2": 2}), "no event has told of task 2"
    assert not unchanged(last, settings=None), "trained by an older release"


def test_labels_that_were_found_by_text(trained: Container) -> None:
    store = trained.projects.patterns
    for task, label in enumerate(("vest", "crane", "person"), start=1):
        track = TrackRecord(1, 0, 50, 0.6, {label: 5.0, "helmet": 1.0}, {}, ())
        searched = SearchedFor("a", {"vest": ("yellow vest",), "crane": ("crane",), "helmet": ("helmet",)})
        tracks = TrackSet((track,), ("person", *searched.labels), False, 640, 360, 50, searched=searched)
        store.save_tracks(f"key {task}", 7, task, 0, f"/data/{task}.mp4", tracks)
    labels = {"vest", "crane", "person"}
    assert labels_found_by_text(store, 7, (1, 3), labels) == {"vest"}
    assert labels_found_by_text(store, 7, (1, 2), {"vest"}) == {"vest"}
    assert labels_found_by_text(store, 8, (1, 2, 3), labels) == set()


def test_labels_found_by_text_in_many_tasks(trained: Container) -> None:
    read: list[int] = []

    class Store(PatternStore):
        def tracks_of_project(self, project_id: int, video: str = "", task_id: int = 0) -> Iterator[StoredTracks]:
            read.append(task_id)
            return super().tracks_of_project(project_id, video, task_id)

    store = Store(trained.storage)
    found = TrackRecord(1, 0, 50, 0.6, {"vest": 5.0}, {}, ())
    tracks = TrackSet((found,), ("vest",), False, 640, 360, 50, searched=SearchedFor("a", {"vest": ("vest",)}))
    store.save_tracks("key", 7, MAX_SEARCHED, 0, "/data/video.mp4", tracks)
    assert labels_found_by_text(store, 7, range(1, 10_000), {"vest"}) == set()
    assert len(read) == MAX_SEARCHED
    read.clear()
    assert labels_found_by_text(store, 7, range(1, MAX_SEARCHED + 3), {"vest"}) == {"vest"}
    assert read == [MAX_SEARCHED + 2, MAX_SEARCHED + 1, MAX_SEARCHED], "it stops at what it has found"
