"""The control room's page without a browser: what is drawn, in which language, what is refused, what is escaped."""

from __future__ import annotations

import json
import re
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from string import Formatter
from typing import Any, get_args

import numpy as np
import pytest
from markupsafe import Markup

from ml_backend.core.outputs import OutputFacts
from ml_backend.core.settings import Mode, Settings
from ml_backend.core.types import UNLABELLED
from ml_backend.embeddings.crop_embeddings import CropEmbedding
from ml_backend.labeling.few_shot.pattern_store import NewExemplar
from ml_backend.server.api import handlers
from ml_backend.server.api.requests import ExportFormat
from ml_backend.server.app import create_app
from ml_backend.server.dashboard import charts, texts
from ml_backend.server.dashboard.forms import ACTIONS
from ml_backend.server.dashboard.parts import PARTS, history
from ml_backend.server.dashboard.state import ACCESS, STEPS
from ml_backend.training.retention import remove_old_weights
from tests.builders import CONFIG, NO_RECTANGLE, outside
from tests.server.control import Room, answer_as_label_studio, promoted, proposed

#: What one sends to this machine itself, or to an encrypted server, and to others.
PLAIN = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
BROWSER = PLAIN | {"Sec-Fetch-Site": "none"}
SCRIPT = "<script>alert('x')</script>\"><img src=x onerror=alert(1)>"
TEMPLATES = Path(texts.__file__).parent / "templates" / "page"


def page(room: Room, path: str = "/", status: int = 200, **headers: str) -> str:
    answer = room.client.get(path, headers=BROWSER | headers)
    assert answer.status_code == status, answer.get_data(as_text=True)
    assert answer.content_type == "text/html; charset=utf-8"
    return answer.get_data(as_text=True)


def kinds(room: Room) -> set[str]:
    return {item["kind"] for item in room.services.jobs.all()}


@pytest.fixture
def hostile(make_room: Callable[..., Room]) -> Iterator[Room]:
    """A room beside a Label Studio whose project and files are named to do harm."""
    with outside() as label_studio:
        answer_as_label_studio(label_studio, {7: SCRIPT}, tasks=45, name=f"{SCRIPT}.mp4")
        yield make_room(detector="auto", label_studio_url=label_studio.url)


@pytest.fixture
def three(make_room: Callable[..., Room]) -> Iterator[Room]:
    """A room beside a Label Studio with a connected project, one that is not, and one whose label config is refused."""
    configs = {7: CONFIG, 8: CONFIG, 9: NO_RECTANGLE}
    rows = [{"id": n, "title": f"Project {n}", "task_number": 3, "label_config": xml} for n, xml in configs.items()]
    hook = {"id": 1, "organization": 1, "project": 7, "url": "http://localhost:9090/webhook", "is_active": True}
    task = {"id": 1, "data": {"video": "/data/a.mp4"}}
    with outside() as label_studio:
        label_studio.answer("/api/projects/", 200, json.dumps({"next": None, "results": rows}).encode())
        label_studio.answer("/api/webhooks/", 200, json.dumps([hook | {"send_payload": True}]).encode())
        label_studio.answer("/api/tasks/", 200, json.dumps({"total": 1, "tasks": [task]}).encode())
        yield make_room(label_studio_url=label_studio.url, label_studio_api_key="token")


# -- projects that are not connected


@pytest.mark.parametrize("step", STEPS)
def test_every_step_says_that_the_project_is_not_connected(three: Room, step: str) -> None:
    lead = texts.load_texts("en")["not_connected_lead"]
    assert lead not in page(three, f"/?project=7&step={step}")
    unconnected = page(three, f"/?project=8&step={step}")
    assert lead in unconnected
    assert 'id="connect"' in unconnected
    refused = page(three, f"/?project=9&step={step}")
    assert lead not in refused
    assert "no VideoRectangle tag with a name" in refused
    assert "Add &lt;VideoRectangle" in refused


def test_the_list_of_projects_marks_and_connects_them(three: Room) -> None:
    part = page(three, "/ui/part/projects?project=7")
    rows = dict(zip((7, 8, 9), part.split("<tr")[2:], strict=True))
    assert "not connected" in rows[8]
    assert 'id="connect-8"' in rows[8]
    for number in (7, 9):
        assert "not connected" not in rows[number]
        assert "/ui/do/connect" not in rows[number]
    assert "label config unsuitable" in rows[9]


