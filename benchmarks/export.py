"""Dataset export compared with its limit (decoding and JPEG encoding alone), and its memory by video length.

    python benchmarks/export.py VIDEO [--repeat 36] [--hour]

Each measurement runs in a subprocess, so that its peak memory is its own; limit and export alternate, and the medians
are compared. Objects are synthetic: 25 at any time, each visible for ten seconds on a polyline. Prints a table and, as
the last line, JSON.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measuring import peak_mb, repeat_video, run_script

OBJECTS = 25
TRACK_S = 10.0
QUALITY = 95


def write_label_studio_export(video: Path, path: Path) -> None:
    """Write a Label Studio export of one task with synthetic objects throughout the video."""
    from ml_backend.label_studio.timeline import video_timeline

    timeline = video_timeline(video)
    rng = np.random.default_rng(0)
    track_frames = round(TRACK_S * timeline.frame_rate)
    regions = []
    for start in range(1, timeline.frames_count + 1, track_frames):
        end = min(start + track_frames - 1, timeline.frames_count)
        for number in range(OBJECTS):
            frames = np.unique(np.linspace(start, end, 12).astype(int)).tolist()
            corners = rng.uniform(0, 85, (len(frames), 2)).round(3).tolist()
            size = {"width": 5.0, "height": 12.0, "rotation": 0}
            sequence = [
                {"frame": frame, "enabled": frame != end, "x": x, "y": y, "time": frame / timeline.frame_rate, **size}
                for frame, (x, y) in zip(frames, corners, strict=True)
            ]
            value = {
                "framesCount": timeline.frames_count,
                "duration": timeline.duration,
                "labels": ["person" if number % 3 else "bicycle"],
                "sequence": sequence,
            }
            names = {"from_name": "box", "to_name": "video", "type": "videorectangle", "origin": "manual"}
            regions.append({"id": f"r{len(regions)}", **names, "value": value})
    annotation = {"id": 1, "completed_by": 1, "result": regions, "was_cancelled": False}
    data = {"video": f"/data/upload/1/35deac95-{video.name}", "fps": timeline.frame_rate}
    path.write_text(json.dumps([{"id": 1, "data": data, "annotations": [annotation], "predictions": []}]))


def run_limit(video: Path, stride: int) -> dict[str, Any]:
    """Decode and JPEG-encode in one loop, without writing anything."""
    import cv2

    from ml_backend.video.probe import probe
    from ml_backend.video.reader import read_at, read_frames

    info = probe(video)
    started = time.perf_counter()
    frames = 0
    video_frames = read_frames(video, info) if stride == 1 else read_at(video, info, range(0, info.frames, stride))
    for frame in video_frames:
        cv2.imencode(".jpg", frame.image, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
        frames += 1
    return {"frames": frames, "seconds": time.perf_counter() - started, "mb": peak_mb()}


def run_export(video: Path, stride: int) -> dict[str, Any]:
    """Run ``scripts/export_dataset.py --format yolo`` without the start of Python."""
    from ml_backend.datasets.annotation_reader import AnnotationReader
    from ml_backend.datasets.exporter import DatasetOptions, export_dataset
    from ml_backend.datasets.images import ImageFormat
    from ml_backend.datasets.sampling import Sampling
    from ml_backend.video.probe import probe

    probe(video)  # not timed, as for the limit
    options = DatasetOptions(sampling=Sampling(stride), image_format=ImageFormat(quality=QUALITY))
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        reader = AnnotationReader.from_file(video.with_suffix(".json"), videos=video.parent)
        result = export_dataset(reader, Path(folder) / "out", options)
        seconds = time.perf_counter() - started
    assert not reader.skipped
    return {
        "frames": result.images.total(),
        "boxes": result.boxes.total(),
        "seconds": seconds,
        "mb": peak_mb(),
    }


def run_annotations(video: Path, stride: int) -> dict[str, Any]:
    """Export annotations.json of every frame, or of the frame rate that the stride leaves."""
    from ml_backend.datasets.annotation_reader import AnnotationReader
    from ml_backend.datasets.formats.annotations_json import export_annotations
    from ml_backend.video.probe import probe

    info = probe(video)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        reader = AnnotationReader.from_file(video.with_suffix(".json"), videos=video.parent)
        sample: Any = "all" if stride == 1 else info.fps / stride
        written = export_annotations(reader, Path(folder) / "annotations.json", sample=sample)
        seconds = time.perf_counter() - started
    return {"frames": info.frames, "boxes": written.rows, "seconds": seconds, "mb": peak_mb()}


RUNS = {"limit": run_limit, "yolo": run_export, "annotations": run_annotations}


def measure(name: str, video: Path, stride: int) -> dict[str, Any]:
    result = run_script(__file__, "--run", name, "--stride", stride, video)
    # Print each result at once, since an hour of video takes long.
    print(f"{name} {video.stem}: {result}", file=sys.stderr, flush=True)
    return result


@click.command()
@click.argument("video", type=click.Path(path_type=Path, exists=True))
@click.option("--rounds", default=3, help="Alternating runs of limit and export.")
@click.option("--repeat", default=6, help="Also measure the clip repeated this many times, for memory.")
@click.option("--hour/--no-hour", default=True, help="Also measure the clip repeated to an hour, with stride 30.")
@click.option("--stride", default=1, hidden=True)
@click.option("--run", "run_name", hidden=True)
def main(video: Path, rounds: int, repeat: int, hour: bool, stride: int, run_name: str | None) -> None:
    if run_name:
        print(json.dumps(RUNS[run_name](video, stride)))
        return
    from ml_backend.video.probe import probe

    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder) / f"clip{video.suffix}"
        clip.symlink_to(video.absolute())
        write_label_studio_export(clip, clip.with_suffix(".json"))
        runs = [{name: measure(name, clip, 1) for name in ("limit", "yolo")} for _ in range(rounds)]
        for name in ("limit", "yolo"):
            median = statistics.median(run[name]["seconds"] for run in runs)
            rows[name] = runs[0][name] | {"seconds": median, "mb": max(run[name]["mb"] for run in runs)}
        share = statistics.median(run["limit"]["seconds"] / run["yolo"]["seconds"] for run in runs)
        rows["annotations"] = measure("annotations", clip, 1)
        lengths = {f"x{repeat}": (repeat, 1)}
        if hour:
            lengths["hour/30"] = (round(3600 / probe(video).duration), 30)
        for title, (times, step) in lengths.items():
            longer = Path(folder) / f"{title.replace('/', '-')}{video.suffix}"
            repeat_video(video, longer, times)
            write_label_studio_export(longer, longer.with_suffix(".json"))
            for name in ("limit", "yolo", "annotations"):
                rows[f"{name} {title}"] = measure(name, longer, step)
            longer.unlink()
    print(f"{'':24}{'frames':>8}{'boxes':>9}{'seconds':>9}{'frames/s':>10}{'peak MB':>9}")
    for name, row in rows.items():
        rate = row["frames"] / row["seconds"]
        print(f"{name:24}{row['frames']:8}{row.get('boxes', ''):9}{row['seconds']:9.2f}{rate:10.1f}{row['mb']:9.0f}")
    print(json.dumps({"share_of_limit": round(share, 3), "rows": rows}))


if __name__ == "__main__":
    main()
