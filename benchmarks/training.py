"""What a training learns from 1, 5 and 20 annotated tracks, and how much longer it takes than ultralytics by itself.

    python benchmarks/training.py [--epochs 10] [--tracks 1,5,20] [--overhead-pairs 2] [--only street] [--work FOLDER]

*street*: people.mp4 is pre-annotated at 960 pixels and cleaned up: persons seen for a second with a score of 0.4 are
the truth. Half of them, chosen by the seed, are "first_responder", the others "civilian", which is also what the label
config makes of the detector's "person". So a model has to learn who is who, of people that it has seen at other times.
*shapes*: a drawn video of turning stars and gears, which COCO does not know, and of triangles, which nobody labels.
Objects last some seconds: most of those measured were never trained on.

The first four fifths of a video are what the project's own split makes of them: trained on, watched to end the
training, gaps. The last fifth is measured, with all objects, on the untouched video: average precision of labelled
boxes on some pictures, HOTA and IDF1 of the tracks on all frames, whatever their labels. In the four fifths only so
many tracks are annotated (the first ones of a shuffled list in which the labels take turns). Objects that are not
annotated would be taught as background; so there they are painted grey, wherever no annotated box is. This is kinder
than a real project, where people have to annotate all they see. On the street that includes every person that was
found at all; those that the detector overlooked are background to the training, as they would be to a person.

"before" are the detector's weights with the labels of the config. On the street they have an advantage: the truth
comes from the same detector, only at a higher resolution. To be quick, a training sees few pictures (32 of the street
at 640 pixels, 48 of the shapes at 320), which is less than the software takes by itself.

*overhead*: a training of the shapes in its own process, from its start to its end, beside a process that calls
``YOLO.train`` with the same arguments, pictures and epochs (half of --epochs), at the same priority; pairs take turns
in who is first. What differs: ``freeze_norm``, an argument of our own that ultralytics does not have; ours leaves out
ultralytics' closing validation, and loads the finished checkpoint once as a proof. Processor time is compared too:
other work on the machine changes it less.

With --work what is finished is kept there, and not done again. Prints tables and, as the last line, JSON.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.measuring import numbers  # noqa: E402
from ml_backend.children import NICENESS  # noqa: E402
from ml_backend.export.source import Source  # noqa: E402
from ml_backend.label_studio.regions import track_to_region  # noqa: E402
from ml_backend.label_studio.schema import parse_label_config  # noqa: E402
from ml_backend.models.weights import resolve_detector  # noqa: E402
from ml_backend.pipeline import predict_video, video_timeline  # noqa: E402
from ml_backend.settings import Settings  # noqa: E402
from ml_backend.storage import Storage  # noqa: E402
from ml_backend.training.arguments import BACKBONE, FREEZE_NORM, batch_for  # noqa: E402
from ml_backend.training.dataset import DatasetPlan, TrainingDataset, build_dataset  # noqa: E402
from ml_backend.training.process import run_child  # noqa: E402
from ml_backend.training.splits import HELD_OUT, TRAIN, Split, SplitStore  # noqa: E402
from ml_backend.training.survey import key_of  # noqa: E402
from ml_backend.types import IntArray, Track  # noqa: E402
from ml_backend.video.probe import probe  # noqa: E402
from ml_backend.video.reader import read_frames  # noqa: E402
from ml_backend.video.writer import VideoWriter  # noqa: E402

#: Trained, watched, trained, trained, measured: with this phase the end of the video is what is measured.
SPLIT = ("blocks", 3)
SEEN_S, SURE = 1.0, 0.4  # which predicted tracks are taken for true
TRUTH_IMGSZ = 960
KEYFRAME_IOU = 0.97  # boxes between keyframes are nearly the true ones
GREY = 114  # as the edges of pictures that do not fill the network's input
MEASURES = {"map50": "mAP50", "map50_95": "mAP50-95", "hota": "HOTA", "idf1": "IDF1"}
BACKBONE_LAYERS = 11  # of YOLO11

BARE = f"""
import json, os, sys
os.nice({NICENESS})
from ml_backend.models._ultralytics import setup_ultralytics
setup_ultralytics()
from ultralytics import YOLO
from ultralytics.data import utils
utils.check_font = lambda *_: None  # it would be downloaded
with open(sys.argv[1], encoding="utf-8") as file:
    plan = json.load(file)
