"""An option and a signal handler that several commands share."""

from __future__ import annotations

import signal
import sys

import click

PROJECT = click.option("--project", type=int, required=True, help="Id of the project: the number in its address.")


def exit_on_sigterm() -> None:
    """On SIGTERM exit through the cleanup code, so that no partial file is left."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
