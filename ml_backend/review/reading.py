"""Make the tracks of a task ready for review, with what its video tells where that can be found."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ml_backend.core.errors import BackendError, LabelStudioUnavailable, StorageError
from ml_backend.core.settings import Settings
from ml_backend.core.types import Detections, FrameFeatures, IntArray, Progress, Track, VideoInfo
from ml_backend.datasets.annotated_video import TaskVideo
from ml_backend.datasets.selection import chosen_label, valid_score
from ml_backend.detectors.loading import use_detector
from ml_backend.detectors.weights import ResolvedDetector
from ml_backend.embeddings.crop_embeddings import (
    CropEmbedding,
    CropEmbeddingStore,
    MemoryCropEmbeddings,
    embed_tracks,
)
from ml_backend.embeddings.crop_selection import candidate_crops
from ml_backend.embeddings.hub import ResolvedModel
from ml_backend.embeddings.loading import use_embedder
from ml_backend.inference.detection_log import LoggedDetections
from ml_backend.inference.detection_stream import detection_stream
from ml_backend.inference.pipeline import detection_stride
from ml_backend.label_studio.label_config import DEFAULT_FRAME_RATE, LabelMapper, LabelSpec
from ml_backend.label_studio.regions import MALFORMED, RegionKeys
from ml_backend.label_studio.timeline import MAX_TIMELINE, Timeline, video_timeline
from ml_backend.review.video import CROPS_PER_TRACK, Evidence, ReviewVideo
from ml_backend.video.probe import probe

log = logging.getLogger(__name__)

#: Frames of the longest video whose detections are held in memory: some 100 MB in a crowd.
MAX_LOGGED = 100_000
#: Size in pixels that is assumed where neither the task nor a file tells it: boxes are percent of it.
ASSUMED_SIZE = (1920, 1080)


@dataclass(frozen=True, slots=True)
class ReviewModels:
    """Models that look at a video.

    Attributes:
        embedder: embeds crops of the tracks.
        detector: finds what tracks miss; ``None``: detections are not compared.
    """

    settings: Settings
    embedder: ResolvedModel
    detector: ResolvedDetector | None = None


@dataclass(frozen=True, slots=True)
class ReviewTask:
    """The tracks of a task's video, on Label Studio's timeline: frame 0 is its frame 1.

    Attributes:
        name: of the video.
        video: the tracks and the evidence.
        region_ids: of the tracks, by track id.
        path: the video file, while the context is open; ``None`` if it is missing.
        timeline: of the file; ``None`` without one.
        notes: what could not be read or looked at.
    """

    name: str
    video: ReviewVideo
    region_ids: Mapping[int, str]
    path: Path | None = None
    timeline: Timeline | None = None
    notes: tuple[str, ...] = ()


@contextmanager
def open_for_review(
    task: TaskVideo,
    models: ReviewModels | None,
    progress: Progress | None = None,
    stored: Sequence[CropEmbedding] = (),
    logged: LoggedDetections | None = None,
    store: CropEmbeddingStore | None = None,
) -> Iterator[ReviewTask]:
    """Read the tracks of a task, embed crops of them and run the detector, if the video can be found.

    Args:
        models: ``None``: nothing is embedded or detected, only ``stored`` crops and ``logged`` detections count.
        progress: of the detector, in frames.
        stored: crops that were embedded before, on decoded frames. Only tracks that none of them shows are embedded.
        logged: detections of the video, on decoded frames.
        store: where new embeddings are kept; ``None``: nowhere.

    Raises:
        LabelStudioUnavailable, StorageError: no other video can be reviewed either.
        WeightsError: a model cannot be loaded.
    """
    notes: list[str] = []
    with ExitStack() as stack:
        try:
            path = stack.enter_context(task.local_file())
            info, timeline = probe(path), video_timeline(path, task.frame_rate_of(path))
        except (LabelStudioUnavailable, StorageError):
            raise
        except BackendError as error:
            notes.append(f"Without pictures and detections: {error.message}")
            yield _without_file(task, notes)
            return
        tracks, region_ids = _tracks(task, (info.width, info.height), timeline.frames_count, notes)
        decoded = timeline.decoded_index(np.arange(1, timeline.frames_count + 1))
        crops = _on_timeline(stored, decoded)
        if models:
            size = info.width, info.height
            seen = Evidence(ReviewVideo(tracks, timeline.frame_rate, *size, timeline.frames_count, crops=crops)).views
            unseen = [track for track in tracks if track.track_id not in seen]
            crops += _on_timeline(_crops(unseen, path, info, decoded, models, store), decoded)
        detections: dict[int, Detections] | None = None
        names: dict[int, str] = {}
        if models is not None and models.detector is not None:
            detections, names = _detections(path, info, timeline, models.settings, models.detector, progress)
        elif logged is not None and timeline.frames_count > MAX_LOGGED:
            notes.append(f"Without detections: the video has more than {MAX_LOGGED} frames.")
        elif logged is not None:
            try:
                detections, names = _by_shown_frame(logged.frames(), timeline), dict(enumerate(logged.class_names))
            except ValueError as error:
                notes.append(f"Without detections: {error}")
        video = ReviewVideo(
            tracks,
            timeline.frame_rate,
            info.width,
            info.height,
            timeline.frames_count,
            task.task_id,
            crops,
            detections,
            names,
            _class_labels(task, tracks, [*names.values()] or sorted({c for t in tracks for c in t.class_scores})),
        )
        yield ReviewTask(task.name, video, region_ids, path, timeline, tuple(notes))


def _without_file(task: TaskVideo, notes: list[str]) -> ReviewTask:
    width, height = task.facts.size or ASSUMED_SIZE
    counts = [value.get("framesCount") for value in map(_value, task.regions)]
    stated = [int(count) for count in counts if isinstance(count, int | float) and 0 < count <= MAX_TIMELINE]
    tracks, region_ids = _tracks(task, (width, height), max(stated, default=0), notes)
    frames = max([*stated, *(int(track.frames[-1]) + 1 for track in tracks)], default=0)
    fps = task.frame_rate if task.frame_rate and task.frame_rate > 0 else DEFAULT_FRAME_RATE
    video = ReviewVideo(tracks, fps, width, height, frames, task.task_id)
    return ReviewTask(task.name, video, region_ids, notes=tuple(notes))


def _tracks(
    task: TaskVideo, size: tuple[int, int], frames_count: int, notes: list[str]
) -> tuple[list[Track], dict[int, str]]:
    """Return the regions as tracks, with boxes as they are: also those outside the picture."""
    tracks: list[Track] = []
    region_ids: dict[int, str] = {}
    labels = {label.value for label in task.control.labels}
    for region in task.regions:
        region_id = str(region.get("id", ""))
        try:
            keys = RegionKeys.read(region)
            last = max(frames_count, int(keys.frames[-1])) if len(keys.frames) else 0
            if last > MAX_TIMELINE:
                raise ValueError(f"it has a keyframe at frame {last}")
            frames = np.arange(max(1, int(keys.frames[0])) if last else 1, last + 1)
            xyxy, visible = keys.boxes(*size, frames)
        except MALFORMED as error:
            notes.append(f"Region {region_id} cannot be read: {error!r}")
            continue
        if not visible.any():
            continue
        number = len(tracks) + 1
        label = chosen_label(region, labels)
        detected = _value(region, "meta").get("original_class")
        tracks.append(
            Track(
                number,
                frames[visible] - 1,
                xyxy[visible].astype(np.float32),
                np.ones(int(visible.sum()), np.float32),
                {str(detected): 1.0} if detected else {},
                label,
                valid_score(region.get("score")) or 1.0,
            )
        )
        region_ids[number] = region_id
    return tracks, region_ids


def _value(region: Mapping[str, Any], key: str = "value") -> Mapping[str, Any]:
    """Return an object of a region; empty if it is malformed."""
    value = region.get(key)
    return value if isinstance(value, Mapping) else {}


def _crops(
    tracks: Sequence[Track],
    path: Path,
    info: VideoInfo,
    decoded: IntArray,
    models: ReviewModels,
    store: CropEmbeddingStore | None,
) -> list[CropEmbedding]:
    """Embed crops of the tracks, on decoded frames, unless the store has them."""
    candidates = []
    for track in tracks:
        shown = track.frames < len(decoded)
        frames, rows = np.unique(decoded[track.frames[shown]], return_index=True)
        xyxy, conf = track.xyxy[shown][rows], track.conf[shown][rows]
        usable = np.isfinite(xyxy).all(axis=1)
        candidates.append(
            candidate_crops(frames[usable], xyxy[usable], conf[usable], info.width, info.height, CROPS_PER_TRACK)
        )
    embedded = embed_tracks(
        candidates,
        partial(use_embedder, models.embedder, models.settings),
        models.embedder.model_id,
        store or MemoryCropEmbeddings(),
        lambda: nullcontext(path),
        CROPS_PER_TRACK,
    )
    return [crop for crops in embedded for crop in crops]


def _on_timeline(crops: Sequence[CropEmbedding], decoded: IntArray) -> list[CropEmbedding]:
    """Give crops of decoded frames the first frame of the timeline that shows each; the others are left out."""
    first_shown = dict(zip(decoded[::-1].tolist(), range(len(decoded) - 1, -1, -1), strict=True))
    return [replace(crop, frame=first_shown[crop.frame]) for crop in crops if crop.frame in first_shown]


def _detections(
    path: Path,
    info: VideoInfo,
    timeline: Timeline,
    settings: Settings,
    resolved: ResolvedDetector,
    progress: Progress | None,
) -> tuple[dict[int, Detections], dict[int, str]]:
    """Detect objects, by frame of the timeline."""

    def reported(stream: Iterable[FrameFeatures]) -> Iterator[FrameFeatures]:
        for number, features in enumerate(stream, start=1):
            yield features
            if progress:
                progress(number, info.frames)

    with use_detector(resolved, settings, info) as detector:
        stride = detection_stride(settings, resolved, info)
        with closing(detection_stream(path, info, detector, batch=settings.batch, stride=stride)) as stream:
            return _by_shown_frame(reported(stream), timeline), dict(detector.names)


def _by_shown_frame(stream: Iterable[FrameFeatures], timeline: Timeline) -> dict[int, Detections]:
    """Return detections of decoded frames by the 0-based frames of the timeline that show these."""
    shown_at = timeline.shown_at(1, timeline.frames_count)
    return {frame - 1: features.detections for features in stream for frame in shown_at.get(features.index, ())}


def _class_labels(task: TaskVideo, tracks: Sequence[Track], class_names: Sequence[str]) -> dict[str, str]:
    """Return the label of each class of the detector, by the label config or else by the labels' own names."""
    used = sorted({track.label for track in tracks if track.label})
    return LabelMapper(task.control.labels or tuple(map(LabelSpec, used)), class_names).table
