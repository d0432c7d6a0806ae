"""The review in a real Chromium against the whole stack: answered by keys, and seen in Label Studio's editor."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from ml_backend.cli.dev_stack.stack import Stack
from ml_backend.core.settings import Settings
from ml_backend.jobs.queue import JobQueue
from tests.builders import label_config, make_clip, wait_for
from tests.label_studio.editor import Editor, open_editor
from tests.review.test_region_repairs import region, shown
from tests.server.test_dashboard_browser import SLOW_MS, faults, page

__all__ = ["page"]  # a fixture

pytestmark = [pytest.mark.stack, pytest.mark.browser]

JUMPS = region("jumps", [(1, 0.0, True), (50, 20.0, True), (51, 60.0, True), (100, 80.0, True)], score=0.9)
TOO = region("too", [(1, 70.0, True), (40, 60.0, True), (41, 10.0, True), (100, 1.0, True)], "car", y=65.0, score=0.9)


@dataclass(frozen=True, slots=True)
class Site:
    stack: Stack
    queue: JobQueue
    project: int
    task: int

    @property
    def url(self) -> str:
        return f"{self.stack.backend.url}/?project={self.project}&step=repair"

    def regions(self) -> list[dict[str, Any]]:
        (prediction,) = self.stack.client().list_predictions(self.task)
        return prediction.result


@pytest.fixture
def site(motion_stack: Stack, tmp_path: Path) -> Site:
    """A project with a predicted task; it is not connected, so that nothing else is predicted."""
    video = make_clip(tmp_path / "walk.mp4", frames=100, size=(640, 360))
    client = motion_stack.client()
    project = client.create_project("review", label_config("person", "car"))
    facts = {"fps": 20, "frames": 100, "width": 640, "height": 360, "duration": 5.0}
    task = client.create_task(project, {"video": client.upload_file(project, video), **facts})
    version = "yolo.track.yolo.base"
    client.create_prediction(task, {"result": [JUMPS, TOO], "score": 0.9, "model_version": version})
    values = {name.lower(): value for name, value in motion_stack.settings_environment().items()}
    known = {name: value for name, value in values.items() if name in Settings.model_fields}
    queue = JobQueue(Settings(_env_file=None, **known))
    queue.request_review(project, [task])
    wait_for(lambda: not queue.storage.pending("review", project), what="the search for faults")
    address = f"{motion_stack.backend.url}/api/review"
    moments = httpx.get(f"{address}?project={project}", timeout=120).json()["moments"]
    for item in moments:  # a worker that has just started takes its time
        clip = f"{address}/{item['id']}/clip?project={project}"
        wait_for(partial(_is_there, clip), what="the clip")
    return Site(motion_stack, queue, project, task)


def _is_there(address: str) -> bool:
    return httpx.get(address, timeout=120).status_code == 200


def moment(page: Any) -> str:
    """Id of the moment that is shown, once its clip plays."""
    page.wait_for_function(
        "() => { const clip = document.querySelector('article.moment > video');"
        "return clip && clip.readyState > 2 && clip.currentTime > 0 && !clip.paused; }"
    )
    return str(page.locator("article.moment").get_attribute("data-moment"))


def press(page: Any, key: str) -> str:
    """Answer by a key; the next moment."""
    before = page.locator("article.moment").get_attribute("data-moment")
    page.keyboard.press(key)
    page.locator(f"article.moment:not([data-moment='{before}'])").or_(page.get_by_text("Nothing suspicious")).wait_for()
    return moment(page) if page.locator("article.moment").count() else ""


def test_answered_by_keys_and_seen_in_the_editor(chromium: Any, site: Site, tmp_path: Path) -> None:
    page = chromium.new_page(locale="en", viewport={"width": 1280, "height": 900})
    page.set_default_timeout(SLOW_MS)
    page.goto(site.url)
    first = moment(page)
    page.screenshot(path=str(tmp_path / "review.png"), full_page=True)
    second = press(page, "k")
    assert second != first
    assert press(page, "u") == first, "a skipped moment comes back"
    region_id = "jumps" if page.locator("h3", has_text="person").count() else "too"
    press(page, "s")
    wait_for(lambda: len(site.regions()) == 3)
    parts = [item for item in site.regions() if item["id"] not in ("jumps", "too") or item["id"] == region_id]
    whole = JUMPS if region_id == "jumps" else TOO
    assert shown(parts[0]) | shown(parts[1]) == shown(whole)
    page.locator(".decisions li", has_text="Split").first.wait_for()
    page.screenshot(path=str(tmp_path / "repaired.png"), full_page=True)
    open_editor(
        page, site.stack.label_studio, f"{site.stack.label_studio.url}/projects/{site.project}/data?task={site.task}"
    )
    count = "Htx.annotationStore.selected.regionStore.regions.length"
    assert page.evaluate(count) == 3
    page.screenshot(path=str(tmp_path / "editor.png"))
    page.goto(site.url)
    page.locator(".decisions button", has_text="Undo").first.click()
    wait_for(lambda: len(site.regions()) == 2)
    page.close()


def test_keys_do_nothing_while_somebody_types(page: Any, site: Site) -> None:
    page.goto(site.url)
    first = moment(page)
    page.locator("#frame-split").fill("31")
    page.locator("#frame-split").press("d")
    page.locator("#answer-split").click()
    page.locator(f"article.moment:not([data-moment='{first}'])").wait_for()
    assert len(site.regions()) == 3, "split, not deleted"
    assert sorted(max(shown(item)) for item in site.regions()) == [30, 100, 100]


@pytest.mark.parametrize("lang", ["en", "ko"])
def test_nothing_serious_stands_in_the_way(chromium: Any, site: Site, lang: str, tmp_path: Path) -> None:
    context = chromium.new_context(locale=lang, viewport={"width": 390, "height": 844})
    page = context.new_page()
    page.set_default_timeout(SLOW_MS)
    page.goto(site.url)
    moment(page)
    page.locator("#keys summary").click()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert faults(page) == []
    page.screenshot(path=str(tmp_path / f"narrow-{lang}.png"), full_page=True)
    context.close()


# -- by hand


def timeline(page: Any, site: Site, frame: int) -> None:
    """Open the task's tracks, and wait for the frame's picture."""
    page.goto(f"{site.url}&timeline={site.task}&frame={frame}")
    shows(page, frame)


def shows(page: Any, frame: int) -> None:
    page.wait_for_function(
        "frame => { const image = document.querySelector(`[data-frame='${frame}'] img`);"
        "return image && image.complete && image.naturalWidth > 0; }",
        arg=frame,
    )


def test_tracks_are_repaired_by_hand(page: Any, site: Site) -> None:
    page.goto(site.url)
    page.get_by_role("link", name="All tracks").click()
    page.locator("#part-timeline tbody tr").nth(1).wait_for()
    assert page.locator("#chosen-tracks").text_content() in ("1", "2"), "the tracks of the moment"
    timeline(page, site, 50)
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    page.keyboard.press("[")
    page.keyboard.press("ArrowLeft")
    shows(page, 42)
    page.locator("#go-frame").fill("70")
    page.locator("#go-frame").press("Enter")
    shows(page, 70)
    page.locator("#pick summary").click()
    page.locator("#pick-label").select_option("=person")
    page.get_by_role("button", name="Select", exact=True).click()
    page.locator("#track-1:checked, #track-2:checked").wait_for()
    assert page.locator("[name=tracks]:checked").count() == 1
    page.keyboard.press("s")
    page.locator("#part-timeline tbody tr").nth(2).wait_for()
    parts = [item for item in site.regions() if item["id"] != "too"]
    assert shown(parts[0]) | shown(parts[1]) == shown(JUMPS)
    assert min(max(shown(item)) for item in parts) == 69
    page.keyboard.press("u")
    page.locator(".decisions li", has_text="undone").wait_for()
    assert len(site.regions()) == 2
    page.locator("#track-1").check()
    page.locator("#track-1").press("Enter")
    page.locator("#global-id").fill("7")
    page.locator("#global-id").press("Enter")
    page.locator("#part-timeline th", has_text="#7").wait_for()
    page.locator("#all-tracks").check()
    page.keyboard.press("d")
    page.locator(".decisions li", has_text="2 repairs").wait_for()
    assert site.regions() == []
    done = page.request.get(f"{site.stack.backend.url}/api/repairs?project={site.project}").json()["repairs"]
    assert [item["action"] for item in done] == ["delete", "identify", "split"], "Enter in a tick box does nothing"


@pytest.mark.parametrize("lang", ["en", "ko"])
def test_nothing_serious_stands_in_the_way_of_tracks(chromium: Any, site: Site, lang: str, tmp_path: Path) -> None:
    context = chromium.new_context(locale=lang, viewport={"width": 390, "height": 844}, color_scheme="dark")
    page = context.new_page()
    page.set_default_timeout(SLOW_MS)
    timeline(page, site, 51)
    page.locator("#pick summary").click()
    page.locator("#all-tracks").check()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert faults(page) == []
    page.screenshot(path=str(tmp_path / f"timeline-narrow-{lang}.png"), full_page=True)
    context.close()


# -- more like this


def test_moments_like_an_accepted_one_by_one_key(page: Any, site: Site) -> None:
    client = site.stack.client()
    data = client.get_task(site.task).data
    others = [client.create_task(site.project, data) for _ in range(2)]
    for task in others:
        made = {"result": [JUMPS, TOO], "score": 0.9, "model_version": "yolo.track.yolo.base"}
        client.create_prediction(task, made)
    site.queue.request_review(site.project, others)
    wait_for(lambda: not site.queue.storage.pending("review", site.project), what="the search for faults")
    page.goto(f"{site.url}&task={site.task}&label=person")
    moment(page)
    page.keyboard.press("a")
    page.get_by_role("heading", name="2 more like this").wait_for()
    assert faults(page) == []
    page.keyboard.press("m")
    page.locator(".decisions li", has_text="2 repairs").wait_for()
    assert [len(client.list_predictions(task)[-1].result) for task in others] == [3, 3]
    page.keyboard.press("u")
    page.locator(".decisions li", has_text="undone").wait_for()
    assert [len(client.list_predictions(task)[-1].result) for task in others] == [2, 2]
    assert len(site.regions()) == 3


# -- the consensus of several people


def test_consensus_of_three_people_in_the_editor(chromium: Any, site: Site, tmp_path: Path) -> None:
    sdk = site.stack.client().sdk
    users = [sdk.users.create(email=name, username=name).id for name in ("b@example.org", "c@example.org")]
    for number, user in enumerate([None, *users]):
        walk = [(1, 2.0, True), (50, 30.0 + number, True), (90, 70.0, False)]
        drawn = [region("walk", walk, "car" if number == 1 else "person", y=20.0 + 2 * number)]
        drawn += [region("alone", [(1, 80.0, True)], "car", y=70.0)] if number == 2 else []
        given = {} if user is None else {"completed_by": user}
        sdk.annotations.create(id=site.task, result=drawn, **given)
    page = chromium.new_page(locale="en", viewport={"width": 1280, "height": 900})
    page.set_default_timeout(SLOW_MS)
    page.goto(f"{site.url}&consensus={site.task}")
    page.locator("#write-consensus").scroll_into_view_if_needed()
    page.screenshot(path=str(tmp_path / "consensus.png"), full_page=True)
    page.locator("#write-consensus").click()
    page.locator(".decisions li", has_text="Consensus").first.wait_for()
    found = [item for item in sdk.annotations.list(id=site.task) if item.ground_truth]
    assert len(found) == 1
    server = site.stack.label_studio
    open_editor(page, server, f"{server.url}/projects/{site.project}/data?task={site.task}&annotation={found[0].id}")
    page.wait_for_function("number => Htx.annotationStore.selected.pk === String(number)", arg=found[0].id)
    Editor(page, fps=20).go_to(50)
    (seen,) = page.evaluate("Htx.annotationStore.selected.serializeAnnotation()")
    page.screenshot(path=str(tmp_path / "editor.png"))
    assert seen["value"]["labels"] == ["person"], "of two of three"
    assert shown(seen)[50] == pytest.approx(31, abs=0.5), "the median"
    assert {round(key["y"]) for key in seen["value"]["sequence"]} == {22}
    assert max(shown(seen)) == 90
    page.close()
