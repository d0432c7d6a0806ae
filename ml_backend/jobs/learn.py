"""Jobs that learn labels from annotations and refresh predictions.

Annotations are read through the API; events only name the tasks. Running a job twice does no harm.
"""

from __future__ import annotations

import contextlib
import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from ml_backend.core.errors import BackendError, ConfigError, Interrupted, LabelStudioError, MediaRefused, WeightsError
from ml_backend.core.types import UNLABELLED
from ml_backend.embeddings.crop_selection import CROPS_PER_TRACK
from ml_backend.embeddings.hub import ResolvedModel
from ml_backend.embeddings.loading import use_embedder
from ml_backend.jobs.container import Container, job
from ml_backend.jobs.queue import ALL_TASKS
from ml_backend.jobs.services.reviews import without_repairs
from ml_backend.jobs.task_plan import PlannedVideo, cached_label_config, plan_task
from ml_backend.label_studio.client import Annotation, NotFound, Prediction, Task
from ml_backend.labeling.few_shot.digest import bank_digests
from ml_backend.labeling.few_shot.pattern_store import NewExemplar, video_key
from ml_backend.labeling.model_version import is_partial
from ml_backend.labeling.modes import ClassifierModels
from ml_backend.training.annotation_review import (
    initial_prediction,
    regions_fingerprint,
    review_annotation,
    was_replaced,
)
from ml_backend.training.review_store import ReviewStore, TaskReview

if TYPE_CHECKING:
    from ml_backend.core.types import IntArray, VideoInfo
    from ml_backend.embeddings.crop_embeddings import CropEmbedding, CropEmbeddingStore
    from ml_backend.embeddings.crop_selection import CropBox
    from ml_backend.label_studio.timeline import Timeline
    from ml_backend.labeling.few_shot.annotated_objects import AnnotatedObject
    from ml_backend.labeling.few_shot.identity_jumps import IdentityJump, Part
    from ml_backend.tracking.track_record import TrackRecord

log = logging.getLogger(__name__)

#: Crops with which the moment of an identity jump is found between two of a track's crops.
CROPS_BETWEEN = 8
#: Crops of a rejected track: they matter less than those of labelled objects.
BACKGROUND_CROPS = 1
#: Attempts to learn from an annotation that changes meanwhile.
MAX_ATTEMPTS = 5
#: Unavailable videos after which no more are tried: each costs several attempts with pauses.
MAX_UNAVAILABLE = 3
#: Label Studio updates an annotation, and right after that its task.
SAME_CHANGE = timedelta(seconds=5)

ExemplarsByModel = dict[str, list[NewExemplar]]


@job
def learn(container: Container, project_id: int) -> None:
    """Learn from the tasks of a project that were annotated, changed or deleted since the last time.

    Corrections of predictions are recorded in every mode; labels are learned if the mode has models. A task whose video
    is missing or damaged keeps its exemplars. Tasks whose server is unreachable or refuses access stay pending, and the
    job fails once it has learned from the others.
    """
    models = container.projects.models(project_id, download=True).classifier
    # Exemplars of other models go stale now; those models read all annotations again once they are in use.
    container.projects.patterns.forget_project(project_id, keep=models.ids)
    if _is_bank_incomplete(container, project_id, models):
        container.storage.note_pending("learn", project_id)
    first_error: BackendError | None = None
    failed: set[int] = set()  # these wait for the job's retry, even if they are requested again meanwhile
    while waiting := {
        task: seen for task, seen in container.storage.pending("learn", project_id).items() if task not in failed
    }:
        if ALL_TASKS in waiting:  # first, because it adds tasks
            waiting = {ALL_TASKS: waiting[ALL_TASKS]}
        for task, revision in waiting.items():
            try:
                if _learn(container, project_id, models, task):
                    # Before the task is settled: a retry of this job would find nothing changed.
                    container.queue.request_refresh(project_id)
            except Interrupted:  # asked to stop: the other tasks stay pending
                raise
            except BackendError as error:
                log.warning("Nothing was learned from task %s of project %s: %s", task or "list", project_id, error)
                # A wrong token, a forbidden host or missing weights are no fault of the task: it stays pending.
                if error.retryable or isinstance(error, LabelStudioError | MediaRefused | WeightsError):
                    first_error = first_error or error
                    failed.add(task)
                    continue
            container.storage.settle("learn", project_id, {task: revision})
            if task != ALL_TASKS:
                container.queue.request_review(project_id, [task])
    if first_error:
        raise first_error


