"""Boxes, names, legends on pictures: where they should be, readable, and inside the picture."""

from __future__ import annotations

import logging
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import supervision as sv
from matplotlib.ft2font import FT2Font

from ml_backend.core.errors import ConfigError
from ml_backend.rendering import text as fonts_module
from ml_backend.rendering.draw import (
    DARK,
    PALETTE,
    UNLABELLED_COLOUR,
    BoxStyle,
    DashedBoxAnnotator,
    FramePainter,
    Legend,
    Scale,
    label_colours,
    text_colour,
    truncate,
)
from ml_backend.rendering.render import fitting_size
from ml_backend.rendering.text import Fonts
from tests.rendering.drawing import GREEN, MAGENTA, box_of, painted

BARE = BoxStyle(names=False, numbers=False, confidence=False)
COLOURS = {"thing": GREEN, "ding": MAGENTA}
BUNDLED_FONTS = Path(matplotlib.get_data_path(), "fonts", "ttf")


def detections(*rows: tuple[float, float, float, float], label: int = 0, manual: bool = True) -> sv.Detections:
    n = len(rows)
    return sv.Detections(
        xyxy=np.array(rows, np.float64).reshape(-1, 4),
        class_id=np.full(n, label, np.int64),
        tracker_id=np.arange(1, n + 1),
        confidence=np.full(n, np.nan if manual else 0.87),
        data={"manual": np.full(n, manual)},
    )


def painter(look: BoxStyle, size: tuple[int, int] = (320, 240), fonts: Fonts | None = None) -> FramePainter:
    return FramePainter(["thing", "ding"], COLOURS, size, 25.0, look, fonts or Fonts(), [True, False])


def grey(width: int = 320, height: int = 240) -> np.ndarray:
    return np.full((height, width, 3), 128, np.uint8)


# -- boxes


@pytest.mark.parametrize("manual", [True, False])
def test_a_box_is_where_it_should_be(manual: bool) -> None:
    image = grey()
    painter(BARE).paint(image, detections((50, 60, 150, 200), manual=manual))
    left, top, right, bottom = box_of(image, GREEN) or (0, 0, 0, 0)
    assert np.abs(np.array([left, top, right, bottom]) - (50, 60, 150, 200)).max() <= 1
    assert (image[65:195, 55:145] == 128).all(), "what is in the box stays to be seen"


def test_solid_and_dashed() -> None:
    solid, dashed = grey(), grey()
    painter(BARE).paint(solid, detections((50, 60, 150, 200)))
    painter(BARE).paint(dashed, detections((50, 60, 150, 200), manual=False))
    assert painted(solid, GREEN)[60, 50:150].all()
    row = painted(dashed, GREEN)[60, 50:151]
    assert 0.4 < row.mean() < 0.7
    assert row[:5].all()
    assert row[-5:].all(), "corners are whole"


@pytest.mark.parametrize("manual", [True, False])
@pytest.mark.parametrize(
    "box", [(-20, -20, 40, 50), (300, 220, 400, 300), (0, 0, 320, 240), (100, 100, 100, 100), (-90, -90, -50, -50)]
)
def test_boxes_at_and_over_the_edge(box: tuple[float, float, float, float], manual: bool) -> None:
    image = grey()
    painter(BoxStyle(trails=1.0, legend=True)).paint(image, detections(box, manual=manual))
    assert image.shape == (240, 320, 3)


def test_no_boxes() -> None:
    image = grey()
    painter(BoxStyle(trails=1.0)).paint(image, detections())
    assert (image == 128).all()


def test_a_small_box_is_drawn_over_a_large_one() -> None:
    image = grey()
    both = sv.Detections(
        xyxy=np.array([[60.0, 60, 100, 100], [40, 60, 200, 200]]),
        class_id=np.array([1, 0]),
        tracker_id=np.array([1, 2]),
        confidence=np.full(2, np.nan),
        data={"manual": np.array([True, True])},
    )
    painter(BARE).paint(image, both)
    assert painted(image, MAGENTA)[60, 80]
    assert painted(image, GREEN)[60, 150]


@pytest.mark.parametrize("length", [1, 2, 3, 7, 50, 333])
def test_dashes_begin_and_end(length: int) -> None:
    image = grey(360, 110)
    annotator = DashedBoxAnnotator(sv.ColorPalette([sv.Color(*GREEN)]), thickness=1, dash=8)
    annotator.annotate(image, detections((10, 20, 10 + length, 90)))
    upper = painted(image, GREEN)[20]
    assert np.flatnonzero(upper)[[0, -1]].tolist() == [10, 10 + length]
    edge = upper[10 : 11 + length]
    assert edge[:2].all(), "a dash, not only the corner of the edge that goes down"
    assert edge[-2:].all()
    if length > 30:
        assert 0.4 < edge.mean() < 0.7
    else:
        assert edge.mean() > 0.4


