"""Draw boxes, names, trails and a legend on frames of any size, mostly with supervision's annotators.

A frame's boxes are a ``supervision.Detections``: ``xyxy`` in pixels, ``class_id`` the index of the label,
``tracker_id`` the track id, ``confidence`` 0..1 (NaN: none), ``data["manual"]`` whether a person drew it, ``mask`` the
masks, if there are any. Manual boxes are solid with the name on the label's colour; predicted boxes are dashed with the
name on black.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, cast

import cv2
import numpy as np
import numpy.typing as npt
import supervision as sv
from PIL import Image as PILImage
from PIL import ImageColor, ImageDraw
from supervision.annotators.base import BaseAnnotator

from ml_backend.core.types import BoolArray, Image, IntArray
from ml_backend.rendering.text import Fonts

Colour = tuple[int, int, int]
DARK: Colour = (18, 18, 22)
WHITE: Colour = (255, 255, 255)
UNLABELLED_COLOUR: Colour = (158, 158, 158)
#: Legend entries without boxes on the frame.
_FAINT: Colour = (140, 140, 145)
#: Opacity of a dark plate, 0..255; the frame shows through.
_PLATE_ALPHA = 200
#: Distinguishable on dark and bright frames; the first ones differ most.
PALETTE: tuple[Colour, ...] = (
    (229, 57, 53), (30, 136, 229), (67, 160, 71), (251, 140, 0), (142, 36, 170), (0, 172, 193), (253, 216, 53),
    (216, 27, 96), (124, 179, 66), (94, 53, 177), (0, 137, 123), (255, 112, 67), (109, 76, 65), (192, 202, 51),
    (57, 73, 171), (236, 64, 122),
)  # fmt: skip


def label_colours(labels: Sequence[str], wanted: Mapping[str, str] | None = None) -> dict[str, Colour]:
    """Return an RGB colour for each label: the wanted one, else one derived from the label's name.

    Args:
        wanted: CSS colours by label, such as a config's ``background``; invalid ones are ignored.
    """
    colours: dict[str, Colour] = {}
    for label in labels:
        try:
            red, green, blue = ImageColor.getrgb((wanted or {})[label])[:3]
            colours[label] = red, green, blue
        except (KeyError, ValueError):
            continue
    taken = set(colours.values())
    for label in sorted(set(labels) - set(colours)):
        if not label:
            colours[label] = UNLABELLED_COLOUR
            continue
        first = int.from_bytes(hashlib.sha256(label.encode()).digest()[:4], "big") % len(PALETTE)
        candidates = [*PALETTE[first:], *PALETTE[:first]]
        # A label has the same colour in every video, unless it is taken by another label.
        colours[label] = next((colour for colour in candidates if colour not in taken), candidates[0])
        taken.add(colours[label])
    return colours


def text_colour(background: Colour) -> Colour:
    """Return dark or white, whichever is readable on the background."""
    red, green, blue = background
    return DARK if 0.299 * red + 0.587 * green + 0.114 * blue > 160 else WHITE


def truncate(text: str, limit: int = 32) -> str:
    """Shorten a text to ``limit`` characters with an ellipsis."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


@dataclass(frozen=True, slots=True)
class Scale:
    """Sizes in pixels that suit a frame."""

    line: int  # thickness of boxes
    font: int
    pad: int  # between text and the edge of its plate
    dash: int  # length of a dash

    @classmethod
    def of(cls, width: int, height: int) -> Scale:
        """Return the sizes for a frame; text stays readable on small ones."""
        side = min(width, height)
        font = max(11, round(side / 57))
        line = max(2, round(side / 360))
        return cls(line=line, font=font, pad=max(2, round(font / 4)), dash=5 * line)


class DashedBoxAnnotator(BaseAnnotator):
    """Draws boxes with dashed edges, which supervision lacks."""

    def __init__(self, palette: sv.ColorPalette, thickness: int, dash: int) -> None:
        self._palette, self._thickness, self._dash = palette, thickness, dash

    def annotate(self, scene: Image, detections: sv.Detections) -> Image:  # pyrefly: ignore[bad-override]
        """Draw on ``scene``, BGR, in place."""
        for box, number in zip(detections.xyxy, np.asarray(detections.class_id).tolist(), strict=True):
            lines: Any = _dashes(box, self._dash)  # OpenCV's types accept only sequences
            # A dark outline, as solid boxes have.
            cv2.polylines(scene, lines, False, DARK[::-1], self._thickness + 2)
            cv2.polylines(scene, lines, False, self._palette.by_idx(number).as_bgr(), self._thickness)
        return scene


