"""Select what to read of a task: its annotation or prediction, its videos, and their frame rate."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

from ml_backend.core.errors import ConfigError
from ml_backend.core.files import is_video_name
from ml_backend.datasets.task_files import RawTask
from ml_backend.datasets.video_files import media_parts, parse_number
from ml_backend.label_studio.importer import SOURCE_FIELD
from ml_backend.label_studio.label_config import DEFAULT_FRAME_RATE, VideoControl
from ml_backend.label_studio.regions import global_id
from ml_backend.labeling.model_version import is_partial

Predictions = Literal["none", "missing", "only"]

#: Task fields that may hold the frame rate of a video.
_RATE_FIELDS = ("fps", "frame_rate", "frameRate", "framerate")
#: Tolerance in frames where the duration is that of a file, which may be a copy.
_FILE_TOLERANCE = 2
_COMMON_RATES = (DEFAULT_FRAME_RATE, 25.0, 30.0, 29.97, 23.976, 50.0, 60.0, 59.94, 15.0, 12.5, 10.0)


@dataclass(frozen=True, slots=True)
class Submission:
    """The regions of one annotation or prediction.

    Attributes:
        result: regions and other results, as in Label Studio's JSON.
        predicted: regions of the task's predictions by id, which may hold the scores of accepted regions.
        annotator: e-mail address or id of the annotator; empty for a prediction.
        is_prediction: whether it is an unreviewed prediction.
        score: of the whole prediction.
        annotation_id: Label Studio's id; ``None`` for predictions and files without ids.
        model_version: of a prediction; empty for an annotation.
        prediction_id: Label Studio's id; ``None`` for annotations and files without ids.
    """

    result: list[Mapping[str, Any]]
    predicted: Mapping[str, Mapping[str, Any]]
    annotator: str
    is_prediction: bool
    score: float | None = None
    annotation_id: int | None = None
    model_version: str = ""
    prediction_id: int | None = None

    @property
    def author(self) -> str:
        """The annotator, or the model version of a prediction."""
        return self.model_version if self.is_prediction else self.annotator

    def global_id(self, region: Mapping[str, Any]) -> int | None:
        """Return the global id of one of the regions, by its prediction if it has none itself; ``None`` without one."""
        return global_id(region) or global_id(self.predicted.get(str(region.get("id", "")), {}))


def submissions(
    task: RawTask, predictions: Predictions = "none", all_annotators: bool = False, model_version: str = ""
) -> list[Submission]:
    """Return the annotations or the prediction of a task to export.

    Of several annotations the ground truth is used, else the latest; skipped (cancelled) ones never are. A task that
    was annotated as empty has a submission without regions; a task without annotation has none.

    Args:
        predictions: see :class:`~ml_backend.datasets.annotation_reader.AnnotationReader`.
        all_annotators: return every annotation.
        model_version: of the prediction; the newest if empty.
    """

    def is_wanted(prediction: Mapping[str, Any]) -> bool:
        # Predictions for a part of a video are incomplete, so they are used only if asked for.
        version = str(prediction.get("model_version") or "")
        return version == model_version if model_version else not is_partial(version)

    predicted = list(filter(is_wanted, task["predictions"]))
    submitted = [a for a in task["annotations"] if not (a.get("was_cancelled") or a.get("skipped"))]
    if submitted and predictions != "only":
        regions = {str(region.get("id")): region for p in task["predictions"] for region in _result(p)}
        ranked = sorted(submitted, key=_rank)
        return [
            Submission(
                _result(item), regions, _person(item.get("completed_by")), False, annotation_id=_id(item) or None
            )
            for item in (ranked if all_annotators else ranked[-1:])
        ]
    # A prediction does not replace annotations that were all skipped.
    if predictions == "none" or not predicted or (predictions == "missing" and task["annotations"]):
        return []
    newest = max(predicted, key=lambda p: (str(p.get("created_at") or p.get("updated_at") or ""), _id(p)))
    version = str(newest.get("model_version") or "")
    score, number = valid_score(newest.get("score")), _id(newest) or None
    return [Submission(_result(newest), {}, "", True, score, model_version=version, prediction_id=number)]


def by_person(task: RawTask, made_here: Mapping[int, int]) -> dict[str, Submission]:
    """Return the annotation of each person who annotated a task, their ground truth or latest, the latest person last.

    Args:
        made_here: annotations that the backend made, and which of a person each is a repaired version of, for whom it
            counts; 0: nobody's.
    """
    submitted = submissions(task, all_annotators=True)
    annotators = {item.annotation_id: item.annotator for item in submitted}
    found: dict[str, Submission] = {}
    for item in submitted:
        number = item.annotation_id
        while number in made_here:
            number = made_here[number]
        if number in annotators:  # else it is nobody's, or the person's own was deleted
            found.pop(annotators[number], None)
            found[annotators[number]] = item
    return found


def _rank(annotation: Mapping[str, Any]) -> tuple[bool, str, int]:
    updated_at = str(annotation.get("updated_at") or annotation.get("created_at") or "")
    return bool(annotation.get("ground_truth")), updated_at, _id(annotation)


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
    """Return a parse_number in 0..1 as float; ``None`` for anything else."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    return float(value) if 0 <= value <= 1 else None  # not NaN, nor an int too large for a float


