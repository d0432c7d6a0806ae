"""Resolve which detector can run: find its weights, download them once, or fall back. Never imports torch.

A checkpoint is a pickle, hence code: it only comes from a path that the operator configured or from ultralytics'
releases. No request can name one.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ml_backend.core.downloads import fetch, recent_failure
from ml_backend.core.errors import WeightsError
from ml_backend.core.files import file_sha256
from ml_backend.core.settings import Settings

RELEASE = "https://github.com/ultralytics/assets/releases/download/v8.4.0"
#: Checkpoints that can be downloaded by name. Anything else must be a local file.
RELEASE_CHECKPOINTS = frozenset(f"yolo11{size}.pt" for size in "nsmlx")


@dataclass(frozen=True, slots=True)
class ResolvedDetector:
    """The detector to use.

    Attributes:
        kind: ``"yolo"`` or ``"motion"``.
        name: display name, e.g. ``"yolo11n"`` or ``"motion"``.
        path: checkpoint, for ``"yolo"``.
        sha256: hex digest of the checkpoint, for ``"yolo"``.
        note: why it is not the configured one, for users; else empty.
        project: project whose videos calibrate int8.
    """

    kind: Literal["yolo", "motion"]
    name: str
    path: Path | None = None
    sha256: str | None = None
    note: str = ""
    project: int | None = field(default=None, compare=False)


MOTION = ResolvedDetector("motion", "motion")


def resolve_detector(settings: Settings, *, download: bool = False) -> ResolvedDetector:
    """Choose the detector for these settings on this machine.

    Args:
        settings: ``detector`` and ``yolo_weights`` are used.
        download: whether to download missing weights; without it the call takes milliseconds.

    Raises:
        WeightsError: a configured file does not exist, or ``detector="yolo"`` and the weights are not available.
    """
    if settings.detector == "motion":
        return MOTION
    weights = settings.yolo_weights
    local = Path(weights).expanduser()
    if local.is_file():
        return _resolved(local.absolute())
    if weights not in RELEASE_CHECKPOINTS:
        raise WeightsError(
            f"The YOLO weights {weights!r} do not exist.",
            f"Set YOLO_WEIGHTS to a .pt file, or to one of {', '.join(sorted(RELEASE_CHECKPOINTS))} to download it.",
        )
    cached = settings.weights_dir / weights
    if cached.is_file():
        return _resolved(cached)
    reason = recent_failure(cached)
    if download and reason is None:
        url = f"{RELEASE}/{weights}"
        reason = fetch("httpx", url, cached, settings.weights_timeout_s, check=_check_checkpoint)
        if not reason:
            return _resolved(cached)
    if settings.detector == "yolo":
        raise WeightsError(f"{weights} is not available{f': {reason}' if reason else ''}.", f"Put it at {cached}.")
    note = (
        f"{weights} is not available{f' ({reason})' if reason else ' yet'}: the motion detector is used, which finds "
        f"moving objects but no classes. To provide the weights, put the file at {cached} or set YOLO_WEIGHTS."
    )
    return ResolvedDetector("motion", "motion", note=note)


def _resolved(path: Path) -> ResolvedDetector:
    try:
        digest = file_sha256(path)
    except OSError as error:
        raise WeightsError(f"The weights {path} cannot be read: {error.strerror}.", "Check the permissions.") from error
    return ResolvedDetector("yolo", path.stem, path, digest)


def _check_checkpoint(path: Path) -> None:
    if not zipfile.is_zipfile(path):  # torch saves zip files; a proxy's login page is none
        raise WeightsError("the server did not send a checkpoint (a proxy's page?)")
