"""The jobs, done by a worker in this process against a real Label Studio, Redis and database."""

from __future__ import annotations

import http.server
import shutil
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from ml_backend.core.errors import LabelStudioError, PredictionFailed, QueueUnavailable
from ml_backend.jobs import container, predict
from ml_backend.jobs.container import Container, get_container
from ml_backend.label_studio.client import LabelStudioClient
from tests.builders import (
    CONFIG,
    NO_RECTANGLE,
    TWO_VIDEOS,
    Gate,
    Outside,
    label_config,
    make_clip,
    make_tiny_yolo,
    outside,
)
from tests.jobs.conftest import Site
from tests.video.builders import make_audio, make_video, truncate

Make = Callable[..., Site]
Work = Callable[[Site], Container]
FACTS = {"fps": 20, "frames": 40, "width": 320, "height": 240, "duration": 2.0}


@pytest.fixture
def site(site: Make) -> Make:
    """Sites without embeddings: which labels tracks get is tested elsewhere."""
    return partial(site, mode="yolo")


@pytest.fixture
def foreign() -> Iterator[Outside]:
    with outside("127.0.0.1") as running:
        yield running


def test_from_a_new_task_to_its_prediction(site: Make, work: Work) -> None:
    here = site()
    project = here.project()
    task = here.task(project, video=here.clip(), note="mine")
    assert here.predict(project, task) == [[]]
    work(here)
    assert here.data(task) == {"video": here.clip(), "note": "mine", **FACTS}
    (prediction,) = here.predictions(task)
    assert prediction.model_version == here.prediction_service.version()
    (region,) = prediction.result
    assert (region["from_name"], region["to_name"], region["type"]) == ("box", "video", "videorectangle")
    assert region["value"]["framesCount"] == 40
    assert region["value"]["labels"] == ["thing"]
    assert here.jobs() == {}
    (answer,) = here.predict(project, task)
    assert (answer["result"], answer["model_version"]) == (prediction.result, prediction.model_version)


def test_done_twice_without_harm(site: Make, work: Work) -> None:
    here = site()
    project = here.project()
    task = here.task(project, video=here.clip())
    for _ in range(3):
        here.queue.request_prepare(project, task)
        work(here)
    assert len(here.predictions(task)) == 1
    assert here.queue.counters()["videos"] == 1
    assert here.queue.counters()["delivered"] == 1


def test_a_job_that_0_1_0_has_left_in_the_queue(site: Make, work: Work) -> None:
    """Its modules of jobs had other names."""
    here = site()
    project = here.project()
    task = here.task(project, video=here.clip())
    here.queue.queues["prepare"].enqueue_call("ml_backend.jobs.tasks.prepare_many", args=[project, []], job_id="many")
    work(here)
    assert len(here.predictions(task)) == 1
    assert here.queue.failed_jobs() == []


def test_prediction_of_another_version_does_not_count(site: Make, work: Work) -> None:
    here = site()
    project = here.project()
    task = here.task(project, video=here.clip())
    here.sdk.predictions.create(task=task, result=[], model_version="older")
    here.queue.request_prepare(project, task)
    work(here)
    assert {p.model_version for p in here.predictions(task)} == {"older", here.prediction_service.version()}


def test_label_studio_fetched_it_first(site: Make, work: Work) -> None:
    """Somebody opens the task while the worker computes: Label Studio asks /predict and stores the answer itself."""
    here = site()
    project = here.project()
    task = here.task(project, video=here.clip(), fps=20)
    here.sdk.predictions.create(task=task, result=[], model_version=here.prediction_service.version())
    here.predict(project, task)
    work(here)
    assert len(here.predictions(task)) == 1


def test_what_a_person_wrote_is_kept(site: Make, work: Work) -> None:
    here = site()
    project = here.project()
    given: dict[str, Any] = {"fps": "12.5", "width": 1, "duration": "unknown", "cover": "s3://bucket/cover.png"}
    given |= {"meta": {"a": [1]}, "title": "", "note": None}
    task = here.task(project, video=here.clip(), **given)
    here.queue.request_prepare(project, task)
    work(here)
    assert here.data(task) == {"video": here.clip(), "frames": 40, "height": 240, **given}
    (prediction,) = here.predictions(task)
    assert prediction.result[0]["value"]["framesCount"] == 25  # 2 s at 12.5


