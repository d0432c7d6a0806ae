"""What is planned for a task, and when two plans are the same work."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml_backend.core.errors import BackendError, ConfigError, MediaError
from ml_backend.jobs.task_plan import TaskPlan, plan_task
from ml_backend.label_studio.label_config import parse_label_config
from tests.builders import CONFIG, NO_RECTANGLE, TWO_VIDEOS, label_config

LS = "http://ls:8080"


def plan(data: Any, config: str = CONFIG, *, task: int = 1, project: int = 1, annotated: bool = False) -> TaskPlan:
    return plan_task(project, task, data, config, "v1", annotated=annotated, label_studio_url=LS)


def test_missing_frame_rate_is_probed_first() -> None:
    assert plan({"video": "/data/upload/1/a.mp4"}).needs_probe
    assert plan({"video": "/data/upload/1/a.mp4", "fps": ""}).needs_probe
    assert not plan({"video": "/data/upload/1/a.mp4", "fps": 25}).needs_probe


def test_annotated_task_keeps_label_studio_s_default_timeline() -> None:
    part = plan({"video": "/data/upload/1/a.mp4"}, annotated=True).videos[0]
    assert part.frame_rate == 24


def test_fixed_rate_needs_no_probe() -> None:
    part = plan({"video": "x.mp4"}, label_config("a", frame_rate="29.97")).videos[0]
    assert part.frame_rate == 29.97
    assert plan({"video": "x.mp4"}, label_config("a", frame_rate="")).videos[0].frame_rate == 24


def test_key_is_equal_for_equal_work_only() -> None:
    data = {"video": "/data/upload/1/a.mp4", "fps": 25}
    key = plan(data).key
    assert len(key) == 40
    assert plan(data, task=2).key == key  # other tasks with the same video share the work
    assert plan({**data, "note": "x"}).key == key
    assert plan({**data, "video": LS + "/data/upload/1/a.mp4"}).key == key
    others = [
        plan(data, project=2),
        plan({**data, "fps": 30}),
        plan({**data, "video": "/data/upload/1/b.mp4"}),
        plan(data, label_config("other")),
        plan_task(1, 1, data, CONFIG, "v2", annotated=False, label_studio_url=LS),
    ]
    assert len({key, *(other.key for other in others)}) == 1 + len(others)


def test_every_video_of_a_task_is_a_part() -> None:
    left, right = plan({"left": "l.mp4", "right": "r.mp4", "fps": 25}, TWO_VIDEOS).videos
    assert (left.control.from_name, left.uri, left.frame_rate) == ("left-box", "l.mp4", 25)
    assert (right.control.from_name, right.uri, right.frame_rate) == ("kästchen", "r.mp4", None)
    (only,) = plan({"right": "r.mp4", "right_fps": 10}, TWO_VIDEOS).videos
    assert (only.control.to_name, only.frame_rate) == ("right", 10)


@pytest.mark.parametrize("data", [{}, {"video": None}, {"video": ""}, {"video": 7}, {"video": ["a"]}, {"vide0": "a"}])
def test_task_without_video_names_the_field(data: dict[str, Any]) -> None:
    with pytest.raises(MediaError, match="Task 1 has no video: its data lacks the field 'video'"):
        plan(data)


def test_config_without_rectangles() -> None:
    with pytest.raises(ConfigError, match="no VideoRectangle"):
        plan({"video": "a"}, NO_RECTANGLE)


@pytest.mark.parametrize(("rate", "field"), [("$fps", "fps"), ("25", None), ("", None), ("$a.b", None), ("$a$b", None)])
def test_only_plain_fields_are_written(rate: str, field: str | None) -> None:
    control = parse_label_config(label_config("a", frame_rate=rate)).video_controls[0]
    assert control.rate_field == field


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner, max_size=3)
)


@given(video=json_values | st.from_regex(r"(https?|s3|file)?:?/{0,3}[\[\]@:a-z0-9\\/?#%.-]{0,20}"), fps=json_values)
def test_any_task_data_is_planned_or_refused_with_a_reason(video: Any, fps: Any) -> None:
    with contextlib.suppress(BackendError):
        assert plan({"video": video, "fps": fps}).key == plan({"video": video, "fps": fps}).key


ODD_ADDRESSES = ["http://[", "http://[::1", "//[/x", "http://h:port/", "http://h:99999/", "\ud800"]


@pytest.mark.parametrize("video", ODD_ADDRESSES)
def test_addresses_that_break_parsers(video: str) -> None:
    with pytest.raises(MediaError, match="malformed"):
        plan({"video": video, "fps": 1})


HUGE = 10**400


@pytest.mark.parametrize(
    "fps",
    [HUGE, -HUGE, [HUGE], float("nan"), float("inf"), "1e999", True, {"a": 1}],
    ids=lambda value: str(value)[:8],
)
def test_numbers_that_break_arithmetic(fps: Any) -> None:
    rate = plan({"video": "a", "fps": fps}).videos[0].frame_rate
    assert rate is not None
    assert 0 < rate < float("inf")
