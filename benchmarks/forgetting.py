"""What a training on one video makes the detector forget of others, and what it learns: see :func:`measure`."""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.measuring import settings_for  # noqa: E402
from benchmarks.tracking import find_tracks  # noqa: E402
from ml_backend.core.boxes import iou_pairs  # noqa: E402
from ml_backend.core.types import Detections, Image, Track  # noqa: E402
from ml_backend.detectors.average_precision import AveragePrecision  # noqa: E402
from ml_backend.detectors.yolo import YoloDetector  # noqa: E402
from ml_backend.training.process import TrainingProcess  # noqa: E402
from ml_backend.training.replay import MAX_IMAGES  # noqa: E402
from ml_backend.video.probe import probe  # noqa: E402
from ml_backend.video.reader import read_frames  # noqa: E402
from ml_backend.video.sample import make_sample  # noqa: E402
from ml_backend.video.stills import write_stills  # noqa: E402
from ml_backend.video.writer import VideoWriter  # noqa: E402

#: The label that is learned, which is no class of the detector, and others of the project, which are.
LEARNED = "walker"
LABELS = (LEARNED, "person", "bicycle", "bus", "car", "handbag", "tie")
#: Mean confidence from which a track is sure; overlap and share of its frames from which another track is the same.
SURE, SAME_IOU, SAME_SHARE = 0.5, 0.5, 0.5
FPS, SECONDS = 12.0, 2.0
#: Parts of the annotated video: trained on up to the first, validated up to the second, measured from the third on.
TRAINED, VALIDATED, MEASURED = 0.6, 0.7, 0.77
TRAINED_PER_SECOND = 2.5
#: A label config in whose labels the detector finds nothing, so that there is nothing to keep.
_UNKNOWN = (
    '<View><Labels name="label" toName="video"><Label value="unknown"/></Labels>'
    '<Video name="video" value="$video"/><VideoRectangle name="box" toName="video"/></View>'
)


@dataclass(frozen=True, slots=True)
class Clip:
    """A clip of other material.

    Attributes:
        start: first frame of the video that it was cut from; ``None``: another scene.
        mirrored: whether left and right are exchanged.
    """

    path: Path
    start: int | None = None
    mirrored: bool = False

    def own(self, track: Track) -> Track | None:
        """Return a track of the whole video as it is in this clip; ``None`` if it is not."""
        if self.start is None:
            return None
        info = probe(self.path)
        inside = (track.frames >= self.start) & (track.frames < self.start + info.frames)
        xyxy = track.xyxy[inside]
        if self.mirrored:
            xyxy = np.stack([info.width - xyxy[:, 2], xyxy[:, 1], info.width - xyxy[:, 0], xyxy[:, 3]], 1)
        return replace(track, frames=track.frames[inside] - self.start, xyxy=xyxy, conf=track.conf[inside])


@dataclass(slots=True)
class Kept:
    """Sure tracks of the base detector on other material: how many there are, are kept, are renamed, and are new.

    Where most people are called walkers, it is right that others are, too.
    """

    of: int = 0
    kept: int = 0
    renamed: int = 0
    gained: int = 0

    def __str__(self) -> str:
        if not self.of:
            return "-"
        return f"{self.kept}/{self.of} = {self.kept / self.of:4.0%}, {self.renamed} renamed, +{self.gained}"


@dataclass(slots=True)
class Row:
    """Result of one or two trainings; the AP50 is that of the learned label on held-out frames."""

    scenario: str
    way: str
    replayed: Kept = field(default_factory=Kept)
    unseen: Kept = field(default_factory=Kept)
    ap50: list[float] = field(default_factory=list)
    map50: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    lost: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        means = (float(np.mean(values)) for values in (self.ap50, self.map50, self.seconds))
        learned = "{:6.3f} {:6.3f} {:5.0f} s".format(*means)
        return f"{self.scenario:<10} {self.way:<14} {self.replayed!s:<28} {self.unseen!s:<28} {learned}"


