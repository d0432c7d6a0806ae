"""Names of what is written for a video: safe in file systems, and each used once."""

from __future__ import annotations

import re
import unicodedata

#: Of a name: room for the frame number, suffix and what marks a temporary file, within the usual 255 bytes.
_MAX_BYTES = 180
_UNSAFE = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|]')


def safe_name(name: str) -> str:
    """A name that every file system takes: no separators, control characters, or leading dots; letters stay."""
    text = _UNSAFE.sub("_", unicodedata.normalize("NFC", name)).strip(" ").lstrip(".").rstrip(". ")
    encoded = text.encode("utf-8", "surrogateescape")[:_MAX_BYTES]
    return encoded.decode("utf-8", "ignore") or "video"


class UniqueNames:
    """Gives each video a name of its own: the second ``clip`` becomes ``clip-7`` in task 7.

    Names depend only on what came before, so that an export that is continued uses the same ones.
    """

    def __init__(self) -> None:
        self._used: set[str] = set()

    def take(self, name: str, task_id: int) -> str:
        """A name that has not been given before, also where the file system ignores case."""
        base = safe_name(name)
        chosen, number = base, 1
        while chosen.casefold() in self._used:
            chosen = f"{base}-{task_id}" if number == 1 else f"{base}-{task_id}-{number}"
            number += 1
        self._used.add(chosen.casefold())
        return chosen
