"""Write frames and crops of a video as image files, encoded on other threads with bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Executor, Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt

from ml_backend.core.errors import ConfigError, StorageError
from ml_backend.core.files import UniqueNames, write_bytes
from ml_backend.core.types import Image
from ml_backend.datasets.annotated_video import FrameBoxes

#: Frames queued for each encoder thread; a 1920x1080 frame takes 6 MB.
_QUEUED_PER_THREAD = 2


@dataclass(frozen=True, slots=True)
class ImageFormat:
    """Format of image files.

    Attributes:
        suffix: ``"jpg"`` or ``"png"``.
        quality: JPEG quality, 1 to 100; 95 is visually lossless.
    """

    suffix: Literal["jpg", "png"] = "jpg"
    quality: int = 95

    def __post_init__(self) -> None:
        if not 1 <= self.quality <= 100:
            raise ConfigError(f"{self.quality} is not a JPEG quality.", "Use 1 to 100.")

    def encode(self, image: Image | npt.NDArray[np.uint16]) -> bytes:
        """Encode a BGR image, or a map of numbers as a PNG."""
        # PNG level 1 is four times as fast as the default, for a tenth more bytes.
        flags = [cv2.IMWRITE_JPEG_QUALITY, self.quality] if self.suffix == "jpg" else [cv2.IMWRITE_PNG_COMPRESSION, 1]
        encoded, data = cv2.imencode(f".{self.suffix}", image, flags)
        if not encoded:
            raise StorageError(f"An image of shape {image.shape} cannot be encoded as {self.suffix}.")
        return bytes(data)


class ImageSaver:
    """Encodes and writes images on a thread pool. A context manager; leaving it waits for all images.

    Args:
        pool: encodes and writes.
        threads: of the pool.
    """

    def __init__(self, image_format: ImageFormat, pool: Executor, threads: int) -> None:
        self._format, self._pool = image_format, pool
        self._limit = max(1, threads * _QUEUED_PER_THREAD)
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
        """Queue an image, which is written atomically; blocks while the queue is full.

        Raises:
            StorageError: this or an earlier image could not be written.
        """
        while len(self._pending) >= self._limit:
            self._pending.popleft().result()
        self._pending.append(self._pool.submit(lambda: write_bytes(path, self._format.encode(image))))


def crop(image: Image, xyxy: np.ndarray[tuple[int], np.dtype[np.float64]]) -> Image:
    """Return a copy of the pixels in a box, at least one."""
    height, width = image.shape[:2]
    x1, y1 = np.floor(xyxy[:2]).astype(int).tolist()
    x2, y2 = np.ceil(xyxy[2:]).astype(int).tolist()
    x1, y1 = min(max(x1, 0), width - 1), min(max(y1, 0), height - 1)
    # A view would keep the whole frame in memory.
    return np.ascontiguousarray(image[y1 : max(y2, y1 + 1), x1 : max(x2, x1 + 1)])


class CropSaver:
    """Saves the crop of each box, for classifiers: ``crops/<split>/<label>/<video>_<frame>_<track>.jpg``.

    Args:
        out: folder of the dataset.
        classes: label names in the order of class ids. If two map to the same folder name, the second ends in its id.
        suffix: of the files, without a dot.
    """

    def __init__(self, out: Path, classes: Sequence[str], suffix: str) -> None:
        self._folder, self._suffix = out / "crops", suffix
        names = UniqueNames()
        self._label_folders = {label: names.take(label, class_id) for class_id, label in enumerate(classes)}

    def save(self, saver: ImageSaver, name: str, split: str, frame: FrameBoxes, image: Image) -> None:
        """Write the crops of a frame's boxes from its image ``(height, width, 3)``."""
        for item, box in zip(frame.objects, frame.xyxy, strict=True):
            file = f"{name}_{frame.index:06d}_{item.track_id}.{self._suffix}"
            saver.save(self._folder / split / self._label_folders[item.label] / file, crop(image, box))

    def remove(self, name: str) -> None:
        """Remove a video's crops."""
        for folder in self._folder.glob("*/*"):
            for path in folder.glob("*"):
                stem, _, track = path.stem.rpartition("_")
                video, _, frame = stem.rpartition("_")
                if video == name and frame.isdigit() and track.isdigit():
                    path.unlink(missing_ok=True)
