"""Decode video into upright BGR frames, with indices and times as in :mod:`ml_backend.video.probe`."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from typing import Any

import av.error
import cv2
import numpy as np
from av.video.reformatter import Colorspace, VideoReformatter

from ml_backend.core.errors import VideoError
from ml_backend.core.memory import usable_cores
from ml_backend.core.types import Frame, Image, IntArray, VideoInfo
from ml_backend.video.container import demux, open_video
from ml_backend.video.probe import Scan, decode, scan

log = logging.getLogger(__name__)
_UNSPECIFIED = 2  # AVCOL_SPC_UNSPECIFIED
#: Shorter distances are decoded through, as a seek discards the frames that the decoder's threads have begun.
MIN_SEEK_FRAMES = 16
#: Decoding HD video takes about a fifth of a prediction's processor time, and 4K four times that. More threads than its
#: share of the cores only cost: two need a fifth more time than one.
DECODING_SHARE = 0.2 / (1920 * 1080)
#: HD, in which a decoded frame takes 3 MB: up to a hundred wait for the detector.
MAX_LAZY_PIXELS = 1920 * 1088
#: Some streams mark key frames after which images are complete only gradually: retry from this many earlier ones.
SEEK_RETRIES = 2
_ROTATE = {90: cv2.ROTATE_90_CLOCKWISE, 180: cv2.ROTATE_180, 270: cv2.ROTATE_90_COUNTERCLOCKWISE}


def read_frames(
    path: str | os.PathLike[str],
    info: VideoInfo | None = None,
    *,
    start: int = 0,
    size: tuple[int, int] | None = None,
    lazy: bool = False,
) -> Iterator[Frame]:
    """Decode a video, one frame in memory at a time.

    ``Frame.index`` is the frame's position in :func:`~ml_backend.video.probe.frame_times`, also after a seek. Frames
    that cannot be decoded are skipped, as are their indices.

    Args:
        path: local video file.
        info: earlier result of :func:`~ml_backend.video.probe.probe`; a file that has changed since is rejected.
        start: index of the first frame; decoding begins at the key frame before it.
        size: ``(width, height)`` of the images; defaults to the displayed size. Scaling is part of the colour
            conversion, which is cheaper than scaling afterwards.
        lazy: convert frames when their image is used, except large ones, of which few fit into memory.

    Yields:
        Frames in display order, ``(height, width, 3)`` uint8 BGR, upright, in square pixels.

    Raises:
        VideoError: as ``probe``, or no frame from ``start`` on can be decoded. A damaged end of the file ends the
            iteration with a logged warning.
    """
    facts = _checked_scan(path, info)
    if not 0 <= start < facts.info.frames:
        raise ValueError(f"expected start in 0..{facts.info.frames - 1}, got {start}")
    convert = _Converter(facts, size or (facts.info.width, facts.info.height))
    next_index = start
    with _open_decoder(path, facts) as decoder:
        for index, frame in decoder.frames_from(start):
            next_index = index + 1
            later = lazy and frame.width * frame.height <= MAX_LAZY_PIXELS
            yield Frame(index, float(facts.times[index]), partial(convert, frame) if later else convert(frame))
    if next_index == start:
        raise VideoError(
            f"{facts.info.path}: no frame from {start} on can be decoded.", "Upload the file again; it is damaged."
        )
    if next_index < facts.info.frames:
        log.warning("%s: decoding ended after frame %d of %d", facts.info.path, next_index, facts.info.frames)


def seek_cost(path: str | os.PathLike[str]) -> float:
    """Return the maximum number of frames to decode before a requested one; infinite if seeking is not possible.

    Raises:
        VideoError: as :func:`~ml_backend.video.probe.probe`.
    """
    facts = scan(path)
    return float(facts.keyframe_interval) if _can_seek(facts) else float("inf")


def read_at(path: str | os.PathLike[str], info: VideoInfo | None, indices: Sequence[int] | IntArray) -> Iterator[Frame]:
    """Decode single frames, as :func:`read_frames` yields them but faster.

    Only the requested frames are converted, and gaps between them are skipped by seeking to key frames.

    Args:
        path: local video file.
        info: as for :func:`read_frames`.
        indices: ``(n,)`` strictly increasing 0-based indices.

    Yields:
        Frames in the order of ``indices``. Those that cannot be decoded are skipped, with a logged warning.

    Raises:
        ValueError: the indices are not increasing, or outside the video.
        VideoError: as :func:`read_frames`, or none of the frames can be decoded.
    """
    facts = _checked_scan(path, info)
    targets = [int(index) for index in indices]
    if not targets:
        return
    if any(b <= a for a, b in pairwise([-1, *targets, facts.info.frames])):
        raise ValueError(f"expected strictly increasing indices in 0..{facts.info.frames - 1}, got {targets}")
    convert = _Converter(facts, (facts.info.width, facts.info.height))
    missed: list[int] = []
    with _open_decoder(path, facts) as decoder:
        for target in targets:
            frame = decoder.frame_at(target)
            if frame is None:
                missed.append(target)
            else:
                yield Frame(target, float(facts.times[target]), convert(frame))
    if len(missed) == len(targets):
        raise VideoError(
            f"{facts.info.path}: none of the {len(targets)} requested frames can be decoded.",
            "Upload the file again; it is damaged.",
        )
    if missed:
        log.warning(
            "%s: %d of %d requested frames cannot be decoded, the first is %d",
            facts.info.path,
            len(missed),
            len(targets),
            missed[0],
        )


def _checked_scan(path: str | os.PathLike[str], info: VideoInfo | None) -> Scan:
    facts = scan(path)
    current = facts.info
    if info and (info.frames, info.width, info.height) != (current.frames, current.width, current.height):
        raise VideoError(f"{info.path} has changed since it was probed.", "Start again.")
    return facts


def _decode_indexed(container: Any, stream: Any, facts: Scan) -> Iterator[tuple[int, Any]]:
    """Yield decoded frames from the container's position on, each with its index among all frames."""
    next_index = 0
    for frame in decode(container, stream, joins=facts.joins):  # where there are any, nothing seeks
        index = next_index  # for frames that share a timestamp or have none
        if facts.pts is not None and frame.pts is not None:
            index = max(next_index, int(np.searchsorted(facts.pts, frame.pts)))
        next_index = index + 1
        if index < facts.info.frames:
            yield index, frame


