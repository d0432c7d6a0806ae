"""What is drawn on a video: annotations or predictions of a file, or what a model finds now."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_backend.core.errors import ConfigError, MediaError
from ml_backend.core.settings import Settings
from ml_backend.datasets.annotated_video import AnnotatedVideo, TaskVideo
from ml_backend.datasets.annotation_reader import AnnotationReader
from ml_backend.datasets.selection import Predictions
from ml_backend.datasets.video_files import VideoFolder
from ml_backend.label_studio.label_config import LabelConfig

ANNOTATIONS, PREDICTIONS = "annotations", "predictions"
#: Tasks that an error message lists.
_LISTED = 10


@dataclass(frozen=True, slots=True)
class Layer:
    """Boxes for one pane.

    Attributes:
        title: where they come from, for people.
        video: the file with the objects on it.
        note: what is to be said of how they came about, else empty.
    """

    title: str
    video: AnnotatedVideo
    note: str = ""


Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class LayerModel:
    """How a model looks at a video now.

    Attributes:
        config: label config file: names and labels.
        settings: detector, mode and so on.
        patterns: a pattern bank that was exported from a project.
        progress: gives what is called with frames done and in all, by a title; one for each video that is looked at.
    """

    config: Path
    settings: Settings
    patterns: Path | None = None
    progress: Callable[[str], AbstractContextManager[Progress | None]] = lambda _: nullcontext()


@dataclass(frozen=True, slots=True)
class AnnotationFile:
    """A task in a file.

    Attributes:
        path: see :class:`~ml_backend.datasets.annotation_reader.AnnotationReader`.
        task: its id; ``None``: the one whose video has the file's name, or the only one.
        config: of the project; frame rates are inferred from the regions without one.
    """

    path: Path
    task: int | None = None
    config: LabelConfig | None = None


def file_layer(video: Path, export: AnnotationFile, show: str = "") -> Layer:
    """What an export of Label Studio, or a prediction file, says of a video.

    Args:
        show: ``"annotations"``, ``"predictions"``, or a model version; empty: annotations, where there are none the
            newest prediction.

    Raises:
        ConfigError: the file is unusable, or has no such task or nothing to show of it.
        MediaError: it is another video than the task's.
        VideoError: the video is unusable.
    """
    wanted: Predictions = {"": "missing", ANNOTATIONS: "none"}.get(show, "only")  # type: ignore[assignment]
    version = show if show not in ("", ANNOTATIONS, PREDICTIONS) else ""

    def part(by: LabelConfig | None) -> TaskVideo:
        only = [] if export.task is None else [export.task]
        source = AnnotationReader.from_file(
            export.path, videos=video, config=by, predictions=wanted, model_version=version, only=only
        )
        return _choose(source.task_videos(), video, export, show)

    found = part(export.config)
    if export.config is not None and not found.regions:
        # A config that is given for its colours may name the controls otherwise than the file does.
        found = part(None)
    kind = "prediction" if found.submission.is_prediction else "annotation"
    if difference := found.facts.difference(video):
        raise MediaError(
            f"{video.name} is another video than that of task {found.task_id}: {difference}.",
            "Name the video that was annotated, or choose a task with --task.",
        )
    title = " ".join(filter(None, (kind, found.submission.annotator, f"({export.path.name})")))
    return Layer(title, AnnotatedVideo.make(found, video))


def _choose(parts: Iterator[TaskVideo], video: Path, export: AnnotationFile, show: str) -> TaskVideo:
    """The part that belongs to the video. Only what fits is kept: an export may be large."""
    path, task, by_name = export.path, export.task, VideoFolder(video)
    first: TaskVideo | None = None
    fitting: list[TaskVideo] = []
    others: list[str] = []
    for part in parts:
        first = first or part
        if task is not None or not part.uri or by_name.look_up(part.uri, part.known).path:
            fitting.append(part)
        else:
            others.append(f"{part.task_id} ({part.name})")
    if len({part.task_id for part in fitting}) > 1:
        ids = ", ".join(str(part.task_id) for part in fitting[:_LISTED])
        raise ConfigError(f"{path.name} has several tasks with {video.name}: {ids}.", "Choose one with --task.")
    if fitting:
        # Of a task with several videos the one whose name fits.
        return next((part for part in fitting if part.uri and by_name.look_up(part.uri, part.known).path), fitting[0])
    if first is not None and len(others) == 1:
        return first  # there is no choice, so it is meant, whatever its name
    what = show or "annotations or predictions"
    of = f"of task {task}" if task is not None else f"of {video.name}"
    if others:
        more = ", ..." if len(others) > _LISTED else ""
        hint = f"Choose one with --task: {', '.join(others[:_LISTED])}{more}."
    else:
        hint = "Export the project again, or name another task or file."
    raise ConfigError(f"{path.name} has no {what} {of}.", hint)


def model_layer(video: Path, weights: str | None, model: LayerModel, **changes: Any) -> Layer:
    """What a model finds in a video now; takes as long as pre-annotation.

    Args:
        weights: YOLO checkpoint or its name; by default that of the settings.
        changes: further settings.

    Raises:
        VideoError, ConfigError, WeightsError, StorageError: as :func:`ml_backend.inference.offline.predict_file`.
    """
    from ml_backend.inference.offline import predict_file  # with all that models need, which files do not

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
    """The layer that a word of the command line means.

    Args:
        name: a JSON file; of ``export``: ``annotations``, ``predictions`` or a model version; weights: a checkpoint
            file, or its name where there is no export; ``motion``: the detector without weights.

    Raises:
        VideoError, ConfigError, WeightsError, StorageError: as :func:`file_layer` and :func:`model_layer`.
    """
    path = Path(name)
    if path.suffix.lower() == ".json":
        same = export is not None and export.path == path
        of = export if export and same else AnnotationFile(path, config=export.config if export else None)
        return file_layer(video, of)
    if name in (ANNOTATIONS, PREDICTIONS) and export is None:
        raise ConfigError(f"It is not said whose {name} are meant.", "Name the export with --from-json.")
    if name == "motion":
        return model_layer(video, None, model, detector="motion")
    if export is not None and not path.is_file() and path.suffix != ".pt":
        return file_layer(video, export, name)
    return model_layer(video, name, model)


def label_config_colours(config: LabelConfig) -> dict[str, str]:
    """Colours that a config gives its labels, in its order; empty for a label without one."""
    return {label.value: label.background for control in config.video_controls for label in control.labels}
