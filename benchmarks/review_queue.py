"""The review queue: how long a crowd takes in the background, and how fast moments are answered by keys.

    python benchmarks/review_queue.py [--tasks 200] [--tracks 30] [--moments 50] [--weights yolo11n.pt]

On a whole local stack. Each task has a video of ten seconds of its own, a prediction of ``--tracks`` people who walk
about, eight embedded crops of each, and the detections of every frame: these people, eight things that the detector
doubts, and noise. Two tracks jump. ``background`` is the time in which the stack's worker finds the moments of all
tasks, without detection, ``update`` those of one, and ``start`` with the worker's imports. Then Chromium answers
``--moments`` moments by keys, each as soon as its clip plays: ``answer`` is the time from the key to the next moment,
``clip`` until its clip plays, which was rendered ahead; ``uncached`` the same where it was not, also from opening the
page at a moment that nobody has seen. ``--profile`` prints where a task's time goes. Prints a table and, as the last
line, JSON.
"""

from __future__ import annotations

import cProfile
import json
import pstats
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import cv2
import httpx
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.measuring import CONFIG, local_stack, temporary_data_dir, wait_for  # noqa: E402
from ml_backend.core.types import Detections, FrameFeatures, Track, VideoInfo  # noqa: E402
from ml_backend.embeddings.crop_embeddings import CropEmbedding  # noqa: E402
from ml_backend.jobs.detections import detections_kept  # noqa: E402
from ml_backend.label_studio.label_config import parse_label_config  # noqa: E402
from ml_backend.label_studio.media import canonical_uri  # noqa: E402
from ml_backend.label_studio.regions import make_prediction, track_to_region  # noqa: E402
from ml_backend.label_studio.timeline import video_timeline  # noqa: E402
from ml_backend.labeling.few_shot.pattern_store import video_key  # noqa: E402
from ml_backend.review.moments import find_moments  # noqa: E402
from ml_backend.review.video import CROPS_PER_TRACK, ReviewVideo  # noqa: E402
from ml_backend.video.probe import probe  # noqa: E402
from ml_backend.video.sample import make_sample  # noqa: E402

SECONDS = 10.0
#: Values of an embedding, things that the detector doubts, and weak detections a frame.
DIMENSIONS, DOUBTED, NOISE = 384, 8, 8
UNCACHED = 5
PATIENCE_MS = 300_000