def test_annotated_task_is_never_written_to(site: Make, work: Work) -> None:
    here = site()
    project = here.project()
    task = here.task(project, video=here.clip())
    here.annotate(task)
    here.queue.request_prepare(project, task)
    work(here)
    assert here.data(task) == {"video": here.clip()}
    (prediction,) = here.predictions(task)
    assert prediction.result[0]["value"]["framesCount"] == 48  # Label Studio's own 24 frames a second


def test_two_videos_of_one_task(site: Make, work: Work) -> None:
    here = site()
    project = here.project(TWO_VIDEOS)
    task = here.task(project, left=here.clip("left.mp4"), right=here.clip("right.mp4", frames=30, fps=10))
    here.queue.request_prepare(project, task)
    work(here)
    data = here.data(task)
    assert (data["fps"], data["right_fps"], data["frames"]) == (20, 10, 40)
    (prediction,) = here.predictions(task)
    regions = {(r["from_name"], r["to_name"], *r["value"]["labels"]): r["value"] for r in prediction.result}
    assert {name: value["framesCount"] for name, value in regions.items()} == {
        ("left-box", "left", "thing"): 40,
        ("kästchen", "right", "ding"): 30,
    }


@pytest.mark.parametrize(("left", "right", "fps"), [("fps", "fps", 20), ("left_fps", "fps", 10), ("fps", "x", 20)])
def test_frame_rates_of_two_videos(site: Make, work: Work, left: str, right: str, fps: float) -> None:
    """A field describes the first video whose timeline it makes; only a free one describes the task's first video."""
    here = site()
    config = TWO_VIDEOS.replace('"$fps"', f'"${left}"').replace('"$right_fps"', f'"${right}"')
    task = here.task(here.project(config), left=here.clip("left.mp4"), right=here.clip("right.mp4", frames=30, fps=10))
    here.queue.request_prepare(1, task)
    work(here)
    data = here.data(task)
    assert (data["fps"], data[left], data["frames"]) == (fps, 20, 40)


def test_many_tasks_with_the_same_video_are_one_computation(site: Make, work: Work) -> None:
    here = site()
    project = here.project()
    imported = [{"data": {"video": here.clip(), "number": number, **FACTS}} for number in range(15)]
    here.sdk.projects.import_tasks(id=project, request=imported)
    tasks = sorted(state.id for state in here.client.list_task_states(project))
    assert len(tasks) == 15
    here.queue.request_prepare_many(project, [])
    work(here)
    assert here.queue.counters()["videos"] == 1
    versions = [here.client.get_task(task).prediction_versions for task in tasks]
    assert versions == [frozenset({here.prediction_service.version()})] * 15
    assert here.queue.counters()["delivered"] == 15
    assert here.jobs() == {}


def test_a_whole_project_is_its_tasks_without_annotations_and_predictions(site: Make, work: Work) -> None:
    here = site()
    project = here.project()
    fresh, annotated, predicted = (here.task(project, video=here.clip(), **FACTS) for _ in range(3))
    here.annotate(annotated)
    here.client.create_prediction(predicted, {"result": [], "score": 0.5, "model_version": "somebody's"})
    here.queue.request_prepare_many(project, [])
    work(here)
    assert here.client.get_task(fresh).prediction_versions == {here.prediction_service.version()}
    assert here.client.get_task(annotated).prediction_versions == set()
    assert here.client.get_task(predicted).prediction_versions == {"somebody's"}


def test_requests_of_one_project_do_not_serve_another(site: Make, work: Work) -> None:
    here = site()
    for _ in range(2):
        project = here.project()
        here.queue.request_prepare(project, here.task(project, video=here.clip()))
    work(here)
    assert here.queue.counters()["videos"] == 2


