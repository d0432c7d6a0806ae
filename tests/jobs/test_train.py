"""Retraining from annotations to a version in use, by a worker in this process against a real Label Studio."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ml_backend.jobs.container import Container
from ml_backend.jobs.training_inputs import training_settings_digest
from ml_backend.video.probe import probe
from tests.builders import label_config
from tests.jobs.conftest import Site
from tests.jobs.scenes import FRAMES, make_walk, walk_regions

Make = Callable[..., Site]
Work = Callable[[Site], Container]

CONFIG = label_config("walker", "vehicle")
#: Small and short, so that a training takes seconds.
FAST = {
    **{"imgsz": 128, "train_args": '{"epochs": 3, "batch": 4}', "train_per_second": 3.0, "gate_frames": 40},
    "mode": "yolo",
}


def annotated(here: Site, project: int, name: str = "walk", **labels: str) -> int:
    """A task whose objects are all annotated."""
    if not (here.videos / f"{name}.mp4").exists():
        make_walk(here.videos / f"{name}.mp4", seed=len(name))
    task = here.task(project, video=f"/data/local-files/?d=videos/{name}.mp4", fps=20, width=480, height=360)
    here.sdk.annotations.create(id=task, result=walk_regions(**labels))
    return task


@pytest.fixture
def make_yolo_site(site: Make, yolo_weights: Path) -> Make:
    return lambda **values: site(detector="yolo", yolo_weights=str(yolo_weights), **(FAST | values))


@pytest.fixture
def yolo_site(make_yolo_site: Make) -> Site:
    return make_yolo_site()


def test_annotations_become_a_version_that_is_used(yolo_site: Site, work: Work) -> None:
    here = yolo_site
    project = here.project(CONFIG)
    annotated(here, project)
    make_walk(here.videos / "other.mp4", seed=2)
    open_task = here.task(project, video="/data/local-files/?d=videos/other.mp4", fps=20)
    here.queue.request_prepare(project, open_task)
    work(here)
    (before,) = here.predictions(open_task)
    assert before.result == [], "the base model has no class that is called walker"

    here.services.trainings.start(project, "a test")
    container = work(here)
    (version,) = container.registry.versions(project)
    assert (version.state, version.trigger, version.owner) == ("promoted", "a test", ""), version.reason
    assert version.classes == ("walker", "vehicle")
    assert version.metrics["incumbent"]["map50"] == 0.0
    assert version.metrics["candidate"]["map50"] > 0.3, "one of the two at least"
    assert version.metrics["against"] == "base"
    others = version.metrics["others"]
    assert (others["videos"], others["frames"], others["tracks"]) == (1, 40, 0), "the base model knows no walker"
    assert (others["changes"], others["base"]) == ([], None)
    assert 1 <= len(version.history) <= 3
    assert version.history[-1]["epoch"] == len(version.history)
    assert list(version.lineage["annotations"]) == [str(task) for task in (before.task - 1,)]
    base = container.projects.models(None).detector.sha256
    last = container.registry.last(project)
    assert last is not None
    assert last.lineage["settings"] == training_settings_digest(container.settings, base)

    # Whoever looks at the job is told the same.
    job = here.services.jobs.get(f"train-{project}")
    assert job is not None
    assert (job["kind"], job["state"], job["project"]) == ("train", "finished", project)
    outcome = {"version": "v1", "state": "promoted", "reason": version.reason, "metrics": version.metrics}
    assert job["result"] == outcome

    (after,) = here.predictions(open_task)
    assert after.model_version.endswith(".v1")
    assert here.services.prediction_service.version(project) == after.model_version
    assert {region["value"]["labels"][0] for region in after.result} & {"walker", "vehicle"}
    leftovers = here.settings.data_dir / "training" / f"project-{project}"
    assert not list((leftovers / "runs").glob("*"))
    assert list((leftovers / "replay").glob("*/*.jpg")), "the other video was replayed"

    # The same data is not trained on again; one call goes back, and the old predictions with it.
    here.services.trainings.start(project, "a test")
    work(here)
    assert len(container.registry.versions(project)) == 1
    again_job = here.services.jobs.get(f"train-{project}")
    assert again_job is not None
    assert (again_job["result"]["version"], again_job["result"]["state"]) == (None, "unchanged")
    here.services.trainings.activate(project, "base", "a test")
    work(here)
    (again,) = here.predictions(open_task)
    assert again.model_version == before.model_version
    here.services.trainings.activate(project, "v1", "a test")

    # What the second has learned is right, but the incumbent knew it better: labels are exchanged. The held-out part
    # stays what it is: the second video, wrongly annotated, is only trained on.
    annotated(here, project, "wrong", walker="vehicle", vehicle="walker")
    here.services.trainings.start(project, "a test")
    work(here)
    second, first = container.registry.versions(project)
    assert second.held_out == first.held_out
    assert second.parent_id == first.id
    assert second.start_sha256 == first.weights_sha256
    if second.state == "refused":  # some epochs of wrong labels spoil it; should they not, it is rightly promoted
        assert "Worse than" in second.reason
        assert container.registry.current(project).name == "v1"  # type: ignore[union-attr]
    assert container.artifacts.exists(second.artifact)


def test_what_is_known_elsewhere_is_not_given_up_by_itself(make_yolo_site: Make, work: Work) -> None:
    """One video whose labels are exchanged: to its own held-out part that is right, to the other video it is not."""
    more = {"train_args": '{"epochs": 4, "batch": 4}', "train_per_second": 4.0}
    here = make_yolo_site(imgsz=256, gate_frames=100, **more)
    project = here.project(label_config("person", "bus"))
    annotated(here, project, walker="bus", vehicle="person")
    make_walk(here.videos / "other.mp4", seed=2)
    other = here.task(project, video="/data/local-files/?d=videos/other.mp4", fps=20)
    here.services.trainings.start(project, "a test")
    container = work(here)
    (version,) = container.registry.versions(project)
    assert version.metrics["candidate"]["map50"] > version.metrics["incumbent"]["map50"]
    assert version.state == "refused", version.reason
    assert "Worse on other videos" in version.reason
    others = version.metrics["others"]
    assert others["worse"] >= 2, "the person and the bus"
    assert {change["task"] for change in others["changes"]} == {other}
    assert f"in task {other}, frames" in version.reason
    for clip in version.metrics["clips"].values():
        assert probe(container.artifacts.fetch(clip["artifact"], clip["sha256"])).codec == "h264"
    assert version.metrics["clips"]
    assert container.registry.current(project) is None


def test_a_proposal_waits_for_a_person(yolo_site: Site, work: Work) -> None:
    here = yolo_site
    project = here.project(CONFIG)
    annotated(here, project)
    trainings = here.services.trainings
    trainings.set_policy(project, {"mode": "propose"})
    trainings.start(project, "a test")
    container = work(here)
    (version,) = container.registry.versions(project)
    assert (version.state, "policy" in version.reason) == ("proposed", True), version.reason
    assert version.metrics["others"] is None, "all videos are annotated"
    assert container.registry.current(project) is None
    trainings.start(project, "a test")
    work(here)
    assert len(container.registry.versions(project)) == 1, "nothing new: it is still the same proposal"
    trainings.activate(project, "v1", "a test")
    assert container.registry.current(project).state == "promoted"  # type: ignore[union-attr]


def test_nothing_annotated_is_said_and_costs_no_further_try(yolo_site: Site, work: Work) -> None:
    here = yolo_site
    project = here.project(CONFIG)
    make_walk(here.videos / "walk.mp4")
    here.task(project, video="/data/local-files/?d=videos/walk.mp4", fps=20)
    here.services.trainings.start(project, "a test")
    container = work(here)
    (version,) = container.registry.versions(project)
    assert version.state == "failed"
    assert "annotated" in version.reason
    assert "annotated" in here.error()
    assert container.registry.current(project) is None


def test_motion_is_never_trained(site: Make, work: Work) -> None:
    here = site(detector="motion", **FAST)
    project = here.project(CONFIG)
    here.services.trainings.start(project, "a test")
    container = work(here)
    assert "DETECTOR=motion" in here.error()
    assert container.registry.versions(project) == []


@pytest.mark.slow
def test_frames_of_the_scene_are_what_the_regions_say() -> None:
    region: dict[str, Any] = walk_regions()[0]
    assert region["value"]["framesCount"] == FRAMES
