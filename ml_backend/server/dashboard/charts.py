"""Server-side SVG charts. Colours come from the style sheet; all text is escaped."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

#: Number of series colours in the style sheet.
COLOURS = 8
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 360, 150, 38, 8, 8, 20


def bar(share: float, colour: int = 0) -> Markup:
    """Return a bar for a share, 0..1. Hidden from screen readers, which read the number beside it."""
    width = round(100 * min(max(share, 0.0), 1.0), 2)
    return Markup(
        '<svg class="bar" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="rail" width="100" height="8" rx="2"/><rect class="fill f{}" width="{}" height="8" rx="2"/></svg>'
    ).format(colour % COLOURS, width)


def curves(title: str, series: Mapping[str, Sequence[tuple[float, float]]], top: float | None = None) -> Markup:
    """Return a line chart over epochs.

    Args:
        title: description for screen readers.
        series: points (epoch, value) by name.
        top: the value at the upper edge; by default the largest.
    """
    points = [point for line in series.values() for point in line]
    if not points:
        return Markup("")
    first, last = min(x for x, _ in points), max(x for x, _ in points)
    y_max = top or max(y for _, y in points) or 1.0

    def to_pixels(x: float, y: float) -> tuple[float, float]:
        share = (x - first) / (last - first) if last > first else 0.5
        left = _LEFT + share * (_WIDTH - _LEFT - _RIGHT)
        return round(left, 1), round(_TOP + (1 - min(y / y_max, 1.0)) * (_HEIGHT - _TOP - _BOTTOM), 1)

    elements = [
        Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(_WIDTH, _HEIGHT, title),
        *(_grid_line(value, to_pixels(first, value)[1]) for value in (0.0, y_max / 2, y_max)),
        Markup('<text class="axis" x="{}" y="{}">{:g}</text>').format(_LEFT, _HEIGHT - 5, first),
        Markup('<text class="axis end" x="{}" y="{}">{:g}</text>').format(_WIDTH - _RIGHT, _HEIGHT - 5, last),
    ]
    for number, line in enumerate(series.values()):
        pixels = [to_pixels(x, y) for x, y in line]
        path = " ".join(f"{x},{y}" for x, y in pixels)
        elements.append(Markup('<polyline class="line s{}" points="{}"/>').format(number % COLOURS, path))
        if pixels:
            end = Markup('<circle class="dot f{}" cx="{}" cy="{}" r="3"/>')
            elements.append(end.format(number % COLOURS, *pixels[-1]))
    return Markup("").join([*elements, Markup("</svg>")])


def _grid_line(value: float, y: float) -> Markup:
    line = Markup('<line class="rule" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(_LEFT, _WIDTH - _RIGHT, y, y)
    return line + Markup('<text class="axis end" x="{}" y="{}">{:.3g}</text>').format(_LEFT - 4, y + 3, value)


def scatter(
    title: str, points: Sequence[Mapping[str, Any]], labels: Sequence[str], link: Callable[[Mapping[str, Any]], Markup]
) -> Markup:
    """Return a scatter plot of points with ``x`` and ``y`` in -1..1. Labels differ by colour and shape.

    Args:
        title: description for screen readers.
        link: returns the attributes of a point's link.
    """
    order = {label: number for number, label in enumerate(labels)}
    elements = [Markup('<svg class="map" viewBox="-1.06 -1.06 2.12 2.12" role="group" aria-label="{}">').format(title)]
    for point in points:
        number = order.get(point["label"], 0)
        name = f"{point['label'] or '–'} · {point['task'] or '–'} · {point['frame']}"
        elements.append(
            Markup('<a {}><g class="f{}" transform="translate({:.3f} {:.3f})">{}<title>{}</title></g></a>').format(
                link(point), number % COLOURS, float(point["x"]), -float(point["y"]), _shape(number, 0.028), name
            )
        )
    return Markup("").join([*elements, Markup("</svg>")])


def _shape(number: int, radius: float) -> Markup:
    if number % 2 == 0:
        return Markup('<circle r="{}"/>').format(radius)
    return Markup('<rect x="{0}" y="{0}" width="{1}" height="{1}"/>').format(-radius, 2 * radius)


def key(number: int) -> Markup:
    """Return the legend marker of a label in :func:`scatter`."""
    marker = Markup('<svg class="key f{}" viewBox="-6 -6 12 12" aria-hidden="true">{}</svg>')
    return marker.format(number % COLOURS, _shape(number, 5))
