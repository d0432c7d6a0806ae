"""Whether a prediction stays as fast and as small when the video gets longer: the clip once, and repeated.

    python benchmarks/scaling.py VIDEO --weights yolo11n.pt [--times 1,10,60]

Each length runs in a process of its own, so that its peak memory is its own; what runs the network is made before, in
another. Nothing is kept but what a job keeps, so that memory is a worker's. Prints a table and, as the last line, JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.measuring import in_child, make_engine, numbers, own_place, repeat_video  # noqa: E402
from benchmarks.pipeline import complete, predict  # noqa: E402


def beside(row: dict[str, Any], first: dict[str, Any] | None) -> dict[str, Any]:
    """With what follows from it, and how it compares with the shortest; ``None``: it is that itself."""
    row = complete(row, first)
    return {**row, "memory_ratio": round(row["peak_mb"] / (first or row)["peak_mb"], 3)}


@click.command()
@click.argument("video", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--weights", required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--times", default="1,10,60", show_default=True, callback=numbers, help="How often the clip is repeated.")
@click.option("--alone", is_flag=True, hidden=True)
def main(video: Path, weights: Path, times: list[int], alone: bool) -> None:
    if alone:
        print(json.dumps(predict(video, weights)[1]))
        return
    rows: dict[str, dict[str, Any]] = {}
    with own_place() as folder:
        make_engine(video, weights)
        for count in times:
            long = folder / f"long{video.suffix}"
            repeat_video(video, long, count)
            found = in_child(__file__, long, "--weights", weights, "--alone")
            rows[f"{count}x"] = row = beside(found, next(iter(rows.values()), None))
            print(
                f"{count:4}x {row['frames']:8} frames {row['fps']:6.1f} frames/s ({row['fps_ratio']:.2f}x) "
                f"{row['cpu_ms_per_frame']:6.1f} CPU ms/frame {row['tracks']:5} tracks  "
                f"peak {row['peak_mb']:.0f} MB ({row['memory_ratio']:.2f}x)",
                flush=True,
            )
    print(json.dumps({"rows": rows}))


if __name__ == "__main__":
    main()