def test_tracks_that_are_on_their_way_are_announced(three: Room) -> None:
    words = texts.load_texts("en")["on_their_way"]
    for part in ("projects", "tasks"):
        assert words not in page(three, f"/ui/part/{part}?project=7")
    three.services.queue.request_prepare(7, 1)
    handlers.all_jobs.cache_clear()
    for part in ("projects", "tasks"):
        assert page(three, f"/ui/part/{part}?project=7").count(words) == 1


# -- programs and browsers


@pytest.mark.parametrize("accept", [None, "*/*", "application/json", "application/json, text/html;q=0.5"])
def test_programs_get_health(room: Room, accept: str | None) -> None:
    answer = room.client.get("/", headers={"Accept": accept} if accept else {})
    assert answer.get_json() == {"status": "UP", "model_class": "VideoBackend"}


def test_browsers_get_a_page_that_runs_only_its_own_script(room: Room) -> None:
    for step in (*STEPS, ACCESS):
        answer = room.client.get(f"/?project=7&step={step}", headers=BROWSER)
        text = answer.get_data(as_text=True)
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'self'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "same-origin"
        assert "Accept" in answer.headers["Vary"]
        assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?! src=)|javascript:", text)
        assert not re.search(r'(?:src|href)="(?:https?:)?//(?!127\.0\.0\.1)', text), "nothing from elsewhere"


def test_static_files_are_there_and_kept(room: Room) -> None:
    for path in re.findall(r'"(/ui/static/[^"]+)"', page(room)):
        answer = room.client.get(path.replace("&amp;", "&"))
        assert answer.status_code == 200
        assert "immutable" in answer.headers["Cache-Control"]


def test_a_static_file_that_is_refused_is_not_kept(room: Room) -> None:
    path = re.findall(r'"(/ui/static/page.css[^"]+)"', page(room))[0]
    for answer in (
        room.client.get("/ui/static/nothing.css", headers=BROWSER),
        room.client.get(path, headers=BROWSER | {"Host": "evil.example"}),
    ):
        assert answer.status_code in (404, 421)
        assert answer.headers["Cache-Control"] == "no-store"
    again = room.client.get(path, headers={"If-None-Match": room.client.get(path).headers["ETag"]})
    assert again.status_code == 304
    assert "immutable" in again.headers["Cache-Control"]


# -- what the page asks for every two seconds


def test_marks_change_with_what_they_stand_for(auto: Room) -> None:
    def marks() -> dict[str, str]:
        handlers.all_jobs.cache_clear()
        handlers.system_state.cache_clear()
        found: dict[str, str] = auto.client.get("/ui/live?project=7").get_json()
        return found

    def changed(before: dict[str, str]) -> set[str]:
        now = marks()
        return {name for name in before.keys() | now.keys() if before.get(name) != now.get(name)}

    known = marks()
    drawn = re.search("data-marks='([^']+)'", page(auto, "/?project=7&step=auto"))
    assert drawn is not None
    assert json.loads(drawn[1]) == known, "as the page itself was drawn"
    assert set(known) == {"jobs", "states", "status", "mode", "current", "version", "files", "moments", "cameras"}
    assert changed(known) == set()
    auto.services.api_queue.init_models(8)
    assert changed(known) == {"status"}, "another project's job is in the queue"
    auto.services.api_queue.init_models(7)
    assert changed(known) == {"status", "jobs", "states", "init_models"}
    known = marks()
    auto.delete("/api/jobs/init-7")
    assert changed(known) == {"status", "jobs", "states", "init_models"}
    known = marks()
    auto.services.patterns.switch(7, "yolo")
    assert changed(known) >= {"mode"}
    known = marks()
    registry = auto.services.registry
    run = registry.advance(registry.begin(7, "me", "a test", None), state="training")
    registry.advance(run, history=[{"epoch": 1}])
    assert changed(known) == {"version"}


def test_nothing_new_has_no_body(room: Room) -> None:
    first = room.client.get("/ui/live?project=7")
    assert first.headers["Cache-Control"] == "private, no-cache"
    again = room.client.get("/ui/live?project=7", headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status_code, again.data) == (304, b"")


