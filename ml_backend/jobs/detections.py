"""Where the detections of a project's videos are kept: among the artifacts, the newest ones of each video."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ml_backend.core.errors import BackendError

if TYPE_CHECKING:
    from ml_backend.core.artifacts import Artifacts
    from ml_backend.inference.detection_log import DetectionLog, LoggedDetections

log = logging.getLogger(__name__)


def _name(project_id: int, video: str) -> str:
    return f"projects/{project_id}/detections/{video}.zip"


@contextmanager
def detections_kept(artifacts: Artifacts, project_id: int, video: str) -> Iterator[DetectionLog]:
    """Open a log of a video's detections, which is stored if the block has closed it.

    Where it cannot be stored, that is logged: a prediction does not fail for it.

    Args:
        video: its key.
    """
    from ml_backend.inference.detection_log import DetectionLog

    with tempfile.NamedTemporaryFile(suffix=".zip") as file:
        with DetectionLog(Path(file.name)) as detections:
            yield detections
        try:
            if detections.complete:
                artifacts.put(Path(file.name), _name(project_id, video))
        except BackendError as error:
            log.warning("The detections of a video of project %s were not kept: %s", project_id, error)


def logged_detections(artifacts: Artifacts, project_id: int, video: str) -> LoggedDetections | None:
    """Return the detections of a video; ``None`` without any that can be read.

    Args:
        video: its key.
    """
    from ml_backend.inference.detection_log import LoggedDetections

    try:
        data = artifacts.read(_name(project_id, video))
        return None if data is None else LoggedDetections.load(data)
    except (BackendError, ValueError) as error:
        log.warning("The detections of a video of project %s cannot be read: %s", project_id, error)
        return None
