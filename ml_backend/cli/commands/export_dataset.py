"""Export annotated videos as a dataset, or import a dataset of another tool to Label Studio."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click

from ml_backend.cli.dev_stack.discover import settings_in_force
from ml_backend.cli.export_command import finish, import_dataset, open_reader, reader_options
from ml_backend.cli.progress import fail_clearly, progress_bar
from ml_backend.datasets.exporter import FORMATS, DatasetOptions, export_dataset
from ml_backend.datasets.images import ImageFormat
from ml_backend.datasets.sampling import Sampling, parse_ratio
from ml_backend.datasets.selection import chosen_classes
from ml_backend.inference.segmenter import use_segmenter


@click.command(context_settings={"show_default": True})
@click.option("--format", "format_name", type=click.Choice(list(FORMATS)), required=True)
@reader_options
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Folder to write; with --to-label-studio, a file."
)
@click.option(
    "--all-annotators",
    is_flag=True,
    help="Export every submitted annotation, as <video>-by-<annotator>; not for the format yolo.",
)
@click.option("--stride", type=int, default=1, help="Export every n-th frame.")
@click.option("--keyframes", is_flag=True, help="Only frames with a keyframe.")
@click.option(
    "--negatives", type=float, help="Maximum frames without objects, as a share of the others.  [default: all]"
)
@click.option("--drop-near-duplicates", is_flag=True, help="Skip frames on which nothing has moved.")
@click.option(
    "--split",
    type=click.Choice(["auto", "video", "time", "ratio"]),
    default="auto",
    help="By whole videos, by time in each video, or random frames.  auto: video from five videos on, else time.",
)
@click.option("--ratio", default="80:20", help="Shares of train, val and test.")
@click.option("--seed", type=int, default=0, help="Random seed.")
@click.option(
    "--classes",
    multiple=True,
    help="Labels in the order of their class ids, separated by commas, or one per option.  [default: all]",
)
@click.option("--image-format", type=click.Choice(["jpg", "png"]), default="jpg")
@click.option("--quality", type=int, default=95, help="JPEG quality, 1 to 100.")
@click.option("--no-images", is_flag=True, help="Write labels only.")
@click.option("--crops", is_flag=True, help="Also write a crop of each box to crops/, for classifiers.")
@click.option("--tight-boxes", is_flag=True, help="Shrink each box to the mask that SEGMENTER makes of it.")
@click.option(
    "--global-ids",
    is_flag=True,
    help="Number objects alike in all tasks: the tracks of mot, and the field global_id in coco and coco-seg.",
)
@click.option(
    "--to-label-studio",
    type=click.Path(path_type=Path, exists=True),
    help="Import instead: read this dataset and write Label Studio tasks to --out.",
)
@click.option("--as", "kind", type=click.Choice(["predictions", "annotations"]), default="predictions")
@click.option(
    "--url-prefix", default="", show_default=False, help="Prefix of video paths in tasks: /data/local-files/?d=videos/"
)
@click.option(
    "--first-frame",
    type=click.IntRange(0, 1),
    help="Number of the first frame in yolo-track or coco, with --to-label-studio.  [default: told from the numbers]",
)
@fail_clearly
def main(
    format_name: str,
    out: Path,
    all_annotators: bool,
    stride: int,
    keyframes: bool,
    negatives: float | None,
    drop_near_duplicates: bool,
    split: Any,
    ratio: str,
    seed: int,
    classes: tuple[str, ...],
    image_format: Any,
    quality: int,
    no_images: bool,
    crops: bool,
    tight_boxes: bool,
    global_ids: bool,
    to_label_studio: Path | None,
    kind: Any,
    url_prefix: str,
    first_frame: int | None,
    **source_options: Any,
) -> None:
    """Export annotated videos as images and labels.

    An interrupted export continues when run again. The last line of stdout is JSON. The exit code is 3 if some videos
    were skipped because they could not be found or read; they are listed.
    """
    if to_label_studio is not None:
        import_options = {name: source_options[name] for name in ("videos", "video_map", "config")}
        import_options |= {"kind": kind, "url_prefix": url_prefix, "first_frame": first_frame}
        import_dataset(format_name, to_label_studio, out, **import_options)
        return
    sampling = Sampling(stride, keyframes, negatives, not drop_near_duplicates, split, parse_ratio(ratio), seed)
    reader = open_reader(**source_options, all_annotators=all_annotators)
    # The labels are needed to split --classes, since a label may contain a comma.
    labels = {label for part in reader.task_videos() for label in part.labels} if classes else set()
    names = chosen_classes(classes, labels)
    form = ImageFormat(image_format, quality)
    options = DatasetOptions(format_name, sampling, form, names, crops, not no_images, tight_boxes, global_ids)
    with (
        use_segmenter(settings_in_force()) if options.needs_masks else nullcontext() as segmenter,
        progress_bar("Exporting") as progress,
    ):
        result = export_dataset(reader, out, options, progress=progress, segmenter=segmenter)
    for note in result.notes:
        print(note, file=sys.stderr)
    for label, count in result.left_out.items():
        print(f"Left out: {count} objects {f'labelled {label}' if label else 'without a label'}.", file=sys.stderr)
    summary = {
        "videos": result.videos,
        "unchanged": result.continued,
        "pictures": dict(result.images),
        "boxes": dict(result.boxes),
        "classes": list(result.classes),
        "skipped": len(reader.skipped),
    }
    print(json.dumps(summary, ensure_ascii=False))
    finish(reader.skipped)
