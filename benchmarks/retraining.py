"""Retraining in a whole local stack: from submit to version to predictions, a storm of webhooks, and serving meanwhile.

    python benchmarks/retraining.py VIDEO --weights yolo11n.pt [--epochs 5] [--events 1000] [--seconds 10]

VIDEO becomes two tasks. The one is annotated as a person would (its tracks get the label "walker", which no detector
knows) and submitted; the seconds count until a version is promoted and until the other task has its predictions. Then
webhook events come as fast as asked for, and /predict and a prediction of a short clip are timed while nothing is
trained and while something is. Prints a table and, as the last line, JSON.
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

from benchmarks.measuring import CONFIG, local_stack, new_task, newest, submit_as_walkers, wait  # noqa: E402


def percentiles(values: list[float]) -> dict[str, float]:
    return {
        name: round(float(np.percentile(values, p)), 4) for name, p in (("median", 50), ("p99", 99), ("worst", 100))
    }


@click.command()
@click.argument("video", type=click.Path(exists=True, path_type=Path))
@click.option("--weights", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--epochs", default=5, show_default=True)
@click.option("--events", default=1000, show_default=True)
@click.option("--seconds", default=10.0, show_default=True, help="In which the events come.")
def main(video: Path, weights: Path, epochs: int, events: int, seconds: float) -> None:
    """Measure with VIDEO."""
    from label_studio_sdk import LabelStudio

    from ml_backend.video.sample import make_sample

    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="retraining-", ignore_cleanup_errors=True) as folder:
        place, arguments = Path(folder), json.dumps({"epochs": epochs})
        with local_stack(weights, place, TRAIN_ARGS=arguments, GATE_FRAMES="120") as (stack, project, services):
            client, registry = stack.client(), services.registry
            sdk = LabelStudio(base_url=stack.label_studio.url, api_key=stack.token)
            first, watched = new_task(client, project, video), new_task(client, project, video)
            for task in (first, watched):
                wait(f"the prediction of task {task}", lambda task=task: newest(client, task), stack)

            # -- from submit to version to predictions
            prediction = newest(client, first)
            assert prediction
            begun = time.monotonic()
            submitted, result = submit_as_walkers(client, first, prediction)
            figures["submit_answered_s"] = round(time.monotonic() - begun, 2)
            done = wait(
                "a version", lambda: (v := registry.last(project)) and v.state in ("promoted", "refused") and v, stack
            )
            figures["submit_to_version_s"] = round(time.monotonic() - begun, 1)
            figures["outcome"] = f"{done.state}: {done.reason}"
            if done.state == "promoted":
                wait("new predictions", lambda: newest(client, watched).model_version.endswith(f".{done.name}"), stack)
                figures["submit_to_predictions_s"] = round(time.monotonic() - begun, 1)
            figures["epochs_s"] = [item.get("seconds") for item in done.history]

            # -- serving, idle and while a training runs
            body = {
                "project": f"{project}.1",
                "label_config": CONFIG,
                "tasks": [{"id": watched, "data": client.get_task(watched).data, "annotations": []}],
            }

            def serve(seconds: float) -> dict[str, float]:
                times = []
                end = time.monotonic() + seconds
                with httpx.Client(trust_env=False, timeout=30) as http:
                    while time.monotonic() < end:
                        started = time.perf_counter()
                        http.post(f"{stack.backend.url}/predict", json=body).raise_for_status()
                        times.append(time.perf_counter() - started)
                        time.sleep(0.05)
                return percentiles(times)

            clips = [place / f"clip{number}.mp4" for number in range(2)]
            for number, clip in enumerate(clips):
                make_sample(clip, seconds=4.0, seed=number)
            other = client.create_project("clips", CONFIG)
            client.connect_backend(other, stack.backend.url)

            def predict_clip(clip: Path) -> float:
                task = new_task(client, other, clip)
                started = time.monotonic()
                wait("the clip's prediction", lambda: newest(client, task), stack)
                return round(time.monotonic() - started, 1)

            wait("quiet", lambda: registry.active(project) is None, stack)
            time.sleep(5)
            figures["predict_request_idle"] = serve(10)
            figures["predict_clip_idle_s"] = predict_clip(clips[0])

            # -- a storm: it begins a training, and serving is timed while that runs
            before = len(registry.versions(project))
            sdk.annotations.update(submitted, result=result[: max(1, len(result) // 2)])

            def event(number: int) -> float:
                action = "START_TRAINING" if number % 10 == 0 else "ANNOTATION_UPDATED"
                hook = {
                    "action": action,
                    "project": {"id": project},
                    "annotation": {"id": submitted},
                    "task": {"id": first},
                }
                started = time.perf_counter()
                httpx.post(f"{stack.backend.url}/webhook", json=hook, trust_env=False, timeout=30).raise_for_status()
                return time.perf_counter() - started

            started = time.monotonic()
            with ThreadPoolExecutor(16) as pool:
                sent = []
                for number in range(events):
                    time.sleep(max(0.0, started + seconds * number / events - time.monotonic()))
                    sent.append(pool.submit(event, number))
                figures["webhook"] = percentiles([future.result() for future in sent])
            figures["events_sent_in_s"] = round(time.monotonic() - started, 1)
            wait("a training", lambda: (v := registry.active(project)) and v.state == "training", stack)
            figures["predict_request_training"] = serve(10)
            figures["predict_clip_training_s"] = predict_clip(clips[1])
            for pause in (15, 0):  # a late event may begin another one
                wait("the end", lambda: not (registry.active(project) or services.trainings.is_wanted(project)), stack)
                time.sleep(pause)
            figures["trainings_by_events"] = len(registry.versions(project)) - before
    for name, value in figures.items():
        print(f"{name:<28} {value}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
