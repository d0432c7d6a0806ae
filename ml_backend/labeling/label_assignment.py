"""From finished tracks to labelled regions: the detector's classes, learned patterns, and label names."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ml_backend.core.types import UNLABELLED
from ml_backend.embeddings.crop_embeddings import CropEmbeddingStore, OpenVideo
from ml_backend.label_studio.label_config import LabelMapper, VideoControl
from ml_backend.label_studio.regions import make_region
from ml_backend.labeling.few_shot.pattern_bank import PatternMatch
from ml_backend.tracking.track_record import TrackRecord, TrackSet

log = logging.getLogger(__name__)

#: CLIP's label is given when it is more likely right than wrong.
ACCEPT_TEXT = 0.5


@dataclass(frozen=True, slots=True)
class LabelDecision:
    """The label of a track.

    Attributes:
        label: of the project, or ``UNLABELLED``.
        score: 0..1; of a learned label its probability, else how sure the track's existence is.
        why: for the region's ``meta``: what led to the label, also by those who were overruled.
    """

    label: str
    score: float
    why: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LabelScores:
    """What is thought of one track beside the detector.

    Attributes:
        patterns: the bank's verdict, ``None`` where nobody asked it.
        nearest: where the verdict's nearest exemplar comes from.
        text: CLIP's probability by label; empty where nobody asked it.
    """

    patterns: PatternMatch | None = None
    nearest: Mapping[str, Any] | None = None
    text: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LabelledTracks:
    """Outcome for one video.

    Attributes:
        regions: ``videorectangle`` results, in order of first appearance.
        kept: the tracks that they are made of, in the same order.
        unmapped: tracks per detector class that got no label; they were left out.
    """

    regions: list[dict[str, Any]]
    kept: list[tuple[TrackRecord, LabelDecision]]
    unmapped: Counter[str]


class DetectorLabels:
    """Labels by most votes of a track's whole life.

    Args:
        names: the detector's classes.
        class_agnostic: the detector cannot tell classes apart. Its tracks are kept in any case: with the project's
            label where there is only one, else unlabelled, which takes the annotator one key press to complete.
        trained: the detector was trained on the project's labels; see :class:`LabelMapper`.
        trained_classes: classes that the detector knows anything of; ``None``: all.
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
        self._mapper = LabelMapper(control.labels, names, trained=trained)
        self._default: str | None = None
        if class_agnostic:
            self._default = control.labels[0].value if len(control.labels) == 1 else UNLABELLED
        table = self._mapper.table.items()
        #: Labels that the detector was trained to find. Of others its silence says nothing.
        self.known = tuple(
            dict.fromkeys(label for name, label in table if trained_classes is None or name in trained_classes)
        )

    def votes(self, class_scores: Mapping[str, float]) -> dict[str | tuple[str], float]:
        """Sum of votes by label; by class in a tuple where no label covers it."""
        votes: dict[str | tuple[str], float] = {}
        for name, score in class_scores.items():
            label = self._mapper.map(name)
            if label is None:
                label = self._default
            # A class without label votes too: what is mostly a chair must not become a person.
            key: str | tuple[str] = label if label is not None else (name,)
            votes[key] = votes.get(key, 0.0) + score
        return votes

    def __call__(self, class_scores: Mapping[str, float]) -> str | None:
        """The label, ``UNLABELLED``, or ``None``: the track is to be left out."""
        votes = self.votes(class_scores)
        if not votes:
            return None
        winner = min(votes, key=lambda vote: (-votes[vote], str(vote)))
        return None if isinstance(winner, tuple) else winner

    def shares(self, class_scores: Mapping[str, float]) -> dict[str, float]:
        """Share of the votes by label."""
        votes = self.votes(class_scores)
        total = sum(votes.values())
        return {key: vote / total for key, vote in votes.items() if isinstance(key, str) and total > 0}


class LabelScorer(Protocol):
    """What gives labels beside the detector; see :class:`ml_backend.labeling.track_classifier.TrackClassifier`."""

    def opinions(
        self,
        tracks: TrackSet,
        control: VideoControl,
        detector: DetectorLabels,
        looks: CropEmbeddingStore,
        open_video: OpenVideo,
        should_stop: Callable[[], bool] | None = None,
    ) -> list[LabelScores]:
        """Return what is thought of each track, in the order of ``tracks``."""


