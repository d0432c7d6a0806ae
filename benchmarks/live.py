"""A video as a camera: processed frames, latency, and memory over time.

    python benchmarks/live.py VIDEO --weights yolo11n.pt [--seconds 60] [--cameras 1]

VIDEO is repeated for the given time, with a viewer of each camera. Prints a table and, as the last line, JSON.
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from pathlib import Path

import click
import httpx
import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.measuring import CONFIG, temporary_data_dir  # noqa: E402
from ml_backend.core.settings import Settings  # noqa: E402
from ml_backend.live.cameras import open_cameras  # noqa: E402
from ml_backend.live.page import serve_page  # noqa: E402
from ml_backend.live.source import LiveSource  # noqa: E402


def watch(address: str, number: int) -> None:
    """Ask for the pictures of a camera until it ends."""
    with httpx.Client(base_url=address, timeout=60) as client, contextlib.suppress(httpx.TransportError):
        while True:
            client.get(f"/cameras/{number}.jpg")


@click.command()
@click.argument("video", type=click.Path(exists=True, path_type=Path))
@click.option("--weights", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--seconds", default=60.0, show_default=True)
@click.option("--cameras", "count", default=1, show_default=True)
def main(video: Path, weights: Path, seconds: float, count: int) -> None:
    """Measure VIDEO as a camera."""
    memory, process = [], psutil.Process()
    with temporary_data_dir() as folder:
        config = folder / "config.xml"
        config.write_text(CONFIG)
        settings = Settings(data_dir=folder, yolo_weights=str(weights), mode="yolo")
        sources = [LiveSource(str(video), repeat=True) for _ in range(count)]
        with open_cameras(sources, config, settings) as cameras, serve_page(cameras, 0) as address:
            for number in range(1, count + 1):
                threading.Thread(target=watch, args=(address, number), daemon=True).start()
            for _ in range(10):
                time.sleep(seconds / 10)
                memory.append(round(process.memory_info().rss / 1e6))
            rows = [session.summary() for session in cameras.sessions]
    click.echo(f"{'camera':<8}{'frames/s':>10}{'median ms':>11}{'p99 ms':>8}{'processed':>11}{'received':>10}")
    for number, row in enumerate(rows, 1):
        latencies = (round(1000 * row[name]) for name in ("latency_s", "latency_p99_s"))
        click.echo(
            "{:<8}{:>10}{:>11}{:>8}{:>11}{:>10}".format(
                number, row["fps"], *latencies, row["processed"], row["received"]
            )
        )
    click.echo(f"memory after each tenth of the time, MB: {', '.join(map(str, memory))}")
    print(json.dumps({"cameras": rows, "memory_mb": memory}))


if __name__ == "__main__":
    main()
