"""Rendering compared with decoding and encoding alone, and its memory by video length.

    python benchmarks/render.py VIDEO [--objects 24] [--repeat 10] [--rounds 3]

``--objects`` synthetic objects are visible throughout the video. Each variant runs in a subprocess, so that its peak
memory is its own; rounds alternate, so that other load affects both, and the best of each counts. On a shared machine,
the ratio of CPU time is more meaningful than that of wall time. Prints a table and, as the last line, JSON.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.measuring import peak_mb, repeat_video, run_script  # noqa: E402


def make_prediction(frames: int, fps: float, objects: int) -> dict[str, Any]:
    """Return a prediction of objects on circles, visible on all frames, with a keyframe every half second."""
    step = max(1, round(fps / 2))
    result = []
    for number in range(objects):
        sequence = []
        for frame in range(1, frames + 1, step):
            angle = frame / fps / 8 + number  # about walking speed
            x, y = 45 + 40 * math.cos(angle) * (number + 1) / objects, 40 + 35 * math.sin(angle)
            box = {"x": x, "y": y, "width": 5, "height": 15, "rotation": 0}
            sequence.append({"frame": frame, "enabled": True, "time": frame / fps, **box})
        value = {"framesCount": frames, "duration": frames / fps, "sequence": sequence}
        result.append(
            {
                "id": f"object{number}",
                "from_name": "box",
                "to_name": "video",
                "type": "videorectangle",
                "score": 0.5 + number / objects / 2,
                "value": {**value, "labels": [("person", "bicycle", "fallen_person")[number % 3]]},
            }
        )
    return {"model_version": "walking", "score": 1.0, "result": result}


def run_plain(video: Path, out: Path) -> tuple[int, float, float]:
    """Decode and encode only. Return frames, seconds and CPU seconds."""
    from ml_backend.video.probe import probe
    from ml_backend.video.reader import read_frames
    from ml_backend.video.writer import VideoWriter

    info = probe(video)
    started, before = time.perf_counter(), time.process_time()
    with VideoWriter(out, info.width, info.height, Fraction(info.fps).limit_denominator(1001)) as writer:
        for frame in read_frames(video, info):
            writer.write(frame.image)
    return info.frames, time.perf_counter() - started, time.process_time() - before


def run_render(video: Path, out: Path, objects: int) -> tuple[int, float, float]:
    from ml_backend.rendering.draw import BoxStyle
    from ml_backend.rendering.layers import AnnotationFile, file_layer
    from ml_backend.rendering.render import RenderOptions, render
    from ml_backend.video.probe import probe

    info, prediction = probe(video), out.with_suffix(".json")
    prediction.write_text(json.dumps(make_prediction(info.frames, info.fps, objects)))
    # Imports are not timed.
    started, before = time.perf_counter(), time.process_time()
    layer = file_layer(video, AnnotationFile(prediction))
    summary = render(video, out, [layer], RenderOptions(BoxStyle(trails=2.0, legend=True)))
    return int(summary["frames"]), time.perf_counter() - started, time.process_time() - before


@click.command()
@click.argument("video", type=click.Path(exists=True, path_type=Path))
@click.option("--objects", default=24)
@click.option("--repeat", default=10, help="Also render the video repeated this many times; 0 for not.")
@click.option("--rounds", default=3)
@click.option("--variant", hidden=True)
def main(video: Path, objects: int, repeat: int, rounds: int, variant: str | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        if variant:
            out = Path(folder) / "out.mp4"
            frames, seconds, cpu = run_plain(video, out) if variant == "plain" else run_render(video, out, objects)
            print(json.dumps({"frames": frames, "seconds": seconds, "cpu_s": cpu, "peak_mb": peak_mb()}))
            return
        runs = [("decode + encode", "plain", video), ("rendered", "render", video)] * rounds
        if repeat > 1:
            long = Path(folder) / f"long{video.suffix}"
            repeat_video(video, long, repeat)
            runs.append((f"rendered, {repeat}x", "render", long))
        rows: dict[str, dict[str, Any]] = {}
        for name, kind, file in runs:
            row = run_script(__file__, file, "--objects", objects, "--variant", kind)
            row["fps"] = row["frames"] / row["seconds"]
            print(
                f"{name:16} {row['frames']:6} frames {row['fps']:6.1f} frames/s "
                f"{row['cpu_s']:6.1f} s of processor  peak {row['peak_mb']:.0f} MB",
                flush=True,
            )
            best = rows.setdefault(name, row)
            best.update(fps=max(best["fps"], row["fps"]), cpu_s=min(best["cpu_s"], row["cpu_s"]))
    plain, ours = rows["decode + encode"], rows["rendered"]
    summary: dict[str, Any] = {
        "rows": rows,
        "speed_ratio": round(ours["fps"] / plain["fps"], 3),
        "cpu_ratio": round(plain["cpu_s"] / ours["cpu_s"], 3),
    }
    if repeat > 1:
        summary["memory_ratio"] = round(rows[f"rendered, {repeat}x"]["peak_mb"] / ours["peak_mb"], 3)
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
