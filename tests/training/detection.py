"""A tiny detection dataset, a tiny detector to begin with, and plans for the training subprocess."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from tests.builders import make_tiny_yolo

LABELS = ("helper", "担架", "person", "dog")
TAUGHT = ("helper", "担架", "person")
START_NAMES = {0: "person", 1: "bicycle", 2: "dog"}


def make_dataset(folder: Path, *, labels: Sequence[str] = LABELS, pictures: int = 8) -> Path:
    """Bright blocks on grey, of as many sizes as taught labels; returns ``data.yaml``. Frames of 128 x 96 pixels."""
    rng = np.random.default_rng(0)
    listed: dict[str, list[str]] = {"train": [], "val": []}
    for number in range(pictures + 2):
        part = "train" if number < pictures else "val"
        image = rng.integers(60, 110, (96, 128, 3)).astype(np.uint8)
        lines = []
        for index in range(3):
            width, height = 24 + 8 * index, 40 - 8 * index
            x, y = index * 40 + int(rng.integers(0, 40 - width // 2)) // 2, int(rng.integers(0, 90 - height))
            image[y : y + height, x : x + width] = (250, 160 * (index == 1), 250 * (index == 2))
            box = [(x + width / 2) / 128, (y + height / 2) / 96, width / 128, height / 96]
            lines.append(" ".join([str(index), *(f"{v:.5f}" for v in np.clip(box, 0, 1))]))
        for kind, name in (("images", f"{number}.jpg"), ("labels", f"{number}.txt")):
            path = folder / kind / part / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if kind == "images":
                cv2.imwrite(str(path), image)
                listed[part].append(f"./images/{part}/{name}")
            else:
                path.write_text("\n".join(lines))
    for part, paths in listed.items():
        (folder / f"{part}.txt").write_text("\n".join(paths))
    data = {"path": str(folder), "train": "train.txt", "val": "val.txt", "names": dict(enumerate(labels))}
    (folder / "data.yaml").write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
    return folder / "data.yaml"


def make_start(path: Path) -> Path:
    """A detector that knows persons, bicycles and dogs by name."""
    return make_tiny_yolo(path, START_NAMES)


def train_plan(data: Path, start: Path | None, run: Path, **changes: Any) -> dict[str, Any]:
    """A plan for a training of a few seconds."""
    args = {"epochs": 2, "imgsz": 64, "batch": 4, "nbs": 4, "freeze": "backbone", "freeze_norm": True}
    args |= {"optimizer": "AdamW", "lr0": 1e-3, "close_mosaic": 1} | changes.pop("args", {})
    return {
        "kind": "train",
        "data": str(data),
        "classes": list(LABELS),
        "trained_classes": list(TAUGHT),
        "start": str(start) if start else None,
        "start_from": {"helper": "person", "担架": "bicycle"},
        "run": str(run),
        "resume": None,
        "device": "cpu",
        "args": args,
    } | changes
