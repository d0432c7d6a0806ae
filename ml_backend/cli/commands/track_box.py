"""Follow one drawn box through a video and write a prediction; the last line of stdout is JSON."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click

from ml_backend.cli.dev_stack.preflight import ROOT
from ml_backend.cli.progress import fail_clearly, progress_bar
from ml_backend.core.errors import ConfigError
from ml_backend.core.files import atomic_text_writer
from ml_backend.core.settings import Settings
from ml_backend.label_studio.label_config import read_label_config


@click.command(context_settings={"show_default": True})
@click.argument("video", type=click.Path(path_type=Path))
@click.option("--frame", type=click.IntRange(min=1), required=True, help="Frame of the box, as Label Studio counts.")
@click.option(
    "--box", type=float, nargs=4, required=True, metavar="X Y W H", help="Left, top, width, height in percent."
)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="Prediction JSON to write.")
@click.option("--label", help="Label of the object.  [default: the config's first]")
@click.option(
    "--config", type=click.Path(path_type=Path, dir_okay=False), help="Label config.  [default: label_config.xml]"
)
@click.option("--weights", help="YOLO checkpoint whose tracks help.  [default: YOLO_WEIGHTS]")
@click.option(
    "--engine",
    type=click.Choice(["auto", "correlation"]),
    default="auto",
    help="auto: with the detector's tracks; correlation: without them, for objects that it does not know.",
)
@fail_clearly
def main(
    video: Path,
    frame: int,
    box: tuple[float, float, float, float],
    out: Path,
    label: str | None,
    config: Path | None,
    weights: str | None,
    engine: str,
) -> None:
    """Follow the object in a box of VIDEO, both ways, and write a prediction with one region."""
    from ml_backend.detectors.weights import resolve_detector
    from ml_backend.inference.follow import Follower, KnownTrack
    from ml_backend.inference.pipeline import detect_tracks
    from ml_backend.inference.redraw import Redraw
    from ml_backend.inference.reduced_frames import ReducedFrames
    from ml_backend.label_studio.regions import make_prediction, make_region
    from ml_backend.label_studio.timeline import video_timeline
    from ml_backend.video.probe import probe

    control = read_label_config(config or ROOT / "label_config.xml").video_controls[0]
    labels = [item.value for item in control.labels]
    if label is not None and label not in labels:
        raise ConfigError(f"The label config has no label {label!r}.", f"Choose one of: {', '.join(labels)}.")
    settings = Settings() if weights is None else Settings(yolo_weights=weights)
    timeline, info = video_timeline(video), probe(video)
    tracks: list[KnownTrack] = []
    detector = resolve_detector(settings, download=True) if engine == "auto" else None
    if detector and detector.kind != "motion":
        with progress_bar(f"Detecting in {video.name}") as progress:
            detect_tracks(
                video,
                timeline.frame_rate,
                settings,
                detector,
                progress=progress,
                on_track=lambda track: tracks.append(KnownTrack(track.frames, track.xyxy.astype("float64"))),
            )
    started = time.perf_counter()
    follower = Follower(ReducedFrames(video, info), (info.width, info.height), info.fps, tracks)
    key = dict(zip(("x", "y", "width", "height"), box, strict=True))
    drawn: dict[str, Any] = {"value": {"sequence": [{"frame": frame, "enabled": True, "rotation": 0, **key}]}}
    redraw = Redraw(follower, info, timeline, settings.keyframe_iou, info.duration + 1.0)
    sequence = list(redraw.extend(drawn, None).sequence)
    value = {"framesCount": timeline.frames_count, "duration": timeline.duration, "sequence": sequence}
    region = make_region(value, control, 1, label or labels[0], 1.0, "drawn")
    used = "tracks+correlation" if tracks else "correlation"
    with atomic_text_writer(out) as target:
        json.dump(make_prediction([region], f"track-box.{used}"), target, ensure_ascii=False)
        target.write("\n")
    summary = {
        "frames": info.frames,
        "seconds": round(time.perf_counter() - started, 3),
        "keyframes": len(sequence),
        "engine": used,
    }
    print(json.dumps(summary))
