"""Jobs that learn labels from annotations, and renew what was predicted before.

What people annotate is read through the API; events only say where to look. Every job may be run twice without harm.
"""

from __future__ import annotations

import contextlib
import logging
import random
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

from ml_backend.core.errors import BackendError, ConfigError, Interrupted, LabelStudioError, MediaRefused, WeightsError
from ml_backend.core.types import UNLABELLED
from ml_backend.embeddings.crop_selection import CROPS_PER_TRACK
from ml_backend.embeddings.hub import ResolvedModel
from ml_backend.jobs.container import Container, job
from ml_backend.jobs.queue import ALL_TASKS
from ml_backend.jobs.task_plan import VideoPart, cached_label_config, plan_task
from ml_backend.label_studio.client import Annotation, NotFound, Task
from ml_backend.labeling.few_shot.digest import bank_digests
from ml_backend.labeling.few_shot.pattern_store import NewExemplar, video_key
from ml_backend.labeling.model_version import is_partial
from ml_backend.labeling.modes import ClassifierModels
from ml_backend.labeling.track_classifier import use_embedder
from ml_backend.training.annotation_review import begun_from, regions_fingerprint, review_annotation, was_written_over
from ml_backend.training.review_store import ReviewStore, TaskReview

if TYPE_CHECKING:
    from ml_backend.labeling.few_shot.annotated_objects import AnnotatedObject
    from ml_backend.tracking.track_record import TrackRecord

log = logging.getLogger(__name__)

#: Looks of a track that was left out: what it shows matters less than what is labelled.
BACKGROUND_VIEWS = 1
#: How often an annotation may change while it is being learned from, before the job is put back.
CHANGES = 5
#: At so many videos that are still away no more are looked for: each is tried several times, with pauses.
AWAY = 3
#: Label Studio notes a change of an annotation, and right after that one of its task.
SAME_CHANGE = timedelta(seconds=5)

Wanted = dict[str, list[NewExemplar]]


@job
def learn(container: Container, project_id: int) -> None:
    """Learn from the tasks of a project that were annotated, changed or deleted since the last time.

    What people did with predictions is written down in every mode; labels are learned where the mode has models.
    A task whose video is gone or damaged keeps what it taught. Where a server is away, or refuses us, the others come
    first, and the job fails with what is still to be learned from left as it was.
    """
    models = container.projects.models(project_id, download=True).hybrid
    # What is learned from now on passes other models by; they read everything anew when they are needed again.
    container.projects.patterns.forget_project(project_id, keep=models.ids)
    if _is_unread(container, project_id, models):
        container.storage.note_pending("learn", project_id)
    later: BackendError | None = None
    failed: set[int] = set()  # they wait for the job's next try, however often they are asked for meanwhile
    while waiting := {
        task: seen for task, seen in container.storage.pending("learn", project_id).items() if task not in failed
    }:
        if ALL_TASKS in waiting:  # first, because it makes more of it
            waiting = {ALL_TASKS: waiting[ALL_TASKS]}
        for task, revision in waiting.items():
            try:
                if _learn(container, project_id, models, task):
                    # Before the task is struck off: whoever takes the job up would find nothing changed.
                    container.queue.request_refresh(project_id)
            except Interrupted:  # asked to stop: the others wait for whoever takes the job up
                raise
            except BackendError as error:
                log.warning("Nothing was learned from task %s of project %s: %s", task or "list", project_id, error)
                # A wrong token, a host that is not allowed, or weights that are not to be had, are no fault of the
                # task's: it waits until that is fixed.
                if error.retryable or isinstance(error, LabelStudioError | MediaRefused | WeightsError):
                    later = later or error
                    failed.add(task)
                    continue
            container.storage.settle("learn", project_id, {task: revision})
    if later:
        raise later


@job
def catch_up(container: Container, project_id: int) -> None:
    """Learn from tasks that were annotated, changed or deleted while nobody told us.

    Label Studio does not repeat what it sent while this server was away, or could not write it down.
    """
    try:
        tasks = {state.id: state for state in container.client.list_task_states(project_id)}
    except NotFound:
        tasks = {}
    known = ReviewStore(container.storage).tasks(project_id)
    # Tasks also change for what teaches nothing: a prediction, an annotation that does not count. Once is enough.
    asked = container.training_queue.caught_up(project_id)
    moments = {task_id: state.updated_at.isoformat() for task_id, state in tasks.items() if state.updated_at}
    missed = known.keys() - tasks.keys()
    for task_id, state in tasks.items():
        annotation = known.get(task_id)
        changed = state.updated_at
        is_newer = bool(annotation and changed and changed > annotation.changed_at + SAME_CHANGE)
        differs = is_newer or (state.annotations > 0) != (annotation is not None)
        if differs and (task_id not in moments or asked.get(task_id) != moments[task_id]):
            missed.add(task_id)
    if missed:
        log.info("Project %s: %d annotations are looked at again.", project_id, len(missed))
        container.queue.request_learning(project_id, sorted(missed))
    annotated = {task_id for task_id in moments if task_id in known or tasks[task_id].annotations > 0}
    container.training_queue.note_caught_up(project_id, {task_id: moments[task_id] for task_id in annotated})
    _look_for_unread(container, project_id)