def _dashes(box: Sequence[float], dash: int) -> npt.NDArray[np.int32]:
    """Return line segments ``(n, 2, 2)`` along the edges of a box."""
    x1, y1, x2, y2 = (round(float(side)) for side in box)
    horizontal, vertical = _dash_spans(x2 - x1, dash), _dash_spans(y2 - y1, dash)
    lines = [((x1 + start, y), (x1 + end, y)) for y in (y1, y2) for start, end in horizontal]
    lines += [((x, y1 + start), (x, y1 + end)) for x in (x1, x2) for start, end in vertical]
    return np.array(lines, np.int32)


@lru_cache(maxsize=4096)
def _dash_spans(length: int, dash: int) -> list[tuple[int, int]]:
    """Return the start and end of each dash of an edge; corners are always drawn."""
    # An edge too short for a gap is solid.
    gaps = max(1, round((length / dash - 1) / 2)) if length >= 6 else 0
    ends = [round(length * n / (2 * gaps + 1)) for n in range(2 * gaps + 2)]
    return list(zip(ends[::2], ends[1::2], strict=True))


@dataclass(frozen=True, slots=True)
class _Tile:
    """A translucent overlay, prepared for blending five times as fast as supervision does it."""

    add: Image  # premultiplied colours, added to the image below
    keep: Image  # share of the image below, 0..255

    @classmethod
    def of(cls, image: PILImage.Image) -> _Tile:
        """Prepare an ``RGBA`` image."""
        pixels = np.asarray(image.convert("RGBa"))  # premultiplied
        return cls(np.ascontiguousarray(pixels[..., 2::-1]), np.repeat(255 - pixels[..., 3:], 3, axis=2))

    def blend(self, image: Image, x: int, y: int) -> None:
        """Blend onto a BGR image in place, top left corner at ``(x, y)``, clipped to the image."""
        below = image[y : y + self.add.shape[0], x : x + self.add.shape[1]]
        height, width = below.shape[:2]
        if below.size:
            cv2.multiply(below, self.keep[:height, :width], dst=below, scale=1 / 255)
            cv2.add(below, self.add[:height, :width], dst=below)


