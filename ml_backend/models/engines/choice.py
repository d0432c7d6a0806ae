"""Which engine runs a checkpoint here and now. Never waits, unless asked to."""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Hashable
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ml_backend.errors import BackendError
from ml_backend.models.engines import background
from ml_backend.models.engines.cache import Export, ExportKey, Exports
from ml_backend.models.engines.calibration import Footage
from ml_backend.models.engines.child import export_elsewhere
from ml_backend.models.engines.choice_int8 import choose_int8
from ml_backend.settings import Settings

log = logging.getLogger(__name__)

#: Package that each engine is run by.
PACKAGES = {"openvino": "openvino", "tensorrt": "tensorrt", "coreml": "coremltools"}
NO_INT8 = "int8 is only made for OpenVINO, and of checkpoints (.pt)."

_told: set[tuple[str, str]] = set()


@dataclass(frozen=True, slots=True)
class Choice:
    """What is to run a checkpoint.

    Attributes:
        export: for another engine than PyTorch.
        note: why it is not what was wanted, else empty; meant to be shown.
    """

    export: Export | None = None
    note: str = ""

    @property
    def name(self) -> str:
        """``"openvino fp32"``, or ``"torch"``."""
        return f"{self.export.engine} {self.export.precision}" if self.export else "torch"

    @property
    def key(self) -> Hashable:
        return self.export.folder.name if self.export else "torch"


def choose_engine(
    path: Path, sha256: str, settings: Settings, *, wait: bool = False, footage: Footage | None = None
) -> Choice:
    """Decide for one video.

    Args:
        path, sha256: the checkpoint.
        settings: ``engine``, ``precision`` and ``device`` are what matters.
        wait: make a missing export now if that takes seconds; else a thread makes it, and PyTorch serves meanwhile.
        footage: whose pictures int8 is made with, where it is wanted.

    Raises:
        WeightsError: the device does not exist.
    """
    choice = _choose(path, sha256, settings, wait, footage or Footage())
    if choice.note and (sha256, choice.note) not in _told:
        _told.add((sha256, choice.note))
        log.warning("Engine of %s: %s", path.name, choice.note)
    return choice


def _choose(path: Path, sha256: str, settings: Settings, wait: bool, footage: Footage) -> Choice:
    exports = Exports(settings)
    key, reason = _wanted(sha256, settings)
    int8 = settings.precision == "int8"
    if key is None or path.suffix != ".pt":  # ultralytics' own exports run as they are
        return Choice(note=reason or (NO_INT8 if int8 else ""))
    folder = exports.folder(key)
    # Before looking for it: also one that is there may not run.
    if reason := exports.refusal(key) or background.recently_failed(folder) or "":
        return Choice(note=f"{key.engine} is not used: {reason.rstrip('.')}. PyTorch is.")
    choice = _exported(exports, key, path, settings, wait)
    if not int8 or (wait and not choice.export):
        return choice
    if key.engine != "openvino":
        return replace(choice, note=choice.note or NO_INT8)
    export, note = choose_int8(key, path, settings, footage, wait=wait)
    return Choice(export) if export else replace(choice, note=choice.note or note)


def _exported(exports: Exports, key: ExportKey, path: Path, settings: Settings, wait: bool) -> Choice:
    folder = exports.folder(key)
    if export := exports.find(key):
        return Choice(export)
    if wait and key.engine != "tensorrt":
        try:
            return Choice(background.make(folder, lambda: _make(exports, key, path, settings)))
        except BackendError as error:
            return Choice(note=f"{error.message} PyTorch is used.")
    background.make_beside(
        folder, f"{key.engine} cannot run {path.name}", lambda: _make(exports, key, path, settings, elsewhere=True)
    )
    return Choice(note=f"{key.engine} is being prepared: PyTorch is used until then.")


def export_key(sha256: str, engine: str, precision: str, settings: Settings) -> ExportKey | None:
    """``None`` where the engine's package is not installed."""
    try:
        library = version(PACKAGES[engine])
    except PackageNotFoundError:
        return None
    # Only OpenVINO's export is for any input.
    size = "" if engine == "openvino" else f"-{settings.imgsz}x{settings.batch}"
    return ExportKey(sha256, engine, precision, library + size)


def _wanted(sha256: str, settings: Settings) -> tuple[ExportKey | None, str]:
    """``None``: PyTorch, and why that is not what was asked for."""
    from ml_backend.models.detector import _select_device

    device = _select_device(settings.device).type
    engine = settings.engine
    if engine == "auto":
        on_x86 = device == "cpu" and platform.machine().lower() in ("x86_64", "amd64")
        engine = "openvino" if on_x86 else "torch"
    if engine == "torch":
        return None, ""
    places = {"openvino": "", "tensorrt": "cuda", "coreml": "mps"}
    if places[engine] not in ("", device):
        return None, f"{engine} needs {places[engine]}, the device is {device}: PyTorch is used."
    precision = "fp32" if engine == "openvino" or settings.precision == "fp32" else "fp16"
    key = export_key(sha256, engine, precision, settings)
    missing = f"The package {PACKAGES[engine]} is not installed (pip install {PACKAGES[engine]}): PyTorch is used."
    return key, missing if key is None else ""


def _make(exports: Exports, key: ExportKey, path: Path, settings: Settings, elsewhere: bool = False) -> Export | None:
    started = time.monotonic()
    if elsewhere:
        export_elsewhere(key, path, settings)
        export = exports.find(key)
    else:
        from ml_backend.models.engines.export import make_export

        export = make_export(exports, key, path, settings)
    log.info("%s runs %s from the next video on (made in %.1f s)", key.engine, path.name, time.monotonic() - started)
    return export
