"""Jobs that look for suspicious moments in tracks, and render clips of them.

Nothing is detected or embedded for it: what predictions and annotations have left is used.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_backend.core.errors import BackendError, ConfigError, Conflict, Interrupted
from ml_backend.datasets.annotation_reader import AnnotationReader
from ml_backend.jobs.container import Container, job
from ml_backend.jobs.detections import logged_detections
from ml_backend.jobs.queue import ALL_TASKS
from ml_backend.jobs.task_plan import cached_label_config
from ml_backend.label_studio.client import NotFound
from ml_backend.label_studio.media import canonical_uri
from ml_backend.labeling.few_shot.pattern_store import video_key
from ml_backend.review.moment_store import MomentStore, Row, embedding_of
from ml_backend.review.repair_json import FRAMES_AT_ONCE, RepairJson, clip_name, digest, frames_key, frames_name

if TYPE_CHECKING:
    from ml_backend.datasets.annotated_video import AnnotatedVideo, TaskVideo
    from ml_backend.datasets.selection import Submission
    from ml_backend.embeddings.hub import ResolvedModel
    from ml_backend.label_studio.label_config import LabelConfig
    from ml_backend.label_studio.regions import Region
    from ml_backend.rendering.clips import ClipPane

log = logging.getLogger(__name__)

#: Seconds of a clip.
CLIP_S = 2.0


@job
def review(container: Container, project_id: int) -> None:
    """Look for suspicious moments in the tasks whose prediction or annotation has changed.

    Tasks whose server is unreachable stay pending, and the job fails once it has looked at the others.
    """
    storage = container.storage
    first_error: BackendError | None = None
    failed: set[int] = set()
    while waiting := {task: seen for task, seen in storage.pending("review", project_id).items() if task not in failed}:
        if ALL_TASKS in waiting:  # first, because it adds tasks
            waiting = {ALL_TASKS: waiting[ALL_TASKS]}
        for task, revision in waiting.items():
            if container.stop.is_set():
                raise Interrupted("Stopped before the next task.", "Wait: the job is retried.")
            try:
                if task == ALL_TASKS:
                    _note_all(container, project_id)
                else:
                    _review_task(container, project_id, task)
            except BackendError as error:
                log.warning("Task %s of project %s was not reviewed: %s", task or "list", project_id, error)
                if error.retryable:
                    first_error = first_error or error
                    failed.add(task)
                    continue
            storage.settle("review", project_id, {task: revision})
    if first_error:
        raise first_error


def _note_all(container: Container, project_id: int) -> None:
    try:
        tasks = {s.id for s in container.client.list_task_states(project_id) if s.annotations or s.predictions}
    except NotFound:
        tasks = set()
    container.storage.note_pending("review", project_id, tasks | MomentStore(container.storage).tasks(project_id))


def _review_task(container: Container, project_id: int, task_id: int) -> None:
    from ml_backend.datasets.selection import by_person

    store = MomentStore(container.storage)
    try:
        config = cached_label_config(container.client.get_project(project_id).label_config)
        task = container.client.get_full_task(task_id, project_id)
    except NotFound:
        unused = store.forget_task(project_id, task_id)
    else:
        embedder = container.projects.models(project_id).classifier.embedder
        people = by_person(task, store.made_here(project_id)) if len(task["annotations"]) > 1 else {}
        reader = _reader(container, project_id, task, config)
        found = [
            row for video in reader.task_videos() for row in _moments(container, project_id, video, embedder, people)
        ]
        unused = store.replace_task(project_id, task_id, found)
        log.info("Task %s has %d suspicious moments.", task_id, len(found))
    for moment_id, sha256 in unused.items():
        container.artifacts.remove(clip_name(project_id, moment_id), sha256)


def _reader(container: Container, project_id: int, task: dict[str, Any], config: LabelConfig) -> AnnotationReader:
    return AnnotationReader.of_task(task, container.media.opener(project_id), config, "missing")


def _moments(
    container: Container,
    project_id: int,
    video: TaskVideo,
    embedder: ResolvedModel | None,
    people: Mapping[str, Submission],
) -> Iterator[Row]:
    """Yield the moments of a video as rows of the store.

    Args:
        people: who annotated the task, each with their annotation.
    """
    from ml_backend.review.moments import find_moments, sound_evidence
    from ml_backend.review.reading import open_for_review
    from ml_backend.review.region_repairs import repair_to_json

    key = video_key(canonical_uri(video.uri, container.settings.label_studio_url))
    crops = container.projects.patterns.crop_embeddings(key).get(embedder.model_id) if embedder else []
    logged = logged_detections(container.artifacts, project_id, key)
    with open_for_review(video, None, stored=crops, logged=logged) as task:
        labels = {track.track_id: track.label for track in task.video.tracks}
        evidence = sound_evidence(task.video)
        for moment in find_moments(task.video, evidence):
            ids = [task.region_ids[track] for track in moment.tracks]
            repair = repair_to_json(moment.repair, task.region_ids, task.video, video.control)
            embedding = None
            if embedder and moment.tracks and (view := evidence.views.get(moment.tracks[0])):
                embedding = embedding_of(embedder.model_id, view.looks.vectors.mean(axis=0))
            label = (labels[moment.tracks[0]] if moment.tracks else repair["label"]) or ""
            yield {
                **_row(video, moment.kind, moment.first + 1, moment.last + 1, label, ids, repair),
                "shown": moment.shown + 1,
                "time": moment.shown / task.video.fps,
                "score": moment.score,
                "gain": moment.gain,
                "reason": moment.reason,
                "signature": digest(
                    moment.kind,
                    sorted(labels[track] or "" for track in moment.tracks),
                    repair["do"],
                    repair.get("label"),
                ),
                "embedding": embedding,
            }
        yield from _disputed(container, video, task.video.fps, people)


def _disputed(container: Container, video: TaskVideo, fps: float, people: Mapping[str, Submission]) -> Iterator[Row]:
    """Yield the tracks in which the annotation that counts differs from those of other people, as rows of the store."""
    from ml_backend.datasets.annotated_video import belongs_to
    from ml_backend.review.consensus import find_disputed

    if len(people) < 2:
        return
    counts = video.submission.annotation_id
    author = next((name for name, item in people.items() if item.annotation_id == counts), None)
    regions = {
        name: [region for region in item.result if belongs_to(region, video.control)] for name, item in people.items()
    }
    for item in find_disputed(regions, video.regions, author, container.settings.keyframe_iou):
        ids = [str(item.region.get("id", ""))] if item.region else []
        shown = (item.first + item.last) // 2
        yield {
            **_row(video, "disputed", item.first, item.last, item.label, ids, item.repair),
            "shown": shown,
            "time": (shown - 1) / fps,
            "score": item.score,
            "gain": item.score * item.boxes,
            "reason": item.reason,
            "signature": digest("disputed", sorted(item.sides.items()), item.repair["do"], item.repair.get("label")),
            "embedding": None,
        }


def _row(
    video: TaskVideo, kind: str, first: int, last: int, label: str, region_ids: Sequence[str], repair: RepairJson
) -> Row:
    """Return what a row of the store says of a moment's place and repair, and its id."""
    from ml_backend.review.region_repairs import region_digest

    regions = {str(region.get("id", "")): region for region in video.regions}
    sequences = [regions[name]["value"]["sequence"] for name in region_ids] or [repair["added"]["value"]["sequence"]]
    said = label if kind == "label" else [label, repair.get("label")] if kind == "disputed" else ""
    return {
        "id": digest(video.task_id, kind, first - 1, last - 1, sequences, said),
        "video": video.control.to_name,
        "annotation_id": video.submission.annotation_id or 0,
        "author": video.submission.author[:255],
        "kind": kind,
        "label": label[:255],
        "first": first,
        "last": last,
        "repair": repair,
        "regions": {name: region_digest(dict(regions[name])) for name in region_ids},
    }


