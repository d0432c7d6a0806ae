"""Probe a video without decoding it: size, frame count, and the time of every frame.

The packets are demuxed once and only the first frame is decoded, so that probing takes about as long as reading the
file. Results are cached while the file is unchanged.

Times are on the browser's clock (``currentTime``): the file's own timestamps after edit lists, shifted only if a stream
would begin before 0. A video that begins after 0 shows its first frame until then. Where times begin again, as in
recordings that were joined byte for byte, the next part follows the one before. The size is that of a browser
(``videoWidth`` x ``videoHeight``): after rotation and with square pixels. Both are tested against Chromium, frame by
frame.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import av
import av.error
import numpy as np

from ml_backend.core.errors import VideoError
from ml_backend.core.types import Float64Array, IntArray, VideoInfo
from ml_backend.video.container import check_file, demux, open_video

log = logging.getLogger(__name__)
_DAMAGED = "Copy or upload it again, or re-encode what is left: `ffmpeg -i INPUT -c:v libx264 OUTPUT.mp4`."
STANDARD_RATES = tuple(
    Fraction(n, d)
    for n, d in ((24, 1), (24000, 1001), (25, 1), (30, 1), (30000, 1001), (48, 1), (50, 1), (60, 1), (60000, 1001))
)
_SINGLE_FRAME_S = 0.04  # duration of a single frame without a stated one
# A stream without a frame in this many packets has none.
_FIRST_FRAME_PACKETS = 250
# A longer gap between two frames is a damaged timestamp; a constant-rate copy would repeat a frame millions of times.
_MAX_GAP_S = 24 * 3600
# MPEG streams may be cut anywhere, and their clock may jump ahead: like FFmpeg, tolerate this many seconds.
_MPEG_JUMP_S = (-1, 10)
# Where a recording was cut, FFmpeg takes some of the last packets for damaged, though they are whole.
_CUT_PACKETS = 3


class Orientation(NamedTuple):
    """How decoded frames are shown.

    Attributes:
        rotation: degrees clockwise (0, 90, 180, 270) by which they are rotated.
        mirrored: whether they are mirrored left to right before.
        everywhere: whether all browsers agree: not all mirror, or rotate by other angles.
    """

    rotation: int
    mirrored: bool
    everywhere: bool


@dataclass(frozen=True, slots=True, eq=False)
class Scan:
    """Result of one pass over the packets of a video.

    Attributes:
        info: the video's metadata.
        times: ``(frames,)`` float64 seconds, presentation order, browser's clock.
        pts: ``(frames,)`` int64 presentation timestamps in units of ``time_base``, or ``None`` if the file has no
            timestamps that belong to frames.
        time_base: seconds per unit of ``pts``.
        container: FFmpeg's name of the container format, e.g. ``"mov,mp4,m4a,3gp,3g2,mj2"``.
        playback_s: duration in seconds in a browser (``HTMLMediaElement.duration``): unlike ``info.duration`` it counts
            from 0 and includes a longer audio track.
        note: damage of a usable file, else empty.
        has_length: whether the file states its duration.
        orientation: how decoded frames are shown.
        stored_size: as the displayed size, but in the file's own pixels, which need not be square.
        keyframe_interval: maximum number of frames, in decoding order, from one key frame to the next.
        joins: where times begin again: the number of a packet, and what :func:`decode` adds to the timestamps from it
            on, in units of ``time_base``. ``times`` and ``pts`` include it.
    """

    info: VideoInfo
    times: Float64Array
    pts: IntArray | None
    time_base: Fraction
    container: str
    playback_s: float
    note: str
    has_length: bool
    orientation: Orientation
    stored_size: tuple[int, int]
    keyframe_interval: int
    joins: Mapping[int, int]


def probe(path: str | os.PathLike[str]) -> VideoInfo:
    """Return the metadata of a video file.

    ``frames`` is the number of frames that :func:`ml_backend.video.reader.read_frames` yields. A truncated file that
    still has frames is accepted with a logged warning.

    Raises:
        VideoError: the file is missing, a folder, empty, corrupt, text, a playlist, audio only, or has no frames or no
            timestamps.
    """
    return scan(path).info


def frame_times(path: str | os.PathLike[str]) -> Float64Array:
    """Return the presentation time of every frame, ``(frames,)`` float64 seconds on the browser's clock.

    Raises:
        VideoError: as :func:`probe`.
    """
    return scan(path).times


def playback_duration(path: str | os.PathLike[str]) -> float:
    """Return the video's duration in a browser in seconds; see :attr:`Scan.playback_s`.

    Raises:
        VideoError: as :func:`probe`.
    """
    return scan(path).playback_s


def stored_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Return width and height as programs count them that take pixels for square, such as OpenCV and CVAT.

    Raises:
        VideoError: as :func:`probe`.
    """
    return scan(path).stored_size


