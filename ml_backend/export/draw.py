"""Boxes, names, trails and a legend on pictures of any size: supervision's annotators, and those that it lacks.

A picture's boxes are a ``supervision.Detections``: ``xyxy`` in pixels, ``class_id`` the index of the label,
``tracker_id`` the number of the track, ``confidence`` 0..1 (NaN: none), ``data["manual"]`` whether a human drew it.
What a human drew is solid with its name on the label's colour; what a model found is dashed with its name on black.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import supervision as sv
from PIL import ImageColor
from supervision.annotators.base import BaseAnnotator

from ml_backend.export.fonts import Fonts
from ml_backend.export.tiles import DARK, WHITE, Canvas, Colour, Tile, rounded, text_colour
from ml_backend.geometry import Float64Array
from ml_backend.types import BoolArray, Image, IntArray

#: Told apart at a glance, also on dark and on bright pictures; in this order the first ones differ most.
PALETTE: tuple[Colour, ...] = (
    (229, 57, 53), (30, 136, 229), (67, 160, 71), (251, 140, 0), (142, 36, 170), (0, 172, 193), (253, 216, 53),
    (216, 27, 96), (124, 179, 66), (94, 53, 177), (0, 137, 123), (255, 112, 67), (109, 76, 65), (192, 202, 51),
    (57, 73, 171), (236, 64, 122),
)  # fmt: skip
UNLABELLED_COLOUR: Colour = (158, 158, 158)
#: Of a dark plate, 0..255: the picture stays to be guessed behind it.
_PLATE_ALPHA = 200


def label_colours(labels: Sequence[str], wanted: Mapping[str, str] | None = None) -> dict[str, Colour]:
    """An RGB colour for each label: the wanted one, else one that follows from the label's name.

    Args:
        wanted: CSS colours by label, such as a config's ``background``; those that are none are passed over.
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
        ring = [*PALETTE[first:], *PALETTE[:first]]
        # The same label has the same colour in every video, unless another one has taken it.
        colours[label] = next((colour for colour in ring if colour not in taken), ring[0])
        taken.add(colours[label])
    return colours


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


@lru_cache(maxsize=4096)
def _dashes(length: int, dash: int) -> BoolArray:
    """Which pixels of an edge are drawn: dashes of about ``dash`` px, one at each end, so that corners are whole."""
    gaps = max(1, round((length / dash - 1) / 2))
    out: BoolArray = np.arange(length) * (2 * gaps + 1) // max(length, 1) % 2 == 0
    out.setflags(write=False)
    return out


class DashedBoxAnnotator(BaseAnnotator):
    """Boxes with dashed edges, which supervision has not.

    Args:
        colours: by ``class_id``.
        thickness, dash: px.
        edge: width of a dark edge around the dashes, px.
    """

    def __init__(self, colours: Sequence[Colour], thickness: int, dash: int, edge: int = 1) -> None:
        self._bgr = [np.array(colour[::-1], np.uint8) for colour in colours]
        self._dark = np.array(DARK[::-1], np.uint8)
        self._thickness, self._dash, self._edge = thickness, dash, edge

    def annotate(self, scene: Image, detections: sv.Detections) -> Image:
        """Draw on ``scene``, BGR, in place."""
        boxes = np.rint(detections.xyxy).astype(np.int64).tolist()
        for box, number in zip(boxes, np.asarray(detections.class_id).tolist(), strict=True):
            self._draw(scene, box, self._thickness + 2 * self._edge, self._dark)
            self._draw(scene, box, self._thickness, self._bgr[number])
        return scene

    def _draw(self, scene: Image, box: list[int], thickness: int, bgr: Image) -> None:
        x1, y1, x2, y2 = box
        before = thickness // 2
        for y in (y1, y2):
            strip, pattern = _strip(scene, y - before, x1, x2 + 1, thickness, self._dash)
            strip[:, pattern] = bgr
        turned = scene.swapaxes(0, 1)
        for x in (x1, x2):
            strip, pattern = _strip(turned, x - before, y1, y2 + 1, thickness, self._dash)
            strip[:, pattern] = bgr