def test_live_without_redis(make_room: Callable[..., Room], tmp_path: Path) -> None:
    room = make_room(redis_url=f"unix://{tmp_path}/none.sock")
    assert room.client.get("/ui/live", headers={"HX-Request": "true"}).status_code == 503
    assert "data-marks='{}'" in page(room), "all is drawn anew as soon as there is an answer"


# -- what is wrong, and the hint


@pytest.mark.parametrize("step", STEPS)
def test_without_label_studio_and_redis_every_step_says_what_is_wrong(
    settings: Callable[..., Settings], tmp_path: Path, step: str
) -> None:
    room = Room(
        create_app(
            settings(
                redis_url=f"unix://{tmp_path}/none.sock",
                detector="motion",
                label_studio_url="http://127.0.0.1:1",
                label_studio_api_key="token",
            )
        )
    )
    text = page(room, f"/?project=7&step={step}")
    assert "Label Studio does not answer" in text
    assert "LABEL_STUDIO_URL" in text
    assert "The queue does not answer" in text


def test_a_part_that_fails_takes_no_other_with_it(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> Any:
        raise ValueError("a fault of ours")

    monkeypatch.setattr("ml_backend.server.api.handlers.statistics", fails)
    text = page(room, "/?project=7")
    assert "Internal error." in text
    assert "No worker is running" in text
    assert "Internal error." in page(room, "/ui/part/counts?project=7")
    # A list of projects that fails is part of every whole page, a notice's too.
    monkeypatch.setattr("ml_backend.server.api.handlers.projects", fails)
    form = {"project": "7", "format": "coco", "predictions": "none"}
    answer = room.client.post("/ui/do/export?project=7", data=form, headers=BROWSER)
    assert answer.status_code == 200
    assert "Export started." in answer.get_data(as_text=True)
    assert "Internal error." in answer.get_data(as_text=True)


def test_a_button_that_fails_says_so(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> Any:
        raise ValueError("a fault of ours")

    monkeypatch.setattr("ml_backend.server.dashboard.forms.perform", fails)
    for headers in (BROWSER, {"HX-Request": "true"}):
        answer = room.client.post("/ui/do/train", data={"project": "7"}, headers=headers)
        assert answer.status_code == 500
        assert "Internal error." in answer.get_data(as_text=True)


def test_links_lead_to_where_people_reach_label_studio(hostile: Room, make_room: Callable[..., Room]) -> None:
    given = hostile.services.settings
    public = make_room(
        detector="auto",
        label_studio_url=given.label_studio_url,
        label_studio_api_key="token",
        label_studio_public_url="https://label.example.org/",
    )
    for room, base in ((hostile, given.label_studio_url), (public, "https://label.example.org")):
        assert f'href="{base}/projects/7/data"' in page(room)
        assert room.get("/api/projects")["projects"][0]["url"] == f"{base}/projects/7/data"


def test_without_a_token_and_a_worker(alone: Room) -> None:
    text = page(alone, "/?project=7")
    assert "No worker is running" in text
    assert "There is no token for Label Studio." in text
    assert "LABEL_STUDIO_API_KEY" in text


@pytest.mark.parametrize("value", ["0", "-1", "x", "99999999999999", "", "7;drop", "00000000000199999999999999999999"])
def test_a_project_that_is_none(alone: Room, value: str) -> None:
    assert 'hx-get="/ui/live"' in page(alone, f"/?project={value}")


def test_a_project_that_does_not_exist(room: Room) -> None:
    text = page(room, "/?project=77")
    assert "Project 77 was not found." in text
    assert "Check the number in its address." in text
    assert "was not found" not in page(room, "/?project=8")


# -- languages and themes


def test_the_browsers_language(room: Room) -> None:
    assert '<html lang="ko">' in page(room, **{"Accept-Language": "ko-KR,ko;q=0.9,en;q=0.5"})
    assert '<html lang="en">' in page(room, **{"Accept-Language": "fr"})


def test_a_chosen_language_and_theme_are_kept(room: Room) -> None:
    answer = room.client.get("/?project=7&step=auto&lang=ko&theme=dark", headers=BROWSER)
    assert (answer.status_code, answer.headers["Location"]) == (303, "/?project=7&step=auto")
    text = page(room, "/?project=7&step=auto", **{"Accept-Language": "en"})
    assert '<html lang="ko" data-theme="dark">' in text
    assert "자동 라벨링" in text
    assert '<html lang="ko" data-theme="dark">' in page(room, "/?lang=xx&theme=pink")


def test_both_languages_have_the_same_texts_with_the_same_values() -> None:
    english, korean = texts.load_texts("en"), texts.load_texts("ko")
    assert english.keys() == korean.keys()
    for name, text in english.items():
        fields = [{field for _, field, _, _ in Formatter().parse(each) if field} for each in (text, korean[name])]
        assert fields[0] == fields[1], name
        for form in f"{text}|{korean[name]}".split("|") if "|" in text + korean[name] else ():
            assert "{" in form, f"{name}: | separates the forms for one and for several"


@pytest.mark.parametrize("lang", texts.LANGUAGES)
def test_no_text_takes_the_place_of_another(lang: str) -> None:
    pairs = json.loads(Path(texts.__file__).with_name(f"texts.{lang}.json").read_text(), object_pairs_hook=list)
    assert [name for name, count in Counter(name for name, _ in pairs).items() if count > 1] == []


@pytest.mark.parametrize(
    ("lang", "one", "two"), [("en", "1 track", "2 tracks"), ("ko", "트랙 1개", "트랙 2개")], ids=["en", "ko"]
)
def test_singular_and_plural(lang: str, one: str, two: str) -> None:
    t = texts.translator(lang)
    assert (t("tracks_n", n=1), t("tracks_n", n=2)) == (one, two)
    assert "|" not in t("videos_n", n=1, time="5 s") + t("videos_n", n=0, time="0 s")


def test_templates_use_texts_that_exist_and_no_text_is_unused() -> None:
    written = "".join(path.read_text() for path in TEMPLATES.rglob("*.html"))
    used = set(re.findall(r'\bt\("(\w+)"[,)]', written))
    known = set(texts.load_texts("en"))
    assert used <= known
    assert {f"format_{name}" for name in get_args(ExportFormat)} == {
        name for name in known if name.startswith("format_")
    }
    groups = ("kind_", "state_", "stage_", "mode_", "loss_", "step_", "theme_", "format_", "predictions_")
    groups += ("acceptance_", "curve_", "draw_", "video_", "source_", "policy_", "track_", "tracks_")
    groups += ("action_", "camera_", "role_", "fault_", "do_", "did_", "split_here", "swap_here", "end_here")
    assert {name for name in known - used if not name.startswith(groups)} == {"hours", "minutes", "seconds"}


# -- names that mean harm


def test_names_are_escaped(hostile: Room) -> None:
    registry = hostile.services.registry
    run = registry.begin(7, "me", "a test", None)
    registry.finish(run, "failed", SCRIPT)
    for step in STEPS:
        text = page(hostile, f"/?project=7&step={step}&label=%3Cscript%3E")
        assert "<script>alert" not in text
        assert "<img src=x" not in text
        assert "&lt;script&gt;alert" in text


def test_charts_escape_labels() -> None:
    points = [{"label": SCRIPT, "task": 1, "frame": 2, "x": 0.5, "y": -0.5}]
    link = Markup('href="#"')
    for drawn in (
        charts.scatter(SCRIPT, points, [SCRIPT], lambda _: link),
        charts.curves(SCRIPT, {SCRIPT: [(1, 2.0), (2, 1.0)]}),
    ):
        assert "<script>" not in drawn
        assert "<img" not in drawn


def test_long_lists_come_in_pages(hostile: Room) -> None:
    text = page(hostile, "/?project=7&step=auto")
    assert text.count('name="tasks"') == 20
    assert "1 of 3" in text
    for number in (3, 4):  # the last one, too, where tasks have gone
        text = page(hostile, f"/ui/part/tasks?project=7&page-tasks={number}")
        assert text.count('name="tasks"') == 5
        assert "3 of 3" in text


def test_tables_are_turned_one_by_one(hostile: Room) -> None:
    text = page(hostile, "/?project=7&step=review&page-renders=2&page-files=9")
    assert "2 of 3" in text
    assert 'hx-get="/ui/part/renders?project=7&amp;step=review&amp;page-renders=2"' in text
    assert "1 of 3" in page(hostile, "/?project=7&step=auto&page-renders=2")


def test_a_part_is_drawn_anew_with_what_was_chosen(hostile: Room) -> None:
    text = page(hostile, "/?project=7&step=review&a=one.mp4&b=two.mp4")
    assert 'hx-get="/ui/part/files?project=7&amp;step=review&amp;a=one.mp4&amp;b=two.mp4"' in text
    text = page(hostile, "/?project=7&step=learn&label=person")
    assert 'hx-get="/ui/part/similar?project=7&amp;step=learn&amp;label=person"' in text


def test_deleted_tracks_are_seen_to_teach(room: Room) -> None:
    patterns, model = room.services.projects.patterns, room.get("/api/get_patterns_info?project=7")["embedder"]
    crop = CropEmbedding(3, (0.0, 0.0, 9.0, 9.0), np.ones(1280, np.float32) / np.sqrt(1280, dtype=np.float32), b"jpeg")
    patterns.crop_embeddings("video").add(model, [crop])
    patterns.replace_task(7, model, 1, 1, [NewExemplar("part-0-track-4", UNLABELLED, crop.key("video", model))])
    text = page(room, "/ui/part/patterns?project=7")
    assert "Background</h3>" in text
    assert "Tracks that people deleted" in text
    assert 'aria-label="Background, task 1, frame 3"' in text
    assert "Find more like this" not in text


def add_video(room: Room, facts: OutputFacts) -> str:
    outputs = room.services.outputs
    outputs.folder.mkdir(parents=True, exist_ok=True)
    made = outputs.folder / "made.mp4"
    made.write_bytes(b"video")
    return outputs.add(made, facts, "project", 7).name


def test_files_say_what_they_were_made_from(hostile: Room) -> None:
    add_video(hostile, OutputFacts(source="base", model="yolo11n-1.base", task=3, video=f"{SCRIPT}.mp4", tracks=4))
    rows = OutputFacts(format="coco", source="both", model="yolo11n-1.v2", video="street.mp4", videos=3, skipped=2)
    add_video(hostile, rows)
    hostile.services.outputs.new("project", 7, "old", suffix="zip").write_bytes(b"PK")  # of an earlier release
    text = page(hostile, "/?project=7&step=review")
    for words in ("Base detector", "yolo11n-1.base", "street.mp4 and 2 more", "COCO · Annotations and predictions"):
        assert words in text
    assert "2 videos were skipped" in text
    assert "project-7-old-" in text
    assert SCRIPT not in text


def test_a_file_is_deleted_in_the_page(hostile: Room) -> None:
    def mark() -> Any:
        return hostile.client.get("/ui/live?project=7").get_json()["files"]

    name, before = add_video(hostile, OutputFacts(source="base", video="a.mp4")), mark()
    row = page(hostile, "/?project=7&step=review").split(f'<details id="confirm-{name}">')[1].split("</details>")[0]
    fields = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]+)">', row))
    for headers, status in ((BROWSER, 200), (BROWSER, 404), ({"HX-Request": "true"}, 404)):
        answer = hostile.client.post("/ui/do/delete_file?project=7&step=review", data=fields, headers=headers)
        text = answer.get_data(as_text=True)
        assert (answer.status_code, f"/api/download/{name}" in text) == (status, False)
    assert f"There is no file {name}." in text
    assert mark() != before, "other open pages reload their list"


