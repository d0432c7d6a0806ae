"""``python -m ml_backend.cli.doctor``, also as ``scripts/doctor.py``."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

import click
from rich.console import Console
from rich.table import Table

from ml_backend.cli.dev_stack.discover import settings_in_force
from ml_backend.cli.doctor import checks
from ml_backend.cli.doctor.checks import Check, Finding, Target
from ml_backend.cli.progress import fail_clearly

CHECKS = (
    Check("python", "Python", checks.python),
    Check("packages", "Packages", checks.packages),
    Check("torch", "PyTorch", checks.torch),
    Check("codecs", "Codecs", checks.codecs),
    Check("disk", "Data folder", checks.disk),
    Check("database", "Database", checks.database),
    Check("artifacts", "Artifacts", checks.artifacts),
    Check("queue", "Queue", checks.queue),
    Check("weights", "Detector", checks.weights),
    Check("masks", "Masks", checks.masks),
    Check("labels", "Labels", checks.labels),
    Check("backend", "ML backend", checks.backend),
    Check("label-studio", "Token", checks.label_studio),
)
#: Run only on request: for machines where a worker must run.
EXTRA = (Check("worker-here", "Worker on this machine", checks.worker_here),)

STYLES = {"ok": "green", "note": "yellow", "failed": "bold red"}


def examine(target: Target, names: Sequence[str] = ()) -> list[Finding]:
    """Run the named checks, by default all of ``CHECKS``, in parallel."""
    chosen = [check for check in (*CHECKS, *EXTRA) if check.name in names] if names else list(CHECKS)
    with ThreadPoolExecutor(max(1, len(chosen))) as pool:
        return [finding for findings in pool.map(lambda check: check.run(target), chosen) for finding in findings]


def show(findings: Sequence[Finding], console: Console) -> None:
    """Print a table of findings, each with its hint."""
    table = Table("check", "result", "details", show_lines=False, pad_edge=False)
    for finding in findings:
        text = finding.found + (f"\nFix: {finding.hint}" if finding.hint else "")
        style = STYLES[finding.status]
        table.add_row(finding.check, f"[{style}]{finding.status}[/{style}]", text.replace("[", r"\["))
    console.print(table)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@click.option("--quiet", is_flag=True, help="Print only failed checks.")
@click.option(
    "--only", multiple=True, type=click.Choice([c.name for c in (*CHECKS, *EXTRA)]), help="Run only this check."
)
@click.option("--backend-url", help="URL of the ML backend.  [default: of the running stack, else BACKEND_URL]")
@fail_clearly
def main(as_json: bool, quiet: bool, only: Sequence[str], backend_url: str | None) -> None:
    """Check this installation and print results with hints. Exits with 1 if a check failed."""
    logging.disable(logging.WARNING)
    settings = settings_in_force()
    findings = examine(Target(settings, (backend_url or settings.backend_url).rstrip("/")), only)
    failed = [finding for finding in findings if finding.status == "failed"]
    if as_json:
        # `cure` was the name of `hint` in 0.1.0.
        print(json.dumps([asdict(finding) | {"cure": finding.hint} for finding in findings], indent=1))
    elif failed or not quiet:
        show(failed if quiet else findings, Console(width=None if sys.stdout.isatty() else 140))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
