#!/usr/bin/env python
"""Write annotations.json: every box with its time, label, pixels and origin."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ml_backend.cli.export_command import finish, open_source, source_options
from ml_backend.cli.progress import fail_clearly, progress_bar
from ml_backend.datasets.formats.annotations_json import export_annotations, parse_sample
from ml_backend.datasets.statistics import as_table, collect_statistics, write_csv


@click.command(context_settings={"show_default": True})
@source_options(predictions="missing")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="File to write.")
@click.option("--sample", default="all", metavar="all|keyframes|N", help="Every frame, keyframes, or N a second.")
@click.option("--with-video", is_flag=True, help='Add the field "video" to each row.')
@click.option("--all-annotators", is_flag=True, help='Every submitted annotation; adds the field "annotator".')
@click.option("--statistics", is_flag=True, help="Also print a table of what has been annotated.")
@click.option(
    "--statistics-plot",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also draw it: a PNG, SVG or PDF file.",
)
@click.option("--statistics-csv", type=click.Path(path_type=Path, dir_okay=False), help="Also write that table.")
@fail_clearly
def main(
    out: Path,
    sample: str,
    with_video: bool,
    all_annotators: bool,
    statistics: bool,
    statistics_csv: Path | None,
    statistics_plot: Path | None,
    **where: Any,
) -> None:
    """Export the annotations of a project as rows of JSON.

    Of a task's annotations the ground truth counts, else the latest. The last line of stdout is JSON.
    The exit code is 3 if everything was exported but some videos could not be found or read; they are listed.
    """
    # Ended from outside, leave nothing half-done either.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    chosen = parse_sample(sample)
    source = open_source(**where, all_annotators=all_annotators)
    with progress_bar("Exporting videos") as progress:
        written = export_annotations(source, out, sample=chosen, with_video=with_video, progress=progress)
    if written.unlabelled:
        print(f"{written.unlabelled} objects without a label were left out.", file=sys.stderr)
    if statistics or statistics_csv or statistics_plot:
        with progress_bar("Counting") as progress:
            counted = collect_statistics(source, progress)
        if statistics_csv:
            write_csv(counted, statistics_csv)
        if statistics_plot:
            from ml_backend.rendering.plots import plot_statistics

            if note := plot_statistics(counted, statistics_plot):
                print(note, file=sys.stderr)
        if statistics:
            Console(width=None if sys.stdout.isatty() else 140).print(as_table(counted))
    print(
        json.dumps(
            {
                "videos": written.videos,
                "rows": written.rows,
                "files": [str(out)],
                "skipped": len(source.skipped),
            }
        )
    )
    finish(source.skipped)


if __name__ == "__main__":
    main()