def test_task_that_asks_when_the_job_is_in_its_last_moment(site: Make, work: Work) -> None:
    """All targets are served, the job is about to vanish, and another task asks for the same video."""
    here = site()
    project = here.project()
    first, second = (here.task(project, video=here.clip(), **FACTS) for _ in range(2))
    here.predict(project, first)
    (name,) = here.jobs()
    work(here)
    # The job as another worker sees it then.
    here.predict(project, here.task(project, video=here.clip("other.mp4"), **FACTS))
    (other,) = here.jobs()
    connection = here.queue.connection
    connection.rename(f"rq:job:{other}", f"rq:job:{name}")
    connection.hset(f"rq:job:{name}", "status", "started")
    connection.delete("rq:queue:predict")
    here.queue.request_prepare(project, second)
    work(here)
    assert len(here.predictions(second)) == 1


# -- what changes meanwhile


def test_task_deleted_before_it_is_prepared(site: Make, work: Work) -> None:
    here = site()
    project = here.project()
    task = here.task(project, video=here.clip())
    here.queue.request_prepare(project, task)
    here.sdk.tasks.delete(str(task))
    work(here)
    assert here.jobs() == {}


def test_tasks_deleted_before_they_are_predicted(site: Make, work: Work) -> None:
    here = site()
    project = here.project()
    tasks = [here.task(project, video=here.clip(), **FACTS) for _ in range(5)]
    here.predict(project, *tasks)
    for task in tasks[:3]:
        here.sdk.tasks.delete(str(task))
    work(here)
    assert here.jobs() == {}
    assert [len(here.predictions(task)) for task in tasks[3:]] == [1, 1]


def test_all_tasks_deleted_before_they_are_predicted(site: Make, work: Work) -> None:
    here = site()
    project = here.project()
    tasks = [here.task(project, video=here.clip(), **FACTS) for _ in range(3)]
    here.predict(project, *tasks)
    for task in tasks:
        here.sdk.tasks.delete(str(task))
    work(here)
    assert here.jobs() == {}
    assert here.queue.counters().get("videos", 0) == 0


def test_project_deleted(site: Make, work: Work) -> None:
    here = site()
    project = here.project()
    task = here.task(project, video=here.clip())
    here.queue.request_prepare(project, task)
    here.queue.request_prepare_many(project, [])
    here.sdk.projects.delete(id=project)
    work(here)
    assert all("404" in job["error"] for job in here.queue.failed_jobs())


def test_label_config_changed_meanwhile(site: Make, work: Work) -> None:
    here = site()
    project = here.project()
    task = here.task(project, video=here.clip(), **FACTS)
    here.predict(project, task)
    changed = label_config("something else")
    here.sdk.projects.update(id=project, label_config=changed)
    work(here)
    (prediction,) = here.predictions(task)
    assert prediction.result[0]["value"]["labels"] == ["something else"]
    assert here.predict(project, task, config=changed) != [[]]


def test_annotation_made_while_the_video_is_probed(site: Make, work: Work, foreign: Outside, tmp_path: Path) -> None:
    here = site(media_allowed_hosts="127.0.0.1:*")
    project = here.project()
    body = make_clip(tmp_path / "a.mp4").read_bytes()
    task = here.task(project, video=foreign.url + "/a.mp4")

    def serve(handler: http.server.BaseHTTPRequestHandler) -> None:
        here.annotate(task)
        del foreign.special["/a.mp4"]
        foreign.serve(handler)

    foreign.files["/a.mp4"] = body
    foreign.special["/a.mp4"] = serve
    here.queue.request_prepare(project, task)
    work(here)
    assert here.data(task) == {"video": foreign.url + "/a.mp4"}
    assert len(here.predictions(task)) == 1


def test_draft_keeps_its_timeline(site: Make, work: Work) -> None:
    """Who draws without having submitted yet has work to lose, too."""
    here = site()
    task = here.task(here.project(), video=here.clip())
    region = {"id": "a", "type": "videorectangle", "from_name": "box", "to_name": "video", "value": {"sequence": []}}
    url = f"{here.client.url}/api/tasks/{task}/drafts"
    httpx.post(url, json={"result": [region]}, headers=here.client.auth_headers()).raise_for_status()
    here.queue.request_prepare(1, task)
    work(here)
    assert here.data(task) == {"video": here.clip()}
    assert here.predictions(task)[0].result[0]["value"]["framesCount"] == 48


