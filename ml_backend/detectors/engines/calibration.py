"""Pictures of a project's own videos, from which int8 is made and by which it is checked: a bounded pool on disk.

A video is a folder of JPEG files, as large as the network needs them, that appears whole or not at all. Imports no
heavy library before pictures are made or read.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ml_backend.core.boxes import scaled_size
from ml_backend.core.errors import StorageError
from ml_backend.core.settings import Settings
from ml_backend.core.types import Image

log = logging.getLogger(__name__)

#: Some 25 MB. Statistics of a network's layers hardly change with more.
MAX_PICTURES = 300
PER_VIDEO = 48
#: Each has 12 pictures then.
MAX_VIDEOS = MAX_PICTURES // 12
#: Pictures that follow each other faster show the same.
SPACING_S = 0.2
#: So that what JPEG changes is less than what int8 does.
QUALITY = 95
#: From so many videos on, every fourth is held out whole; of fewer, blocks of time are.
SEVERAL = 4
#: Of twelve pictures in a row seven calibrate and three check; the one on either side of these is for neither, as it
#: shows nearly what its neighbour shows.
_BLOCK = "ccccccc-hhh-"
#: Networks take multiples of 32 or 64: no picture is smaller than what they take.
_SIDE = 64
_END_OF_JPEG = b"\xff\xd9"
_ENDS = 1 << 16  # bytes at either end by which a file is known
#: What a process has left behind that ended while it collected.
_LEFT_BEHIND_S = 24 * 3600


@dataclass(frozen=True, slots=True)
class CalibrationSource:
    """Whose pictures to calibrate with.

    Attributes:
        project: of Label Studio; ``None``: what belongs to none.
        video: a local file that is being looked at, from which pictures may be taken.
    """

    project: int | None = None
    video: str | None = None


class CalibrationPool:
    """The pictures of one project for one size of input.

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
        """A folder of pictures each, always in the same order."""
        try:
            return sorted(path for path in self._folder.iterdir() if not path.name.startswith(".") and path.is_dir())
        except OSError:
            return []

    @property
    def generation(self) -> int:
        """0 without pictures; then one more whenever the videos have doubled: 1, 2, 4, 8, 16."""
        return len(self.videos).bit_length()

    def wants(self, video: str | os.PathLike[str]) -> bool:
        """Whether pictures of a video are still to be taken."""
        videos = self.videos
        try:
            return len(videos) < MAX_VIDEOS and _fingerprint(video) not in {known.name for known in videos}
        except OSError:  # whoever reads all of it will tell
            return False

    def collect(self, video: str | os.PathLike[str]) -> int:
        """Take pictures spread over a video; the number of them. Those of the others get fewer when the pool is full.

        Raises:
            VideoError: it cannot be decoded.
            StorageError: the disk does not take them.
        """
        import cv2

        from ml_backend.video.probe import probe
        from ml_backend.video.reader import read_at

        info = probe(video)
        count = max(1, min(PER_VIDEO, info.frames, round(info.duration / SPACING_S)))
        indices = np.unique(np.linspace(0, info.frames - 1, count).round().astype(np.int64))
        size = scaled_size(info.width, info.height, min(1.0, self._side / max(info.width, info.height)))
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._tidy()
            with tempfile.TemporaryDirectory(prefix=".", dir=self._folder) as temporary:
                made = Path(temporary) / "pictures"
                made.mkdir()
                for frame in read_at(video, info, indices):
                    image = cv2.resize(frame.image, size, interpolation=cv2.INTER_AREA)
                    _, jpeg = cv2.imencode(".jpg", image, (cv2.IMWRITE_JPEG_QUALITY, QUALITY))
                    (made / f"{frame.index:08d}.jpg").write_bytes(jpeg.tobytes())
                taken = len(_pictures(made))
                target = self._folder / _fingerprint(video)
                try:
                    made.replace(target)
                except OSError:
                    if not target.is_dir():
                        raise
                    # Else another process has been faster.
            self._thin()
        except OSError as error:
            raise StorageError(
                f"Pictures for int8 cannot be kept in {self._folder}: {error.strerror or error}.",
                "Free some disk space, make the folder writable, or set PRECISION=auto.",
            ) from error
        return taken

    def parts(self) -> tuple[list[Path], list[Path]]:
        """Pictures to calibrate with, and held-out ones to check with: of other videos, or of other times."""
        videos = self.videos
        calibrate: list[Path] = []
        held_out: list[Path] = []
        for number, video in enumerate(videos):
            pictures = _pictures(video)
            if len(videos) >= SEVERAL:
                (calibrate if number % SEVERAL else held_out).extend(pictures)
                continue
            for index, picture in enumerate(pictures):
                kind = _BLOCK[index % len(_BLOCK)]
                if kind != "-":
                    (calibrate if kind == "c" else held_out).append(picture)
        return calibrate, held_out

    def _thin(self) -> None:
        """Remove every other picture of the video that has most, until there are no more than there may be."""
        kept = {video: _pictures(video) for video in self.videos}
        while sum(map(len, kept.values())) > MAX_PICTURES:
            fullest = max(kept, key=lambda video: len(kept[video]))
            for picture in kept[fullest][1::2]:
                picture.unlink(missing_ok=True)
            kept[fullest] = kept[fullest][::2]

    def _tidy(self) -> None:
        for temporary in self._folder.glob(".*"):
            with contextlib.suppress(OSError):  # another process has removed it
                if time.time() - temporary.stat().st_mtime > _LEFT_BEHIND_S:
                    shutil.rmtree(temporary, ignore_errors=True)


def read_frames_for_calibration(files: Sequence[Path]) -> Iterator[Image]:
    """``(height, width, 3)`` uint8 BGR each; damaged ones are left out."""
    import cv2

    for file in files:
        with contextlib.suppress(OSError):  # another process has removed it
            content = file.read_bytes()
            # What is cut off is decoded too, with grey for the rest.
            whole = content.endswith(_END_OF_JPEG)
            image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR) if whole else None
            if image is None:
                log.warning("The picture %s is damaged and left out.", file)
            else:
                yield np.asarray(image, np.uint8)


def _pictures(folder: Path) -> list[Path]:
    """In order of time."""
    return sorted(folder.glob("*.jpg"))


def _fingerprint(video: str | os.PathLike[str]) -> str:
    """Of a video's content: of its length and its ends, as reading gigabytes takes too long."""
    digest = hashlib.sha256()
    with open(video, "rb") as file:
        digest.update(str(os.fstat(file.fileno()).st_size).encode())
        digest.update(file.read(_ENDS))
        file.seek(-min(_ENDS, os.fstat(file.fileno()).st_size), os.SEEK_END)
        digest.update(file.read())
    return digest.hexdigest()[:16]
