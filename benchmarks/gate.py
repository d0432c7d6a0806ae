"""What the gate decides on trainings with good and with spoiled annotations: see :func:`measure`."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.forgetting import (  # noqa: E402
    Kept,
    compare,
    covers,
    cut,
    darken,
    mirror,
    pan_photographs,
    project_tracks,
)
from benchmarks.measuring import label_config, settings_for  # noqa: E402
from ml_backend.core.errors import BackendError  # noqa: E402
from ml_backend.core.types import Image, Track  # noqa: E402
from ml_backend.label_studio.label_config import parse_label_config  # noqa: E402
from ml_backend.label_studio.regions import track_to_region  # noqa: E402
from ml_backend.label_studio.timeline import video_timeline  # noqa: E402
from ml_backend.video.probe import probe  # noqa: E402
from ml_backend.video.sample import make_sample  # noqa: E402

if TYPE_CHECKING:
    from ml_backend.jobs.container import Container
    from ml_backend.training.registry import Version

log = logging.getLogger(__name__)

LABELS = ("person", "bicycle", "bus")
#: Ways in which annotations are spoiled; every second training has good ones.
SPOILED = ("shifted", "swapped", "left out", "one video")
CLEAN = "clean"
#: Parts of the street video: left and right half, at three times; of each a plain, a mirrored and a dark clip.
HALVES, TIMES = 2, 3
#: Frames a second of all clips, and seconds of those that are generated.
FPS, SECONDS = 6.0, 3.4
#: Annotated clips, of the street and generated ones, and others, of which the photographs are two. Six annotated videos
#: are the fewest of which two are held out.
ANNOTATED, OTHERS = (4, 2), (5, 1)
#: Annotated is what the incumbent finds, and what it finds besides in images of this many times the size.
FINER = 2
#: Share of the boxes that are shifted, by so much of their size.
SHIFTED_SHARE, SHIFT = 1 / 3, 0.5
#: Share of the incumbent's sure tracks on other clips that a harmless training keeps at least.
KEPT = 0.97


@dataclass(frozen=True, slots=True)
class Result:
    """A training and the gate's decision.

    Attributes:
        spoiled: one of :data:`SPOILED`, or :data:`CLEAN`.
        state, reason: the gate's decision.
        held_out: videos, tracks and frames of the held-out annotations.
        map50: of incumbent and candidate on these.
        others: sure tracks on the other videos that the gate has compared, and how many are lost, relabelled, gained.
        kept, of: how many of the incumbent's sure tracks on all clips that are not annotated the candidate keeps, by
            another measure than the gate's.
        lost: what has become of the others.
        minutes: that it took by the clock, whatever else the machine did.
    """

    case: int
    spoiled: str
    state: str
    reason: str
    held_out: Mapping[str, int]
    map50: tuple[float | None, float | None]
    others: Mapping[str, int]
    kept: int
    of: int
    lost: Mapping[str, int]
    minutes: float

    @property
    def loses(self) -> bool:
        """Whether the candidate loses sure tracks on other clips."""
        return self.kept < KEPT * self.of

    def __str__(self) -> str:
        found = ", ".join(f"{number} {kind}" for kind, number in self.others.items() if number)
        return (
            f"{self.case:>4}  {self.spoiled:<10} {self.state:<9} keeps {self.kept}/{self.of}"
            f"{' LOSES' if self.loses else ''}; gate: {found or 'nothing to compare'}; {self.minutes:.1f} min"
        )


class Clips:
    """The material: clips of a street, generated ones and photographs, and what the detector finds there."""

    def __init__(self, video: Path, weights: Path, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._weights = weights
        info = probe(video)
        part = info.duration / TIMES
        self.street: list[Path] = []
        for half in range(HALVES):
            for number in range(TIMES):
                for look, change in (("plain", _same), ("mirrored", mirror), ("dark", darken)):
                    target = folder / f"street-{half}{number}-{look}.mp4"
                    start = round(info.fps * part * number)
                    every = max(1, round(info.fps / FPS))
                    self.street.append(cut(video, start, target, partial(_half, half, change), part, every))
        self.generated = [folder / f"generated-{seed}.mp4" for seed in range(ANNOTATED[1] + OTHERS[1])]
        for seed, path in enumerate(self.generated):
            make_sample(path, seconds=SECONDS, fps=FPS, size=(640, 360), seed=seed)
        self.photographs = list(pan_photographs(folder))
        self._tracks: dict[tuple[Path, int], list[Track]] = {}

    @cached_property
    def all(self) -> list[Path]:
        return [*self.street, *self.generated, *self.photographs]

    def found(self, clip: Path, finer: int = 1) -> list[Track]:
        """Return the incumbent's tracks, at this many times the usual size of images."""
        if (clip, finer) not in self._tracks:
            imgsz = finer * settings_for(self._weights).imgsz
            self._tracks[clip, finer] = project_tracks(clip, self._weights, LABELS, imgsz=imgsz)
        return self._tracks[clip, finer]

    def right(self, clip: Path) -> list[Track]:
        """Return what a careful person annotates: the incumbent's tracks, and what it has missed."""
        found = self.found(clip)
        return [*found, *(track for track in self.found(clip, FINER) if not any(covers(track, old) for old in found))]


