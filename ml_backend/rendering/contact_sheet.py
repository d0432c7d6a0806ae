"""Contact sheets: grids of the exemplars that a project has learned for a label."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image as PILImage
from PIL import ImageDraw

from ml_backend.core.errors import ConfigError
from ml_backend.core.files import write_bytes
from ml_backend.labeling.few_shot.pattern_store import PatternStore
from ml_backend.rendering.draw import truncate
from ml_backend.rendering.text import Fonts

#: Formats by suffix, as Pillow names them.
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
BACKGROUND_NAME = "(background)"
#: Cell size in pixels; thumbnails have 96.
_CELL = 144
_BACKGROUND, _CARD, _EMPTY = (236, 237, 241), (255, 255, 255), (206, 208, 214)
_TEXT, _FAINT = (28, 28, 34), (112, 114, 124)


@dataclass(frozen=True, slots=True)
class Card:
    """One cell of the sheet.

    Attributes:
        thumbnail: JPEG; drawn as a grey cell if it cannot be decoded.
        caption: lines of text below it.
    """

    thumbnail: bytes
    caption: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SheetRow:
    """The exemplars of a label.

    Attributes:
        cards: ordered by task, object and frame; if there are too many, the first ones of every object.
        total, objects, tasks: counts of all exemplars.
    """

    label: str
    cards: tuple[Card, ...]
    total: int
    objects: int
    tasks: int


def exemplar_cards(store: PatternStore, project_id: int, model_id: str, label: str, limit: int = 200) -> SheetRow:
    """Read the exemplars of a label.

    Args:
        model_id: of the embedder.
        label: of the project; ``UNLABELLED`` for background.
        limit: maximum number of cards; every object gets one before any gets a second.

    Raises:
        ConfigError: the project has not learned the label.
        StorageError: the database cannot be read.
    """
    _, origins = store.exemplars(project_id, model_id)
    of_label = {id_: origin for id_, origin in origins.items() if origin.label == label}
    if not of_label:
        learned = sorted({origin.label or BACKGROUND_NAME for origin in origins.values()})
        name = label or BACKGROUND_NAME
        if not learned:
            raise ConfigError(
                f"Project {project_id} has learned no label yet.", "Annotate some tracks and submit them."
            )
        raise ConfigError(f'Project {project_id} has learned no label "{name}".', f"Use one of: {', '.join(learned)}.")
    thumbnails = store.thumbnails(project_id, model_id)
    groups: dict[tuple[int, str, str], list[int]] = {}
    for id_, origin in sorted(of_label.items(), key=lambda item: (item[1].frame, item[0])):
        groups.setdefault((origin.task_id, origin.region_id, origin.origin), []).append(id_)
    ordered = sorted(groups)
    # Round-robin: the first crop of every object before the second of any.
    ranked = [(rank, index, id_) for index, key in enumerate(ordered) for rank, id_ in enumerate(groups[key])]
    chosen = {id_ for _, _, id_ in sorted(ranked)[:limit]}
    cards = []
    for key in ordered:
        for id_ in groups[key]:
            if id_ in chosen:
                origin = of_label[id_]
                task = f"task {origin.task_id}" if origin.task_id else "imported"
                cards.append(Card(thumbnails.get(id_, b""), (task, f"frame {origin.frame + 1}")))
    tasks = len({task_id for task_id, _, _ in ordered if task_id})
    return SheetRow(label, tuple(cards), len(of_label), len(ordered), tasks)


def sheet_title(row: SheetRow) -> str:
    """Return the title of a sheet: ``fallen_person: 12 exemplars of 4 objects in 3 tasks``."""

    def plural(number: int, name: str) -> str:
        return f"{number} {name}" if number == 1 else f"{number} {name}s"

    text = f"{row.label or BACKGROUND_NAME}: {plural(row.total, 'exemplar')} of {plural(row.objects, 'object')}"
    if row.tasks:
        text += f" in {plural(row.tasks, 'task')}"
    return text + (f", {len(row.cards)} shown" if len(row.cards) < row.total else "")


def contact_sheet(cards: Sequence[Card], title: str, fonts: Fonts) -> PILImage.Image:
    """Draw a grid of thumbnails with captions, a little wider than high."""
    size, gap, font_size, line = _CELL, _CELL // 12, _CELL // 12, _CELL // 9
    lines = max((len(card.caption) for card in cards), default=0)
    height = size + lines * line + gap
    columns = max(1, min(len(cards), round(math.sqrt(1.5 * len(cards)))))
    rows = math.ceil(len(cards) / columns)
    mask = fonts.mask(title, round(font_size * 1.5))
    head = mask.height + 2 * gap
    width = max(columns * (size + gap) + gap, mask.width + 2 * gap)
    sheet = PILImage.new("RGB", (width, head + rows * (height + gap) + gap), _BACKGROUND)
    sheet.paste(_TEXT, (gap, gap), mask)
    draw = ImageDraw.Draw(sheet)
    for number, card in enumerate(cards):
        x, y = gap + number % columns * (size + gap), head + number // columns * (height + gap)
        draw.rounded_rectangle((x, y, x + size - 1, y + height - 1), gap, _CARD)
        thumbnail = _decode_thumbnail(card.thumbnail, size - gap)
        sheet.paste(thumbnail, (x + (size - thumbnail.width) // 2, y + (size - thumbnail.height) // 2))
        for row, text in enumerate(card.caption):
            mask = fonts.mask(truncate(text), font_size)
            mask = mask.crop((0, 0, min(mask.width, size - gap), mask.height))
            position = (x + (size - mask.width) // 2, y + size + row * line)
            sheet.paste(_FAINT if row else _TEXT, position, mask)
    return sheet


def _decode_thumbnail(jpeg: bytes, size: int) -> PILImage.Image:
    """Decode a thumbnail and resize its longer side to ``size``."""
    # Not with Pillow: ultralytics patches its open(), which then tries to install packages.
    pixels = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR) if jpeg else None
    if pixels is None:
        return PILImage.new("RGB", (size, size), _EMPTY)
    thumbnail = PILImage.fromarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB))
    scale = size / max(thumbnail.size)
    new_size = max(1, round(thumbnail.width * scale)), max(1, round(thumbnail.height * scale))
    resized: PILImage.Image = thumbnail.resize(new_size, PILImage.Resampling.LANCZOS)
    return resized


def write_sheet(sheet: PILImage.Image, out: Path) -> None:
    """Write a sheet in the format of the suffix, one of ``FORMATS``.

    Raises:
        StorageError: the disk is full, or the folder cannot be written.
        ConfigError: the sheet is too large for the format.
    """
    buffer, form = io.BytesIO(), FORMATS[out.suffix.lower()]
    try:
        # 4:4:4, or letters have coloured fringes.
        sheet.save(buffer, form, **({"quality": 92, "subsampling": 0} if form == "JPEG" else {}))
    except (OSError, ValueError) as error:
        size = f"{sheet.width} x {sheet.height}"
        raise ConfigError(f"{out.name} cannot hold {size} pixels: {error}.", "Lower --limit, or use PNG.") from error
    write_bytes(out, buffer.getvalue())
