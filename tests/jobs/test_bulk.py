"""Many tracks that were found by their looks, labelled, rejected or opened at once, in a real Label Studio."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest

from ml_backend.embeddings.crop_embeddings import CropEmbedding
from ml_backend.jobs.container import Container
from ml_backend.jobs.services.reviews import MAX_OPENED
from ml_backend.label_studio.media import canonical_uri
from ml_backend.labeling.few_shot.pattern_store import NewExemplar
from tests.jobs.conftest import Site
from tests.jobs.test_annotate_next import CAR, CONFIG, PERSON, long, model, predicted
from tests.jobs.test_api_jobs import room
from tests.review.test_region_repairs import region
from tests.server.control import Room

Make = Callable[..., Site]
Work = Callable[[Site], Container]


@pytest.fixture
def here(site: Make) -> Site:
    return site()


def teach(here: Site, project: int, *regions: dict[str, Any]) -> int:
    """An annotated task, whose tracks are exemplars that look like their labels."""
    uri = "/data/local-files/?d=videos/taught.mp4"
    task = here.task(project, video=uri, fps=20, frames=100, duration=5.0)
    here.client.create_annotation(task, regions, None)
    patterns, name = here.services.projects.patterns, model(here, project)
    items = []
    for number, item in enumerate(regions):
        (label,) = item["value"]["labels"]
        vector = PERSON if label == "person" else CAR
        crop = CropEmbedding(number, (0, 0, 9, 9), vector, b"a picture")
        patterns.crop_embeddings("taught").add(name, [crop])
        items.append(NewExemplar(item["id"], label, crop.key("taught", name)))
    patterns.replace_task(project, name, task, 1, items)
    return task


def objects(label: str, *names: str) -> list[dict[str, Any]]:
    return [region(name, [(1, 5.0, True), (100, 60.0, True)], label, y=9.0 * n) for n, name in enumerate(names)]


def labels(here: Site, task: int) -> list[list[str]]:
    """Of the tracks of a task's prediction."""
    (prediction,) = here.client.list_predictions(task)
    return [item["value"]["labels"] for item in prediction.result]


def search(asking: Room, here: Site, work: Work, project: int) -> dict[int, dict[str, Any]]:
    """Tracks that look like cars, by task."""
    path = f"/api/similar?project={project}&label=car&limit=10"
    asking.client.get(path)
    work(here)
    return {item["task"]: item for item in asking.client.get(path).get_json()["tracks"]}


def chosen(*items: dict[str, Any]) -> list[dict[str, int]]:
    return [{name: item[name] for name in ("task", "part", "track")} for item in items]


def reasons(answer: dict[str, Any]) -> list[str]:
    return [item["reason"] for item in answer["outcomes"]]


def test_similar_tracks_of_several_tasks(here: Site, work: Work) -> None:
    project, asking = here.project(CONFIG), room(here)
    teach(here, project, *objects("person", "p1", "p2"), *objects("car", "c1", "c2"))
    first, second = (predicted(here, project, long(score), CAR) for score in (0.5, 0.6))
    wrong = predicted(here, project, long(0.7, "car"), CAR)
    gone = predicted(here, project, long(0.8), CAR)
    found = search(asking, here, work, project)
    assert found.keys() == {first, second, wrong, gone}
    here.sdk.tasks.delete(str(gone))
    body = {"project": project, "label": "car", "by": "anna"}
    done = asking.post(
        "/api/similar", {**body, "action": "label", "tracks": chosen(found[first], found[second], found[gone])}
    )
    assert [item["done"] for item in done["outcomes"]] == [True, True, False]
    assert "deleted" in reasons(done)[2]
    assert (done["repair"]["count"], done["repair"]["by"], done["repair"]["action"]) == (2, "anna", "relabel")
    assert [labels(here, task) for task in (first, second)] == [[["car"]], [["car"]]]
    left = asking.client.get(f"/api/similar?project={project}&label=car&limit=10").get_json()["tracks"]
    assert {item["task"] for item in left} == {wrong, gone}, "what was labelled is not shown again"
    again = asking.post("/api/similar", {**body, "action": "label", "tracks": chosen(found[first])})
    assert (again["repair"], reasons(again)) == (None, ["The track is labelled car already."])
    # Not this: it loses the label.
    rejected = asking.post("/api/similar", {**body, "action": "reject", "tracks": chosen(found[wrong])})
    assert reasons(rejected) == [""]
    assert labels(here, wrong) == [[]]
    asking.post("/api/repairs/undo", {"project": project, "repair": done["repair"]["id"]})
    assert [labels(here, task) for task in (first, second)] == [[["person"]], [["person"]]]
    # What has another label only is not found again, until that is undone.
    only = asking.post("/api/similar", {**body, "action": "reject", "tracks": chosen(found[first])})
    assert only["repair"]["action"] == "reject"
    assert labels(here, first) == [["person"]]
    assert search(asking, here, work, project).keys() - {gone} == {second}
    asking.post("/api/repairs/undo", {"project": project, "repair": only["repair"]["id"]})
    assert search(asking, here, work, project).keys() - {gone} == {first, second}
    # What somebody has annotated since the search is theirs.
    here.client.create_annotation(first, objects("person", "by-hand"), None)
    late = asking.post("/api/similar", {**body, "action": "label", "tracks": chosen(found[first])})
    assert late["repair"] is None
    assert "was annotated since" in reasons(late)[0]
    problem = asking.post(
        "/api/similar",
        {**body, "action": "label", "new_label": "plane", "tracks": chosen(found[first])},
        422,
    )
    assert "'plane'" in problem["detail"]


