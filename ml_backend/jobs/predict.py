"""Jobs that prepare and predict tasks. Arguments are plain JSON; running one twice does no harm."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rq import get_current_job

from ml_backend.core.errors import Postponed
from ml_backend.core.timestamps import ensure_utc
from ml_backend.jobs.container import Container, job
from ml_backend.jobs.delivery import deliver, deliver_one, deliver_partial
from ml_backend.jobs.detections import detections_kept
from ml_backend.jobs.learn import read_annotations_once
from ml_backend.jobs.progress import PreviewThrottle, VideoProgress
from ml_backend.jobs.project_models import ProjectModels
from ml_backend.jobs.queue import ALL_TASKS, JobQueue, state_of
from ml_backend.jobs.task_plan import PlannedVideo, TaskPlan, cached_label_config, plan_for, tracks_key
from ml_backend.label_studio.client import NotFound, Task
from ml_backend.label_studio.media import public_uri
from ml_backend.labeling.few_shot.pattern_store import PatternStore, video_key
from ml_backend.labeling.model_version import PARTIAL, is_partial

if TYPE_CHECKING:
    from ml_backend.inference.open_vocabulary import TextSearch
    from ml_backend.labeling.label_assignment import LabelledTracks
    from ml_backend.labeling.track_classifier import TrackClassifier
    from ml_backend.tracking.track_record import TrackSet

log = logging.getLogger(__name__)

#: Shortest pause before a task that has failed is prepared again with its whole project.
WHOLE_PROJECT_PAUSE = timedelta(minutes=10)


#: Tasks whose preparation is requested at once: these jobs go before all others but drawn boxes.
PREPARE_BATCH = 100


class MoreToPrepare(Postponed):
    """The other tasks of a project follow once other jobs have had their turn."""

    delay_s = 3


@job
def prepare_many(container: Container, project_id: int, task_ids: Sequence[int] | None = None) -> None:
    """Request the preparation of a project's pending tasks, so many at once that other work is not held up.

    If the whole project is pending, these are the tasks that have neither annotations nor predictions.

    Args:
        task_ids: only of jobs that 0.1.0 has left in the queue; an empty list means the whole project.
    """
    if task_ids is not None:
        container.storage.note_pending("prepare", project_id, task_ids or (ALL_TASKS,))
    storage, client, done = container.storage, container.client, 0
    while waiting := storage.pending("prepare", project_id, PREPARE_BATCH):
        if done + len(waiting) > PREPARE_BATCH:
            raise MoreToPrepare(f"{done} tasks of project {project_id} are being prepared.", "Wait: the others follow.")
        try:
            if ALL_TASKS in waiting:
                states = client.list_task_states(project_id)
                tasks = [state.id for state in states if not state.annotations and not state.predictions]
                storage.note_pending("prepare", project_id, _not_failed_lately(container.queue, tasks))
                waiting = {ALL_TASKS: waiting[ALL_TASKS]}
            else:
                done += len(waiting)
                missing = set(client.missing_tasks(project_id, waiting))  # events may name anything
                for task_id in sorted(waiting.keys() - missing):
                    container.queue.request_prepare(project_id, task_id)
        except NotFound:
            log.info("Project %s was deleted; nothing to prepare.", project_id)
        storage.settle("prepare", project_id, waiting)


def _not_failed_lately(queue: JobQueue, task_ids: Sequence[int]) -> list[int]:
    """Return the tasks without those that failed: they are not tried again each time that the whole project is."""
    since = datetime.now(timezone.utc) - WHOLE_PROJECT_PAUSE
    failed: set[str] = set()
    for start in range(0, len(task_ids), PREPARE_BATCH):
        with queue.guard():
            jobs = queue.fetch_many([f"prepare-{task_id}" for task_id in task_ids[start : start + PREPARE_BATCH]])
        failed |= {job.id for job in jobs if state_of(job) == "failed" and ensure_utc(job.ended_at or since) > since}
    return [task_id for task_id in task_ids if f"prepare-{task_id}" not in failed]


@job
def prepare_task(container: Container, project_id: int, task_id: int) -> None:
    """Write facts about a task's videos into the task, then request its prediction.

    A deleted task is ignored. A task with annotations is never written to, since its timeline is in use.
    """
    try:
        task = container.client.get_task(task_id)
    except NotFound:
        log.info("Task %s was deleted; nothing to prepare.", task_id)
        return
    label_config = container.client.get_project(task.project_id).label_config
    if not task.annotations:
        task = _with_video_facts(container, task, label_config)
    _request_prediction(container, plan_for(container, task, label_config))


def _request_prediction(container: Container, plan: TaskPlan) -> None:
    # An outdated refresh stays a refresh: nobody waits for it.
    current = get_current_job()
    queue = "refresh" if current and current.origin == "refresh" else "predict"
    request = container.queue.request_prediction(plan.key, plan.project_id, plan.task_id, queue=queue)
    if not request.created:
        # The existing job may have served its last target already and be about to end.
        prediction = container.storage.get_prediction(plan.key)
        if prediction is not None:
            deliver(container, plan.key, plan.project_id, prediction, [plan.task_id])


def _with_video_facts(container: Container, task: Task, label_config: str) -> Task:
    from ml_backend.label_studio.timeline import VIDEO_FIELDS, video_facts

    videos = plan_for(container, task, label_config).videos
    fields = {*VIDEO_FIELDS, *filter(None, (video.control.rate_field for video in videos))}
    if all(task.data.get(name) not in (None, "") for name in fields):
        return task  # imported with them: no need to fetch the video
    facts: dict[str, Any] = {}
    rates: dict[str, Any] = {}
    for index, video in enumerate(videos):
        with container.media.open(video.uri, task.id, task.project_id) as path:
            probed = video_facts(path)
        if index == 0:
            facts.update(probed)  # the common fields describe the first video
        if field := video.control.rate_field:
            rates.setdefault(field, probed["fps"])  # videos that share a field: the first one counts
    # Fields that are set stay as they are.
    added = {name: value for name, value in (facts | rates).items() if task.data.get(name) in (None, "")}
    fresh = container.client.get_task(task.id)  # somebody may have begun to annotate during the download
    if fresh.annotations:
        return fresh
    data = fresh.data | {name: value for name, value in added.items() if fresh.data.get(name) in (None, "")}
    container.client.update_task_data(task.id, data)
    return Task(task.id, task.project_id, data, 0, fresh.prediction_versions)


@job
def predict(container: Container, key: str, project_id: int, task_id: int) -> None:
    """Make the prediction of ``key`` and deliver it to every task that waits for it."""
    prediction = container.storage.get_prediction(key)
    if prediction is not None:
        deliver(container, key, project_id, prediction, [task_id])
        return
    task = _existing_task(container, key, task_id)
    if task is not None:
        _predict_for(container, key, task)


def _existing_task(container: Container, key: str, task_id: int) -> Task | None:
    """Return the task, or, if it was deleted, another one that waits for the same prediction."""
    candidates = [task_id]
    while candidates:
        try:
            return container.client.get_task(candidates[0])
        except NotFound:
            log.info("Task %s was deleted; it needs no prediction.", candidates[0])
            container.queue.remove_target(key, candidates[0])
            candidates = sorted(container.queue.targets(key))
    return None


def _predict_for(container: Container, key: str, task: Task) -> None:
    label_config = container.client.get_project(task.project_id).label_config
    container.projects.remember_labels(task.project_id, cached_label_config(label_config))
    models = container.projects.models(task.project_id, download=True)
    read_annotations_once(container, task.project_id, models.classifier)
    plan = plan_for(container, task, label_config, models)
    if plan.needs_probe:
        container.queue.request_prepare(task.project_id, task.id)
        return
    if plan.key != key:
        # The task, the label config or the weights have changed since the request.
        _request_again(container, plan, key)
        return
    prediction = _run(container, plan, models, show=partial(deliver_partial, container, key, plan.project_id))
    current_models = container.projects.models(task.project_id, pinned=models)
    current_plan = plan_for(container, task, label_config, current_models)
    if current_plan.key != key:
        if current_models.base != models.base and all(map(is_partial, task.prediction_versions)):
            # The project has switched to another detector. Show what took hours until that one has finished.
            deliver_one(container, plan.project_id, task.id, prediction)
        # Labels learned meanwhile may have influenced it, so it must not be stored under the old version.
        _request_again(container, current_plan, key)
        return
    container.storage.save_prediction(key, plan.project_id, prediction)
    deliver(container, key, plan.project_id, prediction, [task.id])


def _request_again(container: Container, plan: TaskPlan, key: str) -> None:
    """Request ``plan`` in place of the outdated ``key``, for every task that waits for that."""
    log.info("The prediction request for task %s is outdated; requesting a new one.", plan.task_id)
    _request_prediction(container, plan)
    for other in sorted(container.queue.targets(key)):
        if other != plan.task_id:
            container.queue.request_prepare(plan.project_id, other)
        container.queue.remove_target(key, other)


def detect_video(container: Container, task_id: int, models: ProjectModels, path: Path) -> dict[str, Any]:
    """Return the prediction of some models for a task's first video, without delivering it.

    Stored tracks are reused. New ones are stored only for the version in use, since the newest tracks of a video count
    as those of its project.

    Args:
        path: file of the video.

    Raises:
        VideoError, ConfigError, MediaError, WeightsError, LabelStudioError: the video cannot be predicted.
    """
    from ml_backend.label_studio.timeline import video_timeline

    task = container.client.get_task(task_id)
    label_config = container.client.get_project(task.project_id).label_config
    plan = plan_for(container, task, label_config, models)
    video = plan.videos[0]
    if video.frame_rate is None:  # the one that preparation will store in the task
        video = replace(video, frame_rate=video_timeline(path).frame_rate)
    keep = models.trained == container.projects.trained(task.project_id)
    return _run(container, replace(plan, videos=(video,)), models, keep=keep)


def _run(
    container: Container,
    plan: TaskPlan,
    models: ProjectModels,
    *,
    keep: bool = True,
    show: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Return the prediction; ``show`` is called with partial ones from time to time."""
    from ml_backend.label_studio.regions import make_prediction

    classifier = container.projects.classifiers.get(plan.project_id, models.classifier)
    regions: list[dict[str, Any]] = []

    def show_partial(video: PlannedVideo, tracks: TrackSet) -> None:
        if show:
            so_far = [*regions, *_label_tracks(container, plan, models, classifier, video, tracks).regions]
            show(make_prediction(so_far, plan.version + PARTIAL))

    for index, video in enumerate(plan.videos):
        preview = PreviewThrottle(container.settings.partial_s, partial(show_partial, video)) if show else None
        tracks = _tracks(container, plan, models, video, index, keep=keep, preview=preview)
        started = time.perf_counter()
        labelled = _label_tracks(container, plan, models, classifier, video, tracks)
        container.count("labelling_seconds", time.perf_counter() - started)
        container.count("tracks", len(labelled.regions))
        regions.extend(labelled.regions)
    return make_prediction(regions, plan.version)


