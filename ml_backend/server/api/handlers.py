"""Request handlers of the API. Jobs do the work: no handler loads a model or decodes video."""

from __future__ import annotations

import io
import math
import platform
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime, timezone
from functools import cache, partial
from importlib import metadata
from pathlib import Path
from threading import Condition
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import quoteattr

from cachetools import LRUCache, TTLCache, cached
from flask import Response, jsonify, render_template, request, send_file

import ml_backend
from ml_backend.core.errors import BackendError, ConfigError, Conflict, QueueUnavailable, WeightsError
from ml_backend.core.files import SPARE_BYTES, free_bytes
from ml_backend.core.outputs import Output, OutputFacts, project_of
from ml_backend.datasets.formats import GLOBAL_ID_FORMATS, MASK_FORMATS
from ml_backend.embeddings.hub import resolve_segmenter
from ml_backend.jobs.api_queue import (
    agreement_name,
    data_url,
    next_name,
    objects_name,
    patterns_name,
    similar_name,
    stats_name,
    text_search_name,
)
from ml_backend.jobs.job_list import FAILED
from ml_backend.jobs.live_cameras import LiveCamera, NoPicture
from ml_backend.jobs.queue import TRACKER_NOTE, clip_job, frames_job
from ml_backend.jobs.services import reviews
from ml_backend.jobs.services.connections import connect_project
from ml_backend.jobs.services.label_prompts import add_prompts
from ml_backend.jobs.worker_status import differing_settings
from ml_backend.label_studio.label_config import label_prompts, split_prompts
from ml_backend.labeling.model_version import BASE, version_settings
from ml_backend.review.repair_json import FRAMES_AT_ONCE, clip_name, describe_json, frames_name
from ml_backend.server.access import person, record
from ml_backend.server.api import requests, responses
from ml_backend.server.api.docs_page import docs_context
from ml_backend.server.api.routing import document, route
from ml_backend.server.problems import Unknown
from ml_backend.server.protocol import services
from ml_backend.server.slow_clients import send

if TYPE_CHECKING:
    from ml_backend.jobs.services.reviews import VideoTracks
    from ml_backend.review.track_rows import TrackRow
    from ml_backend.server.container import WebContainer

#: Settings that are part of the status.
_STATUS_SETTINGS = ("mode", "detector", "yolo_weights", "tracker", "imgsz", "conf", "device", "embedder")
_PACKAGES = ("torch", "ultralytics", "transformers", "label-studio-sdk", "flask", "rq", "redis")
#: Version of a package. Cached, since reading it is the slowest part of a status.
_package_version = cache(metadata.version)
#: Seconds for which statistics are cached.
STATS_S = 60.0
#: Seconds for which a list of objects is cached: people may edit tracks in Label Studio.
OBJECTS_S = 600.0
#: Seconds for which jobs and system state are cached: every open page polls them every two seconds.
CACHE_S = 1.0
#: Apps per process whose state is cached; tests create several.
_APPS = 4
#: Seconds for which a request waits for a clip.
CLIP_WAIT_S = 20.0
#: Tasks whose tracks are cached, and for how many seconds: somebody may edit them in Label Studio.
_TASKS_READ, TRACKS_S = 16, 5.0
#: Bytes of frames that are cached, and seconds for which a browser keeps them.
_FRAMES_BYTES, FRAMES_S = 64 << 20, 3600
#: Media types of downloads, by suffix.
_MEDIA_TYPES = {".mp4": "video/mp4", ".zip": "application/zip", ".json": "application/json"}


@route("GET", "/status", "Overview")
def status(query: requests.OfAnyProject) -> responses.Status:
    """Get the status.

    Models in use, workers, queues, free disk space, and whether Redis and the database are reachable. Label Studio is
    not queried. With a project, its models. At most a second old.
    """
    container = services()
    state = system_state(container)
    return {
        "version": ml_backend.__version__,
        "label_studio": container.settings.label_studio_url,
        "models": _models(container, query.project, state),
        "settings": {name: getattr(container.settings, name) for name in _STATUS_SETTINGS},
        "versions": {"python": platform.python_version(), **{name: _package_version(name) for name in _PACKAGES}},
        "redis": state["redis"],
        "database": state["database"],
        "disks": state["disks"],
        "workers": state["workers"],
        "queues": state["queues"],
    }


@cached(TTLCache(_APPS, CACHE_S), key=lambda container: container.jobs, condition=Condition())
def all_jobs(container: WebContainer) -> list[Any]:
    """Return every job. The list is cached: do not modify it."""
    return container.jobs.all()


@cached(TTLCache(_APPS, CACHE_S), key=lambda container: container.jobs, condition=Condition())
def system_state(container: WebContainer) -> dict[str, Any]:
    """Return workers, queues, and whether Redis and the database are up. The dict is cached: do not modify it."""
    state: dict[str, Any] = {"redis": {"up": True, "error": ""}, "database": {"up": True, "error": ""}}
    free: dict[str, int] = {}
    with suppress(OSError):  # a disk that does not answer makes its presence felt elsewhere
        free["web"] = free_bytes(container.settings.data_dir)
    try:
        memory = container.worker_status.status()
        state["queues"] = container.queue.depths()
        state["workers"] = [
            {"name": w.name, "hostname": w.hostname, "pid": w.pid, "queues": [*w.queues], "memory": memory.get(w.name)}
            for w in container.queue.workers()
        ]
        names = [worker["name"] for worker in state["workers"]]
        free |= container.worker_status.disks(names)
        state["notes"] = differing_settings(
            version_settings(container.settings), container.worker_status.version_settings(names)
        )
        if (published := container.queue.published(TRACKER_NOTE)) and published[1]:
            state["notes"].append(f"Drawn boxes are followed by the correlation tracker: {published[1]}")
    except BackendError as error:
        state |= {"redis": {"up": False, "error": str(error)}, "queues": {}, "workers": [], "notes": []}
    try:
        container.storage.ping()
    except BackendError as error:
        state["database"] = {"up": False, "error": str(error)}
    state["disks"] = [_disk(process, count) for process, count in free.items()]
    return state


@cached(TTLCache(_APPS, CACHE_S), key=lambda container: container.jobs, condition=Condition())
def all_cameras(container: WebContainer) -> list[LiveCamera]:
    """Return every camera that runs. The list is cached: do not modify it."""
    return container.live_cameras.cameras()


def _disk(process: str, free: int) -> responses.Disk:
    error = ""
    if free < SPARE_BYTES:
        error = f"{process}: the disk of DATA_DIR has {free >> 20} MB free, less than {SPARE_BYTES >> 20}. Free space."
    return {"process": process, "free_bytes": free, "needed_bytes": SPARE_BYTES, "error": error}