@job
def catch_up(container: Container, project_id: int) -> None:
    """Request learning from tasks that were annotated, changed or deleted without an event reaching us.

    Label Studio does not repeat events that were sent while this server was down or could not store them.
    """
    try:
        tasks = {state.id: state for state in container.client.list_task_states(project_id)}
    except NotFound:
        tasks = {}
    reviewed = ReviewStore(container.storage).tasks(project_id)
    # A task also changes with a prediction, or an annotation that does not count: check each change only once.
    checked = container.training_queue.caught_up(project_id)
    updated = {task_id: state.updated_at.isoformat() for task_id, state in tasks.items() if state.updated_at}
    missed = reviewed.keys() - tasks.keys()
    for task_id, state in tasks.items():
        annotation = reviewed.get(task_id)
        changed_at = state.updated_at
        is_newer = bool(annotation and changed_at and changed_at > annotation.changed_at + SAME_CHANGE)
        differs = is_newer or (state.annotations > 0) != (annotation is not None)
        if differs and (task_id not in updated or checked.get(task_id) != updated[task_id]):
            missed.add(task_id)
    if missed:
        log.info("Project %s: checking %d annotations again.", project_id, len(missed))
        container.queue.request_learning(project_id, sorted(missed))
    annotated = {task_id for task_id in updated if task_id in reviewed or tasks[task_id].annotations > 0}
    container.training_queue.note_caught_up(project_id, {task_id: updated[task_id] for task_id in annotated})
    _check_unread_videos(container, project_id)


def _check_unread_videos(container: Container, project_id: int) -> None:
    """Note which videos that the last training could not read are back, since they are new to train on."""
    registry = container.registry
    last = registry.last(project_id)
    unread = list(last.lineage.get("unread") or ()) if last else []
    if last is None or not unread or last.is_running:
        return
    random.shuffle(unread)  # a server that never comes back must not hide the others
    back, gone, unavailable = set(), set(), 0
    for task_id in unread:
        try:
            task = container.client.get_task(int(task_id))
            for video in _annotated_videos(container, task):
                with container.media.open(video.uri, task.id, task.project_id):
                    back.add(task_id)
        except Interrupted:
            raise
        except BackendError as error:
            back.discard(task_id)
            if not error.retryable:
                gone.add(task_id)
                continue
            unavailable += 1
            if unavailable == MAX_UNAVAILABLE:
                break
    if back or gone:
        log.info(
            "Project %s: %d videos that the last training could not read are available again.", project_id, len(back)
        )
        registry.settle_unread(last, back, gone)


def read_annotations_once(container: Container, project_id: int, models: ClassifierModels) -> None:
    """Request learning from all annotations if the project's current models have not read them yet."""
    if _is_bank_incomplete(container, project_id, models):
        container.queue.request_learning(project_id, None)


def _is_bank_incomplete(container: Container, project_id: int, models: ClassifierModels) -> bool:
    return any(digest is None for digest in bank_digests(container.storage, project_id, models.ids).values())


def _learn(container: Container, project_id: int, models: ClassifierModels, task_id: int) -> bool:
    if task_id == ALL_TASKS:
        return _read_all(container, project_id, models)
    # First, since it needs no video: that may be missing.
    record_review(container, project_id, task_id)
    return _learn_task(container, project_id, models, task_id) if models.ids else False


def _read_all(container: Container, project_id: int, models: ClassifierModels) -> bool:
    """Add all tasks that are or were annotated to the pending ones. Return whether a bank is in use again.

    Removes no exemplars: the list may be older than what another worker has learned meanwhile.
    """
    try:
        tasks = {state.id for state in container.client.list_task_states(project_id) if state.annotations}
    except NotFound:
        log.info("Project %s was deleted; nothing is learned from it.", project_id)
        tasks = set()
    store = container.projects.patterns
    learned = store.tasks_with_exemplars(project_id) | set(ReviewStore(container.storage).tasks(project_id))
    container.storage.note_pending("learn", project_id, tasks | learned)
    changed = [store.mark_read(project_id, model_id) for model_id in models.ids]
    return any(changed)


