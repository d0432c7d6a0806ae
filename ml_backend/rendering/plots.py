"""Plot annotation statistics: tracks and seconds by label, box sizes, tracks and seconds by annotator."""

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
#: Bars in one plot; labels with fewer boxes are summed in one bar.
MAX_BARS = 24
#: Histogram edges in pixels: eight bins per octave, at least a pixel wide, to beyond 8K.
_EDGES = np.unique(np.rint(2 ** np.arange(0, 13.2, 1 / 8))) - 0.5
_TEXT, _FAINT, _GRID = "#1c1c22", "#6e7078", "#e4e5ea"


def plot_statistics(statistics: AnnotationStatistics, out: Path) -> str:
    """Write a plot of annotation statistics, without touching global state of matplotlib.

    Args:
        out: ends in ``.png``, ``.svg`` or ``.pdf``; an existing file is replaced.

    Returns:
        A note on characters that could not be drawn, or empty.

    Raises:
        ConfigError: the suffix is not supported.
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
    """Build the figure: bars by label, box sizes, and bars by annotator if there are several."""
    labels = _largest(statistics.labels)
    people = _largest(statistics.annotators) if len(statistics.annotators) > 1 else {}
    rgb = label_colours(list(statistics.labels))
    colours = [np.divide(rgb.get(name, UNLABELLED_COLOUR), 255) for name in labels]
    bars, sizes, more = 1.4 + 0.32 * max(len(labels), 2), 3.0, 1.2 + 0.32 * len(people) if people else 0.0
    figure = Figure(figsize=(11, bars + sizes + more), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(3 if people else 2, 2, height_ratios=[bars, sizes, more][: 3 if people else 2])
    videos = "1 video" if statistics.videos == 1 else f"{statistics.videos} videos"
    figure.suptitle(f"{videos}, {statistics.video_seconds:,.1f} s", color=_TEXT, fontsize=13, fontweight="bold")
    names, counts = [name or "(no label)" for name in labels], list(labels.values())
    _plot_tracks(figure.add_subplot(grid[0, 0]), "Tracks", names, counts, colours, fonts)
    _plot_seconds(figure.add_subplot(grid[0, 1]), "Seconds on screen", names, counts, colours, fonts)
    _plot_sizes(figure.add_subplot(grid[1, :]), names, counts, colours, fonts)
    if people:
        names, counts = [name or "(unknown)" for name in people], list(people.values())
        blue = [(0.2, 0.45, 0.75)] * len(names)
        _plot_tracks(figure.add_subplot(grid[2, 0]), "Tracks by annotator", names, counts, blue, fonts)
        _plot_seconds(figure.add_subplot(grid[2, 1]), "Seconds on screen by annotator", names, counts, blue, fonts)
    return figure


def _largest(group: Mapping[str, AnnotationCounts]) -> dict[str, AnnotationCounts]:
    """Return the counts with most boxes first, and the sum of those beyond :data:`MAX_BARS`."""
    ordered = sorted(group.items(), key=lambda item: (-item[1].boxes, item[0]))
    if len(ordered) <= MAX_BARS:
        return dict(ordered)
    rest = AnnotationCounts()
    for _, other in ordered[MAX_BARS - 1 :]:
        rest.add(other)
    return dict(ordered[: MAX_BARS - 1]) | {f"{len(ordered) - MAX_BARS + 1} more": rest}


def _style_axes(axes: Any, title: str) -> None:
    axes.set_title(title, loc="left", color=_TEXT, fontsize=11)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_GRID)
    axes.tick_params(colors=_FAINT, length=0, labelsize=9)
    axes.set_axisbelow(True)


def _label_rows(axes: Any, names: Sequence[str], fonts: Fonts) -> None:
    axes.set_yticks(range(len(names)), [_escape(fonts.readable(truncate(name))) for name in names])
    for tick, name in zip(axes.get_yticklabels(), names, strict=True):
        tick.set_fontproperties(FontProperties(fname=str(fonts.file_for(truncate(name))), size=10))
        tick.set_color(_TEXT)
    axes.set_ylim(max(len(names), 1) - 0.4, -0.6)
    axes.grid(axis="x", color=_GRID)
    if not names:
        axes.text(0.5, 0.5, "nothing is annotated", transform=axes.transAxes, ha="center", color=_FAINT)


def _escape(text: str) -> str:
    """Escape dollar signs, which begin mathtext."""
    return text.replace("$", r"\$")


def _plot_seconds(
    axes: Any, title: str, names: Sequence[str], counts: Sequence[AnnotationCounts], colours: Any, fonts: Fonts
) -> None:
    _style_axes(axes, title)
    bars = axes.barh(range(len(names)), [count.seconds for count in counts], color=colours, height=0.7)
    _label_bars(axes, bars, [f"{count.seconds:,.1f}" for count in counts])
    _label_rows(axes, names, fonts)


def _plot_tracks(
    axes: Any, title: str, names: Sequence[str], counts: Sequence[AnnotationCounts], colours: Any, fonts: Fonts
) -> None:
    """Draw bars of manual tracks in full colour and of predicted tracks hatched."""
    _style_axes(axes, title)
    manual, auto = [count.manual for count in counts], [count.tracks - count.manual for count in counts]
    hatched: dict[str, Any] = {"alpha": 0.45, "hatch": "////", "edgecolor": "white", "linewidth": 0}
    rows = range(len(names))
    axes.barh(rows, manual, color=colours, height=0.7)
    bars = axes.barh(rows, auto, left=manual, color=colours, height=0.7, **hatched)
    suffixes = [f" ({hand:,} by hand)" if hand and other else "" for hand, other in zip(manual, auto, strict=True)]
    _label_bars(axes, bars, [f"{count.tracks:,}{suffix}" for count, suffix in zip(counts, suffixes, strict=True)])
    _label_rows(axes, names, fonts)
    if any(manual) and any(auto):
        axes.set_xlabel("full colour: by hand; hatched: by a model", color=_FAINT, fontsize=9)


def _label_bars(axes: Any, bars: Any, texts: Sequence[str]) -> None:
    axes.bar_label(bars, texts, padding=4, color=_FAINT, fontsize=9)
    # Room for the texts beside the longest bar.
    axes.set_xlim(0, max(axes.dataLim.x1, 1e-9) * (1.15 + 0.02 * max(map(len, texts), default=0)))


def _plot_sizes(
    axes: Any, names: Sequence[str], counts: Sequence[AnnotationCounts], colours: Any, fonts: Fonts
) -> None:
    """Draw a stacked histogram of box sizes with logarithmic bins."""
    _style_axes(axes, "Box sizes")
    axes.set_xlabel("side of a square of the same area, px", color=_FAINT, fontsize=9)
    axes.set_ylabel("boxes", color=_FAINT, fontsize=9)
    axes.grid(axis="y", color=_GRID)
    # Sizes below a pixel count as one.
    columns = [
        np.histogram(np.maximum(np.arange(len(count.sizes)), 1), bins=_EDGES, weights=count.sizes)[0]
        for count in counts
    ]
    used = np.flatnonzero(np.sum(columns, axis=0))
    if not len(used):
        axes.set_xticks([])
        axes.set_yticks([])
        axes.text(0.5, 0.5, "no boxes", transform=axes.transAxes, ha="center", color=_FAINT)
        return
    edges = _EDGES[used[0] : used[-1] + 2]
    bottom = np.zeros(len(edges) - 1)
    for name, column, colour in zip(names, columns, colours, strict=True):
        heights = column[used[0] : used[-1] + 1]
        if not heights.any():
            continue
        axes.bar(
            edges[:-1], heights, np.diff(edges), bottom=bottom, align="edge", color=colour, edgecolor="white",
            linewidth=0.4, label=_escape(fonts.readable(truncate(name))),
        )  # fmt: skip
        bottom += heights
    axes.set_xscale("log", base=2)
    axes.set_xlim(edges[0], edges[-1])
    candidates = [step * 2**n for n in range(13) for step in (1.0, 1.5) if n or step == 1]
    ticks = [tick for tick in candidates if edges[0] <= tick <= edges[-1]] or [float(edges[0]), float(edges[-1])]
    axes.set_xticks(ticks, [f"{tick:.0f}" for tick in ticks])
    axes.minorticks_off()
