"""Boxes: overlap, clipping, percent."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ml_backend.core.boxes import clip_xyxy, iou_matrix, iou_pairs, percent_to_xyxy, xyxy_to_percent

UNIT = [0.0, 0.0, 10.0, 10.0]


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (UNIT, 1.0),
        ([0, 0, 10, 5], 0.5),
        ([5, 0, 15, 10], 1 / 3),
        ([2, 2, 4, 4], 0.04),
        ([10, 0, 20, 10], 0.0),  # touching
        ([30, 30, 40, 40], 0.0),
        ([3, 3, 3, 8], 0.0),  # no area, inside
        ([8, 8, 2, 2], 0.0),  # inside out
    ],
)
def test_iou_of_known_boxes(other: list[float], expected: float) -> None:
    assert iou_pairs([UNIT], [other])[0] == pytest.approx(expected)
    assert iou_pairs([other], [UNIT])[0] == pytest.approx(expected)
    assert iou_matrix([UNIT], [other])[0, 0] == pytest.approx(expected)


def test_boxes_without_area_equal_only_themselves() -> None:
    line, point = [3.0, 3.0, 3.0, 8.0], [3.0, 3.0, 3.0, 3.0]
    assert iou_matrix([line, point], [line, point]).tolist() == [[1.0, 0.0], [0.0, 1.0]]


def test_empty_input_gives_empty_output() -> None:
    none = np.zeros((0, 4))
    assert iou_pairs(none, none).shape == (0,)
    assert iou_matrix(none, [UNIT]).shape == (0, 1)
    assert clip_xyxy(none, 5, 5).shape == xyxy_to_percent(none, 5, 5).shape == (0, 4)


def test_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match=r"expected a of shape \(n, 4\), got \(3,\)"):
        iou_pairs([1, 2, 3], [UNIT])
    with pytest.raises(ValueError, match="the same shape"):
        iou_pairs([UNIT], [UNIT, UNIT])
    with pytest.raises(ValueError, match="with an area"):
        xyxy_to_percent([UNIT], 0, 5)


def test_clip_cuts_at_the_edges() -> None:
    assert clip_xyxy([[-5, 2, 30, 40]], 20, 10).tolist() == [[0, 2, 20, 10]]


def test_percent_of_a_known_box() -> None:
    assert xyxy_to_percent([[192, 108, 960, 540]], 1920, 1080)[0] == pytest.approx([10, 10, 40, 40])


@given(
    arrays(np.float64, (5, 4), elements=st.floats(-100, 5000)),
    st.integers(1, 8000),
    st.integers(1, 8000),
)
def test_percent_round_trip(boxes: np.ndarray, width: int, height: int) -> None:
    back = percent_to_xyxy(xyxy_to_percent(boxes, width, height), width, height)
    np.testing.assert_allclose(back, boxes, atol=1e-8)


# Eighths: coordinates whose products neither overflow nor vanish.
eighths = arrays(np.float64, (6, 4), elements=st.integers(-400, 400).map(lambda n: n / 8))


@given(eighths, eighths)
def test_iou_is_symmetric_bounded_and_blind_to_scale(a: np.ndarray, b: np.ndarray) -> None:
    iou = iou_pairs(a, b)
    assert ((iou >= 0) & (iou <= 1)).all()
    np.testing.assert_array_equal(iou, iou_pairs(b, a))
    np.testing.assert_array_equal(iou, np.diag(iou_matrix(a, b)))
    np.testing.assert_array_equal(iou, iou_pairs(a * 4, b * 4))
