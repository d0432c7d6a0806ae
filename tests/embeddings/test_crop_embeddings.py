"""Crops of tracks are embedded once; stored embeddings are used again."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NoReturn

import av
import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from ml_backend.core.errors import Interrupted, VideoError
from ml_backend.core.types import FloatArray, Image
from ml_backend.db.storage import Storage
from ml_backend.embeddings import crops as crops_module
from ml_backend.embeddings.crop_embeddings import (
    MAX_CROP,
    MAX_PENDING_CROPS,
    SAME_CROP_IOU,
    THUMBNAIL,
    CropEmbedding,
    CropEmbeddingStore,
    MemoryCropEmbeddings,
    embed_tracks,
    from_half,
    to_half,
)
from ml_backend.embeddings.crop_selection import CropBox
from ml_backend.embeddings.crops import cut_crop
from ml_backend.labeling.few_shot.pattern_store import PatternStore
from ml_backend.video.writer import VideoWriter
from tests.video.builders import make_video

Box = tuple[float, float, float, float]

WIDTH, HEIGHT, FRAMES = 320, 240, 100
#: Inside each quadrant of the picture, and far enough from the others for the margin around a crop; BGR.
RED, GREEN, BLUE = (20.0, 20.0, 120.0, 100.0), (200.0, 20.0, 300.0, 100.0), (20.0, 140.0, 120.0, 220.0)
COLOURS = {RED: (20, 20, 220), GREEN: (20, 200, 20), BLUE: (220, 40, 20)}
TEXTURE = (200.0, 140.0, 300.0, 220.0)
SHARP = {2, 9}


class MeanColour:
    """An embedder whose answers are known: the mean colour's direction."""

    model_id = "mean-colour"
    dim = 3

    def __init__(self) -> None:
        self.crops: list[Image] = []

    def embed(self, crops: Sequence[Image]) -> FloatArray:
        self.crops += crops
        means = np.array([crop.reshape(-1, 3).mean(axis=0) for crop in crops], np.float32).reshape(-1, 3)
        return np.asarray(means / np.linalg.norm(means, axis=1, keepdims=True), np.float32)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three quadrants of one colour each; the fourth has a texture, which is clear on the frames ``SHARP`` only."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    noise = np.random.default_rng(0).integers(-100, 100, (HEIGHT // 8, WIDTH // 8, 1)).repeat(3, axis=2)
    texture = np.kron(noise, np.ones((4, 4, 1)))
    with VideoWriter(path, WIDTH, HEIGHT, 25) as writer:
        for number in range(FRAMES):
            image = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
            for (left, top, *_), colour in COLOURS.items():
                x, y = int(left >= 160) * 160, int(top >= 120) * 120
                image[y : y + 120, x : x + 160] = colour
            image[120:, 160:] = 128 + (texture if number in SHARP else texture / 5)
            writer.write(image)
    return path


@pytest.fixture(params=["memory", "database"])
def crop_embeddings(request: pytest.FixtureRequest, tmp_path: Path) -> CropEmbeddingStore:
    if request.param == "memory":
        return MemoryCropEmbeddings()
    return PatternStore(Storage(f"sqlite:///{tmp_path / 'db'}")).crop_embeddings("video")


def views(box: Box, frames: Sequence[int], conf: float = 0.9) -> list[CropBox]:
    return [CropBox(frame, box, conf) for frame in frames]


def refuse() -> NoReturn:
    raise AssertionError("opened although everything is known")


