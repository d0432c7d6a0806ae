"""Labels learned from annotations, by a worker in this process against a real Label Studio, Redis and database."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
import ultralytics

from ml_backend.core.errors import LabelStudioUnavailable, MediaError
from ml_backend.jobs.container import Container
from ml_backend.jobs.learn import refresh
from ml_backend.jobs.project_models import ProjectModelStore
from ml_backend.jobs.services.patterns import Patterns
from ml_backend.video.writer import VideoWriter
from tests.builders import Gate, label_config, made_once
from tests.jobs.conftest import Site

Make = Callable[..., Site]
Work = Callable[[Site], Container]

ASSETS = Path(ultralytics.__file__).parent / "assets"
#: Photographed people and a bus: what moves through the clips; left, top, right, bottom in bus.jpg.
CUTS = {
    "woman": (48, 398, 245, 902),
    "man": (669, 392, 809, 877),
    "girl": (221, 405, 344, 857),
    "bus": (22, 231, 805, 756),
}
CONFIG = label_config("walker", "vehicle", "unused")


@made_once
def make_scene(path: Path, objects: list[tuple[str, int]], frames: int = 40, fps: int = 20) -> Path:
    """A clip through which cut-outs move one after the other, each in a row of its own.

    Args:
        objects: name of the cut-out and its top edge.
    """
    width, height, tall = 480, 360, 110
    photo = cv2.imread(str(ASSETS / "bus.jpg"))
    background = np.random.default_rng(1).integers(90, 140, (height // 8, width // 8, 3), np.uint8)
    background = np.kron(background, np.ones((8, 8, 1), np.uint8))
    cuts = []
    for name, top in objects:
        left, upper, right, lower = CUTS[name]
        cut = photo[upper:lower, left:right]
        cuts.append((cv2.resize(cut, (round(cut.shape[1] * tall / cut.shape[0]), tall)), top))
    with VideoWriter(path, width, height, fps) as writer:
        for number in range(frames):
            image = background.copy()
            for cut, top in cuts:
                x = 5 + number * (width - cut.shape[1] - 10) // frames
                if number >= 8:
                    image[top : top + tall, x : x + cut.shape[1]] = cut
            writer.write(image)
    return path


def prediction(here: Site, task: int) -> Any:
    """The only one of its kind, or the newest."""
    found = here.predictions(task)
    assert len({p.model_version.split(".")[2].split("-")[0] for p in found}) == len(found) > 0
    return max(found, key=lambda p: p.id)


def by_row(regions: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Regions by where they are: ``top`` or ``bottom``."""
    return {"top" if r["value"]["sequence"][0]["y"] < 35 else "bottom": r for r in regions}


def labelled(region: dict[str, Any], label: str) -> dict[str, Any]:
    return {**region, "value": {**region["value"], "labels": [label]}}


def patterns(here: Site) -> Patterns:
    return Patterns(Container(here.settings))


def counts(here: Site, project: int) -> dict[str, int]:
    return {label: facts["objects"] for label, facts in patterns(here).info(project)["labels"].items()}


@pytest.fixture
def two(site: Make, work: Work) -> tuple[Site, int, int, int]:
    """A project with two predicted tasks: (site, project, first task, second task)."""
    here = site()
    project = here.project(CONFIG)
    make_scene(here.videos / "first.mp4", [("woman", 20), ("bus", 200)])
    make_scene(here.videos / "second.mp4", [("bus", 20), ("woman", 200)])
    tasks = [here.task(project, video=f"/data/local-files/?d=videos/{name}.mp4") for name in ("first", "second")]
    for task in tasks:
        here.queue.request_prepare(project, task)
    work(here)
    return here, project, tasks[0], tasks[1]


