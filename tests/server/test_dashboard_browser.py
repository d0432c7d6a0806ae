"""The control room in a real Chromium, against the whole stack: each of the four steps as a person does it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from ml_backend.cli.dev_stack.demo import make_demo, wait_for_prediction
from ml_backend.cli.dev_stack.stack import Stack
from ml_backend.core.settings import Settings
from ml_backend.jobs.live_cameras import CameraAnnouncer, announcing
from ml_backend.jobs.queue import JobQueue
from ml_backend.live.cameras import open_cameras
from ml_backend.live.source import LiveSource
from ml_backend.video.sample import make_sample
from tests.builders import label_config, make_clip

pytestmark = [pytest.mark.stack, pytest.mark.browser]

AXE = Path(__file__).with_name("axe.min.js")
HOSTILE = "<img src=x onerror=alert(1)>"
SLOW_MS = 600_000
STEPS = ("label", "learn", "auto", "repair", "review", "live")


@dataclass(frozen=True, slots=True)
class Site:
    url: str
    label_studio: str
    project: int
    another_video: Path

    def step(self, name: str) -> str:
        return f"{self.url}/?project={self.project}&step={name}"


@pytest.fixture(scope="module")
def site(motion_stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A project with an annotated task, and with one that nobody has annotated."""
    folder = tmp_path_factory.mktemp("videos")
    for number in range(3):
        make_sample(folder / f"{number}.mp4", seconds=3.0, size=(640, 360), seed=number)
    demo = make_demo(motion_stack, folder / "0.mp4")
    wait_for_prediction(motion_stack, demo, tick=lambda: None)
    client = motion_stack.client()
    config = client.get_project(demo.project_id).label_config
    label = HOSTILE.replace("<", "&lt;").replace(">", "&gt;")
    client.set_label_config(demo.project_id, config.replace("</Labels>", f'<Label value="{label}"/></Labels>', 1))
    client.create_task(demo.project_id, {"video": client.upload_file(demo.project_id, folder / "1.mp4")})
    prediction = max(client.list_predictions(demo.task_id), key=lambda item: item.id)
    result = [
        {**region, "value": {**region["value"], "labels": [HOSTILE if number % 2 else "person"]}}
        for number, region in enumerate(prediction.result)
    ]
    client.create_annotation(demo.task_id, result, prediction.id)
    return Site(motion_stack.backend.url, motion_stack.label_studio.url, demo.project_id, folder / "2.mp4")


@pytest.fixture
def page(chromium: Any) -> Iterator[Any]:
    """A page; whatever it complains of fails the test."""
    opened = chromium.new_page(locale="en", viewport={"width": 1280, "height": 900})
    opened.set_default_timeout(SLOW_MS)
    complaints: list[str] = []
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
    opened.on("dialog", lambda dialog: complaints.append(f"dialog: {dialog.message}"))
    yield opened
    opened.close()
    assert complaints == []


def faults(page: Any) -> list[Any]:
    """What axe-core calls serious or worse. By way of the debugger: the page's own policy allows no foreign script."""
    told = page.context.new_cdp_session(page).send(
        "Runtime.evaluate",
        {
            "expression": AXE.read_text(encoding="utf-8")
            + ";axe.run().then(found => JSON.stringify(found.violations))",
            "awaitPromise": True,
            "returnByValue": True,
        },
    )
    found = json.loads(told["result"]["value"])
    return [
        (item["id"], [node["html"] for node in item["nodes"]])
        for item in found
        if item["impact"] in ("serious", "critical")
    ]


def press(page: Any, name: str, within: str = "main") -> None:
    page.locator(within).get_by_role("button", name=name).first.click()


def go(page: Any, name: str) -> None:
    page.get_by_role("navigation", name="Steps").get_by_role("link", name=name).click()
    page.wait_for_load_state()


def notice(page: Any, words: str | re.Pattern[str]) -> None:
    page.locator("#messages").get_by_text(words).first.wait_for()