#: Target of a seek: the timestamp to seek to, in units of the stream, and the index of the key frame at which decoding
#: begins; frames that decode with a lower index may be broken.
_SeekPoint = tuple[int, int]


def _can_seek(facts: Scan) -> bool:
    return facts.pts is not None and not facts.joins and not bool(np.any(np.diff(facts.pts) == 0))


def _find_seek_point(container: Any, stream: Any, facts: Scan, target: int) -> _SeekPoint | None:
    """Return the nearest key frame from which ``target`` can be decoded, or ``None`` if only the beginning will do.

    Containers seek by decoding order, and MPEG-TS to any packet: both may land on a key frame that is shown after the
    target, from which it would decode broken or not at all. Then the search goes further back. Moves ``container``.
    """
    if facts.pts is None or not _can_seek(facts):
        return None  # without distinct timestamps, frames can only be counted from the beginning
    first, target_pts, back = int(facts.pts[0]), int(facts.pts[target]), 0
    while True:
        timestamp = max(target_pts - back, first)
        try:
            container.seek(timestamp, stream=stream)
            for packet in demux(container, stream):
                if packet.pts is not None and packet.is_keyframe and not packet.is_corrupt:
                    if packet.pts <= target_pts:
                        return timestamp, int(np.searchsorted(facts.pts, packet.pts))
                    break
                if packet.dts is not None and packet.dts > target_pts:
                    break
        except av.error.FFmpegError as error:
            log.info("cannot seek (%s): decoding through", error)
            return None
        if timestamp == first:
            return None
        back = 2 * back or max(1, round(1 / facts.time_base))


@contextmanager
def _open_decoder(path: str | os.PathLike[str], facts: Scan) -> Iterator[_SparseDecoder]:
    # The second handle searches key frames without moving the decoder, which may continue where it is.
    with open_video(path) as (container, stream), open_video(path) as scout:
        stream.thread_type = "AUTO"
        pixels = facts.info.width * facts.info.height
        stream.codec_context.thread_count = max(1, round(DECODING_SHARE * pixels * usable_cores()))
        yield _SparseDecoder(container, stream, scout, facts)


