"""Jobs that find the same objects in several tasks of a project, by the looks of their tracks, and that list them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from ml_backend.core.errors import BackendError
from ml_backend.datasets.annotation_reader import AnnotationReader
from ml_backend.jobs.api_queue import data_url, objects_name
from ml_backend.jobs.job_context import JobContext, api_job
from ml_backend.jobs.services.reviews import Reviews, TaskIds
from ml_backend.jobs.task_plan import cached_label_config
from ml_backend.label_studio.client import NotFound
from ml_backend.label_studio.media import canonical_uri
from ml_backend.labeling.few_shot.pattern_store import video_key
from ml_backend.labeling.modes import require_embedder
from ml_backend.review.global_ids import SeenTrack, match_tracks
from ml_backend.review.moment_store import MomentStore
from ml_backend.review.reading import ReviewModels, open_for_review
from ml_backend.review.region_repairs import region_digest
from ml_backend.review.video import Evidence

if TYPE_CHECKING:
    from ml_backend.datasets.annotated_video import TaskVideo
    from ml_backend.embeddings.crop_embeddings import CropEmbeddingStore

T = TypeVar("T")
log = logging.getLogger(__name__)

#: Tasks that are compared, the newest ones: the views of some thousand tracks take 100 to 300 MB.
MAX_TASKS = 100
#: Tasks that are read for the list of objects, those that were given global ids first, and tracks that are listed: a
#: thumbnail takes 3 kB.
LISTED_TASKS, LISTED_TRACKS = 200, 500


@dataclass(frozen=True, slots=True)
class _Place:
    task: int
    annotation: int
    region: str
    digest: str


@api_job
def match_objects(context: JobContext, project_id: int, by: str) -> dict[str, Any]:
    """Give tracks of a project that show the same object a global id, unless they have one.

    Views that are stored are used; tracks without any are embedded, and their views kept.

    Args:
        by: who asked for it.

    Returns:
        Numbers of ``objects`` and of their ``tracks`` that got an id, of ``tasks`` compared, ``of`` all, and of tracks
        without views, ``unseen``; ``skipped`` says which tasks were left out, and why.
    """
    container = context.container
    embedder = require_embedder(container.projects.models(project_id, download=True).classifier)
    models = ReviewModels(context.settings, embedder)
    found, facts = _read_tasks(context, project_id, lambda video, store: _tracks(video, store, models), MAX_TASKS)
    places = [place for place, track in found if track]
    seen = [track for _, track in found if track]
    context.step("searching")
    reviews, known = Reviews(container), max((item.global_id or 0 for item in seen), default=0)
    matched = match_tracks(seen, first_id=known + 1)
    new = {number for number in matched.values() if number > known}
    shift = reviews.new_global_ids(project_id, len(new), known) - known - 1
    ids = {index: number + shift * (number in new) for index, number in matched.items()}
    context.step("writing")
    by_task: dict[int, list[tuple[_Place, int]]] = {}
    for index, number in ids.items():
        by_task.setdefault(places[index].task, []).append((places[index], number))
    tasks = {
        task: TaskIds(
            task,
            given[0][0].annotation,
            {place.region: place.digest for place, _ in given},
            {place.region: number for place, number in given},
        )
        for task, given in by_task.items()
    }
    written, left_out = reviews.identify(project_id, [*tasks.values()], by)
    objects = {number for task in written for number in tasks[task].ids.values()}
    tracks = sum(map(len, written.values()))
    log.info("Project %s: %d tracks show %d objects.", project_id, tracks, len(objects))
    facts["skipped"] += [f"Task {task}: {reason}" for task, reason in left_out]
    return facts | {"objects": len(objects), "tracks": tracks, "unseen": len(found) - len(seen)}


@api_job
def list_objects(context: JobContext, project_id: int) -> dict[str, Any]:
    """List the tracks of a project whose global id another one has, too, and publish them.

    Nothing is embedded for it: thumbnails are those of crops that are stored.
    """
    container = context.container
    decided = MomentStore(container.storage)
    last, digest = decided.identity_state(project_id)  # first: what is decided meanwhile is not left out
    given: dict[tuple[int, int, str | None], dict[str, Any]] = {}
    for row in decided.identified(project_id):
        for region in (row["region"], None):  # a newer prediction has other regions
            given[row["task_id"], row["global_id"], region] = {"by": row["by"], "found": bool(row["found"])}
    tasks = {task_id for task_id, _, _ in given}
    embedder = container.projects.models(project_id).classifier.embedder
    model_id = embedder.model_id if embedder else ""
    found, facts = _read_tasks(
        context, project_id, lambda video, store: _identified(video, store, model_id), LISTED_TASKS, tasks
    )
    tracks = Counter(item["global_id"] for item in found)
    # New numbers come after those that were imported, too.
    Reviews(container).new_global_ids(project_id, 0, max(tracks, default=0))
    several = [item for item in found if tracks[item["global_id"]] > 1]
    several.sort(key=lambda item: (-tracks[item["global_id"]], item["global_id"]))
    nobody = {"by": None, "found": False}
    for item in several:
        place = item["task"], item["global_id"]
        item |= given.get((*place, item["region"])) or given.get((*place, None)) or nobody
    facts |= {"digest": digest, "last": last, "tracks": several[:LISTED_TRACKS]}
    facts["more"] = max(len(several) - LISTED_TRACKS, 0)
    container.queue.publish(objects_name(project_id), facts)
    return {"tracks": len(several)}


def _read_tasks(
    context: JobContext,
    project_id: int,
    read: Callable[[TaskVideo, CropEmbeddingStore], Iterable[T]],
    limit: int,
    first: Collection[int] = (),
) -> tuple[list[T], dict[str, Any]]:
    """Read the videos of a project's newest tasks.

    Args:
        read: reads a video, of which crops are kept in the store.
        limit: number of tasks.
        first: ids of tasks that are read before the others.

    Returns:
        What was read; numbers of ``tasks`` read and ``of`` all; which were ``skipped``, and why.
    """
    container, client = context.container, context.container.client
    opener = container.media.opener(project_id)
    config = cached_label_config(client.get_project(project_id).label_config)
    states = [item for item in client.list_task_states(project_id) if item.annotations or item.predictions]
    chosen = sorted(states, key=lambda item: (item.id not in first, -item.id))[:limit]
    found: list[T] = []
    skipped: list[str] = []
    report = context.step("reading")
    for done, state in enumerate(chosen):
        report(done, len(chosen))
        try:
            task = client.get_full_task(state.id, project_id)
            for video in AnnotationReader.of_task(task, opener, config, "missing").task_videos():
                key = video_key(canonical_uri(video.uri, context.settings.label_studio_url))
                found += read(video, container.projects.patterns.crop_embeddings(key))
        except NotFound:
            continue  # deleted meanwhile
        except BackendError as error:
            if error.retryable:
                raise
            skipped.append(f"Task {state.id}: {error}")
    return found, {"tasks": len(chosen), "of": len(states), "skipped": skipped}


def _identified(video: TaskVideo, store: CropEmbeddingStore, model_id: str) -> Iterator[dict[str, Any]]:
    """Yield the tracks of a video that have a global id, as they are published."""
    regions = {str(region.get("id", "")): dict(region) for region in video.regions}
    numbers = {name: number for name, region in regions.items() if (number := video.submission.global_id(region))}
    if not numbers:
        return
    with open_for_review(video, None, stored=store.get(model_id) if model_id else ()) as found:
        crops = Evidence(found.video).crops
        for track in found.video.tracks:
            region_id, shown = found.region_ids[track.track_id], crops.get(track.track_id)
            if region_id not in numbers:
                continue
            first, last = int(track.frames[0]), int(track.frames[-1])
            yield {
                "task": video.task_id,
                "video": video.control.to_name,
                "file": video.name,
                "annotation": video.submission.annotation_id,
                "region": region_id,
                "digest": region_digest(regions[region_id]),
                "label": track.label,
                "first": first + 1,
                "last": last + 1,
                "start": round(first / found.video.fps, 3),
                "end": round((last + 1) / found.video.fps, 3),
                "global_id": numbers[region_id],
                "thumbnail": data_url(shown[len(shown) // 2].thumbnail) if shown else None,
            }


def _tracks(
    video: TaskVideo, store: CropEmbeddingStore, models: ReviewModels
) -> Iterator[tuple[_Place, SeenTrack | None]]:
    """Yield the tracks of a video; without views those that cannot be compared."""
    with open_for_review(video, models, stored=store.get(models.embedder.model_id), store=store) as found:
        views = Evidence(found.video).views
        regions = {str(region.get("id", "")): dict(region) for region in video.regions}
        for track in found.video.tracks:
            region_id = found.region_ids[track.track_id]
            region, seen = regions[region_id], views.get(track.track_id)
            place = _Place(video.task_id, video.submission.annotation_id or 0, region_id, region_digest(region))
            name, kind = f"{video.task_id}-{video.control.to_name}", track.label or track.top_class
            number = video.submission.global_id(region)
            yield place, SeenTrack(name, kind, track.frames, seen.looks, number) if seen else None
