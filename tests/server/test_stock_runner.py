"""The same model under the stock runner: its contract, stood in for, with the real Redis and database behind."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from ml_backend.core.settings import Settings, get_settings
from ml_backend.server.app import create_app
from tests.builders import CONFIG, NO_RECTANGLE, ROOT, environment, wait_for

STAND_IN = Path(__file__).parent / "stand_in"
TASK = {"id": 1, "data": {"video": "/data/upload/7/a.mp4", "fps": 25}, "annotations": [], "predictions": []}


@pytest.fixture
def values(settings: Callable[..., Settings], redis_url: str) -> Settings:
    return settings(redis_url=redis_url, detector="motion")


@pytest.fixture
def runner(values: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[FlaskClient]:
    for name, value in environment(values).items():
        monkeypatch.setenv(name, value)
    monkeypatch.syspath_prepend(str(STAND_IN))
    get_settings.cache_clear()
    from label_studio_ml.api import init_app
    from label_studio_ml.model import _cache

    from ml_backend import label_studio_ml_model as stock

    stock.get_services.cache_clear()
    _cache.clear()
    yield init_app(stock.VideoBackend).test_client()
    stock.get_services.cache_clear()
    get_settings.cache_clear()


def request(*tasks: Any, config: str = CONFIG) -> dict[str, Any]:
    params = {"login": None, "password": None, "context": None}
    return {"tasks": list(tasks), "project": "7.17", "label_config": config, "params": params}


def test_same_answers_as_our_own_server(runner: FlaskClient, values: Settings) -> None:
    own = create_app(values).test_client()
    body = {"project": "7.17", "schema": CONFIG, "access_token": "x", "extra_params": None, "hostname": "http://ls"}
    assert runner.get("/health").json == own.get("/health").json
    assert runner.post("/setup", json=body).json == own.post("/setup", json=body).json
    assert runner.post("/predict", json=request(TASK)).json == own.post("/predict", json=request(TASK)).json
    assert own.post("/predict", json=request(TASK)).json == {"results": [[]]}


def test_finished_prediction_is_handed_out(runner: FlaskClient, values: Settings) -> None:
    own = create_app(values)
    services = own.extensions["services"]
    from ml_backend.jobs.task_plan import plan_task

    version = services.prediction_service.version()
    plan = plan_task(7, 1, TASK["data"], CONFIG, version, annotated=False, label_studio_url="")  # type: ignore[arg-type]
    prediction = {"result": [{"id": "a"}], "score": 0.5, "model_version": version}
    services.storage.save_prediction(plan.key, 7, prediction)
    answer = runner.post("/predict", json=request(TASK, {**TASK, "id": 2}))
    assert answer.json == {"results": [prediction, prediction]}


def test_both_servers_share_jobs(runner: FlaskClient, values: Settings) -> None:
    own = create_app(values)
    own.test_client().post("/predict", json=request(TASK))
    runner.post("/predict", json=request(TASK))
    assert own.extensions["services"].queue.depths()["predict"]["queued"] == 1


def test_version_changes_under_a_cache_that_remembers(runner: FlaskClient) -> None:
    from label_studio_ml.model import _cache

    runner.post("/setup", json={"project": "7.17", "schema": CONFIG})
    _cache["7", "model_version"] = "from an earlier start"
    version = runner.post("/setup", json={"project": "7.17", "schema": CONFIG}).json["model_version"]
    assert version.startswith("motion.")


def test_annotation_events_are_recorded(runner: FlaskClient, values: Settings) -> None:
    body = {
        "action": "ANNOTATION_CREATED",
        "project": {"id": 7, "label_config": CONFIG},
        "task": {"id": 1},
        "annotation": {"id": 5, "task": 1},
    }
    answer = runner.post("/webhook", json=body)
    assert (answer.status_code, answer.json) == (201, {"result": {"result": "queued"}, "status": "ok"})
    storage = create_app(values).extensions["services"].storage
    assert wait_for(lambda: list(storage.pending("learn", 7))) == [1]
    assert storage.tasks_of_annotations([5]) == {1: 7}


def test_project_is_needed(runner: FlaskClient) -> None:
    from ml_backend.core.errors import RequestError
    from ml_backend.label_studio_ml_model import VideoBackend

    model = VideoBackend(label_config=CONFIG)
    with pytest.raises(RequestError, match="project"):
        model.predict([TASK])


def test_reasons_reach_the_caller(runner: FlaskClient) -> None:
    from ml_backend.core.errors import ConfigError
    from ml_backend.label_studio_ml_model import VideoBackend

    with pytest.raises(ConfigError, match="VideoRectangle"):
        VideoBackend("7", NO_RECTANGLE).predict([TASK])


def test_without_the_package_the_import_says_what_to_do() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import ml_backend.label_studio_ml_model"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode != 0
    assert "needs label-studio-ml 2.x" in done.stderr
