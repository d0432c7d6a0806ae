"""Checkpoints from which a training resumes."""

from __future__ import annotations

from pathlib import Path

import pytest

from ml_backend.training.checkpoints import keep_checkpoints, kept_checkpoint, restore_checkpoints


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    epoch(tmp_path, 1)
    return tmp_path


def epoch(weights: Path, number: int, best: bool = True) -> None:
    """What a training does: it replaces the files."""
    for name in ("last.pt", *(["best.pt"] if best else [])):
        part = weights / "part"
        part.write_text(f"{name} of epoch {number}")
        part.replace(weights / name)


def test_the_recorded_epoch_comes_back(weights: Path) -> None:
    first = keep_checkpoints(weights, 0)
    epoch(weights, 2, best=False)
    second = keep_checkpoints(weights, 1)
    assert kept_checkpoint(weights, 1).read_text() == "last.pt of epoch 2"
    epoch(weights, 3)  # killed before this one was recorded
    assert restore_checkpoints(weights, 1, second)
    assert (weights / "last.pt").read_text() == "last.pt of epoch 2"
    assert (weights / "best.pt").read_text() == "best.pt of epoch 1"
    assert restore_checkpoints(weights, 0, first), "the one before is there until the next one is kept"
    assert (weights / "last.pt").read_text() == "last.pt of epoch 1"


@pytest.mark.parametrize("name", ["last.pt", "best.pt"])
def test_what_was_changed_is_not_opened(weights: Path, name: str) -> None:
    recorded = keep_checkpoints(weights, 0)
    path = weights / "kept-0" / name
    path.unlink()
    path.write_text("other code")
    assert not restore_checkpoints(weights, 0, recorded)
    assert not list(weights.glob("*.pt")), "neither is what lay there unrecorded"


def test_without_a_record_there_is_nothing_to_resume(weights: Path) -> None:
    keep_checkpoints(weights, 0)
    assert not restore_checkpoints(weights, 0, {})
    assert not restore_checkpoints(weights / "other machine", 0, {"last.pt": "ab" * 32})
    assert not list(weights.glob("*.pt"))
