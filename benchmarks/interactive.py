"""Drawn boxes: how well and how fast an object is followed from one box.

    python benchmarks/interactive.py VIDEO --weights yolo11n.pt

From one box at a quarter, half and three quarters of the life of each track of VIDEO. The truth is what the exact
settings find (STRIDE=1), so figures with tracks say how well those of the default settings are used, not how right they
are; "correlation" uses no detector. Prints a table and, as the last line, JSON.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import click
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from ml_backend.core.boxes import iou_pairs  # noqa: E402
from ml_backend.core.settings import Settings  # noqa: E402
from ml_backend.core.types import Track  # noqa: E402
from ml_backend.detectors.weights import resolve_detector  # noqa: E402
from ml_backend.inference.follow import Follower, KnownTrack  # noqa: E402
from ml_backend.inference.pipeline import detect_tracks  # noqa: E402
from ml_backend.inference.reduced_frames import BLOCK, ReducedFrames  # noqa: E402
from ml_backend.label_studio.timeline import video_timeline  # noqa: E402
from ml_backend.video.probe import probe  # noqa: E402

#: Shortest life in seconds: shorter ones are not worth a drawn box.
MIN_LIFE_S = 1.0
#: Standard deviation of a person's box edges, as a share of its size.
CARELESS = 0.04


def find_tracks(video: Path, weights: Path, stride: int) -> list[Track]:
    settings = Settings(yolo_weights=str(weights), stride=stride)
    tracks: list[Track] = []
    rate = video_timeline(video).frame_rate
    detect_tracks(video, rate, settings, resolve_detector(settings), on_track=tracks.append)
    return tracks


@click.command()
@click.argument("video", type=click.Path(exists=True, path_type=Path))
@click.option("--weights", required=True, type=click.Path(exists=True, path_type=Path))
def main(video: Path, weights: Path) -> None:
    """Measure following with VIDEO."""
    info = probe(video)
    truth = [track for track in find_tracks(video, weights, 1) if len(track) >= MIN_LIFE_S * info.fps]
    known = [KnownTrack(track.frames, track.xyxy.astype(np.float64)) for track in find_tracks(video, weights, 3)]
    started = time.perf_counter()
    frames = ReducedFrames(video, info)
    for index in range(0, info.frames, BLOCK):
        frames.get(index)
    figures: dict[str, dict[str, float]] = {"decoding": {"frames_s": info.frames / (time.perf_counter() - started)}}
    rng = np.random.default_rng(0)
    for name, tracks in (("tracks and correlation", known), ("correlation", [])):
        overlaps: list[float] = []
        seconds: list[float] = []
        followed = 0
        for track in truth:
            for share in (0.25, 0.5, 0.75):
                row = int(share * len(track))
                width, height = track.xyxy[row, 2:] - track.xyxy[row, :2]
                box = track.xyxy[row] + rng.normal(0, CARELESS, 4) * [width, height, width, height]
                begun = time.perf_counter()
                follower = Follower(frames, (info.width, info.height), info.fps, tracks)
                found = follower.follow(int(track.frames[row]), box, 0, info.frames - 1).boxes
                seconds.append(time.perf_counter() - begun)
                followed += len(found)
                for frame, xyxy in zip(track.frames.tolist(), track.xyxy, strict=True):
                    other = found.get(frame)
                    overlaps.append(0.0 if other is None else float(iou_pairs(other[None], xyxy[None])[0]))
        figures[name] = {
            "mean_iou": float(np.mean(overlaps)),
            "success": float(np.mean(np.array(overlaps) > 0.5)),
            "frames_s": followed / sum(seconds),
            "answer_median_s": float(np.median(seconds)),
            "answer_p95_s": float(np.percentile(seconds, 95)),
        }
    for name, values in figures.items():
        print(f"{name:<24}" + "".join(f"  {key} {value:8.3f}" for key, value in values.items()))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
