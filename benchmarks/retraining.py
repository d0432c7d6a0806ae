"""Retraining on a local stack: time from submit to predictions, a burst of webhooks, and latency during a training.

    python benchmarks/retraining.py VIDEO --weights yolo11n.pt [--epochs 5] [--events 1000] [--seconds 10]

VIDEO becomes two tasks. The tracks of one get the label "walker", which is not a class of the detector, and are
submitted; the time is measured until a version is promoted and until the other task has new predictions. Then webhook
events are sent at the given rate, and /predict and a prediction of a short clip are timed with and without a training.
Prints a table and, as the last line, JSON.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
import httpx
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.measuring import CONFIG, local_stack, new_task, newest_prediction, submit_as_walkers, wait_for  # noqa: E402


def percentiles(values: list[float]) -> dict[str, float]:
    return {
        name: round(float(np.percentile(values, p)), 4) for name, p in (("median", 50), ("p99", 99), ("worst", 100))
    }


@click.command()
@click.argument("video", type=click.Path(exists=True, path_type=Path))
@click.option("--weights", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--epochs", default=5, show_default=True)
@click.option("--events", default=1000, show_default=True)
@click.option("--seconds", default=10.0, show_default=True, help="Duration in which the events are sent.")
def main(video: Path, weights: Path, epochs: int, events: int, seconds: float) -> None:
    """Measure retraining with VIDEO."""
    from label_studio_sdk import LabelStudio

    from ml_backend.video.sample import make_sample

    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="retraining-", ignore_cleanup_errors=True) as folder:
        work_dir, arguments = Path(folder), json.dumps({"epochs": epochs})
        with local_stack(weights, work_dir, TRAIN_ARGS=arguments, GATE_FRAMES="120") as (stack, project, container):
            client, registry = stack.client(), container.registry
            sdk = LabelStudio(base_url=stack.label_studio.url, api_key=stack.token)
            annotated, unannotated = new_task(client, project, video), new_task(client, project, video)
            for task in (annotated, unannotated):
                wait_for(f"the prediction of task {task}", lambda task=task: newest_prediction(client, task), stack)

            # -- from submit to version to predictions
            prediction = newest_prediction(client, annotated)
            assert prediction
            submitted_at = time.monotonic()
            annotation, result = submit_as_walkers(client, annotated, prediction)
            figures["submit_answered_s"] = round(time.monotonic() - submitted_at, 2)
            version = wait_for(
                "a version",
                lambda: (v := registry.last(project)) and v.state in ("promoted", "proposed", "refused") and v,
                stack,
            )
            figures["submit_to_version_s"] = round(time.monotonic() - submitted_at, 1)
            figures["outcome"] = f"{version.state}: {version.reason}"
            if version.state == "promoted":
                wait_for(
                    "new predictions",
                    lambda: newest_prediction(client, unannotated).model_version.endswith(f".{version.name}"),
                    stack,
                )
                figures["submit_to_predictions_s"] = round(time.monotonic() - submitted_at, 1)
            figures["epochs_s"] = [item.get("seconds") for item in version.history]

            # -- serving, idle and while a training runs
            body = {
                "project": f"{project}.1",
                "label_config": CONFIG,
                "tasks": [{"id": unannotated, "data": client.get_task(unannotated).data, "annotations": []}],
            }

            def time_predict_requests(seconds: float) -> dict[str, float]:
                times = []
                end = time.monotonic() + seconds
                with httpx.Client(trust_env=False, timeout=30) as http:
                    while time.monotonic() < end:
                        started = time.perf_counter()
                        http.post(f"{stack.backend.url}/predict", json=body).raise_for_status()
                        times.append(time.perf_counter() - started)
                        time.sleep(0.05)
                return percentiles(times)

            clips = [work_dir / f"clip{number}.mp4" for number in range(2)]
            for number, clip in enumerate(clips):
                make_sample(clip, seconds=4.0, seed=number)
            clips_project = client.create_project("clips", CONFIG)
            client.connect_backend(clips_project, stack.backend.url)

            def predict_clip(clip: Path) -> float:
                task = new_task(client, clips_project, clip)
                started = time.monotonic()
                wait_for("the clip's prediction", lambda: newest_prediction(client, task), stack)
                return round(time.monotonic() - started, 1)

            wait_for("the end of the training", lambda: registry.running(project) is None, stack)
            time.sleep(5)
            figures["predict_request_idle"] = time_predict_requests(10)
            figures["predict_clip_idle_s"] = predict_clip(clips[0])

            # -- a burst of events starts a training, during which requests are timed
            versions_before = len(registry.versions(project))
            sdk.annotations.update(annotation, result=result[: max(1, len(result) // 2)])

            def send_event(number: int) -> float:
                action = "START_TRAINING" if number % 10 == 0 else "ANNOTATION_UPDATED"
                hook = {
                    "action": action,
                    "project": {"id": project},
                    "annotation": {"id": annotation},
                    "task": {"id": annotated},
                }
                started = time.perf_counter()
                httpx.post(f"{stack.backend.url}/webhook", json=hook, trust_env=False, timeout=30).raise_for_status()
                return time.perf_counter() - started

            started = time.monotonic()
            with ThreadPoolExecutor(16) as pool:
                futures = []
                for number in range(events):
                    time.sleep(max(0.0, started + seconds * number / events - time.monotonic()))
                    futures.append(pool.submit(send_event, number))
                figures["webhook"] = percentiles([future.result() for future in futures])
            figures["events_sent_in_s"] = round(time.monotonic() - started, 1)
            wait_for("a training", lambda: (v := registry.running(project)) and v.state == "training", stack)
            figures["predict_request_training"] = time_predict_requests(10)
            figures["predict_clip_training_s"] = predict_clip(clips[1])
            for pause in (15, 0):  # a late event may start another one
                wait_for(
                    "the end of the trainings",
                    lambda: not (registry.running(project) or container.trainings.is_wanted(project)),
                    stack,
                )
                time.sleep(pause)
            figures["trainings_by_events"] = len(registry.versions(project)) - versions_before
    for name, value in figures.items():
        print(f"{name:<28} {value}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
