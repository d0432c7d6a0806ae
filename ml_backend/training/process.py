"""Run training and evaluation in a subprocess: a crash, a leak or a full GPU there does not harm the worker."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from ml_backend.core.errors import Interrupted, StorageError, TrainingFailed
from ml_backend.core.subprocesses import import_path
from ml_backend.training.child import LOG

log = logging.getLogger(__name__)

#: Seconds between calls of ``should_stop``.
TICK = 0.2
#: Seconds from SIGTERM to SIGKILL; short, because checkpoints on disk are complete at any time.
GRACE = 3.0
#: Seconds that the process may take to exit once it has closed its event channel.
ENDING = 30.0
#: Seconds that the thread which reads events may take to end once the processes are gone.
DRAIN = 2.0
#: File in whose presence the process pauses.
PAUSE = "pause"
_TAIL_LINES, _TAIL_BYTES = 15, 20_000


class TrainingRetryable(TrainingFailed):
    """A training failed for a reason that may pass: memory, disk, a signal."""

    http_status = 503
    retryable = True


class TrainingProcess:
    """A subprocess that runs one plan after another: it loads PyTorch once.

    It is started by the first plan, ends with this object as a context manager, with this process, and when a plan
    fails; the next plan starts another.

    Args:
        environment: whole environment of the subprocess; by default that of this process.
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None
        self._lines: queue.Queue[bytes | None] = queue.Queue()
        self._reader: threading.Thread | None = None

    def __enter__(self) -> TrainingProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def run(
        self,
        plan: Mapping[str, Any],
        folder: Path,
        *,
        on_event: Callable[[dict[str, Any]], None],
        should_stop: Callable[[], bool],
        should_pause: Callable[[], bool] = lambda: False,
    ) -> dict[str, Any]:
        """Run a plan and wait for it.

        Args:
            plan: see :mod:`ml_backend.training.child`.
            folder: receives the plan and the log ``child.log``, which is appended to.
            on_event: called with every event but the last; an exception from it ends the process and propagates.
            should_stop, should_pause: polled several times a second. The process pauses before its next batch.

        Returns:
            The ``done`` event.

        Raises:
            TrainingFailed: the process failed; the message is its own, or includes the end of its log.
            Interrupted: ``should_stop`` returned true. No process is left running.
            StorageError: the folder cannot be written.
        """
        folder = folder.absolute()
        path, pause, log_path = folder / f"{plan['kind']}-plan.json", folder / PAUSE, folder / LOG
        try:
            folder.mkdir(parents=True, exist_ok=True)
            pause.unlink(missing_ok=True)
            content = {**plan, "pause": str(pause)}
            path.write_text(json.dumps(content, ensure_ascii=False, default=str), encoding="utf-8")
            log_start = log_path.stat().st_size if log_path.exists() else 0
            process = self._started(folder)
        except OSError as error:
            hint = "Check space and permissions."
            raise StorageError(f"{folder} cannot be written: {error.strerror}.", hint) from error
        last: dict[str, Any] | None = None
        try:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # it has exited, which _follow finds
                process.stdin.write(f"{path}\n".encode())
            last = _follow(process, self._lines, on_event, should_stop, lambda: _show(pause, should_pause()))
            if last is None:  # it is exiting: its own status says more than that of our signal
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(ENDING)
            elif last["event"] == "done":
                return last
        finally:
            if not last or last["event"] != "done":
                self._end()
        if last:
            kind = TrainingRetryable if last.get("retryable") else TrainingFailed
            raise kind(str(last.get("message", "The training failed.")), str(last.get("hint", "")))
        raise _death(process.returncode, log_path, log_start)

    def _started(self, folder: Path) -> subprocess.Popen[bytes]:
        if self._process and self._process.poll() is None:
            return self._process
        self._end()
        values = dict(os.environ if self._environment is None else self._environment)
        values["PYTHONPATH"] = import_path(values)
        # Libraries keep settings and caches; keep those out of the home directory.
        values.setdefault("YOLO_CONFIG_DIR", str(folder / ".ultralytics"))
        values.setdefault("MPLCONFIGDIR", str(folder / ".matplotlib"))
        with (folder / LOG).open("ab") as log_file:
            process = subprocess.Popen(
                [sys.executable, "-m", "ml_backend.training.child"],
                bufsize=0,
                stdin=subprocess.PIPE,  # open as long as this process lives; see child.py
                stdout=subprocess.PIPE,
                stderr=log_file,
                env=values,
                start_new_session=True,
            )
        self._lines = queue.Queue()
        self._reader = threading.Thread(target=_read, args=(process.stdout, self._lines), daemon=True)
        self._reader.start()
        self._process = process
        return process

    def _end(self) -> None:
        """Terminate the process and its children."""
        process, reader, self._process = self._process, self._reader, None
        if process is None or reader is None:
            return
        if process.poll() is None:
            _signal(process, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
        _signal(process, signal.SIGKILL)
        process.wait()
        if process.stdin:
            process.stdin.close()
        reader.join(DRAIN)
        if process.stdout and not reader.is_alive():  # closing while the reader blocks would block too
            process.stdout.close()


def _follow(
    process: subprocess.Popen[bytes],
    lines: queue.Queue[bytes | None],
    on_event: Callable[[dict[str, Any]], None],
    should_stop: Callable[[], bool],
    tick: Callable[[], None],
) -> dict[str, Any] | None:
    """Pass events on until ``done`` or ``error``, which is returned, or until the process has exited."""
    gone_at: float | None = None
    while True:
        if should_stop():
            raise Interrupted("The training was stopped.", "It goes on from its last checkpoint.")
        tick()
        try:
            line = lines.get(timeout=TICK)
        except queue.Empty:
            # End of file may never come: a grandchild may hold the pipe open.
            if gone_at is None and process.poll() is not None:
                gone_at = time.monotonic()
            if gone_at is not None and time.monotonic() - gone_at > DRAIN:
                return None
            continue
        if line is None:
            return None
        event = _parse(line)
        if event is None:
            continue
        if event["event"] in ("done", "error"):
            return event
        on_event(event)


def _show(pause: Path, paused: bool) -> None:
    """Create or remove the file that pauses the process."""
    try:
        if paused:
            pause.touch()
        else:
            pause.unlink(missing_ok=True)
    except OSError as error:  # a full disk must not end the training here
        log.warning("The training was not paused or resumed: %s", error)


def _read(stream: IO[bytes] | None, lines: queue.Queue[bytes | None]) -> None:
    for line in stream or ():
        lines.put(line)
    lines.put(None)


def _parse(line: bytes) -> dict[str, Any] | None:
    if not line.strip():
        return None
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        event = None
    if not isinstance(event, dict) or not isinstance(event.get("event"), str):
        log.warning("The training process wrote a line that is not an event: %.200r", line)
        return None
    return event


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _death(status: int, log_path: Path, log_start: int) -> TrainingFailed:
    """Return the error for a process that exited without a final event."""
    end = f"The end of {log_path}:\n{_tail(log_path, log_start)}"
    if status < 0:
        hint = " (out of memory?)" if -status == signal.SIGKILL else ""
        return TrainingRetryable(f"The training process was killed by signal {-status}{hint}.", end)
    return TrainingFailed(f"The training process ended unexpectedly (exit status {status}).", end)


def _tail(path: Path, start: int) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(start, path.stat().st_size - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError as error:
        return f"(it cannot be read: {error.strerror})"
    return "\n".join(text.splitlines()[-_TAIL_LINES:])
