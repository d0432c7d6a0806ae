"""Objects that are followed from a drawn box: by tracks that are known, by a correlation tracker, and by both."""

from __future__ import annotations

import numpy as np
import pytest

from ml_backend.core.boxes import iou_pairs
from ml_backend.core.types import Float64Array, Image
from ml_backend.inference.follow import Follower, KnownTrack, Position, fitting_track

SIZE = (320, 240)
FPS = 30.0
COUNT = 60


class Scene:
    """A textured square of 40 pixels that moves 3 pixels a frame to the right over a textured background."""

    scale = 1.0

    def __init__(self, *, hidden: range = range(0), until: int = COUNT, step: float = 3.0) -> None:
        rng = np.random.default_rng(0)
        self._background = rng.integers(60, 120, (SIZE[1] // 8, SIZE[0] // 8)).repeat(8, 0).repeat(8, 1)
        self._object = rng.integers(0, 255, (5, 5)).repeat(8, 0).repeat(8, 1)
        self._hidden, self._until, self._step = hidden, until, step

    def box(self, index: int) -> Float64Array:
        x = 40 + self._step * index
        return np.array([x, 100.0, x + 40, 140.0])

    def get(self, index: int) -> Image | None:
        image = self._background.astype(np.uint8).copy()
        if index not in self._hidden and index < self._until:
            x = round(float(self.box(index)[0]))
            part = self._object[:, : max(0, SIZE[0] - x)]
            image[100:140, x : x + 40] = part
        return image


def track(scene: Scene, frames: range, margin: float = 0.0) -> KnownTrack:
    boxes = np.stack([scene.box(index) + np.array([margin, margin, -margin, -margin]) for index in frames])
    return KnownTrack(np.array(frames, np.int64), boxes)


def follow(scene: Scene, frame: int, *tracks: KnownTrack, last: int = COUNT - 1) -> dict[int, Float64Array]:
    return Follower(scene, SIZE, FPS, tracks).follow(frame, scene.box(frame), 0, last).boxes


def lowest_iou(scene: Scene, boxes: dict[int, Float64Array]) -> float:
    frames = sorted(boxes)
    truth = np.stack([scene.box(index) for index in frames])
    return float(iou_pairs(np.stack([boxes[index] for index in frames]), truth).min())


class Scripted:
    """A tracker that sees the object of a :class:`Scene` from frame 31 on, but for some frames."""

    patience = 10

    def __init__(self, scene: Scene, hidden: range) -> None:
        self._scene, self._hidden, self._index = scene, hidden, 30

    def update(self, image: Image) -> Position:
        self._index += 1
        return (None, 0.0) if self._index in self._hidden else (self._scene.box(self._index), np.inf)


@pytest.mark.parametrize(("hidden", "last"), [(range(40, 49), 59), (range(40, 60), 39)])
def test_another_tracker_may_find_the_object_again(hidden: range, last: int) -> None:
    scene = Scene()
    follower = Follower(scene, SIZE, FPS, start=lambda *_: Scripted(scene, hidden))
    found = follower.follow(30, scene.box(30), 30, COUNT - 1)
    assert sorted(found.boxes) == [index for index in range(30, last + 1) if index not in hidden]
    assert found.ended == (True, True)


def test_an_object_that_no_detector_knows_is_followed_both_ways() -> None:
    scene = Scene()
    boxes = follow(scene, 30)
    assert sorted(boxes) == list(range(COUNT))
    assert lowest_iou(scene, boxes) > 0.6


def test_it_ends_where_the_object_is_gone() -> None:
    scene = Scene(until=40)
    boxes = follow(scene, 20)
    assert 36 <= max(boxes) <= 43
    assert min(boxes) == 0


def test_the_margins_of_the_drawn_box_are_kept() -> None:
    scene = Scene()
    boxes = follow(scene, 30, track(scene, range(COUNT), margin=5))
    assert lowest_iou(scene, boxes) > 0.75  # the track's own boxes have 0.56


def test_a_track_that_is_hidden_hides_the_object() -> None:
    scene = Scene(hidden=range(35, 45))
    known = track(scene, range(COUNT))
    keep = ~np.isin(known.frames, np.arange(35, 45))
    boxes = follow(scene, 20, KnownTrack(known.frames[keep], known.xyxy[keep]))
    assert sorted(boxes) == [*range(35), *range(45, COUNT)]


def test_a_track_that_ends_is_joined_by_the_next_one() -> None:
    scene = Scene()
    boxes = follow(scene, 10, track(scene, range(0, 25)), track(scene, range(33, COUNT)))
    assert sorted(boxes) == list(range(COUNT))
    assert lowest_iou(scene, boxes) > 0.6


def test_a_track_that_leaves_the_image_is_the_end() -> None:
    scene = Scene(step=6.0)
    known = track(scene, range(0, 41))  # at 280 .. 320, the right edge
    assert max(follow(scene, 10, known)) == 40


def test_between_two_drawn_boxes_both_are_met() -> None:
    scene = Scene()
    first, last = scene.box(10) + np.array([-4.0, 0, -4, 0]), scene.box(40) + np.array([4.0, 0, 4, 0])
    boxes = Follower(scene, SIZE, FPS).between(10, first, 40, last).boxes
    assert sorted(boxes) == list(range(10, 41))
    assert boxes[10] is first
    assert boxes[40] is last
    offset = [boxes[index][0] - scene.box(index)[0] for index in (12, 38)]
    assert offset[0] < 0 < offset[1], "each end counts most nearby"


def test_time_that_is_up_returns_what_was_found() -> None:
    scene, calls = Scene(), 0

    def stop() -> bool:
        nonlocal calls
        calls += 1
        return calls > 5

    found = Follower(scene, SIZE, FPS, (), stop).follow(30, scene.box(30), 0, COUNT - 1)
    assert found.ended == (False, False)
    assert sorted(found.boxes) == list(range(24, 37)), "both directions take turns, once in any case"


@pytest.mark.parametrize(("shift", "fits"), [(0, True), (10, True), (30, False)])
def test_the_track_that_fits_best(shift: float, fits: bool) -> None:
    scene = Scene()
    near, far = track(scene, range(COUNT)), KnownTrack(np.arange(COUNT), np.tile([5.0, 5.0, 45.0, 45.0], (COUNT, 1)))
    drawn = scene.box(30) + np.array([shift, 0, shift, 0])
    assert fitting_track([far, near], 30, drawn) is (near if fits else None)
    assert fitting_track([near], COUNT + 5, drawn) is None
