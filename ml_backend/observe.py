"""The part of a video's analysis that costs: decode, detect, and read what a tracker needs, several at a time."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from itertools import takewhile

import numpy as np

from ml_backend.ahead import ahead, in_order
from ml_backend.looking import Looked, Looking, groups, intervals
from ml_backend.models.between import Pairs, between
from ml_backend.models.detector import Detector
from ml_backend.models.observer import Observer
from ml_backend.types import Affine, Observation, VideoInfo
from ml_backend.video.reader import read_frames


def observe(
    path: str | os.PathLike[str],
    info: VideoInfo,
    detector: Detector,
    *,
    batch: int,
    stride: int = 1,
    start: int = 0,
    end: int | None = None,
) -> Generator[Observation, None, None]:
    """Observations of a video's frames, in order. Memory does not grow with its length.

    With a ``stride`` only every so manieth frame is looked at, and those between two of them only where what the two
    show does not explain them, by halves: see :func:`ml_backend.models.between.pairs`.

    A video may be done in stretches that begin and end at the same multiple of ``stride``: without the first
    observation of each but the first, which does not know how the camera has moved, they give what one pass gives.

    Args:
        info: of the video.
        batch: frames that the detector is given at once.
        start, end: first and last frame; by default the video's.

    Raises:
        VideoError: the video cannot be decoded.
    """
    if stride < 1 or start % stride or batch < 1:
        raise ValueError(f"expected stride >= 1, batch >= 1 and start a multiple of it, got {stride}, {batch}, {start}")
    last = info.frames - 1 if end is None else end
    size = detector.working_size(info.width, info.height)
    frames = takewhile(lambda frame: frame.index <= last, read_frames(path, info, start=start, size=size))
    looking = Looking(detector, (info.width, info.height), batch)
    filling = _Filling((info.width, info.height))
    # One group of frames is decoded while others are glanced at, one is looked at closely, and one is filled in.
    with (
        closing(ahead(frames, batch * stride)) as decoded,
        closing(in_order(looking.glance, groups(intervals(decoded, stride), batch), detector.at_once)) as glances,
        closing(ahead(map(looking.closely, glances), 1)) as looked,
    ):
        for group in looked:
            yield from filling.filled(group)


class _Filling:
    """Reads what a tracker needs from the frames that were looked at, and fills in the others."""

    def __init__(self, size: tuple[int, int]) -> None:
        self._size = size
        self._observer = Observer()
        self._before: Observation | None = None  # of the last frame that was looked at

    def filled(self, group: Looked) -> Iterator[Observation]:
        skipped: list[int] = []
        for index, seen in group.frames:
            if seen is None:
                skipped.append(index)
                continue
            now = self._observer.observe(index, seen.detections, seen.picture, self._size)
            before, matched = self._before, group.explained.get(index)
            yield from _between(before, now, skipped, matched) if before and matched else [now]
            self._before = now
            skipped = []


def _between(before: Observation, now: Observation, skipped: Sequence[int], matched: Pairs) -> Iterator[Observation]:
    """The skipped frames' observations, and the one after them, now with the camera's motion since the last of them."""
    a, b = before.detections, now.detections
    length = now.index - before.index
    camera = None if now.camera is None else _part(now.camera, 1 / length)
    for index in skipped:
        yield Observation(index, between(a, b, matched, (index - before.index) / length), camera)
    yield Observation(now.index, b, camera)


def _part(camera: Affine, share: float) -> Affine:
    """A share of a motion. Linear, which is exact enough for the few degrees and per cent of a fraction of a second."""
    still = np.eye(2, 3)
    return np.asarray(still + (camera - still) * share, np.float64)
