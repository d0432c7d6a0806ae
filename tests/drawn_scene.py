"""A video of one object that no detector knows, for tests of drawn boxes."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

WIDTH, HEIGHT, FPS, FRAMES = 640, 360, 25, 75
#: Box of a post in front of the object's way.
POST = (250, 90, 330, 270)


def truth(frame: int) -> tuple[float, float, float, float]:
    """Return the object's box ``x1, y1, x2, y2`` on a 1-based frame."""
    x, y = 60 + 4.0 * (frame - 1), 120 + 20 * np.sin(frame / 12)
    return x, y, x + 90, y + 90


def write_scene(path: Path, frames: int = FRAMES, *, post: bool = False) -> None:
    """Write a video in which a chequered square, which no detector knows, moves over a textured background.

    Args:
        post: whether it passes behind a post.
    """
    rng = np.random.default_rng(1)
    background = rng.integers(70, 130, (HEIGHT // 10, WIDTH // 10, 3), np.uint8).repeat(10, 0).repeat(10, 1)
    square = rng.integers(0, 255, (6, 6, 3), np.uint8).repeat(15, 0).repeat(15, 1)
    left, top, right, bottom = POST
    pattern = np.random.default_rng(5).integers(0, 255, (9, 4, 3), np.uint8).repeat(20, 0).repeat(20, 1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for frame in range(1, frames + 1):
            image = background.copy()
            x, y = (round(value) for value in truth(frame)[:2])
            image[y : y + 90, x : x + 90] = square
            if post:
                image[top:bottom, left:right] = pattern
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        container.mux(stream.encode(None))


def mask_box(value: Any) -> tuple[int, int, int, int]:
    """Return the box ``x1, y1, x2, y2`` in pixels of a mask as Label Studio's toolbar gets it."""
    encoded = base64.b64decode(value["imageDataURL"].removeprefix("data:image/png;base64,"))
    mask = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_GRAYSCALE)
    assert mask is not None
    assert mask.shape == (value["height"], value["width"])
    x, y, width, height = cv2.boundingRect(mask)
    return x, y, x + width, y + height