def _models(container: WebContainer, project: int | None, state: Mapping[str, Any]) -> responses.Models:
    try:
        models = container.projects.models(project)
    except BackendError as error:
        unknown: Any = dict.fromkeys(responses.Models.__annotations__)
        return unknown | {"mode": container.settings.mode, "notes": [str(error)]}  # type: ignore[no-any-return]
    classifier = models.classifier
    engines = [{"name": "opencv", "precision": "", "note": ""}]
    if models.detector.kind != "motion":
        engines = _engines(models.detector.name, state["workers"])
    merged = {key: sorted({item[key] for item in engines if item[key]}) for key in ("name", "precision", "note")}
    return {
        "mode": models.mode,
        "detector": models.detector.name,
        "engine": ", ".join(merged["name"]) or "not loaded",
        "precision": ", ".join(merged["precision"]) or None,
        "embedder": classifier.embedder.name if classifier.embedder else None,
        "clip": classifier.clip.name if classifier.clip else None,
        "text_detector": classifier.text_detector.name if classifier.text_detector else None,
        "version": models.trained.name if models.trained else BASE,
        "model_version": models.version,
        "notes": [n for n in (models.detector.note, *merged["note"], *classifier.notes, *state["notes"]) if n],
    }


def _engines(detector: str, workers: list[responses.Worker]) -> list[dict[str, str]]:
    """Return the engines of a loaded detector. Workers may differ, such as while an engine is being exported."""
    loaded = [model for worker in workers for model in (worker["memory"] or {}).get("models", ())]
    return [model["engine"] for model in loaded if model["name"] == detector and model["engine"]]


@route("GET", "/projects", "Overview", errors=(502,))
def projects() -> responses.ProjectList:
    """List the projects. Those that Label Studio shows to the configured token, and to the person who has signed in."""
    container = services()
    rows: list[Any] = []
    for item in container.lister.projects():
        if not person().sees(item["id"]):
            continue
        trained = container.projects.trained(item["id"])
        active = {"mode": container.projects.mode(item["id"]), "version": trained.name if trained else BASE}
        rows.append(item | active | {"policy": asdict(container.trainings.policy(item["id"]))})
    return {"projects": rows}


@route("POST", "/connect", "Overview", 202)
def connect(body: requests.OfProject) -> responses.JobAnswer:
    """Connect a project to this backend.

    As Label Studio's Settings > Model does, with the address in BACKEND_URL. The job predicts the tasks without
    annotations. Sending it again repairs the connection.
    """
    return requested(connect_project(services(), body.project))


# -- models


@route("GET", "/memory_status", "Models")
def memory_status() -> responses.Memory:
    """Get loaded models and memory by worker. As each worker last reported."""
    return {"workers": services().worker_status.status()}


@route("POST", "/optimize_memory", "Models", 202, role="admin")
def optimize_memory(body: requests.NoFields) -> responses.Optimizing:
    """Unload idle models.

    Workers unload them between two jobs. Sending it again changes nothing.
    """
    container = services()
    container.worker_status.optimize()
    return {"requested": True, "workers": [worker.name for worker in container.queue.workers()]}


@route("POST", "/init_models", "Models", 202)
def init_models(body: requests.OfProject) -> responses.JobAnswer:
    """Load a project's models.

    One worker of the queue `control` loads them and keeps them until the memory is needed. The other workers load them
    with their first prediction.
    """
    return requested(services().api_queue.init_models(body.project))


@route("POST", "/switch_model", "Models")
def switch_model(body: requests.SwitchModel) -> responses.Switched:
    """Switch a project's mode, its version, or both.

    Unannotated tasks are predicted again in the background. Sending it again changes nothing.
    """
    container = services()
    container.lister.check(body.project)
    before = container.projects.models(body.project).version
    if body.version is not None:  # first, since it may be rejected
        container.trainings.activate(body.project, body.version, person().name)
    if body.mode is not None:
        container.patterns.switch(body.project, "" if body.mode == "default" else body.mode)
    return _switched(container, body.project, before)


@route("POST", "/load_custom_model", "Models", 202)
def load_custom_model(body: requests.LoadCustomModel) -> responses.Loading:
    """Use a trained version. Only versions in the registry, not files. Sending it again changes nothing."""
    container = services()
    container.lister.check(body.project)  # first, since nothing is activated in vain
    model_version = container.trainings.activate(body.project, body.version, person().name)
    job = requested(container.api_queue.init_models(body.project))["job"]
    return {"version": body.version, "model_version": model_version, "job": job}


def _switched(container: WebContainer, project: int, before: str) -> responses.Switched:
    models = container.projects.models(project)
    return {
        "project": project,
        "mode": models.mode,
        "version": models.trained.name if models.trained else BASE,
        "model_version": models.version,
        "changed": models.version != before,
    }


# -- learning


@route("POST", "/learn_patterns", "Learn", 202)
def learn_patterns(body: requests.OfProject) -> responses.JobAnswer:
    """Learn all annotations again. Submitted annotations are learned automatically; this rereads all of them."""
    return requested(services().api_queue.learn(body.project))


@route("GET", "/get_patterns_info", "Learn", starts_job=True)
def patterns_info(query: requests.OfProject) -> responses.Patterns:
    """Get what a project has learned.

    Counts are current. A job computes clusters and thresholds, once for each state of the pattern bank.
    """
    container, project = services(), query.project
    summary: Any = container.patterns.summary(project)
    report: responses.Patterns = summary | {"map": [], "job": None}
    if embedder := report["embedder"]:
        digest = container.projects.patterns.digest(project, embedder)
        if digest:
            _, result, report["job"] = _job_result(
                patterns_name(project), lambda: container.api_queue.patterns(project), digest=digest, max_age_s=math.inf
            )
            if report["job"] is None:
                report["map"] = result["map"]
                for label, statistics in result["labels"].items():
                    report["labels"].get(label, {}).update(statistics)
    return report


@route("GET", "/exemplars", "Learn")
def exemplars(query: requests.ShowExemplars) -> responses.Exemplars:
    """List exemplars. Crops of annotated objects with thumbnails, newest first; all, those of a label, or one."""
    container = services()
    embedder = container.projects.models(query.project).classifier.embedder
    rows: list[responses.Exemplar] = []
    if embedder is not None:
        suspicious: set[int] | None = None
        published = container.queue.published(patterns_name(query.project))
        digest = container.projects.patterns.digest(query.project, embedder.model_id)
        if published and published[1]["digest"] == digest:
            labels = published[1]["labels"].values()
            suspicious = {exemplar_id for facts in labels for exemplar_id in facts.get("suspicious", ())}
        rows = [
            {
                "id": exemplar_id,
                "label": origin.label,
                "task": origin.task_id or None,
                "region": origin.region_id,
                "frame": origin.frame,
                "origin": origin.origin,
                "thumbnail": data_url(thumbnail),
                "suspicious": None if suspicious is None else exemplar_id in suspicious,
            }
            for exemplar_id, origin, thumbnail in container.projects.patterns.gallery(
                query.project, embedder.model_id, query.label, query.limit, query.id
            )
        ]
    return {"project": query.project, "label": query.label, "exemplars": rows}


