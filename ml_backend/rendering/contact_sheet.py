"""A contact sheet: what a project's label looks like, at a glance."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image as Pictures
from PIL import ImageDraw

from ml_backend.core.errors import ConfigError
from ml_backend.core.files import write_bytes
from ml_backend.labeling.few_shot.pattern_store import PatternStore
from ml_backend.rendering.draw import truncate
from ml_backend.rendering.text import Fonts

#: Formats by suffix, as Pillow names them.
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
BACKGROUND_NAME = "(background)"
#: Of the cell for one picture, px: thumbnails have 96.
_CELL = 144
_GROUND, _CARD, _EMPTY = (236, 237, 241), (255, 255, 255), (206, 208, 214)
_TEXT, _FAINT = (28, 28, 34), (112, 114, 124)


@dataclass(frozen=True, slots=True)
class Card:
    """One picture of the sheet.

    Attributes:
        thumbnail: JPEG; a grey card where it cannot be read.
        caption: a line or two below it.
    """

    thumbnail: bytes
    caption: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SheetRow:
    """What there is of a label.

    Attributes:
        cards: in order of task, object and frame; of every object the first ones where there are too many.
        total, objects, tasks: counts of all of them.
    """

    label: str
    cards: tuple[Card, ...]
    total: int
    objects: int
    tasks: int


def exemplar_cards(store: PatternStore, project_id: int, model_id: str, label: str, limit: int = 200) -> SheetRow:
    """The exemplars of a label, as they were learned from annotations.

    Args:
        model_id: of the embedder with which they were learned.
        label: of the project; ``UNLABELLED`` for background.
        limit: cards wanted at most; every object gets one before any gets a second.

    Raises:
        ConfigError: the project has learned no such label.
        StorageError: the database cannot be read.
    """
    _, sources = store.exemplars(project_id, model_id)
    mine = {id_: source for id_, source in sources.items() if source.label == label}
    if not mine:
        known = sorted({source.label or BACKGROUND_NAME for source in sources.values()})
        named = label or BACKGROUND_NAME
        if not known:
            raise ConfigError(
                f"Project {project_id} has learned no label yet.", "Annotate some tracks and submit them."
            )
        raise ConfigError(f'Project {project_id} has learned no label "{named}".', f"It knows: {', '.join(known)}.")
    thumbnails = store.thumbnails(project_id, model_id)
    groups: dict[tuple[int, str, str], list[int]] = {}
    for id_, source in sorted(mine.items(), key=lambda item: (item[1].frame, item[0])):
        groups.setdefault((source.task_id, source.region_id, source.origin), []).append(id_)
    ordered = sorted(groups)
    # Which view of its object each is: the first of all objects come before the second of any.
    turns = [(turn, at, id_) for at, key in enumerate(ordered) for turn, id_ in enumerate(groups[key])]
    chosen = {id_ for _, _, id_ in sorted(turns)[:limit]}
    cards = []
    for key in ordered:
        for id_ in groups[key]:
            if id_ in chosen:
                source = mine[id_]
                where = f"task {source.task_id}" if source.task_id else "imported"
                cards.append(Card(thumbnails.get(id_, b""), (where, f"frame {source.frame + 1}")))
    tasks = len({task for task, _, _ in ordered if task})
    return SheetRow(label, tuple(cards), len(mine), len(ordered), tasks)


def sheet_title(found: SheetRow) -> str:
    """What stands above the sheet: ``fallen_person: 12 exemplars of 4 objects in 3 tasks``."""

    def counted(number: int, name: str) -> str:
        return f"{number} {name}" if number == 1 else f"{number} {name}s"

    text = f"{found.label or BACKGROUND_NAME}: {counted(found.total, 'exemplar')} of {counted(found.objects, 'object')}"
    if found.tasks:
        text += f" in {counted(found.tasks, 'task')}"
    return text + (f", {len(found.cards)} shown" if len(found.cards) < found.total else "")


def contact_sheet(cards: Sequence[Card], title: str, fonts: Fonts) -> Pictures.Image:
    """A grid of pictures with captions, a little wider than high; thumbnails keep their proportions."""
    size, gap, letters, line = _CELL, _CELL // 12, _CELL // 12, _CELL // 9
    lines = max((len(card.caption) for card in cards), default=0)
    height = size + lines * line + gap
    columns = max(1, min(len(cards), round(math.sqrt(1.5 * len(cards)))))
    rows = math.ceil(len(cards) / columns)
    heading = round(letters * 1.5)
    mask = fonts.mask(title, heading)
    head = mask.height + 2 * gap
    width = max(columns * (size + gap) + gap, mask.width + 2 * gap)
    sheet = Pictures.new("RGB", (width, head + rows * (height + gap) + gap), _GROUND)
    sheet.paste(_TEXT, (gap, gap), mask)
    draw = ImageDraw.Draw(sheet)
    for number, card in enumerate(cards):
        x, y = gap + number % columns * (size + gap), head + number // columns * (height + gap)
        draw.rounded_rectangle((x, y, x + size - 1, y + height - 1), gap, _CARD)
        picture = _opened(card.thumbnail, size - gap)
        sheet.paste(picture, (x + (size - picture.width) // 2, y + (size - picture.height) // 2))
        for row, text in enumerate(card.caption):
            words = fonts.mask(truncate(text), letters)
            words = words.crop((0, 0, min(words.width, size - gap), words.height))
            place = (x + (size - words.width) // 2, y + size + row * line)
            sheet.paste(_FAINT if row else _TEXT, place, words)
    return sheet


def _opened(jpeg: bytes, size: int) -> Pictures.Image:
    """A thumbnail, enlarged or shrunk to have ``size`` as its longer side."""
    # By OpenCV: where ultralytics is loaded it replaces Pillow's open(), which then wants to install packages.
    pixels = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR) if jpeg else None
    if pixels is None:
        return Pictures.new("RGB", (size, size), _EMPTY)
    picture = Pictures.fromarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB))
    share = size / max(picture.size)
    shape = max(1, round(picture.width * share)), max(1, round(picture.height * share))
    resized: Pictures.Image = picture.resize(shape, Pictures.Resampling.LANCZOS)
    return resized


def write_sheet(sheet: Pictures.Image, out: Path) -> None:
    """Write a sheet; the suffix tells the format, one of ``FORMATS``.

    Raises:
        StorageError: the disk is full, or the folder cannot be written.
        ConfigError: the sheet is too large for the format.
    """
    buffer, form = io.BytesIO(), FORMATS[out.suffix.lower()]
    try:
        # 4:4:4: letters have coloured fringes otherwise.
        sheet.save(buffer, form, **({"quality": 92, "subsampling": 0} if form == "JPEG" else {}))
    except (OSError, ValueError) as error:
        size = f"{sheet.width} x {sheet.height}"
        raise ConfigError(f"{out.name} cannot hold {size} pixels: {error}.", "Lower --limit, or take PNG.") from error
    write_bytes(out, buffer.getvalue())
