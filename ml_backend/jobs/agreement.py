"""How people agree who annotated the same tasks of a project, and what each of them has done."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from itertools import combinations
from typing import Any

from ml_backend.core.timestamps import ensure_utc
from ml_backend.datasets.annotated_video import belongs_to
from ml_backend.datasets.selection import Submission, by_person, submissions
from ml_backend.datasets.task_files import RawTask
from ml_backend.db.storage import Storage
from ml_backend.jobs.services.reviews import without_repairs
from ml_backend.label_studio.client import Annotation, Prediction
from ml_backend.label_studio.label_config import VideoControl
from ml_backend.labeling.model_version import is_partial
from ml_backend.review.agreement import Agreement, compare
from ml_backend.review.moment_store import MomentStore
from ml_backend.training.annotation_review import initial_prediction, review_annotation, was_replaced

#: Name of the model among the people of an agreement, most disputes of two people that are listed, and most tasks.
MODEL, MAX_DISPUTES, MAX_TASKS = "model", 200, 200


@dataclass(frozen=True, slots=True)
class TaskWork:
    """What a person has done in one task.

    Attributes:
        seconds: Label Studio's lead time; ``None``: it knows none.
        counts: tracks of the prediction by what became of them, see :mod:`ml_backend.training.annotation_review`;
            without a prediction only what was added.
    """

    tracks: int
    seconds: float | None
    counts: Mapping[str, int]


def measure(
    storage: Storage, project_id: int, tasks: Iterable[RawTask], controls: Sequence[VideoControl], *, model: bool
) -> dict[str, Any]:
    """Compare each two people who annotated the same tasks, and sum up what each person has done.

    Only what people submitted themselves counts: repaired versions and consensuses are left out.

    Args:
        model: whether the newest prediction of each task takes part in the comparison, as :data:`MODEL`.

    Returns:
        ``pairs``, ``people`` and ``tasks`` as the API returns them.
    """
    not_theirs = dict.fromkeys(MomentStore(storage).made_here(project_id), 0)
    pairs: dict[tuple[str, str], dict[int, Agreement]] = {}
    work: dict[str, list[TaskWork]] = {}
    shared: list[dict[str, Any]] = []
    for task in tasks:
        people = by_person(task, not_theirs)
        for name, item in people.items():
            work.setdefault(name, []).append(_task_work(storage, task, item))
        results = {name: item.result for name, item in people.items()}
        if model and (predicted := submissions(task, "only")):
            results[MODEL] = predicted[0].result
        disputes = 0
        for a, b in combinations(sorted(results), 2):
            found = Agreement()
            for control in controls:
                one, two = ([region for region in results[name] if belongs_to(region, control)] for name in (a, b))
                found += compare(one, two)
            pairs.setdefault((a, b), {})[task["id"]] = found
            disputes += len(found.disputes) if MODEL not in (a, b) else 0
        if len(people) > 1:
            shared.append({"task": task["id"], "people": sorted(people), "disputes": disputes})
    shared.sort(key=lambda item: (-item["disputes"], item["task"]))
    return {
        "model": model,
        "pairs": [_pair_facts(a, b, tasks) for (a, b), tasks in sorted(pairs.items())],
        "people": [_person_facts(name, work[name], pairs) for name in sorted(work)],
        "tasks": shared[:MAX_TASKS],
    }


def _task_work(storage: Storage, task: RawTask, submission: Submission) -> TaskWork:
    raw = next(item for item in task["annotations"] if item.get("id") == submission.annotation_id)
    result = [dict(region) for region in submission.result]
    seconds = None if raw.get("lead_time") is None else float(raw["lead_time"])
    number = submission.annotation_id or 0
    annotation = Annotation(number, task["id"], result, raw.get("parent_prediction"), *_times(raw), seconds)
    predictions = [
        Prediction(
            int(item["id"]),
            str(item.get("model_version") or ""),
            [dict(region) for region in item.get("result") or []],
            *_times(item),
        )
        for item in task["predictions"]
    ]
    prediction = initial_prediction(annotation, predictions)
    if prediction and (is_partial(prediction.model_version) or was_replaced(annotation, prediction)):
        prediction = None
    predicted = without_repairs(storage, task["id"], prediction.result) if prediction else []
    tracks = sum(region.get("type") == "videorectangle" for region in result)
    return TaskWork(tracks, seconds, review_annotation(predicted, result).counts)


def _times(item: Mapping[str, Any]) -> tuple[datetime | None, datetime | None]:
    """Return when something was created and changed, where Label Studio says so."""

    def time(value: Any) -> datetime | None:
        return ensure_utc(datetime.fromisoformat(value) if isinstance(value, str) else value) if value else None

    return time(item.get("created_at")), time(item.get("updated_at"))


def _person_facts(
    name: str, work: Sequence[TaskWork], pairs: Mapping[tuple[str, str], Mapping[int, Agreement]]
) -> dict[str, Any]:
    counts = {kind: sum(item.counts[kind] for item in work) for kind in work[0].counts}
    decided = sum(counts[kind] for kind in ("accepted", "moved", "relabelled", "deleted", "merged"))
    with_others = Agreement()
    for pair, tasks in pairs.items():
        if name not in pair or MODEL in pair:
            continue
        for found in tasks.values():
            turned = found if pair[0] == name else replace(found, labels=tuple((b, a) for a, b in found.labels))
            with_others += turned
    seconds = [item.seconds for item in work if item.seconds is not None]
    return {
        "person": name,
        "tasks": len(work),
        "tracks": sum(item.tracks for item in work),
        "seconds": sum(seconds) if seconds else None,
        "kept": counts["accepted"],
        "moved": counts["moved"],
        "relabelled": counts["relabelled"],
        "deleted": counts["deleted"] + counts["merged"],
        "added": counts["added"],
        "acceptance": counts["accepted"] / decided if decided else None,
        **with_others.scores(),
        "kappa": with_others.kappa,
    }


def _pair_facts(a: str, b: str, tasks: Mapping[int, Agreement]) -> dict[str, Any]:
    total = functools.reduce(operator.add, tasks.values())
    disputes = [
        {"task": task_id, **asdict(item)} for task_id, found in sorted(tasks.items()) for item in found.disputes
    ]
    return {
        "a": a,
        "b": b,
        "tasks": len(tasks),
        **total.scores(),
        "kappa": total.kappa,
        "matched": len(total.labels),
        "only_a": total.only_a,
        "only_b": total.only_b,
        "labels": total.by_label,
        "disputes": disputes[:MAX_DISPUTES],
    }
