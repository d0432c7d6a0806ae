"""Store OpenVINO exports, and choose the engine for a checkpoint.

An export is a folder, written atomically and named by the checkpoint's hash, the precision and OpenVINO's version; a
file ``.refused`` beside it says why it must not be used. A child process (:mod:`.make`) makes missing exports while
PyTorch is used: tracing a network holds the GIL for many seconds, which would block a worker. Imports no heavy library.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

from ml_backend.core.errors import WeightsError
from ml_backend.core.files import file_sha256
from ml_backend.core.memory import select_device
from ml_backend.core.settings import Settings
from ml_backend.core.subprocesses import import_path
from ml_backend.detectors.engines.calibration import CalibrationPool, CalibrationSource

log = logging.getLogger(__name__)

META = "export.json"
#: Increment it when exports are made in another way.
FORMAT = 1
#: Maximum number of exports; the least recently used are removed. Each project with int8 has its own, a third as large
#: as fp32.
MAX_EXPORTS = 60
#: Delay before a failed export is tried again: a try for every video would cost more than PyTorch does.
RETRY_AFTER_S = 600.0
#: Age at which temporary folders are left over from a process that was killed.
STALE_S = 24 * 3600
#: Settings that an export depends on.
_SETTINGS = frozenset({"data_dir", "device", "imgsz", "batch", "conf", "engine", "precision"})
NO_INT8 = "int8 needs OpenVINO."

#: Reason and time of the failures of exports in this process.
_failures: dict[Path, tuple[str, float]] = {}
_logged: set[tuple[str, str]] = set()


class ParityFailed(WeightsError):
    """The detections of an export differ too much from those of its checkpoint."""


@dataclass(frozen=True, slots=True)
class EngineExport:
    """A usable export.

    Attributes:
        folder: folder of its files.
        precision: ``"fp32"`` or ``"int8"``.
        names: class name by class id.
        stride: the sides of the input are multiples of it.
        end2end: whether the output needs no NMS.
        check: results of the comparison with the checkpoint.
    """

    folder: Path
    precision: str
    names: dict[int, str]
    stride: int
    end2end: bool
    check: Mapping[str, Any] = field(default_factory=dict)

    def failed(self, reason: str) -> None:
        """Record a failure, so that the export is not used for ``RETRY_AFTER_S``."""
        _failures[self.folder] = (reason, time.monotonic())


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """The engine that runs a checkpoint.

    Attributes:
        export: for OpenVINO; ``None``: PyTorch.
        note: why it is not the configured engine, for users; else empty.
    """

    export: EngineExport | None = None
    note: str = ""

    @property
    def name(self) -> str:
        """``"openvino fp32"``, or ``"torch"``."""
        return f"openvino {self.export.precision}" if self.export else "torch"

    @property
    def key(self) -> Hashable:
        return self.export.folder.name if self.export else "torch"


@dataclass(frozen=True, slots=True)
class EnginePlan:
    """The exports that a checkpoint needs under some settings."""

    path: Path
    sha256: str
    settings: Settings
    calibration: CalibrationSource

    @property
    def wants_int8(self) -> bool:
        """Whether to use int8 where it passes its check; by itself only with a project's own calibration images."""
        if self.settings.precision == "auto":
            return self.calibration.project is not None and multiplies_int8()
        return self.settings.precision == "int8"

    @property
    def pool(self) -> CalibrationPool:
        return CalibrationPool(self.settings, self.calibration.project)

    @property
    def fp32(self) -> Path:
        """Folder of the fp32 export, which may not exist."""
        return self._folder("fp32")

    def int8(self, generation: int) -> Path:
        """Return the folder of the int8 export that was calibrated with a generation of the pool."""
        return self._folder(f"int8-{self.pool.name}-{generation}")

    def _folder(self, kind: str) -> Path:
        name = f"{self.sha256[:16]}-openvino-{kind}-{version('openvino')}-{FORMAT}"
        return self.settings.weights_dir / "engines" / name

    def dump(self) -> str:
        """Return JSON for the child process."""
        settings = self.settings.model_dump(mode="json", include=set(_SETTINGS))
        plan = {"path": str(self.path), "sha256": self.sha256, "calibration": asdict(self.calibration)}
        return json.dumps({**plan, "settings": settings})

    @classmethod
    def load(cls, text: str) -> EnginePlan:
        """Parse the JSON of :meth:`dump`."""
        plan = json.loads(text)
        settings = Settings(_env_file=None, **plan["settings"])
        return cls(Path(plan["path"]), plan["sha256"], settings, CalibrationSource(**plan["calibration"]))


