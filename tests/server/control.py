"""What tests of the control room's API share: a client that checks every answer against the OpenAPI document."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jsonschema
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from ml_backend.server.container import WebContainer
from ml_backend.training.registry import Version


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
