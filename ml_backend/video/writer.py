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
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

from ml_backend.errors import StorageError, VideoError
from ml_backend.types import Image

# Without accurate rounding every colour comes out one step too green, again on each copy of a copy. FFmpeg's number
# for it (SWS_ACCURATE_RND), because PyAV 17, the last one for Python 3.10, has no name for it.
_SCALING = int(Interpolation.BILINEAR) | 0x40000


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
        comment: text that is kept in the file's metadata.

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
        comment: str = "",
    ) -> None:
        if width < 1 or height < 1:
            raise ValueError(f"expected a positive size, got {width}x{height}")
        if not fps > 0:
            raise ValueError(f"expected fps > 0, got {fps}")
        self.path = Path(path)
        self.width, self.height = width, height
        self.fps = Fraction(fps).limit_denominator(1001)
        self._options = {"crf": str(crf), "preset": preset}
        self._comment = comment
        self._temporary = self.path.with_name(f".{self.path.stem}.{os.getpid()}.part{self.path.suffix or '.mp4'}")
        self._scaler = VideoReformatter()
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
        if self._comment:
            self._container.metadata["comment"] = self._comment
        self._stream = self._container.add_stream("libx264", rate=self.fps, options=self._options)
        self._stream.width = self.width + self.width % 2
        self._stream.height = self.height + self.height % 2
        self._stream.pix_fmt = "yuv420p"
        codec = self._stream.codec_context
        codec.time_base = 1 / self.fps
        # Untagged video is shown with colours that depend on its height and the player; BT.709 is what all assume
        # for HD, and the tags make it true for small videos too.
        codec.colorspace, codec.color_primaries, codec.color_trc, codec.color_range = 1, 1, 1, 1
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
        picture = self._scaler.reformat(
            av.VideoFrame.from_ndarray(np.ascontiguousarray(bgr), format="bgr24"),
            format="yuv420p",
            dst_colorspace=Colorspace.ITU709,
            dst_color_range=ColorRange.MPEG,
            interpolation=_SCALING,
            threads=1,
        )
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
        if self._frames == 0:
            raise VideoError(f"No frame was written to {self.path}.", "Check that the source has frames.")
        self._mux(None)
        try:
            # Closing writes the index; if the disk is full it is here that it shows.
            container, self._container = self._container, None
            container.close()
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