def test_an_export_takes_every_frame_unless_told(hostile: Room) -> None:
    text = page(hostile, "/?project=7&step=review")
    form = text.split('action="/ui/do/export')[1].split("</form>")[0]
    assert re.search(r'<input id="stride"[^>]* value="1"', form)
    assert re.search(r'<option value="(\w+)"', form.split('name="predictions"')[1]).group(1) == "none"  # type: ignore[union-attr]
    data = {"project": "7", "format": "annotations", "predictions": "none", "stride": "1", "with_ids": "1"}
    data |= {"global_ids": "1"}
    hostile.client.post("/ui/do/export", data=data, headers={"HX-Request": "true"})
    (job,) = hostile.services.jobs.all()
    assert hostile.services.queue.fetch(job["id"]).args == [7, "annotations", "none", 1, True, True]
    default = hostile.post("/api/export", {"project": 7, "format": "yolo"}, 202)["job"]
    assert hostile.services.queue.fetch(default["id"]).args == [7, "yolo", "none", 1, False, False]


def test_masks_without_a_model_are_refused_on_the_page(room: Room) -> None:
    text = page(room, "/?project=7&step=review")
    assert '<option value="coco-seg">COCO with masks</option>' in text
    assert "SEGMENTER is not set" in text
    data = {"project": "7", "format": "coco-seg", "predictions": "none", "stride": "1"}
    answer = room.client.post("/ui/do/export?project=7", data=data, headers=BROWSER)
    assert "Masks are made by a model, and SEGMENTER is not set." in answer.get_data(as_text=True)
    assert "export_project" not in kinds(room)


