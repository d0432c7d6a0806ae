"""Cameras that run, in the API and the control room: what their processes tell by Redis, and who may watch."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ml_backend.jobs.live_cameras import KEPT_S, SILENT_S
from ml_backend.server.dashboard import texts
from ml_backend.server.slow_clients import PICTURES
from tests.builders import wait_for
from tests.server.control import CAMERA, JPEG, RECORDED, Room, camera

HTML = {"Accept": "text/html", "Sec-Fetch-Site": "none"}


def listed(room: Room) -> list[dict[str, Any]]:
    return list(room.get("/api/cameras")["cameras"])


def part(room: Room, lang: str = "en", project: int = 7) -> str:
    answer = room.client.get(f"/ui/part/cameras?project={project}", headers=HTML | {"Accept-Language": lang})
    assert answer.status_code == 200
    return answer.get_data(as_text=True)


def test_a_camera_that_runs_is_listed_until_it_ends(room: Room) -> None:
    assert listed(room) == []
    before = room.client.get("/ui/live?project=7").get_json()["cameras"]
    with camera(room, name="rtsp://gate/stream") as number:
        (found,) = listed(room)
        assert found == CAMERA | {"id": number, "since": "2020-03-01T08:30:00Z"}
        for _ in range(2):
            with room.client.get(f"/api/cameras/{number}/picture?number=3") as answer:
                room.check("GET", f"/api/cameras/{number}/picture", answer)
                assert (answer.status_code, answer.data) == (200, JPEG)
                assert answer.headers["Cache-Control"] == "no-store"
        foreign = room.client.get(f"/api/cameras/{number}/picture", headers={"Sec-Fetch-Site": "cross-site"})
        assert foreign.status_code == 403, "nor on pages of other sites"
        assert room.client.get("/ui/live?project=7").get_json()["cameras"] != before, "open pages reload their list"
    wait_for(lambda: listed(room) == [], what="its end")
    room.get(f"/api/cameras/{number}/picture", 404)


def test_a_picture_takes_a_slot_until_it_is_sent(room: Room) -> None:
    """Those who read slowly cost the other requests no threads."""
    with camera(room) as number:
        path = f"/api/cameras/{number}/picture"
        sent = [room.client.get(path) for _ in range(PICTURES)]
        assert {answer.status_code for answer in sent} == {200}
        room.get(path, 503)
        for answer in sent:
            answer.close()
        with room.client.get(path) as answer:
            assert answer.data == JPEG
            assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"


def test_the_page_says_what_a_camera_does(room: Room) -> None:
    assert "--project 7" in part(room)
    with camera(room) as number:
        shown = part(room)
        for words in ("19.5", "125 ms", "250 ms in the slowest", "300 of 900", "2 min of 1 h", "edge-1"):
            assert words in shown
        assert f'src="/api/cameras/{number}/picture"' in shown, "also without scripts"
        assert 'data?task=42"' in shown
        assert "(no label)" in shown
        korean = part(room, "ko")
        assert "300개" in korean
        assert texts.load_texts("ko")["camera_running"] in korean
        page = room.client.get("/?project=7&step=live", headers=HTML).get_data(as_text=True)
        assert f"/api/cameras/{number}/picture" in page


def test_a_lost_camera_says_why_and_shows_no_old_picture(room: Room) -> None:
    with camera(room, state="lost", error="It does not answer <b>", name="<script>x</script>") as number:
        shown = part(room)
        assert "It does not answer &lt;b&gt;" in shown
        assert "lost, reconnecting" in shown
        assert "<script>x" not in shown
        assert "<img" not in shown
        assert "does not run" in room.get(f"/api/cameras/{number}/picture", 503)["detail"]


def test_a_camera_without_a_new_picture(room: Room, caplog: pytest.LogCaptureFixture) -> None:
    with camera(room, picture=b"", recorded=RECORDED | {"paused_because": "x" * 900}) as number:
        assert listed(room)[0]["recorded"]["paused_because"] == "x" * 500
        assert "shows nothing" in room.get(f"/api/cameras/{number}/picture", 503)["detail"]
    assert "/picture" not in caplog.text, "it is asked for again and again"


def test_a_process_that_was_killed_is_silent_and_then_forgotten(room: Room) -> None:
    redis = room.services.queue.connection
    with camera(room) as number:
        (key,) = redis.scan_iter(f"*{number}")
        report = redis.get(key)
    redis.set(key, report, ex=KEPT_S - int(SILENT_S) - 60)
    silent = wait_for(lambda: [item for item in listed(room) if item["state"] == "silent"], what="the silence")
    assert silent[0]["since"] > "2020-03-01T09"
    assert "no news from its process" in part(room)
    redis.set(key, report, px=1)
    wait_for(lambda: listed(room) == [], what="its end")


def test_what_is_no_camera_and_no_picture_is_not_passed_on(room: Room) -> None:
    """Others than our processes may write to Redis."""
    redis = room.services.queue.connection
    with camera(room, picture=b"<html><script>alert(1)</script>") as number:
        assert room.get(f"/api/cameras/{number}/picture", 503)["detail"]
        (key,) = redis.scan_iter(f"*{number}")
        report = json.loads(redis.get(key))
        name = key.decode().removesuffix(number)
        for count, wrong in enumerate(
            (
                {},
                {"id": "../../x"},
                {"fps": float("nan")},
                {"latency_s": 1e308},
                {"received": 10**4000},
                {"name": "x" * (1 << 20)},
                {"now": {"a": -1}},
                {"id": "f" * 16},
            )
        ):
            redis.set(f"{name}{count:016x}", json.dumps({"id": f"{count:016x}"} | (report if wrong else {}) | wrong))
        redis.set(f"{name}{20:016x}", b"\xff no json")
        redis.set(name.encode() + b"\xff" * 16, "no id")
        redis.lpush(f"{name}{21:016x}", "a list")
        assert [found.id for found in room.services.live_cameras.cameras()] == [number]
