"""Damaged and hostile files: a clear error, or what is sound of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from ml_backend.core.errors import ConfigError
from ml_backend.core.files import write_text
from ml_backend.datasets.formats.yolo import Yolo
from ml_backend.datasets.images import ImageFormat
from ml_backend.datasets.sampling import Sampling
from ml_backend.datasets.selection import region_labels, valid_score
from ml_backend.datasets.task_files import read_tasks


@pytest.mark.parametrize("text", ["[" * 200_000, '[{"id": ' + "9" * 5000 + "}]", '{"id": ' + "9" * 5000 + "}"])
def test_json_without_end_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ConfigError):
        list(read_tasks(tmp_path / "x.json"))


@pytest.mark.parametrize("value", [float("nan"), 10**400, -0.1, 1.1, True, "0.5", None, [0.5]])
def test_scores_that_are_none(value: object) -> None:
    assert valid_score(value) is None


def test_scores() -> None:
    assert [valid_score(value) for value in (0, 0.25, 1)] == [0.0, 0.25, 1.0]


@pytest.mark.parametrize("value", [None, 5, [1], {"labels": 5}, {"labels": "car"}, {"labels": None}, {}])
def test_labels_of_damaged_regions(value: object) -> None:
    assert region_labels({"value": value}) == []


@pytest.mark.parametrize("name", ["a\x7fb", "a\x85b", "a\nb", "yes", "1", "소방관 🚒", 'quo"te: \\', "#x"])
def test_any_label_survives_yaml(tmp_path: Path, name: str) -> None:
    Yolo(tmp_path, [name], ImageFormat(), Sampling()).finish({})
    assert yaml.safe_load((tmp_path / "data.yaml").read_text(encoding="utf-8"))["names"] == {0: name}


def test_lone_surrogates_become_escapes(tmp_path: Path) -> None:
    write_text(tmp_path / "x", "a\ud800b")
    assert (tmp_path / "x").read_text(encoding="utf-8") == "a\\ud800b"
