"""The control room's jobs, asked for through its API: a worker here, a real Label Studio, Redis and database."""

from __future__ import annotations

import io
import json
import math
import signal
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ml_backend.jobs import api_file_jobs
from ml_backend.jobs.container import Container
from ml_backend.server.app import create_app
from ml_backend.video.probe import probe
from tests.builders import label_config, make_clip, make_tiny_yolo, repeat_clip, wait_for, worker_process
from tests.jobs.conftest import Site
from tests.jobs.scenes import make_walk, walk_regions
from tests.jobs.test_learn import CONFIG as SCENES
from tests.jobs.test_learn import make_scene, teach
from tests.server.control import Room
from tests.tiny_sam import save_tiny_sam
from tests.video.builders import make_video

Make = Callable[..., Site]
Work = Callable[[Site], Container]

WALK = label_config("walker", "vehicle")


@pytest.fixture
def here(site: Make) -> Site:
    return site()


def room(here: Site) -> Room:
    return Room(create_app(here.settings))


def walk(here: Site, project: int, **labels: str) -> int:
    """An annotated task."""
    if not (here.videos / "walk.mp4").exists():
        make_walk(here.videos / "walk.mp4")
    task = here.task(project, video="/data/local-files/?d=videos/walk.mp4", fps=20)
    here.sdk.annotations.create(id=task, result=walk_regions(**labels))
    return task