def test_every_part_is_drawn_where_it_is(hostile: Room) -> None:
    """Also within a form, whose target is inherited."""
    parts = [
        found
        for step in (*STEPS, "repair&timeline=1", "repair&consensus=1", "repair&objects=1", ACCESS)
        for found in re.findall(r'<div id="part-[^>]*>', page(hostile, f"/?project=7&step={step}"))
    ]
    assert len({found.split('"')[1] for found in parts}) == len(PARTS) - 1, "exemplars are drawn within patterns"
    assert all('hx-target="this"' in found for found in parts)


# -- buttons


def test_a_button_with_scripts_answers_a_notice(hostile: Room) -> None:
    answer = hostile.client.post(
        "/ui/do/export", data={"project": "7", "format": "coco", "predictions": "none"}, headers={"HX-Request": "true"}
    )
    assert answer.get_data(as_text=True).strip() == "", "the part of notices says it"
    assert answer.headers["HX-Trigger"] == "changed, live-states, live-export"
    assert kinds(hostile) == {"export_project"}
    text = page(hostile)
    assert 'hx-trigger="every 2s, changed from:body"' in text
    assert "Export started." in text
    assert 'hx-trigger="live-states from:body, late"' in text


def test_a_button_without_scripts_answers_the_page(hostile: Room) -> None:
    answer = hostile.client.post(
        "/ui/do/auto_label?project=7&step=auto", data={"project": "7", "tasks": ["1", "2"]}, headers=BROWSER
    )
    text = answer.get_data(as_text=True)
    assert "<!doctype html>" in text
    assert "Auto-labelling started." in text
    (job,) = (item for item in hostile.services.jobs.all() if item["kind"] == "auto_label")
    assert hostile.services.queue.fetch(job["id"]).args == [7, [1, 2]]