def choose_engine(
    path: Path, sha256: str, settings: Settings, *, wait: bool = False, calibration: CalibrationSource | None = None
) -> EngineChoice:
    """Choose the engine for one video.

    Args:
        path, sha256: the checkpoint.
        settings: ``engine``, ``precision`` and ``device`` are used.
        wait: wait for a missing export; else use PyTorch, or fp32 instead of int8, while a child process makes it.
        calibration: source of the images that calibrate int8.

    Raises:
        WeightsError: the device does not exist.
    """
    choice = _choose(
        EnginePlan(path, sha256, settings, calibration or CalibrationSource()), partial(_start_child, wait=wait)
    )
    if choice.note and (sha256, choice.note) not in _logged:
        _logged.add((sha256, choice.note))
        log.warning("Engine of %s: %s", path.name, choice.note)
    return choice


def engine_note(plan: EnginePlan) -> str:
    """Return why the next video does not get the configured engine, else an empty string. Starts nothing."""
    return _choose(plan, _child_failure).note


def _choose(plan: EnginePlan, make_missing: Callable[[EnginePlan], str]) -> EngineChoice:
    settings = plan.settings
    on_cpu = select_device(settings.device) == "cpu"
    on_x86 = on_cpu and platform.machine().lower() in ("x86_64", "amd64")
    if settings.engine == "torch" or (settings.engine == "auto" and not on_x86):
        return EngineChoice(note=NO_INT8 if settings.precision == "int8" else "")
    if reason := not_installed("openvino"):
        return EngineChoice(note=_not_used("openvino", reason, "PyTorch"))
    choice, incomplete = _best_available(plan)
    if not incomplete:
        return choice
    failure = make_missing(plan)
    choice, _ = _best_available(plan)  # it may be there now
    if failure and choice.note:
        missing, instead = ("int8", "fp32") if choice.export else ("openvino", "PyTorch")
        choice = replace(choice, note=_not_used(missing, failure, instead))
    return choice


def _best_available(plan: EnginePlan) -> tuple[EngineChoice, bool]:
    """Return the best engine that can be used now, and whether an export is to be made."""
    if reason := refusal(plan.fp32):  # checked first, as an existing export may fail to run
        return EngineChoice(note=_not_used("openvino", reason, "PyTorch")), False
    fp32 = find_export(plan.fp32)
    if not plan.wants_int8:
        note = "" if fp32 else "openvino is being prepared: PyTorch is used until then."
        return EngineChoice(fp32, note), fp32 is None
    pool = plan.pool
    newest = plan.int8(pool.generation)
    video = plan.calibration.video
    incomplete = (video is not None and pool.needs(video)) or (
        pool.generation > 0 and not (refusal(newest) or find_export(newest))
    )
    note = "int8 is being prepared with frames of this project: fp32 is used until then."
    if not incomplete:
        note = "int8 needs frames of a first video for calibration: fp32 is used until then."
    elif reason := not_installed("nncf"):  # only needed to make exports
        incomplete, note = False, _not_used("int8", reason, "fp32")
    # While the export for a larger pool is missing, use one of an earlier generation.
    for generation in range(pool.generation, 0, -1):
        if reason := refusal(plan.int8(generation)):
            note = _not_used("int8", reason, "fp32")
            break
        if export := find_export(plan.int8(generation)):
            return EngineChoice(export), incomplete or fp32 is None
    if plan.settings.precision == "auto":
        note = ""  # nobody has asked for int8
    if fp32 is None:
        note = "openvino is being prepared: PyTorch is used until then."
    return EngineChoice(fp32, note), incomplete or fp32 is None


@lru_cache(maxsize=1)
def multiplies_int8() -> bool:
    """Return whether the CPU has instructions by which int8 is much faster than fp32: VNNI or AMX. Linux only."""
    try:
        flags = set(re.findall(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)[0].split())
    except (OSError, IndexError):
        return False
    return bool(flags & {"avx_vnni", "avx512_vnni", "amx_int8"})


def _not_used(engine: str, reason: str, instead: str) -> str:
    return f"{engine} is not used: {reason.rstrip('.')}. {instead} is used instead."


def not_installed(package: str) -> str:
    """Return a reason if a package is missing, else an empty string."""
    try:
        version(package)
    except PackageNotFoundError:
        return f"the package {package} is not installed (pip install {package})"
    return ""


# -- exports on disk


