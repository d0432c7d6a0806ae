"""What to annotate next, and many tracks at once, in a real Chromium against the whole stack and Label Studio."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from ml_backend.cli.dev_stack.stack import Stack
from ml_backend.core.settings import Settings
from ml_backend.embeddings.crop_embeddings import CropEmbedding
from ml_backend.embeddings.crop_selection import CropBox
from ml_backend.label_studio.media import canonical_uri
from ml_backend.labeling.few_shot.pattern_store import NewExemplar, video_key
from ml_backend.server.container import WebContainer
from ml_backend.tracking.track_record import TrackRecord, TrackSet
from tests.builders import label_config, make_clip, wait_for
from tests.review.test_region_repairs import region
from tests.server.test_dashboard_browser import SLOW_MS, faults, page

__all__ = ["page"]  # a fixture

pytestmark = [pytest.mark.stack, pytest.mark.browser]


@dataclass(frozen=True, slots=True)
class Site:
    stack: Stack
    project: int
    taught: int
    open_tasks: list[int]

    def step(self, name: str) -> str:
        return f"{self.stack.backend.url}/?project={self.project}&step={name}"

    def annotated(self) -> list[list[str]]:
        """Labels of the annotation that counts."""
        _, annotation = self.stack.client().get_annotation(self.taught)
        assert annotation is not None
        return [item["value"]["labels"] for item in annotation.result]

    def decided(self, page: Any) -> list[str]:
        """What was done with tracks, newest first."""
        answer = page.request.get(f"{self.stack.backend.url}/api/repairs?project={self.project}")
        return [item["action"] for item in answer.json()["repairs"]]

    def predicted(self, task: int) -> list[list[str]]:
        (prediction,) = self.stack.client().list_predictions(task)
        return [item["value"]["labels"] for item in prediction.result]


def look(column: int, number: int) -> Any:
    """An embedding near one of two."""
    vector = np.random.default_rng(number).normal(0, 0.05, 16)
    vector[column] += 1
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def picture(column: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), ((200, 80, 60), (60, 90, 200))[column]).save(file, "jpeg")
    return file.getvalue()


@pytest.fixture
def site(motion_stack: Stack, tmp_path: Path) -> Site:
    """Six annotated objects of two labels, and predictions of the second one that call it the first.

    The project is not connected, so that nothing else is predicted or learned.
    """
    client = motion_stack.client()
    project = client.create_project("many at once", label_config("person", "car"))
    address = client.upload_file(project, make_clip(tmp_path / "walk.mp4", frames=100, size=(640, 360)))
    facts = {"fps": 20, "frames": 100, "width": 640, "height": 360, "duration": 5.0}
    values = {name.lower(): value for name, value in motion_stack.settings_environment().items()}
    known = {name: value for name, value in values.items() if name in Settings.model_fields}
    services = WebContainer(Settings(_env_file=None, **known))
    embedder = services.projects.models(project).classifier.embedder
    assert embedder is not None
    patterns, model = services.projects.patterns, embedder.model_id
    names = [("person", 0), ("person", 0), ("person", 0), ("car", 1), ("car", 1), ("car", 1)]
    tracks = [
        region(f"r{n}", [(1, 5.0, True), (100, 60.0, True)], label, y=9.0 * n) for n, (label, _) in enumerate(names)
    ]
    taught = client.create_task(project, {"video": address, **facts})
    client.create_annotation(taught, tracks, None)
    items = []
    for number, (label, column) in enumerate(names):
        crop = CropEmbedding(number, (0, 0, 9, 9), look(column, number), picture(column))
        patterns.crop_embeddings(f"taught-{project}").add(model, [crop])
        items.append(NewExemplar(f"r{number}", label, crop.key(f"taught-{project}", model)))
    patterns.replace_task(project, model, taught, 1, items)
    open_tasks = []
    for number in range(3):
        uri = f"{address}?copy={number}"
        task = client.create_task(project, {"video": uri, **facts})
        track = region("r", [(1, 10.0 * number, True), (100, 60.0, True)], score=0.3 + 0.1 * number)
        client.create_prediction(task, {"result": [track], "score": 0.3, "model_version": "yolo.base"})
        value = {key: track["value"][key] for key in ("framesCount", "duration", "sequence")}
        record = TrackRecord(1, 0, 100, 0.5, {"person": 1.0}, value, (CropBox(9, (0, 0, 50, 50), 0.9),))
        place = canonical_uri(uri, motion_stack.label_studio.url)
        patterns.save_tracks(
            f"{project}-{number}", project, task, 0, place, TrackSet((record,), ("person",), False, 640, 360, 100)
        )
        boxes = (0, 0, 50, 50), (64.0 * number + 5.8 * (6 - number), 72, 64.0 * number + 5.8 * (6 - number) + 64, 180)
        crops = [CropEmbedding(9, box, look(1, 50 + number), picture(1)) for box in boxes]
        patterns.crop_embeddings(video_key(place)).add(model, crops)
        open_tasks.append(task)
    return Site(motion_stack, project, taught, open_tasks)


ALL = ((0.01, 0.01), (0.01, 0.99), (0.99, 0.99), (0.99, 0.01))
#: Reaches to all corners but one; what is at the right is below it.
LEFT = ((0.01, 0.01), (0.99, 0.01), (0.01, 0.99))


def places(page: Any, corners: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the page's coordinates of corners that are shares of the map's points' extent, with a margin."""
    page.locator("svg.map").scroll_into_view_if_needed()
    x, y, width, height = page.evaluate(
        "() => { const map = document.querySelector('svg.map'), { a, d, e, f } = map.getScreenCTM();"
        "return [e - 1.06 * a, f - 1.06 * d, 2.12 * a, 2.12 * d]; }"
    )
    return [(x + across * width, y + down * height) for across, down in corners]


