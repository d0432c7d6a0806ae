"""Finished, unlabelled tracks, as stored between detection and labelling."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ml_backend.core.types import top_class
from ml_backend.embeddings.crop_selection import CropBox

#: Version of the stored format; track sets of another version are computed again.
FORMAT = 1


@dataclass(frozen=True, slots=True)
class TrackRecord:
    """One track with its keyframes, without its boxes on every frame.

    Attributes:
        track_id: unique within its set.
        first: first decoded frame.
        boxes: number of frames with a box.
        score: certainty of its existence, 0..1.
        class_scores: sum of confidence per detector class.
        value: of its Label Studio region, without labels; see
            :func:`ml_backend.label_studio.regions.track_to_value`.
        crops: boxes to embed, in order of time.
    """

    track_id: int
    first: int
    boxes: int
    score: float
    class_scores: Mapping[str, float]
    value: Mapping[str, Any]
    crops: tuple[CropBox, ...]

    @property
    def top_class(self) -> str:
        """The detector class with the most votes."""
        return top_class(self.class_scores)


@dataclass(frozen=True, slots=True)
class SearchedFor:
    """What a video was searched for by text.

    Attributes:
        source: names all that the tracks depend on beside the labels.
        labels: descriptions by label.
        decided: detector classes whose boxes coincided with boxes found by text, with whether the class had a label
            then, which decides which of the two is kept.
    """

    source: str
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    decided: Mapping[str, bool] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TrackSet:
    """All tracks of one video, in order of first appearance.

    Attributes:
        class_names: classes of the detector, then the labels that were searched for by text.
        class_agnostic: whether the detector finds objects without telling their class.
        width, height: displayed size in pixels.
        frames: number of decoded frames.
        seconds: duration of detection and tracking.
        dropped: tracks that are too weak for a prediction, but may be objects that somebody looks for.
        searched: ``None`` without a search by text.
    """

    tracks: tuple[TrackRecord, ...]
    class_names: tuple[str, ...]
    class_agnostic: bool
    width: int
    height: int
    frames: int
    seconds: float = field(default=0.0, compare=False)
    dropped: tuple[TrackRecord, ...] = ()
    searched: SearchedFor | None = None

    def votes(self, track: TrackRecord) -> Mapping[str, float]:
        """Return a track's votes by class; none if the detector tells no classes."""
        return {} if self.class_agnostic else track.class_scores

    def detector_class(self, track: TrackRecord) -> str:
        """Return the class with the most votes; empty if the detector tells no classes."""
        return track.top_class if self.votes(track) else ""

    def is_found_by_text(self, track: TrackRecord) -> bool:
        """Return whether most votes are for a label that was searched for by text."""
        return self.searched is not None and track.top_class in self.searched.labels

    def dump(self) -> bytes:
        """Serialise as gzipped JSON."""
        body: dict[str, Any] = {**asdict(self), "format": FORMAT}
        for track in body["tracks"] + body["dropped"]:
            track["views"] = track.pop("crops")
        return gzip.compress(json.dumps(body, separators=(",", ":")).encode(), 6)

    @classmethod
    def load(cls, data: bytes) -> TrackSet | None:
        """Deserialise what :meth:`dump` wrote; ``None`` for another format version."""
        body = json.loads(gzip.decompress(data))
        if body.pop("format", None) != FORMAT:
            return None
        tracks, dropped = (
            tuple(TrackRecord(crops=tuple(map(_crop, item.pop("views"))), **item) for item in body.pop(name, ()))
            for name in ("tracks", "dropped")
        )
        names, searched = tuple(body.pop("class_names")), body.pop("searched", None)
        if searched is not None:
            labels = {label: tuple(descriptions) for label, descriptions in searched.pop("labels").items()}
            searched = SearchedFor(labels=labels, **searched)
        return cls(tracks=tracks, dropped=dropped, class_names=names, searched=searched, **body)


def _crop(stored: Mapping[str, Any]) -> CropBox:
    return CropBox(stored["frame"], tuple(stored["xyxy"]), stored["conf"])
