"""Streaming decode: upright BGR frames with the index and time that :mod:`ml_backend.video.probe` gives them."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from typing import Any

import av.error
import cv2
import numpy as np
from av.video.reformatter import Colorspace, VideoReformatter

from ml_backend.errors import VideoError
from ml_backend.types import Frame, Image, VideoInfo
from ml_backend.video.container import open_video
from ml_backend.video.probe import Scan, decode, scan

logger = logging.getLogger(__name__)
_UNSPECIFIED = 2  # AVCOL_SPC_UNSPECIFIED
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
    facts = scan(path)
    if info is not None and (info.frames, info.width, info.height) != (
        facts.info.frames,
        facts.info.width,
        facts.info.height,
    ):
        raise VideoError(f"{info.path} has changed since it was probed.", "Start again.")
    if not 0 <= start < facts.info.frames:
        raise ValueError(f"expected start in 0..{facts.info.frames - 1}, got {start}")
    convert = _Converter(facts.info.rotation, size or (facts.info.width, facts.info.height))
    following = start
    with open_video(path) as (container, stream):
        stream.thread_type = "AUTO"
        if start:
            _seek(container, stream, facts, start)
        running = 0
        for picture in decode(container, stream):
            index = _index(picture, facts, running)
            running = index + 1
            if index < following or index >= facts.info.frames:
                continue
            following = index + 1
            yield Frame(index, float(facts.times[index]), convert(picture))
    if following == start:
        raise VideoError(
            f"{facts.info.path}: no frame from {start} on can be decoded.", "The file is damaged; upload it again."
        )
    if following < facts.info.frames:
        logger.warning("%s: decoding ended after frame %d of %d", facts.info.path, following, facts.info.frames)


def _index(picture: Any, facts: Scan, running: int) -> int:
    """Position of a decoded frame among all; frames that share a timestamp or have none are counted on."""
    if facts.pts is None or picture.pts is None:
        return running
    return max(running, int(np.searchsorted(facts.pts, picture.pts)))


def _seek(container: Any, stream: Any, facts: Scan, start: int) -> None:
    if facts.pts is None:
        return  # without timestamps only decoding from the beginning finds the frame
    try:
        container.seek(int(facts.pts[start]), stream=stream, backward=True)
    except av.error.FFmpegError as error:
        logger.info("cannot seek (%s): decoding from the beginning", error)


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
