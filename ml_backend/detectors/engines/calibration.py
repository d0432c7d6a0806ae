"""Frames of a project's own videos for calibrating and checking int8: a bounded pool of images on disk.

Each video is a folder of JPEG files at the network's input size, written atomically. Heavy libraries are imported only
when images are written or read.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ml_backend.core.errors import StorageError
from ml_backend.core.settings import Settings
from ml_backend.core.types import Image

log = logging.getLogger(__name__)

#: Some 25 MB. The statistics of the network's layers hardly change with more.
MAX_IMAGES = 300
MAX_IMAGES_PER_VIDEO = 48
#: Leaves 12 images per video.
MAX_VIDEOS = MAX_IMAGES // 12
#: Frames closer in time are nearly equal.
SPACING_S = 0.2
#: From this many videos on, every fourth is held out; with fewer, blocks of time are.
MIN_VIDEOS_TO_HOLD_OUT = 4
#: Of twelve consecutive images, seven calibrate and three check; those in between are unused, as they nearly equal
#: their neighbours.
_SPLIT_PATTERN = "ccccccc-hhh-"
#: The sides of network inputs are multiples of 32 or 64; images are at least that large.
_SIDE = 64
_END_OF_JPEG = b"\xff\xd9"
_FINGERPRINT_BYTES = 1 << 16  # hashed at either end of a file
#: Age at which temporary folders are left over from a process that was killed.
_STALE_S = 24 * 3600


@dataclass(frozen=True, slots=True)
class CalibrationSource:
    """Where calibration images come from.

    Attributes:
        project: Label Studio project; ``None``: outside of projects.
        video: local file of the current video, to collect frames from.
    """

    project: int | None = None
    video: str | None = None


class CalibrationPool:
    """The calibration images of a project for one input size.

    Args:
        settings: ``data_dir`` and ``imgsz`` are used.
        project: as in :class:`CalibrationSource`.
    """

    def __init__(self, settings: Settings, project: int | None) -> None:
        self.name = f"{'default' if project is None else project}-{settings.imgsz}"
        self._folder = settings.weights_dir / "calibration" / self.name
        self._side = -(-settings.imgsz // _SIDE) * _SIDE

    @property
    def videos(self) -> list[Path]:
        """The folder of each video, in a fixed order."""
        try:
            return sorted(path for path in self._folder.iterdir() if not path.name.startswith(".") and path.is_dir())
        except OSError:
            return []

    @property
    def generation(self) -> int:
        """0 without videos; incremented whenever their number has doubled: at 1, 2, 4, 8, 16."""
        return len(self.videos).bit_length()

    def needs(self, video: str | os.PathLike[str]) -> bool:
        """Return whether frames of a video should be collected."""
        videos = self.videos
        try:
            return len(videos) < MAX_VIDEOS and _fingerprint(video) not in {folder.name for folder in videos}
        except OSError:  # reported when the video is decoded
            return False

    def collect(self, video: str | os.PathLike[str]) -> int:
        """Store frames spread over a video and return their number; thin out other videos if the pool is full.

        Raises:
            VideoError: the video cannot be decoded.
            StorageError: the disk cannot be written.
        """
        from ml_backend.video.probe import probe
        from ml_backend.video.stills import write_stills

        info = probe(video)
        limit = min(MAX_IMAGES_PER_VIDEO, info.frames, round(info.duration / SPACING_S))
        count = max(1, limit)
        indices = np.unique(np.linspace(0, info.frames - 1, count).round().astype(np.int64))
        target = self._folder / _fingerprint(video)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._remove_stale()
            write_stills(video, info, indices, self._side, target)
            collected = len(_list_images(target))
            self._thin_out()
        except OSError as error:
            raise StorageError(
                f"Calibration images cannot be stored in {self._folder}: {error.strerror or error}.",
                "Free some disk space, make the folder writable, or set PRECISION=auto.",
            ) from error
        return collected

    def split(self) -> tuple[list[Path], list[Path]]:
        """Return the images to calibrate with, and held-out ones of other videos or times to check with."""
        videos = self.videos
        calibrate: list[Path] = []
        held_out: list[Path] = []
        for number, video in enumerate(videos):
            images = _list_images(video)
            if len(videos) >= MIN_VIDEOS_TO_HOLD_OUT:
                (calibrate if number % MIN_VIDEOS_TO_HOLD_OUT else held_out).extend(images)
                continue
            for index, image in enumerate(images):
                kind = _SPLIT_PATTERN[index % len(_SPLIT_PATTERN)]
                if kind != "-":
                    (calibrate if kind == "c" else held_out).append(image)
        return calibrate, held_out

    def _thin_out(self) -> None:
        """Remove every other image of the largest video until the pool is within its limit."""
        images = {video: _list_images(video) for video in self.videos}
        while sum(map(len, images.values())) > MAX_IMAGES:
            largest = max(images, key=lambda video: len(images[video]))
            for image in images[largest][1::2]:
                image.unlink(missing_ok=True)
            images[largest] = images[largest][::2]

    def _remove_stale(self) -> None:
        for temporary in self._folder.glob(".*"):
            with contextlib.suppress(OSError):  # another process has removed it
                if time.time() - temporary.stat().st_mtime > _STALE_S:
                    shutil.rmtree(temporary, ignore_errors=True)


def read_calibration_images(files: Sequence[Path]) -> Iterator[Image]:
    """Yield images, ``(height, width, 3)`` uint8 BGR each; skip damaged ones."""
    import cv2

    for file in files:
        with contextlib.suppress(OSError):  # another process has removed it
            content = file.read_bytes()
            # OpenCV decodes truncated files too, with grey for the rest.
            complete = content.endswith(_END_OF_JPEG)
            image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR) if complete else None
            if image is None:
                log.warning("The calibration image %s is damaged and skipped.", file)
            else:
                yield np.asarray(image, np.uint8)


def _list_images(folder: Path) -> list[Path]:
    """List images in order of time."""
    return sorted(folder.glob("*.jpg"))


def _fingerprint(video: str | os.PathLike[str]) -> str:
    """Hash a video's size and both ends, as reading gigabytes would take too long."""
    digest = hashlib.sha256()
    with open(video, "rb") as file:
        digest.update(str(os.fstat(file.fileno()).st_size).encode())
        digest.update(file.read(_FINGERPRINT_BYTES))
        file.seek(-min(_FINGERPRINT_BYTES, os.fstat(file.fileno()).st_size), os.SEEK_END)
        digest.update(file.read())
    return digest.hexdigest()[:16]
