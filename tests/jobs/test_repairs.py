"""What people answer to suspicious moments, through the API, and what Label Studio has of it afterwards."""

from __future__ import annotations

import io
import uuid
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from PIL import Image

from ml_backend.jobs.delivery import deliver_one
from ml_backend.review.repair_json import frames_name
from ml_backend.server.app import create_app
from tests.builders import label_config
from tests.jobs.conftest import Site
from tests.jobs.test_review import JUMPS, SOUND, VERSION, Work, log_detections, look, predicted
from tests.jobs.test_review_job import counts, learn, submit
from tests.review.test_region_repairs import region, shown
from tests.server.control import Room

CONFIG = label_config("person", "car")
NEWER = "yolo.track.yolo.v1"
#: Another track that jumps.
TOO = region("too", [(1, 30.0, True), (70, 35.0, True), (71, 80.0, True), (100, 85.0, True)], y=55.0, score=0.9)


@pytest.fixture
def here(site: Callable[..., Site]) -> Site:
    return site(mode="yolo")


@pytest.fixture
def project(here: Site) -> int:
    return here.project(CONFIG)


@pytest.fixture
def room(here: Site) -> Room:
    return Room(create_app(here.settings))


def queue(room: Room, project: int, **filters: Any) -> list[dict[str, Any]]:
    query = "".join(f"&{name}={value}" for name, value in filters.items())
    found: list[dict[str, Any]] = room.get(f"/api/review?project={project}{query}")["moments"]
    return found


def answer(room: Room, project: int, moment: dict[str, Any], action: str, status: int = 200, **fields: Any) -> Any:
    body = {"project": project, "moment": moment["id"], "action": action, "by": "anna", **fields}
    return room.post("/api/repairs", body, status)


def undo(room: Room, project: int, repair: dict[str, Any], status: int = 200) -> Any:
    return room.post("/api/repairs/undo", {"project": project, "repair": repair["id"], "by": "ben"}, status)


def regions(here: Site, task: int) -> list[dict[str, Any]]:
    """Of the only prediction."""
    (prediction,) = here.client.list_predictions(task)
    return prediction.result


def annotations(here: Site, task: int) -> list[dict[str, Any]]:
    """All submitted ones, oldest first."""
    address = f"{here.settings.label_studio_url}/api/tasks/{task}/annotations/"
    found = httpx.get(address, headers=here.client.auth_headers(), timeout=120).json()
    return sorted(found, key=lambda item: item["id"])


def test_queue_by_gain_with_filters_and_pages(here: Site, project: int, room: Room, work: Work) -> None:
    one, two = predicted(here, project, JUMPS, SOUND), predicted(here, project, JUMPS, TOO)
    assert room.get(f"/api/review?project={project}")["moments"] == []
    here.queue.request_review(project, [one, two])
    assert room.get(f"/api/review?project={project}")["pending"] == 2
    work(here)
    told = room.get(f"/api/review?project={project}")
    assert (told["total"], told["pending"]) == (3, 0)
    gains = [moment["gain"] for moment in told["moments"]]
    assert gains == sorted(gains, reverse=True)
    assert told["filters"]["task"] == [{"value": one, "moments": 1}, {"value": two, "moments": 2}]
    assert told["filters"]["author"] == [{"value": VERSION, "moments": 3}]
    assert [m["task"] for m in queue(room, project, task=one)] == [one]
    jumps = queue(room, project, kind="jump", label="person", author=VERSION)
    assert jumps == [moment for moment in told["moments"] if moment["kind"] == "jump"] != []
    assert queue(room, project, label="car") == queue(room, project, kind="duplicate") == []
    pages = [queue(room, project, limit=1, offset=n)[0]["id"] for n in range(3)]
    assert pages == [moment["id"] for moment in told["moments"]]
    room.get(f"/api/review?project={project}&kind=nonsense", 400)


