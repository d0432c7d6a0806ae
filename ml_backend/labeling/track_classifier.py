"""What gives labels beside the detector: a project's learned patterns, and the names of its labels.

Hybrid modes: ``yolo_dinov2`` (patterns), ``yolo_clip`` (names), ``universal`` (patterns where there are exemplars,
names where there are none).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from cachetools import LRUCache, cached

from ml_backend.core.settings import Settings
from ml_backend.core.types import UNLABELLED, FloatArray
from ml_backend.embeddings.crop_embeddings import CropEmbeddingStore, OpenVideo, embed_tracks
from ml_backend.embeddings.crop_selection import CROPS_PER_TRACK
from ml_backend.embeddings.hub import ResolvedModel
from ml_backend.label_studio.label_config import LabelSpec, VideoControl
from ml_backend.labeling.few_shot.pattern_bank import Exemplars, PatternBank
from ml_backend.labeling.few_shot.pattern_store import ExemplarOrigin, PatternStore
from ml_backend.labeling.label_assignment import DetectorLabels, LabelScores
from ml_backend.labeling.modes import ClassifierModels
from ml_backend.labeling.zero_shot import ZeroShot, label_prompts, with_detector
from ml_backend.tracking.track_record import TrackSet

if TYPE_CHECKING:  # torch, which is loaded with the first model
    from ml_backend.embeddings.embedder import TorchEmbedder

log = logging.getLogger(__name__)


def load_embedder(resolved: ResolvedModel, settings: Settings) -> TorchEmbedder:
    """Load what :mod:`ml_backend.embeddings.hub` resolved.

    Raises:
        WeightsError: it cannot be loaded.
    """
    if resolved.path is None:
        from ml_backend.embeddings.efficientnet import EfficientNetEmbedder

        return EfficientNetEmbedder(settings)
    if resolved.kind == "clip":
        from ml_backend.embeddings.clip import ClipEmbedder

        return ClipEmbedder(resolved.path, settings)
    from ml_backend.embeddings.dinov2 import Dinov2Embedder

    return Dinov2Embedder(resolved.path, settings)


@contextmanager
def use_embedder(resolved: ResolvedModel, settings: Settings) -> Iterator[Any]:
    """A loaded embedder, kept for the next time while memory allows.

    Raises:
        WeightsError: it cannot be loaded.
    """
    from ml_backend.core.model_cache import get_pool

    key = (resolved.kind, resolved.model_id, str(resolved.path), settings.device)
    with get_pool(settings).use(key, lambda: load_embedder(resolved, settings), name=resolved.name) as embedder:
        yield embedder


@dataclass(frozen=True, slots=True)
class TrackClassifier:
    """One project's learned labels and label names, ready to judge tracks.

    Attributes:
        bank: ``None`` while nothing is learned.
        sources: of the bank's exemplars, by id.
        annotated_embeddings: label and views of annotated objects as CLIP sees them, for its temperature.
    """

    settings: Settings
    models: ClassifierModels
    bank: PatternBank | None = None
    sources: Mapping[int, ExemplarOrigin] = field(default_factory=dict)
    annotated_embeddings: Sequence[tuple[str, FloatArray]] = ()

    def opinions(
        self,
        tracks: TrackSet,
        control: VideoControl,
        detector: DetectorLabels,
        looks: CropEmbeddingStore,
        open_video: OpenVideo,
        should_stop: Callable[[], bool] | None = None,
    ) -> list[LabelScores]:
        """What is thought of each track, in the order of ``tracks``."""
        allowed = {label.value for label in control.labels}
        verdicts: list[Any] = [None] * len(tracks.tracks)
        texts: list[dict[str, float]] = [{} for _ in tracks.tracks]

        def looked(model: ResolvedModel) -> Iterator[tuple[int, FloatArray]]:
            """Tracks by number with ``(m, d)`` views, but for those that could not be looked at."""
            opener = partial(use_embedder, model, self.settings)
            wanted = [record.views for record in tracks.tracks]
            found = embed_tracks(wanted, opener, model.model_id, looks, open_video, CROPS_PER_TRACK, should_stop)
            yield from ((number, np.stack([one.vector for one in mine])) for number, mine in enumerate(found) if mine)

        if self.bank and self.models.embedder and allowed & set(self.bank.labels):
            for number, views in looked(self.models.embedder):
                verdicts[number] = self.bank.classify(views, allowed)
        if self.models.clip:
            zero_shot = _zero_shot(self.models.clip, self.settings, control.labels).calibrate(self.annotated_embeddings)
            for number, views in looked(self.models.clip):
                shares = detector.shares(tracks.tracks[number].class_scores)
                texts[number] = with_detector(zero_shot.probabilities(views), shares, detector.known)
        return [LabelScores(v, self._nearest(v), text) for v, text in zip(verdicts, texts, strict=True)]

    def _nearest(self, verdict: Any) -> dict[str, Any] | None:
        source = self.sources.get(verdict.nearest) if verdict and verdict.nearest is not None else None
        if source is None:
            return None
        if not source.task_id:
            return {"label": source.label, "origin": source.origin}
        return {
            "label": source.label,
            "task": source.task_id,
            "region": source.region_id,
            "frame": source.frame + 1,  # as Label Studio counts, where its frame rate is the file's
        }


@cached(
    LRUCache(16),
    key=lambda clip, _, labels: (clip.model_id, tuple((label.value, label_prompts(label)) for label in labels)),
    lock=threading.Lock(),
)
def _zero_shot(clip: ResolvedModel, settings: Settings, labels: Sequence[LabelSpec]) -> ZeroShot:
    """Embed the texts of a label config; remembered, so that CLIP is not loaded where all looks are known."""
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
        """``None`` where labels are the detector's alone."""
        bank: PatternBank | None = None
        sources: Mapping[int, ExemplarOrigin] = {}
        annotated_embeddings: Sequence[tuple[str, FloatArray]] = ()
        if models.embedder:
            bank, sources = self.bank(project_id, models.embedder.model_id)
        if models.clip and self._store.digest(project_id, models.clip.model_id):
            annotated_embeddings = objects_of(self._store.exemplars(project_id, models.clip.model_id)[0])
        if bank is None and models.clip is None:
            return None
        return TrackClassifier(self._settings, models, bank, sources, annotated_embeddings)

    def bank(self, project_id: int, model_id: str) -> tuple[PatternBank | None, Mapping[int, ExemplarOrigin]]:
        """The bank of a project and the sources of its exemplars; fitted anew only where exemplars changed."""
        digest = self._store.digest(project_id, model_id) or ""
        with self._lock:
            known = self._fitted.get((project_id, model_id))
        if known is None or known[0] != digest:
            bank: PatternBank | None = None
            sources: Mapping[int, ExemplarOrigin] = {}
            if digest:
                exemplars, sources = self._store.exemplars(project_id, model_id)
                if set(exemplars.labels) - {UNLABELLED}:
                    bank = PatternBank.fit(exemplars)
            known = digest, bank, sources
            with self._lock:
                self._fitted[project_id, model_id] = known
        return known[1], known[2]


def objects_of(exemplars: Exemplars) -> list[tuple[str, FloatArray]]:
    """Label and ``(m, d)`` views of each annotated object."""
    found = []
    for group in np.unique(exemplars.groups):
        rows = np.flatnonzero(exemplars.groups == group)
        if label := exemplars.labels[rows[0]]:
            found.append((label, exemplars.embeddings[rows]))
    return found
