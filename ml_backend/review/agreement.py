"""Agreement of people who annotated the same video: HOTA, IDF1, kappa of the labels, and tracks that only one has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ml_backend.core.boxes import box_area, boxes_by_frame, intersection
from ml_backend.core.types import Float64Array, IntArray
from ml_backend.label_studio.regions import MALFORMED, RegionKeys, stated_frames
from ml_backend.tracking.metrics import Counts, Rows, count

#: Overlap of two tracks, intersection over union of all their boxes, from which they are the same object.
MATCH = 0.5
#: Most frames of a video that are compared; of longer ones every so many-th.
MAX_FRAMES = 3000


@dataclass(frozen=True, slots=True)
class Dispute:
    """A track that only one of two people has, or to which they give different labels.

    Attributes:
        first, last: frames from 1, as Label Studio counts.
        a, b: labels; ``None``: the person has no such track.
    """

    first: int
    last: int
    a: str | None
    b: str | None


@dataclass(frozen=True, slots=True)
class Agreement:
    """How two people agree; add them up over videos.

    Attributes:
        counts: of boxes and identities, whatever the labels.
        labels: both people's labels of each track that both have.
        disputes: see :class:`Dispute`.
    """

    counts: Counts = field(default_factory=Counts, repr=False)
    labels: tuple[tuple[str, str], ...] = ()
    disputes: tuple[Dispute, ...] = ()

    def __add__(self, other: Agreement) -> Agreement:
        return Agreement(self.counts + other.counts, self.labels + other.labels, self.disputes + other.disputes)

    @property
    def only_a(self) -> int:
        """Number of tracks that only the first person has."""
        return sum(item.b is None for item in self.disputes)

    @property
    def only_b(self) -> int:
        """Number of tracks that only the second person has."""
        return sum(item.a is None for item in self.disputes)

    @property
    def kappa(self) -> float | None:
        """Cohen's kappa of the labels; ``None`` if there is only one label, or no track that both have."""
        names = sorted({name for pair in self.labels for name in pair})
        if len(names) < 2:
            return None
        table = np.zeros((len(names), len(names)))
        for a, b in self.labels:
            table[names.index(a), names.index(b)] += 1
        table /= table.sum()
        by_chance = float(table.sum(axis=1) @ table.sum(axis=0))
        return (float(np.trace(table)) - by_chance) / (1 - by_chance)

    @property
    def by_label(self) -> dict[str, dict[str, int]]:
        """By label, tracks that both have and call so, that one of them calls otherwise, and that one lacks."""
        found: dict[str, dict[str, int]] = {}
        for a, b in self.labels:
            for name in {a, b}:
                row = found.setdefault(name, {"agreed": 0, "disputed": 0, "unmatched": 0})
                row["agreed" if a == b else "disputed"] += 1
        for item in self.disputes:
            if item.a is None or item.b is None:
                row = found.setdefault(item.a or item.b or "", {"agreed": 0, "disputed": 0, "unmatched": 0})
                row["unmatched"] += 1
        return dict(sorted(found.items()))

    def scores(self) -> dict[str, float | None]:
        """Return HOTA and IDF1, 0..1, the same from either side; ``None`` without boxes."""
        if not self.counts.truth_boxes:
            return {"hota": None, "idf1": None}
        scores = self.counts.scores()
        return {"hota": scores["HOTA"], "idf1": scores["IDF1"]}


def compare(a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]]) -> Agreement:
    """Compare two people's ``videorectangle`` results of one video. Malformed regions are left out."""
    frames = compared_frames([*a, *b])
    one, two = sampled_tracks(a, frames), sampled_tracks(b, frames)
    pairs = best_pairs(track_overlaps(one, two))
    matched_a, matched_b = {i for i, _ in pairs}, {j for _, j in pairs}
    labels = tuple((one[i].label, two[j].label) for i, j in pairs)
    disputes = [replace(one[i].dispute(), b=two[j].label) for i, j in pairs if one[i].label != two[j].label]
    disputes += [item.dispute() for i, item in enumerate(one) if i not in matched_a]
    disputes += [Dispute(item.first, item.last, None, item.label) for j, item in enumerate(two) if j not in matched_b]
    return Agreement(count(_rows(one), _rows(two)), labels, tuple(sorted(disputes, key=lambda item: item.first)))


@dataclass(frozen=True, slots=True)
class SampledTrack:
    """One person's track on the frames that are compared.

    Attributes:
        label: empty without one.
        frames: ``(n,)`` from 1, on which it is visible; never empty.
        xyxy: ``(n, 4)`` in percent.
        region: that it is in Label Studio.
    """

    label: str
    frames: IntArray = field(repr=False)
    xyxy: Float64Array = field(repr=False)
    region: Mapping[str, Any] = field(repr=False)

    @property
    def first(self) -> int:
        return int(self.frames[0])

    @property
    def last(self) -> int:
        return int(self.frames[-1])

    def dispute(self) -> Dispute:
        return Dispute(self.first, self.last, self.label, None)


def compared_frames(regions: Sequence[Mapping[str, Any]]) -> IntArray:
    """Return the frames of a video ``(n,)`` from 1 on which its regions are compared, :data:`MAX_FRAMES` at most."""
    last = 0
    for region in regions:
        try:
            last = max(last, stated_frames(region), *RegionKeys.read(region).frames[-1:].tolist())
        except MALFORMED:
            continue
    return np.arange(1, last + 1, max(1, -(-last // MAX_FRAMES)))


def sampled_tracks(regions: Sequence[Mapping[str, Any]], frames: IntArray) -> list[SampledTrack]:
    """Return the tracks that are visible on some of the frames; malformed regions are left out."""
    tracks = []
    for region in regions:
        try:
            xyxy, visible = RegionKeys.read(region).boxes(100, 100, frames)
            labels = region["value"].get("labels") or [""]
        except MALFORMED:
            continue
        if visible.any():
            tracks.append(SampledTrack(str(labels[0]), frames[visible], xyxy[visible], region))
    return tracks


def _rows(tracks: Sequence[SampledTrack]) -> Rows:
    rows = [
        np.column_stack([item.frames, np.full(len(item.frames), number), item.xyxy])
        for number, item in enumerate(tracks)
    ]
    return np.concatenate([np.zeros((0, 6)), *rows], dtype=np.float64)


def track_overlaps(a: Sequence[SampledTrack], b: Sequence[SampledTrack]) -> Float64Array:
    """Return the intersection over union ``(n, m)`` of all boxes of each track of ``a`` and each of ``b``."""
    shared = np.zeros((len(a), len(b)))
    others = boxes_by_frame([track.frames for track in b], [track.xyxy for track in b])
    for frame, (rows, boxes) in boxes_by_frame([track.frames for track in a], [track.xyxy for track in a]).items():
        if frame in others:
            columns, near = others[frame]
            shared[np.ix_(rows, columns)] += intersection(boxes[:, None], near[None])
    areas, others_areas = (np.array([box_area(track.xyxy).sum() for track in tracks]) for tracks in (a, b))
    union = areas[:, None] + others_areas[None] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def best_pairs(overlap: Float64Array) -> list[tuple[int, int]]:
    """Return the one-to-one pairs with the largest total overlap, of at least :data:`MATCH` each."""
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(-overlap)
    return [(int(i), int(j)) for i, j in zip(rows, columns, strict=True) if overlap[i, j] >= MATCH]
