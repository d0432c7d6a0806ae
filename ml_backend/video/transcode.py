"""Make browser-playable copies of videos that browsers cannot play or step through exactly.

A file is kept if it is H.264 8-bit 4:2:0 (or VP8, VP9, AV1) at a constant frame rate in an MP4 with its index in front,
or in WebM, with every frame within the stated duration. Rotation is fine: browsers apply it, but not all mirror. If
only the container is at fault, the video packets are copied; otherwise the copy is H.264, upright, in square pixels.
"""

from __future__ import annotations

import heapq
import logging
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
import av.error
import numpy as np

from ml_backend.core.errors import VideoError
from ml_backend.core.files import file_sha256, storage_error
from ml_backend.core.types import Image, Progress, VideoInfo
from ml_backend.video.audio import AudioTrack, add_audio
from ml_backend.video.container import demux, has_second_recording, mp4_layout, open_video
from ml_backend.video.probe import STANDARD_RATES, Scan, scan
from ml_backend.video.reader import read_frames
from ml_backend.video.writer import VideoWriter

log = logging.getLogger(__name__)

# What Chromium, Firefox and Safari all decode without special hardware.
_PLAYABLE = {
    "h264": {"yuv420p", "yuvj420p"},
    "vp8": {"yuv420p"},
    "vp9": {"yuv420p"},
    "av1": {"yuv420p", "yuv420p10le"},
}
# A higher frame rate does not help annotation, and a burst of close timestamps must not multiply the file.
_MAX_RATE = Fraction(60)
_RECIPE = 1  # part of the mark in each copy: raise it to have earlier copies made again


@dataclass(frozen=True, slots=True)
class TranscodePlan:
    """What to do with a file: keep it, copy its packets into an MP4, or encode it.

    Attributes:
        reason: why browsers cannot play or step through the file; empty if they can.
    """

    action: Literal["keep", "remux", "encode"]
    reason: str = ""


def plan_transcode(path: str | os.PathLike[str]) -> TranscodePlan:
    """Decide what :func:`transcode` does with a file.

    Raises:
        VideoError: as :func:`~ml_backend.video.probe.probe`, or a second recording follows that nothing can read.
    """
    facts = scan(path)
    info = facts.info
    if has_second_recording(Path(path), facts.container):
        raise VideoError(
            f"{Path(path).name} is several recordings, joined byte for byte: of such a file only the first is read.",
            "Join them with a program that rewrites the container, e.g. `ffmpeg -f concat -i LIST -c copy OUTPUT.mp4`; "
            "to import the first alone, `ffmpeg -i INPUT -c copy OUTPUT.mp4`.",
        )
    if info.codec not in _PLAYABLE:
        return TranscodePlan("encode", f"browsers do not play {info.codec}")
    if info.pix_fmt not in _PLAYABLE[info.codec]:
        return TranscodePlan("encode", f"not every browser plays {info.codec} in {info.pix_fmt}")
    if info.variable_frame_rate:
        return TranscodePlan("encode", "its frame rate varies")
    if not facts.orientation.everywhere:
        return TranscodePlan("encode", "not every browser mirrors it, or turns it by its angle")
    if facts.joins:
        return TranscodePlan("encode", "its times begin again in the middle")
    reason = _container_fault(Path(path), facts)
    if not reason:
        return TranscodePlan("keep")
    # MP4 cannot hold VP8, and AVI has no presentation times.
    return TranscodePlan("encode" if info.codec == "vp8" or facts.container == "avi" else "remux", reason)


