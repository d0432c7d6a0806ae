"""Fine-tune a project's detector on its annotations. Workers do it; this command shows progress."""

from __future__ import annotations

import getpass
import json
import sys
import time

import click

from ml_backend.cli.dev_stack.discover import container_in_force
from ml_backend.cli.options import PROJECT
from ml_backend.cli.progress import fail_clearly
from ml_backend.core.errors import TrainingFailed
from ml_backend.jobs.container import Container

#: Exit code if the version is not used, because the gate refuses or proposes it.
NOT_USED = 4


@click.group()
def main() -> None:
    """Trainings of a project. Settings of a running `up.sh` stack are used."""


@main.command()
@PROJECT
@click.option("--force", is_flag=True, help="Train even if nothing has changed since the last training.")
@click.option("--no-wait", is_flag=True, help="Do not wait for the training.")
@fail_clearly
def start(project: int, force: bool, no_wait: bool) -> None:
    """Train now. The last line is JSON: version, state, reason and metrics; exit code 4 if the gate refuses or
    only proposes it.

    If nothing has changed since the last training, nothing is started, and the exit code is 1.
    """
    container = container_in_force(project)
    container.queue.ping()
    last = container.registry.last(project)
    earlier = {(job["id"], job["ended_at"]) for job in container.queue.failed_jobs()}
    container.trainings.start(project, f"{getpass.getuser()}, scripts/train.py", force=force)
    if no_wait:
        return
    status = ""
    while container.trainings.is_wanted(project):
        status = _print_status(container, project, status)
        time.sleep(1.0)
    version = container.registry.last(project)
    if version is None or (last is not None and version.id == last.id):
        failed = [job for job in container.queue.failed_jobs() if (job["id"], job["ended_at"]) not in earlier]
        errors = [job["error"] for job in failed if job["id"] == f"train-{project}"]
        if errors:
            raise TrainingFailed(errors[0])
        print(json.dumps({"version": version.name if version else None, "state": "unchanged", "reason": ""}))
        return
    outcome = {"state": version.state, "reason": version.reason, "metrics": version.metrics}
    print(json.dumps({"version": version.name, **outcome}))
    if version.state == "proposed":
        name = f"--project {project} {version.name}"
        print(
            f"{version.name} is proposed, not used yet. Fix: see what changes in the control room, then "
            f"scripts/versions.py use {name}, or scripts/versions.py decline {name}.",
            file=sys.stderr,
        )
    sys.exit({"promoted": 0, "proposed": NOT_USED, "refused": NOT_USED}.get(version.state, 1))


def _print_status(container: Container, project: int, last: str) -> str:
    """Print the training's status if it differs from ``last``, and return it."""
    version = container.registry.running(project)
    if version is None:
        text = "Waiting for a worker"
    elif version.state == "training" and version.history:
        epoch = version.history[-1]
        metrics = ", ".join(
            f"{name} {epoch[name]:.3f}" for name in ("map50", "map50_95") if epoch.get(name) is not None
        )
        text = f"{version.name}: epoch {epoch.get('epoch')} of {epoch.get('epochs')}, {metrics}"
    else:
        text = f"{version.name}: {version.state}"
    if text != last:
        print(text, file=sys.stderr, flush=True)
    return text


@main.command()
@PROJECT
@fail_clearly
def cancel(project: int) -> None:
    """Cancel the running training and waiting ones."""
    container_in_force().trainings.cancel(project)
    print("Cancelled.")


@main.command()
@PROJECT
@click.argument("values", required=False)
@fail_clearly
def policy(project: int, values: str | None) -> None:
    """Show the project's fine-tuning policy, or override it with VALUES, such as '{"min_tracks": 5}'."""
    container = container_in_force(None if values is None else project)
    if values is not None:
        try:
            parsed = json.loads(values)
        except ValueError as error:
            raise click.BadParameter(f"not JSON: {error}") from error
        container.trainings.set_policy(project, parsed)
    print(json.dumps(container.trainings.versions(project)["policy"]))
