"""What the control room tells of jobs, in a real Chromium: outcomes, failures until they are dismissed, uploads, a map.

Backend, Redis and worker are real; projects and tasks are those of a server that answers like Label Studio.
"""

from __future__ import annotations

import io
import json
import re
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from werkzeug.serving import make_server

from ml_backend.core.settings import get_settings
from ml_backend.embeddings.crop_embeddings import CropEmbedding
from ml_backend.jobs.container import get_container
from ml_backend.jobs.worker import make_worker
from ml_backend.labeling.few_shot.pattern_store import NewExemplar
from ml_backend.server.api import handlers
from ml_backend.server.dashboard.notices import DAY_S, job_notices
from tests.builders import Outside, environment, make_clip
from tests.server.control import CONFIG, Room, answer_as_label_studio, promoted
from tests.server.test_dashboard_browser import faults

BROWSER = {"Accept": "text/html", "Sec-Fetch-Site": "same-origin"}
HTMX = {"HX-Request": "true"}
STEPS = ("label", "learn", "auto", "repair", "review")
VIDEO = "/data/upload/7/film.mp4"
#: Long, as people name them.
TITLES = {8: "Crossings of the northern ring road, summer, recorded from the bridge", 7: "Street"}


@pytest.fixture
def here(make_room: Callable[..., Room], beside: Outside) -> Room:
    """A room beside two empty projects, which have no label config: what needs one fails."""
    answer_as_label_studio(beside, TITLES, tasks=0)
    return make_room(embedder="fallback")


