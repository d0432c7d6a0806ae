"""Global ids: people of a street video as two cameras see them, and which of them are found to be the same.

    python benchmarks/global_ids.py [--data FOLDER] [--embedder fallback,dinov2] [--draws 50]

The first camera is people.mp4 as it is, with the tracks of people that the detector and the tracker find, each until
the middle of its life. The second one is a variant of the video with the second halves: as it is, mirrored, darkened,
cropped and scaled to a third of the pixels, blurred, and all of these at once. So no frame of a person is in both. Of
each draw a third of the people are in both cameras, a third in the first and a third in the second only.
``precision`` is the share of right pairs among those found, ``recall`` that of the existing pairs that are found;
``draws_without_fault`` the share of draws in which no pair is wrong. Prints a table and, as the last line, JSON.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.few_shot import embedder_kinds  # noqa: E402
from benchmarks.tracking import find_tracks  # noqa: E402
from ml_backend.core.settings import Settings  # noqa: E402
from ml_backend.core.types import Float64Array, Image, Track  # noqa: E402
from ml_backend.embeddings.crop_embeddings import MemoryCropEmbeddings, embed_tracks  # noqa: E402
from ml_backend.embeddings.crop_selection import CROPS_PER_TRACK, candidate_crops  # noqa: E402
from ml_backend.embeddings.hub import resolve_embedder  # noqa: E402
from ml_backend.embeddings.loading import use_embedder  # noqa: E402
from ml_backend.labeling.few_shot.identity_jumps import TrackViews  # noqa: E402
from ml_backend.review.global_ids import SeenTrack, match_tracks  # noqa: E402
from ml_backend.video.probe import probe  # noqa: E402
from ml_backend.video.reader import read_frames  # noqa: E402
from ml_backend.video.writer import VideoWriter  # noqa: E402

MIN_FRAMES = 45
#: Shares of the picture that the cropped camera leaves out at each side, and its scale.
CROP, SCALE = 0.08, 0.58


def darken(image: Image) -> Image:
    """Return a picture of a darker, bluer camera."""
    gain = np.array([0.62, 0.5, 0.45])
    return np.asarray((255 * (image / 255) ** 1.15 * gain).clip(0, 255), np.uint8)


def crop(image: Image) -> Image:
    height, width = image.shape[:2]
    x, y = round(CROP * width), round(CROP * height)
    inside = image[y : height - y, x : width - x]
    return np.asarray(cv2.resize(inside, None, fx=SCALE, fy=SCALE, interpolation=cv2.INTER_AREA), np.uint8)


def blur(image: Image) -> Image:
    return np.asarray(cv2.GaussianBlur(image, (0, 0), 2.0), np.uint8)


def mirror(image: Image) -> Image:
    return np.ascontiguousarray(image[:, ::-1])


#: What is done to a picture, in order.
CAMERAS: dict[str, tuple[Callable[[Image], Image], ...]] = {
    "same": (),
    "mirrored": (mirror,),
    "darkened": (darken,),
    "cropped": (crop,),
    "blurred": (blur,),
    "all": (mirror, darken, crop, blur),
}


def film(video: Path, target: Path, steps: Sequence[Callable[[Image], Image]]) -> None:
    """Write a variant of a video."""
    info, writer = probe(video), None
    for frame in read_frames(video, info):
        image = frame.image
        for step in steps:
            image = step(image)
        if writer is None:
            height, width = image.shape[:2]
            writer = VideoWriter(target, width, height, info.fps).__enter__()
        writer.write(image)
    if writer:
        writer.__exit__(None, None, None)


def seen_by(xyxy: Float64Array, steps: Sequence[Callable[[Image], Image]], size: tuple[int, int]) -> Float64Array:
    """Return boxes ``(n, 4)`` as the variant of a video of a size shows them."""
    width, height = size
    boxes = xyxy.astype(np.float64)
    if mirror in steps:
        boxes = np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1)
    if crop in steps:
        boxes = (boxes - np.array([round(CROP * width), round(CROP * height)] * 2)) * SCALE
    return boxes


def look(video: Path, tracks: Sequence[Track], boxes: Sequence[Float64Array], kind: str) -> list[TrackViews | None]:
    """Return views of tracks, chosen as for labels; ``None`` for tracks without any."""
    settings = Settings(embedder=kind)
    model, info = resolve_embedder(settings), probe(video)
    found = embed_tracks(
        [
            candidate_crops(track.frames, xyxy.astype(np.float32), track.conf, info.width, info.height, CROPS_PER_TRACK)
            for track, xyxy in zip(tracks, boxes, strict=True)
        ],
        partial(use_embedder, model, settings),
        model.model_id,
        MemoryCropEmbeddings(),
        lambda: nullcontext(video),
        CROPS_PER_TRACK,
    )
    return [TrackViews.of(crops) if crops else None for crops in found]


def half(track: Track, second: bool) -> Track:
    """Return a track until, or from, the middle of its life."""
    middle = len(track) // 2
    rows = slice(middle, None) if second else slice(0, middle)
    return Track(track.track_id, track.frames[rows], track.xyxy[rows], track.conf[rows], track.class_scores)


def measure(
    first: Sequence[Track],
    second: Sequence[Track],
    views: tuple[Sequence[TrackViews | None], Sequence[TrackViews | None]],
    draws: int,
) -> dict[str, float]:
    """Draw which objects are in which camera, match them, and return precision and recall of pairs.

    Args:
        first, second: the same objects' tracks in each camera.
        views: of the tracks of each camera.
    """
    right = wrong = existing = without_fault = 0
    for draw in range(draws):
        groups = np.random.default_rng(draw).permutation(len(first)) % 3
        tracks, objects = [], []
        for camera, shown, looks, left_out in (("a", first, views[0], 2), ("b", second, views[1], 1)):
            for number, (track, seen, group) in enumerate(zip(shown, looks, groups.tolist(), strict=True)):
                if seen is not None and group != left_out:
                    tracks.append(SeenTrack(camera, track.top_class, track.frames, seen))
                    objects.append((camera, number))
        ids = match_tracks(tracks)
        pairs = [objects[i][1] == objects[j][1] for i, j in combinations(ids, 2) if ids[i] == ids[j]]
        right += sum(pairs)
        wrong += len(pairs) - sum(pairs)
        without_fault += all(pairs)
        existing += len({n for c, n in objects if c == "a"} & {n for c, n in objects if c == "b"})
    return {
        "pairs": existing / draws,
        "found": right / draws,
        "wrong": wrong / draws,
        "precision": right / max(right + wrong, 1),
        "recall": right / max(existing, 1),
        "draws_without_fault": without_fault / draws,
    }


@click.command(help=__doc__)
@click.option("--data", default=ROOT.parent / "shared" / "data", type=click.Path(path_type=Path))
@click.option("--draws", default=50, show_default=True, type=click.IntRange(1))
@click.option("--embedder", default="", help="fallback, dinov2; by default those with local weights.")
def main(data: Path, draws: int, embedder: str) -> None:
    video, weights = data / "people.mp4", data / "yolo11n.pt"
    info = probe(video)
    size = info.width, info.height
    tracks, _ = find_tracks(video, weights, Settings(_env_file=None, stride=1))
    tracks = sorted(
        (track for track in tracks if len(track) >= MIN_FRAMES and track.top_class == "person"),
        key=lambda track: track.track_id,
    )
    early, late = [half(track, False) for track in tracks], [half(track, True) for track in tracks]
    results: dict[str, Any] = {}
    for kind in embedder_kinds(embedder):
        first = look(video, early, [track.xyxy.astype(np.float64) for track in early], kind)
        results[kind] = {}
        for name, steps in CAMERAS.items():
            with tempfile.TemporaryDirectory() as folder:
                other = Path(folder) / "camera.mp4" if steps else video
                if steps:
                    film(video, other, steps)
                second = look(other, late, [seen_by(track.xyxy, steps, size) for track in late], kind)
            results[kind][name] = measure(early, late, (first, second), draws)
        table = Table("", *results[kind], title=kind)
        for fact in next(iter(results[kind].values())):
            table.add_row(fact, *(f"{values[fact]:.3f}" for values in results[kind].values()))
        Console(width=100).print(table)
    print(json.dumps({"tracks": len(tracks), "draws": draws, "results": results}))


if __name__ == "__main__":
    main()
