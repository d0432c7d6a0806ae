"""A video that is made in segments, so that what was interrupted goes on with the next one.

Until it is complete there is a hidden folder beside it, ``.<name>.render``, with what decides its pictures and the
segments that are done; it can be removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_backend.errors import ConfigError
from ml_backend.export.files import make_folder, write_text
from ml_backend.export.state import read_json
from ml_backend.types import Image
from ml_backend.video.join import Segment
from ml_backend.video.writer import VideoWriter, storage_error

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Open:
    """The segment that is being written: its number, the time of its first picture, how many it has."""

    number: int
    start: int
    writer: VideoWriter
    stack: contextlib.ExitStack
    frames: int = 0


class Segments:
    """Segments of one video, a fixed number of pictures each.

    Args:
        folder: where they are; see :func:`segments_of`.
        length: pictures of the source that each stands for.
        make: a writer for a segment.

    Attributes:
        done: segments that are complete, from the first on.
        frames: pictures in them.
        carried: what the last of them left for the next, ``None`` where there is none.
    """

    def __init__(self, folder: Path, length: int, make: Callable[[Path], VideoWriter]) -> None:
        self._folder, self._length, self._make = folder, length, make
        self.done, self.frames = 0, 0
        self.carried: Any = None
        self._carried: Callable[[], Any] = lambda: None
        self._open: _Open | None = None
        while record := self._record(self.done):
            self.done += 1
            self.frames += record["frames"]
            self.carried = record["carried"]

    def write(self, picture: int, image: Image, stamp: int, carried: Callable[[], Any]) -> None:
        """Append an image. What is complete is so before this returns.

        Args:
            picture: number in the whole, from 0, increasing; those that are left out do not exist.
            stamp: its time in units of the writers.
            carried: gives JSON that the pictures after it need; asked once a segment.
        """
        number = picture // self._length
        if self._open is not None and self._open.number != number:
            self._close()
        if self._open is None:
            self._skip(number)
            stack = contextlib.ExitStack()
            self._open = _Open(number, stamp, stack.enter_context(self._make(self._path(number))), stack)
        self._open.writer.write(image, stamp - self._open.start)
        self._open.frames += 1
        self.frames += 1
        self._carried = carried
        if picture % self._length == self._length - 1:
            self._close()

    def finish(self, total: int) -> list[Segment]:
        """Complete the last one; returns all that have pictures.

        Args:
            total: pictures in the whole.
        """
        if self._open is not None:
            self._close()
        self._skip(-(-total // self._length))
        records = [(number, self._record(number)) for number in range(self.done)]
        return [Segment(self._path(number), record["start"]) for number, record in records if record["frames"]]

    def abandon(self, kind: Any, error: Any, trace: Any) -> None:
        """Give up the one that is not complete."""
        if self._open is not None:
            self._open.stack.__exit__(kind, error, trace)

    def _close(self) -> None:
        if self._open is None:
            return
        now, self._open = self._open, None
        now.stack.close()
        self.carried = self._carried()
        self._mark(now.number, {"start": now.start, "frames": now.frames, "bytes": _size(self._path(now.number))})

    def _skip(self, number: int) -> None:
        """Segments whose pictures are all damaged are nothing, and done."""
        while self.done < number:
            self._mark(self.done, {"start": 0, "frames": 0, "bytes": 0})

    def _mark(self, number: int, record: dict[str, Any]) -> None:
        write_text(self._folder / f"{number:05}.json", json.dumps(record | {"carried": self.carried}) + "\n")
        self.done = number + 1

    def _record(self, number: int) -> dict[str, Any]:
        """Of a segment that is complete; else empty."""
        record = read_json(self._folder / f"{number:05}.json")
        # A machine that lost its power may have the name and not the content.
        return record if record and record.get("bytes") == _size(self._path(number)) else {}

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:05}.mp4"


@contextlib.contextmanager
def segments_of(out: Path, made_of: Any, length: int, make: Callable[[Path], VideoWriter]) -> Iterator[Segments]:
    """The segments of a video, also those of a run before that was interrupted; when the block ends well they go.

    Args:
        out: the video.
        made_of: JSON that decides every picture. With other segments than of the same it begins anew.

    Raises:
        ConfigError: another process makes this video now.
        StorageError: the folder cannot be written.
    """
    folder = out.parent / f".{out.name}.render"
    with _alone(folder, out):
        wanted = json.loads(json.dumps(made_of, default=str))
        file = folder / "options.json"
        if read_json(file) != wanted:
            _empty(folder)
            write_text(file, json.dumps(wanted, indent=1, ensure_ascii=False) + "\n")
        segments = Segments(folder, length, make)
        try:
            yield segments
        except BaseException as error:
            segments.abandon(type(error), error, error.__traceback__)
            raise
        _empty(folder)


@contextlib.contextmanager
def _alone(folder: Path, out: Path) -> Iterator[None]:
    """The folder for this process only. However the block ends, it goes where there is nothing to go on with."""
    handle, ours = None, False
    try:
        make_folder(folder)
        try:
            handle = os.open(folder, os.O_RDONLY)
        except OSError as error:
            raise storage_error(out, error) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"{out} is being rendered by another process.", "Wait, or choose another --out."
            ) from error
        except OSError as error:
            # Network drives without locks: two at once get in each other's way, one does not.
            log.info("%s cannot be locked: %s", folder, error)
        ours = True
        yield
    finally:
        if ours and not any(folder.glob("[0-9]*.json")):
            _remove(folder)
        elif not ours:
            # Ended from outside before it was known whose it is. Another's has files, or is made again by them.
            with contextlib.suppress(OSError):
                folder.rmdir()
        if handle is not None:
            os.close(handle)


def _remove(folder: Path) -> None:
    _empty(folder)
    try:
        folder.rmdir()
    except OSError as error:
        log.warning("%s cannot be removed: %s", folder, error)


def _empty(folder: Path) -> None:
    """Remove what is a render's own."""
    # Records first: without them segments are nothing, with them and without segments there would seem to be some.
    ours: Sequence[str] = ("*.json", "*.mp4", ".*.part", ".*.part.mp4")
    for path in (path for pattern in ours for path in folder.glob(pattern)):
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("%s cannot be removed: %s", path, error)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
