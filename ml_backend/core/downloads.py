"""Downloads of models, which end when too little comes.

Downloaders do not end by themselves where a server takes connections and says nothing, or sends a byte now and then. So
each runs in a child process, which is ended then.
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

#: CLIP ViT-bigG, the largest model that somebody may want, has 10 GB.
MAX_BYTES = 16 << 30
#: Bytes per second that a download must keep up: DINOv2-base (350 MB) in an hour and a half at the slowest.
MIN_RATE = 64 << 10
#: After a failed download nobody waits for the same deadline again for a while.
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
    """Have ``target``, which appears only when all of it is there. Processes that want it at once download it once.

    Args:
        library: what downloads: the first one makes ``target`` a folder, the second one, for single files, a file.
            (ultralytics' own downloader would load torch first, which takes seconds also where there is no network.)
        source: a model of the hub (owner/name), or a URL that ends in the name of ``target``.
        timeout: seconds in which ``MIN_RATE`` must have been kept up, from the first request on.
        patterns: names of the files that are taken of a model of the hub; folders within it never are.
        check: called with what was downloaded; raises WeightsError if that is not what was meant.

    Returns:
        Why it cannot be had, which is remembered for all processes; empty where ``target`` is there.
    """
    from filelock import FileLock  # here, since the web process imports this module and never downloads

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
                found = part if library == "huggingface_hub" else part / target.name
                check(found)
                shutil.rmtree(part / ".cache", ignore_errors=True)
                found.rename(target)
            finally:
                shutil.rmtree(part, ignore_errors=True)
            return ""
    except OSError as error:
        reason = f"{target} cannot be written: {error.strerror}"
    except WeightsError as error:
        reason = error.message.rstrip(".").replace(str(part), source)
    with contextlib.suppress(OSError):  # a full disk is one of the reasons; then the next job tries again
        _failure_file(target).write_text(reason, encoding="utf-8")
    return reason


def _run_child(arguments: Sequence[str], part: Path, timeout: float) -> None:
    """Let a child process download into ``part``.

    Raises:
        WeightsError: it failed, or the server was too slow.
    """
    # Of a killed process; huggingface_hub takes what is there for the whole model where the hub is away.
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    environment = {
        **os.environ,
        "PYTHONPATH": import_path(os.environ),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",  # which keeps what has come so far, and more, in the home directory
    }
    if not sys.stderr.isatty():
        environment["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # which would fill a log
    command = [sys.executable, "-m", "ml_backend.core.downloads", *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as child:
        assert child.stdout is not None
        try:
            first = child.stdout.readline().strip()  # libraries take seconds; from here on the server is waited for
            size, since = 0, time.monotonic()
            while child.poll() is None:
                time.sleep(0.05)
                now = _size(part)
                if now > MAX_BYTES:
                    raise WeightsError(f"it has more than the {MAX_BYTES >> 30} GB that a model may have")
                if now - size >= MIN_RATE * timeout:
                    size, since = now, time.monotonic()
                elif time.monotonic() - since > timeout:
                    raise WeightsError(f"the server sent {now - size} bytes in {timeout:g} s, which is too slow")
        finally:
            child.kill()
        if child.wait() != 0:
            told = child.stdout.read().strip() or (first if first != "ready" else "")
            raise WeightsError(told or f"the download ended with code {child.returncode}")


def _size(folder: Path) -> int:
    size = 0
    for file in folder.rglob("*"):
        with contextlib.suppress(OSError):  # it was just renamed
            size += file.stat().st_size
    return size


def _failure_file(target: Path) -> Path:
    return target.with_name(target.name + ".unavailable")


def recent_failure(target: Path) -> str | None:
    """Why ``target`` could not be downloaded within the last ``RETRY_AFTER_S``; ``None`` where it may be tried."""
    marker = _failure_file(target)
    try:
        if time.time() - marker.stat().st_mtime < RETRY_AFTER_S:
            return marker.read_text(encoding="utf-8") or "download failed"
    except OSError:
        pass  # no marker: never failed
    return None


def main(library: str, source: str, folder: str, *patterns: str) -> int:
    """Download, as a child process: standard output says that the libraries are loaded, and why it failed."""
    exit_with_parent()
    told, sys.stdout = sys.stdout, sys.stderr  # to which libraries print
    try:
        if library == "httpx":
            import httpx

            print("ready", file=told, flush=True)
            plain = {"Accept-Encoding": "identity"}  # the length that is promised is then that of the file
            with httpx.stream("GET", source, follow_redirects=True, timeout=60, headers=plain) as response:
                response.raise_for_status()
                with (Path(folder) / source.rsplit("/", 1)[-1]).open("wb") as file:
                    for chunk in response.iter_raw():  # which raises where some of the promised length is missing
                        file.write(chunk)
        else:
            from huggingface_hub import constants, snapshot_download

            constants.DOWNLOAD_CHUNK_SIZE = 1 << 16  # of 10 MB, a slow line would show none within the time-out
            print("ready", file=told, flush=True)
            snapshot_download(
                source,
                local_dir=folder,
                cache_dir=Path(folder) / ".cache",
                allow_patterns=list(patterns),
                ignore_patterns=["*/*"],
            )
    except Exception as error:  # noqa: BLE001 - libraries raise anything; the parent tells what it was
        cause = error.__cause__ or error
        print(f"{type(cause).__name__}: {cause}".splitlines()[0], file=told)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