def draw(page: Any, corners: Sequence[tuple[float, float]]) -> None:
    """Draw from one corner to the next."""
    first, *rest = places(page, corners)
    page.mouse.move(*first)
    page.mouse.down()
    for place in rest:
        page.mouse.move(*place, steps=3)
    page.mouse.up()


def test_points_that_are_drawn_around_and_tracks_of_a_search(page: Any, site: Site, tmp_path: Path) -> None:
    page.goto(site.step("learn"))
    page.locator("svg.map").wait_for()
    count = page.locator("#act-exemplars output")
    draw(page, LEFT)
    page.locator("svg.map a.chosen").nth(2).wait_for()
    assert count.inner_text() == "3"
    names = page.locator("svg.map a.chosen").evaluate_all("all => all.map(point => point.ariaLabel)")
    assert len({"person" in name for name in names}) == 1, "those of one label lie together"
    draw(page, ALL)
    page.locator("svg.map a.chosen").nth(5).wait_for()
    assert count.inner_text() == "6"
    page.screenshot(path=str(tmp_path / "map.png"))
    assert "exemplar=" not in page.url, "what was drawn opens no point"
    for number in range(6):  # the first ones by the keyboard
        point = page.locator("svg.map a").nth(number)
        if "person" not in str(point.get_attribute("aria-label")):
            point.focus()
            page.keyboard.press(" ")
    assert count.inner_text() == "3"
    page.locator("#act-exemplars").get_by_role("button", name="car", exact=True).click()
    page.locator("#notice", has_text="3 tracks done.").wait_for()
    assert site.annotated() == [["car"]] * 6
    assert count.inner_text() == "0"
    page.locator(".decisions li", has_text="3 repairs").get_by_role("button", name="Undo").click()
    page.locator(".decisions li", has_text="undone").wait_for()
    assert site.annotated() == [["person"]] * 3 + [["car"]] * 3
    pattern = page.locator(".pattern", has=page.get_by_role("heading", name="car"))
    pattern.locator(".thumbs input").first.check()
    assert count.inner_text() == "1"
    pattern.locator(".thumbs input").first.uncheck()
    # The search for more: one is labelled, one is not this.
    pattern.get_by_role("link", name="Find more like this").click()
    page.locator(".alike li").nth(2).wait_for()
    page.locator(".alike input").first.check()
    task = int(str(page.locator(".alike input").first.get_attribute("value")).split("-")[0])
    page.locator("#act-similar").scroll_into_view_if_needed()
    page.screenshot(path=str(tmp_path / "similar.png"))
    page.locator(".alike input").first.press("Enter")
    page.locator("#act-similar").get_by_role("button", name="car", exact=True).click()
    page.locator("#notice", has_text="1 track done.").wait_for()
    assert site.decided(page) == ["relabel", "relabel"], "Enter in a tick box does nothing"
    assert site.predicted(task) == [["car"]]
    page.locator(".alike li:nth-child(2):last-child").wait_for()
    page.locator(".alike input").first.check()
    page.locator("#act-similar").get_by_role("button", name="Not this").click()
    page.locator(".alike li:first-child:last-child").wait_for()
    assert faults(page) == []


