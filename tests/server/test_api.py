"""The control room's API beside a web server that answers as Label Studio; real Redis, real SQLite."""

from __future__ import annotations

import html
import io
import json
import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from jsonschema import Draft202012Validator
from redis import Redis
from rq import Worker

from ml_backend.cli.dev_stack.processes import RedisServer
from ml_backend.core.settings import Settings
from ml_backend.datasets.formats import MASK_FORMATS
from ml_backend.detectors.loading import yolo_detector
from ml_backend.detectors.weights import resolve_detector
from ml_backend.detectors.yolo import YoloDetector
from ml_backend.embeddings.crop_embeddings import CropEmbedding
from ml_backend.jobs.worker_status import WorkerStatus
from ml_backend.labeling.few_shot.identity_jumps import IdentityJump
from ml_backend.labeling.few_shot.pattern_store import NewExemplar
from ml_backend.labeling.model_version import version_settings
from ml_backend.server.api import handlers
from ml_backend.server.api.requests import ExportFormat
from ml_backend.server.app import create_app
from tests.builders import Outside, make_tiny_yolo, wait_for
from tests.server.control import Room, annotated, promoted, proposed, refused


def states(room: Room) -> dict[str, str]:
    return {item["id"]: item["state"] for item in room.services.jobs.all()}


# -- overview


def test_status(room: Room) -> None:
    found = room.get("/api/status")
    assert found["redis"] == {"up": True, "error": ""}
    assert found["database"] == {"up": True, "error": ""}
    assert (found["models"]["detector"], found["models"]["engine"]) == ("motion", "opencv")
    assert found["queues"]["control"] == {"queued": 0, "started": 0, "scheduled": 0, "failed": 0}
    assert found["workers"] == []
    assert found["versions"]["python"]


@pytest.mark.parametrize(("needed", "told"), [(1, False), (1 << 60, True)])
def test_status_tells_of_a_full_disk(room: Room, monkeypatch: pytest.MonkeyPatch, needed: int, told: bool) -> None:
    monkeypatch.setattr(handlers, "SPARE_BYTES", needed)
    (disk,) = room.get("/api/status")["disks"]
    assert (disk["process"], disk["needed_bytes"], bool(disk["error"])) == ("web", needed, told)
    assert disk["free_bytes"] > 1
    page = room.client.get("/ui/part/system", headers={"Accept": "text/html", "Sec-Fetch-Site": "same-origin"})
    assert page.status_code == 200
    assert ("the disk of DATA_DIR has" in page.text) is told


def test_status_tells_what_runs_the_detector(
    make_room: Callable[..., Room], settings: Callable[..., Settings], redis_url: str, tmp_path: Path
) -> None:
    tiny = make_tiny_yolo(tmp_path / "tiny.pt", {0: "person"})
    values = {"detector": "yolo", "yolo_weights": str(tiny), "device": "cpu", "engine": "torch", "precision": "int8"}
    room = make_room(**values)
    models = room.get("/api/status")["models"]
    assert (models["engine"], models["precision"]) == ("not loaded", None)
    here = settings(**values)
    with Redis.from_url(redis_url) as connection, yolo_detector(resolve_detector(here), here) as detector:
        assert isinstance(detector, YoloDetector)
        Worker(["control"], connection=connection, name="one").register_birth()
        WorkerStatus(room.services.queue).tick("one", 60)
        handlers.system_state.cache_clear()
        models = room.get("/api/status")["models"]
        text = room.client.get("/", headers={"Accept": "text/html", "Sec-Fetch-Site": "none"}).get_data(as_text=True)
    assert (models["engine"], models["precision"]) == ("torch", "fp32")
    assert "int8 needs OpenVINO." in models["notes"]
    assert "torch fp32" in text
    assert "int8 needs OpenVINO." in text


