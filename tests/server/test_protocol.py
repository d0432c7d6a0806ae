"""The protocol over HTTP, wire-compatible with label-studio-ml 2.x; real Redis, real SQLite."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from redis import Redis
from rq import Queue
from rq.job import Job
from rq.serializers import JSONSerializer

from ml_backend.cli.dev_stack.processes import RedisServer
from ml_backend.core.settings import Settings
from ml_backend.jobs.queue import ALL_TASKS
from ml_backend.jobs.task_plan import plan_task
from ml_backend.jobs.training_scheduler import TrainingScheduler
from ml_backend.server.app import MAX_REQUEST, create_app
from ml_backend.server.container import WebContainer
from tests.builders import CONFIG, NO_RECTANGLE, environment, wait_for
from tests.drawn_scene import mask_box
from tests.server.control import promoted

PROJECT = "7.1700000000"


def task(number: int = 1, video: str = "/data/upload/7/a.mp4", **data: Any) -> dict[str, Any]:
    return {"id": number, "data": {"video": video, "fps": 25, **data}, "annotations": [], "predictions": []}


def request(*tasks: dict[str, Any], **change: Any) -> dict[str, Any]:
    """As Label Studio 1.23 sends it."""
    params = {"login": None, "password": None, "context": None}
    return {"tasks": list(tasks), "project": PROJECT, "label_config": CONFIG, "params": params, **change}


def services(client: FlaskClient) -> WebContainer:
    found: WebContainer = client.application.extensions["services"]
    return found


def finish(client: FlaskClient, *tasks: dict[str, Any]) -> dict[str, Any]:
    """As if a worker had finished these tasks' prediction."""
    version = services(client).prediction_service.version()
    prediction = {"result": [{"id": "ü"}], "score": 0.5, "model_version": version}
    for one in tasks:
        services(client).storage.save_prediction(key(client, one), 7, prediction)
    return prediction


def key(client: FlaskClient, one: dict[str, Any]) -> str:
    version = services(client).prediction_service.version()
    return plan_task(7, one["id"], one["data"], CONFIG, version, annotated=False, label_studio_url="").key


def jobs(url: str) -> list[str]:
    """Names of the queued jobs."""
    with Redis.from_url(url) as connection:
        return [
            name
            for queue in ("prepare", "predict")
            for name in Queue(queue, connection=connection, serializer=JSONSerializer).get_job_ids()
        ]


def fail(url: str, name: str, reason: str, ended: str | None = None) -> None:
    """As if a worker had tried this job in vain."""
    with Redis.from_url(url) as connection:
        job = Job.fetch(name, connection=connection, serializer=JSONSerializer)
        queue = Queue(job.origin, connection=connection, serializer=JSONSerializer)
        queue.remove(job)
        job.meta["error"] = reason
        job.ended_at = job.created_at
        job.set_status("failed")
        job.save()
        queue.failed_job_registry.add(job, ttl=1000)
        if ended is not None:
            connection.hset(job.key, "ended_at", ended)


@pytest.fixture
def app(settings: Callable[..., Settings], redis_url: str) -> Iterator[Flask]:
    made = create_app(settings(redis_url=redis_url, detector="motion"))
    yield made
    # Events are handed over from a thread, which must not do so into the next test.
    made.extensions["services"].webhooks.flush()


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


@pytest.fixture
def without_redis(settings: Callable[..., Settings], tmp_path: Path) -> FlaskClient:
    return create_app(settings(redis_url=f"unix://{tmp_path}/none.sock", detector="motion")).test_client()


# -- the wire format


def test_ready_once_database_and_queue_answer(
    client: FlaskClient, without_redis: FlaskClient, caplog: pytest.LogCaptureFixture
) -> None:
    response = client.get("/ready")
    assert (response.status_code, response.get_json()) == (200, {"ready": True, "problems": {}})
    response = without_redis.get("/ready")
    assert response.status_code == 503
    assert set(response.get_json()["problems"]) == {"queue"}
    assert "queue does not answer" in caplog.text


@pytest.mark.parametrize("route", ["/", "/health"])
def test_health(client: FlaskClient, route: str) -> None:
    answer = client.get(route)
    assert (answer.status_code, answer.json) == (200, {"status": "UP", "model_class": "VideoBackend"})
    assert answer.content_type == "application/json"


