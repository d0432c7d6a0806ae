"""Draw a contact sheet of a label's exemplars."""

from __future__ import annotations

from pathlib import Path

import click

from ml_backend.cli.dev_stack.discover import container_in_force
from ml_backend.cli.options import PROJECT
from ml_backend.cli.progress import fail_clearly
from ml_backend.core.files import check_output
from ml_backend.core.types import UNLABELLED
from ml_backend.labeling.modes import require_embedder
from ml_backend.rendering.contact_sheet import (
    BACKGROUND_NAME,
    FORMATS,
    contact_sheet,
    exemplar_cards,
    sheet_title,
    write_sheet,
)
from ml_backend.rendering.text import Fonts


@click.command(context_settings={"show_default": True})
@PROJECT
@click.option("--label", required=True, help=f"Label of the project; {BACKGROUND_NAME}: unlabelled regions.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="PNG, JPG or WebP to write.")
@click.option("--limit", type=click.IntRange(1, 2000), default=200, help="Maximum number of exemplars.")
@click.option("--font", type=click.Path(path_type=Path), help="Font file for the captions.")
@click.option("--force", is_flag=True, help="Overwrite.")
@fail_clearly
def main(project: int, label: str, out: Path, limit: int, font: Path | None, force: bool) -> None:
    """Write a contact sheet of a label's exemplars. Settings of a running `up.sh` stack are used."""
    check_output(out, FORMATS, force)
    fonts = Fonts(font)
    projects = container_in_force().projects
    model_id = require_embedder(projects.models(project).classifier).model_id
    label = UNLABELLED if label == BACKGROUND_NAME else label
    exemplars = exemplar_cards(projects.patterns, project, model_id, label, limit)
    title = sheet_title(exemplars)
    write_sheet(contact_sheet(exemplars.cards, title, fonts), out)
    if fonts.note():
        click.echo(f"Note: {fonts.note()}", err=True)
    print(f"{title}; written to {out}")
