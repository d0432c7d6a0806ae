"""Label Studio's editor in a browser."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_backend.cli.dev_stack.demo import connect
from ml_backend.cli.dev_stack.preflight import ROOT
from ml_backend.cli.dev_stack.stack import Stack
from tests.drawn_scene import FPS, FRAMES, HEIGHT, WIDTH, write_scene

#: Milliseconds after which a key, click or drag without effect is sent again: a busy editor misses some.
ATTEMPT_MS, ATTEMPTS = 30_000, 20


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

    def draw(self, box: Sequence[float]) -> None:
        """Draw a region where there is none.

        Args:
            box: ``x1, y1, x2, y2`` in pixels of the video.
        """

        def drag() -> None:
            self.drag((box[0], box[1]), (box[2], box[3]))
            self.page.wait_for_function("Htx.annotationStore.selected.regionStore.regions.length", timeout=ATTEMPT_MS)

        _repeat(drag)

    def auto_annotate(self) -> None:
        """Switch Auto-Annotation on."""
        self.page.get_by_text("Auto-Annotation").first.click()
        self.page.wait_for_function("Htx.autoAnnotation")

    def select(self, x: float, y: float) -> None:
        """Click a region; once more if the player was still drawing the region and has missed the click."""

        def click() -> None:
            self.page.mouse.click(*self.point(x, y))
            self.page.wait_for_function("Htx.annotationStore.selected.regionStore.hasSelection", timeout=ATTEMPT_MS)

        _repeat(click)

    def region(self) -> dict[str, Any]:
        """Return the only region as the editor would submit it."""
        results = self.page.evaluate("Htx.annotationStore.selected.serializeAnnotation()")
        assert len(results) == 1
        region: dict[str, Any] = results[0]
        return region

    def press(self, key: str, times: int = 1) -> dict[str, Any]:
        """Press a label's key and wait for the answer, as often as told; return the region."""

        def ask() -> Any:
            with self.page.expect_request(lambda r: "interactive-annotating" in r.url, timeout=ATTEMPT_MS) as asked:
                self.page.keyboard.press(key)
            return asked.value

        for _ in range(times):
            answer = _repeat(ask).response()
            assert answer.ok
            for found in (answer.json().get("data") or {}).get("result") or []:
                keyframes = len(found["value"]["sequence"])
                self.page.wait_for_function(
                    "count => Htx.annotationStore.selected.regionStore.regions[0].sequence.length === count",
                    arg=keyframes,
                )
        return self.region()


def _repeat(act: Callable[[], Any]) -> Any:
    """Do something until it has an effect within :data:`ATTEMPT_MS`; return its result."""
    from playwright.sync_api import TimeoutError as PlaywrightTimeoutError

    for _ in range(ATTEMPTS - 1):
        with suppress(PlaywrightTimeoutError):
            return act()
    return act()
