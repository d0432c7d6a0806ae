"""Requests of newer editors' toolbar for interactive models, in their recorded form, through a real Label Studio."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from ml_backend.cli.dev_stack.stack import Stack
from ml_backend.core.boxes import iou_pairs
from tests.drawn_scene import FPS, FRAMES, HEIGHT, WIDTH, mask_box, truth
from tests.label_studio.editor import make_scene_task

pytestmark = pytest.mark.stack


@pytest.fixture
def post(motion_stack: Stack, tmp_path: Path) -> Callable[..., Any]:
    """Post a context as the editor of a task does; return the first result's value, ``None`` if there is none."""
    client = motion_stack.client()
    project, task = make_scene_task(motion_stack, tmp_path, "toolbar")
    (backend,) = client.sdk.ml.list(project=project)
    url = f"{motion_stack.label_studio.url}/api/ml/{backend.id}/interactive-annotating"

    def post(**context: Any) -> Any:
        body = {"task": task, "context": context}
        response = httpx.post(url, json=body, headers=client.auth_headers(), timeout=300)
        assert response.status_code == 200, response.text
        result = response.json()["data"]["result"]
        return result[0]["value"] if result else None

    return post


def percent(xyxy: Sequence[float]) -> dict[str, float]:
    """Return a box in percent of the picture, as the editor has it."""
    x1, y1, x2, y2 = map(float, xyxy)
    corner = {"x": 100 * x1 / WIDTH, "y": 100 * y1 / HEIGHT}
    return corner | {"width": 100 * (x2 - x1) / WIDTH, "height": 100 * (y2 - y1) / HEIGHT}


def test_a_box_is_drawn_accepted_and_tracked(post: Callable[..., Any]) -> None:
    assert post(event="capabilities")["targets"][0]["tag"] == "VideoRectangle"
    assert post(event="prewarm", frame=30, window=20, direction="forward") is None
    box = percent(truth(30))
    prompt = [{"type": "rectanglelabels", "value": box}]
    time_ms = 1000 * 29 / FPS
    assert mask_box(post(result=prompt, time_ms=time_ms, frame=30))

    first, last, start = 29, 29, box
    for _ in range(20):  # an answer takes a few seconds at most; on a busy machine the next one goes on from there
        horizon = {"frame": last + 1, "max_frames": FRAMES, "time_ms": 1000 * last / FPS, "max_duration_ms": 4000.0}
        prompt = [{"type": "rectanglelabels", "value": start}]
        session = post(event="track", direction="both", result=prompt, **horizon)["session_id"]
        progress = {"done": False}
        while not progress["done"]:
            progress = post(event="track_progress", session_id=session)
            assert "error" not in progress
        frames = [item["frame"] for item in progress["frames"]]
        assert progress["produced"] == progress["total"] == len(frames)
        for item in progress["frames"]:
            assert iou_pairs([mask_box(item)], [truth(item["frame"] + 1)])[0] > 0.5
        first, last = min(first, frames[0]), frames[-1]
        if (first, last) == (0, FRAMES - 1):
            break
        start = percent(mask_box(progress["frames"][-1]))
    assert (first, last) == (0, FRAMES - 1)
    assert post(event="track_cancel", session_id=session) is None
    assert post(event="release") is None
