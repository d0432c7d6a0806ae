"""Labels from 1, 2, 5, 10 and 20 exemplars: the pattern bank beside what it must not lose to.

    python benchmarks/few_shot.py [--data FOLDER] [--draws 50] [--embedder fallback,dinov2]

Real crops: tracks of a street video, and photographs. ``person`` are upright people, ``fallen_person`` the same
pictures turned by about 90 degrees with all that is around them, ``upper_body`` and ``lower_body`` parts of people's
boxes, and what else the detector names (``bicycle``, ...) is taken as it is. Test crops are also shown under changes
that annotated views rarely have: small, dark or bright, blurred, partly covered, and all of these at once.

Two tasks. *kinds*: person, fallen_person, upper_body, lower_body, bicycle; exemplars and test crops come from different
objects. *identity*: each person is a label; exemplars come from the first half of its life, test crops from the end. A
draw chooses objects and exemplars by chance, the same for all methods, so that differences are paired. Baselines: the
nearest exemplar (cosine), and scikit-learn's LogisticRegression. Forced choice is on all test crops, clean and changed.
Open set: objects of none of the labels (kinds: whatever else was found; identity: people without exemplars) must be
abstained on. DINOv2 takes part where the environment's DINOV2_MODEL is a folder. Prints tables and, as the last line,
JSON.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.tracking import find_tracks  # noqa: E402
from ml_backend.core.settings import Settings  # noqa: E402
from ml_backend.core.types import Image  # noqa: E402
from ml_backend.detectors.ultralytics_setup import setup_ultralytics  # noqa: E402
from ml_backend.embeddings.crops import cut_crop  # noqa: E402
from ml_backend.embeddings.embedder import Embedder  # noqa: E402
from ml_backend.embeddings.hub import resolve_embedder  # noqa: E402
from ml_backend.labeling.few_shot.pattern_bank import Exemplars, PatternBank  # noqa: E402
from ml_backend.labeling.track_classifier import load_embedder  # noqa: E402
from ml_backend.video.reader import read_frames  # noqa: E402

COUNTS = (1, 2, 5, 10, 20)
KINDS = ("person", "fallen_person", "upper_body", "lower_body", "bicycle")
DERIVED = ("fallen_person", "upper_body", "lower_body")
PEOPLE = 10  # labels of the task "identity"; the other people are unknown
TESTED = {"kinds": 8, "identity": 4}  # test crops a label and condition

CROPS_PER_TRACK = 48  # of one track, spread over its life ...
EVERY = 3  # ... of which so many make one that is tested, and shown as all kinds; the others are exemplars
MIN_SIDE = 40  # pixels: a person of less is no model to learn from
UPRIGHT = 1.6  # height over width of a person who is seen from head to foot
CONDITIONS = ("clean", "small", "light", "blur", "covered", "mixed")


# -- crops


@dataclass(frozen=True, slots=True)
class Crop:
    """One view of one object.

    Attributes:
        kind: its label in the task "kinds".
        track: number of the object, unique over the video and the photographs.
        age: 0..1, where in the object's life.
        tested: whether it may be a test crop; else an exemplar of ``person`` or of what it is.
        image: BGR.
    """

    kind: str
    track: int
    age: float
    tested: bool
    image: Image


def find_crops(video: Path, weights: Path, photographs: list[Path]) -> list[Crop]:
    """Track the video with the project's pipeline, and cut views; then those of the photographs."""
    rng = np.random.default_rng(0)
    found, _ = find_tracks(video, weights, Settings(_env_file=None, stride=1))
    tracks = sorted(found, key=lambda track: track.track_id)
    wanted: dict[int, list[tuple[int, int, bool]]] = {}
    for number, track in enumerate(tracks):
        seen = np.flatnonzero(track.conf > 0)
        for i, row in enumerate(np.unique(seen[np.linspace(0, len(seen) - 1, CROPS_PER_TRACK).round().astype(int)])):
            wanted.setdefault(int(track.frames[row]), []).append((number, int(row), i % EVERY == 0))
    crops: list[Crop] = []
    for frame in read_frames(video):
        for number, row, tested in wanted.get(frame.index, ()):
            track = tracks[number]
            box = track.xyxy[row].astype(np.float64)
            age = row / max(len(track) - 1, 1)
            if _inside(box, frame.image):
                crops += _views(track.top_class, number, age, tested, frame.image, box, rng)
    return crops + list(_photographs(photographs, weights, len(tracks), rng))


