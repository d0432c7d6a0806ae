"""``python -m ml_backend.cli.dev_stack``: what ``scripts/up.sh`` runs once everything is installed."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import FrameType

import click

from ml_backend.cli.dev_stack.demo import Demo, connect, find_demo, make_demo, wait_for_prediction, was_made
from ml_backend.cli.dev_stack.environment import spare_local_addresses
from ml_backend.cli.dev_stack.preflight import ROOT, check_start
from ml_backend.cli.dev_stack.report import Reporter
from ml_backend.cli.dev_stack.smoke import run_smoke
from ml_backend.cli.dev_stack.stack import Stack, StackOptions
from ml_backend.cli.progress import fail_clearly
from ml_backend.core.errors import BackendError
from ml_backend.core.private_files import keep_files_private


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--port", envvar="PORT", default=9090, show_default=True, help="Port of the ML backend.")
@click.option(
    "--label-studio-port", envvar="LABEL_STUDIO_PORT", default=8080, show_default=True, help="Port of Label Studio."
)
@click.option(
    "--data-dir",
    envvar="DATA_DIR",
    type=click.Path(file_okay=False, path_type=Path),
    default=ROOT / "data",
    help="Folder for all state.  [default: data]",
)
@click.option("--no-demo", is_flag=True, help="Create no demo project.")
@click.option(
    "--smoke", is_flag=True, help="Run an end-to-end test in a temporary folder on free ports; exit with 0 or 1."
)
@click.option("--install-seconds", type=float, default=0.0, hidden=True)
@fail_clearly
def main(port: int, label_studio_port: int, data_dir: Path, no_demo: bool, smoke: bool, install_seconds: float) -> None:
    """Run Label Studio, the ML backend, a worker and a queue on this machine; Ctrl-C stops them all."""
    logging.getLogger("httpx").setLevel(logging.WARNING)
    spare_local_addresses(os.environ)  # this process talks to Label Studio too
    reporter = Reporter()
    reporter.seconds["install"] = install_seconds
    if smoke:
        stop_on_signals(lambda: None)
        sys.exit(run_smoke(reporter))
    check_start(data_dir.absolute(), port, label_studio_port)
    keep_files_private(data_dir)
    options = StackOptions(data_dir.absolute(), port, label_studio_port, redis_url=os.environ.get("REDIS_URL", ""))
    run(Stack(options, reporter), demo=not no_demo)


def run(stack: Stack, *, demo: bool) -> None:
    """Start the stack, create the demo project, and restart failed processes until a signal arrives."""
    reporter = stack.reporter
    started = time.monotonic()
    stop_on_signals(stack.kill)
    try:
        with ThreadPoolExecutor(1) as background, stack:
            sample = background.submit(make_sample_video, stack.data_dir) if demo and not was_made(stack) else None
            demo_project = None
            if demo:
                try:
                    demo_project = prepare_demo(stack, sample)
                except BackendError as error:  # the stack is usable without it
                    reporter.say(f"There is no demo project: {error}")
            reporter.seconds["total"] = round(reporter.seconds["install"] + time.monotonic() - started, 2)
            print_summary(stack, demo_project)
            stack.watch()
    except KeyboardInterrupt:
        reporter.say(f"Stopped; all state is kept in {stack.data_dir}")


def make_sample_video(data_dir: Path) -> Path:
    """Create the sample video unless it exists; takes some seconds."""
    from ml_backend.video.sample import make_sample

    path = data_dir / "sample" / "sample.mp4"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        make_sample(path)
    return path


def prepare_demo(stack: Stack, sample: Future[Path] | None) -> Demo | None:
    """Return the demo of an earlier start, or create one and wait for its prediction."""
    demo = find_demo(stack)
    if demo:
        connect(stack, stack.client(), demo.project_id)
        return demo
    if sample is None:
        return None
    with stack.reporter.stage("demo", "Making the demo project"):
        demo = make_demo(stack, sample.result())
    with stack.reporter.stage("prediction", "Waiting for the sample video's tracks") as tick:
        wait_for_prediction(stack, demo, tick)
    return demo


def print_summary(stack: Stack, demo: Demo | None) -> None:
    """Print URLs, credentials and folders to stdout."""
    url = demo.url(stack.label_studio.url) if demo else stack.label_studio.url
    lines = [
        "",
        f"Ready after {stack.reporter.seconds['total']:.0f} s.",
        "",
        f"  Label Studio  {url}",
        f"  e-mail        {stack.username}",
        f"  password      {stack.label_studio.password}",
        f"  control room  {stack.backend.url}   (upload, teach, connect other projects)",
        f"  data, logs    {stack.data_dir}",
        "",
        *(["The task's tracks can be edited; new videos in this project are predicted automatically."] if demo else []),
        "Ctrl-C stops everything and keeps all state.",
    ]
    print("\n".join(lines), flush=True)


def stop_on_signals(kill: Callable[[], None]) -> None:
    """Stop the stack on the first signal by interrupting the main thread; call ``kill`` and exit on the second."""
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def exit_now(number: int, frame: FrameType | None) -> None:
        kill()
        os._exit(128 + number)

    def interrupt(number: int, frame: FrameType | None) -> None:
        for each in signals:
            signal.signal(each, exit_now)
        print("\nStopping ... (press again to force)", file=sys.stderr, flush=True)
        raise KeyboardInterrupt

    for each in signals:
        signal.signal(each, interrupt)


if __name__ == "__main__":
    main()