YOLO(plan.pop("model")).train(**plan)
"""


@dataclass(frozen=True, slots=True)
class Scene:
    """A video and what is to be seen on it.

    Attributes:
        rows: ``(n, 6)``: frame, track, x1, y1, x2, y2 in pixels, of all that would have to be annotated.
        labels: by track; tracks without are not sure enough to be true, but no background either.
        config: the project's label config.
        detected: the detector's class of all objects; empty where there is none.
        imgsz: of training and measuring.
        pictures: to train with and to watch.
    """

    name: str
    video: Path
    rows: np.ndarray
    labels: dict[int, str]
    config: str
    detected: str
    imgsz: int
    pictures: int
    uses: IntArray = field(init=False)

    def __post_init__(self) -> None:
        uses = Split(*SPLIT).uses(video_timeline(self.video).times)
        object.__setattr__(self, "uses", uses)

    def track(self, number: int, held_out: bool) -> Track | None:
        """What of an object is in the part that is measured, or elsewhere; ``None`` where that is nothing."""
        rows = self.rows[self.rows[:, 1] == number]
        rows = rows[(self.uses[rows[:, 0].astype(np.int64)] == HELD_OUT) == held_out]
        if not len(rows):
            return None
        frames, label = rows[:, 0].astype(np.int64), self.labels[number]
        votes = {self.detected or label: float(len(rows))}
        return Track(number, frames, rows[:, 2:].astype(np.float32), np.ones(len(rows), np.float32), votes, label, 1.0)

    def teachers(self, seed: int) -> list[int]:
        """Tracks to annotate, in order: visible for a second where it is trained; labels take turns."""
        trained = self.rows[self.uses[self.rows[:, 0].astype(np.int64)] == TRAIN]
        least = SEEN_S * probe(self.video).fps
        found = [n for n in self.labels if (trained[:, 1] == n).sum() >= least]
        order = np.random.default_rng([1, seed]).permutation(np.array(found, np.int64)).tolist()
        labels = sorted(set(self.labels.values()), reverse=True)
        turns = zip_longest(*([n for n in order if self.labels[n] == label] for label in labels))
        return [n for turn in turns for n in turn if n is not None]


def label_config(**predicted: str) -> str:
    tags = "".join(f'<Label value="{name}" predicted_values="{of}"/>' for name, of in predicted.items())
    return (
        f'<View><Labels name="label" toName="video">{tags}</Labels><Video name="video" value="$video" '
        'frameRate="$fps"/><VideoRectangle name="box" toName="video"/></View>'
    )


def kept(path: Path, make: Callable[[], Any]) -> Any:
    """What a JSON file holds, made first if it is not there."""
    if not path.is_file():
        value = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(value), encoding="utf-8")
        os.replace(part, path)
    return json.loads(path.read_text(encoding="utf-8"))


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


# -- the scenes


def street_scene(video: Path, weights: Path, work: Path, seed: int) -> Scene:
    """The clean-up of a prediction, with labels that the detector does not know."""
    people = label_config(person="person")

    def predict() -> dict[str, Any]:
        say("street: pre-annotating")
        settings = Settings(
            _env_file=None, yolo_weights=str(weights), mode="yolo", detector="yolo", imgsz=TRUTH_IMGSZ, data_dir=work
        )
        tracks: list[Track] = []
        control = parse_label_config(people).video_controls[0]
        resolved = resolve_detector(settings)
        rate = video_timeline(video).frame_rate
        predict_video(video, control, rate, settings, resolved=resolved, on_track=tracks.append)
        rows = [np.column_stack([t.frames, np.full(len(t), n), t.xyxy]).round(2).tolist() for n, t in enumerate(tracks)]
        return {"rows": list(chain.from_iterable(rows)), "scores": [round(t.score, 4) for t in tracks]}

    found = kept(work / f"street-{TRUTH_IMGSZ}.json", predict)
    rows = np.array(found["rows"], np.float64)
    seen, least = np.bincount(rows[:, 1].astype(np.int64)), SEEN_S * probe(video).fps
    true = [n for n, score in enumerate(found["scores"]) if score >= SURE and seen[n] >= least]
    chosen = np.random.default_rng(seed).permutation(true)[: len(true) // 2].tolist()
    labels = {n: "first_responder" if n in chosen else "civilian" for n in true}
    config = label_config(civilian="person", first_responder="")
    return Scene("street", video, rows, labels, config, "person", 640, 32)


def shapes_scene(work: Path, seed: int) -> Scene:
    """Stars, gears and, for confusion, triangles, in eight places of a cloudy background."""
    width, height, fps, frames = 640, 360, 20, 400
    rng = np.random.default_rng([2, seed])
    clouds = [rng.random((3 * 2**n, 5 * 2**n, 3), np.float32) * 255 for n in range(5)]
    layers = [cv2.resize(layer, (width, height), interpolation=cv2.INTER_CUBIC) for layer in clouds]
    background = np.clip(np.mean(layers, axis=0), 0, 255)
    drawn: list[tuple[int, int, str, dict[str, Any]]] = []  # first frame, end, kind, looks
    for place in range(8):
        at = int(rng.integers(0, fps))
        while at < frames - fps:
            end = min(frames, at + int(rng.integers(round(2.5 * fps), 4 * fps)))
            kind = str(rng.choice(["star", "gear", "triangle"], p=[0.4, 0.4, 0.2]))
            drawn.append((at, end, kind, _looks(rng, place)))
            at = end + int(rng.integers(0, fps // 2))
    path, rows = work / f"shapes-{seed}.mp4", []
    labels = {n: kind for n, (*_, kind, _) in enumerate(drawn) if kind != "triangle"}
    writer = None if path.is_file() else VideoWriter(path, width, height, fps)
    with writer or ExitStack():
        for frame in range(frames):
            image = background.copy()
            for number, (first, end, kind, looks) in enumerate(drawn):
                if first <= frame < end:
                    box = _draw(image, kind, looks, frame / fps)
                    if number in labels:
                        rows.append([frame, number, *box])
            if writer:
                noisy = image + rng.normal(0, 4, image.shape)
                writer.write(np.clip(noisy, 0, 255).astype(np.uint8))
    config = label_config(star="", gear="")
    return Scene("shapes", path, np.array(rows, np.float64), labels, config, "", 320, 48)


def _looks(rng: np.random.Generator, place: int) -> dict[str, Any]:
    """How one object looks and moves: all kinds alike."""
    return {
        "centre": np.array([80 + 160 * (place % 4), 90 + 180 * (place // 4)]) + rng.uniform(-20, 20, 2),
        "swing": rng.uniform(10, 45, 2),
        "pace": rng.uniform(0.5, 2.0, 2),
        "phase": rng.uniform(0, 6.28, 3),
        "spin": rng.uniform(-1.5, 1.5),
        "radius": rng.uniform(24, 44),
        "colours": rng.uniform(0, 255, (2, 3)),
        "checked": rng.random() < 0.5,
        "grain": rng.uniform(5, 10),
    }


def _outline(kind: str) -> np.ndarray:
    """``(n, 2)`` corners in a circle of radius 1."""
    if kind == "gear":  # eight teeth
        radius, angle = np.tile([1.0, 1.0, 0.72, 0.72], 8), np.arange(32) + np.tile([0.1, -0.1, 0.1, -0.1], 8)
        angle = angle * 2 * np.pi / 32
    elif kind == "star":
        radius, angle = np.tile([1.0, 0.42], 5), np.arange(10) * 2 * np.pi / 10
    else:
        radius, angle = np.ones(3), np.arange(3) * 2 * np.pi / 3
    return np.column_stack([radius * np.cos(angle), radius * np.sin(angle)])


def _draw(image: np.ndarray, kind: str, looks: dict[str, Any], seconds: float) -> list[float]:
    """Draw an object; its box, x1, y1, x2, y2, within the picture."""
    centre = looks["centre"] + looks["swing"] * np.sin(looks["pace"] * seconds + looks["phase"][:2])
    angle = looks["spin"] * seconds + looks["phase"][2]
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    corners = centre + looks["radius"] * _outline(kind) @ turn.T
    size = np.array(image.shape[1::-1])
    low, high = np.clip(corners.min(0), 0, size), np.clip(corners.max(0), 0, size)
    x1, y1 = np.floor(low).astype(int)
    x2, y2 = np.ceil(high).astype(int)
    mask = np.zeros((y2 - y1, x2 - x1), np.uint8)
    cv2.fillPoly(mask, [np.rint((corners - [x1, y1]) * 16).astype(np.int32)], 255, cv2.LINE_AA, shift=4)
    if kind == "gear":
        hub = np.rint((centre - [x1, y1]) * 16).astype(int).tolist()
        cv2.circle(mask, hub, round(16 * 0.3 * looks["radius"]), 0, -1, cv2.LINE_AA, shift=4)
    y, x = np.mgrid[y1:y2, x1:x2]
    u, v = turn.T @ (np.stack([x, y]).reshape(2, -1) - centre[:, None]) // looks["grain"]
    second = ((u + v if looks["checked"] else u) % 2).astype(int).reshape(mask.shape)
    alpha = mask[..., None] / 255
    image[y1:y2, x1:x2] = alpha * looks["colours"][second] + (1 - alpha) * image[y1:y2, x1:x2]
    return [*low.tolist(), *high.tolist()]


# -- a project with so many annotated tracks


def annotated(scene: Scene, chosen: list[int], folder: Path) -> TrainingDataset:
    """The dataset of a project whose one video is annotated as the module says."""
    name = f"{scene.name}.mp4"
    video = folder / "videos" / name
    if not video.is_file():
        paint(scene, chosen, video)
    config, info, timeline = parse_label_config(scene.config), probe(video), video_timeline(video)
    result = []
    # Cut at the border, so that what is measured is the same whatever is annotated elsewhere.
    pieces = [scene.track(n, held_out=True) for n in scene.labels] + [scene.track(n, held_out=False) for n in chosen]
    for track in pieces:
        region = track and track_to_region(track, timeline, config.video_controls[0], info, KEYFRAME_IOU)
        if region:
            if not scene.detected:
                del region["meta"]
            result.append({**region, "origin": "prediction-changed" if scene.detected else "manual"})
    task = {
        "id": 1,
        "data": {"video": name, "fps": timeline.frame_rate},
        "annotations": [{"id": 1, "completed_by": 1, "result": result}],
        "predictions": [],
    }
    export = folder / "export.json"
    export.write_text(json.dumps([task]), encoding="utf-8")
    source = Source.from_file(export, videos=video.parent, config=config)
    store = SplitStore(Storage(f"sqlite:///{folder / 'splits.sqlite3'}"))
    part = next(source.parts())
    store.add(1, {key_of(part, ""): Split(*SPLIT)})
    return build_dataset(source, folder / "dataset", store, 1, DatasetPlan(max_pictures=scene.pictures))


def paint(scene: Scene, chosen: list[int], target: Path) -> None:
    """The video, grey outside of the measured part where something is not annotated."""
    info = probe(scene.video)
    target.parent.mkdir(parents=True, exist_ok=True)
    order = np.argsort(scene.rows[:, 0], kind="stable")
    rows = scene.rows[order]
    with VideoWriter(target, info.width, info.height, info.fps, crf=16) as writer:
        for frame in read_frames(scene.video, info):
            image = frame.image
            if scene.uses[frame.index] != HELD_OUT:
                first, end = np.searchsorted(rows[:, 0], [frame.index, frame.index + 1])
                image = _painted(image, rows[first:end], np.isin(rows[first:end, 1], chosen))
            writer.write(image)


def _painted(image: np.ndarray, rows: np.ndarray, taught: np.ndarray) -> np.ndarray:
    grey = np.zeros(image.shape[:2], bool)
    for wanted in (False, True):
        for x1, y1, x2, y2 in rows[taught == wanted, 2:]:
            # Boxes of a detector are a little too small as often as too large.
            more = 0.0 if wanted else 0.05 * min(x2 - x1, y2 - y1)
            left, top = max(0, int(x1 - more)), max(0, int(y1 - more))
            grey[top : int(np.ceil(y2 + more)), left : int(np.ceil(x2 + more))] = not wanted
    out = image.copy()
    out[grey] = GREY
    return out


# -- trainings


def plan_of(scene: Scene, data: TrainingDataset, weights: Path, run: Path, epochs: int, **args: Any) -> dict[str, Any]:
    """As the job that retrains a project plans it."""
    labels = parse_label_config(scene.config).video_controls[0].labels
    mapped = {label.value: label.predicted_values[0] for label in labels if label.predicted_values}
    return {
        "kind": "train",
        "data": str(data.data_yaml),
        "classes": data.classes,
        "taught": data.taught,
        "start": str(weights),
        "start_from": {**mapped, **data.start_from},
        "run": str(run),
        "pictures": data.pictures["train"],
        "boxes": sum(data.boxes.values()),
        "tracks": data.tracks,
        "device": Settings().device,
        "imgsz": scene.imgsz,
        "epochs": epochs,
        "args": args,
    }


def train(scene: Scene, chosen: list[int], weights: Path, folder: Path, epochs: int) -> dict[str, Any]:
    """One training, and what it was made of."""
    title = f"{scene.name}, {len(chosen)} tracks"
    say(f"{title}: dataset")
    data = annotated(scene, chosen, folder)
    run = folder / "run"

    def tell(event: dict[str, Any]) -> None:
        if event["event"] == "epoch":
            say(f"{title}: epoch {event['epoch']} of {event['epochs']}, mAP50 {event['map50']}")

    started = time.perf_counter()
    plan = plan_of(scene, data, weights, run, epochs)
    done = run_child(plan, run, on_event=tell, should_stop=lambda: False)
    return {
        "tracks": len(chosen),
        "pictures": data.pictures,
        "boxes": data.boxes,
        "epochs": done["epochs"],
        "seconds": round(time.perf_counter() - started, 1),
        "weights": done["weights"],
        "held_out": str(data.held_out),
    }


def measure(scene: Scene, weights: Path, trained: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    """All models on the same frames of the untouched video; figures by model, the first is "before"."""
    truths = [json.loads(Path(item["held_out"]).read_text(encoding="utf-8")) for item in trained]
    if any(truth != truths[0] for truth in truths):
        raise click.ClickException("what is measured is not the same for all trainings")
    before = {"name": "before", "kind": "yolo", "path": str(weights), "labels": None, "label_config": scene.config}
    labels = {name: name for name in truths[0]["classes"]}
    models = [before]
    for item in trained:
        models.append({"name": str(item["tracks"]), "kind": "yolo", "path": item["weights"], "labels": labels})
    plan = {
        "kind": "evaluate",
        "held_out": trained[0]["held_out"],
        "videos": {video["name"]: str(scene.video) for video in truths[0]["videos"]},
        "models": models,
        "settings": {"imgsz": scene.imgsz},
    }
    say(f"{scene.name}: measuring")
    done = run_child(plan, folder, on_event=lambda _: None, should_stop=lambda: False)
    return dict(done["results"])


def learn(scene: Scene, counts: list[int], weights: Path, work: Path, epochs: int, seed: int) -> dict[str, Any]:
    """Before, and after each number of tracks."""
    order = scene.teachers(seed)
    wanted = list(dict.fromkeys(min(count, len(order)) for count in counts))
    if wanted != counts:
        say(f"{scene.name}: there are only {len(order)} tracks to annotate")
    folder = work / f"{scene.name}-{seed}-{epochs}"
    trained = []
    for count in wanted:
        place = folder / str(count)
        trained.append(
            kept(place / "done.json", lambda: train(scene, order[:count], weights, place, epochs))  # noqa: B023
        )
    name = f"measured-{'-'.join(map(str, wanted))}.json"
    results = kept(folder / name, lambda: measure(scene, weights, trained, folder))
    facts = {str(item["tracks"]): item for item in trained}
    return {
        model: {
            **{key: facts[model][key] for key in ("pictures", "boxes", "epochs", "seconds") if model in facts},
            **{key: round(found[key], 4) for key in MEASURES},
            "ap50": {label: round(of["ap50"], 4) for label, of in found["labels"].items()},
            "measured_boxes": {label: of["boxes"] for label, of in found["labels"].items()},
            "measured_pictures": found["pictures"],
            "measured_frames": found["frames"],
        }
        for model, found in results.items()
    }


def show(title: str, found: dict[str, Any]) -> None:
    labels = list(found["before"]["ap50"])
    table = Table(
        "tracks", "pictures", *(f"boxes {x}" for x in labels), *MEASURES.values(), *(f"AP50 {x}" for x in labels), "s"
    )
    of = found["before"]
    boxes = " + ".join(f"{count} {label}" for label, count in of["measured_boxes"].items())
    table.title = f"{title}: {boxes} on {of['measured_pictures']} pictures, tracks on {of['measured_frames']} frames"
    for model, figures in found.items():
        table.add_row(
            model,
            str(figures.get("pictures", {}).get("train", "")),
            *(str(figures.get("boxes", {}).get(label, "")) for label in labels),
            *(f"{figures[key]:.3f}" for key in MEASURES),
            *(f"{figures['ap50'][label]:.3f}" for label in labels),
            f"{figures.get('seconds', 0):.0f}",
        )
    Console(width=140).print(table)


# -- the overhead


@contextmanager
def clocked() -> Iterator[dict[str, float]]:
    """Wall time, and processor time of processes that have ended; known at the end."""
    figures: dict[str, float] = {}
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    yield figures
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    figures |= {"wall_s": round(wall, 2), "cpu_s": round(cpu, 2)}


def overhead(
    scene: Scene, tracks: int, weights: Path, work: Path, epochs: int, pairs: int, seed: int
) -> dict[str, Any]:
    """Times of both, and ratios of ours to ultralytics'."""
    folder = work / f"overhead-{seed}-{tracks}"
    data = annotated(scene, scene.teachers(seed)[:tracks], folder)
    batch = batch_for(data.pictures["train"])  # else each would look for its own on a GPU

    def ours(run: Path) -> dict[str, Any]:
        plan = plan_of(scene, data, weights, run, epochs, batch=batch)
        events: list[dict[str, Any]] = []
        with clocked() as figures:
            done = run_child(plan, run, on_event=events.append, should_stop=lambda: False)
        device = next(event["device"] for event in events if event["event"] == "start")
        return {**figures, "args": done["args"], "device": device}

    def bare(run: Path) -> dict[str, Any]:
        plan = {name: value for name, value in first["args"].items() if name != FREEZE_NORM}
        plan["freeze"] = BACKBONE_LAYERS if plan["freeze"] == BACKBONE else plan["freeze"]
        fixed = {"model": str(weights), "data": str(data.data_yaml), "save_dir": str(run / "run"), "exist_ok": True}
        fixed |= {"plots": False, "val": True, "verbose": False, "cls_remap": False}
        path = run / "plan.json"
        path.write_text(json.dumps(plan | fixed | {"device": first["device"].removeprefix("cuda:")}), encoding="utf-8")
        home = {"PYTHONPATH": str(ROOT), "YOLO_CONFIG_DIR": str(run / "config"), "MPLCONFIGDIR": str(run / "plt")}
        with clocked() as figures, (run / "log.txt").open("wb") as log:
            command = [sys.executable, "-c", BARE, str(path)]
            subprocess.run(command, check=True, env=os.environ | home, stdout=log, stderr=log)
        return figures

    def once(run: Callable[[Path], dict[str, Any]], pair: int) -> dict[str, Any]:
        say(f"overhead: pair {pair + 1} of {pairs}, {run.__name__}")
        for cache in (data.folder / "labels").glob("*.cache*"):
            cache.unlink()
        with tempfile.TemporaryDirectory(prefix="training-") as place:
            return run(Path(place))

    times: dict[str, list[dict[str, float]]] = {"ours": [], "bare": []}
    first: dict[str, Any] = {}
    for pair in range(pairs):
        for run in (ours, bare) if pair % 2 == 0 else (bare, ours):
            path = folder / f"{epochs}-{pair}-{run.__name__}.json"
            found = kept(path, lambda: once(run, pair))  # noqa: B023
            first = first or found
            times[run.__name__].append({name: found[name] for name in ("wall_s", "cpu_s")})
    ratios = {
        name: [round(a[name] / b[name], 4) for a, b in zip(times["ours"], times["bare"], strict=True)]
        for name in ("wall_s", "cpu_s")
    }
    medians = {f"{name[:-2]}_ratio": round(statistics.median(found), 4) for name, found in ratios.items()}
    facts = {"pictures": data.pictures, "epochs": epochs, "args": first["args"]}
    return {**medians, "ratios": ratios, "times": times, **facts}


