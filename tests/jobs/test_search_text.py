"""Objects found by text in the worker's jobs: in predictions, and for a phrase on a few frames."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from ml_backend.core.types import FloatArray
from ml_backend.embeddings.hub import read_text_detector
from ml_backend.inference import open_vocabulary
from ml_backend.jobs import search_text
from ml_backend.jobs.api_queue import text_search_name
from ml_backend.jobs.container import Container
from ml_backend.jobs.job_context import JobContext
from ml_backend.jobs.services.label_prompts import add_prompts
from ml_backend.label_studio.label_config import config_digest, label_prompts, parse_label_config
from ml_backend.server.app import create_app
from ml_backend.video.reader import read_at
from tests.builders import label_config, make_clip
from tests.inference.test_open_vocabulary import Finder
from tests.jobs.conftest import Site
from tests.server.control import Room

Make = Callable[..., Site]
Work = Callable[[Site], Container]
SIZE = (320, 240)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder that is one of a text detector, whose network is never loaded."""
    folder = tmp_path / "owlv2"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "owlv2"}))
    save_file({"weight": np.zeros(1, np.float32)}, folder / "model.safetensors")
    return folder


def load(monkeypatch: pytest.MonkeyPatch, boxes: Callable[[int], FloatArray], step: int) -> None:
    """Let a detector that knows the boxes be the one that is loaded."""

    @contextmanager
    def loaded(*_: Any) -> Iterator[Finder]:
        yield Finder(boxes, step, SIZE)

    for module in (open_vocabulary, search_text):
        monkeypatch.setattr(module, "use_text_detector", loaded)


def block(frame: int) -> FloatArray:
    """The block of the clip, see :func:`tests.builders.make_clip`."""
    left = 10 + (frame - 10) * (SIZE[0] - 70) // 30
    return np.array([[left, 80, left + 40, 160]] if frame >= 10 else np.zeros((0, 4)), np.float32)


