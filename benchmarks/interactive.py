"""Drawn boxes: how well and how fast an object is followed from one box.

    python benchmarks/interactive.py VIDEO --weights yolo11n.pt [--part following] [--part occluded] [--part people]

Part "following": from one box at a quarter, half and three quarters of the life of each track of VIDEO. The truth is
what the exact settings find (STRIDE=1), so figures with tracks say how well those of the default settings are used, not
how right they are; "correlation" uses no detector.

Part "occluded": pillars are drawn into VIDEO, and each object that passes behind one is followed from a box before it.
Scored on the frames after it, where the object is clear of the pillar, against the tracks of VIDEO itself: with the
tracks as they are, and with those joined whose views are alike. ``another`` is the share of frames on which the box is
nowhere near the object.

Part "people": twenty people, each with a task of their own, press their label's key at once on a local stack whose
video has been predicted, and again at once where the answer came too late. Prints a table and, as the last line, JSON.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import httpx
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.measuring import CONFIG, local_stack, new_task, newest_prediction, wait_for  # noqa: E402
from ml_backend.cli.dev_stack.stack import Stack  # noqa: E402
from ml_backend.core.boxes import iou_pairs  # noqa: E402
from ml_backend.core.settings import Settings  # noqa: E402
from ml_backend.core.types import FloatArray, IntArray, Track, VideoInfo  # noqa: E402
from ml_backend.detectors.weights import resolve_detector  # noqa: E402
from ml_backend.embeddings.crop_embeddings import CropEmbedding, MemoryCropEmbeddings, embed_tracks  # noqa: E402
from ml_backend.embeddings.crop_selection import CROPS_PER_TRACK, candidate_crops  # noqa: E402
from ml_backend.embeddings.hub import resolve_embedder  # noqa: E402
from ml_backend.embeddings.loading import use_embedder  # noqa: E402
from ml_backend.inference.follow import Follower, KnownTrack  # noqa: E402
from ml_backend.inference.pipeline import detect_tracks  # noqa: E402
from ml_backend.inference.reduced_frames import BLOCK, ReducedFrames  # noqa: E402
from ml_backend.label_studio.timeline import video_timeline  # noqa: E402
from ml_backend.review.identity import joined_lives  # noqa: E402
from ml_backend.review.video import ReviewVideo  # noqa: E402
from ml_backend.video.probe import probe  # noqa: E402
from ml_backend.video.reader import read_frames  # noqa: E402
from ml_backend.video.writer import VideoWriter  # noqa: E402

#: Shortest life in seconds: shorter ones are not worth a drawn box.
MIN_LIFE_S = 1.0
#: Standard deviation of a person's box edges, as a share of its size.
CARELESS = 0.04
PARTS = ("following", "occluded", "people")
#: Left edge and width of the pillars, as shares of the picture's width.
PILLARS = ((0.26, 0.08), (0.42, 0.16), (0.47, 0.08), (0.62, 0.12))
#: Seconds before and after a pillar in which an object is clear of it.
CLEAR_S = 0.4
#: Who draw at once.
PEOPLE = 20


def find_tracks(video: Path, weights: Path, stride: int) -> list[Track]:
    settings = Settings(yolo_weights=str(weights), stride=stride)
    tracks: list[Track] = []
    rate = video_timeline(video).frame_rate
    detect_tracks(video, rate, settings, resolve_detector(settings), on_track=tracks.append)
    return tracks


def press_at_once(stack: Stack, project: int, regions: Sequence[dict[str, Any]], task: int) -> dict[str, float]:
    """Let each region's annotator press their label's key at the same time; return how long they wait.

    Args:
        regions: one for each of them.
        task: the project's, whose video has been predicted; each of them gets one with the same video.
    """
    client = stack.client()
    data = client.get_task(task).data
    tasks = [client.create_task(project, data) for _ in regions]
    address, auth = f"{stack.backend.url}/predict", stack.credentials(project)

    def served(number: int) -> tuple[float, int]:
        body = {
            **{"tasks": [{"id": tasks[number], "data": data}], "project": f"{project}.1", "label_config": CONFIG},
            "params": {"context": {"result": [regions[number]]}},
        }
        started, presses = time.perf_counter(), 0
        while True:
            presses += 1
            response = httpx.post(address, json=body, auth=auth, timeout=120, trust_env=False).raise_for_status()
            (answer,) = response.json()["results"][0]["result"]
            if answer != regions[number]:
                return time.perf_counter() - started, presses
            time.sleep(1.0)  # nobody presses faster

    with ThreadPoolExecutor(len(regions)) as pool:
        waits = list(pool.map(served, range(len(regions))))
    seconds, presses = np.array([wait for wait, _ in waits]), np.array([presses for _, presses in waits])
    return {
        "people": len(regions),
        "answer_median_s": float(np.median(seconds)),
        "answer_worst_s": float(seconds.max()),
        "first_press": float((presses == 1).mean()),
        "presses_worst": int(presses.max()),
    }


def measure_people(video: Path, weights: Path) -> dict[str, float]:
    info, timeline = probe(video), video_timeline(video)
    with tempfile.TemporaryDirectory() as folder, local_stack(weights, Path(folder)) as (stack, project, _):
        task = new_task(stack.client(), project, video)
        prediction = wait_for("the prediction", lambda: newest_prediction(stack.client(), task), stack)
        tracks = [region["value"]["sequence"] for region in prediction.result if region["type"] == "videorectangle"]
        regions = []
        for number in range(PEOPLE):
            sequence = tracks[number % len(tracks)]
            key = {**sequence[len(sequence) // 2], "enabled": True}
            value = {"framesCount": timeline.frames_count, "duration": info.duration, "sequence": [key]}
            of = {"from_name": "box", "to_name": "video", "type": "videorectangle"}
            regions.append({"id": f"of-{number}", **of, "value": {**value, "labels": ["person"]}})
        return press_at_once(stack, project, regions, task)


def measure_following(video: Path, weights: Path) -> dict[str, dict[str, float]]:
    info = probe(video)
    truth = [track for track in find_tracks(video, weights, 1) if len(track) >= MIN_LIFE_S * info.fps]
    _, known = predicted_tracks(video, weights)
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
    return figures


def measure_occluded(video: Path, weights: Path) -> dict[str, dict[str, float]]:
    info = probe(video)
    truth = [track for track in find_tracks(video, weights, 1) if len(track) >= MIN_LIFE_S * info.fps]
    scores: dict[str, list[FloatArray]] = {"tracks as they are": [], "joined by looks": []}
    for left, width in PILLARS:
        x1, x2 = round(left * info.width), round((left + width) * info.width)
        with tempfile.TemporaryDirectory() as folder:
            occluded = Path(folder) / "occluded.mp4"
            _draw_pillar(video, occluded, x1, x2)
            frames = ReducedFrames(occluded, probe(occluded))
            for name, known in zip(scores, predicted_tracks(occluded, weights), strict=True):
                follower = Follower(frames, (info.width, info.height), info.fps, known)
                for track in truth:
                    if (rows := _clear_of(track, x1, x2, info.fps)) is not None:
                        scores[name].append(_follow_past(follower, track, *rows, info.frames))
    return {
        f"{name}, {len(overlaps)} objects": {
            "success": float(np.mean(np.concatenate(overlaps) > 0.5)),
            "another": float(np.mean(np.concatenate(overlaps) < 0.1)),
        }
        for name, overlaps in scores.items()
    }


def _draw_pillar(video: Path, target: Path, x1: int, x2: int) -> None:
    info = probe(video)
    with VideoWriter(target, info.width, info.height, info.fps) as writer:
        for frame in read_frames(video, info):
            image = frame.image.copy()
            image[:, x1:x2] = (90, 100, 95)
            writer.write(image)


def predicted_tracks(video: Path, weights: Path) -> tuple[list[KnownTrack], list[KnownTrack]]:
    """Return the tracks of the default settings, as they are and as they are joined for drawn boxes."""
    info = probe(video)
    tracks = [replace(track, label=track.top_class) for track in find_tracks(video, weights, 3)]
    crops = _embedded(tracks, video, info)
    seen = ReviewVideo(tracks, info.fps, info.width, info.height, info.frames, crops=crops)
    plain, joined = (
        [KnownTrack(track.frames, track.xyxy.astype(np.float64)) for track in kind]
        for kind in (tracks, joined_lives(seen))
    )
    return plain, joined


def _embedded(tracks: Sequence[Track], video: Path, info: VideoInfo) -> list[CropEmbedding]:
    """Embed crops of the tracks, as many as predictions do."""
    settings = Settings()
    model = resolve_embedder(settings)
    size = info.width, info.height
    found = embed_tracks(
        [candidate_crops(track.frames, track.xyxy, track.conf, *size, CROPS_PER_TRACK) for track in tracks],
        partial(use_embedder, model, settings),
        model.model_id,
        MemoryCropEmbeddings(),
        lambda: nullcontext(video),
        CROPS_PER_TRACK,
    )
    return [crop for crops in found for crop in crops]


def _clear_of(track: Track, x1: int, x2: int, fps: float) -> tuple[IntArray, IntArray] | None:
    """Return the rows in which an object is clear of a pillar, before and after it; ``None`` if it does not pass."""
    left, right = track.xyxy[:, 0], track.xyxy[:, 2]
    covered = (np.minimum(right, x2) - np.maximum(left, x1)) / (right - left)
    (hidden,) = np.nonzero(covered > 0.9)
    (clear,) = np.nonzero(covered < 0.1)
    before, after = (clear[clear < hidden[0]], clear[clear > hidden[-1]]) if len(hidden) else (hidden, hidden)
    return (before, after) if min(len(before), len(after)) >= CLEAR_S * fps else None


def _follow_past(follower: Follower, track: Track, before: IntArray, after: IntArray, frames: int) -> FloatArray:
    """Return the IoU with an object by frame after its occlusion; NaN without a box."""
    row = int(before[len(before) // 2])
    found = follower.follow(int(track.frames[row]), track.xyxy[row].astype(np.float64), 0, frames - 1).boxes
    boxes = [found.get(int(frame)) for frame in track.frames[after]]
    overlaps = [
        np.nan if box is None else float(iou_pairs(box[None], track.xyxy[at][None])[0])
        for box, at in zip(boxes, after.tolist(), strict=True)
    ]
    return np.array(overlaps, np.float32)


@click.command()
@click.argument("video", type=click.Path(exists=True, path_type=Path))
@click.option("--weights", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--part", "parts", multiple=True, type=click.Choice(PARTS), default=PARTS, show_default=True)
def main(video: Path, weights: Path, parts: Sequence[str]) -> None:
    """Measure following with VIDEO."""
    figures = measure_following(video, weights) if "following" in parts else {}
    if "occluded" in parts:
        figures |= measure_occluded(video, weights)
    if "people" in parts:
        figures["people"] = measure_people(video, weights)
    for name, values in figures.items():
        print(f"{name:<24}" + "".join(f"  {key} {value:8.3f}" for key, value in values.items()))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