def test_status_names_workers_with_other_settings(
    room: Room, settings: Callable[..., Settings], redis_url: str
) -> None:
    other = version_settings(settings(detector="motion", stride=1))
    with Redis.from_url(redis_url) as connection:
        Worker(["predict"], connection=connection, name="one").register_birth()
        for name in ("one", "gone"):  # of which the second has ended since
            WorkerStatus(room.services.queue, other).tick(name, 60)
        handlers.system_state.cache_clear()
        notes = room.get("/api/status")["models"]["notes"]
        text = room.client.get("/", headers={"Accept": "text/html", "Sec-Fetch-Site": "none"}).get_data(as_text=True)
    (told,) = [note for note in notes if "instead of" in note]
    assert told.startswith("Worker one runs with STRIDE 1 instead of 3: ")
    assert told in text


def test_status_of_a_project_names_its_models(room: Room) -> None:
    room.post("/api/switch_model", {"project": 7, "mode": "yolo"})
    assert room.get("/api/status?project=7")["models"]["mode"] == "yolo"
    assert room.get("/api/status")["models"]["mode"] == "yolo_dinov2"


def test_status_without_redis(settings: Callable[..., Settings], tmp_path: Path) -> None:
    room = Room(create_app(settings(redis_url=f"unix://{tmp_path}/none.sock", detector="motion")))
    found = room.get("/api/status")
    assert found["redis"]["up"] is False
    assert "Start Redis" in found["redis"]["error"] or "Redis" in found["redis"]["error"]
    assert found["database"]["up"] is True
    problem = room.get("/api/jobs", 503)
    assert problem["hint"]


def test_status_with_wrong_weights_says_so(settings: Callable[..., Settings], redis_url: str) -> None:
    room = Room(create_app(settings(redis_url=redis_url, yolo_weights="/no/such.pt")))
    models = room.get("/api/status")["models"]
    assert models["detector"] is None
    assert "/no/such.pt" in models["notes"][0]


def test_projects_without_label_studio(alone: Room) -> None:
    problem = alone.get("/api/projects", 502)
    assert "token" in problem["detail"]


def test_memory(room: Room) -> None:
    assert room.get("/api/memory_status") == {"workers": {}}
    for body in ({}, {"json": {}}, {"data": b"", "content_type": "application/json"}):
        assert room.ask("POST", "/api/optimize_memory", 202, **body) == {"requested": True, "workers": []}
    room.post("/api/optimize_memory", {"project": 7}, 400)
    room.ask("POST", "/api/optimize_memory", 415, data="{}", content_type="text/plain")


# -- models


def test_switching_modes_and_versions(auto: Room, tmp_path: Path) -> None:
    for content in (b"PK first", b"PK second"):
        promoted(auto.services, tmp_path, content)
    assert (
        auto.post("/api/switch_model", {"project": 7, "version": "v3"}, 422)["hint"] == "Choose one of v2, v1 or base."
    )
    found = auto.post("/api/switch_model", {"project": 7, "mode": "yolo", "version": "v1"})
    assert (found["mode"], found["version"], found["changed"]) == ("yolo", "v1", True)
    again = auto.post("/api/switch_model", {"project": 7, "mode": "yolo", "version": "v1"})
    assert again == found | {"changed": False}
    back = auto.post("/api/switch_model", {"project": 7, "mode": "default", "version": "base"})
    assert (back["mode"], back["version"]) == ("yolo_dinov2", "base")


def test_a_version_that_is_not_there(auto: Room) -> None:
    for path in ("/api/switch_model", "/api/load_custom_model"):
        problem = auto.post(path, {"project": 7, "version": "v9"}, 422)
        assert "no version 'v9'" in problem["detail"]
        assert "base" in problem["hint"]


@pytest.mark.parametrize("name", ["../evil.pt", "/etc/passwd", "yolo11n.pt", "", "V1", "v1\n", "v"])
def test_no_file_can_be_loaded(auto: Room, name: str) -> None:
    problem = auto.post("/api/load_custom_model", {"project": 7, "version": name}, 400)
    assert problem["errors"][0]["field"] == "version"