@pytest.fixture
def work(here: Room, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Do all jobs that are due, as a worker does."""

    def run() -> None:
        for name, value in environment(here.services.settings).items():
            monkeypatch.setenv(name, value)
        get_settings.cache_clear()
        get_container.cache_clear()
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)}
        try:
            make_worker(get_settings()).work(burst=True, logging_level="ERROR")
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        handlers.all_jobs.cache_clear()

    yield run
    get_settings.cache_clear()
    get_container.cache_clear()


@pytest.fixture
def url(here: Room) -> Iterator[str]:
    """The backend's address for a browser."""
    server = make_server("127.0.0.1", 0, here.app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()


@pytest.fixture
def page(chromium: Any, url: str) -> Iterator[Any]:
    """A page; whatever it complains of fails the test."""
    opened = chromium.new_page(locale="en", base_url=url, viewport={"width": 1280, "height": 720})
    complaints: list[str] = []
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
    yield opened
    opened.close()
    assert complaints == []


def text(room: Room, path: str = "/?project=7", **headers: str) -> str:
    return room.client.get(path, headers=BROWSER | headers).get_data(as_text=True)


def messages(room: Room, **headers: str) -> list[str]:
    """The words of the messages about jobs."""
    part = text(room, "/ui/part/notices?project=7", **headers)
    found = re.findall(r'<div class="message.*?</form>', part, re.DOTALL)
    return [" ".join(re.sub("<[^>]+>", " ", item).replace("×", "").split()) for item in found]


def press(room: Room, name: str, headers: dict[str, str] = HTMX, **fields: Any) -> Any:
    return room.client.post(f"/ui/do/{name}?project=7", data={"project": "7", **fields}, headers=headers)


# -- what is told


def test_a_job_is_told_from_start_to_end(here: Room, work: Callable[[], None]) -> None:
    press(here, "init_models")
    assert messages(here) == ["Model loading started."]
    work()
    assert messages(here) == ["Model loading finished."]
    assert messages(here, **{"Accept-Language": "ko"}) == ["모델 로드 완료"]
    (form,) = re.findall(r'name="key" value="(\w+)"><input type="hidden" name="at" value="(\d+)"', text(here))
    here.client.post("/ui/dismiss?project=7", data={"key": form[0], "at": form[1]}, headers=HTMX)
    assert messages(here) == []


def test_a_finished_video_is_told_with_links(
    here: Room, beside: Outside, work: Callable[[], None], tmp_path: Path
) -> None:
    answer_as_label_studio(beside, {7: "Street"}, tasks=1)
    beside.answer("/api/tasks/1/", 200, json.dumps({"id": 1, "project": 7, "data": {"video": VIDEO}}).encode())
    beside.answer("/api/projects/7/", 200, json.dumps({"id": 7, "title": "Street", "label_config": CONFIG}).encode())
    beside.answer(VIDEO, 200, make_clip(tmp_path / "film.mp4").read_bytes())
    press(here, "render", task="1", source="base")
    work()
    (told,) = messages(here)
    assert told.startswith("Rendering finished. Task 1 project-7-task-1-base-")
    assert told.endswith(".mp4 Watch Download")


def test_an_export_of_nothing_says_so(here: Room, work: Callable[[], None]) -> None:
    press(here, "export", format="annotations", predictions="none")
    work()
    (told,) = messages(here)
    assert told.startswith("Export finished.")
    assert "Nothing has been annotated" in told


def test_what_another_browser_requests_is_not_told(here: Room, work: Callable[[], None]) -> None:
    here.services.api_queue.init_models(7)
    assert messages(here) == []
    work()
    assert messages(here) == []


@pytest.mark.parametrize("headers", [BROWSER, HTMX], ids=["without scripts", "with scripts"])
def test_a_failure_is_told_until_it_is_dismissed(here: Room, work: Callable[[], None], headers: dict[str, str]) -> None:
    export = {"format": "coco", "predictions": "none"}
    for project in (7, 8):  # by somebody else
        here.post("/api/export", {"project": project, **export}, 202)
    work()
    for _ in range(2):
        (told,) = messages(here)
        assert told.startswith("Export failed.")
        assert "Nothing has been annotated." in told
    key, at = re.findall(r'name="key" value="(\w+)"><input type="hidden" name="at" value="(\d+)"', text(here))[0]
    answer = here.client.post("/ui/dismiss?project=7&step=review", data={"key": key, "at": at}, headers=headers)
    assert answer.status_code == (303 if headers == BROWSER else 200)
    assert "failed" not in answer.get_data(as_text=True)
    assert messages(here) == []
    assert "Export failed." not in text(here, "/?project=7&step=review")
    press(here, "export", **export)  # which fails again, and is told again
    assert messages(here) == ["Export started."]
    work()
    assert len(messages(here)) == 1


def job(number: int, **facts: Any) -> dict[str, Any]:
    """A job of the API."""
    known = {"kind": "predict", "task": number, "state": "failed", "error": "It is away.", "result": None}
    times = {"requested_at": "2100-01-01T00:00:00+00:00", "ended_at": f"2100-01-01T00:00:{number:02d}+00:00"}
    return {"id": f"job-{number}", **known, **times, **facts}


def test_jobs_that_failed_for_one_reason_are_one_message() -> None:
    jobs = [job(1), job(2, kind="export_project", task=None), job(3), job(4, error="Another reason.")]
    other, first = job_notices(jobs, [], {})
    assert (other.error, first.error) == ("Another reason.", "It is away.")
    assert (first.kinds, first.tasks) == (["predict", "export_project"], [1, 3])
    later = job_notices([*jobs, job(5)], [], {first.key: first.at, other.key: other.at})
    assert [notice.tasks for notice in later] == [[5]], "only what has failed since"


def test_what_is_no_news() -> None:
    old = {"ended_at": "2020-01-01T00:00:00+00:00"}
    parts = [job(2, kind=kind) for kind in ("count_statistics", "describe_patterns", "find_similar")]
    unchanged = {"version": None, "state": "unchanged", "reason": "Nothing new has been annotated."}
    quiet = [job(3, kind="train", state="finished", error="", result=unchanged), job(4, state="cancelled", error="")]
    assert job_notices([job(1, **old), *parts, *quiet], [], {}) == []
    assert DAY_S == 24 * 3600


@pytest.mark.parametrize(("state", "error"), [("promoted", ""), ("refused", ""), ("failed", "Out of memory.")])
def test_every_training_that_made_a_version_is_told(state: str, error: str) -> None:
    result = {"version": "v2", "state": state, "reason": error or "mAP50-95 rose from 0.4 to 0.5."}
    (notice,) = job_notices([job(1, kind="train", task=None, state="finished", error="", result=result)], [], {})
    assert notice.error == error


@pytest.mark.parametrize("value", ["", "x", "." * 3000, "0123456789ab-x", "<script>", "0123456789ab-" + "9" * 15])
def test_cookies_that_are_wrong_do_no_harm(here: Room, value: str) -> None:
    press(here, "init_models")
    here.client.set_cookie("dismissed", value)
    assert messages(here) == ["Model loading started."]
    here.client.set_cookie("requested", value)
    assert messages(here) == []
    for key, at in ((value, "1"), ("0123456789ab", value)):
        assert here.client.post("/ui/dismiss", data={"key": key, "at": at}, headers=HTMX).status_code == 200


def test_a_project_that_does_not_exist_is_all_that_is_told(here: Room) -> None:
    for step in STEPS:
        shown = text(here, f"/?project=77&step={step}", **{"Accept-Language": "ko"})
        assert "프로젝트 77" in shown
        assert "/ui/part/counts" not in shown
    assert here.services.jobs.all() == []


# -- uploads


def files(*names: str) -> dict[str, Any]:
    return {"file": [(io.BytesIO(name.encode() * 9), name) for name in names]}


def test_several_files_in_one_form(here: Room) -> None:
    answer = press(here, "upload", BROWSER, **files("a.mp4", "notes.txt", "b.mkv"))
    assert answer.status_code == 200
    shown = answer.get_data(as_text=True)
    assert "notes.txt has no supported video extension." in shown
    assert sorted(messages(here)) == ["Video import started. a.mp4", "Video import started. b.mkv"]
    imports = [item["name"] for item in here.get("/api/jobs")["jobs"] if item["kind"] == "import_video"]
    assert sorted(imports) == ["a.mp4", "b.mkv"]


def test_the_api_takes_one_file_a_request(here: Room) -> None:
    data = {"project": "7", **files("a.mp4", "b.mp4")}
    problem = here.ask("POST", "/api/upload_video", 400, data=data, content_type="multipart/form-data")
    assert problem["hint"] == "Upload one at a time."
    assert not list(here.services.settings.uploads_dir.iterdir())


# -- in a browser


@pytest.mark.browser
def test_failures_are_seen_survive_a_reload_and_are_closed_by_keyboard(page: Any, work: Callable[[], None]) -> None:
    page.goto("/?project=7&step=review")
    page.locator("#format").select_option("coco")  # fails, since nothing has been annotated
    page.get_by_role("button", name="Export", exact=True).click()
    page.locator("#messages").get_by_text("Export started.").wait_for()
    work()
    failed = page.locator("#messages .message.bad", has_text="Export failed.")
    failed.wait_for()
    page.goto("/?project=7&step=auto")
    failed.wait_for()
    failed.get_by_role("link", name="Export").wait_for()
    close = failed.get_by_role("button", name="Close: Export")
    close.focus()
    page.keyboard.press("Enter")
    failed.wait_for(state="detached")
    page.reload()
    page.locator("#live.on").wait_for()
    assert page.locator("#messages .message").count() == 0


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 390])
def test_messages_cover_nothing(page: Any, work: Callable[[], None], width: int) -> None:
    page.set_viewport_size({"width": width, "height": 720})
    page.goto("/?project=7&step=review")
    page.locator("#format").select_option("coco")  # fails, since nothing has been annotated
    page.get_by_role("button", name="Export", exact=True).click()
    work()
    page.locator("#messages .message.bad").wait_for()
    for part in ("0", "document.body.scrollHeight / 2", "document.body.scrollHeight"):
        page.evaluate(f"scrollTo(0, {part})")
        covered = page.evaluate("""() => {
            const own = document.getElementById("messages").getBoundingClientRect();
            return [...document.querySelectorAll(".card, header, nav.steps")].filter((other) => {
                const box = other.getBoundingClientRect();
                return own.left < box.right && box.left < own.right && own.top < box.bottom && box.top < own.bottom;
            }).map((other) => other.innerText.slice(0, 40));
        }""")
        assert covered == []
    page.get_by_role("button", name="Load models").click()  # at the end of the page
    started = page.locator(".message", has_text="Model loading started.")
    started.wait_for()
    page.wait_for_function("box => box.getBoundingClientRect().top >= 0", arg=started.element_handle())


