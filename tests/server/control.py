"""What tests of the control room's API share: a client that checks every answer against the OpenAPI document."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jsonschema
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from ml_backend.jobs.container import Container
from ml_backend.jobs.live_cameras import CameraAnnouncer, announcing
from ml_backend.jobs.queue import JobQueue
from ml_backend.jobs.training_inputs import training_settings_digest
from ml_backend.server.api import handlers
from ml_backend.server.container import WebContainer
from ml_backend.training.annotation_review import KINDS, AnnotationReview, RegionDiff
from ml_backend.training.registry import Version
from ml_backend.training.review_store import ReviewStore, TaskReview
from tests.builders import CONFIG, Outside, send, wait_for

MODEL_VERSION = "yolo11n-af0bcddd.tracktrack-0b71.yolo_dinov2-1a2b3c4d.base"
WORSE = (
    "Worse than the version in use: mAP50 0.912 instead of 0.931 on 61 held-out frames, HOTA 0.801 instead of 0.822."
)
METRICS = {
    "candidate": {"map50": 0.912, "map50_95": 0.7, "hota": 0.801},
    "incumbent": {"map50": 0.931, "map50_95": 0.71, "hota": 0.822},
    "against": "base",
}

JPEG = b"\xff\xd8 a picture \xff\xd9"
RECORDED: dict[str, Any] = {"videos": 2, "seconds": 130.0, "today_s": 120.0, "budget_s": 3600.0, "paused_because": ""}
CAMERA = {
    "name": "rtsp://gate/stream",
    "host": "edge-1",
    "project": 7,
    "state": "running",
    "since": "2020-03-01T08:30:00+00:00",
    "error": "",
    "note": "",
    "received": 900,
    "processed": 600,
    "dropped": 300,
    "times_lost": 1,
    "fps": 19.5,
    "latency_s": 0.125,
    "latency_p99_s": 0.25,
    "now": {"person": 2},
    "seen": {"person": 5, "": 1},
    "recorded": RECORDED,
    "tasks": [41, 42],
}


def answer_as_label_studio(site: Outside, titles: Mapping[int, str], tasks: int, name: str = "film.mp4") -> None:
    """Let a web server answer as a Label Studio would whose projects, by id, each have the tasks 1 to ``tasks``."""
    facts = {"task_number": tasks, "label_config": CONFIG}
    projects = [{"id": number, "title": title} | facts for number, title in titles.items()]
    site.answer("/api/projects/", 200, json.dumps({"next": None, "results": projects}).encode())
    for item in projects:
        site.answer(f"/api/projects/{item['id']}/", 200, json.dumps(item).encode())

    def list_tasks(handler: BaseHTTPRequestHandler) -> None:
        query = parse_qs(urlsplit(handler.path).query)
        chosen = json.loads(query.get("query", ["{}"])[0]).get("selectedItems", {}).get("included")
        every = [number for number in range(1, tasks + 1) if chosen is None or number in chosen]
        page, size = (int(query.get(key, ["1"])[0]) for key in ("page", "page_size"))
        found = every[size * (page - 1) : size * page]
        if page > 1 and not found:
            handler.send_error(404)
            return
        body = [{"id": number, "data": {"video": f"/data/{number}-{name}"}} for number in found]
        send(handler, 200, json.dumps({"total": len(every), "tasks": body}).encode())

    site.special["/api/tasks/"] = list_tasks


class Room:
    """A client of the API; answers that the document does not describe fail the test."""

    def __init__(self, app: Flask) -> None:
        self.app = app
        self.client: FlaskClient = app.test_client()
        self.document: dict[str, Any] = self.client.get("/api/openapi.json").get_json()

    @property
    def services(self) -> WebContainer:
        found: WebContainer = self.app.extensions["services"]
        return found

    def get(self, path: str, status: int = 200, **values: Any) -> Any:
        return self.ask("GET", path, status, **values)

    def post(self, path: str, body: Any = None, status: int = 200, **values: Any) -> Any:
        return self.ask("POST", path, status, json=body, **values)

    def delete(self, path: str, status: int = 200, **values: Any) -> Any:
        return self.ask("DELETE", path, status, **values)

    def ask(self, method: str, path: str, status: int, **values: Any) -> Any:
        """The JSON of an answer, whose status is as expected."""
        answer = self.client.open(path, method=method, **values)
        assert answer.status_code == status, answer.get_data(as_text=True)
        self.check(method, path, answer)
        return answer.get_json()

    def check(self, method: str, path: str, answer: TestResponse) -> None:
        """The document describes this answer."""
        path = path.split("?", 1)[0]
        operation = next(
            operations[method.lower()]
            for pattern, operations in self.document["paths"].items()
            if method.lower() in operations and re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", pattern), path)
        )
        described = operation["responses"][str(answer.status_code)]
        media = answer.content_type.split(";")[0]
        assert media in described.get("content", {media: None}), media
        if media.endswith("json"):
            schema = described["content"][media]["schema"] | {"components": self.document["components"]}
            jsonschema.validate(answer.get_json(), schema, cls=jsonschema.Draft202012Validator)


def promoted(services: WebContainer, folder: Path, content: bytes, **facts: Any) -> None:
    """Another version of project 7, which passed the gate and is in use."""
    run = evaluated(services, folder, content, **facts)
    services.registry.promote(run, "Better.", "gate", run.parent_id)


def proposed(services: WebContainer, folder: Path, content: bytes = b"PK proposed") -> None:
    """Another version of project 7, which waits for a decision, with what differs on another video and a clip of it."""
    run = evaluated(services, folder, content)
    clip, name = folder / "0.mp4", f"projects/7/{run.name}-clip-0.mp4"
    clip.write_bytes(b"a clip of " + run.name.encode())
    lost = {"kind": "lost", "task": 3, "label": "person", "now": "", "first": 12, "last": 98, "score": 0.8, "clip": 0}
    new = lost | {"kind": "relabelled", "now": "bus <b>", "clip": None}
    others = {"lost": 2, "relabelled": 1, "gained": 5, "changes": [lost, new]}
    clips = {"0": {"artifact": name, "sha256": services.artifacts.put(clip, name)}}
    metrics = {"against": "base", "others": others, "clips": clips}
    services.registry.finish(run, "proposed", "Few annotations.", metrics=metrics)


def evaluated(services: WebContainer, folder: Path, content: bytes, **facts: Any) -> Version:
    """A run of project 7 with weights."""
    weights = folder / "best.pt"
    weights.write_bytes(content)
    registry = services.registry
    current = registry.current(7)
    run = registry.begin(7, "me", "a test", current)
    name = f"projects/7/{run.name}.pt"
    sha256 = services.artifacts.put(weights, name)
    return registry.advance(run, detector="yolo11n", weights_sha256=sha256, artifact=name, classes=["person"], **facts)


def annotated(services: Container, fingerprint: str) -> None:
    """Task 1 of project 7 has been annotated, or its annotation was changed."""
    diffs = tuple(RegionDiff(kind) for kind in KINDS)
    now = datetime.now(timezone.utc)
    review = TaskReview(1, MODEL_VERSION, AnnotationReview(diffs, tracks=3), fingerprint, now, now)
    ReviewStore(services.storage).put(7, 1, review)


def refused(services: Container) -> None:
    """A training has just read the annotations of project 7; the gate refused its result."""
    registry = services.registry
    settings = training_settings_digest(services.settings, services.projects.models(None).detector.sha256)
    lineage = {"seen": ReviewStore(services.storage).seen(7), "annotations": {"1": 1}, "settings": settings}
    registry.finish(registry.begin(7, "me", "a test", None), "refused", WORSE, lineage=lineage, metrics=METRICS)


@contextmanager
def camera(room: Room, picture: bytes = JPEG, **facts: Any) -> Iterator[str]:
    """A camera that runs, as another process tells, which always has the same picture; yields its id."""
    name = str(facts.setdefault("name", "rtsp://gate/stream"))
    announcer = CameraAnnouncer(JobQueue(room.services.settings), lambda: CAMERA | facts, lambda timeout_s: picture)
    with announcing([announcer]):
        found = wait_for(lambda: [c for c in room.services.live_cameras.cameras() if c.name == name], what="the camera")
        handlers.all_cameras.cache_clear()
        yield found[0].id
