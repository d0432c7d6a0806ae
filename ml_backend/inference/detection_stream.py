"""The part of a video's analysis that costs: decode, detect, and read what a tracker needs, several at a time."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice, takewhile

import numpy as np

from ml_backend.core.prefetch import ordered_map, prefetch
from ml_backend.core.types import Affine, Detections, Frame, FrameFeatures, Image, VideoInfo
from ml_backend.detectors.yolo import Detector
from ml_backend.inference.interpolation import MatchedDetections, interpolate_detections, match_detections
from ml_backend.tracking.frame_features import FrameFeatureExtractor, shrink_frame
from ml_backend.video.reader import read_frames


def detection_stream(
    path: str | os.PathLike[str],
    info: VideoInfo,
    detector: Detector,
    *,
    batch: int,
    stride: int = 1,
    start: int = 0,
    end: int | None = None,
) -> Generator[FrameFeatures, None, None]:
    """Observations of a video's frames, in order. Memory does not grow with its length.

    With a ``stride`` only one frame of this many is looked at, and those between two of them only where what the two
    show does not explain them, by halves: see :func:`ml_backend.inference.interpolation.match_detections`.

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
    looking = _AdaptiveFrameSampler(detector, (info.width, info.height), batch)
    filling = _FrameFiller((info.width, info.height))
    # One group of frames is decoded while others are glanced at, one is looked at closely, and one is filled in.
    with (
        closing(prefetch(frames, batch * stride)) as decoded,
        closing(
            ordered_map(looking.glance, _groups(_intervals(decoded, stride), batch), detector.max_concurrency)
        ) as glances,
        closing(prefetch(map(looking.closely, glances), 1)) as looked,
    ):
        for group in looked:
            yield from filling.filled(group)


@dataclass(frozen=True, slots=True)
class _FrameInterval:
    """Frames after the one before; the last of them is looked at.

    Attributes:
        left: the frame before; ``None`` where the video, or the stretch, begins.
        whole: no frame is missing, and it is as long as it may be: the others need not be looked at.
    """

    left: Frame | None
    frames: list[Frame]

    @property
    def whole(self) -> bool:
        return self.left is not None and self.frames[-1].index - self.left.index == len(self.frames)


def _intervals(frames: Iterable[Frame], stride: int) -> Iterator[_FrameInterval]:
    """Frames, up to each whose index is a multiple of ``stride``, and up to the last."""
    left: Frame | None = None
    collected: list[Frame] = []
    for frame in frames:
        collected.append(frame)
        if frame.index % stride == 0:
            yield _FrameInterval(left, collected)
            left, collected = frame, []
    if collected:
        yield _FrameInterval(left, collected)


def _groups(items: Iterator[_FrameInterval], size: int) -> Iterator[list[_FrameInterval]]:
    """As many intervals at a time, the last time fewer."""
    return iter(lambda: list(islice(items, size)), [])


@dataclass(frozen=True, slots=True)
class _SampledDetections:
    """What was found in consecutive frames.

    Attributes:
        frames: indices and, where they were looked at, the detections in pixels of the displayed video, and the frame,
            reduced, see :func:`ml_backend.tracking.frame_features.shrink_frame`.
        explained: pairs by the index of the later frame, where those between it and the one looked at before need
            not be looked at.
    """

    frames: list[tuple[int, tuple[Detections, Image] | None]]
    explained: dict[int, MatchedDetections]


#: Intervals, and what was found on those of their frames that are looked at in any case, by index.
_SampledBatch = tuple[list[_FrameInterval], dict[int, Detections]]


