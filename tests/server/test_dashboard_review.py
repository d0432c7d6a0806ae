"""The step "Review" of the control room without a browser: what is drawn and what its forms do."""

from __future__ import annotations

import html
import json
import re
from typing import Any

import pytest

from ml_backend.jobs.api_queue import objects_name
from ml_backend.label_studio.regions import MAX_GLOBAL_ID
from ml_backend.review.kinds import MOMENT_KINDS
from ml_backend.server.dashboard import texts
from tests.builders import Outside
from tests.review.test_region_repairs import LATER, A, B, region
from tests.server.control import Room
from tests.server.test_dashboard import BROWSER, SCRIPT, kinds, page

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

    def clips() -> list[str]:
        jobs = [job_id for queue in room.services.queue.queues.values() for job_id in queue.get_job_ids()]
        return [name for name in jobs if name.startswith("clip-")]

    def names(*numbers: int) -> list[str]:
        return [f"clip-{moment(number)['id']}" for number in numbers]

    page(room, STEP)
    assert clips() == names(0, 1, 2, 3)
    page(room, f"{STEP}&page-moments=7")
    assert clips() == names(6, 0, 1, 2, 3, 7, 8, 9), "what is shown comes before what was rendered ahead"
    page(room, f"{STEP}&page-moments=8")
    assert clips() == names(7, 6, 0, 1, 2, 3, 8, 9), "also if its own clip was among these"


