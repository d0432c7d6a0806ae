"""OpenVINO exports on disk, and which engine runs a checkpoint here and now.

An export is a folder that appears whole or not at all, named by the checkpoint's hash, the precision and OpenVINO's
version; ``.refused`` beside it says why it must not be used. A missing one is made by a child process (:mod:`.make`)
while PyTorch serves: tracing a network keeps Python's lock for many seconds, in which a worker could do nothing else.
Imports no heavy library.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

from ml_backend.core.errors import WeightsError
from ml_backend.core.files import file_sha256
from ml_backend.core.settings import Settings
from ml_backend.core.subprocesses import import_path
from ml_backend.detectors.engines.calibration import CalibrationPool, CalibrationSource
from ml_backend.detectors.engines.torch_engine import select_device

log = logging.getLogger(__name__)

META = "export.json"
#: Raised when exports are made in another way.
FORMAT = 1
#: The least recently used ones above go. A project that uses int8 has one of its own, a third as large as fp32.
KEEP = 60
#: What failed is left alone for so long: another try for every video would cost more than PyTorch does.
RETRY_AFTER_S = 600.0
#: A process that ended in the middle of an export left its temporary folder behind; none takes a day.
LEFT_BEHIND_S = 24 * 3600
#: What an export depends on.
_SETTINGS = frozenset({"data_dir", "device", "imgsz", "batch", "conf", "engine", "precision"})
NO_INT8 = "int8 is only made for OpenVINO."

#: Exports that did not run in this process: why, and when.
_failures: dict[Path, tuple[str, float]] = {}
_told: set[tuple[str, str]] = set()


class ParityFailed(WeightsError):
    """An export that does not find what its checkpoint finds."""


@dataclass(frozen=True, slots=True)
class EngineExport:
    """A usable export.

    Attributes:
        folder: where its files lie.
        precision: ``"fp32"`` or ``"int8"``.
        names: class name by class id.
        stride: sides of the input are multiples of it.
        end2end: whether its output needs no NMS.
        check: figures of the comparison with the checkpoint.
    """

    folder: Path
    precision: str
    names: dict[int, str]
    stride: int
    end2end: bool
    check: Mapping[str, Any] = field(default_factory=dict)

    def failed(self, reason: str) -> None:
        """Leave it alone for a while: it did not run here."""
        _failures[self.folder] = (reason, time.monotonic())


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """What is to run a checkpoint.

    Attributes:
        export: for OpenVINO; ``None``: PyTorch.
        note: why it is not what was wanted, else empty; meant to be shown.
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
    """The exports of one checkpoint that are wanted under some settings, and whose pictures int8 is made with."""

    path: Path
    sha256: str
    settings: Settings
    footage: CalibrationSource

    @property
    def pool(self) -> CalibrationPool:
        return CalibrationPool(self.settings, self.footage.project)

    @property
    def fp32(self) -> Path:
        """Where that export is, or would be."""
        return self._folder("fp32")

    def int8(self, generation: int) -> Path:
        """As :attr:`fp32`, made with the pictures that the pool has in a generation."""
        return self._folder(f"int8-{self.pool.name}-{generation}")

    def _folder(self, kind: str) -> Path:
        name = f"{self.sha256[:16]}-openvino-{kind}-{version('openvino')}-{FORMAT}"
        return self.settings.weights_dir / "engines" / name

    def dump(self) -> str:
        """As JSON, for a child process."""
        settings = self.settings.model_dump(mode="json", include=set(_SETTINGS))
        of = {"path": str(self.path), "sha256": self.sha256, "footage": asdict(self.footage)}
        return json.dumps({**of, "settings": settings})

    @classmethod
    def load(cls, text: str) -> EnginePlan:
        """What :meth:`dump` has written."""
        facts = json.loads(text)
        settings = Settings(_env_file=None, **facts["settings"])
        return cls(Path(facts["path"]), facts["sha256"], settings, CalibrationSource(**facts["footage"]))


