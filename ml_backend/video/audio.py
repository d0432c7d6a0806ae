"""The sound of one file for the pictures of another: copied where MP4 can hold it, else encoded as AAC."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from ml_backend.video.container import open_video
from ml_backend.video.probe import decode

# What browsers play in MP4.
_MP4_AUDIO = {"aac", "mp3", "opus", "flac"}
_AAC_RATES = (32_000, 44_100, 48_000)

#: A packet with the second of the output at which it begins.
Timed = tuple[float, Any]


@dataclass(frozen=True, slots=True)
class AudioTrack:
    """A stretch of a video file's first sound track.

    Attributes:
        path: local video file; one without sound adds none.
        start: second of the file, on its own clock, that becomes 0.
        end: second of the file at which the stretch ends, or ``None``: with the track.
    """

    path: str | os.PathLike[str]
    start: float = 0.0
    end: float | None = None


def add_audio(sound: AudioTrack, output: Any) -> Generator[Timed, None, None]:
    """Add a sound stream to an output that has not begun yet.

    Args:
        sound: of a file; without a sound track that can be decoded there is no stream.
        output: PyAV output container, MP4.

    Returns:
        the stream's packets, in order of time, to be muxed. Packets are not cut: a copied one that begins before the
        start or the end reaches over it by some 20 ms, and players hide what is before 0.

    Raises:
        VideoError: the file is no video.
    """
    packets = _packets(Path(sound.path), Fraction(sound.start), sound.end, output)
    next(packets)  # opens the file and makes the stream
    return packets


def _packets(path: Path, start: Fraction, end: float | None, output: Any) -> Generator[Timed, None, None]:
    with open_video(path) as (container, _):
        track = next(iter(container.streams.audio), None)
        if track is None or track.codec_context is None:
            yield 0.0, None
            return
        plain = track.codec_context.codec.canonical_name in _MP4_AUDIO
        if start > 0:
            # Only sooner: packets before the start are left out below.
            container.seek(max(0, int(start / track.time_base)), stream=track)
        limit = float("inf") if end is None else end - float(start)
        stream = output.add_stream_from_template(track) if plain else _aac(track, output)
        yield 0.0, None
        for second, packet in (_copied if plain else _encoded)(container, track, stream, start):
            if second >= limit:
                return
            yield second, packet


def _aac(track: Any, output: Any) -> Any:
    rate = track.rate if track.rate in _AAC_RATES else 48_000
    layout = "stereo" if track.codec_context.layout.nb_channels > 1 else "mono"
    return output.add_stream("aac", rate=rate, layout=layout)


def _copied(container: Any, track: Any, stream: Any, start: Fraction) -> Iterator[Timed]:
    shift = round(start / track.time_base)
    last: int | None = None
    for packet in container.demux(track):
        if packet.size == 0 or packet.pts is None or packet.is_corrupt:
            continue
        packet.pts -= shift
        packet.dts = packet.pts
        # MP4 refuses times that do not go on, which damaged files have.
        if packet.pts + (packet.duration or 0) <= 0 or (last is not None and packet.pts <= last):
            continue
        last = packet.pts
        packet.stream = stream
        yield float(packet.pts * packet.time_base), packet


def _encoded(container: Any, track: Any, stream: Any, start: Fraction) -> Iterator[Timed]:
    rate = stream.rate
    resampler = av.AudioResampler(format="fltp", layout=stream.codec_context.layout, rate=rate)
    origin: int | None = None
    written = 0
    for frame in decode(container, track):
        if origin is None:
            origin = round((Fraction(frame.pts or 0) * frame.time_base - start) * rate)
        for piece in resampler.resample(frame):
            # Counted on rather than copied: gaps in damaged sound must not stop the encoder.
            piece.pts, piece.time_base = origin + written, Fraction(1, rate)
            written += piece.samples
            if piece.pts + piece.samples <= 0:
                continue
            for packet in stream.encode(piece):
                yield float(packet.pts * packet.time_base), packet
    for packet in stream.encode(None):
        yield float(packet.pts * packet.time_base), packet
