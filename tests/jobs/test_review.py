"""Suspicious moments, looked for by a worker in this process in tasks of a real Label Studio."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ml_backend.core.artifacts import Artifacts
from ml_backend.core.errors import Conflict
from ml_backend.core.types import Detections, FrameFeatures
from ml_backend.db.storage import Storage
from ml_backend.embeddings.crop_embeddings import CropEmbedding
from ml_backend.jobs.container import Container
from ml_backend.jobs.detections import detections_kept, logged_detections
from ml_backend.jobs.review import render_moment
from ml_backend.label_studio.client import NotFound
from ml_backend.label_studio.media import canonical_uri
from ml_backend.labeling.few_shot.pattern_store import video_key
from ml_backend.review.moment_store import MAX_PER_TASK, MomentStore
from ml_backend.review.repair_json import clip_name
from ml_backend.server.container import WebContainer
from ml_backend.video.probe import probe
from tests.builders import label_config
from tests.jobs.conftest import Site
from tests.review.test_region_repairs import region

Make = Callable[..., Site]
Work = Callable[[Site], Container]

CONFIG = label_config("person", "car")
VERSION = "yolo.track.yolo.base"
#: A track that jumps far away at frame 51, and one that does nothing wrong.
JUMPS = region("jumps", [(1, 0.0, True), (50, 20.0, True), (51, 60.0, True), (100, 80.0, True)], score=0.9)
SOUND = region("sound", [(1, 10.0, True), (100, 60.0, True)], y=65.0, score=0.9)


@pytest.fixture
def here(site: Make) -> Site:
    return site(mode="yolo")


def store(here: Site) -> MomentStore:
    return MomentStore(Storage(here.settings.database))


def predicted(here: Site, project: int, *regions: dict[str, Any], video: str = "") -> int:
    """A task with a prediction, of a video of 100 frames."""
    video = video or here.clip("long.mp4", frames=100, size=(320, 240))
    task = here.task(project, video=video, fps=20, frames=100, width=320, height=240, duration=5.0)
    here.client.create_prediction(task, {"result": [*regions], "score": 0.9, "model_version": VERSION})
    return task


def look(here: Site, work: Work, project: int, *tasks: int) -> Container:
    here.queue.request_review(project, tasks)
    container = work(here)
    assert here.queue.failed_jobs() == []
    assert here.queue.storage.pending("review", project) == {}
    return container


def found(here: Site, project: int, **filters: Any) -> list[dict[str, Any]]:
    return store(here).queue(project, filters, 100, 0)[0]


def test_moments_of_a_prediction_then_of_the_annotation(here: Site, work: Work) -> None:
    project = here.project(CONFIG)
    task = predicted(here, project, JUMPS, SOUND)
    look(here, work, project, task)
    (moment,) = found(here, project)
    assert (moment["kind"], moment["task_id"], moment["author"], moment["annotation_id"]) == ("jump", task, VERSION, 0)
    assert moment["repair"] == {"do": "split", "region": "jumps", "frame": 51}
    assert (moment["shown"], moment["time"], list(moment["regions"])) == (51, 2.5, ["jumps"])
    annotation = here.sdk.annotations.create(id=task, result=[JUMPS, SOUND])
    here.queue.request_learning(project, [task])  # as its event does
    work(here)
    (again,) = found(here, project)
    assert (again["id"], again["annotation_id"]) == (moment["id"], annotation.id), "the same fault of the same track"
    assert again["author"] == here.client.whoami()
    here.sdk.annotations.update(id=annotation.id, result=[SOUND])
    here.queue.request_learning(project, [task])
    work(here)
    assert found(here, project) == []


def test_looked_for_after_a_delivery(site: Make, work: Work) -> None:
    here = site(mode="yolo")
    project = here.project()
    task = here.task(project, video=here.clip())
    here.queue.request_prepare(project, task)
    container = work(here)
    assert len(here.predictions(task)) == 1
    video = video_key(canonical_uri(here.data(task)["video"], here.settings.label_studio_url))
    assert logged_detections(container.artifacts, project, video), "what no track covers is looked at, too"
    assert here.queue.storage.pending("review", project) == {}
    finished = here.job(f"review-{project}")
    assert finished.get_status().value == "finished"


def log_detections(here: Site, project: int, task: int) -> None:
    """Keep what a detector saw of a task: the object of :data:`SOUND`, and a car that no track covers."""
    video = video_key(canonical_uri(here.data(task)["video"], here.settings.label_studio_url))
    with detections_kept(Artifacts(here.settings), project, video) as detections:
        for index in range(100):
            covered = [32.0 + 1.6 * index, 156, 64 + 1.6 * index, 228]
            missed = [100.0 + index, 20.0, 160.0 + index, 60.0]
            seen = Detections(
                np.array([covered, missed], np.float32), np.array([0.9, 0.8], np.float32), np.array([0, 2])
            )
            detections.push(FrameFeatures(index, seen))
        detections.close(("person", "bus", "car"))


def test_objects_that_the_detector_saw_and_no_track_covers(here: Site, work: Work) -> None:
    project = here.project(CONFIG)
    task = predicted(here, project, SOUND)
    log_detections(here, project, task)
    look(here, work, project, task)
    (moment,) = found(here, project)
    assert (moment["kind"], moment["label"], moment["regions"]) == ("no_box", "car", {})
    assert moment["repair"]["added"]["value"]["labels"] == ["car"]
    assert render_moment(project, moment["id"])


def test_moments_go_with_their_task(here: Site, work: Work) -> None:
    project = here.project(CONFIG)
    task, other = predicted(here, project, JUMPS), predicted(here, project, JUMPS)
    container = look(here, work, project, 0)  # the whole project
    assert {moment["task_id"] for moment in found(here, project)} == {task, other}
    moment = found(here, project, task_id=task)[0]["id"]
    render_moment(project, moment)
    assert container.artifacts.exists(clip_name(project, moment))
    dismissal = {"project_id": project, "task_id": task, "moment_id": moment, "action": "dismiss"}
    store(here).add([{**dismissal, "description": "", "by": "anna"}])
    here.sdk.tasks.delete(str(task))
    look(here, work, project, task)
    assert [moment["task_id"] for moment in found(here, project)] == [other]
    assert store(here).history(project, 10) == []
    assert not container.artifacts.exists(clip_name(project, moment))


def test_a_task_keeps_a_bounded_number_with_the_largest_gain(here: Site) -> None:
    rows = [
        {"id": f"{number:016}", "gain": float(number), "score": 0.5, "kind": "jump", "label": "a", "author": "v"}
        | {"video": "video", "annotation_id": 0, "first": 1, "last": 2, "shown": 1, "time": 0.0, "reason": ""}
        | {"repair": {}, "regions": {}}
        for number in range(MAX_PER_TASK + 30)
    ]
    store(here).replace_task(1, 2, [*rows, rows[-1]])
    gains = [moment["gain"] for moment in found(here, 1)]
    assert gains == [float(number) for number in range(MAX_PER_TASK + 29, 29, -1)]


def test_clip_of_a_moment(here: Site, work: Work) -> None:
    project = here.project(CONFIG)
    task = predicted(here, project, JUMPS, SOUND)
    container = look(here, work, project, task)
    (moment,) = found(here, project)
    sha256 = render_moment(project, moment["id"])
    info = probe(container.artifacts.fetch(clip_name(project, moment["id"]), sha256))
    assert (info.codec, info.frames, info.fps) == ("h264", 40, 20)
    assert render_moment(project, moment["id"]) == sha256, "it is there already"
    look(here, work, project, task)
    assert found(here, project)[0]["clip"] == sha256, "found again, with its clip"


def test_clip_of_what_has_changed_since(here: Site, work: Work) -> None:
    project = here.project(CONFIG)
    task = predicted(here, project, JUMPS, SOUND)
    look(here, work, project, task)
    (moment,) = found(here, project)
    here.client.renew_prediction(task, {"result": [], "score": 0, "model_version": VERSION}, lambda _: True)
    with pytest.raises(Conflict, match="does not exist any more"):
        render_moment(project, moment["id"])
    with pytest.raises(NotFound):
        render_moment(project, "0" * 16)


def test_without_the_video_boxes_alone_are_checked(here: Site, work: Work) -> None:
    project = here.project(CONFIG)
    task = predicted(here, project, JUMPS, video="/data/local-files/?d=videos/gone.mp4")
    look(here, work, project, task)
    assert [moment["kind"] for moment in found(here, project)] == ["jump"]


def test_what_looks_like_a_dismissed_moment_is_not_offered(site: Make, work: Work) -> None:
    here = site(mode="yolo_dinov2")
    project = here.project(CONFIG)
    container = WebContainer(here.settings)
    model = container.projects.models(project).classifier.embedder
    assert model is not None
    rng = np.random.default_rng(0)
    kinds = rng.normal(size=(2, 16))
    tasks = []
    for number, look_of in enumerate([0, 0, 1, 1, 0]):  # of the object that jumps
        video = here.clip(f"{number}.mp4", frames=100, size=(320, 240))
        tasks.append(predicted(here, project, JUMPS, video=video))
        vector = kinds[look_of] + rng.normal(scale=0.1, size=16)
        box = (6.5, 48.0, 38.5, 120.0)  # at frame 6
        crop = CropEmbedding(5, box, (vector / np.linalg.norm(vector)).astype(np.float32), b"")
        key = video_key(canonical_uri(video, here.settings.label_studio_url))
        container.projects.patterns.crop_embeddings(key).add(model.model_id, [crop])
    look(here, work, project, *tasks)
    moments = {moment["task_id"]: moment for moment in found(here, project)}
    assert all(moment["embedding"] for moment in moments.values())
    facts = {"project_id": project, "description": "", "by": "anna"}
    numbers = store(here).add(
        [
            {**facts, **{name: moments[task][name] for name in ("task_id", "signature", "embedding")}, "action": action}
            | {"moment_id": moments[task]["id"]}
            for task, action in ((tasks[0], "accept"), (tasks[2], "dismiss"))
        ]
    )
    accepted = store(here).decision(project, numbers[0])
    assert accepted is not None
    rows, total = store(here).similar(accepted, 10)
    assert ({row["task_id"] for row in rows}, total) == ({tasks[1], tasks[4]}, 2)
    store(here).undo(numbers[1:], "anna")
    assert store(here).similar(accepted, 1)[1] == 4, "that of the undone dismissal, too"
