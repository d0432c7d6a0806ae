"""Model downloads that give up on slow servers.

Downloaders hang on a server that accepts connections but sends nothing, or a byte now and then. So each download runs
in a child process that is killed when it is too slow.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from ml_backend.core.errors import WeightsError
from ml_backend.core.subprocesses import exit_with_parent, import_path

log = logging.getLogger(__name__)

#: CLIP ViT-bigG, the largest model of interest, has 10 GB.
MAX_BYTES = 16 << 30
#: Slowest accepted download in bytes per second: DINOv2-base (350 MB) takes at most an hour and a half.
MIN_RATE = 64 << 10
#: A failed download is not retried for this long, so that not every job waits for the same timeout.
RETRY_AFTER_S = 600.0


def fetch(
    library: Literal["huggingface_hub", "httpx"],
    source: str,
    target: Path,
    timeout: float,
    *,
    patterns: Sequence[str] = (),
    check: Callable[[Path], object],
) -> str:
    """Download ``target`` atomically, once for all processes that ask for it at the same time.

    Args:
        library: ``huggingface_hub`` makes ``target`` a folder; ``httpx`` downloads a single file. (ultralytics'
            downloader would import torch first, which takes seconds even without a network.)
        source: a model of the hub (owner/name), or a URL that ends in the name of ``target``.
        timeout: seconds over which the download must average ``MIN_RATE``, from the first request on.
        patterns: files to download from a hub model; subfolders are always skipped.
        check: called with the downloaded path; raises WeightsError if it is not the expected model.

    Returns:
        The reason of the failure, which is remembered for all processes; empty if ``target`` exists.
    """
    from filelock import FileLock  # the web process imports this module but never downloads

    part = target.with_name(f"{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if target.exists():
                return ""
            if reason := recent_failure(target):
                return reason
            log.info("Downloading %s", source)
            try:
                _run_child([library, source, str(part), *patterns], part, timeout)
                downloaded = part if library == "huggingface_hub" else part / target.name
                check(downloaded)
                shutil.rmtree(part / ".cache", ignore_errors=True)
                downloaded.rename(target)
            finally:
                shutil.rmtree(part, ignore_errors=True)
            return ""
    except OSError as error:
        reason = f"{target} cannot be written: {error.strerror}"
    except WeightsError as error:
        reason = error.message.rstrip(".").replace(str(part), source)
    with contextlib.suppress(OSError):  # e.g. the disk is full; then the next job tries again
        _failure_file(target).write_text(reason, encoding="utf-8")
    return reason


def _run_child(arguments: Sequence[str], part: Path, timeout: float) -> None:
    """Download into ``part`` in a child process.

    Raises:
        WeightsError: the download failed, or the server was too slow.
    """
    # Left over from a killed process: without a network huggingface_hub would take it for the whole model.
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    environment = {
        **os.environ,
        "PYTHONPATH": import_path(os.environ),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",  # it caches chunks in the home directory
    }
    if not sys.stderr.isatty():
        environment["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # they would fill a log
    command = [sys.executable, "-m", "ml_backend.core.downloads", *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as child:
        assert child.stdout is not None
        try:
            first_line = child.stdout.readline().strip()  # importing takes seconds that the timeout must not count
            last_size, last_time = 0, time.monotonic()
            while child.poll() is None:
                time.sleep(0.05)
                size = _folder_size(part)
                if size > MAX_BYTES:
                    raise WeightsError(f"it is larger than {MAX_BYTES >> 30} GB, the limit for a model")
                if size - last_size >= MIN_RATE * timeout:
                    last_size, last_time = size, time.monotonic()
                elif time.monotonic() - last_time > timeout:
                    raise WeightsError(f"the server sent {size - last_size} bytes in {timeout:g} s, which is too slow")
        finally:
            child.kill()
        if child.wait() != 0:
            reason = child.stdout.read().strip() or (first_line if first_line != "ready" else "")
            raise WeightsError(reason or f"the download ended with code {child.returncode}")


def _folder_size(folder: Path) -> int:
    size = 0
    for file in folder.rglob("*"):
        with contextlib.suppress(OSError):  # the downloader has just renamed it
            size += file.stat().st_size
    return size


def _failure_file(target: Path) -> Path:
    return target.with_name(target.name + ".unavailable")


def recent_failure(target: Path) -> str | None:
    """Return why a download of ``target`` failed within the last ``RETRY_AFTER_S``; ``None`` if it may be tried."""
    marker = _failure_file(target)
    try:
        if time.time() - marker.stat().st_mtime < RETRY_AFTER_S:
            return marker.read_text(encoding="utf-8") or "download failed"
    except OSError:
        pass  # no marker
    return None


def main(library: str, source: str, folder: str, *patterns: str) -> int:
    """Download in a child process; print ``ready`` once the libraries are loaded, and the reason of a failure."""
    exit_with_parent()
    output, sys.stdout = sys.stdout, sys.stderr  # libraries print to stdout
    try:
        if library == "httpx":
            import httpx

            print("ready", file=output, flush=True)
            headers = {"Accept-Encoding": "identity"}  # makes Content-Length that of the file
            with httpx.stream("GET", source, follow_redirects=True, timeout=60, headers=headers) as response:
                response.raise_for_status()
                with (Path(folder) / source.rsplit("/", 1)[-1]).open("wb") as file:
                    for chunk in response.iter_raw():  # raises if the body is shorter than Content-Length
                        file.write(chunk)
        else:
            from huggingface_hub import constants, snapshot_download

            constants.DOWNLOAD_CHUNK_SIZE = 1 << 16  # with the default 10 MB a slow line shows no progress in time
            print("ready", file=output, flush=True)
            snapshot_download(
                source,
                local_dir=folder,
                cache_dir=Path(folder) / ".cache",
                allow_patterns=list(patterns),
                ignore_patterns=["*/*"],
            )
    except Exception as error:  # noqa: BLE001 - libraries raise anything; the parent reports it
        cause = error.__cause__ or error
        print(f"{type(cause).__name__}: {cause}".splitlines()[0], file=output)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
