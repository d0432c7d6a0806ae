"""Pictures of a video as image files: decoded once, encoded beside the decoder, memory bounded."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Executor, Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from ml_backend.core.errors import ConfigError, StorageError
from ml_backend.core.files import UniqueNames, write_bytes
from ml_backend.core.types import Image
from ml_backend.datasets.annotated_video import FrameBoxes

#: Pictures that wait for the encoder, for each of its threads. One of 1920x1080 takes 6 MB.
_WAITING = 2


@dataclass(frozen=True, slots=True)
class ImageFormat:
    """How pictures are written.

    Attributes:
        suffix: ``"jpg"`` or ``"png"``.
        quality: of JPEG, 1 to 100; 95 cannot be told from the video.
    """

    suffix: Literal["jpg", "png"] = "jpg"
    quality: int = 95

    def __post_init__(self) -> None:
        if not 1 <= self.quality <= 100:
            raise ConfigError(f"{self.quality} is no JPEG quality.", "Give 1 to 100.")

    def encode(self, image: Image) -> bytes:
        """File content of a BGR picture."""
        # PNG's least compression: four times as fast as the usual one, for a tenth more bytes.
        flags = [cv2.IMWRITE_JPEG_QUALITY, self.quality] if self.suffix == "jpg" else [cv2.IMWRITE_PNG_COMPRESSION, 1]
        done, data = cv2.imencode(f".{self.suffix}", image, flags)
        if not done:
            raise StorageError(f"A picture of shape {image.shape} cannot be encoded as {self.suffix}.")
        return bytes(data)


class ImageSaver:
    """Encodes and writes pictures on other threads. Use as a context manager: leaving it waits for all of them.

    Args:
        pool: does the encoding.
        threads: of the pool.
    """

    def __init__(self, image_format: ImageFormat, pool: Executor, threads: int) -> None:
        self._format, self._pool = image_format, pool
        self._limit = max(1, threads * _WAITING)
        self._pending: deque[Future[None]] = deque()

    def __enter__(self) -> ImageSaver:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._pending = deque(future for future in self._pending if not future.cancel())
        wait(self._pending)
        for future in self._pending if kind is None else ():
            future.result()

    def save(self, path: Path, image: Image) -> None:
        """Write a picture some time soon; it appears whole. Waits while too many are under way.

        Raises:
            StorageError: this or an earlier picture could not be written.
        """
        while len(self._pending) >= self._limit:
            self._pending.popleft().result()
        self._pending.append(self._pool.submit(lambda: write_bytes(path, self._format.encode(image))))


def crop(image: Image, xyxy: np.ndarray[tuple[int], np.dtype[np.float64]]) -> Image:
    """A copy of what is in a box, at least one pixel large."""
    height, width = image.shape[:2]
    x1, y1 = np.floor(xyxy[:2]).astype(int).tolist()
    x2, y2 = np.ceil(xyxy[2:]).astype(int).tolist()
    x1, y1 = min(max(x1, 0), width - 1), min(max(y1, 0), height - 1)
    # A copy, since the view would keep the whole picture in memory.
    return np.ascontiguousarray(image[y1 : max(y2, y1 + 1), x1 : max(x2, x1 + 1)])


class CropSaver:
    """What is in each box, for classifiers: ``crops/<part>/<label>/<video>_<frame>_<track>.jpg``.

    Args:
        out: folder of the dataset.
        classes: label names in the order of their numbers. Those that a file system would take for one get folders
            of their own: the second ends in its number.
        suffix: of the files, without a dot.
    """

    def __init__(self, out: Path, classes: Sequence[str], suffix: str) -> None:
        self._folder, self._suffix = out / "crops", suffix
        names = UniqueNames()
        self._folder_of = {label: names.take(label, number) for number, label in enumerate(classes)}

    def save(self, saver: ImageSaver, name: str, split: str, frame: FrameBoxes, image: Image) -> None:
        """Write what is in the boxes of a picture ``(height, width, 3)``."""
        for item, box in zip(frame.objects, frame.xyxy, strict=True):
            file = f"{name}_{frame.index:06d}_{item.track}.{self._suffix}"
            saver.save(self._folder / split / self._folder_of[item.label] / file, crop(image, box))

    def remove(self, name: str) -> None:
        """Remove a video's crops."""
        for folder in self._folder.glob("*/*"):
            for path in folder.glob("*"):
                stem, _, track = path.stem.rpartition("_")
                video, _, picture = stem.rpartition("_")
                if video == name and picture.isdigit() and track.isdigit():
                    path.unlink(missing_ok=True)