def test_weights_that_appear_meanwhile(site: Make, work: Work, foreign: Outside, tmp_path: Path) -> None:
    """The prediction is by the detector that its version names."""
    here = site(media_allowed_hosts="127.0.0.1:*", detector="auto")
    project = here.project()
    foreign.files["/a.mp4"] = make_clip(tmp_path / "a.mp4").read_bytes()
    tiny = make_tiny_yolo(tmp_path / "tiny.pt", {0: "thing"})
    task = here.task(project, video=foreign.url + "/a.mp4", **FACTS)

    def serve(handler: http.server.BaseHTTPRequestHandler) -> None:
        here.settings.weights_dir.mkdir(parents=True, exist_ok=True)
        shutil.copy(tiny, here.settings.weights_dir / "yolo11n.pt")
        del foreign.special["/a.mp4"]
        foreign.serve(handler)

    foreign.special["/a.mp4"] = serve
    here.predict(project, task)
    work(here)
    (prediction,) = here.predictions(task)
    assert prediction.model_version.startswith("motion.")
    assert {region["meta"]["original_class"] for region in prediction.result} == {"object"}
    assert here.prediction_service.version().startswith("yolo11n-")


def test_token_that_is_handed_over_later(site: Make, label_studio: Any) -> None:
    here = site(label_studio_api_key="")
    container = Container(here.settings)
    with pytest.raises(LabelStudioError, match="no token"):
        container.client.whoami()
    here.prediction_service.remember_token(label_studio.token)
    assert container.client.whoami() == label_studio.username
    assert container.client is container.client


def test_secrets_of_an_address_stay_out_of_the_log(site: Make, work: Work, caplog: pytest.LogCaptureFixture) -> None:
    here = site(media_allowed_hosts="127.0.0.1:*")
    project = here.project()
    task = here.task(project, video="http://bob:s3cret@127.0.0.1:9/a.mp4?X-Amz-Signature=s3cret", **FACTS)
    here.predict(project, task)
    with caplog.at_level("INFO"):
        work(here)
    lines = [record.getMessage() for record in caplog.records]
    assert any("127.0.0.1:9/a.mp4" in line for line in lines)
    assert not any("s3cret" in line for line in lines)
    assert not any("Traceback" in line for line in lines), "a known error is one line"
    (name,) = here.jobs()
    assert "s3cret" not in here.job(name).meta["error"]


# -- bad input


def test_config_without_rectangles(site: Make, work: Work) -> None:
    here = site()
    project = here.project(NO_RECTANGLE)
    here.queue.request_prepare(project, here.task(project, video=here.clip()))
    work(here)
    assert "VideoRectangle" in here.error()


def _bad(name: str, folder: Path) -> Path:
    path = folder / f"{name}.mp4"
    if name == "corrupt":
        path.write_bytes(b"\0\0\0\x20ftypisom" + bytes(range(256)) * 100)
    elif name == "empty":
        path.write_bytes(b"")
    elif name == "audio":
        make_audio(path)
    elif name == "text":
        path.write_text("this is no video")
    elif name == "headless":
        truncate(make_video(folder / "whole.mp4"), path, 0.5)
    return path


@pytest.mark.parametrize("name", ["corrupt", "empty", "audio", "text", "headless"])
def test_unusable_video_fails_once_with_a_reason(site: Make, work: Work, name: str) -> None:
    here = site()
    project = here.project()
    _bad(name, here.videos)
    task = here.task(project, video=f"/data/local-files/?d=videos/{name}.mp4")
    here.predict(project, task)
    work(here)
    assert set(here.jobs().values()) == {"failed"}
    reason = here.error()
    assert len(reason) > 20
    assert "Traceback" not in reason
    assert here.data(task) == {"video": f"/data/local-files/?d=videos/{name}.mp4"}
    with pytest.raises(PredictionFailed) as failure:
        here.predict(project, task)
    assert reason in str(failure.value)


