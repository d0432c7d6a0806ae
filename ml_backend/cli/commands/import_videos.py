"""Import videos into a Label Studio project, transcoded for browsers if needed, with their frame rates."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape

from ml_backend.cli.dev_stack.discover import container_in_force
from ml_backend.cli.export_command import SKIPPED
from ml_backend.cli.options import PROJECT
from ml_backend.cli.progress import fail_clearly, progress_bar
from ml_backend.core.errors import BackendError
from ml_backend.jobs.services.connections import connect_project
from ml_backend.label_studio.client import LabelStudioClient
from ml_backend.label_studio.importer import Importer, Outcome, find_videos

COLOURS = {"imported": "green", "skipped": "yellow", "failed": "red"}


@click.command(context_settings={"show_default": True})
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path))
@PROJECT
@click.option(
    "--local-files",
    is_flag=True,
    help="Serve the files from their folder below LOCAL_FILES_ROOT instead of uploading them.",
)
@click.option("--connect", is_flag=True, help="First connect the project to the backend, so that its tasks get tracks.")
@click.option("--dry-run", is_flag=True, help="Only print what would be done.")
@fail_clearly
def main(paths: tuple[Path, ...], project: int, local_files: bool, connect: bool, dry_run: bool) -> None:
    """Create a task for each video in PATHS (files or folders).

    Videos that browsers cannot play are transcoded to a copy. Files that the project already has are skipped. Those
    that failed are listed at the end, with cause and remedy, and the exit code is 3; the last line of stdout is JSON:
    imported, skipped, failed. With --connect, PATHS may be left out.
    """
    if not paths and not connect:
        raise click.UsageError("Name the videos to import, or --connect.")
    container = container_in_force()
    settings, client = container.settings, LabelStudioClient.from_settings(container.settings)
    console = Console(soft_wrap=True)
    videos = find_videos(paths)
    importer = Importer(client, project, settings, local_files=local_files, dry_run=dry_run)
    if connect and not dry_run:
        connect_project(container, project)
        console.print(f"Project {project} is connected to {settings.backend_url}.")
    count: Counter[str] = Counter(imported=0, skipped=0, failed=0)
    failed: list[Outcome] = []
    try:
        with progress_bar("Making playable copies") as progress:
            for outcome in importer.run(videos, progress):
                count[outcome.status] += 1
                if outcome.error:
                    failed.append(outcome)
                colour = COLOURS[outcome.status]
                console.print(f"[{colour}]{outcome.status:>8}[/] {escape(str(outcome.path))}: {escape(outcome.detail)}")
    except BackendError:
        left = len(videos) - count.total()
        files = "1 file is" if left == 1 else f"{left} files are"
        console.print(f"Stopped; {files} left. Run the same command again to continue.")
        raise
    finally:
        if failed:
            print(f"Failed, {len(failed)}:", file=sys.stderr)
        for outcome in failed:
            print(f"  {outcome.path}: {outcome.detail}", file=sys.stderr)
    if any(item["id"] == project and item["connected"] is False for item in container.lister.projects()):
        print(f"Project {project} is not connected to the backend, so it gets no tracks.", file=sys.stderr)
        print("Fix:   run this again with --connect.", file=sys.stderr)
    print(json.dumps(dict(count)))
    sys.exit(SKIPPED if failed else 0)
