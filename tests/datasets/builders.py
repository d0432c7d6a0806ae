"""Small exports of Label Studio around small videos."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

UPLOAD = "/data/upload/1/35deac95-{}"


def key(frame: int, x: float, enabled: bool = True, **changes: Any) -> dict[str, Any]:
    """A keyframe 20 % wide and 30 % high."""
    box = {"x": x, "y": 10.0, "width": 20.0, "height": 30.0, "rotation": 0}
    return {"frame": frame, "enabled": enabled, "time": frame / 25, **box, **changes}


def make_region(
    *keys: dict[str, Any],
    label: str = "person",
    region_id: str = "r1",
    frames_count: int | None = None,
    duration: float | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """A ``videorectangle`` of an annotation.

    Args:
        frames_count, duration: of the video; as Label Studio writes them. ``None``: not stated, so that it is right for
            any video; 30 frames with a duration.
    """
    value: dict[str, Any] = {"labels": [label] if label else [], "sequence": list(keys)}
    if duration is not None:
        value |= {"duration": duration, "framesCount": 30}
    if frames_count is not None:
        value["framesCount"] = frames_count
    names = {"from_name": "box", "to_name": "video", "type": "videorectangle", "origin": "manual"}
    return {"id": region_id, **names, "value": value, **changes}


def make_annotation(*regions: dict[str, Any], annotation_id: int = 1, **changes: Any) -> dict[str, Any]:
    usual = {
        "id": annotation_id,
        "completed_by": 1,
        "was_cancelled": False,
        "ground_truth": False,
        "created_at": f"2026-01-01T00:00:{annotation_id:02}Z",
        "updated_at": f"2026-01-01T00:00:{annotation_id:02}Z",
    }
    return {**usual, "result": list(regions), **changes}


def make_task(
    video: str,
    *annotations: dict[str, Any],
    task_id: int = 1,
    fps: float | None = 30,
    predictions: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """A task of an upload called ``video``."""
    data: dict[str, Any] = {"video": UPLOAD.format(video)}
    if fps is not None:
        data["fps"] = fps
    return {"id": task_id, "data": data, "annotations": list(annotations), "predictions": list(predictions)}


def write_export(path: Path, tasks: Iterable[dict[str, Any]]) -> Path:
    path.write_text(json.dumps(list(tasks), ensure_ascii=False), encoding="utf-8")
    return path
