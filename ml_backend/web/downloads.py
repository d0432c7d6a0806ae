"""Files to download, and the jobs that make them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flask import Response, send_file

from ml_backend.errors import ConfigError
from ml_backend.web import answers, bodies
from ml_backend.web.control_room import requested
from ml_backend.web.problems import Unknown
from ml_backend.web.protocol import services

if TYPE_CHECKING:
    from ml_backend.services import Services

_TYPES = {".mp4": "video/mp4", ".zip": "application/zip", ".json": "application/json"}
Answer = tuple[answers.JobAnswer, int]


def create_annotated_video(body: bodies.AnnotatedVideo) -> Answer:
    return requested(services().control.render(body.project, body.task, body.source))


def create_custom_model_video(body: bodies.CustomModelVideo) -> Answer:
    found = services()
    _check_version(found, body.project, body.version)
    return requested(found.control.render_custom(body.project, body.task, body.version or ""))


def _check_version(found: Services, project: int, name: str | None) -> None:
    """Refuse at once what the job would refuse later."""
    from ml_backend.training.registry import MEASURED

    registry = found.projects.registry
    version = registry.find(project, name) if name else registry.current(project)
    if version is None:
        raise ConfigError(f"Project {project} uses no trained version.", "Train one, or draw what 'base' finds.")
    if version.state not in MEASURED:
        raise ConfigError(f"{version.name} is {version.state}: it has no weights.", "Choose another version.")


def export(body: bodies.Export) -> Answer:
    return requested(services().control.export(body.project, body.format, body.predictions, body.stride))


def download(filename: str) -> Response:
    """A file of the folder of outputs, whole, in part, or not again if it is known."""
    path = services().outputs.find(filename)
    if path is None:
        raise Unknown("There is no such file.", "Old files are removed; ask for it again.")
    try:
        answer = send_file(
            path,
            mimetype=_TYPES[path.suffix],
            as_attachment=path.suffix != ".mp4",  # videos are played in the page
            download_name=path.name,
            conditional=True,
            max_age=0,
        )
    except OSError as error:  # removed a moment ago
        raise Unknown("There is no such file any more.", "Ask for it again.") from error
    answer.headers["Content-Security-Policy"] = "default-src 'none'; media-src 'self'; sandbox"
    answer.headers["Cache-Control"] = "private, no-cache"
    return answer
