"""People who walk through a made-up picture, their crops and their detections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np

from ml_backend.core.types import Detections, Track
from ml_backend.embeddings.crop_embeddings import CropEmbedding
from ml_backend.review.video import ReviewVideo
from tests.labeling.few_shot.builders import direction, views

FPS, WIDTH, HEIGHT, FRAMES = 25.0, 1000.0, 600.0, 150
NAMES = {0: "person", 1: "bicycle"}


def walk(
    number: int,
    start: tuple[float, float],
    speed: tuple[float, float],
    *,
    frames: tuple[int, int] = (0, FRAMES),
    size: tuple[float, float] = (40, 80),
    label: str = "person",
) -> Track:
    """A track from frame ``frames[0]`` to before ``frames[1]``; ``start`` is its centre on frame 0."""
    at = np.arange(*frames)
    middle = np.array(start) + at[:, None] * np.array(speed)
    boxes = np.concatenate([middle - np.array(size) / 2, middle + np.array(size) / 2], axis=1).astype(np.float32)
    return Track(number, at, boxes, np.ones(len(at), np.float32), {label: float(len(at))}, label, 0.9)


def street() -> list[Track]:
    """Six people on lanes of their own, never near each other, and two bicycles."""
    people = [walk(n, (100 + 20 * n, 45 + 60 * n), (1.0 + 0.5 * n, 0.0), size=(30, 50)) for n in range(1, 7)]
    return [
        *people,
        walk(7, (60, 490), (3.0, 0.0), size=(60, 40), label="bicycle"),
        walk(8, (900, 550), (-3.0, 0.0), size=(60, 40), label="bicycle"),
    ]


def detections(tracks: Sequence[Track]) -> dict[int, Detections]:
    """What a perfect detector finds of these tracks."""
    classes = {name: number for number, name in NAMES.items()}
    found = {}
    for frame in range(FRAMES):
        rows = [(t.xyxy[r], classes[str(t.label)]) for t in tracks for r in np.flatnonzero(t.frames == frame).tolist()]
        boxes = np.array([box for box, _ in rows], np.float32).reshape(-1, 4)
        found[frame] = Detections(boxes, np.full(len(rows), 0.9, np.float32), np.array([c for _, c in rows], np.int64))
    return found


def crops(tracks: Sequence[Track], every: int = 15) -> list[CropEmbedding]:
    """Crops of these tracks; each shows its own object, people and bicycles differ more than two people."""
    found = []
    for track in tracks:
        kind = direction(0 if track.label == "person" else 1000)
        vectors = views(kind + 0.6 * direction(track.track_id), len(track), 100 * track.track_id, spread=0.0, own=0.3)
        clothes = np.random.default_rng([3, track.track_id]).integers(20, 230, (4, 3)).astype(np.uint8)
        picture = np.repeat(clothes, 24, axis=0)[:, None].repeat(40, axis=1)
        thumbnail = bytes(cv2.imencode(".jpg", picture)[1])
        for row in range(5, len(track), every):
            box = tuple(float(side) for side in track.xyxy[row])
            found.append(CropEmbedding(int(track.frames[row]), box, vectors[row], thumbnail))  # type: ignore[arg-type]
    return found


def video(tracks: Sequence[Track], truth: Sequence[Track] | None = None, *, looks: bool = True) -> ReviewVideo:
    """A video with these tracks; with ``truth`` what detector and embedder see of the objects."""
    if truth is None:
        return ReviewVideo(tracks, FPS, WIDTH, HEIGHT, FRAMES, task=3)
    return ReviewVideo(
        tracks,
        FPS,
        WIDTH,
        HEIGHT,
        FRAMES,
        task=3,
        crops=crops(truth) if looks else (),
        detections=detections(truth),
        class_names=NAMES,
        class_labels={name: name for name in NAMES.values()},
    )


def part(track: Track, first: int, end: int, number: int | None = None) -> Track:
    """The boxes of a track from frame ``first`` to before ``end``."""
    rows = (track.frames >= first) & (track.frames < end)
    return replace(
        track,
        track_id=track.track_id if number is None else number,
        frames=track.frames[rows],
        xyxy=track.xyxy[rows],
        conf=track.conf[rows],
    )


def exchanged(a: Track, b: Track, frame: int) -> tuple[Track, Track]:
    """Two tracks that swap their boxes from a frame on."""
    pairs = []
    for one, other in ((a, b), (b, a)):
        rows, others = one.frames < frame, other.frames >= frame
        pairs.append(
            replace(
                one,
                frames=np.concatenate([one.frames[rows], other.frames[others]]),
                xyxy=np.concatenate([one.xyxy[rows], other.xyxy[others]]),
                conf=np.concatenate([one.conf[rows], other.conf[others]]),
            )
        )
    return pairs[0], pairs[1]


def same(a: Sequence[Track], b: Sequence[Track]) -> bool:
    """Whether two lists have the same tracks: ids, labels, frames and boxes, in any order."""
    if len(a) != len(b):
        return False
    pairs = zip(sorted(a, key=lambda t: t.track_id), sorted(b, key=lambda t: t.track_id), strict=True)
    return all(
        x.track_id == y.track_id
        and x.label == y.label
        and np.array_equal(x.frames, y.frames)
        and np.allclose(x.xyxy, y.xyxy)
        for x, y in pairs
    )