class NameAnnotator(BaseAnnotator):
    """Draws names beside boxes, in any script, with as little overlap as possible.

    Unlike supervision's ``RichLabelAnnotator``, which takes six times as long as everything drawn here, it renders each
    text once and keeps a name on the same side of its box while there is room, so that it does not jump.

    Args:
        colours: RGB by ``class_id``.
    """

    def __init__(self, colours: Sequence[Colour], scale: Scale, fonts: Fonts) -> None:
        self._colours, self._scale, self._fonts = colours, scale, fonts
        self._plate = lru_cache(maxsize=256)(self._make_plate)
        self._sides: dict[int, int] = {}  # index of the position by track id, on the previous frame

    def annotate(  # pyrefly: ignore[bad-override]
        self, scene: Image, detections: sv.Detections, texts: Sequence[str] = ()
    ) -> Image:
        """Draw on ``scene``, BGR, in place; empty texts are skipped."""
        tracks, labels = np.asarray(detections.tracker_id).tolist(), np.asarray(detections.class_id).tolist()
        placed: IntArray = np.zeros((0, 4), np.int64)
        sides: dict[int, int] = {}
        # Oldest tracks first, so that they keep their positions when a new one appears.
        for row in sorted((row for row, text in enumerate(texts) if text), key=lambda i: tracks[i]):
            plate = self._plate(texts[row], self._colours[labels[row]], bool(detections.data["manual"][row]))
            positions, fits = self._positions(detections.xyxy[row].tolist(), plate.add.shape, scene.shape)
            intersection = np.minimum(positions[:, None, 2:], placed[:, 2:])
            intersection -= np.maximum(positions[:, None, :2], placed[:, :2])
            overlap = np.maximum(intersection, 0).prod(axis=2).sum(axis=1) + ~fits
            previous = self._sides.get(tracks[row], 0)
            best = previous if overlap[previous] == overlap.min() else int(np.argmin(overlap))
            placed = np.concatenate([placed, positions[best : best + 1]])
            sides[tracks[row]] = best
            plate.blend(scene, *positions[best, :2].tolist())
        self._sides = sides
        return scene

    def _make_plate(self, text: str, colour: Colour, manual: bool) -> _Tile:
        pad, mask = self._scale.pad, self._fonts.mask(text, self._scale.font)
        bar, rim = 0 if manual else max(2, pad), max(1, pad // 3)
        plate = _plate(mask.width + 2 * pad + bar, mask.height + 2 * rim, pad, (*colour, 240) if manual else None)
        plate.paste(colour, (0, 0, bar, plate.height))
        plate.paste(text_colour(colour) if manual else WHITE, (bar + pad, rim), mask)
        return _Tile.of(plate)

    def _positions(
        self, box: Sequence[float], plate: tuple[int, ...], scene: tuple[int, ...]
    ) -> tuple[IntArray, BoolArray]:
        """Return candidate plates ``(n, 4)`` int64 inside the frame, and ``(n,)`` which do not cover the box.

        Above and below, left-aligned, then right-aligned; then inside the box.
        """
        gap = self._scale.line // 2 + 1
        (x1, y1, x2, y2), (h, w, _), (height, width, _) = map(round, box), plate, scene
        left, right, above, below = x1 - gap, x2 + gap - w, y1 - gap - h, y2 + gap
        inside = [(x1 + gap, y1 + gap), (x1 + gap, y2 - gap - h)]
        positions: IntArray = np.array(
            [(left, above), (left, below), (right, above), (right, below), *inside], np.int64
        )
        fits: BoolArray = (positions[:, 1] >= 0) & (positions[:, 1] + h <= height)
        fits[4:] = False
        positions = np.maximum(np.minimum(positions, np.array([width - w, height - h])), 0)
        return np.concatenate([positions, positions + np.array([w, h])], axis=1), fits


class Legend:
    """A panel in the top left corner with labels, their number of boxes, and a key of solid and dashed lines.

    Args:
        labels, colours: by ``class_id``.
        kinds: whether boxes are manual: one or two of ``True`` and ``False``.
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
        self._scale, self._kinds, self._rows = scale, kinds, rows
        self._mask = partial(fonts.mask, size=scale.font)
        names = [truncate(label) or "(no label)" for label in labels[:rows]]
        more = [f"{len(labels) - rows} more labels"] if len(labels) > rows else []
        self._names = [self._mask(name) for name in (*names, *more)]
        self._colours = [*colours[:rows], UNLABELLED_COLOUR]
        self._panel = lru_cache(maxsize=64)(self._make_panel)

    def draw(self, image: Image, class_id: IntArray) -> None:
        """Draw on a BGR image in place, for boxes with these labels."""
        counts = np.bincount(np.minimum(class_id, self._rows), minlength=len(self._names)).tolist()
        margin = max(4, self._scale.font // 2)
        self._panel(*counts).blend(image, margin, margin)

    def _make_panel(self, *counts: int) -> _Tile:
        scale = self._scale
        numbers = [self._mask(str(count)) for count in counts]
        keys = [self._mask("by hand" if manual else "by model") for manual in self._kinds]
        step, edge, swatch = round(scale.font * 1.5), round(scale.font * 0.6), round(scale.font * 0.8)
        line = 2 * scale.font  # length of the sample lines
        # At least three digits wide, so that the width does not change with the counts.
        digits = max(number.width for number in (self._mask("000"), *numbers))
        names = max((name.width for name in self._names), default=0)
        width = max(swatch + names + digits + edge, *(line + key.width for key in keys), 0) + 3 * edge
        panel = _plate(width, step * (len(numbers) + len(keys)) + edge, 2 * scale.pad)
        draw = ImageDraw.Draw(panel)
        middle = edge // 2 + step // 2
        for name, number, count, colour in zip(self._names, numbers, counts, self._colours, strict=False):
            top = middle - swatch // 2
            draw.rounded_rectangle((edge, top, edge + swatch - 1, top + swatch - 1), scale.pad, colour)
            text = WHITE if count else _FAINT
            panel.paste(text, (2 * edge + swatch, middle - name.height // 2), name)
            panel.paste(text, (width - edge - number.width, middle - number.height // 2), number)
            middle += step
        for manual, key in zip(self._kinds, keys, strict=True):
            for start in (0,) if manual else (0, 2, 4):
                end = 5 if manual else start + 1
                draw.line((edge + start * line // 5, middle, edge + end * line // 5 - 1, middle), WHITE, scale.line + 1)
            panel.paste(WHITE, (2 * edge + line, middle - key.height // 2), key)
            middle += step
        return _Tile.of(panel)


def _plate(width: int, height: int, radius: int, colour: tuple[int, ...] | None = None) -> PILImage.Image:
    """Return a plate with round corners for text, by default a dark one."""
    plate = PILImage.new("RGBA", (width, height))
    ImageDraw.Draw(plate).rounded_rectangle((0, 0, width - 1, height - 1), radius, colour or (*DARK, _PLATE_ALPHA))
    return plate


@dataclass(frozen=True, slots=True)
class BoxStyle:
    """How boxes are drawn.

    Attributes:
        names, numbers, confidence: whether label, track id and confidence are shown beside a box.
        trails: length of trails behind objects in seconds; 0: none.
        legend: whether a panel with labels and counts is drawn.
    """

    names: bool = True
    numbers: bool = True
    confidence: bool = True
    trails: float = 0.0
    legend: bool = False


class FramePainter:
    """Draws the boxes of one layer on the frames of one video, in order.

    Args:
        labels: by ``class_id``.
        colours: RGB by label.
        size: width and height of the frames.
        fps: frames per second, for the length of trails.
        kinds: whether boxes are manual, for the legend: one or two of ``True`` and ``False``.
    """

    def __init__(
        self,
        labels: Sequence[str],
        colours: Mapping[str, Colour],
        size: tuple[int, int],
        fps: float,
        style: BoxStyle,
        fonts: Fonts,
        kinds: Sequence[bool] = (),
    ) -> None:
        scale = Scale.of(*size)
        rgb = [colours[label] for label in labels]
        palette = sv.ColorPalette([sv.Color(*colour) for colour in rgb] or [sv.Color(*UNLABELLED_COLOUR)])
        self._labels = [truncate(label) for label in labels]
        self._style = style
        self._edge = sv.BoxAnnotator(sv.Color(*DARK), scale.line + 2)
        self._solid = sv.BoxAnnotator(palette, scale.line)
        self._masks = sv.MaskAnnotator(palette)
        self._dashed = DashedBoxAnnotator(palette, scale.line, scale.dash)
        self._names = NameAnnotator(rgb, scale, fonts)
        self._trails: Any = None
        if style.trails > 0:
            length = max(2, round(style.trails * fps))
            self._trails = sv.TraceAnnotator(palette, sv.Position.BOTTOM_CENTER, length, scale.line)
        # The panel must not cover a small frame.
        rows = min(12, max(3, size[1] // (3 * scale.font)))
        self._legend = Legend(labels, rgb, kinds, scale, fonts, rows) if style.legend else None

    def paint(self, image: Image, detections: sv.Detections) -> None:
        """Draw on a BGR image in place; the module's docstring describes ``detections``."""
        if self._trails is not None:
            self._trails.annotate(image, detections)
        if detections.mask is not None:
            self._masks.annotate(image, detections)
            detections = replace(detections, mask=None)  # of the frame's size each, and copied with each selection
        # Largest first, so that smaller boxes are drawn on top.
        ordered = _select(detections, np.argsort(-np.asarray(detections.box_area, np.float64), kind="stable"))
        ordered.xyxy = np.rint(ordered.xyxy)
        manual = np.asarray(ordered.data["manual"], bool)
        manual_boxes = _select(ordered, manual)
        self._edge.annotate(image, manual_boxes)
        self._solid.annotate(image, manual_boxes)
        self._dashed.annotate(image, _select(ordered, ~manual))
        self._names.annotate(image, ordered, self._texts(ordered))
        if self._legend is not None:
            self._legend.draw(image, np.asarray(detections.class_id, np.int64))

    def _texts(self, detections: sv.Detections) -> list[str]:
        """Return the text beside each box."""
        style, texts = self._style, []
        for label, track, score in zip(
            np.asarray(detections.class_id).tolist(),
            np.asarray(detections.tracker_id).tolist(),
            np.asarray(detections.confidence).tolist(),
            strict=True,
        ):
            name = self._labels[label] if style.names else ""
            number = f"#{track}" if style.numbers else ""
            confidence = f"{score:.0%}" if style.confidence and not math.isnan(score) else ""
            texts.append(" ".join(filter(None, (name, number, confidence))))
        return texts


def _select(detections: sv.Detections, rows: IntArray | BoolArray) -> sv.Detections:
    return cast(sv.Detections, detections[rows])
