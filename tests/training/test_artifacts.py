"""Where weights are kept."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest

from ml_backend.errors import ConfigError, StorageError, WeightsError
from ml_backend.settings import Settings
from ml_backend.training.artifacts import Artifacts

Make = Callable[..., Settings]


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "best.pt"
    path.write_bytes(b"weights" * 1000)
    return path


@pytest.fixture(params=["default", "folder", "file://", "memory://"])
def artifacts(request: pytest.FixtureRequest, settings: Make, tmp_path: Path) -> Artifacts:
    url = {
        "default": "",
        "folder": str(tmp_path / "shared folder"),
        "file://": f"file://{tmp_path / 'shared'}",
        "memory://": f"memory://{tmp_path.name}",
    }[request.param]
    return Artifacts(settings(artifacts_url=url))


def test_there_and_back(artifacts: Artifacts, weights: Path) -> None:
    sha256 = artifacts.put(weights, "projects/1/v1.pt")
    path = artifacts.fetch("projects/1/v1.pt", sha256)
    assert path == artifacts.local_path("projects/1/v1.pt", sha256)
    assert path.read_bytes() == weights.read_bytes()
    assert artifacts.exists("projects/1/v1.pt")
    assert artifacts.fetch("projects/1/v1.pt").read_bytes() == weights.read_bytes()
    artifacts.remove("projects/1/v1.pt")
    artifacts.remove("projects/1/v1.pt")
    assert not artifacts.exists("projects/1/v1.pt")


def test_what_is_gone_is_named_with_its_cure(artifacts: Artifacts) -> None:
    with pytest.raises(WeightsError, match=r"projects/1/v9\.pt is not at") as caught:
        artifacts.fetch("projects/1/v9.pt", "ab" * 32)
    assert "versions.py" in caught.value.cure


def test_damaged_weights_are_not_loaded(artifacts: Artifacts, weights: Path) -> None:
    artifacts.put(weights, "v1.pt")
    with pytest.raises(WeightsError, match="damaged"):
        artifacts.fetch("v1.pt", "ab" * 32)


def test_another_machine_downloads_once(settings: Make, weights: Path, tmp_path: Path) -> None:
    url = f"memory://{tmp_path.name}"
    sha256 = Artifacts(settings(artifacts_url=url)).put(weights, "v1.pt")
    there = Artifacts(settings(artifacts_url=url, data_dir=tmp_path / "other machine"))
    path = there.fetch("v1.pt", sha256)
    assert tmp_path / "other machine" in path.parents
    fsspec.filesystem("memory").rm(f"/{tmp_path.name}/v1.pt")
    assert there.fetch("v1.pt", sha256) == path, "it is here"


def test_a_copy_that_rotted_is_fetched_again(settings: Make, weights: Path, tmp_path: Path) -> None:
    there = Artifacts(settings(artifacts_url=f"memory://{tmp_path.name}"))
    sha256 = there.put(weights, "v1.pt")
    path = there.fetch("v1.pt", sha256)
    path.write_bytes(b"rotten")
    with pytest.raises(WeightsError, match="damaged"):
        there.fetch("v1.pt", sha256)
    assert there.fetch("v1.pt", sha256).read_bytes() == weights.read_bytes()


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/dev/full").exists(), reason="no full device here")
def test_a_full_disk_leaves_what_was_there(settings: Make, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    artifacts = Artifacts(settings())
    artifacts.put(weights, "v1.pt")
    before = artifacts.fetch("v1.pt").read_bytes()
    large = weights.with_name("large.pt")
    large.write_bytes(b"x" * 200_000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # as a quota does it
    try:
        with pytest.raises(StorageError, match=r"v1\.pt could not be stored"):
            artifacts.put(large, "v1.pt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert artifacts.fetch("v1.pt").read_bytes() == before
    folder = artifacts.local_path("v1.pt", "").parent
    assert [path.name for path in folder.iterdir()] == ["v1.pt"], "no half file stays"


def test_a_place_that_cannot_be(settings: Make, weights: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere://"):
        Artifacts(settings(artifacts_url="nowhere://x")).put(weights, "v1.pt")