def teach(here: Site, project: int, task: int, **labels: str) -> Any:
    """Submit a task's prediction with these labels, by row; tell the backend as the webhook would."""
    rows = by_row(prediction(here, task).result)
    result = [labelled(rows[row], label) for row, label in labels.items()]
    annotation = here.sdk.annotations.create(id=task, result=result)
    here.queue.request_learning(project, [task])
    return annotation


def test_a_label_of_one_video_appears_on_the_right_track_of_another(
    two: tuple[Site, int, int, int], work: Work
) -> None:
    """Whoever has the other video's task open meanwhile can submit it."""
    here, project, first, second = two
    before = prediction(here, second)
    assert before.model_version.endswith(".yolo_dinov2.base")
    assert [region["value"]["labels"] for region in before.result] == [[], []]  # the motion detector knows no names
    annotation = teach(here, project, first, top="walker", bottom="vehicle")
    work(here)
    after = prediction(here, second)  # the outdated one is gone
    assert after.model_version == here.prediction_service.version(project) != before.model_version
    rows = by_row(after.result)
    assert {row: region["value"]["labels"] for row, region in rows.items()} == {
        "top": ["vehicle"],
        "bottom": ["walker"],
    }
    meta = rows["top"]["meta"]
    assert (meta["original_class"], meta["label_source"], meta["pattern_label"]) == ("object", "patterns", "vehicle")
    nearest = meta["nearest_exemplar"]
    assert (nearest["task"], nearest["label"]) == (first, "vehicle")
    assert nearest["region"] in {region["id"] for region in annotation.result}
    assert 0.5 <= meta["pattern_score"] == meta["label_score"] <= 1
    assert 0 < meta["detector_score"] <= 1
    assert rows["top"]["score"] == min(meta["label_score"], meta["detector_score"])
    assert "vehicle" in meta["text"]
    assert here.queue.failed_jobs() == []
    # Label Studio would refuse an annotation that was begun from a prediction which is gone.
    address = f"{here.settings.label_studio_url}/api/tasks/{second}/annotations/"
    body = {"result": before.result, "parent_prediction": before.id}
    answer = httpx.post(address, json=body, headers=here.client.auth_headers())
    assert answer.status_code == 201, answer.text[:500]


def test_nothing_is_detected_or_embedded_twice_and_what_is_deleted_is_unlearned(
    two: tuple[Site, int, int, int], work: Work
) -> None:
    here, project, first, second = two
    before = prediction(here, second)
    annotation = teach(here, project, first, top="walker", bottom="vehicle")
    work(here)
    assert counts(here, project) == {"vehicle": 1, "walker": 1}
    assert here.queue.counters()["videos"] == 2
    container = work(here)
    model = patterns(here).info(project)["embedder"]
    videos = [stored.video for stored in container.projects.patterns.tracks_of_project(project)]
    looks = [container.projects.patterns.crop_embeddings(video).get(model) for video in videos]
    here.sdk.annotations.update(annotation.id, result=[labelled(r, "unused") for r in annotation.result])
    here.queue.request_learning(project, [first])
    work(here)
    assert counts(here, project) == {"unused": 2}  # re-labelling moved them
    assert [container.projects.patterns.crop_embeddings(video).get(model) for video in videos] == looks
    here.sdk.annotations.delete(annotation.id)
    here.queue.request_learning(project, [first])
    work(here)
    assert counts(here, project) == {}
    again = prediction(here, second)
    assert (again.model_version, again.result) == (before.model_version, before.result)
    assert here.queue.counters()["videos"] == 2


def test_tasks_with_annotations_keep_their_prediction(two: tuple[Site, int, int, int], work: Work) -> None:
    here, project, first, second = two
    before = {task: prediction(here, task) for task in (first, second)}
    here.annotate(second)
    teach(here, project, first, top="walker", bottom="vehicle")
    work(here)
    for task in (first, second):
        assert prediction(here, task).id == before[task].id
    # Label Studio asks when somebody opens it: nothing is made anew for what was learned since.
    body = {"id": second, "data": here.data(second), "annotations": [{}]}
    body["predictions"] = [{"model_version": before[second].model_version}]
    assert here.prediction_service.predict(project, CONFIG, [body]) == [[]]
    assert here.jobs() == {}