def make_tracks(rng: np.random.Generator, count: int, info: VideoInfo) -> list[Track]:
    """Return people who walk about in the picture, of whom the first two jump once."""
    size = np.array([info.width, info.height])
    half = np.array([0.012, 0.05]) * size
    tracks = []
    for number in range(1, count + 1):
        first, last = int(rng.integers(0, info.frames // 3)), int(rng.integers(2 * info.frames // 3, info.frames))
        frames = np.arange(first, last + 1)
        ends = rng.uniform(0.1, 0.9, (2, 2)) * size
        middle = ends[0] + np.linspace(0, 1, len(frames))[:, None] * (ends[1] - ends[0])
        middle += np.cumsum(rng.normal(0, 0.0002, (len(frames), 2)), axis=0) * size
        if number <= 2:
            middle[len(frames) // 2 :] = size - middle[len(frames) // 2 :]
        boxes = np.clip(np.concatenate([middle - half, middle + half], axis=1), 0, [*size, *size]).astype(np.float32)
        tracks.append(Track(number, frames, boxes, np.ones(len(frames), np.float32), {"person": 1.0}, "person", 0.9))
    return tracks


def make_detections(rng: np.random.Generator, tracks: Sequence[Track], info: VideoInfo) -> list[Detections]:
    """Return what a detector sees of each frame."""
    size = np.array([info.width, info.height])
    things = rng.uniform(0.1, 0.8, (DOUBTED, 2))

    def boxes(corners: np.ndarray) -> np.ndarray:
        return np.concatenate([corners, corners + np.array([0.03, 0.1])], axis=1) * [*size, *size]

    found = []
    for frame in range(info.frames):
        people = [
            track.xyxy[frame - track.frames[0]] for track in tracks if track.frames[0] <= frame <= track.frames[-1]
        ]
        seen = things[rng.uniform(size=DOUBTED) < 0.6] + rng.normal(0, 0.001, 2)
        noise = rng.uniform(0, 0.85, (NOISE, 2))
        xyxy = np.concatenate([np.array(people).reshape(-1, 4), boxes(seen), boxes(noise)]).astype(np.float32)
        conf = [rng.uniform(low, high, n) for low, high, n in (
            (0.5, 0.9, len(people)), (0.1, 0.4, len(seen)), (0.05, 0.12, NOISE)
        )]  # fmt: skip
        found.append(Detections(xyxy, np.concatenate(conf).astype(np.float32), np.zeros(len(xyxy), np.int64)))
    return found


def make_crops(rng: np.random.Generator, tracks: Sequence[Track]) -> list[CropEmbedding]:
    """Return crops of the tracks, whose views are alike."""
    crops = []
    for track in tracks:
        look, clothes = rng.normal(size=DIMENSIONS), rng.integers(20, 230, (4, 1, 3))
        for row in np.linspace(2, len(track) - 3, CROPS_PER_TRACK).astype(int).tolist():
            vector = (look + rng.normal(0, 0.3, DIMENSIONS)).astype(np.float32)
            picture = np.repeat(np.repeat(clothes, 24, axis=0), 48, axis=1) + rng.normal(0, 8, (96, 48, 3))
            thumbnail = bytes(cv2.imencode(".jpg", picture.clip(0, 255).astype(np.uint8))[1])
            box: Any = tuple(map(float, track.xyxy[row]))
            crops.append(CropEmbedding(int(track.frames[row]), box, vector / np.linalg.norm(vector), thumbnail))
    return crops


def profile(tracks: int, video: Path) -> None:
    """Print where the time of one task's moments goes."""
    rng, info = np.random.default_rng(1), probe(video)
    people = make_tracks(rng, tracks, info)
    detections = dict(enumerate(make_detections(rng, people, info)))
    place = (info.fps, info.width, info.height, info.frames, 1)
    crops, names = make_crops(rng, people), {0: "person"}
    scene = ReviewVideo(people, *place, crops, detections, names, {"person": "person"})
    with cProfile.Profile() as profiler:
        find_moments(scene)
    pstats.Stats(profiler).sort_stats("cumulative").print_stats("ml_backend", 25)


def answer_by_keys(url: str, moments: int, clips: str) -> dict[str, Any]:
    """Answer moments in Chromium; return medians and worst times in milliseconds."""
    from playwright.sync_api import sync_playwright

    executable = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    plays = (
        "before => { const shown = document.querySelector('article.moment');"
        "const clip = shown && shown.querySelector(':scope > video');"
        "return shown && shown.dataset.moment !== before && clip && clip.readyState > 2 && clip.currentTime > 0; }"
    )
    shown = (
        "before => { const it = document.querySelector('article.moment'); return it && it.dataset.moment !== before; }"
    )
    times: dict[str, list[float]] = {"answer": [], "clip": [], "uncached": []}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        page = browser.new_page(locale="en", viewport={"width": 1280, "height": 900})
        page.set_default_timeout(PATIENCE_MS)
        for number in range(UNCACHED):  # far apart, so that none was rendered ahead of another
            started = time.perf_counter()
            page.goto(f"{url}&page-moments={moments + 10 * (number + 1)}")
            page.wait_for_function(plays, arg="")
            times["uncached"].append(time.perf_counter() - started)
            click.echo(f"uncached: {times['uncached'][-1]:.1f} s", err=True)
        page.goto(url)
        page.wait_for_function(plays, arg="")
        begun = time.perf_counter()
        for _ in range(moments):
            before = page.locator("article.moment").get_attribute("data-moment")
            following = httpx.get(f"{clips}&limit=2", timeout=60).json()["moments"][1]
            started = time.perf_counter()
            page.keyboard.press("n")
            page.wait_for_function(shown, arg=before, polling=10)
            times["answer"].append(time.perf_counter() - started)
            page.wait_for_function(plays, arg=before, polling=10)
            times["clip" if following["has_clip"] else "uncached"].append(time.perf_counter() - started)
        seconds = (time.perf_counter() - begun) / moments
        browser.close()
    found: dict[str, Any] = {"seconds_a_moment": round(seconds, 2), "cached": len(times["clip"])}
    for name, values in times.items():
        ms = 1000 * np.array(values)
        found[name] = {"median_ms": round(np.median(ms)), "worst_ms": round(ms.max())} if values else None
    return found


@click.command(help=__doc__)
@click.option("--tasks", default=200, show_default=True, type=click.IntRange(2))
@click.option("--tracks", default=30, show_default=True, type=click.IntRange(2))
@click.option("--moments", default=50, show_default=True, type=click.IntRange(1), help="Answered by keys.")
@click.option("--weights", default=ROOT.parent / "shared" / "data" / "yolo11n.pt", type=click.Path(path_type=Path))
@click.option("--profile", "with_profile", is_flag=True)
def main(tasks: int, tracks: int, moments: int, weights: Path, with_profile: bool) -> None:
    results: dict[str, Any] = {"tasks": tasks, "tracks": tracks}
    with temporary_data_dir() as folder:
        video = folder / "crowd.mp4"
        make_sample(video, seconds=SECONDS)
        if with_profile:
            profile(tracks, video)
        environment = {"DETECTOR": "motion", "MODE": "yolo_dinov2", "EMBEDDER": "fallback"}
        with local_stack(weights, folder, **environment) as (stack, _, container):
            client, info, timeline = stack.client(), probe(video), video_timeline(video)
            project = client.create_project("crowds", CONFIG)  # not connected: nothing is predicted
            control = parse_label_config(CONFIG).video_controls[0]
            embedder = container.projects.models(project, download=True).classifier.embedder
            facts = {"fps": info.fps, "frames": info.frames, "width": info.width, "height": info.height}
            numbers = []
            for number in range(tasks):
                rng = np.random.default_rng(number)
                people = make_tracks(rng, tracks, info)
                uri = client.upload_file(project, video)
                numbers.append(client.create_task(project, {"video": uri, **facts, "duration": SECONDS}))
                regions = [track_to_region(track, timeline, control, info) for track in people]
                client.create_prediction(numbers[-1], make_prediction([item for item in regions if item], "crowd"))
                key = video_key(canonical_uri(uri, client.url))
                with detections_kept(container.artifacts, project, key) as log:
                    for frame, detections in enumerate(make_detections(rng, people, info)):
                        log.push(FrameFeatures(frame, detections))
                    log.close(("person",))
                if embedder:
                    container.projects.patterns.crop_embeddings(key).add(embedder.model_id, make_crops(rng, people))
            click.echo(f"{tasks} tasks are made.", err=True)
            for name, some in (("start", numbers[:1]), ("background", numbers), ("update", numbers[:1])):
                started = time.perf_counter()
                container.queue.request_review(project, some)
                wait_for("the moments", lambda: not container.storage.pending("review", project), stack)
                seconds = time.perf_counter() - started
                results[name] = {"seconds": round(seconds, 1), "seconds_a_task": round(seconds / len(some), 2)}
                click.echo(f"{name}: {results[name]}", err=True)
            api = f"{stack.backend.url}/api/review?project={project}"
            results["moments"] = httpx.get(api, timeout=60).json()["total"]
            page = f"{stack.backend.url}/?project={project}&step=repair"
            results |= answer_by_keys(page, min(moments, results["moments"] - 1), api)
    for name, value in results.items():
        click.echo(f"{name:<18}{value}")
    click.echo(json.dumps(results))


if __name__ == "__main__":
    main()