# -- names


def plates(image: np.ndarray) -> np.ndarray:
    return np.any(image != 128, axis=2)


def test_a_name_is_above_its_box_and_below_at_the_upper_edge() -> None:
    upper, lower = grey(), grey()
    only_names = BoxStyle(numbers=False, confidence=False)
    painter(only_names).paint(lower, detections((50, 100, 150, 200)))
    assert plates(lower)[85:95, 55:80].mean() > 0.9
    painter(only_names).paint(upper, detections((50, 2, 150, 100)))
    assert plates(upper)[105:112, 55:80].mean() > 0.9


def test_names_do_not_hide_each_other() -> None:
    image = grey()
    painter(BoxStyle()).paint(image, detections((50, 100, 150, 200), (52, 102, 152, 202), (54, 104, 154, 204)))
    names = painted(image, GREEN, 40)
    assert names[:97].any()
    assert names[210:].any()


def test_a_name_keeps_its_side() -> None:
    """The side that was taken to make room stays while it is as good as another."""
    one = painter(BoxStyle(numbers=False, confidence=False))
    crowd = grey()
    one.paint(crowd, detections((50, 100, 150, 200), (50, 100, 150, 200)))
    alone = detections((50, 100, 150, 200), (250, 20, 300, 60))
    alone.xyxy[:] = alone.xyxy[::-1]
    after = grey()
    one.paint(after, alone)
    assert plates(after)[205:212, 55:80].mean() > 0.9


def test_a_colour_that_text_can_be_read_on() -> None:
    assert text_colour((253, 216, 53)) != text_colour((94, 53, 177))


@pytest.mark.parametrize("size", [(16, 16), (64, 48), (640, 360), (1920, 1080), (1080, 1920)])
def test_any_size(size: tuple[int, int]) -> None:
    image = grey(*size)
    width, height = size
    everything = BoxStyle(trails=1.0, legend=True)
    painter(everything, size).paint(image, detections((width / 4, height / 4, width / 2, height / 2), manual=False))
    assert plates(image).any()


def test_sizes_grow_with_the_picture() -> None:
    small, hd, uhd = Scale.of(640, 360), Scale.of(1920, 1080), Scale.of(3840, 2160)
    assert small.font == 11
    assert small.font < hd.font < uhd.font
    assert small.line < hd.line < uhd.line
    assert Scale.of(1080, 1920) == hd


def test_long_names_are_cut() -> None:
    assert truncate("x" * 50) == "x" * 31 + "…"
    assert truncate("person") == "person"


# -- trails and legend


def test_a_trail_shows_where_it_came_from() -> None:
    one = painter(BoxStyle(names=False, numbers=False, confidence=False, trails=1.0))
    for n in range(20):
        image = grey()
        one.paint(image, detections((20 + 10 * n, 100, 60 + 10 * n, 140)))
    found = painted(image, GREEN)
    assert found[138:143, 60:200].any(axis=0).mean() > 0.9
    one.paint(still := grey(), detections())
    assert (still == 128).all()


def test_the_legend_counts() -> None:
    one = painter(BoxStyle(names=False, numbers=False, confidence=False, legend=True))
    none, two, again = grey(), grey(), grey()
    one.paint(none, detections())
    one.paint(two, detections((200, 100, 220, 120), (200, 150, 220, 170)))
    one.paint(again, detections())
    corner = np.s_[:100, :150]
    assert (none[corner] != two[corner]).any(), "the number has changed"
    assert (none == again).all()
    assert painted(none, GREEN).any()
    assert painted(none, MAGENTA).any()


def test_a_legend_of_many_labels_leaves_the_picture_to_be_seen() -> None:
    labels = [f"label {n}" for n in range(60)]
    image = grey(640, 360)
    FramePainter(labels, label_colours(labels), (640, 360), 25.0, BoxStyle(legend=True), Fonts()).paint(
        image, detections()
    )
    assert not plates(image)[-40:].any()


# -- colours


def test_colours_of_the_config_and_others() -> None:
    colours = label_colours(["a", "b", "c", "d", ""], {"a": "#E53935", "b": "teal", "c": "no colour", "x": "red"})
    assert colours["a"] == (229, 57, 53)
    assert colours["b"] == (0, 128, 128)
    assert colours["c"] in PALETTE
    assert colours[""] == UNLABELLED_COLOUR
    assert len(set(colours.values())) == 5