def scan(path: str | os.PathLike[str]) -> Scan:
    """Scan the packets of a video file, or return the cached result.

    Raises:
        VideoError: as :func:`probe`.
    """
    file = check_file(path)
    status = file.stat()
    return _scan(str(file), status.st_mtime_ns, status.st_size)


# A few results are enough: a job probes, reads and maps the times of one video after the other.
@lru_cache(maxsize=8)
def _scan(path: str, _mtime_ns: int, _size: int) -> Scan:
    file = Path(path)
    (width, height), stored, orientation, pix_fmt = _first_frame(file)
    with open_video(file) as (container, stream):
        tick = Fraction(stream.time_base or Fraction(1, 90_000))
        origin = _origin(container, stream)
        expected = stream.frames
        rate = stream.average_rate or stream.guessed_rate
        demuxed = _demux_packets(container, stream, tick)
        packets, hidden = demuxed.shown, demuxed.hidden
        count = len(packets)
        if count == 0:
            raise VideoError(f"{file.name} has a video stream without frames.", _DAMAGED)
        timestamped = all(pts is not None for pts, _ in packets)
        if timestamped:
            packets.sort()
            stamps = np.array([pts for pts, _ in packets], np.int64)
            times: Float64Array = np.asarray(stamps * float(tick) - float(origin), np.float64)
            # AVI stores only the decoding order; with B-frames its timestamps belong to other frames.
            pts = None if container.format.name == "avi" else stamps
            last = float((packets[-1][1] or 0) * tick)
        else:
            if not rate:
                raise _no_rate_error(file)
            pts, last = None, 1 / float(rate)
            times = np.arange(count, dtype=np.float64) * last
        if count > 1 and times[-1] <= times[0]:
            raise _no_rate_error(file)
        gap = float(np.diff(times).max(initial=0.0))
        if gap > _MAX_GAP_S:
            raise VideoError(
                f"{file.name} has damaged timestamps: one frame comes {gap / 3600:.0f} hours after the one before.",
                "Give its frames new times, e.g. `ffmpeg -i INPUT -vf setpts=N/25/TB -r 25 OUTPUT.mp4`.",
            )
        variable = _is_variable(times, float(tick))
        interval = float(np.median(np.diff(times))) if count > 1 else 0.0
        if not 0 < last <= 10 * max(interval, 1e-3):
            # The stated duration of the last frame is often missing or wrong.
            last = interval or (1 / float(rate) if rate else _SINGLE_FRAME_S)
        duration = float(times[-1] - times[0]) + last
        fps = count / duration
        if not variable and count > 1:
            # Containers round times, Matroska to 1 ms: a standard rate that fits is more accurate.
            standard = _standard_rate(count, float(times[-1] - times[0]), float(tick), rate)
            if standard is not None:
                fps, duration = float(standard), count / float(standard)
        times.setflags(write=False)
        note = ""
        if demuxed.broken or (count + hidden < expected and container.format.name.startswith("mov")):
            total = f" of {expected - hidden}" if expected > count + hidden else ""
            note = f"{file.name} is damaged or truncated: {count}{total} frames can be used."
            log.warning("%s %s", note, _DAMAGED)
        info = VideoInfo(
            path=path,
            width=width,
            height=height,
            fps=fps,
            frames=count,
            duration=duration,
            codec=stream.codec_context.codec.canonical_name,
            pix_fmt=pix_fmt,
            rotation=orientation.rotation,
            variable_frame_rate=variable,
            has_audio=bool(container.streams.audio),
        )
        playback = float(times[-1]) + last
        if container.duration and not demuxed.joins:
            playback = container.duration / av.time_base
        return Scan(
            info,
            times,
            pts,
            tick,
            container=container.format.name,
            playback_s=playback,
            note=note,
            has_length=bool(container.duration),
            orientation=orientation,
            stored_size=stored,
            keyframe_interval=demuxed.keyframe_interval,
            joins=demuxed.joins,
        )


