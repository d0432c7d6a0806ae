"""The page's words in English and Korean by key, and numbers as people read them."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from markupsafe import Markup

#: Languages by code, as they call themselves.
LANGUAGES = {"en": "English", "ko": "한국어"}


@cache
def load_texts(lang: str) -> dict[str, str]:
    """Every text of one of :data:`LANGUAGES`, with ``{name}`` where values go."""
    found: dict[str, str] = json.loads(Path(__file__).with_name(f"texts.{lang}.json").read_text(encoding="utf-8"))
    return found


def translator(lang: str) -> Callable[..., str]:
    """``t(key, **values)`` in a language; it raises KeyError for what is nowhere written."""
    known = load_texts(lang)

    def t(key: str, **values: Any) -> str:
        return known[key].format(**values) if values else known[key]

    return t


def named(lang: str, group: str, name: str) -> str:
    """The word for a name of the API, such as a job's kind; the name itself where there is none."""
    return load_texts(lang).get(f"{group}_{name}", name)


def amount(size: float | None) -> str:
    """Bytes: ``1.5 GB``."""
    if size is None:
        return "–"
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def percent(share: float | None) -> str:
    """A share, 0..1."""
    return "–" if share is None else f"{100 * share:.0f} %"


def figure(value: object) -> str:
    """A measure with three decimals."""
    return f"{value:.3f}" if isinstance(value, (int, float)) else "–"


def duration(t: Callable[..., str], seconds: float) -> str:
    """About how long: one unit is enough."""
    for unit, size in (("hours", 3600), ("minutes", 60)):
        if seconds >= size:
            return t(unit, n=round(seconds / size))
    return t("seconds", n=round(seconds))


def moment(iso: str | None) -> Markup:
    """Date and time of an ISO moment, in UTC; the page's script makes local time of it."""
    if not iso:
        return Markup("–")
    return Markup('<time datetime="{}">{} UTC</time>').format(iso, iso[:16].replace("T", " "))