def test_video_of_one_frame(site: Make, work: Work) -> None:
    here = site()
    project = here.project()
    make_video(here.videos / "one.mp4", frames=1)
    task = here.task(project, video="/data/local-files/?d=videos/one.mp4")
    here.predict(project, task)
    work(here)
    assert here.data(task)["frames"] == 1
    (prediction,) = here.predictions(task)
    assert prediction.result == []


def test_video_with_a_broken_tail(site: Make, work: Work) -> None:
    here = site()
    project = here.project()
    whole = make_clip(here.videos / "whole.mp4", frames=60)  # its index comes first
    truncate(whole, here.videos / "cut.mp4", 0.7)
    task = here.task(project, video="/data/local-files/?d=videos/cut.mp4")
    here.predict(project, task)
    work(here)
    assert here.jobs() == {}
    assert len(here.predictions(task)) == 1


@pytest.mark.parametrize("fps", [1e9, "1e12", 1e300])
def test_absurd_frame_rate_is_refused_not_allocated(site: Make, work: Work, fps: Any) -> None:
    here = site()
    project = here.project()
    task = here.task(project, video=here.clip(), fps=fps)
    here.predict(project, task)
    work(here)
    assert "frame" in here.error()


@pytest.mark.parametrize(("status", "text"), [(401, "refuses access"), (404, "does not exist")])
def test_video_that_is_refused(site: Make, work: Work, foreign: Outside, status: int, text: str) -> None:
    here = site(media_allowed_hosts="127.0.0.1:*")
    project = here.project()
    foreign.answer("/a.mp4", status)
    here.queue.request_prepare(project, here.task(project, video=foreign.url + "/a.mp4"))
    work(here)
    assert text in here.error()
    assert len(foreign.requests) == 1


def test_uploads_are_downloaded_with_the_token(site: Make, work: Work, tmp_path: Path) -> None:
    here = site()
    project = here.project()
    task = here.task(project, video=here.client.upload_file(project, make_clip(tmp_path / "ein film.mp4")))
    here.queue.request_prepare(project, task)
    work(here)
    assert len(here.predictions(task)) == 1


def test_task_without_video(site: Make, work: Work) -> None:
    here = site()
    project = here.project('<View><Video name="v" value="$other"/></View>')
    here.sdk.projects.update(id=project, label_config=CONFIG)
    task = here.task(project, video=" ")
    here.queue.request_prepare(project, task)
    work(here)
    assert "'video'" in here.error()


def test_unknown_task(site: Make, work: Work) -> None:
    here = site()
    here.queue.request_prepare(1, 999_999)
    here.queue.request_prediction("k", 1, 999_999)
    work(here)
    assert here.jobs() == {}


@pytest.mark.parametrize("token", ["wrong", "a.b.c", "0" * 40, ""])
def test_wrong_token(site: Make, work: Work, token: str) -> None:
    here = site()
    task = here.task(here.project(), video=here.clip())
    wrong = site(label_studio_api_key=token)
    wrong.queue.request_prepare(1, task)
    work(wrong)
    assert set(wrong.jobs().values()) == {"failed"}
    assert "LABEL_STUDIO_API_KEY" in wrong.error()


def test_tracks_do_not_wait_until_all_tasks_are_prepared(site: Make, work: Callable[..., Container]) -> None:
    here = site()
    project = here.project()
    tasks = [here.task(project, video=here.clip()) for _ in range(3)]
    for task in tasks:
        here.queue.request_prepare(project, task)
    work(here, max_jobs=2)
    assert [len(here.predictions(task)) for task in tasks] == [1, 0, 0]
    work(here)
    assert [len(here.predictions(task)) for task in tasks] == [1, 1, 1]


# -- parts that are away


@pytest.fixture
def gate(label_studio: Any) -> Iterator[Gate]:
    relay = Gate(label_studio.url)
    yield relay
    relay.close()