def chosen_label(region: Mapping[str, Any], labels: Collection[str]) -> str:
    """Return the first label of a result that the label config has, else its first label; empty without labels."""
    own_labels = region_labels(region)
    return next((name for name in own_labels if name in labels), own_labels[0] if own_labels else "")


def region_labels(region: Mapping[str, Any]) -> list[str]:
    """Return the labels of a result; empty if it is malformed."""
    value = region.get("value")
    labels = value.get("labels") if isinstance(value, Mapping) else None
    return [str(label) for label in labels if label] if isinstance(labels, list) else []


def chosen_classes(texts: Iterable[str], labels: Collection[str]) -> tuple[str, ...]:
    """Return the labels named on a command line, each once: ``a,b`` is one label if ``labels`` has it, else two.

    Args:
        texts: labels, or several separated by commas.
        labels: of the project.
    """
    names = chain.from_iterable([text] if text in labels else text.split(",") for text in texts)
    return tuple(dict.fromkeys(filter(None, map(str.strip, names))))


def infer_controls(data: Mapping[str, Any], result: Iterable[Mapping[str, Any]]) -> tuple[VideoControl, ...]:
    """Infer the video controls of a task from its regions, or from its only video if there are no regions.

    Args:
        data: of the task.
        result: of an annotation or a prediction.

    Raises:
        ConfigError: the field with the video is ambiguous.
    """
    names: dict[str, str] = {}
    for region in result:
        if region.get("type") == "videorectangle":
            from_name = str(region.get("from_name") or "box")
            names.setdefault(str(region.get("to_name") or f"?{from_name}"), from_name)
    fields = [key for key, value in data.items() if _is_video(value)]
    if SOURCE_FIELD in data and "/" not in str(data.get("source")):
        # `import_videos.py` stores the original file name there.
        fields = [key for key in fields if key != "source"]
    if not names:
        # Without regions the control's name does not matter.
        names = {_video_field(fields, "video"): "box"}
    other_fields = [field for field in fields if field not in names]
    return tuple(
        VideoControl(
            from_name, to_name, to_name if to_name in fields else _video_field(other_fields, to_name), "label", ()
        )
        for to_name, from_name in names.items()
    )


def _video_field(fields: Sequence[str], name: str) -> str:
    """Return the field of a control's video.

    Raises:
        ConfigError: there are several, and none has the control's name.
    """
    if name in fields or not fields:
        return name
    if len(fields) > 1:
        raise ConfigError(
            f"The task has several fields with a video ({', '.join(fields)}), and none is called {name!r}.",
            "Give the project's label config as --config.",
        )
    return fields[0]


def _is_video(value: Any) -> bool:
    return isinstance(value, str) and any(map(is_video_name, media_parts(value)[-1:]))


def infer_frame_rate(
    data: Mapping[str, Any], regions: Iterable[Mapping[str, Any]], file_duration: float = 0.0
) -> float | None:
    """Infer the frames per second of the timeline on which regions were drawn.

    ``framesCount`` is ``duration`` times the frame rate, rounded. The task's own fields are used if they agree with
    that, else a common rate that does, else the quotient.

    Args:
        file_duration: of the video in seconds as browsers report it, for regions that do not state theirs; a copy may
            last a little longer, so the task's fields may then be :data:`_FILE_TOLERANCE` off. 0: unknown.

    Returns:
        ``None`` if neither regions nor fields tell.
    """
    stated = [rate for field in _RATE_FIELDS if (rate := parse_number(data.get(field))) > 0]
    for region in regions:
        value = region.get("value")
        if not isinstance(value, Mapping):
            continue
        duration, count = parse_number(value.get("duration")), parse_number(value.get("framesCount"))
        candidates = [(rate, 0) for rate in (*stated, *_COMMON_RATES)]
        if not duration > 0:
            duration = file_duration
            candidates += [(rate, _FILE_TOLERANCE) for rate in stated]
        if not (duration > 0 and count > 0):
            continue
        for rate, tolerance in candidates:
            if abs(math.floor(duration * rate + 0.5) - count) <= tolerance:
                return rate
        return count / duration
    return stated[0] if stated else None
