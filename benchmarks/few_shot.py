"""Few-shot labels from 1, 2, 5, 10 and 20 exemplars: the pattern bank compared with baselines.

    python benchmarks/few_shot.py [--data FOLDER] [--draws 50] [--embedder fallback,dinov2]

Crops come from tracks of a street video and from photographs. ``person`` are upright people, ``fallen_person`` the same
images rotated by about 90 degrees with their surroundings, ``upper_body`` and ``lower_body`` parts of people's
boxes; other classes of the detector (``bicycle``, ...) are used as they are. Test crops are also degraded in ways that
annotated crops rarely are: small, dark or bright, blurred, partly occluded, and all of these at once.

Two tasks. *kinds*: person, fallen_person, upper_body, lower_body, bicycle; exemplars and test crops come from different
objects. *identity*: each person is a label; exemplars come from the first half of the track, test crops from its end. A
draw samples objects and exemplars, the same for all methods, so that differences are paired. Baselines: the nearest
exemplar (cosine), and scikit-learn's LogisticRegression. Closed-set accuracy is on all test crops, clean and degraded.
Open set: the bank must abstain on objects of no label (kinds: other classes; identity: people without exemplars).
``bank`` knows embeddings only, as the baselines do; ``bank, classes`` is told the detector's classes of exemplars and
test crops, too, as in a project. Nothing was tuned on these figures with classes.
DINOv2 is included if the environment's DINOV2_MODEL is a folder. Prints tables and, as the last line, JSON.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
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
from ml_backend.detectors.setup import setup_ultralytics  # noqa: E402
from ml_backend.embeddings.crops import cut_crop  # noqa: E402
from ml_backend.embeddings.embedder import Embedder  # noqa: E402
from ml_backend.embeddings.hub import resolve_embedder  # noqa: E402
from ml_backend.embeddings.loading import load_embedder  # noqa: E402
from ml_backend.labeling.few_shot.pattern_bank import Exemplars, PatternBank, PatternMatch  # noqa: E402
from ml_backend.video.reader import read_frames  # noqa: E402

COUNTS = (1, 2, 5, 10, 20)
KINDS = ("person", "fallen_person", "upper_body", "lower_body", "bicycle")
DERIVED = ("fallen_person", "upper_body", "lower_body")
IDENTITIES = 10  # labels of the task "identity"; the other people are unknown
TEST_CROPS = {"kinds": 8, "identity": 4}  # per label and condition

CROPS_PER_TRACK = 48  # evenly spaced
TEST_EVERY = 3  # every third crop is a test crop, also used for derived kinds; the others are exemplars
MIN_SIDE = 40  # pixels; smaller people make poor exemplars
UPRIGHT_RATIO = 1.6  # minimum height over width of a person visible from head to foot
CONDITIONS = ("clean", "small", "light", "blur", "covered", "mixed")


# -- crops


@dataclass(frozen=True, slots=True)
class Crop:
    """A crop of an object.

    Attributes:
        kind: its label in the task "kinds".
        track: id of the object, unique over the video and the photographs.
        age: 0..1, relative time in the track.
        tested: whether it may be a test crop; else an exemplar.
        detected: the detector's class.
        image: BGR.
    """

    kind: str
    detected: str
    track: int
    age: float
    tested: bool
    image: Image


def extract_crops(video: Path, weights: Path, photographs: list[Path]) -> list[Crop]:
    """Cut crops from the tracks of the video, and from detections in the photographs."""
    rng = np.random.default_rng(0)
    tracks, _ = find_tracks(video, weights, Settings(_env_file=None, stride=1))
    tracks = sorted(tracks, key=lambda track: track.track_id)
    samples: dict[int, list[tuple[int, int, bool]]] = {}
    for number, track in enumerate(tracks):
        detected = np.flatnonzero(track.conf > 0)
        indices = np.linspace(0, len(detected) - 1, CROPS_PER_TRACK).round().astype(int)
        for i, row in enumerate(np.unique(detected[indices])):
            samples.setdefault(int(track.frames[row]), []).append((number, int(row), i % TEST_EVERY == 0))
    crops: list[Crop] = []
    for frame in read_frames(video):
        for number, row, tested in samples.get(frame.index, ()):
            track = tracks[number]
            box = track.xyxy[row].astype(np.float64)
            age = row / max(len(track) - 1, 1)
            if _is_usable(box, frame.image):
                crops += _make_crops(track.top_class, number, age, tested, frame.image, box, rng)
    return crops + list(_photograph_crops(photographs, weights, len(tracks), rng))


def _is_usable(box: np.ndarray, image: Image) -> bool:
    """Return whether a box is large enough and not cut off by the image border."""
    height, width = image.shape[:2]
    complete = box[0] > 2 and box[1] > 2 and box[2] < width - 2 and box[3] < height - 2
    return bool(complete and min(box[2] - box[0], box[3] - box[1]) >= MIN_SIDE)


def _make_crops(
    name: str, track: int, age: float, tested: bool, image: Image, box: np.ndarray, rng: np.random.Generator
) -> Iterator[Crop]:
    """Yield a detection's crop, and for test crops of people those of the derived kinds."""
    width, height = box[2:] - box[:2]
    kinds = {name: (image, box)}
    if name == "person":
        if height < UPRIGHT_RATIO * width:
            return  # bent or half occluded, hence ambiguous
        if tested:
            degrees = float(rng.choice([-90, 90]) + rng.uniform(-15, 15))
            kinds["fallen_person"] = rotate_object(image, box, degrees)
            kinds["upper_body"] = (image, box - np.array([0, 0, 0, 0.55 * height]))
            kinds["lower_body"] = (image, box + np.array([0, 0.5 * height, 0, 0]))
    for kind, (source, crop_box) in kinds.items():
        crop = cut_crop(source, crop_box)
        if crop is not None:
            yield Crop(kind, name, track, age, tested, crop)


