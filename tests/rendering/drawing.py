"""Regions, export files and looking for what was drawn."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

#: A box on a Label Studio frame: frame, x, y, width, height in percent; and whether it is visible afterwards.
Key = tuple[int, float, float, float, float, bool]

GREEN, MAGENTA = (0, 255, 0), (255, 0, 255)
CONFIG = (
    '<View><Labels name="label" toName="video"><Label value="thing" background="#00ff00"/>'
    '<Label value="ding" background="magenta"/></Labels>'
    '<Video name="video" value="$video" frameRate="$fps"/><VideoRectangle name="box" toName="video"/></View>'
)
COLOURS = {"thing": "#00ff00", "ding": "magenta"}


def make_region(
    keys: Sequence[Key], *, count: int, fps: float, label: str = "thing", name: str = "a", **more: Any
) -> dict[str, Any]:
    """A ``videorectangle`` of a video of ``count`` frames at ``fps``; ``more`` are fields such as ``score``."""
    sequence = [
        {"frame": f, "x": x, "y": y, "width": w, "height": h, "enabled": on, "rotation": 0, "time": f / fps}
        for f, x, y, w, h, on in keys
    ]
    value = {"framesCount": count, "duration": count / fps, "labels": [label] if label else [], "sequence": sequence}
    return {"id": name, "from_name": "box", "to_name": "video", "type": "videorectangle", "value": value, **more}


def write_prediction(path: Path, regions: Sequence[dict[str, Any]]) -> Path:
    path.write_text(json.dumps({"model_version": "v1", "score": 0.5, "result": list(regions)}))
    return path


def write_export(
    path: Path, video: str, regions: Sequence[dict[str, Any]], predicted: Sequence[dict[str, Any]] = (), task: int = 7
) -> Path:
    """An export with one task: an annotation, and a prediction of model version ``v1``."""
    annotation = {"id": 1, "completed_by": {"email": "anna@example.org"}, "result": list(regions)}
    prediction = {"id": 2, "model_version": "v1", "result": list(predicted)}
    data = {"video": f"/data/upload/1/0123abcd-{video}"}
    row = {"id": task, "data": data, "annotations": [annotation], "predictions": [prediction] if predicted else []}
    path.write_text(json.dumps([row], ensure_ascii=False))
    return path


def painted(image: np.ndarray, rgb: tuple[int, int, int], tolerance: int = 70) -> np.ndarray:
    """``(height, width)`` bool: pixels of a BGR picture that have a colour, about."""
    return np.asarray((np.abs(image.astype(int) - np.array(rgb[::-1])) < tolerance).all(axis=2))


def box_of(image: np.ndarray, rgb: tuple[int, int, int]) -> tuple[int, int, int, int] | None:
    """Left, top, right, bottom of everything in a colour; ``None`` where nothing is."""
    rows, columns = np.nonzero(painted(image, rgb))
    if not len(rows):
        return None
    return int(columns.min()), int(rows.min()), int(columns.max()), int(rows.max())