@job
def render_moment(container: Container, project_id: int, moment_id: str) -> str:
    """Render a clip of a moment, with the boxes before and after the proposed repair.

    Returns:
        Its SHA-256.

    Raises:
        NotFound: the moment or its task is gone.
        Conflict, ConfigError: the tracks have changed since the moment was found.
        MediaError, VideoError: the video is gone or damaged.
    """
    from ml_backend.rendering.clips import render_clip
    from ml_backend.review.region_repairs import repair_result

    store = MomentStore(container.storage)
    row = store.get(project_id, moment_id)
    if row is None:
        raise NotFound("The moment is not in the queue any more.", "Choose another one.")
    if row["clip"]:
        return str(row["clip"])
    config = cached_label_config(container.client.get_project(project_id).label_config)
    task = container.client.get_full_task(row["task_id"], project_id)
    videos = _reader(container, project_id, task, config).task_videos()
    video = next((item for item in videos if item.control.to_name == row["video"]), None)
    if video is None:
        raise ConfigError("The task has no tracks of that video any more.", "Choose another moment.")
    regions = [dict(region) for region in video.regions]
    change = repair_result(regions, row["repair"])
    with video.open() as opened, tempfile.TemporaryDirectory() as folder:
        numbers = {name: number for number, name in enumerate(_ids([*regions, *change.after]), start=1)}
        panes = [
            _pane(title, opened, numbers, shown, _ids(marked))
            for title, shown, marked in (
                ("Before", regions, change.before),
                ("After", change.result, change.after),
            )
        ]
        half = max(1, round(CLIP_S / 2 * opened.info.fps))
        middle = int(opened.timeline.decoded_index([row["shown"]])[0])
        first = max(0, min(middle - half, opened.info.frames - 2 * half))
        out = Path(folder) / "clip.mp4"
        render_clip(opened.path, opened.info, out, panes, first, first + 2 * half - 1, numbers=True)
        sha256 = container.artifacts.put(out, clip_name(project_id, moment_id))
    if not store.note_clip(moment_id, sha256):  # the task was reviewed again meanwhile
        container.artifacts.remove(clip_name(project_id, moment_id), sha256)
    return sha256


