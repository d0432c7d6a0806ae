"""Keep a video's detections, of which tracks are only a part: what no track covers is looked at later.

The file is a zip of blocks as :func:`ml_backend.inference.chunks.dump_frame_features` writes them, and the classes.
Boxes are rounded to a quarter of a pixel, which halves it: about 20 MB for an hour of a crowded street.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from ml_backend.core.types import Detections, FrameFeatures
from ml_backend.inference.chunks import dump_frame_features, load_frame_features

log = logging.getLogger(__name__)

#: Frames of a block.
_BLOCK = 512
_CLASSES = "classes.json"


class DetectionLog:
    """Write the detections of a video to a file, in constant memory; a context manager.

    A full disk is logged: what needs the detections themselves goes on.

    Attributes:
        complete: whether :meth:`close` has written all of them.
    """

    def __init__(self, path: Path) -> None:
        self.complete = False
        self._zip = zipfile.ZipFile(path, "w")  # the blocks are compressed
        self._frames: list[FrameFeatures] = []
        self._blocks = 0
        self._failed = False

    def __enter__(self) -> DetectionLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.complete:
            with contextlib.suppress(OSError):  # nobody reads it
                self._zip.close()

    def push(self, features: FrameFeatures) -> None:
        """Add one frame."""
        found = features.detections
        xyxy = (np.round(found.xyxy * 4) / 4).astype(np.float32)
        rounded = Detections(xyxy, (np.round(found.conf * 256) / 256).astype(np.float32), found.class_id)
        self._frames.append(FrameFeatures(features.index, rounded))
        if len(self._frames) == _BLOCK:
            self._write_block()

    def close(self, class_names: Sequence[str]) -> None:
        """Finish the file.

        Args:
            class_names: by class id.
        """
        self._write_block()
        with self._full_disk_logged():
            if not self._failed:
                self._zip.writestr(_CLASSES, json.dumps(list(class_names)))
                self._zip.close()
                self.complete = True

    def _write_block(self) -> None:
        with self._full_disk_logged():
            if not self._failed:
                self._zip.writestr(f"{self._blocks:06}.npz", dump_frame_features(self._frames))
        self._blocks += 1
        self._frames.clear()

    @contextlib.contextmanager
    def _full_disk_logged(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._failed = True
            log.warning("Detections cannot be kept: %s", error)


@dataclass(frozen=True, slots=True)
class LoggedDetections:
    """What a :class:`DetectionLog` has written.

    Attributes:
        class_names: by class id.
    """

    class_names: tuple[str, ...]
    _zip: zipfile.ZipFile

    def frames(self) -> Iterator[FrameFeatures]:
        """Yield the detections of each frame, in order.

        Raises:
            ValueError: the file is damaged.
        """
        for name in sorted(set(self._zip.namelist()) - {_CLASSES}):
            yield from load_frame_features(_read(self._zip, name))

    @classmethod
    def load(cls, data: bytes) -> LoggedDetections:
        """Open a file's content.

        Raises:
            ValueError: it is damaged.
        """
        try:
            file = zipfile.ZipFile(io.BytesIO(data))
            names = json.loads(_read(file, _CLASSES))
        except zipfile.BadZipFile as error:
            raise ValueError(f"invalid detections: {error}") from error
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError("invalid detections: the classes are no list of names")
        return cls(tuple(names), file)


def _read(file: zipfile.ZipFile, name: str) -> bytes:
    try:
        return file.read(name)
    except (zipfile.BadZipFile, KeyError, OSError, RuntimeError) as error:
        raise ValueError(f"invalid detections: {error}") from error
