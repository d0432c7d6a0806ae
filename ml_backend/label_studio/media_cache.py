"""The folder of downloaded videos: its locks, the room that it takes, and what goes first where there is too little."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from ml_backend.errors import StorageError

log = logging.getLogger(__name__)

#: Room that a download leaves on the disk for databases and logs.
SPARE_BYTES = 256 << 20


class MediaCache:
    """Files that may go, except while somebody holds their lock. Shared by all processes on one folder.

    Args:
        limit: bytes that all files together may have.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self._limit = folder, limit

    def trim(self, keep: Path) -> None:
        """Remove the least recently used files until the cache fits; files in use stay.

        Args:
            keep: stays as well.
        """
        entries = self._entries()
        self._evict(entries, sum(size for _, size, _ in entries) - self._limit, keep)

    def make_room(self, wanted: int, keep: Path) -> None:
        """Remove the least recently used files, where the disk needs it, until so many bytes and a spare are free.

        The disk may be smaller than what the cache is allowed: without this, the cache alone would fill it for good.

        Args:
            keep: what is just being downloaded.

        Raises:
            StorageError: there is no room even so.
        """
        missing = self._missing(wanted)
        if missing <= 0:
            return
        entries = [entry for entry in self._entries() if entry[2] != keep]
        # Where all of it would not be enough, nothing is thrown away in vain.
        if sum(size for _, size, _ in entries) >= missing:
            self._evict(entries, missing, keep)
        if self._missing(wanted) > 0:
            raise StorageError(
                f"No room in {self.folder} for {wanted / 1e9:.2f} GB.",
                "Free some disk space, or set DATA_DIR on a larger disk.",
            )

    def _missing(self, wanted: int) -> int:
        return wanted + SPARE_BYTES - shutil.disk_usage(self.folder).free

    def _entries(self) -> list[tuple[float, int, Path]]:
        """Last use, bytes and path of every file, half ones too."""
        entries = []
        for file in self.folder.iterdir():
            if file.suffix in (".lock", ".json") or not file.is_file():
                continue
            with contextlib.suppress(FileNotFoundError):  # another process evicts too
                stat = file.stat()
                entries.append((stat.st_mtime, stat.st_size, file))
        return entries

    def _evict(self, entries: list[tuple[float, int, Path]], excess: int, keep: Path) -> None:
        for _, size, file in sorted(entries):
            if excess <= 0:
                return
            if file != keep and _remove_unused(file):
                log.debug("%s left the cache", file)
                excess -= size


@contextlib.contextmanager
def locked(path: Path, *, exclusive: bool, wait: bool = True) -> Iterator[IO[bytes]]:
    """Hold a lock file.

    Raises:
        StorageError: it cannot be made.
        BlockingIOError: somebody else holds it, and ``wait`` is false.
    """
    try:
        file = path.open("ab")
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written: {error.strerror}.", "Check DATA_DIR's rights and space."
        ) from error
    with file:
        mode = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
        fcntl.flock(file, mode if wait else mode | fcntl.LOCK_NB)
        yield file


def _remove_unused(file: Path) -> bool:
    base = file.with_name(file.name.removesuffix(".part"))
    try:
        with locked(base.with_suffix(".lock"), exclusive=True, wait=False):
            file.unlink(missing_ok=True)
            file.with_name(file.name + ".json").unlink(missing_ok=True)
        return True
    except BlockingIOError:
        return False  # somebody reads it
