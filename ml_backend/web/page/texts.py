"""The page's words in English and Korean, by key."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

#: Languages by code, as they call themselves.
LANGUAGES = {"en": "English", "ko": "한국어"}
_FOLDER = Path(__file__).parent


@cache
def words(lang: str) -> dict[str, str]:
    """Every text of a language, with ``{name}`` where values go.

    Raises:
        KeyError: there is no such language.
    """
    if lang not in LANGUAGES:
        raise KeyError(lang)
    found: dict[str, str] = json.loads((_FOLDER / f"texts.{lang}.json").read_text(encoding="utf-8"))
    return found


def translator(lang: str) -> Callable[..., str]:
    """``t(key, **values)`` in a language; it raises KeyError for what is nowhere written."""
    known = words(lang)

    def t(key: str, **values: Any) -> str:
        return known[key].format(**values) if values else known[key]

    return t


def named(lang: str, group: str, name: str) -> str:
    """The word for a name of the API, such as a job's kind; the name itself where there is none."""
    return words(lang).get(f"{group}_{name}", name)