def show_overhead(found: dict[str, Any]) -> None:
    table = Table("pair", "ours, s", "YOLO.train, s", "ratio", "ours, CPU s", "YOLO.train, CPU s", "ratio")
    table.title = f"A training of {found['pictures']['train']} pictures, {found['epochs']} epochs, whole processes"
    ratios = found["ratios"]
    for n, (a, b) in enumerate(zip(found["times"]["ours"], found["times"]["bare"], strict=True)):
        cells = []
        for name in ("wall_s", "cpu_s"):
            cells += [f"{a[name]:.1f}", f"{b[name]:.1f}", f"{ratios[name][n]:.3f}"]
        table.add_row(str(n + 1), *cells)
    table.add_row("median", "", "", f"{found['wall_ratio']:.3f}", "", "", f"{found['cpu_ratio']:.3f}")
    Console(width=140).print(table)


@click.command(help=__doc__)
@click.option("--data", default=ROOT.parent / "shared" / "data", type=click.Path(path_type=Path), help="people.mp4.")
@click.option("--epochs", default=10, show_default=True, type=click.IntRange(1))
@click.option("--tracks", default="1,5,20", show_default=True, callback=numbers, help="How many are annotated.")
@click.option("--overhead-pairs", default=2, show_default=True, type=click.IntRange(1))
@click.option("--only", type=click.Choice(["street", "shapes", "overhead"]), help="[default: all]")
@click.option("--seed", default=0, show_default=True, help="Of labels, of the tracks annotated, and of the shapes.")
@click.option("--work", type=click.Path(path_type=Path, file_okay=False), help="Folder for what is worth keeping.")
def main(
    data: Path,
    epochs: int,
    tracks: list[int],
    overhead_pairs: int,
    only: str | None,
    seed: int,
    work: Path | None,
) -> None:
    video, weights = (data / "people.mp4").absolute(), (data / "yolo11n.pt").absolute()
    for path in (video, weights):
        if not path.is_file():
            raise click.ClickException(f"{path} is not there; give the folder that holds it with --data.")
    out: dict[str, Any] = {"epochs": epochs, "seed": seed}
    with ExitStack() as stack:
        if work is None:
            work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="training-")))
        work = work.absolute()
        work.mkdir(parents=True, exist_ok=True)
        if only in (None, "street"):
            scene = street_scene(video, weights, work, seed)
            out["street"] = learn(scene, tracks, weights, work, epochs, seed)
            show("street", out["street"])
        if only in (None, "shapes", "overhead"):
            scene = shapes_scene(work, seed)
        if only in (None, "shapes"):
            out["shapes"] = learn(scene, tracks, weights, work, epochs, seed)
            show("shapes", out["shapes"])
        if only in (None, "overhead"):
            half = max(1, epochs // 2)
            out["overhead"] = overhead(scene, tracks[-1], weights, work, half, overhead_pairs, seed)
            show_overhead(out["overhead"])
    print(json.dumps(out))


if __name__ == "__main__":
    main()
