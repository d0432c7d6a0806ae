"""What a training on one video makes the detector forget of others, and what it learns, with and without replay.

    python benchmarks/retraining.py VIDEO --weights yolo11n.pt --part forgetting

One video is annotated with its own tracks, of which some get a label that is no class of the detector. Trained as in
production, on a CPU in a process of its own; then every video of other material is predicted with the base detector and
with the trained one. Counted are the base's sure tracks that the trained detector keeps: one of its tracks with the same
label covers at least half of their frames at an IoU of 0.5. Other material is the demo clip, the photographs of the
ultralytics package, and VIDEO mirrored and darkened, in two groups: each is replayed once, while the other is unseen.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np
import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.measuring import settings_for  # noqa: E402
from benchmarks.tracking import find_tracks  # noqa: E402
from ml_backend.core.types import Image, Track  # noqa: E402
from ml_backend.detectors.average_precision import AveragePrecision  # noqa: E402
from ml_backend.detectors.yolo import YoloDetector  # noqa: E402
from ml_backend.training.arguments import training_args  # noqa: E402
from ml_backend.training.process import run_child  # noqa: E402
from ml_backend.video.probe import probe  # noqa: E402
from ml_backend.video.reader import read_frames  # noqa: E402
from ml_backend.video.sample import make_sample  # noqa: E402
from ml_backend.video.writer import VideoWriter  # noqa: E402

#: Labels of the project. The first is no class of the detector.
LABELS = ("walker", "person", "bicycle", "bus", "car", "handbag", "tie")
#: Mean confidence from which a track is sure.
SURE = 0.5
FPS, SECONDS = 12.0, 2.0
#: Share of the annotated video that is trained on; measured on the last part, with a gap between.
TRAINED, MEASURED = 0.7, 0.77
REPLAY_FRAMES = 64


@dataclass(slots=True)
class Result:
    """Counts of one row."""

    kept: dict[str, int] = field(default_factory=lambda: {"replayed": 0, "unseen": 0})
    gained: dict[str, int] = field(default_factory=lambda: {"replayed": 0, "unseen": 0})
    sure: dict[str, int] = field(default_factory=lambda: {"replayed": 0, "unseen": 0})
    lost: list[str] = field(default_factory=list)
    learned: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


def pan(photo: Image, target: Path) -> None:
    """Write a clip in which a camera pans over a photograph."""
    height, width = photo.shape[:2]
    view_h, view_w = (int(side * 0.9) // 2 * 2 for side in (height, width))
    count = round(FPS * SECONDS)
    with VideoWriter(target, view_w, view_h, FPS) as writer:
        for index in range(count):
            x, y = (int((side - view) * index / count) for side, view in ((width, view_w), (height, view_h)))
            writer.write(np.ascontiguousarray(photo[y : y + view_h, x : x + view_w]))


def change(video: Path, target: Path, how: Any) -> None:
    """Write two seconds from the middle of a video with changed images."""
    info = probe(video)
    start, count = info.frames // 2, round(SECONDS * info.fps)
    with VideoWriter(target, info.width, info.height, info.fps) as writer:
        for frame in read_frames(video, info, start=start):
            if frame.index >= start + count:
                break
            writer.write(np.ascontiguousarray(how(frame.image)))


def other_material(video: Path, folder: Path) -> list[list[Path]]:
    """Write clips of other material; return them in two groups without a scene in common."""
    import ultralytics

    assets = Path(ultralytics.__file__).parent / "assets"
    groups = [
        [folder / f"{name}.mp4" for name in names] for names in (("sample", "bus"), ("zidane", "mirrored", "dark"))
    ]
    make_sample(groups[0][0], seconds=4.0, fps=FPS)
    for clip in (groups[0][1], groups[1][0]):
        pan(cv2.imread(str(assets / f"{clip.stem}.jpg")), clip)
    change(video, groups[1][1], lambda image: image[:, ::-1])
    change(video, groups[1][2], lambda image: (image * 0.4).astype(np.uint8))
    return groups


def replay_frames(clips: Sequence[Path], folder: Path) -> list[str]:
    files = []
    folder.mkdir()
    for clip in clips:
        info = probe(clip)
        each = REPLAY_FRAMES // len(clips)
        wanted = set(np.linspace(0, info.frames - 1, min(each, info.frames)).astype(int).tolist())
        for frame in read_frames(clip, info):
            if frame.index in wanted:
                file = folder / f"{clip.stem}-{frame.index}.jpg"
                cv2.imwrite(str(file), frame.image)
                files.append(str(file))
    return files


@dataclass(slots=True)
class Annotated:
    """One annotated video: its dataset, and held-out frames with boxes ``(n, 5)``: label index, x1, y1, x2, y2."""

    data: Path
    images: int
    tracks: int
    trained: tuple[str, ...]
    held_out: list[tuple[Image, Any]]


def annotate(video: Path, tracks: Sequence[Track], labels: Sequence[str], folder: Path) -> Annotated:
    """Write a dataset of a video in which each track has the given label, or none and stays out."""
    info = probe(video)
    step = max(1, round(info.fps / 2.5))
    listed: dict[str, list[str]] = {"train": [], "val": []}
    held_out = []
    seen = set()
    for frame in read_frames(video, info):
        position = frame.index / info.frames
        if frame.index % step or TRAINED < position < MEASURED:
            continue
        rows = [
            [LABELS.index(label), *track.xyxy[at]]
            for track, label in zip(tracks, labels, strict=True)
            for at in np.flatnonzero(track.frames == frame.index)
        ]
        boxes = np.array(rows, np.float64).reshape(-1, 5)
        if position >= MEASURED:
            held_out.append((frame.image, boxes))
            continue
        part = "val" if position > 0.6 * TRAINED / 0.7 else "train"
        seen |= {LABELS[int(row[0])] for row in boxes} if part == "train" else set()
        for kind in ("images", "labels"):
            (folder / kind / part).mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / "images" / part / f"{frame.index}.jpg"), frame.image, [cv2.IMWRITE_JPEG_QUALITY, 95])
        size = np.array([info.width, info.height])
        lines = []
        for index, *xyxy in boxes:
            low, high = np.array(xyxy[:2]) / size, np.array(xyxy[2:]) / size
            lines.append(" ".join(map(str, [int(index), *((low + high) / 2), *(high - low)])))
        (folder / "labels" / part / f"{frame.index}.txt").write_text("\n".join(lines))
        listed[part].append(f"./images/{part}/{frame.index}.jpg")
    for part, files in listed.items():
        (folder / f"{part}.txt").write_text("\n".join(files))
    data = {"path": str(folder), "train": "train.txt", "val": "val.txt", "names": dict(enumerate(LABELS))}
    (folder / "data.yaml").write_text(yaml.safe_dump(data))
    trained = tuple(label for label in LABELS if label in seen)
    return Annotated(folder / "data.yaml", len(listed["train"]), len(tracks), trained, held_out)


def train(annotated: Annotated, weights: Path, run: Path, replay: Sequence[str], **changes: Any) -> tuple[Path, float]:
    """Train as ``jobs/train.py`` does; return the weights and the seconds."""
    plan = {
        "kind": "train",
        "data": str(annotated.data),
        "classes": list(LABELS),
        "trained_classes": list(annotated.trained),
        "start": str(weights),
        "start_from": {"walker": "person"},
        "run": str(run),
        "device": "cpu",
        "replay": list(replay),
        "args": training_args(annotated.images, annotated.tracks, "cpu", 640, changes.pop("args", {})),
    } | changes
    done = run_child(plan, run, on_event=lambda event: None, should_stop=lambda: False)
    return Path(done["weights"]), done["seconds"]


def held_out_map50(weights: Path, annotated: Annotated, label: str) -> float:
    settings = settings_for(weights, conf=0.01, engine="torch")
    detector = YoloDetector(weights, settings)
    precision = AveragePrecision(LABELS)
    for image, boxes in annotated.held_out:
        [found] = detector.detect([image])
        order = np.argsort(-found.conf, kind="stable")
        from ml_backend.core.types import Detections

        found = Detections(found.xyxy[order], found.conf[order], found.class_id[order])
        precision.add(found, boxes[:, 1:], boxes[:, 0].astype(np.int64))
    labels = precision.result()["labels"]
    return float(labels.get(label, {"ap50": float("nan")})["ap50"])


def sure_tracks(clip: Path, weights: Path) -> list[Track]:
    """Return the tracks of predictions with a label of the project."""
    tracks, _ = find_tracks(clip, weights, settings_for(weights, engine="torch", device="cpu"))
    return [track for track in tracks if track.top_class in LABELS]


def confidence(track: Track) -> float:
    seen = track.conf[track.conf > 0]
    return float(seen.mean()) if len(seen) else 0.0


def is_kept(track: Track, others: Sequence[Track]) -> bool:
    return any(other.top_class == track.top_class and coverage(track, other) >= 0.5 for other in others)


def coverage(track: Track, other: Track) -> float:
    """Return the share of a track's frames on which another one has an IoU of at least 0.5 with it."""
    common, mine, theirs = np.intersect1d(track.frames, other.frames, return_indices=True)
    if not len(common):
        return 0.0
    a, b = track.xyxy[mine], other.xyxy[theirs]
    size = np.clip(np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]), 0, None).prod(1)
    union = (a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1) - size
    return float((size / np.maximum(union, 1e-9) >= 0.5).sum() / len(track))


def count(result: Result, base: Sequence[Track], found: Sequence[Track], where: str, clip: str) -> None:
    sure = [track for track in base if confidence(track) >= SURE]
    result.sure[where] += len(sure)
    for track in sure:
        if is_kept(track, found):
            result.kept[where] += 1
        else:
            taken = {other.top_class for other in found if coverage(track, other) >= 0.5}
            result.lost.append(f"{clip}/{where}:{track.top_class}{f'->{taken}' if taken else ''}")
    gained = [track for track in found if confidence(track) >= SURE and not is_kept(track, base)]
    result.gained[where] += len(gained)


def scenarios(video: Path, weights: Path, folder: Path) -> Iterator[tuple[str, Path, list[Track], list[str], str]]:
    """Yield name, video, tracks, their labels, and the label that is learned."""
    own = [track for track in sure_tracks(video, weights)]
    people = sorted((t for t in own if t.top_class == "person"), key=lambda t: -len(t))
    for number in (1, 5, 20):
        chosen = people[:number]
        yield (
            f"{number} tracks",
            video,
            own,
            ["walker" if any(t is c for c in chosen) else t.top_class for t in own],
            "walker",
        )
