"""What is kept of learned labels, with real SQLite files."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from ml_backend.core.errors import StorageError
from ml_backend.core.types import UNLABELLED
from ml_backend.db.storage import Storage
from ml_backend.embeddings.crop_embeddings import CropEmbedding
from ml_backend.embeddings.crop_selection import CropBox
from ml_backend.labeling.few_shot.identity_jumps import IdentityJump
from ml_backend.labeling.few_shot.pattern_store import (
    ExemplarOrigin,
    NewExemplar,
    PatternStore,
    StoredTracks,
    video_key,
)
from ml_backend.tracking.track_record import TrackRecord, TrackSet
from tests.builders import ROOT

MODEL, DIM = "model-1", 8


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "db.sqlite3"


@pytest.fixture
def store(path: Path) -> PatternStore:
    return PatternStore(Storage(f"sqlite:///{path}"))


def make_embedding(number: int = 0, *, frame: int = 3, thumbnail: bytes = b"\xff\xd8jpeg") -> CropEmbedding:
    """An embedding that differs from others in its box and in its vector."""
    vector = np.random.default_rng(number).normal(size=DIM).astype(np.float32)
    return CropEmbedding(
        frame, (float(number), 1.5, float(number) + 10.3, 20.0), vector / np.linalg.norm(vector), thumbnail
    )


def keep(store: PatternStore, *numbers: int, video: str = "video", model: str = MODEL) -> list[str]:
    """Embeddings with these numbers; their keys."""
    embeddings = [make_embedding(number) for number in numbers]
    store.crop_embeddings(video).add(model, embeddings)
    return [item.key(video, model) for item in embeddings]


def objects(store: PatternStore, *given: tuple[str, str, int], origin: str = "") -> list[NewExemplar]:
    """(region, label, number of the embedding)."""
    keys = keep(store, *(number for *_, number in given))
    return [NewExemplar(region, label, key, origin) for (region, label, _), key in zip(given, keys, strict=True)]


def rows(store: PatternStore, project: int = 1, model: str = MODEL) -> list[tuple[int, str, str]]:
    """(task, region, label) of every exemplar."""
    _, sources = store.exemplars(project, model)
    return sorted((source.task_id, source.region_id, source.label) for source in sources.values())


# -- embeddings


def test_embeddings_come_back(store: PatternStore) -> None:
    embeddings = [make_embedding(1, frame=9), make_embedding(2, frame=4), make_embedding(3, frame=9, thumbnail=b"")]
    store.crop_embeddings("v").add(MODEL, embeddings)
    found = store.crop_embeddings("v").get(MODEL)
    assert sorted(found, key=lambda item: item.xyxy) == embeddings
    assert [item.frame for item in found] == [4, 9, 9]
    for before, after in zip(embeddings, sorted(found, key=lambda item: item.xyxy), strict=True):
        assert np.abs(before.vector - after.vector).max() < 1e-3
        assert after.vector.dtype == np.float32
        assert (before.thumbnail, before.key("v", MODEL)) == (after.thumbnail, after.key("v", MODEL))
    assert store.crop_embeddings("w").get(MODEL) == store.crop_embeddings("v").get("model-2") == []


def test_embeddings_that_are_there_already_stay(store: PatternStore) -> None:
    store.crop_embeddings("v").add(MODEL, [])
    store.crop_embeddings("v").add(MODEL, [make_embedding(1, thumbnail=b"first")])
    store.crop_embeddings("v").add(
        MODEL, [make_embedding(1, thumbnail=b"second"), make_embedding(2), make_embedding(2)]
    )
    assert [item.thumbnail for item in store.crop_embeddings("v").get(MODEL) if item.xyxy[0] == 1] == [b"first"]
    assert len(store.crop_embeddings("v").get(MODEL)) == 2


def test_more_embeddings_than_sqlite_takes_values(store: PatternStore) -> None:
    store.crop_embeddings("v").add(MODEL, [make_embedding(number) for number in range(0, 1200, 2)])
    store.crop_embeddings("v").add(MODEL, [make_embedding(number) for number in range(1200)])
    assert len(store.crop_embeddings("v").get(MODEL)) == 1200


def test_threads_add_the_same_embeddings_at_once(store: PatternStore) -> None:
    def work(start: int) -> None:
        for first in range(start, start + 40, 4):
            store.crop_embeddings("v").add(MODEL, [make_embedding(number) for number in range(first, first + 20)])

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, [0, 0, 0, 2, 2, 4]))
    assert sorted(item.xyxy[0] for item in store.crop_embeddings("v").get(MODEL)) == list(range(60))


# -- exemplars of tasks


def test_exemplars_of_a_task_are_replaced(store: PatternStore) -> None:
    first = objects(store, ("r1", "a", 1), ("r1", "a", 2), ("r2", "b", 3))
    assert store.replace_task(1, MODEL, 10, 100, first)
    ids = {source.region_id: number for number, source in store.exemplars(1, MODEL)[1].items()}
    assert rows(store) == [(10, "r1", "a"), (10, "r1", "a"), (10, "r2", "b")]

    second = objects(store, ("r1", "a", 1), ("r2", "c", 3), ("r3", "a", 4))  # kept, relabelled, inserted; one is gone
    assert store.replace_task(1, MODEL, 10, 101, second)
    assert rows(store) == [(10, "r1", "a"), (10, "r2", "c"), (10, "r3", "a")]
    after = {source.region_id: number for number, source in store.exemplars(1, MODEL)[1].items()}
    assert after["r2"] == ids["r2"]  # what stays keeps its id

    assert store.replace_task(1, MODEL, 10, 101, [])
    assert rows(store) == []
    assert store.digest(1, MODEL) == ""


def test_the_same_again_is_no_change(store: PatternStore) -> None:
    wanted = objects(store, ("r1", "a", 1), ("r2", "b", 2))
    assert store.replace_task(1, MODEL, 10, 100, wanted)
    digest = store.digest(1, MODEL)
    assert not store.replace_task(1, MODEL, 10, 100, wanted)
    assert not store.replace_task(1, MODEL, 10, 100, wanted[::-1])
    assert not store.replace_task(1, MODEL, 10, 999, wanted)  # submitted anew
    assert not store.replace_task(1, MODEL, 11, 5, [])
    assert store.digest(1, MODEL) == digest


def test_other_tasks_projects_and_models_are_left_alone(store: PatternStore) -> None:
    wanted = objects(store, ("r1", "a", 1))
    for project, model, task in ((1, MODEL, 10), (1, MODEL, 11), (2, MODEL, 10), (1, "model-2", 10)):
        store.replace_task(project, model, task, 1, wanted)
    store.replace_task(1, MODEL, 10, 1, [])
    assert rows(store) == [(11, "r1", "a")]
    assert rows(store, 2) == [(10, "r1", "a")]
    assert rows(store, 1, "model-2") == [(10, "r1", "a")]


def test_one_embedding_in_two_regions(store: PatternStore) -> None:
    (key,) = keep(store, 1)
    wanted = [NewExemplar("r1", "a", key), NewExemplar("r2", "b", key), NewExemplar("r2", "c", key)]
    store.replace_task(1, MODEL, 10, 1, wanted)
    assert rows(store) == [(10, "r1", "a"), (10, "r2", "c")]


def test_many_exemplars(store: PatternStore) -> None:
    wanted = objects(store, *((f"r{number // 4}", "a", number) for number in range(1300)))
    assert store.replace_task(1, MODEL, 10, 1, wanted)
    assert len(rows(store)) == 1300
    assert store.replace_task(1, MODEL, 10, 1, wanted[:2])
    assert len(rows(store)) == 2


def test_exemplars_with_their_vectors(store: PatternStore) -> None:
    store.replace_task(1, MODEL, 10, 1, objects(store, ("r1", "a", 1), ("r1", "a", 2), ("r2", UNLABELLED, 3)))
    store.replace_task(1, MODEL, 11, 2, objects(store, ("r1", "b", 4)))
    found, sources = store.exemplars(1, MODEL)
    assert len(found) == 4
    assert found.ids.tolist() == sorted(sources)
    assert [sources[number].label for number in found.ids.tolist()] == list(found.labels)
    for number, vector in zip(found.ids.tolist(), found.embeddings, strict=True):
        source = sources[number]
        expected = {("r1", "a"): (1, 2), ("r2", ""): (3,), ("r1", "b"): (4,)}[source.region_id, source.label]
        assert min(np.abs(make_embedding(n).vector - vector).max() for n in expected) < 1e-3
        assert source.frame == 3
    groups = {(sources[n].task_id, sources[n].region_id): set() for n in sources}  # type: ignore[var-annotated]
    for number, group in zip(found.ids.tolist(), found.groups.tolist(), strict=True):
        groups[sources[number].task_id, sources[number].region_id].add(group)
    assert sorted(map(len, groups.values())) == [1, 1, 1]
    assert len(set.union(*groups.values())) == 3  # regions of different tasks are different objects
    assert set(store.thumbnails(1, MODEL)) == set(sources)
    assert set(store.thumbnails(1, MODEL).values()) == {b"\xff\xd8jpeg"}


def test_the_detector_s_class_is_part_of_what_was_learned(store: PatternStore) -> None:
    plain = objects(store, ("r1", "a", 1), ("r2", "b", 2))
    store.replace_task(1, MODEL, 10, 1, plain)
    digest = store.digest(1, MODEL)
    with_class = [replace(plain[0], detector_class="person"), plain[1]]
    assert store.replace_task(1, MODEL, 10, 1, with_class)
    assert store.digest(1, MODEL) != digest
    assert store.exemplars(1, MODEL)[0].classes == ("person", "")
    assert not store.replace_task(1, MODEL, 10, 1, with_class)
    assert store.replace_task(1, MODEL, 10, 1, plain)
    assert store.digest(1, MODEL) == digest


def test_objects_of_other_tasks(store: PatternStore) -> None:
    for task in (10, 11, 12):
        given_ = objects(store, ("r1", "a", task), ("r1", "a", task + 100), ("r2", "b", task + 200), ("x", "", task))
        store.replace_task(1, MODEL, task, 1, given_)
    store.replace_task(2, MODEL, 13, 1, objects(store, ("r1", "a", 13)))
    found = store.other_objects(1, MODEL, 11, 50)
    assert sorted(map(len, found)) == [1, 1, 2, 2]
    assert all(crop.thumbnail == b"\xff\xd8jpeg" for crops in found for crop in crops)
    assert len(store.other_objects(1, MODEL, 11, 1)) < 4


def test_jumps_of_a_task_are_replaced(store: PatternStore) -> None:
    jumps = [IdentityJump("r1", "a", 231, "first"), IdentityJump("r2", "b", 40, "second")]
    store.replace_jumps(1, 10, jumps)
    store.replace_jumps(1, 9, jumps[:1])
    store.replace_jumps(2, 10, jumps[:1])
    assert store.jumps(1) == [(9, jumps[0]), (10, jumps[1]), (10, jumps[0])]
    store.replace_jumps(1, 10, jumps[:1])
    store.replace_jumps(1, 9, [])
    assert store.jumps(1) == [(10, jumps[0])]
    assert store.jumps(3) == []


def test_no_exemplars(store: PatternStore) -> None:
    found, sources = store.exemplars(1, MODEL)
    assert (len(found), sources) == (0, {})
    assert store.thumbnails(1, MODEL) == {}
    assert store.counts(1, MODEL) == {}


def test_counts(store: PatternStore) -> None:
    store.replace_task(1, MODEL, 10, 1, objects(store, ("r1", "a", 1), ("r1", "a", 2), ("r2", "a", 3), ("x", "", 9)))
    store.replace_task(1, MODEL, 11, 2, objects(store, ("r1", "a", 4), ("r2", "b", 5)))
    store.add_imported(1, MODEL, objects(store, ("f-1", "b", 6), ("f-1", "b", 7), origin="f"))
    assert store.counts(1, MODEL) == {
        "": {"exemplars": 1, "objects": 1, "tasks": 1},
        "a": {"exemplars": 4, "objects": 3, "tasks": 2},
        "b": {"exemplars": 3, "objects": 2, "tasks": 1},
    }


# -- digests


def test_a_digest_is_none_before_anything_was_read(store: PatternStore) -> None:
    assert store.digest(1, MODEL) is None
    assert not store.mark_read(1, MODEL)
    assert store.digest(1, MODEL) == ""
    assert store.digest(2, MODEL) is None
    assert store.digest(1, "model-2") is None


def test_a_digest_names_the_content_whichever_way_it_came(store: PatternStore) -> None:
    first, second = objects(store, ("r1", "a", 1), ("r2", "b", 2)), objects(store, ("r1", "c", 3))
    store.replace_task(1, MODEL, 10, 1, first)
    store.replace_task(1, MODEL, 11, 2, second)
    store.mark_read(1, MODEL)

    store.mark_read(2, MODEL)
    store.replace_task(2, MODEL, 11, 7, objects(store, ("r1", "b", 3), ("r9", "b", 9)))
    store.replace_task(2, MODEL, 12, 8, first)
    store.replace_task(2, MODEL, 10, 9, first[::-1])
    store.replace_task(2, MODEL, 11, 7, second)
    store.replace_task(2, MODEL, 12, 0, [])
    assert store.digest(1, MODEL) == store.digest(2, MODEL)


def test_background_alone_gives_nothing_a_label(store: PatternStore) -> None:
    store.replace_task(1, MODEL, 10, 1, objects(store, ("r1", "", 1), ("r2", "", 2)))
    assert store.digest(1, MODEL) == ""


def test_every_difference_is_another_digest(store: PatternStore) -> None:
    variants: list[list[tuple[int, Sequence[tuple[str, str, int]]]]] = [
        [],
        [(10, [("r1", "a", 1)])],
        [(10, [("r1", "b", 1)])],
        [(10, [("r1", "a", 1), ("r2", "", 2)])],
        [(10, [("r1", "a", 2)])],
        [(10, [("r2", "a", 1)])],
        [(11, [("r1", "a", 1)])],
        [(10, [("r1", "a", 1), ("r1", "a", 2)])],
        [(10, [("r1", "a", 1), ("r2", "a", 2)])],
        [(10, [("r1", "a", 1)]), (11, [("r1", "a", 2)])],
    ]
    digests = []
    for project, variant in enumerate(variants, start=1):
        store.mark_read(project, MODEL)
        for task, given_objects in variant:
            store.replace_task(project, MODEL, task, 1, objects(store, *given_objects))
        digests.append(store.digest(project, MODEL))
    assert len(set(digests)) == len(variants)
    assert digests[0] == ""
    assert all(digest is not None and len(digest) == 40 for digest in digests[1:])


steps = st.lists(
    st.tuples(
        st.sampled_from([10, 11, 12]),
        st.lists(
            st.tuples(st.sampled_from(["r1", "r2"]), st.sampled_from(["a", "b", ""]), st.integers(1, 4)),
            max_size=4,
            unique_by=lambda item: (item[0], item[2]),
        ),
    ),
    min_size=1,
    max_size=8,
)


@pytest.mark.slow
@hypothesis_settings(deadline=None, max_examples=40)
@given(steps)
def test_the_last_annotation_of_each_task_is_what_counts(history: Any) -> None:
    store = PatternStore(Storage("sqlite://"))
    for task, wanted in history:
        before = store.digest(1, MODEL) or ""
        changed = store.replace_task(1, MODEL, task, 1, objects(store, *wanted))
        assert changed == (store.digest(1, MODEL) != before)
    final = dict(history)
    assert rows(store) == sorted((task, region, label) for task in final for region, label, _ in final[task])
    for task, wanted in final.items():
        store.replace_task(2, MODEL, task, 5, objects(store, *wanted))
    assert store.digest(2, MODEL) == store.digest(1, MODEL)


# -- what was read


def test_exemplars_of_tasks_that_are_gone_go(store: PatternStore) -> None:
    for task in (10, 11, 12):
        store.replace_task(1, MODEL, task, 1, objects(store, ("r1", "a", task)))
    store.replace_task(2, MODEL, 13, 1, objects(store, ("r1", "a", 1)))
    store.add_imported(1, MODEL, objects(store, ("f-1", "b", 6), origin="f"))
    assert store.tasks_with_exemplars(1) == {10, 11, 12}
    assert store.tasks_with_exemplars(2) == {13}
    digest = store.digest(1, MODEL)
    assert not store.mark_read(1, MODEL)  # nothing is unlearned by it
    assert store.digest(1, MODEL) == digest
    assert store.replace_task(1, MODEL, 10, 0, [])
    assert store.tasks_with_exemplars(1) == {11, 12}


def test_models_that_are_passed_by_read_everything_anew(store: PatternStore) -> None:
    for model in (MODEL, "model-2"):
        store.mark_read(1, model)
    store.mark_read(2, MODEL)
    store.forget_project(1, keep=[MODEL])
    assert store.digest(1, MODEL) == store.digest(2, MODEL) == ""
    assert store.digest(1, "model-2") is None


def test_a_forgotten_project_is_read_anew(store: PatternStore) -> None:
    store.replace_task(1, MODEL, 10, 1, objects(store, ("r1", "a", 1)))
    store.mark_read(2, MODEL)
    digest = store.digest(1, MODEL)
    store.forget_project(1)
    assert store.digest(1, MODEL) is None
    assert store.digest(2, MODEL) == ""
    assert rows(store) == [(10, "r1", "a")]
    store.mark_read(1, MODEL)
    assert store.digest(1, MODEL) == digest


# -- exemplars from elsewhere


def test_imported_exemplars_are_added_once(store: PatternStore) -> None:
    items = objects(store, ("f-1", "a", 1), ("f-1", "a", 2), ("f-2", "b", 3), origin="f")
    assert store.add_imported(1, MODEL, items)
    digest = store.digest(1, MODEL)
    assert not store.add_imported(1, MODEL, items)
    assert store.add_imported(1, MODEL, objects(store, ("g-1", "a", 1), origin="g"))
    assert rows(store) == [(0, "f-1", "a"), (0, "f-1", "a"), (0, "f-2", "b"), (0, "g-1", "a")]
    _, sources = store.exemplars(1, MODEL)
    assert {(source.region_id, source.origin) for source in sources.values()} == {
        ("f-1", "f"),
        ("f-2", "f"),
        ("g-1", "g"),
    }
    assert ExemplarOrigin("b", 0, "f-2", 3, "f") in sources.values()
    assert store.remove_imported(1, MODEL)
    assert store.digest(1, MODEL) == ""
    store.add_imported(1, MODEL, items)
    assert store.digest(1, MODEL) == digest


def test_imported_and_own_exemplars_do_not_touch(store: PatternStore) -> None:
    assert not store.remove_imported(1, MODEL)
    store.replace_task(1, MODEL, 10, 1, objects(store, ("r1", "a", 1)))
    own = store.digest(1, MODEL)
    store.add_imported(1, MODEL, objects(store, ("f-1", "b", 1), origin="f"))
    assert store.digest(1, MODEL) != own
    store.replace_task(1, MODEL, 10, 1, [])
    assert rows(store) == [(0, "f-1", "b")]
    store.replace_task(1, MODEL, 10, 1, objects(store, ("r1", "a", 1)))
    assert store.remove_imported(1, MODEL)
    assert not store.remove_imported(1, MODEL)
    assert store.digest(1, MODEL) == own


def test_nothing_imported(store: PatternStore) -> None:
    store.mark_read(1, MODEL)
    assert not store.add_imported(1, MODEL, [])
    assert store.digest(1, MODEL) == ""


# -- several writers


def test_threads_write_at_once_and_nothing_is_lost(store: PatternStore) -> None:
    keys = keep(store, *range(20))

    def work(task: int) -> None:
        for repeat in range(6):
            wanted = [NewExemplar(f"r{n}", f"l{repeat}", keys[(task + n) % 20]) for n in range(repeat + 1)]
            store.replace_task(1, MODEL, task, repeat, wanted)
            store.digest(1, MODEL)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(1, 13)))
    assert rows(store) == sorted((task, f"r{n}", "l5") for task in range(1, 13) for n in range(6))
    for task in range(1, 13):
        wanted = [NewExemplar(f"r{n}", "l5", keys[(task + n) % 20]) for n in range(6)]
        store.replace_task(2, MODEL, task, 1, wanted)
    assert store.digest(1, MODEL) == store.digest(2, MODEL)


def test_one_task_by_several_threads(store: PatternStore) -> None:
    """The outcome is that of one of them, whole."""
    wanted = [objects(store, ("r1", label, n), ("r2", label, n + 1)) for n, label in ((1, "a"), (1, "b"), (5, "c"))]

    def work(number: int) -> None:
        for _ in range(8):
            store.replace_task(1, MODEL, 10, number, wanted[number])

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(work, range(3)))
    (label,) = {label for *_, label in rows(store)}
    assert rows(store) == [(10, "r1", label), (10, "r2", label)]
    digest = store.digest(1, MODEL)
    assert not store.replace_task(1, MODEL, 10, 9, wanted["abc".index(label)])
    assert store.digest(1, MODEL) == digest


WRITER = """
import sys, time
from ml_backend.labeling.few_shot.pattern_store import NewExemplar, PatternStore
from ml_backend.db.storage import Storage
from tests.labeling.few_shot.test_pattern_store import MODEL, keep
store, number = PatternStore(Storage(sys.argv[1])), int(sys.argv[2])
keys = keep(store, *range(10))
time.sleep(max(0, float(sys.argv[3]) - time.time()))
for repeat in range(15):
    for task in (number, 100 + number):
        store.replace_task(1, MODEL, task, 1, [NewExemplar(f"r{repeat}", "a", key) for key in keys])
    store.add_imported(1, MODEL, [NewExemplar(f"p{number}-{repeat}", "b", keys[0], "f")])
    store.mark_read(3, MODEL)
