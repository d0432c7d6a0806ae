"""Entry of the process that makes an export in the background: ``python -m ml_backend.models.engines.child PLAN``.

Tracing a network keeps Python's lock for many seconds: in a worker's own process nothing else would go on, not even
the signs of life that others wait for. PLAN is JSON. The last line of standard output is, too: ``warnings``, with
``error`` and ``cure`` where it came to nothing. The process ends when its standard input does: then whoever started it
is gone.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ml_backend.children import end_with_parent, give_way, import_path
from ml_backend.errors import BackendError, WeightsError
from ml_backend.models.engines.cache import ExportKey, Exports
from ml_backend.models.engines.calibration import Footage
from ml_backend.settings import Settings

log = logging.getLogger(__name__)

#: TensorRT takes minutes, on a busy machine many.
TIMEOUT_S = 3600.0
#: What an export depends on.
_SETTINGS = frozenset({"data_dir", "device", "imgsz", "batch", "conf", "engine", "precision"})


def export_elsewhere(key: ExportKey, path: Path, settings: Settings, footage: Footage | None = None) -> None:
    """Make an export in a process of its own, and wait for it.

    Args:
        key: of what PyTorch is left for.
        footage: make that in int8 with its pictures, too; see :func:`ml_backend.models.engines.int8.prepare`.

    Raises:
        WeightsError: it came to nothing.
    """
    plan = {
        "key": asdict(key),
        "path": str(path),
        "footage": asdict(footage) if footage else None,
        "settings": settings.model_dump(mode="json", include=set(_SETTINGS)),
    }
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "ml_backend.models.engines.child", json.dumps(plan)],
            stdin=subprocess.PIPE,  # stays open as long as this process lives
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": import_path(os.environ)},
        )
    except OSError as error:
        raise WeightsError(f"The export for {key.engine} did not start: {error}.", "Set ENGINE=torch.") from error
    watch = threading.Timer(TIMEOUT_S, process.kill)
    watch.daemon = True
    watch.start()
    with process:
        said = _last_line(process)
    watch.cancel()
    for line in said.get("warnings", ()):
        log.warning("%s", line)
    if "error" in said:
        raise WeightsError(said["error"], said["cure"])
    if process.returncode:
        reason = f"The process that exports for {key.engine} ended with status {process.returncode}."
        raise WeightsError(reason, "Is there enough memory? Else set ENGINE=torch.")


def _last_line(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    lines = process.stdout.read().splitlines() if process.stdout else []
    with contextlib.suppress(IndexError, ValueError):  # it was ended before it could say anything
        found = json.loads(lines[-1])
        if isinstance(found, dict):
            return found
    return {}


class _Lines(logging.Handler):
    """Keeps what is to be told to the process that waits."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def main(arguments: list[str]) -> int:
    """Make the export of a plan. Exit status: 0, or 1 after an error that was told."""
    from ml_backend.models.engines.export import make_export
    from ml_backend.models.engines.int8 import prepare

    end_with_parent()
    give_way()
    warnings = _Lines()
    logging.getLogger("ml_backend").addHandler(warnings)
    plan = json.loads(arguments[0])
    settings = Settings(_env_file=None, **plan["settings"])
    key, path = ExportKey(**plan["key"]), Path(plan["path"])
    said: dict[str, Any] = {"warnings": warnings.lines}
    try:
        if plan["footage"]:
            prepare(key, path, settings, Footage(**plan["footage"]))
        else:
            make_export(Exports(settings), key, path, settings)
    except BackendError as error:
        said |= {"error": error.message, "cure": error.cure}
    print(f"\n{json.dumps(said)}", flush=True)  # libraries draw bars without an end
    return 1 if "error" in said else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
