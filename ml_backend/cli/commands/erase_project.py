"""Erase what was made of a project's videos and annotations."""

from __future__ import annotations

import getpass

import click

from ml_backend.cli.dev_stack.discover import container_in_force
from ml_backend.cli.options import PROJECT
from ml_backend.cli.progress import fail_clearly
from ml_backend.jobs.services.erasure import check_deleted, erase


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@PROJECT
@click.option("--yes", is_flag=True, help="Do not ask.")
@fail_clearly
def main(project: int, yes: bool) -> None:
    """Erase what was made of a project: predictions, patterns, versions, exports, rendered videos, uploads.

    Delete the project in Label Studio first: while it exists there, it is predicted and learned again.
    """
    container = container_in_force()
    check_deleted(container, project)
    if not yes:
        click.confirm(f"Erase everything of project {project} for good?", abort=True)
    removed = erase(container, project, getpass.getuser())
    print(", ".join(f"{count} {what}" for what, count in removed.items()), "were removed.")