def test_label(page: Any, site: Site) -> None:
    page.goto(site.step("label"))
    page.locator("#part-counts tbody tr", has_text=HOSTILE).wait_for()
    assert page.locator("#part-counts svg.bar").count() >= 2
    link = page.locator("#part-projects tr.chosen a.button")
    assert link.get_attribute("href").startswith(f"{site.label_studio}/projects/{site.project}/")
    page.set_input_files("#file", site.another_video)
    press(page, "Upload")
    notice(page, "Video import finished.")
    page.locator("#part-projects tr.chosen", has_text="1 / 3").wait_for()


def test_learn(page: Any, site: Site) -> None:
    page.goto(site.step("label"))
    go(page, "Learn")
    page.locator("svg.map").wait_for()
    pattern = page.locator(".pattern", has_text=HOSTILE)
    assert pattern.locator(".thumbs img").first.evaluate("image => image.decode().then(() => image.naturalWidth)") > 0
    pattern.get_by_role("link", name="Find more like this").click()
    page.locator(".alike li").or_(page.get_by_text("No similar tracks were found.")).first.wait_for()
    assert HOSTILE in page.locator("#part-similar").inner_text()
    press(page, "Relearn from all annotations")
    notice(page, "Pattern learning finished.")
    # The motion detector has nothing to train, and the page says so instead of offering it.
    assert "DETECTOR=auto" in page.locator("#part-versions").inner_text()
    assert page.locator("#part-versions h3", has_text="Acceptance").count() == 1


def test_auto_label(page: Any, site: Site) -> None:
    page.goto(site.step("label"))
    go(page, "Auto-label")
    page.get_by_role("checkbox", name="Select all").check()
    boxes = page.locator("input[name=tasks]")
    assert boxes.count() == page.locator("input[name=tasks]:checked").count() >= 2
    press(page, "Auto-label the selected tasks")
    notice(page, "Auto-labelling finished.")
    page.locator("#part-auto .state.is-finished").wait_for()
    page.get_by_label("Mode", exact=True).select_option("yolo")
    press(page, "Switch")
    notice(page, "Now using base.")
    page.locator("#part-system", has_text="Detector's classes").wait_for()
    page.get_by_label("Mode", exact=True).select_option("yolo_dinov2")
    press(page, "Switch")
    page.locator("#part-system", has_text="Learned patterns").wait_for()


def test_review_and_export(page: Any, site: Site, tmp_path: Path) -> None:
    page.goto(site.step("label"))
    go(page, "Export")
    page.get_by_label("Format", exact=True).select_option("annotations")
    press(page, "Export")
    with page.expect_download() as download:
        page.locator("#part-files tr", has_text=".json").get_by_role("link", name="Download").click()
    download.value.save_as(tmp_path / "annotations.json")
    assert json.loads((tmp_path / "annotations.json").read_text(encoding="utf-8"))
    for name in ("Annotations", "Prediction"):
        press(page, name, "#part-renders")
    options = page.locator("#video-a option")
    options.nth(1).wait_for(state="attached")
    assert options.count() == 2
    for side, number in (("a", 0), ("b", 1)):
        page.locator(f"#video-{side}").select_option(options.nth(number).get_attribute("value"))
    press(page, "Show")
    page.locator(".players.two video").nth(1).wait_for()
    page.locator("video").first.evaluate("video => video.play()")
    page.wait_for_function("() => [...document.querySelectorAll('video')].every(video => video.currentTime > 0.3)")


def redraw(page: Any, part: str, event: str) -> None:
    """Something about a part has changed, and it has been drawn anew."""
    with page.expect_response(lambda answer: f"/ui/part/{part}?" in answer.url) as answer:
        happens(page, event)
    assert answer.value.status == 200
    page.locator(f"#part-{part}:not(.htmx-request):not(.htmx-settling)").wait_for()


