"""Numbers as people read them."""

from __future__ import annotations

from collections.abc import Callable

from markupsafe import Markup


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
