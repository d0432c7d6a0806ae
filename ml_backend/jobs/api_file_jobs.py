"""API jobs that make files to download: rendered videos and exports."""

from __future__ import annotations

import json
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from xml.sax.saxutils import quoteattr

from ml_backend.core.errors import ConfigError, StorageError
from ml_backend.core.files import SPARE_BYTES
from ml_backend.core.outputs import OutputFacts
from ml_backend.datasets.exporter import DatasetOptions, export_dataset
from ml_backend.datasets.formats import FormatName
from ml_backend.datasets.formats.annotations_json import export_annotations
from ml_backend.datasets.sampling import Sampling
from ml_backend.datasets.selection import Predictions
from ml_backend.detectors.loading import yolo_detector
from ml_backend.detectors.weights import resolve_detector
from ml_backend.inference.segmenter import use_segmenter
from ml_backend.jobs.job_context import JobContext, api_job
from ml_backend.jobs.predict import detect_video
from ml_backend.label_studio.label_config import parse_label_config
from ml_backend.rendering.layers import AnnotationFile, Layer, LayerModel, file_layer, label_config_colours, model_layer
from ml_backend.rendering.render import RenderOptions, render
from ml_backend.training.registry import MEASURED

if TYPE_CHECKING:
    from ml_backend.datasets.annotation_reader import AnnotationReader

#: Characters of model versions in the facts of an export: there may be one per task.
_MAX_CHARS = 300
#: Compressed formats, which zip does not make smaller.
_COMPRESSED = frozenset({".jpg", ".jpeg", ".png", ".mp4"})


class DatasetTooLarge(StorageError):
    """A dataset does not fit on the disk; a retry would fill it again."""

    retryable = False


@api_job
def render_video(
    context: JobContext, project_id: int, task_id: int, what: Literal["annotations", "predictions", "base"]
) -> dict[str, Any]:
    """Render a task's annotations, its newest prediction, or the tracks of the settings' detector into its video.

    Args:
        what: ``annotations``, ``predictions`` or ``base``.
    """
    if what == "base":
        with (
            context.video(project_id, task_id) as (path, video_name),
            tempfile.TemporaryDirectory(prefix="config-") as folder,
        ):
            # The detector's own classes, not the project's.
            config = Path(folder) / "label_config.xml"
            config.write_text(_detector_label_config(context), encoding="utf-8")
            model = LayerModel(config, context.settings, progress=lambda stage: nullcontext(context.step(stage)))
            layer = model_layer(path, None, model, mode="yolo")
            facts = OutputFacts(source=what, model=layer.title, task=task_id, video=video_name)
            return _render(context, layer, project_id, facts)
    predictions: Predictions = "none" if what == "annotations" else "only"
    task_videos = list(context.task_reader(project_id, task_id, predictions=predictions).task_videos())
    if not task_videos:
        raise ConfigError(f"Task {task_id} has no {what}.", "Annotate it or request a prediction for it first.")
    task_video = next((item for item in task_videos if item.regions), task_videos[0])
    model_version = task_video.submission.model_version
    facts = OutputFacts(source=what, model=model_version, task=task_id, video=task_video.name)
    with task_video.open() as video:
        layer = Layer(f"{what} {task_video.submission.author}".strip(), video)
        return _render(context, layer, project_id, facts)


@api_job
def render_custom_video(context: JobContext, project_id: int, task_id: int, version: str) -> dict[str, Any]:
    """Render the tracks of one of the project's versions, stored or new, into a task's video.

    Args:
        version: such as ``v2``; empty: the active one.
    """
    projects = context.container.projects
    registry = context.container.registry
    chosen = registry.find(project_id, version) if version else registry.current(project_id)
    if chosen is None:
        raise ConfigError(
            f"Project {project_id} has no trained version in use.", "Train one, or create an annotated video (base)."
        )
    if chosen.state not in MEASURED:
        raise ConfigError(f"{chosen.name} is {chosen.state}: it has no weights.", "Choose another version.")
    models = projects.models(project_id, download=True, chosen=chosen)
    with (
        context.video(project_id, task_id) as (path, video_name),
        tempfile.TemporaryDirectory(prefix="prediction-") as folder,
    ):
        context.step("predicting")
        prediction = Path(folder) / "prediction.json"
        prediction.write_text(json.dumps(detect_video(context.container, task_id, models, path)), encoding="utf-8")
        note = " ".join(filter(None, (models.detector.note, *models.classifier.notes)))
        layer = Layer(models.version, file_layer(path, AnnotationFile(prediction)).video, note)
        facts = OutputFacts(source=chosen.name, model=models.version, task=task_id, video=video_name)
        return _render(context, layer, project_id, facts)


def _detector_label_config(context: JobContext) -> str:
    """Return a label config with all classes of the settings' detector."""
    resolved = resolve_detector(context.settings, download=True)
    names = ["object"]
    if resolved.kind == "yolo":
        with yolo_detector(resolved, context.settings) as detector:
            names = list(dict.fromkeys(detector.names.values()))
    labels = "".join(f"<Label value={quoteattr(name)}/>" for name in names)
    return (
        f'<View><Video name="video" value="$video"/><VideoRectangle name="box" toName="video"/>'
        f'<Labels name="label" toName="video">{labels}</Labels></View>'
    )