def test_other_sites_start_no_rendering(room: Room) -> None:
    fill(room, moment(1))
    page(room, STEP, **{"Sec-Fetch-Site": "cross-site"})
    address = f"/api/review/{moment(1)['id']}/clip?project=7"
    assert room.client.get(address, headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
    assert not any(queue.count for queue in room.services.queue.queues.values())


# -- the tracks of a task

TRACKS = f"{STEP}&timeline=1"


def predict(beside: Outside, *regions: dict[str, Any]) -> None:
    """Task 1 of project 7 has a prediction."""
    prediction = {"id": 5, "model_version": SCRIPT, "score": 0.9, "result": [*regions], "created_at": "2026-01-01"}
    task = {"id": 1, "project": 7, "data": {"video": "/data/1-film.mp4"}, "annotations": [], "drafts": []}
    beside.answer("/api/tasks/1/", 200, json.dumps({**task, "predictions": [prediction]}).encode())


def ticked(text: str) -> list[str]:
    """Regions of the tracks that are ticked, in their order."""
    boxes = re.findall(r'<input type="checkbox" name="tracks" value="[0-9a-f]{16}([^"]*)"[^>]*>', text)
    chosen = re.findall(r'name="tracks" value="[0-9a-f]{16}([^"]*)"[^>]* checked', text)
    assert len(boxes) == text.count('name="tracks"')
    return chosen


def test_tracks_are_ticked_by_label_score_length_and_area(room: Room, beside: Outside) -> None:
    sure = region("sure", [(1, 0.0, True), (90, 50.0, True)], score=0.9)
    small = {**region("small", [(1, 0.0, True), (20, 5.0, False)], "car", score=0.2)}
    small["value"]["sequence"] = [{**key, "height": 5.0} for key in small["value"]["sequence"]]
    predict(beside, A, B, LATER, sure, small)
    assert ticked(page(room, TRACKS)) == []
    assert ticked(page(room, f"{TRACKS}&pick-label==car")) == ["small", "c"]
    assert ticked(page(room, f"{TRACKS}&score-to=50")) == ["small"], "the others have none, or more"
    assert ticked(page(room, f"{TRACKS}&frames-from=20&frames-to=60")) == ["small", "a", "c"]
    assert ticked(page(room, f"{TRACKS}&area-to=1")) == ["small"]
    assert ticked(page(room, f"{TRACKS}&pick-label==person&area-from=1&score-from=80")) == ["sure"]
    assert ticked(page(room, f"{TRACKS}&frames-from=x")) == []
    fill(room, moment(1, regions={"b": "0"}, shown=33))
    text = page(room, f"{TRACKS}&moment={moment(1)['id']}")
    assert ticked(text) == ["b"]
    assert 'data-frame="33" data-frames="100"' in text


def test_tracks_show_gaps_boxes_and_no_markup_of_others(room: Room, beside: Outside) -> None:
    gap = region(SCRIPT, [(1, 0.0, True), (50, 9.0, False), (61, 20.0, True), (100, 20.0, True)], SCRIPT)
    predict(beside, A, {**gap, "meta": {"global_id": 12}})
    text = page(room, f"{TRACKS}&frame=55")
    assert text.count("#12</span>") == 1
    assert "<script>alert" not in text
    assert '<g data-track="2"' in text
    assert '<g data-track="1"' not in text, "it is hidden there"
    life = text.split('<svg class="life')[1].split("</svg>")[0]
    assert re.findall(r'x="([\d.]+)%" width="([\d.]+)%"', life) == [("0.0", "50.0"), ("60.0", "40.0")]
    keys = re.findall(r'data-key="([^"]+)"', text)
    assert len(keys) == len(set(keys))
    assert {"arrowleft", "arrowright", "[", "]", "s", "e", "d", "j", "x", "1"} == set(keys)
    beyond = page(room, f"{TRACKS}&frame=500")
    assert 'data-frame="100"' in beyond


def test_an_accepted_track_has_the_number_of_its_prediction(room: Room, beside: Outside) -> None:
    submitted = {"id": 9, "created_at": "2026-01-02", "result": [A]}  # as some versions of Label Studio submit it
    prediction = {"id": 5, "model_version": "yolo", "result": [{**A, "meta": {"global_id": 12}}]}
    task = {"id": 1, "project": 7, "data": {"video": "/data/1-film.mp4"}, "drafts": []}
    found = {**task, "annotations": [submitted], "predictions": [prediction]}
    beside.answer("/api/tasks/1/", 200, json.dumps(found).encode())
    assert page(room, TRACKS).count("#12</span>") == 1


def test_tracks_are_repaired_without_scripts(room: Room, beside: Outside) -> None:
    predict(beside, A, B)
    text = page(room, f"{TRACKS}&frame=30")
    form = text.split('<form id="repair-tracks"')[1].split("</form>")[0]
    action = html.unescape(re.findall(r'action="([^"]+)"', form)[0])
    fields = dict(re.findall(r'<input type="hidden" name="(\w+)" value="(\w+)">', form))
    assert '<input type="hidden" name="frame" value="30" form="repair-tracks">' in text
    values = re.findall(r'name="tracks" value="([^"]+)"', form)
    sent = {**fields, "frame": "30", "action": "relabel:thing"}
    nothing = room.client.post(action, data=sent, headers=BROWSER)
    assert nothing.status_code == 400
    assert "No track is selected" in nothing.get_data(as_text=True)
    seen = [*values[:1], "0" * 16 + "b"]
    stale = room.client.post(action, data={**sent, "tracks": seen}, headers=BROWSER)
    assert stale.status_code == 409
    assert "Task 1 has another track b since it was read" in stale.get_data(as_text=True)
    assert 'data-frame="30"' in stale.get_data(as_text=True), "the same page"
    odd = {**sent, "tracks": values[:1], "action": "identify", "global_id": "0"}
    assert room.client.post(action, data=odd, headers=BROWSER).status_code == 400
    stale = room.client.post(action, data={**odd, "tracks": seen, "global_id": "12"}, headers=BROWSER)
    assert stale.status_code == 409


# -- objects of several tracks

OBJECTS = f"{STEP}&objects=1"


def listed(number: int, task: int, region_id: str = "a", **facts: Any) -> dict[str, Any]:
    """A track of an object, as the job publishes it."""
    place = {"task": task, "video": "video", "file": "film.mp4", "annotation": None, "region": region_id}
    seen = {"digest": f"{task:016x}", "label": "thing", "first": 11, "last": 40, "start": 0.5, "end": 2.0}
    return {**place, **seen, "global_id": number, "by": "anna", "found": True, "thumbnail": None, **facts}


def publish(room: Room, *tracks: dict[str, Any], **facts: Any) -> None:
    last, digest = room.services.reviews.store.identity_state(7)
    read = {"last": last, "digest": digest, "tracks": tracks, "more": 0, "tasks": 9, "of": 12, "skipped": []}
    room.services.queue.publish(objects_name(7), {**read, **facts})


@pytest.mark.parametrize("lang", ["en", "ko"])
def test_objects_with_the_most_tracks_first(room: Room, lang: str) -> None:
    words, headers = texts.load_texts(lang), {"Accept-Language": lang}
    assert 'href="/?project=7&amp;step=repair&amp;objects=1"' in page(room, STEP)
    assert "list_objects" not in kinds(room), "nothing is read before somebody asks"
    assert words["kind_list_objects"] in page(room, OBJECTS, **headers)
    assert "list_objects" in kinds(room)
    picture = "data:image/jpeg;base64,QUJD"
    many = [listed(4, task, f"{SCRIPT} {task}", label=SCRIPT, by=SCRIPT, found=False) for task in (1, 2, 3)]
    pair = [listed(2, 1, thumbnail=picture), listed(2, 5, "b", by=None, found=False)]
    publish(room, *pair, *many, listed(9, 6), more=3)
    text = page(room, OBJECTS, **headers)
    assert re.findall(r'id="object-(\d+)"', text) == ["4", "2"], "one track is no other's"
    assert "<script>alert" not in text
    first, second = html.unescape(text).split('<form class="pattern object"')[1:]
    assert words["set_by"].format(by=SCRIPT) in first
    assert picture in second
    assert words["found_by_looks"] in second
    assert "0:00.5–0:02.0" in second
    assert "timeline=5&video=video&frame=11&pick-track=b" in second
    assert words["objects_more"].split("|")[-1].format(n=3) in html.unescape(text)
    publish(room, *(listed(number, task) for number in range(1, 13) for task in (number, number + 20)))
    assert re.findall(r'id="object-(\d+)"', page(room, f"{OBJECTS}&page-objects=2")) == ["11", "12"]
    for beyond in (99, (1 << 31) - 1):
        assert re.findall(r'id="object-(\d+)"', page(room, f"{OBJECTS}&page-objects={beyond}")) == ["11", "12"]
    publish(room)
    assert words["no_objects"] in html.unescape(page(room, OBJECTS, **headers))


def test_objects_are_read_again_after_a_number_was_given_and_undone(room: Room) -> None:
    publish(room, listed(2, 1), listed(2, 5, "b"))
    page(room, OBJECTS)
    assert "list_objects" not in kinds(room)
    store = room.services.reviews.store
    facts = {"project_id": 7, "task_id": 1, "moment_id": "", "description": "", "by": "anna", "action": "identify"}
    store.undo(store.add([{**facts, "after": [{"id": "a", "meta": {"global_id": 3}}]}]), "anna")
    page(room, OBJECTS)
    assert "list_objects" in kinds(room), "the tracks may have been read in between"


def test_ids_are_given_without_scripts_as_tracks_were_read_only(room: Room, beside: Outside) -> None:
    about_it = {"id": A["id"], "to_name": A["to_name"], "type": "choices", "value": {"choices": ["far"]}}
    annotate(beside, {"anna@example.org": [{**A, "meta": {"global_id": 2}}, B, about_it]})
    (track,) = room.get("/api/tracks?project=7&task=1")["videos"][0]["tracks"][:1]
    publish(room, listed(2, 1, annotation=1, digest=track["digest"]), listed(2, 99, "z"))
    form = page(room, OBJECTS).split('<form class="pattern object"')[1].split("</form>")[0]
    place = html.unescape(re.findall(r'action="([^"]+)"', form)[0])
    sent = dict(re.findall(r'<input type="hidden" name="(project|known)" value="(\w+)">', form))
    every = re.findall(r'name="every" value="([^"]+)"', form)

    def press(name: str, status: int, **fields: Any) -> str:
        answer = room.client.post(place, data={**sent, "every": every, "action": name, **fields}, headers=BROWSER)
        text = html.unescape(answer.get_data(as_text=True))
        assert answer.status_code == status, text
        assert 'id="part-objects"' in text, "the same page"
        return text

    assert "No track is selected" in press("out", 400)
    assert "No global id is given" in press("all", 400)
    for odd in ("0", "1000000000", "2.5", "x"):
        press("give", 400, tracks=every[:1], global_id=odd)
    for odd in ("", "1", "1 1 x a", "0 1 0000000000000000 a", "1 -1 0000000000000000 a"):
        press("out", 400, tracks=odd)
    assert "has another track" in press("out", 409, tracks=f"1 1 {'0' * 16} a")
    for other in ("3", f"{MAX_GLOBAL_ID}"):
        assert "has a track with another global id" in press("out", 409, tracks=every[:1], known=other)
    beside.answer("/api/tasks/1/annotations/", 201, b'{"id": 55}', content_type="application/json")
    text = press("all", 200, global_id="7")
    assert "1 task was left out" in text
    assert "Global id 7." in text.split("Last decisions")[1]
    assert 'id="object-2"' not in text
    (action,) = room.services.audit.find(7, 5, 0)[0]
    assert action["action"] == "identify_tracks"


def test_moments_like_the_one_that_was_accepted_last_are_offered(room: Room) -> None:
    alike = {"signature": "a" * 16, "embedding": None}
    fill(room, *(moment(number, **alike) for number in (1, 2)), moment(3, signature="b" * 16, embedding=None))
    fill(room, moment(4, label=SCRIPT, **alike), task=2)
    assert 'id="accept-similar"' not in page(room, STEP), "nothing was accepted"
    facts = {"project_id": 7, "task_id": 3, "moment_id": "0" * 16, "description": "", "by": "anna", **alike}
    room.services.reviews.store.add([{**facts, "action": "accept"}])
    text = page(room, STEP)
    assert "3 more like this" in text
    keys = re.findall(r'data-key="(\w)"', text)
    assert len(keys) == len(set(keys))
    assert "m" in keys
    offered = text.split('<details id="alike">')[1].split("</details>")[0]
    assert re.findall(r"moment=(\w{16})", offered) == [moment(number)["id"] for number in (1, 2, 4)]
    data = {"project": "7", "repair": "1"}
    answer = room.client.post("/ui/do/accept_similar?project=7&step=repair", data=data, headers=BROWSER)
    assert answer.status_code == 409, "their tasks are not in Label Studio"
    assert "was deleted" in answer.get_data(as_text=True)
    room.services.reviews.store.add([{**facts, "moment_id": moment(3)["id"], "action": "dismiss"}])
    assert 'id="accept-similar"' not in page(room, STEP), "something else was decided since"


# -- several people


CONSENSUS = f"{STEP}&consensus=1"


def annotate(beside: Outside, people: dict[str, list[dict[str, Any]]], truth: str = "") -> None:
    """Task 1 of project 7 has an annotation of each person, and a prediction with the tracks of the first."""
    annotations = [
        {"id": number, "completed_by": {"id": number, "email": name}, "result": result, "ground_truth": name == truth}
        | {"created_at": f"2026-01-0{number}T00:00:00Z", "updated_at": f"2026-01-0{number}T00:00:00Z"}
        for number, (name, result) in enumerate(people.items(), start=1)
    ]
    predicted = {"id": 5, "model_version": "v", "result": next(iter(people.values())), "created_at": "2026-01-01"}
    task = {"id": 1, "project": 7, "data": {"video": "/data/1-film.mp4"}, "annotations": annotations, "drafts": []}
    beside.answer("/api/tasks/1/", 200, json.dumps({**task, "predictions": [predicted]}).encode())


@pytest.mark.parametrize("lang", ["en", "ko"])
def test_consensus_of_people_with_and_without_the_model(room: Room, beside: Outside, lang: str) -> None:
    words = texts.load_texts(lang)
    annotate(beside, {"anna@example.org": [{**A, "value": {**A["value"], "labels": [SCRIPT]}}], SCRIPT: [A, B]})
    text = page(room, CONSENSUS, **{"Accept-Language": lang})
    assert "<script>alert" not in text
    rows = text.split("<tbody>")[1].split("</tbody>")[0].split("<tr")[1:]
    assert [words["consensus_kept"] in row for row in rows] == [True, False]
    assert words["consensus_tie"] in rows[1]
    assert words["model"] not in text.split("<thead>")[1].split("</thead>")[0], "it was not asked"
    asked = page(room, f"{CONSENSUS}&model=1", **{"Accept-Language": lang})
    label = asked.split("<tbody>")[1].split("</th>")[0]
    assert SCRIPT in html.unescape(label), "its label decides"
    assert words["model"] in asked.split("<thead>")[1].split("</thead>")[0]
    assert 'name="model" value="true"' in asked


def test_consensus_is_written_without_scripts_as_it_was_read_only(room: Room, beside: Outside) -> None:
    annotate(beside, {"anna@example.org": [A, B], "ben@example.org": [A]})
    text = page(room, CONSENSUS)
    form = next(found for found in text.split("<form")[1:] if 'id="write-consensus"' in found)
    action = html.unescape(re.findall(r'action="([^"]+)"', form)[0])
    fields = dict(re.findall(r'<input type="hidden" name="(\w+)" value="(\w+)">', form))
    annotate(beside, {"anna@example.org": [A, B], "ben@example.org": [A, B]})
    answer = room.client.post(action, data=fields, headers=BROWSER)
    assert answer.status_code == 409
    told = answer.get_data(as_text=True)
    assert "was annotated since it was read" in told
    assert 'id="write-consensus"' in told, "the same page"
    assert room.get("/api/repairs?project=7")["repairs"] == []
    annotate(beside, {"anna@example.org": [A, B], "ben@example.org": [A, B]}, truth="ben@example.org")
    marked = page(room, CONSENSUS)
    assert texts.load_texts("en")["consensus_truth"].format(n=2) in marked
    assert 'id="write-consensus"' not in marked
    annotate(beside, {"anna@example.org": [A, B]})
    assert texts.load_texts("en")["consensus_one"] in page(room, CONSENSUS)


def test_agreement_by_person_and_the_tasks_of_several(room: Room) -> None:
    work = {"person": SCRIPT, "tasks": 2, "tracks": 7, "seconds": 90.0, "kept": 3, "moved": 1, "relabelled": 0}
    work |= {"deleted": 2, "added": 1, "acceptance": 0.5, "hota": 0.8, "idf1": None, "kappa": None}
    shared = {"task": 4, "people": [SCRIPT, "ben"], "disputes": 3}
    room.services.queue.publish("agreement-7", {"pairs": [], "people": [work], "tasks": [shared]})
    text = page(room, STEP).split('id="h-agreement"')[1]
    assert "<script>alert" not in text
    row = html.unescape(text).split(f'<th scope="row">{SCRIPT}')[1].split("</tr>")[0]
    assert re.findall(r'<td class="num">([^<]+)</td>', row)[:4] == ["2", "7", "2 min", "50 %"]
    assert "consensus=4" in html.unescape(text.split('<details id="shared-tasks">')[1].split("</details>")[0])
