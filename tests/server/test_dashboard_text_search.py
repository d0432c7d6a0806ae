"""Finding by text in the control room, without a browser: what is drawn and what its form does."""

from __future__ import annotations

import html
import re
from typing import Any
from urllib.parse import quote

import pytest

from ml_backend.jobs.api_queue import text_search_name
from ml_backend.label_studio.label_config import config_digest
from ml_backend.server.dashboard import texts
from tests.builders import CONFIG, Outside
from tests.server.control import Room
from tests.server.test_dashboard import BROWSER, SCRIPT, page
from tests.server.test_dashboard_next import jobs

STEP = "/?project=7&step=learn"


def frame(task: int, *scores: float) -> dict[str, Any]:
    boxes = [{"x": 10.0, "y": 20.0, "width": 30.0, "height": 40.0, "score": score} for score in scores]
    facts = {"task": task, "frame": 30, "time": 1.2, "width": 480, "height": 270, "boxes": boxes}
    return {**facts, "picture": "data:image/jpeg;base64,QUJD"}


def publish(room: Room, phrase: str, *frames: dict[str, Any], tasks: tuple[int, ...] = ()) -> None:
    facts = {"frames": frames, "conf": 0.3, "model": "owlv2", "skipped": ["Task 5: its video is gone."]}
    room.services.queue.publish(text_search_name(7, phrase, tasks, 12), facts)


def test_nothing_is_searched_before_somebody_asks(room: Room) -> None:
    assert 'id="search-text"' in page(room, STEP)
    assert jobs(room, "search_text") == []
    page(room, f"{STEP}&phrase=yellow%20vest&in_tasks=1,%202&again=1")
    (job,) = jobs(room, "search_text")
    assert job["state"] == "queued"
    text = page(room, f"{STEP}&phrase=vest&in_tasks=1%202")
    assert len(jobs(room, "search_text")) == 2
    source = html.unescape(text.split('id="part-text_search"')[1].split(">")[0])
    assert "phrase=vest&in_tasks=1+2" in source, "the part is loaded again with its phrase when the job has ended"
    assert "is wrong" in page(room, f"{STEP}&phrase=vest&in_tasks=all")


@pytest.mark.parametrize("lang", ["en", "ko"])
def test_boxes_are_drawn_and_the_label_is_given(room: Room, lang: str) -> None:
    words = texts.load_texts(lang)
    phrase = f"yellow vest|{SCRIPT}"
    publish(room, phrase, frame(3, 0.62, 0.2), frame(4))
    text = page(room, f"{STEP}&phrase={quote(phrase)}", **{"Accept-Language": lang})
    assert "<script>alert" not in text
    first, second = text.split('<ul class="searched">')[1].split("</ul>")[0].split("<li>")[1:]
    assert first.count("<rect") == 2
    assert first.count('class="weak"') == 1
    assert '<rect x="48.0" y="54.0" width="144.0" height="108.0"/>' in first
    assert "62 %" in first
    assert words["boxes_n"].split("|")[0].format(n=1) in html.unescape(first)
    assert "<rect" not in second
    assert '<Label value="yellow vest" prompt=' in html.unescape(text)
    assert "Task 5: its video is gone." in text
    assert 'id="auto-found"' in text
    assert jobs(room, "search_text") == []


def test_a_label_is_offered_to_be_described(room: Room, beside: Outside) -> None:
    publish(room, "yellow vest", frame(3, 0.62))
    text = page(room, f"{STEP}&phrase=yellow%20vest").split('id="add-prompt"')[0].rsplit("<form", 1)[1]
    fields = dict(re.findall(r'name="(\w+)"[^>]*? value="([^"]*)"', text))
    assert fields == {"project": "7", "phrase": "yellow vest", "config": config_digest(CONFIG), "label": "yellow vest"}
    assert '<option value="thing">' in text
    answer = room.client.post("/ui/do/add_prompt", data=fields | {"config": 16 * "0"}, headers=BROWSER)
    assert answer.status_code == 409
    assert "The label config was changed meanwhile." in answer.get_data(as_text=True)
    beside.answer("/api/projects/7/", 502)
    text = page(room, f"{STEP}&phrase=yellow%20vest")
    assert "/ui/do/add_prompt" not in text
    assert '<Label value="yellow vest" prompt=' in html.unescape(text)