def test_prediction_is_repaired_and_a_refresh_keeps_that(here: Site, project: int, room: Room, work: Work) -> None:
    task = predicted(here, project, JUMPS, SOUND)
    look(here, work, project, task)
    (moment,) = queue(room, project)
    assert (moment["proposal"], moment["is_prediction"], moment["shown"]) == ("Split at frame 51.", True, 51)
    done = answer(room, project, moment, "accept")
    assert (done["description"], done["by"], done["annotation"]) == ("Split at frame 51.", "anna", None)
    first, second, sound = regions(here, task)
    assert shown(first) | shown(second) == shown(JUMPS)
    assert (first["id"], sound) == ("jumps", SOUND)
    assert "Split at frame 51. anna, 20" in first["meta"]["text"]
    (prediction,) = here.predictions(task)
    assert (prediction.model_version, prediction.score) == (VERSION, 0.9)
    assert queue(room, project) == []
    container = look(here, work, project, task)
    assert queue(room, project) == []
    # Labels were learned meanwhile, which gives the same tracks another label and other scores.
    renamed = {**JUMPS, "id": "new", "score": 0.7, "value": {**JUMPS["value"], "labels": ["car"]}}
    deliver_one(container, project, task, {"model_version": NEWER, "score": 0.7, "result": [renamed, SOUND]})
    kept = {item["id"]: item for item in here.client.list_predictions(task)[-1].result}
    assert kept["jumps"]["value"]["sequence"] == first["value"]["sequence"]
    assert [item["value"]["labels"] for item in kept.values()] == [["car"], ["car"], ["person"]]
    assert undo(room, project, done)["undone_by"] == "ben"
    restored = here.client.list_predictions(task)[-1].result
    assert [shown(item) for item in restored] == [shown(JUMPS), shown(SOUND)]
    undo(room, project, done, 409)
    assert [item["undone_by"] for item in room.get(f"/api/repairs?project={project}")["repairs"]] == ["ben"]


def test_missed_object_is_added(here: Site, project: int, room: Room, work: Work) -> None:
    task = predicted(here, project, SOUND)
    log_detections(here, project, task)
    container = look(here, work, project, task)
    (moment,) = queue(room, project)
    assert (moment["kind"], moment["regions"]) == ("no_box", [])
    for action in ("split", "delete", "relabel"):
        answer(room, project, moment, action, 400, label="car", frame=3)
    done = answer(room, project, moment, "accept")
    assert done["description"] == "Added a track of car from frame 1 on."
    sound, added = regions(here, task)
    assert (sound, added["value"]["labels"], len(shown(added))) == (SOUND, ["car"], 100)
    look(here, work, project, task)
    assert queue(room, project) == []
    deliver_one(container, project, task, {"model_version": NEWER, "score": 0.7, "result": [SOUND]})
    assert [shown(item) for item in here.client.list_predictions(task)[-1].result] == [shown(SOUND), shown(added)]
    undo(room, project, done)
    assert here.client.list_predictions(task)[-1].result == [SOUND]


def test_prediction_that_label_studio_asks_for_is_repaired(here: Site, project: int, room: Room, work: Work) -> None:
    task, other = (predicted(here, project, JUMPS, SOUND) for _ in range(2))
    look(here, work, project, task)
    answer(room, project, queue(room, project, task=task)[0], "accept")
    service = room.services.prediction_service
    data = [{"id": number, "data": here.data(number), "annotations": []} for number in (task, other)]
    plan = service.plan(data[0], project, CONFIG, room.services.projects.models(project))
    made = {"model_version": plan.version, "score": 0.9, "result": [JUMPS, SOUND]}
    here.queue.storage.save_prediction(plan.key, project, made)
    repaired, plain = service.predict(project, CONFIG, data)
    assert [len(item["result"]) for item in (repaired, plain)] == [3, 2]


def test_annotation_of_a_person_is_never_written_to(here: Site, project: int, room: Room, work: Work) -> None:
    task = predicted(here, project, JUMPS, TOO, SOUND)
    (prediction,) = here.predictions(task)
    theirs = submit(here, task, [JUMPS, TOO, SOUND], prediction.id)
    learn(here, work, project, task)
    first, second = queue(room, project)
    assert not first["is_prediction"]
    before = annotations(here, task)[0]
    done = answer(room, project, first, "accept")
    again = answer(room, project, second, "delete")  # at once, before the task was looked at again
    assert done["annotation"] == again["annotation"] != theirs
    person, ours = annotations(here, task)
    assert person == before
    assert (ours["id"], ours["parent_annotation"], ours["parent_prediction"]) == (
        done["annotation"],
        theirs,
        prediction.id,
    )
    assert [item["id"] for item in ours["result"]].count("jumps" if second["regions"] == ["jumps"] else "too") == 0
    assert len(ours["result"]) == 3
    # It teaches as a correction in the editor does: what was wrong counts against the version.
    learn(here, work, project, task)
    assert counts(here, project, VERSION) == {"accepted": 1, "moved": 1, "deleted": 1, "added": 1}
    undo(room, project, again)
    assert len(annotations(here, task)[1]["result"]) == 4
    undo(room, project, done)
    assert annotations(here, task) == [before]
    learn(here, work, project, task)
    assert counts(here, project, VERSION) == {"accepted": 3}
    assert len(queue(room, project)) == 2, "the moments are back"