def label_tracks(
    tracks: TrackSet,
    control: VideoControl,
    hybrid: LabelScorer | None,
    looks: CropEmbeddingStore,
    open_video: OpenVideo,
    should_stop: Callable[[], bool] | None = None,
    *,
    trained: bool = False,
    trained_classes: frozenset[str] | None = None,
) -> LabelledTracks:
    """Give tracks their labels and make regions of them.

    Args:
        hybrid: what else gives labels; without it the detector's classes do.
        looks: what models have seen of the video; what is missing is added.
        open_video: called only when something has to be looked at.
        trained, trained_classes: of the detector that found them; see :class:`DetectorLabels`.

    Raises:
        VideoError, WeightsError, Interrupted: from looking.
    """
    names, agnostic = tracks.class_names, tracks.class_agnostic
    detector = DetectorLabels(control, names, agnostic, trained=trained, trained_classes=trained_classes)
    opinions = hybrid.opinions(tracks, control, detector, looks, open_video, should_stop) if hybrid else None
    out = LabelledTracks([], [], Counter())
    for number, record in enumerate(tracks.tracks):
        decision = decide_label(record, detector(record.class_scores), opinions[number] if opinions else LabelScores())
        if decision is None:
            out.unmapped[record.top_class] += 1
            continue
        out.kept.append((record, decision))
        told = (decision.label, decision.score, record.top_class, decision.why)
        out.regions.append(make_region(record.value, control, record.track_id, *told))
    if out.unmapped:
        what = ", ".join(f"{count} x {name}" for name, count in out.unmapped.most_common())
        log.info("Tracks that no label of the config covers were left out: %s", what)
    return out


def decide_label(record: TrackRecord, detector_label: str | None, opinion: LabelScores) -> LabelDecision | None:
    """The label of one track: learned from examples first, from its name second, from the detector's class third.

    Returns:
        ``None`` where nobody has a label for it: the track is left out.
    """
    patterns = opinion.patterns
    learned = patterns.label if patterns else None
    # A label with examples is recognised by them; text speaks for the others.
    pattern_labels = set(patterns.probabilities) if patterns else set()
    text_label, text_score = max(
        ((label, p) for label, p in opinion.text.items() if label not in pattern_labels),
        key=lambda item: item[1],
        default=("", 0.0),
    )
    why = _why(record, detector_label, opinion, text_label, text_score)
    sure = patterns.probability if patterns and learned else 0.0
    if text_label and text_score >= ACCEPT_TEXT and text_score > sure:
        return LabelDecision(text_label, text_score, _told(why, "text", text_label, text_score))
    if learned is not None:
        return LabelDecision(learned, sure, _told(why, "patterns", learned, sure))
    if detector_label is None:
        return None
    return LabelDecision(
        detector_label, record.score, _told(why, "detector", detector_label, record.score) if why else {}
    )


def _why(
    record: TrackRecord, detector_label: str | None, opinion: LabelScores, text_label: str, text_score: float
) -> dict[str, Any]:
    why: dict[str, Any] = {}
    patterns = opinion.patterns
    if patterns and patterns.best is not None:
        why["pattern_label"] = patterns.best
        why["pattern_score"] = round(patterns.probability, 4)
        why["nearest_exemplar"] = {**(opinion.nearest or {}), "similarity": round(patterns.similarity, 4)}
    if opinion.text:
        why["text_label"] = text_label
        why["text_score"] = round(text_score, 4)
    if why:
        why = {"detector_label": detector_label or "", "detector_score": round(float(record.score), 4), **why}
    return why


def _told(why: dict[str, Any], source: str, label: str, score: float) -> dict[str, Any]:
    """With who decided, and a sentence for people: Label Studio shows ``text`` with the region."""
    parts = [f"{label or 'no label'} ({score:.2f}) from {_SOURCES[source]}"]
    if "pattern_label" in why and source != "patterns":
        parts.append(f"patterns: {why['pattern_label']} {why['pattern_score']:.2f}")
    nearest = why.get("nearest_exemplar", {})
    if source == "patterns" and nearest:
        where = (
            f"task {nearest['task']}, frame {nearest['frame']}" if nearest.get("task") else nearest.get("origin", "")
        )
        parts.append(f"like {where} (similarity {nearest['similarity']:.2f})")
    if why.get("text_label") and source != "text":
        parts.append(f"text: {why['text_label']} {why['text_score']:.2f}")
    if source != "detector":
        parts.append(f"detector: {why['detector_label'] or 'no label'} {why['detector_score']:.2f}")
    return {"label_source": source, **why, "text": "; ".join(parts)}


_SOURCES = {"patterns": "examples", "text": "the label's name", "detector": "the detector"}