def test_a_label_is_found_by_its_description(
    site: Make, work: Work, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(monkeypatch, block, step=10)
    here = site(open_vocabulary_model=str(model), detector="open_vocabulary", mode="yolo")
    config = label_config("person", "block")
    project = here.project(config)
    task = here.task(project, video=here.clip())
    here.predict(project, task, config=config)
    work(here)
    (first,) = here.predictions(task)
    assert ["block"] in [region["value"]["labels"] for region in first.result if "labels" in region["value"]]
    assert "~owlv2-" in first.model_version
    turned = label_config("block", "person")
    here.client.set_label_config(project, turned)
    with monkeypatch.context() as patch:
        patch.setattr(open_vocabulary, "use_text_detector", None)  # the tracks are those of before
        here.predict(project, task, config=turned)
        work(here)
    (again,) = here.predictions(task)
    assert again.model_version != first.model_version
    assert [region["value"] for region in again.result] == [region["value"] for region in first.result]
    described = config.replace('value="block"', 'value="block" prompt="bright block"')
    here.client.set_label_config(project, described)
    here.predict(project, task, config=described)
    work(here)
    (second,) = here.predictions(task)
    assert second.model_version != first.model_version


def test_without_the_model_predictions_go_on_and_say_so(site: Make, work: Work) -> None:
    here = site(detector="open_vocabulary", mode="yolo")
    project = here.project()
    task = here.task(project, video=here.clip())
    here.predict(project, task)
    work(here)
    (prediction,) = here.predictions(task)
    assert prediction.result
    assert "~" not in prediction.model_version
    status = Room(create_app(here.settings)).get(f"/api/status?project={project}")
    assert status["models"]["text_detector"] is None
    assert any("OPEN_VOCABULARY_MODEL" in note for note in status["models"]["notes"])


def test_a_phrase_on_some_frames(site: Make, work: Work, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(monkeypatch, lambda _: np.array([[32, 24, 96, 120]], np.float32), step=1)
    here = site(open_vocabulary_model=str(model))
    project = here.project()
    tasks = [here.task(project, video=here.clip()), here.task(project, video="/data/local-files/?d=videos/gone.mp4")]
    room = Room(create_app(here.settings))
    query = f"/api/text_search?project={project}&phrase=bright%20block&frames=5&tasks={tasks[0]},{tasks[1]}"
    assert room.get(query, status=202)["job"]["kind"] == "search_text"
    work(here)
    found = room.get(query)
    assert found["job"] is None
    assert [item["task"] for item in found["frames"]] == [tasks[0]] * 2
    assert [item["frame"] for item in found["frames"]] == [10, 30]
    for item in found["frames"]:
        assert item["picture"].startswith("data:image/jpeg;base64,")
        (box,) = item["boxes"]
        assert {name: round(value, 1) for name, value in box.items()} == {
            "x": 10.0, "y": 10.0, "width": 20.0, "height": 40.0, "score": 0.6,
        }  # fmt: skip
    (skipped,) = found["skipped"]
    assert skipped.startswith(f"Task {tasks[1]}: ")
    assert found["label"] == '<Label value="bright block" prompt="bright block"/>'
    room.get(f"/api/text_search?project={project}&phrase=x&tasks=a", status=400)


def test_what_can_be_decoded_is_searched(
    container: Container, model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    clip = make_clip(tmp_path / "clip.mp4")
    load(monkeypatch, lambda _: np.zeros((0, 4), np.float32), step=1)
    monkeypatch.setattr(search_text, "resolve_text_detector", lambda *_, **__: read_text_detector(model))
    monkeypatch.setattr(JobContext, "video", lambda *_: nullcontext((clip, "clip.mp4")))

    def frames(tasks: list[int], count: int) -> list[tuple[int, int]]:
        search_text.search_text(7, "vest", tasks, count)
        name = text_search_name(7, "vest", tasks, count)
        published = container.queue.published(name)
        assert published
        assert 0 < container.queue.connection.ttl(f"video:found:{name}") <= search_text.KEEP_S
        return [(row["task"], row["frame"]) for row in published[1]["frames"]]

    assert frames([1, 2], 3) == [(1, 20), (2, 10), (2, 30)]
    assert frames([1, 2], 1) == [(1, 20)]
    monkeypatch.setattr(search_text, "read_at", lambda *request: islice(read_at(*request), len(request[2]) - 1))
    assert frames([1], 4) == [(1, 5), (1, 15), (1, 25)], "the last one is damaged"


def test_a_phrase_without_the_model(site: Make, work: Work) -> None:
    here = site()
    project = here.project()
    here.task(project, video=here.clip())
    room = Room(create_app(here.settings))
    query = f"/api/text_search?project={project}&phrase=vest"
    room.get(query, status=202)
    work(here)
    job = room.get(query, status=202)["job"]
    assert job["state"] == "failed"
    assert "set OPEN_VOCABULARY_MODEL" in job["error"]


def test_a_phrase_becomes_the_description_of_a_label(site: Make) -> None:
    here = site()
    project = here.project()
    room = Room(create_app(here.settings))

    def config() -> str:
        return here.client.get_project(project).label_config

    first = config()
    body = {
        "project": project,
        "label": "vest",
        "phrase": "yellow vest | bright jacket",
        "config": config_digest(first),
    }
    told = {"project": project, "label": "vest", "prompts": ["yellow vest", "bright jacket"]}
    assert room.post("/api/prompts", body) == {**told, "changed": True}
    second = config()
    assert second == first.replace("</Labels>", '<Label value="vest" prompt="yellow vest|bright jacket"/></Labels>')
    problem = room.post("/api/prompts", body, 409)
    assert "changed meanwhile" in problem["detail"]
    assert room.post("/api/prompts", {**body, "config": config_digest(second)}) == {**told, "changed": False}
    spaced = {"project": project, "label": " vest ", "phrase": "bright jacket"}
    assert room.post("/api/prompts", spaced) == {**told, "changed": False}
    assert "not blank" in room.post("/api/prompts", {**spaced, "label": " "}, 422)["hint"]
    form = {"project": str(project), "label": "thing", "phrase": "box"}
    for words in ("“thing” is described by: box", "“thing” already has this description."):
        said = room.client.post("/ui/do/add_prompt", data=form, headers={"HX-Request": "true"}).get_data(as_text=True)
        assert words in said
    assert config() == second.replace('value="thing"', 'value="thing" prompt="box"')
    room.post("/api/prompts", {"project": project, "label": "vest", "phrase": "bell \x07"}, 422)
    actions = room.get(f"/api/audit?project={project}")["actions"]
    assert {(item["action"], item["project"]) for item in actions} == {("add_prompt", project)}
    assert "label thing" in actions[0]["detail"]


def test_people_who_describe_labels_at_once_keep_what_each_wrote(site: Make) -> None:
    here = site()
    project = here.project()
    phrases = ["yellow vest", "bright jacket", "safety vest", "orange vest"]
    with ThreadPoolExecutor(len(phrases)) as people:
        list(people.map(lambda phrase: add_prompts(here.services, project, "vest", [phrase]), phrases))
    labels = parse_label_config(here.client.get_project(project).label_config).video_controls[0].labels
    (label,) = (item for item in labels if item.value == "vest")
    assert sorted(label_prompts(label)) == sorted(phrases)
