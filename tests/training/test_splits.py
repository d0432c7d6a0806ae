"""Parts of videos: decided once, by whoever comes first; what is measured is learned elsewhere."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml_backend.db.storage import Storage
from ml_backend.training.splits import (
    HELD_OUT,
    NEITHER,
    TRAIN,
    VAL,
    AssignedVideo,
    Part,
    Split,
    SplitCandidate,
    SplitStore,
    assign_splits,
    phases,
)
from tests.builders import ROOT


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "db.sqlite3"


@pytest.fixture
def store(path: Path) -> SplitStore:
    return SplitStore(Storage(f"sqlite:///{path}"))


def seconds(frames: int, fps: float = 10.0) -> np.ndarray:
    return np.arange(frames) / fps


def make_candidate(
    video: str, *labels: str, frames: int = 100, at: Iterable[int] | None = None, content: str = ""
) -> SplitCandidate:
    """A video of ten pictures a second on which objects with these labels are on the pictures ``at`` (all)."""
    item = SplitCandidate(video, content)
    there = np.zeros(frames, bool)
    there[list(range(frames) if at is None else at)] = True
    item.add(seconds(frames), dict.fromkeys(labels, there), np.arange(frames))
    return item


def known(decided: dict[str, Split], *candidates: SplitCandidate) -> dict[str, AssignedVideo]:
    labels = {item.video: item.labels for item in candidates}
    return {video: AssignedVideo(split, labels[video]) for video, split in decided.items()}


# -- blocks of time


def test_blocks_of_one_video() -> None:
    uses = Split("blocks").uses(seconds(100))
    assert [uses[n * 20 + 10] for n in range(5)] == [TRAIN, TRAIN, HELD_OUT, TRAIN, VAL]
    assert np.flatnonzero(uses == NEITHER).tolist() == [39, 60, 61, 79]
    assert set(uses[40:60]) == {HELD_OUT}
    assert set(uses[80:]) == {VAL}
    shifted = Split("blocks", 1).uses(seconds(100))
    assert [shifted[n * 20 + 10] for n in range(5)] == [TRAIN, HELD_OUT, TRAIN, VAL, TRAIN]


@pytest.mark.parametrize(("length_s", "blocks"), [(1, 5), (39, 5), (41, 10), (81, 20), (3600, 20)])
def test_longer_videos_have_more_blocks(length_s: int, blocks: int) -> None:
    places = Split("blocks").places(seconds(length_s * 10))
    assert len(places) == blocks // 5
    assert {last - first + 1 for first, last in places} <= {length_s * 10 // blocks + n for n in (0, 1)}


@given(
    frames=st.integers(1, 400),
    fps=st.sampled_from([0.5, 5.0, 25.0, 29.97, 60.0]),
    part=st.sampled_from(["train", "blocks", "held_out"]),
    phase=st.integers(0, 9),
)
def test_nothing_is_trained_on_beside_what_is_measured(frames: int, fps: float, part: Part, phase: int) -> None:
    times = seconds(frames, fps)
    split = Split(part, phase % phases(part))
    uses = split.uses(times)
    if part == "held_out":
        assert set(uses) == {HELD_OUT}
        return
    length = times[-1] + 1 / fps
    blocks = {"train": 10, "blocks": 5 * max(1, min(4, int(length // 20)))}[part]
    gap = 0.1 * length / blocks
    for other in (HELD_OUT, VAL):
        there = np.flatnonzero(uses == other)
        for picture in np.flatnonzero(uses == TRAIN).tolist():
            # A picture lasts until the next: that far apart they are at least.
            assert not len(there) or np.abs(times[there] - times[picture]).min() >= min(gap, 1 / fps) - 1e-6
    assert not (part == "train" and (uses == HELD_OUT).any())
    measured = sorted(n for first, last in split.places(times) for n in range(first, last + 1))
    assert measured == np.flatnonzero(uses == HELD_OUT).tolist()


def test_a_held_out_video_is_measured_in_four_places() -> None:
    assert Split("held_out").places(seconds(100)) == [(0, 24), (25, 49), (50, 74), (75, 99)]
    assert Split("held_out").places(seconds(2)) == [(0, 0), (1, 1)]
    assert Split("train").places(seconds(100)) == []


def test_the_phase_gives_objects_to_both_sides() -> None:
    everywhere = make_candidate("v", "person")
    assert everywhere.best_phase("blocks") == 0
    # Without shifting, all of it would be trained on: it is only in the first two blocks.
    early = make_candidate("v", "person", at=range(40))
    split = assign_splits([early], {})["v"]
    uses = split.uses(seconds(100))[:40]
    assert split.part == "blocks"
    assert {TRAIN, HELD_OUT} <= set(uses)
    assert early.can_evaluate_itself
    assert not make_candidate("v", "person", at=range(5, 15)).can_evaluate_itself
    # Both labels on both sides, if that can be.
    item = make_candidate("v", "person", at=range(40))
    there = np.zeros(100, bool)
    there[20:60] = True
    item.add(seconds(100), {"car": there}, np.arange(100))
    assert assign_splits([item], {})["v"].phase == 1


# -- which videos are held out


def test_the_only_video_is_cut_in_blocks() -> None:
    assert assign_splits([make_candidate("a", "person")], {})["a"].part == "blocks"
    parts = assign_splits([make_candidate("a", "person"), make_candidate("b")], {})
    assert {video: split.part for video, split in parts.items()} == {"a": "blocks", "b": "train"}


@pytest.mark.parametrize(("videos", "held_out"), [(2, 1), (5, 1), (6, 2), (20, 4)])
def test_a_fifth_of_several_videos_is_held_out(videos: int, held_out: int) -> None:
    candidates = [make_candidate(f"v{n}", "person") for n in range(videos)]
    decided = assign_splits(candidates, {})
    assert [split.part for split in decided.values()].count("held_out") == held_out
    assert {split.part for split in decided.values()} == {"held_out", "train"}
    assert assign_splits(candidates[::-1], {}) == decided


def test_what_is_measured_is_learned_elsewhere() -> None:
    different = [make_candidate("a", "person"), make_candidate("b", "car")]
    assert {split.part for split in assign_splits(different, {}).values()} == {"blocks"}
    both = make_candidate("c", "person", "car")
    parts = {video: split.part for video, split in assign_splits([*different, both], {}).items()}
    assert parts["c"] == "held_out"  # it measures most
    rare = [make_candidate(f"v{n}", "person") for n in range(4)] + [make_candidate("rare", "person", "dog")]
    for _ in range(3):
        parts = {video: split.part for video, split in assign_splits(rare, {}).items()}
        assert parts["rare"] == "train"


def test_growing_keeps_what_is_held_out() -> None:
    videos = [make_candidate(f"v{n}", "person") for n in range(12)]
    decided: dict[str, Split] = {}
    parts: list[str] = []
    for count, item in enumerate(videos, start=1):
        before = dict(decided)
        decided |= assign_splits([item], known(decided, *videos))
        assert {video: decided[video] for video in before} == before
        parts.append(decided[item.video].part)
        assert ("held_out" in parts) == (count >= 6), "the first video measures alone until there are five more"
    assert parts[0] == "blocks"
    assert parts.count("held_out") == 2, "a fifth of the twelve, but for the one in blocks"
    strange = assign_splits([make_candidate("strange", "dog")], known(decided, *videos))
    assert strange["strange"].part == "train"


def test_a_held_out_video_that_is_gone_is_replaced() -> None:
    videos = [make_candidate(f"v{n}", "person") for n in range(3)]
    decided = assign_splits(videos[:2], {})
    facts = {video: AssignedVideo(split, frozenset({"person"}), measures=False) for video, split in decided.items()}
    assert assign_splits([videos[2]], facts)["v2"].part == "held_out"


def test_the_same_file_under_two_addresses_has_one_part() -> None:
    same = [make_candidate(name, "person", content="f00") for name in ("a", "b")]
    other = [make_candidate(name, "person", content=name) for name in ("c", "d", "e")]
    decided = assign_splits([*same, *other], {})
    assert decided["a"] == decided["b"]
    assert (
        assign_splits([make_candidate("f", "person", content="f00")], known(decided, *same, *other))["f"]
        == decided["a"]
    )


# -- the database


def test_parts_are_kept(store: SplitStore, path: Path) -> None:
    assert store.add(1, {"a": Split("train", 7, "f00"), "b": Split("held_out")})
    assert store.add(2, {"a": Split("blocks", 3)})
    assert store.add(2, {})
    again = SplitStore(Storage(f"sqlite:///{path}"))
    assert again.splits(1) == {"a": Split("train", 7, "f00"), "b": Split("held_out")}
    assert again.splits(2) == {"a": Split("blocks", 3)}
    assert again.splits(3) == {}


def test_decisions_are_kept_together_or_not_at_all(store: SplitStore) -> None:
    assert store.add(1, {"b": Split("train")})
    assert not store.add(1, {"a": Split("train"), "b": Split("held_out"), "c": Split("train")})
    assert store.splits(1) == {"b": Split("train")}


@pytest.mark.slow
def test_two_processes_agree(store: SplitStore, path: Path) -> None:
    code = (
        "import sys\n"
        "from ml_backend.db.storage import Storage\n"
        "from ml_backend.training.splits import Split, SplitStore\n"
        "store, me = SplitStore(Storage(sys.argv[1])), int(sys.argv[2])\n"
        "for n in range(40):\n"
        "    wanted = {f'{n}-a': Split('train', me), f'{n}-b': Split('held_out', me)}\n"
        "    store.add(1, dict(reversed(wanted.items())) if me % 2 else wanted)\n"
    )
    command = [sys.executable, "-c", code, f"sqlite:///{path}"]
    running = [subprocess.Popen([*command, str(n)], cwd=ROOT, stderr=subprocess.PIPE) for n in range(3)]
    for process in running:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors.decode()
    splits = store.splits(1)
    assert len(splits) == 80
    for n in range(40):
        assert splits[f"{n}-a"].phase == splits[f"{n}-b"].phase
