"""Find tracks of different videos, or of different times of one video, that show the same object.

Tracks are compared by the embeddings of their views, less what all tracks of their video have in common, so that
another camera's light counts less. Two tracks match where each is the other's most similar one in its video, by a
margin, and they are more alike than objects that are certainly different, those that one video shows at once, and as
alike as the views of one track are. A wrong pair costs a person more than a missing one, so doubtful ones are left.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from ml_backend.core.types import Float64Array, IntArray
from ml_backend.labeling.few_shot.identity_jumps import MIN_OTHERS, TrackViews, centred

#: Of views: an embedder tells kinds of objects apart better than two people on one street, colours do the opposite.
_LOOKS = ("vectors", "colours")
#: Likeness by which a track must resemble its match more than any other track of the same video.
MARGIN = 0.1
#: Standard deviations between the bar and the mean likeness of different objects, and of a track's views.
SURE, TYPICAL = 2.0, 2.0
#: Mean and standard deviation of the likeness of a track to the most similar different one, and of its earlier views to
#: its later ones, as priors that count as much as ``PRIOR_TRACKS`` tracks. See ``benchmarks/global_ids.py``.
DIFFERENT, SAME, PRIOR_TRACKS = (0.21, 0.13), (0.63, 0.16), 6.0


@dataclass(frozen=True, slots=True)
class SeenTrack:
    """A track and its views.

    Attributes:
        video: names its video; of tracks of one video, those on a common frame are different objects.
        kind: its label or, without one, the detector's class; objects of different kinds are not compared.
        frames: ``(n,)`` ascending, those on which it is visible.
        looks: its views, in order of time.
        global_id: that it has, and keeps; ``None``: none yet.
    """

    video: str
    kind: str
    frames: IntArray
    looks: TrackViews
    global_id: int | None = None


def match_tracks(tracks: Sequence[SeenTrack], first_id: int = 1) -> dict[int, int]:
    """Return global ids for tracks that have none and show the same object as another one, by index.

    Tracks that have different ids are never joined, nor are two that one video shows at once.

    Args:
        first_id: of objects none of whose tracks has an id; no track has it, or a larger one.
    """
    looks = _Looks(tracks)
    groups = {index: [index] for index in range(len(tracks))}
    by_id: dict[int, list[int]] = {}
    for index, track in enumerate(tracks):
        if track.global_id is not None:
            groups[index] = by_id.setdefault(track.global_id, [])
            groups[index].append(index)
    for a, b in looks.matches():
        one, other = groups[a], groups[b]
        if one is not other and looks.may_be_one(one, other):
            one += other
            groups |= dict.fromkeys(other, one)
    ids: dict[int, int] = {}
    for group in {id(group): group for group in groups.values() if len(group) > 1}.values():
        number = next((known for index in group if (known := tracks[index].global_id)), first_id)
        first_id += number == first_id
        ids |= {index: number for index in group if tracks[index].global_id is None}
    return ids


class _Looks:
    """How alike tracks are."""

    def __init__(self, tracks: Sequence[SeenTrack]) -> None:
        self._tracks = tracks
        self._by_place: dict[tuple[str, str], list[int]] = defaultdict(list)
        by_video: dict[str, list[int]] = defaultdict(list)
        for index, track in enumerate(tracks):
            self._by_place[track.kind, track.video].append(index)
            by_video[track.video].append(index)
        means = [TrackViews(item.looks.vectors.mean(axis=0), item.looks.colours.mean(axis=0)) for item in tracks]
        # Products of rows are the mean likeness of views.
        self._units = [np.zeros((len(tracks), *getattr(item, name).shape)) for item in means[:1] for name in _LOOKS]
        self._bars: dict[str, float] = {}
        for video, indices in by_video.items():
            # A few tracks do not tell what a camera makes of all objects.
            usual = [means[index] for index in indices] if len(indices) > MIN_OTHERS else means
            centre = TrackViews(*(np.mean([getattr(item, name) for item in usual], axis=0) for name in _LOOKS))
            own = []
            for index in indices:
                views = centred(tracks[index].looks, centre)
                for units, rows in zip(self._units, views, strict=True):
                    units[index] = rows.mean(axis=0)
                if len(views[0]) > 1:
                    own.append(min(float(rows[::2].mean(axis=0) @ rows[1::2].mean(axis=0)) for rows in views))
            different: list[float] = []
            for kind in {tracks[index].kind for index in indices}:
                of_kind = self._by_place[kind, video]
                nearest = self._between(of_kind, of_kind, at_once=True).max(axis=1)
                different += nearest[np.isfinite(nearest)].tolist()
            low, high = _with_prior(different, DIFFERENT), _with_prior(own, SAME)
            self._bars[video] = max(low[0] + SURE * low[1], high[0] - TYPICAL * high[1])

    def matches(self) -> list[tuple[int, int]]:
        """Return pairs of tracks that are each other's most similar one by far, the most similar pair first."""
        places: dict[str, list[list[int]]] = defaultdict(list)
        for (kind, _), indices in self._by_place.items():
            places[kind].append(indices)
        found: list[tuple[float, int, int]] = []
        for videos in places.values():
            for rows, columns in combinations(videos, 2):
                found += self._mutual(rows, columns)
        return [(a, b) for _, a, b in sorted(found, reverse=True)]

    def _mutual(self, rows: Sequence[int], columns: Sequence[int]) -> Iterator[tuple[float, int, int]]:
        """Yield the likeness and the indices of tracks of two videos that match."""
        likeness, bar = self._between(rows, columns), self._bar([rows[0], columns[0]])
        for row, best in enumerate(likeness.argmax(axis=1).tolist()):
            value = float(likeness[row, best])
            rest = np.concatenate([np.delete(likeness[row], best), np.delete(likeness[:, best], row)])
            if value >= bar and value - rest.max(initial=-1.0) >= MARGIN:
                yield value, rows[row], columns[best]

    def may_be_one(self, group: Sequence[int], other: Sequence[int]) -> bool:
        """Return whether two groups of tracks may be one object: are alike on average, and never apart at once."""
        ids = {number for index in (*group, *other) if (number := self._tracks[index].global_id) is not None}
        likeness = self._between(group, other)
        return len(ids) < 2 and bool(np.isfinite(likeness).all() and likeness.mean() >= self._bar([*group, *other]))

    def _bar(self, indices: Sequence[int]) -> float:
        """Return the likeness from which tracks of some tracks' videos may show one object."""
        return max(self._bars[self._tracks[index].video] for index in indices)

    def _between(self, rows: Sequence[int], columns: Sequence[int], *, at_once: bool = False) -> Float64Array:
        """Return the likeness ``(n, m)`` of tracks; ``-inf`` for a track and itself and where one video shows both.

        Args:
            at_once: instead, keep only pairs that one video shows at once.
        """
        likeness: Float64Array = np.minimum(*(units[rows] @ units[columns].T for units in self._units))
        videos = [np.array([self._tracks[index].video for index in indices]) for indices in (rows, columns)]
        shown = np.zeros(likeness.shape, bool)
        for i, j in np.argwhere(videos[0][:, None] == videos[1]).tolist():
            shown[i, j] = rows[i] != columns[j] and self._at_once(rows[i], columns[j])
        itself = np.array(rows)[:, None] == np.array(columns)
        return np.where(shown if at_once else ~(shown | itself), likeness, -np.inf)

    def _at_once(self, a: int, b: int) -> bool:
        one, other = self._tracks[a], self._tracks[b]
        if one.video != other.video or one.frames[-1] < other.frames[0] or other.frames[-1] < one.frames[0]:
            return False
        return bool(len(np.intersect1d(one.frames, other.frames, assume_unique=True)))


def _with_prior(values: Sequence[float], prior: tuple[float, float]) -> tuple[float, float]:
    """Return mean and standard deviation of values and a prior."""
    mean, variance = prior[0], prior[1] ** 2
    if values:
        weight = len(values) / (len(values) + PRIOR_TRACKS)
        mean += weight * (float(np.mean(values)) - mean)
        variance += weight * (float(np.var(values)) - variance)
    return mean, float(np.sqrt(variance))