@pytest.mark.browser
def test_files_are_uploaded_one_by_one(chromium: Any, url: str, here: Room, tmp_path: Path) -> None:
    names = ("a.mp4", "empty.mp4", "b.mp4")
    for name in names:
        (tmp_path / name).write_bytes(b"" if name == "empty.mp4" else name.encode())
    page = chromium.new_page(locale="en", base_url=url)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if "/ui/do/upload" in request.url else None)
    page.goto("/?project=7")
    page.set_input_files("#file", [tmp_path / name for name in names])
    page.get_by_role("button", name="Upload").click()
    for name in ("a.mp4", "b.mp4"):
        page.locator("#part-notices .message", has_text=f"Video import started. {name}").wait_for()
    page.locator("#notice .message.bad", has_text="empty.mp4 is empty.").wait_for()
    assert len(asked) == 3
    assert {item["name"] for item in here.services.jobs.all()} == {"a.mp4", "b.mp4", None}, "and the statistics"
    page.locator("#notice").get_by_role("button", name="Close").click()
    assert page.locator("#notice .message").count() == 0
    page.route("**/ui/do/upload*", lambda route: route.abort())
    page.set_input_files("#file", tmp_path / "a.mp4")
    page.get_by_role("button", name="Upload").click()
    page.locator("#notice .message.bad", has_text="The server did not answer.").wait_for()
    page.close()


