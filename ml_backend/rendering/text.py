"""Text of any script as pixels: DejaVu first, then whatever font of the machine has the characters.

Nothing is downloaded. A character that no font has is written in another way (사람 as "saram", 人 as "U+4EBA"), and
noted, so that the reader can be told.
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
from PIL import Image as Pictures
from PIL import ImageDraw, ImageFont

from ml_backend.core.errors import ConfigError

log = logging.getLogger(__name__)

#: Comes with matplotlib, so it is on every machine; it has Latin, Greek, Cyrillic and many symbols.
_DEJAVU = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
#: Fonts that are known to cover much are looked into first.
_LIKELY = ("cjk", "noto", "unifont", "unicode", "gothic", "nanum", "malgun", "msyh", "wqy", "droid", "arial")
#: A machine may have thousands; looking into one takes some milliseconds.
_MAX_FONTS = 2000
#: Marks, joiners and controls: alone they mean nothing, so it is no loss where a font lacks them.
_SILENT = ("Mn", "Cf", "Cc")


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
        self._known = [_DEJAVU]
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
            elif unicodedata.category(char) not in _SILENT:
                self.missing.add(char)
                out.append(_substitute(char))
        return " ".join("".join(out).split())

    def mask(self, text: str, size: int) -> Pictures.Image:
        """How much of each pixel a line of text covers, in mode ``L``; the height depends on ``size`` only.

        Args:
            size: of the letters, px.
        """
        ascent, descent = _load(self._known[0], size).getmetrics()
        runs = [(_load(path, size), run) for path, run in self._runs(text)]
        width = max(1, round(sum(font.getlength(run) for font, run in runs)))
        picture = Pictures.new("L", (width, ascent + descent))
        draw = ImageDraw.Draw(picture)
        x = 0.0
        for font, run in runs:
            draw.text((x, ascent), run, fill=255, font=font, anchor="ls")
            x += font.getlength(run)
        return picture

    def file_for(self, text: str) -> Path:
        """A font file for others to draw ``readable(text)`` with: of the first character that DejaVu has not."""
        return next((path for path, _ in self._runs(text) if path != self._known[0]), self._known[0])

    def note(self) -> str:
        """What to tell the reader of characters that could not be drawn; empty where all could."""
        if not self.missing:
            return ""
        listed = " ".join(sorted(self.missing)[:12]) + (" …" if len(self.missing) > 12 else "")
        return (
            f"No font of this machine has {listed}: written in Latin letters or as U+ numbers. Install one (Debian, "
            "Ubuntu: apt install fonts-noto-cjk) or name one with --font."
        )

    def _runs(self, text: str) -> list[tuple[Path, str]]:
        """``readable(text)`` in parts, each with the font that draws it."""
        runs = groupby(self.readable(text), lambda char: self._font_of(char) or self._known[0])
        return [(path, "".join(run)) for path, run in runs]

    def _font_of(self, char: str) -> Path | None:
        if char not in self._found:
            others = () if unicodedata.category(char) in _SILENT else _system_fonts()
            found = next((path for path in (*self._known, *others) if ord(char) in _characters(path)), None)
            if found is not None and found not in self._known:
                self._known.append(found)
            self._found[char] = found
        return self._found[char]


def _substitute(char: str) -> str:
    """The sound of a Korean or Japanese syllable, which its Unicode name tells; for others the code point."""
    name = unicodedata.name(char, "")
    if name.startswith("HANGUL SYLLABLE ") or " LETTER " in name:
        return name.rsplit(" ", 1)[-1].lower()
    return f"U+{ord(char):04X} "


@lru_cache(maxsize=64)
def _load(path: Path, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(path), size)


@lru_cache(maxsize=_MAX_FONTS)
def _characters(path: Path) -> frozenset[int]:
    """Code points that a font file (the first font in a collection) can draw; none where it is unusable."""
    try:
        font = FT2Font(str(path))
        _load(path, 16)
        # Bitmaps only (emoji): they exist in one size that letters do not have.
        return frozenset(font.get_charmap()) if font.scalable else frozenset()
    except (OSError, RuntimeError, ValueError) as error:
        log.debug("%s is not a font that can be used: %s", path, error)
        return frozenset()


@lru_cache(maxsize=1)
def _system_fonts() -> tuple[Path, ...]:
    """Font files of the machine, those that are likely to help first."""
    from matplotlib.font_manager import findSystemFonts  # lists the machine's fonts when it is imported

    found = sorted(map(Path, findSystemFonts()))
    return tuple(sorted(found, key=lambda path: not any(hint in path.name.lower() for hint in _LIKELY))[:_MAX_FONTS])