def embed(
    wanted: Sequence[Sequence[CropBox]],
    crop_embeddings: CropEmbeddingStore,
    path: Path,
    k: int = 4,
    model: MeanColour | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> list[list[CropEmbedding]]:
    embedder: AbstractContextManager[Any] = nullcontext(model or MeanColour())
    return embed_tracks(
        wanted,
        lambda: embedder,
        MeanColour.model_id,
        crop_embeddings,
        lambda: nullcontext(path),
        k,
        should_stop=should_stop,
    )


def stored_only(
    wanted: Sequence[Sequence[CropBox]], crop_embeddings: CropEmbeddingStore, k: int = 4
) -> list[list[CropEmbedding]]:
    return embed_tracks(wanted, refuse, MeanColour.model_id, crop_embeddings, refuse, k)


def frames_of(found: Sequence[CropEmbedding]) -> list[int]:
    return [item.frame for item in found]


def same(first: list[list[CropEmbedding]], second: list[list[CropEmbedding]]) -> bool:
    """Boxes and frames are equal; vectors but for the last digit that is kept."""
    return first == second and all(
        np.abs(a.vector - b.vector).max() < 1e-3 and a.thumbnail == b.thumbnail
        for one, other in zip(first, second, strict=True)
        for a, b in zip(one, other, strict=True)
    )


# -- embedding


def test_an_embedding_is_what_the_model_sees_in_the_box(clip: Path, crop_embeddings: CropEmbeddingStore) -> None:
    wanted = [views(RED, range(0, 12)), views(GREEN, range(30, 42)), views(BLUE, range(5, 90, 7))]
    found = embed(wanted, crop_embeddings, clip)
    assert [len(mine) for mine in found] == [4, 4, 4]
    for candidates, mine in zip(wanted, found, strict=True):
        assert frames_of(mine) == sorted(set(frames_of(mine)))
        assert {(item.frame, item.xyxy) for item in mine} <= {(view.frame, view.xyxy) for view in candidates}
        colour = np.array(COLOURS[mine[0].xyxy], float)
        for item in mine:
            assert item.vector.dtype == np.float32
            assert np.linalg.norm(item.vector) == pytest.approx(1, abs=1e-6)
            assert item.vector == pytest.approx(colour / np.linalg.norm(colour), abs=0.05)


def test_nothing_to_embed(crop_embeddings: CropEmbeddingStore) -> None:
    assert stored_only([], crop_embeddings) == []
    assert stored_only([[], []], crop_embeddings) == [[], []]
    assert crop_embeddings.get(MeanColour.model_id) == []


def test_stored_embeddings_are_used_again(clip: Path, crop_embeddings: CropEmbeddingStore) -> None:
    wanted = [views(RED, range(0, 12)), [], views(GREEN, [7]), views(BLUE, range(40, 52))]
    first = embed(wanted, crop_embeddings, clip)
    assert same(stored_only(wanted, crop_embeddings), first)
    assert same(stored_only(wanted[::-1], crop_embeddings), first[::-1])


def test_only_what_is_missing_is_embedded(clip: Path, crop_embeddings: CropEmbeddingStore) -> None:
    red, green = views(RED, range(0, 12)), views(GREEN, range(0, 12))
    first = embed([red], crop_embeddings, clip)
    model = MeanColour()
    both = embed([red, green], crop_embeddings, clip, model=model)
    assert same(both[:1], first)
    assert len(model.crops) == 4
    assert all(crop[..., 1].mean() > crop[..., 2].mean() for crop in model.crops)


def test_each_box_is_embedded_once(clip: Path, crop_embeddings: CropEmbeddingStore) -> None:
    model = MeanColour()
    wanted = [views(box, range(start, start + 12)) for start in range(0, 88, 4) for box in (RED, BLUE)]
    found = embed(wanted[:20], crop_embeddings, clip, model=model)
    assert len(model.crops) == 20 * 4
    found += embed(wanted[20:], crop_embeddings, clip, model=model)
    boxes = [(item.frame, item.xyxy) for item in crop_embeddings.get(MeanColour.model_id)]
    assert len(model.crops) >= len(set(boxes))
    embed(wanted, crop_embeddings, clip, model=model)
    before = len(model.crops)
    stored_only(wanted, crop_embeddings)
    assert len(model.crops) == before
    assert all(len(mine) == 4 for mine in found)


def test_embeddings_of_another_model_say_nothing(clip: Path, crop_embeddings: CropEmbeddingStore) -> None:
    wanted = [views(RED, range(4))]
    embed(wanted, crop_embeddings, clip)
    with pytest.raises(AssertionError, match="opened although"):
        embed_tracks(wanted, refuse, "another", crop_embeddings, refuse, 4)
    assert crop_embeddings.get("another") == []


def test_the_sharpest_of_each_part_is_chosen(clip: Path) -> None:
    (mine,) = embed([views(TEXTURE, range(12))], MemoryCropEmbeddings(), clip, k=2)
    assert frames_of(mine) == sorted(SHARP)


def test_the_surest_is_chosen_where_all_are_equally_sharp(clip: Path) -> None:
    candidates = [CropBox(frame, RED, 0.9 if frame in (14, 27) else 0.3) for frame in range(10, 30)]
    (mine,) = embed([candidates], MemoryCropEmbeddings(), clip, k=2)
    assert frames_of(mine) == [14, 27]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_tracks_of_fewer_views_than_wanted(clip: Path, crop_embeddings: CropEmbeddingStore, count: int) -> None:
    wanted = [views(GREEN, range(50, 50 + count))]
    first = embed(wanted, crop_embeddings, clip)
    assert frames_of(first[0]) == list(range(50, 50 + count))
    assert same(stored_only(wanted, crop_embeddings), first)


def test_fewer_embeddings_than_are_stored(clip: Path, crop_embeddings: CropEmbeddingStore) -> None:
    wanted = [views(RED, range(0, 60, 5))]
    (four,) = embed(wanted, crop_embeddings, clip)
    (two,) = stored_only(wanted, crop_embeddings, k=2)
    assert frames_of(two) == [four[0].frame, four[-1].frame]
    (one,) = stored_only(wanted, crop_embeddings, k=1)
    assert len(one) == 1


def test_more_than_are_stored_are_embedded(clip: Path, crop_embeddings: CropEmbeddingStore) -> None:
    wanted = [views(RED, range(0, 60, 5))]
    embed(wanted, crop_embeddings, clip, k=2)
    (found,) = embed(wanted, crop_embeddings, clip, k=4)
    assert len(found) == 4


def test_one_frame_shows_several_tracks(clip: Path, crop_embeddings: CropEmbeddingStore) -> None:
    wanted = [views(box, [33]) for box in (GREEN, RED, BLUE)]
    found = embed(wanted, crop_embeddings, clip)
    for box, (mine,) in zip((GREEN, RED, BLUE), found, strict=True):
        assert mine.xyxy == box
        assert int(np.argmax(mine.vector)) == int(np.argmax(COLOURS[box]))


def test_boxes_without_pixels_are_not_embedded(clip: Path) -> None:
    outside, flat = (400.0, 10.0, 500.0, 60.0), (50.0, 50.0, 50.0, 90.0)
    assert embed([views(outside, [1]), views(flat, [2])], MemoryCropEmbeddings(), clip) == [[], []]
    mixed = [CropBox(1, outside, 0.9), CropBox(2, RED, 0.9)]
    assert frames_of(embed([mixed], MemoryCropEmbeddings(), clip)[0]) == [2]


# -- which boxes show the same


def shifted(by: float) -> list[CropBox]:
    """A box of 100 x 80 pixels, moved to the right."""
    left, top, right, bottom = RED
    return [CropBox(20, (left + by, top, right + by, bottom), 0.9)]


def test_nearly_the_same_box_is_not_embedded_again(clip: Path, crop_embeddings: CropEmbeddingStore) -> None:
    first = embed([shifted(0)], crop_embeddings, clip)
    assert (100 - 8) / (100 + 8) > SAME_CROP_IOU > (100 - 8.2) / (100 + 8.2)
    (near,) = stored_only([shifted(8)], crop_embeddings)
    assert near == first[0]
    with pytest.raises(AssertionError, match="opened although"):
        stored_only([shifted(8.2)], crop_embeddings)
    with pytest.raises(AssertionError, match="opened although"):
        stored_only([[CropBox(21, RED, 0.9)]], crop_embeddings)


def test_the_nearest_of_several_known_boxes_is_taken(clip: Path, crop_embeddings: CropEmbeddingStore) -> None:
    for by in (0.0, 4.0, 9.0):
        crop_embeddings.add(MeanColour.model_id, [CropEmbedding(20, shifted(by)[0].xyxy, np.float32([1, 0, 0]), b"")])
    for by, expected in ((0.5, 0.0), (3.0, 4.0), (10.0, 9.0)):
        (mine,) = stored_only([shifted(by)], crop_embeddings)[0]
        assert mine.xyxy == shifted(expected)[0].xyxy


# -- keys


def test_a_key_names_what_was_embedded() -> None:
    base = CropEmbedding(3, RED, np.float32([1, 0, 0]), b"")
    assert base.key("v", "m") == CropEmbedding(3, RED, np.float32([0, 1, 0]), b"x").key("v", "m")
    keys = {
        base.key("v", "m"),
        base.key("w", "m"),
        base.key("v", "n"),
        CropEmbedding(4, RED, base.vector, b"").key("v", "m"),
        CropEmbedding(3, GREEN, base.vector, b"").key("v", "m"),
    }
    assert len(keys) == 5
    assert all(len(key) == 40 and set(key) <= set("0123456789abcdef") for key in keys)


def test_keys_are_the_same_after_the_database(clip: Path, tmp_path: Path) -> None:
    crop_embeddings = PatternStore(Storage(f"sqlite:///{tmp_path / 'db'}")).crop_embeddings("video")
    wanted = [[CropBox(3, (0.0, 0.1, 100.3, 99.9), 0.5), CropBox(4, (33.3, 0.0, 319.7, 240.0), 0.5)]]
    first = embed(wanted, crop_embeddings, clip)
    again = stored_only(wanted, crop_embeddings)
    assert [item.key("v", "m") for item in first[0]] == [item.key("v", "m") for item in again[0]]


# -- damaged videos


def damage(path: Path, packets: slice) -> None:
    """Overwrite the content of some packets; what tells where they are stays whole."""
    with av.open(str(path)) as container:
        hurt = [packet for packet in container.demux(video=0) if packet.size][packets]
        data = bytearray(path.read_bytes())
        for packet in hurt:
            data[packet.pos : packet.pos + packet.size] = b"\xff" * packet.size
    path.write_bytes(data)


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Frames 20 to 29 and from 50 on cannot be decoded."""
    path = make_video(tmp_path_factory.mktemp("bad") / "a.mp4", frames=60, options={"bf": "0", "g": "10"})
    damage(path, slice(20, 30))
    damage(path, slice(50, None))
    return path


def test_frames_that_cannot_be_decoded_are_left_out(damaged: Path) -> None:
    whole, gone, partly, tail = range(0, 4), range(21, 25), [19, 22, 31, 33], [40, 48, 55, 59]
    wanted = [views(RED, frames) for frames in (whole, gone, partly, tail)]
    found = embed(wanted, MemoryCropEmbeddings(), damaged)
    assert [frames_of(mine) for mine in found] == [[0, 1, 2, 3], [], [19, 31, 33], [40, 48]]


def test_a_video_of_which_nothing_can_be_decoded(
    damaged: Path, crop_embeddings: CropEmbeddingStore, tmp_path: Path
) -> None:
    assert embed([views(RED, range(21, 25))], crop_embeddings, damaged) == [[]]
    empty = tmp_path / "empty.mp4"
    empty.write_bytes(b"")
    with pytest.raises(VideoError):
        embed([views(RED, [1])], crop_embeddings, empty)
    assert crop_embeddings.get(MeanColour.model_id) == []


# -- being stopped


def test_asked_to_stop_keeps_what_is_finished(clip: Path, crop_embeddings: CropEmbeddingStore) -> None:
    wanted = [views(RED, range(4 * n, 4 * n + 4)) for n in range(25)]
    asked: list[int] = []

    def stop() -> bool:
        asked.append(len(asked))
        return len(asked) > 90

    with pytest.raises(Interrupted, match="frame 90") as failure:
        embed(wanted, crop_embeddings, clip, should_stop=stop)
    assert failure.value.retryable
    kept = crop_embeddings.get(MeanColour.model_id)
    assert len(kept) >= MAX_PENDING_CROPS
    model = MeanColour()
    found = embed(wanted, crop_embeddings, clip, model=model)
    assert len(model.crops) == 100 - len(kept)
    assert [frames_of(mine) for mine in found] == [list(range(4 * n, 4 * n + 4)) for n in range(25)]


def test_the_first_frame_may_be_the_last(clip: Path, crop_embeddings: CropEmbeddingStore) -> None:
    with pytest.raises(Interrupted):
        embed([views(RED, [5])], crop_embeddings, clip, should_stop=lambda: True)
    assert crop_embeddings.get(MeanColour.model_id) == []
    assert stored_only([[]], crop_embeddings) == [[]]


def test_a_failing_model_keeps_what_was_finished(clip: Path, crop_embeddings: CropEmbeddingStore) -> None:
    class Failing(MeanColour):
        def embed(self, crops: Sequence[Image]) -> FloatArray:
            if self.crops:
                raise RuntimeError("out of order")
            return super().embed(crops)

    wanted = [views(RED, range(4 * n, 4 * n + 4)) for n in range(25)]
    with pytest.raises(RuntimeError, match="out of order"):
        embed(wanted, crop_embeddings, clip, model=Failing())
    assert len(crop_embeddings.get(MeanColour.model_id)) == MAX_PENDING_CROPS


# -- memory


@pytest.mark.slow
def test_memory_does_not_hold_the_crops_of_all_tracks(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits are the crops of tracks on screen, and those for the next call of the network."""
    wanted = [views(RED, range(n, n + 12)) for n in range(0, 88)]  # 12 tracks at a time, 1056 boxes
    made: list[weakref.ref[Image]] = []

    def cut(image: Image, box: Box) -> Image | None:
        crop = cut_crop(image, box)
        assert crop is not None
        assert max(crop.shape) < MAX_CROP  # so it is what waits
        made.append(weakref.ref(crop))
        return crop

    monkeypatch.setattr(crops_module, "cut_crop", cut)

    class Forgetful(MeanColour):
        def embed(self, crops: Sequence[Image]) -> FloatArray:
            found = super().embed(crops)
            self.crops.clear()
            return found

    asked: list[int] = []
    most: list[int] = []

    def count() -> bool:
        asked.append(len(asked))
        if len(asked) % 7 == 0:  # it takes a while
            most.append(sum(crop() is not None for crop in made))
        return False

    found = embed(wanted, MemoryCropEmbeddings(), clip, model=Forgetful(), should_stop=count)
    assert len(made) == 12 * 88
    assert all(len(mine) == 4 for mine in found)
    on_screen = sum(range(1, 13))
    assert 0 < max(most) <= MAX_PENDING_CROPS + on_screen + 12
    assert len(asked) == 99


def test_large_crops_are_made_smaller_before_they_wait(tmp_path: Path) -> None:
    path = make_video(tmp_path / "large.mp4", frames=3, size=(1280, 720))
    model = MeanColour()
    large, small = (100.0, 100.0, 1100.0, 600.0), (100.0, 100.0, 140.0, 120.0)
    embed([views(large, [0]), views(small, [1])], MemoryCropEmbeddings(), path, model=model)
    assert [max(crop.shape) for crop in model.crops] == [MAX_CROP, 48]
    height, width = model.crops[0].shape[:2]
    assert width / height == pytest.approx(1200 / 700, abs=0.01)


def test_thumbnails_are_small_jpegs(tmp_path: Path) -> None:
    path = make_video(tmp_path / "large.mp4", frames=2, size=(1280, 720))
    boxes = {
        (100.0, 100.0, 1100.0, 600.0): (56, THUMBNAIL),
        (600.0, 10.0, 700.0, 710.0): (THUMBNAIL, 32),
        (100.0, 100.0, 140.0, 120.0): (28, 48),
        (10.0, 10.0, 11.0, 11.0): (3, 3),
    }
    found = embed([views(box, [0]) for box in boxes], MemoryCropEmbeddings(), path)
    for (mine,), shape in zip(found, boxes.values(), strict=True):
        assert mine.thumbnail.startswith(b"\xff\xd8\xff")
        picture = cv2.imdecode(np.frombuffer(mine.thumbnail, np.uint8), cv2.IMREAD_COLOR)
        assert picture.shape == (*shape, 3)
        assert max(picture.shape) <= THUMBNAIL


def test_a_thumbnail_shows_the_box(clip: Path) -> None:
    ((mine,),) = embed([views(GREEN, [10])], MemoryCropEmbeddings(), clip)
    picture = cv2.imdecode(np.frombuffer(mine.thumbnail, np.uint8), cv2.IMREAD_COLOR)
    assert picture.reshape(-1, 3).mean(axis=0) == pytest.approx(np.array(COLOURS[GREEN]), abs=15)


# -- half precision


def unit(*shape: int, seed: int = 0) -> FloatArray:
    rows = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return np.asarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True), np.float32)


