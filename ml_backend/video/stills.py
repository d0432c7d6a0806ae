"""Frames of a video as a folder of JPEG files that appears complete or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2

from ml_backend.core.boxes import scaled_size
from ml_backend.core.errors import Interrupted
from ml_backend.core.types import IntArray, VideoInfo
from ml_backend.video.reader import read_at

#: High enough for JPEG artefacts to stay below the differences of detections that images are compared by.
QUALITY = 95


def write_stills(
    video: str | os.PathLike[str],
    info: VideoInfo,
    indices: Sequence[int] | IntArray,
    side: int,
    folder: Path,
    should_stop: Callable[[], bool] = lambda: False,
) -> None:
    """Write frames of a video, one in memory at a time, as ``<index>.jpg`` into a new folder.

    Args:
        indices: ``(n,)`` strictly increasing 0-based frames.
        side: longest side of the images, pixels; larger frames are shrunk.
        folder: is left alone if it exists; its parent must exist, and files there that begin with a dot are temporary.

    Raises:
        VideoError: none of the frames can be decoded.
        OSError: the disk cannot be written.
        Interrupted: ``should_stop`` returned true.
    """
    size = scaled_size(info.width, info.height, min(1.0, side / max(info.width, info.height)))
    with tempfile.TemporaryDirectory(prefix=".", dir=folder.parent) as temporary:
        images = Path(temporary) / "images"
        images.mkdir()
        for frame in read_at(video, info, indices):
            if should_stop():
                raise Interrupted(f"Stopped at frame {frame.index} of {info.path}.", "Run it again to continue.")
            image = cv2.resize(frame.image, size, interpolation=cv2.INTER_AREA)
            _, jpeg = cv2.imencode(".jpg", image, (cv2.IMWRITE_JPEG_QUALITY, QUALITY))
            (images / f"{frame.index:08d}.jpg").write_bytes(jpeg.tobytes())
        try:
            images.replace(folder)
        except OSError:
            if not folder.is_dir():  # else another process was faster
                raise
