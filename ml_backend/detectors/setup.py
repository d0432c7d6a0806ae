"""Set-up of ultralytics and OpenVINO: disables installs, network use and files that a service must not cause."""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import sys
import tempfile
from functools import lru_cache
from pathlib import Path

# ultralytics reads these on its first import; later changes have no effect.
_QUIET = {
    "YOLO_AUTOINSTALL": "false",  # never run pip
    "YOLO_OFFLINE": "true",  # never resolve hosts, send analytics or look for updates
    "YOLO_VERBOSE": "false",  # no banners; warnings still come through logging
}


def setup_openvino() -> None:
    """Disable OpenVINO's telemetry, which sends an event to a web service on import. Call before importing it.

    Makes ``openvino_telemetry`` appear not to be installed, which OpenVINO allows for. Its official opt-out is a file
    in the home directory, which we leave alone.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None: not to be imported


@lru_cache(maxsize=1)
def setup_ultralytics() -> None:
    """Import ultralytics without package installs, network use, noise or files in the home directory.

    Call before any ``import ultralytics``. Variables that the operator has set are respected. Settings are changed in
    memory only; the settings file is in a temporary directory that is removed when the process ends.
    """
    setup_openvino()  # ultralytics imports it for models exported to OpenVINO
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    if "YOLO_CONFIG_DIR" not in os.environ:
        # ultralytics creates this folder and writes its settings there on import, by default in ~/.config.
        folder = Path(tempfile.mkdtemp(prefix="ultralytics-"))
        os.environ["YOLO_CONFIG_DIR"] = str(folder)
        atexit.register(_remove_if_ours, folder, os.getpid())

    from ultralytics.utils import LOGGER, SETTINGS
    from ultralytics.utils.events import events

    LOGGER.setLevel(logging.WARNING)
    events.enabled = False
    for name, value in SETTINGS.items():
        # Integrations (wandb, comet, ...) and analytics. SETTINGS' own __setitem__ would write its file.
        if value is True:
            dict.__setitem__(SETTINGS, name, False)


def _remove_if_ours(folder: Path, pid: int) -> None:
    # A forked child inherits this handler but must not remove its parent's folder.
    if os.getpid() == pid:
        shutil.rmtree(folder, ignore_errors=True)
