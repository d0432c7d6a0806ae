"""Exports on disk: one folder per checkpoint, engine, precision and library, whole or not at all. Imports no library.

Beside a folder, ``.refused`` tells why its engine must not be used for that checkpoint, ``.unavailable`` why it could
not be made lately, and ``.lock`` lets one process at a time make it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_backend.errors import StorageError, WeightsError
from ml_backend.files import file_sha256
from ml_backend.models.downloads import forget_failure, recent_failure, remember_failure
from ml_backend.settings import Settings

log = logging.getLogger(__name__)

META = "export.json"
#: Raised when exports are made in another way.
FORMAT = 1
#: The least recently used ones above go.
KEEP = 20
#: Likewise of those in int8, of which each project has its own; they are a third as large.
KEEP_INT8 = 60
#: What a process has left behind that ended in the middle of an export.
LEFT_BEHIND_S = 24 * 3600
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


class Unsound(WeightsError):
    """An export that does not find what its checkpoint finds."""


@dataclass(frozen=True, slots=True)
class ExportKey:
    """What an export is made of.

    Attributes:
        sha256: of the checkpoint.
        engine: ``"openvino"``, ``"tensorrt"`` or ``"coreml"``.
        precision: ``"fp32"``, ``"fp16"`` or ``"int8"``.
        library: version of the engine's library, with whatever else it depends on.
        pool: pictures that it was calibrated with, for int8.
    """

    sha256: str
    engine: str
    precision: str
    library: str
    pool: str = ""

    @property
    def name(self) -> str:
        precision = f"{self.precision}-{self.pool}" if self.pool else self.precision
        return f"{self.sha256[:16]}-{self.engine}-{precision}-{self.library}-{FORMAT}"


@dataclass(frozen=True, slots=True)
class Export:
    """A usable export.

    Attributes:
        folder: where its files lie.
        names: class name by class id.
        stride: sides of the input are multiples of it.
        end2end: whether its output needs no NMS.
        check: figures of the comparison with the checkpoint.
    """

    folder: Path
    engine: str
    precision: str
    names: dict[int, str]
    stride: int
    end2end: bool
    check: Mapping[str, Any]

    @property
    def model(self) -> Path:
        """The one file or folder beside ``export.json``, of engines that have just one."""
        return next(path for path in self.folder.iterdir() if path.name != META)

    def failed(self, reason: str) -> None:
        """It did not run here: not to be tried again for a while."""
        remember_failure(self.folder, reason)


class Exports:
    """The folder of all exports."""

    def __init__(self, settings: Settings) -> None:
        self._folder = settings.weights_dir / "engines"

    def folder(self, key: ExportKey) -> Path:
        """Where an export is, or would be."""
        return self._folder / key.name

    def find(self, key: ExportKey) -> Export | None:
        """A whole export; one that is damaged is removed, so that it is made again."""
        folder = self.folder(key)
        if not folder.is_dir():
            return None
        try:
            export = _read(folder, key)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("The export %s is damaged and made again: %s", folder.name, error)
            _remove(folder)
            return None
        with contextlib.suppress(OSError):  # a read-only folder: then nothing is removed from it either
            os.utime(folder / META)
        return export

    def refusal(self, key: ExportKey) -> str | None:
        """Why it is not to be made, for good or for the next minutes."""
        folder = self.folder(key)
        try:
            return _beside(folder, ".refused").read_text(encoding="utf-8") or "it is unsound"
        except OSError:
            return recent_failure(folder)

    def make(self, key: ExportKey, build: Callable[[Path], Mapping[str, Any]]) -> Export:
        """Make an export, or wait for the process that makes it.

        Args:
            build: fills the empty folder that it is given, and returns ``names``, ``stride``, ``end2end``, ``check``.

        Raises:
            Unsound: what ``build`` says; remembered for good.
            WeightsError: it cannot be made; remembered for a while.
            StorageError: the disk does not take it.
        """
        folder = self.folder(key)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with _locked(_beside(folder, ".lock")):
                if found := self.find(key):
                    return found
                return self._make(key, folder, build)
        except Unsound as error:
            self._refuse(folder, error.message)
            raise
        except OSError as error:
            raise StorageError(
                f"{error.filename or folder} cannot be written: {error.strerror or error}.",
                "Free some disk space, or make the folder writable.",
            ) from error

    def _refuse(self, folder: Path, reason: str) -> None:
        try:
            _beside(folder, ".refused").write_text(reason, encoding="utf-8")
        except OSError as error:  # then the next process finds out for itself
            log.warning("It is not remembered that %s is unsound: %s", folder.name, error)

    def _make(self, key: ExportKey, folder: Path, build: Callable[[Path], Mapping[str, Any]]) -> Export:
        with tempfile.TemporaryDirectory(prefix=f".{key.name}.", dir=self._folder) as temporary:
            made = Path(temporary) / "export"
            made.mkdir()
            try:
                facts = dict(build(made))
            except Unsound:
                raise
            except Exception as error:  # exporters raise anything
                if isinstance(error, OSError) and error.errno in _DISK:
                    raise
                reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
                remember_failure(folder, reason)
                raise WeightsError(
                    f"The checkpoint cannot be exported for {key.engine} ({reason}).", "Set ENGINE=torch."
                ) from error
            files = {str(file.relative_to(made)): file_sha256(file) for file in made.rglob("*") if file.is_file()}
            text = json.dumps({"key": key.sha256, "files": files, **facts}, indent=1)
            (made / META).write_text(text, encoding="utf-8")
            made.replace(folder)
        forget_failure(folder)
        self._prune()
        return _read(folder, key)

    def _prune(self) -> None:
        kept = sorted(self._folder.glob(f"*/{META}"), key=_mtime)
        int8 = [meta for meta in kept if "-int8-" in meta.parent.name]
        for meta in [*[meta for meta in kept if meta not in int8][:-KEEP], *int8[:-KEEP_INT8]]:
            _remove(meta.parent)
        for temporary in self._folder.glob(".*"):
            if temporary.is_dir() and time.time() - _mtime(temporary) > LEFT_BEHIND_S:
                shutil.rmtree(temporary, ignore_errors=True)


def _read(folder: Path, key: ExportKey) -> Export:
    """Raises OSError, ValueError, KeyError, TypeError or AttributeError where something is not as it was written."""
    facts = json.loads((folder / META).read_text(encoding="utf-8"))
    if facts["key"] != key.sha256:
        raise ValueError("it is of another checkpoint")
    for name, digest in facts["files"].items():
        if file_sha256(folder / name) != digest:
            raise ValueError(f"{name} has changed")
    names = {int(i): str(name) for i, name in facts["names"].items()}
    return Export(
        folder, key.engine, key.precision, names, int(facts["stride"]), bool(facts["end2end"]), facts["check"]
    )


def _beside(folder: Path, suffix: str) -> Path:
    return folder.with_name(folder.name + suffix)


def _mtime(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:  # another process has removed it
        return 0.0


def _remove(folder: Path) -> None:
    """At once for readers: first out of the way, then file by file."""
    with contextlib.suppress(OSError), tempfile.TemporaryDirectory(prefix=".old.", dir=folder.parent) as aside:
        folder.replace(Path(aside) / "export")
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)  # closing does not unlock it while a forked child has it open too
