"""Pattern banks as files: written, read in another project, and refused where they are not what they should be."""

from __future__ import annotations

import json
import stat
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from safetensors.numpy import load, save

from ml_backend.core.errors import ConfigError, StorageError
from ml_backend.core.types import UNLABELLED
from ml_backend.db.storage import Storage
from ml_backend.embeddings.crop_embeddings import CropEmbedding
from ml_backend.labeling.few_shot.bank_file import (
    FORMAT,
    MAX_BYTES,
    MAX_LABEL,
    VERSION,
    export_bank,
    import_bank,
    read_bank,
)
from ml_backend.labeling.few_shot.pattern_store import NewExemplar, PatternStore

MODEL, DIM = "dinov2-base-1f2e", 16


def make_store(path: Path) -> PatternStore:
    return PatternStore(Storage(f"sqlite:///{path}"))


@pytest.fixture
def store(tmp_path: Path) -> PatternStore:
    return make_store(tmp_path / "db")


def fill(store: PatternStore, *, project: int = 1, task: int = 10) -> None:
    """Three objects, of 2, 1 and 1 views, one of them background."""
    rng = np.random.default_rng(0)
    given = [("r1", "fallen_person"), ("r1", "fallen_person"), ("r2", "Fußgänger"), ("part-0-track-3", UNLABELLED)]
    vectors = rng.normal(size=(4, DIM)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    looks = [CropEmbedding(n, (0.0, 0.0, n + 1.0, 9.0), vectors[n], b"\xff\xd8" + bytes([n]) * n) for n in range(4)]
    store.crop_embeddings("video").add(MODEL, looks)
    wanted = [NewExemplar(*given[n], looks[n].key("video", MODEL)) for n in range(4)]
    store.replace_task(project, MODEL, task, 1, wanted)


@pytest.fixture
def exported(store: PatternStore, tmp_path: Path) -> Path:
    fill(store)
    path = tmp_path / "banks" / "people.safetensors"
    assert export_bank(store, 1, MODEL, path) == 4
    return path


def content(store: PatternStore, project: int) -> list[tuple[str, int, bytes, list[float]]]:
    """(label, number of its object, thumbnail, vector) of every exemplar, in an order of its own."""
    found, _ = store.exemplars(project, MODEL)
    pictures = store.thumbnails(project, MODEL)
    names = {group: n for n, group in enumerate(dict.fromkeys(found.groups.tolist()))}
    rows = zip(found.ids.tolist(), found.labels, found.groups.tolist(), found.embeddings, strict=True)
    return [(label, names[group], pictures[number], vector.tolist()) for number, label, group, vector in rows]


# -- there and back


def test_a_file_says_what_the_project_has(store: PatternStore, exported: Path) -> None:
    bank = read_bank(exported, MODEL)
    found, _ = store.exemplars(1, MODEL)
    assert (bank.model_id, bank.labels) == (MODEL, found.labels)
    assert np.abs(bank.vectors - found.embeddings).max() < 1e-3
    assert np.linalg.norm(bank.vectors, axis=1) == pytest.approx(np.ones(4), abs=1e-6)
    assert bank.groups.tolist() == found.groups.tolist()
    assert list(bank.thumbnails) == list(store.thumbnails(1, MODEL).values())
    again, sources = bank.exemplars()
    assert again.labels == bank.labels
    assert again.ids.tolist() == sorted(sources) == [1, 2, 3, 4]
    assert {source.origin for source in sources.values()} == {bank.origin}
    assert {source.task_id for source in sources.values()} == {0}


def test_a_project_gets_what_another_has_learned(exported: Path, store: PatternStore, tmp_path: Path) -> None:
    other = make_store(tmp_path / "another-machine")
    assert import_bank(other, 7, read_bank(exported, MODEL)) == 4
    for before, after in zip(content(store, 1), content(other, 7), strict=True):
        assert before[:3] == after[:3]
        assert np.abs(np.array(before[3]) - after[3]).max() < 2e-3
    assert other.counts(7, MODEL)["fallen_person"] == {"exemplars": 2, "objects": 1, "tasks": 0}


def test_the_detector_s_classes_travel_along(store: PatternStore, tmp_path: Path) -> None:
    fill(store)
    plain = [NewExemplar("r9", "bike", crop.key("video", MODEL)) for crop in store.crop_embeddings("video").get(MODEL)]
    store.replace_task(1, MODEL, 11, 1, [replace(item, detector_class="bicycle") for item in plain])
    export_bank(store, 1, MODEL, tmp_path / "bank")
    bank = read_bank(tmp_path / "bank", MODEL)
    assert set(zip(bank.labels, bank.classes, strict=True)) >= {("bike", "bicycle"), ("fallen_person", "")}
    assert bank.exemplars()[0].classes == bank.classes
    import_bank(store, 2, bank)
    assert store.exemplars(2, MODEL)[0].classes == bank.classes


def test_a_file_of_an_earlier_release(exported: Path, store: PatternStore) -> None:
    """It names no classes: its labels reach all of them."""
    new = read_bank(exported, MODEL)
    data = exported.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])["__metadata__"]
    del header["classes"]
    exported.write_bytes(save(load(data), header))
    old = read_bank(exported, MODEL)
    assert (old.labels, old.classes, old.origin) == (new.labels, ("",) * 4, new.origin)
    assert import_bank(store, 2, old) == 4