def _look_for_unread(container: Container, project_id: int) -> None:
    """Videos that were away while the project was trained, and are back, are something new to train on."""
    registry = container.registry
    last = registry.last(project_id)
    unread = list(last.lineage.get("unread") or ()) if last else []
    if last is None or not unread or last.is_active:
        return
    random.shuffle(unread)  # a server that is gone for good hides no other one for ever
    back, gone, away = set(), set(), 0
    for task_id in unread:
        try:
            task = container.client.get_task(int(task_id))
            for part in _parts(container, task):
                with container.media.open(part.uri, task.id):
                    back.add(task_id)
        except Interrupted:
            raise
        except BackendError as error:
            back.discard(task_id)
            if not error.retryable:
                gone.add(task_id)
                continue
            away += 1
            if away == AWAY:
                break
    if back or gone:
        log.info("Project %s: %d videos are back that were away in the last training.", project_id, len(back))
        registry.settle_unread(last, back, gone)


def read_annotations_once(container: Container, project_id: int, models: ClassifierModels) -> None:
    """What a project's people annotated before it had this mode, or this embedder, is worth learning too."""
    if _is_unread(container, project_id, models):
        container.queue.request_learning(project_id, None)


def _is_unread(container: Container, project_id: int, models: ClassifierModels) -> bool:
    return any(digest is None for digest in bank_digests(container.storage, project_id, models.ids).values())


def _learn(container: Container, project_id: int, models: ClassifierModels, task_id: int) -> bool:
    if task_id == ALL_TASKS:
        return _read_all(container, project_id, models)
    # First, and without the video: that may be gone.
    record_corrections(container, project_id, task_id)
    return _learn_task(container, project_id, models, task_id) if models.ids else False


def _read_all(container: Container, project_id: int, models: ClassifierModels) -> bool:
    """Note all annotated tasks for learning, and those that were once; whether a bank is in use again.

    Nothing is unlearned here: the list may be older than what another worker has learned meanwhile.
    """
    try:
        tasks = {state.id for state in container.client.list_task_states(project_id) if state.annotations}
    except NotFound:
        log.info("Project %s is gone; nothing is learned from it.", project_id)
        tasks = set()
    store = container.projects.patterns
    known = store.taught_tasks(project_id) | set(ReviewStore(container.storage).tasks(project_id))
    container.storage.note_pending("learn", project_id, tasks | known)
    changed = [store.mark_read(project_id, model_id) for model_id in models.ids]
    return any(changed)


def _learn_task(container: Container, project_id: int, models: ClassifierModels, task_id: int) -> bool:
    """Make what the task's annotation shows the task's exemplars; whether that changed anything."""
    for _ in range(CHANGES):
        task, annotation = read_annotation(container, project_id, task_id)
        wanted = _exemplars(container, task, annotation, models) if task and annotation else {}
        with container.queue.task_lock("learn", task_id):
            # Looking takes time. What is written down is what is true now, and nobody else writes meanwhile.
            if read_annotation(container, project_id, task_id)[1] != annotation:
                continue
            store = container.projects.patterns
            number = annotation.id if annotation else 0
            changed = [
                store.replace_task(project_id, model_id, task_id, number, wanted.get(model_id, []))
                for model_id in models.ids
            ]
        objects = {(item.region_id, item.label) for items in wanted.values() for item in items if item.label}
        labels = sorted({label for _, label in objects})
        log.info("Task %s taught %d objects (%s).", task_id, len(objects), ", ".join(labels) or "no label")
        container.count("learned")
        return any(changed)
    log.info("Task %s changes faster than it can be learned from; it is tried again.", task_id)
    container.storage.note_pending("learn", project_id, [task_id])
    return False


def _parts(container: Container, task: Task) -> Sequence[VideoPart]:
    """The videos of a task that was annotated."""
    label_config, url = container.client.get_project(task.project_id).label_config, container.settings.label_studio_url
    return plan_task(task.project_id, task.id, task.data, label_config, "", annotated=True, label_studio_url=url).parts