def test_loading_a_custom_model(auto: Room, tmp_path: Path) -> None:
    promoted(auto.services, tmp_path, b"PK first")
    auto.post("/api/switch_model", {"project": 7, "version": "base"})
    found = auto.post("/api/load_custom_model", {"project": 7, "version": "v1"}, 202)
    assert found["model_version"].endswith(".v1")
    assert (found["job"]["kind"], found["job"]["state"]) == ("init_models", "queued")


def test_rolling_back_names_what_is_left(auto: Room, tmp_path: Path) -> None:
    for content in (b"PK first", b"PK second"):
        promoted(auto.services, tmp_path, content)
    known = auto.get("/api/versions?project=7")
    assert known["current"] == "v2"
    assert known["before"] in ("v1", "base")
    found = auto.post("/api/versions/rollback", {"project": 7, "instead_of": "v2"})
    assert (found["version"], found["changed"]) == (known["before"], True)
    problem = auto.post("/api/versions/rollback", {"project": 7, "instead_of": "v2"}, 409)
    assert f"{known['before']} is in use" in problem["detail"]


def test_a_proposed_version_is_accepted(auto: Room, tmp_path: Path) -> None:
    proposed(auto.services, tmp_path)
    known = auto.get("/api/versions?project=7")
    assert (known["current"], known["proposed"]) == ("base", "v1")
    auto.post("/api/switch_model", {"project": 7, "version": "v1"})
    known = auto.get("/api/versions?project=7")
    assert (known["current"], known["proposed"], known["versions"][0]["state"]) == ("v1", None, "promoted")
    assert known["versions"][0]["reason"].endswith("Accepted by control room.")


def test_a_proposed_version_is_declined_once(auto: Room, tmp_path: Path) -> None:
    proposed(auto.services, tmp_path)
    body = {"project": 7, "version": "v1"}
    assert auto.post("/api/versions/decline", body) == {"declined": "v1", "current": "base"}
    known = auto.get("/api/versions?project=7")
    assert (known["proposed"], known["versions"][0]["state"]) == (None, "refused")
    assert "not proposed" in auto.post("/api/versions/decline", body, 409)["detail"]
    assert "no version 'v9'" in auto.post("/api/versions/decline", body | {"version": "v9"}, 422)["detail"]
    auto.post("/api/versions/decline", body | {"version": "base"}, 400)


def test_clips_of_a_version(auto: Room, tmp_path: Path) -> None:
    proposed(auto.services, tmp_path)
    answer = auto.client.get("/api/versions/v1/clips/0?project=7")
    auto.check("GET", "/api/versions/v1/clips/0", answer)
    assert (answer.data, answer.content_type) == (b"a clip of v1", "video/mp4")
    assert "sandbox" in answer.headers["Content-Security-Policy"]
    part = auto.client.get("/api/versions/v1/clips/0?project=7", headers={"Range": "bytes=0-5"})
    assert (part.status_code, part.data) == (206, b"a clip")
    auto.get("/api/versions/v1/clips/1?project=7", 404)
    auto.get("/api/versions/v2/clips/0?project=7", 422)
    auto.get("/api/versions/v1/clips/0?project=8", 422)
    auto.get("/api/versions/v1/clips/0", 400)
    for path in ("/api/versions/v1/clips/..%2f0?project=7", "/api/versions/..%2fv1/clips/0?project=7"):
        assert auto.client.get(path).status_code == 404
    auto.services.artifacts.remove("projects/7/v1-clip-0.mp4")
    auto.get("/api/versions/v1/clips/0?project=7", 404)


def test_without_a_trained_version_there_is_nothing_to_roll_back_to(auto: Room) -> None:
    problem = auto.post("/api/versions/rollback", {"project": 7, "instead_of": "base"}, 409)
    assert "nothing to roll back to" in problem["detail"]


def test_a_whole_number_may_be_written_with_a_point(auto: Room) -> None:
    """To JSON Schema, 7.0 is an integer."""
    job = auto.ask("POST", "/api/init_models", 202, data='{"project": 7.0}', content_type="application/json")["job"]
    assert job["project"] == 7


# -- jobs