@route("GET", "/similar", "Learn", 200, 202, starts_job=True, errors=(422,))
def similar(query: requests.FindSimilar) -> tuple[responses.SimilarTracks, int]:
    """Find similar tracks.

    Unannotated tracks that are most similar to a label's exemplars. A job searches for them: ask again when it has
    ended.
    """
    container = services()
    embedder = container.projects.models(query.project).classifier.embedder
    counts = container.projects.patterns.counts(query.project, embedder.model_id) if embedder else {}
    if query.label not in counts:
        container.lister.check(query.project)
    if embedder is None:
        raise ConfigError(
            "The project's mode learns no patterns.", "Switch to yolo_dinov2, universal or open_vocabulary."
        )
    if query.label not in counts:
        learned = ", ".join(filter(None, counts)) or "none yet"
        raise ConfigError(
            f"The label {query.label!r} has no exemplars.", f"Choose a label that has some, among: {learned}."
        )
    arguments = (query.project, query.label, query.limit, query.safe)
    created_at, result, job = _job_result(
        similar_name(*arguments),
        lambda: container.api_queue.similar(*arguments),
        digest=container.projects.patterns.digest(query.project, embedder.model_id) or "",
    )
    marked = container.reviews.store.marked(query.project)  # since the search
    return {
        "project": query.project,
        "label": query.label,
        "found_at": _iso(created_at),
        "tracks": [item for item in result.get("tracks", []) if item.get("key") not in marked][: query.limit],
        "skipped": result.get("skipped", []),
        "job": job,
    }, 202 if job else 200


@route("GET", "/text_search", "Learn", 200, 202, starts_job=True)
def search_text(query: requests.SearchText) -> tuple[responses.TextSearch, int]:
    """Find by text.

    What the text detector (`OPEN_VOCABULARY_MODEL`) finds for a phrase on evenly spaced frames of tasks. A job
    searches, once and then whenever `fresh` is asked for: ask again when it has ended. What was found is kept for an
    hour. Predictions find it once the label config has a label with the phrase as its `prompt`.
    """
    container = services()
    arguments = (query.project, query.phrase, query.task_ids, query.frames)
    created_at, result, job = _job_result(
        text_search_name(*arguments),
        lambda: container.api_queue.text_search(*arguments),
        max_age_s=math.inf,
        refresh=query.fresh,
    )
    return {
        "project": query.project,
        "phrase": query.phrase,
        "found_at": _iso(created_at),
        "model": result.get("model"),
        "conf": result.get("conf"),
        "frames": result.get("frames", []),
        "label": f"<Label value={quoteattr(split_prompts(query.phrase)[0])} prompt={quoteattr(query.phrase)}/>",
        "skipped": result.get("skipped", []),
        "job": job,
    }, 200 if created_at else 202


@route("POST", "/prompts", "Learn", errors=(409,), role="admin")
def add_prompt(body: requests.AddPrompt) -> responses.PromptAdded:
    """Add a phrase to a label.

    Writes it as the `prompt` of a label of the project's label config in Label Studio, beside the descriptions that the
    label has; a label that does not exist is added. Then request predictions. Sending it again changes nothing.
    """
    container = services()
    label, changed = add_prompts(container, body.project, body.label, split_prompts(body.phrase), body.config)
    container.lister.forget()
    return {"project": body.project, "label": label.value, "prompts": [*label_prompts(label)], "changed": changed}


@route("POST", "/similar", "Learn", errors=(422,), role="annotator")
def act_on_similar(body: requests.ActOnSimilar) -> responses.BulkDone:
    """Label, reject or open similar tracks.

    In their tasks' predictions, as repairs by hand do; a track that was too weak for a prediction is added to it.
    Rejected ones lose the label that was searched for, where they have it, and are not found again. All are undone at
    once.
    """
    container = services()
    places = list(dict.fromkeys((track.task, track.part, track.track) for track in body.tracks))
    return _bulk(container, body, container.reviews.found_tracks(body.project, body.label, places))


@route("POST", "/exemplars", "Learn", errors=(422,), role="annotator")
def act_on_exemplars(body: requests.ActOnExemplars) -> responses.BulkDone:
    """Label, reject or open the objects of exemplars.

    Of an annotated task another annotation is made, as repairs by hand do. Rejected ones lose their label, so that they
    do not teach it any more. All are undone at once.
    """
    container = services()
    embedder = container.projects.models(body.project).classifier.embedder
    patterns = container.projects.patterns
    found = patterns.origins(body.project, embedder.model_id, body.exemplars) if embedder else {}
    tracks, gone = [], []
    for number in dict.fromkeys(body.exemplars):
        origin = found.get(number)
        if origin is None:
            gone.append(reviews.Outcome(str(number), "There is no such exemplar any more."))
        elif not origin.task_id:
            gone.append(reviews.Outcome(str(number), "It was imported from another project."))
        elif body.action == "reject" and not origin.label:
            gone.append(reviews.Outcome(str(number), "It is an example of background already."))
        else:
            tracks.append(reviews.ChosenTrack(str(number), origin.task_id, origin.label, origin.region_id))
    if body.action == "label" and not body.new_label:
        raise ConfigError("No label is given.", "Give the label that the objects get as new_label.")
    return _bulk(container, body, tracks, gone)


def _bulk(
    container: WebContainer,
    body: requests.BulkAction,
    tracks: Sequence[reviews.ChosenTrack],
    gone: Sequence[reviews.Outcome] = (),
) -> responses.BulkDone:
    """Do what is asked for with tracks, and tell what became of them and of those that are ``gone``."""
    decision, tab = None, None
    if body.action != "open":
        label = (body.new_label or tracks[0].label) if body.action == "label" and tracks else ""
        decision, outcomes = container.reviews.relabel(body.project, tracks, label, _by(body.by))
    else:
        tasks = list(dict.fromkeys(track.task_id for track in tracks))[: reviews.MAX_OPENED]
        tab = container.reviews.open_tab(body.project, tasks) if tasks else None
        many = f"More than {reviews.MAX_OPENED} tasks were chosen."
        outcomes = [reviews.Outcome(track.item, "" if track.task_id in tasks else many) for track in tracks]
    told = [responses.ItemOutcome(item=o.item, done=not o.reason, reason=o.reason) for o in (*outcomes, *gone)]
    return {"repair": _decision(decision) if decision else None, "outcomes": told, "tab": tab}


