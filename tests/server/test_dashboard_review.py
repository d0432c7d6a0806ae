"""The step "Review" of the control room without a browser: what is drawn and what its forms do."""

from __future__ import annotations

import html
import re
from typing import Any

import pytest

from ml_backend.review.kinds import MOMENT_KINDS
from ml_backend.server.dashboard import texts
from tests.server.control import Room
from tests.server.test_dashboard import BROWSER, SCRIPT, page

STEP = "/?project=7&step=repair"
REPAIRS = [
    {"do": "split", "region": "a", "frame": 51},
    {"do": "join", "region": "a", "other": "b", "fill": True},
    {"do": "swap", "region": "a", "other": "b", "frame": 51, "blend": 2},
    {"do": "relabel", "region": "a", "label": SCRIPT},
    {"do": "end", "region": "a", "first": 1, "last": 51},
    {"do": "delete", "region": "a"},
    {"do": "boxes", "region": "a", "first": 1, "last": 51, "sequence": []},
    {"do": "add", "added": {}, "label": SCRIPT, "first": 5},
]


def moment(number: int, **facts: Any) -> dict[str, Any]:
    """The larger the number, the less there is to gain."""
    return {
        "id": f"{number:016x}",
        "video": "video",
        "annotation_id": 0,
        "author": "yolo.v1",
        "kind": "jump",
        "label": "thing",
        "first": 51,
        "last": 51,
        "shown": 51,
        "time": 2.5,
        "score": 0.8,
        "gain": 100.0 - number,
        "reason": f"Reason {number}.",
        "repair": REPAIRS[0],
        "regions": {"a": "0"},
        **facts,
    }


def fill(room: Room, *found: dict[str, Any], task: int = 1) -> None:
    room.services.reviews.store.replace_task(7, task, found)


def shown(text: str) -> str:
    """Number of the moment that is shown."""
    match = re.search(r'data-moment="(\w+)"', text)
    assert match is not None, text
    return match[1]


@pytest.mark.parametrize("lang", ["en", "ko"])
def test_every_kind_and_proposal_has_words_in_both_languages(room: Room, lang: str) -> None:
    words = texts.load_texts(lang)
    for kind in MOMENT_KINDS:
        fill(room, moment(1, kind=kind, label=SCRIPT, author=SCRIPT, reason=SCRIPT))
        text = page(room, STEP, **{"Accept-Language": lang})
        assert html.escape(words[f"fault_{kind}"]) in text
        assert "<script>alert" not in text
    for repair in REPAIRS:
        fill(room, moment(1, repair=repair, regions={"a": "0", "b": "1"}))
        text = html.unescape(page(room, STEP, **{"Accept-Language": lang}))
        assert f"{words['proposal']}: {words['do_' + repair['do']].format(**repair)}" in text


def test_one_at_a_time_with_each_key_once(room: Room) -> None:
    fill(room, moment(1), moment(2))
    text = page(room, STEP)
    assert shown(text) == moment(1)["id"]
    keys = re.findall(r'data-key="(\w)"', text)
    assert len(keys) == len(set(keys))
    assert set(keys) == {"a", "n", "k", "d", "s", "e"}, "there is one track only, with the only label"
    fill(room, moment(1, regions={}, repair=REPAIRS[-1]))
    assert set(re.findall(r'data-key="(\w)"', page(room, STEP))) == {"a", "n", "k"}, "there is no track yet"
    fill(room, moment(1, regions={"a": "0", "b": "1"}, label=""))
    keys = re.findall(r'data-key="(\w)"', page(room, STEP))
    assert set(keys) == {"a", "n", "k", "d", "s", "e", "j", "x", "1"}
    assert page(room, "/?project=7&step=learn").count("data-key") == 0


def test_filters_and_pages(room: Room) -> None:
    fill(room, moment(1), moment(2, kind="label", author="anna"))
    fill(room, moment(3, label="ding"), task=2)
    assert shown(page(room, f"{STEP}&page-moments=2")) == moment(2)["id"]
    assert shown(page(room, f"{STEP}&kind=label")) == moment(2)["id"]
    assert shown(page(room, f"{STEP}&author=anna")) == moment(2)["id"]
    assert shown(page(room, f"{STEP}&label=ding&task=2&kind=")) == moment(3)["id"]
    assert shown(page(room, f"{STEP}&page-moments=99")) == moment(3)["id"], "others have decided the last ones"
    assert texts.load_texts("en")["no_moments"] in page(room, f"{STEP}&task=5")
    assert "is wrong" in page(room, f"{STEP}&kind=nonsense")


def test_answered_without_scripts(room: Room) -> None:
    fill(room, moment(1), moment(2), moment(3, kind="label"))
    text = page(room, f"{STEP}&kind=jump")
    form = next(found for found in text.split("<form")[1:] if 'value="dismiss"' in found)
    action = re.search(r'action="([^"]+)"', form)
    assert action is not None
    fields = dict(re.findall(r'<input type="hidden" name="(\w+)" value="(\w+)">', form))
    answer = room.client.post(html.unescape(action[1]), data=fields, headers=BROWSER)
    text = answer.get_data(as_text=True)
    assert (answer.status_code, shown(text)) == (200, moment(2)["id"]), "the next one of this kind"
    assert "Not a fault" in text.split("Last decisions")[1]
    again = room.client.post(html.unescape(action[1]), data=fields, headers=BROWSER)
    assert again.status_code == 409
    assert "has decided this" in again.get_data(as_text=True)
    undo = {"project": "7", "repair": "1"}
    text = room.client.post("/ui/do/undo_repair?project=7&step=repair", data=undo, headers=BROWSER).get_data(
        as_text=True
    )
    assert shown(text) == moment(1)["id"]
    assert "undone by control room" in text


def test_a_reviewers_name_is_kept_and_recorded(room: Room) -> None:
    fill(room, moment(1))
    answer = room.client.get(f"{STEP}&reviewer=Anna+민", headers=BROWSER)
    assert (answer.status_code, answer.headers["Location"]) == (303, "/?project=7&step=repair")
    text = page(room, STEP)
    assert 'name="by" value="Anna 민"' in text
    data = {"project": "7", "moment": moment(1)["id"], "action": "skip", "by": "Anna 민"}
    room.client.post("/ui/do/repair?project=7&step=repair", data=data, headers={"HX-Request": "true"})
    assert [item["by"] for item in room.get("/api/repairs?project=7")["repairs"]] == ["Anna 민"]


def test_clips_of_the_next_moments_are_rendered_ahead(room: Room) -> None:
    fill(room, *(moment(number) for number in range(10)))
    page(room, STEP)
    jobs = [job_id for queue in room.services.queue.queues.values() for job_id in queue.get_job_ids()]
    assert sorted(name for name in jobs if name.startswith("clip-")) == [
        f"clip-{moment(number)['id']}" for number in range(4)
    ]


def test_other_sites_start_no_rendering(room: Room) -> None:
    fill(room, moment(1))
    page(room, STEP, **{"Sec-Fetch-Site": "cross-site"})
    address = f"/api/review/{moment(1)['id']}/clip?project=7"
    assert room.client.get(address, headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
    assert not any(queue.count for queue in room.services.queue.queues.values())
