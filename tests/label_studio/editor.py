"""Label Studio's editor in a browser."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_backend.cli.dev_stack.demo import connect
from ml_backend.cli.dev_stack.preflight import ROOT
from ml_backend.cli.dev_stack.stack import Stack
from tests.drawn_scene import FPS, FRAMES, HEIGHT, WIDTH, write_scene

CLICKS, CLICK_TIMEOUT_MS = 30, 20_000


def make_scene_task(stack: Stack, folder: Path, title: str) -> tuple[int, int]:
    """Make a connected project with the drawn scene; return the ids of the project and its task."""
    video = folder / "scene.mp4"
    write_scene(video)
    client = stack.client()
    project = client.create_project(title, (ROOT / "label_config.xml").read_text(encoding="utf-8"))
    connect(stack, client, project)
    facts = {"fps": FPS, "frames": FRAMES, "width": WIDTH, "height": HEIGHT, "duration": FRAMES / FPS}
    return project, client.create_task(project, {"video": client.upload_file(project, video), **facts})


def open_editor(page: Any, server: Any, url: str) -> None:
    """Log in and open a task, until its regions and its video are there.

    Args:
        server: with ``url``, ``username`` and ``password``.
        url: of the task.
    """
    page.set_default_timeout(600_000)
    page.goto(f"{server.url}/user/login/")
    page.fill("input[name=email]", server.username)
    page.fill("input[name=password]", server.password)
    page.click("button[type=submit]")
    page.wait_for_load_state("networkidle")
    page.goto(url)
    page.wait_for_selector(".lsf-frames-control")
    page.wait_for_function(
        "window.Konva?.stages.length && window.Htx?.annotationStore?.selected?.regionStore.regions.length"
    )
    page.wait_for_function("document.querySelector('video')?.readyState > 1")


@dataclass(frozen=True, slots=True)
class Editor:
    """The open editor of a task whose video has the frame rate ``fps``."""

    page: Any
    fps: float = FPS

    def go_to(self, frame: int) -> None:
        control = self.page.locator(".lsf-frames-control")
        control.click()
        field = control.locator("input")
        field.fill(str(frame))
        field.press("Enter")
        self.page.wait_for_function(
            "([frame, fps]) => { const video = document.querySelector('video');"
            "return parseInt(document.querySelector('.lsf-frames-control').innerText) === frame && !video.seeking; }",
            arg=[frame, self.fps],
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

    def select(self, x: float, y: float) -> None:
        """Click a region until it is selected: the player misses a click while it still draws the region."""
        from playwright.sync_api import TimeoutError as PlaywrightTimeoutError

        for _ in range(CLICKS):
            self.page.mouse.click(*self.point(x, y))
            try:
                self.page.wait_for_function(
                    "Htx.annotationStore.selected.regionStore.hasSelection", timeout=CLICK_TIMEOUT_MS
                )
            except PlaywrightTimeoutError:
                continue
            return
        raise AssertionError(f"{CLICKS} clicks at {x:g}, {y:g} have selected no region")

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
            for found in (answer.value.json().get("data") or {}).get("result") or []:
                keyframes = len(found["value"]["sequence"])
                self.page.wait_for_function(
                    "count => Htx.annotationStore.selected.regionStore.regions[0].sequence.length === count",
                    arg=keyframes,
                )
        return self.region()