@route("GET", "/stats", "Label", 200, 202, starts_job=True)
def statistics(query: requests.Statistics) -> tuple[responses.Statistics, int]:
    """Get annotation statistics.

    By label and by annotator, and the acceptance of each version's predictions. A job counts; results are cached for a
    minute.
    """
    container = services()
    created_at, result, job = _job_result(
        stats_name(query.project), lambda: container.api_queue.statistics(query.project), refresh=query.fresh
    )
    return {
        "project": query.project,
        "counted_at": _iso(created_at),
        "videos": result.get("videos", 0),
        "video_seconds": result.get("video_seconds", 0.0),
        "rows": result.get("rows", []),
        "skipped": result.get("skipped", []),
        "acceptance": container.trainings.acceptance(query.project),
        "job": job,
    }, 200 if created_at else 202


def _job_result(
    name: str, start: Callable[[], Any], *, digest: str | None = None, max_age_s: float = STATS_S, refresh: bool = False
) -> tuple[float | None, dict[str, Any], Any]:
    """Return when a job's last result was created, the result, and the job that replaces it if it is stale.

    A job that failed less than a minute ago is not restarted unless ``refresh``: clients poll these routes.

    Args:
        start: requests the job.
        digest: that of a result that is not stale; ``None``: any.
        max_age_s: seconds until the result is stale; new tracks do not change the digest.
    """
    container = services()
    published = container.queue.published(name)
    if published and not refresh and _age(published[0]) < max_age_s and digest in (None, published[1].get("digest")):
        return *published, None
    created_at, result = published or (None, {})
    last = None if refresh else container.jobs.get(name)
    ended = last["ended_at"] if last and last["state"] == FAILED else None
    if ended and _age(datetime.fromisoformat(ended).timestamp()) < STATS_S:
        return created_at, result, last
    return created_at, result, start()


@route("POST", "/train_custom_model", "Learn", 202, errors=(409,))
def train(body: requests.Train) -> responses.JobAnswer:
    """Fine-tune a project's detector.

    The result is used only if it is not worse. If nothing has changed since the last training, 409 is returned. A
    request during a training starts another one after it, which does nothing unless annotations have changed.
    """
    container = services()
    if container.settings.detector == "motion":
        raise ConfigError("DETECTOR=motion is set, which cannot be trained.", "Set DETECTOR=auto or yolo.")
    return requested(container.api_queue.train(body.project, force=body.force))


@route("GET", "/versions", "Learn")
def versions(query: requests.OfProject) -> responses.Versions:
    """List a project's versions. With training history, metrics and acceptance."""
    trainings = services().trainings
    registry: Any = trainings.versions(query.project) | {"before": trainings.rollback_target(query.project)}
    return dict(registry)  # type: ignore[return-value]


@route("POST", "/versions/rollback", "Learn", errors=(409,))
def rollback(body: requests.Rollback) -> responses.Switched:
    """Roll back to the previous version.

    Names the version to leave: sending it again returns 409, since that version is no longer in use. So does a rollback
    from the configured detector.
    """
    container = services()
    current = container.registry.current(body.project)
    name = current.name if current else BASE
    if name != body.instead_of:
        raise Conflict(f"{name} is in use, not {body.instead_of}.", "Fetch the versions again.")
    before = container.projects.models(body.project).version
    container.trainings.rollback(body.project, person().name)
    return _switched(container, body.project, before)


@route("POST", "/versions/decline", "Learn", errors=(409,))
def decline(body: requests.DeclineVersion) -> responses.Declined:
    """Decline a proposed version.

    It is refused, and the version in use stays. To accept it, use it. Sending it again returns 409, since the version
    is no longer proposed.
    """
    container = services()
    container.trainings.decline(body.project, body.version, person().name)
    current = container.registry.current(body.project)
    return {"declined": body.version, "current": current.name if current else BASE}


@route(
    "GET",
    "/versions/<version>/clips/<number>",
    "Learn",
    *(200, 206, 304),
    errors=(416, 422),
    media=("video/mp4",),
    headers=("Range", "If-None-Match"),
)
def version_clip(query: requests.OfProject, version: requests.TrainedName, number: requests.ClipNumber) -> Response:
    """Get a clip of a version.

    What differs on a video that nobody has annotated: the version that it was compared with, and this one, side by
    side. The metrics of a version say which change is in which clip.
    """
    container = services()
    found = container.registry.find(query.project, version)
    clip = (found.metrics.get("clips") or {}).get(number) if found and not found.weights_removed else None
    if clip is None:
        raise Unknown("There is no such clip.", "Fetch the versions again; clips are removed with a version's weights.")
    try:
        path = container.artifacts.fetch(clip["artifact"], clip["sha256"])
    except WeightsError as error:
        raise Unknown("The clip is gone.", "Restore it at ARTIFACTS_URL.") from error
    return _send_file(path)


# -- predictions, and generated files


@route("POST", "/auto_label", "Auto-label", 202, role="annotator")
def auto_label(body: requests.AutoLabel) -> responses.JobAnswer:
    """Request predictions.

    For the given tasks, or for all tasks without annotations. Finished predictions are kept. The job ends with the last
    prediction.
    """
    return requested(services().api_queue.auto_label(body.project, body.tasks or []))


@route("POST", "/create_annotated_video", "Review and export", 202, role="annotator")
def create_annotated_video(body: requests.AnnotatedVideo) -> responses.JobAnswer:
    """Render a video with boxes.

    Draws annotations or the newest prediction of a task, or what the configured detector finds now. A later request
    makes another file, since annotations may have changed.
    """
    return requested(services().api_queue.render(body.project, body.task, body.source))


@route("POST", "/create_custom_model_video", "Review and export", 202, role="annotator")
def create_custom_model_video(body: requests.CustomModelVideo) -> responses.JobAnswer:
    """Render a trained version's predictions.

    Of the given version, or the one in use, in the project's mode. Existing tracks of the video are reused.
    """
    from ml_backend.training.registry import MEASURED

    container = services()
    container.lister.check(body.project)
    registry = container.registry
    version = registry.find(body.project, body.version) if body.version else registry.current(body.project)
    # Checked here, so that the request fails rather than the job.
    if version is None:
        raise ConfigError(
            f"Project {body.project} uses no trained version.", "Train one, or render with the source 'base'."
        )
    if version.state not in MEASURED:
        raise ConfigError(f"{version.name} is {version.state}: it has no weights.", "Choose another version.")
    return requested(container.api_queue.render_custom(body.project, body.task, body.version or ""))


@route("POST", "/export", "Review and export", 202, role="annotator")
def export(body: requests.Export) -> responses.JobAnswer:
    """Export a project. Rows of JSON, or a dataset as a zip archive. A later request makes another file.

    The formats yolo-seg, coco-seg, mots and mask-png need SEGMENTER: without it, 422 is returned.
    """
    if body.global_ids and body.format not in ("annotations", *GLOBAL_ID_FORMATS):
        raise ConfigError(f"The format {body.format} has no global ids.", "Leave out global_ids.")
    if body.format in MASK_FORMATS:
        resolve_segmenter(services().settings)
    queue = services().api_queue
    args = (body.format, body.predictions, body.stride, body.with_ids, body.global_ids)
    return requested(queue.export(body.project, *args))