def _first_frame(file: Path) -> tuple[tuple[int, int], tuple[int, int], Orientation, str]:
    """Return displayed and stored size, orientation and pixel format; only decoding a frame proves that it works."""
    with open_video(file) as (container, stream):
        for frame in decode(container, stream, max_packets=_FIRST_FRAME_PACKETS):
            orientation = _orientation(frame)
            size, rotation = (frame.width, frame.height), orientation.rotation
            displayed = displayed_size(size, rotation, stream.sample_aspect_ratio)
            return displayed, displayed_size(size, rotation, None), orientation, frame.format.name
        name = stream.codec_context.name
    raise VideoError(f"No frame of {file.name} can be decoded ({name}): it is corrupt or has no frames.", _DAMAGED)


def decode(
    container: Any, stream: Any, max_packets: int | None = None, joins: Mapping[int, int] | None = None
) -> Iterator[Any]:
    """Yield decoded PyAV frames in presentation order; skip damaged packets and log their number.

    Args:
        joins: of the :class:`Scan`, if ``container`` is at its beginning.
    """
    skipped, shift, joins = 0, 0, joins or {}
    packets = demux(container, stream)
    for number in range(max_packets if max_packets is not None else 1 << 62):
        try:
            packet = next(packets, None)
        except av.error.FFmpegError as error:
            log.warning("%s cannot be read to its end: %s", Path(container.name).name, error)
            break
        if packet is None:
            break
        shift = joins.get(number, shift)
        if packet.is_corrupt and joins.keys().isdisjoint(range(number + 1, number + 1 + _CUT_PACKETS)):
            continue
        if shift and packet.pts is not None:
            packet.pts += shift
        try:
            frames = stream.decode(packet)
        except av.error.EOFError:
            break
        except av.error.FFmpegError as error:
            skipped += 1
            if skipped == 1:
                log.warning(
                    "%s: packet %d is damaged, or its frame is too large: %s", Path(container.name).name, number, error
                )
            continue
        yield from frames
    if skipped > 1:
        log.warning("%s: %d damaged packets were skipped", Path(container.name).name, skipped)


def _orientation(frame: Any) -> Orientation:
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return Orientation(0, False, True)
    # Pixel (x, y) is shown at (ax + cy, bx + dy).
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
    mirrored = a * d - b * c < 0
    degrees = math.degrees(math.atan2(-b, -a) if mirrored else math.atan2(b, a))
    turns = round(degrees / 90)
    return Orientation(turns * 90 % 360, mirrored, not mirrored and abs(degrees - turns * 90) < 1)


def displayed_size(stored: tuple[int, int], rotation: int, aspect: Fraction | None) -> tuple[int, int]:
    """Return the size in square pixels after rotation; like browsers, it only stretches and never shrinks."""
    width, height = stored
    if aspect and aspect > 0 and aspect != 1:
        if aspect > 1:
            width = round(width * aspect)
        else:
            height = round(height / aspect)
    return (height, width) if rotation in (90, 270) else (width, height)


def _origin(container: Any, stream: Any) -> Fraction:
    """Return the browser's 0 in seconds of the file's clock: 0, or the earliest start if that is negative."""
    starts = [Fraction(0)]
    for candidate in (stream, *container.streams.audio):
        if candidate.start_time is not None and candidate.time_base:
            starts.append(Fraction(candidate.start_time) * candidate.time_base)
    return min(starts)


@dataclass(slots=True)
class _Packets:
    """Summary of a stream's packets.

    Attributes:
        shown: ``(pts, duration)`` of each packet that is shown; times are those after ``joins``.
        hidden: number of packets that an edit list hides: they only serve to decode later ones.
        broken: whether packets are damaged, or demuxing ended early.
        keyframe_interval: maximum number of packets from one key frame to the next.
        joins: as in :class:`Scan`.
    """

    shown: list[tuple[Any, int]] = field(default_factory=list)
    hidden: int = 0
    broken: bool = False
    keyframe_interval: int = 0
    joins: dict[int, int] = field(default_factory=dict)