def _container_fault(path: Path, facts: Scan) -> str:
    suffix = path.suffix.lower()
    if facts.container.startswith("mov"):
        if suffix == ".m4v":
            return "Label Studio does not accept *.m4v files"
        if suffix != ".mp4":
            return f"it is an MP4 named *{suffix}" if suffix != ".mov" else "not every browser plays QuickTime"
        index_at_end, fragmented = mp4_layout(path)
        if fragmented:
            return "it is fragmented, which makes browsers seek to wrong frames"
        if index_at_end:
            return "its index is at the end, which delays its start over a network"
    elif not (facts.container.startswith("matroska") and suffix == ".webm" and facts.info.codec != "h264"):
        return f"browsers do not play this container ({facts.container.split(',')[0]})"
    if facts.note:
        return "it is damaged or truncated"
    if not facts.has_length:
        return "it does not state its length"
    half = 0.5 / facts.info.fps
    if facts.times[-1] > facts.playback_s - 0.1 * half:
        return "its last frames are after its stated end"
    if facts.times[0] > half and not facts.info.has_audio:
        return "its first frame is not at 0"
    return ""


def transcode(path: str | os.PathLike[str], out: str | os.PathLike[str], progress: Progress | None = None) -> VideoInfo:
    """Make a copy that every browser plays: H.264, or the original packets if they are playable, in MP4.

    The copy starts at 0 with the first frame and has a constant frame rate: the original one or, for a variable rate,
    that of the median interval, with longer frames repeated. Audio that MP4 cannot hold is encoded as AAC. The copy is
    written atomically and marked with the hash of its source: an existing copy of the same source is reused.

    Args:
        path: local video file.
        out: target, ending in ``.mp4``, other than ``path``.
        progress: called with the number of frames done and the total.

    Returns:
        Metadata of the copy.

    Raises:
        VideoError: the source is unusable.
        StorageError: the disk is full or the folder is not writable.
    """
    source, target = Path(path).absolute(), Path(out).absolute()
    if target.suffix.lower() != ".mp4":
        raise ValueError(f"expected out to end in .mp4, got {target.name}")
    if source == target or (target.exists() and source.samefile(target)):
        raise ValueError("expected out to be another file than the source")
    facts = scan(source)
    mark = f"source-sha256={file_sha256(source)} recipe={_RECIPE}"
    existing = _existing_copy(target, mark)
    if existing is not None:
        return existing
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".copy.", suffix=".part", dir=target.parent) as scratch:
            copy = Path(scratch) / "copy.mp4"
            if plan_transcode(source).action == "encode" or not _remux(facts, copy, mark, progress):
                _encode(facts, copy, mark, progress)
            os.replace(copy, target)
    except av.error.FFmpegError as error:
        if isinstance(error, OSError):
            raise storage_error(target, error) from error
        raise VideoError(f"{source.name} cannot be converted: {error}.", "Convert it with another program.") from error
    except OSError as error:
        raise storage_error(target, error) from error
    return scan(target).info


def _existing_copy(target: Path, mark: str) -> VideoInfo | None:
    if not target.is_file():
        return None
    try:
        with open_video(target) as (container, _):
            if container.metadata.get("comment") != mark:
                return None
        return scan(target).info
    except VideoError as error:
        log.info("Transcoding again, because %s is unusable: %s", target, error)
        return None


def _remux(facts: Scan, copy: Path, mark: str, progress: Progress | None) -> bool:
    """Copy the packets; return whether the copy has the same frames and is playable."""
    try:
        _mux(facts, copy, mark, progress)
        return scan(copy).info.frames == facts.info.frames and plan_transcode(copy).action == "keep"
    except (VideoError, ValueError) as error:  # ValueError: FFmpeg's "invalid data" and "invalid argument"
        log.info("Encoding %s, because its packets cannot be copied: %s", facts.info.path, error)
        return False


# -- encoding


def _encode(facts: Scan, out: Path, mark: str, progress: Progress | None) -> None:
    info = facts.info
    rate = _constant_rate(facts)
    # A constant-rate source keeps its frames; a variable one is sampled on the new grid.
    source_frames = np.arange(info.frames) if not info.variable_frame_rate else _resample(facts, rate)
    audio = AudioTrack(info.path, float(facts.times[0]))
    with VideoWriter(out, info.width, info.height, rate, comment=mark, audio=audio) as writer:
        last: Image | None = None
        written = 0
        for frame in read_frames(info.path, info):
            if last is not None:
                while written < len(source_frames) and source_frames[written] < frame.index:
                    writer.write(last)
                    written += 1
            last = frame.image
            if progress is not None:
                progress(frame.index + 1, info.frames)
        while last is not None and written < len(source_frames):
            writer.write(last)
            written += 1