def choose_engine(
    path: Path, sha256: str, settings: Settings, *, wait: bool = False, footage: CalibrationSource | None = None
) -> EngineChoice:
    """Decide for one video.

    Args:
        path, sha256: the checkpoint.
        settings: ``engine``, ``precision`` and ``device`` are what matters.
        wait: make what is missing now; else PyTorch serves, or fp32 instead of int8, while a child process makes it.
        footage: whose pictures int8 is made with, where it is wanted.

    Raises:
        WeightsError: the device does not exist.
    """
    choice = _choose(EnginePlan(path, sha256, settings, footage or CalibrationSource()), wait)
    if choice.note and (sha256, choice.note) not in _told:
        _told.add((sha256, choice.note))
        log.warning("Engine of %s: %s", path.name, choice.note)
    return choice


def _choose(plan: EnginePlan, wait: bool) -> EngineChoice:
    settings = plan.settings
    on_cpu = select_device(settings.device).type == "cpu"
    on_x86 = on_cpu and platform.machine().lower() in ("x86_64", "amd64")
    if settings.engine == "torch" or (settings.engine == "auto" and not on_x86):
        return EngineChoice(note=NO_INT8 if settings.precision == "int8" else "")
    if reason := not_installed("openvino"):
        return EngineChoice(note=_not_used("openvino", reason, "PyTorch"))
    choice, due = _ready(plan)
    if not due:
        return choice
    failure = _make(plan, wait)
    if wait:
        choice, _ = _ready(plan)
    if failure and choice.note:
        missing, instead = ("int8", "fp32") if choice.export else ("openvino", "PyTorch")
        choice = replace(choice, note=_not_used(missing, failure, instead))
    return choice


def _ready(plan: EnginePlan) -> tuple[EngineChoice, bool]:
    """The best that can be used now, and whether something is to be made."""
    if reason := refusal(plan.fp32):  # before looking for it: also one that is there may not run
        return EngineChoice(note=_not_used("openvino", reason, "PyTorch")), False
    exact = find_export(plan.fp32)
    if plan.settings.precision != "int8":
        note = "" if exact else "openvino is being prepared: PyTorch is used until then."
        return EngineChoice(exact, note), exact is None
    pool = plan.pool
    newest = plan.int8(pool.generation)
    video = plan.footage.video
    due = (video is not None and pool.wants(video)) or (
        pool.generation > 0 and not (refusal(newest) or find_export(newest))
    )
    note = "int8 is being prepared from this project's pictures: fp32 is used until then."
    if not due:
        note = "int8 waits for a first video, whose pictures it is made with: fp32 is used until then."
    elif reason := not_installed("nncf"):  # it is not needed to run what it has made
        due, note = False, _not_used("int8", reason, "fp32")
    # Where the pool has grown, what was made with fewer pictures serves until there is another.
    for generation in range(pool.generation, 0, -1):
        if reason := refusal(plan.int8(generation)):
            note = _not_used("int8", reason, "fp32")
            break
        if export := find_export(plan.int8(generation)):
            return EngineChoice(export), due or exact is None
    if exact is None:
        note = "openvino is being prepared: PyTorch is used until then."
    return EngineChoice(exact, note), due or exact is None


def _not_used(engine: str, reason: str, instead: str) -> str:
    return f"{engine} is not used: {reason.rstrip('.')}. {instead} is."


def not_installed(package: str) -> str:
    """A sentence about a package that is missing; else empty."""
    try:
        version(package)
    except PackageNotFoundError:
        return f"the package {package} is not installed (pip install {package})"
    return ""


# -- what is on the disk


