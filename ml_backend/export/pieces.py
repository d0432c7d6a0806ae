"""Text of each video, kept until all are there: for exports that are one file, or a file a video.

What was interrupted goes on with the next video. Beside the result lies a hidden folder with what each piece was made
from; it can be removed.
"""

from __future__ import annotations

import contextlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from ml_backend.errors import StorageError
from ml_backend.export.files import write_text, writing, writing_bytes
from ml_backend.export.state import Records, read_json, state_folder

_COPY = 1 << 20


class Elements:
    """Elements of a JSON array, one a line, written as they come; the brackets are somebody else's."""

    def __init__(self, file: IO[str], before_first: str) -> None:
        self._file, self._before_first, self.count = file, before_first, 0

    def add(self, item: Any) -> None:
        self._file.write((",\n" if self.count else self._before_first) + json.dumps(item, ensure_ascii=False))
        self.count += 1


class Pieces(ABC):
    """Elements of each video, by its name, and what they were made from.

    Args:
        folder: of the export's own files.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self.records = folder, Records(folder)

    def record(self, name: str) -> dict[str, Any]:
        """What a piece was made from; empty where there is none, or it has been changed since."""
        record = self.records.read(name)
        return record if record and self._is_there(name, record) else {}

    @contextlib.contextmanager
    def writing(self, name: str, record: dict[str, Any]) -> Iterator[Elements]:
        """A new piece; it is complete with the end of the block, until which ``record`` may be added to.

        Raises:
            StorageError: the disk is full, or the folder cannot be written.
        """
        # Else a piece that is written and not yet recorded would be taken for the old one.
        self.records.remove(name)
        with self._file(name) as elements:
            yield elements
        self.records.write(name, record | self._marks(name))

    @abstractmethod
    def finish(self, names: Sequence[str]) -> list[Path]:
        """Put the result together from pieces in order, and remove what belongs to other videos. Returns its files."""

    @abstractmethod
    def _file(self, name: str) -> contextlib.AbstractContextManager[Elements]: ...

    @abstractmethod
    def _is_there(self, name: str, record: dict[str, Any]) -> bool: ...

    def _marks(self, name: str) -> dict[str, Any]:
        """By which a piece is known again."""
        return {}

    def _tidy(self, names: Sequence[str]) -> None:
        for name in set(self.records.names()) - set(names):
            self.records.remove(name)
        for path in self._folder.glob(".*.part"):  # of an export that was killed
            path.unlink(missing_ok=True)


class FileOfEach(Pieces):
    """One array a video: ``<out>/<name>.json``."""

    def __init__(self, out: Path) -> None:
        super().__init__(state_folder(out))
        self._out = out

    def _path(self, name: str) -> Path:
        return self._out / f"{name}.json"

    @contextlib.contextmanager
    def _file(self, name: str) -> Iterator[Elements]:
        with writing(self._path(name), self._folder) as file:
            file.write("[")
            elements = Elements(file, "\n")
            yield elements
            file.write("\n]\n" if elements.count else "]\n")

    def _is_there(self, name: str, record: dict[str, Any]) -> bool:
        return record.get("file") == _mark(self._path(name))

    def _marks(self, name: str) -> dict[str, Any]:
        return {"file": _mark(self._path(name))}

    def finish(self, names: Sequence[str]) -> list[Path]:
        for name in set(self.records.names()) - set(names):
            self._path(name).unlink(missing_ok=True)
        self._tidy(names)
        return [self._path(name) for name in names]


class OneFile(Pieces):
    """One array of all, which appears whole.

    Once it is there its pieces are only in it: what lies where is remembered, so that the next export copies them.
    """

    def __init__(self, out: Path) -> None:
        super().__init__(out.parent / f".{out.name}.export")
        self._out = out
        joined, mark = read_json(self._index) or {}, _mark(out)
        self._places: dict[str, list[int]] = joined["places"] if mark and joined.get("file") == mark else {}

    @property
    def _index(self) -> Path:
        return self._folder / "joined.json"

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.rows"

    @contextlib.contextmanager
    def _file(self, name: str) -> Iterator[Elements]:
        self._places.pop(name, None)
        with writing(self._path(name), self._folder) as file:
            yield Elements(file, "")

    def _is_there(self, name: str, record: dict[str, Any]) -> bool:
        return name in self._places or self._path(name).exists()

    def finish(self, names: Sequence[str]) -> list[Path]:
        places: dict[str, list[int]] = {}
        any_rows = False
        with writing_bytes(self._out, self._folder) as file, contextlib.ExitStack() as stack:
            before = stack.enter_context(self._out.open("rb")) if self._places else None
            file.write(b"[")
            for name in names:
                # The separator is written before the piece, where one is known to follow.
                comma = b",\n" if any_rows else b"\n"
                if before and name in self._places and not self._path(name).exists():
                    offset, length = self._places[name]
                    before.seek(offset)
                    places[name] = _append(file, before, comma, length)
                else:
                    with self._path(name).open("rb") as piece:
                        places[name] = _append(file, piece, comma, self._path(name).stat().st_size)
                any_rows = any_rows or places[name][1] > 0
            file.write(b"\n]\n" if any_rows else b"]\n")
        write_text(self._index, json.dumps({"file": _mark(self._out), "places": places}) + "\n")
        self._tidy(names)
        for path in self._folder.glob("*.rows"):
            path.unlink(missing_ok=True)
        return [self._out]


def _append(file: IO[bytes], piece: IO[bytes], comma: bytes, length: int) -> list[int]:
    """Copy a piece; returns where it lies in the file, and its length in bytes."""
    if length:
        file.write(comma)
    start = file.tell()
    left = length
    while left:
        data = piece.read(min(left, _COPY))
        if not data:
            raise StorageError("A file of the export has been changed while it was read.", "Export again.")
        file.write(data)
        left -= len(data)
    return [start, length]


def _mark(path: Path) -> list[int] | None:
    """Size and time of a file, by which a change is seen; ``None`` where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns]
