"""H.264 files that every browser plays: yuv420p, even size, index at the front, complete or not there at all."""

from __future__ import annotations

import errno
import os
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import av.error
import numpy as np

from ..errors import StorageError
from ..types import Image


class VideoWriter:
    """Write BGR images as H.264 in MP4. Use as a context manager.

    The file appears under its name only when the ``with`` block ends well; an exception leaves nothing behind.

    Args:
        path: target, ending in ``.mp4``; its folder is made.
        width, height: size of the images. An odd size is padded by one repeated column or row, as H.264 4:2:0
            needs even sizes: positions in pixels stay valid.
        fps: frames per second.
        crf: quality, 0 (lossless) to 51; 18 looks like the original, 23 is half the size.
        preset: speed against size, a name that x264 knows.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        width: int,
        height: int,
        fps: float | Fraction,
        *,
        crf: int = 20,
        preset: str = "veryfast",
    ) -> None:
        if width < 1 or height < 1:
            raise ValueError(f"expected a positive size, got {width}x{height}")
        if not fps > 0:
            raise ValueError(f"expected fps > 0, got {fps}")
        self.path = Path(path)
        self.width, self.height = width, height
        self.fps = Fraction(fps).limit_denominator(1001)
        self._options = {"crf": str(crf), "preset": preset}
        self._temporary = self.path.with_name(f".{self.path.stem}.{os.getpid()}.part{self.path.suffix or '.mp4'}")
        self._container: Any = None
        self._stream: Any = None
        self._frames = 0

    def __enter__(self) -> VideoWriter:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._container = av.open(
                str(self._temporary), "w", format="mp4", container_options={"movflags": "+faststart"}
            )
        except OSError as error:
            raise storage_error(self.path, error) from error
        self._stream = self._container.add_stream("libx264", rate=self.fps, options=self._options)
        self._stream.width = self.width + self.width % 2
        self._stream.height = self.height + self.height % 2
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.time_base = 1 / self.fps
        return self

    def write(self, bgr: Image, pts: int | None = None) -> None:
        """Append one image, ``(height, width, 3)`` uint8 BGR.

        Args:
            pts: position in units of ``1 / fps``, strictly increasing; the next one when omitted.

        Raises:
            ValueError: wrong shape or type.
            StorageError: the disk is full.
        """
        if bgr.shape != (self.height, self.width, 3) or bgr.dtype != np.uint8:
            raise ValueError(f"expected ({self.height}, {self.width}, 3) uint8, got {bgr.shape} {bgr.dtype}")
        if self.width % 2 or self.height % 2:
            bgr = np.pad(bgr, ((0, self.height % 2), (0, self.width % 2), (0, 0)), mode="edge")
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(bgr), format="bgr24")
        picture.pts = self._frames if pts is None else pts
        picture.time_base = 1 / self.fps
        self._frames = picture.pts + 1
        self._mux(picture)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._close_quietly()
            self._temporary.unlink(missing_ok=True)

    def _finish(self) -> None:
        self._mux(None)
        try:
            self._container.close()
            self._container = None
            os.replace(self._temporary, self.path)
        except OSError as error:
            raise storage_error(self.path, error) from error

    def _mux(self, picture: Any) -> None:
        try:
            self._container.mux(self._stream.encode(picture))
        except OSError as error:
            raise storage_error(self.path, error) from error

    def _close_quietly(self) -> None:
        if self._container is None:
            return
        container, self._container = self._container, None
        try:
            container.close()
        except (av.error.FFmpegError, OSError):
            # Something has gone wrong before and is on its way up; the part file is removed anyway.
            return


def storage_error(path: Path, error: OSError) -> StorageError:
    """Translate a failed write."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(f"No space left on the disk while writing {path}.", "Free some space and try again.")
    return StorageError(f"Cannot write {path}: {error}.", "Check the folder's permissions and the disk.")
