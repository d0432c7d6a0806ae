"""Pre-annotate one video offline and write a Label Studio prediction; the last line of stdout is JSON."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ml_backend.cli.dev_stack.preflight import ROOT
from ml_backend.cli.options import model_options, model_settings
from ml_backend.cli.progress import fail_clearly, progress_bar
from ml_backend.inference.offline import predict_file


@click.command(context_settings={"show_default": True})
@click.argument("video", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="Prediction JSON to write.")
@model_options
@click.option(
    "--frame-rate", type=float, help="Label Studio's timeline rate.  [default: the config's, else the video's]"
)
@click.option(
    "--tracks",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also write the final tracks' boxes on every frame, as MOT text.",
)
@fail_clearly
def main(
    video: Path,
    out: Path,
    weights: str | None,
    config: Path | None,
    mode: str | None,
    patterns: Path | None,
    detector: str | None,
    frame_rate: float | None,
    tracks: Path | None,
) -> None:
    """Pre-annotate VIDEO and write a prediction that Label Studio can import.

    Settings of a running `up.sh` stack are used.
    """
    settings = model_settings(weights, mode, detector)
    with progress_bar(f"Pre-annotating {video.name}") as progress:
        summary = predict_file(
            video,
            out,
            config or ROOT / "label_config.xml",
            settings,
            frame_rate=frame_rate,
            tracks_out=tracks,
            patterns=patterns,
            progress=progress,
        )
    if summary["note"]:
        click.echo(f"Note: {summary['note']}", err=True)
    print(json.dumps(summary))
