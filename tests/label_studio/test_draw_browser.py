"""A person draws a box in Label Studio's editor, clicks it and presses the label's key: the object is followed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ml_backend.cli.dev_stack.stack import Stack
from ml_backend.core.boxes import iou_pairs
from ml_backend.label_studio.regions import region_boxes
from tests.builders import wait_for
from tests.drawn_scene import FPS, FRAMES, HEIGHT, WIDTH, truth
from tests.label_studio.editor import make_scene_task, open_editor

pytestmark = [pytest.mark.stack, pytest.mark.browser]


@dataclass(frozen=True, slots=True)
class Editor:
    """The open editor of a task."""

    page: Any
    stack: Stack
    task: int

    def go_to(self, frame: int) -> None:
        control = self.page.locator(".lsf-frames-control")
        control.click()
        field = control.locator("input")
        field.fill(str(frame))
        field.press("Enter")
        self.page.wait_for_function(
            "([frame, fps]) => { const video = document.querySelector('video');"
            "return parseInt(document.querySelector('.lsf-frames-control').innerText) === frame && !video.seeking; }",
            arg=[frame, FPS],
        )

    def point(self, x: float, y: float) -> tuple[float, float]:
        """Return the page's coordinates of a point of the video."""
        found = self.page.evaluate(
            """([x, y]) => {
                const stage = Konva.stages.find(s => s.find('Rect').length || s.width() > 100);
                const box = stage.container().getBoundingClientRect();
                const point = stage.find('Layer')[0].getAbsoluteTransform().point({x, y});
                return [box.left + point.x, box.top + point.y];
            }""",
            [x, y],
        )
        return found[0], found[1]

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        mouse = self.page.mouse
        mouse.move(*self.point(*start))
        mouse.down()
        mouse.move(*self.point((start[0] + end[0]) / 2, (start[1] + end[1]) / 2), steps=5)
        mouse.move(*self.point(*end), steps=5)
        mouse.up()

    def region(self) -> dict[str, Any]:
        """Return the only region as the editor would submit it."""
        results = self.page.evaluate("Htx.annotationStore.selected.serializeAnnotation()")
        assert len(results) == 1
        region: dict[str, Any] = results[0]
        return region

    def press(self, key: str, times: int = 1) -> dict[str, Any]:
        """Press a label's key and wait for the answer, as often as told; return the region."""
        for _ in range(times):
            with self.page.expect_response(lambda r: "interactive-annotating" in r.url) as answer:
                self.page.keyboard.press(key)
            assert answer.value.ok
            answer.value.finished()
            self.page.wait_for_timeout(500)
        return self.region()


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
    yield Editor(page, motion_stack, task)
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
    page.get_by_text("Auto-Annotation").first.click()
    editor.go_to(30)
    x1, y1, x2, y2 = truth(30)
    editor.drag((x1, y1), (x2, y2))
    page.wait_for_function("Htx.annotationStore.selected.regionStore.regions.length")
    assert len(editor.region()["value"]["sequence"]) == 1
    page.mouse.click(*editor.point((x1 + x2) / 2, (y1 + y2) / 2))
    page.screenshot(path=str(tmp_path / "drawn.png"))
    region = editor.press("1")
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
