"""The smoke test's judge must notice predictions that are wrong."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ml_backend.cli.dev_stack.verify import check_prediction
from ml_backend.core.types import Track
from ml_backend.video.sample import SampleTruth

FRAMES, WIDTH, HEIGHT, FPS = 50, 200, 100, 25.0


def make_track(track_id: int, label: str, left: float) -> Track:
    frames = np.arange(FRAMES)
    moved = left + 0.5 * frames
    xyxy = np.stack([moved, np.full(FRAMES, 20), moved + 30, np.full(FRAMES, 80)], axis=1)
    return Track(track_id, frames, xyxy.astype(np.float32), np.ones(FRAMES, np.float32), label=label)


def make_region(track: Track, shift: float = 0.0) -> dict[str, Any]:
    keys = [0, FRAMES - 1]
    sequence = [
        {
            "frame": key + 1,
            "enabled": True,
            "x": 100 * (track.xyxy[key, 0] + shift) / WIDTH,
            "y": 100 * track.xyxy[key, 1] / HEIGHT,
            "width": 100 * 30 / WIDTH,
            "height": 100 * 60 / HEIGHT,
            "rotation": 0,
            "time": key / FPS,
        }
        for key in keys
    ]
    value = {"framesCount": FRAMES, "duration": FRAMES / FPS, "labels": [track.label], "sequence": sequence}
    return {"type": "videorectangle", "value": value}


TRUTH = SampleTruth(FPS, WIDTH, HEIGHT, FRAMES, (make_track(1, "person", 10), make_track(2, "bus", 110)))


@pytest.fixture
def task() -> dict[str, Any]:
    regions = [make_region(track) for track in TRUTH.tracks]
    return {"data": {"fps": FPS}, "predictions": [{"model_version": "yolo11n-00", "result": copy.deepcopy(regions)}]}


def regions(task: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = task["predictions"][-1]["result"]
    return found


def test_a_right_prediction(task: dict[str, Any]) -> None:
    report = check_prediction(task, TRUTH)
    assert not report.problems, report
    assert report.summary()["found"] == 2
    assert report.summary()["mean_iou"] > 0.99


def no_prediction(task: dict[str, Any]) -> None:
    task["predictions"] = []


def empty(task: dict[str, Any]) -> None:
    regions(task).clear()


def one_lost(task: dict[str, Any]) -> None:
    regions(task).pop()


def wrong_place(task: dict[str, Any]) -> None:
    for key in regions(task)[0]["value"]["sequence"]:
        key["x"] += 15


def wrong_label(task: dict[str, Any]) -> None:
    regions(task)[0]["value"]["labels"] = ["dog"]


def no_label(task: dict[str, Any]) -> None:
    del regions(task)[0]["value"]["labels"]


def wrong_rate(task: dict[str, Any]) -> None:
    task["data"]["fps"] = 24


def no_rate(task: dict[str, Any]) -> None:
    del task["data"]["fps"]


def wrong_length(task: dict[str, Any]) -> None:
    regions(task)[1]["value"]["framesCount"] = FRAMES - 2


def flicker(task: dict[str, Any]) -> None:
    regions(task).extend(make_region(TRUTH.tracks[0], shift=50) for _ in range(5))


def hidden(task: dict[str, Any]) -> None:
    regions(task)[0]["value"]["sequence"][0]["enabled"] = False


@pytest.mark.parametrize(
    "spoil",
    [
        no_prediction,
        empty,
        one_lost,
        wrong_place,
        wrong_label,
        no_label,
        wrong_rate,
        no_rate,
        wrong_length,
        flicker,
        hidden,
    ],
)
def test_wrong_predictions_are_noticed(spoil: Callable[[dict[str, Any]], None], task: dict[str, Any]) -> None:
    spoil(task)
    report = check_prediction(task, TRUTH)
    assert report.problems
    assert report.problems[0] in str(report)


def test_the_motion_detector_need_not_name_what_it_sees(task: dict[str, Any]) -> None:
    task["predictions"][-1]["model_version"] = "motion.tracktrack-0000.yolo.base"
    wrong_label(task)
    assert not check_prediction(task, TRUTH).problems
    wrong_place(task)
    assert check_prediction(task, TRUTH).problems