@pytest.mark.browser
@pytest.mark.parametrize("step", STEPS)
def test_an_empty_project_has_nothing_to_complain_of(page: Any, step: str) -> None:
    page.goto(f"/?project=7&step={step}")
    page.locator("#live.on").wait_for()


@pytest.mark.browser
def test_in_a_narrow_window_nothing_is_cut(page: Any, here: Room, beside: Outside, tmp_path: Path) -> None:
    page.set_viewport_size({"width": 390, "height": 800})
    answer_as_label_studio(beside, TITLES, tasks=12, name="d60efae8-crossing.mp4")
    here.services.queue.request_prepare(7, 1)
    promoted(here.services, tmp_path, b"PK")
    page.goto("/?project=7")
    for link in page.locator("#part-projects").get_by_role("link", name="Label").all():
        box = link.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    tables = (("label", "projects"), ("learn", "versions"), ("auto", "tasks"), ("review", "renders"))
    for step, part in tables:
        page.goto(f"/?project=7&step={step}")
        scroll = page.locator(f"#part-{part} .scroll")
        scroll.wait_for()
        assert scroll.evaluate("item => item.scrollWidth <= item.clientWidth"), "nothing is out of sight"


@dataclass(frozen=True, slots=True)
class Learned:
    labels: tuple[str, ...] = ("ambulance", "fallen person")


