"""Our tracking compared with plain ``YOLO.track`` loops on the same clip.

    python benchmarks/tracking.py VIDEO --weights yolo11n.pt [--ground-truth gt.txt]
    python benchmarks/tracking.py VIDEO --weights yolo11n.pt --strides 1,2,3 [--precision int8]

Frames per second include decoding, detection and tracking, from the first frame to the last track, without loading the
model and a warm-up frame. ``tracking_ms`` is the time of tracker and assembler per frame. With a MOTChallenge
ground-truth file, HOTA, IDF1 and MOTA are computed for one class. With ``--strides``, predictions of each stride are
scored against those of stride 1 as ground truth: this measures what skipping frames and ``--precision`` lose, not how
good the tracks are. Predictions limit the stride to a tenth of a second. Last, association alone: CPU time per frame of
our TrackTrack and of ultralytics' by number of objects. Prints tables and, as the last line, JSON.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.measuring import make_engine, parse_integers, temporary_data_dir  # noqa: E402
from benchmarks.pipeline import plain_loop, predict  # noqa: E402
from ml_backend.core.settings import Settings  # noqa: E402
from ml_backend.core.types import Detections, Track  # noqa: E402
from ml_backend.detectors.motion import MotionDetector  # noqa: E402
from ml_backend.detectors.yolo import YoloDetector  # noqa: E402
from ml_backend.inference.detection_stream import detection_stream  # noqa: E402
from ml_backend.inference.pipeline import STRIDE_S  # noqa: E402
from ml_backend.tracking.assembly import TrackAssembler  # noqa: E402
from ml_backend.tracking.association import Thresholds  # noqa: E402
from ml_backend.tracking.metrics import Rows, read_mot, score  # noqa: E402
from ml_backend.tracking.tracker import Tracker  # noqa: E402
from ml_backend.tracking.tracktrack import TrackTrack  # noqa: E402
from ml_backend.tracking.ultralytics_tracker import UltralyticsTracker  # noqa: E402
from ml_backend.video.probe import probe  # noqa: E402
from ml_backend.video.reader import read_frames  # noqa: E402

Measured = tuple[Rows, dict[str, float]]


def find_tracks(video: Path, weights: Path | None, settings: Settings) -> tuple[list[Track], dict[str, float]]:
    """Run detector, tracker and assembler like the pipeline; without weights the motion detector."""
    info = probe(video)
    detector = YoloDetector(weights, settings) if weights else MotionDetector(info.fps)
    if weights:
        detector.detect([next(read_frames(video, info)).image])
    motion = weights is None
    stride = max(1, min(settings.stride, round(STRIDE_S * info.fps)))  # as in predictions
    tracker = Tracker(settings.tracker, info.fps, motion=motion)
    assembler = TrackAssembler(info.fps, detector.names, info.width, info.height, settings, motion=motion)
    tracks: list[Track] = []
    frames, tracking = 0, 0.0
    started = time.perf_counter()
    for features in detection_stream(video, info, detector, batch=settings.batch, stride=1 if motion else stride):
        tracking_started = time.perf_counter()
        tracks += assembler.push(features.index, tracker.update(features))
        tracking += time.perf_counter() - tracking_started
        frames += 1
    tracking_started = time.perf_counter()
    tracks += assembler.close()
    ended = time.perf_counter()
    tracking += ended - tracking_started
    return tracks, {"fps": frames / (ended - started), "tracking_ms": 1000 * tracking / frames}


def run_ours(video: Path, weights: Path | None, class_name: str, settings: Settings) -> Measured:
    tracks, figures = find_tracks(video, weights, settings)
    return _boxes(tracks, class_name if weights else ""), figures


def compare_strides(
    video: Path, weights: Path, class_name: str, strides: list[int], precision: str | None
) -> dict[str, dict[str, float]]:
    """Score predictions of each stride and precision against stride 1 in fp32."""
    results: dict[str, dict[str, float]] = {}
    exact: Rows | None = None
    with temporary_data_dir():
        for changes in [{"precision": value} for value in ("fp32", precision) if value]:
            make_engine(video, weights, **changes)
            for stride in dict.fromkeys([1, *strides]):
                tracks: list[Track] = []
                _, figures = predict(video, weights, tracks.append, stride=stride, **changes)
                rows = _boxes(tracks, class_name)
                exact = rows if exact is None else exact
                row = {"fps": figures["frames"] / figures["seconds"], "tracks": len(np.unique(rows[:, 1]))}
                row |= {"boxes": len(rows), **score(exact, rows)}
                results[f"stride {stride}, {figures['engine']}"] = {k: round(v, 4) for k, v in row.items()}
    return results


def association_ms(objects: int, frames: int = 150) -> dict[str, float]:
    """Return the CPU time per frame, in ms, of both implementations of TrackTrack for objects that move about."""
    thresholds = Thresholds(high=0.25, low=0.1, new=0.25)
    trackers = {"ours": TrackTrack(thresholds, 30), "ultralytics": UltralyticsTracker("tracktrack", thresholds, 30)}
    rng = np.random.default_rng(0)
    position, velocity = rng.uniform(0, 4000, (objects, 2)), rng.normal(0, 4, (objects, 2))
    colours = rng.uniform(0, 255, (objects, 9)).astype(np.float32)
    seconds = dict.fromkeys(trackers, 0.0)
    for _ in range(frames):
        position += velocity
        xyxy = np.concatenate([position, position + np.array([40, 110])], axis=1) + rng.normal(0, 1, (objects, 4))
        kept = rng.random(objects) > 0.05
        detections = Detections(
            xyxy[kept].astype(np.float32),
            rng.uniform(0.3, 0.9, kept.sum()).astype(np.float32),
            np.zeros(kept.sum(), np.int64),
            colours[kept],
        )
        for name, tracker in trackers.items():
            before = time.process_time()
            tracker.update(detections, np.eye(2, 3))
            seconds[name] += time.process_time() - before
    return {name: round(1000 * value / frames, 3) for name, value in seconds.items()}


def _boxes(tracks: list[Track], class_name: str) -> Rows:
    rows = [
        (frame, track.track_id, *xyxy)
        for track in tracks
        if class_name in ("", track.top_class)
        for frame, xyxy in zip(track.frames, track.xyxy, strict=True)
    ]
    return np.array(rows, np.float64).reshape(-1, 6)


@click.command(help=__doc__)
@click.argument("video", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--weights", required=True, type=click.Path(exists=True, path_type=Path), help="YOLO checkpoint.")
@click.option("--ground-truth", type=click.Path(exists=True, path_type=Path), help="MOTChallenge gt.txt.")
@click.option("--class-name", default="person", show_default=True, help="Class to compare; empty for all.")
@click.option(
    "--strides", callback=lambda *a: parse_integers(*a) if a[2] else [], help="Compare these strides instead: 1,2,3."
)
@click.option("--precision", type=click.Choice(["int8"]), help="With --strides: also compare this precision.")
@click.option("--device", default="auto", show_default=True)
@click.option(
    "--objects", default="10,30,100,300", show_default=True, callback=parse_integers, help="In association alone."
)
def main(
    video: Path,
    weights: Path,
    ground_truth: Path | None,
    class_name: str,
    strides: list[int],
    precision: str | None,
    device: str,
    objects: list[int],
) -> None:
    if strides:
        results = compare_strides(video, weights, class_name, strides, precision)
        _show(results, True)
        print(json.dumps({"video": video.name, "class": class_name, "results": results}))
        return
    settings = Settings(_env_file=None, device=device)
    options: dict[str, Any] = {} if device == "auto" else {"device": device}
    runs = {
        "YOLO.track, botsort": lambda: plain_loop(video, weights, class_name, tracker="botsort.yaml", **options),
        "YOLO.track, tracktrack": lambda: plain_loop(
            video, weights, class_name, tracker="tracktrack.yaml", conf=settings.conf, **options
        ),
        "ours": lambda: run_ours(video, weights, class_name, settings),
        "ours, motion detector": lambda: run_ours(video, None, class_name, settings),
    }
    truth = read_mot(ground_truth) if ground_truth else None
    results = {}
    for name, run in runs.items():
        rows, figures = run()
        figures["tracks"] = float(len(np.unique(rows[:, 1])))
        figures["boxes"] = float(len(rows))
        if truth is not None:
            figures.update(score(truth, rows))
        results[name] = {key: round(value, 4) for key, value in figures.items()}
    _show(results, truth is not None)
    association = {count: association_ms(count) for count in objects}
    table = Table("objects", "ours, CPU ms a frame", "ultralytics")
    for count, figures in association.items():
        table.add_row(str(count), f"{figures['ours']:.2f}", f"{figures['ultralytics']:.2f}")
    Console(width=140).print(table)
    print(json.dumps({"video": video.name, "class": class_name, "results": results, "association_ms": association}))


def _show(results: dict[str, dict[str, float]], with_truth: bool) -> None:
    columns = ["fps", "tracking_ms", "tracks", "boxes"]
    if with_truth:
        columns += ["HOTA", "DetA", "AssA", "IDF1", "MOTA", "IDSW"]
    table = Table("", *columns)
    for name, figures in results.items():
        cells = []
        for column in columns:
            value = figures.get(column)
            whole = column in ("tracks", "boxes", "IDSW")
            cells.append("" if value is None else f"{value:.0f}" if whole else f"{value:.3f}")
        table.add_row(name, *cells)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