def test_setup_tells_the_version_that_predictions_carry(client: FlaskClient) -> None:
    body = {"project": PROJECT, "schema": CONFIG, "hostname": "http://ls", "access_token": "x", "extra_params": None}
    answer = client.post("/setup", json=body)
    assert answer.status_code == 200
    assert answer.json == {"model_version": finish(client)["model_version"]}


def test_setup_refuses_a_config_without_rectangles(client: FlaskClient) -> None:
    answer = client.post("/setup", json={"project": PROJECT, "schema": NO_RECTANGLE})
    assert answer.status_code == 422
    assert "VideoRectangle" in answer.json["error"]
    assert "<VideoRectangle" in answer.json["hint"]


@pytest.mark.parametrize(
    ("config", "cause"),
    [
        (CONFIG.replace('<Label value="thing"/>', "").replace("<Labels ", '<Labels value="$kinds" '), "$kinds"),
        (f'<View><Repeater on="$videos">{CONFIG}</Repeater></View>', "Repeater"),
    ],
)
def test_setup_and_predict_refuse_what_depends_on_the_task(client: FlaskClient, config: str, cause: str) -> None:
    connected = client.post("/setup", json={"project": PROJECT, "schema": config})
    asked = client.post("/predict", json=request(task(), label_config=config))
    assert (connected.status_code, asked.status_code) == (422, 422)
    assert connected.json["error"] == asked.json["error"]
    assert cause in connected.json["error"]


@pytest.mark.parametrize("schema", ["", None, 7])
def test_setup_before_there_is_a_config(client: FlaskClient, schema: Any) -> None:
    assert client.post("/setup", json={"project": PROJECT, "schema": schema}).status_code == 200


def test_connecting_predicts_the_tasks_that_are_there_once(client: FlaskClient) -> None:
    container = services(client)
    refused = {"project": PROJECT, "schema": NO_RECTANGLE}
    accepted = {"project": PROJECT, "schema": CONFIG}
    for body in (refused, {"project": PROJECT, "schema": ""}):
        client.post("/setup", json=body)
        assert container.storage.pending_projects() == []
    client.post("/setup", json=accepted)
    pending = container.storage.pending("prepare", 7)
    assert set(pending) == {ALL_TASKS}
    assert [job["id"] for job in container.jobs.all()] == ["prepare-many-7"]
    container.storage.settle("prepare", 7, pending)
    client.post("/setup", json=accepted)  # as before each prediction
    assert container.storage.pending_projects() == []
    assert container.queue.set_up_projects() == {7}


def test_setup_with_missing_weights_says_so(settings: Callable[..., Settings], redis_url: str) -> None:
    client = create_app(settings(redis_url=redis_url, yolo_weights="/no/such.pt")).test_client()
    answer = client.post("/setup", json={"project": PROJECT})
    assert answer.status_code == 503
    assert "/no/such.pt" in answer.json["error"]
    assert client.get("/health").status_code == 200


def test_token_of_setup_is_kept_unless_one_is_configured(
    client: FlaskClient, settings: Callable[..., Settings], redis_url: str
) -> None:
    client.post("/setup", json={"project": PROJECT, "access_token": "legacy"})
    assert services(client).queue.remembered_token() == "legacy"
    configured = create_app(settings(redis_url=redis_url, label_studio_api_key="mine")).test_client()
    configured.post("/setup", json={"project": PROJECT, "access_token": "other"})
    assert services(client).queue.remembered_token() == "legacy"


@pytest.mark.parametrize("token", ["\ud800", "", 7, ["x"], "x" * 10_000_000, "\0"])
def test_odd_tokens_are_no_obstacle(client: FlaskClient, token: Any) -> None:
    body = json.dumps({"project": PROJECT, "access_token": token})
    assert client.post("/setup", data=body).status_code == 200
    assert len(services(client).queue.remembered_token()) <= 4096


def test_one_entry_per_task_and_one_job_per_video(client: FlaskClient, redis_url: str) -> None:
    tasks = [task(1), task(2), task(3, "/data/upload/7/b.mp4"), task(4, "/data/upload/7/c.mp4", fps=None)]
    answer = client.post("/predict", json=request(*tasks))
    assert (answer.status_code, answer.json) == (200, {"results": [[], [], [], []]})
    assert sorted(jobs(redis_url)) == sorted(
        [f"predict-{key(client, tasks[0])}", f"predict-{key(client, tasks[2])}", "prepare-4"]
    )


