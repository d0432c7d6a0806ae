"""Tracks that show two objects one after the other, on made-up embeddings and painted thumbnails."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from ml_backend.embeddings.crop_embeddings import CropEmbedding
from ml_backend.labeling.few_shot.identity_jumps import MIN_OTHERS, TrackViews, find_box_jump, find_jump
from tests.labeling.few_shot.builders import direction, views

COUNT = 4


def thumbnail(seed: int) -> bytes:
    """A person in clothes of their own colours, as a JPEG."""
    colours = np.random.default_rng([3, seed]).integers(20, 230, (4, 3))
    image = np.repeat(colours.astype(np.uint8), 24, axis=0)[:, None].repeat(40, axis=1)
    return bytes(cv2.imencode(".jpg", image)[1])


def crops(person: int, count: int = COUNT, seed: int = 0) -> list[CropEmbedding]:
    """Views of a person: all people of a scene are alike, and each a little different."""
    look = direction(0) + 0.6 * direction(person)
    vectors = views(look, count, 100 * person + seed, spread=0.0, own=0.3)
    return [CropEmbedding(n, (0.0, 0.0, 9.0, 9.0), row, thumbnail(person)) for n, row in enumerate(vectors)]


def others(count: int) -> list[TrackViews]:
    return [TrackViews.of(crops(100 + n)) for n in range(count)]


@pytest.mark.parametrize("first", [1, 2, 3])
@pytest.mark.parametrize("count", [MIN_OTHERS, 20])
def test_a_jump_is_found_where_it_is(first: int, count: int) -> None:
    joined = crops(1, first) + crops(2, COUNT - first)
    assert find_jump(TrackViews.of(joined), others(count)) == first


@pytest.mark.parametrize("count", [MIN_OTHERS, 20])
def test_views_of_one_object_are_left_alone(count: int) -> None:
    for person in range(1, 20):
        assert find_jump(TrackViews.of(crops(person)), others(count)) is None


def test_colours_alone_tell_two_people_apart_whom_the_embedder_confuses() -> None:
    one, other = crops(1, 2), [CropEmbedding(9, c.xyxy, c.vector, thumbnail(2)) for c in crops(1, 2, seed=5)]
    assert find_jump(TrackViews.of(one + other), others(20)) == 2


def test_too_little_to_compare_with() -> None:
    joined = TrackViews.of(crops(1, 2) + crops(2, 2))
    assert find_jump(joined, others(MIN_OTHERS - 1)) is None
    assert find_jump(TrackViews.of(crops(1, 1)), others(20)) is None


def test_tracks_that_vary_more_make_it_more_careful() -> None:
    """Where every object turns around, one more that does has not jumped."""
    turning = [TrackViews.of(crops(100 + n, 2) + crops(300 + n, 2)) for n in range(20)]
    assert find_jump(TrackViews.of(crops(1, 2) + crops(2, 2)), turning) is None


def test_others_that_have_jumped_do_not_hide_a_jump() -> None:
    jumped = [TrackViews.of(crops(300, 2) + crops(400, 2)), TrackViews.of(crops(301, 1) + crops(401, 3))]
    assert find_jump(TrackViews.of(crops(1, 2) + crops(2, 2)), [*jumped, *others(8)]) == 2


def test_objects_without_thumbnails() -> None:
    """As in banks of other programs: embeddings alone decide, or nothing."""
    bare = [CropEmbedding(crop.frame, crop.xyxy, crop.vector, b"") for crop in crops(1)]
    assert find_jump(TrackViews.of(bare), others(20)) in (None, 1, 2, 3)


FPS, SIZE = 25.0, (1000, 500)


def walk(frames: range, start: float, speed: float = 4.0) -> tuple[np.ndarray, np.ndarray]:
    """Frames and boxes of 40 x 90 pixels, whose box size is 60, that move to the right."""
    x = start + speed * np.arange(len(frames))
    return np.array(frames), np.stack([x, np.full(len(x), 200.0), x + 40, np.full(len(x), 290.0)], axis=1)


def box_jump(*parts: tuple[np.ndarray, np.ndarray]) -> int | None:
    frames, xyxy = (np.concatenate([part[n] for part in parts]) for n in range(2))
    return find_box_jump(frames, xyxy, FPS, SIZE)


def test_a_box_that_goes_on_has_not_jumped() -> None:
    assert box_jump(walk(range(50), 100)) is None
    assert box_jump(walk(range(1), 100)) is None
    assert box_jump(walk(range(25), 100), walk(range(25, 50), 200, speed=-4)) is None, "it turns around"
    assert box_jump(walk(range(25), 100), walk(range(75, 100), 400)) is None, "it goes on while it is hidden"
    assert box_jump(walk(range(25), 100), walk(range(75, 100), 500)) is None, "or a little faster"


def test_a_box_that_goes_where_its_object_cannot_be() -> None:
    assert box_jump(walk(range(25), 100), walk(range(25, 50), 300)) == 25
    assert box_jump(walk(range(25), 100), walk(range(30, 50), 500)) == 30, "too far for the time that it was hidden"
    assert box_jump(walk(range(9), 100), walk(range(9, 25), 300), walk(range(25, 50), 800)) == 25, "the larger one"


def test_a_box_that_stays_and_catches_up_was_not_moved_with_its_object() -> None:
    stays = walk(range(15, 25), 156, speed=0)
    assert box_jump(walk(range(15), 100), stays, walk(range(25, 50), 300)) is None
    assert box_jump(walk(range(15), 100), stays, walk(range(25, 40), 300), walk(range(40, 50), 800)) == 40