def _constant_rate(facts: Scan) -> Fraction:
    info = facts.info
    fps = info.fps
    if info.variable_frame_rate:
        # The median interval, not the mean: pauses must not thin out the rest, even if they dominate the time.
        steps = np.diff(facts.times)
        fps = min(1 / float(np.median(steps[steps > 0])), float(_MAX_RATE))
    nearest = min(STANDARD_RATES, key=lambda rate: abs(float(rate) - fps))
    if abs(float(nearest) - fps) < (0.02 if info.variable_frame_rate else 0.0005) * fps:
        return nearest
    return Fraction(fps).limit_denominator(1001)


def _resample(facts: Scan, rate: Fraction) -> Any:
    """Return, for each frame of the constant-rate copy, the source frame shown at that time: ``(n,)`` int64."""
    n = max(1, round(facts.info.duration * rate))
    # Mid-frame times, so that rounding in either clock does not select the previous frame.
    times = (np.arange(n) + 0.5) / float(rate) + facts.times[0]
    return np.clip(np.searchsorted(facts.times, times, side="right") - 1, 0, facts.info.frames - 1)


# -- packets


def _mux(facts: Scan, out: Path, mark: str, progress: Progress | None) -> None:
    """Copy the video and audio packets into an MP4 that begins at 0."""
    start, frames = float(facts.times[0]), facts.info.frames
    # At a standard rate, times are computed, free of the container's rounding.
    rate = next((rate for rate in STANDARD_RATES if float(rate) == facts.info.fps), None)
    with open_video(facts.info.path) as (video_in, video), av.open(
        str(out), "w", format="mp4", container_options={"movflags": "+faststart"}
    ) as output:  # fmt: skip
        output.metadata["comment"] = mark
        copy = output.add_stream_from_template(video)
        video_packets = _video_packets(video_in, video, copy, start, rate)
        audio_packets = add_audio(AudioTrack(facts.info.path, start), output)
        done = 0
        # Interleaving by time helps players and limits the muxer's memory.
        for _, packet in heapq.merge(video_packets, audio_packets, key=lambda item: item[0]):
            output.mux_one(packet)
            if progress is not None and packet.stream is copy:
                done += 1
                progress(min(done, frames), frames)


def _video_packets(
    container: Any, stream: Any, copy: Any, start_s: float, rate: Fraction | None
) -> Iterator[tuple[float, Any]]:
    """Yield the packets of ``stream`` shifted to begin ``start_s`` earlier, on the exact grid of ``rate`` if given."""
    start = Fraction(start_s)
    tick = 1 / rate if rate else Fraction(stream.time_base)
    if rate:
        copy.time_base = tick
    for packet in _with_dts(container, stream):
        packet.pts = round((packet.pts * packet.time_base - start) / tick)
        packet.dts = round((packet.dts * packet.time_base - start) / tick)
        if rate:
            packet.duration, packet.time_base = 1, tick
        packet.stream = copy
        yield float(packet.dts * tick), packet


def _with_dts(container: Any, stream: Any) -> Iterator[Any]:
    """Yield packets with PTS and DTS. Matroska stores no DTS; FFmpeg derives all but the first few."""
    without_dts: list[Any] = []
    for packet in demux(container, stream):
        if packet.size == 0 or packet.is_corrupt:
            continue
        if packet.pts is None:
            raise VideoError("The file has packets without timestamps.", "Encode it again.")
        if packet.dts is None:
            without_dts.append(packet)
            continue
        step = packet.duration or 1
        for back, early in enumerate(reversed(without_dts), 1):
            early.dts = packet.dts - back * step
        yield from without_dts
        without_dts.clear()
        yield packet
    if without_dts:
        raise VideoError("The file has packets without timestamps.", "Encode it again.")
