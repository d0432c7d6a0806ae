"""H.264 files that every browser plays: yuv420p, even size, index at the front, complete or not there at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import av.error
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

from ml_backend.core.errors import VideoError
from ml_backend.core.files import storage_error
from ml_backend.core.types import Image
from ml_backend.video.audio import AudioTrack, Timed, add_audio

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
        comment: text that is kept in the file's metadata.
        time_base: seconds per unit of the times that :meth:`write` is given, for pictures at uneven intervals;
            ``1 / fps`` when omitted.
        sound: what is to be heard; it goes on after the last picture where it is longer.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
        VideoError: the sound's file is no video.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        width: int,
        height: int,
        fps: float | Fraction,
        *,
        crf: int = 20,
        comment: str = "",
        time_base: Fraction | None = None,
        sound: AudioTrack | None = None,
    ) -> None:
        self.path = Path(path)
        self._comment = comment
        self._temporary = self.path.with_name(f".{self.path.stem}.{os.getpid()}.part{self.path.suffix or '.mp4'}")
        self._container: Any = None
        self._stream: Any = None
        self._sound = sound
        self._heard: Generator[Timed, None, None] | None = None
        self._waiting: Timed | None = None
        self.width, self.height = width, height
        self.fps = Fraction(fps).limit_denominator(1001)
        self.time_base = time_base or 1 / self.fps
        self._options = {"crf": str(crf), "preset": "veryfast"}
        self._scaler = VideoReformatter()
        self._frames = 0

    def __enter__(self) -> VideoWriter:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._container = av.open(
                str(self._temporary), "w", format="mp4", container_options={"movflags": "+faststart"}
            )
            if self._comment:
                self._container.metadata["comment"] = self._comment
            self._stream = self._pictures()
            if self._sound is not None:
                self._heard = add_audio(self._sound, self._container)
                self._waiting = next(self._heard, None)
        except BaseException as error:  # also a signal's
            self._discard()
            if isinstance(error, OSError):
                raise storage_error(self.path, error) from error
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._discard()

    def _pictures(self) -> Any:
        """Add the stream of pictures to the container and return it."""
        stream = self._container.add_stream("libx264", rate=self.fps, options=self._options)
        stream.width = self.width + self.width % 2
        stream.height = self.height + self.height % 2
        stream.pix_fmt = "yuv420p"
        codec = stream.codec_context
        codec.time_base = self.time_base
        # Untagged video is shown with colours that depend on its height and the player; BT.709 is what all assume
        # for HD, and the tags make it true for small videos too.
        codec.colorspace, codec.color_primaries, codec.color_trc, codec.color_range = 1, 1, 1, 1
        return stream

    def write(self, bgr: Image, pts: int | None = None) -> None:
        """Append one image, ``(height, width, 3)`` uint8 BGR.

        Args:
            pts: time in units of ``time_base``, strictly increasing; one unit after the last when omitted.

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
        picture.time_base = self.time_base
        self._frames = picture.pts + 1
        self._mux(picture)
        self._mux_sound(float(picture.pts * self.time_base))

    def _finish(self) -> None:
        if self._frames == 0:
            raise VideoError(f"No frame was written to {self.path}.", "Check that the source has frames.")
        self._mux(None)
        self._mux_sound(float("inf"))
        try:
            # Closing writes the index; if the disk is full it is here that it shows.
            container, self._container = self._container, None
            container.close()
            os.replace(self._temporary, self.path)
        except OSError as error:
            raise storage_error(self.path, error) from error

    def _mux_sound(self, until: float) -> None:
        """Sound goes along with the pictures, as players (and the muxer's memory) like it."""
        while self._heard is not None and self._waiting is not None and self._waiting[0] <= until:
            try:
                self._container.mux_one(self._waiting[1])
                self._waiting = next(self._heard, None)
            except OSError as error:
                raise storage_error(self.path, error) from error
            except av.error.FFmpegError as error:
                raise VideoError(f"The sound cannot be kept: {error}.", "Leave it out.") from error

    def _discard(self) -> None:
        """Close what is open and remove the file that is not complete."""
        if self._heard is not None:
            self._heard.close()
        # Something may have gone wrong before and is on its way up: what fails here is no news.
        if self._container is not None:
            container, self._container = self._container, None
            with contextlib.suppress(av.error.FFmpegError, OSError):
                container.close()
        with contextlib.suppress(OSError):
            self._temporary.unlink(missing_ok=True)

    def _mux(self, picture: Any) -> None:
        try:
            self._container.mux(self._stream.encode(picture))
        except OSError as error:
            raise storage_error(self.path, error) from error
