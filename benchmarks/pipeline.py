"""Pre-annotation of a clip compared with a plain ``YOLO.track`` loop, and its memory by video length.

    python benchmarks/pipeline.py VIDEO --weights yolo11n.pt [--rounds 3] [--repeat 10]

Each variant runs in a subprocess, so that its peak memory is its own; inference engines are exported before, in
another. The variants take turns; each row is the median round by speed. Frames per second and CPU time (user and
system, all threads) count from the first frame to the last region, with models loaded and warmed up; ``first frame``
counts from the start of a process that predicts without having warmed up. The keyframe share is relative to the boxes
of our final tracks; ``lowest IoU`` compares what Label Studio interpolates between keyframes with the final tracks on
every frame. Beside them are the limits: decoding alone, and the network alone on every frame; and the same prediction
on 1, 2, 4, ... of the machine's cores. Prints a table and, as the last line, JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.measuring import (  # noqa: E402
    cpu_seconds,
    engine_name,
    make_engine,
    peak_mb,
    repeat_video,
    resolve_yolo,
    run_script,
    settings_for,
    temporary_data_dir,
)
from ml_backend.core.memory import usable_cores  # noqa: E402

if TYPE_CHECKING:
    from ml_backend.core.types import Track
    from ml_backend.inference.pipeline import VideoResult


def plain_loop(video: Path, weights: Path, class_name: str = "", **options: Any) -> tuple[np.ndarray, dict[str, Any]]:
    """Run the loop of the ultralytics documentation; return ``(n, 6)`` frame, track id and xyxy, and measurements."""
    from ml_backend.detectors.setup import setup_ultralytics
    from ml_backend.video.reader import read_frames

    setup_ultralytics()
    from ultralytics import YOLO

    model = YOLO(str(weights))
    options = {"verbose": False, **options}
    model.predict(
        next(read_frames(video)).image, **{name: value for name, value in options.items() if name != "tracker"}
    )
    started, before = time.perf_counter(), cpu_seconds()
    frames, rows = 0, []
    for frame, result in enumerate(model.track(str(video), stream=True, **options)):
        frames += 1
        boxes = result.boxes.cpu().numpy()
        if boxes.id is not None:
            for track_id, xyxy, class_id in zip(boxes.id, boxes.xyxy, boxes.cls, strict=True):
                if class_name in ("", model.names[int(class_id)]):
                    rows.append((frame, track_id, *xyxy))
    seconds, cpu = time.perf_counter() - started, cpu_seconds() - before
    figures = {"frames": frames, "seconds": seconds, "cpu_s": cpu, "fps": frames / seconds}
    return np.array(rows, np.float64).reshape(-1, 6), figures


def run_plain(video: Path, weights: Path) -> dict[str, Any]:
    """Measure the plain loop, which has a box per frame and track."""
    rows, figures = plain_loop(video, weights, tracker="botsort.yaml", imgsz=settings_for(weights).imgsz)
    return {**figures, "tracks": len(np.unique(rows[:, 1])), "boxes": len(rows), "keyframes": len(rows)}


def predict(
    video: Path, weights: Path, on_track: Callable[[Track], None] | None = None, **changes: Any
) -> tuple[VideoResult, dict[str, Any]]:
    """Predict a video; return the result and measurements. The engine must have been exported.

    Args:
        changes: changed settings.
    """
    from ml_backend.detectors.loading import use_detector
    from ml_backend.inference.pipeline import predict_video
    from ml_backend.label_studio.label_config import parse_label_config
    from ml_backend.label_studio.timeline import video_timeline
    from ml_backend.video.probe import probe
    from ml_backend.video.reader import read_frames

    control = parse_label_config((ROOT / "label_config.xml").read_text()).video_controls[0]
    settings = settings_for(weights, **changes)
    info, rate, resolved = probe(video), video_timeline(video).frame_rate, resolve_yolo(settings)
    with use_detector(resolved, settings, info) as detector:  # warm-up; it stays loaded
        detector.detect([next(read_frames(video, info)).image])
    before = cpu_seconds()
    result = predict_video(video, control, rate, settings, resolved=resolved, on_track=on_track)
    figures = {
        "frames": result.frames,
        "seconds": result.seconds,
        "cpu_s": cpu_seconds() - before,
        "tracks": len(result.regions),
        "boxes": result.boxes,
        "keyframes": result.keyframes,
        "peak_mb": peak_mb(),
        "engine": engine_name(video, resolved, settings),
    }
    return result, figures


def run_ours(video: Path, weights: Path, **changes: Any) -> dict[str, Any]:
    from ml_backend.label_studio.regions import region_boxes
    from ml_backend.label_studio.timeline import video_timeline

    tracks: list[Track] = []
    # Peak memory is measured before the comparison below, which holds all boxes.
    result, figures = predict(video, weights, tracks.append, **changes)
    info, timeline = result.info, video_timeline(video)
    lowest = 1.0
    for track in tracks:
        lowest = min(
            lowest, max(_lowest_iou(track, region_boxes(r, info.width, info.height), timeline) for r in result.regions)
        )
    return {**figures, "lowest_iou": lowest}


def _lowest_iou(track: Any, region: tuple[Any, Any, Any], timeline: Any) -> float:
    """Return the lowest IoU of a region's boxes and a track; 0 if the region is hidden on one of its frames."""
    from ml_backend.core.boxes import iou_pairs

    frames, xyxy, visible = region
    decoded = timeline.decoded_index(frames)
    index = np.minimum(np.searchsorted(track.frames, decoded), len(track.frames) - 1)
    common = track.frames[index] == decoded
    if not common.any() or not visible[common].all():
        return 0.0
    return float(iou_pairs(xyxy[common], track.xyxy[index[common]].astype(np.float64)).min())