def _label_tracks(
    container: Container,
    plan: TaskPlan,
    models: ProjectModels,
    classifier: TrackClassifier | None,
    video: PlannedVideo,
    tracks: TrackSet,
) -> LabelledTracks:
    from ml_backend.labeling.label_assignment import label_tracks

    return label_tracks(
        tracks,
        video.control,
        classifier,
        container.projects.patterns.crop_embeddings(video_key(video.uri)),
        lambda: container.media.open(video.uri, plan.task_id, plan.project_id),
        container.stopper(),
        trained=models.trained is not None,
        trained_classes=_detectable_classes(models) if classifier and classifier.models.clip else None,
    )


def _detectable_classes(models: ProjectModels) -> frozenset[str] | None:
    """Return the classes that a trained detector can detect; ``None`` for all."""
    from ml_backend.training.class_transfer import detectable_classes

    if models.trained is None or models.detector.path is None:
        return None
    return detectable_classes(models.detector.path, models.trained.weights_sha256)


def _text_search(models: ProjectModels, video: PlannedVideo) -> TextSearch | None:
    """Return what is searched for by text in a video; labels that the detector knows are left out later."""
    from ml_backend.inference.open_vocabulary import TextSearch

    model = models.classifier.text_detector
    if model is None:
        return None
    source = f"{models.source} {video.frame_rate}"
    return TextSearch(model, video.control.labels, models.trained is not None, _detectable_classes(models), source)


