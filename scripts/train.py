#!/usr/bin/env python
"""Retrain a project's detector from its annotations; workers do it, and this command shows how far they are."""

from __future__ import annotations

import getpass
import json
import sys
import time
from pathlib import Path
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ml_backend.cli.dev_stack.discover import settings_in_force
from ml_backend.cli.progress import fail_clearly
from ml_backend.core.errors import TrainingFailed
from ml_backend.server.container import WebContainer

#: Exit code where the gate refuses the result.
REFUSED = 4
PROJECT = click.option("--project", type=int, required=True, help="Id of the project: the number in its address.")


@click.group()
def main() -> None:
    """Trainings of a project. Beside a stack that `up.sh` runs, nothing needs to be configured."""


@main.command()
@PROJECT
@click.option("--force", is_flag=True, help="Also if nothing has changed since the last training.")
@click.option("--no-wait", is_flag=True, help="Only request it.")
@fail_clearly
def start(project: int, force: bool, no_wait: bool) -> None:
    """Train now. The last line is JSON: version, state, reason and metrics; exit code 4 if the gate refuses it."""
    services = WebContainer(settings_in_force()[0])
    services.queue.ping()
    last = services.registry.last(project)
    earlier = {(job["id"], job["ended_at"]) for job in services.queue.failed_jobs()}
    services.trainings.start(project, f"{getpass.getuser()}, scripts/train.py", force=force)
    if no_wait:
        return
    told = ""
    while services.trainings.is_wanted(project):
        told = _tell(services, project, told)
        time.sleep(1.0)
    version = services.registry.last(project)
    if version is None or (last is not None and version.id == last.id):
        failed = [job for job in services.queue.failed_jobs() if (job["id"], job["ended_at"]) not in earlier]
        errors = [job["error"] for job in failed if job["id"] == f"train-{project}"]
        if errors:
            raise TrainingFailed(errors[0])
        print(json.dumps({"version": version.name if version else None, "state": "unchanged", "reason": ""}))
        return
    print(json.dumps({"version": version.name, **_facts(version)}))
    sys.exit({"promoted": 0, "refused": REFUSED}.get(version.state, 1))


def _facts(version: Any) -> dict[str, Any]:
    return {"state": version.state, "reason": version.reason, "metrics": version.metrics}


def _tell(services: WebContainer, project: int, told: str) -> str:
    """Say what has changed since ``told``."""
    version = services.registry.active(project)
    if version is None:
        text = "Waiting for a worker"
    elif version.state == "training" and version.history:
        epoch = version.history[-1]
        figures = ", ".join(
            f"{name} {epoch[name]:.3f}" for name in ("map50", "map50_95") if epoch.get(name) is not None
        )
        text = f"{version.name}: epoch {epoch.get('epoch')} of {epoch.get('epochs')}, {figures}"
    else:
        text = f"{version.name}: {version.state}"
    if text != told:
        print(text, file=sys.stderr, flush=True)
    return text


@main.command()
@PROJECT
@fail_clearly
def cancel(project: int) -> None:
    """Stop the training that runs, and take waiting ones back."""
    WebContainer(settings_in_force()[0]).trainings.cancel(project)
    print("Cancelled.")


@main.command()
@PROJECT
@click.argument("values", required=False)
@fail_clearly
def policy(project: int, values: str | None) -> None:
    """Show when the project retrains by itself, or give it VALUES of its own, such as '{"min_tracks": 5}'."""
    services = WebContainer(settings_in_force()[0])
    if values is not None:
        try:
            parsed = json.loads(values)
        except ValueError as error:
            raise click.BadParameter(f"not JSON: {error}") from error
        services.trainings.set_policy(project, parsed)
    print(json.dumps(services.trainings.versions(project)["policy"]))


if __name__ == "__main__":
    main()
