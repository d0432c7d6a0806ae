"""From tracked boxes to finished tracks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml_backend.core.boxes import iou_pairs
from ml_backend.core.settings import Settings
from ml_backend.core.types import Track
from ml_backend.tracking import assembly as assembler_module
from ml_backend.tracking.assembly import TrackAssembler
from ml_backend.tracking.credibility import core
from ml_backend.tracking.smooth import fill_and_smooth, split_spans
from ml_backend.tracking.tracker import TrackedBox

NAMES = {0: "person", 1: "bicycle", 2: "car", 7: "truck"}
WIDTH, HEIGHT, FPS = 1000, 600, 30.0
RED, GREEN = np.tile(np.float32([136, 208, 195]), 3), np.tile(np.float32([224, 42, 211]), 3)

Box = tuple[float, float, float, float]


def walk(
    tracker_id: int,
    frames: Iterable[int],
    *,
    start: Box = (100, 100, 140, 200),
    velocity: tuple[float, float] = (4, 0),
    since: int = 0,
    conf: float = 0.8,
    class_id: int = 0,
    look: np.ndarray | None = None,
) -> dict[int, list[TrackedBox]]:
    """An object at ``start`` in frame ``since`` that moves steadily, seen in ``frames``."""
    rows: dict[int, list[TrackedBox]] = {}
    for frame in frames:
        shift = np.tile(np.array(velocity, np.float32) * (frame - since), 2)
        rows[frame] = [TrackedBox(tracker_id, np.array(start, np.float32) + shift, conf, class_id, look)]
    return rows


def both(*parts: dict[int, list[TrackedBox]]) -> dict[int, list[TrackedBox]]:
    """All rows of several objects, by frame."""
    return {frame: [row for p in parts for row in p.get(frame, [])] for frame in sorted(set().union(*parts))}


def assembler(fps: float = FPS, *, motion: bool = False, **values: float) -> TrackAssembler:
    return TrackAssembler(fps, NAMES, WIDTH, HEIGHT, Settings(_env_file=None, **values), motion=motion)


def assemble(rows: dict[int, list[TrackedBox]], fps: float = FPS, **values: float) -> list[Track]:
    machine = assembler(fps, **values)
    tracks = [t for frame in sorted(rows) for t in machine.push(frame, rows[frame])]
    return sorted(tracks + machine.close(), key=lambda t: t.track_id)


def test_nothing_gives_nothing() -> None:
    assert assemble({0: [], 1: []}) == []
    assert assembler().close() == []


def test_one_object_is_one_track_on_its_own_boxes() -> None:
    rows = walk(7, range(60))
    (track,) = assemble(rows)
    assert track.frames.tolist() == list(range(60))
    expected = np.stack([rows[f][0][1] for f in range(60)])
    assert iou_pairs(track.xyxy, expected).min() > 0.97
    assert track.top_class == "person"
    assert track.class_scores["person"] == pytest.approx(0.8 * 60, rel=1e-4)
    assert 0.7 < track.score <= 1
    assert track.label is None


def test_steady_motion_is_not_held_back_at_the_ends_of_a_life(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = walk(1, range(60), velocity=(8, 0))
    monkeypatch.setattr(assembler_module, "SMOOTH_S", 0.3)
    (track,) = assemble(rows)
    assert np.abs(track.xyxy[0] - rows[0][0][1]).max() < 0.1
    assert np.abs(track.xyxy[-1] - rows[59][0][1]).max() < 0.1


def test_smoothing_takes_jitter_away(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    clean = walk(1, range(120))
    noisy = {f: [TrackedBox(1, r[0].xyxy + rng.normal(0, 4, 4).astype(np.float32), 0.8, 0)] for f, r in clean.items()}
    truth = np.stack([clean[f][0][1] for f in range(120)])
    (smooth,) = assemble(noisy)
    monkeypatch.setattr(assembler_module, "SMOOTH_S", 0.0)
    (raw,) = assemble(noisy)
    assert np.abs(smooth.xyxy - truth).mean() < 0.6 * np.abs(raw.xyxy - truth).mean()


@pytest.mark.parametrize("fps", [5, 12.5, 25, 60, 120])
def test_times_are_seconds_at_any_frame_rate(fps: float) -> None:
    long_enough = range(round(1.0 * fps))
    flicker = range(round(0.2 * fps))
    rows = both(
        walk(1, long_enough, velocity=(120 / fps, 0)),
        walk(2, flicker, start=(600, 300, 640, 400), velocity=(120 / fps, 0)),
    )
    assert [t.track_id for t in assemble(rows, fps, min_track_s=0.5)] == [1]


def test_a_video_of_one_frame_keeps_what_is_in_it() -> None:
    (track,) = assemble(walk(1, [0]))
    assert track.frames.tolist() == [0]


def test_weak_and_still_is_no_object_but_weak_and_moving_or_sure_and_still_is() -> None:
    rows = both(
        walk(1, range(90), start=(100, 100, 140, 200), velocity=(0, 0), conf=0.45),  # a dummy in a shop window
        walk(2, range(90), start=(100, 300, 140, 400), velocity=(4, 0), conf=0.45),
        walk(3, range(90), start=(800, 300, 840, 400), velocity=(0, 0), conf=0.8),
        walk(4, range(90), start=(100, 450, 140, 550), velocity=(4, 0), conf=0.2),
    )
    rows = both(rows, walk(5, range(9), start=(500, 450, 540, 550), velocity=(4, 0), conf=0.2))  # too short
    machine = TrackAssembler(FPS, NAMES, WIDTH, HEIGHT, Settings(_env_file=None), keep_dropped=True)
    tracks, dropped = [], []
    for frame in [*range(90), None]:
        tracks += machine.close() if frame is None else machine.push(frame, rows[frame])
        dropped += machine.take_dropped()
    assert [t.track_id for t in tracks] == [2, 3]
    assert {t.track_id: len(t) for t in dropped} == {1: 90, 4: 90}, "but somebody may look for it"


def test_what_the_motion_detector_sees_must_go_somewhere() -> None:
    rows = both(walk(1, range(90), velocity=(0, 0)), walk(2, range(90), start=(100, 300, 140, 400), conf=0.3))
    machine = assembler(motion=True)
    tracks = [t for f in sorted(rows) for t in machine.push(f, rows[f])] + machine.close()
    assert [t.track_id for t in tracks] == [2]


def test_a_short_gap_is_filled_and_a_long_one_stays_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    (track,) = assemble(walk(1, [*range(30), *range(45, 90)]))
    assert track.frames.tolist() == list(range(90))
    assert (track.conf[30:45] == 0).all()
    assert (track.conf[:30] > 0).all()
    monkeypatch.setattr(assembler_module, "MAX_GAP_S", 0.2)
    (track,) = assemble(walk(1, [*range(30), *range(45, 90)]))
    assert track.frames.tolist() == [*range(30), *range(45, 90)]


def test_pieces_of_one_life_become_one_track() -> None:
    rows = both(walk(1, range(40)), walk(2, range(60, 100)))  # the tracker gave it a second id
    (track,) = assemble(rows)
    assert track.frames.tolist() == list(range(100))
    assert track.class_scores["person"] == pytest.approx(0.8 * 80, rel=1e-4)


def test_many_pieces_become_one_track() -> None:
    (track,) = assemble(both(*(walk(k, range(30 * k, 30 * k + 15), velocity=(2, 0)) for k in range(9))))
    assert track.frames.tolist() == list(range(255))


@pytest.mark.parametrize(
    "other",
    [
        pytest.param({"start": (100, 400, 140, 500)}, id="elsewhere"),
        pytest.param({"velocity": (-4, 0), "start": (420, 100, 460, 200)}, id="going the other way"),
        pytest.param({"start": (60, 0, 180, 300)}, id="three times the size"),
        pytest.param({"class_id": 2}, id="another class"),
        pytest.param({"look": GREEN}, id="other colours"),
    ],
)
def test_another_object_is_not_a_continuation(other: dict[str, object]) -> None:
    first = walk(1, range(40), look=RED)
    second = walk(2, range(60, 100), **({"look": RED} | other))  # type: ignore[arg-type]
    assert len(assemble(both(first, second))) == 2


def test_who_walks_out_of_the_picture_does_not_come_back_as_someone_else() -> None:
    leaving = walk(1, range(40), start=(840, 100, 880, 200), velocity=(4, 0))
    rows = {
        f: [box._replace(xyxy=np.minimum(box.xyxy, [WIDTH, HEIGHT] * 2).astype(np.float32)) for box in r]
        for f, r in leaving.items()
    }
    entering = walk(2, range(70, 110), since=70, start=(960, 100, 1000, 200), velocity=(-4, 0))
    assert [len(t) for t in assemble(both(rows, entering))] == [40, 40]


def test_crossing_objects_stay_two() -> None:
    rows = both(
        walk(1, range(100), start=(100, 100, 140, 200), velocity=(4, 0)),
        walk(2, range(100), start=(500, 110, 540, 210), velocity=(-4, 0)),
    )
    assert [len(t) for t in assemble(rows)] == [100, 100]


def test_two_people_side_by_side_stay_two() -> None:
    rows = both(walk(1, range(100)), walk(2, range(100), start=(120, 100, 160, 200)))
    assert len(assemble(rows)) == 2


def test_a_small_child_in_front_of_an_adult_stays() -> None:
    rows = both(walk(1, range(100), start=(100, 100, 160, 260)), walk(2, range(100), start=(110, 160, 140, 255)))
    assert len(assemble(rows)) == 2


def test_a_part_that_is_seen_weakly_goes() -> None:
    rows = both(
        walk(1, range(100), start=(100, 100, 160, 260), conf=0.9),
        walk(2, range(10, 60), start=(105, 100, 150, 170), conf=0.45),
    )
    assert [t.track_id for t in assemble(rows)] == [1]


def test_a_thing_seen_whole_and_in_part_is_one_and_keeps_the_better_boxes() -> None:
    whole = walk(1, range(90), start=(100, 100, 200, 200), class_id=1, conf=0.6)
    part = walk(2, range(20, 80), start=(100, 130, 185, 200), class_id=1, conf=0.5)  # IoU 0.6
    for frame in range(30, 60):
        part[frame] = [part[frame][0]._replace(conf=0.65)]  # at times the surer one
    (track,) = assemble(both(whole, part))
    assert np.abs(track.xyxy - np.stack([whole[f][0][1] for f in range(90)])).max() < 1


def test_who_passes_close_behind_somebody_is_not_swallowed() -> None:
    rows = both(
        walk(1, range(120), start=(100, 100, 140, 200), velocity=(3, 0)),
        walk(2, range(120), start=(190, 104, 230, 204), velocity=(1.5, 0)),  # overtaken: IoU over 0.5 for 16 frames
    )
    assert [len(t) for t in assemble(rows)] == [120, 120]


def test_car_and_truck_on_one_box_are_one_vehicle_named_by_the_vote() -> None:
    rows = both(
        walk(1, range(80), start=(100, 100, 220, 180), class_id=2, conf=0.5),
        walk(2, range(20, 100), start=(102, 100, 222, 181), class_id=7, conf=0.8),
    )
    (track,) = assemble(rows)
    assert track.top_class == "truck"
    assert set(track.class_scores) == {"car", "truck"}
    assert track.frames.tolist() == list(range(100))


def test_rider_and_bicycle_stay_two() -> None:
    rows = both(
        walk(1, range(90), start=(100, 100, 150, 220)),
        walk(2, range(90), start=(100, 140, 150, 240), class_id=1),
    )
    assert [t.top_class for t in assemble(rows)] == ["person", "bicycle"]


def test_a_class_is_what_most_of_a_life_says() -> None:
    rows = walk(1, range(60), class_id=2, conf=0.9)
    rows |= walk(1, range(60, 75), class_id=7, conf=0.4)  # the last frames say truck
    (track,) = assemble(rows)
    assert track.top_class == "car"
    assert track.score < 0.9


def test_a_weak_straggler_after_the_object_has_left_is_cut_off() -> None:
    (track,) = assemble(both(walk(1, range(60)), walk(1, [72, 73], conf=0.12)))
    assert track.frames[-1] == 59


def test_a_confident_reappearance_is_kept() -> None:
    assert core(np.array([0, 1, 2, 20, 21]), np.array([0.8, 0.8, 0.8, 0.7, 0.7], np.float32), 30) == slice(0, 5)


def test_boxes_stay_within_the_picture() -> None:
    (track,) = assemble(walk(1, range(60), start=(880, 540, 960, 640), velocity=(2, 0)))
    assert track.xyxy[:, 2].max() <= WIDTH
    assert track.xyxy[:, 3].max() <= HEIGHT
    assert (track.xyxy[:, 2:] > track.xyxy[:, :2]).all()


def test_tracks_come_out_while_the_video_runs() -> None:
    machine = assembler()
    rows = walk(1, range(30))
    out = [(f, t) for f in range(300) for t in machine.push(f, rows.get(f, []))]
    ((frame, track),) = out
    assert len(track) == 30
    assert frame < 30 + 4 * FPS
    assert machine.close() == []


def test_an_open_track_does_not_hold_back_finished_ones() -> None:
    machine = assembler()
    parked, passing = walk(1, range(600), start=(700, 300, 800, 400), velocity=(0, 0)), walk(2, range(30))
    rows = both(parked, passing)
    early = [t.track_id for f in range(600) for t in machine.push(f, rows[f])]
    assert early == [2]
    assert [len(t) for t in machine.close()] == [600]


def test_memory_does_not_grow_with_the_video() -> None:
    machine = assembler()
    for k in range(12):  # one visitor every two seconds
        rows = walk(100 + k, range(60 * k, 60 * k + 45), since=60 * k)
        out = [t for f in range(60 * k, 60 * k + 60) for t in machine.push(f, rows.get(f, []))]
        assert [len(t) for t in out] == [45] * (k > 1)
    assert [len(t) for t in machine.close()] == [45, 45]


def test_the_same_input_gives_the_same_tracks() -> None:
    rng = np.random.default_rng(3)
    walks = [
        walk(k, range(10 * k, 10 * k + 50), start=(x, y, x + 40, y + 90), velocity=(vx, vy))
        for k, (x, y, vx, vy) in enumerate(rng.uniform([50, 50, -3, -2], [900, 400, 3, 2], (12, 4)))
    ]
    first, second = assemble(both(*walks)), assemble(both(*walks))
    assert [t.track_id for t in first] == [t.track_id for t in second]
    assert all(np.array_equal(a.xyxy, b.xyxy) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("bad", [0, -25.0])
def test_a_frame_rate_must_be_positive(bad: float) -> None:
    with pytest.raises(ValueError, match="fps > 0"):
        assembler(bad)


@st.composite
def _streams(draw: Callable[..., object]) -> dict[int, list[TrackedBox]]:
    pieces = []
    for k in range(draw(st.integers(0, 5))):  # type: ignore[call-overload]
        begin, length = draw(st.integers(0, 60)), draw(st.integers(1, 60))
        x, y = draw(st.integers(-20, 980)), draw(st.integers(-20, 580))
        w, h = draw(st.integers(1, 200)), draw(st.integers(1, 200))
        keep = draw(st.integers(1, 5))
        pieces.append(
            walk(
                k,
                range(begin, begin + length, keep),
                start=(x, y, x + w, y + h),
                velocity=(draw(st.integers(-6, 6)), draw(st.integers(-6, 6))),
                conf=draw(st.sampled_from([0.1, 0.3, 0.6, 0.95])),
                class_id=draw(st.sampled_from([0, 1, 2, 7])),
            )
        )
    return both({0: []}, *pieces)


@pytest.mark.slow
@given(_streams())
def test_whatever_comes_in_tracks_are_well_formed(rows: dict[int, list[TrackedBox]]) -> None:
    tracks = assemble(rows)
    assert len({t.track_id for t in tracks}) == len(tracks)
    assert len(tracks) <= len({row[0] for r in rows.values() for row in r})
    for track in tracks:
        assert np.isfinite(track.xyxy).all()
        assert (np.diff(track.frames) > 0).all()
        assert min(rows) <= track.frames[0]
        assert track.frames[-1] <= max(rows)
        assert (track.xyxy[:, 2:] > track.xyxy[:, :2]).all()
        assert track.xyxy.min() >= 0
        assert track.xyxy[:, [0, 2]].max() <= WIDTH
        assert track.xyxy[:, [1, 3]].max() <= HEIGHT
        assert 0 <= track.score <= 1
        assert sum(track.class_scores.values()) > 0


@given(st.lists(st.integers(0, 200), unique=True, min_size=1), st.integers(0, 10))
def test_spans_hold_every_frame_and_break_at_long_gaps_only(numbers: Sequence[int], max_gap: int) -> None:
    frames = np.array(sorted(numbers), np.int64)
    spans = split_spans(frames, max_gap)
    assert np.concatenate([frames[s] for s in spans]).tolist() == frames.tolist()
    for span in spans:
        assert (np.diff(frames[span]) - 1 <= max_gap).all()
    for before, after in pairwise(spans):
        assert frames[after][0] - frames[before][-1] - 1 > max_gap


def test_without_smoothing_detections_stay_as_they_are() -> None:
    frames = np.array([0, 1, 4, 5])
    xyxy = np.random.default_rng(0).uniform(0, 50, (4, 4)).astype(np.float32)
    full, boxes, conf = fill_and_smooth(frames, xyxy, np.full(4, 0.7, np.float32), 5, 0.0)
    assert full.tolist() == [0, 1, 2, 3, 4, 5]
    assert np.allclose(boxes[[0, 1, 4, 5]], xyxy)
    assert np.allclose(boxes[2], xyxy[1] + (xyxy[2] - xyxy[1]) / 3, atol=1e-4)
    assert conf.tolist() == pytest.approx([0.7, 0.7, 0, 0, 0.7, 0.7])
