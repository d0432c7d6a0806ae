"""Which detector can run here: resolve, download once, or fall back. Never imports torch.

A checkpoint is a pickle, hence code: it is only ever taken from a path that the operator configured, or from the
detector's own release page into our cache. No request can name one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ml_backend.errors import StorageError, WeightsError
from ml_backend.files import file_sha256
from ml_backend.settings import Settings

log = logging.getLogger(__name__)

RELEASE = "https://github.com/ultralytics/assets/releases/download/v8.4.0"
#: Names that may be asked for by name. Anything else must be a local file.
KNOWN = frozenset(f"yolo11{size}.pt" for size in "nsmlx")
#: After a failed download nobody waits for the same time-out again for a while.
RETRY_AFTER_S = 600.0
MAX_BYTES = 1 << 30
#: Bytes per second on average, once the time-out is over: a byte now and then would keep a download alive for ever.
MIN_RATE = 4096

Progress = Callable[[int, int], None]


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


def _resolved(path: Path) -> ResolvedDetector:
    try:
        digest = file_sha256(path)
    except OSError as error:
        raise WeightsError(f"The weights {path} cannot be read: {error.strerror}.", "Check the permissions.") from error
    return ResolvedDetector("yolo", path.stem, path, digest)


def resolve_detector(
    settings: Settings, *, download: bool = False, progress: Progress | None = None
) -> ResolvedDetector:
    """Decide which detector the settings mean on this machine at this moment.

    Args:
        settings: ``detector`` and ``yolo_weights`` are what matters.
        download: whether the network may be tried; without it the answer takes milliseconds.
        progress: called with (bytes so far, bytes in total or 0) while downloading.

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
        try:
            _download(f"{RELEASE}/{wanted}", cached, settings.weights_timeout_s, progress)
            return _resolved(cached)
        except (WeightsError, StorageError) as error:
            reason = error.message.rstrip(".")
            remember_failure(cached, reason)
    note = (
        f"{wanted} is not here{f' ({reason})' if reason else ' yet'}: the motion detector is used, which finds "
        f"moving objects without naming them. To provide the weights, put the file at {cached} or set YOLO_WEIGHTS."
    )
    if settings.detector == "yolo":
        raise WeightsError(f"{wanted} is not here{f': {reason}' if reason else ''}.", f"Put it at {cached}.")
    return ResolvedDetector("motion", "motion", note=note)


def _failure_file(target: Path) -> Path:
    return target.with_name(target.name + ".unavailable")


def remember_failure(target: Path, reason: str) -> None:
    """Note beside ``target`` why it could not be downloaded, for the other processes too."""
    try:
        _failure_file(target).write_text(reason, encoding="utf-8")
    except OSError as error:  # a full disk is one of the reasons; then the next job tries again
        log.debug("The failed download of %s is not remembered: %s", target.name, error)


def forget_failure(target: Path) -> None:
    """It is there now."""
    with contextlib.suppress(OSError):  # it is forgotten with time anyway
        _failure_file(target).unlink(missing_ok=True)


def recent_failure(target: Path) -> str | None:
    """Why ``target`` could not be downloaded within the last ``RETRY_AFTER_S``; ``None`` where it may be tried."""
    marker = _failure_file(target)
    try:
        if time.time() - marker.stat().st_mtime < RETRY_AFTER_S:
            return marker.read_text(encoding="utf-8") or "download failed"
    except OSError:
        return None  # no marker: never failed
    return None


def _download(url: str, target: Path, timeout: float, progress: Progress | None) -> None:
    """Stream a checkpoint to ``target`` atomically. Raises as :func:`fetch` does."""

    def check(part: Path) -> None:
        with part.open("rb") as file:
            if file.read(2) != b"PK":  # torch saves zip archives; a proxy's login page is not one
                raise WeightsError(f"{url} did not answer with a checkpoint (a proxy's page?).")

    fetch(url, target, timeout, check=check, progress=progress)


def fetch(
    url: str,
    target: Path,
    timeout: float,
    *,
    check: Callable[[Path], None] = lambda part: None,
    progress: Progress | None = None,
    max_bytes: int = MAX_BYTES,
    min_rate: int = MIN_RATE,
) -> None:
    """Stream ``url`` to ``target`` atomically and in bounded time.

    Args:
        url: http(s).
        target: what is there is replaced; the folder is made.
        timeout: seconds to wait for a connection, and between bytes.
        check: called with the whole file before it becomes ``target``; raises if that is not what was meant.
        progress: called with (bytes so far, bytes in total or 0).
        max_bytes: more is an error.
        min_rate: bytes per second; less on average, once ``timeout`` is over, is an error.

    Raises:
        WeightsError: no network, an error status, too slow, too large, or what ``check`` says.
        StorageError: the disk does not take it.
    """
    import httpx

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f"{target.name}.{os.getpid()}.part")
    except OSError as error:
        raise StorageError(f"{target.parent} cannot be made: {error.strerror}.", "Set DATA_DIR elsewhere.") from error
    try:
        with httpx.stream("GET", url, timeout=timeout, follow_redirects=True) as response:
            response.raise_for_status()
            total = int(response.headers.get("content-length", 0))
            done, started = 0, time.monotonic()
            with part.open("wb") as file:
                for chunk in response.iter_bytes():
                    done += len(chunk)
                    elapsed = time.monotonic() - started
                    if elapsed > timeout and done < min_rate * elapsed:
                        raise WeightsError(f"the download is too slow ({done} bytes in {elapsed:.0f} s)")
                    if done > max_bytes:
                        raise WeightsError(f"{url} is larger than it can be.")
                    file.write(chunk)
                    if progress:
                        progress(done, total)
        check(part)
        part.replace(target)
        log.info("Downloaded %s (%.1f MB)", target, done / 1e6)
    except httpx.HTTPStatusError as error:
        raise WeightsError(f"download refused with status {error.response.status_code}") from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise WeightsError(f"no network: {error.__class__.__name__}") from error
    except OSError as error:
        raise StorageError(f"{target} cannot be written: {error.strerror}.", "Free some disk space.") from error
    finally:
        part.unlink(missing_ok=True)
