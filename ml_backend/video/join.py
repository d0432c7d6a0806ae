"""Videos of one encoder put behind each other without encoding them again."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np

from ml_backend.errors import VideoError
from ml_backend.types import IntArray
from ml_backend.video.sound import Sound
from ml_backend.video.writer import Mp4File, storage_error


@dataclass(frozen=True, slots=True)
class Segment:
    """A video that begins with a key frame and needs no other.

    Attributes:
        path: local file.
        start: time of its first picture in the whole, in units of the whole.
    """

    path: Path
    start: int


def join(
    path: str | os.PathLike[str], segments: Sequence[Segment], time_base: Fraction, sound: Sound | None = None
) -> None:
    """Write the segments' pictures as one MP4, with sound; it appears when it is complete.

    Args:
        segments: one or more, in order, as :class:`~ml_backend.video.writer.VideoWriter` makes them with the same
            arguments: their pictures' times must be whole units.
        time_base: seconds per unit.

    Raises:
        StorageError: the disk is full, or the folder cannot be written.
        VideoError: a segment cannot be read, or is not like the first.
    """
    with _Joined(path, segments, time_base, sound) as joined:
        joined.copy()


class _Joined(Mp4File):
    def __init__(
        self, path: str | os.PathLike[str], segments: Sequence[Segment], time_base: Fraction, sound: Sound | None
    ) -> None:
        super().__init__(path, sound=sound)
        self._segments, self._unit = segments, time_base

    def _pictures(self, container: Any) -> Any:
        with _opened(self._segments[0].path) as source:
            template = source.streams.video[0]
            self._header = bytes(template.codec_context.extradata or b"")
            # Not what PyAV does by itself for video, which is to set up an encoder.
            stream = container.add_stream_from_template(template, opaque=True)
        stream.time_base = self._unit
        return stream

    def copy(self) -> None:
        pts = np.concatenate([self._times(segment) for segment in self._segments])
        dts = decoding_times(pts)
        at = 0
        for segment in self._segments:
            for packet in self._packets(segment.path):
                duration = round((packet.duration or 0) * packet.time_base / self._unit)
                packet.stream = self._stream
                packet.time_base = self._unit
                packet.pts, packet.dts, packet.duration = int(pts[at]), int(dts[at]), duration
                self._mux_sound(float(packet.pts * self._unit))
                try:
                    self._container.mux_one(packet)
                except OSError as error:
                    raise storage_error(self.path, error) from error
                at += 1

    def _times(self, segment: Segment) -> IntArray:
        local = [round(packet.pts * packet.time_base / self._unit) for packet in self._packets(segment.path)]
        return np.array(local, np.int64) + segment.start

    def _packets(self, path: Path) -> Iterator[Any]:
        with _opened(path) as source:
            stream = source.streams.video[0]
            if bytes(stream.codec_context.extradata or b"") != self._header:
                raise _unfit(path)
            for packet in source.demux(stream):
                if packet.size:
                    yield packet


def decoding_times(pts: IntArray) -> IntArray:
    """``(n,)`` strictly increasing times at which pictures are to be decoded, none after the one it is shown at.

    An encoder counts each segment's from its own first picture; at uneven intervals those of one segment may reach
    into the next.

    Args:
        pts: ``(n,)`` times at which they are shown, all different, in the order of decoding.
    """
    shown = np.sort(pts)
    delay = min(int((np.arange(len(pts)) - np.searchsorted(shown, pts)).max()), len(pts) - 1)
    early = shown[:delay] - (shown[delay] - shown[0])
    return np.concatenate([early, shown[: len(shown) - delay]])


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        source = av.open(str(path))
    except (OSError, av.error.FFmpegError) as error:
        raise _unfit(path) from error
    with source:
        yield source


def _unfit(path: Path) -> VideoError:
    return VideoError(f"{path} is damaged.", f"Remove {path.parent} and begin anew.")
