"""Suspicious moments: tracks that are spoiled on purpose, and what of it the review finds and repairs.

    python benchmarks/review.py [--data FOLDER] [--scenes 10] [--embedder fallback,dinov2]

Tracks of a street video, as they are predicted without skipping frames and reduced to keyframes, count as right. Each
scene is a variant of them (mirrored, backwards, at half the rate) in which faults of seven kinds are made, two of each,
on tracks that no other fault touches: two tracks exchange their objects (where they are nearest, or within half a
second of it; boxes are smoothed there, as those of a tracker are), a track takes another one's object and its own goes
on as a new track, a track is broken in two (with a gap of up to a second), has another label, stays where it is for 0.7
to 2 s while its object moves on by half its size or more, is invented (a slowly drifting box where no object is), or is
deleted. The review gets the spoiled tracks, the detections, and crops of the spoiled boxes.

Reported are the share of faults among the first moments, twice as many as there are faults, by kind; the moments on
the unspoiled tracks, of which some are faults of the tracker; and the HOTA against the unspoiled tracks, label by
label, after the first 10, 20 and 50 proposals are carried out blindly, one after the other, each time with new moments.
``share`` is the part of the lost HOTA that is back. ``--seed 1`` are the scenes on which weights were chosen.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.few_shot import embedder_kinds  # noqa: E402
from ml_backend.core.boxes import iou_matrix, iou_pairs  # noqa: E402
from ml_backend.core.keyframes import interpolate, simplify  # noqa: E402
from ml_backend.core.settings import Settings  # noqa: E402
from ml_backend.core.types import Detections, FrameFeatures, Track, VideoInfo  # noqa: E402
from ml_backend.detectors.yolo import YoloDetector  # noqa: E402
from ml_backend.embeddings.crop_embeddings import CropEmbedding, MemoryCropEmbeddings, embed_tracks  # noqa: E402
from ml_backend.embeddings.crop_selection import candidate_crops  # noqa: E402
from ml_backend.embeddings.hub import resolve_embedder  # noqa: E402
from ml_backend.embeddings.loading import use_embedder  # noqa: E402
from ml_backend.inference.detection_stream import detection_stream  # noqa: E402
from ml_backend.label_studio.timeline import video_timeline  # noqa: E402
from ml_backend.review.moments import Moment, find_moments  # noqa: E402
from ml_backend.review.repairs import apply_repair  # noqa: E402
from ml_backend.review.video import CROPS_PER_TRACK, ReviewVideo  # noqa: E402
from ml_backend.tracking.assembly import SMOOTH_S  # noqa: E402
from ml_backend.tracking.builder import TrackBuilder  # noqa: E402
from ml_backend.tracking.metrics import Counts, count  # noqa: E402
from ml_backend.tracking.smooth import fill_and_smooth  # noqa: E402
from ml_backend.video.probe import probe  # noqa: E402

KINDS = ("swapped", "taken", "broken", "relabelled", "frozen", "invented", "deleted")
PER_KIND = 2
MIN_FRAMES = 45
ACCEPTED = (10, 20, 50)
KEYFRAME_IOU = 0.9


@dataclass(frozen=True, slots=True)
class Footage:
    """What the detector and the tracker find in the video."""

    video: Path
    info: VideoInfo
    names: dict[int, str]
    features: list[FrameFeatures]
    tracks: list[Track]


@dataclass(frozen=True, slots=True)
class Variant:
    """How the video is changed."""

    mirrored: bool = False
    backwards: bool = False
    every: int = 1


VARIANTS = (
    Variant(),
    Variant(mirrored=True),
    Variant(backwards=True),
    Variant(mirrored=True, backwards=True),
    Variant(every=2),
)


@dataclass(frozen=True, slots=True)
class Fault:
    """What was done to the tracks.

    Attributes:
        tracks: ids in the spoiled scene; that of a deleted track is not there.
        first, last: frames between which it is seen.
    """

    kind: str
    tracks: tuple[int, ...]
    first: int
    last: int
    boxes: Track | None = None


def observe(video: Path, weights: Path) -> Footage:
    """Detect and track as a prediction with exact settings does."""
    settings, info = Settings(_env_file=None, stride=1), probe(video)
    detector = YoloDetector(weights, settings)
    features = list(detection_stream(video, info, detector, batch=settings.batch))
    tracks: list[Track] = []
    builder = TrackBuilder(info, video_timeline(video), settings, detector.names, on_track=tracks.append)
    for frame in features:
        builder.push(frame)
    builder.close(0.0)
    return Footage(video, info, dict(detector.names), features, sorted(tracks, key=lambda track: track.track_id))


def keyframed(track: Track) -> Track:
    """Return the boxes that the track's keyframes give, span by span."""
    cuts = np.flatnonzero(np.diff(track.frames) > 1) + 1
    boxes = []
    for rows in np.split(np.arange(len(track)), cuts):
        keys, key_boxes = simplify(track.frames[rows], track.xyxy[rows], KEYFRAME_IOU)
        boxes.append(interpolate(keys, key_boxes, track.frames[rows]))
    return replace(track, xyxy=np.concatenate(boxes).astype(np.float32))


