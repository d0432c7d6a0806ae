"""Where weights are kept."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest

from ml_backend.core.artifacts import Artifacts
from ml_backend.core.errors import ConfigError, StorageError, WeightsError
from ml_backend.core.settings import Settings

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
    artifacts.remove("projects/1/v1.pt")
    artifacts.remove("projects/1/v1.pt")
    assert not artifacts.exists("projects/1/v1.pt")


def test_what_is_gone_is_named_with_its_cure(artifacts: Artifacts) -> None:
    with pytest.raises(WeightsError, match=r"projects/1/v9\.pt is not at") as caught:
        artifacts.fetch("projects/1/v9.pt", "ab" * 32)
    assert "versions.py" in caught.value.hint


def test_damaged_weights_are_not_loaded(artifacts: Artifacts, weights: Path) -> None:
    artifacts.put(weights, "v1.pt")
    with pytest.raises(WeightsError, match="damaged"):
        artifacts.fetch("v1.pt", "ab" * 32)


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_what_others_write_into_a_shared_folder_is_not_used(
    settings: Make, weights: Path, tmp_path: Path, scheme: str
) -> None:
    """A checkpoint is code: what was checked is what is opened, and lies where only this machine writes."""
    shared = tmp_path / "shared"
    here = Artifacts(settings(artifacts_url=f"{scheme}{shared}"))
    sha256 = here.put(weights, "v1.pt")
    path = here.fetch("v1.pt", sha256)
    (shared / "v1.pt").write_bytes(b"other code")
    assert here.fetch("v1.pt", sha256) == path
    assert path.read_bytes() == weights.read_bytes()
    there = Artifacts(settings(artifacts_url=f"{scheme}{shared}", data_dir=tmp_path / "other machine"))
    with pytest.raises(WeightsError, match="not what was registered"):
        there.fetch("v1.pt", sha256)
    assert not list((tmp_path / "other machine").rglob("*.pt*"))


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
    sha256 = artifacts.put(weights, "v1.pt")
    before = artifacts.fetch("v1.pt", sha256).read_bytes()
    large = weights.with_name("large.pt")
    large.write_bytes(b"x" * 200_000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # as a quota does it
    try:
        with pytest.raises(StorageError, match=r"v1\.pt could not be stored"):
            artifacts.put(large, "v1.pt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert artifacts.fetch("v1.pt", sha256).read_bytes() == before
    folder = artifacts.local_path("v1.pt", "").parent
    assert [path.name for path in folder.iterdir()] == ["v1.pt"], "no half file stays"


def test_a_place_that_cannot_be(settings: Make, weights: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere://"):
        Artifacts(settings(artifacts_url="nowhere://x")).put(weights, "v1.pt")


DAY = 24 * 3600.0


def aged(path: Path, days: float) -> Path:
    """A file that was changed last so long ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    then = time.time() - days * DAY
    os.utime(path, (then, then))
    return path


def test_what_killed_processes_have_left_goes_after_a_day(settings: Make, weights: Path) -> None:
    artifacts = Artifacts(settings())
    artifacts.put(weights, "projects/1/v1.pt")
    root, cache = artifacts.local_path("", ""), settings().data_dir / "artifact-cache"
    left = [aged(cache / "ab.part", 1.1), aged(root / "projects/1/v2.pt.0123abcd.part", 1.1)]
    written = [aged(cache / "cd.part", 0.9), aged(root / "projects/1/v3.pt.0123abcd.part", 0.9)]
    old = aged(root / "projects/1/v0.pt", 400)
    assert artifacts.tidy() == 2
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in (*written, old, root / "projects/1/v1.pt"))


def test_copies_that_nobody_has_used_for_a_month_go(settings: Make, weights: Path, tmp_path: Path) -> None:
    artifacts = Artifacts(settings(artifacts_url=f"memory://{tmp_path.name}"))
    sha256 = artifacts.put(weights, "v1.pt")
    used = artifacts.fetch("v1.pt", sha256)
    then = time.time() - 40 * DAY
    os.utime(used, (then, then))
    unused = aged(used.with_name("ef.pt"), 31)
    recent = aged(used.with_name("gh.pt"), 29)
    assert artifacts.fetch("v1.pt", sha256) == used
    assert artifacts.tidy() == 1
    assert (used.exists(), unused.exists(), recent.exists()) == (True, False, True)
    os.utime(used, (then, then))
    assert artifacts.tidy() == 1
    assert artifacts.fetch("v1.pt", sha256).read_bytes() == weights.read_bytes(), "it is fetched again"


def test_the_settings_detector_may_lie_there(settings: Make, tmp_path: Path) -> None:
    mine = aged(settings().data_dir / "artifact-cache" / "mine.pt", 400)
    url = f"memory://{tmp_path.name}"
    assert Artifacts(settings(yolo_weights=str(mine), artifacts_url=url)).tidy() == 0
    assert Artifacts(settings(artifacts_url=url)).tidy() == 1


def test_there_is_nothing_to_tidy_up_and_nothing_is_made(settings: Make) -> None:
    artifacts = Artifacts(settings())
    assert artifacts.tidy() == 0
    assert not (settings().data_dir / "artifact-cache").exists()


def test_the_copy_here_goes_with_what_is_removed(settings: Make, weights: Path, tmp_path: Path) -> None:
    artifacts = Artifacts(settings(artifacts_url=f"memory://{tmp_path.name}"))
    sha256 = artifacts.put(weights, "v1.pt")
    copy = artifacts.fetch("v1.pt", sha256)
    assert artifacts.remove("v1.pt", sha256)
    assert not copy.exists()


def test_weights_that_were_removed_are_named(artifacts: Artifacts) -> None:
    with pytest.raises(WeightsError, match="were removed") as caught:
        artifacts.fetch("", "ab" * 32)
    assert "KEEP_VERSIONS" in caught.value.hint


def test_a_check_downloads_nothing(settings: Make, weights: Path, tmp_path: Path) -> None:
    store = Artifacts(settings(artifacts_url=f"memory://{tmp_path.name}"))
    sha256 = store.put(weights, "v1.pt")
    store.check("v1.pt", sha256)
    assert not store.local_path("v1.pt", sha256).exists()
    with pytest.raises(WeightsError, match=r"v2\.pt is not at"):
        store.check("v2.pt", sha256)
    with pytest.raises(WeightsError, match="were removed"):
        store.check("", "")
    store.fetch("v1.pt", sha256).write_bytes(b"rotten")
    with pytest.raises(WeightsError, match="damaged"):
        store.check("v1.pt", sha256)


def test_a_check_of_a_folder_reads_the_file(settings: Make, weights: Path, tmp_path: Path) -> None:
    store = Artifacts(settings(artifacts_url=str(tmp_path / "shared")))
    sha256 = store.put(weights, "v1.pt")
    store.check("v1.pt", sha256)
    with pytest.raises(WeightsError, match="damaged"):
        store.check("v1.pt", "ab" * 32)
