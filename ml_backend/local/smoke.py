"""``up.sh --smoke``: the whole path in a temporary folder, and whether what comes out is right."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ml_backend.errors import BackendError
from ml_backend.local.demo import make_demo, wait_for_prediction
from ml_backend.local.preflight import free_port
from ml_backend.local.report import Reporter
from ml_backend.local.stack import Stack, StackOptions


def run_smoke(reporter: Reporter) -> int:
    """Run it; the last line on stdout is JSON: seconds of each stage, ``ok``, and what was found or what failed.

    Returns:
        the exit code, 0 or 1.
    """
    started = time.monotonic()
    outcome: dict[str, Any] = {}
    try:
        with tempfile.TemporaryDirectory(prefix="smoke-", ignore_cleanup_errors=True) as folder:
            outcome = _try_everything(Path(folder), reporter)
    except (BackendError, OSError) as error:
        reporter.say(f"Smoke test failed: {error}")
        outcome = {"ok": False, "error": str(error).splitlines()[0]}
    except KeyboardInterrupt:
        outcome = {"ok": False, "error": "interrupted"}
    reporter.seconds["total"] = round(reporter.seconds.get("install", 0.0) + time.monotonic() - started, 2)
    sys.stderr.flush()
    print(json.dumps({**reporter.seconds, **outcome}), flush=True)
    return 0 if outcome["ok"] else 1


#: Trainings that people would wait for come at once, and are short.
QUICKLY = {
    "TRAIN_MIN_TRACKS": "1",
    "TRAIN_QUIET_S": "1",
    "TRAIN_EVERY_S": "0",
    "TRAIN_EPOCHS": "3",
    # Made for trainings of ten epochs and more: in three they would be all of it, and whole pictures hardly be seen.
    "TRAIN_ARGS": '{"mosaic": 0.0, "warmup_epochs": 1.0}',
    "GATE_FRAMES": "60",
}


def _try_everything(folder: Path, reporter: Reporter) -> dict[str, Any]:
    from ml_backend.local.retrain import teach
    from ml_backend.local.verify import check_prediction
    from ml_backend.video.sample import make_sample

    video = folder / "sample.mp4"
    options = StackOptions(folder / "data", free_port(), free_port(), isolated=True, environment=QUICKLY)
    options.data_dir.mkdir()
    with ThreadPoolExecutor(1) as background, Stack(options, reporter) as stack:
        sample = background.submit(make_sample, video)
        with reporter.stage("demo", "Making the demo project"):
            truth = sample.result()
            demo = make_demo(stack, video)
        with reporter.stage("prediction", "Waiting for the sample video's tracks") as tick:
            wait_for_prediction(stack, demo, tick)
        with reporter.stage("check", "Comparing the tracks with what moves in the sample"):
            report = check_prediction(stack.client().get_full_task(demo.task_id, demo.project_id), truth)
        for line in report.lines():
            reporter.say(line)
        found = report.summary()
        if report.ok:
            found |= teach(stack, demo, truth, reporter, folder)
    problems = found["problems"]
    return {"ok": not problems, **found}