def _learn_task(container: Container, project_id: int, models: ClassifierModels, task_id: int) -> bool:
    """Replace a task's exemplars by those of its annotation. Return whether that changed anything."""
    for _ in range(MAX_ATTEMPTS):
        task, annotation = read_annotation(container, project_id, task_id)
        exemplars, jumps = _exemplars(container, task, annotation, models) if task and annotation else ({}, [])
        with container.queue.task_lock("learn", task_id):
            # Embedding takes time: store the result only if the annotation is still the same, under the lock.
            if read_annotation(container, project_id, task_id)[1] != annotation:
                continue
            store = container.projects.patterns
            annotation_id = annotation.id if annotation else 0
            changed = [
                store.replace_task(project_id, model_id, task_id, annotation_id, exemplars.get(model_id, []))
                for model_id in models.ids
            ]
            store.replace_jumps(project_id, task_id, jumps)
        objects = {(item.region_id, item.label) for items in exemplars.values() for item in items if item.label}
        labels = sorted({label for _, label in objects})
        log.info("Learned %d objects of task %s (%s).", len(objects), task_id, ", ".join(labels) or "no label")
        container.count("learned")
        return any(changed)
    log.info("Task %s changes faster than it can be learned from; it stays pending.", task_id)
    container.storage.note_pending("learn", project_id, [task_id])
    return False


def _annotated_videos(container: Container, task: Task) -> Sequence[PlannedVideo]:
    label_config, url = container.client.get_project(task.project_id).label_config, container.settings.label_studio_url
    return plan_task(task.project_id, task.id, task.data, label_config, "", annotated=True, label_studio_url=url).videos


def _exemplars(
    container: Container, task: Task, annotation: Annotation, models: ClassifierModels
) -> tuple[ExemplarsByModel, list[IdentityJump]]:
    """Return exemplars of the annotated objects, and of rejected tracks as background, by model id.

    Of objects that seem to jump from one identity to another only the longer part is an exemplar; the jumps are
    returned as well.
    """
    from ml_backend.label_studio.timeline import video_timeline
    from ml_backend.labeling.few_shot.annotated_objects import TrackOverlaps, annotated_objects
    from ml_backend.video.probe import probe

    exemplars: ExemplarsByModel = {}
    jumps: list[IdentityJump] = []
    emptied = not any(region.get("type") == "videorectangle" for region in annotation.result)
    if emptied:  # every track was deleted, unless there were none or somebody has only been here
        prediction = _reviewed_prediction(container, annotation)
        emptied = bool(prediction and prediction.result)
    for index, video in enumerate(_annotated_videos(container, task)):
        if not emptied and not any(region.get("to_name") == video.control.to_name for region in annotation.result):
            continue
        key = video_key(video.uri)
        with container.media.open(video.uri, task.id, task.project_id) as path:
            info, timeline = probe(path), video_timeline(path, video.frame_rate)
            objects = annotated_objects(
                annotation.result, video.control, timeline, info.width, info.height, CROPS_PER_TRACK
            )
            stored = next(container.projects.patterns.tracks_of_project(task.project_id, key), None)
            background: list[TrackRecord] = []
            if stored and (objects or emptied):
                overlaps = TrackOverlaps(stored.tracks, objects)
                background, classes = overlaps.rejected(), overlaps.detector_classes()
                objects = [replace(item, detector_class=name) for item, name in zip(objects, classes, strict=True)]
            # Objects whose label was removed from the config are neither exemplars of a label nor background.
            objects = [item for item in objects if item.label]
            taught: dict[int, IntArray] | None = None
            for model in filter(None, (models.embedder, models.clip)):
                embed = _Embedding(container, path, key, model)
                objects_crops, background_crops = embed.objects(objects), embed.background(background)
                if taught is None:
                    taught, found = _taught_frames(
                        embed, task, objects, objects_crops, background_crops, timeline, info
                    )
                    jumps += found
                exemplars.setdefault(model.model_id, []).extend(
                    [
                        NewExemplar(
                            item.region_id,
                            item.label or "",
                            crop.key(key, model.model_id),
                            detector_class=item.detector_class,
                        )
                        for number, (item, crops) in enumerate(zip(objects, objects_crops, strict=True))
                        for crop in crops
                        if number not in taught or crop.frame in taught[number]
                    ]
                    + [
                        NewExemplar(
                            f"part-{index}-track-{track.track_id}",
                            UNLABELLED,
                            crop.key(key, model.model_id),
                            detector_class=stored.tracks.detector_class(track) if stored else "",
                        )
                        for track, crops in zip(background, background_crops, strict=True)
                        for crop in crops
                    ]
                )
    return exemplars, jumps