@pytest.mark.parametrize(
    ("path", "body", "kind"),
    [
        ("/api/init_models", {"project": 7}, "init_models"),
        ("/api/learn_patterns", {"project": 7}, "learn_patterns"),
        ("/api/auto_label", {"project": 7}, "auto_label"),
        ("/api/auto_label", {"project": 7, "tasks": [3, 1, 1]}, "auto_label"),
        ("/api/train_custom_model", {"project": 7}, "train"),
    ],
)
def test_the_same_request_is_the_same_job(auto: Room, path: str, body: dict[str, Any], kind: str) -> None:
    first = auto.post(path, body, 202)["job"]
    assert (first["kind"], first["project"], first["state"]) == (kind, 7, "queued")
    assert auto.post(path, body, 202)["job"] == first
    assert auto.get(f"/api/jobs/{first['id']}") == first
    assert [item["id"] for item in auto.get("/api/jobs?project=7")["jobs"]] == [first["id"]]
    assert auto.get("/api/jobs?project=8")["jobs"] == []


def test_another_request_is_another_job(room: Room) -> None:
    ids = {
        room.post("/api/auto_label", body, 202)["job"]["id"]
        for body in ({"project": 7}, {"project": 8}, {"project": 7, "tasks": [1]}, {"project": 7, "tasks": [2]})
    }
    assert len(ids) == 4


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/init_models", {}),
        ("/api/learn_patterns", {}),
        ("/api/auto_label", {}),
        ("/api/train_custom_model", {}),
        ("/api/switch_model", {"mode": "yolo"}),
        ("/api/load_custom_model", {"version": "v1"}),
        ("/api/create_annotated_video", {"task": 1}),
        ("/api/create_custom_model_video", {"task": 1}),
        ("/api/export", {"format": "coco"}),
    ],
)
def test_a_project_that_does_not_exist(auto: Room, path: str, body: dict[str, Any]) -> None:
    problem = auto.post(path, {"project": 77, **body}, 404)
    assert problem["detail"] == "Project 77 was not found."
    assert problem["hint"] == "Check the number in its address."
    assert not states(auto)


def test_what_is_counted_and_found_in_a_project_that_does_not_exist(room: Room) -> None:
    for path in ("/api/stats?project=77", "/api/similar?project=77&label=x"):
        assert room.get(path, 404)["detail"] == "Project 77 was not found."
    assert not states(room)


def test_a_task_that_the_project_does_not_have(room: Room) -> None:
    for path, body in (
        ("/api/create_annotated_video", {"task": 10}),
        ("/api/auto_label", {"tasks": [3, 10, 11]}),
        ("/api/auto_label", {"tasks": [*range(1, 10), *range(1000, 2000)]}),
    ):
        problem = room.post(path, {"project": 7, **body}, 404)
        assert problem["detail"] in ("Task 10 is not in project 7.", "Task 1000 is not in project 7.")
    assert not states(room)


def test_a_project_is_looked_up_once_in_a_while(room: Room, beside: Outside) -> None:
    for path in ("/api/init_models", "/api/learn_patterns", "/api/auto_label"):
        room.post(path, {"project": 7}, 202)
    assert len(beside.asked("/api/projects/7/")) == 1


def test_nothing_is_accepted_while_label_studio_does_not_answer(alone: Room, make_room: Callable[..., Room]) -> None:
    assert "token" in alone.post("/api/learn_patterns", {"project": 7}, 502)["detail"]
    down = make_room(label_studio_url="http://127.0.0.1:1")
    assert "does not answer" in down.post("/api/learn_patterns", {"project": 7}, 503)["detail"]
    assert not states(down)


def test_nothing_new_to_train_on(auto: Room) -> None:
    """An answer, not a job that ends with it."""
    annotated(auto.services, "a")
    auto.post("/api/train_custom_model", {"project": 7}, 202)
    auto.services.trainings.cancel(7)
    refused(auto.services)
    problem = auto.post("/api/train_custom_model", {"project": 7}, 409)
    assert problem["detail"] == "Nothing new has been annotated since v2."
    assert "force" in problem["hint"]
    assert states(auto).get("train-7") != "queued"
    annotated(auto.services, "b")
    assert auto.post("/api/train_custom_model", {"project": 7}, 202)["job"]["state"] == "queued"
    auto.services.trainings.cancel(7)
    refused(auto.services)
    forced = auto.post("/api/train_custom_model", {"project": 7, "force": True}, 202)["job"]
    assert auto.post("/api/train_custom_model", {"project": 7}, 202)["job"] == forced, "while it waits"