class _SparseDecoder:
    """Decodes frames at increasing indices, seeking where that is faster.

    Args:
        container, stream: at the beginning of the file.
        scout: a second container and stream of the file, to search key frames with.
        facts: scan of the file.
    """

    def __init__(self, container: Any, stream: Any, scout: tuple[Any, Any], facts: Scan) -> None:
        self._container, self._stream, self._scout, self._facts = container, stream, scout, facts
        self._decoded = _decode_indexed(container, stream, facts)
        self._position, self._frame = -1, None  # decoded last
        self._keyframe = 0  # where decoding began
        self._just_sought = False  # no frame was returned since the last seek
        self._ended = False

    def frame_at(self, target: int) -> Any | None:
        """Return the decoded frame, or ``None`` if it cannot be decoded. Call with increasing indices."""
        if self._ended:
            # The file may be intact again after the damage.
            seek_point = _find_seek_point(*self._scout, self._facts, target)
            if seek_point is None or seek_point[1] <= self._keyframe:
                return None
            self._seek(seek_point)
        elif target - self._position > MIN_SEEK_FRAMES:
            seek_point = _find_seek_point(*self._scout, self._facts, target)
            if seek_point and seek_point[1] - self._position > MIN_SEEK_FRAMES:
                self._seek(seek_point)
        frame = self._advance(target)
        for _ in range(SEEK_RETRIES):
            if frame is not None or not self._just_sought or self._keyframe == 0:
                break
            earlier = _find_seek_point(*self._scout, self._facts, self._keyframe - 1)
            self._seek(earlier or (int(self._facts.pts[0]), 0))  # type: ignore[index]
            frame = self._advance(target)
        self._just_sought = False
        return frame

    def frames_from(self, start: int) -> Iterator[tuple[int, Any]]:
        """Yield the index and frame of all frames from ``start`` on. Only on a new decoder."""
        self.frame_at(start)
        if self._position >= start:
            yield self._position, self._frame
        yield from self._decoded

    def _seek(self, seek_point: _SeekPoint) -> None:
        timestamp, self._keyframe = seek_point
        self._container.seek(timestamp, stream=self._stream)
        self._decoded = _decode_indexed(self._container, self._stream, self._facts)
        self._position = self._keyframe - 1
        self._just_sought, self._ended = True, False

    def _advance(self, target: int) -> Any | None:
        while self._position < target:
            decoded = next(self._decoded, None)
            if decoded is None:
                self._ended = True
                return None
            self._position, self._frame = decoded
        return self._frame if self._position == target else None


class _Converter:
    """Converts decoded frames to upright BGR. Keeps FFmpeg's scaler, whose setup is a third of the cost.

    Thread-safe.
    """

    def __init__(self, facts: Scan, size: tuple[int, int]) -> None:
        self._rotation, self._mirrored, _ = facts.orientation
        self._size = size if self._rotation in (0, 180) else (size[1], size[0])
        self._scaler = VideoReformatter()
        self._lock = threading.Lock()

    def __call__(self, frame: Any) -> Image:
        width, height = self._size
        # AREA does not alias when shrinking; unscaled, both take the same fast path. More threads would only add
        # overhead, as the decoder already uses every core.
        shrink = frame.width > width or frame.height > height
        # Like browsers, take an unspecified colour space for BT.709 in HD and for BT.601 below.
        hd = frame.colorspace == _UNSPECIFIED and frame.height >= 720
        with self._lock:
            scaled = self._scaler.reformat(
                frame,
                width=width,
                height=height,
                format="bgr24",
                src_colorspace=Colorspace.ITU709 if hd else None,
                interpolation="AREA" if shrink else "FAST_BILINEAR",
                threads=1,
            )
        image = np.asarray(scaled.to_ndarray(), np.uint8)
        if self._mirrored:
            image = np.asarray(cv2.flip(image, 1), np.uint8)
        return image if self._rotation == 0 else np.asarray(cv2.rotate(image, _ROTATE[self._rotation]), np.uint8)
