"""Jobs that choose what to annotate next, and show it in Label Studio's Data Manager.

Nothing is detected or embedded for it: scores of predictions, suspicious moments and stored embeddings are used.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ml_backend.core.types import FloatArray
from ml_backend.datasets.annotation_reader import AnnotationReader
from ml_backend.embeddings.crop_embeddings import CropEmbedding, stored_embeddings
from ml_backend.embeddings.crop_selection import CROPS_PER_TRACK
from ml_backend.jobs.api_queue import data_url, next_name
from ml_backend.jobs.job_context import JobContext, api_job
from ml_backend.jobs.task_plan import cached_label_config
from ml_backend.label_studio.client import NotFound
from ml_backend.label_studio.label_config import DEFAULT_FRAME_RATE, LabelConfig
from ml_backend.label_studio.media import canonical_uri
from ml_backend.label_studio.regions import MALFORMED
from ml_backend.labeling.few_shot.pattern_store import video_key
from ml_backend.review.moment_store import MAX_PER_TASK, MomentStore
from ml_backend.review.segments import Segment, SegmentMoment, find_segments
from ml_backend.review.selection import MAX_CANDIDATES, choose_diverse
from ml_backend.review.track_rows import track_rows

if TYPE_CHECKING:
    from ml_backend.datasets.annotated_video import TaskVideo
    from ml_backend.jobs.container import Container

log = logging.getLogger(__name__)

#: Tasks that are looked at, those with the lowest score: each is a request to Label Studio.
MAX_TASKS = 500
#: Annotated crops that candidates are compared with.
MAX_KNOWN = 2000
#: Field of a task's data with its place in the order and its segments, and title of the Data Manager's tab.
FIELD, TAB = "annotate_next", "Annotate next"


@dataclass(frozen=True, slots=True)
class _Candidate:
    task: int
    video: str
    file: str
    segment: Segment
    thumbnail: str | None


@api_job
def choose_next(context: JobContext, project_id: int, segments: int, minutes: int) -> dict[str, Any]:
    """Choose segments of tasks without annotations that are worth a person's time; publish them.

    Args:
        segments: how many.
        minutes: of estimated work, in place of a number of segments; 0: the number counts.
    """
    return {"segments": len(_choose(context, project_id, segments, minutes)["segments"])}


@api_job
def order_tasks(context: JobContext, project_id: int, segments: int, minutes: int) -> dict[str, Any]:
    """Write what was chosen, or is chosen now, to a field of the tasks, and make a tab that is ordered by it.

    Of tasks that an earlier choice has named, and this one does not, the field is emptied.
    """
    client = context.container.client
    published = context.container.queue.published(next_name(project_id, segments, minutes))
    chosen = published[1] if published else _choose(context, project_id, segments, minutes)
    report = context.step("writing")
    states = list(client.list_task_states(project_id))
    open_tasks = {state.id for state in states if not state.annotations}  # others were annotated since the choice
    texts = field_texts([item for item in chosen["segments"] if item["task"] in open_tasks])
    for done, state in enumerate(states, start=1):
        now, wanted = str(state.data.get(FIELD) or ""), texts.get(state.id, "")
        if now != wanted:
            client.set_task_field(project_id, state.id, FIELD, wanted)
        report(done, len(states))
    named = {"filter": f"filter:tasks:data.{FIELD}", "operator": "contains", "type": "String", "value": ":"}
    with context.container.queue.project_lock("settings", project_id):
        tab = client.put_tab(project_id, TAB, [named], [f"tasks:data.{FIELD}"])
    return {"tasks": len(texts), "tab": tab}


def field_texts(segments: Sequence[Mapping[str, Any]]) -> dict[int, str]:
    """Return the texts of the tasks' field: their place in the order, which sorts as text, and their segments.

    Args:
        segments: as they are published, the most worthwhile first.
    """
    spans: dict[int, list[str]] = {}
    for item in segments:
        spans.setdefault(item["task"], []).append(f"{_clock(item['start'])}-{_clock(item['end'])}")
    digits = len(str(len(spans)))
    return {
        task: f"{place:0{digits}d}: {', '.join(found)}" for place, (task, found) in enumerate(spans.items(), start=1)
    }


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def _choose(context: JobContext, project_id: int, segments: int, minutes: int) -> dict[str, Any]:
    container = context.container
    embedder = container.projects.models(project_id).classifier.embedder
    model_id = embedder.model_id if embedder else ""
    report = context.step("reading")
    scores = container.storage.scores(project_id)
    states = [item for item in container.client.list_task_states(project_id) if item.predictions]
    unannotated = sorted(
        (item.id for item in states if not item.annotations), key=lambda task: (scores.get(task, 0.0), task)
    )
    config = cached_label_config(container.client.get_project(project_id).label_config)
    found: list[_Candidate] = []
    for done, task_id in enumerate(unannotated[:MAX_TASKS], start=1):
        try:
            found += _candidates(container, project_id, config, task_id, model_id)
        except MALFORMED as error:
            log.warning("The prediction of task %d cannot be read: %r", task_id, error)
        found = sorted(found, key=lambda item: -item.segment.need)[:MAX_CANDIDATES]
        report(done, min(len(unannotated), MAX_TASKS))
    known = _known(container, project_id, model_id)
    width = next((len(item.segment.vector) for item in found if item.segment.vector is not None), 1)
    vectors = [np.zeros(width) if item.segment.vector is None else item.segment.vector for item in found]
    picked = choose_diverse(
        [item.segment.need for item in found],
        np.array(vectors).reshape(-1, width),
        60.0 * minutes if minutes else segments,
        [item.segment.work_s for item in found] if minutes else None,
        known if known is not None and known.shape[1] == width else None,
    )
    rows = []
    for choice in picked:
        item = found[choice.index]
        segment = item.segment
        likeness = choice.likeness if known is not None and segment.vector is not None else None
        rows.append(
            {
                "task": item.task,
                "video": item.video,
                "file": item.file,
                "first": segment.first,
                "last": segment.last,
                "start": round(segment.start, 3),
                "end": round(segment.end, 3),
                "need": round(segment.need, 2),
                "work_s": round(segment.work_s),
                "tracks": segment.tracks,
                "uncertain": segment.uncertain,
                "label": segment.label,
                "score": segment.score,
                "kinds": dict(segment.kinds),
                "covers": choice.covers,
                "likeness": None if likeness is None else round(likeness, 2),
                "thumbnail": item.thumbnail,
            }
        )
    facts = {"segments": rows, "tasks": min(len(unannotated), MAX_TASKS), "of": len(unannotated)}
    container.queue.publish(next_name(project_id, segments, minutes), facts)
    return facts


def _candidates(
    container: Container, project_id: int, config: LabelConfig, task_id: int, model_id: str
) -> Iterator[_Candidate]:
    """Yield the segments of a task's prediction, unless somebody is annotating it or it was deleted."""
    try:
        task = container.client.get_full_task(task_id, project_id)
    except NotFound:
        return
    if any(draft.get("result") for draft in task["drafts"]):
        return
    moments, _ = MomentStore(container.storage).queue(project_id, {"task_id": task_id}, MAX_PER_TASK, 0)
    reader = AnnotationReader.of_task(task, container.media.opener(project_id), config, "missing")
    for video in reader.task_videos():
        rate = video.frame_rate or DEFAULT_FRAME_RATE
        count = video.stated_frames
        if not video.submission.is_prediction or not count:
            continue
        rows = track_rows(video.regions, [label.value for label in video.control.labels], count)
        own = [
            SegmentMoment(item["shown"], item["kind"], item["score"])
            for item in moments
            if item["video"] == video.control.to_name and not item["annotation_id"]
        ]
        key = video_key(canonical_uri(video.uri, container.settings.label_studio_url))
        crops = _crops(container, project_id, video, key, model_id) if model_id else {}
        vectors = {name: np.mean([crop.vector for crop in found], axis=0) for name, found in crops.items()}
        for segment in find_segments(rows, own, count, rate, vectors):
            shown = crops.get(segment.region)
            thumbnail = data_url(shown[len(shown) // 2].thumbnail) if shown else None
            yield _Candidate(task_id, video.control.to_name, video.name, segment, thumbnail)


def _crops(
    container: Container, project_id: int, video: TaskVideo, key: str, model_id: str
) -> dict[str, list[CropEmbedding]]:
    """Return stored embeddings by region, of those that are as the tracker made them."""
    patterns = container.projects.patterns
    stored = next(patterns.tracks_of_project(project_id, key), None)
    if stored is None:
        return {}
    records = stored.tracks.tracks
    embedded = stored_embeddings(
        [item.crops for item in records], patterns.crop_embeddings(key).get(model_id), CROPS_PER_TRACK
    )
    by_boxes = {_boxes(item.value): crops for item, crops in zip(records, embedded, strict=True) if crops}
    found = {str(region.get("id", "")): by_boxes.get(_boxes(region["value"])) for region in video.regions}
    return {name: crops for name, crops in found.items() if crops}


def _boxes(value: Mapping[str, Any]) -> str:
    return json.dumps(value.get("sequence"), sort_keys=True)


def _known(container: Container, project_id: int, model_id: str) -> FloatArray | None:
    """Return embeddings ``(m, d)`` of annotated objects; ``None`` without any."""
    if not model_id:
        return None
    vectors = container.projects.patterns.exemplars(project_id, model_id)[0].embeddings
    if not len(vectors):
        return None
    chosen = np.unique(np.linspace(0, len(vectors) - 1, min(len(vectors), MAX_KNOWN)).round().astype(int))
    return np.asarray(vectors[chosen], np.float32)