@route("GET", "/files", "Review and export")
def files(query: requests.OfProject) -> responses.FileList:
    """List a project's rendered videos and exports. Newest first, each with what it was made from."""
    outputs = services().outputs.of_project(query.project)
    return {"project": query.project, "files": [_file(output) for output in outputs]}


def _file(output: Output) -> Any:
    facts = output.facts.model_dump() if output.facts else dict.fromkeys(OutputFacts.model_fields)
    return {"name": output.name, "bytes": output.bytes, "created_at": output.created_at.isoformat(), **facts}


@route("DELETE", "/files/<filename>", "Review and export", audited=False)
def delete_file(filename: requests.FileName) -> responses.Deleted:
    """Delete a rendered video or an export. For a file that was deleted already, 404 is returned."""
    project = project_of(filename)
    if not person().sees(project) or not services().outputs.delete(filename):
        raise Unknown(f"There is no file {filename}.", "It may have been deleted; GET /api/files lists the others.")
    record("delete_file", project, filename)
    return {"deleted": filename}


@route(
    "GET",
    "/download/<filename>",
    "Review and export",
    *(200, 206, 304),
    errors=(416,),
    media=tuple(_MEDIA_TYPES.values()),
    headers=("Range", "If-None-Match"),
)
def download(filename: requests.FileName) -> Response:
    """Download a file.

    By the name in a job's result, or in the list of files. The oldest files are deleted when all exceed OUTPUTS_GB.
    """
    project = project_of(filename)
    path = services().outputs.find(filename) if person().sees(project) else None
    if path is None:
        raise Unknown("There is no such file.", "Request it again; old files are deleted.")
    record("download", project, filename, once=True)
    return _send_file(path)


def _send_file(path: Path) -> Response:
    """Send a generated file, or the range of it that is asked for."""
    return send(services().downloads, partial(_file_response, path))


def _file_response(path: Path) -> Response:
    try:
        response = send_file(
            path,
            mimetype=_MEDIA_TYPES[path.suffix],
            as_attachment=path.suffix != ".mp4",  # videos are played in the page
            download_name=path.name,
            conditional=True,
            max_age=0,
        )
    except OSError as error:  # deleted meanwhile
        raise Unknown("The file was deleted.", "Request it again.") from error
    response.headers["Content-Security-Policy"] = "default-src 'none'; media-src 'self'; sandbox"
    response.headers["Cache-Control"] = "private, no-cache"
    return response


# -- review


@route("GET", "/review", "Review")
def review(query: requests.FindMoments) -> responses.ReviewQueue:
    """List suspicious moments.

    What is probably wrong in predictions, and in the annotations of annotated tasks. They are looked for in the
    background after each prediction and each submitted annotation.
    """
    container, project = services(), query.project
    filters = {"task_id": query.task, "kind": query.kind, "label": query.label, "author": query.author}
    chosen = {name: value for name, value in filters.items() if value is not None}
    rows, total = container.reviews.store.queue(project, chosen, query.limit, query.offset)
    values = container.reviews.store.values(project)
    return {
        "project": project,
        "moments": [_moment(row) for row in rows],
        "total": total,
        "filters": {
            name.removesuffix("_id"): [{"value": value, "moments": count} for value, count in found]
            for name, found in values.items()
        },
        "pending": container.storage.count_pending("review", project),
    }


def _moment(row: Mapping[str, Any]) -> responses.Moment:
    names = ("id", "kind", "author", "label", "first", "last", "shown", "time", "score", "gain", "reason", "repair")
    facts: Any = {name: row[name] for name in names}
    facts |= {"task": row["task_id"], "is_prediction": not row["annotation_id"], "regions": list(row["regions"])}
    facts |= {"proposal": describe_json(row["repair"]), "skipped": bool(row["skipped"]), "has_clip": bool(row["clip"])}
    return facts  # type: ignore[no-any-return]


@route(
    "GET",
    "/review/<moment_id>/clip",
    "Review",
    *(200, 206, 304),
    starts_job=True,
    errors=(409, 416, 422),
    media=("video/mp4",),
    headers=("Range", "If-None-Match"),
)
def moment_clip(query: requests.OfProject, moment_id: requests.MomentId) -> Response:
    """Get a clip of a moment.

    Two seconds, with the boxes before the proposed repair on the left and after it on the right. It is rendered when it
    is first asked for, which takes about a second; if that takes longer, 503 is returned: ask again.
    """
    container = services()
    row = container.reviews.store.get(query.project, moment_id)
    if row is None:
        raise Unknown("There is no such moment.", "Fetch the queue again: its task has changed.")
    sha256 = row["clip"]
    if not sha256:
        request_clip = partial(container.queue.request_clip, query.project, moment_id)
        ended, sha256 = container.pending_jobs.wait_for(person(), clip_job(moment_id), request_clip, CLIP_WAIT_S)
        if not ended:
            raise QueueUnavailable("The clip is still being rendered.", "Ask again in a few seconds.")
    try:
        path = container.artifacts.fetch(clip_name(query.project, moment_id), sha256)
    except WeightsError as error:
        container.reviews.store.note_clip(moment_id, "")
        raise Unknown("The clip is gone.", "Ask again: it is rendered anew.") from error
    return _send_file(path)


@route("POST", "/repairs", "Review", errors=(409,), role="annotator")
def repair(body: requests.AnswerMoment) -> responses.Repair:
    """Answer a moment.

    Carries out the proposed repair or another one, dismisses the moment, or skips it. A prediction is replaced by the
    repaired one; later predictions keep the repair where they find the same track. Of an annotation another version is
    made, which counts from then on; the person's own stays. If the task has changed since the moment was found, or
    somebody else has decided it, 409 is returned and nothing is changed.
    """
    answer = reviews.Answer(body.action, _by(body.by), body.frame, body.region, body.label)
    return _decision(services().reviews.decide(body.project, body.moment, answer))


@route("GET", "/tracks", "Review", errors=(404, 502))
def tracks(query: requests.ShowTracks) -> responses.TaskTracks:
    """Get a task's tracks.

    Those of the annotation that counts, or else of the prediction: where each is visible, and its box at a frame.
    """
    container = services()
    videos = _task_tracks(container, query.project, query.task, tuple(container.reviews.store.state(query.project)))
    return {
        "project": query.project,
        "task": query.task,
        "videos": [
            {
                "name": video.name,
                "file": video.file,
                "annotation": video.annotation_id or None,
                "author": video.author,
                "frames_count": video.frames_count,
                "frame_rate": video.frame_rate,
                "width": video.size[0] if video.size else None,
                "height": video.size[1] if video.size else None,
                "key": video.key,
                "tracks": [_track(row, query.frame) for row in video.rows],
            }
            for video in videos
        ],
    }


