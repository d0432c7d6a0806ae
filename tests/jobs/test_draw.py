"""The job that follows drawn boxes: its answers, what it remembers, and what it says where it cannot."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ml_backend.core.boxes import iou_pairs
from ml_backend.core.settings import get_settings
from ml_backend.core.types import VideoInfo
from ml_backend.inference.follow import KnownTrack
from ml_backend.jobs.container import Container
from ml_backend.jobs.draw import known_tracks
from ml_backend.jobs.queue import INTERACTIVE
from ml_backend.label_studio.regions import region_boxes
from ml_backend.label_studio.timeline import Timeline
from ml_backend.server.app import create_app
from ml_backend.tracking.track_record import TrackRecord, TrackSet
from tests.builders import CONFIG, wait_for, worker_process
from tests.drawn_scene import FPS, FRAMES, HEIGHT, WIDTH, mask_box, truth, write_scene
from tests.jobs.conftest import Site
from tests.server.control import Room

VIDEO = {"uri": "/data/local-files/?d=videos/scene.mp4", "frame_rate": FPS}


def drawn(frame: int, region_id: str = "a", **changes: Any) -> dict[str, Any]:
    """Return a region with a box on the object at one frame."""
    x1, y1, *_ = truth(frame)
    box = {"x": 100 * x1 / WIDTH, "y": 100 * y1 / HEIGHT, "width": 100 * 90 / WIDTH, "height": 100 * 90 / HEIGHT}
    key = {"frame": frame, "enabled": True, "rotation": 0, **box, **changes}
    value = {"framesCount": FRAMES, "duration": FRAMES / FPS, "labels": ["person"], "sequence": [key]}
    return {"id": region_id, "from_name": "box", "to_name": "video", "type": "videorectangle", "value": value}


@pytest.fixture
def run(
    site: Callable[..., Site], work: Callable[[Site], Container], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """Run a function on task 1 as a worker does, with as much time as it needs; return its job."""
    monkeypatch.setattr("ml_backend.jobs.draw.ANSWER_S", 600.0)
    made = site()
    write_scene(made.videos / "scene.mp4")
    project = made.project()

    def run(function: str, argument: Any, video: dict[str, Any]) -> Any:
        queue = made.queue.queues[INTERACTIVE]
        job = queue.enqueue_call(f"ml_backend.jobs.draw.{function}", args=[project, 1, video, argument])
        work(made)
        job.refresh()
        return job

    return run


@pytest.fixture
def follow(run: Callable[..., Any]) -> Callable[..., Any]:
    """Follow regions; return the job."""
    return lambda *regions, video=VIDEO: run("follow_regions", list(regions), video)


def quality(region: dict[str, Any]) -> float:
    frames = np.arange(1, FRAMES + 1)
    _, boxes, visible = region_boxes(region, WIDTH, HEIGHT, frames)
    overlap = iou_pairs(boxes, np.array([truth(int(frame)) for frame in frames]))
    return float(np.where(visible, overlap, 0).min())


def test_several_boxes_are_followed_and_corrections_remembered(follow: Callable[..., Any]) -> None:
    first, second = follow(drawn(30), drawn(60, "b")).return_value()
    assert (first["id"], second["id"]) == ("a", "b")
    assert first["value"]["labels"] == ["person"]
    assert quality(first) > 0.5
    assert quality(second) > 0.5
    (again,) = follow(first).return_value()
    assert again == first, "nothing was corrected"
    corrected = drawn(50)["value"]["sequence"][0] | {"x": drawn(50)["value"]["sequence"][0]["x"] + 3}
    sequence = [key for key in first["value"]["sequence"] if key["frame"] != 50] + [corrected]
    (after,) = follow({**first, "value": {**first["value"], "sequence": sequence}}).return_value()
    assert corrected in after["value"]["sequence"]
    assert [k for k in after["value"]["sequence"] if k["frame"] <= 30] == [
        k for k in first["value"]["sequence"] if k["frame"] <= 30
    ]


def test_a_box_that_cannot_be_followed_keeps_no_other_from_it(follow: Callable[..., Any]) -> None:
    (answered,) = follow(drawn(30, "bad", x=150.0), drawn(30, "good")).return_value()
    assert answered["id"] == "good"
    job = follow(drawn(30, "bad", x=150.0))
    assert "outside the picture" in job.meta["error"]


def test_tracks_too_weak_for_a_prediction_are_known(container: Container) -> None:
    known = stored_tracks(container, [record(1, drawn(1, x=0))], [record(2, drawn(1, x=50))])
    assert [track.xyxy[0, 0] for track in known] == [0, WIDTH / 2]


def test_the_tracks_before_and_after_an_occlusion_are_one_objects(container: Container) -> None:
    last = FRAMES - 10
    ends = [{**drawn(frame)["value"]["sequence"][0], "enabled": frame < 40} for frame in (1, 40)]
    begins = [drawn(frame)["value"]["sequence"][0] for frame in (60, last)]
    elsewhere = record(3, drawn(70, x=0, y=0))
    before, after = (record(n, drawn(1), sequence=keys) for n, keys in enumerate((ends, begins), start=1))
    known = stored_tracks(container, [before, after, elsewhere])
    assert [len(track.frames) for track in known] == [FRAMES, FRAMES - 69]
    out_of_reach = 41 + round(container.settings.follow_s * FPS)
    assert [len(track.frames) for track in stored_tracks(container, [before, after], drawn_at=out_of_reach)] == [16]


def test_tracks_are_known_without_the_embedder_and_whatever_is_asked(
    container: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DINOV2_MODEL", "/nowhere")
    get_settings.cache_clear()
    container = Container(get_settings())
    assert len(stored_tracks(container, [record(1, drawn(1))])) == 1
    assert stored_tracks(container, [record(1, drawn(1))], drawn_at=10**400) == []


def record(number: int, region: dict[str, Any], **changes: Any) -> TrackRecord:
    """Return a stored track with the keyframes of a region."""
    value = {**{key: region["value"][key] for key in ("framesCount", "duration", "sequence")}, **changes}
    return TrackRecord(number, 0, FRAMES, 0.5, {"person": 1.0}, value, ())


def stored_tracks(
    container: Container, tracks: Sequence[TrackRecord], dropped: Sequence[TrackRecord] = (), drawn_at: int = 30
) -> list[KnownTrack]:
    """Store the tracks of a video, and return what is known of them."""
    found = TrackSet(tuple(tracks), ("person",), False, WIDTH, HEIGHT, FRAMES, dropped=tuple(dropped))
    container.projects.patterns.save_tracks("key", 1, 2, 0, "scene.mp4", found)
    timeline = Timeline(FPS, np.arange(FRAMES) / FPS, FRAMES / FPS)
    info = VideoInfo("scene.mp4", WIDTH, HEIGHT, FPS, FRAMES, FRAMES / FPS, "h264", "yuv420p")
    return known_tracks(container, 1, "scene.mp4", timeline, info, [drawn_at])


def test_a_video_that_is_not_there(follow: Callable[..., Any]) -> None:
    job = follow(drawn(30), video={"uri": "/data/local-files/?d=videos/gone.mp4", "frame_rate": FPS})
    assert "does not exist" in job.meta["error"]
    told = Room(create_app(get_settings())).get(f"/api/jobs?project={job.args[0]}")["jobs"]
    assert [(item["kind"], item["task"], item["state"]) for item in told] == [("draw", 1, "failed")]
    assert "does not exist" in told[0]["error"]


PEOPLE = 20


def test_twenty_people_press_while_the_worker_is_busy(
    site: Callable[..., Site], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody's press is lost, nor worked on twice: what comes too late is the answer to the next press."""
    monkeypatch.setattr("ml_backend.server.drawing.FOLLOW_TIMEOUT_S", 2.0)
    made = site(mode="yolo", worker_queues=(INTERACTIVE,))
    write_scene(made.videos / "scene.mp4")
    project, app = made.project(), create_app(made.settings)

    def press(number: int, region: dict[str, Any]) -> dict[str, Any]:
        task = {"id": number, "data": {"video": VIDEO["uri"], "fps": FPS}, "annotations": [], "predictions": []}
        context = {"params": {"context": {"result": [region]}}, "project": f"{project}.17", "label_config": CONFIG}
        response = app.test_client().post("/predict", json={"tasks": [task], **context})
        assert response.status_code == 200
        (answer,) = response.get_json()["results"][0]["result"]
        return dict(answer)

    people = range(1, PEOPLE + 1)
    regions = {number: drawn(25 + number, f"of {number}") for number in people}
    without_label = {number: drawn(25 + number, f"of {number}") for number in people}
    for region in without_label.values():
        del region["value"]["labels"]
    with worker_process(made.settings, tmp_path / "worker.log") as worker, ThreadPoolExecutor(PEOPLE) as pool:
        wait_for(made.queue.workers, what="the worker")
        os.kill(worker.pid, signal.SIGSTOP)
        assert list(pool.map(press, people, regions.values())) == list(regions.values())
        os.kill(worker.pid, signal.SIGCONT)
        got = dict(without_label)

        def all_served() -> bool:
            waiting = [number for number in people if got[number] == without_label[number]]
            answers = pool.map(press, waiting, [without_label[number] for number in waiting])
            got.update(zip(waiting, answers, strict=True))
            return not waiting

        wait_for(all_served, what="everybody's object")
        for number, region in got.items():
            assert region["id"] == f"of {number}"
            assert "labels" not in region["value"], "it stays as it was posted, but for the keyframes"
            assert drawn(25 + number)["value"]["sequence"][0] in region["value"]["sequence"]
            assert len(region["value"]["sequence"]) > 1
        assert made.queue.counters()["followed"] == PEOPLE
        # Undone, and asked for again, perhaps since the video's tracks are known now.
        again = wait_for(lambda: (answer := press(1, regions[1])) != regions[1] and answer)
        assert again["value"]["labels"] == ["person"]
        assert made.queue.counters()["followed"] == PEOPLE + 1


