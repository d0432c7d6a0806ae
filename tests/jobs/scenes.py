"""Clips in which photographed people and a bus walk about, and annotations that say exactly where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import ultralytics

from ml_backend.video.writer import VideoWriter
from tests.builders import made_once

ASSETS = Path(ultralytics.__file__).parent / "assets"
WIDTH, HEIGHT, FRAMES, FPS = 480, 360, 120, 20
#: Left, top, right, bottom in bus.jpg; the height, top edge and speed in the clip.
_CUTS = {"walker": ((48, 398, 245, 902), 120, 20, 1), "vehicle": ((22, 231, 805, 756), 130, 200, -1)}


def _sizes() -> dict[str, tuple[int, int, int, int]]:
    """Width, height, top edge and direction by object."""
    return {
        name: (round((right - left) * tall / (bottom - top)), tall, edge, way)
        for name, ((left, top, right, bottom), tall, edge, way) in _CUTS.items()
    }


def _left(width: int, way: int, frame: int) -> float:
    """Left edge on a 0-based frame: to and fro."""
    room = WIDTH - width
    phase = (frame / FRAMES * 2 + (0 if way > 0 else 1)) % 2
    return room * (phase if phase <= 1 else 2 - phase)


@made_once
def make_walk(path: Path, seed: int = 1) -> Path:
    """Six seconds in which a person and a bus move to and fro over a background of its own."""
    photo = cv2.imread(str(ASSETS / "bus.jpg"))
    noise = np.random.default_rng(seed).integers(90, 140, (HEIGHT // 8, WIDTH // 8, 3), np.uint8)
    background = np.kron(noise, np.ones((8, 8, 1), np.uint8))
    cuts = {}
    for name, (width, tall, _, _) in _sizes().items():
        left, top, right, bottom = _CUTS[name][0]
        cuts[name] = cv2.resize(photo[top:bottom, left:right], (width, tall))
    with VideoWriter(path, WIDTH, HEIGHT, FPS) as writer:
        for frame in range(FRAMES):
            image = background.copy()
            for name, (width, tall, edge, way) in _sizes().items():
                x = round(_left(width, way, frame))
                image[edge : edge + tall, x : x + width] = cuts[name]
            writer.write(image)
    return path


def walk_regions(**labels: str) -> list[dict[str, Any]]:
    """What a careful person annotates on it; ``labels`` are given in place of the objects' names."""
    regions = []
    for number, (name, (width, tall, edge, way)) in enumerate(_sizes().items()):
        keys = [
            {
                "frame": frame + 1,
                "enabled": True,
                "x": 100 * round(_left(width, way, frame)) / WIDTH,
                "y": 100 * edge / HEIGHT,
                "width": 100 * width / WIDTH,
                "height": 100 * tall / HEIGHT,
                "rotation": 0,
                "time": (frame + 1) / FPS,
            }
            for frame in range(0, FRAMES, 5)
        ]
        value = {
            "framesCount": FRAMES,
            "duration": FRAMES / FPS,
            "labels": [labels.get(name, name)],
            "sequence": keys,
        }
        names = {"from_name": "box", "to_name": "video", "type": "videorectangle", "origin": "manual"}
        regions.append({"id": f"walk{number}", **names, "value": value})
    return regions