def with_ratios(row: dict[str, Any], baseline: dict[str, Any] | None = None) -> dict[str, Any]:
    """Add frame rates, and the ratio to the baseline's."""
    fps = row["frames"] / row["seconds"]
    ratio = fps / baseline["fps"] if baseline else 1.0
    cpu_ms = 1000 * row["cpu_s"] / row["frames"]
    return {**row, "fps": fps, "fps_ratio": round(ratio, 3), "cpu_ms_per_frame": round(cpu_ms, 1)}


def run_first_frame(video: Path, weights: Path) -> dict[str, Any]:
    """Measure the seconds from the start of this process until a frame is done, and what the whole prediction takes."""
    import psutil

    from ml_backend.inference.pipeline import predict_video
    from ml_backend.label_studio.label_config import parse_label_config
    from ml_backend.label_studio.timeline import video_timeline

    control = parse_label_config((ROOT / "label_config.xml").read_text()).video_controls[0]
    settings = settings_for(weights)
    started, first = psutil.Process().create_time(), 0.0

    def progress(done: int, _: int) -> None:
        nonlocal first
        first = first or time.time() - started

    rate = video_timeline(video).frame_rate
    result = predict_video(video, control, rate, settings, resolved=resolve_yolo(settings), progress=progress)
    return {"frames": result.frames, "seconds": time.time() - started, "cpu_s": cpu_seconds(), "first_frame_s": first}


