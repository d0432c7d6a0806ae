"""Jobs of the queue ``interactive``: follow the objects that a person draws, while the editor waits for the answer."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ml_backend.core.errors import BackendError, WeightsError
from ml_backend.jobs.container import Container, job
from ml_backend.jobs.queue import INTERACTIVE, TRACKER_NOTE
from ml_backend.label_studio.regions import rectangle_mask
from ml_backend.labeling.modes import classifier_models

if TYPE_CHECKING:
    from ml_backend.core.types import VideoInfo
    from ml_backend.embeddings.crop_embeddings import CropEmbedding
    from ml_backend.inference.follow import KnownTrack
    from ml_backend.inference.redraw import Answer, Redraw
    from ml_backend.inference.sam_tracker import ChosenTracker
    from ml_backend.label_studio.timeline import Timeline

log = logging.getLogger(__name__)

#: Longest wall time of an answer, in seconds: what is found by then is returned, and the next press goes on from there.
ANSWER_S = 5.0
#: Shortest one, where others wait.
_FAIR_S = 1.0
#: Seconds for which an answered region is remembered: people come back to a task within days.
REMEMBER_S = 30 * 24 * 3600
#: Answers of one region that are remembered.
REMEMBERED = 4
#: Seconds of video that are decoded when somebody opens a task.
WARM_S = 15.0


@job
def follow_regions(
    container: Container, project_id: int, task_id: int, video: Mapping[str, Any], regions: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return the regions with the keyframes of their objects' whole lives.

    Args:
        video: ``uri`` and ``frame_rate`` of the task's video.
        regions: of the editor, all of this video.

    Raises:
        BackendError: none of the regions can be followed; the first one's error.
    """
    answers: list[dict[str, Any]] = []
    errors: list[BackendError] = []
    with _redraw(container, project_id, task_id, video, regions) as (redraw, _, _):
        for region in regions:
            started = time.monotonic()
            try:
                answer = redraw.extend(region, recall(container, project_id, task_id, region))
            except BackendError as error:
                log.warning("Task %s: a region was not followed: %s", task_id, error)
                errors.append(error)
                continue
            remember(container, project_id, task_id, region, answer)
            log.info(
                "Task %s: followed a region in %.2f s to %d keyframes, of which %d are the annotator's.",
                task_id,
                time.monotonic() - started,
                len(answer.sequence),
                len(answer.human),
            )
            answers.append({**region, "value": {**region["value"], "sequence": list(answer.sequence)}})
    if errors and not answers:
        raise errors[0]
    container.count("followed", len(answers))
    return answers


