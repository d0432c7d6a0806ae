"""Decode a video, detect objects in sampled frames, and stream the features of every frame to the tracker."""

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
    """Yield the features of each frame of a video, in order and in constant memory.

    The detector runs on every ``stride``-th frame. The frames between two of them are interpolated where
    :func:`ml_backend.inference.interpolation.match_detections` can match the detections; elsewhere the interval is
    bisected until it can.

    A video may be streamed in chunks that start and end at shared multiples of ``stride``. Together they give the
    features of a single pass once the first frame of every chunk but the first is dropped, since its camera motion is
    unknown.

    Args:
        path: local video file.
        info: its probed properties.
        batch: frames per call of the detector.
        stride: frames from one sampled frame to the next.
        start, end: first and last frame index, inclusive; by default those of the video.

    Raises:
        ValueError: ``stride`` or ``batch`` is below 1, or ``start`` no multiple of ``stride``.
        VideoError: the video cannot be decoded.
    """
    if stride < 1 or start % stride or batch < 1:
        raise ValueError(
            f"expected stride >= 1, batch >= 1 and start a multiple of stride, got {stride=}, {batch=}, {start=}"
        )
    last = info.frames - 1 if end is None else end
    size = detector.working_size(info.width, info.height)
    frames = takewhile(lambda frame: frame.index <= last, read_frames(path, info, start=start, size=size, lazy=True))
    sampler = _AdaptiveFrameSampler(detector, (info.width, info.height), batch)
    interpolator = _FrameInterpolator((info.width, info.height))
    # The stages overlap: while one group of frames is decoded, others are sampled, refined and interpolated.
    with (
        closing(prefetch(_convert_sampled(frames, stride), batch * stride)) as decoded,
        closing(
            ordered_map(sampler.sample, _groups(_intervals(decoded, stride), batch), detector.max_concurrency)
        ) as sampled,
        closing(prefetch(map(sampler.refine, sampled), 1)) as refined,
    ):
        for group in refined:
            yield from interpolator.interpolate(group)


@dataclass(frozen=True, slots=True)
class _FrameInterval:
    """Consecutive frames, of which the last is sampled.

    Attributes:
        previous: the sampled frame before; ``None`` at the start of the stream.
        frames: the frames after it.
    """

    previous: Frame | None
    frames: list[Frame]

    @property
    def complete(self) -> bool:
        """Whether it starts at a sampled frame and misses no frame, so that its inner frames may be interpolated."""
        return self.previous is not None and self.frames[-1].index - self.previous.index == len(self.frames)


def _convert_sampled(frames: Iterable[Frame], stride: int) -> Iterator[Frame]:
    """Convert the frames that are certainly sampled, in the thread that decodes."""
    for frame in frames:
        if frame.index % stride == 0:
            _ = frame.image
        yield frame


def _intervals(frames: Iterable[Frame], stride: int) -> Iterator[_FrameInterval]:
    """Cut frames after each index that is a multiple of ``stride``, and after the last frame."""
    previous: Frame | None = None
    pending: list[Frame] = []
    for frame in frames:
        pending.append(frame)
        if frame.index % stride == 0:
            yield _FrameInterval(previous, pending)
            previous, pending = frame, []
    if pending:
        yield _FrameInterval(previous, pending)


def _groups(intervals: Iterator[_FrameInterval], size: int) -> Iterator[list[_FrameInterval]]:
    """Group intervals by 1, 2, 4, ... and then ``size``: small groups first, for early results."""
    count = 1
    while group := list(islice(intervals, count)):
        yield group
        count = min(2 * count, size)


@dataclass(frozen=True, slots=True)
class _SampledDetections:
    """Detections of consecutive frames.

    Attributes:
        frames: index of each frame with, if it was sampled, its detections in pixels of the displayed video and its
            image, reduced by :func:`ml_backend.tracking.frame_features.shrink_frame`.
        matched: by index of a sampled frame, its matches with the sampled frame before; the frames in between can be
            interpolated.
    """

    frames: list[tuple[int, tuple[Detections, Image] | None]]
    matched: dict[int, MatchedDetections]


#: Intervals, and the detections of their sampled frames by frame index.
_SampledBatch = tuple[list[_FrameInterval], dict[int, Detections]]


