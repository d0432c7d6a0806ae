"""Which annotation or prediction of a task counts."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ml_backend.export.tasks import RawTask
from ml_backend.versions import is_partial

Predictions = Literal["none", "missing", "only"]


@dataclass(frozen=True, slots=True)
class Submission:
    """The regions of one annotation or prediction.

    Attributes:
        result: regions and other results, as in Label Studio's JSON.
        predicted: regions of the task's predictions by id: what an accepted region says of its score may be there.
        annotator: e-mail address or id of who submitted it; of a prediction its model version.
        is_prediction: whether nobody has looked at it.
        score: of a prediction as a whole.
        annotation_id: Label Studio's; ``None`` for predictions and where the file does not say.
    """

    result: list[Mapping[str, Any]]
    predicted: Mapping[str, Mapping[str, Any]]
    annotator: str
    is_prediction: bool
    score: float | None = None
    annotation_id: int | None = None


def submissions(
    task: RawTask, predictions: Predictions = "none", all_annotators: bool = False, model_version: str = ""
) -> list[Submission]:
    """What of a task is exported.

    Of several annotations the ground truth counts, else the latest; skipped (cancelled) ones never do. A task that
    has been annotated as empty gives a submission without regions; one that nobody has annotated gives none.

    Args:
        predictions: see :class:`~ml_backend.export.source.Source`.
        all_annotators: give every annotation.
        model_version: of the prediction wanted; the newest where empty.
    """
    predicted = [p for p in task["predictions"] if _is_wanted(str(p.get("model_version") or ""), model_version)]
    submitted = [] if predictions == "only" else [a for a in task["annotations"] if not _cancelled(a)]
    if submitted:
        regions = {str(region.get("id")): region for p in task["predictions"] for region in _result(p)}
        chosen = sorted(submitted, key=_rank)
        return [
            Submission(
                _result(item), regions, _person(item.get("completed_by")), False, annotation_id=_id(item) or None
            )
            for item in (chosen if all_annotators else chosen[-1:])
        ]
    # A task that everybody has skipped is not one whose prediction is wanted instead.
    if predictions == "none" or not predicted or (predictions == "missing" and task["annotations"]):
        return []
    newest = max(predicted, key=lambda p: (str(p.get("created_at") or p.get("updated_at") or ""), _id(p)))
    version = str(newest.get("model_version") or "")
    return [Submission(_result(newest), {}, version, True, valid_score(newest.get("score")))]


def _is_wanted(version: str, wanted: str) -> bool:
    """What was found in a part of a video is no answer to what is in it, unless somebody asks for just that."""
    return version == wanted if wanted else not is_partial(version)


def _cancelled(annotation: Mapping[str, Any]) -> bool:
    return bool(annotation.get("was_cancelled") or annotation.get("skipped"))


def _rank(annotation: Mapping[str, Any]) -> tuple[bool, str, int]:
    when = str(annotation.get("updated_at") or annotation.get("created_at") or "")
    return bool(annotation.get("ground_truth")), when, _id(annotation)


def _id(item: Mapping[str, Any]) -> int:
    value = item.get("id")
    return value if isinstance(value, int) else 0


def _result(item: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    result = item.get("result")
    return [region for region in result if isinstance(region, Mapping)] if isinstance(result, list) else []


def _person(completed_by: Any) -> str:
    if isinstance(completed_by, Mapping):
        return str(completed_by.get("email") or completed_by.get("username") or completed_by.get("id") or "")
    return "" if completed_by is None else str(completed_by)


def valid_score(value: Any) -> float | None:
    """A score as results carry it; ``None`` for anything else."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    return float(value) if 0 <= value <= 1 else None  # neither NaN nor numbers beyond any float


def chosen_label(region: Mapping[str, Any], labels: Collection[str]) -> str:
    """The label of a result that counts: the first that the label config has, else the first; empty without one."""
    given = region_labels(region)
    return next((name for name in given if name in labels), given[0] if given else "")


def region_labels(region: Mapping[str, Any]) -> list[str]:
    """Labels of a result; none where it is damaged."""
    value = region.get("value")
    given = value.get("labels") if isinstance(value, Mapping) else None
    return [str(label) for label in given if label] if isinstance(given, list) else []


def chosen_classes(texts: Iterable[str], labels: Collection[str]) -> tuple[str, ...]:
    """The labels that a command line names, each once: ``a,b`` is one of ``labels`` if there is one, else two.

    Args:
        texts: labels, or several of them with commas in between.
        labels: of the project.
    """
    chosen: list[str] = []
    for text in texts:
        parts = text.split(",")
        while parts:
            # The longest that is a label.
            sizes = range(len(parts), 0, -1)
            size = next((n for n in sizes if ",".join(parts[:n]).strip() in labels), 1)
            chosen.append(",".join(parts[:size]).strip())
            parts = parts[size:]
    return tuple(dict.fromkeys(name for name in chosen if name))