def test_chosen_and_ordered(page: Any, site: Site, tmp_path: Path) -> None:
    page.goto(site.step("repair"))
    page.get_by_label("How much").fill("1")
    page.locator("#choose-next").click()
    page.locator(".next li").wait_for()
    text = page.locator(".next li").inner_text()
    assert any(f"Task {task}" in text for task in site.open_tasks)
    assert "least certain: person, " in text
    assert "unlike what is annotated" not in text, "they look like the cars"
    page.locator("#part-next").scroll_into_view_if_needed()
    page.screenshot(path=str(tmp_path / "next.png"))
    page.locator("#order-tasks").click()
    tab = page.locator("#messages").get_by_role("link", name="Open the tab")
    tab.wait_for()
    address = tab.get_attribute("href")
    assert faults(page) == []
    server = site.stack.label_studio
    other = page.context.browser.new_page(viewport={"width": 1280, "height": 700})  # Label Studio complains of itself
    other.set_default_timeout(SLOW_MS)
    other.goto(f"{server.url}/user/login/")
    other.fill("input[name=email]", server.username)
    other.fill("input[name=password]", server.password)
    other.click("button[type=submit]")
    other.wait_for_load_state("networkidle")
    other.goto(address)
    other.get_by_text("1: 0:00-0:05").first.wait_for()
    other.get_by_text("Annotate next").first.wait_for()
    other.screenshot(path=str(tmp_path / "data-manager.png"))
    other.close()


def identify(site: Site, task: int, region_id: str, number: int) -> None:
    """Give a track a global id, as the timeline does."""
    address = f"{site.stack.backend.url}/api"
    answer = httpx.get(f"{address}/tracks?project={site.project}&task={task}", timeout=SLOW_MS / 1000)
    found = answer.json()["videos"][0]
    digest = next(item["digest"] for item in found["tracks"] if item["region"] == region_id)
    body = {"project": site.project, "task": task, "annotation": found["annotation"], "action": "identify"}
    body |= {"tracks": [{"region": region_id, "digest": digest}], "global_id": number, "by": "anna"}
    httpx.post(f"{address}/repairs/tracks", json=body, timeout=SLOW_MS / 1000).raise_for_status()