def test_finished_prediction_is_answered_at_once(client: FlaskClient, redis_url: str) -> None:
    prediction = finish(client, task())
    answer = client.post("/predict", json=request(task(1), task(2), task(3, "/data/upload/7/b.mp4")))
    assert answer.json == {"results": [prediction, prediction, []]}
    assert len(jobs(redis_url)) == 1
    version = client.post("/setup", json={"project": PROJECT}).json["model_version"]
    assert answer.json["results"][0]["model_version"] == version


def test_prediction_of_another_project_is_not_handed_out(client: FlaskClient) -> None:
    finish(client, task())
    answer = client.post("/predict", json=request(task(), project="8.1"))
    assert answer.json == {"results": [[]]}


def test_no_tasks(client: FlaskClient) -> None:
    assert client.post("/predict", json=request()).json == {"results": []}


def test_many_tasks_are_one_job(client: FlaskClient, redis_url: str) -> None:
    tasks = [task(number, f"/data/upload/7/{number}.mp4") for number in range(1, 51)]
    for _ in range(3):
        answer = client.post("/predict", json=request(*tasks))
        assert answer.json == {"results": [[]] * 50}
    (name,) = jobs(redis_url)
    with Redis.from_url(redis_url) as connection:
        job = Job.fetch(name, connection=connection, serializer=JSONSerializer)
    assert list(job.args) == [7]
    assert list(services(client).storage.pending("prepare", 7)) == list(range(1, 51))


def test_answer_stays_small_enough_for_label_studio(client: FlaskClient) -> None:
    """What does not fit is not lost: it is pushed."""
    version = services(client).prediction_service.version()
    noise = "x" * (9 << 20)
    tasks = [task(number, f"/data/upload/7/{number}.mp4") for number in range(1, 6)]
    for one in tasks:
        services(client).storage.save_prediction(key(client, one), 7, {"result": [noise], "model_version": version})
    answer = client.post("/predict", json=request(*tasks))
    filled = [bool(entry) for entry in answer.json["results"]]
    assert filled == [True, True, True, False, False]
    assert len(answer.data) < 33 << 20


def test_same_request_fifty_times_at_once_is_one_job(app: Flask, redis_url: str) -> None:
    barrier = threading.Barrier(50)

    def ask(_: int) -> Any:
        barrier.wait()
        return app.test_client().post("/predict", json=request(task())).json

    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(ask, range(50)))
    assert answers == [{"results": [[]]}] * 50
    assert len(jobs(redis_url)) == 1


def test_prediction_that_ends_between_look_up_and_request(client: FlaskClient, redis_url: str) -> None:
    """The job is in its last moments: its prediction is stored, but Redis still lists it."""
    client.post("/predict", json=request(task()))
    storage = services(client).storage
    original = storage.prediction_sizes

    def and_then_it_ends(keys: Any) -> dict[str, int]:
        sizes = original(keys)
        finish(client, task())
        return sizes

    storage.prediction_sizes = and_then_it_ends  # type: ignore[method-assign]
    answer = client.post("/predict", json=request(task()))
    assert answer.json["results"][0]["result"] == [{"id": "ü"}]


# -- failed jobs


def test_failed_job_is_told_for_a_single_task(client: FlaskClient, redis_url: str) -> None:
    client.post("/predict", json=request(task()))
    fail(redis_url, f"predict-{key(client, task())}", "The video is corrupt. Repair it.")
    answer = client.post("/predict", json=request(task()))
    assert answer.status_code == 422
    assert answer.json["error"] == "Task 1: The video is corrupt. Repair it."


def test_failed_job_beside_healthy_tasks(client: FlaskClient, redis_url: str) -> None:
    bad, good = task(1), task(2, "/data/upload/7/good.mp4")
    client.post("/predict", json=request(bad))
    fail(redis_url, f"predict-{key(client, bad)}", "The video is corrupt.")
    prediction = finish(client, good)
    answer = client.post("/predict", json=request(bad, good, task(3, "/data/upload/7/new.mp4")))
    assert (answer.status_code, answer.json) == (200, {"results": [[], prediction, []]})