print("fine")
"""


@pytest.mark.slow
def test_processes_write_at_once_and_nothing_is_lost(store: PatternStore, path: Path) -> None:
    start = str(time.time() + 4)
    command = [sys.executable, "-c", WRITER, f"sqlite:///{path}"]
    started = [
        subprocess.Popen([*command, str(n), start], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT)
        for n in (1, 2, 3)
    ]
    outcomes = [process.communicate(timeout=300) for process in started]
    assert [out.strip() for out, _ in outcomes] == [b"fine"] * 3, [err[-500:] for _, err in outcomes]
    tasks = [n + more for n in (1, 2, 3) for more in (0, 100)]
    imported = [(0, f"p{n}-{repeat}", "b") for n in (1, 2, 3) for repeat in range(15)]
    assert rows(store) == sorted([(task, "r14", "a") for task in tasks for _ in range(10)] + imported)
    digest = store.digest(1, MODEL)
    assert not store.mark_read(1, MODEL)  # the digest is that of what is there
    assert store.digest(1, MODEL) == digest


def test_a_database_that_refuses_leaves_the_bank_as_it_was(store: PatternStore) -> None:
    store.replace_task(1, MODEL, 10, 1, objects(store, ("r1", "a", 1)))
    before, digest = rows(store), store.digest(1, MODEL)
    unknown: Any = object()
    with pytest.raises(StorageError):
        store.replace_task(1, MODEL, 10, 1, [NewExemplar("r1", unknown, "k")])
    assert rows(store) == before
    assert store.digest(1, MODEL) == digest


# -- track sets


def make_tracks(number: int = 1) -> TrackSet:
    value = {"framesCount": 50, "duration": 2.0, "sequence": [{"frame": 1, "x": 1.5}]}
    record = TrackRecord(number, 0, 50, 0.5, {"person": 5.0}, value, (CropBox(2, (0.0, 0.1, 5.0, 9.9), 0.5),))
    return TrackSet((record,), ("person",), False, 640, 360, 50)


def test_tracks_come_back(store: PatternStore) -> None:
    assert store.get_tracks("k") is None
    store.save_tracks("k", 1, 10, 0, "s3://bucket/ä.mp4", make_tracks())
    assert store.get_tracks("k") == make_tracks()
    (stored,) = store.tracks_of_project(1)
    assert stored == StoredTracks(10, 0, video_key("s3://bucket/ä.mp4"), "s3://bucket/ä.mp4", make_tracks())
    assert list(store.tracks_of_project(2)) == []


def test_tracks_of_a_key_are_replaced(store: PatternStore) -> None:
    for number in (1, 2):
        store.save_tracks("k", 1, 10, 0, "a", make_tracks(number))
    assert store.get_tracks("k") == make_tracks(2)
    assert len(list(store.tracks_of_project(1))) == 1


def test_the_newest_tracks_of_each_video(store: PatternStore) -> None:
    store.save_tracks("old", 1, 10, 1, "a", make_tracks(1))
    store.save_tracks("b", 1, 9, 0, "b", make_tracks(2))
    store.save_tracks("new", 1, 10, 1, "a", make_tracks(3))
    store.save_tracks("c", 1, 10, 0, "c", make_tracks(4))
    store.save_tracks("d", 2, 1, 0, "a", make_tracks(5))
    found = list(store.tracks_of_project(1))
    assert [(item.task_id, item.video_index, item.uri) for item in found] == [(9, 0, "b"), (10, 0, "c"), (10, 1, "a")]
    assert [item.tracks.tracks[0].track_id for item in found] == [2, 4, 3]
    (only,) = store.tracks_of_project(1, video_key("a"))
    assert only.tracks == make_tracks(3)
    assert list(store.tracks_of_project(1, video_key("nowhere"))) == []


def test_tracks_of_another_release_are_passed_over(store: PatternStore, path: Path) -> None:
    import gzip

    import sqlalchemy as sa

    store.save_tracks("k", 1, 10, 0, "a", make_tracks())
    store.save_tracks("l", 1, 11, 0, "b", make_tracks())
    with Storage(f"sqlite:///{path}").engine.begin() as connection:
        old = gzip.compress(b'{"format": 0}')
        connection.execute(sa.text("UPDATE track_sets SET body = :body WHERE key = 'k'"), {"body": old})
    assert store.get_tracks("k") is None
    assert [stored.task_id for stored in store.tracks_of_project(1)] == [11]
    store.save_tracks("k", 1, 10, 0, "a", make_tracks())
    assert store.get_tracks("k") == make_tracks()


def test_threads_save_the_same_tracks_at_once(store: PatternStore) -> None:
    def work(number: int) -> None:
        for repeat in range(5):
            store.save_tracks("k", 1, 10, 0, "a", make_tracks())
            store.save_tracks(f"{number}-{repeat}", 1, number, 0, f"{number}", make_tracks())

    with ThreadPoolExecutor(5) as pool:
        list(pool.map(work, range(5)))
    assert store.get_tracks("k") == make_tracks()
    assert len(list(store.tracks_of_project(1))) == 6


def test_a_video_is_known_by_its_address() -> None:
    assert video_key("a") == video_key("a") != video_key("b")
    assert len(video_key("x" * 5000)) == 40
