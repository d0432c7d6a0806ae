"""Camera motion against motions that are known."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from ml_backend.tracking.camera_motion import CameraMotion

WORLD = cv2.GaussianBlur(
    np.kron(np.random.default_rng(0).integers(0, 255, (30, 48, 3), np.uint8), np.ones((10, 10, 1), np.uint8)), (5, 5), 0
)


def moved(dx: float, dy: float, zoom: float = 1.0) -> np.ndarray:
    matrix = np.array([[zoom, 0, dx], [0, zoom, dy]])
    return np.asarray(cv2.warpAffine(WORLD, matrix, (480, 300), borderMode=cv2.BORDER_REFLECT), np.uint8)


def test_pan_and_zoom_are_measured() -> None:
    motion = CameraMotion()
    motion.since_last(moved(0, 0))
    warp = motion.since_last(moved(6, -4, 1.01))
    points = np.array([[100, 80, 1], [350, 220, 1]]).T
    expected = points[:2] * 1.01 + np.array([[6], [-4]])
    assert np.abs(warp @ points - expected).max() < 1


def test_a_fixed_camera_with_noise_does_not_move_at_all() -> None:
    motion, rng = CameraMotion(), np.random.default_rng(1)
    for _ in range(5):
        image = (WORLD + rng.normal(0, 3, WORLD.shape)).clip(0, 255).astype(np.uint8)
        assert np.array_equal(motion.since_last(image), np.eye(2, 3))


def test_what_moves_within_boxes_is_not_the_camera() -> None:
    motion = CameraMotion()
    big = [np.array([100, 50, 400, 250], np.float32)]
    for k in range(4):
        image = WORLD.copy()
        image[50:250, 100:400] = np.roll(WORLD, 5 * k, axis=1)[50:250, 100:400]
        assert np.array_equal(motion.since_last(image, big), np.eye(2, 3))


@pytest.mark.parametrize("image", [np.zeros((300, 480, 3), np.uint8), np.zeros((1, 1, 3), np.uint8)])
def test_nothing_to_hold_on_to(image: np.ndarray) -> None:
    motion = CameraMotion()
    for _ in range(3):
        assert np.array_equal(motion.since_last(image), np.eye(2, 3))


def test_a_change_of_size_begins_anew() -> None:
    motion = CameraMotion()
    motion.since_last(moved(0, 0))
    assert np.array_equal(motion.since_last(moved(9, 9)[:200, :300]), np.eye(2, 3))
