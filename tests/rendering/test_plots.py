"""Plots of statistics: the right bars, in any format, without leaving a trace in matplotlib."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from PIL import Image as Pictures

from ml_backend.core.errors import ConfigError, StorageError
from ml_backend.datasets.annotation_reader import AnnotationReader
from ml_backend.datasets.statistics import AnnotationCounts, AnnotationStatistics, collect_statistics
from ml_backend.rendering.plots import MAX_BARS, plot_statistics, statistics_figure
from ml_backend.rendering.text import Fonts
from tests.builders import ROOT
from tests.rendering.drawing import make_region, write_export
from tests.video.builders import make_video


def tally(tracks: int, manual: int, seconds: float, *sizes: int) -> AnnotationCounts:
    made = AnnotationCounts(tracks=tracks, boxes=len(sizes), manual=manual, seconds=seconds, videos=1)
    for size in sizes:
        made.sizes[size] += 1
    return made


def statistics(
    labels: dict[str, AnnotationCounts], annotators: dict[str, AnnotationCounts] | None = None
) -> AnnotationStatistics:
    return AnnotationStatistics(labels, annotators or {}, 2, 61.5)


def widths(axes: object) -> list[float]:
    return [bar.get_width() for bar in axes.patches]  # type: ignore[attr-defined]


def test_bars_are_what_was_counted() -> None:
    found = statistics({"thing": tally(3, 3, 4.5, 10, 20), "ding": tally(5, 2, 9.0, 30, 30, 40)})
    figure = statistics_figure(found, Fonts())
    tracks, seconds, sizes = figure.axes
    assert [text.get_text() for text in tracks.get_yticklabels()] == ["ding", "thing"]
    assert widths(tracks) == [2, 3, 3, 0]  # by hand, then by a model
    assert widths(seconds) == [9.0, 4.5]
    assert sum(bar.get_height() for bar in sizes.patches) == 5


def test_several_annotators() -> None:
    people = {"anna@example.org": tally(3, 3, 4.5, 10), "": tally(1, 1, 1.0, 10)}
    assert len(statistics_figure(statistics({"thing": tally(1, 1, 1.0, 9)}, people), Fonts()).axes) == 5
    one = {"anna@example.org": people["anna@example.org"]}
    assert len(statistics_figure(statistics({"thing": tally(1, 1, 1.0, 9)}, one), Fonts()).axes) == 3


def test_many_labels_are_counted_together() -> None:
    found = statistics({f"label {n}": tally(1, 0, 1.0, *([50] * (100 - n))) for n in range(MAX_BARS + 10)})
    tracks, seconds, _ = statistics_figure(found, Fonts()).axes
    names = [text.get_text() for text in tracks.get_yticklabels()]
    assert len(names) == MAX_BARS
    assert names[-1] == "11 more"
    assert sum(widths(seconds)) == MAX_BARS + 10


@pytest.mark.slow
@pytest.mark.parametrize(
    "labels",
    [
        {},
        {"thing": AnnotationCounts()},
        {"": tally(1, 0, 0.5, 0), "a": tally(1, 1, 1, 1)},
        {"big": tally(1, 1, 1, 8192)},
        {"$x$ 사람 _^": tally(1, 1, 1, 5, 6), "Fußgänger": tally(1, 0, 1, 5)},
    ],
    ids=["nothing", "unused", "tiny", "huge", "strange names"],
)
@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_everything_can_be_drawn(tmp_path: Path, labels: dict[str, AnnotationCounts], suffix: str) -> None:
    out = tmp_path / "new" / f"plot{suffix}"
    plot_statistics(statistics(labels), out)
    assert list(out.parent.iterdir()) == [out]
    if suffix == ".png":
        with Pictures.open(out) as picture:
            picture.load()
            assert np.asarray(picture.convert("L")).std() > 3
    elif suffix == ".svg":
        assert ElementTree.parse(out).getroot().tag.endswith("svg")
    else:
        assert out.read_bytes().startswith(b"%PDF")


def test_characters_that_cannot_be_drawn_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ml_backend.rendering.text.system_fonts", lambda: ())
    assert "사" in plot_statistics(statistics({"사람": tally(1, 1, 1, 5)}), tmp_path / "plot.svg")


def test_from_an_export(tmp_path: Path) -> None:
    make_video(tmp_path / "clip.mp4")
    regions = [make_region([(1, 20, 50, 20, 30, True)], count=30, fps=30)]
    source = AnnotationReader.from_file(write_export(tmp_path / "e.json", "clip.mp4", regions))
    _, seconds, _ = statistics_figure(collect_statistics(source), Fonts()).axes
    assert widths(seconds) == [pytest.approx(1.0)]


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"plot\.bmp"):
        plot_statistics(statistics({}), tmp_path / "plot.bmp")
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        plot_statistics(statistics({}), tmp_path / "file" / "plot.png")


@pytest.mark.slow
def test_matplotlib_stays_as_it_was(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    plot_statistics(statistics({"thing": tally(1, 1, 1, 5)}), tmp_path / "plot.png")
    assert dict(matplotlib.rcParams) == before
    code = "import sys, ml_backend.rendering.plots; print('matplotlib.pyplot' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