@pytest.mark.parametrize("dim", [1, 3, 24, 768, 1536])
def test_half_precision_there_and_back(dim: int) -> None:
    rows = unit(20, dim)
    blobs = [to_half(row) for row in rows]
    assert {len(blob) for blob in blobs} == {2 * dim}
    assert b"".join(blobs) == to_half(rows)
    back = from_half(blobs)
    assert (back.shape, back.dtype) == ((20, dim), np.float32)
    assert np.abs(back - rows).max() < 1e-3
    assert np.linalg.norm(back, axis=1) == pytest.approx(np.ones(20), abs=1e-6)


@pytest.mark.parametrize("dim", [24, 768, 1536])
def test_what_was_kept_once_is_kept_as_it_is(dim: int) -> None:
    """The vectors that are used at first are those that a later reader finds."""
    once = from_half([to_half(row) for row in unit(200, dim)])
    twice = from_half([to_half(row) for row in once])
    assert np.array_equal(once, twice)


def test_half_precision_of_nothing() -> None:
    assert from_half([]).shape == (0, 0)
    assert to_half(np.zeros((0, 5), np.float32)) == b""
    zero = from_half([to_half(np.zeros(4, np.float32))])
    assert np.array_equal(zero, np.zeros((1, 4)))


@hypothesis_settings(deadline=None)
@given(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=64).filter(lambda row: np.linalg.norm(row) > 0.1))
def test_directions_survive_half_precision(row: list[float]) -> None:
    vector = np.array(row, np.float32) / np.float32(np.linalg.norm(row))
    (back,) = from_half([to_half(vector)])
    assert float(back @ vector) > 1 - 1e-5


def test_bytes_are_little_endian() -> None:
    assert to_half(np.float32([1.0, -2.0])) == b"\x00\x3c\x00\xc0"


def test_a_track_in_a_broken_tail_does_not_stop_the_others(damaged: Path, crop_embeddings: CropEmbeddingStore) -> None:
    """Neither at first nor later, when only that track is left to be embedded."""
    wanted = [views(RED, range(0, 4)), views(RED, range(52, 56))]
    for _ in range(2):
        assert [len(mine) for mine in embed(wanted, crop_embeddings, damaged)] == [4, 0]


def test_a_short_job_that_is_stopped_gets_on(clip: Path, crop_embeddings: CropEmbeddingStore) -> None:
    wanted = [views(RED, range(4 * n, 4 * n + 4)) for n in range(5)]
    asked: list[int] = []

    def stop() -> bool:
        asked.append(len(asked))
        return len(asked) > 10

    with pytest.raises(Interrupted):
        embed(wanted, crop_embeddings, clip, should_stop=stop)
    assert sorted(item.frame for item in crop_embeddings.get(MeanColour.model_id)) == list(range(8))
