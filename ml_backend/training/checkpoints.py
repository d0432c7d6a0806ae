"""Checkpoints from which a training resumes: kept by epoch, and opened only if they are what the registry recorded.

A checkpoint is a pickle, hence code for whoever opens it. Each epoch's files are kept in one of two slots in turn:
whenever a process is killed, the slot that is recorded is complete.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from ml_backend.core.files import file_sha256

#: Checkpoints of a run's ``weights`` folder; the training replaces them atomically.
_FILES = ("best.pt", "last.pt")


def keep_checkpoints(weights: Path, slot: int) -> dict[str, str]:
    """Keep the present checkpoints of a run in a slot, replacing older ones, and return their SHA-256 by name.

    Args:
        weights: folder of the run's checkpoints.
        slot: 0 or 1, not the one that is recorded.

    Raises:
        OSError: the disk cannot be written.
    """
    folder = _slot(weights, slot)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in _FILES:
        if (weights / name).is_file():
            _link(weights / name, folder / name)
    return {path.name: file_sha256(path) for path in folder.iterdir()}


def kept_checkpoint(weights: Path, slot: int) -> Path:
    """Return where a slot has the last checkpoint."""
    return _slot(weights, slot) / "last.pt"


def restore_checkpoints(weights: Path, slot: int, digests: Mapping[str, str]) -> bool:
    """Put the checkpoints of a slot in place if they are the recorded ones; remove all others in any case.

    Returns:
        Whether there is a checkpoint to resume from.
    """
    folder = _slot(weights, slot)
    for name in _FILES:
        (weights / name).unlink(missing_ok=True)
    sound = "last.pt" in digests and all(
        (folder / name).is_file() and file_sha256(folder / name) == sha256 for name, sha256 in digests.items()
    )
    if sound:
        for name in digests:
            _link(folder / name, weights / name)
    return sound


def _slot(weights: Path, slot: int) -> Path:
    return weights / f"kept-{slot}"


def _link(source: Path, target: Path) -> None:
    """Link a file, or copy it where the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
