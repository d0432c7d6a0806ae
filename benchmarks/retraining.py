"""Retraining on a local stack: time from submit to predictions, a burst of webhooks, and latency during a training.

    python benchmarks/retraining.py VIDEO --weights yolo11n.pt [--epochs 5] [--events 1000] [--seconds 10]
    python benchmarks/retraining.py VIDEO --weights yolo11n.pt --only renewal [--renewals 10]
    python benchmarks/retraining.py VIDEO --weights yolo11n.pt --only forgetting [--epochs 40] [--tracks 1,5,20]
    python benchmarks/retraining.py VIDEO --weights yolo11n.pt --only gate [--epochs 40] [--cases 40] [--out gate.jsonl]

VIDEO becomes two tasks. The tracks of one get the label "walker", which is not a class of the detector, and are
submitted; the time is measured until a version is promoted and until the other task has new predictions. Then webhook
events are sent at the given rate, and /predict and a prediction of a short clip are timed with and without a training.
So is, on a stack of its own with generated clips, the time from submit until the labels of another task are renewed.
Without a stack, trainings on one video are compared by what they forget of other material and what they learn, with and
without distillation and replay; see benchmarks/forgetting.py. Only on request, since it takes hours, the gate decides
on trainings with good and with spoiled annotations; see benchmarks/gate.py. A run that was ended goes on from its
results. Prints tables and, as the last line, JSON.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from itertools import cycle
from pathlib import Path
from typing import Any

import click
import httpx
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.measuring import (  # noqa: E402
    CONFIG,
    local_stack,
    new_task,
    newest_prediction,
    parse_integers,
    submit_as_walkers,
    temporary_data_dir,
    wait_for,
)


def percentiles(values: list[float]) -> dict[str, float]:
    return {
        name: round(float(np.percentile(values, p)), 4) for name, p in (("median", 50), ("p99", 99), ("worst", 100))
    }


@click.command()
@click.argument("video", type=click.Path(exists=True, path_type=Path))
@click.option("--weights", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--only", type=click.Choice(["stack", "renewal", "forgetting", "gate"]), help="Only this part.")
@click.option("--epochs", type=int, help="By default 5 with a stack, and as many as in production without.")
@click.option("--events", default=1000, show_default=True)
@click.option("--seconds", default=10.0, show_default=True, help="Duration in which the events are sent.")
@click.option("--tracks", default="1,5,20", show_default=True, callback=parse_integers, help="Tracks with a new label.")
@click.option("--renewals", default=10, show_default=True, help="Submits after which labels are renewed.")
@click.option("--cases", default=40, show_default=True, help="Trainings for the gate, every second of them spoiled.")
@click.option("--out", default=Path("gate.jsonl"), type=click.Path(path_type=Path), help="The gate's results.")
def main(
    video: Path,
    weights: Path,
    only: str | None,
    epochs: int | None,
    events: int,
    seconds: float,
    tracks: list[int],
    renewals: int,
    cases: int,
    out: Path,
) -> None:
    """Measure retraining with VIDEO."""
    figures: dict[str, Any] = {}
    if only == "gate":
        figures["gate"] = measure_gate(video, weights, cases, out, epochs)
    if only in (None, "stack"):
        figures |= measure_stack(video, weights, epochs or 5, events, seconds)
        for name, value in figures.items():
            print(f"{name:<28} {value}")
    if only in (None, "renewal"):
        renewed = measure_renewals(weights, renewals)
        for name, value in renewed.items():
            print(f"{name:<28} {value}")
        figures |= renewed
    if only in (None, "forgetting"):
        figures["forgetting"] = measure_forgetting(video, weights, tracks, epochs)
    print(json.dumps(figures))


def measure_forgetting(video: Path, weights: Path, tracks: list[int], epochs: int | None) -> list[dict[str, Any]]:
    """Print the table of :func:`benchmarks.forgetting.measure` and return its rows."""
    from benchmarks.forgetting import HEADER, measure

    print(HEADER)
    with temporary_data_dir() as folder:
        rows = []
        for row in measure(video, weights, folder, tracks, {"epochs": epochs} if epochs else {}):
            print(row, flush=True)
            rows.append(asdict(row) | {"lost": dict(row.lost)})
    return rows


def measure_gate(video: Path, weights: Path, cases: int, out: Path, epochs: int | None) -> dict[str, dict[str, int]]:
    """Print the results of :func:`benchmarks.gate.measure` and return their summary."""
    from benchmarks.gate import measure, summarize

    results = []
    with temporary_data_dir() as folder:
        for result in measure(video, weights, folder / "gate", cases, out, {"epochs": epochs} if epochs else {}):
            print(result, flush=True)
            results.append(result)
    summary = summarize(results)
    for how, counts in summary.items():
        print(f"{how:<10} " + ", ".join(f"{number} {name}" for name, number in counts.items()))
    return summary


def measure_stack(video: Path, weights: Path, epochs: int, events: int, seconds: float) -> dict[str, Any]:
    """Measure retraining on a local stack; return the figures by name."""
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
    return figures


def measure_renewals(weights: Path, renewals: int) -> dict[str, Any]:
    """Time submits until the labels of another task are renewed, without a training and while one runs."""
    from ml_backend.video.sample import make_sample

    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="renewal-", ignore_cleanup_errors=True) as folder:
        work_dir, arguments = Path(folder), json.dumps({"epochs": 1000, "imgsz": 320})  # epochs end soon
        clips = [work_dir / f"clip{number}.mp4" for number in range(2)]
        for number, clip in enumerate(clips):
            make_sample(clip, seconds=2.0, seed=number)
        with local_stack(weights, work_dir, TRAIN_ARGS=arguments, ENGINE="torch") as (stack, project, container):
            client, registry, trainings = stack.client(), container.registry, container.trainings
            trainings.set_policy(project, {"mode": "off"})
            annotated, other = (new_task(client, project, clip) for clip in clips)
            prediction, _ = (
                wait_for(f"the prediction of task {task}", lambda task=task: newest_prediction(client, task), stack)
                for task in (annotated, other)
            )
            annotation, walkers = submit_as_walkers(client, annotated, prediction)
            results = cycle([prediction.result, walkers])  # the same again would change nothing, and be waited for

            def renew() -> float:
                """Submit other labels than last time; return the seconds until the other task has new ones."""
                before = newest_prediction(client, other)
                assert before
                started = time.monotonic()
                client.update_annotation(annotation, next(results))
                wait_for(
                    "renewed labels",
                    lambda: (now := newest_prediction(client, other)) and now.model_version != before.model_version,
                    stack,
                )
                seconds = time.monotonic() - started
                print(f"renewed after {seconds:.2f} s", flush=True)
                return seconds

            wait_for("the first labels", lambda: "walker" in _labels(newest_prediction(client, other)), stack)
            figures["renewed_idle_s"] = percentiles([renew() for _ in range(renewals)])
            trainings.start(project, "benchmark")
            wait_for("an epoch", lambda: (v := registry.running(project)) and v.history, stack)
            figures["renewed_training_s"] = percentiles([renew() for _ in range(renewals)])
            running = registry.running(project)
            figures["training_went_on"] = bool(running and running.state == "training")
            trainings.cancel(project)
            wait_for("the end of the training", lambda: registry.running(project) is None, stack)
    return figures


def _labels(prediction: Any) -> set[str]:
    return {label for region in prediction.result for label in region["value"].get("labels") or []}


if __name__ == "__main__":
    main()