@cached(
    TTLCache(_TASKS_READ, TRACKS_S),
    key=lambda container, *arguments: (container.jobs, *arguments),
    condition=Condition(),
)
def _task_tracks(container: WebContainer, project: int, task: int, _state: tuple[Any, ...]) -> list[VideoTracks]:
    """Return the tracks of a task, cached until somebody repairs something: a page steps through its frames."""
    return container.reviews.tracks(project, task)


def _track(row: TrackRow, frame: int | None) -> responses.TimelineTrack:
    names = ("number", "region", "label", "score", "frames", "area", "digest", "global_id")
    box = row.box(frame) if frame else None
    facts: Any = {name: getattr(row, name) for name in names}
    facts |= {"spans": [list(span) for span in row.spans]}
    facts |= {"box": dict(zip(("x", "y", "width", "height"), box, strict=True)) if box else None}
    return facts  # type: ignore[no-any-return]


@route(
    "GET",
    "/frame",
    "Review",
    *(200, 304),
    starts_job=True,
    errors=(409, 422),
    media=("image/jpeg",),
    headers=("If-None-Match",),
)
def frame(query: requests.ShowFrame) -> Response:
    """Get a frame of a task's video.

    A JPEG image of 960 pixels at most. Frames are rendered when one of them is first asked for, which takes about a
    second; if that takes longer, 503 is returned: ask again. They are kept for a day.
    """
    container = services()
    first = query.frame - (query.frame - 1) % FRAMES_AT_ONCE
    place = (query.project, query.task, query.key, first)
    try:
        archive = _frames(container, *place)
    except Unknown:
        state = tuple(container.reviews.store.state(query.project))
        videos = _task_tracks(container, query.project, query.task, state)
        if not any(video.key == query.key and query.frame <= video.frames_count for video in videos):
            raise Unknown("The task has no such frame.", "Reload the page.") from None
        request_frames = partial(container.queue.request_frames, *place)
        ended, _ = container.pending_jobs.wait_for(person(), frames_job(*place[1:]), request_frames, CLIP_WAIT_S)
        if not ended:
            raise QueueUnavailable("The frame is still being rendered.", "Ask again in a few seconds.") from None
        archive = _frames(container, *place)
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as frames:
            image = frames.read(f"{query.frame}.jpg")
    except KeyError:
        raise Unknown("There is no such frame.", "Choose an earlier one; it may also be damaged.") from None
    response = Response(image, content_type="image/jpeg")
    response.headers["Cache-Control"] = f"private, max-age={FRAMES_S}"
    response.add_etag()
    response.make_conditional(request)
    return response


@cached(
    LRUCache(_FRAMES_BYTES, getsizeof=len),
    key=lambda container, *place: (container.jobs, *place),
    condition=Condition(),
)
def _frames(container: WebContainer, project: int, task: int, key: str, first: int) -> bytes:
    """Return an archive of frames, and have the next one rendered.

    Raises:
        Unknown: it has not been rendered.
    """
    found = container.artifacts.read(frames_name(project, task, key, first))
    if found is None:
        raise Unknown("There is no such frame.", "Ask again: it is rendered anew.")
    container.queue.request_frames(project, task, key, first + FRAMES_AT_ONCE)
    return found


@route("POST", "/repairs/tracks", "Review", errors=(409,), role="annotator")
def repair_tracks(body: requests.RepairTracks) -> responses.Repair:
    """Repair tracks by hand.

    All of them at once, or none, as the answer to a moment does: a prediction is replaced, of an annotation another
    version is made. If a track has changed since it was read, or the repair changes nothing in it, 409 is returned.
    """
    answer = reviews.Answer(body.action, _by(body.by), body.frame, label=body.label, global_id=body.global_id)
    seen = {track.region: track.digest for track in body.tracks}
    wanted = reviews.ManualRepair(body.task, body.annotation or 0, seen, answer)
    return _decision(services().reviews.repair(body.project, wanted))


@route("POST", "/global_ids", "Review", 202, role="annotator")
def match_objects(body: requests.MatchObjects) -> responses.JobAnswer:
    """Find the same objects in several tasks.

    A job compares the tracks of all tasks by their looks; those that surely show one object get the same `global_id`.
    Tracks that have one keep it, also one that a person gave. It is written as a repair is, and undone as one; an
    annotation gets another version.
    """
    return requested(services().api_queue.match_objects(body.project, _by(body.by)))


@route("GET", "/global_ids", "Review", 200, 202, starts_job=True)
def objects(query: requests.ListObjects) -> tuple[responses.ObjectList, int]:
    """List objects that several tracks show.

    Global ids that more than one track has, those with the most tracks first. A job reads the tasks, 200 at most; what
    people have decided since it began counts at once.
    """
    container, project = services(), query.project
    store = container.reviews.store
    created_at, result, job = _job_result(
        objects_name(project),
        lambda: container.api_queue.objects(project),
        digest=store.identity_state(project)[1],
        max_age_s=OBJECTS_S,
        refresh=query.fresh,
    )
    tracks = {(item["task"], item["region"]): item for item in result.get("tracks", [])}
    for row in store.identified(project, result["last"]) if tracks else []:
        if item := tracks.get((row["task_id"], row["region"])):
            item |= {"global_id": row["global_id"], "by": row["by"], "found": bool(row["found"])}
    by_id: dict[int, list[Any]] = {}
    for item in tracks.values():
        by_id.setdefault(item["global_id"], []).append(item)
    several = sorted((item for item in by_id.items() if len(item[1]) > 1), key=lambda item: (-len(item[1]), item[0]))
    return {
        "project": project,
        "read_at": _iso(created_at),
        "objects": [
            {"global_id": number, "tracks": sorted(found, key=lambda item: (item["task"], item["first"]))}
            for number, found in several[query.offset : query.offset + query.limit]
        ],
        "total": len(several),
        "more": result.get("more", 0),
        "tasks": result.get("tasks", 0),
        "of": result.get("of", 0),
        "skipped": result.get("skipped", []),
        "job": job,
    }, 200 if created_at else 202