def _tracks_of_same_search(
    store: PatternStore, project_id: int, video: PlannedVideo, search: TextSearch | None
) -> TrackSet | None:
    """Return stored tracks of a video if what has changed of the label config since does not matter to them."""
    if search is None:
        return None
    newest = (stored.tracks for stored in store.tracks_of_project(project_id, video_key(video.uri)))
    return next(filter(search.would_find, newest), None)


def _tracks(
    container: Container,
    plan: TaskPlan,
    models: ProjectModels,
    video: PlannedVideo,
    index: int,
    *,
    keep: bool,
    preview: PreviewThrottle | None,
) -> TrackSet:
    """Return the video's stored tracks, or detect and track it."""
    from ml_backend.inference.pipeline import detect_tracks
    from ml_backend.jobs.chunks import AlreadyTracked, ChunkedDetection

    if video.frame_rate is None:
        raise ValueError("a video without frame rate must be probed before it is predicted")
    store = container.projects.patterns
    key = tracks_key(plan.project_id, video.uri, video.frame_rate, models.base)
    if (stored := store.get_tracks(key)) is not None:
        return stored
    text_search = _text_search(models, video)
    if (stored := _tracks_of_same_search(store, plan.project_id, video, text_search)) is not None:
        return stored
    log.info("Task %s: pre-annotating %s", plan.task_id, public_uri(video.uri))
    progress = VideoProgress(index, len(plan.videos))
    chunked = (
        ChunkedDetection(container, plan, models, index, lambda: store.get_tracks(key) is not None) if keep else None
    )
    try:
        kept = detections_kept(container.artifacts, plan.project_id, video_key(video.uri)) if keep else nullcontext()
        with (
            kept as detections,
            container.media.open(video.uri, plan.task_id, plan.project_id) as path,
        ):
            tracks = detect_tracks(
                path,
                video.frame_rate,
                container.settings,
                models.detector,  # as the version names it, even if another is available now
                progress=progress,
                should_stop=container.stopper(),
                on_features=detections.push if detections else None,
                chunk_runner=chunked,
                preview=preview,
                text_search=text_search,
            )
            if detections:
                detections.close(tracks.class_names)
    except AlreadyTracked:
        log.info("Task %s: another job has finished %s.", plan.task_id, public_uri(video.uri))
        if chunked:
            chunked.close()
        return _tracks(container, plan, models, video, index, keep=keep, preview=preview)
    if chunked:
        store.save_tracks(key, plan.project_id, plan.task_id, index, video.uri, tracks)
        chunked.close()
    for name, amount in (("videos", 1), ("frames", tracks.frames), ("inference_seconds", tracks.seconds)):
        container.count(name, amount)
    return tracks
