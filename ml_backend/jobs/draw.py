"""Jobs of the queue ``interactive``: follow the objects that a person draws, while the editor waits for the answer."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ml_backend.core.errors import BackendError
from ml_backend.jobs.container import Container, job
from ml_backend.jobs.queue import INTERACTIVE

log = logging.getLogger(__name__)

#: Longest wall time of an answer, in seconds: what is found by then is returned, and the next press goes on from there.
ANSWER_S = 5.0
#: Shortest one, where others wait.
_FAIR_S = 1.0
#: Seconds for which an answered region is remembered: people come back to a task within days.
REMEMBER_S = 30 * 24 * 3600
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
    from ml_backend.inference.follow import Follower
    from ml_backend.inference.redraw import Redraw
    from ml_backend.inference.reduced_frames import ReducedFrames
    from ml_backend.label_studio.timeline import video_timeline
    from ml_backend.video.probe import probe

    answers: list[dict[str, Any]] = []
    errors: list[BackendError] = []
    deadline = time.monotonic() + max(_FAIR_S, ANSWER_S / (1 + container.queue.queues[INTERACTIVE].count))
    with container.media.open(video["uri"], task_id) as path:
        info, timeline = probe(path), video_timeline(path, video["frame_rate"])
        tracks = known_tracks(container, project_id, video["uri"], timeline, (info.width, info.height))
        follower = Follower(
            ReducedFrames(path, info),
            (info.width, info.height),
            info.fps,
            tracks,
            lambda: time.monotonic() > deadline or container.stop.is_set(),
        )
        redraw = Redraw(follower, info, timeline, container.settings.keyframe_iou, container.settings.follow_s)
        for region in regions:
            started = time.monotonic()
            try:
                answer = redraw.extend(region, recall(container, task_id, region))
            except BackendError as error:
                log.warning("Task %s: a region was not followed: %s", task_id, error)
                errors.append(error)
                continue
            remember(container, task_id, region, answer)
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
def warm(container: Container, task_id: int, video: Mapping[str, Any]) -> None:
    """Decode the first seconds of a video, since somebody has opened its task; nothing if it must be downloaded."""
    from ml_backend.inference.reduced_frames import BLOCK, ReducedFrames
    from ml_backend.video.probe import probe

    if container.media.local_path(video["uri"]) is None:
        return  # a download would delay the drawn boxes of other tasks
    with container.media.open(video["uri"], task_id) as path:
        info = probe(path)
        frames = ReducedFrames(path, info)
        for index in range(0, min(info.frames, round(WARM_S * info.fps)), BLOCK):
            if container.stop.is_set() or container.queue.queues[INTERACTIVE].count:
                return  # somebody waits for an answer
            frames.get(index)


def known_tracks(container: Container, project_id: int, uri: str, timeline: Any, size: tuple[int, int]) -> list[Any]:
    """Return the stored tracks of a video, also those of classes without a label; none if it has not been predicted."""
    import numpy as np

    from ml_backend.inference.follow import KnownTrack
    from ml_backend.label_studio.regions import region_boxes
    from ml_backend.labeling.few_shot.pattern_store import video_key

    stored = next(container.projects.patterns.tracks_of_project(project_id, video_key(uri)), None)
    known = []
    for record in stored.tracks.tracks if stored else ():
        if record.value["framesCount"] != timeline.frames_count:
            continue  # of another task, with another frame rate
        sequence = record.value["sequence"]
        end = timeline.frames_count if sequence[-1]["enabled"] else sequence[-1]["frame"]
        wanted = np.arange(sequence[0]["frame"], end + 1)
        frames, xyxy, visible = region_boxes({"value": record.value}, *size, wanted)
        decoded, rows = np.unique(timeline.decoded_index(frames[visible]), return_index=True)
        known.append(KnownTrack(decoded, xyxy[visible][rows]))
    return known


def _key(task_id: int, region: Mapping[str, Any]) -> str:
    return f"video:followed:{task_id}:{str(region.get('id'))[:64]}"


def recall(container: Container, task_id: int, region: Mapping[str, Any]) -> Any:
    """Return what was answered for a region last; ``None`` if nothing was, or long ago."""
    from ml_backend.inference.redraw import Answer

    with container.queue.guard():
        stored = container.queue.connection.get(_key(task_id, region))
    return Answer.from_json(json.loads(stored)) if isinstance(stored, bytes) else None


def remember(container: Container, task_id: int, region: Mapping[str, Any], answer: Any) -> None:
    with container.queue.guard():
        container.queue.connection.set(_key(task_id, region), json.dumps(answer.to_json()), ex=REMEMBER_S)
