"""What of a task counts: which annotation or prediction, which of its videos, and at which frame rate."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

from ml_backend.core.errors import ConfigError
from ml_backend.core.files import is_video_name
from ml_backend.datasets.task_files import RawTask
from ml_backend.datasets.video_files import media_parts, number
from ml_backend.label_studio.importer import SOURCE_FIELD
from ml_backend.label_studio.label_config import DEFAULT_FRAME_RATE, VideoControl
from ml_backend.labeling.model_version import is_partial

Predictions = Literal["none", "missing", "only"]

#: Fields in which projects keep the frame rate of a video.
_RATE_FIELDS = ("fps", "frame_rate", "frameRate", "framerate")
_USUAL = (DEFAULT_FRAME_RATE, 25.0, 30.0, 29.97, 23.976, 50.0, 60.0, 59.94, 15.0, 12.5, 10.0)


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
        predictions: see :class:`~ml_backend.datasets.annotation_reader.AnnotationReader`.
        all_annotators: give every annotation.
        model_version: of the prediction wanted; the newest where empty.
    """

    def is_wanted(prediction: Mapping[str, Any]) -> bool:
        # What was found in a part of a video is no answer to what is in it, unless somebody asks for just that.
        version = str(prediction.get("model_version") or "")
        return version == model_version if model_version else not is_partial(version)

    predicted = list(filter(is_wanted, task["predictions"]))
    submitted = [a for a in task["annotations"] if not (a.get("was_cancelled") or a.get("skipped"))]
    if submitted and predictions != "only":
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
    """The labels that a command line names, each once: ``a,b`` is one label where ``labels`` has it, else two.

    Args:
        texts: labels, or several of them with commas in between.
        labels: of the project.
    """
    parts = chain.from_iterable([text] if text in labels else text.split(",") for text in texts)
    return tuple(dict.fromkeys(filter(None, map(str.strip, parts))))


def found_controls(data: Mapping[str, Any], result: Iterable[Mapping[str, Any]]) -> tuple[VideoControl, ...]:
    """The video controls that a task's regions name; one for its video where there are no regions.

    Args:
        data: of the task.
        result: of an annotation or a prediction.

    Raises:
        ConfigError: which field has the video is not known.
    """
    names: dict[str, str] = {}
    for region in result:
        if region.get("type") == "videorectangle":
            from_name = str(region.get("from_name") or "box")
            names.setdefault(str(region.get("to_name") or f"?{from_name}"), from_name)
    fields = [key for key, value in data.items() if _is_video(value)]
    if SOURCE_FIELD in data and "/" not in str(data.get("source")):
        # What `import_videos.py` notes: the name of the file that it was given.
        fields = [key for key in fields if key != "source"]
    if not names:
        # Nothing was drawn, so that it matters to nobody what the control is called.
        names = {_only(fields, "video"): "box"}
    fields_left = [field for field in fields if field not in names]
    return tuple(
        VideoControl(from_name, to_name, to_name if to_name in fields else _only(fields_left, to_name), "label", ())
        for to_name, from_name in names.items()
    )


def _only(fields: Sequence[str], name: str) -> str:
    """The field of a control's video.

    Raises:
        ConfigError: there are several, none of them of the control's name.
    """
    if name in fields or not fields:
        return name
    if len(fields) > 1:
        raise ConfigError(
            f"The task has several fields with a video ({', '.join(fields)}), and which one is meant is not known.",
            "Give the project's label config as --config.",
        )
    return fields[0]


def _is_video(value: Any) -> bool:
    return isinstance(value, str) and any(map(is_video_name, media_parts(value)[-1:]))


def inferred_rate(data: Mapping[str, Any], regions: Iterable[Mapping[str, Any]]) -> float | None:
    """Frames per second of the timeline on which regions were drawn.

    ``framesCount`` is ``duration`` times the frame rate, rounded: what the task's own fields say is believed if it
    agrees, then a usual rate that does, then the quotient itself.

    Returns:
        ``None`` where neither regions nor fields say anything.
    """
    stated = [rate for field in _RATE_FIELDS if (rate := number(data.get(field))) > 0]
    for region in regions:
        value = region.get("value")
        if not isinstance(value, Mapping):
            continue
        duration, count = number(value.get("duration")), number(value.get("framesCount"))
        if not (duration > 0 and count > 0):
            continue
        for rate in (*stated, *_USUAL):
            if math.floor(duration * rate + 0.5) == count:
                return rate
        return count / duration
    return stated[0] if stated else None
