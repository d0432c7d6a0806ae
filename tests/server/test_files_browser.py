"""The list of files in a real Chromium: two videos are compared, and a file is deleted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from werkzeug.serving import make_server

from ml_backend.core.outputs import OutputFacts
from tests.server.control import Room
from tests.video.builders import make_video

pytestmark = pytest.mark.browser

SLOW_MS = 600_000


@pytest.fixture
def page(chromium: Any, make_room: Callable[..., Room], tmp_path: Path) -> Iterator[Any]:
    """The step of a project with a video of 20 seconds, and one of 10; what it complains of fails the test."""
    room = make_room()
    outputs = room.services.outputs
    outputs.folder.mkdir(parents=True)
    for seconds, source in ((20, "annotations"), (10, "base")):
        made = make_video(tmp_path / f"{source}.mp4", frames=10 * seconds, fps=10, codec="libx264")
        outputs.add(made, OutputFacts(source=source, video="street.mp4", tracks=1), "project", 7, source)
    server = make_server("127.0.0.1", 0, room.app, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    opened = chromium.new_page(locale="en")
    opened.set_default_timeout(SLOW_MS)
    complaints: list[str] = []
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.goto(f"http://127.0.0.1:{server.port}/?project=7&step=review")
    yield opened
    opened.close()
    server.shutdown()
    server.server_close()
    assert complaints == []


def wait(page: Any, condition: str) -> None:
    page.wait_for_function(f"() => {{ const [a, b] = document.querySelectorAll('video'); return {condition}; }}")


def tell(page: Any, number: int, action: str) -> None:
    """What a person does with the controls of one of the two videos."""
    page.locator(".players.two video").nth(number).evaluate(f"video => {{ video.{action}; }}")


def test_compared_videos_play_pause_and_seek_together(page: Any) -> None:
    for side, words in (("a", "Annotations"), ("b", "Base detector")):
        name = page.locator(f"#video-{side} option", has_text=words).get_attribute("value")
        page.locator(f"#video-{side}").select_option(name)
    page.get_by_role("button", name="Show").click()
    page.locator(".players.two video").nth(1).wait_for()
    wait(page, "a.readyState > 0 && b.readyState > 0 && a.duration > 15 && b.duration < 15")
    for number, first in ((0, 2), (1, 4)):
        tell(page, number, f"currentTime = {first}")
        wait(page, f"Math.abs(a.currentTime - {first}) < 0.1 && Math.abs(b.currentTime - {first}) < 0.1")
        tell(page, number, "play()")
        wait(page, f"!a.paused && !b.paused && Math.min(a.currentTime, b.currentTime) > {first + 0.3}")
        tell(page, 1 - number, "pause()")
        wait(page, "a.paused && b.paused && Math.abs(a.currentTime - b.currentTime) < 0.05")
    tell(page, 0, "currentTime = 9.5")
    tell(page, 0, "play()")
    wait(page, "b.ended && !a.paused && a.currentTime > 10.2")  # the longer one goes on
    tell(page, 0, "currentTime = 1")
    wait(page, "!a.paused && !b.paused && b.currentTime > 1.2 && b.currentTime < 9")


def test_deleting_a_file_asks_first_and_asks_again_for_the_next(page: Any) -> None:
    rows = page.locator("#part-files tbody tr")
    assert rows.count() == 2
    rows.first.locator("summary").click()
    rows.first.get_by_role("button", name="Delete for good").click()
    page.wait_for_function("() => document.querySelectorAll('#part-files tbody tr').length === 1")
    assert not rows.first.get_by_role("button", name="Delete for good").is_visible()