HEADER = f"{'annotated':<10} {'training':<14} {'kept of replayed':<28} {'kept of unseen':<28}   AP50  mAP50    time"

# -- material


def other_material(video: Path, folder: Path) -> tuple[list[Clip], list[Clip]]:
    """Write clips of other material, in two groups that show nothing in common."""
    folder.mkdir()
    sample = folder / "sample.mp4"
    make_sample(sample, seconds=2 * SECONDS, fps=FPS)
    bus, zidane = pan_photographs(folder)
    start = probe(video).frames // 2
    mirrored = cut(video, start, folder / "mirrored.mp4", mirror)
    dark = cut(video, start, folder / "dark.mp4", darken)
    return [Clip(sample), Clip(bus)], [Clip(zidane), Clip(mirrored, start, mirrored=True), Clip(dark, start)]


def pan_photographs(folder: Path) -> tuple[Path, Path]:
    """Write a clip of each of the two photographs of the ultralytics package: of a bus, and of two men."""
    import ultralytics

    assets = Path(ultralytics.__file__).parent / "assets"
    bus, zidane = (_pan(assets / f"{name}.jpg", folder / f"{name}.mp4") for name in ("bus", "zidane"))
    return bus, zidane


def _pan(photo: Path, target: Path) -> Path:
    """Write a clip in which a camera pans over a photograph."""
    image = cv2.imread(str(photo))
    assert image is not None
    height, width = image.shape[:2]
    view_w, view_h = (int(side * 0.9) // 2 * 2 for side in (width, height))
    count = round(FPS * SECONDS)
    with VideoWriter(target, view_w, view_h, FPS) as writer:
        for index in range(count):
            x, y = ((side - view) * index // count for side, view in ((width, view_w), (height, view_h)))
            writer.write(np.ascontiguousarray(image[y : y + view_h, x : x + view_w]))
    return target


def mirror(image: Image) -> Image:
    return image[:, ::-1]


def darken(image: Image) -> Image:
    return (image * 0.4).astype(np.uint8)


def cut(
    video: Path,
    start: int,
    target: Path,
    change: Callable[[Image], Image],
    seconds: float = SECONDS,
    every: int = 1,
) -> Path:
    """Write some seconds of a video with changed images, or only each ``every``-th of its frames."""
    info = probe(video)
    end = start + round(seconds * info.fps)
    with ExitStack() as stack:
        writer: VideoWriter | None = None
        for frame in read_frames(video, info, start=start):
            if frame.index >= end:
                break
            if (frame.index - start) % every:
                continue
            image = np.ascontiguousarray(change(frame.image))
            if writer is None:
                height, width = image.shape[:2]
                writer = stack.enter_context(VideoWriter(target, width, height, info.fps / every))
            writer.write(image)
    return target


def replay_images(clips: Sequence[Clip], folder: Path, imgsz: int) -> list[str]:
    """Write replay images as :func:`ml_backend.training.replay.sample_replay` does."""
    folder.mkdir()
    for clip in clips:
        info = probe(clip.path)
        count = min(MAX_IMAGES // len(clips), info.frames)
        indices = ((np.arange(count) + 0.5) * info.frames / count).astype(np.int64)
        write_stills(clip.path, info, indices, imgsz, folder / clip.path.stem)
    return sorted(map(str, folder.glob("*/*.jpg")))


# -- training


@dataclass(frozen=True, slots=True)
class Annotated:
    """An annotated video: its dataset, and held-out frames with boxes ``(n, 5)``: label index, x1, y1, x2, y2."""

    data: Path
    images: int
    tracks: tuple[Track, ...]
    trained: tuple[str, ...]
    held_out: tuple[tuple[Image, Any], ...]


def annotate(video: Path, tracks: Sequence[Track], folder: Path) -> Annotated:
    """Write a dataset of a video whose tracks have labels."""
    shutil.rmtree(folder, ignore_errors=True)
    info = probe(video)
    listed: dict[str, list[str]] = {"train": [], "val": []}
    held_out, trained = [], set[str]()
    for frame in read_frames(video, info):
        at = frame.index / info.frames
        if frame.index % max(1, round(info.fps / TRAINED_PER_SECOND)) or VALIDATED <= at < MEASURED:
            continue
        found = [(track, np.flatnonzero(track.frames == frame.index)) for track in tracks]
        rows = [[LABELS.index(str(t.label)), *t.xyxy[index[0]]] for t, index in found if len(index)]
        boxes = np.array(rows, np.float64).reshape(-1, 5)
        if at >= MEASURED:
            held_out.append((frame.image, boxes))
            continue
        part = "train" if at < TRAINED else "val"
        if part == "train":
            trained |= {LABELS[int(row[0])] for row in boxes}
        image, label = (folder / kind / part / f"{frame.index}.{suffix}" for kind, suffix in _FILES)
        for file in (image, label):
            file.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(image), frame.image, [cv2.IMWRITE_JPEG_QUALITY, 95])
        low, high = (boxes[:, i : i + 2] / (info.width, info.height) for i in (1, 3))
        np.savetxt(label, np.column_stack([boxes[:, 0], (low + high) / 2, high - low]), "%.6g")
        listed[part].append(str(image))
    for part, files in listed.items():
        (folder / f"{part}.txt").write_text("\n".join(files))
    data = {"path": str(folder), "train": "train.txt", "val": "val.txt", "names": dict(enumerate(LABELS))}
    (folder / "data.yaml").write_text(yaml.safe_dump(data))
    labels = tuple(label for label in LABELS if label in trained)
    return Annotated(folder / "data.yaml", len(listed["train"]), tuple(tracks), labels, tuple(held_out))


_FILES = (("images", "jpg"), ("labels", "txt"))


def train(annotated: Annotated, weights: Path, run: Path, args: Mapping[str, Any], **plan: Any) -> tuple[Path, float]:
    """Train in a process, as a worker does; return the weights and the seconds."""
    plan = {
        "kind": "train",
        "data": str(annotated.data),
        "classes": list(LABELS),
        "trained_classes": list(annotated.trained),
        "start": str(weights),
        "start_from": {LEARNED: "person"},
        "run": str(run),
        "device": "cpu",
        "pictures": annotated.images,
        "tracks": len(annotated.tracks),
        "imgsz": settings_for(weights).imgsz,
        "args": dict(args),
        **plan,
    }
    with TrainingProcess() as process:
        done = process.run(plan, run, on_event=lambda event: None, should_stop=lambda: False)
    return Path(done["weights"]), float(done["seconds"])


# -- measuring


def average_precision(weights: Path, annotated: Annotated) -> tuple[float, float]:
    """Return the AP50 of the learned label and the mAP50 on the held-out frames."""
    detector = YoloDetector(weights, settings_for(weights, conf=0.01, device="cpu"))
    precision = AveragePrecision(LABELS)
    for image, boxes in annotated.held_out:
        [found] = detector.detect([image])
        order = np.argsort(-found.conf, kind="stable")
        found = Detections(found.xyxy[order], found.conf[order], found.class_id[order])
        precision.add(found, boxes[:, 1:], boxes[:, 0].astype(np.int64))
    result = precision.result()
    return result["labels"].get(LEARNED, {"ap50": np.nan})["ap50"], result["map50"]


def project_tracks(clip: Path, weights: Path, labels: Collection[str] = LABELS, **changes: Any) -> list[Track]:
    """Return the tracks of predictions that have a label of the project; ``changes`` are settings."""
    tracks, _ = find_tracks(clip, weights, settings_for(weights, device="cpu", **changes))
    return [replace(track, label=track.top_class) for track in tracks if track.top_class in labels]


def call_walkers(tracks: Sequence[Track], number: int) -> list[Track]:
    """Give the longest tracks of people the label that is learned."""
    people = sorted((track for track in tracks if track.label == "person"), key=len, reverse=True)
    chosen = {track.track_id for track in people[:number]}
    return [replace(track, label=LEARNED) if track.track_id in chosen else track for track in tracks]


def is_sure(track: Track) -> bool:
    seen = track.conf[track.conf > 0]
    return len(seen) > 0 and float(seen.mean()) >= SURE


def covers(other: Track, track: Track) -> bool:
    """Return whether another track lies on at least half of a track's frames."""
    _, mine, theirs = np.intersect1d(track.frames, other.frames, return_indices=True)
    if not len(mine):
        return False
    same = iou_pairs(track.xyxy[mine], other.xyxy[theirs]) >= SAME_IOU
    return bool(same.sum() >= SAME_SHARE * len(track))


def compare(base: Sequence[Track], found: Sequence[Track], taught: Sequence[Track], kept: Kept) -> Iterator[str]:
    """Add the base's sure tracks of a clip; yield the label of each lost one and what the object has now.

    Args:
        taught: annotated tracks in this clip: what people have called "walker" is right as "walker", too.
    """
    for track in filter(is_sure, base):
        right = {track.label} | {item.label for item in taught if covers(item, track)}
        now = {other.label for other in found if covers(other, track)}
        kept.of += 1
        kept.kept += bool(now & right)
        kept.renamed += bool(now) and not now & right
        if not now & right:
            yield f"{track.label} -> {', '.join(map(str, now)) or 'nothing'}"
    kept.gained += sum(is_sure(track) and not any(covers(other, track) for other in base) for track in found)


def measure(video: Path, weights: Path, folder: Path, tracks: Sequence[int], args: Mapping[str, Any]) -> Iterator[Row]:
    """Train on the annotation of one video, compare predictions of other material before and after; yield the table.

    The annotation is the detector's own tracks, of which the given numbers of people, two in the demo clip, get a label
    that is no class of the detector. Trained as by a worker on a CPU. Counted are the base detector's sure
    tracks that the trained detector keeps: one of its tracks with the same label covers at least half of their frames
    at an IoU of 0.5. Other material is the demo clip, the photographs of the ultralytics package, and the video
    mirrored and darkened, in two groups: each is replayed once, while the other is unseen.
    """
    first, second = other_material(video, folder / "clips")
    base = {clip.path: project_tracks(clip.path, weights) for clip in (*first, *second)}
    own = project_tracks(video, weights)
    sample = first[0].path
    scenarios = [
        *((f"{number} tracks", video, call_walkers(own, number), (first, second)) for number in tracks),
        ("demo clip", sample, call_walkers(base[sample], 2), (second[:1], second[1:])),
    ]
    for name, source, labelled, groups in scenarios:
        annotated = annotate(source, labelled, folder / f"data {name}")
        row = Row(name, "")
        for way, replayed, plan in (
            ("as before", None, {"label_config": _UNKNOWN}),
            ("distillation", None, {}),
            ("and replay", 0, {}),
            ("and replay", 1, {}),
        ):
            row = row if replayed == 1 else Row(name, way)
            images: list[str] = []
            if replayed is not None:
                at = folder / f"replay {name} {replayed}"
                images = replay_images(groups[replayed], at, settings_for(weights).imgsz)
            run = folder / f"run {name} {way} {replayed}"
            trained, seconds = train(annotated, weights, run, args, replay=images, **plan)
            row.seconds.append(seconds)
            for values, value in zip((row.ap50, row.map50), average_precision(trained, annotated), strict=True):
                values.append(value)
            for number, group in enumerate(groups):
                for clip in group:
                    taught = [track for item in labelled if source == video and (track := clip.own(item))]
                    kept = row.replayed if number == replayed else row.unseen
                    row.lost.update(compare(base[clip.path], project_tracks(clip.path, trained), taught, kept))
            if replayed != 0:
                yield row