def test_failed_job_is_tried_again_after_a_pause(client: FlaskClient, redis_url: str) -> None:
    client.post("/predict", json=request(task()))
    name = f"predict-{key(client, task())}"
    fail(redis_url, name, "The video is corrupt.", ended="2020-01-01T00:00:00.000000Z")
    assert client.post("/predict", json=request(task())).json == {"results": [[]]}
    assert jobs(redis_url) == [name]


def test_task_without_video_beside_healthy_ones(client: FlaskClient) -> None:
    bad = {"id": 9, "data": {"text": "no video"}}
    prediction = finish(client, task())
    assert client.post("/predict", json=request(bad, task())).json == {"results": [[], prediction]}
    alone = client.post("/predict", json=request(bad))
    assert alone.status_code == 422
    assert "'video'" in alone.json["error"]


def test_config_without_rectangles(client: FlaskClient) -> None:
    answer = client.post("/predict", json=request(task(), label_config=NO_RECTANGLE))
    assert answer.status_code == 422
    assert "VideoRectangle" in answer.json["error"]


# -- webhooks


def test_unknown_event(client: FlaskClient) -> None:
    answer = client.post("/webhook", json={"action": "PROJECT_UPDATED", "project": {"id": 7}})
    assert (answer.status_code, answer.json) == (200, {"status": "Unknown event"})


@pytest.mark.parametrize("action", ["ANNOTATION_CREATED", "ANNOTATIONS_DELETED", "START_TRAINING", "TASKS_CREATED"])
def test_known_event(client: FlaskClient, action: str) -> None:
    answer = client.post("/webhook", json={"action": action, "project": {"id": 7}})
    assert answer.status_code == 201
    assert answer.json["status"] == "ok"


def test_new_tasks_are_handed_to_the_queue(client: FlaskClient, redis_url: str) -> None:
    client.post("/webhook", json={"action": "TASKS_CREATED", "project": {"id": 7}, "tasks": [{"id": 1}, {"id": 2}]})
    (name,) = wait_for(lambda: jobs(redis_url))
    with Redis.from_url(redis_url) as connection:
        assert list(Job.fetch(name, connection=connection, serializer=JSONSerializer).args) == [7]
    assert list(services(client).storage.pending("prepare", 7)) == [1, 2]


# -- the other routes


def test_versions(client: FlaskClient) -> None:
    present = services(client).prediction_service.version()
    assert client.get("/versions").json == {"versions": [present]}
    services(client).storage.save_prediction("k", 7, {"result": [], "model_version": "earlier"})
    assert versions_of(client, "7.17")["versions"] == [present, "earlier"]
    assert versions_of(client, "8")["versions"] == [present]
    assert client.get("/versions?project=x").status_code == 400


def versions_of(client: FlaskClient, project: str) -> dict[str, Any]:
    found = client.get(f"/versions?project={project}").json
    assert isinstance(found, dict)
    return found


@pytest.fixture
def auto_client(settings: Callable[..., Settings], redis_url: str) -> FlaskClient:
    """The detector is not forced to be the motion detector, so that versions are used."""
    return create_app(settings(redis_url=redis_url, detector="auto")).test_client()


def test_a_promoted_version_is_what_setup_tells_and_one_call_rolls_back(
    auto_client: FlaskClient, tmp_path: Path
) -> None:
    client = auto_client
    before = client.post("/setup", json={"project": "7.1", "schema": ""}).json["model_version"]
    for content in (b"PK first", b"PK second"):
        promoted(services(client), tmp_path, content)
    told = client.post("/setup", json={"project": "7.1", "schema": ""}).json["model_version"]
    assert told.endswith(".v2")
    found = versions_of(client, "7")
    assert (found["current"], found["versions"][0]) == ("v2", told)
    assert [item["version"] for item in found["registry"]] == ["v2", "v1"]
    assert found["registry"][0]["parent"] == "v1"
    answer = client.post("/versions", json={"project": 7, "version": "v1"})
    assert answer.status_code == 200
    assert answer.json["model_version"].endswith(".v1")
    assert client.post("/versions", json={"project": 7, "version": "base"}).json["model_version"] == before
    assert client.post("/setup", json={"project": "7.1", "schema": ""}).json["model_version"] == before
    assert client.post("/setup", json={"project": "8.1", "schema": ""}).json["model_version"] == before


