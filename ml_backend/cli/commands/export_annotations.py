"""Write annotations.json: every box with its time, label, pixels and origin."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from ml_backend.cli.export_command import finish, open_reader, reader_options
from ml_backend.cli.options import exit_on_sigterm
from ml_backend.cli.progress import fail_clearly, progress_bar
from ml_backend.datasets.formats.annotations_json import export_annotations, parse_sample
from ml_backend.datasets.statistics import as_table, collect_statistics, write_csv


@click.command(context_settings={"show_default": True})
@reader_options
@click.option("--out", type=click.Path(path_type=Path), required=True, help="File to write.")
@click.option(
    "--sample", default="all", metavar="all|keyframes|N", help="Every frame, keyframes, or N frames per second."
)
@click.option("--with-video", is_flag=True, help='Add the field "video" to each row.')
@click.option("--with-ids", is_flag=True, help='Add the fields "frame_number" and "track_id" to each row.')
@click.option("--global-ids", is_flag=True, help='Add the field "global_id" to rows of objects that have one.')
@click.option("--all-annotators", is_flag=True, help='Export every submitted annotation; adds the field "annotator".')
@click.option("--statistics", is_flag=True, help="Also print a table of annotation statistics.")
@click.option(
    "--statistics-plot",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also plot the statistics: a PNG, SVG or PDF file.",
)
@click.option(
    "--statistics-csv", type=click.Path(path_type=Path, dir_okay=False), help="Also write the statistics as CSV."
)
@fail_clearly
def main(
    out: Path,
    sample: str,
    with_video: bool,
    with_ids: bool,
    global_ids: bool,
    all_annotators: bool,
    statistics: bool,
    statistics_csv: Path | None,
    statistics_plot: Path | None,
    **source_options: Any,
) -> None:
    """Export the annotations of a project as rows of JSON.

    Of each task the ground-truth annotation is used, else the latest. The last line of stdout is JSON.
    The exit code is 3 if some videos were skipped because they could not be found or read; they are listed.
    """
    exit_on_sigterm()
    frames = parse_sample(sample)
    reader = open_reader(**source_options, all_annotators=all_annotators)
    with progress_bar("Exporting videos") as progress:
        written = export_annotations(
            reader,
            out,
            sample=frames,
            with_video=with_video,
            with_ids=with_ids,
            global_ids=global_ids,
            progress=progress,
        )
    if not written.videos and not reader.skipped:
        print("Nothing is annotated. --predictions missing exports what only models have labelled.", file=sys.stderr)
    if written.unlabelled:
        print(f"{written.unlabelled} objects without a label were left out.", file=sys.stderr)
    if statistics or statistics_csv or statistics_plot:
        with progress_bar("Counting") as progress:
            counts = collect_statistics(reader, progress)
        if statistics_csv:
            write_csv(counts, statistics_csv)
        if statistics_plot:
            from ml_backend.rendering.plots import plot_statistics

            if note := plot_statistics(counts, statistics_plot):
                print(note, file=sys.stderr)
        if statistics:
            Console(width=None if sys.stdout.isatty() else 140).print(as_table(counts))
    print(
        json.dumps(
            {
                "videos": written.videos,
                "rows": written.rows,
                "files": [str(out)],
                "skipped": len(reader.skipped),
            }
        )
    )
    finish(reader.skipped)