def test_label_studio_down_while_delivering(
    site: Make, work: Work, gate: Gate, foreign: Outside, tmp_path: Path
) -> None:
    here = site(label_studio_url=gate.url, media_allowed_hosts="127.0.0.1:*", job_attempts=1)
    project = here.project()
    foreign.files["/a.mp4"] = make_clip(tmp_path / "a.mp4").read_bytes()
    task = here.task(project, video=foreign.url + "/a.mp4", **FACTS)

    def serve(handler: http.server.BaseHTTPRequestHandler) -> None:
        gate.shut()
        del foreign.special["/a.mp4"]
        foreign.serve(handler)

    foreign.special["/a.mp4"] = serve
    here.predict(project, task)
    work(here)
    assert set(here.jobs().values()) == {"scheduled"}
    (answer,) = here.predict(project, task)  # computed, so it can be handed out already
    assert answer["result"]
    for _ in range(3):  # still down, which costs no attempt
        here.hurry()
        work(here)
        assert set(here.jobs().values()) == {"scheduled"}
    assert all("Label Studio does not answer" in here.job(job_id).meta["error"] for job_id in here.jobs())
    assert here.predictions(task) == []
    gate.open()
    here.hurry()
    work(here)
    assert here.jobs() == {}
    assert len(here.predictions(task)) == 1
    assert here.queue.counters()["videos"] == 1
    assert len([path for path, _ in foreign.requests]) == 2  # `serve` counts itself twice


def test_being_stopped_costs_no_attempt_and_leaves_the_pauses_between_them(
    site: Make, work: Work, gate: Gate, foreign: Outside, tmp_path: Path
) -> None:
    here = site(label_studio_url=gate.url, media_allowed_hosts="127.0.0.1:*")
    project = here.project()
    foreign.files["/a.mp4"] = make_clip(tmp_path / "a.mp4").read_bytes()
    task = here.task(project, video=foreign.url + "/a.mp4", **FACTS)
    here.predict(project, task)
    (name,) = here.jobs()
    before = here.job(name)

    def serve(handler: http.server.BaseHTTPRequestHandler) -> None:
        get_container().stop.set()  # what SIGTERM does
        del foreign.special["/a.mp4"]
        foreign.serve(handler)

    for _ in range(before.retries_left + 1):
        foreign.special["/a.mp4"] = serve
        shutil.rmtree(here.settings.media_dir, ignore_errors=True)
        work(here)
        assert here.jobs() == {name: "scheduled"}
        assert here.job(name).retries_left == before.retries_left
        here.hurry()
    gate.shut()
    work(here)
    gate.open()
    assert here.job(name).retries_left == before.retries_left, "nor does a server that is away"
    here.hurry()
    foreign.answer("/a.mp4", 503)
    shutil.rmtree(here.settings.media_dir, ignore_errors=True)
    work(here)
    assert here.job(name).retries_left == before.retries_left - 1
    assert here.job(name).retry_intervals == before.retry_intervals
    del foreign.special["/a.mp4"]
    here.hurry()
    work(here)
    assert len(here.predictions(task)) == 1


def test_label_studio_down_for_too_long(site: Make, work: Work, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "LABEL_STUDIO_PATIENCE", timedelta(0))
    here = site(label_studio_url=gate.url, job_attempts=2)
    project = here.project()
    task = here.task(project, video=here.clip())
    here.queue.request_prepare(project, task)
    gate.shut()
    work(here)
    here.hurry()
    work(here)
    assert set(here.jobs().values()) == {"failed"}
    assert "Label Studio does not answer" in here.error()


