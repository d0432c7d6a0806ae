"""The jobs. Arguments are plain JSON; every one may be run twice without harm."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rq import get_current_job

from ml_backend.jobs.container import Container, job
from ml_backend.jobs.delivery import deliver, deliver_one, deliver_partial
from ml_backend.jobs.learn import read_annotations_once
from ml_backend.jobs.progress import Preview, Progress
from ml_backend.jobs.project_models import ProjectModels
from ml_backend.jobs.queue import ALL_TASKS
from ml_backend.jobs.task_plan import TaskPlan, VideoPart, cached_label_config, plan_for, tracks_key
from ml_backend.label_studio.client import NotFound, Task
from ml_backend.label_studio.media import public_uri
from ml_backend.labeling.few_shot.pattern_store import video_key
from ml_backend.labeling.model_version import PARTIAL, is_partial

if TYPE_CHECKING:
    from ml_backend.labeling.label_assignment import LabelledTracks
    from ml_backend.labeling.track_classifier import TrackClassifier
    from ml_backend.tracking.track_record import TrackSet

log = logging.getLogger(__name__)


@job
def prepare_many(container: Container, project_id: int, task_ids: Sequence[int] | None = None) -> None:
    """Request the preparation of the tasks that are to be prepared, which may be all of the project.

    Args:
        task_ids: of jobs that 0.1.0 has left in the queue; an empty list is all tasks.
    """
    if task_ids is not None:
        container.storage.note_pending("prepare", project_id, task_ids or (ALL_TASKS,))
    while waiting := container.storage.pending("prepare", project_id):
        try:
            for task_id in container.client.list_task_ids(project_id) if ALL_TASKS in waiting else waiting:
                container.queue.request_prepare(project_id, task_id)
        except NotFound:
            log.info("Project %s is gone; nothing to prepare.", project_id)
        container.storage.settle("prepare", project_id, waiting)


@job
def prepare_task(container: Container, project_id: int, task_id: int) -> None:
    """Write what is known of a task's videos into the task, then request its prediction.

    A task that is gone meanwhile needs nothing. One with annotations is never written to: its timeline is in use.
    """
    try:
        task = container.client.get_task(task_id)
    except NotFound:
        log.info("Task %s is gone; nothing to prepare.", task_id)
        return
    label_config = container.client.get_project(task.project_id).label_config
    if not task.annotations:
        task = _with_video_facts(container, task, label_config)
    _request_prediction(container, plan_for(container, task, label_config))


def _request_prediction(container: Container, plan: TaskPlan) -> None:
    # What nobody waits for does not become urgent by being outdated.
    current = get_current_job()
    queue = "refresh" if current and current.origin == "refresh" else "predict"
    requested = container.queue.request_prediction(plan.key, plan.project_id, plan.task_id, queue=queue)
    if not requested.created:
        # The job that exists may have served its last target a moment ago and be about to end.
        prediction = container.storage.get_prediction(plan.key)
        if prediction is not None:
            deliver(container, plan.key, prediction, [plan.task_id])


def _with_video_facts(container: Container, task: Task, label_config: str) -> Task:
    from ml_backend.label_studio.timeline import VIDEO_FIELDS, video_facts

    parts = plan_for(container, task, label_config).parts
    fields = {*VIDEO_FIELDS, *filter(None, (part.control.rate_field for part in parts))}
    if all(task.data.get(name) not in (None, "") for name in fields):
        return task  # imported with them: no need to fetch the video now
    facts: dict[str, Any] = {}
    rates: dict[str, Any] = {}
    for number, part in enumerate(parts):
        with container.media.open(part.uri, task.id) as path:
            video = video_facts(path)
        if number == 0:
            facts.update(video)  # the common names describe the first video
        if field := part.control.rate_field:
            rates.setdefault(field, video["fps"])  # of several videos with one field the first has it
    # What somebody put there on purpose stays.
    added = {name: value for name, value in (facts | rates).items() if task.data.get(name) in (None, "")}
    fresh = container.client.get_task(task.id)  # downloads take time: somebody may have begun to annotate
    if fresh.annotations:
        return fresh
    data = fresh.data | {name: value for name, value in added.items() if fresh.data.get(name) in (None, "")}
    container.client.update_task_data(task.id, data)
    return Task(task.id, task.project_id, data, 0, fresh.prediction_versions)


@job
def predict(container: Container, key: str, project_id: int, task_id: int) -> None:
    """Make the prediction that ``key`` stands for and give it to every task that waits for it."""
    prediction = container.storage.get_prediction(key)
    if prediction is not None:
        deliver(container, key, prediction, [task_id])
        return
    task = _living_task(container, key, task_id)
    if task is not None:
        _predict_for(container, key, task)


def _living_task(container: Container, key: str, task_id: int) -> Task | None:
    """The task, or another one that waits for the same video where it was deleted meanwhile."""
    candidates = [task_id]
    while candidates:
        try:
            return container.client.get_task(candidates[0])
        except NotFound:
            log.info("Task %s is gone; it needs no prediction.", candidates[0])
            container.queue.remove_target(key, candidates[0])
            candidates = sorted(container.queue.targets(key))
    return None


def _predict_for(container: Container, key: str, task: Task) -> None:
    label_config = container.client.get_project(task.project_id).label_config
    container.projects.remember_labels(task.project_id, cached_label_config(label_config))
    models = container.projects.models(task.project_id, download=True)
    read_annotations_once(container, task.project_id, models.hybrid)
    plan = plan_for(container, task, label_config, models)
    if plan.needs_probe:
        container.queue.request_prepare(task.project_id, task.id)
        return
    if plan.key != key:
        # The task, the label config or the weights changed since the request: work for the present state.
        _ask_anew(container, plan, key)
        return
    prediction = _run(container, plan, models, show=partial(deliver_partial, container, key))
    now = container.projects.models(task.project_id, pinned=models)
    present = plan_for(container, task, label_config, now)
    if present.key != key:
        if now.base != models.base and all(map(is_partial, task.prediction_versions)):
            # The project has another detector since. What took hours is shown until that one is through.
            deliver_one(container, task.id, prediction)
        # Something was learned meanwhile, and may be in it: it must not pass for what its version says.
        _ask_anew(container, present, key)
        return
    container.storage.save_prediction(key, plan.project_id, prediction)
    deliver(container, key, prediction, [task.id])


def _ask_anew(container: Container, plan: TaskPlan, key: str) -> None:
    """Request ``plan`` in place of ``key``, for every task that waits for that."""
    log.info("The request for task %s is outdated; it is asked anew.", plan.task_id)
    _request_prediction(container, plan)
    for other in sorted(container.queue.targets(key)):
        if other != plan.task_id:
            container.queue.request_prepare(plan.project_id, other)
        container.queue.remove_target(key, other)


def detect_video(container: Container, task_id: int, models: ProjectModels, path: Path) -> dict[str, Any]:
    """What some models find in a task's first video, as a prediction that is given to nobody.

    Tracks that are known are not made again. Those of a version that is not in use are not kept: the newest tracks of a
    video stand for what its project finds.

    Args:
        path: the video's file.

    Raises:
        VideoError, ConfigError, MediaError, WeightsError, LabelStudioError: each with its hint.
    """
    from ml_backend.label_studio.timeline import video_timeline

    task = container.client.get_task(task_id)
    label_config = container.client.get_project(task.project_id).label_config
    plan = plan_for(container, task, label_config, models)
    part = plan.parts[0]
    if part.frame_rate is None:  # the one that the task is going to be given
        part = replace(part, frame_rate=video_timeline(path).frame_rate)
    keep = models.trained == container.projects.trained(task.project_id)
    return _run(container, replace(plan, parts=(part,)), models, keep=keep)


def _run(
    container: Container,
    plan: TaskPlan,
    models: ProjectModels,
    *,
    keep: bool = True,
    show: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """The prediction. ``show`` is given predictions of what was found so far, now and then."""
    from ml_backend.label_studio.regions import make_prediction

    hybrid = container.projects.hybrids.get(plan.project_id, models.hybrid)
    regions: list[dict[str, Any]] = []

    def show_part(part: VideoPart, tracks: TrackSet) -> None:
        if show:
            found = [*regions, *_labelled(container, plan, models, hybrid, part, tracks).regions]
            show(make_prediction(found, plan.version + PARTIAL))

    for number, part in enumerate(plan.parts):
        preview = Preview(container.settings.partial_s, partial(show_part, part)) if show else None
        tracks = _tracks(container, plan, models, part, number, keep=keep, preview=preview)
        started = time.perf_counter()
        labelled = _labelled(container, plan, models, hybrid, part, tracks)
        container.count("labelling_seconds", time.perf_counter() - started)
        container.count("tracks", len(labelled.regions))
        regions.extend(labelled.regions)
    return make_prediction(regions, plan.version)


def _labelled(
    container: Container,
    plan: TaskPlan,
    models: ProjectModels,
    hybrid: TrackClassifier | None,
    part: VideoPart,
    tracks: TrackSet,
) -> LabelledTracks:
    from ml_backend.labeling.label_assignment import label_tracks

    return label_tracks(
        tracks,
        part.control,
        hybrid,
        container.projects.patterns.crop_embeddings(video_key(part.uri)),
        lambda: container.media.open(part.uri, plan.task_id),
        container.stopper(),
        trained=models.trained is not None,
        trained_classes=_trained_classes(models, hybrid),
    )


def _trained_classes(models: ProjectModels, hybrid: TrackClassifier | None) -> frozenset[str] | None:
    """The classes that a trained detector knows anything of; ``None``: all, or nobody is going to ask."""
    from ml_backend.training.class_transfer import trained_classes

    if models.trained is None or models.detector.path is None or hybrid is None or hybrid.models.clip is None:
        return None
    return trained_classes(models.detector.path, models.trained.weights_sha256)


def _tracks(
    container: Container,
    plan: TaskPlan,
    models: ProjectModels,
    part: VideoPart,
    number: int,
    *,
    keep: bool,
    preview: Preview | None,
) -> TrackSet:
    """The video's tracks: those that are known, whatever gave them labels then, else new ones."""
    from ml_backend.inference.pipeline import detect_tracks
    from ml_backend.jobs.chunks import AlreadyTracked, ChunkedDetection

    if part.frame_rate is None:
        raise ValueError("a part without frame rate must be probed before it is predicted")
    store = container.projects.patterns
    key = tracks_key(plan.project_id, part.uri, part.frame_rate, models.base)
    known = store.get_tracks(key)
    if known is not None:
        return known
    log.info("Task %s: pre-annotating %s", plan.task_id, public_uri(part.uri))
    report = Progress(number, len(plan.parts))
    sharing = (
        ChunkedDetection(container, plan, models, number, lambda: store.get_tracks(key) is not None) if keep else None
    )
    try:
        with container.media.open(part.uri, plan.task_id) as path:
            tracks = detect_tracks(
                path,
                part.frame_rate,
                container.settings,
                models.detector,  # the one that the version names, whatever has appeared since
                progress=report,
                should_stop=container.stopper(),
                chunk_runner=sharing,
                preview=preview,
            )
    except AlreadyTracked:
        log.info("Task %s: another job was through with %s.", plan.task_id, public_uri(part.uri))
        if sharing:
            sharing.done()
        return _tracks(container, plan, models, part, number, keep=keep, preview=preview)
    if sharing:
        store.save_tracks(key, plan.project_id, plan.task_id, number, part.uri, tracks)
        sharing.done()
    for name, amount in (("videos", 1), ("frames", tracks.frames), ("inference_seconds", tracks.seconds)):
        container.count(name, amount)
    return tracks
