"""Streaming decode: upright BGR frames with the index and time that :mod:`ml_backend.video.probe` gives them."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import av.error
import cv2
import numpy as np
from av.video.reformatter import Colorspace, VideoReformatter

from ml_backend.core.errors import VideoError
from ml_backend.core.types import Frame, Image, IntArray, VideoInfo
from ml_backend.video.container import open_video
from ml_backend.video.probe import Scan, decode, scan

logger = logging.getLogger(__name__)
_UNSPECIFIED = 2  # AVCOL_SPC_UNSPECIFIED
#: A seek throws away what the decoder's threads have already begun; fewer frames than this are decoded through.
MIN_SKIP = 16
#: Some streams call frames key from which pictures become whole only little by little: then begin so many earlier.
RETRIES = 2
_TURN = {90: cv2.ROTATE_90_CLOCKWISE, 180: cv2.ROTATE_180, 270: cv2.ROTATE_90_COUNTERCLOCKWISE}


def read_frames(
    path: str | os.PathLike[str],
    info: VideoInfo | None = None,
    *,
    start: int = 0,
    size: tuple[int, int] | None = None,
) -> Iterator[Frame]:
    """Decode a video, one frame in memory at a time.

    ``Frame.index`` is the frame's position in :func:`~ml_backend.video.probe.frame_times`, also after a seek; where
    single frames in the middle of a damaged file cannot be decoded, their indices are left out.

    Args:
        path: local video file.
        info: what :func:`~ml_backend.video.probe.probe` said, if known; a file that has changed since is refused.
        start: first index wanted; decoding begins at the key frame before it.
        size: ``(width, height)`` of the images; the displayed size when omitted. Scaling happens in the colour
            conversion, which is cheaper than scaling afterwards.

    Yields:
        frames in display order, ``(height, width, 3)`` uint8 BGR, upright, in square pixels.

    Raises:
        VideoError: as ``probe``, or no frame from ``start`` on can be decoded. A broken tail ends the iteration
            with a logged warning.
    """
    facts = _facts(path, info)
    if not 0 <= start < facts.info.frames:
        raise ValueError(f"expected start in 0..{facts.info.frames - 1}, got {start}")
    convert = _Converter(facts.info.rotation, size or (facts.info.width, facts.info.height))
    following = start
    with _open_sparse(path, facts) as sparse:
        for index, picture in sparse.pictures(start):
            following = index + 1
            yield Frame(index, float(facts.times[index]), convert(picture))
    if following == start:
        raise VideoError(
            f"{facts.info.path}: no frame from {start} on can be decoded.", "The file is damaged; upload it again."
        )
    if following < facts.info.frames:
        logger.warning("%s: decoding ended after frame %d of %d", facts.info.path, following, facts.info.frames)


def seek_cost(path: str | os.PathLike[str]) -> float:
    """Frames that are decoded in vain, at most, before the first wanted one; infinite: all that come before it.

    Raises:
        VideoError: as :func:`~ml_backend.video.probe.probe`.
    """
    facts = scan(path)
    return float(facts.key_gap) if _can_seek(facts) else float("inf")


def read_at(path: str | os.PathLike[str], info: VideoInfo | None, indices: Sequence[int] | IntArray) -> Iterator[Frame]:
    """Decode single frames: what :func:`read_frames` gives at these indices, for less.

    Only the wanted pictures are converted, and key frames are used to get past what lies between them.

    Args:
        path: local video file.
        info: as for :func:`read_frames`.
        indices: ``(n,)`` wanted 0-based indices, strictly increasing.

    Yields:
        frames in the order of ``indices``. Those that cannot be decoded are left out, with a logged warning.

    Raises:
        ValueError: indices that are not increasing, or outside the video.
        VideoError: as :func:`read_frames`; none of the frames can be decoded.
    """
    facts = _facts(path, info)
    wanted = [int(index) for index in indices]
    if not wanted:
        return
    if any(b <= a for a, b in pairwise([-1, *wanted, facts.info.frames])):
        raise ValueError(f"expected strictly increasing indices in 0..{facts.info.frames - 1}, got {wanted}")
    convert = _Converter(facts.info.rotation, (facts.info.width, facts.info.height))
    missed: list[int] = []
    with _open_sparse(path, facts) as sparse:
        for target in wanted:
            picture = sparse.picture(target)
            if picture is None:
                missed.append(target)
            else:
                yield Frame(target, float(facts.times[target]), convert(picture))
    if len(missed) == len(wanted):
        raise VideoError(
            f"{facts.info.path}: none of the {len(wanted)} wanted frames can be decoded.",
            "The file is damaged; upload it again.",
        )
    if missed:
        logger.warning(
            "%s: %d of %d wanted frames cannot be decoded, the first is %d",
            facts.info.path,
            len(missed),
            len(wanted),
            missed[0],
        )


def _facts(path: str | os.PathLike[str], info: VideoInfo | None) -> Scan:
    facts = scan(path)
    now = facts.info
    if info and (info.frames, info.width, info.height) != (now.frames, now.width, now.height):
        raise VideoError(f"{info.path} has changed since it was probed.", "Start again.")
    return facts


def _pictures(container: Any, stream: Any, facts: Scan) -> Iterator[tuple[int, Any]]:
    """Decoded pictures from where the container stands, each with its position among all frames."""
    running = 0
    for picture in decode(container, stream):
        index = running  # frames that share a timestamp or have none are counted on
        if facts.pts is not None and picture.pts is not None:
            index = max(running, int(np.searchsorted(facts.pts, picture.pts)))
        running = index + 1
        if index < facts.info.frames:
            yield index, picture


#: Where a seek gets to: the timestamp to seek to, in units of the stream, and the index of the key frame at which
#: decoding begins; pictures before it are not to be trusted.
_Landing = tuple[int, int]


def _can_seek(facts: Scan) -> bool:
    return facts.pts is not None and not bool(np.any(np.diff(facts.pts) == 0))


def _landing(container: Any, stream: Any, facts: Scan, target: int) -> _Landing | None:
    """The nearest key frame from which a frame can be decoded, or ``None``: only from the beginning.

    A container seeks by decoding order, and MPEG-TS to any packet: both may lead to a key frame that is shown only
    after the target, whose picture would be broken or missing. Then it is looked for further back. Moves
    ``container``.
    """
    if facts.pts is None or not _can_seek(facts):
        return None  # frames without timestamps of their own can only be counted from the beginning
    first, wanted, back = int(facts.pts[0]), int(facts.pts[target]), 0
    while True:
        timestamp = max(wanted - back, first)
        try:
            container.seek(timestamp, stream=stream)
            for packet in container.demux(stream):
                if packet.pts is not None and packet.is_keyframe and not packet.is_corrupt:
                    if packet.pts <= wanted:
                        return timestamp, int(np.searchsorted(facts.pts, packet.pts))
                    break
                if packet.dts is not None and packet.dts > wanted:
                    break
        except av.error.FFmpegError as error:
            logger.info("cannot seek (%s): decoding through", error)
            return None
        if timestamp == first:
            return None
        back = 2 * back or max(1, round(1 / facts.time_base))


@contextmanager
def _open_sparse(path: str | os.PathLike[str], facts: Scan) -> Iterator[_SparseDecoder]:
    # The second handle looks for key frames without disturbing the decoder, which goes on where that is shorter.
    with open_video(path) as (container, stream), open_video(path) as scout:
        stream.thread_type = "AUTO"
        yield _SparseDecoder(container, stream, scout, facts)


class _SparseDecoder:
    """Decodes towards one frame after the other, seeking where that is shorter.

    Args:
        container, stream: at their beginning.
        scout: another container and stream of the same file, to look for key frames with.
        facts: of the file.
    """

    def __init__(self, container: Any, stream: Any, scout: tuple[Any, Any], facts: Scan) -> None:
        self._container, self._stream, self._scout, self._facts = container, stream, scout, facts
        self._pictures = _pictures(container, stream, facts)
        self._position, self._picture = -1, None  # decoded last
        self._key = 0  # where decoding began
        self._unproven = False  # nothing has been found since the last seek
        self._ended = False

    def picture(self, target: int) -> Any | None:
        """The decoded frame, or ``None`` where there is none. To be asked in increasing order."""
        if self._ended:
            # What follows the damage may be whole again.
            landing = _landing(*self._scout, self._facts, target)
            if landing is None or landing[1] <= self._key:
                return None
            self._seek(landing)
        elif target - self._position > MIN_SKIP:
            landing = _landing(*self._scout, self._facts, target)
            if landing and landing[1] - self._position > MIN_SKIP:
                self._seek(landing)
        found = self._advance(target)
        for _ in range(RETRIES):
            if found is not None or not self._unproven or self._key == 0:
                break
            earlier = _landing(*self._scout, self._facts, self._key - 1)
            self._seek(earlier or (int(self._facts.pts[0]), 0))  # type: ignore[index]
            found = self._advance(target)
        self._unproven = False
        return found

    def pictures(self, start: int) -> Iterator[tuple[int, Any]]:
        """All pictures from a frame on, with their indices. Only as the first thing that is asked for."""
        self.picture(start)
        if self._position >= start:
            yield self._position, self._picture
        yield from self._pictures

    def _seek(self, landing: _Landing) -> None:
        timestamp, self._key = landing
        self._container.seek(timestamp, stream=self._stream)
        self._pictures = _pictures(self._container, self._stream, self._facts)
        self._position = self._key - 1
        self._unproven, self._ended = True, False

    def _advance(self, target: int) -> Any | None:
        while self._position < target:
            following = next(self._pictures, None)
            if following is None:
                self._ended = True
                return None
            self._position, self._picture = following
        return self._picture if self._position == target else None


class _Converter:
    """Decoded picture to upright BGR. Keeps FFmpeg's scaler between frames: making it is a third of the cost."""

    def __init__(self, rotation: int, size: tuple[int, int]) -> None:
        self._rotation = rotation
        self._size = size if rotation in (0, 180) else (size[1], size[0])
        self._scaler = VideoReformatter()

    def __call__(self, picture: Any) -> Image:
        width, height = self._size
        # AREA does not alias when shrinking; unscaled, both take the same fast path. More threads only add overhead
        # next to a decoder that already uses every core.
        shrink = picture.width > width or picture.height > height
        # Video that does not say is BT.709 in HD and BT.601 below: so do browsers.
        hd = picture.colorspace == _UNSPECIFIED and picture.height >= 720
        scaled = self._scaler.reformat(
            picture,
            width=width,
            height=height,
            format="bgr24",
            src_colorspace=Colorspace.ITU709 if hd else None,
            interpolation="AREA" if shrink else "FAST_BILINEAR",
            threads=1,
        )
        image = np.asarray(scaled.to_ndarray(), np.uint8)
        return image if self._rotation == 0 else np.asarray(cv2.rotate(image, _TURN[self._rotation]), np.uint8)
