"""Files: content hashes, atomic writes, and names that are valid on every file system."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import re
import secrets
import shutil
import threading
import unicodedata
from collections.abc import Collection, Iterator
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import IO

from ml_backend.core.errors import ConfigError, StorageError

_CHUNK = 1 << 20
#: Files with these suffixes count as videos in folders and uploads; a file given on the command line may have any name.
VIDEO_SUFFIXES = frozenset(
    {".3gp", ".asf", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mjpeg", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg"}
    | {".mts", ".mxf", ".ogv", ".ts", ".vob", ".webm", ".wmv"}
)
#: Leaves room for a frame number, a suffix and a temporary file's affixes within the usual 255 bytes.
_MAX_NAME_BYTES = 180
#: Bytes that uploads and exports leave free: the database and the queue may be on the same disk.
SPARE_BYTES = 512 << 20
_UNSAFE = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|]')


@lru_cache(maxsize=64)
def _hash_lock(_path: str, _size: int, _mtime_ns: int) -> threading.Lock:
    return threading.Lock()


@lru_cache(maxsize=64)
def _sha256(path: str, _size: int, _mtime_ns: int) -> str:
    # Size and mtime are part of the cache key, so that a replaced file is hashed again.
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def file_sha256(path: str | os.PathLike[str]) -> str:
    """Return the hex SHA-256 of a file, cached until the file changes.

    Raises:
        OSError: the file cannot be read.
    """
    stat = Path(path).stat()
    key = os.fspath(path), stat.st_size, stat.st_mtime_ns
    with _hash_lock(*key):  # concurrent callers share one read of what may be gigabytes
        return _sha256(*key)


# -- writing


def storage_error(path: Path, error: OSError) -> StorageError:
    """Convert the OSError of a failed write."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(f"No space left on the disk while writing {path}.", "Free some space and try again.")
    return StorageError(f"Cannot write {path}: {error}.", "Check the folder's permissions and the disk.")


def free_bytes(folder: Path) -> int:
    """Return the free bytes of the disk of a folder, which need not exist yet.

    Raises:
        OSError: the disk does not answer.
    """
    existing = next((path for path in (folder, *folder.resolve().parents) if path.exists()), folder)
    return shutil.disk_usage(existing).free


@contextlib.contextmanager
def atomic_binary_writer(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that appears at ``path`` only if the ``with`` block succeeds; create its folder.

    Raises:
        StorageError: the disk is full or the folder is not writable.
    """
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name[:80]}.{secrets.token_hex(4)}.part")
    try:
        # Not tempfile's, which nobody else may read whatever the umask.
        with temporary.open("xb") as file:
            yield file
        temporary.replace(path)
    except OSError as error:
        raise storage_error(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_text_writer(path: Path) -> Iterator[IO[str]]:
    """Open a UTF-8 text file like :func:`atomic_binary_writer`."""
    with atomic_binary_writer(path) as file:
        # backslashreplace: JSON may hold a lone surrogate, which has no UTF-8.
        text = io.TextIOWrapper(file, encoding="utf-8", errors="backslashreplace", newline="\n")
        try:
            yield text
        finally:
            text.detach()  # the binary writer closes the file


def write_text(path: Path, text: str) -> None:
    """Write a small text file atomically."""
    with atomic_text_writer(path) as file:
        file.write(text)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically and create its folder; overwrite what a killed run left behind.

    Raises:
        StorageError: the disk is full or the folder is not writable.
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
    """Create a folder and its parents.

    Raises:
        StorageError: it cannot be created.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{path} cannot be created: {error.strerror}.", "Choose another --out.") from error


def check_output(out: Path, suffixes: Collection[str], force: bool, option: str = "--out") -> None:
    """Check an output path, which people give as ``option``, before any work is done.

    Raises:
        ConfigError: the suffix is wrong, the path is a folder, or the file exists and ``force`` is not set.
    """
    if out.suffix.lower() not in suffixes:
        raise ConfigError(f"{out} has the wrong suffix.", f"Use {' or '.join(suffixes)}.")
    if out.is_dir():
        raise ConfigError(f"{out} is a folder.", f"Choose another {option}.")
    if out.exists() and not force:
        raise ConfigError(f"{out} already exists.", f"Choose another {option}, or overwrite it with --force.")


def files_below(folder: Path, recursive: bool = True) -> list[Path]:
    """List the files of a folder and its subfolders, sorted, without hidden ones."""
    files = []
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if recursive and not name.startswith("."))
        files += [Path(root, name) for name in sorted(names) if not name.startswith(".")]
    return files


# -- names


def is_video_name(name: str) -> bool:
    """Return whether a file name has a video suffix."""
    return PurePosixPath(name).suffix.lower() in VIDEO_SUFFIXES


def safe_name(name: str) -> str:
    """Make a name valid on every file system: no separators, control characters or leading dots; keep all letters."""
    text = _UNSAFE.sub("_", unicodedata.normalize("NFC", name)).strip(" ").lstrip(".").rstrip(". ")
    encoded = text.encode("utf-8", "surrogateescape")[:_MAX_NAME_BYTES]
    return encoded.decode("utf-8", "ignore") or "video"


class UniqueNames:
    """Unique names for videos: the second ``clip`` becomes ``clip-7`` in task 7.

    Names depend only on earlier ones, so that a resumed export uses the same.
    """

    def __init__(self) -> None:
        self._used: set[str] = set()

    def take(self, name: str, task_id: int) -> str:
        """Return a name that was not taken before, compared without case as some file systems do."""
        base = safe_name(name)
        unique, number = base, 1
        while unique.casefold() in self._used:
            unique = f"{base}-{task_id}" if number == 1 else f"{base}-{task_id}-{number}"
            number += 1
        self._used.add(unique.casefold())
        return unique
