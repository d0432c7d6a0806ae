"""The second half of ``up.sh --smoke``: somebody submits an annotation, and the machine learns from it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ml_backend.label_studio.client import LabelStudioClient
from ml_backend.local.demo import Demo, no_prediction
from ml_backend.local.report import Reporter
from ml_backend.local.stack import Stack
from ml_backend.local.verify import follow
from ml_backend.services import Services
from ml_backend.settings import Settings
from ml_backend.training.registry import MEASURED, Version
from ml_backend.video.sample import SampleTruth, make_sample

#: A label that no detector knows.
LABEL = "first_responder"
#: Predicting, annotating, training and predicting again, on a slow machine.
TIMEOUT = 900.0


def teach(stack: Stack, demo: Demo, truth: SampleTruth, reporter: Reporter, folder: Path) -> dict[str, Any]:
    """Relabel the demo's people, submit, and see that a second video gets the new label from a newer version.

    Returns:
        for the smoke test's outcome: ``retrained`` (what became of the training), ``new_version``, ``problems``.

    Raises:
        StartError: something failed, or takes too long; with the end of a log.
    """
    client = stack.client()
    services = Services.build(Settings(_env_file=None, **_lower(stack.settings_environment())))
    services.trainings.set_policy(demo.project_id, {"min_tracks": 1, "quiet_s": 1, "every_s": 0})  # at once
    with reporter.stage("second_video", "Waiting for a second video's tracks") as tick:
        second = folder / "second.mp4"
        make_sample(second, seconds=4.0, seed=1)
        _add_label(client, demo.project_id)
        other = client.create_task(demo.project_id, {"video": client.upload_file(demo.project_id, second)})
        first = _wait(stack, tick, lambda: _newest(client, other), "The second video has no prediction")
    with reporter.stage(
        "retraining", f"Submitting an annotation with the label {LABEL}; waiting for what it teaches"
    ) as tick:
        _submit(client, demo, truth)
        version = None
        if _trains(services, demo.project_id):
            version = _wait(stack, tick, lambda: _measured(services, demo.project_id), "No version was trained")
    with reporter.stage("new_prediction", "Waiting for the second video's new prediction") as tick:
        newest = _wait(
            stack, tick, lambda: _relabelled(client, other, first, version), f"Nothing is called {LABEL} now"
        )
    outcome = f"{version.state}: {version.reason}" if version else "nothing to train: the motion detector is used"
    reporter.say(f"Retraining was {outcome}")
    reporter.say(f"The second video's tracks are by {newest['model_version']} now")
    return {"retrained": outcome, "new_version": newest["model_version"]}


def _lower(environment: Mapping[str, str]) -> dict[str, Any]:
    return {name.lower(): value for name, value in environment.items()}


def _add_label(client: LabelStudioClient, project_id: int) -> None:
    config = client.get_project(project_id).label_config
    client.set_label_config(project_id, config.replace("</Labels>", f'<Label value="{LABEL}"/></Labels>', 1))


def _submit(client: LabelStudioClient, demo: Demo, truth: SampleTruth) -> None:
    """What a person does: each track gets the label of what it follows; people are the new ones."""
    prediction = max(client.list_predictions(demo.task_id), key=lambda item: item.id)
    result = []
    for region in prediction.result:
        name = follow(region, truth)
        if name is not None:
            label = LABEL if name == "person" else name
            value = {**region["value"], "labels": [label]}
            same = region["value"].get("labels") == [label]
            origin = "prediction" if same else "prediction-changed"
            result.append({**region, "value": value, "origin": origin})
    client.create_annotation(demo.task_id, result, prediction.id)


def _trains(services: Services, project_id: int) -> bool:
    return services.projects.trained(project_id) is not None or services.settings.detector != "motion"


def _measured(services: Services, project_id: int) -> Version | None:
    last = services.projects.registry.last(project_id)
    if last is not None and last.state == "failed":
        raise no_training(last)
    return last if last is not None and last.state in MEASURED else None


def no_training(version: Version) -> Exception:
    """What to raise for a training that came to nothing."""
    from ml_backend.local.processes import StartError

    return StartError(f"The training has failed: {version.reason}", "The trainer's log says more.")


def _newest(client: LabelStudioClient, task_id: int) -> dict[str, Any] | None:
    found = client.list_predictions(task_id)
    if not found:
        return None
    newest = max(found, key=lambda item: item.id)
    return {"model_version": newest.model_version, "result": newest.result}


def _relabelled(
    client: LabelStudioClient, task_id: int, before: Mapping[str, Any], version: Version | None
) -> dict[str, Any] | None:
    newest = _newest(client, task_id)
    if newest is None or newest["model_version"] == before["model_version"]:
        return None
    if version is not None and version.state == "promoted" and not newest["model_version"].endswith(f".{version.name}"):
        return None
    labels = [label for region in newest["result"] for label in region["value"].get("labels") or []]
    return newest if LABEL in labels else None


def _wait(stack: Stack, tick: Callable[[], None], look: Callable[[], Any], problem: str) -> Any:
    deadline = time.monotonic() + TIMEOUT
    while not (found := look()):
        if time.monotonic() > deadline:
            raise no_prediction(stack, f"{problem} after {TIMEOUT:.0f} s.")
        stack.revive()
        for _ in range(5):
            tick()
            time.sleep(0.1)
    return found
