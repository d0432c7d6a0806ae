"""What to annotate next, chosen by a worker in this process, and shown in the Data Manager of a real Label Studio."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest

from ml_backend.embeddings.crop_embeddings import CropEmbedding
from ml_backend.embeddings.crop_selection import CropBox
from ml_backend.jobs.annotate_next import FIELD, TAB, field_texts
from ml_backend.jobs.container import Container
from ml_backend.label_studio.media import canonical_uri
from ml_backend.labeling.few_shot.pattern_store import NewExemplar, video_key
from ml_backend.tracking.track_record import TrackRecord, TrackSet
from tests.builders import label_config
from tests.jobs.conftest import Site
from tests.jobs.test_api_jobs import ended, room
from tests.review.test_region_repairs import region
from tests.server.control import Room
from tests.server.test_dashboard_review import moment

Make = Callable[..., Site]
Work = Callable[[Site], Container]
HIDDEN = {"explore": ["tasks:id"], "labeling": []}
CONFIG = label_config("person", "car")
PERSON, CAR, BUS = np.eye(16, dtype=np.float32)[:3]


@pytest.fixture
def here(site: Make) -> Site:
    return site()


def long(score: float, label: str = "person") -> dict[str, Any]:
    """A track through a video of thirty seconds."""
    track = region("r", [(1, 0.0, True), (600, 80.0, True)], label, score=score)
    return {**track, "value": {**track["value"], "framesCount": 600, "duration": 30.0}}


def predicted(here: Site, project: int, track: dict[str, Any], look: Any = None, name: str = "") -> int:
    """A task with a predicted track; a video file is not needed."""
    uri = f"/data/local-files/?d=videos/{name or track['value']['labels'][0]}-{track['score']}.mp4"
    data = {"video": uri, "fps": 20, "frames": 600, "duration": 30.0, "note": "people's own"}
    task = here.task(project, **data)
    here.client.create_prediction(task, {"result": [track], "score": track["score"], "model_version": "yolo.base"})
    if look is not None:
        address = canonical_uri(uri, here.settings.label_studio_url)
        value = {key: track["value"][key] for key in ("framesCount", "duration", "sequence")}
        record = TrackRecord(1, 0, 600, 0.5, {"person": 1.0}, value, (CropBox(9, (0, 0, 50, 50), 0.9),))
        patterns = here.services.projects.patterns
        patterns.save_tracks(uri, project, task, 0, address, TrackSet((record,), ("person",), False, 640, 360, 600))
        crop = CropEmbedding(9, (0, 0, 50, 50), look, b"a picture")
        patterns.crop_embeddings(video_key(address)).add(model(here, project), [crop])
    return task


def model(here: Site, project: int) -> str:
    embedder = here.services.projects.models(project).classifier.embedder
    assert embedder is not None
    return embedder.model_id


def chosen(here: Site, work: Work, project: int, query: str) -> tuple[Room, dict[str, Any]]:
    asking = room(here)
    path = f"/api/review/next?project={project}&{query}"
    first = asking.get(path, 202)
    assert (first["chosen_at"], first["segments"]) == (None, [])
    work(here)
    assert ended(asking, first["job"])["state"] == "finished", ended(asking, first["job"])["error"]
    found = asking.get(path)
    assert found["job"] is None
    return asking, found


def test_uncertain_and_unlike_each_other_and_what_is_annotated(here: Site, work: Work) -> None:
    project = here.project(CONFIG)
    doubtful = predicted(here, project, long(0.3), PERSON)
    predicted(here, project, long(0.35), PERSON)
    other = predicted(here, project, long(0.6, "car"), CAR)
    known = predicted(here, project, long(0.2, "car"), BUS)
    sure = predicted(here, project, long(1.0))
    annotated = predicted(here, project, long(0.1), PERSON)
    here.annotate(annotated)
    here.services.reviews.store.replace_task(project, sure, [moment(1, shown=301, kind="no_box", score=0.9)])
    patterns = here.services.projects.patterns
    teacher = CropEmbedding(0, (0, 0, 9, 9), BUS, b"")
    patterns.crop_embeddings("v").add(model(here, project), [teacher])
    exemplar = NewExemplar("r", "car", teacher.key("v", model(here, project)))
    patterns.replace_task(project, model(here, project), annotated, 1, [exemplar])
    asking, found = chosen(here, work, project, "segments=3")
    assert [item["task"] for item in found["segments"]] == [doubtful, other, sure]
    assert (found["tasks"], found["of"]) == (5, 5)
    first, third, second = found["segments"]
    assert (first["label"], first["score"], first["tracks"], first["uncertain"]) == ("person", 0.3, 1, 1)
    assert (first["likeness"], first["covers"]) == (0.0, 5), "the other parts of both videos"
    assert first["thumbnail"].startswith("data:image/jpeg;base64,")
    assert (second["kinds"], second["first"], second["start"]) == ({"no_box": 1}, 201, 10.0)
    assert (second["likeness"], second["thumbnail"], third["uncertain"]) == (None, None, 0)
    assert known not in [item["task"] for item in found["segments"]], "it looks like what was annotated"
    _, brief = chosen(here, work, project, "minutes=1&segments=9")
    assert 0 < sum(item["work_s"] for item in brief["segments"]) <= 60
    here.annotate(doubtful)
    again = asking.get(f"/api/review/next?project={project}&segments=3&fresh=true")
    assert again["segments"] == found["segments"], "what is known is told meanwhile"
    work(here)
    renewed = asking.get(f"/api/review/next?project={project}&segments=3")
    assert doubtful not in [item["task"] for item in renewed["segments"]]


def test_without_embeddings_the_scores_decide(site: Make, work: Work) -> None:
    here = site(mode="yolo")
    project = here.project(CONFIG)
    tasks = [predicted(here, project, long(score)) for score in (0.9, 0.2)]
    asking, found = chosen(here, work, project, "segments=4")
    assert [item["task"] for item in found["segments"]] == [tasks[1]] * 3 + [tasks[0]]
    # Somebody has begun: a draft.
    draft = {"result": [long(0.2)], "lead_time": 1.0}
    address = f"{here.settings.label_studio_url}/api/tasks/{tasks[1]}/drafts?project={project}"
    httpx.post(address, json=draft, headers=here.client.auth_headers(), timeout=120).raise_for_status()
    asking.get(f"/api/review/next?project={project}&segments=4&fresh=true")
    work(here)
    again = asking.get(f"/api/review/next?project={project}&segments=4")
    assert {item["task"] for item in again["segments"]} == {tasks[0]}


def shown(here: Site, tab: int) -> list[tuple[int, str]]:
    """Tasks of a tab in their order, with the field."""
    path = f"{here.settings.label_studio_url}/api/tasks"
    answer = httpx.get(path, params={"view": tab}, headers=here.client.auth_headers(), timeout=120).raise_for_status()
    return [(item["id"], item["data"].get(FIELD)) for item in answer.json()["tasks"]]


def test_the_data_manager_gets_the_order(here: Site, work: Work) -> None:
    project = here.project(CONFIG)
    second, first, last = (predicted(here, project, long(score)) for score in (0.4, 0.2, 0.9))
    asking, _ = chosen(here, work, project, "segments=4")
    before = {task: here.data(task) for task in (first, second, last)}
    updated = here.sdk.tasks.get(str(first)).updated_at
    body = {"project": project, "segments": 4}
    job = asking.post("/api/review/next", body, 202)["job"]
    work(here)
    result = ended(asking, job)["result"]
    assert result["tasks"] == 2
    spans = "0:00-0:10, 0:10-0:20, 0:20-0:30"
    order = shown(here, result["tab"])
    assert [task for task, _ in order] == [first, second]
    assert order[0][1].startswith("1: 0:")
    assert sorted(order[0][1][3:].split(", ")) == spans.split(", ")
    assert before[first] == {name: value for name, value in here.data(first).items() if name != FIELD}
    assert here.data(last) == before[last]
    assert here.sdk.tasks.get(str(first)).updated_at == updated, "it does not count as changed by people"
    columns = httpx.get(
        f"{here.settings.label_studio_url}/api/dm/columns?project={project}", headers=here.client.auth_headers()
    ).json()["columns"]
    assert FIELD in [column["id"] for column in columns], "people can sort by it in their own tabs"
    # Somebody hides a column of the tab; then another choice is made.
    (tab,) = here.sdk.views.list(project=project)
    here.sdk.views.update(str(tab.id), project=project, data={**tab.data, "hiddenColumns": HIDDEN})
    here.annotate(first)
    asking.get(f"/api/review/next?project={project}&segments=4&fresh=true")
    work(here)
    asking.post("/api/review/next", body, 202)
    work(here)
    assert [task for task, _ in shown(here, result["tab"])] == [second, last]
    assert here.data(first)[FIELD] == ""
    (again,) = here.sdk.views.list(project=project)
    assert (again.id, again.data["title"]) == (tab.id, TAB)
    assert again.data["hiddenColumns"] == HIDDEN
    assert json.dumps(again.data).count("filter:tasks") == 1


def test_places_sort_as_text() -> None:
    segments = [{"task": task, "start": 60.0 * task, "end": 60.0 * task + 9.9} for task in range(1, 13)]
    texts = field_texts([*segments, {"task": 3, "start": 0.0, "end": 10.0}])
    assert texts[3] == "03: 3:00-3:09, 0:00-0:10"
    assert sorted(texts.values()) == [texts[task] for task in range(1, 13)]
    assert field_texts([]) == {}
