"""Follow one drawn box through a video and write a prediction; the last line of stdout is JSON."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
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
    type=click.Choice(["auto", "correlation", "sam"]),
    default="auto",
    help="auto: the detector's tracks, and INTERACTIVE_MODEL on a GPU; correlation: only the correlation tracker, for "
    "objects that no model knows; sam: only INTERACTIVE_MODEL, also without a GPU.",
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
    from ml_backend.inference.sam_tracker import CORRELATION, use_tracker
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
    key = dict(zip(("x", "y", "width", "height"), box, strict=True))
    drawn: dict[str, Any] = {"value": {"sequence": [{"frame": frame, "enabled": True, "rotation": 0, **key}]}}
    with ExitStack() as stack:
        tracker = CORRELATION
        if engine != "correlation":
            tracker = stack.enter_context(use_tracker(settings, on_cpu=engine == "sam", download=True))
        if engine == "sam" and tracker.name == CORRELATION.name:
            reason = tracker.note or "INTERACTIVE_MODEL is not set."
            raise ConfigError(f"There is no model to follow the box: {reason}", "Set INTERACTIVE_MODEL to its folder.")
        started = time.perf_counter()
        frames = ReducedFrames(video, info, colour=tracker.colour)
        follower = Follower(frames, (info.width, info.height), info.fps, tracks, start=tracker.start)
        redraw = Redraw(follower, info, timeline, settings.keyframe_iou, info.duration + 1.0)
        sequence = list(redraw.extend(drawn, None).sequence)
    value = {"framesCount": timeline.frames_count, "duration": timeline.duration, "sequence": sequence}
    region = make_region(value, control, 1, label or labels[0], 1.0, "drawn")
    used = f"tracks+{tracker.name}" if tracks else tracker.name
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