def test_imported_twice_is_imported_once(exported: Path, store: PatternStore) -> None:
    bank = read_bank(exported, MODEL)
    for _ in range(2):
        assert import_bank(store, 2, bank) == 4
    assert len(content(store, 2)) == 4
    digest = store.digest(2, MODEL)
    import_bank(store, 2, read_bank(exported, MODEL))
    assert store.digest(2, MODEL) == digest
    assert store.remove_imported(2, MODEL)
    assert content(store, 2) == []


def test_two_files_are_told_apart(exported: Path, store: PatternStore, tmp_path: Path) -> None:
    fill(store, project=3, task=99)
    fill(store, project=3, task=98)
    export_bank(store, 3, MODEL, tmp_path / "more")
    first, second = read_bank(exported, MODEL), read_bank(tmp_path / "more", MODEL)
    assert first.origin != second.origin
    import_bank(store, 4, first)
    import_bank(store, 4, second)
    assert len(content(store, 4)) == 4 + 8
    assert len({group for _, group, *_ in content(store, 4)}) == 3 + 6


def test_an_import_beside_own_annotations(exported: Path, store: PatternStore) -> None:
    """Also into the very project that it comes from."""
    import_bank(store, 1, read_bank(exported, MODEL))
    assert len(content(store, 1)) == 8
    store.replace_task(1, MODEL, 10, 0, [])  # what was annotated here goes, what was imported stays
    assert len(content(store, 1)) == 4


def test_what_was_imported_can_be_exported(exported: Path, store: PatternStore, tmp_path: Path) -> None:
    import_bank(store, 5, read_bank(exported, MODEL))
    assert export_bank(store, 5, MODEL, tmp_path / "onwards") == 4
    first, second = read_bank(exported, MODEL), read_bank(tmp_path / "onwards", MODEL)
    assert (first.labels, first.groups.tolist(), first.thumbnails) == (
        second.labels,
        second.groups.tolist(),
        second.thumbnails,
    )


# -- writing


def test_a_project_without_exemplars(store: PatternStore, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"Project 1 has no exemplars by {MODEL}") as failure:
        export_bank(store, 1, MODEL, tmp_path / "out")
    assert failure.value.hint
    fill(store)
    with pytest.raises(ConfigError, match="no exemplars by another"):
        export_bank(store, 1, "another", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_files_are_replaced_whole_and_can_be_read_by_others(exported: Path, store: PatternStore) -> None:
    exported.write_bytes(b"something else")
    export_bank(store, 1, MODEL, exported)
    assert read_bank(exported, MODEL).labels
    assert stat.S_IMODE(exported.stat().st_mode) == 0o644
    assert [file.name for file in exported.parent.iterdir()] == [exported.name]


def test_places_that_cannot_be_written(exported: Path, store: PatternStore, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for out in (tmp_path / "folder", exported / "below-a-file"):
        with pytest.raises(StorageError, match="annot") as failure:
            export_bank(store, 1, MODEL, out)
        assert failure.value.hint
    assert list((tmp_path / "folder").iterdir()) == []
    assert not [file for file in tmp_path.iterdir() if file.name.startswith(".folder")]


# -- refused


def refused(path: Path, model: str = MODEL) -> str:
    with pytest.raises(ConfigError) as failure:
        read_bank(path, model)
    assert failure.value.hint
    assert failure.value.http_status == 422
    return failure.value.message


def test_another_embedder_is_refused_naming_both(exported: Path) -> None:
    message = refused(exported, "efficientnet_lite0-77aa")
    assert MODEL in message
    assert "efficientnet_lite0-77aa" in message


def test_files_that_are_not_there(tmp_path: Path) -> None:
    assert "cannot be read" in refused(tmp_path / "nowhere")
    assert "cannot be read" in refused(tmp_path)


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "huge"
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)  # sparse: it takes no room
    assert str(MAX_BYTES) in refused(path)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9, 0.999])
