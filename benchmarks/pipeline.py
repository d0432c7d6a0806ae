"""The whole pre-annotation of one clip beside a plain ``YOLO.track`` loop, in one run; and of the clip repeated.

    python benchmarks/pipeline.py VIDEO --weights yolo11n.pt [--repeat 10]

Each variant runs in a process of its own, so that its peak memory is its own. Prints a table and, as the last line,
JSON. ``keyframe share`` counts against the boxes of our final tracks; ``lowest IoU`` compares what Label Studio shows
between keyframes with the final tracks on every frame.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import av
import click
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def repeat_video(source: Path, target: Path, times: int) -> None:
    """Append a clip to itself by copying packets; nothing is encoded again."""
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
                    if packet.dts is None or packet.pts is None:
                        continue
                    end = max(end, packet.pts + (packet.duration or 0))
                    packet.pts += offset
                    packet.dts += offset
                    packet.stream = stream
                    output.mux(packet)
                offset += end


def peak_mb() -> float:
    """Highest resident memory of this process so far."""
    status = Path("/proc/self/status")
    if status.exists():
        # Unlike the figure below it does not begin with the memory of the process that started this one.
        return (
            float(next(line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM"))) / 1024
        )
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run_plain(video: Path, weights: Path, tracker: str) -> dict[str, Any]:
    """What the usual example does: a box per frame and track."""
    from ml_backend.models._ultralytics import setup_ultralytics

    setup_ultralytics()
    from ultralytics import YOLO

    model = YOLO(str(weights))
    started = time.perf_counter()
    frames = boxes = 0
    tracks: set[int] = set()
    for result in model.track(str(video), stream=True, verbose=False, tracker=f"{tracker}.yaml"):
        frames += 1
        if result.boxes is not None and result.boxes.id is not None:
            boxes += len(result.boxes)
            tracks.update(int(i) for i in result.boxes.id)
    seconds = time.perf_counter() - started
    return {"frames": frames, "seconds": seconds, "tracks": len(tracks), "boxes": boxes, "keyframes": boxes}


def run_ours(video: Path, weights: Path, *, exact: bool) -> dict[str, Any]:
    """All of a prediction; with the engine that runs the second video and every one after it."""
    from ml_backend.label_studio.regions import region_boxes
    from ml_backend.label_studio.schema import parse_label_config
    from ml_backend.models.engines.calibration import Footage
    from ml_backend.models.engines.choice import choose_engine
    from ml_backend.models.weights import resolve_detector
    from ml_backend.pipeline import predict_video, video_timeline
    from ml_backend.settings import Settings
    from ml_backend.types import Track
    from ml_backend.video.probe import probe

    control = parse_label_config((ROOT / "label_config.xml").read_text()).video_controls[0]
    info = probe(video)
    shown = video_timeline(video)
    settings = Settings(yolo_weights=str(weights))
    settings = settings.model_copy(update={"stride": 1}) if exact else settings
    resolved = resolve_detector(settings)
    engine = "motion"
    if resolved.path:
        footage = Footage(video=str(video))
        engine = choose_engine(resolved.path, resolved.sha256 or "", settings, wait=True, footage=footage).name
    tracks: list[Track] = []
    result = predict_video(video, control, shown.frame_rate, settings, resolved=resolved, on_track=tracks.append)
    memory = peak_mb()  # before the comparison below, which holds everything at once
    lowest = 1.0
    for track in tracks:
        lowest = min(
            lowest, max(_lowest_iou(track, region_boxes(r, info.width, info.height), shown) for r in result.regions)
        )
    return {
        "frames": result.frames,
        "seconds": result.seconds,
        "tracks": len(result.regions),
        "boxes": result.boxes,
        "keyframes": result.keyframes,
        "lowest_iou": lowest,
        "peak_mb": memory,
        "engine": engine,
    }


def _lowest_iou(track: Any, shown: tuple[Any, Any, Any], timeline: Any) -> float:
    """Lowest IoU of a region with a track over the track's frames; 0 where it is not shown on one of them."""
    from ml_backend.geometry import iou_pairs

    frames, xyxy, visible = shown
    decoded = timeline.decoded_index(frames)
    at = np.searchsorted(track.frames, decoded)
    at_safe = np.minimum(at, len(track.frames) - 1)
    both = track.frames[at_safe] == decoded
    if not both.any() or not visible[both].all():
        return 0.0
    return float(iou_pairs(xyxy[both], track.xyxy[at_safe[both]].astype(np.float64)).min())


@click.command()
@click.argument("video", type=click.Path(exists=True, path_type=Path))
@click.option("--weights", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--repeat", default=10, help="Also run the clip so many times over; 0: do not.")
@click.option("--tracker", default="botsort", help="Of the plain loop.")
@click.option("--variant", hidden=True)
def main(video: Path, weights: Path, repeat: int, tracker: str, variant: str | None) -> None:
    if variant:
        row = (
            run_plain(video, weights, tracker)
            if variant == "plain"
            else run_ours(video, weights, exact=variant == "exact")
        )
        print(json.dumps({"peak_mb": peak_mb(), **row}))
        return
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        runs = [("plain loop", "plain", video), ("ours, exact", "exact", video), ("ours", "ours", video)]
        if repeat > 1:
            long = Path(folder) / f"repeated{video.suffix}"
            repeat_video(video, long, repeat)
            runs.append((f"ours, {repeat}x", "ours", long))
        for name, kind, file in runs:
            command = [sys.executable, __file__, str(file), "--weights", str(weights), "--tracker", tracker]
            done = subprocess.run([*command, "--variant", kind], check=True, capture_output=True, text=True)
            rows[name] = json.loads(done.stdout.strip().rsplit("\n", 1)[-1])
            row = rows[name]
            row["fps"] = row["frames"] / row["seconds"]
            share = row["keyframes"] / max(row["boxes"], 1)
            print(
                f"{name:12} {row['frames']:6} frames {row['fps']:6.1f} frames/s {row['tracks']:4} tracks "
                f"{row['keyframes']:6} keyframes of {row['boxes']:6} boxes ({share:.1%}) "
                f"lowest IoU {row.get('lowest_iou', 1.0):.3f}  peak {row['peak_mb']:.0f} MB",
                flush=True,
            )
    ours, plain = rows["ours"], rows["plain loop"]
    summary: dict[str, Any] = {"rows": rows, "speed_ratio": round(ours["fps"] / plain["fps"], 3)}
    summary["exact_speed_ratio"] = round(rows["ours, exact"]["fps"] / plain["fps"], 3)
    if repeat > 1:
        summary["memory_ratio"] = round(rows[f"ours, {repeat}x"]["peak_mb"] / ours["peak_mb"], 3)
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
