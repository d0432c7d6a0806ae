"""Exports beside their limit: decoding and JPEG-encoding alone, in the same run; and how memory grows with length.

    python benchmarks/export.py VIDEO [--repeat 36] [--hour]

Each measurement runs in a process of its own, so that its peak memory is its own; limit and export alternate, and the
medians are compared. Objects are synthetic: 25 at any time, which live ten seconds and move along a broken line. Prints
a table and, as the last line, JSON.
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

from benchmarks.measuring import in_child, peak_mb, repeat_video

OBJECTS = 25
LIFE_S = 10.0
QUALITY = 95


def make_export(video: Path, path: Path) -> None:
    """A Label Studio export of one task, with synthetic objects through the whole video."""
    from ml_backend.label_studio.timeline import video_timeline

    timeline = video_timeline(video)
    rng = np.random.default_rng(0)
    life = round(LIFE_S * timeline.frame_rate)
    regions = []
    for start in range(1, timeline.frames_count + 1, life):
        end = min(start + life - 1, timeline.frames_count)
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
    """Decode and encode in one loop, nothing else: nothing is written."""
    import cv2

    from ml_backend.video.probe import probe
    from ml_backend.video.reader import read_at, read_frames

    info = probe(video)
    started = time.perf_counter()
    frames = 0
    source = read_frames(video, info) if stride == 1 else read_at(video, info, range(0, info.frames, stride))
    for frame in source:
        cv2.imencode(".jpg", frame.image, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
        frames += 1
    return {"frames": frames, "seconds": time.perf_counter() - started, "mb": peak_mb()}


def run_export(video: Path, stride: int) -> dict[str, Any]:
    """The whole of ``scripts/export_dataset.py --format yolo`` but for the start of Python."""
    from ml_backend.datasets.annotation_reader import AnnotationReader
    from ml_backend.datasets.dataset_export import DatasetOptions, export_dataset
    from ml_backend.datasets.images import ImageFormat
    from ml_backend.datasets.sampling import Sampling
    from ml_backend.video.probe import probe

    probe(video)  # as the limit, which does not count it either
    options = DatasetOptions(sampling=Sampling(stride), image_format=ImageFormat(quality=QUALITY))
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        source = AnnotationReader.from_file(video.with_suffix(".json"), videos=video.parent)
        result = export_dataset(source, Path(folder) / "out", options)
        seconds = time.perf_counter() - started
    assert not source.skipped
    return {
        "frames": result.images.total(),
        "boxes": result.boxes.total(),
        "seconds": seconds,
        "mb": peak_mb(),
    }


def run_annotations(video: Path, stride: int) -> dict[str, Any]:
    """annotations.json with every frame, or as many a second as the stride leaves."""
    from ml_backend.datasets.annotation_reader import AnnotationReader
    from ml_backend.datasets.formats.annotations_json import export_annotations
    from ml_backend.video.probe import probe

    info = probe(video)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        source = AnnotationReader.from_file(video.with_suffix(".json"), videos=video.parent)
        sample: Any = "all" if stride == 1 else info.fps / stride
        written = export_annotations(source, Path(folder) / "annotations.json", sample=sample)
        seconds = time.perf_counter() - started
    return {"frames": info.frames, "boxes": written.rows, "seconds": seconds, "mb": peak_mb()}


RUNS = {"limit": run_limit, "yolo": run_export, "annotations": run_annotations}


def measure(name: str, video: Path, stride: int) -> dict[str, Any]:
    """One measurement in a process of its own."""
    result = in_child(__file__, "--run", name, "--stride", stride, video)
    # An hour takes its time: what is known is said at once.
    print(f"{name} {video.stem}: {result}", file=sys.stderr, flush=True)
    return result


@click.command()
@click.argument("video", type=click.Path(path_type=Path, exists=True))
@click.option("--rounds", default=3, help="Of limit and export in turn.")
@click.option("--repeat", default=6, help="The clip so often after itself, to see whether memory grows.")
@click.option("--hour/--no-hour", default=True, help="The clip repeated to an hour, with stride 30.")
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
        make_export(clip, clip.with_suffix(".json"))
        turns = [{name: measure(name, clip, 1) for name in ("limit", "yolo")} for _ in range(rounds)]
        for name in ("limit", "yolo"):
            middle = statistics.median(turn[name]["seconds"] for turn in turns)
            rows[name] = turns[0][name] | {"seconds": middle, "mb": max(turn[name]["mb"] for turn in turns)}
        share = statistics.median(turn["limit"]["seconds"] / turn["yolo"]["seconds"] for turn in turns)
        rows["annotations"] = measure("annotations", clip, 1)
        lengths = {f"x{repeat}": (repeat, 1)}
        if hour:
            lengths["hour/30"] = (round(3600 / probe(video).duration), 30)
        for title, (times, step) in lengths.items():
            longer = Path(folder) / f"{title.replace('/', '-')}{video.suffix}"
            repeat_video(video, longer, times)
            make_export(longer, longer.with_suffix(".json"))
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