class _AdaptiveFrameSampler:
    """Looks at one video.

    Args:
        size: ``(width, height)`` of the displayed video.
        batch: frames that the detector is given at once.
    """

    def __init__(self, detector: Detector, size: tuple[int, int], batch: int) -> None:
        self._detector, self._size, self._batch = detector, size, batch
        self._last: Detections | None = None  # of the last frame of the group before

    def glance(self, group: list[_FrameInterval]) -> _SampledBatch:
        """Look at what is looked at in any case. May be called for several groups at once."""
        found: dict[int, Detections] = {}
        self._detect([interval.frames[-1] for interval in group], found)
        self._detect([frame for interval in group if not interval.whole for frame in interval.frames[:-1]], found)
        return group, found

    def closely(self, glance: _SampledBatch) -> _SampledDetections:
        """Look at what that has left unclear; groups in order. By halves: often one look explains all the others."""
        group, found = glance
        left = group[0].left
        if left is not None and self._last is not None:
            found[left.index] = self._last
        explained: dict[int, MatchedDetections] = {}
        open_ = [(x.left, x.frames) for x in group if x.whole and x.left is not None and len(x.frames) > 1]
        while open_:
            unclear = []
            for a, frames in open_:
                matched = match_detections(found[a.index], found[frames[-1].index])
                if matched is None:
                    unclear.append((a, frames))
                else:
                    explained[frames[-1].index] = matched
            open_ = [halves for a, frames in unclear for halves in _halved(a, frames)]
            self._detect([frames[-1] for _, frames in open_ if frames[-1].index not in found], found)
            open_ = [(a, frames) for a, frames in open_ if len(frames) > 1]
        self._last = found[group[-1].frames[-1].index]
        every = (frame for interval in group for frame in interval.frames)
        seen = [(f.index, (found[f.index], shrink_frame(f.image)) if f.index in found else None) for f in every]
        return _SampledDetections(seen, explained)

    def _detect(self, frames: Sequence[Frame], found: dict[int, Detections]) -> None:
        for n in range(0, len(frames), self._batch):
            some = frames[n : n + self._batch]
            for frame, detections in zip(some, self._detector.detect([f.image for f in some]), strict=True):
                found[frame.index] = _resized(detections, frame, self._size)


def _halved(left: Frame, frames: list[Frame]) -> Iterator[tuple[Frame, list[Frame]]]:
    middle = len(frames) // 2
    yield left, frames[:middle]
    if len(frames) - middle > 1:  # its last one has been looked at
        yield frames[middle - 1], frames[middle:]


def _resized(detections: Detections, frame: Frame, size: tuple[int, int]) -> Detections:
    """From pixels of the picture to those of the displayed video."""
    height, width = frame.image.shape[:2]
    factor = np.array([size[0] / width, size[1] / height] * 2, np.float32)
    return Detections(detections.xyxy * factor, detections.conf, detections.class_id)


class _FrameFiller:
    """Reads what a tracker needs from the frames that were looked at, and fills in the others."""

    def __init__(self, size: tuple[int, int]) -> None:
        self._size = size
        self._observer = FrameFeatureExtractor()
        self._before: FrameFeatures | None = None  # of the last frame that was looked at

    def filled(self, group: _SampledDetections) -> Iterator[FrameFeatures]:
        skipped: list[int] = []
        for index, seen in group.frames:
            if seen is None:
                skipped.append(index)
                continue
            now = self._observer.observe(index, *seen, self._size)
            before, matched = self._before, group.explained.get(index)
            yield from _between(before, now, skipped, matched) if before and matched else [now]
            self._before = now
            skipped = []


def _between(
    before: FrameFeatures, now: FrameFeatures, skipped: Sequence[int], matched: MatchedDetections
) -> Iterator[FrameFeatures]:
    """The skipped frames' observations, and the one after them, now with the camera's motion since the last of them."""
    a, b = before.detections, now.detections
    length = now.index - before.index
    camera = None if now.camera is None else _part(now.camera, 1 / length)
    for index in skipped:
        yield FrameFeatures(index, interpolate_detections(a, b, matched, (index - before.index) / length), camera)
    yield FrameFeatures(now.index, b, camera)


def _part(camera: Affine, share: float) -> Affine:
    """A share of a motion. Linear, which is exact enough for the few degrees and per cent of a fraction of a second."""
    still = np.eye(2, 3)
    return np.asarray(still + (camera - still) * share, np.float64)
