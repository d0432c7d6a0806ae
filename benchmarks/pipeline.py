"""Pre-annotation of a clip compared with a plain ``YOLO.track`` loop, and its memory by video length.

    python benchmarks/pipeline.py VIDEO --weights yolo11n.pt [--repeat 10] [--precision int8]

Each variant runs in a subprocess, so that its peak memory is its own; inference engines are exported before, in
another. Frames per second and CPU time (user and system, all threads) count from the first frame to the last region,
with models loaded and warmed up. The keyframe share is relative to the boxes of our final tracks; ``lowest IoU``
compares what Label Studio interpolates between keyframes with the final tracks on every frame. Prints a table and, as
the last line, JSON.
"""

from __future__ import annotations

import json
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


def run_plain(video: Path, weights: Path, tracker: str) -> dict[str, Any]:
    """Measure the plain loop, which has a box per frame and track."""
    rows, figures = plain_loop(video, weights, tracker=f"{tracker}.yaml", imgsz=settings_for(weights).imgsz)
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


#: Changed settings by variant.
VARIANTS: dict[str, dict[str, Any]] = {
    "ours, exact": {"stride": 1},
    "ours": {},
    "ours, exact, int8": {"stride": 1, "precision": "int8"},
    "ours, int8": {"precision": "int8"},
}


@click.command()
@click.argument("video", type=click.Path(exists=True, path_type=Path))
@click.option("--weights", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--repeat", default=10, help="Also run the clip repeated this many times; 0 for not.")
@click.option("--precision", type=click.Choice(["int8"]), help="Also measure this precision.")
@click.option("--tracker", default="botsort", help="Tracker of the plain loop.")
@click.option("--variant", hidden=True)
def main(video: Path, weights: Path, repeat: int, precision: str | None, tracker: str, variant: str | None) -> None:
    if variant:
        plain = variant == "plain loop"
        row = run_plain(video, weights, tracker) if plain else run_ours(video, weights, **VARIANTS[variant])
        print(json.dumps({"peak_mb": peak_mb(), **row}))
        return
    rows: dict[str, dict[str, Any]] = {}
    with temporary_data_dir() as folder:
        make_engine(video, weights)
        runs = [(name, name, video) for name in ("plain loop", "ours, exact", "ours")]
        if precision:
            make_engine(video, weights, precision=precision)
            runs += [(name, name, video) for name in (f"ours, exact, {precision}", f"ours, {precision}")]
        if repeat > 1:
            long = folder / f"repeated{video.suffix}"
            repeat_video(video, long, repeat)
            runs.append((f"ours, {repeat}x", "ours", long))
        for name, kind, file in runs:
            row = run_script(__file__, file, "--weights", weights, "--tracker", tracker, "--variant", kind)
            rows[name] = row = with_ratios(row, rows.get("plain loop"))
            share = row["keyframes"] / max(row["boxes"], 1)
            print(
                f"{name:18} {row['frames']:6} frames {row['fps']:6.1f} frames/s ({row['fps_ratio']:.2f}x) "
                f"{row['cpu_ms_per_frame']:6.1f} CPU ms/frame {row['tracks']:4} tracks "
                f"{row['keyframes']:6} keyframes of {row['boxes']:6} boxes ({share:.1%}) "
                f"lowest IoU {row.get('lowest_iou', 1.0):.3f}  peak {row['peak_mb']:.0f} MB  "
                f"{row.get('engine', 'torch')}",
                flush=True,
            )
    ours = rows["ours"]
    summary: dict[str, Any] = {"rows": rows, "speed_ratio": ours["fps_ratio"]}
    summary["exact_speed_ratio"] = rows["ours, exact"]["fps_ratio"]
    if repeat > 1:
        summary["memory_ratio"] = round(rows[f"ours, {repeat}x"]["peak_mb"] / ours["peak_mb"], 3)
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