def _same(image: Image) -> Image:
    return image


def _half(half: int, change: Callable[[Image], Image], image: Image) -> Image:
    """Return one half of an image, at half its resolution, changed."""
    width = image.shape[1] // HALVES // 4 * 4
    return change(image[::2, half * width : (half + 1) * width : 2])


# -- annotations


@dataclass(frozen=True, slots=True)
class Case:
    """A project: its annotated clips with their tracks, and the others."""

    number: int
    spoiled: str
    annotated: Mapping[Path, Sequence[Track]]
    others: Sequence[Path]


def make_case(number: int, clips: Clips) -> Case:
    """Return a case, always the same of a number: of even ones the annotations are right."""
    rng = np.random.default_rng(number)
    spoiled = SPOILED[number // 2 % len(SPOILED)] if number % 2 else CLEAN
    street = [clips.street[i] for i in rng.permutation(len(clips.street))]
    generated = [clips.generated[i] for i in rng.permutation(len(clips.generated))]
    split = 1 if spoiled == "one video" else ANNOTATED[0]
    chosen = [*street[:split], *([] if spoiled == "one video" else generated[: ANNOTATED[1]])]
    others = [*street[split : split + OTHERS[0]], *generated[ANNOTATED[1] :], *clips.photographs]
    annotated = {clip: clips.right(clip) for clip in chosen}
    return Case(number, spoiled, spoil(annotated, spoiled, rng), others)


def spoil(
    annotated: Mapping[Path, Sequence[Track]], how: str, rng: np.random.Generator
) -> Mapping[Path, Sequence[Track]]:
    """Return annotations that are spoiled in one of the ways of :data:`SPOILED`.

    ``shifted``: random boxes lie half their size beside the object. ``swapped``: two labels are exchanged; where only
    one is annotated, it becomes another. ``left out``: one of the labels is annotated on one clip only. ``one video``
    changes nothing: there is only one. Where nothing is annotated, nothing is spoiled.
    """
    if how == "shifted":
        return {clip: [shift_boxes(track, rng) for track in tracks] for clip, tracks in annotated.items()}
    counts = Counter(str(track.label) for tracks in annotated.values() for track in tracks)
    present = [label for label in LABELS if counts[label]]
    if how == "swapped":
        one, other = [*map(str, rng.permutation(present)), *(label for label in LABELS if not counts[label])][:2]
        names = {one: other, other: one}
        return {
            clip: [replace(track, label=names.get(str(track.label), track.label)) for track in tracks]
            for clip, tracks in annotated.items()
        }
    if how == "left out" and present:
        label = rng.choice(present)
        kept = next(clip for clip, tracks in annotated.items() if any(track.label == label for track in tracks))
        return {
            clip: [track for track in tracks if clip == kept or track.label != label]
            for clip, tracks in annotated.items()
        }
    return annotated


def shift_boxes(track: Track, rng: np.random.Generator) -> Track:
    """Shift a third of a track's boxes by half their size, in random directions."""
    sizes = track.xyxy[:, 2:] - track.xyxy[:, :2]
    moved = (rng.random(len(track)) < SHIFTED_SHARE)[:, None]
    by = (moved * rng.choice([-SHIFT, SHIFT], sizes.shape) * sizes).astype(np.float32)
    return replace(track, xyxy=track.xyxy + np.tile(by, 2))


# -- projects and trainings


@contextmanager
def servers(folder: Path) -> Iterator[dict[str, str]]:
    """Run Label Studio and Redis; yield the settings by which a worker finds them."""
    from ml_backend.cli.dev_stack.environment import base_environment
    from ml_backend.cli.dev_stack.guardian import MARK, start_guardian
    from ml_backend.cli.dev_stack.preflight import free_port
    from ml_backend.cli.dev_stack.processes import LabelStudioServer, RedisServer
    from ml_backend.cli.dev_stack.stack import LABEL_STUDIO_TIMEOUT
    from ml_backend.label_studio.client import create_token

    mark = uuid.uuid4().hex
    environment = base_environment(folder, isolated=True) | {MARK: mark}
    redis = RedisServer(folder / "redis", log_dir=folder, environment=environment)
    label_studio = LabelStudioServer(
        folder / "label-studio",
        port=free_port(),
        username="benchmark@example.org",
        password=uuid.uuid4().hex,
        log_dir=folder,
        environment=environment,
        local_files=folder,
    )
    guardian = start_guardian(mark)
    try:
        for server in (redis, label_studio):
            server.start()
            server.wait_ready(LABEL_STUDIO_TIMEOUT)
        yield {
            "LABEL_STUDIO_URL": label_studio.url,
            "LABEL_STUDIO_API_KEY": create_token(label_studio.url, label_studio.username, label_studio.password),
            "REDIS_URL": redis.url,
            "LOCAL_FILES_ROOT": str(folder),
        }
    finally:
        for server in (label_studio, redis):
            server.stop()
        guardian.communicate(timeout=30)


def make_project(container: Container, case: Case) -> int:
    """Make a project whose annotated tasks have the case's tracks; return its id."""
    client = container.client
    config = label_config(*LABELS)
    [control] = parse_label_config(config).video_controls
    project = client.create_project(f"case {case.number}", config)
    folders = {clip.parent for clip in case.others}
    for folder in folders:
        client.ensure_local_files_storage(project, folder)
    for clip in [*case.annotated, *case.others]:
        info = probe(clip)
        url = f"/data/local-files/?d={clip.relative_to(container.settings.local_files_root)}"
        task = client.create_task(project, {"video": url, "fps": info.fps})
        if clip in case.annotated:
            timeline = video_timeline(clip, info.fps)
            regions = [track_to_region(track, timeline, control, info) for track in case.annotated[clip]]
            client.create_annotation(task, [region for region in regions if region], None)
    return project


def train(container: Container, project: int) -> Version:
    """Train as a worker does, and let the gate decide; return the version."""
    from ml_backend.jobs.train import TrainingRun

    with container.training_queue.lock(project) as lock:
        TrainingRun(container, project, "benchmark", lock).run()
    version = container.registry.last(project)
    assert version is not None
    return version


def run_case(case: Case, clips: Clips, container: Container) -> Result:
    """Train on a case's annotations, and measure what the candidate keeps on all clips that are not annotated."""
    started = time.monotonic()
    version = train(container, make_project(container, case))
    candidate = container.artifacts.fetch(version.artifact, version.weights_sha256)
    kept, lost = Kept(), Counter[str]()
    for clip in clips.all:
        if clip not in case.annotated:
            lost.update(compare(clips.found(clip), project_tracks(clip, candidate, LABELS), (), kept))
    measured, others = version.metrics["candidate"], version.metrics["others"] or {}
    return Result(
        case=case.number,
        spoiled=case.spoiled,
        state=version.state,
        reason=version.reason,
        held_out={name: int(measured.get(name) or 0) for name in ("videos", "tracks", "frames")},
        map50=(version.metrics["incumbent"]["map50"], measured["map50"]),
        others={name: int(others[name]) for name in ("tracks", "lost", "relabelled", "gained") if name in others},
        kept=kept.kept,
        of=kept.of,
        lost=dict(lost),
        minutes=round((time.monotonic() - started) / 60, 2),
    )


def measure(
    video: Path, weights: Path, folder: Path, cases: int, out: Path, args: Mapping[str, Any]
) -> Iterator[Result]:
    """Train on good and on spoiled annotations, each in a project of its own; yield what the gate decides.

    Each project has six annotated and eight other videos: parts of the street video, plain, mirrored and darkened,
    generated clips, and photographs. Annotated is what the detector finds, and what it finds besides at twice the size
    of images. Dataset, training, replay and gate are those of a worker, with a real Label Studio; the settings are
    those of the environment.

    Args:
        folder: new, for clips, servers and projects.
        cases: number of trainings, every second of which has good annotations.
        out: JSON lines of the results. Those that are there are not made again.
        args: training arguments.
    """
    done = {result.case: result for result in read_results(out)}
    yield from done.values()
    if set(range(cases)) <= set(done):
        return
    clips = Clips(video, weights, folder / "clips")
    with servers(folder) as addresses:
        changed = {
            "DATA_DIR": str(folder / "data"),
            "YOLO_WEIGHTS": str(weights.absolute()),
            "DETECTOR": "yolo",
            "MODE": "yolo",
            "ENGINE": "torch",
            "DEVICE": "cpu",
            "TRAIN_ARGS": json.dumps(dict(args)),
            "WEIGHTS_TIMEOUT_S": "1",
            "JOB_LEASE_S": "3600",  # the machine may be needed elsewhere for minutes
        }
        with patch.dict(os.environ, changed | addresses):
            from ml_backend.jobs.container import Container

            container = Container(settings_for(weights))
            for number in range(cases):
                if number in done:
                    continue
                try:
                    result = run_case(make_case(number, clips), clips, container)
                except BackendError:
                    log.exception("Case %d failed; the next run tries it again.", number)
                    continue
                with out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(asdict(result)) + "\n")
                yield result


def read_results(out: Path) -> list[Result]:
    """Return the results of earlier runs."""
    if not out.exists():
        return []
    return [Result(**json.loads(line)) for line in out.read_text(encoding="utf-8").splitlines()]


def summarize(results: Sequence[Result]) -> dict[str, dict[str, int]]:
    """Count decisions by how the annotations were spoiled, and promoted candidates that lose sure tracks elsewhere."""
    rows = {}
    for how in (CLEAN, *SPOILED):
        ours = [result for result in results if result.spoiled == how]
        states = Counter(result.state for result in ours)
        rows[how] = {
            "trainings": len(ours),
            **{state: states[state] for state in ("promoted", "proposed", "refused")},
            "losing": sum(result.loses for result in ours),
            "losing, promoted": sum(result.loses and result.state == "promoted" for result in ours),
        }
    return rows