def _inside(box: np.ndarray, image: Image) -> bool:
    """Whether a box is large enough, and not cut off by the edge of the picture."""
    height, width = image.shape[:2]
    whole = box[0] > 2 and box[1] > 2 and box[2] < width - 2 and box[3] < height - 2
    return bool(whole and min(box[2] - box[0], box[3] - box[1]) >= MIN_SIDE)


def _views(
    name: str, track: int, age: float, tested: bool, image: Image, box: np.ndarray, rng: np.random.Generator
) -> Iterator[Crop]:
    """A detection's crops of all kinds."""
    width, height = box[2:] - box[:2]
    kinds = {name: (image, box)}
    if name == "person":
        if height < UPRIGHT * width:
            return  # bent, or half hidden: nobody could say which kind it is
        if tested:
            degrees = float(rng.choice([-90, 90]) + rng.uniform(-15, 15))
            kinds["fallen_person"] = turned(image, box, degrees)
            kinds["upper_body"] = (image, box - np.array([0, 0, 0, 0.55 * height]))
            kinds["lower_body"] = (image, box + np.array([0, 0.5 * height, 0, 0]))
    for kind, (picture, part) in kinds.items():
        crop = cut_crop(picture, part)
        if crop is not None:
            yield Crop(kind, track, age, tested, crop)


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


def _photographs(paths: list[Path], weights: Path, number: int, rng: np.random.Generator) -> Iterator[Crop]:
    setup_ultralytics()
    from ultralytics import YOLO

    model = YOLO(weights)
    for path in paths:
        image = cv2.imread(str(path))
        found = model.predict(image, verbose=False, conf=0.4)[0].boxes.cpu().numpy()
        for box, class_id in zip(found.xyxy.astype(np.float64), found.cls, strict=True):
            if min(box[2:] - box[:2]) >= MIN_SIDE:
                yield from _views(model.names[int(class_id)], number, 0.0, True, image, box, rng)
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


# -- tasks