@pytest.mark.parametrize("headers", [BROWSER, {"HX-Request": "true"}], ids=["without scripts", "with scripts"])
def test_no_chosen_task_is_none_and_not_all(hostile: Room, headers: dict[str, str]) -> None:
    form = page(hostile, "/?project=7&step=auto").split('<form id="chosen"')[1].split("</form>")[0]
    fields = dict(re.findall(r'<input type="hidden" name="(\w+)" value="(\w+)">', form))
    answer = hostile.client.post("/ui/do/auto_label?project=7&step=auto", data=fields, headers=headers)
    assert answer.status_code == 400
    assert "No task is selected." in answer.get_data(as_text=True)
    assert kinds(hostile) == set()
    hostile.client.post("/ui/do/auto_label?project=7&step=auto", data=fields | {"tasks": ["3"]}, headers=headers)
    (job,) = hostile.services.jobs.all()
    assert hostile.services.queue.fetch(job["id"]).args == [7, [3]]


def test_cancelling(hostile: Room) -> None:
    job = hostile.services.api_queue.train(7, force=False)
    assert "training" in page(hostile, "/?project=7&step=learn").lower()
    hostile.client.post("/ui/do/cancel", data={"job": job["id"]}, headers={"HX-Request": "true"})
    found = hostile.services.jobs.get(job["id"])
    assert found is not None
    assert found["state"] == "cancelled"


@pytest.mark.parametrize(
    ("name", "data", "status"),
    [
        ("train", {}, 400),
        ("train", {"project": "x"}, 400),
        ("train", {"project": "7", "more": "1"}, 400),
        ("use", {"project": "7", "version": "../evil"}, 400),
        ("use", {"project": "7", "version": "v9"}, 422),
        ("cancel", {"job": "nothing"}, 404),
        ("act_on_exemplars", {"project": "7", "action": "open", "exemplars": str(1 << 70)}, 400),
        ("nothing", {}, 404),
        ("upload", {"project": "7"}, 415),
    ],
)
def test_wrong_forms_are_told(room: Room, name: str, data: dict[str, str], status: int) -> None:
    for headers in ({"HX-Request": "true"}, BROWSER):
        answer = room.client.post(f"/ui/do/{name}", data=data, headers=headers)
        assert answer.status_code == status
        assert 'role="alert"' in answer.get_data(as_text=True)


