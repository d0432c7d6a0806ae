"""Options, exit codes and dataset import, shared by the export scripts."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from ml_backend.cli.dev_stack.discover import settings_in_force
from ml_backend.cli.progress import progress_bar
from ml_backend.core.errors import ConfigError
from ml_backend.core.files import atomic_text_writer
from ml_backend.datasets.annotation_reader import AnnotationReader, SkippedTask
from ml_backend.datasets.formats.coco import read_coco
from ml_backend.datasets.formats.cvat import read_cvat
from ml_backend.datasets.formats.mot import read_mot
from ml_backend.datasets.formats.yolo import read_yolo
from ml_backend.datasets.importers import ImportedVideo, ImportResult, ResultKind, to_tasks
from ml_backend.datasets.selection import Predictions
from ml_backend.datasets.video_files import VideoFolder
from ml_backend.label_studio.client import LabelStudioClient
from ml_backend.label_studio.label_config import VideoControl, read_label_config

#: Exit code of an export from which some videos were skipped.
SKIPPED = 3

#: Control names of the documentation's example config.
_EXAMPLE_CONTROL = VideoControl("box", "video", "video", "label", (), "$fps")

_FILE = click.Path(path_type=Path, dir_okay=False)


def reader_options(function: Callable[..., Any], predictions: Predictions = "none") -> Callable[..., Any]:
    """Add the options of :func:`open_reader` to a command.

    Args:
        predictions: which are used by default.
    """
    options = (
        click.option("--project", type=int, help="Id of a project: the number in its address."),
        click.option(
            "--from-json",
            type=click.Path(path_type=Path),
            help="Label Studio's JSON or JSON-MIN export, its target storage (a file, or the folder), or a prediction.",
        ),
        click.option(
            "--videos",
            type=click.Path(path_type=Path),
            help="Folder with the videos, matched by name with or without Label Studio's upload prefix; or one video.",
        ),
        click.option(
            "--video-map",
            type=_FILE,
            help="CSV file with lines `video,file`: a task's id, or its video's URL or file name; and the file, "
            "relative to the CSV file.",
        ),
        click.option("--config", type=_FILE, help="Label config of the export file.  [default: inferred from it]"),
        click.option("--task", "tasks", type=int, multiple=True, help="Only this task; may be given several times."),
        click.option(
            "--predictions",
            type=click.Choice(["none", "missing", "only"]),
            default=predictions,
            help="Use predictions: never, for unannotated tasks, or instead of annotations.",
        ),
        click.option(
            "--model-version", default="", show_default=False, help="Model version of predictions.  [default: newest]"
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


def open_reader(
    project: int | None,
    from_json: Path | None,
    videos: Path | None,
    video_map: Path | None,
    config: Path | None,
    tasks: tuple[int, ...],
    **options: Any,
) -> AnnotationReader:
    """Open the annotated tasks that :func:`reader_options` describe.

    Raises:
        ConfigError: not exactly one of project and file is given, or it cannot be read.
        LabelStudioError, MediaError: see :class:`~ml_backend.datasets.annotation_reader.AnnotationReader`.
    """
    settings = settings_in_force()
    options |= {"videos": videos, "video_map": video_map, "only": tasks}
    if project is not None and from_json is None:
        client = LabelStudioClient.from_settings(settings)
        return AnnotationReader.from_project(client, project, settings, **options)
    if from_json is not None and project is None:
        parsed = read_label_config(config) if config else None
        return AnnotationReader.from_file(from_json, config=parsed, settings=settings, **options)
    raise ConfigError("One source of tasks is needed.", "Give either --project or --from-json.")


def finish(skipped: Sequence[SkippedTask]) -> None:
    """List skipped tasks on stderr, and exit with :data:`SKIPPED` if there are any."""
    if not skipped:
        return
    print(f"Skipped, {len(skipped)}:", file=sys.stderr)
    for item in skipped:
        print(f"  {item}", file=sys.stderr)
    sys.exit(SKIPPED)


def import_dataset(
    format_name: str,
    dataset: Path,
    out: Path,
    *,
    videos: Path | None,
    video_map: Path | None,
    config: Path | None,
    kind: ResultKind,
    url_prefix: str,
    first_frame: int | None,
) -> None:
    """Convert a dataset to Label Studio tasks, print a summary, and exit as :func:`finish` does.

    Args:
        videos: folder with the videos; by default the dataset's own.
        video_map: see :func:`~ml_backend.datasets.video_files.read_video_map`.
        first_frame: number of a video's first frame, 0 or 1, in YOLO and COCO; by default told from the numbers.
        config: label config with the regions' control names and frame rate; by default the documentation's example.

    Raises:
        ConfigError: tracks are not read from the format, or the files do not have it.
        StorageError: ``out`` cannot be written.
    """
    readers: dict[str, Callable[[Path], Iterator[ImportedVideo]]] = {
        "mot": read_mot,
        "cvat": read_cvat,
        "yolo-track": partial(read_yolo, first_frame=first_frame),
        "coco": partial(read_coco, first_frame=first_frame),
        "coco-seg": partial(read_coco, first_frame=first_frame),
    }
    if format_name not in readers:
        raise ConfigError(f"Tracks are not read from the format {format_name}.", f"Use one of {', '.join(readers)}.")
    if first_frame is not None and format_name in ("mot", "cvat"):
        raise ConfigError(
            f"The format {format_name} defines the number of the first frame.", "Leave out --first-frame."
        )
    control = read_label_config(config).video_controls[0] if config else _EXAMPLE_CONTROL
    folder = VideoFolder.of(videos, video_map, beside=dataset / "labels" if dataset.is_dir() else dataset)
    result = ImportResult()
    videos_with_tracks = list(readers[format_name](dataset))
    with progress_bar("Reading videos") as progress, atomic_text_writer(out) as file:
        tasks = to_tasks(videos_with_tracks, folder, control, result, kind=kind, url_prefix=url_prefix)
        file.write("[")
        for number, task in enumerate(tasks):
            file.write((",\n" if number else "\n") + json.dumps(task, ensure_ascii=False))
            progress(result.tasks + len(result.skipped), len(videos_with_tracks))
        file.write("\n]\n")
    config_labels = {label.value for label in control.labels}
    missing = sorted(set(result.labels) - config_labels) if config_labels else []
    if missing:
        print(f"The label config lacks these labels: {', '.join(missing)}.", file=sys.stderr)
    for reason, count in result.left_out.items():
        print(f"{reason}: {count}.", file=sys.stderr)
    summary = {
        "tasks": result.tasks,
        "regions": result.regions,
        "keyframes": result.keyframes,
        "labels": dict(result.labels),
        "skipped": len(result.skipped),
    }
    print(json.dumps(summary, ensure_ascii=False))
    finish(result.skipped)