def _render(context: JobContext, layer: Layer, project_id: int, facts: OutputFacts) -> dict[str, Any]:
    """Render a layer into its video; ``facts`` lack what is known only then."""
    colours = label_config_colours(parse_label_config(context.label_config(project_id)))
    with _temporary_folder(context) as folder:
        made = folder / "video.mp4"
        summary = render(layer.video.path, made, [layer], RenderOptions(colours=colours), context.step("rendering"))
        tracks = summary["tracks"][0]
        facts = facts.model_copy(update={"tracks": tracks})
        added = _add(context, made, facts, "project", project_id, "task", facts.task or 0, facts.source)
    names = ("frames", "width", "height", "note")
    described = {name: summary[name] for name in names} | {"title": layer.title}
    return added | described | {"tracks": tracks, "labels": summary["labels"][0]}


def _add(context: JobContext, made: Path, facts: OutputFacts, *words: str | int) -> dict[str, Any]:
    """Move a finished file to the outputs, and make room for it."""
    path = context.outputs.add(made, facts, *words)
    context.container.clean_up_files()
    return {"file": path.name, "bytes": path.stat().st_size}


@api_job
def export_project(
    context: JobContext,
    project_id: int,
    format_name: FormatName | Literal["annotations"],
    predictions: Predictions,
    stride: int | None = 1,
    with_ids: bool = False,
    global_ids: bool = False,
) -> dict[str, Any]:
    """Export a project's annotations as one file: JSON rows, or a dataset in a zip archive.

    Args:
        format_name: ``annotations``, or a format of :data:`ml_backend.datasets.exporter.FORMATS`.
        predictions: see :class:`ml_backend.datasets.annotation_reader.AnnotationReader`.
        stride: frames between two images of a dataset; ``None``, in jobs of earlier releases, is 1.
        with_ids: add frame numbers and track ids to JSON rows.
        global_ids: see :class:`~ml_backend.datasets.exporter.DatasetOptions`.
    """
    reader = context.reader(project_id, predictions=predictions)
    with _temporary_folder(context) as folder:
        if format_name == "annotations":
            made = folder / "annotations.json"
            progress = context.step("exporting")
            written = export_annotations(
                reader, made, with_video=True, with_ids=with_ids, global_ids=global_ids, progress=progress
            )
            counts: dict[str, Any] = {"videos": written.videos, "rows": written.rows}
        else:

            def should_stop() -> bool:
                if shutil.disk_usage(folder).free < SPARE_BYTES:
                    raise DatasetTooLarge(
                        f"The dataset does not fit: less than {SPARE_BYTES >> 20} MB are free at {folder.parent}.",
                        "Export with a larger stride, or free disk space.",
                    )
                return context.should_stop()

            options = DatasetOptions(format_name, Sampling(stride or 1), global_ids=global_ids)
            with use_segmenter(context.settings) if options.needs_masks else nullcontext() as segmenter:
                result = export_dataset(
                    reader,
                    folder / "dataset",
                    options,
                    progress=context.step("exporting"),
                    segmenter=segmenter,
                    should_stop=should_stop,
                )
            made = _zip(context, folder / "dataset")
            counts = {"videos": result.videos, "boxes": dict(result.boxes), "pictures": dict(result.images)}
            counts["notes"] = result.notes
        facts = _export_facts(reader, format_name, counts["videos"])
        added = _add(context, made, facts, "project", project_id, format_name)
    return added | counts | {"skipped": [str(item) for item in reader.skipped]}


def _export_facts(reader: AnnotationReader, format_name: str, videos: int) -> OutputFacts:
    skipped = {(item.task_id, item.name) for item in reader.skipped}
    exported = [item for item in reader.task_videos() if (item.task_id, item.name) not in skipped]
    models = {item.submission.model_version for item in exported if item.submission.is_prediction}
    people = any(not item.submission.is_prediction for item in exported)
    return OutputFacts(
        format=format_name,
        source="both" if people and models else "predictions" if models else "annotations",
        model=", ".join(sorted(models))[:_MAX_CHARS],
        video=exported[0].name if exported else "",
        videos=videos,
        skipped=len(reader.skipped),
    )


@contextmanager
def _temporary_folder(context: JobContext) -> Iterator[Path]:
    """Yield a temporary folder on the disk of the outputs; a dataset may not fit elsewhere."""
    try:
        context.outputs.folder.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".export-", dir=context.outputs.folder))
    except OSError as error:
        message = f"{context.outputs.folder} cannot be written: {error.strerror}."
        raise StorageError(message, "Free disk space.") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _zip(context: JobContext, folder: Path) -> Path:
    """Pack a dataset without its hidden state files, removing each file once it is packed; return the archive."""
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and not any(name.startswith(".") for name in path.relative_to(folder).parts)
    )
    out = folder.with_suffix(".zip")
    report = context.step("packing")
    try:
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, strict_timestamps=False) as archive:
            for done, path in enumerate(files, start=1):
                method = zipfile.ZIP_STORED if path.suffix.lower() in _COMPRESSED else zipfile.ZIP_DEFLATED
                archive.write(path, path.relative_to(folder).as_posix(), method)
                path.unlink()
                report(done, len(files))
    except OSError as error:
        raise StorageError(f"{out} cannot be written: {error.strerror}.", "Free disk space.") from error
    return out