@pytest.mark.parametrize(
    "headers", [{"Origin": "http://evil.example"}, {"Origin": "http://["}, {"Sec-Fetch-Site": "cross-site"}], ids=str
)
def test_other_sites_press_no_button(hostile: Room, headers: dict[str, str]) -> None:
    for name in ACTIONS:
        answer = hostile.client.post(f"/ui/do/{name}", data={"project": "7"}, headers=BROWSER | headers)
        assert answer.status_code == 403
        assert "another site" in answer.get_data(as_text=True)
        assert "alert(" not in answer.get_data(as_text=True), "no project's title"
    assert kinds(hostile) == set()


@pytest.mark.parametrize("headers", [PLAIN, BROWSER, BROWSER | {"HX-Request": "true"}], ids=str)
def test_a_page_that_has_its_own_name_point_here_reads_nothing(hostile: Room, headers: dict[str, str]) -> None:
    assert "alert(" in page(hostile, "/ui/part/projects"), "by its own name it shows the project's title"
    paths = ("/", "/ui/part/projects", "/ui/part/nothing", "/ui/nothing", "/ui/do/train")
    for path, method in product(paths, ("GET", "POST")):
        answer = hostile.client.open(path, method=method, headers=headers | {"Host": "evil.example:9090"})
        text = answer.get_data(as_text=True)
        assert answer.status_code == 421
        assert "ALLOWED_HOSTS" in text
        assert "alert(" not in text
        assert "<html" not in text


def test_a_link_on_another_site_opens_the_page_but_starts_no_work(room: Room) -> None:
    text = page(room, "/?project=7", **{"Sec-Fetch-Site": "cross-site"})
    assert "load" in text
    assert kinds(room) == set()
    for name, part in PARTS.items():
        if part.starts_job:
            page(room, f"/ui/part/{name}?project=7", 403, **{"Sec-Fetch-Site": "cross-site"})
    assert kinds(room) == set()
    page(room, "/?project=7", **{"Sec-Fetch-Site": "same-origin"})
    assert kinds(room) == {"count_statistics"}


@pytest.mark.parametrize("headers", [{}, {"Referer": "http://evil.example/"}], ids=str)
def test_a_browser_that_does_not_say_where_it_comes_from_starts_no_work(room: Room, headers: dict[str, str]) -> None:
    """As to a server without encryption: a picture on a page of another site may be behind the request."""
    for path in ("/?project=7&fresh=1", *(f"/ui/part/{name}?project=7&fresh=1" for name in PARTS)):
        room.client.get(path, headers=PLAIN | headers)
    assert kinds(room) == set()


@pytest.mark.parametrize("headers", [{"HX-Request": "true"}, {"Referer": "http://localhost/?project=7"}], ids=str)
def test_the_pages_own_script_and_links_start_work(room: Room, headers: dict[str, str]) -> None:
    answer = room.client.get("/ui/part/counts?project=7", headers=PLAIN | headers)
    assert answer.status_code == 200
    assert kinds(room) == {"count_statistics"}


# -- charts


def test_a_trainings_curves() -> None:
    epochs = [{"epoch": n, "losses": {"box": 3.0 / n}, "map50": 0.1 * n, "map50_95": None} for n in (1, 2, 3)]
    found = history(epochs)
    assert found["loss"] == {"box": [(1.0, 3.0), (2.0, 1.5), (3.0, 1.0)]}
    assert list(found["map"]) == ["mAP50"]
    drawn = charts.curves("Loss", found["loss"])
    assert 'role="img" aria-label="Loss"' in drawn
    (points,) = re.findall(r'points="([^"]+)"', drawn)
    heights = [float(pair.split(",")[1]) for pair in points.split()]
    assert heights == sorted(heights), "a loss that falls goes down"


def test_a_running_training_is_drawn(hostile: Room) -> None:
    registry = hostile.services.registry
    run = registry.advance(registry.begin(7, "me", "a test", None), state="training")
    registry.advance(run, history=[{"epoch": n, "losses": {"box": 1.0 / n}, "map50": 0.5} for n in (1, 2)])
    text = page(hostile, "/?project=7&step=learn")
    assert text.count('class="chart"') == 2
    assert "Fine-tuning of v1" in text