@dataclass(frozen=True, slots=True)
class Pool:
    """All crops, embedded.

    Attributes:
        kind, track, age, tested: ``(n,)``; see ``Crop``.
        views: by condition ``(n, d)``; NaN where a crop was not shown under it.
    """

    kind: np.ndarray
    track: np.ndarray
    age: np.ndarray
    tested: np.ndarray
    views: dict[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Draw:
    """One chance choice: exemplars ``x`` with labels ``y`` and objects ``group``, known test crops, unknown ones."""

    x: np.ndarray
    y: np.ndarray
    group: np.ndarray
    query: np.ndarray
    truth: np.ndarray
    condition: np.ndarray
    unknown: np.ndarray


def embed_all(crops: list[Crop], embedder: Embedder) -> Pool:
    """Each crop once, and each test crop under each condition."""
    rng = np.random.default_rng(1)
    tested = np.array([crop.tested for crop in crops])
    views = {}
    for condition in CONDITIONS:
        rows = np.arange(len(crops)) if condition == "clean" else np.flatnonzero(tested)
        views[condition] = np.full((len(crops), embedder.dim), np.nan, np.float32)
        views[condition][rows] = embedder.embed([change(crops[i].image, condition, rng) for i in rows])
    return Pool(
        np.array([crop.kind for crop in crops]),
        np.array([crop.track for crop in crops]),
        np.array([crop.age for crop in crops]),
        tested,
        views,
    )


def draw_kinds(pool: Pool, rng: np.random.Generator, count: int) -> Draw:
    """Half of the objects of each kind teach, the others test."""
    teachers: set[int] = set()
    for kind in set(KINDS) - set(DERIVED):
        tracks = rng.permutation(np.unique(pool.track[pool.kind == kind]))
        teachers |= set(tracks[: len(tracks) // 2].tolist())
    teaches = np.isin(pool.track, sorted(teachers))
    learned = [_pick(pool, rng, (pool.kind == kind) & teaches, count) for kind in KINDS]
    asked = [(pool.kind == kind) & ~teaches & pool.tested for kind in KINDS]
    unknown = ~np.isin(pool.kind, KINDS) & pool.tested
    return _assemble(pool, rng, learned, asked, [unknown], TESTED["kinds"], 2 * TESTED["kinds"])


def draw_identity(pool: Pool, rng: np.random.Generator, count: int) -> Draw:
    """The first half of each person's life teaches, the end tests; some people are unknown."""
    person = pool.kind == "person"
    early, late = person & (pool.age < 0.5), person & (pool.age > 0.55) & pool.tested
    usable = [t for t in np.unique(pool.track[person]) if (early & (pool.track == t)).sum() >= 10]
    people = rng.permutation([t for t in usable if (late & (pool.track == t)).sum() >= 3])
    known, others = people[:PEOPLE], people[PEOPLE:]
    learned = [_pick(pool, rng, early & (pool.track == t), count) for t in known]
    asked = [late & (pool.track == t) for t in known]
    unknown = [late & (pool.track == t) for t in others]
    return _assemble(pool, rng, learned, asked, unknown, TESTED["identity"], TESTED["identity"])


def _pick(pool: Pool, rng: np.random.Generator, among: np.ndarray, count: int) -> np.ndarray:
    """Rows by chance, spread over as many objects as there are."""
    rows = rng.permutation(np.flatnonzero(among))
    turn = np.zeros(len(rows), int)
    for track in np.unique(pool.track[rows]):
        mine = pool.track[rows] == track
        turn[mine] = np.arange(mine.sum())
    return rows[np.argsort(turn, kind="stable")][:count]


def _assemble(
    pool: Pool,
    rng: np.random.Generator,
    learned: list[np.ndarray],
    asked: list[np.ndarray],
    unknown: list[np.ndarray],
    per_label: int,
    per_unknown: int,
) -> Draw:
    y = np.repeat(np.arange(len(learned)), [len(rows) for rows in learned])
    rows = np.concatenate(learned)
    query, truth, condition, none = [], [], [], []
    for c, name in enumerate(CONDITIONS):
        for label, among in enumerate(asked):
            some = _pick(pool, rng, among, per_label)
            query.append(pool.views[name][some])
            truth += [label] * len(some)
            condition += [c] * len(some)
        none += [pool.views[name][_pick(pool, rng, among, per_unknown)] for among in unknown]
    return Draw(
        pool.views["clean"][rows],
        y,
        # Two labels never share an annotated object, though kinds are cut from the same people.
        pool.track[rows] * len(learned) + y,
        np.concatenate(query),
        np.array(truth),
        np.array(condition),
        np.concatenate(none),
    )


def run_draw(draw: Draw) -> dict[str, float]:
    """All figures of one draw."""
    from sklearn.linear_model import LogisticRegression

    count = int(draw.y.max()) + 1
    names = tuple(f"{label:02d}" for label in range(count))
    cosine = draw.query @ draw.x.T
    choices = {"nearest": np.stack([cosine[:, draw.y == i].max(axis=1) for i in range(count)], axis=1).argmax(axis=1)}
    choices["logistic"] = LogisticRegression(max_iter=1000).fit(draw.x, draw.y).predict(draw.query)
    bank = PatternBank.fit(
        Exemplars(np.arange(len(draw.y)), draw.x, tuple(names[label] for label in draw.y), draw.group.astype(np.int64))
    )
    verdicts = [bank.classify(view[None]) for view in draw.query]
    strangers = [bank.classify(view[None]) for view in draw.unknown]
    choices["bank"] = np.array([names.index(v.best or "") for v in verdicts])
    figures: dict[str, float] = {}
    for name, choice in choices.items():
        figures[name] = float((choice == draw.truth).mean())
        for c, condition in enumerate(CONDITIONS):
            inside = draw.condition == c
            figures[f"{name} {condition}"] = float((choice[inside] == draw.truth[inside]).mean())
    right = choices["bank"] == draw.truth
    accepted = np.array([v.label is not None for v in verdicts])
    sure = np.array([v.probability for v in verdicts + strangers])
    figures["abstained on unknown"] = float(np.mean([v.label is None for v in strangers]))
    figures["abstained on known"] = float(1 - accepted.mean())
    figures["right when accepted"] = float(right[accepted].mean()) if accepted.any() else np.nan
    figures["brier"] = float(np.mean((sure - np.append(right, np.zeros(len(strangers)))) ** 2))
    return figures


TASKS: dict[str, Callable[[Pool, np.random.Generator, int], Draw]] = {"kinds": draw_kinds, "identity": draw_identity}


def run_task(pool: Pool, task: str, count: int, draws: int) -> dict[str, float]:
    """Means over draws, and paired differences of the bank to the baselines with their standard errors."""
    runs = [run_draw(TASKS[task](pool, np.random.default_rng([2, d, count]), count)) for d in range(draws)]
    table = {name: np.array([run[name] for run in runs]) for name in runs[0]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # nothing was accepted in any draw
        out = {name: float(np.nanmean(values)) for name, values in table.items()}
    for name in ("nearest", "logistic"):
        gain = table["bank"] - table[name]
        out[f"bank - {name}"] = float(gain.mean())
        out[f"bank - {name}, error"] = float(gain.std(ddof=1) / np.sqrt(len(gain))) if len(gain) > 1 else np.nan
    return out


@click.command(help=__doc__)
@click.option("--data", default=ROOT.parent / "shared" / "data", type=click.Path(path_type=Path), help="people.mp4.")
@click.option("--draws", default=50, show_default=True, type=click.IntRange(2))
@click.option("--embedder", default="", help="fallback, dinov2; by default those whose weights are here.")
def main(data: Path, draws: int, embedder: str) -> None:
    video, weights = data / "people.mp4", data / "yolo11n.pt"
    for path in (video, weights):
        if not path.is_file():
            raise click.ClickException(f"{path} is not there; give the folder that holds it with --data.")
    import ultralytics

    assets = Path(ultralytics.__file__).parent / "assets"
    crops = find_crops(video, weights, [assets / "bus.jpg", assets / "zidane.jpg"])
    have_dino = Path(Settings().dinov2_model).is_dir()
    kinds = embedder.split(",") if embedder else ["fallback", *(["dinov2"] if have_dino else [])]
    if "dinov2" in kinds and not have_dino:
        raise click.ClickException("DINOV2_MODEL is no folder.")
    results: dict[str, Any] = {}
    for kind in kinds:
        settings = Settings(embedder=kind)
        pool = embed_all(crops, load_embedder(resolve_embedder(settings), settings))
        for task in TASKS:
            found = {count: run_task(pool, task, count, draws) for count in COUNTS}
            _show(f"{kind}, {task}, {draws} draws", found)
            results.setdefault(kind, {})[task] = {
                count: {name: round(value, 4) for name, value in figures.items() if np.isfinite(value)}
                for count, figures in found.items()
            }
    print(json.dumps({"draws": draws, "crops": len(crops), "results": results}))


def _show(title: str, found: dict[int, dict[str, float]]) -> None:
    table = Table("exemplars a label", *(str(count) for count in found), title=title)
    for name in next(iter(found.values())):
        if name.endswith(", error"):
            continue
        signed = name.startswith("bank - ")
        cells = []
        for figures in found.values():
            error = figures.get(f"{name}, error")
            cells.append(f"{figures[name]:+.3f} ± {error:.3f}" if signed else f"{figures[name]:.3f}")
        table.add_row(name, *cells)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
