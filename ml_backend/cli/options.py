"""Options and a signal handler that several commands share."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import click

from ml_backend.cli.dev_stack.discover import settings_in_force
from ml_backend.core.settings import DetectorKind, Mode, Settings

PROJECT = click.option("--project", type=int, required=True, help="Id of the project: the number in its address.")


def exit_on_sigterm() -> None:
    """On SIGTERM exit through the cleanup code, so that no partial file is left."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


_MODEL_OPTIONS = (
    click.option(
        "--weights", help="YOLO checkpoint: a .pt file, or a name such as yolo11n.pt.  [default: YOLO_WEIGHTS]"
    ),
    click.option(
        "--config", type=click.Path(path_type=Path, dir_okay=False), help="Label config.  [default: label_config.xml]"
    ),
    click.option("--mode", type=click.Choice(get_args(Mode)), help="How tracks get their labels.  [default: MODE]"),
    click.option(
        "--patterns",
        type=click.Path(path_type=Path, dir_okay=False),
        help="Pattern bank with learned labels, from `scripts/patterns.py export`.",
    ),
    click.option("--detector", type=click.Choice(get_args(DetectorKind)), help="[default: DETECTOR]"),
)


def model_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that choose how objects are found and labelled: weights, config, mode, patterns, detector."""
    for option in reversed(_MODEL_OPTIONS):
        function = option(function)
    return function


def model_settings(weights: str | None, mode: str | None, detector: str | None) -> Settings:
    """Return the settings in force with what these options choose; ``None``: as set."""
    options = {"yolo_weights": weights, "mode": mode, "detector": detector}
    return settings_in_force().model_copy(update={name: value for name, value in options.items() if value is not None})
