"""Reduced frames of videos, decoded in blocks and kept in a bounded cache."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

import numpy as np
from cachetools import LRUCache

from ml_backend.core.boxes import scaled_size
from ml_backend.core.errors import VideoError
from ml_backend.core.types import Image, VideoInfo
from ml_backend.video.reader import read_frames

log = logging.getLogger(__name__)

#: Height of reduced frames in pixels: half of HD, at which a correlation tracker is as accurate as at full size.
HEIGHT = 540
#: Height of colour frames: what a network looks at has some thousand pixels a side.
COLOUR_HEIGHT = 720
#: Frames per block: two seconds, less than what decoding from the key frame before costs.
BLOCK = 64
#: Bytes of frames that a process keeps: half a minute of HD.
CACHE_BYTES = 512 << 20

_Block = dict[int, Image]
_cache: LRUCache[tuple[object, ...], _Block] = LRUCache(
    CACHE_BYTES, getsizeof=lambda block: sum(image.nbytes for image in block.values())
)
_lock = threading.Lock()


class ReducedFrames:
    """Frames of one video: grey and at most :data:`HEIGHT` high, or in colour and at most :data:`COLOUR_HEIGHT`.

    Args:
        path: local file.
        info: of the file.
        colour: BGR, ``(height, width, 3)``; else ``(height, width)``.

    Attributes:
        scale: reduced size over displayed size.
    """

    def __init__(self, path: Path, info: VideoInfo, *, colour: bool = False) -> None:
        stat = os.stat(path)
        self._path, self._info = path, info
        self._colour = colour
        self._key = (str(path), stat.st_mtime_ns, stat.st_size, colour)
        self.scale = min(1.0, (COLOUR_HEIGHT if colour else HEIGHT) / info.height)
        self._last: tuple[int, _Block] = -1, {}

    def get(self, index: int) -> Image | None:
        """Return a frame by its 0-based decoded index, uint8; ``None`` if it cannot be decoded."""
        number = index // BLOCK
        if self._last[0] != number:
            self._last = number, self._block(number)
        return self._last[1].get(index)

    def _block(self, number: int) -> _Block:
        key = (*self._key, number)
        with _lock:
            if (found := _cache.get(key)) is not None:
                return found
        block: _Block = {}
        try:
            block.update(self._decode(number))
        except VideoError as error:  # such as the missing end of a file
            log.warning("Nothing can be followed there: %s", error)
        with _lock:
            _cache[key] = block
        return block

    def _decode(self, number: int) -> Iterator[tuple[int, Image]]:
        import cv2

        start, end = number * BLOCK, min((number + 1) * BLOCK, self._info.frames)
        size = scaled_size(self._info.width, self._info.height, self.scale)
        frames = read_frames(self._path, self._info, start=start, size=size)
        for frame in takewhile(lambda frame: frame.index < end, frames):
            image = frame.image if self._colour else np.asarray(cv2.cvtColor(frame.image, cv2.COLOR_BGR2GRAY), np.uint8)
            yield frame.index, image
