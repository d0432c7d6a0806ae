"""How fast each engine runs the detector here, whether it finds what PyTorch finds, and the memory it takes.

    python benchmarks/engines.py VIDEO [--weights yolo11n.pt] [--frames 48] [--rounds 3]

Every engine sees the same frames, spread over the video and reduced as the pipeline has them, in a process of its own;
they take turns, and the fastest round counts. An engine that cannot be had here is listed with the reason. ``matched``
is the share of PyTorch's boxes that are found too, at an IoU of 0.9; ``check`` what its own check has found, int8's on
held-out frames of the video that it was made with. Prints a table and, as the last line, JSON.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

if TYPE_CHECKING:
    from ml_backend.models.detector import YoloDetector
    from ml_backend.settings import Settings
    from ml_backend.types import Detections, Image

ENGINES = ("torch", "openvino", "openvino int8")

_state: dict[str, Any] = {}


def prepare(weights: Path, settings: Settings, video: Path, frames: int) -> dict[str, Any]:
    """Load the engine and the frames; runs in the engine's process."""
    from ml_backend.files import file_sha256
    from ml_backend.models.detector import YoloDetector
    from ml_backend.models.engines.calibration import Footage
    from ml_backend.models.engines.exports import choose_engine
    from ml_backend.models.memory import process_memory

    started = time.perf_counter()
    choice = choose_engine(weights, file_sha256(weights), settings, wait=True, footage=Footage(video=str(video)))
    made_s = round(time.perf_counter() - started, 1)
    if choice.note:
        return {"note": choice.note}
    plain = YoloDetector(weights, settings)
    images = pictures(video, frames, plain)
    del plain
    before = process_memory()
    detector = YoloDetector(weights, settings, choice.export)
    _state.update(detector=detector, images=images, batch=settings.batch)
    found, _ = measure()
    facts = {"made_s": made_s, "check": dict(choice.export.check) if choice.export else {}}
    return {"found": found, "memory_mb": round((process_memory() - before) / 1e6), **facts, **detector.engine}


def pictures(video: Path, frames: int, detector: YoloDetector) -> list[Image]:
    """Frames spread over the video, as large as the detector needs them."""
    from ml_backend.video.probe import probe
    from ml_backend.video.reader import read_frames

    info = probe(video)
    size = detector.working_size(info.width, info.height)
    every = max(1, info.frames // frames)
    return [frame.image for frame in islice(read_frames(video, info, size=size), 0, every * frames, every)]


def measure() -> tuple[list[Detections], float]:
    """Detections of all frames, and frames per second."""
    detector, images, batch = _state["detector"], _state["images"], _state["batch"]
    found: list[Detections] = []
    started = time.perf_counter()
    for index in range(0, len(images), batch):
        found += detector.detect(images[index : index + batch])
    return found, len(images) / (time.perf_counter() - started)


def row(name: str, made: dict[str, Any], speeds: Sequence[float], reference: Sequence[Detections]) -> dict[str, Any]:
    """One engine's figures."""
    from dataclasses import asdict

    from ml_backend.models.engines.make import agreement

    if made["note"]:
        return {"engine": name, "note": made["note"]}
    figures = {"frames_per_s": round(max(speeds), 1)} | {
        key: made[key] for key in ("memory_mb", "precision", "made_s", "check")
    }
    return {"engine": name, **figures, **asdict(agreement(reference, made["found"]))}


@click.command()
@click.argument("video", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--weights", type=click.Path(exists=True, dir_okay=False, path_type=Path), default="yolo11n.pt")
@click.option("--frames", default=48, show_default=True)
@click.option("--rounds", default=3, show_default=True)
def main(video: Path, weights: Path, frames: int, rounds: int) -> None:
    """Measure."""
    from ml_backend.settings import Settings

    context = multiprocessing.get_context("spawn")
    made: dict[str, dict[str, Any]] = {}
    speeds: dict[str, list[float]] = {name: [] for name in ENGINES}
    with ExitStack() as stack:
        processes = {name: stack.enter_context(ProcessPoolExecutor(1, mp_context=context)) for name in ENGINES}
        for name, process in processes.items():
            engine, _, precision = name.partition(" ")
            settings = Settings().model_copy(update={"engine": engine, "precision": precision or "auto"})
            made[name] = process.submit(prepare, weights, settings, video, frames).result()
        for _ in range(rounds):
            for name, process in processes.items():
                if not made[name]["note"]:
                    speeds[name].append(process.submit(measure).result()[1])
    rows = [row(name, made[name], speeds[name], made["torch"]["found"]) for name in ENGINES]
    for line in rows:
        print("  ".join(f"{key} {value}" for key, value in line.items()))
    print(json.dumps({"frames": frames, "rounds": rounds, "engines": rows}))


if __name__ == "__main__":
    main()