def _exemplars(container: Container, task: Task, annotation: Annotation, models: ClassifierModels) -> Wanted:
    """By model what the task's annotation shows of labels, and of what is none."""
    from ml_backend.label_studio.timeline import video_timeline
    from ml_backend.labeling.few_shot.annotated_objects import annotated_objects, rejected_tracks
    from ml_backend.video.probe import probe

    wanted: Wanted = {}
    for number, part in enumerate(_parts(container, task)):
        if not any(region.get("to_name") == part.control.to_name for region in annotation.result):
            continue
        video = video_key(part.uri)
        with container.media.open(part.uri, task.id) as path:
            info, timeline = probe(path), video_timeline(path, part.frame_rate)
            objects = annotated_objects(
                annotation.result, part.control, timeline, info.width, info.height, CROPS_PER_TRACK
            )
            known = next(container.projects.patterns.tracks_of_project(task.project_id, video), None)
            background = rejected_tracks(known.tracks, objects) if known and objects else []
            for model in filter(None, (models.embedder, models.clip)):
                looks = _look(container, path, video, model, objects, background, f"part-{number}-track")
                wanted.setdefault(model.model_id, []).extend(looks)
    return wanted


def _look(
    container: Container,
    path: Any,
    video: str,
    model: ResolvedModel,
    objects: Sequence[AnnotatedObject],
    background: Sequence[TrackRecord],
    prefix: str,
) -> list[NewExemplar]:
    from ml_backend.embeddings.crop_embeddings import embed_tracks
    from ml_backend.labeling.few_shot.annotated_objects import with_known

    looks, k = container.projects.patterns.looks(video), CROPS_PER_TRACK
    known = looks.get(model.model_id)
    # Objects whose label has left the config show neither a label nor what is none.
    groups = [(item.region_id, item.label, with_known(item, known, k), k) for item in objects if item.label]
    groups += [(f"{prefix}-{r.track_id}", UNLABELLED, r.views, BACKGROUND_VIEWS) for r in background]
    found: list[NewExemplar] = []
    for views in sorted({views for *_, views in groups}):
        chosen = [group for group in groups if group[3] == views]
        seen = embed_tracks(
            [candidates for _, _, candidates, _ in chosen],
            lambda: use_embedder(model, container.settings),
            model.model_id,
            looks,
            lambda: contextlib.nullcontext(path),
            views,
            container.stop.is_set,
        )
        for (region_id, label, _, _), mine in zip(chosen, seen, strict=True):
            found += [NewExemplar(region_id, label, look.key(video, model.model_id)) for look in mine]
    return found


@job
def refresh(container: Container, project_id: int) -> None:
    """Ask for new predictions of every task that nobody has annotated, the most uncertain first.

    Those of known tracks take milliseconds.
    """
    while waiting := container.storage.pending("refresh", project_id):
        try:
            _refresh(container, project_id)
        except NotFound:
            log.info("Project %s is gone; it is not refreshed.", project_id)
        except ConfigError as error:  # the next /setup with a label config that will do asks again
            log.warning("Project %s is not refreshed: %s", project_id, error)
        container.storage.settle("refresh", project_id, waiting)


def _refresh(container: Container, project_id: int) -> None:
    label_config = container.client.get_project(project_id).label_config
    container.projects.remember_labels(project_id, cached_label_config(label_config))
    models = container.projects.models(project_id, download=True)
    read_annotations_once(container, project_id, models.hybrid)
    open_tasks = [state for state in container.client.list_task_states(project_id) if not state.annotations]
    # What a model is sure of changes least; tasks without any prediction are being predicted anyway.
    sure = container.storage.scores(project_id)
    open_tasks.sort(key=lambda state: (state.id not in sure, sure.get(state.id, 0.0), state.id))
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


# -- what people did with predictions


def read_annotation(container: Container, project_id: int, task_id: int) -> tuple[Task | None, Annotation | None]:
    """A task and its annotation; nothing where the task is gone, or of another project than an event said."""
    try:
        task, annotation = container.client.get_annotation(task_id)
    except NotFound:
        return None, None
    return (task, annotation) if task.project_id == project_id else (None, None)


def record_corrections(container: Container, project_id: int, task_id: int) -> None:
    """Compare a task's annotation with the prediction that it was begun from, and write down what was done with it.

    A prediction is written over only while its task has no annotation: what the task has is what the person saw. A
    task without an annotation is forgotten. Needs no video.

    Raises:
        Interrupted: the process is asked to stop.
        LabelStudioError, QueueUnavailable, StorageError: a server is away, or refuses.
    """
    if container.stop.is_set():
        raise Interrupted("Stopped before the next task.", "The job is taken up again.")
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
        prediction = begun_from(annotation, container.client.list_predictions(task_id))
        if prediction and (is_partial(prediction.model_version) or was_written_over(annotation, prediction)):
            log.info("Task %s: it was begun from what has become more since; that is not compared.", task_id)
            prediction = None
        comparison = review_annotation(prediction.result if prediction else [], annotation.result)
        version = prediction.model_version if prediction else ""
        correction = TaskReview(annotation.id, version, comparison, fingerprint, submitted, changed)
        store.put(project_id, task_id, correction)
    done = ", ".join(f"{number} {kind}" for kind, number in comparison.counts.items() if number)
    log.info("Task %s: of the prediction of %s: %s.", task_id, version or "no version", done or "nothing")
