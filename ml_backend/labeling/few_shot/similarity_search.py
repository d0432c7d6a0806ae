"""Find more like this: the tracks of a project that are most similar to what a label has been taught."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ml_backend.core.errors import BackendError, ConfigError
from ml_backend.embeddings.crop_embeddings import CropEmbedding, embed_tracks
from ml_backend.embeddings.crop_selection import CROPS_PER_TRACK
from ml_backend.labeling.few_shot.pattern_bank import PatternBank
from ml_backend.labeling.few_shot.pattern_store import PatternStore, StoredTracks
from ml_backend.tracking.track_record import TrackRecord


@dataclass(frozen=True, slots=True)
class Similar:
    """A track that may show a label.

    Attributes:
        score: 0..1, calibrated.
        safe: the score is above the bank's threshold for labels that are given without asking.
        frame: 0-based decoded frame of the look that is most typical.
        ls_frame: that frame on Label Studio's timeline, 1-based.
        time: seconds.
        xyxy: the box there, in pixels.
        thumbnail: JPEG.
    """

    task_id: int
    part: int
    track_id: int
    score: float
    safe: bool
    frame: int
    ls_frame: int
    time: float
    xyxy: tuple[float, float, float, float]
    original_class: str
    thumbnail: bytes

    def summary(self) -> dict[str, Any]:
        """For JSON: without the picture."""
        return {
            "task": self.task_id,
            "part": self.part,
            "track": self.track_id,
            "score": round(self.score, 4),
            "safe": self.safe,
            "frame": self.ls_frame,
            "time": round(self.time, 3),
            "bbox": [round(value, 1) for value in self.xyxy],
            "original_class": self.original_class,
        }


def find_similar(
    store: PatternStore,
    project_id: int,
    label: str,
    bank: PatternBank,
    model_id: str,
    *,
    embedder: Callable[[], AbstractContextManager[Any]],
    open_video: Callable[[StoredTracks], AbstractContextManager[Path]],
    tasks: Collection[int] | None = None,
    limit: int = 50,
    on_skip: Callable[[StoredTracks, BackendError], None] | None = None,
) -> list[Similar]:
    """The un-annotated tracks of a project that are most like a label's exemplars, best first.

    Tracks that the model has not seen yet are looked at now; memory holds one video's looks at a time.

    Args:
        embedder, open_video: called only where something has to be looked at.
        tasks: those to look through, normally the ones without annotations; by default all that have tracks.
        limit: how many.
        on_skip: told of videos that cannot be looked at; without it the error is raised.

    Raises:
        ConfigError: the label has no exemplars.
    """
    if label not in bank.labels:
        known = ", ".join(bank.labels) or "none yet"
        raise ConfigError(f"The label {label!r} has no exemplars.", f"Annotate some. Labels with exemplars: {known}.")
    best: list[tuple[float, StoredTracks, TrackRecord, list[CropEmbedding]]] = []
    for stored in store.tracks_of_project(project_id):
        if tasks is not None and stored.task_id not in tasks:
            continue
        records, looks = stored.tracks.tracks, store.looks(stored.video)
        try:
            wanted = [record.views for record in records]
            seen = embed_tracks(wanted, embedder, model_id, looks, partial(open_video, stored), CROPS_PER_TRACK)
        except BackendError as error:
            if on_skip is None:
                raise
            on_skip(stored, error)
            continue
        found = [(record, mine) for record, mine in zip(records, seen, strict=True) if mine]
        scores = bank.rank(label, [np.stack([look.vector for look in mine]) for _, mine in found])
        video = replace(stored, tracks=replace(stored.tracks, tracks=()))
        best += [(score, video, *track) for score, track in zip(scores.tolist(), found, strict=True)]
        best = sorted(best, key=lambda item: -item[0])[:limit]
    return [_similar(bank, label, *item) for item in best]


def _similar(
    bank: PatternBank, label: str, score: float, video: StoredTracks, record: TrackRecord, looks: list[CropEmbedding]
) -> Similar:
    each = bank.rank(label, [look.vector[None] for look in looks])
    look = looks[int(np.argmax(each))]
    duration, count = float(record.value["duration"]), int(record.value["framesCount"])
    time = look.frame / max(video.tracks.frames, 1) * duration
    return Similar(
        video.task_id,
        video.part,
        record.track_id,
        score,
        score >= bank.safe_thresholds[label],
        look.frame,
        min(count, int(time / duration * count + 0.5) + 1) if duration > 0 else 1,
        time,
        look.xyxy,
        record.top_class,
        look.thumbnail,
    )
