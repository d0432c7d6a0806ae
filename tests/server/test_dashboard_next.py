"""What to annotate next in the control room, without a browser: what is drawn and what its forms do."""

from __future__ import annotations

import html
from typing import Any

import pytest

from ml_backend.jobs.api_queue import next_name
from ml_backend.server.api import handlers
from ml_backend.server.dashboard import texts
from tests.server.control import Room
from tests.server.test_dashboard import BROWSER, SCRIPT, page

STEP = "/?project=7&step=repair"


def segment(task: int, **facts: Any) -> dict[str, Any]:
    return {
        "task": task,
        "video": "video",
        "file": "film.mp4",
        "first": 201,
        "last": 400,
        "start": 10.0,
        "end": 20.0,
        "need": 1.5,
        "work_s": 95,
        "tracks": 3,
        "uncertain": 2,
        "label": "thing",
        "score": 0.31,
        "kinds": {"jump": 2, "label": 1},
        "covers": 4,
        "likeness": 0.1,
        "thumbnail": "data:image/jpeg;base64,QUJD",
        **facts,
    }


def publish(room: Room, *segments: dict[str, Any], count: int = 20, minutes: int = 0) -> None:
    facts = {"segments": segments, "tasks": 500, "of": 900}
    room.services.queue.publish(next_name(7, count, minutes), facts)


def jobs(room: Room, kind: str) -> list[dict[str, Any]]:
    handlers.all_jobs.cache_clear()  # which it keeps for a second
    return [item for item in room.get("/api/jobs?project=7")["jobs"] if item["kind"] == kind]


def test_nothing_is_chosen_before_somebody_asks(room: Room) -> None:
    assert 'id="choose-next"' in page(room, STEP)
    assert jobs(room, "choose_next") == []
    page(room, f"{STEP}&amount=5&unit=segments&again=1")
    assert len(jobs(room, "choose_next")) == 1
    assert "is wrong" in page(room, f"{STEP}&amount=5000&unit=segments")


@pytest.mark.parametrize("lang", ["en", "ko"])
def test_each_segment_says_why(room: Room, lang: str) -> None:
    words = texts.load_texts(lang)
    plain = segment(4, score=None, label="", uncertain=0, kinds={}, covers=0, likeness=None, thumbnail=None)
    publish(room, segment(3, label=SCRIPT), plain)
    text = page(room, f"{STEP}&amount=20&unit=segments", **{"Accept-Language": lang})
    assert "<script>alert" not in text
    first, second = html.unescape(text).split('<ol class="next">')[1].split("</ol>")[0].split("<li>")[1:]
    assert "0:10.0–0:20.0" in first
    assert f"{words['fault_jump']} ×2" in first
    assert words["looks_new"] in first
    assert words["least_certain"].format(label=SCRIPT, share="31 %") in first
    assert words["covers_n"].split("|")[-1].format(n=4) in first
    assert 'timeline=3&video=video&frame=201"' in first
    assert words["looks_new"] not in second
    assert words["next_of"].format(n=500, of=900) in html.unescape(text)
    publish(room)
    assert words["nothing_next"] in page(room, f"{STEP}&amount=20", **{"Accept-Language": lang})


def test_ordered_without_scripts(room: Room) -> None:
    publish(room, segment(3), minutes=30)
    text = page(room, f"{STEP}&amount=30&unit=minutes")
    form = next(found for found in text.split("<form")[1:] if 'id="order-tasks"' in found)
    assert '<input type="hidden" name="minutes" value="30">' in form
    fields = {"project": 7, "minutes": 30}
    answer = room.client.post("/ui/do/order_tasks?project=7&step=repair", data=fields, headers=BROWSER)
    assert answer.status_code == 200, answer.get_data(as_text=True)
    (job,) = jobs(room, "order_tasks")
    assert job["state"] == "queued"
    (action,) = room.services.audit.find(7, 5, 0)[0]
    assert (action["action"], action["detail"]) == ("order_tasks", "segments 20, minutes 30")
