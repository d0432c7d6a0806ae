"""Inspect, search, export and import a project's pattern bank, and switch its mode."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import click
from rich.console import Console
from rich.table import Table

from ml_backend.cli.dev_stack.discover import container_in_force
from ml_backend.cli.options import PROJECT
from ml_backend.cli.progress import fail_clearly
from ml_backend.core.settings import Mode
from ml_backend.jobs.services.patterns import Patterns

JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")


@click.group()
def main() -> None:
    """Learned labels of a project. Settings of a running `up.sh` stack are used."""


@main.command()
@PROJECT
@JSON
@fail_clearly
def info(project: int, as_json: bool) -> None:
    """Show the learned labels, their exemplars and similarity thresholds."""
    report = _patterns().info(project)
    if as_json:
        print(json.dumps(report))
        return
    console = Console()
    console.print(f"Mode {report['mode']}; embedder {report['embedder'] or 'none'}; version {report['model_version']}")
    for note in report["notes"]:
        console.print(f"Note: {note}")
    _table(
        console,
        [
            "label",
            "objects",
            "exemplars",
            "suspicious",
            "tasks",
            "clusters",
            "similar from",
            "safe from",
            "detected as",
        ],
        [
            [
                label or "(background)",
                facts["objects"],
                facts["exemplars"],
                len(facts.get("suspicious", ())) or "",
                facts["tasks"],
                facts.get("clusters", ""),
                facts.get("threshold", ""),
                facts.get("safe_threshold", ""),
                ", ".join(facts.get("classes", ())),
            ]
            for label, facts in report["labels"].items()
        ],
    )
    for jump in report["jumps"]:
        console.print(
            f"Track {jump['region']} ({jump['label']}) of task {jump['task']} seems to change from one object to "
            f"another at frame {jump['frame']}: its {jump['untaught']} part is not taught.",
            highlight=False,
        )


@main.command()
@PROJECT
@click.argument("mode", required=False, type=click.Choice([*get_args(Mode), "default"]))
@fail_clearly
def mode(project: int, mode: str | None) -> None:
    """Show a project's labelling mode, or switch it to MODE; `default` is the setting MODE."""
    patterns = _patterns(None if mode is None else project)
    if mode is not None:
        patterns.switch(project, "" if mode == "default" else mode)
    print(patterns.projects.mode(project))


@main.command()
@PROJECT
@fail_clearly
def learn(project: int) -> None:
    """Have the worker learn all annotations of a project again."""
    _patterns(project).learn(project)
    print("Requested: the worker learns all annotations.")


@main.command()
@PROJECT
@JSON
@click.option("--label", required=True)
@click.option("--limit", type=click.IntRange(1, 10_000), default=20, show_default=True)
@click.option("--safe", is_flag=True, help="Only tracks similar enough to be labelled without review (pseudo-labels).")
@fail_clearly
def similar(project: int, as_json: bool, label: str, limit: int, safe: bool) -> None:
    """Find the tracks in unannotated tasks that are most similar to a label's exemplars."""
    console = Console(stderr=True)
    tracks, skipped = _patterns(project).similar(project, label, limit=limit, safe_only=safe)
    for reason in skipped:
        console.print(f"Left out: {reason}", highlight=False)
    rows = [track.summary() for track in tracks]
    if as_json:
        print(json.dumps(rows))
        return
    columns = ["score", "safe", "task", "frame", "time", "original_class"]
    _table(Console(), columns, [["yes" if row[n] is True else row[n] or "" for n in columns] for row in rows])


@main.command("export")
@PROJECT
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="File to write.")
@fail_clearly
def export_(project: int, out: Path) -> None:
    """Write a project's pattern bank to a file, for another project or machine."""
    print(f"{_patterns().export(project, out)} exemplars written to {out}")


@main.command("import")
@PROJECT
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@fail_clearly
def import_(project: int, file: Path) -> None:
    """Add the exemplars of FILE, which must be of the same embedder, to a project."""
    print(f"{_patterns(project).import_file(project, file)} exemplars imported from {file}")


@main.command("remove-imported")
@PROJECT
@fail_clearly
def remove_imported(project: int) -> None:
    """Remove all imported exemplars from a project, and keep those of its annotations."""
    _patterns().remove_imported(project)
    print("Removed.")


def _patterns(existing_project: int | None = None) -> Patterns:
    return Patterns(container_in_force(existing_project))


def _table(console: Console, columns: list[str], rows: list[list[Any]]) -> None:
    table = Table(*columns)
    for row in rows:
        table.add_row(*(f"{value:.3f}" if isinstance(value, float) else str(value) for value in row))
    console.print(table)
