"""The one place that imports ultralytics, with everything switched off that a service must not do by itself."""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import tempfile
from functools import lru_cache
from pathlib import Path

from ml_backend.detectors.openvino_setup import setup_openvino

# Read by ultralytics when it is first imported: later changes have no effect.
_QUIET = {
    "YOLO_AUTOINSTALL": "false",  # never run pip
    "YOLO_OFFLINE": "true",  # never resolve hosts, send analytics or look for updates
    "YOLO_VERBOSE": "false",  # no banners; warnings still come through logging
}


@lru_cache(maxsize=1)
def setup_ultralytics() -> None:
    """Import ultralytics without package installs, network use, noise or files in the home directory.

    Call before any ``import ultralytics``. Variables that the operator has set himself are respected. Settings are
    changed in memory only; its settings file lives in a temporary directory that goes when the process ends.
    """
    setup_openvino()  # which ultralytics imports for models exported to it
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    if "YOLO_CONFIG_DIR" not in os.environ:
        # It makes the directory and writes a settings file there on import, by default in ~/.config.
        folder = Path(tempfile.mkdtemp(prefix="ultralytics-"))
        os.environ["YOLO_CONFIG_DIR"] = str(folder)
        atexit.register(_remove_if_ours, folder, os.getpid())

    from ultralytics.utils import LOGGER, SETTINGS
    from ultralytics.utils.events import events

    LOGGER.setLevel(logging.WARNING)
    events.enabled = False
    for name, value in SETTINGS.items():
        # Integrations (wandb, comet, ...) and analytics; dict's own method, because SETTINGS' writes its file.
        if value is True:
            dict.__setitem__(SETTINGS, name, False)


def _remove_if_ours(folder: Path, pid: int) -> None:
    # A forked child inherits the handler but not the right to take the folder away from its parent.
    if os.getpid() == pid:
        shutil.rmtree(folder, ignore_errors=True)