def test_what_somebody_has_changed_since_is_left_alone(here: Site, project: int, room: Room, work: Work) -> None:
    task = predicted(here, project, JUMPS, TOO)
    submit(here, task, [JUMPS, TOO])
    learn(here, work, project, task)
    done = answer(room, project, queue(room, project)[0], "accept")
    learn(here, work, project, task)
    edited = [*annotations(here, task)[-1]["result"], SOUND]
    here.client.update_annotation(done["annotation"], edited)
    assert "changed the repaired annotation" in undo(room, project, done, 409)["detail"]
    learn(here, work, project, task)
    again = answer(room, project, queue(room, project)[0], "accept")
    assert again["annotation"] != done["annotation"], "the person's changes are theirs now"
    theirs, repaired, newest = annotations(here, task)
    assert [theirs["result"], repaired["result"]] == [[JUMPS, TOO], edited]
    assert newest["parent_annotation"] == done["annotation"]


def test_conflicts_are_named_and_change_nothing(here: Site, project: int, room: Room, work: Work) -> None:
    tasks = [predicted(here, project, JUMPS, SOUND) for _ in range(4)]
    look(here, work, project, *tasks)
    moments = {moment["task"]: moment for moment in queue(room, project)}
    moved, annotated, drafted, deleted = tasks
    other = region("jumps", [(1, 5.0, True), (100, 6.0, True)])
    made = {"model_version": VERSION, "score": 0.9, "result": [other]}
    here.client.renew_prediction(moved, made, lambda _: True)
    assert "has another track jumps since" in answer(room, project, moments[moved], "accept", 409)["detail"]
    assert regions(here, moved) == [other]
    submit(here, annotated, [SOUND])
    assert "was annotated" in answer(room, project, moments[annotated], "accept", 409)["detail"]
    address = f"{here.settings.label_studio_url}/api/tasks/{drafted}/drafts"
    draft = {"result": [SOUND], "lead_time": 1}
    httpx.post(address, json=draft, headers=here.client.auth_headers(), timeout=120).raise_for_status()
    assert "is being annotated" in answer(room, project, moments[drafted], "accept", 409)["detail"]
    here.sdk.tasks.delete(str(deleted))
    assert "was deleted" in answer(room, project, moments[deleted], "accept", 404)["detail"]
    assert regions(here, annotated) == regions(here, drafted) == [JUMPS, SOUND]
    # The tasks are looked at again.
    work(here)
    assert {moment["task"] for moment in queue(room, project)} == {drafted}
    assert "not in the queue any more" in answer(room, project, moments[moved], "accept", 404)["detail"]


def test_two_reviewers_at_one_moment(here: Site, project: int, room: Room, work: Work) -> None:
    task = predicted(here, project, JUMPS, SOUND)
    look(here, work, project, task)
    (moment,) = queue(room, project)
    answer(room, project, moment, "split")
    assert "anna has decided this" in answer(room, project, moment, "delete", 409)["detail"]
    work(here)  # now it has left the queue
    assert "Split at frame 51." in answer(room, project, moment, "delete", 409)["detail"]
    assert len(regions(here, task)) == 3


def test_dismissed_for_good_and_skipped_for_now(here: Site, project: int, room: Room, work: Work) -> None:
    task = predicted(here, project, JUMPS, TOO)
    look(here, work, project, task)
    first, second = queue(room, project)
    skipped = answer(room, project, first, "skip")
    assert [(m["id"], m["skipped"]) for m in queue(room, project)] == [(second["id"], False), (first["id"], True)]
    dismissed = answer(room, project, second, "dismiss")
    look(here, work, project, task)
    assert [m["id"] for m in queue(room, project)] == [first["id"]]
    undo(room, project, dismissed)
    undo(room, project, skipped)
    assert [m["id"] for m in queue(room, project)] == [first["id"], second["id"]]
    assert regions(here, task) == [JUMPS, TOO]


