"""A panel with the labels of a video and how many of each are to be seen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ml_backend.export.fonts import Fonts
from ml_backend.export.tiles import (
    DARK,
    PLATE_ALPHA,
    UNLABELLED_COLOUR,
    WHITE,
    Canvas,
    Colour,
    Scale,
    Tile,
    dashes,
    rounded,
    short,
)
from ml_backend.types import Image, IntArray


class Legend:
    """A panel in the top left corner: labels with how many of each are to be seen, and what solid and dashed mean.

    Args:
        labels, colours: by ``class_id``.
        kinds: whether the boxes are a human's: one or two of ``True`` and ``False``.
        rows: labels that are listed; further ones are counted together.
    """

    def __init__(
        self,
        labels: Sequence[str],
        colours: Sequence[Colour],
        kinds: Sequence[bool],
        scale: Scale,
        fonts: Fonts,
        rows: int = 12,
    ) -> None:
        self._scale, self._fonts, self._rows = scale, fonts, rows
        self._colours = colours
        self._kinds = kinds
        self._names = [fonts.mask(short(label) or "(no label)", scale.font) for label in labels[:rows]]
        if len(labels) > rows:
            self._names.append(fonts.mask(f"{len(labels) - rows} more labels", scale.font))
        self._keys = [(kind, fonts.mask("by hand" if kind else "by model", scale.font)) for kind in kinds]
        self._tiles: dict[tuple[int, ...], Tile] = {}

    def draw(self, image: Image, class_id: IntArray) -> None:
        """Draw on a BGR image, in place.

        Args:
            class_id: ``(n,)`` labels of the boxes in the picture.
        """
        counts = np.bincount(class_id, minlength=len(self._colours)).tolist()
        key = (*counts[: self._rows], *([sum(counts[self._rows :])] if len(counts) > self._rows else []))
        if key not in self._tiles:
            if len(self._tiles) >= 64:
                self._tiles.clear()
            self._tiles[key] = self._made(key)
        margin = max(4, self._scale.font // 2)
        self._tiles[key].lay_on(image, margin, margin)

    def _made(self, counts: Sequence[int]) -> Tile:
        scale = self._scale
        numbers = [self._fonts.mask(str(count), scale.font) for count in counts]
        step = round(scale.font * 1.5)
        key = 2 * scale.font  # width of the line that shows how boxes are drawn
        swatch = round(scale.font * 0.8)
        edge = round(scale.font * 0.6)
        # As wide as three digits need from the beginning, so that the panel does not breathe with the counts.
        digits = max(self._fonts.mask("000", scale.font).shape[1], *(n.shape[1] for n in numbers), 0)
        names = max((name.shape[1] for name in self._names), default=0)
        keys = max((key + edge + text.shape[1] for _, text in self._keys), default=0)
        width = max(2 * edge + swatch + names + edge + digits, keys + edge) + edge
        height = step * (len(self._names) + len(self._keys)) + edge
        canvas = Canvas(width, height, DARK, PLATE_ALPHA, scale.pad * 2)
        middle = edge // 2 + step // 2
        for row, (name, number) in enumerate(zip(self._names, numbers, strict=True)):
            y = middle + row * step
            colour = self._colours[row] if row < self._rows else UNLABELLED_COLOUR
            canvas.put(rounded(swatch, swatch, scale.pad), edge, y - swatch // 2, colour)
            shade = WHITE if counts[row] else (140, 140, 145)
            canvas.put(name, 2 * edge + swatch, y - name.shape[0] // 2, shade)
            canvas.put(number, width - edge - number.shape[1], y - number.shape[0] // 2, shade)
        for row, (kind, text) in enumerate(self._keys, len(self._names)):
            y = middle + row * step
            line = scale.line + 1
            if kind:
                canvas.fill(edge, y - line // 2, key, line, WHITE)
            else:
                pattern: Image = np.where(dashes(key, max(2, key // 5)), np.uint8(255), np.uint8(0))
                canvas.put(np.repeat(pattern[None], line, axis=0), edge, y - line // 2, WHITE)
            canvas.put(text, 2 * edge + key, y - text.shape[0] // 2, WHITE)
        return canvas.tile()
