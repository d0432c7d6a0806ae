"""Panes beside each other in one picture: each shows the same video with other boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ml_backend.export.fonts import Fonts
from ml_backend.export.tiles import WHITE, Canvas
from ml_backend.types import Image

#: Of all panes together, px: hardware decoders of H.264 take 4096.
MAX_WIDTH = 3840
_GROUND = (24, 24, 28)
_STRIP = (38, 38, 44)


@dataclass(frozen=True, slots=True)
class Pane:
    """Where a pane's picture lies in the whole.

    Attributes:
        x, y: top left corner, px.
        width, height: px.
    """

    x: int
    y: int
    width: int
    height: int

    def of(self, image: Image) -> Image:
        """The pane's part of a picture; a view, to be drawn on."""
        return image[self.y : self.y + self.height, self.x : self.x + self.width]


def fitting_size(width: int, height: int, panes: int, wanted_height: int | None = None) -> tuple[int, int]:
    """Size of a video's picture in one of several panes: its own, unless less is wanted or all would be too wide.

    Args:
        width, height: of the video, px.
        wanted_height: px.
    """
    share = min(1.0, MAX_WIDTH / (panes * width))
    if wanted_height is not None:
        share = min(share, wanted_height / height)
    if share == 1.0:
        return width, height
    # Even sizes need no padding in the middle of a picture that is made of several.
    return max(2, round(width * share / 2) * 2), max(2, round(height * share / 2) * 2)


class Layout:
    """A picture of panes: one alone is the picture itself, several stand side by side under their titles.

    Args:
        size: width and height of each pane, px.
        titles: one a pane.
        font: size of the titles' letters, px.
    """

    def __init__(self, size: tuple[int, int], titles: Sequence[str], font: int, fonts: Fonts) -> None:
        width, height = size
        several = len(titles) > 1
        strip = round(font * 2.2) if several else 0
        gap = max(2, round(font / 3)) if several else 0
        self.panes = tuple(Pane(n * (width + gap), strip, width, height) for n in range(len(titles)))
        self.width, self.height = len(titles) * (width + gap) - gap, height + strip
        self._ground = np.empty((self.height, self.width, 3), np.uint8)
        self._ground[:] = _GROUND[::-1]
        for pane, title in zip(self.panes, titles if several else (), strict=several):
            canvas = Canvas(width, strip, _STRIP)
            mask = fonts.mask(title, font)
            pad = round(font * 0.7)
            if mask.shape[1] > width - 2 * pad:  # the beginning tells most
                mask = mask[:, : max(width - 2 * pad, 1)]
            canvas.put(mask, pad, (strip - mask.shape[0]) // 2, WHITE)
            canvas.tile().lay_on(self._ground, pane.x, 0)

    def spread(self, picture: Image) -> Image:
        """The whole picture with the video's in each pane, to be drawn on; ``(height, width, 3)`` uint8 BGR.

        Args:
            picture: of a pane's size. Where there is one pane only it is drawn on itself.
        """
        if len(self.panes) == 1:
            return picture
        for pane in self.panes:
            pane.of(self._ground)[:] = picture
        return self._ground
