"""``up.sh --smoke``: an end-to-end test in a temporary folder."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_backend.cli.dev_stack.demo import Demo, make_demo, wait_for_prediction, wait_until
from ml_backend.cli.dev_stack.preflight import StartError, free_port
from ml_backend.cli.dev_stack.report import Reporter
from ml_backend.cli.dev_stack.stack import Stack, StackOptions
from ml_backend.core.errors import BackendError

if TYPE_CHECKING:
    from ml_backend.video.sample import SampleTruth

#: A label that is not a class of the detector.
LABEL = "first_responder"
#: Seconds for predicting, annotating, training and predicting again, on a slow machine.
TIMEOUT = 900.0
#: Settings for a short run.
FAST = {
    "ENGINE": "torch",  # an export to OpenVINO would be ready after the last video, and slow down all else until then
    # Mosaic and warm-up suit trainings of ten epochs and more; of three epochs they would take most.
    "TRAIN_ARGS": '{"epochs": 3, "imgsz": 256, "mosaic": 0.0, "warmup_epochs": 1.0}',
    "GATE_FRAMES": "40",
}


def run_smoke(reporter: Reporter) -> int:
    """Run the smoke test; print JSON as the last line: seconds of each stage, ``ok``, and the results or the error.

    Returns:
        The exit code, 0 or 1.
    """
    started = time.monotonic()
    outcome: dict[str, Any] = {}
    try:
        with tempfile.TemporaryDirectory(prefix="smoke-", ignore_cleanup_errors=True) as folder:
            outcome = _run_all_stages(Path(folder), reporter)
    except (BackendError, OSError) as error:
        reporter.say(f"Smoke test failed: {error}")
        outcome = {"ok": False, "error": str(error).splitlines()[0]}
    except KeyboardInterrupt:
        outcome = {"ok": False, "error": "interrupted"}
    reporter.seconds["total"] = round(reporter.seconds.get("install", 0.0) + time.monotonic() - started, 2)
    sys.stderr.flush()
    print(json.dumps({**reporter.seconds, **outcome}), flush=True)
    return 0 if outcome["ok"] else 1


def _run_all_stages(folder: Path, reporter: Reporter) -> dict[str, Any]:
    from ml_backend.cli.dev_stack.verify import check_prediction
    from ml_backend.video.sample import make_sample

    video = folder / "sample.mp4"
    options = StackOptions(folder / "data", free_port(), free_port(), isolated=True, environment=FAST)
    options.data_dir.mkdir()
    with ThreadPoolExecutor(1) as background, Stack(options, reporter) as stack:
        sample = background.submit(make_sample, video, seconds=5.0)
        with reporter.stage("demo", "Making the demo project"):
            truth = sample.result()
            demo = make_demo(stack, video)
        with reporter.stage("prediction", "Waiting for the sample video's tracks") as tick:
            wait_for_prediction(stack, demo, tick)
        with reporter.stage("check", "Comparing the tracks with the sample's ground truth"):
            report = check_prediction(stack.client().get_full_task(demo.task_id, demo.project_id), truth)
        reporter.say(str(report))
        outcome = report.summary()
        if outcome["ok"]:
            outcome |= _retrain(stack, demo, truth, folder)
    return outcome


def _retrain(stack: Stack, demo: Demo, truth: SampleTruth, folder: Path) -> dict[str, Any]:
    """Submit the demo's people with a new label, and check that a newer version predicts it in a second video.

    Returns:
        ``retrained`` (outcome of the training) and ``new_version``.

    Raises:
        StartError: a stage failed or timed out; the hint is the end of a log.
    """
    from ml_backend.core.settings import Settings
    from ml_backend.jobs.container import Container
    from ml_backend.training.registry import MEASURED, Version
    from ml_backend.video.sample import make_sample

    client, reporter, project = stack.client(), stack.reporter, demo.project_id
    values: dict[str, Any] = {name.lower(): value for name, value in stack.settings_environment().items()}
    container = Container(Settings(_env_file=None, **values))
    container.trainings.set_policy(project, {"min_tracks": 1, "quiet_s": 1, "every_s": 0})  # train at once

    def newest_prediction(task: int) -> Any:
        return max(client.list_predictions(task), key=lambda item: item.id, default=None)

    def trained_version() -> Version | None:
        last = container.registry.last(project)
        if last is not None and last.state == "failed":
            raise StartError(f"The training has failed: {last.reason}", "See the trainer's log.")
        return last if last is not None and last.state in MEASURED else None

    def new_prediction() -> Any:
        prediction = newest_prediction(second_task)
        if prediction is None or prediction.model_version == first.model_version:
            return None
        if version and version.state == "promoted" and not prediction.model_version.endswith(f".{version.name}"):
            return None
        labels = [label for region in prediction.result for label in region["value"].get("labels") or []]
        return prediction if LABEL in labels else None

    with reporter.stage("second_video", "Waiting for a second video's tracks") as tick:
        second = folder / "second.mp4"
        make_sample(second, seconds=3.0, seed=1)
        config = client.get_project(project).label_config
        client.set_label_config(project, config.replace("</Labels>", f'<Label value="{LABEL}"/></Labels>', 1))
        second_task = client.create_task(project, {"video": client.upload_file(project, second)})
        first = wait_until(
            stack, tick, lambda: newest_prediction(second_task), "The second video has no prediction", TIMEOUT
        )
    with reporter.stage(
        "retraining", f"Submitting an annotation with the label {LABEL} and waiting for the training"
    ) as tick:
        prediction = newest_prediction(demo.task_id)
        client.create_annotation(demo.task_id, _relabel(prediction.result, truth), prediction.id)
        version = None
        if container.projects.trained(project) is not None or container.settings.detector != "motion":
            version = wait_until(stack, tick, trained_version, "No version was trained", TIMEOUT)
    with reporter.stage("new_prediction", "Waiting for the second video's new prediction") as tick:
        last = wait_until(stack, tick, new_prediction, f"No track has the label {LABEL}", TIMEOUT)
    outcome = f"{version.state}: {version.reason}" if version else "nothing to train: the motion detector is used"
    reporter.say(f"Fine-tuning was {outcome}")
    reporter.say(f"The second video's tracks are now by {last.model_version}")
    return {"retrained": outcome, "new_version": last.model_version}


def _relabel(regions: list[dict[str, Any]], truth: SampleTruth) -> list[dict[str, Any]]:
    """Label each track by the object that it follows, as a person would; people get the new label."""
    from ml_backend.cli.dev_stack.verify import matching_object

    result = []
    for region in regions:
        name = matching_object(region, truth)
        if name is not None:
            labels = [LABEL if name == "person" else name]
            origin = "prediction" if region["value"].get("labels") == labels else "prediction-changed"
            result.append({**region, "value": {**region["value"], "labels": labels}, "origin": origin})
    return result
