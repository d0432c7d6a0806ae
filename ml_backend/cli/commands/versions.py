"""List a project's trained versions with metrics and acceptance, and switch between them."""

from __future__ import annotations

import getpass
import json
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.table import Table

from ml_backend.cli.dev_stack.discover import container_in_force
from ml_backend.cli.options import PROJECT
from ml_backend.cli.progress import fail_clearly


@click.group()
def main() -> None:
    """Versions of a project. Settings of a running `up.sh` stack are used."""


@main.command("list")
@PROJECT
@click.option("--json", "as_json", is_flag=True, help="Print all details as JSON.")
@fail_clearly
def list_(project: int, as_json: bool) -> None:
    """List the versions, newest first, with the gate's metrics and their acceptance."""
    registry = container_in_force().trainings.versions(project)
    if as_json:
        print(json.dumps(registry))
        return
    console = Console()
    console.print(f"In use: {registry['current']} ({registry['model_version']})", highlight=False)
    columns = ("version", "state", "tracks", "mAP50", "mAP50-95", "HOTA")
    table = Table(*columns, box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for version in registry["versions"]:
        candidate, incumbent = (version["metrics"].get(name) or {} for name in ("candidate", "incumbent"))
        table.add_row(
            version["version"],
            version["state"],
            str(version["tracks"] or ""),
            *(_change(incumbent.get(name), candidate.get(name)) for name in ("map50", "map50_95", "hota")),
        )
    console.print(table)
    for version in registry["versions"]:
        if against := version["metrics"].get("against", ""):
            against = f" (compared with {against})"
        if version["reason"] or against:
            console.print(f"{version['version']}{against}: {version['reason']}", highlight=False, markup=False)
    if registry["acceptance"]:
        console.print("\nWhat annotators did with predictions:")
        names = ["tasks", "accepted", "moved", "relabelled", "deleted", "merged", "added"]
        for item in registry["acceptance"]:
            rate = item["acceptance_rate"]
            counts = ", ".join(f"{name} {item[name]}" for name in names)
            share = "" if rate is None else f": {rate:.0%} accepted"
            console.print(f"{item['model_version']}{share}\n  {counts}", highlight=False)


@main.command()
@PROJECT
@click.argument("version")
@fail_clearly
def use(project: int, version: str) -> None:
    """Switch the project to VERSION, such as v2; `base` is the configured detector."""
    container = container_in_force()
    print(container.trainings.activate(project, version, _who()))
    container.audit.record(_who(), "switch_model", project, version)


@main.command()
@PROJECT
@click.argument("version")
@fail_clearly
def decline(project: int, version: str) -> None:
    """Refuse VERSION, which the gate has proposed; to accept it, `use` it."""
    container = container_in_force()
    container.trainings.decline(project, version, _who())
    container.audit.record(_who(), "decline", project, version)
    print(f"{version} was declined.")


@main.command()
@PROJECT
@fail_clearly
def rollback(project: int) -> None:
    """Roll back to the previously used version."""
    container = container_in_force()
    print(container.trainings.rollback(project, _who()))
    container.audit.record(_who(), "rollback", project)


def _who() -> str:
    """Return under which name what is done here is recorded."""
    return f"{getpass.getuser()}, scripts/versions.py"


def _change(before: Any, after: Any) -> str:
    if after is None:
        return ""
    return f"{after:.3f}" if before is None else f"{before:.3f} -> {after:.3f}"