def test_each_action_and_its_undo(here: Site, project: int, room: Room, work: Work) -> None:
    meets = region("meets", [(1, 80.0, True), (50, 60.0, True), (51, 20.0, True), (100, 0.0, True)], score=0.9)
    task = predicted(here, project, JUMPS, meets)
    look(here, work, project, task)
    moment = next(item for item in queue(room, project) if len(item["regions"]) == 2)
    assert moment["kind"] == "identity_jump"
    for action, fields, left in (
        ("swap", {"frame": 51}, 2),
        ("join", {}, 1),
        ("split", {"frame": 40, "region": "meets"}, 3),
        ("end", {"frame": 40}, 2),
        ("relabel", {"label": "car"}, 2),
        ("delete", {}, 1),
    ):
        done = answer(room, project, moment, action, **fields)
        now = regions(here, task)
        assert len(now) == left, action
        assert now != [JUMPS, meets], action
        undo(room, project, done)
        back = {item["id"]: item for item in regions(here, task)}
        assert back == {"jumps": JUMPS, "meets": meets}, action
    answer(room, project, moment, "relabel", 400, label="plane")
    answer(room, project, moment, "relabel", 400)
    answer(room, project, moment, "split", 400, region="another")
    answer(room, project, moment, "split", 409, frame=1)
    answer(room, project, moment, "nonsense", 400)


def test_later_repairs_are_undone_first(here: Site, project: int, room: Room, work: Work) -> None:
    task = predicted(here, project, JUMPS, SOUND)
    look(here, work, project, task)
    (moment,) = queue(room, project)
    first = answer(room, project, moment, "end", frame=80)
    look(here, work, project, task)
    (moment,) = queue(room, project)
    second = answer(room, project, moment, "split")
    assert "repaired again since" in undo(room, project, first, 409)["detail"]
    undo(room, project, second)
    undo(room, project, first)
    assert [shown(item) for item in regions(here, task)] == [shown(JUMPS), shown(SOUND)]


def test_repairs_are_no_merit_of_the_model(here: Site, project: int, room: Room, work: Work) -> None:
    task = predicted(here, project, JUMPS, SOUND)
    look(here, work, project, task)
    answer(room, project, queue(room, project)[0], "relabel", label="car")
    (prediction,) = here.predictions(task)
    here.client.create_annotation(task, prediction.result, prediction.id)
    learn(here, work, project, task)
    assert counts(here, project, VERSION) == {"accepted": 1, "relabelled": 1}


def test_clip_over_http(here: Site, project: int, room: Room, work: Work) -> None:
    task = predicted(here, project, JUMPS, SOUND)
    look(here, work, project, task)
    (moment,) = queue(room, project)
    address = f"/api/review/{moment['id']}/clip?project={project}"
    room.services.queue.request_clip(project, moment["id"])
    work(here)
    assert queue(room, project)[0]["has_clip"]
    got = room.client.get(address)
    assert (got.status_code, got.content_type) == (200, "video/mp4")
    assert room.client.get(address, headers={"Range": "bytes=0-99"}).status_code == 206
    assert {item["kind"] for item in room.get("/api/jobs")["jobs"]} == {"review"}, "clips are not listed"
    room.get(f"/api/review/{'0' * 16}/clip?project={project}", 404)


def test_agreement_of_people_and_on_request_the_model(here: Site, project: int, room: Room, work: Work) -> None:
    task, alone = predicted(here, project, JUMPS, SOUND), predicted(here, project, JUMPS)
    me = here.sdk.users.whoami()
    other = here.sdk.users.create(email="other@example.org", username="other")
    renamed = {**SOUND, "value": {**SOUND["value"], "labels": ["car"]}}
    here.sdk.annotations.create(id=task, result=[JUMPS, SOUND])
    here.sdk.annotations.create(id=task, result=[JUMPS, renamed], completed_by=other.id)
    here.sdk.annotations.create(id=alone, result=[JUMPS])
    address = f"/api/agreement?project={project}"
    assert room.get(address, 202)["pairs"] == []
    work(here)
    (pair,) = room.get(address)["pairs"]
    assert {pair["a"], pair["b"]} == {me.email, "other@example.org"}
    assert (pair["tasks"], pair["matched"], pair["only_a"], pair["only_b"]) == (1, 2, 0, 0)
    assert pair["hota"] == pytest.approx(1.0)
    assert [(item["task"], {item["a"], item["b"]}) for item in pair["disputes"]] == [(task, {"person", "car"})]
    room.get(f"{address}&model=true", 202)
    work(here)
    pairs = room.get(f"{address}&model=true")["pairs"]
    assert {(item["a"], item["b"]): item["tasks"] for item in pairs if "model" in (item["a"], item["b"])} == {
        tuple(sorted(["model", me.email])): 2,
        tuple(sorted(["model", "other@example.org"])): 1,
    }


