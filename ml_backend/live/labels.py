"""Labels for the tracks of a camera, from their best crops so far, in a thread of its own."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ml_backend.core.boxes import box_area
from ml_backend.core.settings import Settings
from ml_backend.core.types import FloatArray, Image
from ml_backend.embeddings.crop_embeddings import CropEmbedding, MemoryCropEmbeddings
from ml_backend.embeddings.crop_selection import CROPS_PER_TRACK, CropBox
from ml_backend.embeddings.crops import cut_crop
from ml_backend.embeddings.loading import use_embedder
from ml_backend.label_studio.label_config import VideoControl
from ml_backend.labeling.label_assignment import DetectorLabels, LabelScores
from ml_backend.labeling.track_classifier import TrackClassifier
from ml_backend.live.failures import reason_of
from ml_backend.tracking.track_record import TrackRecord, TrackSet

log = logging.getLogger(__name__)

#: Ages of a track, in seconds, at which a crop is added.
CROP_AGES_S = (0.0, 0.5, 1.5, 4.0)[:CROPS_PER_TRACK]
#: Seconds from then in which a better crop replaces it.
CHOICE_S = 0.3
#: Tracks whose labels are waited for, at most: their crops are kept in memory.
MAX_WAITING = 64


@dataclass(slots=True)
class TrackCrops:
    """The best crops of a track so far, and what they say of its label.

    Attributes:
        images: with their boxes, in order of time.
        embedded: how many of them have been embedded, or are about to be.
        scores: of labels; ``None`` until they are known.
    """

    images: list[tuple[CropBox, Image]] = field(default_factory=list)
    embedded: int = 0
    scores: LabelScores | None = None

    def offer(self, age_s: float, frame: int, box: FloatArray, conf: float, image: Image) -> None:
        """Keep the crop of a box if it is the first of the track's age, or better than that.

        Args:
            age_s: of the track.
            box: ``(4,)`` pixels.
            image: the frame.
        """
        number = sum(age_s >= age for age in CROP_AGES_S) - 1
        better = number == len(self.images) - 1 and age_s < CROP_AGES_S[number] + CHOICE_S
        if number < len(self.images) and not (better and _quality(box, conf) > self._quality_of_last()):
            return
        crop = cut_crop(image, box)
        if crop is None:
            return
        left, top, right, bottom = (round(float(side), 1) for side in box)
        kept = CropBox(frame, (left, top, right, bottom), conf), crop
        if better:
            self.images[-1] = kept
        else:
            self.images.append(kept)

    def has_new(self, age_s: float) -> bool:
        """Return whether there is a crop that was not embedded and will not be replaced."""
        return len(self.images) > self.embedded and age_s >= CROP_AGES_S[len(self.images) - 1] + CHOICE_S

    def _quality_of_last(self) -> float:
        box, _ = self.images[-1]
        return _quality(np.array(box.xyxy, np.float32), box.conf)


def _quality(box: FloatArray, conf: float) -> float:
    return conf * float(np.sqrt(box_area(box)))


@dataclass(frozen=True, slots=True)
class LabelRequest:
    """A track whose label is asked for.

    Attributes:
        crops: get the scores.
        images: of the crops, with their boxes, as they are now.
        class_scores: sum of confidence per detector class.
    """

    crops: TrackCrops
    images: Sequence[tuple[CropBox, Image]]
    class_scores: Mapping[str, float]


class TrackLabeller:
    """Scores the labels of tracks in a thread, so that the picture need not wait. Use as a context manager.

    Args:
        class_names: of the detector; empty if it tells no classes.

    Attributes:
        error: why labels are the detector's only; empty while the models work.
    """

    def __init__(
        self,
        classifier: TrackClassifier,
        settings: Settings,
        control: VideoControl,
        detector: DetectorLabels,
        class_names: Sequence[str],
    ) -> None:
        self._classifier, self._settings, self._control, self._detector = classifier, settings, control, detector
        self._class_names = tuple(class_names)
        self._waiting: dict[int, LabelRequest] = {}  # by the id of their crops, oldest first
        self._changed, self._ended = threading.Condition(), False
        self.error = ""
        self._thread = threading.Thread(target=self._run, name="labels", daemon=True)

    def __enter__(self) -> TrackLabeller:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        self._thread.join()

    def request(self, crops: TrackCrops, class_scores: Mapping[str, float]) -> None:
        """Score a track; its crops get the scores.

        A newer request replaces one of the same track that waits. With more than ``MAX_WAITING``, the oldest one is
        given up: its crops are new again.
        """
        with self._changed:
            self._waiting.pop(id(crops), None)
            self._waiting[id(crops)] = LabelRequest(crops, list(crops.images), dict(class_scores))
            crops.embedded = len(crops.images)
            if len(self._waiting) > MAX_WAITING:
                self._waiting.pop(next(iter(self._waiting))).crops.embedded = 0
            self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._ended)
                if self._ended:
                    return
                requests = list(self._waiting.values())
                self._waiting.clear()
            try:
                found = self._label(requests)
            except Exception as error:
                log.warning("Tracks keep the detector's labels: %s", reason_of(error), exc_info=True)
                self.error = reason_of(error)
                continue
            self.error = ""
            for request, scores in zip(requests, found, strict=True):
                request.crops.scores = scores

    def _label(self, requests: Sequence[LabelRequest]) -> list[LabelScores]:
        models = self._classifier.models
        embeddings = MemoryCropEmbeddings()
        # Frames of several cameras have equal numbers.
        numbered = [
            [(CropBox(100 * n + i, box.xyxy, box.conf), image) for i, (box, image) in enumerate(request.images)]
            for n, request in enumerate(requests)
        ]
        crops = [crop for track in numbered for crop in track]
        for model in filter(None, (models.embedder, models.clip)):
            with use_embedder(model, self._settings) as embedder:
                vectors = embedder.embed([image for _, image in crops])
            embeddings.add(
                model.model_id,
                [CropEmbedding(box.frame, box.xyxy, v, b"") for (box, _), v in zip(crops, vectors, strict=True)],
            )
        records = tuple(
            TrackRecord(n, 0, len(track), 1.0, request.class_scores, {}, tuple(box for box, _ in track))
            for n, (request, track) in enumerate(zip(requests, numbered, strict=True))
        )
        tracks = TrackSet(records, self._class_names, not self._class_names, 0, 0, 0)
        return self._classifier.label_scores(tracks, self._control, self._detector, embeddings, _no_video)


def _no_video() -> AbstractContextManager[Path]:
    raise AssertionError("every crop has been embedded")
