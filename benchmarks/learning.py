"""Seconds from a submitted annotation to the updated pattern bank, and to new predictions, in a whole local stack.

    python benchmarks/learning.py VIDEO --weights yolo11n.pt [--tracks 100] [--repeats 3]

Copies of the video become tasks of one project until their annotations hold ``--tracks`` tracks; two more stay without
annotation. Then one more annotation is submitted (its tracks accepted), changed (each track gets the other label) and
deleted, ``--repeats`` times. Prints a table and, as the last line, JSON.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

CONFIG = (
    '<View><Labels name="label" toName="video"><Label value="person"/><Label value="bicycle"/>'
    '<Label value="other"/></Labels><Video name="video" value="$video" frameRate="$fps"/>'
    '<VideoRectangle name="box" toName="video"/></View>'
)
PATIENCE_S = 900.0


def wait(what: str, condition: Callable[[], Any], stack: Any) -> Any:
    deadline = time.monotonic() + PATIENCE_S
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise click.ClickException(f"not after {PATIENCE_S:.0f} s: {what}\n{stack.worker.tail(20)}")
        stack.revive()
        time.sleep(0.05)
    return value


def relabelled(result: list[dict[str, Any]], label: str) -> list[dict[str, Any]]:
    return [{**region, "value": {**region["value"], "labels": [label]}} for region in result]


@click.command()
@click.argument("video", type=click.Path(exists=True, path_type=Path))
@click.option("--weights", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--tracks", default=100, show_default=True)
@click.option("--repeats", default=3, show_default=True)
@click.option("--embedder", default="auto", show_default=True)
def main(video: Path, weights: Path, tracks: int, repeats: int, embedder: str) -> None:
    """Measure with VIDEO."""
    from label_studio_sdk import LabelStudio

    from ml_backend.local.preflight import free_port
    from ml_backend.local.stack import Stack, StackOptions
    from ml_backend.patterns.service import Patterns
    from ml_backend.settings import Settings

    environment = {"YOLO_WEIGHTS": str(weights.absolute()), "EMBEDDER": embedder, "WEIGHTS_TIMEOUT_S": "1"}
    with tempfile.TemporaryDirectory(prefix="learning-", ignore_cleanup_errors=True) as folder:
        options = StackOptions(Path(folder), free_port(), free_port(), isolated=True, environment=environment)
        with Stack(options) as stack:
            client = stack.client()
            sdk = LabelStudio(base_url=stack.label_studio.url, api_key=stack.token)
            project = client.create_project("learning", CONFIG)
            client.connect_backend(project, stack.backend.url)
            named = {name.lower(): value for name, value in stack.settings_environment().items()}
            service = Patterns(Settings(_env_file=None, **named))  # type: ignore[arg-type]

            def new_task() -> int:
                return client.create_task(project, {"video": client.upload_file(project, video)})

            def predictions(task: int) -> list[Any]:
                return list(sdk.predictions.list(task=task))

            def objects() -> int:
                return sum(facts["objects"] for label, facts in service.info(project)["labels"].items() if label)

            def version() -> str:
                return str(service.info(project)["model_version"])

            first = new_task()
            wait("a prediction", lambda: predictions(first), stack)
            each = len(predictions(first)[0].result)
            annotated = [first, *(new_task() for _ in range(-(-tracks // each) - 1))]
            one_more, watched = new_task(), new_task()
            for task in (*annotated, one_more, watched):
                wait(f"the prediction of task {task}", lambda task=task: predictions(task), stack)
            started = time.monotonic()
            for task in annotated:
                sdk.annotations.create(id=task, result=predictions(task)[0].result)
            wait("the first annotations", lambda: objects() >= each * len(annotated), stack)
            figures: dict[str, list[float]] = {"first": [time.monotonic() - started]}
            known = objects()

            def measure(name: str, act: Callable[[], Any]) -> Any:
                before = version()
                wait("quiet", lambda: predictions(watched)[-1].model_version == before, stack)
                begun = time.monotonic()
                outcome = act()
                answered = time.monotonic() - begun
                after = wait("a new version", lambda: (v := version()) != before and v, stack)
                figures.setdefault(f"{name}: API call", []).append(answered)
                figures.setdefault(f"{name}: bank", []).append(time.monotonic() - begun)
                wait("a new prediction", lambda: predictions(watched)[-1].model_version == after, stack)
                figures.setdefault(f"{name}: predictions", []).append(time.monotonic() - begun)
                return outcome

            result = predictions(one_more)[0].result
            for _ in range(repeats):
                made = measure("submit", lambda: sdk.annotations.create(id=one_more, result=result))
                measure(
                    "update",
                    lambda made=made: sdk.annotations.update(made.id, result=relabelled(result, "other")),
                )
                measure("delete", lambda made=made: sdk.annotations.delete(made.id))
            model = service.info(project)["embedder"]
    print(f"{known} annotated tracks, {len(result)} in the one more; embedder {model}")
    for name, values in figures.items():
        print(f"{name:<22} {statistics.median(values):7.2f} s median of {len(values)} (worst {max(values):.2f})")
    print(json.dumps({"tracks": known, "embedder": model, **figures}))


if __name__ == "__main__":
    main()