def test_which_annotation_counts(two: tuple[Site, int, int, int], work: Work) -> None:
    """Ground truth first, then the latest; skipped ones never."""
    here, project, first, _ = two
    teach(here, project, first, top="walker")
    work(here)
    later = teach(here, project, first, top="vehicle")
    work(here)
    assert counts(here, project)["vehicle"] == 1
    result = [labelled(region, "unused") for region in later.result]
    here.sdk.annotations.create(id=first, result=result, was_cancelled=True)
    here.queue.request_learning(project, [first])
    work(here)
    assert set(counts(here, project)) == {"", "vehicle"}
    truth = here.sdk.annotations.create(id=first, result=result, ground_truth=True)
    teach(here, project, first, top="walker")
    work(here)
    assert set(counts(here, project)) == {"", "unused"}
    here.sdk.annotations.delete(truth.id)
    here.queue.request_learning(project, [first])
    work(here)
    assert set(counts(here, project)) == {"", "walker"}


def test_what_is_background(two: tuple[Site, int, int, int], work: Work) -> None:
    """Tracks that were deleted from the prediction, but not those whose label was renamed since."""
    here, project, first, _ = two
    # As empty as an annotation of somebody who has only been here, but it was begun from a prediction.
    here.client.create_annotation(first, [], prediction(here, first).id)
    here.queue.request_learning(project, [first])
    work(here)
    assert counts(here, project) == {"": 2}
    teach(here, project, first, bottom="vehicle")
    work(here)
    assert counts(here, project) == {"": 1, "vehicle": 1}
    teach(here, project, first, top="old name", bottom="vehicle")
    work(here)
    assert counts(here, project) == {"vehicle": 1}
    assert here.queue.failed_jobs() == []


def test_annotations_from_before_are_read_once(two: tuple[Site, int, int, int], work: Work) -> None:
    """The mode is switched on in a project that has annotations already."""
    here, project, first, second = two
    service = patterns(here)
    service.switch(project, "yolo")
    work(here)
    teach(here, project, first, top="walker", bottom="vehicle")
    work(here)
    assert here.prediction_service.version(project).endswith(".yolo.base")
    assert service.info(project)["labels"] == {}
    service.switch(project, "yolo_dinov2")
    work(here)
    assert counts(here, project) == {"vehicle": 1, "walker": 1}
    present = {p.model_version: p for p in here.predictions(second)}
    newest = present[here.prediction_service.version(project)]
    assert {version.split(".")[2].split("-")[0] for version in present} == {"yolo", "yolo_dinov2"}
    assert {label for region in newest.result for label in region["value"]["labels"]} == {"vehicle", "walker"}
    assert here.queue.counters()["videos"] == 2


def test_video_that_is_gone_keeps_what_it_taught(two: tuple[Site, int, int, int], work: Work) -> None:
    here, project, first, second = two
    teach(here, project, first, top="walker")
    work(here)
    (here.videos / "first.mp4").unlink()
    teach(here, project, first, top="vehicle")
    teach(here, project, second, bottom="unused")
    work(here)
    known = counts(here, project)
    assert (known["walker"], known["unused"]) == (1, 1)
    assert here.queue.storage.pending("learn", project) == {}


def test_label_studio_away_loses_nothing(two: tuple[Site, int, int, int], work: Work) -> None:
    here, project, first, _ = two
    teach(here, project, first, top="walker", bottom="vehicle")
    gate = Gate(here.settings.label_studio_url.replace("localhost", "127.0.0.1"))
    try:
        gate.shut()
        behind = dataclasses.replace(here, settings=here.settings.model_copy(update={"label_studio_url": gate.url}))
        with pytest.raises(LabelStudioUnavailable):
            Container(behind.settings).client.get_project(project)
        work(behind)
        assert set(here.queue.storage.pending("learn", project)) == {first}
        assert counts(here, project) == {}
        gate.open()
        behind.hurry()
        work(behind)
    finally:
        gate.close()
    assert counts(here, project) == {"vehicle": 1, "walker": 1}
    assert here.queue.storage.pending("learn", project) == {}


