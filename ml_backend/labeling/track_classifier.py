"""Classify tracks by a project's pattern bank and, with CLIP, by the names of its labels.

Modes: ``yolo_dinov2`` (pattern bank), ``yolo_clip`` (label names), ``universal`` (pattern bank for labels with
exemplars, label names for the others).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from cachetools import LRUCache, cached

from ml_backend.core.settings import Settings
from ml_backend.core.types import UNLABELLED, FloatArray
from ml_backend.embeddings.crop_embeddings import CropEmbeddingStore, OpenVideo, embed_tracks
from ml_backend.embeddings.crop_selection import CROPS_PER_TRACK
from ml_backend.embeddings.hub import ResolvedModel
from ml_backend.embeddings.loading import use_embedder
from ml_backend.label_studio.label_config import LabelSpec, VideoControl
from ml_backend.labeling.few_shot.pattern_bank import Exemplars, PatternBank, PatternMatch
from ml_backend.labeling.few_shot.pattern_store import ExemplarOrigin, PatternStore
from ml_backend.labeling.label_assignment import DetectorLabels, LabelScores
from ml_backend.labeling.modes import ClassifierModels
from ml_backend.labeling.zero_shot import ZeroShot, clip_prompts, discount_undetected
from ml_backend.tracking.track_record import TrackSet

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrackClassifier:
    """Score tracks by one project's pattern bank and label names.

    Attributes:
        bank: ``None`` while nothing is learned.
        origins: of the bank's exemplars, by id.
        annotated_embeddings: label and ``(m, d)`` CLIP embeddings of annotated objects, to calibrate CLIP.
    """

    settings: Settings
    models: ClassifierModels
    bank: PatternBank | None = None
    origins: Mapping[int, ExemplarOrigin] = field(default_factory=dict)
    annotated_embeddings: Sequence[tuple[str, FloatArray]] = ()

    def label_scores(
        self,
        tracks: TrackSet,
        control: VideoControl,
        detector: DetectorLabels,
        crop_embeddings: CropEmbeddingStore,
        open_video: OpenVideo,
        should_stop: Callable[[], bool] | None = None,
    ) -> list[LabelScores]:
        """Return the scores of each track, in the order of ``tracks``."""
        allowed = {label.value for label in control.labels}
        matches: list[PatternMatch | None] = [None] * len(tracks.tracks)
        texts: list[dict[str, float]] = [{} for _ in tracks.tracks]

        def embedded(model: ResolvedModel) -> Iterator[tuple[int, FloatArray]]:
            """Yield index and ``(m, d)`` embeddings of each track with decodable crops."""
            opener = partial(use_embedder, model, self.settings)
            crops = [record.crops for record in tracks.tracks]
            tracks_crops = embed_tracks(
                crops, opener, model.model_id, crop_embeddings, open_video, CROPS_PER_TRACK, should_stop
            )
            for index, track_crops in enumerate(tracks_crops):
                if track_crops:
                    yield index, np.stack([crop.vector for crop in track_crops])

        if self.bank and self.models.embedder and allowed & set(self.bank.labels):
            for index, embeddings in embedded(self.models.embedder):
                votes = tracks.votes(tracks.tracks[index])
                reaches = partial(self.bank.taught.reaches, class_scores=votes, trained=detector.trained)
                unreached = [label for label in self.bank.labels if not reaches(label)]
                matches[index] = self.bank.classify(embeddings, allowed, unreached)
        if self.models.clip:
            zero_shot = _zero_shot(self.models.clip, self.settings, control.labels).calibrate(self.annotated_embeddings)
            for index, embeddings in embedded(self.models.clip):
                shares = detector.shares(tracks.tracks[index].class_scores)
                texts[index] = discount_undetected(zero_shot.probabilities(embeddings), shares, detector.trained_labels)
        return [LabelScores(match, self._nearest(match), text) for match, text in zip(matches, texts, strict=True)]

    def _nearest(self, match: PatternMatch | None) -> dict[str, Any] | None:
        origin = self.origins.get(match.nearest) if match and match.nearest is not None else None
        if origin is None:
            return None
        if not origin.task_id:
            return {"label": origin.label, "origin": origin.origin}
        return {
            "label": origin.label,
            "task": origin.task_id,
            "region": origin.region_id,
            "frame": origin.frame + 1,  # Label Studio's 1-based frame, if its frame rate is the file's
        }


@cached(
    LRUCache(16),
    key=lambda clip, _, labels: (clip.model_id, tuple((label.value, clip_prompts(label)) for label in labels)),
    lock=threading.Lock(),
)
def _zero_shot(clip: ResolvedModel, settings: Settings, labels: Sequence[LabelSpec]) -> ZeroShot:
    """Embed the prompts of a label config; cached, so that CLIP is not loaded if all crops are embedded already."""
    with use_embedder(clip, settings) as model:
        return ZeroShot.from_prompts(model, labels)


class TrackClassifierFactory:
    """Make track classifiers from the database; cache each project's fitted pattern bank."""

    def __init__(self, settings: Settings, store: PatternStore) -> None:
        self._settings, self._store = settings, store
        self._fitted: LRUCache[tuple[int, str], tuple[str, PatternBank | None, Mapping[int, ExemplarOrigin]]] = (
            LRUCache(8)
        )
        self._lock = threading.Lock()

    def get(self, project_id: int, models: ClassifierModels) -> TrackClassifier | None:
        """Return a project's classifier; ``None`` if labels are only the detector's."""
        bank: PatternBank | None = None
        origins: Mapping[int, ExemplarOrigin] = {}
        annotated_embeddings: Sequence[tuple[str, FloatArray]] = ()
        if models.embedder:
            bank, origins = self.bank(project_id, models.embedder.model_id)
        if models.clip and self._store.digest(project_id, models.clip.model_id):
            annotated_embeddings = embeddings_by_object(self._store.exemplars(project_id, models.clip.model_id)[0])
        if bank is None and models.clip is None:
            return None
        return TrackClassifier(self._settings, models, bank, origins, annotated_embeddings)

    def bank(self, project_id: int, model_id: str) -> tuple[PatternBank | None, Mapping[int, ExemplarOrigin]]:
        """Return a project's bank and the origins of its exemplars; fitted again only if exemplars changed."""
        digest = self._store.digest(project_id, model_id) or ""
        with self._lock:
            fitted = self._fitted.get((project_id, model_id))
        if fitted is None or fitted[0] != digest:
            bank: PatternBank | None = None
            origins: Mapping[int, ExemplarOrigin] = {}
            if digest:
                exemplars, origins = self._store.exemplars(project_id, model_id)
                if set(exemplars.labels) - {UNLABELLED}:
                    bank = PatternBank.fit(exemplars)
            fitted = digest, bank, origins
            with self._lock:
                self._fitted[project_id, model_id] = fitted
        return fitted[1], fitted[2]


def embeddings_by_object(exemplars: Exemplars) -> list[tuple[str, FloatArray]]:
    """Return label and ``(m, d)`` embeddings of each annotated object."""
    objects = []
    for group in np.unique(exemplars.groups):
        rows = np.flatnonzero(exemplars.groups == group)
        if label := exemplars.labels[rows[0]]:
            objects.append((label, exemplars.embeddings[rows]))
    return objects
