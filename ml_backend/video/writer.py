"""Write H.264 files that every browser plays: yuv420p, even size, index at the front, written atomically."""

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
from ml_backend.video.audio import AudioTrack, TimedPacket, add_audio

# SWS_ACCURATE_RND: without it every colour comes out one step too green, with each copy of a copy. PyAV 17, the last
# version for Python 3.10, has no name for it.
_SCALING = int(Interpolation.BILINEAR) | 0x40000


class VideoWriter:
    """Write BGR images as H.264 in MP4. Use as a context manager.

    The file appears at ``path`` only if the ``with`` block succeeds; an exception leaves nothing behind.

    Args:
        path: target, ending in ``.mp4``; its folder is created.
        width, height: size of the images. An odd size is padded by one repeated column or row, as H.264 4:2:0
            needs even sizes; pixel positions stay valid.
        fps: frames per second.
        crf: quality, 0 (lossless) to 51; 18 looks like the original, 23 is half the size.
        comment: text for the file's metadata.
        time_base: seconds per unit of ``pts`` in :meth:`write`, for frames at uneven intervals; defaults to
            ``1 / fps``.
        audio: audio to add; it continues after the last frame if it is longer.

    Raises:
        StorageError: the disk is full or the folder is not writable.
        VideoError: the file of ``audio`` is not a video.
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
        audio: AudioTrack | None = None,
    ) -> None:
        self.path = Path(path)
        self._comment = comment
        self._temporary = self.path.with_name(f".{self.path.stem}.{os.getpid()}.part{self.path.suffix or '.mp4'}")
        self._container: Any = None
        self._stream: Any = None
        self._audio = audio
        self._audio_packets: Generator[TimedPacket, None, None] | None = None
        self._next_audio: TimedPacket | None = None
        self.width, self.height = width, height
        self.fps = Fraction(fps).limit_denominator(1001)
        self.time_base = time_base or 1 / self.fps
        self._options = {"crf": str(crf), "preset": "veryfast"}
        self._scaler = VideoReformatter()
        self._next_pts = 0

    def __enter__(self) -> VideoWriter:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._container = av.open(
                str(self._temporary), "w", format="mp4", container_options={"movflags": "+faststart"}
            )
            if self._comment:
                self._container.metadata["comment"] = self._comment
            self._stream = self._add_video_stream()
            if self._audio is not None:
                self._audio_packets = add_audio(self._audio, self._container)
                self._next_audio = next(self._audio_packets, None)
        except BaseException as error:  # including those that signal handlers raise
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

    def _add_video_stream(self) -> Any:
        """Add the video stream to the container and return it."""
        stream = self._container.add_stream("libx264", rate=self.fps, options=self._options)
        stream.width = self.width + self.width % 2
        stream.height = self.height + self.height % 2
        stream.pix_fmt = "yuv420p"
        codec = stream.codec_context
        codec.time_base = self.time_base
        # The colours of untagged video depend on its height and the player; all assume BT.709 for HD, and the tags
        # extend that to small videos.
        codec.colorspace, codec.color_primaries, codec.color_trc, codec.color_range = 1, 1, 1, 1
        return stream

    def write(self, bgr: Image, pts: int | None = None) -> None:
        """Append one image, ``(height, width, 3)`` uint8 BGR.

        Args:
            pts: time in units of ``time_base``, strictly increasing; defaults to one unit after the last.

        Raises:
            ValueError: wrong shape or type.
            StorageError: the disk is full.
        """
        if bgr.shape != (self.height, self.width, 3) or bgr.dtype != np.uint8:
            raise ValueError(f"expected ({self.height}, {self.width}, 3) uint8, got {bgr.shape} {bgr.dtype}")
        if self.width % 2 or self.height % 2:
            bgr = np.pad(bgr, ((0, self.height % 2), (0, self.width % 2), (0, 0)), mode="edge")
        frame = self._scaler.reformat(
            av.VideoFrame.from_ndarray(np.ascontiguousarray(bgr), format="bgr24"),
            format="yuv420p",
            dst_colorspace=Colorspace.ITU709,
            dst_color_range=ColorRange.MPEG,
            interpolation=_SCALING,
            threads=1,
        )
        frame.pts = self._next_pts if pts is None else pts
        frame.time_base = self.time_base
        self._next_pts = frame.pts + 1
        self._mux(frame)
        self._mux_audio(float(frame.pts * self.time_base))

    def _finish(self) -> None:
        if self._next_pts == 0:
            raise VideoError(f"No frames were written to {self.path}.", "Check that the source has frames.")
        self._mux(None)
        self._mux_audio(float("inf"))
        try:
            # Closing writes the index and may find the disk full.
            container, self._container = self._container, None
            container.close()
            os.replace(self._temporary, self.path)
        except OSError as error:
            raise storage_error(self.path, error) from error

    def _mux_audio(self, until: float) -> None:
        """Mux the audio up to a time in seconds: interleaving helps players and limits the muxer's memory."""
        while self._audio_packets is not None and self._next_audio is not None and self._next_audio[0] <= until:
            try:
                self._container.mux_one(self._next_audio[1])
                self._next_audio = next(self._audio_packets, None)
            except OSError as error:
                raise storage_error(self.path, error) from error
            except av.error.FFmpegError as error:
                raise VideoError(f"The audio cannot be copied: {error}.", "Leave the audio out.") from error

    def _discard(self) -> None:
        """Close what is open and remove an incomplete file."""
        if self._audio_packets is not None:
            self._audio_packets.close()
        # Errors are suppressed so as not to hide an earlier one.
        if self._container is not None:
            container, self._container = self._container, None
            with contextlib.suppress(av.error.FFmpegError, OSError):
                container.close()
        with contextlib.suppress(OSError):
            self._temporary.unlink(missing_ok=True)

    def _mux(self, frame: Any) -> None:
        try:
            self._container.mux(self._stream.encode(frame))
        except OSError as error:
            raise storage_error(self.path, error) from error