def test_a_version_whose_weights_are_gone_is_not_switched_to(auto_client: FlaskClient, tmp_path: Path) -> None:
    client = auto_client
    promoted(services(client), tmp_path, b"PK")
    client.post("/versions", json={"project": 7, "version": "base"})
    version = services(client).registry.find(7, "v1")
    services(client).artifacts.remove(version.artifact)
    answer = client.post("/versions", json={"project": 7, "version": "v1"})
    assert answer.status_code == 503
    assert "is not at" in answer.json["error"]
    assert versions_of(client, "7")["current"] == "base"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"project": 7, "version": "v1"}, 422),
        ({"project": 7}, 400),
        ({"project": "x", "version": "base"}, 400),
        ({"version": "base"}, 400),
        ([], 400),
    ],
)
def test_wrong_switches(auto_client: FlaskClient, body: Any, status: int) -> None:
    assert auto_client.post("/versions", json=body).status_code == status


def test_pages_of_other_sites_cannot_switch(auto_client: FlaskClient) -> None:
    answer = auto_client.post("/versions", data='{"project": 7, "version": "base"}', content_type="text/plain")
    assert answer.status_code == 400


def test_metrics(client: FlaskClient) -> None:
    client.get("/health")
    client.post("/predict", json=request(task()))
    text = client.get("/metrics").get_data(as_text=True)
    assert 'video_backend_requests_total{endpoint="protocol.health",status="200"} 1.0' in text
    assert 'video_backend_jobs{queue="predict",state="queued"} 1.0' in text
    assert 'video_backend_up{part="redis"} 1.0' in text


@pytest.mark.parametrize(
    ("method", "route", "status"),
    [("GET", "/no/such", 404), ("GET", "/predict", 405), ("POST", "/health", 405), ("POST", "/train", 404)],
)
def test_unknown_routes_answer_as_json(client: FlaskClient, method: str, route: str, status: int) -> None:
    answer = client.open(route, method=method)
    assert answer.status_code == status
    assert set(answer.json) == {"error", "hint", "cure"}


def test_too_large_a_body(settings: Callable[..., Settings], redis_url: str) -> None:
    client = create_app(settings(redis_url=redis_url)).test_client()
    for route in ("/predict", "/setup", "/webhook"):
        answer = client.post(route, data=b" " * (MAX_REQUEST + 1), content_type="application/json")
        assert answer.status_code == 413
        assert answer.json["error"]


# -- bad input


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"7",
        b"\xff\xfe",
        b"{}",
        b'{"project": null}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"project": 1' + b"0" * 5000 + b"}",
        b'{"project": NaN, "action": NaN, "tasks": NaN}',
        b"--x\r\nContent-Disposition: form-data\r\n",
    ],
    ids=lambda body: repr(body[:12]),
)
def test_malformed_bodies_are_refused(client: FlaskClient, body: bytes) -> None:
    for route in ("/setup", "/predict", "/webhook"):
        answer = client.post(route, data=body, content_type="application/json")
        assert answer.status_code == 400, route
        assert set(answer.json) == {"error", "hint", "cure"}


def test_content_type_does_not_matter(client: FlaskClient) -> None:
    body = json.dumps(request(task()))
    assert client.post("/predict", data=body, content_type="text/plain").status_code == 200