def test_training_needs_a_network(room: Room) -> None:
    assert "DETECTOR=motion" in room.post("/api/train_custom_model", {"project": 7}, 422)["detail"]


def test_cancelling_a_job_that_waits(auto: Room) -> None:
    name = auto.post("/api/init_models", {"project": 7}, 202)["job"]["id"]
    assert auto.delete(f"/api/jobs/{name}")["state"] == "cancelled"
    assert auto.get(f"/api/jobs/{name}")["state"] == "cancelled"
    assert "already ended" in auto.delete(f"/api/jobs/{name}", 409)["detail"]
    again = auto.post("/api/init_models", {"project": 7}, 202)["job"]
    assert again["state"] == "queued"


def test_cancelling_a_training_that_waits(auto: Room) -> None:
    name = auto.post("/api/train_custom_model", {"project": 7}, 202)["job"]["id"]
    assert auto.delete(f"/api/jobs/{name}")["state"] == "cancelled"
    assert not auto.services.queue.queues["train"].get_job_ids()


def test_learning_is_not_cancelled(room: Room) -> None:
    name = room.post("/api/learn_patterns", {"project": 7}, 202)["job"]["id"]
    assert "submitted" in room.delete(f"/api/jobs/{name}", 409)["detail"]


def test_jobs_that_are_not_there(room: Room) -> None:
    for name in ("none", "predict-0000", "a" * 200, "..", "a.b-c_d"):
        room.get(f"/api/jobs/{name}", 404)
        room.delete(f"/api/jobs/{name}", 404)


def test_jobs_of_label_studio_are_listed_too(room: Room) -> None:
    room.services.queue.request_prepare(7, 1)
    room.services.queue.request_prediction("0" * 40, 7, 2)
    found = {item["id"]: item for item in room.get("/api/jobs")["jobs"]}
    assert found["prepare-1"]["task"] == 1
    assert (found["predict-" + "0" * 40]["kind"], found["predict-" + "0" * 40]["task"]) == ("predict", 2)
    assert room.delete("/api/jobs/prepare-1")["state"] == "cancelled"
    room.get("/api/jobs/prepare-1", 404)


# -- learned labels


def test_patterns_before_anything_is_learned(room: Room) -> None:
    found = room.get("/api/get_patterns_info?project=7")
    assert (found["labels"], found["job"], found["mode"]) == ({}, None, "yolo_dinov2")


def test_what_is_doubtful_is_shown(room: Room) -> None:
    """Jumps at once, suspicious exemplars once a job has computed them for this state of the bank."""
    store, queue = room.services.projects.patterns, room.services.queue
    model = room.get("/api/get_patterns_info?project=7")["embedder"]
    crops = [CropEmbedding(n, (float(n), 0.0, 9.0, 9.0), np.eye(3, dtype=np.float32)[n], b"\xff\xd8") for n in range(2)]
    store.crop_embeddings("v").add(model, crops)
    wanted = [NewExemplar(f"r{n}", "medic", crop.key("v", model)) for n, crop in enumerate(crops)]
    store.replace_task(7, model, 5, 1, wanted)
    store.replace_jumps(7, 5, [IdentityJump("r1", "medic", 231, "first")])
    info = room.get("/api/get_patterns_info?project=7")
    assert info["jumps"] == [{"task": 5, "region": "r1", "label": "medic", "frame": 231, "untaught": "first"}]

    def suspicious() -> dict[str, bool | None]:
        found = room.get("/api/exemplars?project=7&label=medic")["exemplars"]
        return {item["region"]: item["suspicious"] for item in found}

    assert suspicious() == {"r0": None, "r1": None}
    ids = {origin.region_id: number for number, origin in store.exemplars(7, model)[1].items()}
    facts = {"labels": {"medic": {"suspicious": [ids["r1"]]}}, "map": [], "digest": store.digest(7, model)}
    queue.publish("patterns-7", facts)
    assert suspicious() == {"r0": False, "r1": True}
    page = room.client.get(
        "/?project=7&step=learn", headers={"Accept": "text/html", "Sec-Fetch-Site": "none"}
    ).get_data(as_text=True)
    assert page.count('class="suspicious"') == 1
    assert "1 suspicious" in page
    assert "at frame 231: its first part is not taught" in page
    queue.publish("patterns-7", {**facts, "digest": "another"})
    assert suspicious() == {"r0": None, "r1": None}


