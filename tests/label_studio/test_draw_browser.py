"""A person draws a box in Label Studio's editor, clicks it and presses the label's key: the object is followed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ml_backend.cli.dev_stack.stack import Stack
from ml_backend.core.boxes import iou_pairs
from ml_backend.label_studio.regions import region_boxes
from tests.builders import wait_for
from tests.drawn_scene import FRAMES, HEIGHT, WIDTH, truth
from tests.label_studio.editor import Editor, make_scene_task, open_editor

pytestmark = [pytest.mark.stack, pytest.mark.browser]


@pytest.fixture
def editor(motion_stack: Stack, chromium: Any, tmp_path: Path) -> Iterator[Editor]:
    client = motion_stack.client()
    project, task = make_scene_task(motion_stack, tmp_path, "drawing")
    wait_for(lambda: client.get_task(task).prediction_versions, 900)
    server = motion_stack.label_studio
    page = chromium.new_page(viewport={"width": 1600, "height": 1000})
    open_editor(page, server, f"{server.url}/projects/{project}/data?task={task}")
    # The editor begins with the predicted region. Without it, an object is drawn as where nothing was predicted.
    page.evaluate("Htx.annotationStore.selected.regionStore.regions.slice().forEach(region => region.deleteRegion())")
    yield Editor(page)
    page.close()


def quality(region: dict[str, Any], frames: range) -> float:
    """Return the lowest IoU of a region with the object on 1-based frames; 0 where it is hidden."""
    wanted = np.array(frames)
    _, boxes, visible = region_boxes(region, WIDTH, HEIGHT, wanted)
    overlap = iou_pairs(boxes, np.array([truth(frame) for frame in frames]))
    return float(np.where(visible, overlap, 0).min())


def test_draw_click_press(editor: Editor, tmp_path: Path) -> None:
    page = editor.page
    page.screenshot(path=str(tmp_path / "open.png"))
    editor.auto_annotate()
    editor.go_to(30)
    x1, y1, x2, y2 = truth(30)
    editor.draw((x1, y1, x2, y2))
    assert len(editor.region()["value"]["sequence"]) == 1
    editor.select((x1 + x2) / 2, (y1 + y2) / 2)
    page.screenshot(path=str(tmp_path / "drawn.png"))
    region = editor.press("1")
    for _ in range(20):  # an answer takes a few seconds at most; on a busy machine the next press goes on from there
        if quality(region, range(1, FRAMES + 1)) > 0.5:
            break
        region = editor.press("1", times=2)
    page.screenshot(path=str(tmp_path / "followed.png"))
    assert region["value"]["labels"] == ["person"]
    assert quality(region, range(1, FRAMES + 1)) > 0.5
    before = {key["frame"]: key for key in region["value"]["sequence"]}
    assert 30 in before

    # A correction at another frame: only the stretch from the drawn box on may change.
    editor.go_to(50)
    x1, y1, x2, y2 = truth(50)
    editor.drag(((x1 + x2) / 2, (y1 + y2) / 2), ((x1 + x2) / 2 + 12, (y1 + y2) / 2))
    page.wait_for_function("Htx.annotationStore.selected.regionStore.regions[0].sequence.some(key => key.frame === 50)")
    corrected = next(key for key in editor.region()["value"]["sequence"] if key["frame"] == 50)
    region = editor.press("1", times=2)
    page.screenshot(path=str(tmp_path / "corrected.png"))
    after = {key["frame"]: key for key in region["value"]["sequence"]}
    assert {frame: key for frame, key in after.items() if frame <= 30} == {
        frame: key for frame, key in before.items() if frame <= 30
    }
    assert after[50]["x"] == pytest.approx(corrected["x"])
    assert quality(region, range(1, 31)) > 0.5

    page.get_by_role("button", name="Submit").click()
    page.wait_for_load_state("networkidle")
    page.reload()
    page.wait_for_function("window.Htx?.annotationStore?.selected?.regionStore.regions.length")
    assert len(editor.region()["value"]["sequence"]) == len(after)
