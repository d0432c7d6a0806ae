"""Which engine runs a checkpoint here and now. Never waits, unless asked to."""

from __future__ import annotations

import atexit
import logging
import platform
import threading
import time
from collections.abc import Hashable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ml_backend.errors import BackendError
from ml_backend.models.engines.cache import Export, ExportKey, Exports
from ml_backend.models.engines.child import export_elsewhere
from ml_backend.models.weights import RETRY_AFTER_S
from ml_backend.settings import Settings

log = logging.getLogger(__name__)

#: Package that each engine is run by.
PACKAGES = {"openvino": "openvino", "tensorrt": "tensorrt", "coreml": "coremltools"}
#: A process that ends waits so long for an export: what runs into the interpreter's end can crash it.
EXIT_WAIT_S = 10.0

_making: dict[ExportKey, threading.Thread] = {}
_making_lock = threading.Lock()
#: Why, and when, it could not be made: where the disk is what fails, nothing can be remembered on it.
_failed: dict[Path, tuple[str, float]] = {}
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


def choose_engine(path: Path, sha256: str, settings: Settings, *, wait: bool = False) -> Choice:
    """Decide for one video.

    Args:
        path, sha256: the checkpoint.
        settings: ``engine``, ``precision`` and ``device`` are what matters.
        wait: make a missing export now if that takes seconds; else a thread makes it, and PyTorch serves meanwhile.

    Raises:
        WeightsError: the device does not exist.
    """
    choice = _choose(path, sha256, settings, wait)
    if choice.note and (sha256, choice.note) not in _told:
        _told.add((sha256, choice.note))
        log.warning("Engine of %s: %s", path.name, choice.note)
    return choice


def _choose(path: Path, sha256: str, settings: Settings, wait: bool) -> Choice:
    exports = Exports(settings)
    key, reason = _wanted(sha256, settings)
    if key is None or path.suffix != ".pt":  # ultralytics' own exports run as they are
        return Choice(note=reason)
    # Before looking for it: also one that is there may not run.
    if reason := exports.refusal(key) or _recently_failed(exports.folder(key)) or "":
        return Choice(note=f"{key.engine} is not used: {reason.rstrip('.')}. PyTorch is.")
    if export := exports.find(key):
        return Choice(export)
    if wait and key.engine != "tensorrt":
        try:
            return Choice(_make(exports, key, path, settings))
        except BackendError as error:
            return Choice(note=f"{error.message} PyTorch is used.")
    _make_in_background(exports, key, path, settings)
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
    try:
        if elsewhere:
            export_elsewhere(key, path, settings)
            export = exports.find(key)
        else:
            from ml_backend.models.engines.export import make_export

            export = make_export(exports, key, path, settings)
    except BackendError as error:
        _failed[exports.folder(key)] = (error.message, time.monotonic())
        raise
    _failed.pop(exports.folder(key), None)
    log.info("%s runs %s from the next video on (made in %.1f s)", key.engine, path.name, time.monotonic() - started)
    return export


def _recently_failed(folder: Path) -> str | None:
    reason, when = _failed.get(folder, ("", 0.0))
    return reason if reason and time.monotonic() - when < RETRY_AFTER_S else None


def _make_in_background(exports: Exports, key: ExportKey, path: Path, settings: Settings) -> None:
    def run() -> None:
        try:
            _make(exports, key, path, settings, elsewhere=True)
        except BackendError as error:
            log.warning("%s cannot run %s: %s", key.engine, path.name, error)
        finally:
            with _making_lock:
                del _making[key]

    with _making_lock:
        if key in _making:
            return
        _making[key] = thread = threading.Thread(target=run, name=f"export {key.name}", daemon=True)
    thread.start()


def wait_for_exports(timeout_s: float) -> bool:
    """Whether all exports that this process makes in the background have ended within a time."""
    until = time.monotonic() + timeout_s
    with _making_lock:
        threads = list(_making.values())
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    return not any(thread.is_alive() for thread in threads)


atexit.register(wait_for_exports, EXIT_WAIT_S)