json_value = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
odd_task = st.fixed_dictionaries(
    {},
    optional={
        "id": st.integers(-3, 10) | json_value,
        "data": st.fixed_dictionaries({}, optional={"video": st.text(max_size=20) | json_value, "fps": json_value})
        | json_value,
        "annotations": json_value,
    },
)
project = st.sampled_from(["7.17", "7", 7, 2**70, "1" * 30]) | json_value
config = st.sampled_from([CONFIG, NO_RECTANGLE, CONFIG[:50], CONFIG.replace("$fps", "1e999")]) | json_value
bodies = {
    "/setup": st.fixed_dictionaries(
        {}, optional={"project": project, "schema": config, "access_token": json_value, "extra_params": json_value}
    ),
    "/predict": st.fixed_dictionaries(
        {},
        optional={
            "project": project,
            "label_config": config,
            "tasks": st.lists(odd_task | json_value, max_size=3) | json_value,
            "params": json_value,
        },
    ),
    "/webhook": st.fixed_dictionaries(
        {},
        optional={
            "action": st.sampled_from(["TASKS_CREATED", "ANNOTATION_CREATED", "ANNOTATIONS_DELETED"]) | json_value,
            "project": st.fixed_dictionaries({"id": st.integers() | json_value}) | json_value,
            "task": json_value,
            "tasks": st.lists(st.fixed_dictionaries({"id": st.integers() | json_value}), max_size=3) | json_value,
            "annotation": st.fixed_dictionaries({"id": st.integers(), "task": json_value}) | json_value,
            "annotations": st.lists(json_value, max_size=2) | json_value,
        },
    ),
}


@pytest.mark.parametrize("route", bodies)
@hypothesis_settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_whatever_is_sent_is_answered_without_a_crash(client: FlaskClient, route: str, data: st.DataObject) -> None:
    body = data.draw(bodies[route])
    answer = client.post(route, data=json.dumps(body), content_type="application/json")
    assert answer.status_code in (200, 201, 400, 422), (body, answer.json)
    if answer.status_code == 200 and route == "/predict":
        assert len(answer.json["results"]) == len(body["tasks"])
    if answer.status_code >= 400:
        assert answer.json["error"]


# -- parts that are away


def test_without_redis_predict_says_so_quickly(without_redis: FlaskClient) -> None:
    started = time.monotonic()
    answer = without_redis.post("/predict", json=request(task()))
    took = time.monotonic() - started
    assert answer.status_code == 503
    assert "queue does not answer" in answer.json["error"]
    assert "Start Redis" in answer.json["hint"]
    assert took < 10


def test_redis_on_a_dead_port_whose_password_is_not_told(settings: Callable[..., Settings]) -> None:
    client = create_app(settings(redis_url="redis://user:geheim@127.0.0.1:1/0", detector="motion")).test_client()
    started = time.monotonic()
    answer = client.post("/predict", json=request(task()))
    assert time.monotonic() - started < 10
    assert answer.status_code == 503
    assert "127.0.0.1:1" in answer.json["error"]
    assert b"geheim" not in answer.data


@pytest.mark.slow
def test_redis_that_takes_the_connection_and_says_nothing(settings: Callable[..., Settings]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        client = create_app(settings(redis_url=url, detector="motion")).test_client()
        started = time.monotonic()
        assert client.post("/predict", json=request(task())).status_code == 503
        assert time.monotonic() - started < 10


def test_without_redis_finished_predictions_are_served(without_redis: FlaskClient) -> None:
    prediction = finish(without_redis, task())
    assert without_redis.post("/predict", json=request(task())).json == {"results": [prediction]}
    both = without_redis.post("/predict", json=request(task(), task(2, "/data/upload/7/b.mp4")))
    assert (both.status_code, both.json) == (200, {"results": [prediction, []]})


def test_without_redis_the_rest_works(without_redis: FlaskClient) -> None:
    assert without_redis.get("/health").status_code == 200
    assert without_redis.post("/setup", json={"project": PROJECT, "access_token": "x"}).status_code == 200
    assert without_redis.get("/versions").status_code == 200
    assert 'video_backend_up{part="redis"} 0.0' in without_redis.get("/metrics").get_data(as_text=True)


def test_event_that_came_while_redis_was_away(settings: Callable[..., Settings], tmp_path: Path) -> None:
    server = RedisServer(tmp_path / "redis", log_dir=tmp_path, environment=os.environ)
    client = create_app(settings(redis_url=server.url, detector="motion")).test_client()
    started = time.monotonic()
    answer = client.post("/webhook", json={"action": "TASKS_CREATED", "project": {"id": 7}, "tasks": [{"id": 1}]})
    assert time.monotonic() - started < 10
    assert answer.status_code == 201
    assert services(client).storage.pending_projects() == [("prepare", 7)]
    (tmp_path / "redis").mkdir()
    server.start()
    try:
        server.wait_ready(240)
        TrainingScheduler(services(client)).start_pending()  # as workers do
        assert len(jobs(server.url)) == 1
    finally:
        server.stop()


@pytest.fixture
def full(client: FlaskClient) -> Iterator[FlaskClient]:
    """The database takes no more: SQLite's own limit makes it answer exactly as on a full disk."""
    import sqlalchemy as sa

    engine = services(client).storage.engine
    with engine.connect() as connection:
        connection.exec_driver_sql("CREATE TABLE filler (x)")
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()

    def limit(raw: Any, _: Any) -> None:
        raw.execute(f"PRAGMA max_page_count={pages}")

    sa.event.listen(engine, "connect", limit)
    engine.dispose()
    for number in range(200):
        tasks = [{"id": 100 * number + task} for task in range(1, 101)]
        answer = client.post("/webhook", json={"action": "TASKS_CREATED", "project": {"id": 7}, "tasks": tasks})
        if answer.status_code != 201:
            break
    yield client
    # There is room again, and the events that were taken in can be handed over.
    sa.event.remove(engine, "connect", limit)
    engine.dispose()


def test_full_disk(full: FlaskClient) -> None:
    tasks = [{"id": 1_000_000 + number} for number in range(100)]
    answer = full.post("/webhook", json={"action": "TASKS_CREATED", "project": {"id": 7}, "tasks": tasks})
    assert answer.status_code == 507
    assert "full" in answer.json["error"]
    assert "Free disk space" in answer.json["hint"]
    assert full.post("/predict", json=request(task())).json == {"results": [[]]}


def test_database_that_cannot_be_made(settings: Callable[..., Settings], tmp_path: Path) -> None:
    from ml_backend.core.errors import StorageError

    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError) as failure:
        create_app(settings(data_dir=tmp_path / "file"))
    assert failure.value.hint