@route("POST", "/global_ids/tracks", "Review", errors=(409,), role="annotator")
def identify_tracks(body: requests.IdentifyTracks) -> responses.TracksIdentified:
    """Give tracks of an object another global id.

    One that no other track has, which takes them out of the object, or that of another object, which they join; of 50
    tasks at most. It is written as a repair is: those of a task all or none, and all are undone at once. Tasks whose
    tracks have changed since they were read, or have another id, are left out and named; 409 is returned if all were.
    """
    tasks: dict[tuple[int, int], dict[str, str]] = {}
    for track in body.tracks:
        tasks.setdefault((track.task, track.annotation or 0), {})[track.region] = track.digest
    chosen = [reviews.TaskIds(*place, tracks, {}, body.known) for place, tracks in tasks.items()]
    decision, left_out = services().reviews.give_id(body.project, chosen, body.global_id, _by(body.by))
    named = [responses.TaskLeftOut(task=task, reason=reason) for task, reason in left_out]
    return {"repair": _decision(decision), "left_out": named}


@route("GET", "/review/similar", "Review", errors=(404, 409))
def similar_moments(query: requests.FindSimilarMoments) -> responses.SimilarMoments:
    """List moments like an accepted one.

    Undecided ones of the same kind, labels and proposed action. Where tracks have embeddings, those that look more like
    a dismissed moment than like any accepted one are left out.
    """
    rows, total = services().reviews.similar(query.project, query.repair, query.limit)
    found = [_moment({**row, "skipped": False}) for row in rows]
    return {"project": query.project, "repair": query.repair, "moments": found, "total": total}


@route("POST", "/repairs/similar", "Review", errors=(409,), role="annotator")
def accept_similar(body: requests.AcceptSimilar) -> responses.SimilarAccepted:
    """Accept the moments like an accepted one.

    Each with its own proposed repair, 50 at most. What has changed meanwhile is left out, and named. They are undone at
    once.
    """
    decision, left_out = services().reviews.accept_similar(body.project, body.repair, _by(body.by))
    named = [responses.LeftOut(moment=moment, reason=reason) for moment, reason in left_out]
    return {"repair": _decision(decision), "left_out": named}


@route("POST", "/repairs/undo", "Review", errors=(409,), role="annotator")
def undo_repair(body: requests.UndoRepair) -> responses.Repair:
    """Undo a decision.

    What the repair changed is put back, with all that was changed at once, unless it was changed again; then 409 is
    returned. A dismissed or skipped moment returns to the queue.
    """
    return _decision(services().reviews.undo(body.project, body.repair, _by(body.by)))


@route("GET", "/repairs", "Review")
def repairs(query: requests.ListRepairs) -> responses.Repairs:
    """List decisions about moments and tracks. Newest first: who decided what, and whether it was undone."""
    rows = services().reviews.store.history(query.project, query.limit, query.task)
    return {"project": query.project, "repairs": [_decision(row) for row in rows]}


def _decision(row: Mapping[str, Any]) -> responses.Repair:
    return {
        "id": row["id"],
        "project": row["project_id"],
        "task": row["task_id"],
        "tasks": row["tasks"],
        "moment": row["moment_id"] or None,
        "count": row["count"],
        "action": row["action"],
        "description": row["description"],
        "by": row["by"],
        "at": row["at"].isoformat(),
        "annotation": row["annotation_id"] or None,
        "undone_by": row["undone_by"] or None,
        "undone_at": row["undone_at"].isoformat() if row["undone_at"] else None,
    }


@route("GET", "/review/next", "Review", 200, 202, starts_job=True)
def next_segments(query: requests.ChooseNext) -> tuple[responses.NextSegments, int]:
    """Choose what to annotate next.

    Segments of about ten seconds, of predicted videos that nobody has annotated: where tracks are uncertain or moments
    suspicious, and that look unlike each other and unlike what is annotated. A job chooses, once and then whenever
    `fresh` is asked for.
    """
    container, minutes = services(), query.minutes or 0
    created_at, result, job = _job_result(
        next_name(query.project, query.segments, minutes),
        lambda: container.api_queue.next_segments(query.project, query.segments, minutes),
        max_age_s=math.inf,
        refresh=query.fresh,
    )
    return {
        "project": query.project,
        "chosen_at": _iso(created_at),
        "segments": result.get("segments", []),
        "tasks": result.get("tasks", 0),
        "of": result.get("of", 0),
        "job": job,
    }, 200 if created_at else 202


@route("POST", "/review/next", "Review", 202)
def order_tasks(body: requests.OrderTasks) -> responses.JobAnswer:
    """Order Label Studio's tasks by what to annotate next.

    What `GET /api/review/next` has chosen, or else chooses, is written to the field `annotate_next` of the tasks: their
    place and their segments. The Data Manager gets a tab with these tasks in this order. Sending it again changes the
    field and the tab; other fields stay.
    """
    return requested(services().api_queue.order_tasks(body.project, body.segments, body.minutes or 0))


@route("GET", "/agreement", "Review", 200, 202, starts_job=True)
def agreement(query: requests.MeasureAgreement) -> tuple[responses.Agreements, int]:
    """Get the agreement of annotators.

    Of each pair of people who annotated the same tasks: HOTA, IDF1, kappa of the labels, and the tracks that only one
    of them has. Of each person: tracks, time, and what became of the predictions. A job measures, once and then
    whenever `fresh` is asked for: it reads every task.
    """
    container = services()
    created_at, result, job = _job_result(
        agreement_name(query.project, query.model),
        lambda: container.api_queue.agreement(query.project, model=query.model),
        max_age_s=math.inf,
        refresh=query.fresh,
    )
    return {
        "project": query.project,
        "model": query.model,
        "measured_at": _iso(created_at),
        "pairs": result.get("pairs", []),
        "people": result.get("people", []),
        "tasks": result.get("tasks", []),
        "job": job,
    }, 200 if created_at else 202


@route("GET", "/agreement/consensus", "Review", errors=(404, 502))
def consensus(query: requests.ShowConsensus) -> responses.Consensus:
    """Get what people agree on.

    The tracks of all people who annotated a task, matched over people. Those that more than half of them have are kept;
    where it is half of them, the newest prediction decides if it is asked, and else the track is left out.
    """
    found = services().reviews.consensus(query.project, query.task, model=query.model)
    return {
        "project": query.project,
        "task": query.task,
        "people": [*found.people],
        "model": query.model,
        "ground_truth": found.ground_truth,
        "key": found.key,
        "videos": [
            {
                "name": name,
                "tracks": [
                    {
                        "label": track.label,
                        "people": dict(track.labels),
                        "first": track.first,
                        "last": track.last,
                        "model": track.model.label if track.model else None,
                        "kept": track.kept,
                    }
                    for track in tracks
                ],
            }
            for name, tracks in found.videos.items()
        ],
    }


@route("POST", "/agreement/consensus", "Review", errors=(409,), role="annotator")
def write_consensus(body: requests.WriteConsensus) -> responses.Repair:
    """Submit what people agree on.

    As another annotation, proposed as ground truth: boxes are the median of those of the people who have the track,
    with as few keyframes as a prediction has. Nobody's annotation is changed; undoing the decision deletes the new one.
    If the task was annotated since the consensus was read, or has a ground truth, 409 is returned.
    """
    return _decision(
        services().reviews.write_consensus(body.project, body.task, model=body.model, key=body.key, by=_by(body.by))
    )