def test_interrupted_delivery_forgets_nobody(site: Make, work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker ends between two of the tasks that wait: the job's next run serves the rest."""
    here = site()
    project = here.project()
    tasks = [here.task(project, video=here.clip(), **FACTS) for _ in range(3)]
    here.predict(project, *tasks)
    create = LabelStudioClient.create_prediction

    def create_one(client: LabelStudioClient, task: int, prediction: Any) -> None:
        if here.queue.counters().get("delivered"):
            raise QueueUnavailable("The worker is killed.")
        create(client, task, prediction)

    with monkeypatch.context() as patch:
        patch.setattr(LabelStudioClient, "create_prediction", create_one)
        work(here)
    assert sorted(len(here.predictions(task)) for task in tasks) == [0, 0, 1]
    here.hurry()
    work(here)
    assert [len(here.predictions(task)) for task in tasks] == [1, 1, 1]
    assert here.queue.counters()["videos"] == 1


def test_one_of_many_targets_fails(site: Make, work: Work) -> None:
    """A task that cannot take its prediction keeps none of the others from theirs."""
    here = site()
    project = here.project()
    tasks = [here.task(project, video=here.clip(), **FACTS) for _ in range(3)]
    here.predict(project, *tasks)
    (name,) = here.jobs()
    here.queue.add_targets(name.removeprefix("predict-"), [999_999])
    work(here)
    assert [len(here.predictions(task)) for task in tasks] == [1, 1, 1]
    assert here.jobs() == {}


def test_addresses_that_a_task_s_author_may_not_read(site: Make, work: Work) -> None:
    """The token reads every project; whoever writes a task may see one."""
    here = site()
    theirs, own = here.project(), here.project()
    video = here.client.upload_file(theirs, make_clip(here.videos / "theirs.mp4"))
    assert here.settings.local_files_root
    make_clip(here.settings.local_files_root / "private" / "clip.mp4")
    expected = {
        video: "no upload of its task's project",
        video.replace(f"/{theirs}/", f"/{own}/../{theirs}/"): "no file of Label Studio",
        f"/data/../api/projects/{theirs}/export?exportType=JSON": "not supported",
        f"{here.settings.label_studio_url}/api/projects/{theirs}/export?exportType=JSON": "not supported",
        "/data/local-files/?d=private/clip.mp4": "no local files storage of its task's project",
    }
    tasks = {here.task(own, video=address, fps=20): text for address, text in expected.items()}
    assert here.predict(own, *tasks) == [[]] * len(tasks)
    work(here)
    errors = "\n".join(failed["error"] for failed in here.queue.failed_jobs())
    for task, text in tasks.items():
        assert here.predictions(task) == []
        assert text in errors
    (right,) = (here.task(theirs, video=video, fps=20),)
    here.predict(theirs, right)
    work(here)
    assert len(here.predictions(right)) == 1


def test_events_of_many_tasks_hold_up_no_other_work(site: Make, work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only tasks that exist are prepared, some at once, and what others wait for comes between."""
    monkeypatch.setattr(predict, "PREPARE_BATCH", 5)
    monkeypatch.setattr(predict.MoreToPrepare, "delay_s", 3600)
    here = site()
    project = here.project()
    rows = [{"video": "/data/local-files/?d=videos/none.mp4"}] * 8
    here.client.sdk.projects.import_tasks(id=project, request=rows)
    tasks = sorted(state.id for state in here.client.list_task_states(project))
    nobodys = [tasks[-1] + 1_000_000 + n for n in range(6)]
    here.queue.request_prepare_many(project, [*tasks, *nobodys])

    def prepared() -> list[str]:
        return sorted(job["id"] for job in here.queue.failed_jobs())  # there is no such video

    work(here)
    assert prepared() == sorted(f"prepare-{task}" for task in tasks[:5])
    assert here.jobs()[f"prepare-many-{project}"] == "scheduled"
    for _ in range(2):
        here.hurry()
        work(here)
    assert prepared() == sorted(f"prepare-{task}" for task in tasks)
    assert here.queue.storage.pending("prepare", project) == {}


def test_a_frame_rate_that_no_video_has_is_refused(site: Make, work: Work) -> None:
    """At 100,000 frames a second, ten seconds of video cost minutes."""
    here = site()
    project = here.project()
    task = here.task(project, video=here.clip(), **(FACTS | {"fps": 100_000}))
    assert here.predict(project, task) == [[]]
    work(here)
    assert "100000 frames per second are more than the 1000" in here.error()
    assert here.predictions(task) == []