def test_task_and_project_that_are_gone(two: tuple[Site, int, int, int], work: Work) -> None:
    here, project, first, second = two
    teach(here, project, first, top="walker")
    teach(here, project, second, bottom="walker")
    work(here)
    here.sdk.tasks.delete(first)
    here.queue.request_learning(project, [first])
    work(here)
    assert counts(here, project)["walker"] == 1
    here.sdk.projects.delete(project)
    here.queue.request_learning(project, None)
    work(here)
    assert counts(here, project) == {}
    assert here.queue.failed_jobs() == []


def test_label_that_left_the_config(two: tuple[Site, int, int, int], work: Work) -> None:
    """Its exemplars wait; meanwhile nothing gets a label that nobody could choose."""
    here, project, first, second = two
    teach(here, project, first, top="walker", bottom="vehicle")
    work(here)
    here.sdk.projects.update(project, label_config=label_config("walker", "other"))
    task = here.task(project, video=here.data(second)["video"])
    here.queue.request_prepare(project, task)
    work(here)
    rows = by_row(prediction(here, task).result)
    assert {row: region["value"]["labels"] for row, region in rows.items()} == {"top": [], "bottom": ["walker"]}
    assert counts(here, project) == {"vehicle": 1, "walker": 1}


def test_what_teaches_nothing(two: tuple[Site, int, int, int], work: Work) -> None:
    here, project, first, _ = two
    # Neither labels nor background: an empty annotation may only say that somebody has been here.
    here.annotate(first)
    here.queue.request_learning(project, [first])
    work(here)
    assert counts(here, project) == {}
    region = prediction(here, first).result[0]
    box = {"enabled": True, "x": 10, "y": 10, "width": 20, "height": 20, "rotation": 0, "time": 0}
    sequences: dict[str, list[dict[str, Any]]] = {
        "no keyframes": [],
        "outside the frame": [{**box, "frame": 1, "x": 150}],
        "no area": [{**box, "frame": 5, "width": 0, "height": 0}],
        "after the end": [{**box, "frame": 9000}],
    }
    values = {name: {**region["value"], "labels": ["walker"], "sequence": keys} for name, keys in sequences.items()}
    here.sdk.annotations.create(id=first, result=[{**region, "id": name, "value": v} for name, v in values.items()])
    here.queue.request_learning(project, [first])
    work(here)
    assert set(counts(here, project)) <= {""}
    assert here.queue.failed_jobs() == []


def drawn(region_id: str, label: str, *spans: tuple[str, int, range]) -> dict[str, Any]:
    """A region drawn by hand around cut-outs of :func:`make_scene`: name, top edge and frames of each."""
    sequence = []
    for name, top, frames in spans:
        left, upper, right, lower = CUTS[name]
        wide = round((right - left) * 110 / (lower - upper))
        for number in frames:
            x = 5 + number * (480 - wide - 10) // 40
            box = {"x": x / 4.8, "y": top / 3.6, "width": wide / 4.8, "height": 110 / 3.6, "rotation": 0}
            sequence.append({"frame": number + 1, "enabled": True, "time": number / 20, **box})
    value = {"framesCount": 40, "duration": 2.0, "sequence": sequence, "labels": [label]}
    return {"id": region_id, "from_name": "box", "to_name": "video", "type": "videorectangle", "value": value}


