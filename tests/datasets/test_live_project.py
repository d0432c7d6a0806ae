"""Exports of a real Label Studio project: uploads, annotations, accepted and changed predictions, deleted videos."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from ml_backend.core.settings import Settings
from ml_backend.datasets.annotation_reader import AnnotationReader
from tests.builders import CONFIG, run_command
from tests.conftest import LabelStudio
from tests.datasets.builders import key, make_region
from tests.datasets.test_annotations_json import rows_of
from tests.video.builders import make_video

DRAWN = make_region(key(1, 10), key(11, 30), key(21, 30, enabled=False), label="thing", region_id="drawn00001")
PREDICTED = make_region(key(5, 60), key(25, 70, enabled=False), label="thing", region_id="predicted1") | {
    "score": 0.85,
    "meta": {"original_class": "dog"},
}
del PREDICTED["origin"]


@pytest.fixture
def project(label_studio: LabelStudio, tmp_path: Path) -> dict[str, Any]:
    """Five tasks: annotated, skipped, only predicted, nothing at all, and annotated with its video deleted since."""
    client = label_studio.client()
    project_id = client.create_project("Export", CONFIG)
    video = make_video(tmp_path / "ein film.mp4")
    uploads = [client.upload_file(project_id, video) for _ in range(5)]
    tasks = [client.create_task(project_id, {"video": upload, "fps": 30}) for upload in uploads]
    headers = client.auth_headers()

    def annotate(task: int, result: list[dict[str, Any]], **more: Any) -> None:
        answer = httpx.post(
            f"{label_studio.url}/api/tasks/{task}/annotations/",
            headers=headers,
            json={"result": result, **more},
            timeout=120,
        )
        answer.raise_for_status()

    accepted = {**PREDICTED, "origin": "prediction"}
    changed = {**PREDICTED, "origin": "prediction-changed", "id": "changed001"}
    client.create_prediction(tasks[0], {"result": [PREDICTED], "score": 0.85, "model_version": "v1"})
    annotate(tasks[0], [make_region(key(1, 0), label="thing")])
    time.sleep(0.01)
    annotate(tasks[0], [DRAWN, accepted, changed])
    annotate(tasks[1], [DRAWN], was_cancelled=True)
    client.create_prediction(tasks[2], {"result": [PREDICTED], "score": 0.85, "model_version": "v1"})
    annotate(tasks[4], [DRAWN])
    upload = label_studio.media_root / "upload" / str(project_id) / uploads[4].rsplit("/", 1)[-1]
    upload.unlink()
    return {"id": project_id, "tasks": tasks}


def run(command: str, *arguments: object, label_studio: LabelStudio, cwd: Path) -> subprocess.CompletedProcess[str]:
    variables = {
        "LABEL_STUDIO_URL": label_studio.url,
        "LABEL_STUDIO_API_KEY": label_studio.token,
        "DATA_DIR": str(cwd / "data"),
    }
    return run_command(command, *arguments, cwd=cwd, **variables)


def test_a_live_project(
    project: dict[str, Any], label_studio: LabelStudio, tmp_path: Path, settings: Callable[..., Settings]
) -> None:
    source = AnnotationReader.from_project(label_studio.client(), project["id"], settings())
    videos = list(source.videos())
    assert [video.task_id for video in videos] == project["tasks"][:1]
    assert videos[0].name == "ein_film.mp4"
    assert [(item.source, item.confidence, item.original_class) for item in videos[0].objects] == [
        ("manual", None, None),
        ("auto", 0.85, "dog"),
        ("manual", None, None),
    ]
    assert videos[0].task_video.submission.annotator not in ("", "None")
    assert [item.task_id for item in source.skipped] == project["tasks"][4:]
    assert len(list(source.task_videos())) == 2
    everything = AnnotationReader.from_project(
        label_studio.client(), project["id"], settings(), all_annotators=True, predictions="missing"
    )
    assert [part.task_id for part in everything.task_videos()] == [project["tasks"][n] for n in (0, 0, 2, 4)]


def test_the_scripts_on_a_live_project(project: dict[str, Any], label_studio: LabelStudio, tmp_path: Path) -> None:
    where = {"label_studio": label_studio, "cwd": tmp_path}
    done = run("export-annotations", "--project", project["id"], "--out", "a.json", "--with-video", **where)
    assert done.returncode == 3, done.stderr
    assert f"task {project['tasks'][4]}" in done.stderr
    rows = rows_of(tmp_path / "a.json")
    assert {row["source"] for row in rows} == {"manual", "auto"}
    assert sum("confidence" in row for row in rows) == 21  # the accepted one
    arguments = ["--project", project["id"], "--out", "a.json", "--predictions", "missing"]
    assert run("export-annotations", *arguments, **where).returncode == 3
    rows = rows_of(tmp_path / "a.json")
    assert sum("confidence" in row for row in rows) == 2 * 21  # and that of the task without people
    arguments = ["--format", "yolo", "--project", project["id"], "--out", "yolo", "--stride", 10]
    done = run("export-dataset", *arguments, **where)
    assert done.returncode == 3, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert (summary["videos"], summary["classes"], summary["pictures"]) == (1, ["thing"], {"train": 2, "val": 1})
    assert sorted(path.name for path in (tmp_path / "yolo" / "images").rglob("*.jpg")) == [
        f"ein_film_{n:06d}.jpg" for n in (0, 10, 20)
    ]


def test_an_export_file_of_label_studio(project: dict[str, Any], label_studio: LabelStudio, tmp_path: Path) -> None:
    """What the Export button gives, in both formats, read without any label config."""
    headers = label_studio.client().auth_headers()
    rows = {}
    for kind in ("JSON", "JSON_MIN"):
        answer = httpx.get(
            f"{label_studio.url}/api/projects/{project['id']}/export",
            params={"exportType": kind, "download_all_tasks": "true"},
            headers=headers,
            timeout=120,
        )
        answer.raise_for_status()
        (tmp_path / f"{kind}.json").write_bytes(answer.content)
        source = AnnotationReader.from_file(tmp_path / f"{kind}.json")
        videos = list(source.videos())
        rows[kind] = [
            [(item.label, item.source, *video.boxes(item)[1].round(3).tolist()[0]) for item in video.objects]
            for video in videos
        ]
        assert rows[kind], kind
    assert [len(objects) for objects in rows["JSON"]] == [len(objects) for objects in rows["JSON_MIN"]]
    assert {item[1] for item in rows["JSON"][0]} == {"manual", "auto"}
    assert {item[1] for item in rows["JSON_MIN"][0]} == {"manual"}  # it does not say where regions come from
    strip = [[(item[0], *item[2:]) for item in objects] for objects in rows["JSON"]]
    assert strip == [[(item[0], *item[2:]) for item in objects] for objects in rows["JSON_MIN"]]


def test_old_work_is_imported(label_studio: LabelStudio, tmp_path: Path) -> None:
    """Boxes of MOT text end up in a real project as a prediction that Label Studio takes."""
    make_video(tmp_path / "clip.mp4")
    (tmp_path / "clip.txt").write_text("".join(f"{n},1,{n * 2},10,50,60,1,-1,-1,-1\n" for n in range(1, 31)))
    (tmp_path / "config.xml").write_text(CONFIG)
    arguments = ["--format", "mot", "--to-label-studio", "clip.txt", "--out", "t.json", "--config", "config.xml"]
    done = run("export-dataset", *arguments, label_studio=label_studio, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    client = label_studio.client()
    project_id = client.create_project("Import", CONFIG)
    answer = httpx.post(
        f"{label_studio.url}/api/projects/{project_id}/import",
        headers=client.auth_headers(),
        json=json.loads((tmp_path / "t.json").read_text()),
        timeout=120,
    )
    answer.raise_for_status()
    (task,) = client.list_full_tasks(project_id)
    assert len(task["predictions"][0]["result"]) == 1
