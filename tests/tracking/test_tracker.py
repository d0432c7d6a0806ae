"""Every tracker of ultralytics, fed with our own detections."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from typing import get_args

import numpy as np
import pytest

from ml_backend.core.settings import TrackerKind
from ml_backend.core.types import Detections, FrameFeatures, Image
from ml_backend.tracking import tracker as trackers
from ml_backend.tracking.frame_features import FrameFeatureExtractor
from ml_backend.tracking.tracker import TrackedBox, parts

KINDS: tuple[TrackerKind, ...] = get_args(TrackerKind)
WHITE, BLACK, STREET = 240, 15, 120


class Tracker(trackers.Tracker):
    """With what sees the pictures for it."""

    def __init__(self, kind: TrackerKind, fps: float) -> None:
        super().__init__(kind, fps)
        self._observer, self._seen = FrameFeatureExtractor(), 0

    def see(self, found: Detections, image: Image | None = None) -> list[TrackedBox]:
        self._seen += 1
        if image is None:
            return self.update(FrameFeatures(self._seen, found))
        return self.update(self._observer.extract(self._seen, found, image, image.shape[1::-1]))


Object = tuple[Sequence[float], float, int]  # xyxy, conf, class


def detections(*objects: Object) -> Detections:
    if not objects:
        return Detections.empty()
    xyxy, conf, class_id = zip(*objects, strict=True)
    return Detections(np.array(xyxy, np.float32), np.array(conf, np.float32), np.array(class_id, np.int64))


def moving(x: float, y: float, k: int, v: float = 5, w: float = 40, h: float = 100) -> list[float]:
    return [x + v * k, y, x + v * k + w, y + h]


@pytest.mark.parametrize("kind", KINDS)
def test_two_objects_keep_their_ids_and_their_own_boxes(kind: TrackerKind) -> None:
    tracker = Tracker(kind, 30)
    ids: dict[int, set[int]] = {0: set(), 1: set()}
    for k in range(40):
        frame = detections((moving(100, 100, k), 0.8, 0), (moving(600, 300, k, -5), 0.7, 2))
        for tracked in tracker.see(frame):
            which = 0 if tracked.class_id == 0 else 1
            ids[which].add(tracked.track_id)
            assert np.array_equal(tracked.xyxy, frame.xyxy[which])
            assert tracked.conf == pytest.approx(float(frame.conf[which]))
    assert [len(v) for v in ids.values()] == [1, 1]
    assert ids[0] != ids[1]


@pytest.mark.parametrize("kind", KINDS)
def test_an_object_seen_weakly_for_a_while_is_not_lost(kind: TrackerKind) -> None:
    tracker = Tracker(kind, 30)
    seen = [
        {t.track_id for t in tracker.see(detections((moving(100, 100, k), 0.15 if 10 < k < 20 else 0.8, 0)))}
        for k in range(30)
    ]
    assert all(len(ids) == 1 for ids in seen[3:])
    assert len(set.union(*seen)) == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fps", [10.0, 30.0, 90.0])
def test_a_hidden_object_is_found_again_within_half_a_second_at_any_rate(kind: TrackerKind, fps: float) -> None:
    tracker, ids = Tracker(kind, fps), set()
    for k in range(round(3 * fps)):
        hidden = fps <= k < 1.4 * fps
        frame = detections() if hidden else detections((moving(100, 100, k, 30 / fps), 0.8, 0))
        ids |= {t.track_id for t in tracker.see(frame)}
    assert len(ids) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_empty_frames(kind: TrackerKind) -> None:
    tracker = Tracker(kind, 25)
    assert tracker.see(detections()) == []
    seen = [t.track_id for k in range(5) for t in tracker.see(detections((moving(500, 100, k), 0.8, 0)))]
    assert set(seen) == {1}


@pytest.mark.parametrize("kind", KINDS)
def test_two_trackers_do_not_share_anything(kind: TrackerKind) -> None:
    first, second = Tracker(kind, 25), Tracker(kind, 25)
    for k in range(4):
        frame = detections((moving(100, 100, k), 0.8, 0))
        a, b = first.see(frame), second.see(frame)
    assert [t.track_id for t in a] == [t.track_id for t in b] == [1]


@pytest.mark.parametrize("kind", KINDS)
def test_boxes_without_area_and_out_of_the_picture_do_no_harm(kind: TrackerKind) -> None:
    tracker = Tracker(kind, 25)
    image = np.full((300, 400, 3), STREET, np.uint8)
    for _ in range(4):
        frame = detections(
            ([50, 50, 50, 90], 0.9, 0), ([-500, -400, -300, -350], 0.9, 0), ([380, 280, 420, 310], 0.9, 0)
        )
        for tracked in tracker.see(frame, image):
            assert np.isfinite(tracked.xyxy).all()


def pair(k: int) -> tuple[np.ndarray, Detections]:
    """A white and a black figure side by side. Both are hidden for a while, and then the white one stands almost
    where the black one stood: only colours tell that it is not the same."""
    image = np.full((300, 640, 3), STREET, np.uint8)
    if 10 <= k < 15:
        return image, Detections.empty()
    left = 100 if k < 10 else 130
    boxes = [moving(left, 100, 0), moving(left + 50, 100, 0)]
    for (x1, y1, x2, y2), value in zip(boxes, (WHITE, BLACK), strict=True):
        image[int(y1) : int(y2), int(x1) : int(x2)] = value
    return image, detections(*((box, 0.8, 0) for box in boxes))


def test_colours_keep_objects_apart() -> None:
    def shared_ids(with_image: bool) -> set[int]:
        tracker = Tracker("tracktrack", 30)
        white, black = set(), set()
        for k in range(25):
            image, frame = pair(k)
            for tracked in tracker.see(frame, image if with_image else None):
                (white if np.array_equal(tracked.xyxy, frame.xyxy[0]) else black).add(tracked.track_id)
        return white & black

    assert shared_ids(with_image=True) == set()
    assert len(shared_ids(with_image=False)) == 1  # so the scene is one in which colours matter


def test_a_person_does_not_swap_boxes_with_the_bicycle_he_pushes() -> None:
    tracker, classes = Tracker("tracktrack", 30), {}
    for k in range(60):
        person, bicycle = moving(100, 100, k, 4, 60, 160), moving(112, 130, k, 4, 70, 140)
        conf = 0.3 if k % 7 == 0 else 0.8
        for tracked in tracker.see(detections((person, conf, 0), (bicycle, 0.7, 1))):
            classes.setdefault(tracked.track_id, set()).add(tracked.class_id)
    assert all(len(found) == 1 for found in classes.values())
    assert len(classes) == 2


def test_a_class_that_flickers_is_still_one_track() -> None:
    tracker, ids = Tracker("tracktrack", 30), set()
    for k in range(60):
        ids |= {t.track_id for t in tracker.see(detections((moving(100, 100, k, 4, 120, 70), 0.7, 2 if k % 3 else 7)))}
    assert len(ids) == 1


def test_looks_are_handed_on_and_belong_to_the_box() -> None:
    tracker = Tracker("bytetrack", 30)
    image, frame = pair(0)
    tracked = tracker.see(frame, image)
    by_left = {float(t.xyxy[0]): t.colours for t in tracked}
    assert by_left[100.0] is not None
    assert by_left[150.0] is not None
    assert by_left[100.0][0] > 200 > 50 > by_left[150.0][0]  # lightness
    assert all(t.colours is None for t in Tracker("bytetrack", 30).see(frame))


@pytest.mark.slow
def test_memory_of_looks_is_bounded() -> None:
    tracker, image = Tracker("bytetrack", 10), np.zeros((800, 1100, 3), np.uint8)
    own = tracemalloc.Filter(True, trackers.__file__)
    held, ids = [], set()
    tracemalloc.start()
    try:
        for k in range(300):  # a new object every three frames, each in another place
            n = k // 3
            ids |= {
                t.track_id for t in tracker.see(detections((moving(50 * (n % 20), 110 * (n % 7), 0), 0.8, 0)), image)
            }
            if k in (74, 299):
                trace = tracemalloc.take_snapshot().filter_traces([own])
                held.append(sum(statistic.size for statistic in trace.statistics("filename")))
    finally:
        tracemalloc.stop()
    assert len(ids) > 75
    assert 0 < held[1] < 2 * held[0]


@pytest.mark.parametrize("kind", ["tracktrack", "botsort"])
def test_a_camera_that_turns_does_not_tear_tracks(kind: TrackerKind) -> None:
    """Objects that stand still, seen by a camera that jumps by a third of their width between frames."""
    world = np.kron(np.random.default_rng(0).integers(0, 255, (40, 160, 3), np.uint8), np.ones((12, 12, 1), np.uint8))
    tracker, ids = Tracker(kind, 30), set()
    for k in range(30):
        shift = 30 * k if k % 2 else 30 * (k - 1) + 20
        image = np.ascontiguousarray(world[:, 100 + shift : 740 + shift])
        frame = detections(([900 - shift, 150, 940 - shift, 260], 0.8, 0))
        ids |= {t.track_id for t in tracker.see(frame, image)}
    assert len(ids) == 1


def test_parts_are_weak_boxes_within_others_of_their_class() -> None:
    frame = detections(
        ([100, 100, 160, 260], 0.9, 0),
        ([100, 100, 160, 180], 0.3, 0),  # the upper half
        ([110, 150, 140, 255], 0.8, 0),  # a child in front: sure
        ([100, 180, 160, 260], 0.3, 1),  # a bicycle
        ([150, 100, 230, 260], 0.3, 0),  # somebody half behind
    )
    assert parts(frame).tolist() == [False, True, False, False, False]
    assert parts(Detections.empty()).tolist() == []


def test_a_frame_rate_must_be_positive() -> None:
    with pytest.raises(ValueError, match="fps > 0"):
        Tracker("tracktrack", 0)
