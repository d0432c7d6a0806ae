"""Label Studio's editor in a browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ml_backend.cli.dev_stack.demo import connect
from ml_backend.cli.dev_stack.preflight import ROOT
from ml_backend.cli.dev_stack.stack import Stack
from tests.drawn_scene import FPS, FRAMES, HEIGHT, WIDTH, write_scene


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