@dataclass(frozen=True, slots=True)
class _Embedding:
    """Embeds crops of one video with one model."""

    container: Container
    path: Path
    video: str
    model: ResolvedModel

    def objects(self, objects: Sequence[AnnotatedObject]) -> list[list[CropEmbedding]]:
        from ml_backend.labeling.few_shot.annotated_objects import reuse_embedded_crops

        stored = self._stored.get(self.model.model_id)
        crops = [reuse_embedded_crops(item, stored, CROPS_PER_TRACK) for item in objects]
        return self._embed(crops, CROPS_PER_TRACK, self._stored)

    def background(self, tracks: Sequence[TrackRecord]) -> list[list[CropEmbedding]]:
        return self._embed([track.crops for track in tracks], BACKGROUND_CROPS, self._stored)

    def between(self, item: AnnotatedObject, first: int, last: int) -> list[CropEmbedding]:
        """Embed crops of an object between two frames, to find a moment. They are not stored."""
        from ml_backend.embeddings.crop_embeddings import MemoryCropEmbeddings
        from ml_backend.embeddings.crop_selection import spread_crops

        inside = (item.frames > first) & (item.frames < last)
        crops = spread_crops(item.frames[inside], item.xyxy[inside], CROPS_BETWEEN)
        return self._embed([crops], CROPS_BETWEEN, MemoryCropEmbeddings())[0] if crops else []

    @property
    def _stored(self) -> CropEmbeddingStore:
        return self.container.projects.patterns.crop_embeddings(self.video)

    def _embed(
        self, crops: Sequence[Sequence[CropBox]], count: int, store: CropEmbeddingStore
    ) -> list[list[CropEmbedding]]:
        from ml_backend.embeddings.crop_embeddings import embed_tracks

        return embed_tracks(
            crops,
            lambda: use_embedder(self.model, self.container.settings),
            self.model.model_id,
            store,
            lambda: contextlib.nullcontext(self.path),
            count,
            self.container.stop.is_set,
        )


