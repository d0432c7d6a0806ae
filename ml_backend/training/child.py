"""Entry of the training subprocess: ``python -m ml_backend.training.child``.

It runs the plans whose paths it reads from standard input, a line each. Events go to standard output as JSON lines,
everything else to ``child.log`` beside the plan. The process and its children end when standard input is closed, which
means that the parent process is gone.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import logging
import math
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ml_backend.core.errors import BackendError
from ml_backend.core.memory import free_gpu_memory
from ml_backend.core.subprocesses import lower_priority, terminate

log = logging.getLogger(__name__)

#: Log beside a plan.
LOG = "child.log"
#: Seconds between two looks at whether a pause is over.
_PAUSE_S = 0.2


def main() -> int:
    """Run plans until one fails. Return the exit status: 1 after ``error``."""
    events = _Events()
    plans: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_read_plans, args=(plans,), daemon=True).start()
    faulthandler.enable()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    lower_priority()
    try:
        while True:
            path = Path(plans.get())
            with (path.parent / LOG).open("ab") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            events.emit("done", **_run(json.loads(path.read_text(encoding="utf-8")), events.emit))
            gc.collect()  # networks hold reference cycles
            free_gpu_memory()
    except BackendError as error:
        log.error("%s", error, exc_info=True)
        events.emit("error", message=error.message, hint=error.hint, retryable=error.retryable)
        return 1


def _read_plans(plans: queue.Queue[str]) -> None:
    for line in sys.stdin:
        plans.put(line.rstrip("\n"))
    terminate()


def _run(plan: dict[str, Any], emit: Callable[..., None]) -> dict[str, Any]:
    file = Path(plan["pause"])

    def pause() -> None:
        while file.exists():
            time.sleep(_PAUSE_S)

    if plan["kind"] == "train":
        from ml_backend.training.fine_tune import TrainingPlan, fine_tune

        return fine_tune(TrainingPlan.from_json(plan), emit, pause)
    from ml_backend.training.evaluate import EvaluationPlan, evaluate

    return evaluate(EvaluationPlan.from_json(plan), emit, pause)


class _Events:
    """The event channel to the parent. Other output to standard output, also by libraries, goes to the log."""

    def __init__(self) -> None:
        sys.stdout.flush()
        self._file = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        self._lock = threading.Lock()

    def emit(self, event: str, **values: Any) -> None:
        line = json.dumps(_finite({"event": event, **values}), allow_nan=False)
        with self._lock:
            try:
                self._file.write(line + "\n")
                self._file.flush()
            except BrokenPipeError:
                terminate()


def _finite(value: Any) -> Any:
    """Replace infinity and NaN, which JSON lacks, by ``None``."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value


if __name__ == "__main__":
    sys.exit(main())