def _by(given: str | None) -> str:
    """Return under which name a decision is recorded: people who have signed in have one."""
    caller = person()
    return caller.name if caller.session_id or not given else given


# -- jobs


@route("GET", "/jobs", "Jobs")
def jobs(query: requests.ListJobs) -> responses.JobList:
    """List running, waiting, failed and recently ended jobs."""
    caller = person()
    matching = [
        item
        for item in all_jobs(services())
        if query.project in (None, item["project"]) and caller.sees(item["project"])
    ]
    return {"jobs": matching[: query.limit], "total": len(matching)}


@route("GET", "/jobs/<job_id>", "Jobs")
def job(job_id: requests.JobId) -> responses.Job:
    """Get a job. State, progress, time left, error and result. Results are kept for a week."""
    return _existing(services().jobs.get(job_id))


@route("DELETE", "/jobs/<job_id>", "Jobs", errors=(409,), role="annotator", audited=False)
def cancel(job_id: requests.JobId) -> responses.Job:
    """Cancel a job.

    A waiting job is removed; a running one stops within seconds, and is `cancelling` until then. For an ended job, 409
    is returned.
    """
    found = _existing(services().jobs.get(job_id))
    if found["kind"] == "train":
        person().require("trainer")
    cancelled = _existing(services().jobs.cancel(job_id))
    record("cancel", found["project"], found["kind"])
    return cancelled


def _existing(job: Any) -> responses.Job:
    if job is None or not person().sees(job["project"]):
        raise Unknown("There is no such job.", "Choose one of GET /api/jobs; results are kept for a week.")
    return job  # type: ignore[no-any-return]


def requested(job: Any) -> responses.JobAnswer:
    return {"job": job}


def _age(timestamp: float) -> float:
    return datetime.now(timezone.utc).timestamp() - timestamp


def _iso(timestamp: float | None) -> str | None:
    return (
        None
        if timestamp is None
        else datetime.fromtimestamp(timestamp, timezone.utc).isoformat(timespec="milliseconds")
    )


# -- access


@route("GET", "/people", "Access", role="admin")
def people() -> responses.People:
    """List people and their roles. Everybody who has signed in, or has been given a role."""
    return {"people": [_person(row) for row in services().people.all()]}


@route("POST", "/people", "Access", role="admin", errors=(409,))
def give_role(body: requests.GiveRole) -> responses.Person:
    """Give a person a role.

    It counts at once. The default is admin for the owner of Label Studio's organisation, else annotator. Nobody can
    change their own role.
    """
    caller, name = person(), body.name.strip().lower()
    if name == caller.name:
        raise Conflict("This is your own role.", "Ask another admin, or send BASIC_AUTH_USER and BASIC_AUTH_PASS.")
    services().people.give(name, None if body.role == "default" else body.role, caller.name)
    return next(_person(row) for row in services().people.all() if row["name"] == name)


def _person(row: Mapping[str, Any]) -> responses.Person:
    facts: Any = dict(row)
    facts["signed_in_at"] = row["signed_in_at"].isoformat() if row["signed_in_at"] else None
    return facts  # type: ignore[no-any-return]


@route("DELETE", "/projects/<number>/data", "Access", role="admin", errors=(409, 502), audited=False)
def erase(number: requests.ProjectNumber, body: requests.EraseProject) -> responses.Erased:
    """Erase what was made of a project.

    Predictions, patterns, versions, exports, rendered videos, uploads and jobs, as scripts/erase_project.py does on the
    host of this process. The project must have been deleted in Label Studio. If its jobs still run, they are asked to
    stop, and 409 is returned: ask again. The record of who did what stays.
    """
    from ml_backend.jobs.services import erasure  # which imports what a start does not need

    container, project = services(), int(number)
    if body.confirm != project:
        raise Conflict(f"The data of project {project} is not erased.", f'Send {{"confirm": {project}}}.')
    erasure.check_deleted(container, project)
    removed: Any = erasure.erase(container, project, person().name)
    return {"project": project} | removed  # type: ignore[no-any-return]


# -- cameras


@route("GET", "/cameras", "Cameras")
def cameras() -> responses.LiveCameraList:
    """List cameras that run.

    Those that scripts/live.py looks at, of projects that the person may see; admins also get those of no project. At
    most two seconds old.
    """
    shown: Any = [camera.model_dump(mode="json") for camera in all_cameras(services()) if _may_watch(camera)]
    return {"cameras": shown}


def _may_watch(camera: LiveCamera) -> bool:
    return person().may("admin") if camera.project is None else person().sees(camera.project)


@route("GET", "/cameras/<camera>/picture", "Cameras", starts_job=True, media=("image/jpeg",))
def camera_picture(query: requests.ShowCamera, camera: requests.CameraId) -> Response:
    """Get the next picture of a camera.

    A JPEG image with boxes and labels. While the camera shows nothing, 503 is returned.
    """
    container = services()
    found = next((item for item in all_cameras(container) if item.id == camera and _may_watch(item)), None)
    if found is None:
        raise Unknown("There is no such camera.", "It has a new id after each start: GET /api/cameras lists them.")
    if found.state != "running":
        raise NoPicture("The camera does not run at the moment.", "Ask again when its state is running.")
    return send(container.pictures, partial(_picture_response, container, camera))


def _picture_response(container: WebContainer, camera: str) -> Response:
    response = Response(container.live_cameras.next_picture(camera), content_type="image/jpeg")
    # By plain HTTP, a request of another site's page that hides its referrer looks like that of a program.
    response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
    return response


@route("GET", "/audit", "Access", role="admin")
def audit(query: requests.ListActions) -> responses.Actions:
    """List who did what. Newest first; the oldest are removed when there are more than twenty thousand."""
    rows, total = services().audit.find(query.project, query.limit, query.offset)
    return {"actions": [_action(row) for row in rows], "total": total}


def _action(row: Mapping[str, Any]) -> responses.Action:
    facts: Any = {**row, "at": row["at"].isoformat()}
    return facts  # type: ignore[no-any-return]


# -- this API


def _document() -> dict[str, Any]:
    settings = services().settings
    return document(auth=settings.basic_auth is not None, sign_in=settings.sign_in)


@route("GET", "/openapi.json", "This API")
def describe() -> Response:
    """Get this document. OpenAPI 3.1."""
    return jsonify(_document())


@route("GET", "/docs", "This API", media=("text/html",))
def docs() -> Response:
    """Get this document as HTML. A page without scripts."""
    page = render_template("api_docs.html", **docs_context(_document(), request.url_root.rstrip("/")))
    response = Response(page, content_type="text/html; charset=utf-8")
    response.headers["Content-Security-Policy"] = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'"
    return response
