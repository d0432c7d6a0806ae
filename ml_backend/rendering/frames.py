"""Archives of small JPEG frames, by which a page steps through a video."""

from __future__ import annotations

import io
import zipfile
from itertools import takewhile
from pathlib import Path

import cv2

from ml_backend.core.boxes import scaled_size
from ml_backend.core.errors import VideoError
from ml_backend.label_studio.timeline import Timeline
from ml_backend.video.probe import probe
from ml_backend.video.reader import read_frames

#: Longest side of a frame in pixels, and JPEG quality: about 60 kB.
SIDE, QUALITY = 960, 80


def frames_archive(path: Path, timeline: Timeline, first: int, last: int) -> bytes:
    """Return a ZIP archive with ``<frame>.jpg`` for each frame of Label Studio's timeline that can be decoded.

    Args:
        first, last: 1-based, within the timeline.

    Raises:
        VideoError: none of the frames can be decoded.
    """
    info, shown_at = probe(path), timeline.shown_at(first, last)
    size = scaled_size(info.width, info.height, min(1.0, SIDE / max(info.width, info.height)))
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:  # stored: JPEG files cannot be compressed further
        images = read_frames(path, info, start=min(shown_at), size=size, lazy=True)
        for image in takewhile(lambda image: image.index <= max(shown_at), images):
            if image.index in shown_at:
                _, jpeg = cv2.imencode(".jpg", image.image, (cv2.IMWRITE_JPEG_QUALITY, QUALITY))
                for frame in shown_at[image.index]:
                    archive.writestr(f"{frame}.jpg", jpeg.tobytes())
        if not archive.namelist():
            raise VideoError(f"{path.name} cannot be decoded at frame {first}.", "The file may be damaged there.")
    return file.getvalue()