def run_decoding(video: Path, weights: Path) -> dict[str, Any]:
    """Decode and scale every frame to the network's input, and do nothing else."""
    from ml_backend.video.reader import read_frames

    side = settings_for(weights).imgsz
    started, before = time.perf_counter(), cpu_seconds()
    frames = sum(1 for _ in read_frames(video, size=(side, side * 9 // 16)))
    return {"frames": frames, "seconds": time.perf_counter() - started, "cpu_s": cpu_seconds() - before}


def run_network(video: Path, weights: Path) -> dict[str, Any]:
    """Detect in every frame, decoded before."""
    from ml_backend.core.prefetch import ordered_map
    from ml_backend.detectors.loading import yolo_detector
    from ml_backend.video.probe import probe
    from ml_backend.video.reader import read_frames

    settings, info = settings_for(weights), probe(video)
    with yolo_detector(resolve_yolo(settings), settings, str(video)) as detector:
        size = detector.working_size(info.width, info.height)
        images = [frame.image for frame in read_frames(video, info, size=size)]
        detector.detect(images[:1])
        batches = [images[n : n + settings.batch] for n in range(0, len(images), settings.batch)]
        started, before = time.perf_counter(), cpu_seconds()
        for _ in ordered_map(detector.detect, batches, detector.max_concurrency):
            pass
        return {
            "frames": len(images),
            "seconds": time.perf_counter() - started,
            "cpu_s": cpu_seconds() - before,
            "engine": " ".join((detector.engine["name"], detector.engine["precision"])),
        }


#: Changed settings by variant.
VARIANTS: dict[str, dict[str, Any]] = {
    "ours, exact, fp32": {"stride": 1, "precision": "fp32"},
    "ours, fp32": {"precision": "fp32"},
    "ours, exact": {"stride": 1},
    "ours": {},
}
#: Numbers of cores to which a prediction is limited, where the machine has more.
CORES = {f"on {count} cores": count for count in (1, 2, 4, 8, 16, 32)}
#: What else is measured, by name.
OTHERS: dict[str, Callable[[Path, Path], dict[str, Any]]] = {
    "plain loop": run_plain,
    "with its start": run_first_frame,
    "decoding alone": run_decoding,
    "network alone": run_network,
}


@click.command()
@click.argument("video", type=click.Path(exists=True, path_type=Path))
@click.option("--weights", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--rounds", default=3, help="Times that each variant runs.")
@click.option("--repeat", default=10, help="Also run the clip repeated this many times; 0 for not.")
@click.option("--variant", hidden=True)
def main(video: Path, weights: Path, rounds: int, repeat: int, variant: str | None) -> None:
    if variant:
        if variant in CORES:
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: CORES[variant]])
        row = (
            OTHERS[variant](video, weights)
            if variant in OTHERS
            else run_ours(video, weights, **VARIANTS.get(variant, {}))
        )
        print(json.dumps({"peak_mb": peak_mb(), **row}))
        return
    fewer = [name for name, count in CORES.items() if count < usable_cores()]
    names = ["plain loop", *VARIANTS, *list(OTHERS)[1:], *fewer]
    measured: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    with temporary_data_dir() as folder:
        make_engine(video, weights, precision="fp32")
        make_engine(video, weights)
        for _ in range(rounds):
            for name in names:
                measured[name].append(run_script(__file__, video, "--weights", weights, "--variant", name))
        if repeat > 1:
            long = folder / f"repeated{video.suffix}"
            repeat_video(video, long, repeat)
            measured[f"ours, {repeat}x"] = [run_script(__file__, long, "--weights", weights, "--variant", "ours")]
    rows: dict[str, dict[str, Any]] = {}
    for name, runs in measured.items():
        median = sorted(runs, key=lambda row: float(row["seconds"]))[len(runs) // 2]
        rows[name] = row = with_ratios(median, rows.get("plain loop"))
        print(_line(name, row))
    ours = rows["ours"]
    summary: dict[str, Any] = {"rows": rows, "speed_ratio": ours["fps_ratio"]}
    summary["exact_speed_ratio"] = rows["ours, exact"]["fps_ratio"]
    if repeat > 1:
        summary["memory_ratio"] = round(rows[f"ours, {repeat}x"]["peak_mb"] / ours["peak_mb"], 3)
    print(json.dumps(summary))


def _line(name: str, row: dict[str, Any]) -> str:
    cells = [
        f"{name:18} {row['frames']:6} frames {row['fps']:6.1f} frames/s ({row['fps_ratio']:.2f}x)",
        f"{row['cpu_ms_per_frame']:6.1f} CPU ms/frame  peak {row['peak_mb']:4.0f} MB",
    ]
    if "tracks" in row:
        share = row["keyframes"] / max(row["boxes"], 1)
        cells.append(f"{row['tracks']:4} tracks {row['keyframes']:6} keyframes of {row['boxes']:6} boxes ({share:.1%})")
    if "lowest_iou" in row:
        cells.append(f"lowest IoU {row['lowest_iou']:.3f}")
    if "first_frame_s" in row:
        cells.append(f"first frame after {row['first_frame_s']:.2f} s")
    return "  ".join([*cells, row.get("engine", "")]).rstrip()


if __name__ == "__main__":
    main()
