"""What is known of a video before its pixels are decoded: size, frame count, every frame's time.

The packets are demuxed once, none but the first frame is decoded, so that an hour of video takes about as long as
reading the file. Results are remembered while the file stays unchanged.

Times are on the browser's clock (``currentTime``): the file's own timestamps after edit lists, moved only where a
stream would begin before 0. A video that begins later than 0 shows its first frame until then. The size is the one
that a browser shows (``videoWidth`` x ``videoHeight``): after rotation and with square pixels. All this has been
compared with Chromium, frame by frame.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np
import numpy.typing as npt

from ml_backend.core.errors import VideoError
from ml_backend.core.types import IntArray, VideoInfo
from ml_backend.video.container import check_file, open_video

logger = logging.getLogger(__name__)
TimesArray = npt.NDArray[np.float64]
_DAMAGED = "Copy or upload it again, or re-encode what is left: `ffmpeg -i INPUT -c:v libx264 OUTPUT.mp4`."
STANDARD_RATES = tuple(
    Fraction(n, d)
    for n, d in ((24, 1), (24000, 1001), (25, 1), (30, 1), (30000, 1001), (48, 1), (50, 1), (60, 1), (60000, 1001))
)
_SINGLE_FRAME_S = 0.04  # how long the only frame of a file is shown that does not say
# A stream that gives no picture in its first packets is not going to.
_FIRST_FRAME_PACKETS = 250


@dataclass(frozen=True, slots=True, eq=False)
class Scan:
    """Everything that one pass over the packets tells.

    Attributes:
        info: the summary for the rest of the program.
        times: ``(frames,)`` float64 seconds, presentation order, browser's clock.
        pts: ``(frames,)`` int64 presentation timestamps in ``time_base`` units, or ``None`` where the file has
            none that are tied to pictures.
        time_base: seconds per unit of ``pts``.
        container: FFmpeg's name of the container format, e.g. ``"mov,mp4,m4a,3gp,3g2,mj2"``.
        playback_s: length in seconds that a browser shows (``HTMLMediaElement.duration``): other than
            ``info.duration`` it counts from 0 and includes a longer sound track.
        note: what is wrong with a file that is usable nevertheless, else empty.
        key_gap: most frames, in decoding order, from one key frame to the next.
    """

    info: VideoInfo
    times: TimesArray
    pts: IntArray | None
    time_base: Fraction
    container: str
    playback_s: float
    note: str
    key_gap: int


def probe(path: str | os.PathLike[str]) -> VideoInfo:
    """Facts about a video file.

    ``frames`` is what :func:`ml_backend.video.reader.read_frames` yields. A file that was cut off but still has
    frames is accepted with a logged warning.

    Raises:
        VideoError: missing, a folder, empty, corrupt, text, a playlist, audio only, without frames or without times.
    """
    return scan(path).info


def frame_times(path: str | os.PathLike[str]) -> TimesArray:
    """``(frames,)`` float64: presentation time of every frame in seconds, in display order, on the browser's clock.

    Raises:
        VideoError: as :func:`probe`.
    """
    return scan(path).times


def playback_duration(path: str | os.PathLike[str]) -> float:
    """Seconds that a browser gives as the video's ``duration``; see :attr:`Scan.playback_s`.

    Raises:
        VideoError: as :func:`probe`.
    """
    return scan(path).playback_s


def scan(path: str | os.PathLike[str]) -> Scan:
    """All facts about a video file; see :class:`Scan`.

    Raises:
        VideoError: as :func:`probe`.
    """
    file = check_file(path)
    status = file.stat()
    return _scan(str(file), status.st_mtime_ns, status.st_size)


# Probing, reading and mapping times of one video follow each other; a few results are enough.
@lru_cache(maxsize=8)
def _scan(path: str, _mtime_ns: int, _size: int) -> Scan:
    file = Path(path)
    (width, height), rotation, pix_fmt = _first_frame(file)
    with open_video(file) as (container, stream):
        tick = Fraction(stream.time_base or Fraction(1, 90_000))
        origin = _origin(container, stream)
        expected = stream.frames
        rate = stream.average_rate or stream.guessed_rate
        read = _packets(container, stream)
        packets, hidden = read.shown, read.hidden
        count = len(packets)
        if count == 0:
            raise VideoError(f"{file.name} holds a video stream without frames.", _DAMAGED)
        timestamped = all(pts is not None for pts, _ in packets)
        if timestamped:
            packets.sort()
            stamps = np.array([pts for pts, _ in packets], np.int64)
            times: TimesArray = np.asarray(stamps * float(tick) - float(origin), np.float64)
            # AVI knows only the decoding order; with B-frames its timestamps belong to other pictures.
            pts = None if container.format.name == "avi" else stamps
            last = float((packets[-1][1] or 0) * tick)
        else:
            if not rate:
                raise _no_rate(file)
            pts, last = None, 1 / float(rate)
            times = np.arange(count, dtype=np.float64) * last
        if count > 1 and times[-1] <= times[0]:
            raise _no_rate(file)
        variable = _is_variable(times, float(tick))
        usual = float(np.median(np.diff(times))) if count > 1 else 0.0
        if not 0 < last <= 10 * max(usual, 1e-3):
            # The last frame's own duration is often missing or nonsense.
            last = usual or (1 / float(rate) if rate else _SINGLE_FRAME_S)
        duration = float(times[-1] - times[0]) + last
        fps = count / duration
        if not variable and count > 1:
            # Containers round times, Matroska to 1 ms: the rate that fits them all is the better figure.
            standard = _standard_rate(count, float(times[-1] - times[0]), float(tick), rate)
            if standard is not None:
                fps, duration = float(standard), count / float(standard)
        times.setflags(write=False)
        note = ""
        if read.broken or (count + hidden < expected and container.format.name.startswith("mov")):
            total = f" of {expected - hidden}" if expected > count + hidden else ""
            note = f"{file.name} is damaged or cut off: {count}{total} frames can be used."
            logger.warning("%s %s", note, _DAMAGED)
        info = VideoInfo(
            path=path,
            width=width,
            height=height,
            fps=fps,
            frames=count,
            duration=duration,
            codec=stream.codec_context.codec.canonical_name,
            pix_fmt=pix_fmt,
            rotation=rotation,
            variable_frame_rate=variable,
            has_audio=bool(container.streams.audio),
        )
        playback = container.duration / av.time_base if container.duration else float(times[-1]) + last
        return Scan(info, times, pts, tick, container.format.name, playback, note, read.key_gap)


def _first_frame(file: Path) -> tuple[tuple[int, int], int, str]:
    """Displayed size, rotation and pixel format of a frame: decoding one is the only proof that the codec works."""
    with open_video(file) as (container, stream):
        for frame in decode(container, stream, limit=_FIRST_FRAME_PACKETS):
            rotation = clockwise(frame)
            size = displayed_size((frame.width, frame.height), rotation, stream.sample_aspect_ratio)
            return size, rotation, frame.format.name
        name = stream.codec_context.name
    raise VideoError(f"No frame of {file.name} can be decoded ({name}): it is corrupt or holds no frames.", _DAMAGED)


def decode(container: Any, stream: Any, limit: int | None = None) -> Iterator[Any]:
    """Decoded PyAV frames in presentation order; damaged packets are skipped and counted in the log.

    Args:
        limit: give up after so many packets.
    """
    skipped = 0
    packets = container.demux(stream)
    for number in range(limit if limit is not None else 1 << 62):
        try:
            packet = next(packets, None)
        except av.error.FFmpegError as error:
            logger.warning("%s cannot be read to its end: %s", Path(container.name).name, error)
            break
        if packet is None:
            break
        if packet.is_corrupt:
            continue
        try:
            frames = stream.decode(packet)
        except av.error.EOFError:
            break
        except av.error.FFmpegError as error:
            skipped += 1
            if skipped == 1:
                logger.warning("%s: packet %d is damaged: %s", Path(container.name).name, number, error)
            continue
        yield from frames
    if skipped > 1:
        logger.warning("%s: %d damaged packets were skipped", Path(container.name).name, skipped)


def clockwise(frame: Any) -> int:
    """Degrees clockwise (0, 90, 180, 270) by which a decoded frame must be turned for display."""
    degrees: int = -round(frame.rotation / 90) * 90 % 360
    return degrees


def displayed_size(stored: tuple[int, int], rotation: int, aspect: Fraction | None) -> tuple[int, int]:
    """Size in square pixels after rotation; as browsers do, the picture is stretched, never shrunk."""
    width, height = stored
    if aspect and aspect > 0 and aspect != 1:
        if aspect > 1:
            width = round(width * aspect)
        else:
            height = round(height / aspect)
    return (height, width) if rotation in (90, 270) else (width, height)


def _origin(container: Any, stream: Any) -> Fraction:
    """Seconds on the file's clock that are 0 on the browser's: 0, or the earliest start where that is negative."""
    starts = [Fraction(0)]
    for each in (stream, *container.streams.audio):
        if each.start_time is not None and each.time_base:
            starts.append(Fraction(each.start_time) * each.time_base)
    return min(starts)


@dataclass(slots=True)
class _Packets:
    """What the packets tell.

    Attributes:
        shown: ``(pts, duration)`` of each that is shown.
        hidden: number of those that an edit list hides, as they only serve to decode later ones: the decoder drops
            their pictures.
        broken: whether the file ends in damage.
        key_gap: most packets from one key frame to the next.
    """

    shown: list[tuple[Any, int]] = field(default_factory=list)
    hidden: int = 0
    broken: bool = False
    key_gap: int = 0


def _packets(container: Any, stream: Any) -> _Packets:
    found, since_key = _Packets(), 0
    try:
        for packet in container.demux(stream):
            if packet.size == 0:
                continue
            if packet.is_corrupt:
                found.broken = True
                break
            since_key = 1 if packet.is_keyframe else since_key + 1
            found.key_gap = max(found.key_gap, since_key)
            if packet.is_discard:
                found.hidden += 1
            else:
                found.shown.append((packet.pts, packet.duration or 0))
    except av.error.FFmpegError as error:
        logger.warning("%s cannot be read to its end: %s", Path(container.name).name, error)
        found.broken = True
    return found


def _standard_rate(count: int, span: float, tick: float, stated: Fraction | None) -> Fraction | None:
    """The usual rate at which ``count`` frames begin within ``span`` seconds, give or take the rounding of times."""

    def error(rate: Fraction) -> float:
        return abs((count - 1) / float(rate) - span)

    fitting = [rate for rate in STANDARD_RATES if error(rate) <= 1.5 * tick]
    # In a short clip 30 and 29.97 both fit: then the file's own word counts.
    return stated if stated in fitting else min(fitting, key=error, default=None)


def _is_variable(times: TimesArray, tick: float) -> bool:
    """Whether frames leave a regular grid: intervals differ by over 10 %, or the drift exceeds half an interval."""
    if len(times) < 3:
        return False
    steps = np.diff(times)
    usual = float(np.median(steps))
    if bool(np.any(np.abs(steps - usual) > 2 * tick + 0.1 * usual)):
        return True
    grid = np.linspace(times[0], times[-1], len(times))
    return bool(np.any(np.abs(times - grid) > 0.5 * usual))


def _no_rate(file: Path) -> VideoError:
    return VideoError(
        f"{file.name} has no frame rate: its frames carry no usable times.",
        "Re-encode it with a frame rate, e.g. `ffmpeg -r 25 -i INPUT -c:v libx264 OUTPUT.mp4`.",
    )