def test_nothing_is_similar_to_what_is_not_known(room: Room) -> None:
    assert "no exemplars" in room.get("/api/similar?project=7&label=<b>x</b>", 422)["detail"]


# -- requests that are wrong


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/api/init_models", {}, "project"),
        ("/api/init_models", {"project": "7"}, "project"),
        ("/api/init_models", {"project": 7.5}, "project"),
        ("/api/init_models", {"project": True}, "project"),
        ("/api/init_models", {"project": 0}, "project"),
        ("/api/init_models", {"project": 1 << 31}, "project"),
        ("/api/init_models", {"project": 7, "colour": 1}, "colour"),
        ("/api/switch_model", {"project": 7}, ""),
        ("/api/switch_model", {"project": 7, "mode": "magic"}, "mode"),
        ("/api/auto_label", {"project": 7, "tasks": []}, "tasks"),
        ("/api/auto_label", {"project": 7, "tasks": [1, "2"]}, "tasks.1"),
        ("/api/train_custom_model", {"project": 7, "force": "yes"}, "force"),
        ("/api/versions/rollback", {"project": 7}, "instead_of"),
        ("/api/init_models", [], ""),
        ("/api/init_models", None, ""),
    ],
)
def test_the_field_that_is_wrong_is_named(room: Room, path: str, body: Any, field: str) -> None:
    problem = room.ask("POST", path, 400, data=json.dumps(body), content_type="application/json")
    assert any(item["field"].startswith(field) for item in problem["errors"]), problem
    assert not states(room)


@pytest.mark.parametrize(
    ("method", "path", "values", "allowed"),
    [
        ("POST", "/api/switch_model", {"mode": "x"}, ("yolo", "yolo_dinov2", "yolo_clip", "universal", "default")),
        ("POST", "/api/switch_model", {"version": "x"}, ("base", "v2")),
        ("POST", "/api/load_custom_model", {"version": "base"}, ("v2",)),
        ("POST", "/api/export", {"format": "x"}, get_args(ExportFormat)),
        ("POST", "/api/export", {"format": "mot", "predictions": "x"}, ("none", "missing", "only")),
        ("POST", "/api/create_annotated_video", {"task": 1, "source": "x"}, ("annotations", "predictions", "base")),
        ("GET", "/api/stats?project=7&fresh=x", None, ("boolean",)),
    ],
)
def test_what_is_allowed_instead_of_a_wrong_value(
    room: Room, method: str, path: str, values: dict[str, Any] | None, allowed: tuple[str, ...]
) -> None:
    problem = room.ask(method, path, 400, json=values and {"project": 7, **values})
    (item,) = problem["errors"]
    assert item["field"] in {"fresh", *(values or ())}
    for name in allowed:
        assert name in item["message"]


@pytest.mark.parametrize("body", [b"{", b"\xff", b"[" * 100_000, b'{"project": 1' + b"0" * 5000 + b"}", b'"\\ud800"'])
def test_bodies_that_are_no_json(room: Room, body: bytes) -> None:
    room.ask("POST", "/api/init_models", 400, data=body, content_type="application/json")


@pytest.mark.parametrize("query", ["", "?project=x", "?project=7&project=8", "?project=7&x=1", "?project=-1"])
def test_queries_that_are_wrong(room: Room, query: str) -> None:
    room.get(f"/api/versions{query}", 400)


