"""Objects that are found by text: what following adds to a text detector of known error, and what it costs.

    python benchmarks/text_prompts.py [--seeds 2]
    python benchmarks/text_prompts.py --video VIDEO --weights yolo11n.pt

Without a video: generated clips, on which YOLO is exact for one of the labels ``person`` and ``bus`` and knows nothing
of the other. That one is found by a stand-in for the model, which misses objects, moves corners and invents boxes at
given rates. Printed are the share of the unknown objects' boxes, on all frames, that are in tracks of their label (IoU
0.5), the share of these tracks' boxes that are right, their IoU, and the numbers of tracks and objects.

With a video: frames a second of YOLO alone, and with a search every n-th frame that finds nothing, by a tiny random
Grounding DINO, or some boxes, which are followed. This measures the plumbing: a real model adds its own time for each
searched frame. The last line is JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import click
import numpy as np
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.measuring import (  # noqa: E402
    cpu_seconds,
    make_engine,
    repeat_video,
    resolve_yolo,
    settings_for,
    temporary_data_dir,
)
from ml_backend.core.boxes import iou_matrix  # noqa: E402
from ml_backend.core.settings import Settings  # noqa: E402
from ml_backend.core.types import Detections, FloatArray, Image, Track  # noqa: E402
from ml_backend.detectors.loading import use_detector  # noqa: E402
from ml_backend.detectors.weights import ResolvedDetector  # noqa: E402
from ml_backend.embeddings.hub import ResolvedModel, read_text_detector  # noqa: E402
from ml_backend.inference import open_vocabulary, pipeline  # noqa: E402
from ml_backend.inference.pipeline import predict_video  # noqa: E402
from ml_backend.inference.text_detector import use_text_detector  # noqa: E402
from ml_backend.label_studio.label_config import parse_label_config  # noqa: E402
from ml_backend.label_studio.timeline import video_timeline  # noqa: E402
from ml_backend.tracking.metrics import Counts, Rows, count  # noqa: E402
from ml_backend.video.probe import probe  # noqa: E402
from ml_backend.video.reader import read_frames  # noqa: E402
from ml_backend.video.sample import SampleTruth, make_sample  # noqa: E402
from tests.tiny_text_detector import save_tiny_text_detector  # noqa: E402

CONFIG = (
    '<View><Labels name="label" toName="video">{}</Labels>'
    '<Video name="video" value="$video" frameRate="$fps"/><VideoRectangle name="box" toName="video"/></View>'
)
LABELS = ("person", "bus")
STAND_IN = ResolvedModel("text_detector", "stand-in", "stand-in")
#: Share of an object that must be visible to count; less may be found, but need not.
VISIBLE = 0.5
#: Mean and standard deviation of the scores of objects, and of invented boxes; all reach the lowest accepted score.
SCORES, INVENTED_SCORES = (0.5, 0.1), (0.4, 0.1)


@dataclass(frozen=True, slots=True)
class Errors:
    """What a detector does wrong.

    Attributes:
        recall: share of the objects that are found on a frame, each time anew.
        jitter: standard deviation of corners, as a share of the box's sides.
        invented: boxes around nothing, on average a frame.
        fps: frames a second on which it searches.
    """

    recall: float = 1.0
    jitter: float = 0.0
    invented: float = 0.0
    fps: float = 2.0


ERRORS = (
    Errors(),
    Errors(0.9, 0.05, 0.2),
    Errors(0.7, 0.05, 0.2),
    Errors(0.7, 0.05, 0.2, fps=1.0),
    Errors(0.7, 0.05, 0.2, fps=5.0),
    Errors(0.5, 0.1, 0.5),
    Errors(fps=25.0),  # every frame: what tracking makes of it without following
    Errors(0.7, 0.05, 0.2, fps=25.0),
)


class KnownScene:
    """Stands where a detector does; knows the objects of one label by the frame's pixels.

    Args:
        frames: number by the content of a frame.
    """

    max_concurrency = 1

    def __init__(self, truth: SampleTruth, label: str, frames: dict[int, int], errors: Errors) -> None:
        self.names = {0: label}
        self._truth, self._frames, self._errors = truth, frames, errors
        self._tracks = [track for track in truth.tracks if track.label == label]
        self._rng = np.random.default_rng(0)

    def detect(
        self, images: Sequence[Image], prompts: Sequence[Sequence[str]] = (), conf: float = 0.0
    ) -> list[Detections]:
        return [self._detect(self._frames[hash(image.tobytes())], conf) for image in images]

    def _detect(self, frame: int, conf: float) -> Detections:
        rng, errors = self._rng, self._errors
        boxes = [
            t.xyxy[(t.frames == frame) & (t.conf >= VISIBLE)] for t in self._tracks if rng.random() < errors.recall
        ]
        found: FloatArray = np.concatenate([np.zeros((0, 4), np.float32), *boxes])
        sides = np.tile(found[:, 2:] - found[:, :2], 2)
        found = found + (rng.normal(0, 1, found.shape) * errors.jitter * sides).astype(np.float32)
        invented = _random_boxes(rng, rng.poisson(errors.invented), self._truth.width, self._truth.height)
        scores = [rng.normal(*of, len(some)) for some, of in ((found, SCORES), (invented, INVENTED_SCORES))]
        xyxy = np.concatenate([found, invented]).astype(np.float32)
        sure = np.concatenate(scores).clip(conf + 0.01, 1).astype(np.float32)
        return Detections(xyxy, sure, np.zeros(len(xyxy), np.int64))

    def working_size(self, width: int, height: int) -> tuple[int, int]:
        return width, height

    def warm_up(self, width: int, height: int) -> None:
        """Nothing to do."""


class SameBoxes:
    """Stands where a text detector does; finds the same boxes on each frame, such as pieces of the background."""

    def __init__(self, objects: int, width: int, height: int) -> None:
        scale = min(1.0, open_vocabulary.SEARCHED_HEIGHT / height)
        self._boxes = _random_boxes(np.random.default_rng(0), objects, round(width * scale), round(height * scale))

    def detect(self, images: Sequence[Image], prompts: Sequence[Sequence[str]], conf: float) -> list[Detections]:
        count = len(self._boxes)
        return [Detections(self._boxes, np.full(count, 0.6, np.float32), np.zeros(count, np.int64)) for _ in images]


def _random_boxes(rng: np.random.Generator, count: int, width: int, height: int) -> FloatArray:
    sides = rng.uniform(0.1, 0.3, (count, 2)) * height
    corner = rng.uniform(0, 1, (count, 2)) * (np.array([width, height]) - sides)
    return np.concatenate([corner, corner + sides], axis=1).astype(np.float32)


@contextmanager
def _standing_in(text_detector: Any, detector: Any = None) -> Iterator[None]:
    @contextmanager
    def loaded(one: Any) -> Iterator[Any]:
        yield one

    with patch.object(open_vocabulary, "use_text_detector", lambda *_: loaded(text_detector)):
        if detector is None:
            yield
        else:
            with patch.object(pipeline, "use_detector", lambda *_: loaded(detector)):
                yield


def find(video: Path, truth: SampleTruth, unknown: str, frames: dict[int, int], errors: Errors) -> list[Track]:
    """Return the tracks of the label that only the text detector knows."""
    (known,) = set(LABELS) - {unknown}
    control = parse_label_config(CONFIG.format("".join(f'<Label value="{name}"/>' for name in LABELS))).video_controls[
        0
    ]
    settings = Settings(_env_file=None, stride=1, open_vocabulary_fps=errors.fps)
    found: list[Track] = []
    with _standing_in(KnownScene(truth, unknown, frames, errors), KnownScene(truth, known, frames, Errors())):
        predict_video(
            video,
            control,
            truth.fps,
            settings,
            resolved=ResolvedDetector("yolo", "stand-in", Path("stand-in.pt"), "0" * 64),
            text_detector=STAND_IN,
            on_track=found.append,
        )
    return [track for track in found if track.label == unknown]


def compare(truth: SampleTruth, unknown: str, found: Sequence[Track]) -> Counts:
    """Count the boxes of the unknown objects that tracks have. Boxes around hidden ones do not count at all."""
    tracks = [track for track in truth.tracks if track.label == unknown]
    visible = _rows(tracks, VISIBLE)
    every, rows = _rows(tracks), _rows(found)
    kept = np.ones(len(rows), bool)
    for frame in np.unique(rows[:, 0]):
        here = np.flatnonzero(rows[:, 0] == frame)
        near = [iou_matrix(rows[here, 2:], some[some[:, 0] == frame, 2:]) >= 0.5 for some in (visible, every)]
        kept[here] = near[0].any(axis=1) | ~near[1].any(axis=1)
    return count(visible, rows[kept])


def _rows(tracks: Sequence[Track], visible: float = 0.0) -> Rows:
    rows = [
        (frame, track.track_id, *box)
        for track in tracks
        for frame, box, conf in zip(track.frames, track.xyxy, track.conf, strict=True)
        if conf >= visible
    ]
    return np.array(rows, np.float64).reshape(-1, 6)


def recall_by_error(seeds: int) -> list[dict[str, Any]]:
    """Measure every entry of :data:`ERRORS` on generated clips."""
    counts = [Counts() for _ in ERRORS]
    with temporary_data_dir() as folder:
        for seed in range(seeds):
            video = folder / f"{seed}.mp4"
            truth = make_sample(video, size=(640, 360), seed=seed)
            frames = {hash(frame.image.tobytes()): frame.index for frame in read_frames(video)}
            for unknown in LABELS:
                for number, errors in enumerate(ERRORS):
                    counts[number] += compare(truth, unknown, find(video, truth, unknown, frames, errors))
    rows = []
    for errors, found in zip(ERRORS, counts, strict=True):
        matched = sum(clear["CLR_TP"] for clear in found.clear)
        scores = found.scores()
        row = {name: scores[name] for name in ("recall", "precision", "IDF1")}
        row["iou"] = sum(clear["MOTP_sum"] for clear in found.clear) / max(1, matched)
        row |= {"tracks": found.result_tracks, "objects": found.truth_tracks, "boxes": found.truth_boxes}
        stand_in = {"searched/s": errors.fps, "finds": errors.recall, "jitter": errors.jitter}
        stand_in["invents"] = errors.invented
        rows.append(stand_in | {name: round(float(value), 3) for name, value in row.items()})
    return rows


def cost(source: Path, weights: Path, seconds: float) -> list[dict[str, Any]]:
    """Measure a prediction of the beginning of a video with YOLO, without and with a search by text."""
    rows: list[dict[str, Any]] = []
    with temporary_data_dir() as folder:
        video = folder / "video.mp4"
        repeat_video(source, video, 1, seconds)
        info, rate = probe(video), video_timeline(video).frame_rate
        make_engine(video, weights)
        tiny = read_text_detector(save_tiny_text_detector("grounding-dino", folder / "tiny"))
        control = parse_label_config(CONFIG.format('<Label value="person"/><Label value="vest"/>')).video_controls[0]

        def measure(name: str, text_detector: ResolvedModel | None, **changes: Any) -> None:
            settings = settings_for(weights, **changes)
            before = cpu_seconds()
            result = predict_video(
                video, control, rate, settings, resolved=resolve_yolo(settings), text_detector=text_detector
            )
            cpu = cpu_seconds() - before
            row = {"fps": result.frames / result.seconds, "cpu_ms": 1000 * cpu / result.frames}
            rows.append({"row": name, **{key: round(value, 2) for key, value in row.items()}})
            click.echo(rows[-1], err=True)

        with use_detector(resolve_yolo(settings_for(weights)), settings_for(weights), info) as detector:
            detector.detect([next(read_frames(video, info)).image])  # warm-up; it stays loaded
        with use_text_detector(tiny, settings_for(weights)) as text_detector:
            text_detector.detect([next(read_frames(video, info)).image], [["vest"]], 0.99)
        measure("YOLO alone", None)
        for fps in (2.0, 5.0):  # with so high a lowest score nothing is found
            name = f"search every {round(info.fps / fps)}th frame, nothing found"
            measure(name, tiny, open_vocabulary_fps=fps, open_vocabulary_conf=0.99)
        for objects in (5, 20):
            with _standing_in(SameBoxes(objects, info.width, info.height)):
                measure(f"search every {round(info.fps / 2)}th frame, {objects} followed", STAND_IN)
    return rows


@click.command(help=__doc__)
@click.option("--seeds", default=2, show_default=True, help="Generated clips.")
@click.option("--video", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--seconds", default=5.0, show_default=True, help="Of the video.")
@click.option("--weights", type=click.Path(exists=True, path_type=Path), help="YOLO checkpoint.")
def main(seeds: int, video: Path | None, seconds: float, weights: Path | None) -> None:
    if video and weights:
        rows = cost(video, weights, seconds)
    elif video or weights:
        raise click.UsageError("--video and --weights go together.")
    else:
        rows = recall_by_error(seeds)
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console(width=140).print(table)
    print(json.dumps({"rows": rows}))


if __name__ == "__main__":
    main()
