"""Texts of the page in English and Korean, and number formatting."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from markupsafe import Markup

#: Native names of languages by code.
LANGUAGES = {"en": "English", "ko": "한국어"}


@cache
def load_texts(lang: str) -> dict[str, str]:
    """Return the texts of one of :data:`LANGUAGES` by key, with ``{name}`` placeholders.

    A text for a number ``{n}`` may have two forms, ``one|other``.
    """
    texts: dict[str, str] = json.loads(Path(__file__).with_name(f"texts.{lang}.json").read_text(encoding="utf-8"))
    return texts


def translator(lang: str) -> Callable[..., str]:
    """Return ``t(key, **values)`` for a language; it raises KeyError for missing keys."""
    texts = load_texts(lang)

    def t(key: str, **values: Any) -> str:
        forms = texts[key].split("|")
        return (forms[0] if values.get("n") == 1 else forms[-1]).format(**values)

    return t


def named(lang: str, group: str, name: str) -> str:
    """Return the text for an API name, such as a job's kind, or the name itself if there is none."""
    return load_texts(lang).get(f"{group}_{name}", name)


def amount(size: float | None) -> str:
    """Format bytes: ``1.5 GB``."""
    if size is None:
        return "–"
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def percent(share: float | None) -> str:
    """Format a share, 0..1."""
    return "–" if share is None else f"{100 * share:.0f} %"


def figure(value: object) -> str:
    """Format a metric with three decimals."""
    return f"{value:.3f}" if isinstance(value, (int, float)) else "–"


def position(seconds: float) -> str:
    """Format a position in a video: ``1:02.5``."""
    tenths = round(10 * seconds)
    return f"{tenths // 600}:{tenths % 600 // 10:02d}.{tenths % 10}"


def duration(t: Callable[..., str], seconds: float) -> str:
    """Format a duration in its largest unit."""
    for unit, size in (("hours", 3600), ("minutes", 60)):
        if seconds >= size:
            return t(unit, n=round(seconds / size))
    return t("seconds", n=round(seconds))


def moment(iso: str | None) -> Markup:
    """Format an ISO timestamp in UTC; the page's script converts it to local time."""
    if not iso:
        return Markup("–")
    return Markup('<time datetime="{}">{} UTC</time>').format(iso, iso[:16].replace("T", " "))
