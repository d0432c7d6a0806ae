"""Which detector can run here: resolve, download once, or fall back. Never imports torch.

A checkpoint is a pickle, hence code: it is only ever taken from a path that the operator configured, or from the
detector's own release page into our cache. No request can name one.
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
#: Names that may be asked for by name. Anything else must be a local file.
KNOWN = frozenset(f"yolo11{size}.pt" for size in "nsmlx")


@dataclass(frozen=True, slots=True)
class ResolvedDetector:
    """What will detect.

    Attributes:
        kind: ``"yolo"`` or ``"motion"``.
        path: checkpoint, for ``"yolo"``.
        sha256: hex digest of the checkpoint, for ``"yolo"``.
        name: short name for people, e.g. ``"yolo11n"`` or ``"motion"``.
        note: why it is not what was asked for, else empty; meant to be shown.
        project: for whose videos; where it runs in int8, that is made with their pictures.
    """

    kind: Literal["yolo", "motion"]
    name: str
    path: Path | None = None
    sha256: str | None = None
    note: str = ""
    project: int | None = field(default=None, compare=False)


MOTION = ResolvedDetector("motion", "motion")


def resolve_detector(settings: Settings, *, download: bool = False) -> ResolvedDetector:
    """Decide which detector the settings mean on this machine at this moment.

    Args:
        settings: ``detector`` and ``yolo_weights`` are what matters.
        download: whether the network may be tried; without it the answer takes milliseconds.

    Raises:
        WeightsError: a configured file does not exist, or ``detector="yolo"`` and nothing can be had.
    """
    if settings.detector == "motion":
        return MOTION
    wanted = settings.yolo_weights
    local = Path(wanted).expanduser()
    if local.is_file():
        return _resolved(local.absolute())
    if wanted not in KNOWN:
        raise WeightsError(
            f"The YOLO weights {wanted!r} do not exist.",
            f"Set YOLO_WEIGHTS to an existing .pt file, or to one of {', '.join(sorted(KNOWN))} to download it.",
        )
    cached = settings.weights_dir / wanted
    if cached.is_file():
        return _resolved(cached)
    reason = recent_failure(cached)
    if download and reason is None:
        url = f"{RELEASE}/{wanted}"
        reason = fetch("httpx", url, cached, settings.weights_timeout_s, check=_check_checkpoint)
        if not reason:
            return _resolved(cached)
    if settings.detector == "yolo":
        raise WeightsError(f"{wanted} is not here{f': {reason}' if reason else ''}.", f"Put it at {cached}.")
    note = (
        f"{wanted} is not here{f' ({reason})' if reason else ' yet'}: the motion detector is used, which finds "
        f"moving objects without naming them. To provide the weights, put the file at {cached} or set YOLO_WEIGHTS."
    )
    return ResolvedDetector("motion", "motion", note=note)


def _resolved(path: Path) -> ResolvedDetector:
    try:
        digest = file_sha256(path)
    except OSError as error:
        raise WeightsError(f"The weights {path} cannot be read: {error.strerror}.", "Check the permissions.") from error
    return ResolvedDetector("yolo", path.stem, path, digest)


def _check_checkpoint(path: Path) -> None:
    if not zipfile.is_zipfile(path):  # as torch saves them; a proxy's login page is none
        raise WeightsError("the answer is no checkpoint (a proxy's page?)")
