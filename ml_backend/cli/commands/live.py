"""Label cameras while they run and show them in the browser; the last line of stdout is JSON."""

from __future__ import annotations

import json
import queue
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import click

from ml_backend.cli.dev_stack.preflight import ROOT
from ml_backend.cli.options import model_options, model_settings
from ml_backend.cli.progress import fail_clearly
from ml_backend.core.errors import BackendError
from ml_backend.jobs.container import Container
from ml_backend.jobs.live_cameras import CameraAnnouncer, announcing
from ml_backend.label_studio.importer import Importer
from ml_backend.live.cameras import Cameras, open_cameras
from ml_backend.live.page import serve_page
from ml_backend.live.recorder import RECORD_WHEN, RecordOptions
from ml_backend.live.source import LiveSource

#: Seconds between two looks at whether the cameras still run.
POLL_S = 0.2
MINUTES_A_DAY = 1440.0
#: Newest recordings whose tasks are known.
IMPORTED = 1000


@click.command(context_settings={"show_default": True})
@click.argument("sources", nargs=-1, metavar="SOURCE...")
@model_options
@click.option("--width", default=1280, type=click.IntRange(160, 3840), help="Largest width of the picture, px.")
@click.option("--repeat", is_flag=True, help="Begin files again at their end.")
@click.option("--port", default=9091, type=click.IntRange(0, 65535), help="Of the page, on this machine; 0: any.")
@click.option("--record", type=click.Path(path_type=Path, file_okay=False), help="Folder for recordings.")
@click.option(
    "--record-when",
    type=click.Choice(RECORD_WHEN),
    multiple=True,
    help="new: tracks that the patterns know no label for; uncertain: tracks with a low score; all. May be repeated.  "
    "[default: new, uncertain, unless there are --record-label]",
)
@click.option("--record-label", multiple=True, help="Record tracks with this label. May be repeated.")
@click.option("--record-minutes", default=60.0, type=click.FloatRange(min=0), help="Of each camera, a day.")
@click.option("--record-gb", default=10.0, type=click.FloatRange(min=0), help="Largest size of the folder.")
@click.option(
    "--project",
    type=int,
    help="Its people may watch in the control room; recordings become its tasks, and its backend gives them tracks.",
)
@click.option("--seconds", type=click.FloatRange(min=0, min_open=True), help="End after this time.  [default: never]")
@fail_clearly
def main(
    sources: tuple[str, ...],
    weights: str | None,
    config: Path | None,
    mode: str | None,
    patterns: Path | None,
    detector: str | None,
    width: int,
    repeat: bool,
    port: int,
    record: Path | None,
    record_when: tuple[str, ...],
    record_label: tuple[str, ...],
    record_minutes: float,
    record_gb: float,
    project: int | None,
    seconds: float | None,
) -> None:
    """Detect, track and label what SOURCEs show, now, and show it on a page of this machine.

    A SOURCE is the URL of a camera (RTSP, HTTP with MJPEG or HLS, MPEG-TS over UDP), the number of a local camera, or
    a video file, which is played at its own pace; by default those in LIVE_CAMERAS. Frames are dropped, never queued.
    Ctrl-C ends.
    """
    if record is None and (record_when or record_label):
        raise click.UsageError("Name the folder for recordings with --record.")
    wanted = None
    if record is not None:
        when = frozenset(record_when or (() if record_label else ("new", "uncertain")))
        minutes = min(MINUTES_A_DAY, record_minutes)  # JSON has no infinity
        wanted = RecordOptions(record, when, frozenset(record_label), 60 * minutes, 1e9 * record_gb)
    settings = model_settings(weights, mode, detector)
    sources = sources or tuple(settings.live_cameras.get_secret_value().split())
    if not sources:
        raise click.UsageError("No SOURCE is given. Fix: name a camera, or set LIVE_CAMERAS.")
    container = Container(settings)
    if project is not None:
        container.lister.check(project)
    imported: deque[tuple[Path, int]] = deque(maxlen=IMPORTED)
    cameras = None
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does
    try:
        with ExitStack() as stack:
            opened = [LiveSource(source, width=width, repeat=repeat) for source in sources]
            on_video: Callable[[Path], None] = lambda path: None  # noqa: E731
            if project is not None and record is not None:
                on_video = stack.enter_context(_importing(container, project, imported))
            cameras = stack.enter_context(
                open_cameras(opened, config or ROOT / "label_config.xml", settings, patterns, wanted, on_video)
            )
            if cameras.note:
                click.echo(f"Note: {cameras.note}", err=True)
            try:
                address = stack.enter_context(serve_page(cameras, port))
            except (OSError, SystemExit):  # werkzeug exits where a port is in use
                raise click.UsageError(f"Port {port} cannot be used. Fix: choose another one with --port.") from None
            click.echo(f"Watch it at {address} (Ctrl-C ends)", err=True)
            if "redis_url" in settings.model_fields_set:
                announcers = [
                    CameraAnnouncer(
                        container.queue, partial(_facts, cameras, number, project, imported), session.next_picture
                    )
                    for number, session in enumerate(cameras.sessions)
                ]
                stack.enter_context(announcing(announcers))
            end = time.monotonic() + (seconds or float("inf"))
            while cameras.running and time.monotonic() < end:
                time.sleep(POLL_S)
    except KeyboardInterrupt:
        click.echo("Stopped.", err=True)
    finally:
        signal.signal(signal.SIGTERM, before)
    if cameras is None:
        return
    summaries = cameras.summaries()
    print(json.dumps({"cameras": summaries}))
    if failed := [summary for summary in summaries if summary["error"]]:
        for summary in failed:
            click.echo(f"Error: {summary['camera']}: {summary['error']}.", err=True)
        sys.exit(1)