def find_export(folder: Path) -> EngineExport | None:
    """A whole export; one that is damaged is removed, so that it is made again."""
    if not folder.is_dir():
        return None
    try:
        facts = json.loads((folder / META).read_text(encoding="utf-8"))
        for name, digest in facts["files"].items():
            if file_sha256(folder / name) != digest:
                raise ValueError(f"{name} has changed")
        names = {int(i): str(name) for i, name in facts["names"].items()}
        precision = "int8" if "-openvino-int8-" in folder.name else "fp32"
        export = EngineExport(folder, precision, names, int(facts["stride"]), bool(facts["end2end"]), facts["check"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("The export %s is damaged and made again: %s", folder.name, error)
        shutil.rmtree(folder, ignore_errors=True)
        return None
    with contextlib.suppress(OSError):  # a read-only folder: then nothing is removed from it either
        os.utime(folder / META)
    return export


def keep_export(folder: Path, build: Callable[[Path], Mapping[str, Any]]) -> EngineExport:
    """Make an export and move it into place. Only one process at a time may do so for a folder.

    Args:
        build: fills the empty folder that it is given, and returns ``names``, ``stride``, ``end2end``, ``check``.

    Raises:
        Unsound: what ``build`` says; remembered for good.
        OSError: the disk does not take it.
    """
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
        made = Path(temporary) / "export"
        made.mkdir()
        try:
            facts = build(made)
        except ParityFailed as error:
            with contextlib.suppress(OSError):  # a full disk: then the next process finds out for itself
                _refused(folder).write_text(error.message, encoding="utf-8")
            raise
        files = {file.name: file_sha256(file) for file in made.iterdir()}
        (made / META).write_text(json.dumps({"files": files, **facts}, indent=1), encoding="utf-8")
        made.replace(folder)
    prune_exports(folder.parent)
    export = find_export(folder)
    if export is None:
        raise OSError(f"{folder} cannot be read")
    return export


def prune_exports(engines: Path) -> None:
    """Remove the exports that were not used for longest, and what ended processes have left behind."""
    for meta in sorted(engines.glob(f"*/{META}"), key=_mtime)[:-KEEP]:
        shutil.rmtree(meta.parent, ignore_errors=True)
    for temporary in engines.glob(".*"):
        if time.time() - _mtime(temporary) > LEFT_BEHIND_S:
            shutil.rmtree(temporary, ignore_errors=True)


def refusal(folder: Path) -> str:
    """Why an export is not to be used or made, for good or for the next minutes; else empty."""
    reason, when = _failures.get(folder, ("", 0.0))
    if reason and time.monotonic() - when < RETRY_AFTER_S:
        return reason
    try:
        return _refused(folder).read_text(encoding="utf-8") or "it is unsound"
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
    """A process that makes what a plan lacks."""

    def __init__(self, plan: EnginePlan) -> None:
        self._output: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - read when the process has ended
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ml_backend.detectors.engines.make", plan.dump()],
            stdin=subprocess.PIPE,  # stays open as long as this process lives; the child ends with it
            stdout=self._output,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONPATH": import_path(os.environ)},
        )
        self.failure = ""
        self._ended: float | None = None

    def check(self) -> bool:
        """Whether it runs, or has failed so lately that no other one is to be started; ``failure`` says why then."""
        if self.process.poll() is None:
            return True
        if self._ended is None:
            self._ended, self.failure = time.monotonic(), self._repeat_log()
        return bool(self.failure) and time.monotonic() - self._ended < RETRY_AFTER_S

    def _repeat_log(self) -> str:
        """Log here what it has logged, and return its error."""
        status = self.process.returncode
        reason = f"the process that makes it ended with status {status} (too little memory?)" if status else ""
        self._output.seek(0)
        for line in self._output.read().decode(errors="replace").splitlines():
            level, found, message = line.partition("|")
            if found and level == "ERROR":
                reason = message
            elif found and level in ("INFO", "WARNING"):
                log.log(logging.getLevelName(level), "%s", message)
        self._output.close()
        return reason


_children: dict[tuple[str, str], _Child] = {}
_children_lock = threading.Lock()


def _make(plan: EnginePlan, wait: bool) -> str:
    """Start to make what a plan lacks, unless a process of ours is at it; why that has failed lately, else empty."""
    int8 = plan.settings.precision == "int8"
    key = (str(plan.fp32), plan.pool.name if int8 else "")
    try:
        with _children_lock:
            child = _children.get(key)
            if child is None or not child.check():
                child = _children[key] = _Child(plan)
    except OSError as error:
        return f"the process that makes it did not start ({error})"
    if wait:
        child.process.wait()
    with _children_lock:
        child.check()
        return child.failure
