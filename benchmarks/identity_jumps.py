"""Identity jumps: tracks that are joined on purpose, and whether teaching notices.

    python benchmarks/identity_jumps.py [--data FOLDER] [--embedder fallback,dinov2] [--draws 20]

Two tracks of people in a street video are joined at a random moment of the middle 80 % of the first one: its boxes
until then, the boxes of the other one after. The joined track is looked at as an annotated track is: its boxes, and
four crops, chosen by size and sharpness. ``found_where_taught`` is of the tracks whose crops show both, ``found`` of
all, as nothing wrong is taught where all four show one of the two; ``by_looks`` is without the boxes. Crops are
compared with those of 4, 10 or 20 random other tracks, as they come from the tracker: some of these may have jumped by
themselves. Clean tracks, whole and random parts of at least half, are looked at in the same way; an alarm on one is
counted as false even if the tracker had jumped. Tracks are split in two halves by their order: the prior of the check
was measured on the first (``--half 0``), the second is reported. Prints a table and, as the last line, JSON.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from contextlib import nullcontext
from dataclasses import dataclass
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
from benchmarks.tracking import find_tracks  # noqa: E402
from ml_backend.core.settings import Settings  # noqa: E402
from ml_backend.core.types import Track, VideoInfo  # noqa: E402
from ml_backend.embeddings.crop_embeddings import CropEmbedding, MemoryCropEmbeddings, embed_tracks  # noqa: E402
from ml_backend.embeddings.crop_selection import CROPS_PER_TRACK, CropBox, candidate_crops  # noqa: E402
from ml_backend.embeddings.hub import resolve_embedder  # noqa: E402
from ml_backend.embeddings.loading import use_embedder  # noqa: E402
from ml_backend.labeling.few_shot.identity_jumps import TrackViews, find_box_jump, find_jump  # noqa: E402
from ml_backend.video.probe import probe  # noqa: E402

OTHERS = (4, 10, 20)
MIN_FRAMES = 45
JOINS_PER_TRACK = 12
PARTS_PER_TRACK = 6


@dataclass(frozen=True, slots=True)
class Case:
    """A track to look at.

    Attributes:
        tracks: indices of the tracks that it is made of: two if it was joined.
        moment: first frame of the second track; -1 for a clean one.
        crops: candidates.
        frames: ``(n,)`` of its boxes.
        xyxy: ``(n, 4)`` pixels.
    """

    tracks: tuple[int, ...]
    moment: int
    crops: list[CropBox]
    frames: np.ndarray
    xyxy: np.ndarray


def make_cases(tracks: list[Track], half: int, size: tuple[int, int]) -> list[Case]:
    """Join tracks of one half of all, and cut parts of them."""
    rng = np.random.default_rng(0)
    cases = []

    def crops(track: Track, rows: np.ndarray) -> list[CropBox]:
        return candidate_crops(track.frames[rows], track.xyxy[rows], track.conf[rows], *size, CROPS_PER_TRACK)

    numbers = [n for n, track in enumerate(tracks) if n % 2 == half and len(track.frames) >= MIN_FRAMES]
    for n in numbers:
        track = tracks[n]
        for part in range(PARTS_PER_TRACK):
            length = len(track.frames) if part == 0 else int(rng.uniform(0.5, 1) * len(track.frames))
            start = int(rng.integers(0, len(track.frames) - length + 1))
            rows = np.arange(start, start + length)
            cases.append(Case((n,), -1, crops(track, rows), track.frames[rows], track.xyxy[rows]))
        for _ in range(JOINS_PER_TRACK):
            moment = int(track.frames[int(rng.uniform(0.1, 0.9) * len(track.frames))])
            later = [
                other
                for other in numbers
                if other != n
                and tracks[other].top_class == track.top_class == "person"
                and (tracks[other].frames >= moment).sum() >= 0.1 * len(track.frames)
            ]
            if later:
                other = int(rng.choice(later))
                before = crops(track, np.flatnonzero(track.frames < moment))
                after = crops(tracks[other], np.flatnonzero(tracks[other].frames >= moment))
                joined = Track(
                    0,
                    *(
                        np.concatenate([a[track.frames < moment], b[tracks[other].frames >= moment]])
                        for a, b in (
                            (track.frames, tracks[other].frames),
                            (track.xyxy, tracks[other].xyxy),
                            (track.conf, tracks[other].conf),
                        )
                    ),
                    {},
                )
                if before and after:
                    rows = np.arange(len(joined.frames))
                    cases.append(Case((n, other), moment, crops(joined, rows), joined.frames, joined.xyxy))
    return cases


def measure(
    cases: list[Case], crops: list[list[CropEmbedding]], whole: dict[int, TrackViews], draws: int, info: VideoInfo
) -> dict[str, Any]:
    """Return the shares of joined tracks found, and of clean ones with an alarm, by the number of other tracks."""
    views = [TrackViews.of(own) for own in crops]
    boxes = [
        find_box_jump(case.frames, case.xyxy.astype(np.float64), info.fps, (info.width, info.height)) for case in cases
    ]
    out: dict[str, Any] = {}
    for count in OTHERS:
        rng = np.random.default_rng(count)
        alarms: dict[str, list[bool]] = defaultdict(list)
        for case, own, looks, by_boxes in zip(cases, crops, views, boxes, strict=True):
            shows_both = len({crop.frame < case.moment for crop in own}) == 2
            names = ["false_alarms"] if case.moment < 0 else ["found", *["found_where_taught"] * shows_both]
            usable = [n for n in whole if n not in case.tracks]
            for _ in range(draws):
                others = rng.choice(usable, min(count, len(usable)), replace=False).tolist()
                by_looks = find_jump(looks, [whole[n] for n in others])
                for name in names:
                    alarms[name].append(by_looks is not None or by_boxes is not None)
                    alarms[f"{name}_by_looks"].append(by_looks is not None)
        out[str(count)] = {name: float(np.mean(values)) for name, values in alarms.items()}
    return out


@click.command(help=__doc__)
@click.option("--data", default=ROOT.parent / "shared" / "data", type=click.Path(path_type=Path))
@click.option(
    "--draws", default=20, show_default=True, type=click.IntRange(1), help="Choices of other tracks per track."
)
@click.option("--half", default=1, show_default=True, type=click.IntRange(0, 1))
@click.option("--embedder", default="", help="fallback, dinov2; by default those with local weights.")
def main(data: Path, draws: int, half: int, embedder: str) -> None:
    video, weights = data / "people.mp4", data / "yolo11n.pt"
    info = probe(video)
    tracks, _ = find_tracks(video, weights, Settings(_env_file=None, stride=1))
    tracks = sorted(tracks, key=lambda track: track.track_id)
    cases = make_cases(tracks, half, (info.width, info.height))
    everything = [
        candidate_crops(track.frames, track.xyxy, track.conf, info.width, info.height, CROPS_PER_TRACK)
        for track in tracks
    ]
    results: dict[str, Any] = {}
    for kind in embedder_kinds(embedder):
        settings = Settings(embedder=kind)
        model = resolve_embedder(settings)

        found = embed_tracks(
            [*everything, *(case.crops for case in cases)],
            partial(use_embedder, model, settings),
            model.model_id,
            MemoryCropEmbeddings(),
            lambda: nullcontext(video),
            CROPS_PER_TRACK,
        )
        whole = {n: TrackViews.of(crops) for n, crops in enumerate(found[: len(everything)]) if len(crops) > 1}
        usable = [(case, crops) for case, crops in zip(cases, found[len(everything) :], strict=True) if crops]
        results[kind] = measure([case for case, _ in usable], [crops for _, crops in usable], whole, draws, info)
        _print_table(kind, results[kind])
    joined = sum(case.moment >= 0 for case in cases)
    print(json.dumps({"joined": joined, "clean": len(cases) - joined, "draws": draws, "results": results}))


def _print_table(title: str, results: dict[str, Any]) -> None:
    table = Table("other tracks", *results, title=title)
    for name in next(iter(results.values())):
        table.add_row(name, *(f"{values[name]:.3f}" for values in results.values()))
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
