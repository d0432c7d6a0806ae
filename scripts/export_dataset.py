#!/usr/bin/env python
"""Make a dataset of annotated videos, for training and for other tools; or bring one of theirs to Label Studio."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ml_backend.cli.export_command import bring_back, finish, open_source, source_options
from ml_backend.cli.progress import fail_clearly, progress_bar
from ml_backend.datasets.dataset_export import FORMATS, DatasetOptions, export_dataset
from ml_backend.datasets.images import ImageFormat
from ml_backend.datasets.sampling import Sampling, parse_ratio
from ml_backend.datasets.selection import chosen_classes


@click.command(context_settings={"show_default": True})
@click.option("--format", "format_name", type=click.Choice(list(FORMATS)), required=True)
@source_options(predictions="none")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write; a file on the way back.")
@click.option(
    "--all-annotators",
    is_flag=True,
    help="Every submitted annotation, as <video>-by-<annotator>, to compare people: not for the format yolo.",
)
@click.option("--stride", type=int, default=1, help="Every so many frames.")
@click.option("--keyframes", is_flag=True, help="Only frames with a keyframe.")
@click.option("--negatives", type=float, help="Most frames without objects, as a share of the others.  [default: all]")
@click.option("--drop-near-duplicates", is_flag=True, help="Leave out frames on which nothing has moved.")
@click.option(
    "--split",
    type=click.Choice(["auto", "video", "time", "ratio"]),
    default="auto",
    help="Whole videos, the end of each, or frames at random.  auto: videos from five on, else time.",
)
@click.option("--ratio", default="80:20", help="Shares of train, val and test.")
@click.option("--seed", type=int, default=0, help="Of everything that is left to chance.")
@click.option(
    "--classes",
    multiple=True,
    help="Labels in the order of their numbers, separated by commas, or given one by one.  [default: all]",
)
@click.option("--image-format", type=click.Choice(["jpg", "png"]), default="jpg")
@click.option("--quality", type=int, default=95, help="Of JPEG, 1 to 100.")
@click.option("--no-images", is_flag=True, help="Write labels only.")
@click.option("--crops", is_flag=True, help="Also write each box's picture to crops/, for classifiers.")
@click.option(
    "--to-label-studio",
    type=click.Path(path_type=Path, exists=True),
    help="The other way: read this dataset and write tasks that Label Studio can import to --out.",
)
@click.option("--as", "kind", type=click.Choice(["predictions", "annotations"]), default="predictions")
@click.option(
    "--url-prefix", default="", show_default=False, help="Put before paths in tasks: /data/local-files/?d=videos/"
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
    to_label_studio: Path | None,
    kind: Any,
    url_prefix: str,
    **where: Any,
) -> None:
    """Export annotated videos as pictures and labels.

    Run again, it goes on where it was interrupted. The last line of stdout is JSON. The exit code is 3 if everything
    was exported but some videos could not be found or read; they are listed.
    """
    if to_label_studio is not None:
        places = {name: where[name] for name in ("videos", "video_map", "config")}
        bring_back(format_name, to_label_studio, out, **places, kind=kind, url_prefix=url_prefix)
        return
    sampling = Sampling(stride, keyframes, negatives, not drop_near_duplicates, split, parse_ratio(ratio), seed)
    source = open_source(**where, all_annotators=all_annotators)
    # A label may have a comma itself.
    labels = {label for part in source.task_videos() for label in part.labels} if classes else set()
    names = chosen_classes(classes, labels)
    options = DatasetOptions(format_name, sampling, ImageFormat(image_format, quality), names, crops, not no_images)
    with progress_bar("Exporting") as progress:
        result = export_dataset(source, out, options, progress=progress)
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
        "skipped": len(source.skipped),
    }
    print(json.dumps(summary, ensure_ascii=False))
    finish(source.skipped)


if __name__ == "__main__":
    main()
