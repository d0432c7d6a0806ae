"""Which boxes of a track are looked at: never outside the picture, large, complete, and spread over its life."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml_backend.core.types import FloatArray, IntArray
from ml_backend.embeddings.crop_selection import CANDIDATES, CropBox, candidate_crops, select_crops

WIDTH, HEIGHT = 640, 360
Boxes = tuple[IntArray, FloatArray, FloatArray]


def make_boxes(n: int, *, side: float = 60, x: float = 100, y: float = 100, conf: float = 0.8, step: int = 1) -> Boxes:
    """A square that stands still, on every ``step``-th frame."""
    box = np.array([x, y, x + side, y + side], np.float32)
    return np.arange(0, n * step, step), np.tile(box, (n, 1)), np.full(n, conf, np.float32)


def join(*parts: Boxes) -> Boxes:
    """One after the other in time."""
    shifts = np.cumsum([0, *(len(part[0]) for part in parts[:-1])])
    return (
        np.concatenate([part[0] + shift for part, shift in zip(parts, shifts, strict=True)]),
        np.concatenate([part[1] for part in parts]),
        np.concatenate([part[2] for part in parts]),
    )


def frames_of(views: list[CropBox]) -> list[int]:
    return [view.frame for view in views]


def cut_off(view: CropBox) -> bool:
    left, top, right, bottom = view.xyxy
    return left <= 0 or top <= 0 or right >= WIDTH or bottom >= HEIGHT


coordinates = st.one_of(
    st.floats(-200, 900, width=32), st.sampled_from([0.0, WIDTH, HEIGHT, 0.04, 359.96, math.nan, math.inf, -math.inf])
)


@st.composite
def any_boxes(draw: st.DrawFn) -> Boxes:
    """Boxes of all kinds, also impossible ones."""
    n = draw(st.integers(0, 40))
    frames = np.cumsum(draw(st.lists(st.integers(1, 50), min_size=n, max_size=n)), dtype=np.int64)
    xyxy = draw(st.lists(st.tuples(*[coordinates] * 4), min_size=n, max_size=n))
    conf = draw(st.lists(st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]), min_size=n, max_size=n))
    return frames, np.array(xyxy, np.float32).reshape(n, 4), np.array(conf, np.float32)


@given(any_boxes(), st.integers(1, 8))
def test_views_are_usable_boxes_of_the_track_in_order(boxes: Boxes, k: int) -> None:
    frames, xyxy, conf = boxes
    views = candidate_crops(frames, xyxy, conf, WIDTH, HEIGHT, k)
    assert len(views) <= CANDIDATES * k
    assert frames_of(views) == sorted(set(frames_of(views)))
    for view in views:
        left, top, right, bottom = view.xyxy
        assert 0 <= left < right <= WIDTH
        assert 0 <= top < bottom <= HEIGHT
        assert all(round(value, 1) == value for value in view.xyxy)
        (i,) = np.flatnonzero(frames == view.frame)
        inside = np.clip(xyxy[i].astype(np.float64), 0, [WIDTH, HEIGHT, WIDTH, HEIGHT])
        assert np.abs(inside - view.xyxy).max() <= 0.051
        assert view.conf == conf[i]
    assert views == candidate_crops(frames.copy(), xyxy.copy(), conf.copy(), WIDTH, HEIGHT, k)


@given(any_boxes(), st.integers(1, 8))
def test_nothing_usable_is_wasted_while_too_few_are_found(boxes: Boxes, k: int) -> None:
    frames, xyxy, conf = boxes
    views = candidate_crops(frames, xyxy, conf, WIDTH, HEIGHT, k)
    inside = np.clip(xyxy.astype(np.float64), 0, [WIDTH, HEIGHT, WIDTH, HEIGHT])
    usable = ((inside[:, 2:] - inside[:, :2]) >= 1).all(1)
    detected = usable & (conf > 0)
    assert len(views) >= min(k, np.count_nonzero(detected if detected.any() else usable))
    if detected.any():
        assert all(view.conf > 0 for view in views)


@pytest.mark.slow
@given(any_boxes(), st.integers(1, 8), st.data())
def test_the_final_choice_is_one_of_each_part(boxes: Boxes, k: int, data: st.DataObject) -> None:
    views = candidate_crops(*boxes, WIDTH, HEIGHT, k)
    values = st.one_of(st.floats(0, 1e6), st.sampled_from([0.0, math.nan, math.inf]))
    sharpness = data.draw(st.lists(values, min_size=len(views), max_size=len(views)))
    chosen = select_crops(views, sharpness, k)
    parts = np.array_split(np.arange(len(views)), k)
    assert len(chosen) == min(k, len(views))
    assert chosen == sorted(set(chosen))
    if len(views) >= k:
        assert all(index in part for index, part in zip(chosen, parts, strict=True))
    assert chosen == select_crops(views, list(sharpness), k)


def test_a_single_box_is_the_view() -> None:
    assert candidate_crops(*make_boxes(1, x=100.04, side=50), WIDTH, HEIGHT, 4) == [
        CropBox(0, (100.0, 100.0, 150.0, 150.0), pytest.approx(0.8))
    ]
    assert select_crops(candidate_crops(*make_boxes(1), WIDTH, HEIGHT, 4), [0.0], 4) == [0]


def test_an_empty_track_has_no_views() -> None:
    assert candidate_crops(*make_boxes(0), WIDTH, HEIGHT, 4) == []
    assert select_crops([], [], 4) == []


@pytest.mark.parametrize("step", [1, 30])
def test_views_of_equal_boxes_are_spread_evenly(step: int) -> None:
    views = candidate_crops(*make_boxes(300, step=step), WIDTH, HEIGHT, 4)
    assert len(views) == 12
    gaps = np.diff(frames_of(views)) / step
    assert gaps.min() > 20
    assert gaps.max() < 30
    final = np.diff([views[i].frame for i in select_crops(views, [1.0] * 12, 4)]) / step
    assert final.min() > 50
    assert final.max() < 100


def test_spread_is_over_the_time_in_sight() -> None:
    frames, xyxy, conf = make_boxes(48)
    frames[24:] += 10_000
    views = candidate_crops(frames, xyxy, conf, WIDTH, HEIGHT, 4)
    assert sum(view.frame < 5000 for view in views) == 6


def test_the_better_of_neighbours_is_taken() -> None:
    frames, xyxy, conf = make_boxes(24)
    conf[[1, 9, 19]] = 0.95
    xyxy[15] += [-20, -20, 20, 20]
    views = frames_of(candidate_crops(frames, xyxy, conf, WIDTH, HEIGHT, 1))
    assert views == [1, 15, 19]


def test_more_pixels_than_an_embedder_sees_are_no_merit() -> None:
    frames, xyxy, conf = join(make_boxes(1, side=240, x=20, y=20), make_boxes(1, side=330, x=20, y=20, conf=0.7))
    (best,) = select_crops(candidate_crops(frames, xyxy, conf, WIDTH, HEIGHT, 1), [1, 1], 1)
    assert best == 0


def test_what_is_far_worse_than_the_best_is_left_out() -> None:
    far, near = make_boxes(100, side=10), make_boxes(100, side=120)
    assert min(frames_of(candidate_crops(*join(far, near), WIDTH, HEIGHT, 4))) >= 100
    few = make_boxes(4, side=120)
    assert len(candidate_crops(*join(far, few), WIDTH, HEIGHT, 4)) == 4  # where there is little else it is needed


def test_boxes_cut_off_by_the_edge_come_last() -> None:
    cut = make_boxes(100, side=200, x=-100, conf=0.95)
    for whole, expected in ((100, 0), (4, 0), (2, 2), (1, 3)):
        views = candidate_crops(*join(cut, make_boxes(whole, conf=0.5)), WIDTH, HEIGHT, 4)
        assert sum(map(cut_off, views)) == expected
        assert sum(not cut_off(view) for view in views) == min(whole, 12)
    assert len(candidate_crops(*cut, WIDTH, HEIGHT, 4)) == 12
    assert all(view.xyxy == (0, 100, 100, 300) for view in candidate_crops(*cut, WIDTH, HEIGHT, 4))


@pytest.mark.parametrize(
    "box", [(0, 50, 60, 110), (1, 50, 60, 110), (50, 0.5, 110, 60), (580, 50, 639.5, 110), (50, 300, 110, 360)]
)
def test_a_box_that_touches_the_edge_is_cut_off(box: tuple[float, ...]) -> None:
    boxes = join(make_boxes(1), (np.array([0]), np.array([box], np.float32), np.array([0.9], np.float32)))
    views = candidate_crops(*boxes, WIDTH, HEIGHT, 1)
    assert frames_of(views) == [0]


def test_what_fills_the_picture_is_looked_at() -> None:
    everything = (np.arange(5), np.tile(np.array([0, 0, WIDTH, HEIGHT], np.float32), (5, 1)), np.ones(5, np.float32))
    assert len(candidate_crops(*everything, WIDTH, HEIGHT, 4)) == 5


def test_boxes_filled_in_between_detections_come_only_alone() -> None:
    filled, seen = make_boxes(50, conf=0.0, side=200), make_boxes(2, side=20, conf=0.3)
    assert frames_of(candidate_crops(*join(filled, seen), WIDTH, HEIGHT, 4)) == [50, 51]
    assert len(candidate_crops(*filled, WIDTH, HEIGHT, 4)) == 12


@pytest.mark.parametrize(
    "box", [(700, 10, 760, 60), (-60, 10, 0, 60), (10, 10, 10, 60), (60, 10, 10, 60), (10, 359.5, 60, 420)]
)
def test_boxes_outside_or_without_area_are_never_taken(box: tuple[float, ...]) -> None:
    boxes = (np.array([3]), np.array([box], np.float32), np.array([0.9], np.float32))
    assert candidate_crops(*boxes, WIDTH, HEIGHT, 4) == []
    assert frames_of(candidate_crops(*join(boxes, make_boxes(1, conf=0.0)), WIDTH, HEIGHT, 4)) == [1]


def test_blurred_views_lose_and_the_scale_does_not_matter() -> None:
    views = candidate_crops(*make_boxes(120), WIDTH, HEIGHT, 2)
    sharpness = [0.1, 5.0, 4.0, 5.0, 0.2, 1.0]
    assert select_crops(views, sharpness, 2) == [1, 3]
    assert select_crops(views, [value * 1e-6 for value in sharpness], 2) == [1, 3]
    assert select_crops(views, [0.0] * 6, 2) == select_crops(views, [7.0] * 6, 2)


def test_texture_far_beyond_the_median_does_not_outweigh_the_detector() -> None:
    views = [CropBox(0, (10, 10, 90, 90), 0.9), CropBox(1, (10, 10, 90, 90), 0.3), CropBox(2, (10, 10, 90, 90), 0.5)]
    assert select_crops(views, [1.0, 100.0, 1.0], 1) == [0]


def test_wrong_arguments() -> None:
    frames, xyxy, conf = make_boxes(3)
    with pytest.raises(ValueError, match="shapes"):
        candidate_crops(frames, xyxy[:2], conf, WIDTH, HEIGHT, 4)
    views = candidate_crops(frames, xyxy, conf, WIDTH, HEIGHT, 4)
    with pytest.raises(ValueError, match="3 values of sharpness"):
        select_crops(views, [1.0], 4)
