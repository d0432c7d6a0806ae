"""Read annotated objects, with boxes on decoded frames, and tracks rejected by the annotator."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ml_backend.core.boxes import iou_matrix, iou_pairs
from ml_backend.core.types import Float64Array, IntArray
from ml_backend.embeddings.crop_embeddings import SAME_CROP_IOU, CropEmbedding
from ml_backend.embeddings.crop_selection import CropBox, candidate_crops
from ml_backend.label_studio.label_config import VideoControl
from ml_backend.label_studio.regions import MALFORMED, region_boxes
from ml_backend.label_studio.timeline import Timeline
from ml_backend.tracking.track_record import TrackRecord, TrackSet

log = logging.getLogger(__name__)

#: Confidence of a box interpolated between keyframes, relative to an annotated one.
INTERPOLATED_CONF = 0.8
#: IoU with an annotated box from which a track counts as annotated, if only in part.
MIN_ANNOTATED_IOU = 0.3
#: Rejected tracks of one task that serve as background: enough for calibration, cheap to embed.
MAX_BACKGROUND = 40
#: Length of the region id column in the database.
_ID_CHARS = 64


@dataclass(frozen=True, slots=True)
class AnnotatedObject:
    """One labelled region.

    Attributes:
        label: ``None`` if the config no longer has it: the object is neither an exemplar nor background.
        frames: ``(n,)`` 0-based decoded frames on which it is visible.
        xyxy: ``(n, 4)`` pixels.
        crops: boxes to embed.
        detector_class: of its track; empty if unknown.
    """

    region_id: str
    label: str | None
    frames: IntArray
    xyxy: Float64Array
    crops: tuple[CropBox, ...]
    detector_class: str = ""


def annotated_objects(
    result: Iterable[Mapping[str, Any]],
    control: VideoControl,
    timeline: Timeline,
    width: int,
    height: int,
    k: int,
) -> list[AnnotatedObject]:
    """Return the labelled regions of one video in an annotation, including those with labels not in the config.

    Skips regions that are damaged, have no label, or have no visible box inside the frame.

    Args:
        result: of the annotation.
        control: of the video; regions of other controls are skipped.
        timeline: of the video, at the task's frame rate.
        width, height: displayed size in pixels.
        k: number of crops wanted per object.
    """
    labels = {label.value for label in control.labels}
    objects = []
    for region in result:
        if region.get("type") != "videorectangle" or region.get("to_name") != control.to_name:
            continue
        try:
            region_labels = _region_labels(region)
            if not region_labels:
                continue
            frames, xyxy, conf = _decoded_boxes(region, timeline, width, height)
        except MALFORMED as error:
            log.warning("Skipped the unreadable region %s: %r", region.get("id"), error)
            continue
        crops = candidate_crops(frames, xyxy.astype(np.float32), conf, width, height, k) if len(frames) else []
        if crops:
            label = next((name for name in region_labels if name in labels), None)
            objects.append(AnnotatedObject(short_id(str(region.get("id", ""))), label, frames, xyxy, tuple(crops)))
    return objects


def _region_labels(region: Mapping[str, Any]) -> list[str]:
    labels = region["value"].get("labels") or []
    if not isinstance(labels, (list, tuple)):
        raise TypeError(f"expected a list of labels, got {labels!r}")
    return [label for label in labels if isinstance(label, str) and label]


def _decoded_boxes(
    region: Mapping[str, Any], timeline: Timeline, width: int, height: int
) -> tuple[IntArray, Float64Array, Any]:
    """Return decoded frames, boxes and confidences; the first timeline frame of each decoded frame counts."""
    # The region's own length is ignored: a damaged one may claim billions of frames.
    timeline_frames, xyxy, visible = region_boxes(region, width, height, np.arange(1, timeline.frames_count + 1))
    shown = np.flatnonzero(visible)
    frames, first = np.unique(timeline.decoded_index(timeline_frames[shown]), return_index=True)
    keyframes = [int(key["frame"]) for key in region["value"].get("sequence") or []]
    conf = np.where(np.isin(timeline_frames[shown][first], keyframes), 1.0, INTERPOLATED_CONF).astype(np.float32)
    return frames.astype(np.int64), xyxy[shown][first], conf


def short_id(text: str) -> str:
    """Return a region's id as stored in the database."""
    return text if len(text) <= _ID_CHARS else hashlib.sha256(text.encode()).hexdigest()[:_ID_CHARS]


def reuse_embedded_crops(item: AnnotatedObject, embedded: Sequence[CropEmbedding], k: int) -> tuple[CropBox, ...]:
    """Return the object's crops, preferring crops embedded already, as of an accepted track.

    Args:
        embedded: embeddings of the video.
        k: number of crops wanted; with fewer matching crops the object's own crops are returned.
    """
    if not embedded:
        return item.crops
    frames = np.array([crop.frame for crop in embedded])
    index = np.minimum(np.searchsorted(item.frames, frames), len(item.frames) - 1)
    boxes = np.array([crop.xyxy for crop in embedded], np.float64)
    same = (item.frames[index] == frames) & (iou_pairs(boxes, item.xyxy[index]) >= SAME_CROP_IOU)
    by_frame = {embedded[i].frame: embedded[i] for i in np.flatnonzero(same)}
    if len(by_frame) < min(k, len(item.crops)):
        return item.crops
    return tuple(CropBox(frame, crop.xyxy, 1.0) for frame, crop in sorted(by_frame.items()))


class TrackOverlaps:
    """How much the tracks of a video overlap its annotated objects, on the frames of the tracks' crops."""

    def __init__(self, tracks: TrackSet, objects: Sequence[AnnotatedObject]) -> None:
        self._tracks = tracks
        annotated: dict[int, list[tuple[int, Any]]] = {}
        crop_frames = {crop.frame for record in tracks.tracks for crop in record.crops}
        for number, item in enumerate(objects):
            for frame, box in zip(item.frames.tolist(), item.xyxy, strict=True):
                if frame in crop_frames:
                    annotated.setdefault(frame, []).append((number, box))
        largest = np.zeros((len(tracks.tracks), len(objects)))
        mean = np.zeros_like(largest)
        for row, record in enumerate(tracks.tracks):
            for crop in record.crops:
                if crop.frame in annotated:
                    numbers, boxes = zip(*annotated[crop.frame], strict=True)
                    iou = iou_matrix([crop.xyxy], boxes)[0]
                    np.maximum.at(largest[row], list(numbers), iou)
                    np.add.at(mean[row], list(numbers), iou / len(record.crops))
        self._largest, self._mean = largest, mean

    def rejected(self) -> list[TrackRecord]:
        """Return the most confident tracks that overlap no object: the annotator saw them and gave no label."""
        annotated = set(np.flatnonzero((self._largest >= MIN_ANNOTATED_IOU).any(axis=1)).tolist())
        rejected = [record for row, record in enumerate(self._tracks.tracks) if record.crops and row not in annotated]
        rejected.sort(key=lambda record: (-record.score, record.track_id))
        return sorted(rejected[:MAX_BACKGROUND], key=lambda record: record.track_id)

    def detector_classes(self) -> list[str]:
        """Return the detector's class of each object's track; empty if it has none, or the detector tells none."""
        if not self._tracks.tracks:
            return [""] * self._mean.shape[1]
        mean = np.where(self._largest >= MIN_ANNOTATED_IOU, self._mean, 0.0)
        best = [self._tracks.tracks[row] for row in mean.argmax(axis=0).tolist()]
        return [
            self._tracks.detector_class(record) if found > 0 else ""
            for record, found in zip(best, mean.max(axis=0).tolist(), strict=True)
        ]