def test_paths_and_methods_that_are_not_there(room: Room) -> None:
    for path, method, status in (
        ("/api", "GET", 404),
        ("/api/none", "GET", 404),
        ("/api/status", "POST", 405),
        ("/api/init_models", "GET", 405),
    ):
        answer = room.client.open(path, method=method)
        assert (answer.status_code, answer.content_type) == (status, "application/problem+json")
        assert answer.get_json()["status"] == status


@pytest.mark.parametrize("name", sorted(MASK_FORMATS))
def test_masks_without_a_model_are_refused_before_a_job_is_made(room: Room, name: str) -> None:
    problem = room.ask("POST", "/api/export", 422, json={"project": 7, "format": name})
    assert "SEGMENTER is not set" in problem["detail"]
    assert not states(room)


# -- the document


def test_the_document_is_one(room: Room) -> None:
    assert room.document["openapi"] == "3.1.0"
    for schema in room.document["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)
    served = {
        (method, rule.rule.replace("<", "{").replace(">", "}"))
        for rule in room.app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
        if rule.rule.startswith("/api/")
    }
    described = {(method.upper(), path) for path, of in room.document["paths"].items() for method in of}
    assert {(m, p.replace("{path:", "{")) for m, p in served} == described


def test_the_page_names_every_route_and_needs_nothing_else(room: Room) -> None:
    answer = room.client.get("/api/docs")
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert "script-src" not in answer.headers["Content-Security-Policy"]
    text = answer.get_data(as_text=True)
    for path in room.document["paths"]:
        assert path in text
    assert "<script" not in text
    assert not re.search(r'(?:src|href)="(?![/#])', text), "nothing from elsewhere"
    assert "<code>cancelling</code>" in text, "Markdown is rendered"
    assert "`" not in text


def examples(room: Room) -> list[list[str]]:
    """The words of the examples on the page of the API."""
    text = room.client.get("/api/docs").get_data(as_text=True)
    return [shlex.split(html.unescape(item)) for item in re.findall(r'aria-label="Example">(.+?)</pre>', text)]


def test_every_route_has_an_example_that_is_right(room: Room) -> None:
    found = examples(room)
    assert len(found) == sum(map(len, room.document["paths"].values()))
    for curl, *words, url in found:
        assert curl == "curl"
        pairs = list(zip(words[::2], words[1::2], strict=False))
        options, form = dict(pairs), dict(value.split("=") for name, value in pairs if name == "-F")
        values: dict[str, Any] = {"json": json.loads(options["-d"])} if "-d" in options else {}
        if form:
            values["data"] = {n: (io.BytesIO(b"x"), v[1:]) if v.startswith("@") else v for n, v in form.items()}
        method = options.get("-X", "POST" if values else "GET")
        path = url.removeprefix("http://localhost")
        answer = room.client.open(path, method=method, **values)
        assert answer.status_code not in (400, 405, 415), (method, path, answer.get_data(as_text=True))
        room.check(method, path, answer)


def test_examples_have_credentials_where_they_are_needed(settings: Callable[..., Settings], redis_url: str) -> None:
    app = create_app(settings(redis_url=redis_url, basic_auth_user="me", basic_auth_pass="secret"))
    text = app.test_client().get("/api/docs", auth=("me", "secret")).get_data(as_text=True)
    assert "curl -u USER:PASSWORD " in text
    assert "secret" not in text


# -- redis that comes back


@pytest.mark.slow
def test_redis_that_comes_back(make_room: Callable[..., Room], tmp_path: Path) -> None:
    server = RedisServer(tmp_path / "redis", log_dir=tmp_path, environment=os.environ)
    room = make_room(redis_url=server.url)
    assert room.post("/api/init_models", {"project": 7}, 503)["hint"]
    (tmp_path / "redis").mkdir()
    server.start()
    try:
        server.wait_ready(300)
        room.post("/api/init_models", {"project": 7}, 202)
        wait_for(lambda: room.get("/api/status")["redis"]["up"])
    finally:
        server.stop()