def test_a_track_that_was_too_weak_is_added(here: Site, work: Work) -> None:
    project, asking = here.project(CONFIG), room(here)
    teach(here, project, *objects("person", "p1", "p2"), *objects("car", "c1", "c2"))
    task = predicted(here, project, long(0.5), PERSON)
    patterns = here.services.projects.patterns
    uri = here.data(task)["video"]
    stored = next(patterns.tracks_of_project(project, task_id=task))
    (record,) = stored.tracks.tracks
    value = {**record.value, "sequence": region("x", [(1, 80.0, True), (90, 80.0, False)], y=60.0)["value"]["sequence"]}
    weak = replace(record, track_id=9, value=value, crops=(replace(record.crops[0], frame=20),))
    address = canonical_uri(uri, here.settings.label_studio_url)
    patterns.save_tracks("newer", project, task, 0, address, replace(stored.tracks, dropped=(weak,)))
    patterns.crop_embeddings(stored.video).add(
        model(here, project), [CropEmbedding(20, weak.crops[0].xyxy, CAR, b"a picture")]
    )
    path = f"/api/similar?project={project}&label=car&limit=10"
    asking.get(path, 202)
    work(here)
    (dropped,) = [item for item in asking.client.get(path).get_json()["tracks"] if item["dropped"]]
    body = {"project": project, "label": "car", "tracks": chosen(dropped)}
    done = asking.post("/api/similar", {**body, "action": "label"})
    assert reasons(done) == [""]
    assert labels(here, task) == [["person"], ["car"]]
    assert reasons(asking.post("/api/similar", {**body, "action": "label"})) == ["The track is labelled car already."]
    asking.post("/api/repairs/undo", {"project": project, "repair": done["repair"]["id"]})
    assert labels(here, task) == [["person"]]
    assert asking.post("/api/similar", {**body, "action": "reject"})["repair"]["action"] == "reject"


def test_what_somebody_is_annotating_is_left_alone(here: Site, work: Work) -> None:
    project, asking = here.project(CONFIG), room(here)
    teach(here, project, *objects("person", "p1", "p2"), *objects("car", "c1", "c2"))
    task = predicted(here, project, long(0.5), CAR)
    found = search(asking, here, work, project)
    address = f"{here.settings.label_studio_url}/api/tasks/{task}/drafts?project={project}"
    draft = {"result": [long(0.5)], "lead_time": 1.0}
    httpx.post(address, json=draft, headers=here.client.auth_headers(), timeout=120).raise_for_status()
    body = {"project": project, "label": "car", "action": "label", "tracks": chosen(found[task])}
    assert "is being annotated" in reasons(asking.post("/api/similar", body))[0]
    assert labels(here, task) == [["person"]]


def of_label(asking: Room, project: int, label: str) -> list[int]:
    found = asking.get(f"/api/exemplars?project={project}&label={label}")["exemplars"]
    return [item["id"] for item in found]