class _AdaptiveFrameSampler:
    """Run the detector on as few frames of a video as its motion allows.

    Args:
        size: ``(width, height)`` of the displayed video.
        batch: frames per call of the detector.
    """

    def __init__(self, detector: Detector, size: tuple[int, int], batch: int) -> None:
        self._detector, self._size, self._batch = detector, size, batch
        self._last: Detections | None = None  # of the last frame of the previous group

    def sample(self, intervals: list[_FrameInterval]) -> _SampledBatch:
        """Detect in the last frame of each interval, and in all frames of incomplete ones. Thread-safe."""
        detections: dict[int, Detections] = {}
        self._detect([interval.frames[-1] for interval in intervals], detections)
        incomplete = [interval for interval in intervals if not interval.complete]
        self._detect([frame for interval in incomplete for frame in interval.frames[:-1]], detections)
        return intervals, detections

    def refine(self, batch: _SampledBatch) -> _SampledDetections:
        """Bisect intervals until the detections at both ends match. Expects batches in order."""
        intervals, detections = batch
        previous = intervals[0].previous
        if previous is not None and self._last is not None:
            detections[previous.index] = self._last
        matches: dict[int, MatchedDetections] = {}
        pending = [(x.previous, x.frames) for x in intervals if x.complete and x.previous and len(x.frames) > 1]
        while pending:
            unmatched = []
            for left, frames in pending:
                right = frames[-1]
                matched = match_detections(detections[left.index], detections[right.index])
                if matched is None:
                    unmatched.append((left, frames))
                else:
                    matches[right.index] = matched
            pending = [half for left, frames in unmatched for half in _bisect(left, frames)]
            self._detect([frames[-1] for _, frames in pending if frames[-1].index not in detections], detections)
            pending = [(left, frames) for left, frames in pending if len(frames) > 1]
        self._last = detections[intervals[-1].frames[-1].index]
        sampled = [
            (f.index, (detections[f.index], shrink_frame(f.image)) if f.index in detections else None)
            for interval in intervals
            for f in interval.frames
        ]
        return _SampledDetections(sampled, matches)

    def _detect(self, frames: Sequence[Frame], detections: dict[int, Detections]) -> None:
        """Add the detections of ``frames`` to ``detections``."""
        for n in range(0, len(frames), self._batch):
            batch = frames[n : n + self._batch]
            for frame, detected in zip(batch, self._detector.detect([f.image for f in batch]), strict=True):
                detections[frame.index] = _rescale(detected, frame, self._size)


def _bisect(left: Frame, frames: list[Frame]) -> Iterator[tuple[Frame, list[Frame]]]:
    middle = len(frames) // 2
    yield left, frames[:middle]
    if len(frames) - middle > 1:  # the last frame is sampled already
        yield frames[middle - 1], frames[middle:]


def _rescale(detections: Detections, frame: Frame, size: tuple[int, int]) -> Detections:
    """Scale boxes from pixels of the decoded frame to pixels of the displayed video."""
    height, width = frame.image.shape[:2]
    factor = np.array([size[0] / width, size[1] / height] * 2, np.float32)
    return Detections(detections.xyxy * factor, detections.conf, detections.class_id)


class _FrameInterpolator:
    """Extract the features of sampled frames and interpolate those of the others."""

    def __init__(self, size: tuple[int, int]) -> None:
        self._size = size
        self._extractor = FrameFeatureExtractor()
        self._previous: FrameFeatures | None = None  # of the sampled frame before

    def interpolate(self, group: _SampledDetections) -> Iterator[FrameFeatures]:
        skipped: list[int] = []
        for index, sampled in group.frames:
            if sampled is None:
                skipped.append(index)
                continue
            features = self._extractor.extract(index, *sampled, self._size)
            previous, matched = self._previous, group.matched.get(index)
            yield from _interpolate(previous, features, skipped, matched) if previous and matched else [features]
            self._previous = features
            skipped = []


def _interpolate(
    previous: FrameFeatures, current: FrameFeatures, skipped: Sequence[int], matched: MatchedDetections
) -> Iterator[FrameFeatures]:
    """Yield the features of skipped frames, then the current ones with the camera motion since the last skipped one."""
    a, b = previous.detections, current.detections
    length = current.index - previous.index
    camera = None if current.camera is None else _scale_motion(current.camera, 1 / length)
    for index in skipped:
        detections = interpolate_detections(a, b, matched, (index - previous.index) / length)
        yield FrameFeatures(index, detections, camera)
    yield FrameFeatures(current.index, b, camera)


def _scale_motion(camera: Affine, share: float) -> Affine:
    """Scale a camera motion linearly: exact enough for the few degrees and per cent of a fraction of a second."""
    identity = np.eye(2, 3)
    return np.asarray(identity + (camera - identity) * share, np.float64)