@job
def track_box(
    container: Container, project_id: int, task_id: int, video: Mapping[str, Any], prompt: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Follow a box of the editor's toolbar, and return the object as masks on the frames of its keyframes.

    The editor sets a keyframe on each frame that it gets; in between it interpolates.

    Args:
        video: as for :func:`follow_regions`.
        prompt: ``frame`` (1-based), ``box`` (``x``, ``y``, ``width`` and ``height`` in percent), ``direction``
            (``forward``, ``backward`` or ``both``), ``max_frames`` each way.

    Returns:
        For each frame ``frame`` (0-based), ``time_ms``, and a PNG of ``width`` x ``height`` as ``imageDataURL``.

    Raises:
        RequestError: the box is outside the image or of no area, or the frame beyond the video's end.
    """
    frame = prompt["frame"]
    region = {"value": {"sequence": [{**prompt["box"], "frame": frame, "enabled": True, "rotation": 0}]}}
    before = 0 if prompt["direction"] == "forward" else prompt["max_frames"]
    after = 0 if prompt["direction"] == "backward" else prompt["max_frames"]
    with _redraw(container, project_id, task_id, video, [region]) as (redraw, info, timeline):
        return [
            {
                "frame": key["frame"] - 1,
                "time_ms": 1000 * (key["frame"] - 1) / timeline.frame_rate,
                **rectangle_mask(key, info.width, info.height),
            }
            for key in redraw.extend(region, None).sequence
            if key["enabled"] and frame - before <= key["frame"] <= frame + after
        ]


@contextmanager
def _redraw(
    container: Container,
    project_id: int,
    task_id: int,
    video: Mapping[str, Any],
    regions: Sequence[Mapping[str, Any]],
) -> Iterator[tuple[Redraw, VideoInfo, Timeline]]:
    """Open a task's video for following the objects of regions, until the time for an answer is up."""
    from ml_backend.inference.follow import Follower
    from ml_backend.inference.redraw import Redraw, keyframe_numbers
    from ml_backend.inference.reduced_frames import ReducedFrames
    from ml_backend.label_studio.timeline import video_timeline
    from ml_backend.video.probe import probe

    with _tracker(container) as tracker, container.media.open(video["uri"], task_id, project_id) as path:
        info, timeline = probe(path), video_timeline(path, video["frame_rate"])
        drawn = [number for region in regions for number in keyframe_numbers(region)]
        tracks = known_tracks(container, project_id, video["uri"], timeline, info, drawn)
        # From here on: each press must get further, however long a download or a model's start has taken.
        deadline = time.monotonic() + max(_FAIR_S, ANSWER_S / (1 + container.queue.queues[INTERACTIVE].count))
        follower = Follower(
            ReducedFrames(path, info, colour=tracker.colour),
            (info.width, info.height),
            info.fps,
            tracks,
            lambda: time.monotonic() > deadline or container.stop.is_set(),
            tracker.start,
        )
        yield (
            Redraw(follower, info, timeline, container.settings.keyframe_iou, container.settings.follow_s),
            info,
            timeline,
        )


@contextmanager
def _tracker(container: Container, *, download: bool = False) -> Iterator[ChosenTracker]:
    """Yield what follows drawn objects, and publish why it is not the configured model."""
    from ml_backend.inference.sam_tracker import use_tracker

    with use_tracker(container.settings, download=download) as tracker:
        yield tracker
        if tracker.note or not download:  # what follows nothing cannot tell that the model works again
            container.queue.publish(TRACKER_NOTE, tracker.note)


@job
def warm(container: Container, project_id: int, task_id: int, video: Mapping[str, Any]) -> None:
    """Decode the first seconds of a video, since somebody has opened its task; nothing if it must be downloaded."""
    from ml_backend.inference.reduced_frames import BLOCK, ReducedFrames
    from ml_backend.video.probe import probe

    if container.media.local_path(video["uri"]) is None:
        return  # a download would delay the drawn boxes of other tasks
    with (
        _tracker(container, download=True) as tracker,
        container.media.open(video["uri"], task_id, project_id) as path,
    ):
        info = probe(path)
        frames = ReducedFrames(path, info, colour=tracker.colour)
        for index in range(0, min(info.frames, round(WARM_S * info.fps)), BLOCK):
            if container.stop.is_set() or container.queue.queues[INTERACTIVE].count:
                return  # somebody waits for an answer
            frames.get(index)


def known_tracks(
    container: Container, project_id: int, uri: str, timeline: Timeline, info: VideoInfo, drawn: Sequence[int]
) -> list[KnownTrack]:
    """Return stored tracks of a video, also those too weak for a prediction; none if it has not been predicted.

    Tracks that are one object's before and after an occlusion, by their embedded crops and motion, are joined.

    Args:
        drawn: 1-based frames of drawn boxes; tracks that these cannot reach in one request are left out.
    """
    import numpy as np

    from ml_backend.core.types import Track
    from ml_backend.inference.follow import KnownTrack
    from ml_backend.label_studio.regions import region_boxes
    from ml_backend.labeling.few_shot.pattern_store import video_key
    from ml_backend.review.identity import joined_lives
    from ml_backend.review.video import ReviewVideo

    key, size = video_key(uri), (info.width, info.height)
    span = math.ceil(container.settings.follow_s * timeline.frame_rate)
    first, last = min(drawn, default=0) - span, max(drawn, default=0) + span
    stored = next(container.projects.patterns.tracks_of_project(project_id, key), None)
    tracks: list[Track] = []
    for record in (*stored.tracks.tracks, *stored.tracks.dropped) if stored else ():
        if record.value["framesCount"] != timeline.frames_count:
            continue  # of another task, with another frame rate
        sequence = record.value["sequence"]
        end = timeline.frames_count if sequence[-1]["enabled"] else sequence[-1]["frame"]
        if end < first or sequence[0]["frame"] > last:
            continue
        wanted = np.arange(sequence[0]["frame"], end + 1)
        frames, xyxy, visible = region_boxes({"value": record.value}, *size, wanted)
        decoded, rows = np.unique(timeline.decoded_index(frames[visible]), return_index=True)
        boxes = xyxy[visible][rows].astype(np.float32)
        tracks.append(Track(len(tracks), decoded, boxes, np.ones(len(rows), np.float32), label=record.top_class))
    crops = _embedded_crops(container, project_id, key) if tracks else ()
    video = ReviewVideo(tracks, info.fps, *size, info.frames, crops=crops)
    return [KnownTrack(track.frames, track.xyxy.astype(np.float64)) for track in joined_lives(video)]


def _embedded_crops(container: Container, project_id: int, video: str) -> Sequence[CropEmbedding]:
    """Return the stored crops of a video; none if the project's embedder is missing: drawing needs no weights."""
    try:
        embedder = classifier_models(container.settings, container.projects.mode(project_id)).embedder
    except WeightsError as error:
        log.warning("Objects are found again by their motion only: %s", error)
        return ()
    return container.projects.patterns.crop_embeddings(video).get(embedder.model_id) if embedder else ()


def _key(project_id: int, task_id: int, region: Mapping[str, Any]) -> str:
    return f"video:answered:{project_id}:{task_id}:{str(region.get('id'))[:64]}"


def recall(container: Container, project_id: int, task_id: int, region: Mapping[str, Any]) -> Answer | None:
    """Return what was answered for a region as it is; ``None`` if nothing was, or long ago.

    An answer may not have reached the editor, or was undone there: that which has most of the region's keyframes
    counts, of equals the newest.
    """
    from ml_backend.inference.redraw import Answer

    with container.queue.guard():
        stored: Any = container.queue.connection.lrange(_key(project_id, task_id, region), 0, REMEMBERED - 1)
    shown = {_place(key) for key in region["value"]["sequence"]}
    answers = [Answer.from_json(json.loads(item)) for item in stored]
    return max(answers, key=lambda answer: len(shown & set(map(_place, answer.sequence))), default=None)


def _place(key: Mapping[str, Any]) -> tuple[Any, ...]:
    return int(key["frame"]), *(round(float(key[side]), 2) for side in ("x", "y", "width", "height"))


def remember(container: Container, project_id: int, task_id: int, region: Mapping[str, Any], answer: Answer) -> None:
    """Keep an answer, and a few before it, of a region."""
    key = _key(project_id, task_id, region)
    with container.queue.guard(), container.queue.connection.pipeline() as pipeline:
        pipeline.lpush(key, json.dumps(answer.to_json()))
        pipeline.ltrim(key, 0, REMEMBERED - 1)
        pipeline.expire(key, REMEMBER_S)
        pipeline.execute()
