"""Shared by the benchmarks: memory and CPU time, long videos, temporary data folders, and a local stack."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

if TYPE_CHECKING:
    from ml_backend.cli.dev_stack.stack import Stack
    from ml_backend.core.settings import Settings
    from ml_backend.detectors.weights import ResolvedDetector
    from ml_backend.label_studio.client import LabelStudioClient, Prediction
    from ml_backend.server.container import WebContainer


def label_config(*labels: str) -> str:
    """Return the label config of a project of videos with these labels."""
    values = "".join(f'<Label value="{label}"/>' for label in labels)
    return (
        f'<View><Labels name="label" toName="video">{values}</Labels>'
        '<Video name="video" value="$video" frameRate="$fps"/><VideoRectangle name="box" toName="video"/></View>'
    )


CONFIG = label_config("person", "walker")
#: Seconds to wait for a training on a slow machine.
TIMEOUT_S = 3000.0


def repeat_video(source: Path, target: Path, times: int, seconds: float = float("inf")) -> None:
    """Concatenate a clip, or its first ``seconds``, with itself by copying packets, without re-encoding."""
    import av

    with av.open(str(target), "w") as output:
        stream = None
        offset = 0
        for _ in range(times):
            with av.open(str(source)) as container:
                video = container.streams.video[0]
                if stream is None:
                    stream = output.add_stream_from_template(video)
                end = 0
                for packet in container.demux(video):
                    if packet.dts is None or packet.pts is None or packet.pts * packet.time_base >= seconds:
                        continue
                    end = max(end, packet.pts + (packet.duration or 0))
                    packet.pts += offset
                    packet.dts += offset
                    packet.stream = stream
                    output.mux(packet)
                offset += end


def peak_mb() -> float:
    """Return the peak resident memory of this process in MB."""
    status = Path("/proc/self/status")
    if status.exists():
        # Unlike ru_maxrss it does not include the memory of the parent before exec.
        return (
            float(next(line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM"))) / 1024
        )
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def cpu_seconds() -> float:
    """Return the user and system time of this process and its finished children."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


@contextmanager
def temporary_data_dir() -> Iterator[Path]:
    """Create a temporary folder, with DATA_DIR inside it for this process and its children."""
    from unittest.mock import patch

    with (
        tempfile.TemporaryDirectory(prefix="benchmark-", ignore_cleanup_errors=True) as name,
        patch.dict(os.environ, DATA_DIR=str(Path(name) / "data")),
    ):
        yield Path(name)


def settings_for(weights: Path, **changes: Any) -> Settings:
    """Return the environment's settings with these weights and changes."""
    from ml_backend.core.settings import Settings

    return Settings(_env_file=None, yolo_weights=str(weights.absolute())).model_copy(update=changes)


def make_engine(video: Path, weights: Path, **changes: Any) -> str:
    """Return the detector's engine; export it in a subprocess if missing, since that takes time and memory."""
    if settings_for(weights, **changes).engine == "torch":
        return "torch"
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as process:
        return process.submit(_make_engine, video, weights, changes).result()


def _make_engine(video: Path, weights: Path, changes: dict[str, Any]) -> str:
    settings = settings_for(weights, **changes)
    return engine_name(video, resolve_yolo(settings), settings, wait=True)


def resolve_yolo(settings: Settings) -> ResolvedDetector:
    """Return the YOLO detector of the settings.

    Raises:
        ClickException: there are no weights.
    """
    from ml_backend.detectors.weights import resolve_detector

    resolved = resolve_detector(settings)
    if resolved.path is None:
        raise click.ClickException(resolved.note)
    return replace(resolved, project=1)  # so that it has calibration images of its own, as the project of a worker


def engine_name(video: Path, resolved: ResolvedDetector, settings: Settings, *, wait: bool = False) -> str:
    """Return the engine, such as ``openvino fp32``, and why if it is not the configured one."""
    from ml_backend.detectors.engines.calibration import CalibrationSource
    from ml_backend.detectors.engines.exports import choose_engine

    assert resolved.path
    footage = CalibrationSource(resolved.project, str(video))
    choice = choose_engine(resolved.path, resolved.sha256 or "", settings, wait=wait, calibration=footage)
    return f"{choice.name} ({choice.note})" if choice.note else choice.name


def run_script(script: str, *arguments: object) -> dict[str, Any]:
    """Run a script in a subprocess and return the JSON of its last line."""
    command = [sys.executable, script, *map(str, arguments)]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode:
        raise click.ClickException(f"{' '.join(command)} failed:\n{process.stderr[-3000:]}")
    return last_json(process.stdout)


@contextmanager
def local_stack(weights: Path, folder: Path, **environment: str) -> Iterator[tuple[Stack, int, WebContainer]]:
    """Run a stack in a folder; yield it, a connected project that trains early, and a container on its state."""
    from ml_backend.cli.dev_stack.preflight import free_port
    from ml_backend.cli.dev_stack.stack import Stack, StackOptions
    from ml_backend.core.settings import Settings
    from ml_backend.server.container import WebContainer

    environment |= {"YOLO_WEIGHTS": str(weights.absolute()), "WEIGHTS_TIMEOUT_S": "1"}
    data = folder / "data"
    data.mkdir()
    options = StackOptions(data, free_port(), free_port(), isolated=True, environment=environment)
    with Stack(options) as stack:
        client = stack.client()
        project = client.create_project("benchmark", CONFIG)
        client.connect_backend(project, stack.backend.url)
        values: dict[str, Any] = {name.lower(): value for name, value in stack.settings_environment().items()}
        container = WebContainer(Settings(_env_file=None, **values))
        container.trainings.set_policy(project, {"min_tracks": 1, "quiet_s": 2, "every_s": 0})
        yield stack, project, container


def new_task(client: LabelStudioClient, project: int, video: Path) -> int:
    """Upload a video as a new task, which is predicted from scratch."""
    return client.create_task(project, {"video": client.upload_file(project, video)})


def newest_prediction(client: LabelStudioClient, task: int) -> Prediction | None:
    return max(client.list_predictions(task), key=lambda item: item.id, default=None)


def submit_as_walkers(client: LabelStudioClient, task: int, prediction: Prediction) -> tuple[int, list[dict[str, Any]]]:
    """Submit all tracks with a label unknown to the detector; return the annotation's id and result."""
    result = [{**region, "value": {**region["value"], "labels": ["walker"]}} for region in prediction.result]
    return client.create_annotation(task, result, prediction.id), result


def wait_for(what: str, condition: Callable[[], Any], stack: Stack) -> Any:
    from ml_backend.core.errors import LabelStudioUnavailable

    deadline = time.monotonic() + TIMEOUT_S
    while True:
        with contextlib.suppress(LabelStudioUnavailable):  # it may time out on a loaded machine
            if value := condition():
                return value
        if time.monotonic() > deadline:
            raise click.ClickException(
                f"Timed out after {TIMEOUT_S:.0f} s waiting for {what}\n{stack.trainer.tail(20)}"
            )
        stack.revive()
        time.sleep(0.1)


def last_json(text: str) -> dict[str, Any]:
    return dict(json.loads(text.strip().rsplit("\n", 1)[-1]))


def parse_integers(_context: Any, _parameter: Any, text: str) -> list[int]:
    """Parse ``1,5,20`` into sorted positive integers, as a click callback."""
    try:
        values = sorted({int(item) for item in text.split(",")})
    except ValueError as error:
        raise click.BadParameter("expected integers separated by commas, such as 1,5,20") from error
    if values[0] < 1:
        raise click.BadParameter("expected integers from 1 on")
    return values