def happens(page: Any, event: str) -> None:
    page.evaluate("name => document.body.dispatchEvent(new CustomEvent(`live-${name}`))", event)


def test_what_was_asked_for_stays(page: Any, site: Site) -> None:
    page.goto(site.step("learn"))
    page.locator(".pattern").get_by_role("link", name="Find more like this").first.click()
    heading = page.locator("#part-similar h3")
    heading.wait_for()
    page.locator(".alike li").or_(page.get_by_text("No similar tracks were found.")).first.wait_for()
    said = heading.inner_text()
    redraw(page, "similar", "find_similar")
    assert heading.inner_text() == said
    page.goto(site.step("label"))
    with page.expect_request(lambda asked: "fresh=1" in asked.url):
        press(page, "Recount")
    page.locator("#part-counts:not(.htmx-request)").wait_for()
    with page.expect_request(lambda asked: "/ui/part/counts?" in asked.url) as asked:
        happens(page, "count_statistics")
    assert "fresh" not in asked.value.url, "what is drawn again is not counted again"


def test_what_was_chosen_stays(page: Any, site: Site) -> None:
    page.goto(site.step("auto"))
    redraw(page, "tasks", "predict")
    assert (page.locator("#part-tasks table").count(), page.locator("#notice table").count()) == (1, 0)
    page.get_by_label("Mode", exact=True).select_option("yolo_clip")
    box = page.locator("input[name=tasks]").first
    box.check()
    for event in ("predict", "mode", "version"):
        happens(page, event)
    page.locator("#part-tasks[data-late]").wait_for(state="attached")
    page.locator("#part-mode[data-late]").wait_for(state="attached")
    assert page.get_by_label("Mode", exact=True).input_value() == "yolo_clip"
    assert box.is_checked()
    with page.expect_response(lambda answer: "/ui/part/tasks?" in answer.url):  # what was put off is made up for
        press(page, "Auto-label the selected tasks")
    page.locator("#part-tasks:not([data-dirty]):not([data-late])").wait_for()


def test_a_video_that_plays_goes_on(page: Any, site: Site) -> None:
    page.goto(site.step("review"))
    press(page, "Annotations", "#part-renders")
    page.locator("#part-files tr", has_text=".mp4").first.wait_for()
    for side in ("a", "b"):
        name = page.locator(f"#video-{side} option[value$='.mp4']").first.get_attribute("value")
        page.locator(f"#video-{side}").select_option(name)
    press(page, "Show")
    page.locator(".players.two video").nth(1).wait_for()
    page.evaluate("() => document.querySelectorAll('video').forEach(video => { video.loop = true; })")
    page.locator("video").first.evaluate("video => video.play()")
    page.wait_for_function("() => [...document.querySelectorAll('video')].every(video => video.currentTime > 0.2)")
    happens(page, "files")
    page.locator("#part-files[data-late]").wait_for(state="attached")
    assert page.evaluate("() => [...document.querySelectorAll('video')].every(video => !video.paused)")
    with page.expect_response(lambda answer: "/ui/part/files?" in answer.url):
        page.locator("video").first.evaluate("video => video.pause()")
    page.locator("#part-files:not(.htmx-request):not(.htmx-settling):not([data-late])").wait_for()
    assert page.locator(".players.two video").count() == 2
    assert page.evaluate("() => [...document.querySelectorAll('video')].every(video => video.currentTime > 0.2)")