# -- the process


@pytest.fixture
def gunicorn(settings: Callable[..., Settings], redis_url: str, tmp_path: Path) -> Iterator[str]:
    from ml_backend.cli.dev_stack.preflight import free_port
    from ml_backend.cli.dev_stack.processes import BackendServer

    backend = BackendServer(
        port=free_port(), log_dir=tmp_path, environment=environment(settings(redis_url=redis_url, detector="motion"))
    )
    backend.start()
    try:
        backend.wait_ready(240)
        yield backend.url
    finally:
        backend.stop()


def test_under_gunicorn_fifty_at_once_are_one_job(gunicorn: str, redis_url: str) -> None:
    import httpx

    def ask(_: int) -> Any:
        return httpx.post(f"{gunicorn}/predict", json=request(task()), timeout=300).json()

    with ThreadPoolExecutor(50) as pool:
        assert list(pool.map(ask, range(50))) == [{"results": [[]]}] * 50
    assert len(jobs(redis_url)) == 1


def test_under_gunicorn_an_endless_body_is_refused(gunicorn: str) -> None:
    host, port = gunicorn.split("//")[1].split(":")
    with socket.create_connection((host, int(port)), timeout=300) as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1099511627776\r\n\r\nx")
        assert connection.recv(100).split()[1] == b"413"


def test_under_gunicorn_a_body_in_bad_chunks_is_refused(gunicorn: str) -> None:
    host, port = gunicorn.split("//")[1].split(":")
    upload = b"multipart/form-data; boundary=b"
    for path, kind in ((b"/webhook", b"application/json"), (b"/api/upload_video", upload)):
        head = b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: %s\r\nTransfer-Encoding: chunked\r\n\r\n"
        for chunks in (b"zz\r\n{}\r\n0\r\n\r\n", b"2\r\n{}xx\r\n0\r\n\r\n", b"9\r\n{}"):
            with socket.create_connection((host, int(port)), timeout=300) as connection:
                connection.sendall(head % (path, kind) + chunks)
                connection.shutdown(socket.SHUT_WR)
                assert connection.recv(100).split()[1] == b"400", (path, chunks)


# -- drawn boxes


def drawn(**change: Any) -> dict[str, Any]:
    key = {"frame": 5, "enabled": True, "rotation": 0, "x": 10, "y": 10, "width": 20, "height": 20}
    value = {"framesCount": 50, "duration": 2.0, "labels": ["car"], "sequence": [key]}
    return {"id": "r1", "from_name": "box", "to_name": "video", "type": "videorectangle", "value": value, **change}


