"""Real crops with labels for :mod:`benchmarks.few_shot`: tracks of a street video, and photographs.

Kinds are what the material honestly holds. ``person`` are upright people, ``fallen_person`` the same pictures turned
by about 90 degrees with all that is around them, ``upper_body`` and ``lower_body`` parts of people's boxes, and what
else the detector names (``bicycle``, ...) is taken as it is. Test crops are also shown under changes that annotated
views rarely have: small, dark or bright, blurred, partly covered, and all of these at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from ml_backend.models._ultralytics import setup_ultralytics
from ml_backend.models.detector import YoloDetector
from ml_backend.models.tracker import Tracker
from ml_backend.observe import observe
from ml_backend.settings import Settings
from ml_backend.tracks.assembler import TrackAssembler
from ml_backend.types import Image, Track
from ml_backend.video.probe import probe
from ml_backend.video.reader import read_frames

VIEWS = 48  # of one track, spread over its life ...
EVERY = 3  # ... of which so many make one that is tested, and shown as all kinds; the others are exemplars
MIN_SIDE = 40  # pixels: a person of less is no model to learn from
UPRIGHT = 1.6  # height over width of a person who is seen from head to foot
CONDITIONS = ("clean", "small", "light", "blur", "covered", "mixed")

Cut = Callable[[Image, np.ndarray], Image | None]


@dataclass(frozen=True, slots=True)
class Source:
    """Where a view is from.

    Attributes:
        track: number of the object, unique over the video and the photographs.
        age: 0..1, where in the object's life.
        tested: whether it may be a test crop; else an exemplar of ``person`` or of what it is.
    """

    track: int
    age: float
    tested: bool


@dataclass(frozen=True, slots=True)
class Crop:
    """One view of one object; ``kind`` is its label in the task "kinds", ``image`` is BGR."""

    kind: str
    source: Source
    image: Image


def find_crops(video: Path, weights: Path, photographs: list[Path], cut: Cut) -> list[Crop]:
    """Track the video with the project's pipeline, and cut views; then those of the photographs."""
    rng = np.random.default_rng(0)
    tracks = find_tracks(video, weights)
    wanted: dict[int, list[tuple[int, int, bool]]] = {}
    for number, track in enumerate(tracks):
        seen = np.flatnonzero(track.conf > 0)
        for i, row in enumerate(np.unique(seen[np.linspace(0, len(seen) - 1, VIEWS).round().astype(int)])):
            wanted.setdefault(int(track.frames[row]), []).append((number, int(row), i % EVERY == 0))
    crops: list[Crop] = []
    for frame in read_frames(video):
        for number, row, tested in wanted.get(frame.index, ()):
            track = tracks[number]
            box = track.xyxy[row].astype(np.float64)
            age = row / max(len(track) - 1, 1)
            if _inside(box, frame.image):
                crops += _views(track.top_class, Source(number, age, tested), frame.image, box, cut, rng)
    return crops + list(_photographs(photographs, weights, len(tracks), cut, rng))


def find_tracks(video: Path, weights: Path) -> list[Track]:
    """Detector, tracker and assembler as the pipeline chains them; every class is kept."""
    settings, info = Settings(_env_file=None), probe(video)
    detector = YoloDetector(weights, settings)
    tracker = Tracker(settings.tracker, info.fps)
    assembler = TrackAssembler(info.fps, detector.names, info.width, info.height, settings)
    tracks: list[Track] = []
    for observation in observe(video, info, detector, batch=settings.batch):
        tracks += assembler.push(observation.index, tracker.update(observation))
    return sorted(tracks + assembler.close(), key=lambda track: track.track_id)


def _inside(box: np.ndarray, image: Image) -> bool:
    """Whether a box is large enough, and not cut off by the edge of the picture."""
    height, width = image.shape[:2]
    whole = box[0] > 2 and box[1] > 2 and box[2] < width - 2 and box[3] < height - 2
    return bool(whole and min(box[2] - box[0], box[3] - box[1]) >= MIN_SIDE)


