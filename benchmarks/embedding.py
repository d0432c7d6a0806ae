"""Crops per second of each embedder beside its bare network on tensors that are ready, in one run.

    python benchmarks/embedding.py [--video VIDEO] [--dinov2 FOLDER] [--clip FOLDER] [--device cpu]

What ours does besides: scaling, padding, normalising, pooling and checking. Where no folder is given,
networks of the real size with random weights stand in, which are as fast as the real ones. Both variants take turns
within each round, and the best round of each counts, so that other work on the machine disturbs both alike; with
``--threads 1`` on a CPU it is CPU time that counts, which hardly depends on other work. Prints a table and, as the
last line, JSON.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

#: Hidden size and heads.
DINOV2_SIZES = {"small": (384, 6), "base": (768, 12)}


def make_dinov2(folder: Path, size: str) -> Path:
    """A DINOv2 of the real size with random weights."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    hidden, heads = DINOV2_SIZES[size]
    config = transformers.Dinov2Config(hidden_size=hidden, num_attention_heads=heads, image_size=518, patch_size=14)
    transformers.Dinov2Model(config).save_pretrained(folder)
    return folder


def make_clip(folder: Path, name: str) -> Path:
    """A CLIP of the real size with random weights."""
    import open_clip
    from open_clip.model import CLIP
    from safetensors.torch import save_file

    config = open_clip.get_model_config(name)
    folder.mkdir()
    save_file(CLIP(**config).state_dict(), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    return folder


def make_crops(video: Path | None, n: int) -> list[np.ndarray]:
    """Crops of the sizes that people and cars have in a 1080p video: from 60 to 400 pixels high."""
    from ml_backend.models.crops import cut
    from ml_backend.video.reader import read_frames

    random = np.random.default_rng(0)
    frames = read_frames(video) if video else None
    noise = random.integers(0, 255, (1080, 1920, 3), np.uint8)
    crops: list[np.ndarray] = []
    while len(crops) < n:
        image = next(frames).image if frames else noise
        for _ in range(8):
            height = np.exp(random.uniform(np.log(60), np.log(400)))
            width = height * random.uniform(0.35, 1.8)
            left, top = random.uniform(0, image.shape[1] - 100), random.uniform(0, image.shape[0] - 100)
            crop = cut(image, (left, top, left + width, top + height))
            if crop is not None:
                crops.append(crop)
    return crops[:n]


def embedders(folder: Path, dinov2: Path | None, clip: Path | None, settings: Any) -> Iterator[tuple[str, Any, Any]]:
    """Name, embedder, and its bare network as a function of a ready tensor."""
    from ml_backend.models.clip import ClipEmbedder
    from ml_backend.models.dinov2 import Dinov2Embedder
    from ml_backend.models.efficientnet import EfficientNetEmbedder

    fallback = EfficientNetEmbedder(settings)
    yield "efficientnet_lite0", fallback, fallback._model
    if dinov2:
        ours = Dinov2Embedder(dinov2, settings)
        yield ours.model_id, ours, ours._model
    else:
        for size in DINOV2_SIZES:
            ours = Dinov2Embedder(make_dinov2(folder / size, size), settings)
            yield f"dinov2-{size}, random weights", ours, ours._model
    seen = ClipEmbedder(clip or make_clip(folder / "clip", "ViT-B-32"), settings)
    yield seen.model_id if clip else "CLIP ViT-B-32, random weights", seen, seen._model.encode_image


def measure(
    ours: Any, bare: Callable[[Any], Any], crops: list[np.ndarray], rounds: int, clock: Callable[[], float]
) -> dict[str, float]:
    """Crops per second of both."""
    import torch

    ready = [ours._to_input(crops[i : i + ours._batch]) for i in range(0, len(crops), ours._batch)]

    def run_bare() -> None:
        with torch.inference_mode():
            for tensor in ready:
                bare(tensor)
        if tensor.device.type == "cuda":
            torch.cuda.synchronize()

    variants: dict[str, Callable[[], Any]] = {"ours": lambda: ours.embed(crops), "bare": run_bare}
    best = dict.fromkeys(variants, float("inf"))
    for number in range(rounds + 1):
        for name, run in variants.items():
            started = clock()
            run()
            if number:  # the first round warms up
                best[name] = min(best[name], clock() - started)
    return {name: len(crops) / seconds for name, seconds in best.items()}


@click.command()
@click.option("--video", type=click.Path(exists=True, path_type=Path), help="Where crops are cut from; else noise.")
@click.option("--dinov2", type=click.Path(exists=True, path_type=Path), help="Folder of a real model.")
@click.option("--clip", type=click.Path(exists=True, path_type=Path), help="Folder of a real model.")
@click.option("--device", default="auto")
@click.option("--crops", "n", default=32)
@click.option("--rounds", default=5)
@click.option("--threads", default=0, help="Of torch on a CPU; 0: as many as it takes.")
def main(
    video: Path | None, dinov2: Path | None, clip: Path | None, device: str, n: int, rounds: int, threads: int
) -> None:
    import cv2
    import torch

    from ml_backend.settings import Settings

    if threads:
        torch.set_num_threads(threads)
        cv2.setNumThreads(threads)
    crops = make_crops(video, n)
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, ours, bare in embedders(Path(folder), dinov2, clip, Settings(device=device)):
            clock = time.process_time if threads == 1 and ours.device == "cpu" else time.perf_counter
            speed = measure(ours, bare, crops, rounds, clock)
            row = rows[name] = {**speed, "ratio": speed["ours"] / speed["bare"], "device": ours.device}
            print(
                f"{name:32} {row['ours']:8.1f} crops/s  bare network {row['bare']:8.1f} crops/s  "
                f"ratio {row['ratio']:.3f}  on {row['device']}",
                flush=True,
            )
    print(json.dumps({"crops": n, "rows": rows, "lowest_ratio": round(min(r["ratio"] for r in rows.values()), 3)}))


if __name__ == "__main__":
    main()
