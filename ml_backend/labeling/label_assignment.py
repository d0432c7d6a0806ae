"""Assign labels to tracks from the detector's classes, the pattern bank and CLIP, and make regions of them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ml_backend.core.types import UNLABELLED
from ml_backend.embeddings.crop_embeddings import CropEmbeddingStore, OpenVideo
from ml_backend.label_studio.label_config import LabelMapper, VideoControl
from ml_backend.label_studio.regions import make_region
from ml_backend.tracking.track_record import TrackRecord, TrackSet

if TYPE_CHECKING:
    from ml_backend.labeling.few_shot.pattern_bank import PatternMatch
    from ml_backend.labeling.track_classifier import TrackClassifier

log = logging.getLogger(__name__)

#: Probability from which CLIP's label is accepted: more likely right than wrong.
ACCEPT_TEXT = 0.5


@dataclass(frozen=True, slots=True)
class LabelDecision:
    """The label of a track.

    Attributes:
        label: of the project, or ``UNLABELLED``.
        detector_score: 0..1, certainty of the track's existence.
        label_score: 0..1, certainty of its label: the probability of a learned label, or the share of the detector's
            votes.
        meta: for the region's ``meta``: both, and scores of all sources of labels, including the overruled ones.
        found_by_text: whether the detector's score is a text detector's, and ``label_score`` a learned probability.
    """

    label: str
    detector_score: float
    label_score: float
    meta: dict[str, Any] = field(default_factory=dict)
    found_by_text: bool = False

    @property
    def score(self) -> float:
        """Certainty of the region, 0..1: a track is as certain as the less certain of its existence and its label.

        What is found by text was found because it looks like its label, on a scale of the model's own: where people
        have annotated the label, the probability that they have taught counts alone.
        """
        if self.found_by_text:
            return self.label_score
        return min(self.detector_score, self.label_score)


@dataclass(frozen=True, slots=True)
class LabelScores:
    """Scores of one track by the pattern bank and CLIP.

    Attributes:
        patterns: match of the pattern bank; ``None`` without a bank.
        nearest: origin of the match's nearest exemplar.
        text: CLIP's probability by label; empty without CLIP.
    """

    patterns: PatternMatch | None = None
    nearest: Mapping[str, Any] | None = None
    text: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LabelledTracks:
    """Labelled tracks of one video.

    Attributes:
        regions: ``videorectangle`` results, in order of first appearance.
        kept: the tracks of these regions, in the same order.
        unmapped: number of tracks dropped without a label, by detector class.
    """

    regions: list[dict[str, Any]]
    kept: list[tuple[TrackRecord, LabelDecision]]
    unmapped: Counter[str]


class DetectorLabels:
    """Label tracks by majority vote of their detections' classes.

    Args:
        names: the detector's classes.
        class_agnostic: whether the detector cannot tell classes apart. All its tracks are kept: with the project's
            label if it has only one, else unlabelled, which the annotator completes with a key press.
        trained: whether the detector was trained on the project's labels; see :class:`LabelMapper`.
        trained_classes: classes of which the detector has seen examples; ``None`` for all.
    """

    def __init__(
        self,
        control: VideoControl,
        names: Sequence[str],
        class_agnostic: bool,
        *,
        trained: bool = False,
        trained_classes: frozenset[str] | None = None,
    ) -> None:
        self.trained = trained
        self._mapper = LabelMapper(control.labels, names, trained=trained)
        self._default: str | None = None
        if class_agnostic:
            self._default = control.labels[0].value if len(control.labels) == 1 else UNLABELLED
        table = self._mapper.table.items()
        #: Labels that the detector was trained to find; a missing vote is evidence against these only.
        self.trained_labels = tuple(
            dict.fromkeys(label for name, label in table if trained_classes is None or name in trained_classes)
        )

    def votes(self, class_scores: Mapping[str, float]) -> dict[str | tuple[str], float]:
        """Return the sum of votes by label, or by ``(class,)`` for classes without a label."""
        votes: dict[str | tuple[str], float] = {}
        labels = {name: self._mapper.map(name) for name in class_scores}
        # What moves may be anything: a class that was found by text says more than that it moves.
        named = self._default is not None and any(labels.values())
        for name, score in class_scores.items():
            label = labels[name]
            if label is None and named:
                continue
            if label is None:
                label = self._default
            # Classes without a label count: a track that is mostly a chair must not become a person.
            key: str | tuple[str] = label if label is not None else (name,)
            votes[key] = votes.get(key, 0.0) + score
        return votes

    def __call__(self, class_scores: Mapping[str, float]) -> str | None:
        """Return the label, ``UNLABELLED``, or ``None`` to drop the track."""
        votes = self.votes(class_scores)
        if not votes:
            return None
        winner = min(votes, key=lambda vote: (-votes[vote], str(vote)))
        return None if isinstance(winner, tuple) else winner

    def shares(self, class_scores: Mapping[str, float]) -> dict[str, float]:
        """Return the share of votes by label."""
        votes = self.votes(class_scores)
        total = sum(votes.values())
        return {key: vote / total for key, vote in votes.items() if isinstance(key, str) and total > 0}


def label_tracks(
    tracks: TrackSet,
    control: VideoControl,
    classifier: TrackClassifier | None,
    crop_embeddings: CropEmbeddingStore,
    open_video: OpenVideo,
    should_stop: Callable[[], bool] | None = None,
    *,
    trained: bool = False,
    trained_classes: frozenset[str] | None = None,
) -> LabelledTracks:
    """Label tracks and make regions of them.

    Args:
        classifier: scores labels; without it labels are the detector's classes.
        crop_embeddings: embeddings of the video; missing ones are added.
        open_video: called only if crops have to be embedded.
        trained, trained_classes: of the detector; see :class:`DetectorLabels`.

    Raises:
        VideoError, WeightsError, Interrupted: from embedding crops.
    """
    names, agnostic = tracks.class_names, tracks.class_agnostic
    detector = DetectorLabels(control, names, agnostic, trained=trained, trained_classes=trained_classes)
    scores = [LabelScores()] * len(tracks.tracks)
    if classifier:
        scores = classifier.label_scores(tracks, control, detector, crop_embeddings, open_video, should_stop)
    out = LabelledTracks([], [], Counter())
    for record, track_scores in zip(tracks.tracks, scores, strict=True):
        label = detector(record.class_scores)
        share = detector.shares(record.class_scores).get(label, 0.0) if label is not None else 0.0
        decision = decide_label(record, label, track_scores, share, found_by_text=tracks.is_found_by_text(record))
        if decision is None:
            out.unmapped[record.top_class] += 1
            continue
        out.kept.append((record, decision))
        out.regions.append(
            make_region(
                record.value, control, record.track_id, decision.label, decision.score, record.top_class, decision.meta
            )
        )
    if out.unmapped:
        counts = ", ".join(f"{count} x {name}" for name, count in out.unmapped.most_common())
        log.info("Dropped tracks of classes without a label in the config: %s", counts)
    return out


def decide_label(
    record: TrackRecord,
    detector_label: str | None,
    scores: LabelScores,
    detector_share: float = 1.0,
    *,
    found_by_text: bool = False,
) -> LabelDecision | None:
    """Decide the label of one track by pattern bank first, CLIP second, and the detector's class third.

    Args:
        detector_label: ``None`` if the track's classes have no label.
        detector_share: its share of the detector's votes.
        found_by_text: whether the track's class is a label that was searched for by text.

    Returns:
        ``None`` if no source has a label for it: the track is dropped.
    """
    patterns = scores.patterns
    learned = patterns.label if patterns else None
    # CLIP only scores labels without exemplars.
    pattern_labels = set(patterns.probabilities) if patterns else set()
    text_label, text_score = max(
        ((label, p) for label, p in scores.text.items() if label not in pattern_labels),
        key=lambda item: item[1],
        default=("", 0.0),
    )
    probability = patterns.probability if patterns and learned else 0.0
    if text_label and text_score >= ACCEPT_TEXT and text_score > probability:
        source, label, label_score = "text", text_label, text_score
    elif learned is not None:
        source, label, label_score = "patterns", learned, probability
    elif detector_label is not None:
        source, label, label_score = "detector", detector_label, detector_share
    else:
        return None
    # 0: the bank was not asked about such a track.
    taught = patterns.probabilities.get(label, 0.0) if patterns and found_by_text else 0.0
    label_score = taught or label_score
    meta: dict[str, Any] = {"detector_score": round(float(record.score), 4), "label_score": round(label_score, 4)}
    others = _other_scores(scores, text_label, text_score)
    if others:
        named = {"label_source": source, "detector_label": detector_label or "", **meta, **others}
        meta = {**named, "text": _summary(named, record.top_class, label)}
    return LabelDecision(label, float(record.score), label_score, meta, taught > 0)


def _other_scores(scores: LabelScores, text_label: str, text_score: float) -> dict[str, Any]:
    """Return the scores of pattern bank and CLIP, if they were asked."""
    meta: dict[str, Any] = {}
    patterns = scores.patterns
    if patterns and patterns.best is not None:
        meta["pattern_label"] = patterns.best
        meta["pattern_score"] = round(patterns.probability, 4)
        meta["nearest_exemplar"] = {**(scores.nearest or {}), "similarity": round(patterns.similarity, 4)}
    if scores.text:
        meta["text_label"] = text_label
        meta["text_score"] = round(text_score, 4)
    return meta


def _summary(meta: Mapping[str, Any], detector_class: str, label: str) -> str:
    """Return why a track has its label; Label Studio shows it with the region."""
    source = meta["label_source"]
    parts = [f"{label or 'no label'} ({meta['label_score']:.2f}) from {_SOURCES[source]}"]
    if "pattern_label" in meta and source != "patterns":
        parts.append(f"patterns: {meta['pattern_label']} {meta['pattern_score']:.2f}")
    nearest = meta.get("nearest_exemplar", {})
    if source == "patterns" and nearest:
        where = (
            f"task {nearest['task']}, frame {nearest['frame']}" if nearest.get("task") else nearest.get("origin", "")
        )
        parts.append(f"like {where} (similarity {nearest['similarity']:.2f})")
    if meta.get("text_label") and source != "text":
        parts.append(f"text: {meta['text_label']} {meta['text_score']:.2f}")
    parts.append(f"detector: {detector_class} {meta['detector_score']:.2f}")
    return "; ".join(parts)


_SOURCES = {"patterns": "examples", "text": "the label's name", "detector": "the detector"}
