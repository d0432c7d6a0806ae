"""What is written down of a training."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_backend.training.registry import Registry, Version

if TYPE_CHECKING:
    from ml_backend.training.dataset import TrainingDataset


def checkpoint_name(version: Version) -> str:
    """Where a run's last epoch is kept for whoever takes the run up."""
    return f"projects/{version.project_id}/{version.name}-{version.id}-last.pt"


def lineage_of(data: TrainingDataset, seen: Mapping[str, str]) -> dict[str, Any]:
    """What the registry keeps of what a version was made from."""
    return {
        "seen": dict(seen),
        "annotations": with_text_keys(data.annotations),
        "fingerprints": with_text_keys(data.fingerprints),
        "pictures": dict(data.pictures),
        "boxes": dict(data.boxes),
        "tracks": data.tracks,
        "taught": list(data.taught),
        "notes": list(data.notes),
        "unread": [str(task) for task in data.unread],
    }


def unread_before(registry: Registry, version: Version) -> list[str]:
    """Tasks whose video was away when the version before this one was trained; each run hands them on."""
    before = registry.last(version.project_id, version.number)
    return list(before.lineage.get("unread") or ()) if before else []


def with_text_keys(values: Mapping[int, Any]) -> dict[str, Any]:
    """JSON's keys are strings."""
    return {str(key): value for key, value in values.items()}


def digest_of(facts: Any) -> str:
    """SHA-256 of JSON."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def epochs_in(run: Path) -> int:
    """How many epochs a run's folder knows of."""
    try:
        return max(0, len((run / "results.csv").read_text(encoding="utf-8").splitlines()) - 1)
    except OSError:
        return 0