def interactive(*regions: Any, **change: Any) -> dict[str, Any]:
    """As the editor asks through Label Studio."""
    return request(task(), params={"login": None, "password": None, "context": {"result": list(regions)}}, **change)


def test_without_a_worker_a_drawn_box_stays_as_it_is_and_the_reason_is_logged(
    client: FlaskClient, caplog: pytest.LogCaptureFixture
) -> None:
    region = drawn()
    response = client.post("/predict", json=interactive(region))
    assert response.status_code == 200
    assert response.get_json()["results"][0]["result"] == [region]
    assert "--queues interactive" in caplog.text


@pytest.mark.parametrize(
    "regions", [(), ({"type": "choices"},), (drawn(value=None),), (drawn(id=None),), tuple(drawn() for _ in range(101))]
)
def test_what_is_no_drawn_box_is_refused(client: FlaskClient, regions: Any) -> None:
    response = client.post("/predict", json=interactive(*regions))
    assert response.status_code == 400
    assert "box" in response.get_json()["error"]


# -- the toolbar of newer editors


def event(name: Any, **context: Any) -> dict[str, Any]:
    """As the editor posts it through Label Studio."""
    return request(task(), params={"login": None, "password": None, "context": {"event": name, **context}})


def box_prompt(**value: Any) -> list[dict[str, Any]]:
    return [{"type": "rectanglelabels", "value": {"x": 10, "y": 20, "width": 30.5, "height": 40, **value}}]


def answered(client: FlaskClient, body: dict[str, Any]) -> Any:
    response = client.post("/predict", json=body)
    assert response.status_code == 200, response.get_json()
    (result,) = response.get_json()["results"]
    return result["result"][0]["value"] if result["result"] else None


def test_the_toolbar_is_told_what_there_is(client: FlaskClient) -> None:
    value = answered(client, event("capabilities"))
    assert value["prompts"] == ["box"]
    assert value["targets"] == [{"tag": "VideoRectangle", "output": "bbox", "features": ["track"]}]
    assert set(value["model_info"]) == {"name", "version"}


def test_a_box_prompt_is_answered_by_its_mask(client: FlaskClient) -> None:
    body = event(None, result=box_prompt(), frame=5, time_ms=160.0)
    del body["params"]["context"]["event"]
    value = answered(client, body)
    percent = [100 * side / value[size] for side, size in zip(mask_box(value), ("width", "height") * 2, strict=True)]
    assert percent == pytest.approx([10, 20, 40.5, 60], abs=0.1)


@pytest.mark.parametrize(
    "body",
    [
        event("dance"),
        event(["track"]),
        event("track", frame=5, max_frames=10, direction="forward"),
        event("track", result=box_prompt(width=0), frame=5, max_frames=10, direction="forward"),
        event("track", result=box_prompt(x=100), frame=5, max_frames=10, direction="forward"),
        event("track", result=box_prompt(x="nan"), frame=5, max_frames=10, direction="forward"),
        event("track", result=[{"type": "keypointlabels", "value": {"x": 1, "y": 2}}], frame=5, max_frames=10),
        event("track", result=box_prompt(), frame="x", max_frames=10, direction="forward"),
        event("track", result=box_prompt(), frame=5, max_frames=-1, direction="forward"),
        event("track", result=box_prompt(), frame=5, max_frames=10, direction="up"),
    ],
)
def test_events_that_make_no_sense_are_refused(client: FlaskClient, body: dict[str, Any]) -> None:
    response = client.post("/predict", json=body)
    assert response.status_code == 400
    assert response.get_json()["error"]


def test_without_a_worker_the_toolbar_gets_an_error_and_sessions_end(client: FlaskClient) -> None:
    response = client.post(
        "/predict", json=event("track", result=box_prompt(), frame=5, max_frames=9, direction="both", time_ms=160)
    )
    assert response.status_code == 503
    assert "--queues interactive" in str(response.get_json())
    value = answered(client, event("track_progress", session_id="unknown"))
    assert value["done"]
    assert "no longer followed" in value["error"]
    assert answered(client, event("track_cancel", session_id="unknown")) is None
    assert answered(client, event("prewarm", frame=5, window=20, direction="forward")) is None
    assert answered(client, event("release")) is None