@job
def render_frames(container: Container, project_id: int, task_id: int, key: str, first: int) -> None:
    """Store frames of a task's video as small JPEG files, unless they are stored already.

    Args:
        key: of the video, as :func:`~ml_backend.review.repair_json.frames_key` returns it.
        first: 1-based, on Label Studio's timeline; those after it are stored with it.

    Raises:
        NotFound: the task is gone.
        Conflict: it has no such video any more.
        MediaError, VideoError: the video is gone or damaged.
    """
    from ml_backend.label_studio.timeline import video_timeline
    from ml_backend.rendering.frames import frames_archive

    name = frames_name(project_id, task_id, key, first)
    if container.artifacts.exists(name):
        return
    config = cached_label_config(container.client.get_project(project_id).label_config)
    task = container.client.get_full_task(task_id, project_id)
    videos = _reader(container, project_id, task, config).task_videos()
    video = next((item for item in videos if frames_key(item.uri, item.frame_rate) == key), None)
    if video is None:
        raise Conflict(f"Task {task_id} has another video now.", "Reload the page.")
    with video.local_file() as path:
        timeline = video_timeline(path, video.frame_rate_of(path))
        last = min(first + FRAMES_AT_ONCE - 1, timeline.frames_count)
        if first <= last:  # else the video has ended before
            container.artifacts.write(name, frames_archive(path, timeline, first, last))


def _ids(regions: Sequence[Region]) -> list[str]:
    return list(dict.fromkeys(str(region.get("id")) for region in regions))


def _pane(
    title: str, video: AnnotatedVideo, numbers: Mapping[str, int], regions: Sequence[Region], marked: Sequence[str]
) -> ClipPane:
    """Return a pane of a clip with some regions.

    Args:
        numbers: by which they are shown, by id.
        marked: ids of those that the clip is about.
    """
    import numpy as np

    from ml_backend.core.types import Track
    from ml_backend.datasets.selection import chosen_label
    from ml_backend.label_studio.regions import RegionKeys
    from ml_backend.rendering.clips import ClipPane

    labels = {label.value for label in video.task_video.control.labels}
    tracks = []
    for region in regions:
        frames, xyxy = video.frame_map.boxes(RegionKeys.read(region))
        conf = np.ones(len(frames), np.float32)
        number = numbers[str(region.get("id"))]
        tracks.append(Track(number, frames, xyxy.astype(np.float32), conf, {}, chosen_label(region, labels), 1.0))
    ids = {numbers[name] for name in marked}
    return ClipPane(title, tracks, [track for track in tracks if track.track_id in ids])
