"""Split a project's videos into training and held-out parts.

Neighbouring frames of a video are nearly identical, so evaluating on the neighbours of training frames is leakage.
Therefore whole videos are held out, or, where there are too few, blocks of time with gaps between them. A video's part
is decided when it is first used and kept in the database: training frames never become evaluation frames.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Literal

import numpy as np
import numpy.typing as npt
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from ml_backend.core.errors import StorageError
from ml_backend.core.types import Float64Array, IntArray
from ml_backend.db.storage import Storage
from ml_backend.db.tables import training_splits

Part = Literal["train", "held_out", "blocks"]

#: Use of a frame, as :meth:`Split.uses` returns it.
NEITHER, TRAIN, VAL, HELD_OUT = 0, 1, 2, 3

#: Share of the videos that is held out.
HELD_OUT_SHARE = 0.2
#: Pattern of a video in blocks: training blocks on both sides of the held-out one show the same scenes.
_BLOCKS = (TRAIN, TRAIN, HELD_OUT, TRAIN, VAL)
#: Pattern of a training video: a tenth for validation is enough to see when training should stop.
_TRAINED = (TRAIN,) * 9 + (VAL,)
#: Seconds of video per repetition of the pattern, and the most repetitions: each edge between blocks costs frames.
_ROUND_S, _MAX_ROUNDS = 20.0, 4
#: Width of the gap beside a block of another use, as a share of a block: its frames are not trained on.
_GAP = 0.1
#: Number of places at which a held-out video is evaluated.
_PLACES = 4


@dataclass(frozen=True, slots=True)
class Split:
    """A video's part.

    Attributes:
        part: ``"train"`` and ``"held_out"`` are whole videos, ``"blocks"`` is one that is cut into blocks of time.
        phase: number of blocks by which the pattern is shifted.
        content: SHA-256 of the file.
    """

    part: Part
    phase: int = 0
    content: str = ""

    def uses(self, times: Float64Array) -> IntArray:
        """Return ``(n,)`` the use of each frame, :data:`TRAIN` and so on; :data:`NEITHER` in the gaps.

        Args:
            times: ``(n,)`` seconds, ascending.
        """
        if self.part == "held_out":
            return np.full(len(times), HELD_OUT, np.int64)
        edges = self._edges(times)
        block = _block_of(times, edges)
        uses = self._pattern(len(edges) - 1)
        out = uses[block]
        gap = _GAP * (edges[1] - edges[0])
        for side, beside in ((0, -1), (1, 1)):
            other = np.clip(block + beside, 0, len(uses) - 1)
            near = np.abs(times - edges[block + side]) < gap
            out[(out == TRAIN) & near & (uses[other] != TRAIN)] = NEITHER
        return out

    def places(self, times: Float64Array) -> list[tuple[int, int]]:
        """Return where the video is evaluated: first and last frame of each held-out block, or of each quarter of a
        held-out video."""
        if self.part == "train":
            return []
        if self.part == "held_out":
            edges = _even_edges(times, _PLACES)
            held = np.ones(_PLACES, bool)
        else:
            edges = self._edges(times)
            held = self._pattern(len(edges) - 1) == HELD_OUT
        block = _block_of(times, edges)
        frames_by_block = [np.flatnonzero(block == number) for number in np.flatnonzero(held).tolist()]
        return [(int(frames[0]), int(frames[-1])) for frames in frames_by_block if len(frames)]

    def _edges(self, times: Float64Array) -> Float64Array:
        if self.part == "train":
            return _even_edges(times, len(_TRAINED))
        rounds = max(1, min(_MAX_ROUNDS, int(_length(times) // _ROUND_S)))
        return _even_edges(times, rounds * len(_BLOCKS))

    def _pattern(self, blocks: int) -> IntArray:
        pattern = np.array(_TRAINED if self.part == "train" else _BLOCKS, np.int64)
        out: IntArray = pattern[(np.arange(blocks) + self.phase) % len(pattern)]
        return out


def phases(part: Part) -> int:
    """Return the number of phases of a part."""
    return {"train": len(_TRAINED), "blocks": len(_BLOCKS), "held_out": 1}[part]


def _length(times: Float64Array) -> float:
    """Return the seconds from the first frame to the end of the last."""
    span = float(times[-1] - times[0])
    return span * len(times) / (len(times) - 1) if len(times) > 1 else 1.0


def _even_edges(times: Float64Array, blocks: int) -> Float64Array:
    start = float(times[0])
    return np.linspace(start, start + max(_length(times), 1e-6), blocks + 1, dtype=np.float64)


def _block_of(times: Float64Array, edges: Float64Array) -> IntArray:
    index = np.searchsorted(edges, times, side="right") - 1
    block: IntArray = np.clip(index, 0, len(edges) - 2).astype(np.int64)
    return block


@dataclass(slots=True)
class SplitCandidate:
    """A video whose part is to be decided; each task on it adds what it shows.

    Attributes:
        video: its key.
        content: SHA-256 of the file.
        shown: by part and phase, then label: ``(4,)`` number of frames per use on which the label would be visible.
    """

    video: str
    content: str = ""
    shown: dict[tuple[Part, int], dict[str, IntArray]] = field(default_factory=dict)

    def add(self, times: Float64Array, visible: Mapping[str, npt.NDArray[np.bool_]], sampled: IntArray) -> None:
        """Add what a task shows.

        Args:
            times: ``(n,)`` seconds of all frames.
            visible: by label, ``(n,)`` whether any such object is visible.
            sampled: indices of the frames that could be trained on; evaluation may use any frame.
        """
        parts: tuple[Part, ...] = ("train", "blocks")
        for part in parts:
            for phase in range(phases(part)):
                uses = Split(part, phase).uses(times)
                counts = self.shown.setdefault((part, phase), {})
                for label, is_visible in visible.items():
                    by_use = np.bincount(uses[sampled[is_visible[sampled]]], minlength=4)
                    by_use[HELD_OUT] = int((uses[is_visible] == HELD_OUT).sum())
                    counts[label] = counts.get(label, np.zeros(4, np.int64)) + by_use

    @property
    def labels(self) -> frozenset[str]:
        return frozenset(label for counts in self.shown.values() for label, by_use in counts.items() if by_use.any())

    def best_phase(self, part: Part) -> int:
        """Return the phase in which most labels are both trained and evaluated (or validated); the first of several."""
        order = _pseudo_random(self.video) if not self.labels else 0
        count = phases(part)
        return max(range(count), key=lambda phase: (*self._score_phase(part, phase), -((phase - order) % count)))

    @property
    def can_evaluate_itself(self) -> bool:
        """Whether, cut into blocks, it has something to train on and something to evaluate."""
        return self._score_phase("blocks", self.best_phase("blocks"))[0] > 0

    def _score_phase(self, part: Part, phase: int) -> tuple[int, ...]:
        counts = self.shown.get((part, phase), {}).values()
        trained, validated = [by_use[TRAIN] > 0 for by_use in counts], [by_use[VAL] > 0 for by_use in counts]
        evaluated = [by_use[HELD_OUT] > 0 for by_use in counts] if part == "blocks" else validated
        return (
            int(any(trained) and any(evaluated)),
            sum(a and b for a, b in zip(trained, evaluated, strict=True)),
            sum(trained),
            int(any(validated)),
            sum(a and b for a, b in zip(trained, validated, strict=True)),
        )


@dataclass(frozen=True, slots=True)
class AssignedVideo:
    """A video whose part is decided.

    Attributes:
        labels: labels that are annotated on it now.
        measures: whether it contributes to the evaluation now: the file or its annotations may be gone.
    """

    split: Split
    labels: frozenset[str]
    measures: bool = True


def assign_splits(candidates: Iterable[SplitCandidate], assigned: Mapping[str, AssignedVideo]) -> dict[str, Split]:
    """Decide the parts of new videos. The result does not depend on the order of the arguments.

    About a fifth of all videos is held out, such that every held-out label is also trained elsewhere. Where that is
    impossible and nothing is held out yet, the new videos are cut into blocks. Videos without objects are trained on.
    """
    groups = _by_content(candidates)
    decided: dict[str, Split] = {}
    new: list[SplitCandidate] = []
    for group in groups:
        same = next(
            (k.split for k in assigned.values() if group[0].content and k.split.content == group[0].content), None
        )
        if same:
            decided.update({item.video: same for item in group})
        else:
            new.append(group[0])
    new.sort(key=lambda item: _pseudo_random(item.video))
    objects = [item for item in new if item.labels]
    learned = [k.labels for k in assigned.values() if k.split.part != "held_out"]
    held = [k for k in assigned.values() if k.split.part == "held_out" and k.measures]
    total = len(objects) + sum(bool(k.labels) for k in assigned.values())
    blocks = sum(k.split.part == "blocks" and k.measures for k in assigned.values())
    # Keep the present held-out part as it is while it is large enough: versions stay comparable.
    lacking = HELD_OUT_SHARE * (total - blocks) - len(held)
    chosen = _held_out(objects, learned, math.floor(lacking + 1e-9) if held or blocks else math.ceil(lacking))
    nothing_measured = not chosen and not (held or blocks)
    for item in new:
        part: Part = "train"
        if item.video in chosen:
            part = "held_out"
        elif nothing_measured and item.labels:
            part = "blocks"
        phase = 0 if part == "held_out" else item.best_phase(part)
        group = next(group for group in groups if group[0] is item)
        decided.update({member.video: Split(part, phase, item.content) for member in group})
    return decided


def _by_content(candidates: Iterable[SplitCandidate]) -> list[list[SplitCandidate]]:
    """Group candidates by file content; the first of each group represents it."""
    groups: dict[str, list[SplitCandidate]] = {}
    for item in sorted(candidates, key=lambda item: item.video):
        groups.setdefault(item.content or item.video, []).append(item)
    for first, *others in groups.values():
        for other in others:
            for key, counts in other.shown.items():
                merged = first.shown.setdefault(key, {})
                for label, by_use in counts.items():
                    merged[label] = merged.get(label, np.zeros(4, np.int64)) + by_use
    return list(groups.values())


def _held_out(candidates: Sequence[SplitCandidate], learned: Sequence[frozenset[str]], wanted: int) -> set[str]:
    """Return the keys of up to ``wanted`` videos whose labels are all trained elsewhere, most new labels first."""
    chosen: dict[str, frozenset[str]] = {}
    left = Counter(label for labels in (*learned, *(item.labels for item in candidates)) for label in labels)
    while len(chosen) < wanted:
        measured = frozenset[str]().union(*chosen.values())
        # Every held-out label must remain in some training video.
        possible = [
            item for item in candidates if item.video not in chosen and all(left[label] > 1 for label in item.labels)
        ]
        if not possible:
            break
        best = max(possible, key=lambda item: len(item.labels - measured))  # the first of several
        chosen[best.video] = best.labels
        left.subtract(best.labels)
    return set(chosen)


def _pseudo_random(text: str) -> int:
    """Return a pseudo-random number that depends on nothing but the text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")


class SplitStore:
    """Stores the parts of videos. Safe across threads and processes: the first decision counts for all."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def splits(self, project_id: int) -> dict[str, Split]:
        """Return the decided parts by video key."""
        query = sa.select(training_splits).where(training_splits.c.project_id == project_id)
        with self._storage.read() as connection:
            return {row.video: Split(row.part, row.phase, row.content) for row in connection.execute(query)}

    def add(self, project_id: int, decided: Mapping[str, Split]) -> bool:
        """Store decisions that belong together. Return false, and store none, where one of the videos has a part
        already: another process was faster, and the rest has to be decided again."""
        now = datetime.now(timezone.utc)
        rows = [
            {"project_id": project_id, "video": video, "decided_at": now}
            | {"part": split.part, "phase": split.phase, "content": split.content}
            for video, split in sorted(decided.items())
        ]
        if not rows:
            return True
        try:
            with self._storage.write() as connection:
                connection.execute(sa.insert(training_splits), rows)
        except StorageError as error:
            if isinstance(error.__cause__, IntegrityError):
                return False
            raise
        return True
