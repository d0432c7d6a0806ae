"""Files by their content."""

from __future__ import annotations

import hashlib
import os
import threading
from functools import lru_cache
from pathlib import Path

_CHUNK = 1 << 20


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
    with _reading(*key):  # whoever asks meanwhile waits for the same result, rather than to read it all again
        return _sha256(*key)
