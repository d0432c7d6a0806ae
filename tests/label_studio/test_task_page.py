"""What a person sees on Label Studio's task page: the backend's tracks stand on the objects, on the right frames."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ml_backend.cli.dev_stack.demo import Demo, make_demo, wait_for_prediction
from ml_backend.cli.dev_stack.stack import Stack
from ml_backend.core.boxes import iou_matrix
from ml_backend.video.sample import SampleTruth, make_sample
from tests.label_studio.editor import open_editor

pytestmark = [pytest.mark.stack, pytest.mark.browser]

# Boxes of the motion detector take in shadows and miss feet; on a frame that is off by ten, less than half would hold.
MIN_IOU = 0.5
MIN_SEEN = 0.6  # share of a cut-out that others leave visible, for it to count


@dataclass(frozen=True, slots=True)
class TaskPage:
    """The open page of the demo task."""

    page: Any
    truth: SampleTruth
    errors: list[str]

    def counter(self) -> tuple[int, int]:
        """The frame that the page says it is on, and how many it says there are."""
        control = self.page.locator(".lsf-frames-control")
        text = control.inner_text().replace("\n", " ")
        current, total = text.split("of")
        return int(current), int(total)

    def go_to(self, frame: int) -> None:
        """As a person does: click on the counter, type, press Enter."""
        control = self.page.locator(".lsf-frames-control")
        control.click()
        field = control.locator("input")
        field.fill(str(frame))
        field.press("Enter")
        self.page.wait_for_function(
            """([frame, fps]) => {
                const control = document.querySelector('.lsf-frames-control');
                const video = document.querySelector('video');
                return parseInt(control.innerText) === frame && !video.seeking
                    && Math.abs(video.currentTime - (frame - 1) / fps) < 1 / fps;
            }""",
            arg=[frame, self.truth.fps],
        )

    def boxes(self) -> np.ndarray[Any, Any]:
        """``(n, 4)`` xyxy in pixels of the video: what the canvas draws now."""
        found = self.page.evaluate(
            """() => Konva.stages.flatMap(s => s.find('Rect')).filter(r => r.isVisible() && r.stroke())
                .map(r => [r.x(), r.y(), r.x() + r.width(), r.y() + r.height()])"""
        )
        return np.asarray(found, np.float32).reshape(-1, 4)


@pytest.fixture(scope="module")
def demo(motion_stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> tuple[Demo, SampleTruth]:
    video = tmp_path_factory.mktemp("sample") / "sample.mp4"
    truth = make_sample(video)
    made = make_demo(motion_stack, video)
    wait_for_prediction(motion_stack, made, tick=lambda: None)
    return made, truth


@pytest.fixture(scope="module")
def task_page(motion_stack: Stack, demo: tuple[Demo, SampleTruth], chromium: Any) -> Iterator[TaskPage]:
    made, truth = demo
    server = motion_stack.label_studio
    page = chromium.new_page(viewport={"width": 1600, "height": 1000})
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    open_editor(page, server, made.url(server.url))
    try:
        yield TaskPage(page, truth, errors)
    finally:
        page.close()


def _on_screen(truth: SampleTruth, decoded: int) -> np.ndarray[Any, Any]:
    rows = [
        track.xyxy[np.flatnonzero(track.frames == decoded)[0]]
        for track in truth.tracks
        if decoded in track.frames and track.conf[np.flatnonzero(track.frames == decoded)[0]] >= MIN_SEEN
    ]
    return np.asarray(rows, np.float32).reshape(-1, 4)


def test_counter_shows_the_number_of_frames_of_the_file(task_page: TaskPage) -> None:
    assert task_page.counter() == (1, task_page.truth.frames)


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_boxes_stand_on_the_objects_after_scrubbing(task_page: TaskPage, share: float, tmp_path: Path) -> None:
    frame = round(task_page.truth.frames * share)
    task_page.go_to(frame)
    wanted = _on_screen(task_page.truth, frame - 1)
    assert len(wanted), "the sample must show something here"
    shown = task_page.boxes()
    assert len(shown)
    overlap = iou_matrix(wanted, shown).max(axis=1)
    # The fallback may take two objects that pass each other for one.
    assert np.sort(overlap)[len(overlap) // 3 :].min() >= MIN_IOU, overlap


def test_every_box_is_an_editable_region_of_the_annotation(task_page: TaskPage) -> None:
    """The annotation that a person is about to submit was begun from the prediction."""
    regions = task_page.page.evaluate(
        """() => Htx.annotationStore.selected.regionStore.regions
            .map(r => [r.type, r.readonly === true, r.sequence.length])"""
    )
    assert regions
    assert {kind for kind, _, _ in regions} == {"videorectangleregion"}
    assert not any(readonly for _, readonly, _ in regions)
    assert sum(keys for _, _, keys in regions) < 0.2 * task_page.truth.frames * len(regions)


def test_page_raises_no_error(task_page: TaskPage) -> None:
    assert task_page.errors == []