def ended(asking: Room, job: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = asking.get(f"/api/jobs/{job['id']}")
    assert found["state"] in ("finished", "failed", "cancelled"), found
    return found


def output(asking: Room, job: dict[str, Any]) -> bytes:
    """The file that a job has made."""
    found = ended(asking, job)
    assert found["state"] == "finished", found["error"]
    answer = asking.client.get(f"/api/download/{found['result']['file']}")
    asking.check("GET", "/api/download/x.mp4", answer)
    assert answer.status_code == 200
    assert len(answer.data) == found["result"]["bytes"]
    return answer.data


# -- overview


def test_projects_with_their_numbers(here: Site) -> None:
    project = here.project(WALK)
    walk(here, project)
    asking = room(here)
    found = next(item for item in asking.get("/api/projects")["projects"] if item["id"] == project)
    assert (found["tasks"], found["annotated"], found["mode"], found["version"]) == (1, 1, "yolo_dinov2", "base")
    assert found["url"].startswith(here.settings.label_studio_url)


def test_a_wrong_token_is_said(site: Make) -> None:
    asking = room(site(label_studio_api_key="0" * 40))
    assert "refuses the token" in asking.get("/api/projects", 502)["detail"]


def test_models_are_loaded_on_request(here: Site, work: Work) -> None:
    asking = room(here)
    job = asking.post("/api/init_models", {"project": here.project(WALK)}, 202)["job"]
    work(here)
    found = ended(asking, job)
    assert found["state"] == "finished", found["error"]
    assert found["result"]["loaded"] == ["efficientnet_lite0"]  # nothing is to be loaded for the motion detector
    work(here)  # a worker reports its models as it starts, and between jobs
    assert asking.get("/api/memory_status")["workers"]


# -- label: uploads


def upload(asking: Room, project: int, path: Path, name: str = "") -> Any:
    data = {"project": str(project), "file": (io.BytesIO(path.read_bytes()), name or path.name)}
    return asking.ask("POST", "/api/upload_video", 202, data=data, content_type="multipart/form-data")["job"]


def test_two_hosts(site: Make, tmp_path: Path) -> None:
    """The web process on one, the worker on the other, each with a folder of its own."""
    shared = {"artifacts_url": f"file://{tmp_path}/store", "database_url": f"sqlite:///{tmp_path}/shared.sqlite3"}
    web, other = (site(mode="yolo", data_dir=tmp_path / name, **shared) for name in ("web", "other"))
    project, asking = web.project(WALK), room(web)
    with worker_process(other.settings, tmp_path / "log"):

        def done(job: dict[str, Any]) -> dict[str, Any]:
            wait_for(lambda: asking.get(f"/api/jobs/{job['id']}")["state"] in ("finished", "failed"), what=job["kind"])
            found = ended(asking, job)
            assert found["state"] == "finished", found["error"]
            return found

        task = done(upload(asking, project, make_clip(tmp_path / "clip.mp4")))["result"]["task"]
        body = {"project": project, "task": task, "source": "base"}
        rendered = done(asking.post("/api/create_annotated_video", body, 202)["job"])
        body = {"project": project, "format": "annotations"}
        exported = done(asking.post("/api/export", body, 202)["job"])
    for job, begin in ((rendered, b"ftyp"), (exported, b"[")):
        assert (other.settings.outputs_dir / job["result"]["file"]).is_file()
        assert not (web.settings.outputs_dir / job["result"]["file"]).exists()
        assert begin in output(asking, job)[:8]
    names = [item["name"] for item in asking.get(f"/api/files?project={project}")["files"]]
    assert set(names) == {rendered["result"]["file"], exported["result"]["file"]}
    for folder in (web, other):
        left = folder.settings.uploads_dir
        assert not left.exists() or not list(left.iterdir())


def test_an_upload_becomes_a_task_once(here: Site, work: Work, tmp_path: Path) -> None:
    project, asking = here.project(WALK), room(here)
    clip = make_clip(tmp_path / "거리 <b>.mp4")
    job = upload(asking, project, clip)
    work(here)
    found = ended(asking, job)
    assert found["state"] == "finished", found["error"]
    data = here.data(found["result"]["task"])
    assert (data["fps"], data["source"]) == (20, "거리 _b_.mp4")
    again = upload(asking, project, clip, "other.mp4")
    assert again["id"] == job["id"]
    work(here)
    second = ended(asking, again)
    assert (second["result"]["task"], second["result"]["status"]) == (found["result"]["task"], "skipped")
    assert list(here.settings.uploads_dir.iterdir()) == []


def test_what_is_no_video_fails_and_is_removed(here: Site, work: Work, tmp_path: Path) -> None:
    project, asking = here.project(WALK), room(here)
    (tmp_path / "x.mp4").write_bytes(b"#!/bin/sh\nrm -rf /\n" * 100)
    job = upload(asking, project, tmp_path / "x.mp4")
    work(here)
    found = ended(asking, job)
    assert (found["state"], found["result"]) == ("failed", None)
    assert found["error"]
    assert list(here.settings.uploads_dir.iterdir()) == []
    assert [state.id for state in here.client.list_task_states(project)] == []
    # Somebody who asks again does not have to wait.
    assert upload(asking, project, tmp_path / "x.mp4")["state"] == "queued"


@pytest.fixture(scope="module")
def odd_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video that is to be converted, which takes some seconds."""
    return make_video(
        tmp_path_factory.mktemp("odd") / "odd clip.avi", frames=600, size=(640, 480), fps=20, codec="mpeg4"
    )


def upload_of(here: Site) -> Path:
    """The only upload that is kept."""
    (path,) = here.settings.uploads_dir.rglob("*.*")
    return path


def converting(here: Site) -> bool:
    return any((here.settings.data_dir / "playable").rglob("*copy*"))


def test_a_worker_that_ends_while_it_converts_keeps_the_video(
    here: Site, work: Work, odd_clip: Path, tmp_path: Path
) -> None:
    project, asking = here.project(WALK), room(here)
    job = upload(asking, project, odd_clip)
    with worker_process(here.settings, tmp_path / "log") as worker:
        wait_for(lambda: converting(here))
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(timeout=900) == 0
    # It pauses before its next try, or has done so already.
    assert asking.get(f"/api/jobs/{job['id']}")["state"] in ("waiting", "queued"), (tmp_path / "log").read_text()
    assert upload_of(here).read_bytes() == odd_clip.read_bytes()
    here.hurry()
    work(here)
    found = ended(asking, job)
    assert found["state"] == "finished", found["error"]
    assert here.data(found["result"]["task"])["frames"] == 600
    assert list(here.settings.uploads_dir.iterdir()) == []


def test_an_upload_that_is_cancelled_is_removed(here: Site, work: Work, odd_clip: Path) -> None:
    project, asking = here.project(WALK), room(here)
    upload(asking, project, odd_clip)
    seen = cancel_when(asking, lambda: converting(here) and running(asking, "import_video"))
    work(here)
    assert seen() == "cancelled"
    assert list(here.settings.uploads_dir.iterdir()) == []


def test_a_full_disk_does_not_cost_the_video(here: Site, work: Work, tmp_path: Path) -> None:
    """A file where the folder of copies belongs refuses them as a full disk does."""
    project, asking = here.project(WALK), room(here)
    clip = make_video(tmp_path / "old.avi", frames=10, codec="mpeg4")
    job = upload(asking, project, clip)
    (here.settings.data_dir / "playable").write_text("")
    work(here)
    found = asking.get(f"/api/jobs/{job['id']}")
    assert (found["state"], "is kept" in found["error"]) == ("waiting", False), "it is tried again without anybody"
    for _ in range(here.settings.job_attempts):
        here.hurry()
        work(here)
    error = ended(asking, job)["error"]
    assert ("Cannot write" in error, str(upload_of(here)) in error) == (True, True), error
    (here.settings.data_dir / "playable").unlink()
    job = upload(asking, project, clip)
    work(here)
    assert ended(asking, job)["state"] == "finished"


def test_a_wrong_token_does_not_cost_the_video(site: Make, work: Work, tmp_path: Path) -> None:
    here = site(label_studio_api_key="0" * 40)
    project, asking = site().project(WALK), room(site())
    clip = make_clip(tmp_path / "a b.mp4")
    job = upload(asking, project, clip)
    work(here)
    found = ended(asking, job)
    path = upload_of(here)
    assert path.read_bytes() == clip.read_bytes()
    assert found["state"] == "failed"
    for part in ("refuses the token", "LABEL_STUDIO_API_KEY", "is kept for 2 days", f"--project {project} '{path}'"):
        assert part in found["error"]
    work(site())
    assert upload_of(site()) == path, "nothing happens by itself"
    again = upload(room(site()), project, clip)
    work(site())
    assert (again["id"], ended(asking, again)["state"]) == (job["id"], "finished")
    assert list(here.settings.uploads_dir.iterdir()) == []


# -- auto-label


def test_predictions_are_requested_and_followed(here: Site, work: Work) -> None:
    project, asking = here.project(), room(here)
    tasks = [here.task(project, video=here.clip(f"{n}.mp4", frames=30 + n)) for n in range(3)]
    done = here.task(project, video=here.clip("done.mp4"))
    here.annotate(done)
    job = asking.post("/api/auto_label", {"project": project}, 202)["job"]
    work(here)
    found = ended(asking, job)
    assert (found["state"], found["result"]) == ("finished", {"tasks": 3, "failed": 0})
    assert all(here.predictions(task) for task in tasks)
    assert not here.predictions(done)
    assert asking.post("/api/auto_label", {"project": project}, 202)["job"]["state"] == "queued"


def test_how_far_predictions_are(here: Site) -> None:
    """The job itself is over; what it has asked for is not."""
    project, asking = here.project(), room(here)
    queue = asking.services.queue
    tasks = [here.task(project, video=f"{number}.mp4") for number in range(4)]
    name = asking.post("/api/auto_label", {"project": project, "tasks": tasks}, 202)["job"]["id"]
    job = queue.fetch(name)
    queue.queues["control"].remove(name)
    job.set_status("finished")
    queue.queues["control"].finished_job_registry.add(job, ttl=1000)
    job.meta["tasks"] = tasks
    job.save_meta()
    somebody_elses = tasks[-1] + 1
    queue.request_prepare(project, tasks[0])
    for task in (tasks[1], tasks[2], somebody_elses):
        queue.request_prediction("a" * 40, project, task)
    found = asking.get(f"/api/jobs/{name}")
    assert (found["state"], found["progress"]["share"]) == ("running", 0.25)
    assert asking.post("/api/auto_label", {"project": project, "tasks": tasks[::-1]}, 202)["job"]["id"] == name
    assert [item["state"] for item in asking.get("/api/jobs")["jobs"] if item["id"] == name] == ["running"]
    assert asking.delete(f"/api/jobs/{name}")["state"] == "cancelled"
    assert queue.fetch(f"prepare-{tasks[0]}") is None
    assert queue.targets("a" * 40) == {somebody_elses}, "somebody else waits for the same video"
    assert queue.fetch("predict-" + "a" * 40) is not None


def test_a_prediction_that_runs_is_cancelled(here: Site, work: Work, tmp_path: Path) -> None:
    project, asking = here.project(), room(here)
    repeat_clip(make_clip(tmp_path / "short.mp4", frames=100), here.videos / "long.mp4", 15)
    task = here.task(project, video=here.clip("long.mp4"), fps=20, frames=1, width=1, height=1, duration=1)
    job = asking.post("/api/auto_label", {"project": project, "tasks": [task]}, 202)["job"]
    seen = cancel_when(asking, lambda: running(asking, "predict") and job["id"])
    work(here)
    assert seen() == "cancelled"
    assert not here.predictions(task)
    assert not [item for item in asking.services.jobs.all() if item["state"] in ("queued", "running", "waiting")]


def running(asking: Room, kind: str) -> str:
    """A job of that kind that runs."""
    found = asking.services.jobs.all()
    return next((item["id"] for item in found if item["kind"] == kind and item["state"] == "running"), "")


def cancel_when(asking: Room, which: Callable[[], str]) -> Callable[[], str]:
    """Cancel, from another thread, the job that ``which`` gives; what it says in the end."""
    names: list[str] = []

    def watch() -> None:
        name = wait_for(which)
        names.append(name)
        asking.app.test_client().delete(f"/api/jobs/{name}")

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()

    def state() -> str:
        thread.join(timeout=300)
        return str(asking.get(f"/api/jobs/{names[0]}")["state"])

    return state


# -- review and export


def test_a_video_with_annotations(here: Site, work: Work, tmp_path: Path) -> None:
    project, asking = here.project(WALK), room(here)
    task = walk(here, project)
    body = {"project": project, "task": task}
    job = asking.post("/api/create_annotated_video", body, 202)["job"]
    assert (job["task"], job["state"]) == (task, "queued")
    assert asking.post("/api/create_annotated_video", body, 202)["job"] == job
    work(here)
    (tmp_path / "out.mp4").write_bytes(output(asking, job))
    info = probe(tmp_path / "out.mp4")
    assert (info.frames, info.codec) == (120, "h264")
    assert ended(asking, job)["result"]["labels"] == {"walker": 1, "vehicle": 1}
    (listed,) = asking.get(f"/api/files?project={project}")["files"]
    facts = {"source": "annotations", "model": "", "task": task, "video": "walk.mp4", "tracks": 2}
    assert {key: listed[key] for key in facts} == facts
    again = asking.post("/api/create_annotated_video", body, 202)["job"]
    assert (again["id"], again["state"], again["result"]) == (job["id"], "queued", None)


def test_a_video_with_what_the_motion_detector_finds(here: Site, work: Work) -> None:
    project, asking = here.project(), room(here)
    task = here.task(project, video=here.clip())
    body = {"project": project, "task": task, "source": "base"}
    job = asking.post("/api/create_annotated_video", body, 202)["job"]
    work(here)
    assert output(asking, job)[4:8] == b"ftyp"
    assert ended(asking, job)["result"]["tracks"] == 1
    (listed,) = asking.get(f"/api/files?project={project}")["files"]
    assert (listed["source"], listed["model"].startswith("motion"), listed["video"]) == ("base", True, "clip.mp4")


def test_a_video_with_the_classes_of_the_base_model(site: Make, work: Work, yolo_weights: Path) -> None:
    """The project's labels have other names; what the model finds is shown all the same."""
    here = site(detector="yolo", yolo_weights=str(yolo_weights), imgsz=320)
    project, asking = here.project(WALK), room(here)
    task = walk(here, project)
    body = {"project": project, "task": task, "source": "base"}
    job = asking.post("/api/create_annotated_video", body, 202)["job"]
    work(here)
    assert output(asking, job)[4:8] == b"ftyp"
    assert {"person", "bus"} <= set(ended(asking, job)["result"]["labels"])


def test_a_video_with_the_prediction(here: Site, work: Work) -> None:
    project, asking = here.project(), room(here)
    task = here.task(project, video=here.clip())
    body = {"project": project, "task": task, "source": "predictions"}
    job = asking.post("/api/create_annotated_video", body, 202)["job"]
    work(here)
    assert "has no predictions" in ended(asking, job)["error"]
    here.queue.request_prepare(project, task)
    work(here)
    job = asking.post("/api/create_annotated_video", body, 202)["job"]
    work(here)
    assert output(asking, job)[4:8] == b"ftyp"
    (listed,) = asking.get(f"/api/files?project={project}")["files"]
    assert (listed["source"], listed["model"]) == ("predictions", here.prediction_service.version(project))


def test_tasks_of_other_projects_are_not_shown(here: Site) -> None:
    mine, other, asking = here.project(WALK), here.project(WALK), room(here)
    task = walk(here, other)
    for source in ("annotations", "base"):
        body = {"project": mine, "task": task, "source": source}
        assert "is not in project" in asking.post("/api/create_annotated_video", body, 404)["detail"]
    assert not asking.services.jobs.all()


def test_a_video_by_a_trained_version(site: Make, work: Work, tmp_path: Path) -> None:
    here = site(detector="auto", mode="yolo", imgsz=128, engine="torch")
    project, asking = here.project(WALK), room(here)
    task = walk(here, project)
    body = {"project": project, "task": task}
    assert "no trained version" in asking.post("/api/create_custom_model_video", body, 422)["detail"]
    weights = make_tiny_yolo(tmp_path / "tiny.pt", {0: "walker", 1: "vehicle"})
    registry, artifacts = asking.services.registry, asking.services.artifacts
    run = registry.begin(project, "me", "a test", None)
    assert "is dataset" in asking.post("/api/create_custom_model_video", body | {"version": "v1"}, 422)["detail"]
    sha256 = artifacts.put(weights, f"projects/{project}/v1.pt")
    artifact = f"projects/{project}/v1.pt"
    values: dict[str, Any] = {"weights_sha256": sha256, "artifact": artifact, "classes": ["walker", "vehicle"]}
    registry.promote(registry.advance(run, detector="yolo11n", **values), "better", "gate")

    def title(version: str = "") -> str:
        named = {"version": version} if version else {}
        job = asking.post("/api/create_custom_model_video", body | named, 202)["job"]
        work(here)
        assert output(asking, job)[4:8] == b"ftyp"
        return str(ended(asking, job)["result"]["title"])

    def looked() -> float:
        """Videos that a detector has looked at."""
        return here.queue.counters()["videos"]

    # Its tracks do not pass for the project's while it is not in use.
    asking.post("/api/switch_model", {"project": project, "version": "base"})
    found = title("v1")
    assert found.endswith(".v1")
    assert looked() == 1
    assert list(asking.services.projects.patterns.tracks_of_project(project)) == []

    loading = asking.post("/api/load_custom_model", {"project": project, "version": "v1"}, 202)
    assert (title(), looked()) == (found, 2)
    assert ended(asking, loading["job"])["result"]["loaded"] == ["yolo11n"]
    # From then on they are known, also when it is not in use any more.
    assert (title(), looked()) == (found, 2)
    asking.post("/api/switch_model", {"project": project, "version": "base"})
    assert (title("v1"), looked()) == (found, 2)


def test_a_rendering_that_runs_is_cancelled(here: Site, work: Work, tmp_path: Path) -> None:
    project, asking = here.project(), room(here)
    repeat_clip(make_clip(tmp_path / "short.mp4", frames=100, size=(640, 480)), here.videos / "long.mp4", 20)
    task = here.task(project, video=here.clip("long.mp4"), fps=20)
    body = {"project": project, "task": task, "source": "base"}
    job = asking.post("/api/create_annotated_video", body, 202)["job"]
    seen = cancel_when(asking, lambda: running(asking, "render_video"))
    started = time.monotonic()
    work(here)
    assert seen() == "cancelled"
    assert time.monotonic() - started < 60
    assert "already ended" in asking.delete(f"/api/jobs/{job['id']}", 409)["detail"]
    folder = here.settings.outputs_dir
    assert not folder.exists() or not list(folder.iterdir())


def test_annotations_as_json(here: Site, work: Work) -> None:
    project, asking = here.project(WALK), room(here)
    walk(here, project)
    body = {"project": project, "format": "annotations"}
    job = asking.post("/api/export", body, 202)["job"]
    work(here)
    rows = json.loads(output(asking, job))
    assert {row["label"] for row in rows} == {"walker", "vehicle"}
    assert not any("track_id" in row for row in rows)
    assert ended(asking, job)["result"]["rows"] == len(rows)
    job = asking.post("/api/export", body | {"with_ids": True}, 202)["job"]
    work(here)
    rows = json.loads(output(asking, job))
    assert {row["track_id"] for row in rows} == {1, 2}
    assert {row["frame_number"] for row in rows} == set(range(120))


@pytest.mark.parametrize(
    ("name", "member"),
    [
        ("yolo", "data.yaml"),
        ("yolo-track", "data.yaml"),
        ("coco", ".json"),
        ("mot", "gt/gt.txt"),
        ("cvat", ".xml"),
    ],
)
def test_datasets_as_archives(here: Site, work: Work, name: str, member: str) -> None:
    project, asking = here.project(WALK), room(here)
    walk(here, project)
    job = asking.post("/api/export", {"project": project, "format": name}, 202)["job"]
    work(here)
    with zipfile.ZipFile(io.BytesIO(output(asking, job))) as archive:
        names = archive.namelist()
        assert archive.testzip() is None
    assert any(item.endswith(member) for item in names), names[:20]
    assert not [item for item in names if any(part.startswith(".") for part in item.split("/"))]
    file = ended(asking, job)["result"]["file"]
    left = {path.name for path in here.settings.outputs_dir.iterdir()}
    assert left == {file, f"{file}.json"}, "nothing half-made is left"
    (listed,) = asking.get(f"/api/files?project={project}")["files"]
    facts = {"format": name, "source": "annotations", "model": "", "video": "walk.mp4", "videos": 1, "skipped": 0}
    assert {key: listed[key] for key in facts} == facts


def test_masks_in_an_archive(site: Make, work: Work, tmp_path: Path) -> None:
    here = site(segmenter=str(save_tiny_sam("sam2_video", tmp_path / "sam")), device="cpu")
    project, asking = here.project(WALK), room(here)
    walk(here, project)
    job = asking.post("/api/export", {"project": project, "format": "yolo-seg", "stride": 30}, 202)["job"]
    work(here)
    with zipfile.ZipFile(io.BytesIO(output(asking, job))) as archive:
        labels = [archive.read(name).decode() for name in archive.namelist() if name.endswith(".txt")]
    assert len(labels) == 4
    assert all(len(line.split()) >= 9 for text in labels for line in text.splitlines())
    assert any(labels)
    assert isinstance(ended(asking, job)["result"]["notes"], list)


@pytest.mark.parametrize(("stride", "taken"), [({}, 1), ({"stride": 4}, 4)])
def test_every_picture_of_a_dataset_or_fewer(here: Site, work: Work, stride: dict[str, int], taken: int) -> None:
    project, asking = here.project(WALK), room(here)
    walk(here, project)
    job = asking.post("/api/export", {"project": project, "format": "coco", **stride}, 202)["job"]
    work(here)
    with zipfile.ZipFile(io.BytesIO(output(asking, job))) as archive:
        pictures = [item for item in archive.namelist() if item.endswith(".jpg")]
    frames = probe(here.videos / "walk.mp4").frames
    assert len(pictures) == math.ceil(frames / taken)


def test_a_dataset_that_does_not_fit(here: Site, work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    project, asking = here.project(WALK), room(here)
    walk(here, project)
    monkeypatch.setattr(api_file_jobs, "SPARE_BYTES", 1 << 60)
    job = asking.post("/api/export", {"project": project, "format": "yolo", "stride": 1}, 202)["job"]
    work(here)
    failed = ended(asking, job)
    assert failed["state"] == "failed"
    assert "does not fit" in failed["error"]
    assert "larger stride" in failed["error"]
    assert list(here.settings.outputs_dir.iterdir()) == []


def test_a_project_without_annotations_is_not_exported(here: Site, work: Work) -> None:
    project, asking = here.project(WALK), room(here)
    job = asking.post("/api/export", {"project": project, "format": "yolo"}, 202)["job"]
    work(here)
    assert "Nothing has been annotated" in ended(asking, job)["error"]


def test_a_project_that_is_not_there(here: Site) -> None:
    problem = room(here).post("/api/export", {"project": 999_999, "format": "coco"}, 404)
    assert problem["detail"] == "Project 999999 was not found."


# -- numbers


def test_statistics_are_counted_by_a_job(here: Site, work: Work) -> None:
    project, asking = here.project(WALK), room(here)
    walk(here, project)
    path = f"/api/stats?project={project}"
    first = asking.get(path, 202)
    assert (first["counted_at"], first["rows"]) == (None, [])
    assert asking.get(path, 202)["job"]["id"] == first["job"]["id"]
    work(here)
    found = asking.get(path)
    assert found["job"] is None
    labels = {row["name"]: row for row in found["rows"] if row["kind"] == "label"}
    assert labels["walker"]["tracks"] == 1
    fresh = asking.get(f"{path}&fresh=true")
    assert fresh["job"]["state"] == "queued"
    assert fresh["rows"] == found["rows"], "what is known is told meanwhile"


def test_counting_that_fails_is_not_started_by_everybody_who_looks(here: Site, work: Work) -> None:
    texts = '<View><Text name="t" value="$text"/><Choices name="c" toName="t"><Choice value="a"/></Choices></View>'
    project, asking = here.project(texts), room(here)
    asking.get(f"/api/stats?project={project}", 202)
    work(here)
    found = asking.get(f"/api/stats?project={project}", 202)
    assert (found["job"]["state"], "Video" in found["job"]["error"]) == ("failed", True), found["job"]["error"]


def test_patterns_and_more_like_this(here: Site, work: Work) -> None:
    project, asking = here.project(SCENES), room(here)
    make_scene(here.videos / "first.mp4", [("woman", 20), ("bus", 200)])
    make_scene(here.videos / "second.mp4", [("bus", 20), ("woman", 200)])
    first, second = (
        here.task(project, video=f"/data/local-files/?d=videos/{name}.mp4") for name in ("first", "second")
    )
    asking.post("/api/auto_label", {"project": project}, 202)
    work(here)
    teach(here, project, first, top="walker", bottom="vehicle")
    work(here)
    path = f"/api/get_patterns_info?project={project}"
    found = asking.get(path)
    assert found["labels"]["walker"]["objects"] == 1
    assert "clusters" not in found["labels"]["walker"]
    assert found["job"]["state"] == "queued"
    work(here)
    known = asking.get(path)
    assert known["job"] is None
    assert known["labels"]["walker"]["clusters"] == 1
    assert 0 <= known["labels"]["walker"]["threshold"] <= 1
    assert {point["label"] for point in known["map"]} == {"walker", "vehicle"}
    assert all(-1 <= point[axis] <= 1 for point in known["map"] for axis in "xy")
    shown = asking.get(f"/api/exemplars?project={project}&label=walker&limit=2")["exemplars"]
    assert [item["task"] for item in shown] == [first, first]
    assert shown[0]["thumbnail"].startswith("data:image/jpeg;base64,")

    look = f"/api/similar?project={project}&label=vehicle&limit=5"
    assert asking.get(look, 202)["tracks"] == []
    work(here)
    tracks = asking.get(look)["tracks"]
    assert {item["task"] for item in tracks} == {second}
    assert tracks[0]["thumbnail"].startswith("data:image/jpeg;base64,")
    assert tracks[0]["score"] >= tracks[-1]["score"]


def test_learning_on_request(here: Site, work: Work) -> None:
    project, asking = here.project(WALK), room(here)
    walk(here, project)
    job = asking.post("/api/learn_patterns", {"project": project}, 202)["job"]
    work(here)
    assert ended(asking, job)["state"] == "finished"
    assert set(asking.get(f"/api/get_patterns_info?project={project}")["labels"]) == {"walker", "vehicle"}


def test_the_list_and_label_studio_that_is_away(site: Make) -> None:
    asking = room(site(label_studio_url="http://127.0.0.1:1"))
    assert "does not answer" in asking.get("/api/projects", 503)["detail"]
