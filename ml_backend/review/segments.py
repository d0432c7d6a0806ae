"""Segments of predicted videos, and what a person would have to do in each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from ml_backend.core.types import FloatArray
from ml_backend.review.track_rows import TrackRow

#: Seconds of a segment, about.
SEGMENT_S = 10.0
#: Estimated seconds of a person's work: for each track in a segment, which is looked at, and for each correction.
TRACK_S, CORRECTION_S = 3.0, 15.0
#: Score of a track that has none, and from which a track is not called uncertain.
UNKNOWN_SCORE, CERTAIN = 0.5, 0.5


@dataclass(frozen=True, slots=True)
class SegmentMoment:
    """A suspicious moment of a video: its 1-based frame, kind, and how certain it is, 0 to 1."""

    frame: int
    kind: str
    score: float


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a video with something to correct.

    Attributes:
        first, last: 1-based frames of Label Studio's timeline.
        start, end: seconds.
        need: expected number of corrections: of each track how uncertain it is, of each moment how certain.
        work_s: estimated seconds of a person's work.
        tracks, uncertain: number of tracks, and of those with a score below :data:`CERTAIN`.
        region, label, score: of the least certain track; empty and ``None`` without tracks.
        kinds: number of suspicious moments by kind.
        vector: ``(d,)`` mean embedding of its tracks by uncertainty; ``None`` without embeddings.
    """

    first: int
    last: int
    start: float
    end: float
    need: float
    work_s: float
    tracks: int
    uncertain: int
    region: str
    label: str
    score: float | None
    kinds: Mapping[str, int]
    vector: FloatArray | None = field(repr=False)


def find_segments(
    rows: Sequence[TrackRow],
    moments: Sequence[SegmentMoment],
    frames_count: int,
    frame_rate: float,
    vectors: Mapping[str, FloatArray],
) -> list[Segment]:
    """Return the segments of a video in which something may have to be corrected.

    Args:
        rows: the tracks of its prediction.
        frames_count, frame_rate: of Label Studio's timeline.
        vectors: embeddings ``(d,)`` by region, of those that have any.
    """
    count = max(1, round(frames_count / frame_rate / SEGMENT_S))
    edges = np.linspace(1, frames_count + 1, count + 1).round().astype(int).tolist()
    inside: list[list[TrackRow]] = [[] for _ in range(count)]
    for row in rows:
        spans = np.array(row.spans).reshape(-1, 2)
        parts = np.searchsorted(edges, spans, side="right") - 1
        for part in sorted({p for low, high in parts.clip(0, count - 1).tolist() for p in range(low, high + 1)}):
            inside[part].append(row)
    found = []
    for (first, following), tracks in zip(pairwise(edges), inside, strict=True):
        own = [moment for moment in moments if first <= moment.frame < following]
        doubts = [1 - _score(row) for row in tracks]
        need = sum(doubts) + sum(moment.score for moment in own)
        if need <= 0:
            continue
        least = min(tracks, key=_score, default=None)
        known = [(vectors[row.region], d) for row, d in zip(tracks, doubts, strict=True) if row.region in vectors]
        vector = np.sum([v * max(d, 0.01) for v, d in known], axis=0).astype(np.float32) if known else None
        found.append(
            Segment(
                first,
                following - 1,
                (first - 1) / frame_rate,
                (following - 1) / frame_rate,
                need,
                TRACK_S * len(tracks) + CORRECTION_S * need,
                len(tracks),
                sum(_score(row) < CERTAIN for row in tracks),
                least.region if least else "",
                least.label if least else "",
                least.score if least else None,
                dict(Counter(moment.kind for moment in own)),
                vector,
            )
        )
    return found


def _score(row: TrackRow) -> float:
    return UNKNOWN_SCORE if row.score is None else row.score