@pytest.fixture
def learned(here: Room, work: Callable[[], None]) -> Learned:
    """Project 7 has learned two labels."""
    here.services.patterns.switch(7, "yolo_dinov2")
    embedder, store = here.services.projects.models(7).classifier.embedder, here.services.projects.patterns
    assert embedder is not None
    rng = np.random.default_rng(0)
    for task, label in enumerate(Learned().labels, start=1):
        crops = []
        for frame in range(5):
            vector = rng.normal(task, 0.3, 1280).astype(np.float32)
            colour = tuple(int(value) for value in rng.integers(40, 220, 3))
            thumbnail = cv2.imencode(".jpg", np.full((96, 72, 3), colour, np.uint8))[1].tobytes()
            crops.append(CropEmbedding(frame, (1.0, 2.0, 3.0, 4.0), vector / np.linalg.norm(vector), thumbnail))
        store.crop_embeddings(f"video-{task}").add(embedder.model_id, crops)
        items = [
            NewExemplar(f"r{n // 3}", label, c.key(f"video-{task}", embedder.model_id)) for n, c in enumerate(crops)
        ]
        store.replace_task(7, embedder.model_id, task, task, items[: 1 if task == 2 else 5])
    store.mark_read(7, embedder.model_id)
    here.get("/api/get_patterns_info?project=7")
    work()
    return Learned()


@pytest.mark.browser
def test_a_point_of_the_map_opens_its_exemplar(page: Any, here: Room, learned: Learned) -> None:
    page.goto("/?project=7&step=learn")
    points = page.locator("svg.map a")
    assert points.count() == 6
    assert page.locator(".pattern", has_text=learned.labels[1]).get_by_text("1 exemplar of 1 object in 1 task").count()
    points.first.focus()
    page.keyboard.press("ArrowRight")
    chosen = page.evaluate("document.activeElement.getAttribute('aria-label')")
    page.keyboard.press("Enter")
    shown = page.locator("#part-exemplar .exemplar")
    shown.wait_for()
    label, task, frame = re.fullmatch(r"(.+), task (\d+), frame (\d+)", chosen).groups()
    assert shown.get_by_role("heading").inner_text() == label
    assert f"Frame {frame} of the file" in shown.inner_text()
    url = here.services.settings.label_studio_links
    assert shown.get_by_role("link").get_attribute("href") == f"{url}/projects/7/data?task={task}"
    assert shown.locator("img").evaluate("image => image.decode().then(() => image.naturalWidth)") == 72
    assert page.locator("svg.map a[tabindex='0']").count() == 1


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_messages_the_map_and_the_apis_page_are_accessible(
    chromium: Any, url: str, work: Callable[[], None], learned: Learned, scheme: str
) -> None:
    context = chromium.new_context(
        color_scheme=scheme, locale="en", base_url=url, viewport={"width": 1280, "height": 600}
    )
    page = context.new_page()
    page.goto("/?project=7&step=review")
    page.locator("#format").select_option("coco")  # fails, since nothing has been annotated
    page.get_by_role("button", name="Export", exact=True).click()
    page.locator(".message", has_text="Export started.").wait_for()
    work()
    page.locator(".message", has_text="Export failed.").wait_for()
    page.get_by_role("button", name="Load models").click()
    page.locator(".message", has_text="Model loading started.").wait_for()
    assert faults(page) == []
    page.goto("/?project=7&step=learn")
    page.locator("svg.map a").first.click()
    page.locator("#part-exemplar .exemplar").wait_for()
    assert page.locator("#messages .message").count() == 2
    assert faults(page) == []
    page.goto("/api/docs")
    assert faults(page) == []
    context.close()


def test_a_point_is_a_link_without_scripts(here: Room, learned: Learned) -> None:
    shown = text(here, "/?project=7&step=learn")
    number = re.findall(r'href="/\?project=7&amp;step=learn&amp;exemplar=(\d+)#exemplar"', shown)[0]
    assert "of the file" in text(here, f"/?project=7&step=learn&exemplar={number}")
    (row,) = here.get(f"/api/exemplars?project=7&id={number}")["exemplars"]
    assert row["id"] == int(number)
    assert "not in the pattern bank" in text(here, "/?project=7&step=learn&exemplar=999")
    assert len(here.get("/api/exemplars?project=7")["exemplars"]) == 6
