"""Files: known by their content, written whole or not at all, under names that every file system takes."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import re
import tempfile
import threading
import unicodedata
from collections.abc import Collection, Iterator
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import IO, Any

from ml_backend.core.errors import ConfigError, StorageError

_CHUNK = 1 << 20
#: What is taken for a video in a folder or from a browser; a file that is named on the command line is tried whatever
#: its name.
VIDEO_SUFFIXES = frozenset(
    {".3gp", ".asf", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mjpeg", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg"}
    | {".mts", ".mxf", ".ogv", ".ts", ".vob", ".webm", ".wmv"}
)
#: Of a name: room for the frame number, suffix and what marks a temporary file, within the usual 255 bytes.
_MAX_BYTES = 180
_UNSAFE = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|]')


@lru_cache(maxsize=64)
def _reading(_path: str, _size: int, _mtime_ns: int) -> threading.Lock:
    return threading.Lock()


@lru_cache(maxsize=64)
def _sha256(path: str, _size: int, _mtime_ns: int) -> str:
    # Size and time are part of the cache's key: a replaced file is hashed again.
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def file_sha256(path: str | os.PathLike[str]) -> str:
    """Hex SHA-256 of a file; remembered until the file changes.

    Raises:
        OSError: it cannot be read.
    """
    stat = Path(path).stat()
    key = os.fspath(path), stat.st_size, stat.st_mtime_ns
    with _reading(*key):  # whoever asks meanwhile waits for the same result, rather than to read gigabytes again
        return _sha256(*key)


# -- writing


def storage_error(path: Path, error: OSError) -> StorageError:
    """Translate a failed write."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(f"No space left on the disk while writing {path}.", "Free some space and try again.")
    return StorageError(f"Cannot write {path}: {error}.", "Check the folder's permissions and the disk.")


@contextlib.contextmanager
def writing_bytes(path: Path) -> Iterator[IO[bytes]]:
    """A file that appears under its name only when the ``with`` block ends well; its folder is made.

    Raises:
        StorageError: the disk is full, or the folder cannot be written.
    """
    make_folder(path.parent)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name[:80]}.", suffix=".part", dir=path.parent)
    except OSError as error:
        raise storage_error(path, error) from error
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        raise storage_error(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[IO[str]]:
    """As :func:`writing_bytes`, text in UTF-8."""
    # A lone surrogate, which JSON may hold, becomes its escape.
    how: dict[str, Any] = {"encoding": "utf-8", "errors": "backslashreplace", "newline": "\n"}
    with writing_bytes(path) as file:
        text = io.TextIOWrapper(file, **how)
        try:
            yield text
        finally:
            text.detach()  # the file is closed by who has opened it


def write_text(path: Path, text: str) -> None:
    """A whole small text file, written as :func:`writing` does."""
    with writing(path) as file:
        file.write(text)


def write_bytes(path: Path, data: bytes) -> None:
    """A whole file; its folder is made. What a killed run has left of it is written over.

    Raises:
        StorageError: the disk is full, or the folder cannot be written.
    """
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.part")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise storage_error(path, error) from error


def make_folder(path: Path) -> None:
    """Make a folder and those above it.

    Raises:
        StorageError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{path} cannot be made: {error.strerror}.", "Choose another --out.") from error


def check_output(out: Path, suffixes: Collection[str], force: bool) -> None:
    """Refuse an output that could not or should not be written, before any work is done.

    Raises:
        ConfigError: another suffix, a folder, or a file that is there already and ``force`` not given.
    """
    if out.suffix.lower() not in suffixes:
        raise ConfigError(f"{out} cannot be written: its name ends otherwise.", f"End it with {', '.join(suffixes)}.")
    if out.is_dir():
        raise ConfigError(f"{out} is a folder.", "Choose another --out.")
    if out.exists() and not force:
        raise ConfigError(f"{out} exists already.", "Choose another --out, or overwrite it with --force.")


def files_below(folder: Path, recursive: bool = True) -> list[Path]:
    """Files of a folder and its subfolders, sorted; hidden ones are left out."""
    found = []
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if recursive and not name.startswith("."))
        found += [Path(root, name) for name in sorted(names) if not name.startswith(".")]
    return found


# -- names


def is_video_name(name: str) -> bool:
    """Whether a file name ends as those of videos do."""
    return PurePosixPath(name).suffix.lower() in VIDEO_SUFFIXES


def safe_name(name: str) -> str:
    """A name that every file system takes: no separators, control characters, or leading dots; letters stay."""
    text = _UNSAFE.sub("_", unicodedata.normalize("NFC", name)).strip(" ").lstrip(".").rstrip(". ")
    encoded = text.encode("utf-8", "surrogateescape")[:_MAX_BYTES]
    return encoded.decode("utf-8", "ignore") or "video"


class UniqueNames:
    """Gives each video a name of its own: the second ``clip`` becomes ``clip-7`` in task 7.

    Names depend only on what came before, so that an export that is continued uses the same ones.
    """

    def __init__(self) -> None:
        self._used: set[str] = set()

    def take(self, name: str, task_id: int) -> str:
        """A name that has not been given before, also where the file system ignores case."""
        base = safe_name(name)
        chosen, number = base, 1
        while chosen.casefold() in self._used:
            chosen = f"{base}-{task_id}" if number == 1 else f"{base}-{task_id}-{number}"
            number += 1
        self._used.add(chosen.casefold())
        return chosen