def _facts(cameras: Cameras, number: int, project: int | None, imported: deque[tuple[Path, int]]) -> dict[str, Any]:
    """Return what the control room shows of a camera, from 0."""
    facts = cameras.summary(number)
    names = [session.source.name for session in cameras.sessions]
    # The channels of a recorder may differ in the query only, which is not shown as it may have a password.
    name = names[number] if names.count(names[number]) == 1 else f"{names[number]} ({number + 1})"
    newest = set(cameras.recorders[number].newest.copy()) if cameras.recorders else set()
    tasks = [task for path, task in list(imported) if path in newest]
    return facts | {"name": name, "host": socket.gethostname(), "project": project, "tasks": tasks}


@contextmanager
def _importing(
    container: Container, project: int, imported: deque[tuple[Path, int]]
) -> Iterator[Callable[[Path], None]]:
    """Import recordings into a project, one after the other; yields a function that takes a file.

    Where Label Studio is away, a file is tried again with the next one, and at the end.

    Args:
        imported: gets each file and its task.
    """
    importer = Importer(container.client, project, container.settings)
    files: queue.SimpleQueue[Path | None] = queue.SimpleQueue()

    def run() -> None:
        waiting: list[Path] = []
        while (path := files.get()) is not None:
            waiting = _import([*waiting, path], importer, imported)
        for left in _import(waiting, importer, imported):
            click.echo(f"Not imported: {left}. Fix: scripts/import_videos.py --project {project} {left}", err=True)

    thread = threading.Thread(target=run, name="import", daemon=True)
    thread.start()
    try:
        yield files.put
    finally:
        files.put(None)
        if not files.empty():
            click.echo("Recordings are being imported; Ctrl-C leaves them in their folder.", err=True)
        thread.join()


def _import(paths: list[Path], importer: Importer, imported: deque[tuple[Path, int]]) -> list[Path]:
    """Import recordings; return those to try again."""
    done: set[Path] = set()
    try:
        for outcome in importer.run(paths):
            click.echo(f"{outcome.status} {outcome.path.name}: {outcome.detail}", err=True)
            if outcome.task_id is not None:
                imported.append((outcome.path, outcome.task_id))
            if outcome.error is None or not outcome.error.retryable:
                done.add(outcome.path)
    except BackendError as error:
        click.echo(f"Recordings wait to be imported: {error}", err=True)
    return [path for path in paths if path not in done]
