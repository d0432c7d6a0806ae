"""Boxes, names, trails and a legend on pictures of any size: supervision's annotators, and those that it lacks.

A picture's boxes are a ``supervision.Detections``: ``xyxy`` in pixels, ``class_id`` the index of the label,
``tracker_id`` the number of the track, ``confidence`` 0..1 (NaN: none), ``data["manual"]`` whether a human drew it.
What a human drew is solid with its name on the label's colour; what a model found is dashed with its name on black.
"""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import supervision as sv
from PIL import ImageColor
from supervision.annotators.base import BaseAnnotator

from ml_backend.export.fonts import Fonts
from ml_backend.export.legend import Legend
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
    short,
    text_colour,
)
from ml_backend.geometry import Float64Array
from ml_backend.types import BoolArray, Image, IntArray

#: Told apart at a glance, also on dark and on bright pictures; in this order the first ones differ most.
PALETTE: tuple[Colour, ...] = (
    (229, 57, 53), (30, 136, 229), (67, 160, 71), (251, 140, 0), (142, 36, 170), (0, 172, 193), (253, 216, 53),
    (216, 27, 96), (124, 179, 66), (94, 53, 177), (0, 137, 123), (255, 112, 67), (109, 76, 65), (192, 202, 51),
    (57, 73, 171), (236, 64, 122),
)  # fmt: skip


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
    pattern = dashes(max(end - start, 0), dash)
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

    Attributes:
        sides: by track, the side of its box that its name was on last.
    """

    #: Plates that are kept: those of the objects in sight, and some more.
    KEPT = 256

    def __init__(self, colours: Sequence[Colour], scale: Scale, fonts: Fonts) -> None:
        self._colours, self._scale, self._fonts = colours, scale, fonts
        self._tiles: OrderedDict[tuple[str, int, bool], Tile] = OrderedDict()
        self.sides: dict[int, int] = {}

    def annotate(self, scene: Image, detections: sv.Detections, texts: Sequence[str] = ()) -> Image:
        """Draw on ``scene``, BGR, in place.

        Args:
            texts: one for each box.
        """
        if not len(detections):
            self.sides = {}
            return scene
        manual = detections.data["manual"]
        tracks, labels = np.asarray(detections.tracker_id).tolist(), np.asarray(detections.class_id).tolist()
        boxes = np.rint(detections.xyxy).astype(np.int64)
        placed = np.zeros((len(boxes), 4), np.int64)
        sides: dict[int, int] = {}
        # Longest known first: who was there keeps its place when somebody comes.
        for number, row in enumerate(sorted(range(len(boxes)), key=lambda i: tracks[i])):
            tile = self._tile(texts[row], labels[row], bool(manual[row]))
            spots, fits = self._spots(boxes[row].tolist(), tile, scene.shape[1], scene.shape[0])
            best = self._choose(spots, fits, placed[:number], self.sides.get(tracks[row], 0))
            placed[number] = spots[best]
            sides[tracks[row]] = best
            tile.lay_on(scene, int(spots[best][0]), int(spots[best][1]))
        self.sides = sides
        return scene

    def _tile(self, text: str, label: int, manual: bool) -> Tile:
        key = (text, label, manual)
        tile = self._tiles.get(key)
        if tile is None:
            tile = self._tiles[key] = self._made(text, self._colours[label], manual)
            if len(self._tiles) > self.KEPT:
                self._tiles.popitem(last=False)
        self._tiles.move_to_end(key)
        return tile

    def _made(self, text: str, colour: Colour, manual: bool) -> Tile:
        pad, mask = self._scale.pad, self._fonts.mask(text, self._scale.font)
        bar = 0 if manual else max(2, pad)
        ground, alpha = (colour, 240) if manual else (DARK, PLATE_ALPHA)
        height = mask.shape[0] + 2 * max(1, pad // 3)
        canvas = Canvas(mask.shape[1] + 2 * pad + bar, height, ground, alpha, pad)
        if bar:
            canvas.fill(0, 0, bar, height, colour)
        canvas.put(mask, bar + pad, (height - mask.shape[0]) // 2, text_colour(colour) if manual else WHITE)
        return canvas.tile()

    def _spots(self, box: list[int], tile: Tile, width: int, height: int) -> tuple[IntArray, BoolArray]:
        """Where a plate may lie: ``(n, 4)`` int64 boxes inside the picture, and ``(n,)`` which hide nothing of the box.

        Above and below, flush left, then flush right; then inside.
        """
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
        fits: BoolArray = (spots[:, 1] >= 0) & (spots[:, 1] + h <= height)
        fits[4:] = False
        spots[:, 1] = np.clip(spots[:, 1], 0, max(height - h, 0))
        return np.concatenate([spots, spots + np.array([w, h])], axis=1), fits

    @staticmethod
    def _choose(spots: IntArray, fits: BoolArray, placed: IntArray, before: int) -> int:
        """Index of the spot that hides least; the one of the picture before if it is as good as any."""
        low = np.maximum(spots[:, None, :2], placed[None, :, :2])
        high = np.minimum(spots[:, None, 2:], placed[None, :, 2:])
        hidden = np.clip(high - low, 0, None).prod(axis=2).sum(axis=1) + ~fits
        return before if hidden[before] == hidden.min() else int(np.argmin(hidden))


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
        self._labels = [short(label) for label in labels]
        if look.names:
            # Which font is found first must not depend on the picture that drawing begins with.
            for label in self._labels:
                fonts.readable(label)
        self._look = look
        self._edge = sv.BoxAnnotator(sv.Color(*DARK), scale.line + 2)
        self._solid = sv.BoxAnnotator(palette, scale.line)
        self._dashed = DashedBoxAnnotator(rgb, scale.line, scale.dash)
        self._plates = PlateAnnotator(rgb, scale, fonts)
        self._trails = None
        if look.trails > 0:
            length = max(2, round(look.trails * fps))
            self._trails = sv.TraceAnnotator(palette, sv.Position.BOTTOM_CENTER, length, scale.line)
        # In a small picture the panel must leave something to be seen.
        rows = min(12, max(3, size[1] // (3 * scale.font)))
        self._legend = Legend(labels, rgb, kinds, scale, fonts, rows) if look.legend else None

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

    def state(self) -> Callable[[], dict[str, Any]]:
        """What the next pictures take over from those before, as a call that makes JSON of it, also later."""
        sides, trace = self._plates.sides, self._trails.trace if self._trails else None
        if trace is None:
            return lambda: {"sides": list(sides.items())}
        # All of these are replaced by the next picture, none is changed.
        at, frames, tracks, xy = trace.current_frame_id, trace.frame_id, trace.tracker_id, trace.xy
        return lambda: {
            "sides": list(sides.items()),
            "trails": [at, frames.tolist(), tracks.tolist(), xy.tolist()],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a :meth:`state`."""
        self._plates.sides = dict(state["sides"])
        if self._trails is not None:
            trace = self._trails.trace
            trace.current_frame_id = state["trails"][0]
            trace.frame_id, trace.tracker_id = (np.array(row, int) for row in state["trails"][1:3])
            trace.xy = np.array(state["trails"][3], np.float32).reshape(-1, 2)

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