def test_objects_are_seen_joined_and_taken_apart(page: Any, site: Site, tmp_path: Path) -> None:
    first, second, third = site.open_tasks
    for task, region_id, number in ((first, "r", 1), (second, "r", 1), (third, "r", 2), (site.taught, "r0", 2)):
        identify(site, task, region_id, number)
    page.goto(site.step("repair"))
    page.locator("#show-objects").click()
    page.locator("#object-1 li:nth-child(2) img").wait_for()
    page.locator("#object-2 li").nth(1).wait_for()
    assert faults(page) == []
    # All of the second one, by the keyboard: they are the first one.
    page.locator("#id-for-2").fill("1")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "all-2"
    page.keyboard.press("Enter")
    page.locator("#object-1 li").nth(3).wait_for()
    assert page.locator(".object").count() == 1
    # One of them is somebody else.
    row = page.locator("#object-1 li", has_text=f"Task {third}")
    page.locator("#id-for-1").fill("9")
    row.get_by_role("checkbox").check()
    row.get_by_role("checkbox").press("Enter")  # does nothing
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.url) if request.method == "POST" else None)
    page.evaluate("() => { const out = document.getElementById('out-1'); out.click(); out.click(); }")
    row.wait_for(state="detached")
    assert len(sent) == 1, "another click is too many until the first one is answered"
    assert page.locator("#object-1 li").count() == 3
    (prediction,) = site.stack.client().list_predictions(third)
    assert prediction.result[0]["meta"]["global_id"] == 3
    page.locator(".decisions button", has_text="Undo").first.click()
    row.wait_for()
    row.get_by_role("link").click()
    page.locator("#repair-tracks [name=tracks]:checked").wait_for()
    assert page.locator("#repair-tracks [name=tracks]:checked").count() == 1
    for lang, width in (("en", 1280), ("en", 390), ("ko", 390)):
        with page.context.browser.new_context(locale=lang, viewport={"width": width, "height": 844}) as other:
            shown = other.new_page()
            shown.set_default_timeout(SLOW_MS)
            shown.goto(f"{site.step('repair')}&objects=1")
            shown.locator("#object-1 li").nth(3).wait_for()
            assert shown.evaluate("document.documentElement.scrollWidth <= innerWidth")
            assert faults(shown) == []
            shown.screenshot(path=str(tmp_path / f"objects-{lang}-{width}.png"), full_page=True)
    with page.context.browser.new_context(java_script_enabled=False) as plain:
        still = plain.new_page()
        still.set_default_timeout(SLOW_MS)
        still.goto(f"{site.step('repair')}&objects=1")
        row = still.locator("#object-1 li", has_text=f"Task {first}")
        row.get_by_role("checkbox").check()
        with still.expect_navigation():
            still.locator("#out-1").click()
        assert still.locator("#object-1 li").count() == 3


@pytest.mark.parametrize("lang", ["en", "ko"])
def test_narrow_and_without_scripts(chromium: Any, site: Site, lang: str, tmp_path: Path) -> None:
    context = chromium.new_context(locale=lang, viewport={"width": 390, "height": 844}, java_script_enabled=False)
    page = context.new_page()
    page.set_default_timeout(SLOW_MS)
    page.goto(f"{site.step('learn')}&label=car")
    wait_for(lambda: page.reload() and page.locator(".alike li").count(), what="the search")
    page.locator(".alike input[name=tracks]").first.check()
    task = int(str(page.locator(".alike input[name=tracks]").first.get_attribute("value")).split("-")[0])
    page.locator(".alike input[name=tracks]").first.press("Enter")
    with page.expect_navigation():
        page.locator("#act-similar").get_by_role("button", name="car", exact=True).click()
    assert site.predicted(task) == [["car"]]
    assert site.decided(page) == ["relabel"], "Enter in a tick box does nothing"
    page.screenshot(path=str(tmp_path / f"learn-{lang}.png"), full_page=True)
    page.goto(f"{site.step('learn')}")
    page.locator(".thumbs input").first.check()
    with page.expect_navigation():
        page.locator("#act-exemplars button[value=reject]").click()
    assert [] in site.annotated()
    page.goto(f"{site.step('repair')}&amount=3&unit=segments")
    wait_for(lambda: page.reload() and page.locator(".next li").count(), what="the choice")
    page.screenshot(path=str(tmp_path / f"next-{lang}.png"), full_page=True)
    context.close()
    with chromium.new_context(locale=lang, viewport={"width": 390, "height": 844}, has_touch=True) as scripted:
        wide = scripted.new_page()
        wide.set_default_timeout(SLOW_MS)
        for address in (f"{site.step('learn')}&label=car", f"{site.step('repair')}&amount=3&unit=segments"):
            wide.goto(address)
            assert wide.evaluate("document.documentElement.scrollWidth <= innerWidth")
            assert faults(wide) == []
        wide.goto(site.step("learn"))
        wide.locator("svg.map").wait_for()
        touch(wide, ALL)  # at first downwards, as if to scroll
        wide.locator("#act-exemplars output", has_text="6").wait_for()


def touch(page: Any, corners: Sequence[tuple[float, float]]) -> None:
    """Draw with a finger."""
    session = page.context.new_cdp_session(page)
    points = [{"x": x, "y": y} for x, y in places(page, corners)]
    session.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": points[:1]})
    for start, end in pairwise(points):
        for share in (0.1, 0.5, 1.0):
            at = {axis: start[axis] + share * (end[axis] - start[axis]) for axis in "xy"}
            session.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": [at]})
    session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
