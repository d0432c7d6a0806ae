"""Text of any script as pixels: DejaVu first, then whatever font of the machine has the characters.

Nothing is downloaded. A character that no font has is written in another way (사람 as "saram", 人 as "U+4EBA"), and
noted, so that the reader can be told.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from itertools import islice
from pathlib import Path

import numpy as np
from fontTools.ttLib import TTFont, TTLibError  # type: ignore[import-untyped]
from PIL import Image as Pictures
from PIL import ImageDraw, ImageFont

from ml_backend.errors import ConfigError
from ml_backend.types import Image

log = logging.getLogger(__name__)

_SYSTEM_FOLDERS = (
    "/usr/share/fonts", "/usr/local/share/fonts", "~/.fonts", "~/.local/share/fonts",
    "/System/Library/Fonts", "/Library/Fonts", "~/Library/Fonts", "C:/Windows/Fonts",
)  # fmt: skip
#: Fonts that are known to cover much are looked into first.
_LIKELY = ("cjk", "noto", "unifont", "unicode", "gothic", "nanum", "malgun", "msyh", "wqy", "droid", "arial")
#: A machine may have thousands; looking into one takes some milliseconds.
_MAX_FONTS = 2000


class Fonts:
    """Draws text, each character with the first font that has it.

    Args:
        font: a font file that is to be preferred.

    Attributes:
        missing: characters that were asked for and that no font has.

    Raises:
        ConfigError: ``font`` is no font file.
    """

    def __init__(self, font: str | os.PathLike[str] | None = None) -> None:
        self.missing: set[str] = set()
        self._known = [_dejavu()]
        if font is not None:
            path = Path(font)
            if not _characters(path):
                raise ConfigError(f"{path} is not a font that can be used.", "Name a .ttf, .otf or .ttc file.")
            self._known.insert(0, path)
        self._found: dict[str, Path | None] = {}

    def readable(self, text: str) -> str:
        """The text in one line, with other words for the characters that no font has."""
        out = []
        for char in unicodedata.normalize("NFC", " ".join(text.split())):
            if self._font_of(char) is not None:
                out.append(char)
            elif unicodedata.category(char) not in ("Mn", "Cf", "Cc"):  # marks and joiners alone mean nothing
                self.missing.add(char)
                out.append(_substitute(char))
        return " ".join("".join(out).split())

    def mask(self, text: str, size: int) -> Image:
        """How much of each pixel a line of text covers, ``(height, width)`` uint8; the height depends on ``size`` only.

        Args:
            size: of the letters, px.
        """
        ascent, descent = _load(self._known[0], size).getmetrics()
        runs = [(_load(path, size), run) for path, run in self._runs(self.readable(text))]
        width = max(1, round(sum(font.getlength(run) for font, run in runs)))
        picture = Pictures.new("L", (width, ascent + descent))
        draw = ImageDraw.Draw(picture)
        x = 0.0
        for font, run in runs:
            draw.text((x, ascent), run, fill=255, font=font, anchor="ls")
            x += font.getlength(run)
        return np.asarray(picture, np.uint8)

    def file_for(self, text: str) -> Path:
        """A font file for others to draw ``readable(text)`` with: of the first character that DejaVu has not."""
        used = [path for path, _ in self._runs(self.readable(text))]
        return next((path for path in used if path != self._known[0]), self._known[0])

    def note(self) -> str:
        """What to tell the reader of characters that could not be drawn; empty where all could."""
        if not self.missing:
            return ""
        listed = " ".join(sorted(self.missing)[:12]) + (" …" if len(self.missing) > 12 else "")
        return (
            f"No font of this machine has {listed}: written in Latin letters or as U+ numbers. Install one (Debian, "
            "Ubuntu: apt install fonts-noto-cjk) or name one with --font."
        )

    def files(self) -> list[str]:
        """Font files that have been used so far."""
        return [str(path) for path in self._known]

    def _runs(self, text: str) -> Iterator[tuple[Path, str]]:
        run, current = "", self._known[0]
        for char in text:
            font = self._font_of(char) or self._known[0]
            if font != current and run:
                yield current, run
                run = ""
            current = font
            run += char
        if run:
            yield current, run

    def _font_of(self, char: str) -> Path | None:
        if char not in self._found:
            self._found[char] = next((path for path in self._known if ord(char) in _characters(path)), None)
            if self._found[char] is None and unicodedata.category(char) not in ("Mn", "Cf", "Cc"):
                found = next((path for path in _system_fonts() if ord(char) in _characters(path)), None)
                if found is not None:
                    self._known.append(found)
                    self._found[char] = found
        return self._found[char]


def _substitute(char: str) -> str:
    """The sound of a Korean or Japanese syllable, which its Unicode name tells; for others the code point."""
    name = unicodedata.name(char, "")
    if name.startswith("HANGUL SYLLABLE ") or " LETTER " in name:
        return name.rsplit(" ", 1)[-1].lower()
    return f"U+{ord(char):04X} "


def _dejavu() -> Path:
    """DejaVu Sans as matplotlib ships it, found without importing matplotlib."""
    spec = importlib.util.find_spec("matplotlib")
    folders = spec.submodule_search_locations if spec else None
    for folder in folders or []:
        path = Path(folder) / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
        if path.is_file():
            return path
    raise ConfigError("The font DejaVu Sans, a part of matplotlib, is missing.", "Install matplotlib.")


@lru_cache(maxsize=64)
def _load(path: Path, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(path), size)


@lru_cache(maxsize=256)
def _characters(path: Path) -> frozenset[int]:
    """Code points that a font file (the first font in a collection) can draw; none where it is unusable."""
    try:
        with TTFont(path, lazy=True, fontNumber=0) as font:
            # Bitmaps only (emoji): they exist in one size that letters do not have.
            if "glyf" not in font and "CFF " not in font and "CFF2" not in font:
                return frozenset()
            codes = frozenset(font.getBestCmap() or ())
        _load(path, 16)
        return codes
    except (OSError, TTLibError, KeyError, AssertionError, ValueError, EOFError) as error:
        log.debug("%s is not a font that can be used: %s", path, error)
        return frozenset()


@lru_cache(maxsize=1)
def _system_fonts() -> tuple[Path, ...]:
    """Font files of the machine, those that are likely to help first."""
    folders = [Path(folder).expanduser() for folder in _SYSTEM_FOLDERS]
    files = (
        Path(root) / name
        for folder in folders
        for root, _, names in os.walk(folder)
        for name in names
        if name.lower().endswith((".ttf", ".otf", ".ttc"))
    )
    found = list(islice(files, _MAX_FONTS))
    return tuple(sorted(found, key=lambda path: (not any(hint in path.name.lower() for hint in _LIKELY), str(path))))