# -- by hand


def tracks(room: Room, project: int, task: int, frame: int = 1) -> dict[str, Any]:
    """Of the task's only video."""
    (video,) = room.get(f"/api/tracks?project={project}&task={task}&frame={frame}")["videos"]
    found: dict[str, Any] = video
    return found


def by_hand(
    room: Room, project: int, task: int, action: str, *ids: str, seen: Any = None, status: int = 200, **fields: Any
) -> Any:
    """Repair tracks, as they are now or were ``seen`` before."""
    seen = seen or tracks(room, project, task)
    digests = {row["region"]: row["digest"] for row in seen["tracks"]}
    body = {"project": project, "task": task, "annotation": seen["annotation"], "action": action, "by": "anna"}
    chosen = [{"region": name, "digest": digests[name]} for name in ids]
    return room.post("/api/repairs/tracks", {**body, "tracks": chosen, **fields}, status)


def test_tracks_of_a_task_with_their_boxes(here: Site, project: int, room: Room) -> None:
    task = predicted(here, project, SOUND, JUMPS)
    video = tracks(room, project, task, frame=50)
    assert (video["name"], video["annotation"], video["author"]) == ("video", None, VERSION)
    assert (video["frames_count"], video["frame_rate"], video["width"], video["height"]) == (100, 20.0, 320, 240)
    rows = {row["region"]: row for row in video["tracks"]}
    assert rows["jumps"]["spans"] == [[1, 100]]
    assert (rows["jumps"]["box"]["x"], rows["jumps"]["box"]["width"]) == pytest.approx((20.0, 10.0))
    assert room.get(f"/api/tracks?project={project}&task={here.task(project, video=here.clip())}")["videos"] == []
    room.get(f"/api/tracks?project={project}&task=999999", 404)


def test_many_tracks_repaired_and_undone_at_once(here: Site, project: int, room: Room, work: Work) -> None:
    task = predicted(here, project, JUMPS, TOO, SOUND)
    done = by_hand(room, project, task, "delete", "jumps", "too")
    assert (done["count"], done["tasks"], done["moment"], done["action"]) == (2, [task], None, "delete")
    assert regions(here, task) == [SOUND]
    renamed = by_hand(room, project, task, "relabel", "sound", label="car")
    assert by_hand(room, project, task, "relabel", "sound", label="car", status=409)
    # A refresh finds one of the deleted tracks only, which stays deleted.
    container = look(here, work, project, task)
    deliver_one(container, project, task, {"model_version": NEWER, "score": 0.7, "result": [JUMPS, SOUND]})
    (kept,) = here.client.list_predictions(task)[-1].result
    assert kept["value"] == {**SOUND["value"], "labels": ["car"]}
    told = room.get(f"/api/repairs?project={project}&task={task}")["repairs"]
    assert [(item["id"], item["count"]) for item in told] == [(renamed["id"], 1), (done["id"], 2)]
    assert room.get(f"/api/repairs?project={project}&task={task + 1}")["repairs"] == []
    undo(room, project, renamed)
    assert undo(room, project, done)["undone_by"] == "ben"
    restored = here.client.list_predictions(task)[-1].result
    assert sorted(item["id"] for item in restored) == ["jumps", "sound", "too"]
    undo(room, project, done, 409)


def test_each_repair_by_hand(here: Site, project: int, room: Room) -> None:
    task = predicted(here, project, JUMPS, TOO, SOUND)
    for action, ids, fields, left in (
        ("split", ["jumps", "too"], {"frame": 51}, 5),
        ("end", ["jumps", "sound"], {"frame": 40}, 3),
        ("join", ["jumps", "too"], {}, 2),
        ("swap", ["jumps", "too"], {"frame": 51}, 3),
    ):
        done = by_hand(room, project, task, action, *ids, **fields)
        now = regions(here, task)
        assert len(now) == left, action
        undo(room, project, done)
        back = {item["id"]: item for item in regions(here, task)}
        assert back == {"jumps": JUMPS, "too": TOO, "sound": SOUND}, action
    by_hand(room, project, task, "join", "jumps", status=422)
    by_hand(room, project, task, "swap", "jumps", "too", "sound", frame=5, status=422)
    by_hand(room, project, task, "split", "jumps", status=422)
    by_hand(room, project, task, "split", "jumps", frame=1, status=409)
    by_hand(room, project, task, "relabel", "jumps", label="plane", status=400)
    assert {item["id"]: item for item in regions(here, task)} == back


