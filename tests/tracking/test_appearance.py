"""Colours of boxes."""

from __future__ import annotations

import numpy as np
import pytest

from ml_backend.tracking.appearance import SIZE, colour_distance, mean_colours


def figure(coat: int, trousers: int) -> np.ndarray:
    image = np.full((200, 300, 3), 120, np.uint8)
    image[50:100, 100:140] = coat
    image[100:150, 100:140] = trousers
    return image


def test_the_stripes_of_a_box_have_their_own_colours() -> None:
    (look,) = mean_colours(figure(255, 0), np.array([[100, 50, 140, 150]], np.float32))
    head, torso, legs = look.reshape(3, 3)[:, 0]  # lightness, 0..255
    assert (head, torso, legs) == pytest.approx((255, 255, 0))


def test_black_and_white_are_fully_different_and_equal_is_zero() -> None:
    box = np.array([[100, 50, 140, 150]], np.float32)
    white, black = mean_colours(figure(255, 255), box), mean_colours(figure(0, 0), box)
    assert colour_distance(white, black)[0] > 1
    assert colour_distance(white, np.concatenate([white, black]))[0] == 0
    assert np.isnan(colour_distance(white, np.full((1, SIZE), np.nan, np.float32))).all()


@pytest.mark.parametrize("box", [[-50, -50, -10, -10], [290, 190, 400, 400], [5, 5, 5, 5], [0, 0, 300, 200]])
def test_boxes_at_and_beyond_the_edge_have_a_colour(box: list[float]) -> None:
    look = mean_colours(figure(255, 0), np.array([box], np.float32))
    assert look.shape == (1, SIZE)
    assert np.isfinite(look).all()
    assert (look >= 0).all()
    assert (look <= 255).all()


def test_no_boxes() -> None:
    assert mean_colours(figure(255, 0), np.zeros((0, 4), np.float32)).shape == (0, SIZE)