def test_objects_of_exemplars(here: Site) -> None:
    project, asking = here.project(CONFIG), room(here)
    task = teach(here, project, *objects("person", "p1", "p2"), *objects("car", "c1"))
    patterns, name = here.services.projects.patterns, model(here, project)
    crop = CropEmbedding(50, (0, 0, 9, 9), np.asarray(CAR), b"a picture")
    patterns.crop_embeddings("elsewhere").add(name, [crop])
    patterns.add_imported(project, name, [NewExemplar("far", "car", crop.key("elsewhere", name), "project 3")])
    imported, own = of_label(asking, project, "car")
    persons = of_label(asking, project, "person")
    (annotation,) = here.sdk.annotations.list(id=task)
    body = {"project": project, "by": "anna"}
    done = asking.post(
        "/api/exemplars",
        {**body, "action": "label", "new_label": "car", "exemplars": [*persons, own, imported, 99_999]},
    )
    told = dict(
        zip([*persons, own, imported, 99_999], ["", "", "labelled car already", "imported", "no such"], strict=True)
    )
    for item in done["outcomes"]:
        assert told[int(item["item"])] in item["reason"]
        assert item["done"] == (not told[int(item["item"])])
    assert len(done["outcomes"]) == 5
    after = {item.id: [r["value"]["labels"] for r in item.result] for item in here.sdk.annotations.list(id=task)}
    assert after.pop(annotation.id) == [["person"], ["person"], ["car"]], "a person's own stays"
    assert list(after.values()) == [[["car"], ["car"], ["car"]]]
    # Rejected: what was labelled person is a car by now, so that nothing is to be done.
    rejected = asking.post("/api/exemplars", {**body, "action": "reject", "exemplars": [*persons, own]})
    assert [item["done"] for item in rejected["outcomes"]] == [False, False, True]
    newest = max(here.sdk.annotations.list(id=task), key=lambda item: item.id)
    assert [item["value"]["labels"] for item in newest.result] == [["car"], ["car"], []]
    for decision in (rejected, done):
        asking.post("/api/repairs/undo", {"project": project, "repair": decision["repair"]["id"]})
    assert [item.id for item in here.sdk.annotations.list(id=task)] == [annotation.id]
    everywhere = [*persons, *range(10_000, 11_998)]  # as many as the map shows
    done = asking.post("/api/exemplars", {**body, "action": "label", "new_label": "car", "exemplars": everywhere})
    assert sum(item["done"] for item in done["outcomes"]) == 2
    problem = asking.post("/api/exemplars", {**body, "action": "label", "exemplars": persons}, 422)
    assert "new_label" in problem["hint"]


def test_more_tasks_than_one_tab_shows(here: Site) -> None:
    project, asking = here.project(CONFIG), room(here)
    patterns, name = here.services.projects.patterns, model(here, project)
    crop = CropEmbedding(1, (0, 0, 9, 9), np.asarray(PERSON), b"a picture")
    patterns.crop_embeddings("taught").add(name, [crop])
    tasks = range(1, MAX_OPENED + 2)
    for task in tasks:
        patterns.replace_task(project, name, task, task, [NewExemplar("r", "person", crop.key("taught", name))])
    exemplars = [number for number, _, _ in patterns.gallery(project, name, "person", len(tasks))]
    opened = asking.post("/api/exemplars", {"project": project, "action": "open", "exemplars": exemplars})
    assert opened["tab"]
    assert reasons(opened) == [""] * MAX_OPENED + [f"More than {MAX_OPENED} tasks were chosen."]
    assert [item["item"] for item in opened["outcomes"]] == [str(number) for number in exemplars]


def test_opened_in_one_tab(here: Site) -> None:
    project, asking = here.project(CONFIG), room(here)
    task = teach(here, project, *objects("person", "p1", "p2"))
    other = predicted(here, project, long(0.5), CAR)
    predicted(here, project, long(0.6), CAR)
    body = {"project": project, "action": "open"}
    opened = asking.post("/api/exemplars", {**body, "exemplars": of_label(asking, project, "person")})
    assert opened["repair"] is None

    def shown() -> list[int]:
        address, headers = f"{here.settings.label_studio_url}/api/tasks", here.client.auth_headers()
        answer = httpx.get(address, params={"view": opened["tab"]}, headers=headers, timeout=120).raise_for_status()
        return [item["id"] for item in answer.json()["tasks"]]

    assert shown() == [task]
    track = {"task": other, "part": 0, "track": 1}
    again = asking.post("/api/similar", {**body, "label": "person", "tracks": [track]})
    assert again["tab"] == opened["tab"], "one tab, whatever is opened"
    assert shown() == [other]