def test_truncated_files(exported: Path, share: float) -> None:
    data = exported.read_bytes()
    exported.write_bytes(data[: int(len(data) * share)])
    assert str(exported) in refused(exported)


def test_more_bytes_than_there_should_be(exported: Path) -> None:
    exported.write_bytes(exported.read_bytes() + b"\0" * 100)
    refused(exported)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"PK\x03\x04 a zip",
        b"\x80\x04\x95 a pickle",
        b"\xff" * 100,
        (10**15).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        (4).to_bytes(8, "little") + b"null",
        (20).to_bytes(8, "little") + b'{"__metadata__": []}',
        (22).to_bytes(8, "little") + b'{"__metadata__": null}',
        (100_000).to_bytes(8, "little") + b"[" * 100_000,
        (4).to_bytes(8, "little") + b"\xff\xfe\xfd\xfc",
    ],
)
def test_other_files(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    assert str(path) in refused(path)


def arrays(**changes: Any) -> dict[str, Any]:
    """What a file of two exemplars holds."""
    whole = {
        "embeddings": np.eye(2, DIM, dtype=np.float16),
        "groups": np.array([0, 1], np.int64),
        "thumbnails": np.frombuffer(b"abcde", np.uint8),
        "thumbnail_ends": np.array([2, 5], np.int64),
    } | changes
    return {name: value for name, value in whole.items() if value is not None}


def metadata(**changes: str | None) -> dict[str, str]:
    whole: dict[str, str | None] = {"format": FORMAT, "version": VERSION, "model": MODEL, "labels": '["a", "b"]'}
    return {name: value for name, value in (whole | changes).items() if value is not None}


def write(path: Path, tensors: Mapping[str, Any], meta: dict[str, str]) -> Path:
    path.write_bytes(save(dict(tensors), meta))
    return path


def test_a_file_made_by_hand_is_read(tmp_path: Path) -> None:
    bank = read_bank(write(tmp_path / "file", arrays(), metadata()), MODEL)
    assert (bank.labels, bank.thumbnails, bank.groups.tolist()) == (("a", "b"), (b"ab", b"cde"), [0, 1])


@pytest.mark.parametrize(
    "changes",
    [
        {"format": "other"},
        {"format": None},
        {"version": "2"},
        {"version": None},
        {"labels": None},
        {"labels": "no json"},
        {"labels": '["a"]'},
        {"labels": '["a", "b", "c"]'},
        {"labels": '["a", 2]'},
        {"labels": '{"a": 1, "b": 2}'},
        {"labels": '"ab"'},
        {"labels": "7"},
        {"labels": "null"},
        {"labels": json.dumps(["a", "b" * (MAX_LABEL + 1)])},
        {"model": None},
    ],
    ids=str,
)
def test_metadata_that_is_wrong(tmp_path: Path, changes: dict[str, str | None]) -> None:
    refused(write(tmp_path / "file", arrays(), metadata(**changes)))


@pytest.mark.parametrize(
    "changes",
    [
        {"embeddings": None},
        {"groups": None},
        {"thumbnails": None},
        {"thumbnail_ends": None},
        {"embeddings": np.eye(2, DIM, dtype=np.float32)},
        {"embeddings": np.eye(3, DIM, dtype=np.float16)},
        {"embeddings": np.zeros((2, 0), np.float16)},
        {"embeddings": np.zeros(2, np.float16)},
        {"embeddings": np.full((2, DIM), np.nan, np.float16)},
        {"embeddings": np.full((2, DIM), np.inf, np.float16)},
        {"groups": np.array([0], np.int64)},
        {"groups": np.array([0, 1], np.int32)},
        {"groups": np.array([[0, 1]], np.int64)},
        {"groups": np.array([0.0, 1.0])},
        {"thumbnail_ends": np.array([2, 4], np.int64)},
        {"thumbnail_ends": np.array([2, 6], np.int64)},
        {"thumbnail_ends": np.array([5, 2], np.int64)},
        {"thumbnail_ends": np.array([-1, 5], np.int64)},
        {"thumbnail_ends": np.array([5], np.int64)},
    ],
    ids=lambda changes: ", ".join(
        f"{name} {None if value is None else f'{value.dtype} {value.shape} {value.ravel()[:1]}'}"
        for name, value in changes.items()
    ),
)
@pytest.mark.filterwarnings("ignore:invalid value")
def test_arrays_that_are_wrong(tmp_path: Path, changes: dict[str, Any]) -> None:
    refused(write(tmp_path / "file", arrays(**changes), metadata()))


def test_labels_as_long_as_the_database_keeps_them(tmp_path: Path, store: PatternStore) -> None:
    labels = ["ä" * MAX_LABEL, UNLABELLED]
    path = write(tmp_path / "file", arrays(), metadata(labels=json.dumps(labels)))
    import_bank(store, 1, read_bank(path, MODEL))
    assert sorted(store.counts(1, MODEL)) == sorted(labels)


def test_numbers_of_objects_may_be_any(tmp_path: Path, store: PatternStore) -> None:
    for groups in ([-1, -1], [2**63 - 1, -(2**63)]):
        path = write(tmp_path / "file", arrays(groups=np.array(groups, np.int64)), metadata())
        import_bank(store, 1, read_bank(path, MODEL))
    assert store.counts(1, MODEL)["a"]["objects"] == 2


def test_a_file_without_exemplars(tmp_path: Path, store: PatternStore) -> None:
    nothing = arrays(
        embeddings=np.zeros((0, DIM), np.float16),
        groups=np.zeros(0, np.int64),
        thumbnails=np.zeros(0, np.uint8),
        thumbnail_ends=np.zeros(0, np.int64),
    )
    bank = read_bank(write(tmp_path / "file", nothing, metadata(labels="[]")), MODEL)
    assert import_bank(store, 1, bank) == 0
    assert content(store, 1) == []


@hypothesis_settings(deadline=None)
@given(st.binary(max_size=400))
@example(b"\0" * 8)
@example(b"\x02" + b"\0" * 7 + b"{}")
def test_any_bytes_are_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any-bytes"
    path.write_bytes(data)
    refused(path)


@hypothesis_settings(deadline=None)
@given(st.data())
def test_damaged_files_are_refused_or_still_whole(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """A changed byte either shows, or changes a number or a name but nothing that the rest relies on."""
    path = tmp_path_factory.getbasetemp() / "damaged"
    whole = bytearray(save(arrays(), metadata()))
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0x20, 0x7E))
    path.write_bytes(whole)
    try:
        bank = read_bank(path, MODEL)
    except ConfigError:
        return
    assert len(bank.labels) == len(bank.vectors) == len(bank.groups) == len(bank.thumbnails) == 2
    assert np.isfinite(bank.vectors).all()


