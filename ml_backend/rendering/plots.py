"""Statistics to look at: tracks and seconds of each label, sizes of boxes, work of each annotator."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties

from ml_backend.core.files import check_output, write_bytes
from ml_backend.datasets.statistics import AnnotationCounts, AnnotationStatistics
from ml_backend.rendering.draw import UNLABELLED_COLOUR, label_colours, truncate
from ml_backend.rendering.text import Fonts

FORMATS = (".png", ".svg", ".pdf")
#: Bars of one plot; what has fewer boxes is counted together.
MAX_BARS = 24
#: Edges of the histogram's columns, px: an eighth of a doubling wide, but at least a pixel; the last are beyond 8K.
_EDGES = np.unique(np.rint(2 ** np.arange(0, 13.2, 1 / 8))) - 0.5
_INK, _FAINT, _GRID = "#1c1c22", "#6e7078", "#e4e5ea"


def plot_statistics(statistics: AnnotationStatistics, out: Path) -> str:
    """Write a plot of annotation statistics. Nothing global of matplotlib is touched.

    Args:
        out: ends in ``.png``, ``.svg`` or ``.pdf``; one that is there is replaced.

    Returns:
        What is to be told of characters that could not be drawn, else empty.

    Raises:
        ConfigError: another kind of file.
        StorageError: the disk is full, or the folder cannot be written.
    """
    check_output(out, FORMATS, force=True)
    fonts = Fonts()
    figure = statistics_figure(statistics, fonts)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=out.suffix[1:].lower(), dpi=144)
    write_bytes(out, buffer.getvalue())
    return fonts.note()


def statistics_figure(statistics: AnnotationStatistics, fonts: Fonts) -> Figure:
    """The plot as a figure: bars by label, sizes below them, and bars by annotator where there are several."""
    labels = _largest(statistics.labels)
    people = _largest(statistics.annotators) if len(statistics.annotators) > 1 else {}
    rgb = label_colours(list(statistics.labels))
    shades = [np.divide(rgb.get(name, UNLABELLED_COLOUR), 255) for name in labels]
    bars, sizes, more = 1.4 + 0.32 * max(len(labels), 2), 3.0, 1.2 + 0.32 * len(people) if people else 0.0
    figure = Figure(figsize=(11, bars + sizes + more), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(3 if people else 2, 2, height_ratios=[bars, sizes, more][: 3 if people else 2])
    videos = "1 video" if statistics.videos == 1 else f"{statistics.videos} videos"
    figure.suptitle(f"{videos}, {statistics.video_seconds:,.1f} s", color=_INK, fontsize=13, fontweight="bold")
    names, tallies = [name or "(no label)" for name in labels], list(labels.values())
    _tracks(figure.add_subplot(grid[0, 0]), "Tracks", names, tallies, shades, fonts)
    _seconds(figure.add_subplot(grid[0, 1]), "Seconds on screen", names, tallies, shades, fonts)
    _sizes(figure.add_subplot(grid[1, :]), names, tallies, shades, fonts)
    if people:
        names, tallies = [name or "(unknown)" for name in people], list(people.values())
        blue = [(0.2, 0.45, 0.75)] * len(names)
        _tracks(figure.add_subplot(grid[2, 0]), "Tracks by annotator", names, tallies, blue, fonts)
        _seconds(figure.add_subplot(grid[2, 1]), "Seconds on screen by annotator", names, tallies, blue, fonts)
    return figure


def _largest(group: Mapping[str, AnnotationCounts]) -> dict[str, AnnotationCounts]:
    """Most boxes first; what comes after :data:`MAX_BARS` as one."""
    ordered = sorted(group.items(), key=lambda item: (-item[1].boxes, item[0]))
    if len(ordered) <= MAX_BARS:
        return dict(ordered)
    rest = AnnotationCounts()
    for _, tally in ordered[MAX_BARS - 1 :]:
        rest.add(tally)
    return dict(ordered[: MAX_BARS - 1]) | {f"{len(ordered) - MAX_BARS + 1} more": rest}


def _dress(axes: Any, title: str) -> None:
    axes.set_title(title, loc="left", color=_INK, fontsize=11)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_GRID)
    axes.tick_params(colors=_FAINT, length=0, labelsize=9)
    axes.set_axisbelow(True)


def _name_rows(axes: Any, names: Sequence[str], fonts: Fonts) -> None:
    axes.set_yticks(range(len(names)), [_plain(fonts.readable(truncate(name))) for name in names])
    for tick, name in zip(axes.get_yticklabels(), names, strict=True):
        tick.set_fontproperties(FontProperties(fname=str(fonts.file_for(truncate(name))), size=10))
        tick.set_color(_INK)
    axes.set_ylim(max(len(names), 1) - 0.4, -0.6)
    axes.grid(axis="x", color=_GRID)
    if not names:
        axes.text(0.5, 0.5, "nothing is annotated", transform=axes.transAxes, ha="center", color=_FAINT)


def _plain(text: str) -> str:
    """Dollar signs would begin mathematics."""
    return text.replace("$", r"\$")


def _seconds(
    axes: Any, title: str, names: Sequence[str], tallies: Sequence[AnnotationCounts], shades: Any, fonts: Fonts
) -> None:
    _dress(axes, title)
    bars = axes.barh(range(len(names)), [tally.seconds for tally in tallies], color=shades, height=0.7)
    _label_bars(axes, bars, [f"{tally.seconds:,.1f}" for tally in tallies])
    _name_rows(axes, names, fonts)


def _tracks(
    axes: Any, title: str, names: Sequence[str], tallies: Sequence[AnnotationCounts], shades: Any, fonts: Fonts
) -> None:
    """By hand in full colour, by a model hatched beside it."""
    _dress(axes, title)
    manual, auto = [tally.manual for tally in tallies], [tally.tracks - tally.manual for tally in tallies]
    how: dict[str, Any] = {"alpha": 0.45, "hatch": "////", "edgecolor": "white", "linewidth": 0}
    rows = range(len(names))
    axes.barh(rows, manual, color=shades, height=0.7)
    bars = axes.barh(rows, auto, left=manual, color=shades, height=0.7, **how)
    parts = [f" ({hand:,} by hand)" if hand and other else "" for hand, other in zip(manual, auto, strict=True)]
    _label_bars(axes, bars, [f"{tally.tracks:,}{part}" for tally, part in zip(tallies, parts, strict=True)])
    _name_rows(axes, names, fonts)
    if any(manual) and any(auto):
        axes.set_xlabel("full colour: by hand; hatched: by a model", color=_FAINT, fontsize=9)


def _label_bars(axes: Any, bars: Any, texts: Sequence[str]) -> None:
    axes.bar_label(bars, texts, padding=4, color=_FAINT, fontsize=9)
    # Room for the texts beside the longest bar, also where all are empty.
    axes.set_xlim(0, max(axes.dataLim.x1, 1e-9) * (1.15 + 0.02 * max(map(len, texts), default=0)))


def _sizes(axes: Any, names: Sequence[str], tallies: Sequence[AnnotationCounts], shades: Any, fonts: Fonts) -> None:
    """Histogram of box sizes in steps that grow with the size, the labels on top of each other."""
    _dress(axes, "Box sizes")
    axes.set_xlabel("side of a square of the same area, px", color=_FAINT, fontsize=9)
    axes.set_ylabel("boxes", color=_FAINT, fontsize=9)
    axes.grid(axis="y", color=_GRID)
    # What is smaller than a pixel counts as one.
    columns = [
        np.histogram(np.maximum(np.arange(len(tally.sizes)), 1), bins=_EDGES, weights=tally.sizes)[0]
        for tally in tallies
    ]
    used = np.flatnonzero(np.sum(columns, axis=0))
    if not len(used):
        axes.set_xticks([])
        axes.set_yticks([])
        axes.text(0.5, 0.5, "no boxes", transform=axes.transAxes, ha="center", color=_FAINT)
        return
    edges = _EDGES[used[0] : used[-1] + 2]
    below = np.zeros(len(edges) - 1)
    for name, column, shade in zip(names, columns, shades, strict=True):
        counts = column[used[0] : used[-1] + 1]
        if not counts.any():
            continue
        axes.bar(
            edges[:-1], counts, np.diff(edges), bottom=below, align="edge", color=shade, edgecolor="white",
            linewidth=0.4, label=_plain(fonts.readable(truncate(name))),
        )  # fmt: skip
        below += counts
    axes.set_xscale("log", base=2)
    axes.set_xlim(edges[0], edges[-1])
    usual = [step * 2**n for n in range(13) for step in (1.0, 1.5) if n or step == 1]
    ticks = [tick for tick in usual if edges[0] <= tick <= edges[-1]] or [float(edges[0]), float(edges[-1])]
    axes.set_xticks(ticks, [f"{tick:.0f}" for tick in ticks])
    axes.minorticks_off()
