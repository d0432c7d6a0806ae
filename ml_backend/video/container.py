"""Open untrusted video files safely: only regular local files in self-contained formats."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import av.error

from ml_backend.core.errors import VideoError

# Demuxers that read nothing but the file itself. Playlists (hls, concat, dash, sdp, ...) are excluded on purpose: an
# uploaded playlist could make the server read other files or connect to other hosts.
SAFE_FORMATS = (
    "mov", "mp4", "matroska", "webm", "avi", "mpegts", "mpeg", "mpegvideo", "flv", "asf", "ogg", "mxf", "nut",
    "gif", "ivf", "dv", "wtv", "h264", "hevc", "m4v", "mjpeg", "obu", "mp3", "wav", "flac", "aac", "aiff",
)  # fmt: skip
# Larger frames are a mistake or an attack: a BGR frame of this size already takes 200 MB (8K video has 33 MP).
MAX_PIXELS = 67_000_000
# The size may change in mid-stream, as that of calls does with the line. Decoders keep a dozen frames and more, so that
# it must not grow beyond 4K, or what the file states: a file of 0.4 MB took 1.6 GB.
GROWN_PIXELS = 10_000_000
_BLOCK = 128
# Two for each fragment of a recording.
_MAX_BOXES = 100_000
_REENCODE = "Re-encode it, e.g. `ffmpeg -i INPUT -c:v libx264 -pix_fmt yuv420p -r 30 OUTPUT.mp4`."
_ANOTHER = "Provide a video file, e.g. MP4 with H.264."


def check_file(path: str | os.PathLike[str]) -> Path:
    """Return the absolute path of a readable, non-empty regular file.

    Raises:
        VideoError: it is missing, empty, unreadable, or not a regular file.
    """
    file = Path(path).expanduser().absolute()
    try:
        status = file.stat()
        if stat.S_ISDIR(status.st_mode):
            raise VideoError(f"{file} is a folder, not a video file.", "Choose a file in it.")
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


def _describe_open_error(file: Path, error: Exception) -> VideoError:
    with file.open("rb") as handle:
        head = handle.read(4096)
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free"):
        return VideoError(
            f"{file.name} is an MP4 without a usable index: the recording or upload is incomplete.",
            "Copy or upload it again, or repair the recording first (e.g. with untrunc).",
        )
    if head.lstrip(b"\xef\xbb\xbf \r\n\t")[:8].startswith((b"#EXTM3U", b"ffconcat", b"v=0", b"<?xml", b"<MPD")):
        return VideoError(f"{file.name} is a playlist that refers to other files, which is not allowed.", _ANOTHER)
    if isinstance(error, av.error.ArgumentError):
        return VideoError(f"{file.name} is not in a supported video format.", _ANOTHER)
    if b"\0" not in head:
        return VideoError(f"{file.name} is a text file, not a video.", _ANOTHER)
    return VideoError(f"{file.name} is not a video, or it is corrupt ({error.__class__.__name__}).", _ANOTHER)


@contextmanager
def open_video(path: str | os.PathLike[str]) -> Iterator[tuple[Any, Any]]:
    """Open a file and select the video stream that browsers play; cover images are none.

    Yields:
        ``(container, stream)`` of PyAV.

    Raises:
        VideoError: the file is not a usable video.
    """
    file = check_file(path)
    options = {"protocol_whitelist": "file", "format_whitelist": ",".join(SAFE_FORMATS)}
    try:
        # An absolute path cannot be parsed as a URL. "replace": metadata in a wrong encoding must not fail the file.
        container = av.open(str(file), "r", container_options=options, metadata_errors="replace")
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise _describe_open_error(file, error) from error
    try:
        yield container, select_stream(file.name, container)
    finally:
        container.close()


def select_stream(name: str, container: Any) -> Any:
    """Return the video stream that browsers play; cover images are none.

    Args:
        name: of the file or camera, for messages.

    Raises:
        VideoError: there is none, or it cannot be decoded.
    """
    streams = [s for s in container.streams.video if not s.disposition & s.disposition.attached_pic]
    if not streams:
        if container.streams.audio:
            raise VideoError(f"{name} has only audio.", _ANOTHER)
        raise VideoError(f"{name} has no video stream.", _ANOTHER)
    stream = played(container, streams)
    if stream.codec_context is None:
        raise VideoError(f"{name} uses a video codec that cannot be decoded here.", _REENCODE)
    width, height = stream.codec_context.width, stream.codec_context.height
    if width * height > MAX_PIXELS:
        raise VideoError(f"{name} has frames of {width}x{height} pixels, which is too large.", "Scale it down first.")
    # Decoders count whole blocks.
    stated = (width + _BLOCK) * (height + _BLOCK) if width and height else MAX_PIXELS
    stream.codec_context.options = {"max_pixels": str(max(stated, GROWN_PIXELS))}
    return stream


def played(container: Any, streams: Sequence[Any]) -> Any:
    """Return the stream that browsers play, if there is one: the first; of an MP4 the first enabled one."""
    first = streams[0] if streams else None
    if not container.format.name.startswith("mov"):
        return first
    return next((stream for stream in streams if stream.disposition & stream.disposition.default), first)


def demux(container: Any, stream: Any) -> Iterator[Any]:
    """Yield the packets of a stream, at the end an empty one that flushes the decoder."""
    try:
        yield from container.demux(stream)
    except IndexError:
        # PyAV, at the end of a file in which another stream began late: what it yields for the streams that it knows
        # is through, and it goes on beyond them.
        return


def mp4_layout(path: Path) -> tuple[bool, bool]:
    """Return whether an MP4's index (``moov`` box) is at its end, and whether the file is fragmented."""
    boxes = list(_mp4_boxes(path))
    moov = boxes.index(b"moov") if b"moov" in boxes else len(boxes)
    mdat = boxes.index(b"mdat") if b"mdat" in boxes else len(boxes)
    return mdat < moov, b"moof" in boxes


def _mp4_boxes(path: Path) -> Iterator[bytes]:
    """Yield the types of the outer boxes of an MP4."""
    with path.open("rb") as handle:
        end = handle.seek(0, os.SEEK_END)
        position = 0
        for _ in range(_MAX_BOXES):
            if position + 8 > end:
                return
            handle.seek(position)
            header = handle.read(16)
            size, kind = int.from_bytes(header[:4], "big"), header[4:8]
            if size == 1:
                size = int.from_bytes(header[8:16], "big")
            yield kind
            if size < 8:  # 0: the box extends to the end of the file
                return
            position += size


def has_second_recording(path: Path, container: str) -> bool:
    """Return whether another file was appended byte for byte to an MP4 or FLV, of which players read only the first.

    Args:
        container: FFmpeg's name of the format.
    """
    if container.startswith("mov"):
        return any(count > 1 for kind, count in Counter(_mp4_boxes(path)).items() if kind in (b"ftyp", b"moov"))
    if container != "flv":
        return False
    with path.open("rb") as handle:
        position = 13  # the header, and the size of no tag before
        while True:
            handle.seek(position)
            tag = handle.read(11)
            if len(tag) < 11 or tag[0] not in (8, 9, 18):  # audio, video, metadata
                return tag.startswith(b"FLV")
            position += len(tag) + int.from_bytes(tag[1:4], "big") + 4
