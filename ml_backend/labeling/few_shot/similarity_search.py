"""Search a project's tracks for those most similar to a label's exemplars."""

from __future__ import annotations

import hashlib
import json
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
class SimilarTrack:
    """A track that may show a label.

    Attributes:
        score: 0..1, calibrated.
        safe: whether the score reaches the bank's threshold for pseudo-labels, and the label the detector's class.
        dropped: whether the track is too weak for predictions, so that it is nowhere in Label Studio; never safe.
        frame: 0-based decoded frame of the best crop.
        ls_frame: 1-based frame on Label Studio's timeline.
        time: seconds.
        xyxy: box on that frame, in pixels.
        thumbnail: JPEG of the box.
        key: digest of the label and the track, see :func:`track_key`.
    """

    task_id: int
    video_index: int
    track_id: int
    score: float
    safe: bool
    dropped: bool
    frame: int
    ls_frame: int
    time: float
    xyxy: tuple[float, float, float, float]
    original_class: str
    thumbnail: bytes
    key: str = ""

    def summary(self) -> dict[str, Any]:
        """Return all but the thumbnail, for JSON."""
        return {
            "task": self.task_id,
            "part": self.video_index,
            "track": self.track_id,
            "key": self.key,
            "score": round(self.score, 4),
            "safe": self.safe,
            "dropped": self.dropped,
            "frame": self.ls_frame,
            "time": round(self.time, 3),
            "bbox": [round(value, 1) for value in self.xyxy],
            "original_class": self.original_class,
        }


def track_key(label: str, task_id: int, video_index: int, record: TrackRecord) -> str:
    """Return a digest of a label and a track, 16 hex digits: the same while the track's boxes are."""
    facts = [label, task_id, video_index, record.value.get("sequence")]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


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
    trained: bool = False,
    on_skip: Callable[[StoredTracks, BackendError], None] | None = None,
) -> list[SimilarTrack]:
    """Return the tracks of a project most similar to a label's exemplars, best first, also those without a region.

    Tracks without embeddings are embedded now; memory holds the embeddings of one video at a time.

    Args:
        embedder, open_video: called only if crops have to be embedded.
        tasks: tasks to search, normally those without annotations; by default all with tracks.
        limit: maximum number of tracks.
        trained: whether the detector's classes are the project's labels.
        on_skip: called with each video that cannot be embedded; without it the error is raised.

    Raises:
        ConfigError: the label has no exemplars.
    """
    if label not in bank.labels:
        available = ", ".join(bank.labels) or "none yet"
        raise ConfigError(
            f"The label {label!r} has no exemplars.", f"Annotate some. Labels with exemplars: {available}."
        )
    best: list[tuple[float, StoredTracks, TrackRecord, list[CropEmbedding], bool]] = []
    for stored in store.tracks_of_project(project_id):
        if tasks is not None and stored.task_id not in tasks:
            continue
        records = (*stored.tracks.tracks, *stored.tracks.dropped)
        crop_embeddings = store.crop_embeddings(stored.video)
        try:
            crops = [record.crops for record in records]
            embedded = embed_tracks(
                crops, embedder, model_id, crop_embeddings, partial(open_video, stored), CROPS_PER_TRACK
            )
        except BackendError as error:
            if on_skip is None:
                raise
            on_skip(stored, error)
            continue
        candidates = [(record, crops) for record, crops in zip(records, embedded, strict=True) if crops]
        scores = bank.rank(label, [np.stack([crop.vector for crop in crops]) for _, crops in candidates])
        dropped = {record.track_id for record in stored.tracks.dropped}
        video = replace(stored, tracks=replace(stored.tracks, tracks=(), dropped=()))
        best += [
            (score, video, record, crops, record.track_id in dropped)
            for score, (record, crops) in zip(scores.tolist(), candidates, strict=True)
        ]
        best = sorted(best, key=lambda item: -item[0])[:limit]
    return [_similar(bank, label, trained, *item) for item in best]


def _similar(
    bank: PatternBank,
    label: str,
    trained: bool,
    score: float,
    video: StoredTracks,
    record: TrackRecord,
    crops: list[CropEmbedding],
    dropped: bool,
) -> SimilarTrack:
    votes = video.tracks.votes(record)
    crop_scores = bank.rank(label, [crop.vector[None] for crop in crops])
    best = crops[int(np.argmax(crop_scores))]
    duration, count = float(record.value["duration"]), int(record.value["framesCount"])
    time = best.frame / max(video.tracks.frames, 1) * duration
    return SimilarTrack(
        video.task_id,
        video.video_index,
        record.track_id,
        score,
        not dropped and score >= bank.safe_thresholds[label] and bank.taught.reaches(label, votes, trained=trained),
        dropped,
        best.frame,
        min(count, int(time / duration * count + 0.5) + 1) if duration > 0 else 1,
        time,
        best.xyxy,
        record.top_class,
        best.thumbnail,
        track_key(label, video.task_id, video.video_index, record),
    )
