"""Charts as SVG, made on the server. Colours come from the style sheet; all text is escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

#: Colours, and shapes of points, that the style sheet and :func:`scatter` have.
COLOURS = 8
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 360, 150, 38, 8, 8, 20


def bar(share: float, colour: int = 0) -> Markup:
    """A bar of a share, 0..1. It says nothing by itself: its number stands beside it."""
    width = round(100 * min(max(share, 0.0), 1.0), 2)
    return Markup(
        '<svg class="bar" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="rail" width="100" height="8" rx="2"/><rect class="fill f{}" width="{}" height="8" rx="2"/></svg>'
    ).format(colour % COLOURS, width)


def curves(title: str, series: Mapping[str, Sequence[tuple[float, float]]], top: float | None = None) -> Markup:
    """Lines over epochs.

    Args:
        title: what it shows, for those who cannot see it.
        series: points (epoch, value) by name.
        top: the value at the upper edge; else the largest.
    """
    points = [point for line in series.values() for point in line]
    if not points:
        return Markup("")
    first, last = min(x for x, _ in points), max(x for x, _ in points)
    most = top or max(y for _, y in points) or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        share = (x - first) / (last - first) if last > first else 0.5
        across = _LEFT + share * (_WIDTH - _LEFT - _RIGHT)
        return round(across, 1), round(_TOP + (1 - min(y / most, 1.0)) * (_HEIGHT - _TOP - _BOTTOM), 1)

    out = [
        Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(_WIDTH, _HEIGHT, title),
        *(_rule(value, place(first, value)[1]) for value in (0.0, most / 2, most)),
        Markup('<text class="axis" x="{}" y="{}">{:g}</text>').format(_LEFT, _HEIGHT - 5, first),
        Markup('<text class="axis end" x="{}" y="{}">{:g}</text>').format(_WIDTH - _RIGHT, _HEIGHT - 5, last),
    ]
    for number, line in enumerate(series.values()):
        placed = [place(x, y) for x, y in line]
        path = " ".join(f"{x},{y}" for x, y in placed)
        out.append(Markup('<polyline class="line s{}" points="{}"/>').format(number % COLOURS, path))
        if placed:
            end = Markup('<circle class="dot f{}" cx="{}" cy="{}" r="3"/>')
            out.append(end.format(number % COLOURS, *placed[-1]))
    return Markup("").join([*out, Markup("</svg>")])


def _rule(value: float, y: float) -> Markup:
    line = Markup('<line class="rule" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(_LEFT, _WIDTH - _RIGHT, y, y)
    return line + Markup('<text class="axis end" x="{}" y="{}">{:.3g}</text>').format(_LEFT - 4, y + 3, value)


def scatter(title: str, points: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> Markup:
    """A map of points at x and y, -1..1, with ``label``. Labels differ by colour and by shape."""
    order = {label: number for number, label in enumerate(labels)}
    out = [Markup('<svg class="map" viewBox="-1.06 -1.06 2.12 2.12" role="img" aria-label="{}">').format(title)]
    for point in points:
        number = order.get(point["label"], 0)
        name = f"{point['label'] or '–'} · {point['task'] or '–'} · {point['frame']}"
        out.append(
            Markup('<g class="f{}" transform="translate({:.3f} {:.3f})">{}<title>{}</title></g>').format(
                number % COLOURS, float(point["x"]), -float(point["y"]), _shape(number, 0.028), name
            )
        )
    return Markup("").join([*out, Markup("</svg>")])


def _shape(number: int, radius: float) -> Markup:
    if number % 2 == 0:
        return Markup('<circle r="{}"/>').format(radius)
    return Markup('<rect x="{0}" y="{0}" width="{1}" height="{1}"/>').format(-radius, 2 * radius)


def key(number: int) -> Markup:
    """The sign of a label in :func:`scatter`, for its table."""
    sign = Markup('<svg class="key f{}" viewBox="-6 -6 12 12" aria-hidden="true">{}</svg>')
    return sign.format(number % COLOURS, _shape(number, 5))
