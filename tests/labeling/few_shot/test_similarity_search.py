"""Finding more like this, over real clips with an embedder whose answers are known."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

from ml_backend.core.errors import BackendError, ConfigError, MediaError, VideoError
from ml_backend.core.types import FloatArray, Image
from ml_backend.db.storage import Storage
from ml_backend.embeddings.crop_selection import CropBox
from ml_backend.labeling.few_shot.pattern_bank import Exemplars, PatternBank
from ml_backend.labeling.few_shot.pattern_store import PatternStore, StoredTracks
from ml_backend.labeling.few_shot.similarity_search import SimilarTrack, find_similar
from ml_backend.tracking.track_record import TrackRecord, TrackSet
from ml_backend.video.writer import VideoWriter

WIDTH, HEIGHT, FRAMES, MODEL = 320, 240, 24, "mean-colour"
#: The picture is red at the left and blue at the right.
COLUMNS = 8


class MeanColour:
    model_id, dim = MODEL, 3

    def __init__(self) -> None:
        self.seen = 0

    def embed(self, crops: Sequence[Image]) -> FloatArray:
        self.seen += len(crops)
        means = np.array([crop.reshape(-1, 3).mean(axis=0) for crop in crops], np.float32).reshape(-1, 3)
        return np.asarray(means / np.linalg.norm(means, axis=1, keepdims=True), np.float32)


def colour(column: int) -> np.ndarray:
    """BGR."""
    blue = 230 * column / (COLUMNS - 1)
    return np.array([blue, 20, 230 - blue])


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for column in range(COLUMNS):
        image[:, 40 * column : 40 * (column + 1)] = colour(column)
    with VideoWriter(path, WIDTH, HEIGHT, 12) as writer:
        for _ in range(FRAMES):
            writer.write(image)
    return path


@pytest.fixture
def store(tmp_path: Path) -> PatternStore:
    return PatternStore(Storage(f"sqlite:///{tmp_path / 'db'}"))


@cache
def bank() -> PatternBank:
    """Red and blue, with a few objects each."""
    rng = np.random.default_rng(0)
    rows = np.array([colour(0)] * 5 + [colour(COLUMNS - 1)] * 5) + rng.normal(0, 8, (10, 3))
    vectors = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    numbers = np.arange(1, 11, dtype=np.int64)
    return PatternBank.fit(Exemplars(numbers, vectors, ("red",) * 5 + ("blue",) * 5, numbers))


def record(column: int, *, views: int = 4, track_id: int | None = None) -> TrackRecord:
    box = (40.0 * column + 8, 50.0, 40.0 * column + 32, 70.0)
    value = {"framesCount": 48, "duration": 2.0, "sequence": []}
    seen = tuple(CropBox(3 * n, box, 0.9) for n in range(views))
    return TrackRecord(column if track_id is None else track_id, 0, FRAMES, 0.5, {"car": 1.0}, value, seen)


def save(store: PatternStore, task: int, *records: TrackRecord, video_index: int = 0, project: int = 1) -> None:
    tracks = TrackSet(tuple(records), ("car",), False, WIDTH, HEIGHT, FRAMES)
    uri = f"clip-{project}-{task}-{video_index}"
    store.save_tracks(uri, project, task, video_index, uri, tracks)


def refuse(*_: Any) -> NoReturn:
    raise AssertionError("opened although everything is known")


def find(
    store: PatternStore, clip: Path, label: str = "red", *, model: Any = None, **changes: Any
) -> list[SimilarTrack]:
    embedder: AbstractContextManager[Any] = nullcontext(model or MeanColour())
    given: dict[str, Any] = {
        "embedder": lambda: embedder,
        "open_video": lambda stored: nullcontext(clip),
    }
    return find_similar(store, 1, label, bank(), MODEL, **(given | changes))


def names(found: Sequence[SimilarTrack]) -> list[tuple[int, int]]:
    return [(item.task_id, item.track_id) for item in found]


def test_best_first(store: PatternStore, clip: Path) -> None:
    save(store, 10, record(5), record(0), record(2))
    save(store, 11, record(1), record(7))
    red, blue = find(store, clip, "red"), find(store, clip, "blue")
    assert names(red)[0] == (10, 0)
    assert names(blue)[0] == (11, 7)
    for found in (red, blue):
        assert len(found) == 5
        scores = [item.score for item in found]
        assert scores == sorted(scores, reverse=True)
        assert all(0 <= score <= 1 for score in scores)
        assert scores[0] > scores[-1]


def test_scores_are_the_bank_s(store: PatternStore, clip: Path) -> None:
    save(store, 10, *(record(column) for column in range(COLUMNS)))
    found = {item.track_id: item for item in find(store, clip)}
    for column, item in found.items():
        looks = [
            look for look in store.crop_embeddings(_only(store).video).get(MODEL) if look.xyxy[0] == 40 * column + 8
        ]
        (expected,) = bank().rank("red", [np.stack([look.vector for look in looks])])
        assert item.score == pytest.approx(float(expected), abs=1e-5)
        assert item.safe == (item.score >= bank().safe_thresholds["red"])


def _only(store: PatternStore) -> StoredTracks:
    (stored,) = store.tracks_of_project(1)
    return stored


def test_equals_keep_the_order_of_the_videos(store: PatternStore, clip: Path) -> None:
    for task in (12, 10, 11):
        save(store, task, record(0, track_id=1), record(0, track_id=2))
    expected = [(task, track) for task in (10, 11, 12) for track in (1, 2)]
    assert names(find(store, clip)) == expected
    assert names(find(store, clip, limit=3)) == expected[:3]


@pytest.mark.parametrize("limit", [0, 1, 3, 8, 50])
def test_limit(store: PatternStore, clip: Path, limit: int) -> None:
    save(store, 10, *(record(column) for column in range(COLUMNS)))
    everything = find(store, clip)
    assert find(store, clip, limit=limit) == everything[:limit]


def test_annotated_tasks_are_left_out(store: PatternStore, clip: Path) -> None:
    save(store, 10, record(0))
    save(store, 11, record(1))
    save(store, 12, record(2))
    assert [task for task, _ in names(find(store, clip, tasks={11, 99}))] == [11]
    opened: list[int] = []

    def open_video(stored: StoredTracks) -> AbstractContextManager[Path]:
        opened.append(stored.task_id)
        return nullcontext(clip)

    find(store, clip, tasks=[11, 12], open_video=open_video)
    assert opened == [12]  # 10 is not looked at, 11 is known


def test_other_projects_are_left_out(store: PatternStore, clip: Path) -> None:
    save(store, 10, record(0), project=2)
    assert find(store, clip) == []


def test_nothing_is_looked_at_twice(store: PatternStore, clip: Path) -> None:
    save(store, 10, record(0), record(3))
    save(store, 11, record(5))
    model = MeanColour()
    first = find(store, clip, model=model)
    assert model.seen == 3 * 4
    assert find(store, clip, embedder=refuse, open_video=refuse) == first
    assert len(find(store, clip, "blue", embedder=refuse, open_video=refuse)) == 3


def test_an_unknown_label_names_the_known_ones(store: PatternStore, clip: Path) -> None:
    save(store, 10, record(0))
    with pytest.raises(ConfigError, match="'green' has no exemplars") as failure:
        find(store, clip, "green", embedder=refuse, open_video=refuse)
    assert "blue, red" in failure.value.hint


def test_videos_that_cannot_be_looked_at_are_skipped(store: PatternStore, clip: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"")
    for task in (10, 11, 12):
        save(store, task, record(0))

    def open_video(stored: StoredTracks) -> AbstractContextManager[Path]:
        if stored.task_id == 10:
            raise MediaError("The video is gone.")
        return nullcontext(broken if stored.task_id == 11 else clip)

    skipped: list[tuple[int, BackendError]] = []
    found = find(
        store, clip, open_video=open_video, on_skip=lambda stored, error: skipped.append((stored.task_id, error))
    )
    assert [item.task_id for item in found] == [12]
    assert [(task, type(error)) for task, error in skipped] == [(10, MediaError), (11, VideoError)]
    with pytest.raises(MediaError, match="gone"):
        find(store, clip, open_video=open_video)


def test_an_error_of_our_own_is_not_skipped(store: PatternStore, clip: Path) -> None:
    save(store, 10, record(0))
    with pytest.raises(AssertionError):
        find(store, clip, open_video=refuse, on_skip=lambda *_: None)


def test_tracks_without_looks_are_left_out(store: PatternStore, clip: Path) -> None:
    save(store, 11)
    save(store, 10, replace(record(0), crops=()))
    assert find(store, clip, embedder=refuse, open_video=refuse) == []
    outside = replace(record(1, track_id=5), crops=(CropBox(3, (900.0, 900.0, 950.0, 950.0), 0.9),))
    save(store, 10, replace(record(0), crops=()), outside)
    assert find(store, clip) == []
    save(store, 12, replace(record(0), crops=()), record(1))
    assert names(find(store, clip)) == [(12, 1)]


def test_nothing_to_search(store: PatternStore, clip: Path) -> None:
    assert find(store, clip, embedder=refuse, open_video=refuse) == []


def test_where_it_is(store: PatternStore, clip: Path) -> None:
    save(store, 10, replace(record(0, track_id=77), crops=record(0).crops[1:2]), video_index=2)
    (item,) = find(store, clip)
    assert (item.task_id, item.video_index, item.track_id, item.original_class) == (10, 2, 77, "car")
    assert item.frame == 3
    assert item.time == pytest.approx(0.25)
    assert item.ls_frame == 7  # 24 frames a second on Label Studio's timeline, 12 in the file
    assert item.xyxy == (8.0, 50.0, 32.0, 70.0)
    assert item.thumbnail.startswith(b"\xff\xd8\xff")
    assert len(item.key) == 16
    assert item.summary() == {
        "task": 10,
        "part": 2,
        "track": 77,
        "key": item.key,
        "score": round(item.score, 4),
        "safe": item.safe,
        "dropped": False,
        "frame": 7,
        "time": 0.25,
        "bbox": [8.0, 50.0, 32.0, 70.0],
        "original_class": "car",
    }


def test_tracks_too_weak_for_a_prediction_are_found_and_never_safe(
    store: PatternStore, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bank(), "safe_thresholds", {"red": 0.0, "blue": 0.0})
    tracks = TrackSet((record(3),), ("car",), False, WIDTH, HEIGHT, FRAMES, dropped=(record(0, track_id=9),))
    store.save_tracks("key", 1, 10, 0, "clip", tracks)
    save(store, 11, record(0, track_id=9))
    found = {item.task_id: item for item in find(store, clip) if item.track_id == 9}
    assert found[10].score == found[11].score
    assert [(found[task].safe, found[task].dropped) for task in (10, 11)] == [(False, True), (True, False)]


def test_the_most_typical_look_is_shown(store: PatternStore, clip: Path) -> None:
    crops = tuple(CropBox(frame, record(column).crops[0].xyxy, 0.9) for frame, column in ((2, 4), (9, 0), (20, 6)))
    save(store, 10, replace(record(0), crops=crops))
    assert find(store, clip, "red")[0].frame == 9
    assert find(store, clip, "blue")[0].frame == 20


def test_a_video_without_duration(store: PatternStore, clip: Path) -> None:
    save(store, 10, replace(record(0), value={"framesCount": 1, "duration": 0.0, "sequence": []}))
    (item,) = find(store, clip)
    assert (item.ls_frame, item.time) == (1, 0.0)
