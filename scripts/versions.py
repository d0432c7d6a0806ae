#!/usr/bin/env python
"""A project's versions: what was trained, how good it is, what people accepted; and which one is in use."""

from __future__ import annotations

import getpass
import json
import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ml_backend.cli.dev_stack.discover import settings_in_force
from ml_backend.cli.progress import fail_clearly
from ml_backend.server.container import WebContainer

PROJECT = click.option("--project", type=int, required=True, help="Id of the project: the number in its address.")


@click.group()
def main() -> None:
    """Versions of a project. Beside a stack that `up.sh` runs, nothing needs to be configured."""


@main.command("list")
@PROJECT
@click.option("--json", "as_json", is_flag=True, help="Print everything that is known, as JSON.")
@fail_clearly
def list_(project: int, as_json: bool) -> None:
    """List the versions, newest first, with what the gate measured and what people accepted."""
    found = _services().trainings.versions(project)
    if as_json:
        print(json.dumps(found))
        return
    console = Console()
    console.print(f"In use: {found['current']} ({found['model_version']})", highlight=False)
    table = Table("version", "state", "tracks", "mAP50", "mAP50-95", "HOTA", "compared with", "why")
    for version in found["versions"]:
        mine, others = (version["metrics"].get(name) or {} for name in ("candidate", "incumbent"))
        table.add_row(
            version["version"],
            version["state"],
            str(version["tracks"] or ""),
            *(_pair(others.get(name), mine.get(name)) for name in ("map50", "map50_95", "hota")),
            version["metrics"].get("against", ""),
            version["reason"],
        )
    console.print(table)
    if found["acceptance"]:
        console.print("What people did with predictions:")
        names = ["tasks", "accepted", "moved", "relabelled", "deleted", "merged", "added"]
        table = Table("model version", *names, "acceptance")
        for item in found["acceptance"]:
            rate = item["acceptance_rate"]
            table.add_row(
                item["model_version"] or "(no prediction)",
                *(str(item[name]) for name in names),
                "" if rate is None else f"{rate:.0%}",
            )
        console.print(table)


@main.command()
@PROJECT
@click.argument("version")
@fail_clearly
def use(project: int, version: str) -> None:
    """Switch the project to VERSION, such as v2; `base` is the detector of the settings."""
    print(_services().trainings.activate(project, version, f"{getpass.getuser()}, scripts/versions.py"))


@main.command()
@PROJECT
@fail_clearly
def rollback(project: int) -> None:
    """Go back to the version that was in use before the present one."""
    trainings = _services().trainings
    print(trainings.activate(project, trainings.before(project), f"{getpass.getuser()}, scripts/versions.py"))


def _pair(before: Any, after: Any) -> str:
    if after is None:
        return ""
    return f"{after:.3f}" if before is None else f"{before:.3f} -> {after:.3f}"


def _services() -> WebContainer:
    return WebContainer(settings_in_force()[0])


if __name__ == "__main__":
    main()