def _taught_frames(
    embed: _Embedding,
    task: Task,
    objects: Sequence[AnnotatedObject],
    objects_crops: Sequence[Sequence[CropEmbedding]],
    background_crops: Sequence[Sequence[CropEmbedding]],
    timeline: Timeline,
    info: VideoInfo,
) -> tuple[dict[int, IntArray], list[IdentityJump]]:
    """Return the decoded frames that teach, by index of objects that seem to show two identities, and the jumps."""
    import numpy as np

    from ml_backend.labeling.few_shot.identity_jumps import (
        MAX_OTHERS,
        IdentityJump,
        TrackViews,
        find_box_jump,
        find_jump,
    )

    views = [TrackViews.of(crops) if crops else None for crops in objects_crops]
    others = [TrackViews.of(crops) for crops in background_crops[: MAX_OTHERS // 4] if crops]
    store = embed.container.projects.patterns
    others += map(TrackViews.of, store.other_objects(task.project_id, embed.model.model_id, task.id, MAX_OTHERS))
    taught: dict[int, IntArray] = {}
    jumps: list[IdentityJump] = []
    for number, (item, crops) in enumerate(zip(objects, objects_crops, strict=True)):
        own = views[number]
        moment = find_box_jump(item.frames, item.xyxy, info.fps, (info.width, info.height))
        if moment is None:
            compared = [view for i, view in enumerate(views) if view and i != number] + others
            index = find_jump(own, compared) if own else None
            if index is None:
                continue
            between = embed.between(item, crops[index - 1].frame, crops[index].frame)
            closer = [*crops[:index], *between, *crops[index:]]
            moment = closer[find_jump(TrackViews.of(closer), compared) or index + len(between)].frame
        before, after = item.frames[item.frames < moment], item.frames[item.frames >= moment]
        taught[number] = after if len(before) < len(after) else before
        frame = int(np.searchsorted(timeline.decoded_index(np.arange(1, timeline.frames_count + 1)), moment)) + 1
        part: Part = "first" if len(before) < len(after) else "second"
        jumps.append(IdentityJump(item.region_id, item.label or "", frame, part))
        log.info(
            "Task %s: region %s (%s) seems to change to another object at frame %d; its %s part is not taught.",
            task.id,
            item.region_id,
            item.label,
            frame,
            part,
        )
    return taught, jumps


@job
def refresh(container: Container, project_id: int) -> None:
    """Request new predictions for all unannotated tasks, the most uncertain first.

    With stored tracks they take milliseconds.
    """
    while waiting := container.storage.pending("refresh", project_id):
        try:
            _refresh(container, project_id)
        except NotFound:
            log.info("Project %s was deleted; it is not refreshed.", project_id)
        except ConfigError as error:  # the next /setup with a usable label config requests it again
            log.warning("Project %s is not refreshed: %s", project_id, error)
        container.storage.settle("refresh", project_id, waiting)


def _refresh(container: Container, project_id: int) -> None:
    label_config = container.client.get_project(project_id).label_config
    container.projects.remember_labels(project_id, cached_label_config(label_config))
    models = container.projects.models(project_id, download=True)
    read_annotations_once(container, project_id, models.classifier)
    open_tasks = [state for state in container.client.list_task_states(project_id) if not state.annotations]
    # Confident predictions change least; tasks without a prediction are being predicted anyway.
    scores = container.storage.scores(project_id)
    open_tasks.sort(key=lambda state: (state.id not in scores, scores.get(state.id, 0.0), state.id))
    url = container.settings.label_studio_url
    for state in open_tasks:
        try:
            plan = plan_task(
                project_id, state.id, state.data, label_config, models.version, annotated=False, label_studio_url=url
            )
        except BackendError as error:
            log.warning("Task %s is not refreshed: %s", state.id, error)
            continue
        if not plan.needs_probe:  # else it is being prepared
            container.queue.request_prediction(plan.key, project_id, state.id, queue="refresh")


# -- corrections of predictions


def read_annotation(container: Container, project_id: int, task_id: int) -> tuple[Task | None, Annotation | None]:
    """Return a task and its annotation; ``(None, None)`` if the task was deleted or is not in the project."""
    try:
        task, annotation = container.client.get_annotation(task_id)
    except NotFound:
        return None, None
    return (task, annotation) if task.project_id == project_id else (None, None)


def record_review(container: Container, project_id: int, task_id: int) -> None:
    """Compare a task's annotation with the prediction that it started from, and store the review.

    A prediction is replaced only while its task has no annotation, so the task still has what the person saw. The
    review of a task without an annotation is removed. Needs no video.

    Raises:
        Interrupted: the process is asked to stop.
        LabelStudioError, QueueUnavailable, StorageError: a server is unreachable or refuses access.
    """
    if container.stop.is_set():
        raise Interrupted("Stopped before the next task.", "Wait: the job is retried.")
    store = ReviewStore(container.storage)
    with container.queue.task_lock("learn", task_id):
        _, annotation = read_annotation(container, project_id, task_id)
        if annotation is None:
            store.remove(project_id, task_id)
            return
        submitted = annotation.created_at or datetime.now(timezone.utc)
        changed = annotation.updated_at or submitted
        fingerprint = regions_fingerprint(annotation.result)
        if store.is_current(project_id, task_id, annotation.id, fingerprint, changed):
            return
        prediction = _reviewed_prediction(container, annotation)
        # What a reviewer repaired before is no merit of the model.
        predicted = without_repairs(container.storage, task_id, prediction.result) if prediction else []
        review = review_annotation(predicted, annotation.result)
        version = prediction.model_version if prediction else ""
        store.put(project_id, task_id, TaskReview(annotation.id, version, review, fingerprint, submitted, changed))
    counts = ", ".join(f"{number} {kind}" for kind, number in review.counts.items() if number)
    log.info("Task %s: regions of the prediction of %s: %s.", task_id, version or "no version", counts or "none")


def _reviewed_prediction(container: Container, annotation: Annotation) -> Prediction | None:
    """Return the prediction that an annotation started from; ``None`` if there was none or it has changed since."""
    prediction = initial_prediction(annotation, container.client.list_predictions(annotation.task_id))
    if prediction and (is_partial(prediction.model_version) or was_replaced(annotation, prediction)):
        log.info("Task %s: its prediction has changed after the annotation was started.", annotation.task_id)
        return None
    return prediction