def test_a_label_has_the_same_colour_in_every_video() -> None:
    assert label_colours(["person"])["person"] == label_colours(["bus", "person"])["person"]
    many = label_colours([f"label {n}" for n in range(40)])
    assert set(many.values()) == set(PALETTE)


# -- text


@pytest.fixture
def no_system_fonts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts_module, "system_fonts", lambda: ())


@pytest.mark.parametrize("text", ["Fußgänger", "человек", "šťastný", "ΆΝΘΡΩΠΟΣ", "→ ✓", "a\u0308"])
def test_many_scripts_are_drawn_as_they_are(text: str, no_system_fonts: None) -> None:
    fonts = Fonts()
    assert np.asarray(fonts.mask(text, 20)).max() > 200
    assert fonts.missing == set()
    assert fonts.note() == ""


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("사람", "saram"),
        ("人", "U+4EBA"),
        ("人 walking", "U+4EBA walking"),
        ("ひと", "hito"),
        ("🚗", "U+1F697"),
        ("  two\n lines\t", "two lines"),
        ("", ""),
    ],
)
def test_characters_that_no_font_has(text: str, shown: str, no_system_fonts: None) -> None:
    fonts = Fonts()
    assert fonts.readable(text) == shown
    assert fonts.mask(text, 20).width >= 1
    strange = {char for char in text if ord(char) > 0x3000}
    assert fonts.missing == strange
    assert all(char in fonts.note() for char in strange)
    assert ("--font" in fonts.note()) == ("apt install fonts-noto-cjk" in fonts.note()) == bool(strange)


def test_a_font_of_the_machine_helps_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a machine with another font that has a character the first has not."""
    serif = BUNDLED_FONTS / "STIXGeneral.ttf"
    others, first = (FT2Font(str(path)).get_charmap().keys() for path in (serif, BUNDLED_FONTS / "DejaVuSans.ttf"))
    only_there = next(char for char in map(chr, sorted(others - first)) if char.isalpha())
    monkeypatch.setattr(fonts_module, "system_fonts", lambda: (Path("gone.ttf"), serif))
    fonts = Fonts()
    assert fonts.readable(f"a{only_there}b") == f"a{only_there}b"
    assert np.asarray(fonts.mask(f"a{only_there}b", 20)).any()
    assert fonts.missing == set()


def test_a_named_font() -> None:
    serif = BUNDLED_FONTS / "DejaVuSerif.ttf"
    assert Fonts(serif).mask("person", 20).tobytes() != Fonts().mask("person", 20).tobytes()


@pytest.mark.parametrize("content", [None, b"", b"no font"])
def test_a_named_font_that_is_none(tmp_path: Path, content: bytes | None, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "x.ttf"
    if content is not None:
        path.write_bytes(content)
    with caplog.at_level(logging.DEBUG), pytest.raises(ConfigError, match=r"x\.ttf"):
        Fonts(path)


def test_lines_of_one_size_have_one_height() -> None:
    fonts = Fonts()
    assert {fonts.mask(text, 16).height for text in ("x", "Åg", "", "жр")} == {fonts.mask("a", 16).height}


# -- panels and panes


def test_a_panel_is_translucent_and_cut_off_at_the_edges() -> None:
    legend = Legend(["thing"], [GREEN], [True], Scale.of(640, 360), Fonts())
    below = (200, 100, 0)
    image = np.full((360, 640, 3), below, np.uint8)
    small = image[:20, :30].copy()
    legend.draw(image, np.array([0]))
    legend.draw(small, np.array([0]))
    assert (small == image[:20, :30]).all()
    panel = (image != below).any(axis=2)
    left, right = np.flatnonzero(panel.any(axis=0))[[0, -1]].tolist()
    top, bottom = np.flatnonzero(panel.any(axis=1))[[0, -1]].tolist()
    assert 0 < top < bottom < 200
    assert 0 < left < right < 300
    shown = image[top + 1, (left + right) // 2].astype(float)  # between the rim and the first line
    plate = np.array(DARK[::-1])
    opacity = (below[0] - shown[0]) / (below[0] - plate[0])
    assert 0.7 < opacity < 0.9
    assert np.abs(shown - (opacity * plate + (1 - opacity) * np.array(below))).max() <= 2


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((1920, 1080, 1), (1920, 1080)),
        ((1920, 1080, 2), (1920, 1080)),
        ((3840, 2160, 2), (1920, 1080)),
        ((1920, 1080, 1, 360), (640, 360)),
        ((640, 360, 1, 1080), (640, 360)),
        ((321, 241, 1), (321, 241)),
        ((2, 3000, 1, 16), (2, 16)),
    ],
)
def test_size_of_a_pane(arguments: tuple[int, ...], expected: tuple[int, int]) -> None:
    assert fitting_size(*arguments) == expected