@pytest.mark.parametrize("annotated", [False, True])
def test_global_ids_undone_in_another_order(here: Site, project: int, room: Room, annotated: bool) -> None:
    task = predicted(here, project, SOUND, TOO)
    if annotated:
        submit(here, task, [SOUND, TOO])

    def number(value: int, *names: str) -> Any:
        return by_hand(room, project, task, "identify", *names, seen=tracks_now(room, project, task), global_id=value)

    def meta(name: str) -> dict[str, Any]:
        result = annotations(here, task)[-1]["result"] if annotated else regions(here, task)
        return dict(next(item for item in result if item["id"] == name).get("meta") or {})

    number(3, "too")
    first, second, third = number(7, "sound"), number(9, "sound"), number(8, "sound")
    undo(room, project, second)
    assert meta("sound")["global_id"] == 8
    undo(room, project, third)
    assert meta("sound")["global_id"] == 7, "what is in force, not what was undone"
    second = number(9, "sound")
    undo(room, project, first)
    assert meta("sound")["global_id"] == 9
    undo(room, project, second)
    assert meta("sound") == (SOUND.get("meta") or {})
    assert meta("too")["global_id"] == 3


def test_by_hand_in_an_annotated_task(here: Site, project: int, room: Room) -> None:
    task = predicted(here, project, JUMPS, SOUND)
    seen = tracks(room, project, task)
    theirs = submit(here, task, [JUMPS, SOUND])
    before = annotations(here, task)
    assert "was annotated" in by_hand(room, project, task, "delete", "jumps", seen=seen, status=409)["detail"]
    seen = room.services.reviews.tracks(project, task)[0]
    shown_now = {
        "annotation": seen.annotation_id,
        "tracks": [{"region": r.region, "digest": r.digest} for r in seen.rows],
    }
    assert seen.annotation_id == theirs
    first = by_hand(room, project, task, "split", "jumps", seen=shown_now, frame=51)
    assert (
        "has another track jumps"
        in by_hand(room, project, task, "delete", "jumps", seen=shown_now, status=409)["detail"]
    )
    second = by_hand(room, project, task, "delete", "sound", seen=shown_now)
    person, ours = annotations(here, task)
    assert [person] == before
    assert len(ours["result"]) == 2
    undo(room, project, second)
    undo(room, project, first)
    assert annotations(here, task) == before