def test_cameras(
    chromium: Any, site: Site, motion_stack: Stack, settings: Callable[..., Settings], tmp_path: Path
) -> None:
    """One that runs appears by itself, is watched, and goes; on a narrow screen, too."""
    page, complaints = chromium.new_page(locale="en", viewport={"width": 390, "height": 844}), list[str]()
    page.set_default_timeout(SLOW_MS)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    config = tmp_path / "config.xml"
    config.write_text(label_config("thing"))
    page.goto(site.step("live"))
    page.get_by_text("No camera is running.").wait_for()
    page.locator("#live.on").wait_for()
    source = LiveSource(str(make_clip(tmp_path / "street.mp4")), repeat=True)
    chosen = settings(detector="motion", redis_url=motion_stack.redis_url)
    with open_cameras([source], config, chosen) as cameras:
        facts = {"name": "street.mp4", "host": "here", "project": site.project, "tasks": []}
        told = CameraAnnouncer(JobQueue(chosen), lambda: cameras.summary(0) | facts, cameras.sessions[0].next_picture)
        with announcing([told]):
            page.locator(".camera", has_text="street.mp4").get_by_role("rowheader", name="thing").wait_for()
            for _ in range(3):  # the next one comes by itself
                with page.expect_response(lambda answer: "/picture?number=" in answer.url and answer.status == 200):
                    pass
            page.wait_for_function("() => document.querySelector('.camera img')?.naturalWidth === 320")
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            assert faults(page) == []
    page.get_by_text("No camera is running.").wait_for()
    page.close()
    assert complaints == []


def test_it_is_live(page: Any, site: Site) -> None:
    """What somebody else asks for appears by itself."""
    page.goto(site.step("review"))
    page.locator("#live.on").wait_for()
    body = {"project": site.project, "format": "mot"}
    assert httpx.post(f"{site.url}/api/export", json=body, timeout=300).status_code == 202
    page.locator("#part-files", has_text="-mot-").wait_for()


@pytest.mark.parametrize(("lang", "scheme"), [("en", "light"), ("ko", "dark")])
def test_nothing_serious_stands_in_the_way(chromium: Any, site: Site, scheme: str, lang: str) -> None:
    """axe-core finds nothing, and nothing is wider than a narrow screen."""
    context = chromium.new_context(color_scheme=scheme, locale=lang, viewport={"width": 360, "height": 740})
    page = context.new_page()
    for step in STEPS:
        page.goto(site.step(step))
        page.locator("#live.on").wait_for()
        assert page.evaluate("document.documentElement.lang") == lang
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), step
        assert faults(page) == [], step
    context.close()


def test_by_keyboard(page: Any, site: Site) -> None:
    page.goto(site.step("review"))
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "format"
    page.locator("nav.steps a").first.focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**step=label")


def test_without_scripts(chromium: Any, site: Site) -> None:
    context = chromium.new_context(java_script_enabled=False, locale="en")
    page = context.new_page()
    page.goto(site.step("review"))
    press(page, "Export")
    notice(page, re.compile("Export (started|finished)"))  # it may be done before the page is there
    assert page.get_by_role("heading", name="Files and videos").count() == 1
    context.close()


def test_a_hidden_page_asks_for_nothing(page: Any, site: Site) -> None:
    page.goto(site.step("review"))
    page.locator("#live.on").wait_for()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.evaluate("Object.defineProperty(document, 'hidden', {value: true, configurable: true})")
    page.wait_for_timeout(5000)
    assert [url for url in asked if "/ui/live" in url] == []
    with page.expect_request("**/ui/live*"):
        page.evaluate("delete document.hidden")


def test_a_server_that_is_away(chromium: Any, site: Site) -> None:
    """The page says so, and draws anew what has changed meanwhile."""
    page = chromium.new_page(locale="en")
    page.goto(site.step("review"))
    page.locator("#live.on").wait_for()
    page.route("**/ui/live*", lambda route: route.abort())
    page.locator("#live:not(.on)", has_text="The server does not answer").wait_for()
    body = {"project": site.project, "format": "coco"}
    assert httpx.post(f"{site.url}/api/export", json=body, timeout=300).status_code == 202
    page.unroute("**/ui/live*")
    page.locator("#live.on").wait_for()
    page.locator("#part-files", has_text="-coco-").wait_for(timeout=SLOW_MS)
    page.close()