def rotate_object(image: Image, box: np.ndarray, degrees: float) -> tuple[Image, np.ndarray]:
    """Rotate an image about the centre of a box.

    Returns:
        A square image of twice the box's diagonal, and the rotated object's ``(4,)`` xyxy box in it.
    """
    center, size = (box[:2] + box[2:]) / 2, box[2:] - box[:2]
    side = int(np.ceil(2 * np.hypot(*size)))
    matrix = cv2.getRotationMatrix2D((float(center[0]), float(center[1])), degrees, 1.0)
    matrix[:, 2] += side / 2 - center
    rotated = cv2.warpAffine(image, matrix, (side, side), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    # The bounding box of a rotated ellipse, since people do not fill the corners of their boxes.
    cos, sin = abs(np.cos(np.radians(degrees))), abs(np.sin(np.radians(degrees)))
    half = np.hypot(size * cos, size[::-1] * sin) / 2
    return rotated, np.concatenate([side / 2 - half, side / 2 + half])


def _photograph_crops(paths: list[Path], weights: Path, number: int, rng: np.random.Generator) -> Iterator[Crop]:
    setup_ultralytics()
    from ultralytics import YOLO

    model = YOLO(weights)
    for path in paths:
        image = cv2.imread(str(path))
        boxes = model.predict(image, verbose=False, conf=0.4)[0].boxes.cpu().numpy()
        for box, class_id in zip(boxes.xyxy.astype(np.float64), boxes.cls, strict=True):
            if min(box[2:] - box[:2]) >= MIN_SIDE:
                yield from _make_crops(model.names[int(class_id)], number, 0.0, True, image, box, rng)
                number += 1


def degrade(image: Image, condition: str, rng: np.random.Generator) -> Image:
    """Return a crop degraded by one of ``CONDITIONS``."""
    if condition == "clean":
        return image
    if condition == "mixed":
        for part in ("covered", "light", "blur", "small"):
            if rng.random() < 0.6:
                image = degrade(image, part, rng)
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
        # A dull colour with some texture, like a wall, a car or a hedge.
        colour = rng.uniform(40, 200) + rng.normal(0, 15, 3)
        noise = cv2.resize(rng.normal(0, 25, (4, 4)), (width, height))[:, :, None] + colour
        out[area] = np.clip(noise, 0, 255).astype(np.uint8)[area]
        return out
    raise ValueError(f"expected one of {CONDITIONS}, got {condition!r}")


# -- tasks


@dataclass(frozen=True, slots=True)
class EmbeddedCrops:
    """Embeddings of all crops.

    Attributes:
        kind, detected, track, age, tested: ``(n,)``; see ``Crop``.
        embeddings: by condition ``(n, d)``; NaN rows where a crop was not degraded.
    """

    kind: np.ndarray
    detected: np.ndarray
    track: np.ndarray
    age: np.ndarray
    tested: np.ndarray
    embeddings: dict[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Episode:
    """A random few-shot problem.

    Attributes:
        x, y, group, x_class: embeddings ``(n, d)``, labels, objects and detector classes ``(n,)`` of the exemplars.
        query, truth, condition, query_class: embeddings, labels, conditions and detector classes of test crops.
        unknown, unknown_class: embeddings and detector classes of test crops of no label.
    """

    x: np.ndarray
    y: np.ndarray
    group: np.ndarray
    x_class: np.ndarray
    query: np.ndarray
    truth: np.ndarray
    condition: np.ndarray
    query_class: np.ndarray
    unknown: np.ndarray
    unknown_class: np.ndarray


def embed_all(crops: list[Crop], embedder: Embedder) -> EmbeddedCrops:
    """Embed each crop, and each test crop under each condition."""
    rng = np.random.default_rng(1)
    tested = np.array([crop.tested for crop in crops])
    embeddings = {}
    for condition in CONDITIONS:
        rows = np.arange(len(crops)) if condition == "clean" else np.flatnonzero(tested)
        embeddings[condition] = np.full((len(crops), embedder.dim), np.nan, np.float32)
        embeddings[condition][rows] = embedder.embed([degrade(crops[i].image, condition, rng) for i in rows])
    return EmbeddedCrops(
        np.array([crop.kind for crop in crops]),
        np.array([crop.detected for crop in crops]),
        np.array([crop.track for crop in crops]),
        np.array([crop.age for crop in crops]),
        tested,
        embeddings,
    )


def sample_kinds(crops: EmbeddedCrops, rng: np.random.Generator, count: int) -> Episode:
    """Take exemplars from half of the objects of each kind, and test crops from the others."""
    exemplar_tracks: set[int] = set()
    for kind in (kind for kind in KINDS if kind not in DERIVED):
        tracks = rng.permutation(np.unique(crops.track[crops.kind == kind]))
        exemplar_tracks |= set(tracks[: len(tracks) // 2].tolist())
    is_exemplar = np.isin(crops.track, sorted(exemplar_tracks))
    exemplars = [_sample_rows(crops, rng, (crops.kind == kind) & is_exemplar, count) for kind in KINDS]
    queries = [(crops.kind == kind) & ~is_exemplar & crops.tested for kind in KINDS]
    unknown = ~np.isin(crops.kind, KINDS) & crops.tested
    return _make_episode(crops, rng, exemplars, queries, [unknown], TEST_CROPS["kinds"], 2 * TEST_CROPS["kinds"])


def sample_identities(crops: EmbeddedCrops, rng: np.random.Generator, count: int) -> Episode:
    """Take exemplars from the first half of each person's track, and test crops from its end."""
    person = crops.kind == "person"
    early, late = person & (crops.age < 0.5), person & (crops.age > 0.55) & crops.tested
    usable = [t for t in np.unique(crops.track[person]) if (early & (crops.track == t)).sum() >= 10]
    people = rng.permutation([t for t in usable if (late & (crops.track == t)).sum() >= 3])
    labelled, unlabelled = people[:IDENTITIES], people[IDENTITIES:]
    exemplars = [_sample_rows(crops, rng, early & (crops.track == t), count) for t in labelled]
    queries = [late & (crops.track == t) for t in labelled]
    unknown = [late & (crops.track == t) for t in unlabelled]
    return _make_episode(crops, rng, exemplars, queries, unknown, TEST_CROPS["identity"], TEST_CROPS["identity"])


def _sample_rows(crops: EmbeddedCrops, rng: np.random.Generator, mask: np.ndarray, count: int) -> np.ndarray:
    """Sample rows of a mask, spread evenly over objects."""
    rows = rng.permutation(np.flatnonzero(mask))
    turn = np.zeros(len(rows), int)
    for track in np.unique(crops.track[rows]):
        of_track = crops.track[rows] == track
        turn[of_track] = np.arange(of_track.sum())
    return rows[np.argsort(turn, kind="stable")][:count]


def _make_episode(
    crops: EmbeddedCrops,
    rng: np.random.Generator,
    exemplars: list[np.ndarray],
    queries: list[np.ndarray],
    unknown: list[np.ndarray],
    per_label: int,
    per_unknown: int,
) -> Episode:
    y = np.repeat(np.arange(len(exemplars)), [len(rows) for rows in exemplars])
    rows = np.concatenate(exemplars)
    query, truth, condition, unknown_rows, unknown_embeddings = [], [], [], [], []
    query_class: list[str] = []
    for c, name in enumerate(CONDITIONS):
        for label, mask in enumerate(queries):
            query_rows = _sample_rows(crops, rng, mask, per_label)
            query.append(crops.embeddings[name][query_rows])
            truth += [label] * len(query_rows)
            condition += [c] * len(query_rows)
            query_class += crops.detected[query_rows].tolist()
        for mask in unknown:
            unknown_rows.append(_sample_rows(crops, rng, mask, per_unknown))
            unknown_embeddings.append(crops.embeddings[name][unknown_rows[-1]])
    return Episode(
        crops.embeddings["clean"][rows],
        y,
        # Unique per label, since kinds are cut from the same people.
        crops.track[rows] * len(exemplars) + y,
        crops.detected[rows],
        np.concatenate(query),
        np.array(truth),
        np.array(condition),
        np.array(query_class),
        np.concatenate(unknown_embeddings),
        crops.detected[np.concatenate(unknown_rows)],
    )


def evaluate_episode(episode: Episode) -> dict[str, float]:
    """Return the metrics of the pattern bank and the baselines."""
    from sklearn.linear_model import LogisticRegression

    count = int(episode.y.max()) + 1
    names = tuple(f"{label:02d}" for label in range(count))
    cosine = episode.query @ episode.x.T
    predictions = {
        "nearest": np.stack([cosine[:, episode.y == i].max(axis=1) for i in range(count)], axis=1).argmax(axis=1)
    }
    predictions["logistic"] = LogisticRegression(max_iter=1000).fit(episode.x, episode.y).predict(episode.query)
    exemplars = Exemplars(
        np.arange(len(episode.y)),
        episode.x,
        tuple(names[label] for label in episode.y),
        episode.group.astype(np.int64),
    )
    bare = PatternBank.fit(exemplars)
    told = PatternBank.fit(replace(exemplars, classes=tuple(episode.x_class.tolist())))

    def classify(bank: PatternBank, embeddings: np.ndarray, classes: np.ndarray) -> list[PatternMatch]:
        unreached = {
            name: [label for label in bank.labels if not bank.taught.reaches(label, {name: 1.0})]
            for name in set(classes.tolist())
        }
        return [bank.classify(x[None], None, unreached[name]) for x, name in zip(embeddings, classes, strict=True)]

    metrics: dict[str, float] = {}
    for name, bank in (("bank", bare), ("bank, classes", told)):
        known = classify(bank, episode.query, episode.query_class)
        unknown = classify(bank, episode.unknown, episode.unknown_class)
        predictions[name] = np.array([names.index(match.best) if match.best else -1 for match in known])
        metrics |= _open_set(name, predictions[name] == episode.truth, episode.condition, known, unknown)
    for name, predicted in predictions.items():
        metrics[name] = float((predicted == episode.truth).mean())
        for c, condition in enumerate(CONDITIONS):
            rows = episode.condition == c
            metrics[f"{name} {condition}"] = float((predicted[rows] == episode.truth[rows]).mean())
    return metrics


def _open_set(
    name: str, correct: np.ndarray, condition: np.ndarray, known: list[PatternMatch], unknown: list[PatternMatch]
) -> dict[str, float]:
    """Return how often a bank abstains, and how often it is right where it does not."""
    accepted = np.array([match.label is not None for match in known])
    probability = np.array([match.probability for match in known + unknown])
    clean = condition == CONDITIONS.index("clean")
    metrics = {
        "abstained on unknown": float(np.mean([match.label is None for match in unknown])),
        "abstained on known": float(1 - accepted.mean()),
        "abstained on clean": float(1 - accepted[clean].mean()),
        "right when accepted": float(correct[accepted].mean()) if accepted.any() else np.nan,
        "right when accepted, clean": float(correct[accepted & clean].mean()) if accepted[clean].any() else np.nan,
        "brier": float(np.mean((probability - np.append(correct, np.zeros(len(unknown)))) ** 2)),
    }
    return {f"{name}: {metric}": value for metric, value in metrics.items()}


TASKS: dict[str, Callable[[EmbeddedCrops, np.random.Generator, int], Episode]] = {
    "kinds": sample_kinds,
    "identity": sample_identities,
}


def run_task(crops: EmbeddedCrops, task: str, count: int, draws: int) -> dict[str, float]:
    """Return mean metrics over draws, and the bank's paired differences to the baselines with standard errors."""
    runs = [evaluate_episode(TASKS[task](crops, np.random.default_rng([2, d, count]), count)) for d in range(draws)]
    values_by_metric = {name: np.array([run[name] for run in runs]) for name in runs[0]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # nothing was accepted in any draw
        means = {name: float(np.nanmean(values)) for name, values in values_by_metric.items()}
    for name in ("nearest", "logistic"):
        gain = values_by_metric["bank"] - values_by_metric[name]
        means[f"bank - {name}"] = float(gain.mean())
        means[f"bank - {name}, error"] = float(gain.std(ddof=1) / np.sqrt(len(gain))) if len(gain) > 1 else np.nan
    return means


def embedder_kinds(chosen: str) -> list[str]:
    """Return the embedders to measure: those chosen, separated by commas, else all with local weights."""
    has_dinov2 = Path(Settings().dinov2_model).is_dir()
    kinds = chosen.split(",") if chosen else ["fallback", *(["dinov2"] if has_dinov2 else [])]
    if "dinov2" in kinds and not has_dinov2:
        raise click.ClickException("DINOV2_MODEL is not a folder.")
    return kinds


@click.command(help=__doc__)
@click.option(
    "--data",
    default=ROOT.parent / "shared" / "data",
    type=click.Path(path_type=Path),
    help="Folder of people.mp4 and yolo11n.pt.",
)
@click.option("--draws", default=50, show_default=True, type=click.IntRange(2))
@click.option("--embedder", default="", help="fallback, dinov2; by default those with local weights.")
def main(data: Path, draws: int, embedder: str) -> None:
    video, weights = data / "people.mp4", data / "yolo11n.pt"
    for path in (video, weights):
        if not path.is_file():
            raise click.ClickException(f"{path} does not exist; set its folder with --data.")
    import ultralytics

    assets = Path(ultralytics.__file__).parent / "assets"
    crops = extract_crops(video, weights, [assets / "bus.jpg", assets / "zidane.jpg"])
    results: dict[str, Any] = {}
    for kind in embedder_kinds(embedder):
        settings = Settings(embedder=kind)
        embedded = embed_all(crops, load_embedder(resolve_embedder(settings), settings))
        for task in TASKS:
            metrics = {count: run_task(embedded, task, count, draws) for count in COUNTS}
            _print_table(f"{kind}, {task}, {draws} draws", metrics)
            results.setdefault(kind, {})[task] = {
                count: {name: round(value, 4) for name, value in values.items() if np.isfinite(value)}
                for count, values in metrics.items()
            }
    print(json.dumps({"draws": draws, "crops": len(crops), "results": results}))


def _print_table(title: str, metrics: dict[int, dict[str, float]]) -> None:
    table = Table("exemplars a label", *(str(count) for count in metrics), title=title)
    for name in next(iter(metrics.values())):
        if name.endswith(", error"):
            continue
        signed = name.startswith("bank - ")
        cells = []
        for values in metrics.values():
            error = values.get(f"{name}, error")
            cells.append(f"{values[name]:+.3f} ± {error:.3f}" if signed else f"{values[name]:.3f}")
        table.add_row(name, *cells)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