def test_frames_over_http(here: Site, project: int, room: Room, work: Work) -> None:
    task = predicted(here, project, JUMPS)
    key = tracks(room, project, task)["key"]
    for first in (1, 97):
        room.services.queue.request_frames(project, task, key, first)
    work(here)
    address = f"/api/frame?project={project}&task={task}&key={key}"
    frames = {number: room.client.get(f"{address}&frame={number}") for number in (1, 2, 32, 100)}
    for got in frames.values():
        assert (got.status_code, got.content_type) == (200, "image/jpeg")
        with Image.open(io.BytesIO(got.data)) as image:
            assert image.size == (320, 240)
    assert len({got.data for got in frames.values()}) == 4
    again = room.client.get(f"{address}&frame=1", headers={"If-None-Match": frames[1].headers["ETag"]})
    assert again.status_code == 304
    room.check("GET", "/api/frame", frames[1])
    room.get(f"{address}&frame=101", 404)
    work(here)  # what is looked at next is rendered ahead, and nothing after the end
    assert here.queue.failed_jobs() == []
    assert here.services.artifacts.exists(frames_name(project, task, key, 33))
    assert not here.services.artifacts.exists(frames_name(project, task, key, 129))
    elsewhere = f"/api/frame?project={project}&task={task}&key={'0' * 16}&frame=1"
    assert room.client.get(elsewhere, headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403


# -- more like this


def test_moments_like_an_accepted_one(here: Site, project: int, room: Room, work: Work) -> None:
    tasks = [predicted(here, project, JUMPS, SOUND) for _ in range(4)]
    other = predicted(here, project, {**TOO, "value": {**TOO["value"], "labels": ["car"]}})
    look(here, work, project, *tasks, other)
    moments = {moment["task"]: moment for moment in queue(room, project)}
    done = answer(room, project, moments[tasks[0]], "accept")
    address = f"/api/review/similar?project={project}&repair={done['id']}"
    told = room.get(address)
    assert (told["total"], {item["task"] for item in told["moments"]}) == (3, set(tasks[1:])), "not that of a car"
    submit(here, tasks[3], [SOUND])
    body = {"project": project, "repair": done["id"], "by": "anna"}
    got = room.post("/api/repairs/similar", body)
    assert (got["repair"]["count"], got["repair"]["tasks"]) == (2, tasks[1:3])
    ((left_out, reason),) = [(item["moment"], item["reason"]) for item in got["left_out"]]
    assert left_out == moments[tasks[3]]["id"]
    assert "was annotated" in reason
    assert [len(regions(here, task)) for task in tasks] == [3, 3, 3, 2]
    newest, first = room.get(f"/api/repairs?project={project}")["repairs"]
    assert (newest["count"], first["id"], first["count"]) == (2, done["id"], 1)
    room.post("/api/repairs/similar", body, 409)
    assert undo(room, project, newest)["undone_by"] == "ben"
    assert [len(regions(here, task)) for task in tasks] == [3, 2, 2, 2]
    undo(room, project, done)
    room.get(address, 409)
    room.get(f"/api/review/similar?project={project}&repair=999", 404)
    dismissed = answer(room, project, moments[other], "dismiss")
    room.get(f"/api/review/similar?project={project}&repair={dismissed['id']}", 409)


# -- several people


@pytest.fixture
def second(here: Site) -> str:
    """Another person of the same Label Studio: their e-mail address."""
    return made_person(here)


def made_person(here: Site) -> str:
    email = f"{uuid.uuid4().hex}@example.org"
    here.sdk.users.create(email=email, username=email)
    return email


def annotate(here: Site, task: int, result: list[dict[str, Any]], by: str = "", **more: Any) -> int:
    """Submit an annotation, of the backend's user or another one."""
    people = {user.email: user.id for user in here.sdk.users.list()}
    given = {"completed_by": people[by]} if by else {}
    return int(here.sdk.annotations.create(id=task, result=result, **given, **more).id)


def test_disputed_tracks_are_in_the_queue(here: Site, project: int, room: Room, work: Work, second: str) -> None:
    me = here.client.whoami()
    renamed = {**SOUND, "value": {**SOUND["value"], "labels": ["car"]}}
    task = predicted(here, project, SOUND)
    annotate(here, task, [SOUND, TOO], second)
    mine = annotate(here, task, [renamed])
    look(here, work, project, task)
    assert {item["value"] for item in room.get(f"/api/review?project={project}")["filters"]["kind"]} >= {"disputed"}
    disputed = queue(room, project, kind="disputed")
    moments = {moment["repair"]["do"]: moment for moment in disputed}
    assert moments.keys() == {"relabel", "add"}
    assert (moments["relabel"]["proposal"], moments["relabel"]["score"]) == ("Labelled person.", 0.5)
    assert (moments["relabel"]["gain"], moments["relabel"]["author"]) == (50.0, me)
    assert moments["relabel"]["reason"] == f"Labelled car by {me}; {second}: person."
    assert moments["add"]["reason"] == f"{second} has a track here, which {me} has not."
    before = annotations(here, task)
    first = answer(room, project, moments["relabel"], "accept")
    second_done = answer(room, project, moments["add"], "accept")
    assert annotations(here, task)[:2] == before
    assert [(item["value"]["labels"], len(shown(item))) for item in annotations(here, task)[2]["result"]] == [
        (["person"], 100),
        (["person"], 100),
    ]
    look(here, work, project, task)
    assert queue(room, project, kind="disputed") == [], "ours stands for the annotation that it repairs"
    undo(room, project, second_done)
    undo(room, project, first)
    look(here, work, project, task)
    assert {m["id"] for m in queue(room, project, kind="disputed")} == {m["id"] for m in disputed}
    answer(room, project, moments["add"], "dismiss")
    look(here, work, project, task)
    assert [m["id"] for m in queue(room, project, kind="disputed")] == [moments["relabel"]["id"]]
    here.client.delete_annotation(mine)
    look(here, work, project, task)
    assert queue(room, project, kind="disputed") == [], "there is one person only"


def test_consensus_is_another_annotation(here: Site, project: int, room: Room, work: Work, second: str) -> None:
    me, third = here.client.whoami(), made_person(here)
    renamed = {**SOUND, "value": {**SOUND["value"], "labels": ["car"]}}
    task = predicted(here, project, SOUND)
    address = f"/api/agreement/consensus?project={project}&task={task}"
    alone = room.get(address)
    body = {"project": project, "task": task, "by": "anna"}
    assert alone["people"] == []
    room.post("/api/agreement/consensus", {**body, "key": alone["key"]}, 409)
    annotate(here, task, [SOUND, TOO], second)
    annotate(here, task, [SOUND], third)
    seen = room.get(address)
    annotate(here, task, [renamed, TOO])
    assert "annotated since" in room.post("/api/agreement/consensus", {**body, "key": seen["key"]}, 409)["detail"]
    before = annotations(here, task)
    told = room.get(address)
    assert told["people"] == [second, third, me]
    tracks = {len(item["people"]): item for item in told["videos"][0]["tracks"]}
    assert tracks[3]["people"] == {second: "person", third: "person", me: "car"}
    assert (tracks[3]["label"], tracks[3]["kept"], tracks[3]["model"]) == ("person", True, None)
    assert (tracks[2]["kept"], tracks[2]["first"], tracks[2]["last"]) == (True, 1, 100)
    asked = room.get(f"{address}&model=true")
    assert {item["model"] for item in asked["videos"][0]["tracks"]} == {"person", None}
    done = room.post("/api/agreement/consensus", {**body, "key": told["key"]})
    assert (done["action"], done["by"]) == ("consensus", "anna")
    assert done["description"] == f"Consensus of {second}, {third}, {me}."
    *theirs, ours = annotations(here, task)
    assert theirs == before
    assert (ours["id"], ours["ground_truth"]) == (done["annotation"], True)
    kept = {item["id"]: item for item in ours["result"]}
    assert {name: shown(item) for name, item in kept.items()} == {"sound": shown(SOUND), "too": shown(TOO)}
    assert [item["value"]["labels"] for item in kept.values()] == [["person"], ["person"]]
    assert kept["too"]["meta"]["text"].startswith(f"{done['description']} Proposed by anna, 20")
    again = room.get(address)
    assert (again["people"], again["ground_truth"]) == (told["people"], ours["id"]), "it is nobody's"
    assert "ground truth" in room.post("/api/agreement/consensus", {**body, "key": again["key"]}, 409)["detail"]
    look(here, work, project, task)
    assert queue(room, project, kind="disputed") == [], "most people are right"
    later = by_hand(room, project, task, "delete", "too", seen=tracks_now(room, project, task))
    assert later["annotation"] == ours["id"]
    assert "repaired again since" in undo(room, project, done, 409)["detail"]
    undo(room, project, later)
    undo(room, project, done)
    assert annotations(here, task) == before


def tracks_now(room: Room, project: int, task: int) -> dict[str, Any]:
    seen = room.services.reviews.tracks(project, task)[0]
    found = [{"region": row.region, "digest": row.digest} for row in seen.rows]
    return {"annotation": seen.annotation_id or None, "tracks": found}


def test_what_each_person_has_done(here: Site, project: int, room: Room, work: Work, second: str) -> None:
    me = here.client.whoami()
    renamed = {**SOUND, "value": {**SOUND["value"], "labels": ["car"]}}
    task, other = predicted(here, project, JUMPS, SOUND), predicted(here, project, SOUND)
    (prediction,) = here.predictions(task)
    annotate(here, task, [JUMPS, SOUND, TOO], lead_time=30.0, parent_prediction=prediction.id)
    annotate(here, task, [renamed], second, lead_time=12.5, parent_prediction=prediction.id)
    annotate(here, other, [SOUND], lead_time=10.0)
    look(here, work, project, task)
    repaired = answer(room, project, queue(room, project, kind="disputed")[0], "accept")
    assert repaired["annotation"]
    address = f"/api/agreement?project={project}"
    assert room.get(address, 202)["people"] == []
    work(here)
    told = room.get(address)
    assert told["tasks"] == [{"task": task, "people": sorted([me, second]), "disputes": 3}]
    found = {item["person"]: item for item in told["people"]}
    assert found.keys() == {me, second}, "repaired versions are nobody's work, the model nobody"
    names = ("tasks", "tracks", "seconds", "kept", "moved", "relabelled", "deleted", "added", "acceptance")
    assert [found[me][name] for name in names] == [2, 4, 40.0, 3, 0, 0, 0, 1, 1.0]
    assert [found[second][name] for name in names] == [1, 1, 12.5, 0, 0, 1, 1, 0, 0.0]
    assert found[me]["hota"] == pytest.approx(found[second]["hota"])
    assert 0 < found[me]["hota"] < 1
    room.get(f"{address}&model=true", 202)
    work(here)
    with_model = room.get(f"{address}&model=true")
    assert with_model["people"] == told["people"]
    assert with_model["tasks"] == told["tasks"]
    assert len(with_model["pairs"]) == 3
