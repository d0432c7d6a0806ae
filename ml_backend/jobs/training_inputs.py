"""What a training learns from, and whether any of it has changed since the last one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING

from ml_backend.training.registry import MEASURED, Version

if TYPE_CHECKING:
    from ml_backend.core.settings import Settings
    from ml_backend.labeling.few_shot.pattern_store import PatternStore
    from ml_backend.training.review_store import AnnotatedTask

#: Tasks whose tracks are read to tell which labels came from text: a note is not worth reading those of thousands.
MAX_SEARCHED = 100


def changed_since(tasks: Mapping[int, AnnotatedTask], last: Version | None) -> list[AnnotatedTask]:
    """Return the tasks that are new or changed since a training."""
    seen = (last.lineage.get("seen") or {}) if last else {}
    return [task for number, task in tasks.items() if seen.get(str(number)) != task.fingerprint]


def is_unchanged_since(tasks: Mapping[int, AnnotatedTask], settings_digest: str, last: Version) -> bool:
    """Return whether the database shows that a training would repeat the last one.

    ``False`` if it cannot tell, and the job has to read the annotations: the last training had no result, could not
    read a video, or used an annotation that no event has told of.

    Args:
        tasks: the present annotations.
        settings_digest: of :func:`training_settings_digest`.
    """
    lineage = last.lineage
    used = {*(lineage.get("annotations") or ()), *(lineage.get("seen") or ())}
    return (
        last.state in MEASURED
        and lineage.get("settings") == settings_digest
        and not lineage.get("unread")
        and used <= {str(number) for number in tasks}
        and not changed_since(tasks, last)
    )


def labels_found_by_text(
    store: PatternStore, project_id: int, task_ids: Iterable[int], labels: Collection[str]
) -> set[str]:
    """Return those of some labels whose tracks a search by text has found in the videos of tasks.

    Reads the newest :data:`MAX_SEARCHED` tasks at most, and stops once all labels are found.
    """
    found, wanted = set[str](), set(labels)
    for task_id in sorted(task_ids, reverse=True)[:MAX_SEARCHED]:
        if found == wanted:
            break
        for stored in store.tracks_of_project(project_id, task_id=task_id):
            by_text = filter(stored.tracks.is_found_by_text, stored.tracks.tracks)
            found |= {track.top_class for track in by_text} & wanted
    return found


def training_settings_digest(settings: Settings, base_sha256: str | None) -> str:
    """Return a digest of what shapes a training besides the annotations.

    Args:
        base_sha256: of the configured detector's checkpoint.
    """
    names = ("train_args", "imgsz", "train_per_second", "gate_frames")
    facts = json.dumps([base_sha256, *(getattr(settings, name) for name in names)])
    return hashlib.sha256(facts.encode()).hexdigest()[:16]