def test_bars_stay_within_their_rail() -> None:
    assert 'width="100.0"' in charts.bar(1.5)
    assert 'width="0.0"' in charts.bar(-1)


# -- versions


def add_versions(room: Room, folder: Path, count: int) -> None:
    """So many versions, with what a training tells of them."""
    for number in range(count):
        facts = {"history": [{"epoch": 1, "map50": 0.5}], "lineage": {"seen": {"1": "a"}, "tracks": 3}}
        promoted(room.services, folder, b"PK %d" % number, **facts)


def test_a_version_without_weights_is_shown_and_not_offered(auto: Room, tmp_path: Path) -> None:
    add_versions(auto, tmp_path, 4)
    found = auto.services
    settings = found.settings.model_copy(update={"keep_versions": 1})
    assert remove_old_weights(7, settings, found.storage, found.artifacts) == 2
    text = page(auto, "/ui/part/versions?project=7")
    assert text.count("Its weights were removed, since there are newer versions.") == 2
    assert text.count("is-removed") == 2
    assert 'id="use-v3"' in text
    for name in ("v1", "v2"):
        assert f">{name}<" in text, "its figures are still there"
        assert f'id="use-{name}"' not in text
    choices = page(auto, "/ui/part/mode?project=7")
    assert [name for name in ("v1", "v2", "v3", "v4") if f'<option value="{name}"' in choices] == ["v3", "v4"]
    problem = auto.post("/api/switch_model", {"project": 7, "version": "v1"}, 422)
    assert "weights were removed" in problem["detail"]
    assert "KEEP_VERSIONS" in problem["hint"]
    rows = auto.get("/api/versions?project=7")["versions"]
    assert [row["weights_removed"] for row in rows] == [False, False, True, True]
    assert [row["tracks"] for row in rows] == [3] * 4


@pytest.mark.parametrize(
    ("lang", "title", "keep"),
    [
        ("en", "v2 proposed: 2 tracks lost, 1 relabelled, 5 gained", "Keep v1"),
        ("ko", "v2 제안됨: 사라진 트랙 2개, 라벨이 바뀐 트랙 1개, 새 트랙 5개", "v1 유지"),
    ],
)
def test_a_proposal_shows_what_changes_and_asks(auto: Room, tmp_path: Path, lang: str, title: str, keep: str) -> None:
    promoted(auto.services, tmp_path, b"PK first")
    assert "proposal" not in page(auto, "/ui/part/versions?project=7")
    proposed(auto.services, tmp_path)
    text = page(auto, "/ui/part/versions?project=7", **{"Accept-Language": lang})
    assert title in re.sub(r"\s+", " ", text)
    assert 'src="/api/versions/v2/clips/0?project=7"' in text
    assert text.count("<video") == 1
    assert "bus &lt;b&gt;" in text
    assert re.search(r'id="accept">[^<]*v2', text)
    assert f'id="decline">{keep}<' in text


def test_a_proposal_is_declined_without_scripts(auto: Room, tmp_path: Path) -> None:
    proposed(auto.services, tmp_path)
    marks = auto.client.get("/ui/live?project=7").get_json()
    answer = auto.client.post(
        "/ui/do/decline?project=7&step=learn", data={"project": "7", "version": "v1"}, headers=BROWSER
    )
    text = answer.get_data(as_text=True)
    assert answer.status_code == 200
    assert "v1 was declined; base stays in use." in text
    assert 'id="h-proposal"' not in text
    now = auto.client.get("/ui/live?project=7").get_json()
    assert {name for name in now if now[name] != marks[name]} == {"version"}


def test_of_many_versions_the_page_reads_what_it_shows(auto: Room, tmp_path: Path) -> None:
    add_versions(auto, tmp_path, 22)
    with sqlite3.connect(auto.services.settings.data_dir / "backend.sqlite3") as connection:
        connection.execute("UPDATE model_versions SET history = '[', metrics = '{', lineage = '{' WHERE number < 3")
    text = page(auto, "/ui/part/versions?project=7")
    assert 'id="use-v3"' in text
    assert 'id="use-v2"' not in text
    assert "v21" in text
    choices = page(auto, "/ui/part/mode?project=7")
    assert choices.count("<option") == len(get_args(Mode)) + 22 + 1, "any version can be chosen"
