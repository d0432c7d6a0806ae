"""Regions that are extended from what a person has drawn, and extended again after corrections."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ml_backend.core.errors import RequestError
from ml_backend.core.types import VideoInfo
from ml_backend.inference.follow import Follower
from ml_backend.inference.redraw import Answer, Redraw
from ml_backend.label_studio.regions import region_boxes
from ml_backend.label_studio.timeline import Timeline
from tests.inference.test_follow import COUNT, FPS, SIZE, Scene

INFO = VideoInfo("scene.mp4", *SIZE, FPS, COUNT, COUNT / FPS, "h264", "yuv420p")
TIMELINE = Timeline(FPS, np.arange(COUNT) / FPS, COUNT / FPS)


def key(scene: Scene, frame: int, dx: float = 0.0, **changes: Any) -> dict[str, Any]:
    """Return a keyframe of the editor on the object, at a 1-based frame, moved by ``dx`` pixels."""
    x1, y1, x2, y2 = scene.box(frame - 1)
    box = {
        "x": 100 * (x1 + dx) / SIZE[0],
        "y": 100 * y1 / SIZE[1],
        "width": 100 * (x2 - x1) / SIZE[0],
        "height": 100 * (y2 - y1) / SIZE[1],
    }
    return {"frame": frame, "enabled": True, "rotation": 0, **box, "time": frame / FPS, **changes}


def region(*sequence: dict[str, Any]) -> dict[str, Any]:
    return {"id": "drawn", "type": "videorectangle", "value": {"framesCount": COUNT, "sequence": list(sequence)}}


def redraw(scene: Scene, span_s: float = 60.0, stop_after: int | None = None) -> Redraw:
    calls = iter(range(10**9))
    stop = (lambda: next(calls) >= stop_after) if stop_after is not None else (lambda: False)
    return Redraw(Follower(scene, SIZE, FPS, (), stop), INFO, TIMELINE, 0.9, span_s)


def shown(answer: Answer) -> list[int]:
    """Return the 1-based frames on which the player shows the region."""
    frames, _, visible = region_boxes(region(*answer.sequence), *SIZE)
    return [int(frame) for frame in frames[visible]]


def keyframes(answer: Answer) -> dict[int, Any]:
    return {item["frame"]: item for item in answer.sequence}


def test_one_box_becomes_the_objects_life_in_few_keyframes() -> None:
    scene = Scene(until=45)
    drawn = key(scene, 20)
    answer = redraw(scene).extend(region(drawn), None)
    assert shown(answer)[0] == 1
    assert 41 <= shown(answer)[-1] <= 49
    assert len(answer.sequence) < 20
    assert keyframes(answer)[20] == drawn, "the drawn box stays as it is"
    assert answer.human == {20}
    assert answer.ended == (True, True)


def test_a_correction_changes_only_the_stretches_around_it() -> None:
    scene = Scene()
    first = redraw(scene).extend(region(key(scene, 5), key(scene, 30)), None)
    corrected = key(scene, 45, dx=6)
    sequence = {**keyframes(first), 45: corrected}
    second = redraw(scene).extend(region(*sequence.values()), first)
    assert second.human == {5, 30, 45}
    assert keyframes(second)[45] == corrected
    kept = [item for item in first.sequence if item["frame"] <= 30]
    assert [item for item in second.sequence if item["frame"] <= 30] == kept
    _, boxes, _ = region_boxes(region(*second.sequence), *SIZE)
    assert boxes[49][0] > scene.box(49)[0] + 3, "the rest follows the corrected box"


def test_pressed_again_without_a_change_nothing_changes() -> None:
    scene = Scene()
    first = redraw(scene).extend(region(key(scene, 20)), None)
    assert redraw(scene).extend(region(*first.sequence), first) == first


def test_it_goes_on_where_the_time_was_up() -> None:
    scene = Scene()
    first = redraw(scene, stop_after=8).extend(region(key(scene, 30)), None)
    assert first.ended[0] is False
    begun = shown(first)
    assert 30 in begun
    assert len(begun) < 30
    second = redraw(scene).extend(region(*first.sequence), first)
    assert shown(second) == list(range(1, COUNT + 1))
    assert second.human == {30}


def test_the_span_is_used_up_and_goes_on_with_the_next_press() -> None:
    scene = Scene()
    first = redraw(scene, span_s=0.5).extend(region(key(scene, 30)), None)
    assert shown(first) == list(range(15, 46))
    assert first.ended == (False, False)
    second = redraw(scene, span_s=0.5).extend(region(*first.sequence), first)
    assert shown(second) == list(range(1, COUNT + 1))


def test_a_hidden_stretch_that_a_person_made_stays_hidden() -> None:
    scene = Scene()
    answer = redraw(scene).extend(region(key(scene, 10), key(scene, 20, enabled=False), key(scene, 40)), None)
    assert not set(range(21, 40)) & set(shown(answer))
    assert {*range(1, 21), *range(40, COUNT + 1)} <= set(shown(answer))


def test_answers_survive_storage() -> None:
    answer = redraw(Scene()).extend(region(key(Scene(), 20)), None)
    assert Answer.from_json(answer.to_json()) == answer


@pytest.mark.parametrize(
    ("sequence", "message"),
    [
        ([], "cannot be read"),
        ([{"frame": "x"}], "cannot be read"),
        ([key(Scene(), 20, x=120)], "outside the picture"),
        ([key(Scene(), 20, width=0)], "outside the picture or too small"),
        ([key(Scene(), 20, x=float("nan"))], "outside the picture"),
        ([{**key(Scene(), 20), "frame": COUNT + 1}], f"frames are 1 to {COUNT}"),
        ([{**key(Scene(), 20), "frame": 0}], f"frames are 1 to {COUNT}"),
    ],
)
def test_what_cannot_be_followed_is_named(sequence: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        redraw(Scene()).extend(region(*sequence), None)


def test_a_changed_box_at_the_same_frame_counts_as_corrected() -> None:
    scene = Scene()
    first = redraw(scene).extend(region(key(scene, 20)), None)
    moved = replace(first, sequence=tuple(key(scene, 20, dx=8) if k["frame"] == 20 else k for k in first.sequence))
    second = redraw(scene).extend(region(*moved.sequence), first)
    assert second.human == {20}
    assert second.sequence != first.sequence


def test_an_answer_that_the_editor_never_got_is_given_again() -> None:
    scene = Scene()
    first = redraw(scene).extend(region(key(scene, 20)), None)
    assert redraw(scene).extend(region(key(scene, 20)), first) == first


def test_without_time_nothing_is_hidden_between_drawn_boxes() -> None:
    scene = Scene()
    answer = redraw(scene, stop_after=0).extend(region(key(scene, 10), key(scene, 40)), None)
    assert set(range(10, 41)) <= set(shown(answer))


def test_a_persons_end_is_not_overrun() -> None:
    scene = Scene()
    first = redraw(scene, stop_after=8).extend(region(key(scene, 20)), None)
    assert not first.ended[1]
    ended = {**keyframes(first), 35: key(scene, 35, enabled=False)}
    ended = {frame: item for frame, item in ended.items() if frame <= 35}
    for _ in range(2):
        first = redraw(scene).extend(region(*ended.values()), first)
        assert max(shown(first)) == 35
        ended = keyframes(first)


def test_a_rotated_box_is_followed_as_the_upright_one_around_it() -> None:
    scene = Scene()
    turned = key(scene, 20, rotation=5)
    answer = redraw(scene).extend(region(turned), None)
    assert keyframes(answer)[20] == turned
    assert len(shown(answer)) > 40
