"""Cutting objects out of frames, and bringing them to a network's size."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from ml_backend.embeddings.crops import cut_crop, letterbox, sharpness

FRAME = np.random.default_rng(0).integers(0, 255, (120, 200, 3), np.uint8)
FILL = (10, 20, 30)


def test_the_box_without_context_is_the_box() -> None:
    crop = cut_crop(FRAME, (20, 30, 60, 90), context=0)
    assert crop is not None
    assert np.array_equal(crop, FRAME[30:90, 20:60])


def test_context_is_a_share_of_the_longer_side_on_each_side() -> None:
    crop = cut_crop(FRAME, (60, 30, 80, 70), context=0.25)
    assert crop is not None
    assert np.array_equal(crop, FRAME[20:80, 50:90])


def test_a_crop_does_not_keep_the_frame_alive() -> None:
    crop = cut_crop(FRAME, np.array([20, 30, 60, 90], np.float32))
    assert crop is not None
    assert crop.base is None
    assert crop.flags["C_CONTIGUOUS"]


@pytest.mark.parametrize(
    ("xyxy", "shape"),
    [
        ((-50, -50, 20, 20), (20, 20, 3)),  # a corner
        ((190, 100, 500, 500), (20, 10, 3)),
        ((-9, -9, 999, 999), (120, 200, 3)),  # more than all
        ((10.2, 10.2, 10.4, 10.4), (1, 1, 3)),  # within one pixel
        ((10.9, 10.9, 11.1, 11.1), (2, 2, 3)),
        ((199.5, 119.5, 300, 300), (1, 1, 3)),
    ],
)
def test_boxes_are_clipped_to_the_frame(xyxy: tuple[float, ...], shape: tuple[int, ...]) -> None:
    crop = cut_crop(FRAME, xyxy, context=0)
    assert crop is not None
    assert crop.shape == shape


@pytest.mark.parametrize(
    "xyxy",
    [
        (-20, 10, 0, 30),  # touches the frame from outside
        (200, 10, 210, 30),
        (10, 120, 30, 130),
        (10, -20, 30, 0),
        (-205, 10, -5, 30),  # outside, though its margin is not
        (10, 10, 10, 30),  # no area
        (10, 30, 30, 30),
        (30, 10, 10, 30),  # turned around
        (float("nan"), 10, 30, 30),
        (10, 10, float("inf"), 30),
    ],
)
def test_boxes_that_show_nothing(xyxy: tuple[float, ...]) -> None:
    assert cut_crop(FRAME, xyxy) is None


def test_a_box_has_four_numbers() -> None:
    with pytest.raises(ValueError, match=r"expected xyxy of shape \(4,\), got \(2, 4\)"):
        cut_crop(FRAME, np.zeros((2, 4)))


@pytest.mark.parametrize(("height", "width"), [(400, 200), (200, 400), (30, 20), (20, 30), (224, 224)])
def test_a_circle_stays_a_circle(height: int, width: int) -> None:
    crop = np.zeros((height, width, 3), np.uint8)
    cv2.circle(crop, (width // 2, height // 2), min(height, width) // 3, (255, 255, 255), -1)
    square = letterbox(crop, 224, (0, 0, 0))
    ys, xs = np.nonzero(square[..., 0] > 127)
    assert square.shape == (224, 224, 3)
    across, down = np.ptp(xs) + 1, np.ptp(ys) + 1
    assert abs(across - down) <= 0.02 * 224
    assert across == pytest.approx(224 / max(height, width) * 2 * (min(height, width) // 3), abs=0.05 * 224)


def test_padding_is_even_and_of_the_given_colour() -> None:
    square = letterbox(np.full((100, 50, 3), 200, np.uint8), 40, FILL)
    assert (square[:, 10:30] == 200).all()
    assert (square[:, :10] == FILL).all()
    assert (square[:, 30:] == FILL).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 3000), (3000, 1), (5000, 4000)])
def test_crops_of_any_size(shape: tuple[int, int]) -> None:
    square = letterbox(np.full((*shape, 3), 200, np.uint8), 32, FILL)
    assert square.shape == (32, 32, 3)
    assert (square == 200).any()


@pytest.mark.parametrize("shape", [(0, 5, 3), (5, 0, 3), (5, 5), (5, 5, 4), (5, 5, 1)])
def test_what_is_no_crop(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected a crop of shape"):
        letterbox(np.zeros(shape, np.uint8), 32, FILL)


def textured(size: int) -> np.ndarray:
    blocks = np.random.default_rng(1).integers(0, 255, (16, 8, 3), np.uint8)
    return cv2.resize(blocks, (size // 2, size), interpolation=cv2.INTER_NEAREST)


def test_blur_lowers_sharpness() -> None:
    crop = textured(256)
    blurred = [sharpness(crop if sigma == 0 else cv2.GaussianBlur(crop, (0, 0), sigma)) for sigma in (0, 2, 4, 8)]
    assert blurred == sorted(blurred, reverse=True)
    assert blurred[-1] < 0.1 * blurred[0]


def test_sharpness_does_not_grow_with_size() -> None:
    near, far = sharpness(textured(512)), sharpness(textured(128))
    assert near == pytest.approx(far, rel=0.05)


def test_nothing_to_focus_on() -> None:
    assert sharpness(np.full((50, 50, 3), 128, np.uint8)) == 0
    assert sharpness(np.zeros((0, 50, 3), np.uint8)) == 0
    assert sharpness(np.full((1, 1, 3), 9, np.uint8)) == 0
    assert np.isfinite(sharpness(np.full((1, 4000, 3), 9, np.uint8)))