def find_export(folder: Path) -> EngineExport | None:
    """Return the export in a folder, or ``None``; remove a damaged one, so that it is made again."""
    if not folder.is_dir():
        return None
    try:
        meta = json.loads((folder / META).read_text(encoding="utf-8"))
        for name, digest in meta["files"].items():
            if file_sha256(folder / name) != digest:
                raise ValueError(f"{name} has changed")
        names = {int(i): str(name) for i, name in meta["names"].items()}
        precision = "int8" if "-openvino-int8-" in folder.name else "fp32"
        export = EngineExport(folder, precision, names, int(meta["stride"]), bool(meta["end2end"]), meta["check"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("The export %s is damaged and will be made again: %s", folder.name, error)
        shutil.rmtree(folder, ignore_errors=True)
        return None
    with contextlib.suppress(OSError):  # a read-only folder, in which nothing is pruned either
        os.utime(folder / META)
    return export


def make_export(folder: Path, build: Callable[[Path], Mapping[str, Any]]) -> EngineExport:
    """Make an export atomically. Only one process at a time may do so for a folder.

    Args:
        build: fills the empty folder that it is given, and returns ``names``, ``stride``, ``end2end``, ``check``.

    Raises:
        ParityFailed: raised by ``build``; recorded permanently.
        OSError: the disk cannot be written.
    """
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
        target = Path(temporary) / "export"
        target.mkdir()
        try:
            meta = build(target)
        except ParityFailed as error:
            with contextlib.suppress(OSError):  # the disk is full: then the next process tries it again
                _refused(folder).write_text(error.message, encoding="utf-8")
            raise
        files = {file.name: file_sha256(file) for file in target.iterdir()}
        (target / META).write_text(json.dumps({"files": files, **meta}, indent=1), encoding="utf-8")
        target.replace(folder)
    prune_exports(folder.parent)
    export = find_export(folder)
    if export is None:
        raise OSError(f"{folder} cannot be read")
    return export


def prune_exports(engines: Path) -> None:
    """Remove the least recently used exports, and temporary folders of killed processes."""
    for meta in sorted(engines.glob(f"*/{META}"), key=_mtime)[:-MAX_EXPORTS]:
        shutil.rmtree(meta.parent, ignore_errors=True)
    for temporary in engines.glob(".*"):
        if time.time() - _mtime(temporary) > STALE_S:
            shutil.rmtree(temporary, ignore_errors=True)


def refusal(folder: Path) -> str:
    """Return why an export must not be used or made, permanently or for some minutes; else an empty string."""
    reason, when = _failures.get(folder, ("", 0.0))
    if reason and time.monotonic() - when < RETRY_AFTER_S:
        return reason
    try:
        return _refused(folder).read_text(encoding="utf-8") or "its check failed"
    except OSError:
        return ""


def _refused(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.refused")


def _mtime(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:  # another process has removed it
        return 0.0


# -- the child process


class _Child:
    """A process that makes the missing exports of a plan."""

    def __init__(self, plan: EnginePlan) -> None:
        self._output: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - read after the process has exited
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ml_backend.detectors.engines.make", plan.dump()],
            stdin=subprocess.PIPE,  # closes when this process exits, which ends the child
            stdout=self._output,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONPATH": import_path(os.environ)},
        )
        self.failure = ""
        self._ended: float | None = None

    def check(self) -> bool:
        """Return whether it runs, or failed within ``RETRY_AFTER_S``; update ``failure``."""
        if self.process.poll() is None:
            return True
        if self._ended is None:
            self._ended, self.failure = time.monotonic(), self._forward_log()
        return bool(self.failure) and time.monotonic() - self._ended < RETRY_AFTER_S

    def _forward_log(self) -> str:
        """Log the child's messages in this process, and return its error."""
        status = self.process.returncode
        reason = f"the export process exited with status {status} (too little memory?)" if status else ""
        self._output.seek(0)
        for line in self._output.read().decode(errors="replace").splitlines():
            level, separator, message = line.partition("|")
            if separator and level == "ERROR":
                reason = message
            elif separator and level in ("INFO", "WARNING"):
                log.log(logging.getLevelName(level), "%s", message)
        self._output.close()
        return reason


_children: dict[tuple[str, str], _Child] = {}
_children_lock = threading.Lock()


def _child_key(plan: EnginePlan) -> tuple[str, str]:
    return str(plan.fp32), plan.pool.name if plan.wants_int8 else ""


def _child_failure(plan: EnginePlan) -> str:
    """Return why the process for the missing exports failed, if one has."""
    with _children_lock:
        child = _children.get(_child_key(plan))
        if child is not None:
            child.check()
        return child.failure if child else ""


def _start_child(plan: EnginePlan, wait: bool) -> str:
    """Start a process for the missing exports unless one runs; return why it failed recently, else an empty string."""
    key = _child_key(plan)
    try:
        with _children_lock:
            child = _children.get(key)
            if child is None or not child.check():
                child = _children[key] = _Child(plan)
    except OSError as error:
        return f"the export process did not start ({error})"
    if wait:
        child.process.wait()
    with _children_lock:
        child.check()
        return child.failure