def test_a_track_that_jumps_to_another_object_teaches_its_longer_part(site: Make, work: Work) -> None:
    here = site()
    project = here.project(CONFIG)
    scene = [("woman", 5), ("man", 125), ("girl", 245)]
    make_scene(here.videos / "jumps.mp4", scene)
    make_scene(here.videos / "clean.mp4", [("man", 5), ("bus", 125), ("woman", 245)])
    jumps, clean = (here.task(project, video=f"/data/local-files/?d=videos/{name}.mp4") for name in ("jumps", "clean"))
    for task in (jumps, clean):
        here.queue.request_prepare(project, task)
    work(here)
    whole = range(8, 40)
    others = [
        drawn(f"c{n}", "walker", (name, top, whole)) for n, (name, top) in enumerate([("man", 5), ("woman", 245)])
    ]
    here.sdk.annotations.create(id=clean, result=[*others, drawn("c9", "vehicle", ("bus", 125, whole))])
    here.queue.request_learning(project, [clean])
    work(here)
    assert patterns(here).info(project)["jumps"] == []
    joined = drawn("joined", "walker", ("woman", 5, range(8, 28)), ("man", 125, range(28, 40)))
    result = [joined, drawn("girl", "unused", ("girl", 245, whole))]
    annotation = here.sdk.annotations.create(id=jumps, result=result)
    here.queue.request_learning(project, [jumps])
    container = work(here)
    info = patterns(here).info(project)
    (found,) = info["jumps"]
    moment = found.pop("frame")
    assert found == {"task": jumps, "region": "joined", "label": "walker", "untaught": "second"}
    assert abs(moment - 29) <= 2
    _, origins = container.projects.patterns.exemplars(project, info["embedder"])
    taught = {origin.frame for origin in origins.values() if origin.region_id == "joined"}
    assert taught
    assert max(taught) < 28
    assert len([origin for origin in origins.values() if origin.region_id == "girl"]) == 4
    digest = container.projects.patterns.digest(project, info["embedder"])
    here.queue.request_learning(project, [jumps])
    work(here)
    assert container.projects.patterns.digest(project, info["embedder"]) == digest
    here.sdk.annotations.update(annotation.id, result=result[1:])
    here.queue.request_learning(project, [jumps])
    work(here)
    assert patterns(here).info(project)["jumps"] == []


def test_more_like_this_is_found_and_a_bank_serves_another_project(
    two: tuple[Site, int, int, int], work: Work, tmp_path: Path
) -> None:
    here, project, first, second = two
    teach(here, project, first, top="walker", bottom="vehicle")
    work(here)
    service = patterns(here)
    found, skipped = service.similar(project, "vehicle", limit=10)
    assert skipped == []
    assert {item.task_id for item in found} == {second}  # the annotated task is left out
    rows = by_row(prediction(here, second).result)
    best = found[0]
    assert best.score > found[1].score
    assert best.xyxy[1] < 100  # the bus drives in the upper row
    assert rows["top"]["value"]["labels"] == ["vehicle"]
    assert best.thumbnail.startswith(b"\xff\xd8")

    assert service.export(project, tmp_path / "bank") == 8
    other = here.project(CONFIG)
    task = here.task(other, video=here.data(second)["video"])
    assert service.import_file(other, tmp_path / "bank") == 8
    here.queue.request_prepare(other, task)
    work(here)
    newest = prediction(here, task)
    assert {label for region in newest.result for label in region["value"]["labels"]} == {"vehicle", "walker"}
    assert newest.result[0]["meta"]["nearest_exemplar"]["origin"]
    service.remove_imported(other)
    assert ProjectModelStore.models(service.projects, other).version.endswith(".yolo_dinov2.base")

    (here.videos / "second.mp4").unlink()
    assert patterns(here).similar(project, "vehicle", limit=10)[0] == found  # nothing needs to be looked at again


