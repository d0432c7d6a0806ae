"""Small videos, ordinary and odd, made on the spot. Every frame carries its own number, readable in its pixels."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np

from tests.builders import made_once

BITS = 12


def numbered_image(number: int, width: int = 320, height: int = 240) -> np.ndarray:
    """``(height, width, 3)`` uint8 BGR: the number in binary as bright and dark blocks along the top edge, a red
    block at the top left below it and a blue one at the bottom right, so that turning and swapping colours show."""
    image = np.full((height, width, 3), 96, np.uint8)
    image[:, :, 1] = np.linspace(40, 160, width, dtype=np.uint8)
    block = width // BITS
    for bit in range(BITS):
        image[: height // 4, bit * block : (bit + 1) * block] = 235 if number >> bit & 1 else 16
    image[height // 4 : height // 2, : width // 4] = (0, 0, 220)
    image[-height // 4 :, -width // 4 :] = (220, 0, 0)
    return image


def read_number(image: np.ndarray) -> int:
    """The number that :func:`numbered_image` has put into an upright picture of any size."""
    height, width = image.shape[:2]
    row = image[height // 10].mean(axis=1)
    return sum(1 << bit for bit in range(BITS) if row[int((bit + 0.5) * (width // BITS))] > 128)


@made_once
def make_video(
    path: Path,
    *,
    frames: int = 30,
    size: tuple[int, int] = (320, 240),
    fps: Fraction | int = 30,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    pts: Sequence[int] | None = None,
    time_base: Fraction | None = None,
    rotation: int = 0,
    mirrored: bool = False,
    aspect: Fraction | None = None,
    audio_s: float = 0.0,
    audio_silence_s: float = 0.0,
    audio_codec: str = "aac",
    container: str | None = None,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
) -> Path:
    """A video of ``frames`` numbered pictures.

    Args:
        pts: presentation times in units of ``time_base`` (default ``1 / fps``); 0, 1, 2, ... when omitted.
        rotation: degrees clockwise that a player turns it by (display matrix); the stored pictures are turned back,
            so that it looks upright.
        mirrored: a player mirrors it left to right after that; the stored pictures are mirrored back.
        aspect: sample aspect ratio.
        audio_s: seconds of sound, a 440 Hz tone after ``audio_silence_s`` of silence; 0: no audio stream.
    """
    fps, width, height = Fraction(fps), *size
    stored = (height, width) if rotation in (90, 270) else (width, height)
    with av.open(str(path), "w", format=container, container_options=container_options or {}) as output:
        stream = output.add_stream(codec, rate=fps, options=options or {})
        stream.width, stream.height = stored
        stream.pix_fmt = pix_fmt
        stream.codec_context.time_base = time_base or 1 / fps
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        if rotation or mirrored:
            stream.set_display_rotation(-rotation, **({"hflip": True} if mirrored else {}))
        sound: Any = None
        if audio_s:
            sound = output.add_stream(audio_codec, rate=48_000 if audio_codec == "libopus" else 44_100)
        for number in range(frames):
            upright = numbered_image(number, width, height)
            image = np.rot90(np.fliplr(upright) if mirrored else upright, rotation // 90)
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="bgr24")
            picture.pts = number if pts is None else pts[number]
            picture.time_base = time_base or 1 / fps
            output.mux(stream.encode(picture))
        output.mux(stream.encode(None))
        if sound is not None:
            _tone(output, sound, audio_s, audio_silence_s)
    return path


def _tone(output: Any, stream: Any, seconds: float, silence: float) -> None:
    rate = stream.rate
    step = 1024
    for first in range(0, int(seconds * rate), step):
        at = np.arange(first, first + step) / rate
        wave = 0.2 * np.sin(2 * np.pi * 440 * at) * (at >= silence)
        sound = av.AudioFrame.from_ndarray(wave.astype(np.float32)[None], format="fltp", layout="mono")
        sound.sample_rate = rate
        sound.pts = first
        sound.time_base = Fraction(1, rate)
        output.mux(stream.encode(sound))
    output.mux(stream.encode(None))


def make_audio(path: Path, seconds: float = 1.0, codec: str = "aac") -> Path:
    """A file without any video stream."""
    with av.open(str(path), "w") as output:
        _tone(output, output.add_stream(codec, rate=44_100), seconds, 0.0)
    return path


def truncate(source: Path, target: Path, share: float) -> Path:
    """The first ``share`` of a file's bytes."""
    data = source.read_bytes()
    target.write_bytes(data[: int(len(data) * share)])
    return target


def merge(target: Path, *sources: Path, enabled: Sequence[bool]) -> Path:
    """The tracks of several MP4 in one, some of them disabled."""
    with ExitStack() as stack, av.open(str(target), "w", options={"movflags": "faststart"}) as out:
        inputs = [stack.enter_context(av.open(str(source))) for source in sources]
        copies = {stream: out.add_stream_from_template(stream) for inp in inputs for stream in inp.streams}
        for packet in chain.from_iterable(inp.demux() for inp in inputs):
            if packet.size:
                packet.stream = copies[packet.stream]
                out.mux(packet)
    data, at = bytearray(target.read_bytes()), 0
    for flag in enabled:
        at = data.index(b"tkhd", at) + 8
        data[at - 1] = 3 if flag else 2
    target.write_bytes(data)
    return target


def join(target: Path, *parts: Path) -> Path:
    """Several recordings in one file, byte for byte: their times begin again."""
    target.write_bytes(b"".join(part.read_bytes() for part in parts))
    return target


def cut_start(source: Path, target: Path, first_pts_s: float) -> Path:
    """Stream copy that starts ``first_pts_s`` later, as a player's "cut without re-encoding" makes it: MP4 keeps
    the packets from the key frame on and hides those before the cut with an edit list."""
    with av.open(str(source)) as inp, av.open(str(target), "w") as out:
        video = inp.streams.video[0]
        copy = out.add_stream_from_template(video)
        shift = round(first_pts_s / video.time_base)
        for packet in inp.demux(video):
            if packet.dts is None:
                continue
            packet.pts -= shift
            packet.dts -= shift
            packet.stream = copy
            out.mux(packet)
    return target
