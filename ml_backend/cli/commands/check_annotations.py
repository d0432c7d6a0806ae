"""List suspicious moments of annotations and predictions; the last line of stdout is JSON."""

from __future__ import annotations

import json
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import click

from ml_backend.cli.dev_stack.discover import settings_in_force
from ml_backend.cli.export_command import open_reader, reader_options
from ml_backend.cli.options import exit_on_sigterm
from ml_backend.cli.progress import fail_clearly, progress_bar
from ml_backend.core.files import atomic_text_writer, check_output
from ml_backend.detectors.weights import resolve_detector
from ml_backend.embeddings.hub import resolve_embedder
from ml_backend.rendering.review_report import ReportItem, report_items, report_page
from ml_backend.review.moments import Moment, find_moments
from ml_backend.review.reading import ReviewModels, ReviewTask, open_for_review
from ml_backend.review.repairs import describe

#: Exit codes.
SEVERE, FAILED = 1, 2
#: Moments with pictures in each report.
PICTURES = 20


@click.command(context_settings={"show_default": True})
@partial(reader_options, predictions="missing")
@click.option("--report", type=click.Path(path_type=Path), help="HTML page with pictures to write.")
@click.option("--force", is_flag=True, help="Overwrite the report.")
@click.option("--limit", type=click.IntRange(1), default=50, help="Moments to list per video.")
@click.option(
    "--detector/--no-detector",
    default=True,
    help="Compare with what the detector finds; takes as long as a prediction.",
)
@partial(fail_clearly, exit_code=FAILED)
def main(report: Path | None, force: bool, limit: int, detector: bool, **source_options: Any) -> None:
    """List what is probably wrong in annotations, and in predictions of tasks without one.

    The most worthwhile comes first, per video. Exit code 0: nothing severe; 1: something is rather wrong than not;
    2: an error, or a task that could not be read.
    """
    exit_on_sigterm()
    if report is not None:
        check_output(report, (".html", ".htm"), force, "--report")
    settings = settings_in_force()
    reader = open_reader(**source_options)
    resolved = resolve_detector(settings, download=True) if detector else None
    if resolved is not None and resolved.kind == "motion":
        print("The motion detector tells no objects from other motion: detections are not compared.", file=sys.stderr)
        resolved = None
    models = ReviewModels(settings, resolve_embedder(settings, download=True), resolved)
    items: list[ReportItem] = []
    notes: list[str] = []
    kinds: Counter[str] = Counter()
    videos = without_video = severe = 0
    for task_video in reader.task_videos():
        title = f"Reviewing task {task_video.task_id}, {task_video.name}"
        with progress_bar(title) as progress, open_for_review(task_video, models, progress) as task:
            moments = find_moments(task.video)
            videos, without_video = videos + 1, without_video + (task.path is None)
            severe += sum(moment.severe for moment in moments)
            kinds.update(moment.kind for moment in moments)
            for note in task.notes:
                notes.append(f"Task {task.video.task}, {task.name}: {note}")
                print(notes[-1], file=sys.stderr)
            for moment in moments[:limit]:
                click.echo(_line(task, moment))
            if len(moments) > limit:
                click.echo(f"… and {len(moments) - limit} more; see --limit.")
            if report is not None:
                items += report_items(task, moments[:limit], PICTURES)
    for skipped in reader.skipped:
        notes.append(f"Skipped: {skipped}")
        print(notes[-1], file=sys.stderr)
    if report is not None:
        items.sort(key=lambda item: -item.moment.gain)
        with atomic_text_writer(report) as file:
            file.write(report_page(items, kinds.total(), notes))
    print(
        json.dumps(
            {
                "videos": videos,
                "without_video": without_video,
                "skipped": len(reader.skipped),
                "moments": kinds.total(),
                "severe": severe,
                "kinds": dict(kinds),
                "report": str(report) if report else None,
            }
        )
    )
    sys.exit(SEVERE if severe else FAILED if reader.skipped else 0)


def _line(task: ReviewTask, moment: Moment) -> str:
    """Return a moment as a line: task, frame, time, tracks, reason, repair, gain."""
    names = ", ".join(f"track {track} ({task.region_ids[track]})" for track in moment.tracks) or "no track"
    return (
        f"task {moment.task}  frame {moment.first + 1}  {moment.first / task.video.fps:.2f} s  {names}  "
        f"{moment.kind}{' (severe)' if moment.severe else ''}: {moment.reason} {describe(moment.repair)}  "
        f"gain {moment.gain:.0f} boxes"
    )
