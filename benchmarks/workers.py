"""Predictions through the queue and the workers of a local stack, with Label Studio.

    python benchmarks/workers.py VIDEO --weights yolo11n.pt [--clips 100] [--seconds 2]

The beginning of VIDEO is predicted as many short clips, as one video of the same frames, and as such a video by two
workers. Seconds count from the request for predictions to the last one in Label Studio, CPU seconds those of the
workers. Engines are exported before, in fp32. Prints a table and, as the last line, JSON: ``clips_overhead`` and
``sharing_overhead`` are the additional seconds of the clips and CPU seconds of two workers, as shares of what the one
video takes one worker.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.measuring import (  # noqa: E402
    local_stack,
    make_engine,
    new_task,
    newest_prediction,
    repeat_video,
    temporary_data_dir,
    wait_for,
)


@click.command()
@click.argument("video", type=click.Path(exists=True, path_type=Path))
@click.option("--weights", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--clips", default=100, show_default=True, help="Number of short clips.")
@click.option("--seconds", default=2.0, show_default=True, help="Length of a clip.")
def main(video: Path, weights: Path, clips: int, seconds: float) -> None:
    import psutil

    from ml_backend.cli.dev_stack.processes import WorkerProcess
    from ml_backend.labeling.model_version import is_partial
    from ml_backend.video.probe import probe

    with temporary_data_dir() as folder:
        clip, long = folder / f"clip{video.suffix}", folder / f"long{video.suffix}"
        repeat_video(video, clip, 1, seconds)
        repeat_video(clip, long, clips)
        with local_stack(weights, folder, PRECISION="fp32", MODE="yolo") as (stack, project, container):
            make_engine(clip, weights, precision="fp32")
            client = stack.client()

            def busy(processes: list[psutil.Process]) -> float:
                return sum(sum(process.cpu_times()[:2]) for process in processes)  # user and system

            def predict(files: list[Path], workers: list[WorkerProcess]) -> dict[str, Any]:
                def finished(task: int) -> Callable[[], bool]:
                    def check() -> bool:
                        newest = newest_prediction(client, task)
                        return newest is not None and not is_partial(newest.model_version)

                    return check

                tasks = [new_task(client, project, file) for file in files]
                processes = [psutil.Process(worker.pid) for worker in workers]
                before, started = busy(processes), time.perf_counter()
                container.api_queue.auto_label(project, tasks)
                for task in tasks:
                    wait_for(f"the prediction of task {task}", finished(task), stack)
                elapsed = time.perf_counter() - started
                cpu = busy(processes) - before
                count = sum(probe(file).frames for file in files)
                return {"videos": len(files), "frames": count, "seconds": elapsed, "cpu_s": cpu}

            predict([clip], [stack.worker])  # loads the network
            rows = {
                "one video": predict([long], [stack.worker]),
                "clips": predict([clip] * clips, [stack.worker]),
            }
            helper = WorkerProcess(
                "helper",
                stack.worker.queues,
                redis_url=stack.redis_url,
                log_dir=stack.log_dir,
                environment=stack.worker.environment,
                cwd=stack.worker.cwd,
            )
            helper.start()
            try:
                helper.wait_ready(120.0)
                rows["two workers"] = predict([long], [stack.worker, helper])
            finally:
                helper.stop()
    for name, row in rows.items():
        print(
            f"{name:12} {row['videos']:4} videos {row['frames']:6} frames "
            f"{row['frames'] / row['seconds']:6.1f} frames/s "
            f"{1000 * row['cpu_s'] / row['frames']:6.1f} CPU ms/frame of the workers"
        )
    alone = rows["one video"]
    summary = {
        "rows": rows,
        "clips_overhead": round(rows["clips"]["seconds"] / alone["seconds"] - 1, 3),
        "sharing_overhead": round(rows["two workers"]["cpu_s"] / alone["cpu_s"] - 1, 3),
    }
    print(f"clips take {summary['clips_overhead']:+.1%} time, two workers {summary['sharing_overhead']:+.1%} CPU time")
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
