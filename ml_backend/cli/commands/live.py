"""Label cameras while they run and show them in the browser; the last line of stdout is JSON."""

from __future__ import annotations

import json
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import get_args

import click

from ml_backend.cli.dev_stack.discover import settings_in_force
from ml_backend.cli.dev_stack.preflight import ROOT
from ml_backend.cli.progress import fail_clearly
from ml_backend.core.settings import Mode
from ml_backend.live.cameras import open_cameras
from ml_backend.live.page import serve_page
from ml_backend.live.source import LiveSource

#: Seconds between two looks at whether the cameras still run.
POLL_S = 0.2


@click.command(context_settings={"show_default": True})
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@click.option("--weights", help="YOLO checkpoint: a .pt file, or a name such as yolo11n.pt.  [default: YOLO_WEIGHTS]")
@click.option(
    "--config", type=click.Path(path_type=Path, dir_okay=False), help="Label config.  [default: label_config.xml]"
)
@click.option("--mode", type=click.Choice(get_args(Mode)), help="How tracks get their labels.  [default: MODE]")
@click.option(
    "--patterns",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Pattern bank with learned labels, from `scripts/patterns.py export`.",
)
@click.option("--detector", type=click.Choice(["auto", "yolo", "motion"]), help="[default: DETECTOR]")
@click.option("--width", default=1280, type=click.IntRange(160, 3840), help="Largest width of the picture, px.")
@click.option("--repeat", is_flag=True, help="Begin files again at their end.")
@click.option("--port", default=9091, type=click.IntRange(0, 65535), help="Of the page, on this machine; 0: any.")
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
    seconds: float | None,
) -> None:
    """Detect, track and label what SOURCEs show, now, and show it on a page of this machine.

    A SOURCE is the URL of a camera (RTSP, HTTP with MJPEG or HLS, MPEG-TS over UDP), the number of a local camera, or
    a video file, which is played at its own pace. Frames are dropped, never queued. Ctrl-C ends.
    """
    options = {"yolo_weights": weights, "mode": mode, "detector": detector}
    chosen = {name: value for name, value in options.items() if value is not None}
    settings = settings_in_force().model_copy(update=chosen)
    cameras = None
    try:
        with ExitStack() as stack:
            opened = [LiveSource(source, width=width, repeat=repeat) for source in sources]
            cameras = stack.enter_context(open_cameras(opened, config or ROOT / "label_config.xml", settings, patterns))
            if cameras.note:
                click.echo(f"Note: {cameras.note}", err=True)
            try:
                address = stack.enter_context(serve_page(cameras.sessions, port))
            except (OSError, SystemExit):  # werkzeug exits where a port is in use
                raise click.UsageError(f"Port {port} is in use. Fix: choose another one with --port.") from None
            click.echo(f"Watch it at {address} (Ctrl-C ends)", err=True)
            end = time.monotonic() + (seconds or float("inf"))
            while cameras.running and time.monotonic() < end:
                time.sleep(POLL_S)
    except KeyboardInterrupt:
        click.echo("Stopped.", err=True)
    if cameras is None:
        return
    summaries = [session.summary() for session in cameras.sessions]
    print(json.dumps({"cameras": summaries}))
    if failed := [summary for summary in summaries if summary["error"]]:
        for summary in failed:
            click.echo(f"Error: {summary['camera']}: {summary['error']}.", err=True)
        sys.exit(1)
