"""Render text of any script: with DejaVu, else with any installed font that has the characters.

Nothing is downloaded. Characters that no font has are substituted (사람 by "saram", 人 by "U+4EBA") and collected for a
note.
"""

from __future__ import annotations

import logging
import os
import unicodedata
from functools import lru_cache
from itertools import groupby
from pathlib import Path

import matplotlib
from matplotlib.ft2font import FT2Font
from PIL import Image as PILImage
from PIL import ImageDraw, ImageFont

from ml_backend.core.errors import ConfigError

log = logging.getLogger(__name__)

#: Bundled with matplotlib; has Latin, Greek, Cyrillic and many symbols.
_DEJAVU = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
#: Names of fonts with wide coverage, which are tried first.
_WIDE_COVERAGE = ("cjk", "noto", "unifont", "unicode", "gothic", "nanum", "malgun", "msyh", "wqy", "droid", "arial")
#: Reading the characters of a font takes some milliseconds.
_MAX_FONTS = 2000
#: Unicode categories of marks, joiners and controls, which are dropped if a font lacks them.
_DROPPABLE = ("Mn", "Cf", "Cc")


class Fonts:
    """Draws text, each character with the first font that has it.

    Args:
        font: preferred font file.

    Attributes:
        missing: drawn characters that no font has.

    Raises:
        ConfigError: ``font`` is not a usable font file.
    """

    def __init__(self, font: str | os.PathLike[str] | None = None) -> None:
        self.missing: set[str] = set()
        self._fonts = [_DEJAVU]
        if font is not None:
            path = Path(font)
            if not _characters(path):
                raise ConfigError(f"{path} is not a font that can be used.", "Name a .ttf, .otf or .ttc file.")
            self._fonts.insert(0, path)
        self._font_by_char: dict[str, Path | None] = {}

    def readable(self, text: str) -> str:
        """Return the text in one line, with substitutes for the characters that no font has."""
        out = []
        for char in unicodedata.normalize("NFC", " ".join(text.split())):
            if self._font_of(char) is not None:
                out.append(char)
            elif unicodedata.category(char) not in _DROPPABLE:
                self.missing.add(char)
                out.append(_substitute(char))
        return " ".join("".join(out).split())

    def mask(self, text: str, size: int) -> PILImage.Image:
        """Render a line of text as a coverage mask in mode ``L``; the height depends on ``size`` only.

        Args:
            size: of the font, px.
        """
        ascent, descent = _load(self._fonts[0], size).getmetrics()
        runs = [(_load(path, size), run) for path, run in self._runs(text)]
        width = max(1, round(sum(font.getlength(run) for font, run in runs)))
        mask = PILImage.new("L", (width, ascent + descent))
        draw = ImageDraw.Draw(mask)
        x = 0.0
        for font, run in runs:
            draw.text((x, ascent), run, fill=255, font=font, anchor="ls")
            x += font.getlength(run)
        return mask

    def file_for(self, text: str) -> Path:
        """Return a font file to draw ``readable(text)`` with: of the first character that the default font lacks."""
        return next((path for path, _ in self._runs(text) if path != self._fonts[0]), self._fonts[0])

    def note(self) -> str:
        """Return a note on characters that could not be drawn; empty if there are none."""
        if not self.missing:
            return ""
        listed = " ".join(sorted(self.missing)[:12]) + (" …" if len(self.missing) > 12 else "")
        return (
            f"No installed font has {listed}: written in Latin letters or as U+ numbers. Install one (Debian, "
            "Ubuntu: apt install fonts-noto-cjk) or name one with --font."
        )

    def _runs(self, text: str) -> list[tuple[Path, str]]:
        """Split ``readable(text)`` into runs by font."""
        runs = groupby(self.readable(text), lambda char: self._font_of(char) or self._fonts[0])
        return [(path, "".join(run)) for path, run in runs]

    def _font_of(self, char: str) -> Path | None:
        if char not in self._font_by_char:
            others = () if unicodedata.category(char) in _DROPPABLE else system_fonts()
            font = next((path for path in (*self._fonts, *others) if ord(char) in _characters(path)), None)
            if font is not None and font not in self._fonts:
                self._fonts.append(font)
            self._font_by_char[char] = font
        return self._font_by_char[char]


def _substitute(char: str) -> str:
    """Transliterate a Korean or Japanese syllable by its Unicode name; return the code point of other characters."""
    name = unicodedata.name(char, "")
    if name.startswith("HANGUL SYLLABLE ") or " LETTER " in name:
        return name.rsplit(" ", 1)[-1].lower()
    return f"U+{ord(char):04X} "


@lru_cache(maxsize=64)
def _load(path: Path, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(path), size)


@lru_cache(maxsize=_MAX_FONTS)
def _characters(path: Path) -> frozenset[int]:
    """Return the code points of a font file (the first font in a collection); empty if it is unusable."""
    try:
        font = FT2Font(str(path))
        _load(path, 16)
        # Bitmap fonts (emoji) have one fixed size.
        return frozenset(font.get_charmap()) if font.scalable else frozenset()
    except (OSError, RuntimeError, ValueError) as error:
        log.debug("%s is not a font that can be used: %s", path, error)
        return frozenset()


@lru_cache(maxsize=1)
def system_fonts() -> tuple[Path, ...]:
    """Return the installed font files, those with wide coverage first."""
    from matplotlib.font_manager import findSystemFonts  # slow: lists all fonts on import

    fonts = sorted(map(Path, findSystemFonts()))
    return tuple(sorted(fonts, key=lambda path: not any(n in path.name.lower() for n in _WIDE_COVERAGE))[:_MAX_FONTS])
