"""From a person's annotation to objects with boxes on decoded frames, and to what he left out."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ml_backend.core.boxes import Float64Array, iou_matrix, iou_pairs
from ml_backend.core.types import IntArray
from ml_backend.embeddings.crop_embeddings import SAME_CROP_IOU, CropEmbedding
from ml_backend.embeddings.crop_selection import CropBox, candidate_crops
from ml_backend.label_studio.label_config import VideoControl
from ml_backend.label_studio.regions import region_boxes
from ml_backend.label_studio.timeline import Timeline
from ml_backend.tracking.track_record import TrackRecord, TrackSet

log = logging.getLogger(__name__)

#: A box between keyframes is less certain than one that a person has put there.
INTERPOLATED = 0.8
#: A track whose boxes overlap annotated ones so is annotated, if only in part.
SAME_OBJECT = 0.3
#: Left-out tracks of one task that serve as background: enough to know what is not meant, cheap to look at.
MAX_BACKGROUND = 40
#: Length of what the database keeps of a region's id.
_ID_CHARS = 64


@dataclass(frozen=True, slots=True)
class AnnotatedObject:
    """One labelled region.

    Attributes:
        label: ``None``: of no label of the config. It was renamed or removed; what it shows is not known, but it is no
            background either.
        frames: ``(n,)`` 0-based decoded frames on which it is visible.
        xyxy: ``(n, 4)`` pixels.
        views: boxes worth looking at.
    """

    region_id: str
    label: str | None
    frames: IntArray
    xyxy: Float64Array
    views: tuple[CropBox, ...]


def annotated_objects(
    result: Iterable[Mapping[str, Any]],
    control: VideoControl,
    timeline: Timeline,
    width: int,
    height: int,
    views: int,
) -> list[AnnotatedObject]:
    """The labelled regions of one video in an annotation, also those whose label is none of the config.

    Regions without a label, without visible boxes inside the frame, or that are damaged teach nothing;
    they are left out.

    Args:
        result: of the annotation.
        control: the video's; regions of others are passed over.
        timeline: of the video, at the task's frame rate.
        width, height: displayed size in pixels.
        views: looks that are wanted of each.
    """
    labels = {label.value for label in control.labels}
    found = []
    for region in result:
        if region.get("type") != "videorectangle" or region.get("to_name") != control.to_name:
            continue
        try:
            given = _given(region)
            if not given:
                continue
            frames, xyxy, conf = _decoded_boxes(region, timeline, width, height)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            log.warning("Region %s of an annotation cannot be read: %r", region.get("id"), error)
            continue
        chosen = candidate_crops(frames, xyxy.astype(np.float32), conf, width, height, views) if len(frames) else []
        if chosen:
            label = next((name for name in given if name in labels), None)
            found.append(AnnotatedObject(short_id(str(region.get("id", ""))), label, frames, xyxy, tuple(chosen)))
    return found


def _given(region: Mapping[str, Any]) -> list[str]:
    """The names that a region bears; they need not be in the config."""
    given = region["value"].get("labels") or []
    if not isinstance(given, list | tuple):
        raise TypeError(f"expected a list of labels, got {given!r}")
    return [label for label in given if isinstance(label, str) and label]


def _decoded_boxes(
    region: Mapping[str, Any], timeline: Timeline, width: int, height: int
) -> tuple[IntArray, Float64Array, Any]:
    """Decoded frames, boxes and certainty of a region; of several timeline frames on one picture the first counts."""
    # Not what the region says of its length: a damaged one may claim billions of frames.
    at, xyxy, visible = region_boxes(region, width, height, np.arange(1, timeline.frames_count + 1))
    shown = np.flatnonzero(visible)
    frames, first = np.unique(timeline.decoded_index(at[shown]), return_index=True)
    keyframes = [int(key["frame"]) for key in region["value"].get("sequence") or []]
    conf = np.where(np.isin(at[shown][first], keyframes), 1.0, INTERPOLATED).astype(np.float32)
    return frames.astype(np.int64), xyxy[shown][first], conf


def short_id(text: str) -> str:
    """A region's id as the database keeps it."""
    return text if len(text) <= _ID_CHARS else hashlib.sha256(text.encode()).hexdigest()[:_ID_CHARS]


def with_known(item: AnnotatedObject, known: Sequence[CropEmbedding], k: int) -> tuple[CropBox, ...]:
    """The object's views, on frames where looks of it are there already: of a track that a person has accepted."""
    if not known:
        return item.views
    frames = np.array([look.frame for look in known])
    at = np.minimum(np.searchsorted(item.frames, frames), len(item.frames) - 1)
    boxes = np.array([look.xyxy for look in known], np.float64)
    same = (item.frames[at] == frames) & (iou_pairs(boxes, item.xyxy[at]) >= SAME_CROP_IOU)
    chosen = sorted({known[i].frame: known[i] for i in np.flatnonzero(same)}.values(), key=lambda look: look.frame)
    if len(chosen) < min(k, len(item.views)):
        return item.views
    return tuple(CropBox(look.frame, look.xyxy, 1.0) for look in chosen)


def rejected_tracks(tracks: TrackSet, objects: Sequence[AnnotatedObject]) -> list[TrackRecord]:
    """Tracks that no annotated object overlaps: somebody looked at the video and gave them no label."""
    by_frame: dict[int, list[Any]] = {}
    wanted = {view.frame for record in tracks.tracks for view in record.views}
    for item in objects:
        for frame, box in zip(item.frames.tolist(), item.xyxy, strict=True):
            if frame in wanted:
                by_frame.setdefault(frame, []).append(box)

    def is_annotated(record: TrackRecord) -> bool:
        return any(
            view.frame in by_frame and float(iou_matrix([view.xyxy], by_frame[view.frame]).max()) >= SAME_OBJECT
            for view in record.views
        )

    alone = [record for record in tracks.tracks if record.views and not is_annotated(record)]
    alone.sort(key=lambda record: (-record.score, record.track_id))
    return sorted(alone[:MAX_BACKGROUND], key=lambda record: record.track_id)
