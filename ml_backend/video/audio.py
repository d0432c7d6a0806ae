"""Add the audio of one file to the video of another: copied if MP4 can hold it, else encoded as AAC."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np

from ml_backend.video.container import demux, open_video, played
from ml_backend.video.probe import decode, scan

# Codecs that browsers play in MP4.
_MP4_AUDIO = {"aac", "mp3", "opus", "flac"}
_AAC_RATES = (32_000, 44_100, 48_000)
# Larger jumps of the clock are joins, if the video has any.
_JUMP_S = 10
# Where parts are joined, sound may be this much out of step.
_STEP_S = 0.1

#: The second of the output at which a packet begins, and the packet.
TimedPacket = tuple[float, Any]


@dataclass(frozen=True, slots=True)
class AudioTrack:
    """A section of a video file's first audio track.

    Attributes:
        path: local video file; may have no audio.
        start: time in seconds, on the file's own clock, that becomes 0.
        end: time in seconds at which the section ends; ``None``: at the end of the track.
    """

    path: str | os.PathLike[str]
    start: float = 0.0
    end: float | None = None


def add_audio(audio: AudioTrack, output: Any) -> Generator[TimedPacket, None, None]:
    """Add an audio stream to an output to which nothing was muxed yet.

    Args:
        audio: its file; no stream is added if it has no audio that can be decoded.
        output: PyAV output container, MP4.

    Returns:
        The packets to mux, in order of time. Copied packets are not cut: the first and the last may exceed the section
        by some 20 ms; players hide what is before 0.

    Raises:
        VideoError: the file is not a video.
    """
    packets = _packets(Path(audio.path), Fraction(audio.start), audio.end, output)
    next(packets)  # opens the file and adds the stream
    return packets


def _packets(path: Path, start: Fraction, end: float | None, output: Any) -> Generator[TimedPacket, None, None]:
    joined = scan(path)
    with open_video(path) as (container, _):
        track = played(container, container.streams.audio)
        if track is None or track.codec_context is None:
            yield 0.0, None
            return
        can_copy = track.codec_context.codec.canonical_name in _MP4_AUDIO
        shifts = [shift * joined.time_base for shift in joined.joins.values()]
        if start > 0 and not shifts:
            # May land earlier: packets before the start are skipped below.
            container.seek(max(0, int(start / track.time_base)), stream=track)
        limit = float("inf") if end is None else end - float(start)
        stream = output.add_stream_from_template(track) if can_copy else _add_aac_stream(track, output)
        yield 0.0, None
        read = _copy_packets if can_copy else _encode_packets
        for time, packet in read(container, track, stream, start, shifts):
            if time >= limit:
                return
            yield time, packet


def _add_aac_stream(track: Any, output: Any) -> Any:
    rate = track.rate if track.rate in _AAC_RATES else 48_000
    layout = "stereo" if track.codec_context.layout.nb_channels > 1 else "mono"
    return output.add_stream("aac", rate=rate, layout=layout)


def _follow_joins(items: Iterable[Any], shifts: Iterable[Fraction]) -> Iterator[Any]:
    """Yield packets or frames; where their times begin again, shift them as the video's are, in seconds."""
    shift, last, left = Fraction(0), None, iter(shifts)
    for item in items:
        if item.pts is not None:
            if last is not None and not 0 <= (item.pts - last) * item.time_base <= _JUMP_S:
                shift = next(left, shift)
            last = item.pts
            item.pts += round(shift / item.time_base)
        yield item


def _copy_packets(
    container: Any, track: Any, stream: Any, start: Fraction, shifts: list[Fraction]
) -> Iterator[TimedPacket]:
    shift = round(start / track.time_base)
    last: int | None = None
    for packet in _follow_joins(demux(container, track), shifts):
        if packet.size == 0 or packet.pts is None or packet.is_corrupt:
            continue
        packet.pts -= shift
        packet.dts = packet.pts
        # MP4 requires increasing times, which damaged files lack.
        if packet.pts + (packet.duration or 0) <= 0 or (last is not None and packet.pts <= last):
            continue
        last = packet.pts
        packet.stream = stream
        yield float(packet.pts * packet.time_base), packet


def _silence(samples: int, stream: Any) -> Iterator[Any]:
    for first in range(0, samples, stream.rate):
        n = min(stream.rate, samples - first)
        channels = stream.codec_context.layout.nb_channels
        frame = av.AudioFrame.from_ndarray(
            np.zeros((channels, n), np.float32), format="fltp", layout=stream.codec_context.layout.name
        )
        frame.sample_rate = stream.rate
        yield frame


def _encode_packets(
    container: Any, track: Any, stream: Any, start: Fraction, shifts: list[Fraction]
) -> Iterator[TimedPacket]:
    rate = stream.rate
    resampler = av.AudioResampler(format="fltp", layout=stream.codec_context.layout, rate=rate)
    origin: int | None = None
    written = 0
    for frame in _follow_joins(decode(container, track), shifts):
        position = round((Fraction(frame.pts or 0) * frame.time_base - start) * rate)
        if origin is None:
            origin = position
        ahead = position - origin - written if shifts else 0
        if ahead < -_STEP_S * rate:
            continue
        gap = _silence(ahead, stream) if ahead > _STEP_S * rate else ()
        for resampled in chain(gap, resampler.resample(frame)):
            # Times count samples instead of being copied, since gaps in damaged audio would stop the encoder.
            resampled.pts, resampled.time_base = origin + written, Fraction(1, rate)
            written += resampled.samples
            if resampled.pts + resampled.samples <= 0:
                continue
            for packet in stream.encode(resampled):
                yield float(packet.pts * packet.time_base), packet
    for packet in stream.encode(None):
        yield float(packet.pts * packet.time_base), packet