def test_thousand_events_make_two_jobs_at_most(two: tuple[Site, int, int, int], work: Work) -> None:
    here, project, first, second = two
    teach(here, project, first, top="walker", bottom="vehicle")
    for number in range(1000):
        here.queue.request_learning(project, [(first, second)[number % 2]])
    assert sum(name.startswith("learn-") for name in here.jobs()) == 1
    work(here)
    # Both tasks once, and the first reading of all annotations, which found the first again.
    assert here.queue.counters()["learned"] <= 3


def test_media_error_is_no_failure_of_the_others(two: tuple[Site, int, int, int], work: Work) -> None:
    here, project, first, _ = two
    broken = here.task(project, video="/data/local-files/?d=videos/missing.mp4", fps=20)
    region = prediction(here, first).result[0]
    here.sdk.annotations.create(id=broken, result=[labelled(region, "walker")])
    teach(here, project, first, top="walker", bottom="vehicle")
    here.queue.request_learning(project, [broken])
    container = work(here)
    with pytest.raises(MediaError), container.media.open("/data/local-files/?d=videos/missing.mp4", broken, project):
        pass
    assert counts(here, project) == {"vehicle": 1, "walker": 1}


def test_another_embedder_looks_at_all_annotations_anew(
    two: tuple[Site, int, int, int], work: Work, tmp_path: Path
) -> None:
    """A bank of one model is of no use to another; what people annotated is."""
    from tests.model_builders import make_tiny_dinov2

    here, project, first, second = two
    teach(here, project, first, top="walker", bottom="vehicle")
    work(here)
    old = patterns(here).info(project)
    folder = make_tiny_dinov2(tmp_path / "dinov2")
    changed = here.settings.model_copy(update={"dinov2_model": str(folder)})
    there = dataclasses.replace(here, settings=changed)
    new = patterns(there).info(project)
    assert new["embedder"] != old["embedder"]
    assert new["labels"] == {}
    assert new["model_version"].endswith(".yolo_dinov2.base")
    there.queue.request_refresh(project)
    work(there)
    assert counts(there, project) == {"vehicle": 1, "walker": 1}
    assert prediction(there, second).model_version == there.prediction_service.version(project)
    assert counts(here, project) == {"vehicle": 1, "walker": 1}  # the first model's are there still
    assert here.queue.counters()["videos"] == 2


def test_names_give_labels_without_any_example(two: tuple[Site, int, int, int], work: Work, tmp_path: Path) -> None:
    """CLIP of random weights knows nothing, but every track is asked about, and says what was thought of it."""
    from tests.model_builders import make_tiny_clip

    here, project, _, second = two
    clip = make_tiny_clip(tmp_path / "clip")
    there = dataclasses.replace(here, settings=here.settings.model_copy(update={"clip_model": str(clip)}))
    patterns(there).switch(project, "yolo_clip")
    work(there)
    found = prediction(there, second)
    assert found.model_version.split(".")[2].startswith("yolo_clip-")
    for region in found.result:
        assert region["meta"]["label_source"] in ("text", "detector")
        assert region["meta"]["text_label"] in ("walker", "vehicle", "unused")
        assert 0 <= region["meta"]["text_score"] <= 1
    assert here.queue.counters()["videos"] == 2


def test_the_most_uncertain_tasks_are_renewed_first(site: Make, work: Work) -> None:
    here = site()
    project = here.project(CONFIG)
    tasks = [here.task(project, video=here.clip(f"{n}.mp4"), fps=20) for n in range(4)]
    container = work(here)
    for task, score in zip(tasks, (0.9, 0.2, 0.5), strict=False):
        container.storage.note_score(project, task, score)
    container.storage.note_pending("refresh", project)
    refresh.__wrapped__(container, project)
    queue = container.queue.queues["refresh"]
    asked = [container.queue.fetch(name).args[2] for name in queue.get_job_ids()]  # type: ignore[union-attr]
    assert asked == [tasks[1], tasks[2], tasks[0], tasks[3]], "what has no prediction is being predicted anyway"
