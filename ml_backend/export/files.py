"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from ml_backend.errors import StorageError
from ml_backend.video.writer import storage_error


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
    """A whole file. For thousands of images: one name beside the target instead of a random one.

    Raises:
        StorageError: the disk is full, or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.part")
    try:
        try:
            temporary.write_bytes(data)
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
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