def _strip(scene: Image, row: int, start: int, end: int, thickness: int, dash: int) -> tuple[Image, BoolArray]:
    """The rows ``row...`` from column ``start`` to ``end``, as far as they are in the picture, and the dashes there."""
    height, width = scene.shape[:2]
    pattern = _dashes(max(end - start, 0), dash)
    rows = scene[max(row, 0) : max(min(row + thickness, height), 0)]
    left, right = max(start, 0), max(min(end, width), max(start, 0))
    return rows[:, left:right], pattern[left - start : right - start]


class PlateAnnotator(BaseAnnotator):
    """Names beside boxes, in any script, placed so that they hide each other as little as possible.

    Unlike supervision's ``RichLabelAnnotator`` it draws each text once and then only lays it on, which takes a
    fiftieth of the time, and a name stays on its side of the box while there is room, so that it does not jump.

    Args:
        colours: by ``class_id``.
        scale: sizes.
        fonts: draw the text.
    """

    #: Plates that are kept; confidence and labels make few.
    KEPT = 2048

    def __init__(self, colours: Sequence[Colour], scale: Scale, fonts: Fonts) -> None:
        self._colours, self._scale, self._fonts = colours, scale, fonts
        self._tiles: dict[tuple[str, int, bool], Tile] = {}
        self._side: dict[int, int] = {}

    def annotate(self, scene: Image, detections: sv.Detections, texts: Sequence[str] = ()) -> Image:
        """Draw on ``scene``, BGR, in place.

        Args:
            texts: one for each box.
        """
        if not len(detections):
            self._side.clear()
            return scene
        manual = detections.data["manual"]
        tracks, labels = np.asarray(detections.tracker_id).tolist(), np.asarray(detections.class_id).tolist()
        boxes = np.rint(detections.xyxy).astype(np.int64)
        placed = np.zeros((len(boxes), 4), np.int64)
        sides: dict[int, int] = {}
        # Longest known first: who was there keeps its place when somebody comes.
        for number, row in enumerate(sorted(range(len(boxes)), key=lambda i: tracks[i])):
            tile = self._tile(texts[row], labels[row], bool(manual[row]))
            spots = self._spots(boxes[row].tolist(), tile, scene.shape[1], scene.shape[0])
            best = self._choose(spots, placed[:number], self._side.get(tracks[row], 0))
            placed[number] = spots[best]
            sides[tracks[row]] = best
            tile.lay_on(scene, int(spots[best][0]), int(spots[best][1]))
        self._side = sides
        return scene

    def _tile(self, text: str, label: int, manual: bool) -> Tile:
        key = (text, label, manual)
        tile = self._tiles.pop(key, None) or self._made(text, self._colours[label], manual)
        self._tiles[key] = tile  # last in the dictionary: used last
        if len(self._tiles) > self.KEPT:
            del self._tiles[next(iter(self._tiles))]
        return tile

    def _made(self, text: str, colour: Colour, manual: bool) -> Tile:
        pad, mask = self._scale.pad, self._fonts.mask(text, self._scale.font)
        bar = 0 if manual else max(2, pad)
        ground, alpha = (colour, 240) if manual else (DARK, _PLATE_ALPHA)
        height = mask.shape[0] + 2 * max(1, pad // 3)
        canvas = Canvas(mask.shape[1] + 2 * pad + bar, height, ground, alpha, pad)
        if bar:
            canvas.fill(0, 0, bar, height, colour)
        canvas.put(mask, bar + pad, (height - mask.shape[0]) // 2, text_colour(colour) if manual else WHITE)
        return canvas.tile()

    def _spots(self, box: list[int], tile: Tile, width: int, height: int) -> IntArray:
        """``(n, 4)`` int64 boxes where a plate may lie, best first, inside the picture as far as it fits."""
        x1, y1, x2, y2 = box
        gap = self._scale.line // 2 + 1
        w, h = tile.width, tile.height
        spots = np.array(
            [
                (x1 - gap, y1 - gap - h),
                (x1 - gap, y2 + gap),
                (x2 + gap - w, y1 - gap - h),
                (x2 + gap - w, y2 + gap),
                (x1 + gap, y1 + gap),
                (x1 + gap, y2 - gap - h),
            ],
            np.int64,
        )
        spots[:, 0] = np.clip(spots[:, 0], 0, max(width - w, 0))
        fits = (spots[:, 1] >= 0) & (spots[:, 1] + h <= height)
        # A place above the picture's edge falls on the box itself: it is kept in the picture, and chosen last.
        spots[:, 1] = np.clip(spots[:, 1], 0, max(height - h, 0))
        out: IntArray = np.concatenate([spots, spots + np.array([w, h])], axis=1)
        out[~fits] = out[4]
        return out

    @staticmethod
    def _choose(spots: IntArray, placed: IntArray, before: int) -> int:
        """Index of the spot that hides least; the one of the picture before if it is as good as any."""
        if not len(placed):
            return before
        shared = np.minimum(spots[:, None, 2:], placed[None, :, 2:]) - np.maximum(
            spots[:, None, :2], placed[None, :, :2]
        )
        hidden = np.clip(shared, 0, None).prod(axis=2).sum(axis=1)
        return before if hidden[before] == hidden.min() else int(np.argmin(hidden))


class Legend:
    """A panel in the top left corner: labels with how many of each are to be seen, and what solid and dashed mean.

    Args:
        labels, colours: by ``class_id``.
        kinds: whether the boxes are a human's: one or two of ``True`` and ``False``.
    """

    #: Rows; further labels are counted together.
    ROWS = 12

    def __init__(
        self, labels: Sequence[str], colours: Sequence[Colour], kinds: Sequence[bool], scale: Scale, fonts: Fonts
    ) -> None:
        self._scale, self._fonts = scale, fonts
        self._colours = colours
        self._kinds = kinds
        self._names = [fonts.mask(_short(label) or "(no label)", scale.font) for label in labels[: self.ROWS]]
        if len(labels) > self.ROWS:
            self._names.append(fonts.mask(f"{len(labels) - self.ROWS} more labels", scale.font))
        self._keys = [(kind, fonts.mask("by hand" if kind else "by model", scale.font)) for kind in kinds]
        self._tiles: dict[tuple[int, ...], Tile] = {}

    def draw(self, image: Image, class_id: IntArray) -> None:
        """Draw on a BGR image, in place.

        Args:
            class_id: ``(n,)`` labels of the boxes in the picture.
        """
        counts = np.bincount(class_id, minlength=len(self._colours)).tolist()
        key = (*counts[: self.ROWS], *([sum(counts[self.ROWS :])] if len(counts) > self.ROWS else []))
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
        canvas = Canvas(width, height, DARK, _PLATE_ALPHA, scale.pad * 2)
        middle = edge // 2 + step // 2
        for row, (name, number) in enumerate(zip(self._names, numbers, strict=True)):
            y = middle + row * step
            colour = self._colours[row] if row < self.ROWS else UNLABELLED_COLOUR
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
                dashes = np.where(_dashes(key, max(2, key // 5)), np.uint8(255), np.uint8(0))
                canvas.put(np.repeat(dashes[None], line, axis=0), edge, y - line // 2, WHITE)
            canvas.put(text, 2 * edge + key, y - text.shape[0] // 2, WHITE)
        return canvas.tile()


def _short(text: str, limit: int = 32) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


@dataclass(frozen=True, slots=True)
class Look:
    """What is drawn of boxes.

    Attributes:
        names, numbers, confidence: what stands beside a box: label, number of the track, confidence of a model.
        trails: seconds of the way that is drawn behind an object; 0: none.
        legend: whether there is a panel with labels and counts.
    """

    names: bool = True
    numbers: bool = True
    confidence: bool = True
    trails: float = 0.0
    legend: bool = False


class Painter:
    """Draws the boxes of one source on the pictures of one video, one picture after the other.

    Args:
        labels: what ``class_id`` stands for.
        colours: RGB by label.
        size: width and height of the pictures.
        fps: pictures a second, for the length of trails.
        kinds: whether boxes are a human's, for the legend: one or two of ``True`` and ``False``.
    """

    def __init__(
        self,
        labels: Sequence[str],
        colours: Mapping[str, Colour],
        size: tuple[int, int],
        fps: float,
        look: Look,
        fonts: Fonts,
        kinds: Sequence[bool] = (),
    ) -> None:
        scale = Scale.of(*size)
        rgb = [colours[label] for label in labels]
        palette = sv.ColorPalette([sv.Color(*colour) for colour in rgb] or [sv.Color(*UNLABELLED_COLOUR)])
        self._labels = [_short(label) for label in labels]
        self._look = look
        self._edge = sv.BoxAnnotator(sv.Color(*DARK), scale.line + 2)
        self._solid = sv.BoxAnnotator(palette, scale.line)
        self._dashed = DashedBoxAnnotator(rgb, scale.line, scale.dash)
        self._plates = PlateAnnotator(rgb, scale, fonts)
        self._trails = None
        if look.trails > 0:
            length = max(2, round(look.trails * fps))
            self._trails = sv.TraceAnnotator(palette, sv.Position.BOTTOM_CENTER, length, scale.line)
        self._legend = Legend(labels, rgb, kinds, scale, fonts) if look.legend else None

    def paint(self, image: Image, detections: sv.Detections) -> None:
        """Draw on a BGR image, in place; see the module for what ``detections`` carries."""
        if self._trails is not None:
            self._trails.annotate(image, detections)
        if len(detections):
            # The largest first: what stands in front of it, or far behind, is not covered by it.
            xyxy: Float64Array = np.rint(detections.xyxy)
            area = (xyxy[:, 2:] - xyxy[:, :2]).prod(axis=1)
            ordered = _taken(detections, np.argsort(-area, kind="stable"), xyxy)
            manual = np.asarray(ordered.data["manual"], bool)
            if manual.any():
                humans = _taken(ordered, np.flatnonzero(manual), ordered.xyxy)
                self._edge.annotate(image, humans)
                self._solid.annotate(image, humans)
            if not manual.all():
                self._dashed.annotate(image, _taken(ordered, np.flatnonzero(~manual), ordered.xyxy))
            texts = self._texts(ordered)
            if any(texts):
                self._plates.annotate(image, ordered, texts)
        if self._legend is not None:
            class_id = detections.class_id
            self._legend.draw(image, np.zeros(0, np.int64) if class_id is None else class_id.astype(np.int64))

    def _texts(self, detections: sv.Detections) -> list[str]:
        texts = []
        for label, track, conf in zip(
            np.asarray(detections.class_id).tolist(),
            np.asarray(detections.tracker_id).tolist(),
            np.asarray(detections.confidence).tolist(),
            strict=True,
        ):
            parts = []
            if self._look.names and self._labels[label]:
                parts.append(self._labels[label])
            if self._look.numbers:
                parts.append(f"#{track}")
            if self._look.confidence and not math.isnan(conf):
                parts.append(f"{conf:.0%}")
            texts.append(" ".join(parts))
        return texts


def _taken(detections: sv.Detections, rows: IntArray, xyxy: npt.NDArray[Any]) -> sv.Detections:
    return sv.Detections(
        xyxy=xyxy[rows],
        class_id=np.asarray(detections.class_id)[rows],
        tracker_id=np.asarray(detections.tracker_id)[rows],
        confidence=np.asarray(detections.confidence)[rows],
        data={"manual": np.asarray(detections.data["manual"])[rows]},
    )
