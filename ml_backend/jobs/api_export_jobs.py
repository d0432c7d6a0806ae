"""Jobs of the control room that make files to download: rendered videos and exports."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import quoteattr

from ml_backend.core.errors import ConfigError, StorageError
from ml_backend.datasets.dataset_export import FORMATS, DatasetOptions, export_dataset
from ml_backend.datasets.formats.annotations_json import export_annotations
from ml_backend.datasets.sampling import Sampling
from ml_backend.detectors.weights import resolve_detector
from ml_backend.inference.pipeline import yolo_detector
from ml_backend.jobs.api_queue import STRIDE
from ml_backend.jobs.job_context import JobContext, api_job
from ml_backend.jobs.predict import detect_video
from ml_backend.label_studio.label_config import parse_label_config
from ml_backend.rendering.layers import AnnotationFile as FileExport
from ml_backend.rendering.layers import Layer, LayerModel, file_layer, label_config_colours, model_layer
from ml_backend.rendering.render import RenderOptions, render
from ml_backend.training.registry import MEASURED

if TYPE_CHECKING:
    from ml_backend.datasets.selection import Predictions

#: What exports leave free of the disk, on which the database and the queue lie too.
SPARE_BYTES = 512 << 20
#: Zip does not make them smaller.
_PACKED = frozenset({".jpg", ".jpeg", ".png", ".mp4"})


class DatasetTooLarge(StorageError):
    """A dataset does not fit. Another try would fill the disk again."""

    retryable = False


@api_job
def render_video(work: JobContext, project_id: int, task_id: int, what: str) -> dict[str, Any]:
    """A video with the annotations or the newest prediction of a task, or with what the settings' detector finds.

    Args:
        what: ``annotations``, ``predictions`` or ``base``.
    """
    name = f"project-{project_id}-task-{task_id}-{what}"
    if what == "base":
        with work.video(project_id, task_id) as path, tempfile.TemporaryDirectory(prefix="config-") as folder:
            # Its own classes: what it knows without the project.
            config = Path(folder) / "label_config.xml"
            config.write_text(_own_classes(work), encoding="utf-8")
            model = LayerModel(config, work.settings, progress=lambda stage: nullcontext(work.step(stage)))
            return _render(work, model_layer(path, None, model, mode="yolo"), project_id, name)
    wanted: Predictions = "none" if what == "annotations" else "only"
    parts = list(work.source_of_task(project_id, task_id, predictions=wanted).task_videos())
    if not parts:
        raise ConfigError(f"Task {task_id} has no {what}.", "Annotate it, or request a prediction for it, first.")
    part = next((part for part in parts if part.regions), parts[0])
    with part.open() as video:
        return _render(work, Layer(f"{what} {part.submission.annotator}".strip(), video), project_id, name)


@api_job
def render_custom_video(work: JobContext, project_id: int, task_id: int, version: str) -> dict[str, Any]:
    """A video with what a version of the project finds in it: its tracks where they are known, else new ones.

    Args:
        version: such as ``v2``; empty: the one in use.
    """
    projects = work.container.projects
    registry = work.container.registry
    chosen = registry.find(project_id, version) if version else registry.current(project_id)
    if chosen is None:
        raise ConfigError(
            f"Project {project_id} has no trained version in use.", "Train one, or create an annotated video (base)."
        )
    if chosen.state not in MEASURED:
        raise ConfigError(f"{chosen.name} is {chosen.state}: it has no weights.", "Choose another version.")
    models = projects.models(project_id, download=True, chosen=chosen)
    with work.video(project_id, task_id) as path, tempfile.TemporaryDirectory(prefix="prediction-") as folder:
        work.step("predicting")
        found = Path(folder) / "prediction.json"
        found.write_text(json.dumps(detect_video(work.container, task_id, models, path)), encoding="utf-8")
        note = " ".join(filter(None, (models.detector.note, *models.hybrid.notes)))
        layer = Layer(models.version, file_layer(path, FileExport(found)).video, note)
        return _render(work, layer, project_id, f"project-{project_id}-task-{task_id}-{chosen.name}")


def _own_classes(work: JobContext) -> str:
    """A label config with all that the settings' detector has names for; a project's would leave the others out."""
    resolved = resolve_detector(work.settings, download=True)
    names = ["object"]
    if resolved.kind == "yolo":
        with yolo_detector(resolved, work.settings) as detector:
            names = list(dict.fromkeys(detector.names.values()))
    labels = "".join(f"<Label value={quoteattr(name)}/>" for name in names)
    return (
        f'<View><Video name="video" value="$video"/><VideoRectangle name="box" toName="video"/>'
        f'<Labels name="label" toName="video">{labels}</Labels></View>'
    )


def _render(work: JobContext, layer: Layer, project_id: int, name: str) -> dict[str, Any]:
    colours = label_config_colours(parse_label_config(work.label_config(project_id)))
    out = work.outputs.new(name, suffix="mp4")
    summary = render(layer.video.path, out, [layer], RenderOptions(colours=colours), work.step("rendering"))
    kept = ("frames", "width", "height", "tracks", "labels", "note")
    facts = {key: summary[key] for key in kept} | {"title": layer.title}
    return _made(work, out) | facts | {"tracks": summary["tracks"][0], "labels": summary["labels"][0]}


def _made(work: JobContext, path: Path) -> dict[str, Any]:
    work.container.remove_leftovers()
    return {"file": path.name, "bytes": path.stat().st_size}


@api_job
def export_project(
    work: JobContext, project_id: int, format_name: str, predictions: Predictions, stride: int | None = None
) -> dict[str, Any]:
    """A project's annotations as one file: rows of JSON, or a dataset in a zip archive.

    Args:
        format_name: ``annotations``, or a format of :data:`ml_backend.datasets.dataset_export.FORMATS`.
        predictions: see :class:`ml_backend.datasets.annotation_reader.AnnotationReader`.
        stride: of a dataset: every so many pictures; ``None``: all of whole videos, ``STRIDE`` of what is trained on.
    """
    source = work.source(project_id, predictions=predictions)
    words = ("project", project_id, format_name)
    with _workshop(work) as folder:
        if format_name == "annotations":
            rows = folder / "annotations.json"
            written = export_annotations(source, rows, with_video=True, progress=work.step("exporting"))
            out = work.outputs.new(*words, suffix="json")
            os.replace(rows, out)
            facts: dict[str, Any] = {"videos": written.videos, "rows": written.rows}
        else:

            def should_stop() -> bool:
                if shutil.disk_usage(folder).free < SPARE_BYTES:
                    raise DatasetTooLarge(
                        f"The dataset does not fit: less than {SPARE_BYTES >> 20} MB are free at {folder.parent}.",
                        "Export with a larger stride, or free disk space.",
                    )
                return work.should_stop()

            stride = stride or (1 if FORMATS[format_name].whole_videos else STRIDE)
            result = export_dataset(
                source,
                folder / "dataset",
                DatasetOptions(format_name, Sampling(stride)),
                progress=work.step("exporting"),
                should_stop=should_stop,
            )
            out = work.outputs.new(*words, suffix="zip")
            _zip(work, folder / "dataset", out)
            facts = {"videos": result.videos, "boxes": dict(result.boxes), "pictures": dict(result.images)}
    return _made(work, out) | facts | {"skipped": [str(item) for item in source.skipped]}


@contextmanager
def _workshop(work: JobContext) -> Iterator[Path]:
    """A folder that is gone afterwards, on the disk of the outputs: videos' pictures may not fit elsewhere."""
    try:
        work.outputs.folder.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".export-", dir=work.outputs.folder))
    except OSError as error:
        raise StorageError(f"{work.outputs.folder} cannot be written: {error.strerror}.", "Free disk space.") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _zip(work: JobContext, folder: Path, out: Path) -> None:
    """Pack a dataset without the hidden files by which its export goes on. What is packed is removed at once."""
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and not any(name.startswith(".") for name in path.relative_to(folder).parts)
    )
    part = folder.parent / "dataset.zip"
    report = work.step("packing")
    try:
        with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED, strict_timestamps=False) as archive:
            for number, path in enumerate(files, start=1):
                kind = zipfile.ZIP_STORED if path.suffix.lower() in _PACKED else zipfile.ZIP_DEFLATED
                archive.write(path, path.relative_to(folder).as_posix(), kind)
                path.unlink()
                report(number, len(files))
        os.replace(part, out)
    except OSError as error:
        raise StorageError(f"{out} cannot be written: {error.strerror}.", "Free some disk space.") from error
