"""The motion detector on scenes whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest

from ml_backend.core.boxes import iou_matrix
from ml_backend.core.types import Detections
from ml_backend.detectors.motion import MotionDetector

WIDTH, HEIGHT, FPS = 640, 360, 25.0


def street(seed: int = 0) -> np.ndarray:
    """A still, textured background."""
    blocks = np.random.default_rng(seed).integers(90, 150, (HEIGHT // 8, WIDTH // 8, 3), np.uint8)
    return np.kron(blocks, np.ones((8, 8, 1), np.uint8))


def scene(
    n: int,
    *,
    boxes: tuple[tuple[int, int, int, int], ...] = (),
    speed: int = 3,
    since: int = 15,
    noise: float = 2.0,
    light: float = 1.0,
) -> list[np.ndarray]:
    """``n`` frames in which dark, patterned boxes walk to the right from frame ``since`` on."""
    rng = np.random.default_rng(1)
    frames = []
    for k in range(n):
        image = street().astype(np.float32)
        for x1, y1, x2, y2 in boxes if k >= since else ():
            clothes = np.random.default_rng(2).integers(10, 70, ((y2 - y1) // 5, (x2 - x1) // 5, 3), np.uint8)
            left = x1 + speed * (k - since)
            image[y1:y2, left : left + x2 - x1] = np.kron(clothes, np.ones((5, 5, 1), np.uint8))
        image = image * light + rng.normal(0, noise, image.shape)
        frames.append(image.clip(0, 255).astype(np.uint8))
    return frames


def test_a_walker_is_found_where_he_is() -> None:
    found = MotionDetector(FPS).detect(scene(40, boxes=((50, 100, 80, 190),)))
    assert [len(d) for d in found[:15]] == [0] * 15
    for k in range(17, 40):
        truth = np.array([[50 + 3 * (k - 15), 100, 80 + 3 * (k - 15), 190]])
        assert len(found[k]) == 1
        assert iou_matrix(truth, found[k].xyxy)[0, 0] > 0.7
        assert found[k].conf[0] > 0.5
        assert found[k].class_id.tolist() == [0]


def test_two_walkers_are_two() -> None:
    found = MotionDetector(FPS).detect(scene(40, boxes=((50, 50, 80, 140), (250, 200, 280, 300))))
    assert {len(d) for d in found[18:]} == {2}


def test_nothing_moves_nothing_is_found() -> None:
    assert sum(map(len, MotionDetector(FPS).detect(scene(30, noise=4.0)))) == 0


def test_a_shadow_is_not_part_of_the_object() -> None:
    frames = scene(40, boxes=((50, 100, 80, 190),))
    for k in range(15, 40):
        x = 80 + 3 * (k - 15)
        frames[k][175:190, x : x + 75] = (frames[k][175:190, x : x + 75] * 0.88).astype(np.uint8)
    (last,) = MotionDetector(FPS).detect(frames)[-1:]
    assert len(last) == 1
    assert last.xyxy[0, 2] - last.xyxy[0, 0] < 50


@pytest.mark.slow
@pytest.mark.parametrize("light", [0.5, 1.6])
def test_a_light_that_is_switched_gives_no_box_over_everything(light: float) -> None:
    detector = MotionDetector(FPS)
    detector.detect(scene(30))
    after = detector.detect(scene(40, light=light, boxes=((50, 100, 80, 190),), since=20))
    assert sum(map(len, after[:15])) == 0
    assert len(after[-1]) == 1  # and it sees again


@pytest.mark.slow
def test_a_shaken_camera_gives_no_box_over_everything() -> None:
    detector = MotionDetector(FPS)
    detector.detect(scene(30))
    shaken = [np.roll(image, (5 * k, 7 * k), (0, 1)) for k, image in enumerate(scene(12, noise=1.0))]
    for found in detector.detect(shaken):
        areas = (found.xyxy[:, 2:] - found.xyxy[:, :2]).prod(1)
        assert (areas < 0.5 * WIDTH * HEIGHT).all()


def test_a_reset_forgets_the_background() -> None:
    detector = MotionDetector(FPS)
    detector.detect(scene(30))
    detector.reset()
    other = [np.roll(street(5), 3, axis=0)] * 10
    assert sum(map(len, detector.detect(other))) == 0


@pytest.mark.slow
def test_a_primed_detector_sees_at_once_and_leaves_no_ghosts() -> None:
    frames = scene(60, boxes=((50, 100, 80, 190),), since=0)
    plain, primed = MotionDetector(FPS), MotionDetector(FPS)
    primed.prime(frames[::3])
    assert [len(d) for d in primed.detect(frames)] == [1] * 60
    assert len(plain.detect(frames[:1])[0]) == 0


def test_priming_with_too_little_changes_nothing() -> None:
    detector = MotionDetector(FPS)
    detector.prime(scene(2))
    assert sum(map(len, detector.detect(scene(20)))) == 0


def test_results_do_not_depend_on_how_frames_are_batched() -> None:
    frames = scene(36, boxes=((50, 100, 80, 190),))
    whole = MotionDetector(FPS).detect(frames)
    detector = MotionDetector(FPS)
    pieces = [d for k in range(0, 36, 5) for d in detector.detect(frames[k : k + 5])]
    assert all(np.array_equal(a.xyxy, b.xyxy) for a, b in zip(whole, pieces, strict=True))


@pytest.mark.parametrize("size", [(1, 1), (7, 300), (90, 160)])
def test_small_pictures(size: tuple[int, int]) -> None:
    found = MotionDetector(FPS).detect([np.zeros((*size, 3), np.uint8)] * 10)
    assert all(isinstance(d, Detections) and len(d) == 0 for d in found)


def test_no_pictures_and_bad_rates() -> None:
    assert MotionDetector(FPS).detect([]) == []
    assert MotionDetector(FPS).names == {0: "object"}
    with pytest.raises(ValueError, match="fps > 0"):
        MotionDetector(0)
