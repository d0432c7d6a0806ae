"""Keyframes: the bound on every frame, and as few of them as can be."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ml_backend.core.boxes import iou_pairs
from ml_backend.core.keyframes import interpolate, simplify

Boxes = npt.NDArray[np.float64]


def smooth(values: Boxes, sigma: float) -> Boxes:
    """Gaussian filter over the first axis."""
    reach = int(4 * sigma + 0.5)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    padded = np.pad(values, ((reach, reach), (0, 0)), mode="edge")
    return np.stack([np.convolve(column, kernel / kernel.sum(), "valid") for column in padded.T], axis=1)


def walker(n: int, seed: int, jitter: float = 1.5) -> Boxes:
    """A person of about 60 x 160 px who strolls, with swinging arms and a detector's jitter, smoothed as tracks are."""
    rng = np.random.default_rng(seed)
    centre = 500 + np.cumsum(24 * smooth(rng.normal(0, 1, (n, 2)), 40), axis=0)
    gait = 4 * np.sin(np.arange(n) * 2 * np.pi / 30)[:, None]
    size = [60, 160] + np.concatenate([gait, 0 * gait], axis=1) + [10, 30] * smooth(rng.normal(0, 1, (n, 2)), 30)
    return smooth(np.concatenate([centre - size / 2, centre + size / 2], axis=1) + rng.normal(0, jitter, (n, 4)), 3)


def lowest_iou(frames: npt.ArrayLike, boxes: Boxes, keys: npt.ArrayLike, key_boxes: Boxes) -> float:
    return float(iou_pairs(interpolate(keys, key_boxes, frames), boxes).min())


coordinates = st.one_of(st.floats(0, 60), st.sampled_from([0.0, 10.0, 20.0, 20.000001]))
any_boxes = st.integers(1, 40).flatmap(lambda n: arrays(np.float64, (n, 4), elements=coordinates))


@pytest.mark.slow
@settings(deadline=None)
@example(np.array([[1.0, 1, 1, 1], [7.8e-148, 1, 1, 1]]), 0.3, True)  # 1 + (7.8e-148 - 1) is 0, and not that box
@given(any_boxes, st.sampled_from([0.0, 0.3, 0.9, 0.99, 1.0]), st.booleans())
def test_bound_holds_on_every_frame_for_any_boxes(boxes: Boxes, min_iou: float, own: bool) -> None:
    frames = np.arange(7, 7 + len(boxes))
    keys, key_boxes = simplify(frames, boxes, min_iou, own_boxes=own)
    assert lowest_iou(frames, boxes, keys, key_boxes) >= min_iou
    assert not own or (key_boxes == boxes[np.isin(frames, keys)]).all()
    assert keys[0] == frames[0]
    assert keys[-1] == frames[-1]
    assert (np.diff(keys) > 0).all()
    assert np.isin(keys, frames).all()


@pytest.mark.parametrize("seed", range(4))
def test_walker_needs_few_keyframes(seed: int) -> None:
    boxes = walker(600, seed)
    frames = np.arange(600)
    keys, key_boxes = simplify(frames, boxes, 0.9)
    own, _ = simplify(frames, boxes, 0.9, own_boxes=True)
    assert lowest_iou(frames, boxes, keys, key_boxes) >= 0.9
    assert len(keys) <= 0.06 * len(frames)
    assert len(keys) < 0.9 * len(own), "fitted boxes save keyframes"


def test_straight_line_needs_its_ends_only() -> None:
    frames = np.arange(50)
    boxes = np.array([0.0, 0, 20, 40]) + frames[:, None] * [2, 1, 2.2, 1.1]
    keys, key_boxes = simplify(frames, boxes, 0.999)
    assert keys.tolist() == [0, 49]
    np.testing.assert_allclose(interpolate(keys, key_boxes, frames), boxes, atol=0.05)


def test_sudden_jump_is_kept() -> None:
    boxes = np.tile([0.0, 0, 20, 40], (30, 1))
    boxes[15:] += 100
    assert simplify(np.arange(30), boxes)[0].tolist() == [0, 14, 15, 29]


@pytest.mark.parametrize("n", [0, 1, 2])
def test_shortest_tracks_are_kept_whole(n: int) -> None:
    boxes = np.arange(4.0 * n).reshape(n, 4)
    keys, key_boxes = simplify(np.arange(n), boxes)
    assert keys.tolist() == list(range(n))
    np.testing.assert_array_equal(key_boxes, boxes)


def test_a_long_track_that_stands_still_and_then_moves() -> None:
    still = np.array([500, 300, 560, 460]) + smooth(np.random.default_rng(0).normal(0, 1, (2500, 4)), 3)
    moving = walker(1500, 1)
    boxes = np.concatenate([still, moving - moving[0] + still[-1]])
    frames = np.arange(len(boxes))
    keys, key_boxes = simplify(frames, boxes)
    assert lowest_iou(frames, boxes, keys, key_boxes) >= 0.9
    assert (keys < 2500).sum() <= 5
    assert len(keys) <= 0.06 * 1500


@pytest.mark.slow
def test_hour_of_a_parked_car_needs_two_keyframes() -> None:
    frames = np.arange(100_000)
    keys, key_boxes = simplify(frames, np.tile([10.0, 20, 90, 70], (100_000, 1)))
    assert keys.tolist() == [0, 99_999]
    np.testing.assert_allclose(key_boxes, [[10.0, 20, 90, 70]] * 2)


def test_interpolation_holds_the_ends() -> None:
    boxes = interpolate([2, 4], [[0.0, 0, 2, 2], [2.0, 2, 4, 4]], [0, 2, 3, 4, 9])
    assert boxes[:, 0].tolist() == [0, 0, 1, 2, 2]
    assert interpolate([5], [[1.0, 2, 3, 4]], [1, 9]).tolist() == [[1, 2, 3, 4]] * 2


@pytest.mark.parametrize(
    ("frames", "boxes", "min_iou", "message"),
    [
        ([0, 1], np.zeros((3, 4)), 0.9, "expected frames"),
        ([1, 0], np.zeros((2, 4)), 0.9, "strictly increasing"),
        ([0, 1], np.full((2, 4), np.nan), 0.9, "finite"),
        ([0, 1], np.zeros((2, 4)), 1.1, "min_iou"),
    ],
)
def test_wrong_input_is_named(frames: list[int], boxes: Boxes, min_iou: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        simplify(frames, boxes, min_iou)


def test_interpolation_needs_keyframes() -> None:
    with pytest.raises(ValueError, match="m > 0"):
        interpolate([], np.zeros((0, 4)), [1])
