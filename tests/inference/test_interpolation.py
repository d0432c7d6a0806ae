"""Frames that were not looked at."""

from __future__ import annotations

import numpy as np
import pytest

from ml_backend.core.types import Detections
from ml_backend.inference.interpolation import interpolate_detections, match_detections

Object = tuple[float, float, int]  # left edge, conf, class


def found(*objects: Object, colours: bool = False) -> Detections:
    rows = np.array([[x, 10, x + 100, 210] for x, _, _ in objects], np.float32).reshape(-1, 4)
    mean_colours = rows[:, :1].copy() if colours else None
    conf = np.array([conf for _, conf, _ in objects], np.float32)
    return Detections(rows, conf, np.array([kind for _, _, kind in objects], np.int64), mean_colours)


def test_walkers_are_paired_whatever_their_order() -> None:
    matched = match_detections(found((0, 0.9, 0), (300, 0.8, 0)), found((310, 0.8, 0), (8, 0.9, 0)))
    assert matched is not None
    assert sorted(zip(matched.first.tolist(), matched.second.tolist(), strict=True)) == [(0, 1), (1, 0)]


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (found((0, 0.9, 0)), found()),  # it has gone
        (found(), found((0, 0.9, 0))),  # it has come
        (found((0, 0.9, 0)), found((70, 0.9, 0))),  # it is fast
        (found((0, 0.9, 0)), found((0, 0.9, 1))),  # it has become something else
        (found((0, 0.9, 0), (10, 0.9, 0)), found((0, 0.9, 0), (12, 0.9, 0))),  # which is which?
    ],
)
def test_what_is_not_simple(a: Detections, b: Detections) -> None:
    assert match_detections(a, b) is None


def test_weak_detections_may_come_and_go() -> None:
    matched = match_detections(found((0, 0.9, 0), (400, 0.2, 0)), found((4, 0.9, 0), (700, 0.3, 0)))
    assert matched is not None
    assert (matched.first.tolist(), matched.second.tolist()) == ([0], [0])
    nothing = match_detections(found(), found((0, 0.2, 0)))
    assert nothing is not None
    assert len(nothing.first) == 0


def test_boxes_confidences_and_looks_lie_in_between() -> None:
    a, b = found((0, 0.8, 3), (500, 0.2, 0), colours=True), found((8, 0.4, 3), colours=True)
    matched = match_detections(a, b)
    assert matched is not None
    middle = interpolate_detections(a, b, matched, 0.25)
    assert middle.xyxy.tolist() == [[2, 10, 102, 210]]
    assert middle.conf.tolist() == pytest.approx([0.8])  # that of the nearer one
    assert interpolate_detections(a, b, matched, 0.75).conf.tolist() == pytest.approx([0.4])
    assert middle.class_id.tolist() == [3]
    assert middle.colours is not None
    assert middle.colours.tolist() == [[2]]
    assert interpolate_detections(found((0, 1, 0)), found((0, 1, 0)), matched, 0.5).colours is None
