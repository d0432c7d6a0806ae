"""Fit images into the input of a detection network, as ultralytics' predictor does."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from ml_backend.core.types import FloatArray, Image

PADDING = 114  # grey, as in training


@dataclass(frozen=True, slots=True)
class Letterbox:
    """Scale of images of one size and the padding around them.

    Attributes:
        image_size: ``(width, height)`` of the images, pixels.
        scaled_size: ``(width, height)`` after scaling.
        padding: pixels at the left, top, right and bottom; they make the sides multiples of the network's stride.
    """

    image_size: tuple[int, int]
    scaled_size: tuple[int, int]
    padding: tuple[int, int, int, int]

    @classmethod
    def fit(cls, image_size: tuple[int, int], side: int, stride: int) -> Letterbox:
        """Return the letterbox whose longer side is ``side``, the shorter one as long as the aspect ratio needs."""
        width, height = image_size
        scale = min(side / width, side / height)
        scaled = max(1, round(width * scale)), max(1, round(height * scale))
        half_x, half_y = ((side - length) % stride / 2 for length in scaled)
        # Half a pixel goes to the right and to the bottom.
        padding = round(half_x - 0.1), round(half_y - 0.1), round(half_x + 0.1), round(half_y + 0.1)
        return cls(image_size, scaled, padding)

    def apply(self, image: Image) -> Image:
        """Return an image in the size of the network's input."""
        if self.image_size != self.scaled_size:
            image = np.asarray(cv2.resize(image, self.scaled_size, interpolation=cv2.INTER_LINEAR), np.uint8)
        left, top, right, bottom = self.padding
        padded = cv2.copyMakeBorder(image, top, bottom, left, right, cv2.BORDER_CONSTANT, value=(PADDING,) * 3)
        return np.asarray(padded, np.uint8)

    def to_image(self, xyxy: FloatArray) -> FloatArray:
        """Return ``(n, 4)`` boxes in pixels of the image, clipped to it, of boxes in pixels of the network's input."""
        size = np.array(self.image_size * 2, np.float32)
        scale = np.array(self.scaled_size * 2, np.float32) / size
        moved = (xyxy - np.array(self.padding[:2] * 2, np.float32)) / scale
        return np.asarray(np.clip(moved, 0, size), np.float32)
