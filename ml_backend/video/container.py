"""Opening untrusted video files safely: only regular local files, only self-contained formats."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import av.error

from ml_backend.core.errors import VideoError

# Demuxers that read nothing but the file itself. Playlists (hls, concat, dash, sdp, ...) are left out on purpose:
# an upload that is one could make the server read other files or call other hosts.
SAFE_FORMATS = (
    "mov", "mp4", "matroska", "webm", "avi", "mpegts", "mpeg", "mpegvideo", "flv", "asf", "ogg", "mxf", "nut",
    "gif", "ivf", "dv", "wtv", "h264", "hevc", "m4v", "mjpeg", "obu", "mp3", "wav", "flac", "aac", "aiff",
)  # fmt: skip
# Larger pictures are a mistake or an attack: one BGR frame of this size already takes 200 MB (8K video has 33 MP).
MAX_PIXELS = 67_000_000
_REENCODE = "Re-encode it, e.g. `ffmpeg -i INPUT -c:v libx264 -pix_fmt yuv420p -r 30 OUTPUT.mp4`."
_ANOTHER = "Provide a video file, e.g. MP4 with H.264."


def check_file(path: str | os.PathLike[str]) -> Path:
    """Absolute path of a readable, non-empty regular file.

    Raises:
        VideoError: naming the cause and the hint.
    """
    file = Path(path).expanduser().absolute()
    try:
        status = file.stat()
        if stat.S_ISDIR(status.st_mode):
            raise VideoError(f"{file} is a folder, not a video file.", "Name one file in it.")
        if not stat.S_ISREG(status.st_mode):
            raise VideoError(f"{file} is not a regular file.", _ANOTHER)
        if status.st_size == 0:
            raise VideoError(f"{file} is empty (0 bytes).", "Copy or upload it again.")
        with file.open("rb"):
            pass
    except (FileNotFoundError, NotADirectoryError) as error:
        raise VideoError(f"{file} does not exist.", "Check the path.") from error
    except PermissionError as error:
        raise VideoError(f"{file} cannot be read: permission denied.", "Give this user read access.") from error
    except (OSError, ValueError) as error:
        raise VideoError(f"{file} cannot be read: {error}.", "Check the path and the disk.") from error
    return file


def _unreadable(file: Path, error: Exception) -> VideoError:
    with file.open("rb") as handle:
        head = handle.read(4096)
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free"):
        return VideoError(
            f"{file.name} is an MP4 without a usable index: the recording or the upload was cut off.",
            "Copy or upload it again, or repair the recording first (e.g. with untrunc).",
        )
    if head.lstrip(b"\xef\xbb\xbf \r\n\t")[:8].startswith((b"#EXTM3U", b"ffconcat", b"v=0", b"<?xml", b"<MPD")):
        return VideoError(f"{file.name} is a playlist that refers to other files, which is not allowed.", _ANOTHER)
    if isinstance(error, av.error.ArgumentError):
        return VideoError(f"{file.name} is not in a supported video format.", _ANOTHER)
    if b"\0" not in head:
        return VideoError(f"{file.name} is not a video: it holds text.", _ANOTHER)
    return VideoError(f"{file.name} is not a video, or it is corrupt ({error.__class__.__name__}).", _ANOTHER)


@contextmanager
def open_video(path: str | os.PathLike[str]) -> Iterator[tuple[Any, Any]]:
    """Open a file and choose its first real video stream (cover pictures do not count).

    Yields:
        ``(container, stream)`` of PyAV; the other streams are discarded by the demuxer.

    Raises:
        VideoError: not a usable video; the message names the cause, ``hint`` what to do.
    """
    file = check_file(path)
    options = {"protocol_whitelist": "file", "format_whitelist": ",".join(SAFE_FORMATS)}
    try:
        # An absolute path can never be taken for a URL. Metadata in strange encodings must not fail the file.
        container = av.open(str(file), "r", container_options=options, metadata_errors="replace")
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise _unreadable(file, error) from error
    try:
        yield container, _choose(file, container)
    finally:
        container.close()


def _choose(file: Path, container: Any) -> Any:
    streams = [s for s in container.streams.video if not s.disposition & s.disposition.attached_pic]
    if not streams:
        if container.streams.audio:
            raise VideoError(f"{file.name} holds only audio.", _ANOTHER)
        raise VideoError(f"{file.name} holds no video stream.", _ANOTHER)
    stream = streams[0]
    if stream.codec_context is None:
        raise VideoError(f"{file.name} uses a video codec that cannot be decoded here.", _REENCODE)
    if stream.codec_context.width * stream.codec_context.height > MAX_PIXELS:
        size = f"{stream.codec_context.width}x{stream.codec_context.height}"
        raise VideoError(f"{file.name} has pictures of {size} pixels, which is too large.", "Scale it down first.")
    return stream


def mp4_layout(path: Path) -> tuple[bool, bool]:
    """Whether an MP4's index (``moov`` box) is at its end, and whether it is fragmented."""
    order: list[bytes] = []
    with path.open("rb") as handle:
        end = handle.seek(0, os.SEEK_END)
        position = 0
        while position + 8 <= end and len(order) < 1000:
            handle.seek(position)
            header = handle.read(16)
            size, kind = int.from_bytes(header[:4], "big"), header[4:8]
            if size == 1:
                size = int.from_bytes(header[8:16], "big")
            order.append(kind)
            if kind == b"moof" or size < 8:  # size 0: this box reaches to the end of the file
                break
            position += size
    moov = order.index(b"moov") if b"moov" in order else len(order)
    mdat = order.index(b"mdat") if b"mdat" in order else len(order)
    return mdat < moov, b"moof" in order