def _demux_packets(container: Any, stream: Any, tick: Fraction) -> _Packets:
    packets, since_keyframe = _Packets(), 0
    mpeg = container.format.name.startswith("mpeg")
    # The parts between joins, each with the number of its first packet. Numbers of damaged packets, which are not shown
    # unless a join turns out to be their damage.
    parts: list[tuple[int, list[tuple[Any, int]]]] = [(0, [])]
    damaged: list[tuple[int, tuple[Any, int]]] = []
    latest, dts = None, None
    try:
        for number, packet in enumerate(demux(container, stream)):
            if packet.size == 0:
                continue
            # Other pictures come out of order, but none that was coded before a key frame is shown after it.
            stamp = None if packet.is_discard else packet.pts
            joined = latest is not None and stamp is not None and packet.is_keyframe and stamp < latest
            if mpeg and dts is not None and packet.dts is not None:
                joined |= not _MPEG_JUMP_S[0] <= (packet.dts - dts) * tick <= _MPEG_JUMP_S[1]
            if joined:
                parts[-1][1].extend(times for at, times in damaged if at >= number - _CUT_PACKETS)
                damaged = [(at, times) for at, times in damaged if at < number - _CUT_PACKETS]
                parts.append((number, []))
                latest = None
            dts = packet.dts if packet.dts is not None else dts
            if stamp is not None:
                latest = stamp if latest is None else max(latest, stamp)
            if packet.is_corrupt:
                damaged.append((number, (packet.pts, packet.duration or 0)))
                continue
            since_keyframe = 1 if packet.is_keyframe else since_keyframe + 1
            packets.keyframe_interval = max(packets.keyframe_interval, since_keyframe)
            if packet.is_discard:
                packets.hidden += 1
            else:
                parts[-1][1].append((packet.pts, packet.duration or 0))
    except av.error.FFmpegError as error:
        log.warning("%s cannot be read to its end: %s", Path(container.name).name, error)
        packets.broken = True
    packets.broken |= bool(damaged)
    _join(packets, parts)
    return packets


def _join(packets: _Packets, parts: list[tuple[int, list[tuple[Any, int]]]]) -> None:
    """Let the times of each part follow those of the part before."""
    end: int | None = None
    for number, shown in parts:
        stamps = [pts for pts, _ in shown if pts is not None]
        if not stamps:
            packets.shown += shown
            continue
        shift = 0 if end is None else end - min(stamps)
        if number:
            packets.joins[number] = shift
        packets.shown += [(None if pts is None else pts + shift, duration) for pts, duration in shown]
        steps = np.diff(np.unique(stamps))
        end = max(stamps) + shift + (int(np.median(steps)) if len(steps) else shown[-1][1])


def _standard_rate(count: int, span: float, tick: float, stated: Fraction | None) -> Fraction | None:
    """Return the standard rate at which ``count`` frames begin within ``span`` seconds, up to the rounding of times."""

    def error(rate: Fraction) -> float:
        return abs((count - 1) / float(rate) - span)

    fitting = [rate for rate in STANDARD_RATES if error(rate) <= 1.5 * tick]
    # In a short clip 30 and 29.97 both fit: then the file's own statement decides.
    return stated if stated in fitting else min(fitting, key=error, default=None)


def _is_variable(times: Float64Array, tick: float) -> bool:
    """Return whether frames leave a regular grid: intervals vary by over 10 %, or drift exceeds half an interval."""
    if len(times) < 3:
        return False
    steps = np.diff(times)
    interval = float(np.median(steps))
    if bool(np.any(np.abs(steps - interval) > 2 * tick + 0.1 * interval)):
        return True
    grid = np.linspace(times[0], times[-1], len(times))
    return bool(np.any(np.abs(times - grid) > 0.5 * interval))


def _no_rate_error(file: Path) -> VideoError:
    return VideoError(
        f"{file.name} has no frame rate: its frames have no usable timestamps.",
        "Re-encode it with a frame rate, e.g. `ffmpeg -r 25 -i INPUT -c:v libx264 OUTPUT.mp4`.",
    )