class Scene:
    """A variant of the video. Maps its frames and boxes to those of the file.

    Attributes:
        clean: the tracks that count as right.
        detections: by frame.
    """

    def __init__(self, footage: Footage, variant: Variant) -> None:
        self.footage, self.variant = footage, variant
        self.frames = -(-footage.info.frames // variant.every)
        self.fps = footage.info.fps / variant.every
        self.detections: dict[int, Detections] = {}
        for features in footage.features:
            if features.index % variant.every == 0:
                found = features.detections
                self.detections[self.frame(features.index)] = replace(found, xyxy=self.boxes(found.xyxy))
        self.clean = []
        for track in footage.tracks:
            rows = np.flatnonzero(track.frames % variant.every == 0)
            if variant.backwards:
                rows = rows[::-1]
            if len(rows) > 1:
                frames = np.array([self.frame(int(f)) for f in track.frames[rows]], np.int64)
                moved = replace(
                    track,
                    frames=frames,
                    xyxy=self.boxes(track.xyxy[rows]),
                    conf=track.conf[rows],
                    label=track.top_class,
                )
                self.clean.append(keyframed(moved))

    def frame(self, index: int) -> int:
        """Return the scene's frame of a file's frame; it is its own inverse but for the rate."""
        number = index // self.variant.every
        return self.frames - 1 - number if self.variant.backwards else number

    def index(self, frame: int) -> int:
        return self.variant.every * (self.frames - 1 - frame if self.variant.backwards else frame)

    def boxes(self, xyxy: np.ndarray) -> np.ndarray:
        """Mirror boxes if the scene is mirrored; its own inverse."""
        if not self.variant.mirrored:
            return xyxy
        width = self.footage.info.width
        return np.stack([width - xyxy[:, 2], xyxy[:, 1], width - xyxy[:, 0], xyxy[:, 3]], axis=1)

    def crops(self, tracks: Sequence[Track], embed: Callable[..., list[list[CropEmbedding]]]) -> list[CropEmbedding]:
        """Embed crops of tracks: of the file's pixels, whichever way round."""
        info = self.footage.info
        candidates = []
        for track in tracks:
            order = slice(None, None, -1) if self.variant.backwards else slice(None)
            frames = np.array([self.index(int(frame)) for frame in track.frames], np.int64)[order]
            boxes = self.boxes(track.xyxy)[order]
            candidates.append(
                candidate_crops(frames, boxes, np.ones(len(track)), info.width, info.height, CROPS_PER_TRACK)
            )
        return [
            replace(
                crop,
                frame=self.frame(crop.frame),
                xyxy=tuple(self.boxes(np.array([crop.xyxy]))[0].tolist()),
            )
            for crops in embed(candidates)
            for crop in crops
        ]

    def video(self, tracks: Sequence[Track], crops: Sequence[CropEmbedding]) -> ReviewVideo:
        info, names = self.footage.info, self.footage.names
        labels = {track.label for track in self.clean}
        return ReviewVideo(
            tracks,
            self.fps,
            info.width,
            info.height,
            self.frames,
            crops=crops,
            detections=self.detections,
            class_names=names,
            class_labels={name: name for name in names.values() if name in labels},
        )


def _rows(track: Track, rows: np.ndarray) -> Track:
    return replace(track, frames=track.frames[rows], xyxy=track.xyxy[rows], conf=track.conf[rows])


class Spoiler:
    """Make faults in a scene's tracks."""

    def __init__(self, scene: Scene, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.scene = scene
        self.tracks = {track.track_id: track for track in scene.clean}
        self.free = [track.track_id for track in scene.clean if len(track) * scene.variant.every >= MIN_FRAMES]
        self.faults: list[Fault] = []
        self._next = 1000

    def spoil(self) -> tuple[list[Track], list[Fault]]:
        for kind in KINDS:
            for _ in range(PER_KIND):
                fault = getattr(self, kind)()
                if fault:
                    self.faults.append(fault)
                    self.free = [number for number in self.free if number not in fault.tracks]
        return list(self.tracks.values()), self.faults

    def _new_id(self) -> int:
        self._next += 1
        return self._next

    def _shuffled(self) -> list[int]:
        return [int(number) for number in self.rng.permutation(self.free)]

    def swapped(self) -> Fault | None:
        reach = round(0.5 * self.scene.fps)
        pairs = []
        for a_id in self.free:
            for b_id in self.free:
                a, b = self.tracks[a_id], self.tracks[b_id]
                if a_id >= b_id or a.label != b.label:
                    continue
                common, rows, other = np.intersect1d(a.frames, b.frames, return_indices=True)
                if len(common) < 4 * reach:
                    continue
                middle = slice(reach, len(common) - reach)
                distance = [
                    np.linalg.norm((x[:2] + x[2:] - y[:2] - y[2:]) / 2) / np.sqrt(np.prod(x[2:] - x[:2]))
                    for x, y in zip(a.xyxy[rows][middle], b.xyxy[other][middle], strict=True)
                ]
                pairs.append(
                    (float(np.min(distance)), a_id, b_id, int(common[middle][int(np.argmin(distance))]), common)
                )
        if not pairs:
            return None
        # One of the five nearest.
        _, a_id, b_id, nearest, common = sorted(pairs, key=lambda p: p[0])[int(self.rng.integers(min(5, len(pairs))))]
        frame = int(nearest + self.rng.integers(-reach, reach + 1))
        if not (a_frames := self.tracks[a_id].frames)[0] < frame <= a_frames[-1] or frame not in common:
            frame = nearest
        a, b = self.tracks[a_id], self.tracks[b_id]
        for one, two in ((a, b), (b, a)):
            parts = [
                np.concatenate([x[one.frames < frame], y[two.frames >= frame]])
                for x, y in ((one.frames, two.frames), (one.xyxy, two.xyxy), (one.conf, two.conf))
            ]
            # As the assembler does, so that the box glides over.
            near = np.flatnonzero(np.abs(parts[0] - frame) <= 5 * SMOOTH_S * self.scene.fps)
            smooth = fill_and_smooth(parts[0][near], parts[1][near], parts[2][near], 0, SMOOTH_S * self.scene.fps)
            inner = np.abs(parts[0][near] - frame) <= 3 * SMOOTH_S * self.scene.fps
            boxes = parts[1].copy()
            boxes[near[inner]] = smooth[1][inner]
            self.tracks[one.track_id] = replace(one, frames=parts[0], xyxy=boxes, conf=parts[2])
        return Fault("swapped", (a_id, b_id), frame, frame)

    def taken(self) -> Fault | None:
        swapped = self.swapped()
        if swapped is None:
            return None
        # Of the exchanged tracks the second one ends there, and its later boxes are a new track.
        track, frame = self.tracks[swapped.tracks[1]], swapped.first
        self.tracks[track.track_id] = _rows(track, track.frames < frame)
        later = self._new_id()
        self.tracks[later] = replace(_rows(track, track.frames >= frame), track_id=later)
        return Fault("taken", (*swapped.tracks, later), frame, frame)

    def broken(self) -> Fault | None:
        for number in self._shuffled():
            track = self.tracks[number]
            cut = int(self.rng.uniform(0.3, 0.7) * len(track))
            gap = int(self.rng.integers(0, round(self.scene.fps)))
            if len(track) - cut - gap < 0.25 * len(track):
                continue
            parts = [_rows(track, np.arange(cut)), _rows(track, np.arange(cut + gap, len(track)))]
            later = self._new_id()
            self.tracks[number], self.tracks[later] = parts[0], replace(parts[1], track_id=later)
            return Fault("broken", (number, later), int(parts[0].frames[-1]), int(parts[1].frames[0]))
        return None

    def relabelled(self) -> Fault | None:
        labels = sorted({str(track.label) for track in self.scene.clean})
        number = self._shuffled()[0]
        track = self.tracks[number]
        wrong = str(self.rng.choice([label for label in labels if label != track.label]))
        self.tracks[number] = replace(track, label=wrong)
        return Fault("relabelled", (number,), int(track.frames[0]), int(track.frames[-1]))

    def frozen(self) -> Fault | None:
        for number in self._shuffled():
            track = self.tracks[number]
            length = int(self.rng.uniform(0.7, 2.0) * self.scene.fps)
            if len(track) < length + 6:
                continue
            start = int(self.rng.integers(3, len(track) - length - 2))
            move = np.linalg.norm(np.diff((track.xyxy[:, :2] + track.xyxy[:, 2:])[[start, start + length]] / 2, axis=0))
            if move < 0.5 * np.sqrt(np.prod(track.xyxy[start, 2:] - track.xyxy[start, :2])):
                continue
            boxes = track.xyxy.copy()
            boxes[start : start + length] = boxes[start]
            self.tracks[number] = replace(track, xyxy=boxes)
            return Fault("frozen", (number,), int(track.frames[start]), int(track.frames[start + length - 1]))
        return None

    def invented(self) -> Fault | None:
        info = self.scene.footage.info
        model = self.scene.clean[int(self.rng.integers(len(self.scene.clean)))]
        size = np.median(model.xyxy[:, 2:] - model.xyxy[:, :2], axis=0)
        everything = np.concatenate([found.xyxy for found in self.scene.detections.values()])
        for _ in range(200):
            length = int(self.rng.uniform(1.0, 4.0) * self.scene.fps)
            start = int(self.rng.integers(0, self.scene.frames - length))
            corner = self.rng.uniform([0, 0], np.array([info.width, info.height]) - size)
            drift = self.rng.normal(0, 0.3, 2) * size
            at = corner + np.linspace(0, 1, length)[:, None] * drift
            boxes = np.concatenate([at, at + size], axis=1).clip(0, [info.width, info.height] * 2).astype(np.float32)
            frames = np.arange(start, start + length)
            near = [
                iou_matrix(box[None], self.scene.detections[int(f)].xyxy).max(initial=0)
                for f, box in zip(frames, boxes, strict=True)
            ]
            if max(near) < 0.2 and len(everything):
                number = self._new_id()
                self.tracks[number] = Track(
                    number, frames, boxes, np.ones(length, np.float32), {"person": 1.0}, "person", 0.6
                )
                return Fault("invented", (number,), start, start + length - 1)
        return None

    def deleted(self) -> Fault | None:
        number = self._shuffled()[0]
        track = self.tracks.pop(number)
        return Fault("deleted", (number,), int(track.frames[0]), int(track.frames[-1]), track)


def fits(moment: Moment, fault: Fault, slack: float) -> bool:
    """Return whether a moment shows a fault."""
    near = moment.first - slack <= fault.last and fault.first - slack <= moment.last
    if fault.kind == "deleted":
        added = getattr(moment.repair, "added", None)
        if added is None or fault.boxes is None:
            return False
        common, rows, others = np.intersect1d(added.frames, fault.boxes.frames, return_indices=True)
        return len(common) > 0 and float(iou_pairs(added.xyxy[rows], fault.boxes.xyxy[others]).mean()) > 0.5
    kinds = {
        "swapped": ("identity_jump", "jump"),
        "taken": ("identity_jump", "jump"),
        "broken": ("broken_life",),
        "relabelled": ("label",),
        "frozen": ("frozen", "jump"),
        "invented": ("no_object",),
    }[fault.kind]
    return moment.kind in kinds and near and bool(set(moment.tracks) & set(fault.tracks))


def hota(scene: Scene, tracks: Sequence[Track]) -> float:
    """Return the HOTA of tracks against the unspoiled ones, label by label."""

    def rows(found: Sequence[Track], label: str) -> np.ndarray:
        of_label = [track for track in found if track.label == label]
        return np.concatenate(
            [np.column_stack([track.frames, np.full(len(track), track.track_id), track.xyxy]) for track in of_label]
            or [np.zeros((0, 6))]
        )

    labels = sorted({str(track.label) for track in (*scene.clean, *tracks)})
    counts = Counts()
    for label in labels:
        counts += count(rows(scene.clean, label), rows(tracks, label))
    return counts.scores()["HOTA"]


def accept(scene: Scene, tracks: list[Track], crops: Sequence[CropEmbedding]) -> dict[int, float]:
    """Return the HOTA after the first proposals are carried out, by their number."""
    out, done = {0: hota(scene, tracks)}, set()
    for number in range(1, max(ACCEPTED) + 1):
        moments = find_moments(scene.video(tracks, crops))
        new = [moment for moment in moments if (moment.kind, moment.tracks, moment.first) not in done]
        if not new:
            break
        done.add((new[0].kind, new[0].tracks, new[0].first))
        tracks = apply_repair(tracks, new[0].repair)
        if number in ACCEPTED:
            out[number] = hota(scene, tracks)
    return out | {number: hota(scene, tracks) for number in ACCEPTED if number not in out}


def measure(
    footage: Footage, scenes: int, seed: int, embed: Callable[..., list[list[CropEmbedding]]]
) -> dict[str, Any]:
    found: dict[str, list[bool]] = {kind: [] for kind in KINDS}
    clean_moments: list[int] = []
    clean_severe: list[int] = []
    shown, right = 0, 0
    scores: dict[int, list[float]] = {number: [] for number in (0, *ACCEPTED)}
    for number in range(scenes):
        scene = Scene(footage, VARIANTS[number % len(VARIANTS)])
        spoiled, faults = Spoiler(scene, 1000 * seed + number).spoil()
        if number < len(VARIANTS):
            moments = find_moments(scene.video(scene.clean, scene.crops(scene.clean, embed)))
            clean_moments.append(len(moments))
            clean_severe.append(sum(moment.severe for moment in moments))
        crops = scene.crops(spoiled, embed)
        first = find_moments(scene.video(spoiled, crops))[: 2 * len(faults)]
        slack = 0.5 * scene.fps
        for fault in faults:
            found[fault.kind].append(any(fits(moment, fault, slack) for moment in first))
        shown += len(first)
        right += sum(any(fits(moment, fault, slack) for fault in faults) for moment in first)
        for accepted, score in accept(scene, spoiled, crops).items():
            scores[accepted].append(score)
    everything = [hit for hits in found.values() for hit in hits]
    before = float(np.mean(scores[0]))
    return {
        "faults": len(everything),
        "recall": float(np.mean(everything)),
        "recall_by_kind": {kind: [float(np.mean(hits)), len(hits)] for kind, hits in found.items() if hits},
        "precision": right / max(shown, 1),
        "moments_unspoiled": float(np.mean(clean_moments)),
        "severe_unspoiled": float(np.mean(clean_severe)),
        "hota": {str(number): float(np.mean(values)) for number, values in scores.items()},
        "share": {str(n): (float(np.mean(scores[n])) - before) / max(1 - before, 1e-9) for n in ACCEPTED},
    }


@click.command(help=__doc__)
@click.option("--data", default=ROOT.parent / "shared" / "data", type=click.Path(path_type=Path))
@click.option("--scenes", default=10, show_default=True, type=click.IntRange(1))
@click.option("--seed", default=0, show_default=True, type=int)
@click.option("--embedder", default="", help="fallback, dinov2; by default those with local weights.")
def main(data: Path, scenes: int, seed: int, embedder: str) -> None:
    footage = observe(data / "people.mp4", data / "yolo11n.pt")
    results: dict[str, Any] = {}
    for kind in embedder_kinds(embedder):
        settings = Settings(embedder=kind)
        model = resolve_embedder(settings)
        embed = partial(
            embed_tracks,
            embedder=partial(use_embedder, model, settings),
            model_id=model.model_id,
            store=MemoryCropEmbeddings(),
            open_video=lambda: nullcontext(footage.video),
            k=CROPS_PER_TRACK,
        )
        results[kind] = measure(footage, scenes, seed, embed)
        _print_table(kind, results[kind])
    print(json.dumps({"scenes": scenes, "seed": seed, "results": results}))


def _print_table(title: str, result: dict[str, Any]) -> None:
    table = Table("", "", title=title)
    table.add_row("faults found in twice as many moments", f"{result['recall']:.3f} of {result['faults']}")
    for kind, (recall, number) in result["recall_by_kind"].items():
        table.add_row(f"  {kind}", f"{recall:.2f} of {number}")
    table.add_row("of these moments, faults", f"{result['precision']:.3f}")
    table.add_row(
        "moments on the unspoiled tracks",
        f"{result['moments_unspoiled']:.1f} ({result['severe_unspoiled']:.1f} severe)",
    )
    for number, value in result["hota"].items():
        back = f", {result['share'][number]:.0%} of the loss back" if number != "0" else ""
        table.add_row(f"HOTA after {number} proposals", f"{value:.3f}{back}")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
