"""Render a video with boxes for browsers, from annotations, a prediction, or a model run now."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any, get_args

import click

from ml_backend.cli.dev_stack.discover import settings_in_force
from ml_backend.cli.dev_stack.preflight import ROOT
from ml_backend.cli.options import exit_on_sigterm
from ml_backend.cli.progress import fail_clearly, progress_bar
from ml_backend.core.settings import Mode, Settings
from ml_backend.embeddings.hub import resolve_segmenter
from ml_backend.inference.segmenter import use_segmenter
from ml_backend.label_studio.label_config import read_label_config
from ml_backend.rendering.draw import BoxStyle
from ml_backend.rendering.layers import (
    AnnotationFile,
    LayerModel,
    file_layer,
    label_config_colours,
    model_layer,
    named_layer,
)
from ml_backend.rendering.render import RenderOptions, check_out, render

FILE = click.Path(path_type=Path, dir_okay=False)


@click.command(context_settings={"show_default": True})
@click.argument("video", type=click.Path(path_type=Path))
@click.option("--out", type=FILE, required=True, help="MP4 to write.")
@click.option(
    "--from-json",
    type=click.Path(path_type=Path),
    help="Export of Label Studio (JSON or JSON_MIN), or the folder of its target storage.",
)
@click.option("--task", type=int, help="Id of a task in the export.  [default: the one whose video has this name]")
@click.option(
    "--show", metavar="WHAT", help="What to draw from the export: annotations, predictions, or a model version."
)
@click.option("--prediction", type=FILE, help="Prediction, as predict_video.py writes it.")
@click.option("--weights", help="Run a model now: a .pt file, or a name such as yolo11n.pt.")
@click.option(
    "--compare",
    nargs=2,
    metavar="A B",
    help="Compare side by side: each a JSON file, weights, or with --from-json: annotations, predictions, a version.",
)
@click.option("--config", type=FILE, help="Label config with colours; with weights also the labels.")
@click.option("--mode", type=click.Choice(get_args(Mode)), help="With weights: how tracks get their labels.")
@click.option("--patterns", type=FILE, help="With weights: learned labels, from `scripts/patterns.py export`.")
@click.option(
    "--detector", type=click.Choice(["auto", "yolo", "motion"]), help="Detector to run, with or without --weights."
)
@click.option("--trails", is_flag=True, help="Draw the recent paths of objects.")
@click.option("--trail-seconds", type=click.FloatRange(0.1, 60), default=2.0)
@click.option("--masks", is_flag=True, help="Draw the mask that SEGMENTER makes of each box; slow without a GPU.")
@click.option("--legend", is_flag=True, help="List the labels with live counts.")
@click.option(
    "--hide", type=click.Choice(["labels", "ids", "confidence"]), multiple=True, help="Do not draw; may be repeated."
)
@click.option("--start", type=click.FloatRange(0), help="Start time in seconds.")
@click.option("--end", type=click.FloatRange(0), help="End time in seconds.")
@click.option("--height", type=click.IntRange(16, 8640), help="Maximum frame height in pixels.  [default: the video's]")
@click.option(
    "--crf",
    type=click.IntRange(0, 51),
    default=20,
    help="H.264 quality: 0 is lossless, 18 visually lossless, 28 small.",
)
@click.option("--no-sound", is_flag=True)
@click.option("--font", type=FILE, help="Font file for the names.")
@click.option("--force", is_flag=True, help="Overwrite.")
@fail_clearly
def main(video: Path, out: Path, **options: Any) -> None:
    """Render VIDEO with the boxes of one source, or of two side by side."""
    exit_on_sigterm()
    sources = [name for name in ("from_json", "prediction", "weights", "detector") if options[name] is not None]
    if options["compare"] is None and (not sources or (len(sources) > 1 and sources != ["weights", "detector"])):
        raise click.UsageError("Name one source: --from-json, --prediction, --weights, --detector, or --compare A B.")
    check_out(out, video, options["force"])
    overrides = {name: options[name] for name in ("mode", "detector") if options[name] is not None}
    config = read_label_config(options["config"], "Check the path.") if options["config"] else None
    runs_model = options["masks"] or any(options[name] is not None for name in ("weights", "detector", "compare"))
    settings = settings_in_force() if runs_model else Settings()
    if options["masks"]:
        resolve_segmenter(settings)  # not only after a model has looked at the whole video
    model = LayerModel(
        options["config"] or ROOT / "label_config.xml",
        settings.model_copy(update=overrides),
        options["patterns"],
        progress_bar,
    )
    export = AnnotationFile(options["from_json"], options["task"], config) if options["from_json"] else None
    if options["compare"]:
        layers = [named_layer(video, name, model, export) for name in options["compare"]]
    elif options["prediction"]:
        layers = [file_layer(video, AnnotationFile(options["prediction"], config=config))]
    elif export:
        layers = [file_layer(video, export, options["show"] or "")]
    else:
        layers = [model_layer(video, options["weights"], model)]
    render_options = RenderOptions(
        style=BoxStyle(
            names="labels" not in options["hide"],
            numbers="ids" not in options["hide"],
            confidence="confidence" not in options["hide"],
            trails=options["trail_seconds"] if options["trails"] else 0.0,
            legend=options["legend"],
        ),
        colours=label_config_colours(config) if config else {},
        start=options["start"],
        end=options["end"],
        height=options["height"],
        crf=options["crf"],
        sound=not options["no_sound"],
        font=options["font"],
    )
    with (
        use_segmenter(settings) if options["masks"] else nullcontext() as segmenter,
        progress_bar(f"Rendering {video.name}") as progress,
    ):
        summary = render(video, out, layers, render_options, progress, segmenter)
    if summary["note"]:
        click.echo(f"Note: {summary['note']}", err=True)
    print(json.dumps(summary, ensure_ascii=False))
