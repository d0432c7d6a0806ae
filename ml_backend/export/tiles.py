"""Small half-transparent pictures that are drawn once and laid on many video pictures."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from ml_backend.types import BoolArray, Image

Colour = tuple[int, int, int]
DARK: Colour = (18, 18, 22)
WHITE: Colour = (255, 255, 255)
UNLABELLED_COLOUR: Colour = (158, 158, 158)
#: Of a dark plate, 0..255: the picture stays to be guessed behind it.
PLATE_ALPHA = 200


@dataclass(frozen=True, slots=True)
class Scale:
    """Sizes in pixels that suit a picture.

    Attributes:
        line: thickness of boxes.
        font: size of letters.
        pad: between letters and a plate's edge.
        dash: usual length of a dash.
    """

    line: int
    font: int
    pad: int
    dash: int

    @classmethod
    def of(cls, width: int, height: int) -> Scale:
        """For a picture of this size; letters stay readable in small ones."""
        side = min(width, height)
        font = max(11, round(side / 57))
        line = max(2, round(side / 360))
        return cls(line=line, font=font, pad=max(2, round(font / 4)), dash=5 * line)


class Tile:
    """A small picture with a transparency of its own, kept in the form in which it is laid on fastest.

    Args:
        rgb: ``(height, width, 3)`` uint8.
        alpha: ``(height, width)`` uint8; 255 hides what is below.
    """

    def __init__(self, rgb: npt.NDArray[Any], alpha: npt.NDArray[Any]) -> None:
        part = alpha[..., None].astype(np.float32) / 255
        self._add: Image = np.rint(rgb[..., ::-1] * part).astype(np.uint8)
        # In bytes: OpenCV multiplies bytes by bytes fifty times as fast as bytes by floats.
        self._keep: Image = np.repeat(255 - alpha[..., None].astype(np.uint8), 3, axis=2)
        self.height, self.width = alpha.shape

    def lay_on(self, image: Image, x: int, y: int) -> None:
        """Lay it on a BGR image, its top left corner at ``(x, y)``; what lies outside is cut off."""
        x1, y1 = max(x, 0), max(y, 0)
        x2, y2 = min(x + self.width, image.shape[1]), min(y + self.height, image.shape[0])
        if x1 >= x2 or y1 >= y2:
            return
        below = image[y1:y2, x1:x2]
        part = np.s_[y1 - y : y2 - y, x1 - x : x2 - x]
        cv2.multiply(below, self._keep[part], dst=below, scale=1 / 255)
        cv2.add(below, self._add[part], dst=below)


def text_colour(background: Colour) -> Colour:
    red, green, blue = background
    return DARK if 0.299 * red + 0.587 * green + 0.114 * blue > 160 else WHITE


def rounded(width: int, height: int, radius: int) -> Image:
    """Coverage of a rectangle with round corners, ``(height, width)`` uint8, smooth at its edges."""
    radius = min(radius, width // 2, height // 2)
    y, x = np.mgrid[0:height, 0:width] + 0.5
    dx = np.maximum(np.maximum(radius - x, x - (width - radius)), 0)
    dy = np.maximum(np.maximum(radius - y, y - (height - radius)), 0)
    return np.asarray(
        np.clip(radius + 0.5 - np.hypot(dx, dy), 0, 1) * 255 if radius else np.full(x.shape, 255), np.uint8
    )


class Canvas:
    """Something to put text and blocks on, to become a :class:`Tile`.

    Args:
        width, height: px.
        colour: of the ground.
        alpha: of the ground, 0..255.
    """

    def __init__(self, width: int, height: int, colour: Colour, alpha: int = 255, radius: int = 0) -> None:
        self._rgb = np.empty((height, width, 3), np.float32)
        self._rgb[:] = colour
        self._alpha = rounded(width, height, radius).astype(np.float32) * (alpha / 255)
        self._shape = rounded(width, height, radius)

    def put(self, mask: Image, x: int, y: int, colour: Colour) -> None:
        """Colour the pixels that ``mask`` covers, its top left corner at ``(x, y)``; it is cut off at the edges."""
        height, width = self._alpha.shape
        mask = mask[: max(height - y, 0), : max(width - x, 0)]
        part = np.s_[y : y + mask.shape[0], x : x + mask.shape[1]]
        share = mask.astype(np.float32) / 255
        self._rgb[part] += (np.asarray(colour, np.float32) - self._rgb[part]) * share[..., None]
        self._alpha[part] = np.maximum(self._alpha[part], np.minimum(mask, self._shape[part]))

    def fill(self, x: int, y: int, width: int, height: int, colour: Colour) -> None:
        """Colour a block."""
        self.put(np.full((height, width), 255, np.uint8), x, y, colour)

    def tile(self) -> Tile:
        """What has been put together."""
        return Tile(np.rint(self._rgb), np.rint(self._alpha))


@lru_cache(maxsize=4096)
def dashes(length: int, dash: int) -> BoolArray:
    """Which pixels of an edge are drawn: dashes of about ``dash`` px, one at each end, so that corners are whole."""
    # An edge too short for a gap is drawn through.
    gaps = max(1, round((length / dash - 1) / 2)) if length >= 6 else 0
    out: BoolArray = np.arange(length) * (2 * gaps + 1) // max(length, 1) % 2 == 0
    out.setflags(write=False)
    return out


def short(text: str, limit: int = 32) -> str:
    """The beginning of a text that is too long."""
    return text if len(text) <= limit else text[: limit - 1] + "…"