def _views(
    name: str, source: Source, image: Image, box: np.ndarray, cut: Cut, rng: np.random.Generator
) -> Iterator[Crop]:
    """A detection's crops of all kinds."""
    width, height = box[2:] - box[:2]
    kinds = {name: (image, box)}
    if name == "person":
        if height < UPRIGHT * width:
            return  # bent, or half hidden: nobody could say which kind it is
        if source.tested:
            degrees = float(rng.choice([-90, 90]) + rng.uniform(-15, 15))
            kinds["fallen_person"] = turned(image, box, degrees)
            kinds["upper_body"] = (image, box - np.array([0, 0, 0, 0.55 * height]))
            kinds["lower_body"] = (image, box + np.array([0, 0.5 * height, 0, 0]))
    for kind, (picture, part) in kinds.items():
        crop = cut(picture, part)
        if crop is not None:
            yield Crop(kind, source, crop)


def turned(image: Image, box: np.ndarray, degrees: float) -> tuple[Image, np.ndarray]:
    """A picture turned about a box's centre with all that is around it, and the box about the turned object.

    Returns:
        A square picture of twice the box's diagonal, and ``(4,)`` xyxy in it.
    """
    center, size = (box[:2] + box[2:]) / 2, box[2:] - box[:2]
    side = int(np.ceil(2 * np.hypot(*size)))
    matrix = cv2.getRotationMatrix2D((float(center[0]), float(center[1])), degrees, 1.0)
    matrix[:, 2] += side / 2 - center
    picture = cv2.warpAffine(image, matrix, (side, side), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    # A person fills an ellipse of his box rather than its corners.
    cos, sin = abs(np.cos(np.radians(degrees))), abs(np.sin(np.radians(degrees)))
    half = np.hypot(size * cos, size[::-1] * sin) / 2
    return picture, np.concatenate([side / 2 - half, side / 2 + half])


def _photographs(paths: list[Path], weights: Path, number: int, cut: Cut, rng: np.random.Generator) -> Iterator[Crop]:
    setup_ultralytics()
    from ultralytics import YOLO

    model = YOLO(weights)
    for path in paths:
        image = cv2.imread(str(path))
        found = model.predict(image, verbose=False, conf=0.4)[0].boxes.cpu().numpy()
        for box, class_id in zip(found.xyxy.astype(np.float64), found.cls, strict=True):
            if min(box[2:] - box[:2]) >= MIN_SIDE:
                yield from _views(model.names[int(class_id)], Source(number, 0.0, True), image, box, cut, rng)
                number += 1


def change(image: Image, condition: str, rng: np.random.Generator) -> Image:
    """A crop under one of ``CONDITIONS``."""
    if condition == "clean":
        return image
    if condition == "mixed":
        for part in ("covered", "light", "blur", "small"):
            if rng.random() < 0.6:
                image = change(image, part, rng)
        return image
    height, width = image.shape[:2]
    if condition == "small":  # down to 24 pixels
        scale = float(rng.uniform(24, 64)) / max(height, width)
        if scale >= 1:
            return image
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
    if condition == "light":
        gamma, gain = rng.choice([rng.uniform(0.4, 0.7), rng.uniform(1.5, 2.5)]), rng.uniform(0.7, 1.2)
        tint = rng.uniform(0.85, 1.15, 3)
        return np.clip(255 * (image / 255.0) ** gamma * gain * tint, 0, 255).astype(np.uint8)
    if condition == "blur":
        sigma = float(rng.uniform(0.01, 0.035)) * max(height, width)
        if rng.random() < 0.5:
            return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma), np.uint8)
        length = max(3, round(3 * sigma))
        kernel = np.full((1, length), 1 / length)
        return np.asarray(cv2.filter2D(image, -1, kernel if rng.random() < 0.7 else kernel.T), np.uint8)
    if condition == "covered":
        out = image.copy()
        share, side = rng.uniform(0.2, 0.45), rng.integers(4)
        rows, columns = round(height * share), round(width * share)
        area = [np.s_[:rows], np.s_[height - rows :], np.s_[:, :columns], np.s_[:, width - columns :]][side]
        # A wall, a car, a hedge: one dull colour with some structure.
        colour = rng.uniform(40, 200) + rng.normal(0, 15, 3)
        noise = cv2.resize(rng.normal(0, 25, (4, 4)), (width, height))[:, :, None] + colour
        out[area] = np.clip(noise, 0, 255).astype(np.uint8)[area]
        return out
    raise ValueError(f"expected one of {CONDITIONS}, got {condition!r}")
