"""Layers of boxes to draw on a video: annotations or predictions of a file, or new predictions of a model."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_backend.core.errors import ConfigError, MediaError
from ml_backend.core.settings import Settings
from ml_backend.core.types import Progress
from ml_backend.datasets.annotated_video import AnnotatedVideo, TaskVideo
from ml_backend.datasets.annotation_reader import AnnotationReader
from ml_backend.datasets.selection import Predictions
from ml_backend.datasets.video_files import VideoFolder
from ml_backend.label_studio.label_config import LabelConfig

ANNOTATIONS, PREDICTIONS = "annotations", "predictions"
#: Tasks listed in an error message.
_MAX_LISTED = 10


@dataclass(frozen=True, slots=True)
class Layer:
    """The boxes of one pane.

    Attributes:
        title: where the boxes come from, shown to people.
        video: the file with its objects.
        note: remark on the prediction, or empty.
    """

    title: str
    video: AnnotatedVideo
    note: str = ""


@dataclass(frozen=True, slots=True)
class LayerModel:
    """Configuration for predicting a video.

    Attributes:
        config: label config file.
        settings: detector, mode and so on.
        patterns: pattern bank exported from a project.
        progress: called with a title for each video; its context yields a callback for frames done and in total.
    """

    config: Path
    settings: Settings
    patterns: Path | None = None
    progress: Callable[[str], AbstractContextManager[Progress | None]] = lambda _: nullcontext()


@dataclass(frozen=True, slots=True)
class AnnotationFile:
    """A task in an export or prediction file.

    Attributes:
        path: see :class:`~ml_backend.datasets.annotation_reader.AnnotationReader`.
        task: task id; ``None``: the task whose video has the file's name, or the only one.
        config: of the project; without one, frame rates are inferred from the regions.
    """

    path: Path
    task: int | None = None
    config: LabelConfig | None = None


def file_layer(video: Path, export: AnnotationFile, show: str = "") -> Layer:
    """Read the layer of a video from a Label Studio export or a prediction file.

    Args:
        show: ``"annotations"``, ``"predictions"``, or a model version; empty: annotations, or else the newest
            prediction.

    Raises:
        ConfigError: the file cannot be read, or has no such task or nothing to show for it.
        MediaError: the video is another one than the task's.
        VideoError: the video cannot be decoded.
    """
    wanted: Predictions = {"": "missing", ANNOTATIONS: "none"}.get(show, "only")  # type: ignore[assignment]
    version = show if show not in ("", ANNOTATIONS, PREDICTIONS) else ""

    def find_task_video(config: LabelConfig | None) -> TaskVideo:
        only = [] if export.task is None else [export.task]
        reader = AnnotationReader.from_file(
            export.path, videos=video, config=config, predictions=wanted, model_version=version, only=only
        )
        return _choose(reader.task_videos(), video, export, show)

    task_video = find_task_video(export.config)
    if export.config is not None and not task_video.regions:
        # A config that is given for its colours may name the controls differently than the file.
        task_video = find_task_video(None)
    kind = "prediction" if task_video.submission.is_prediction else "annotation"
    if difference := task_video.facts.difference(video):
        raise MediaError(
            f"{video.name} is another video than that of task {task_video.task_id}: {difference}.",
            "Name the video that was annotated, or choose a task with --task.",
        )
    title = " ".join(filter(None, (kind, task_video.submission.author, f"({export.path.name})")))
    return Layer(title, AnnotatedVideo.load(task_video, video))


def _choose(task_videos: Iterator[TaskVideo], video: Path, export: AnnotationFile, show: str) -> TaskVideo:
    """Choose the entry of the video, keeping only matches in memory, since an export may be large."""
    path, task, folder = export.path, export.task, VideoFolder(video)

    def has_name(entry: TaskVideo) -> bool:
        return folder.look_up(entry.uri, entry.facts).path is not None

    first: TaskVideo | None = None
    matches: list[TaskVideo] = []
    others: list[str] = []
    for entry in task_videos:
        first = first or entry
        if task is not None or not entry.uri or has_name(entry):
            matches.append(entry)
        else:
            others.append(f"{entry.task_id} ({entry.name})")
    if len({entry.task_id for entry in matches}) > 1:
        ids = ", ".join(str(entry.task_id) for entry in matches[:_MAX_LISTED])
        raise ConfigError(f"{path.name} has several tasks with {video.name}: {ids}.", "Choose one with --task.")
    if matches:
        # If the task has several videos, the one with this name.
        return next((entry for entry in matches if entry.uri and has_name(entry)), matches[0])
    if first is not None and len(others) == 1:
        return first  # the only one, whatever its name
    what = show or "annotations or predictions"
    of = f"of task {task}" if task is not None else f"of {video.name}"
    if others:
        more = ", ..." if len(others) > _MAX_LISTED else ""
        hint = f"Choose one with --task: {', '.join(others[:_MAX_LISTED])}{more}."
    else:
        hint = "Export the project again, or name another task or file."
    raise ConfigError(f"{path.name} has no {what} {of}.", hint)


def model_layer(video: Path, weights: str | None, model: LayerModel, **changes: Any) -> Layer:
    """Predict a video and return the layer; takes as long as pre-annotation.

    Args:
        weights: YOLO checkpoint or its name; by default as in the settings.
        changes: other settings.

    Raises:
        VideoError, ConfigError, WeightsError, StorageError: as :func:`ml_backend.inference.offline.predict_file`.
    """
    from ml_backend.inference.offline import predict_file  # loads the model libraries

    if weights is not None:
        changes |= {"yolo_weights": weights}
    settings = model.settings.model_copy(update=changes)
    with tempfile.TemporaryDirectory(prefix="prediction-") as folder:
        path = Path(folder) / "prediction.json"
        with model.progress(f"Pre-annotating {video.name}") as progress:
            summary = predict_file(video, path, model.config, settings, patterns=model.patterns, progress=progress)
        layer = file_layer(video, AnnotationFile(path))
    return Layer(str(summary["model_version"]), layer.video, str(summary["note"]))


def named_layer(video: Path, name: str, model: LayerModel, export: AnnotationFile | None = None) -> Layer:
    """Return the layer that a command-line argument names.

    Args:
        name: a JSON file; ``annotations``, ``predictions`` or a model version of ``export``; a checkpoint file (or its
            name if there is no export); or ``motion`` for the motion detector.

    Raises:
        VideoError, ConfigError, WeightsError, StorageError: as :func:`file_layer` and :func:`model_layer`.
    """
    path = Path(name)
    if path.suffix.lower() == ".json":
        same = export is not None and export.path == path
        of = export if export and same else AnnotationFile(path, config=export.config if export else None)
        return file_layer(video, of)
    if name in (ANNOTATIONS, PREDICTIONS) and export is None:
        raise ConfigError(f"There is no export to read {name} from.", "Name it with --from-json.")
    if name == "motion":
        return model_layer(video, None, model, detector="motion")
    if export is not None and not path.is_file() and path.suffix != ".pt":
        return file_layer(video, export, name)
    return model_layer(video, name, model)


def label_config_colours(config: LabelConfig) -> dict[str, str]:
    """Return the colours of a config's labels, in its order; empty for a label without one."""
    return {label.value: label.background for control in config.video_controls for label in control.labels}