def test_why_it_is_another_tracker_is_told(site: Callable[..., Site], work: Callable[[Site], Container]) -> None:
    made = site(interactive_model="facebook/sam2.1-hiera-tiny", device="cpu")
    write_scene(made.videos / "scene.mp4")
    args = [made.project(), 1, VIDEO, [drawn(30)]]
    job = made.queue.queues[INTERACTIVE].enqueue_call("ml_backend.jobs.draw.follow_regions", args=args)
    work(made)
    assert job.return_value(refresh=True)[0]["id"] == "a"
    notes = Room(create_app(get_settings())).get("/api/status")["models"]["notes"]
    assert [note for note in notes if "correlation tracker: Without a GPU" in note]


@pytest.mark.parametrize(("direction", "first", "last"), [("forward", 30, 75), ("backward", 1, 30), ("both", 1, 75)])
def test_the_toolbars_box_is_followed_as_masks(run: Callable[..., Any], direction: str, first: int, last: int) -> None:
    (key,) = drawn(30)["value"]["sequence"]
    prompt = {"frame": 30, "box": key, "direction": direction, "max_frames": 100}
    frames = run("track_box", prompt, VIDEO).return_value()
    assert (frames[0]["frame"], frames[-1]["frame"]) == (first - 1, last - 1)
    assert len(frames) < 20, "the editor sets a keyframe for each"
    for item in frames:
        assert item["time_ms"] == pytest.approx(1000 * item["frame"] / FPS)
        assert (item["width"], item["height"]) == (WIDTH, HEIGHT)
        assert iou_pairs([mask_box(item)], [truth(item["frame"] + 1)])[0] > 0.5


def test_the_toolbars_box_goes_no_further_than_told(run: Callable[..., Any]) -> None:
    (key,) = drawn(30)["value"]["sequence"]
    prompt = {"frame": 30, "box": key, "direction": "forward", "max_frames": 10}
    assert all(29 <= item["frame"] < 40 for item in run("track_box", prompt, VIDEO).return_value())
    assert "are 1 to 75" in run("track_box", prompt | {"frame": 76}, VIDEO).meta["error"]