def test_a_file_holds_no_code(exported: Path) -> None:
    tensors = load(exported.read_bytes())
    assert {name: str(value.dtype) for name, value in tensors.items()} == {
        "embeddings": "float16",
        "groups": "int64",
        "thumbnails": "uint8",
        "thumbnail_ends": "int64",
    }


def test_hostile_labels_are_refused(tmp_path: Path) -> None:
    for labels in ("[" * 200_000, json.dumps(["\ud800"] * 2), json.dumps(["a\0b"] * 2)):
        assert refused(write(tmp_path / "x", arrays(), metadata(labels=labels)))


def test_kinds_of_numbers_that_numpy_lacks_are_refused(tmp_path: Path) -> None:
    header = {"__metadata__": metadata(), "embeddings": {"dtype": "BF16", "shape": [1, 4], "data_offsets": [0, 8]}}
    text = json.dumps(header).encode()
    (tmp_path / "x").write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    assert refused(tmp_path / "x")


def test_the_same_bank_has_one_origin_however_often_it_is_written(store: PatternStore, tmp_path: Path) -> None:
    fill(store)
    origins = set()
    for number in range(8):  # the order of the header's entries is not always the same
        export_bank(store, 1, MODEL, tmp_path / str(number))
        bank = read_bank(tmp_path / str(number), MODEL)
        origins.add(bank.origin)
        import_bank(store, 2, bank)
    assert len(origins) == 1
    assert len(content(store, 2)) == 4
