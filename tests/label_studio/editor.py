"""Label Studio's editor in a browser."""

from __future__ import annotations

from typing import Any


def open_editor(page: Any, server: Any, url: str) -> None:
    """Log in and open a task, until its regions and its video are there.

    Args:
        server: with ``url``, ``username`` and ``password``.
        url: of the task.
    """
    page.set_default_timeout(180_000)
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
