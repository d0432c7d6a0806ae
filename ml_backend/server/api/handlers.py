"""Handlers of the control room's API. They ask the services, which do the work: none loads a model or decodes video."""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import datetime, timezone
from functools import cache
from importlib import metadata
from threading import Condition
from typing import TYPE_CHECKING, Any

from cachetools import TTLCache, cached
from flask import Response, jsonify, render_template, send_file

import ml_backend
from ml_backend.core.errors import BackendError, ConfigError
from ml_backend.jobs.api_queue import data_url, patterns_name, similar_name, stats_name
from ml_backend.jobs.job_list import FAILED
from ml_backend.jobs.worker_status import differing_settings
from ml_backend.jobs.workers import live_workers
from ml_backend.labeling.model_version import BASE, version_settings
from ml_backend.server.api import requests as bodies
from ml_backend.server.api import responses as answers
from ml_backend.server.api.routing import document, route
from ml_backend.server.problems import Conflict, Unknown
from ml_backend.server.protocol import services

if TYPE_CHECKING:
    from ml_backend.server.container import WebContainer

#: Settings that say how predictions are made.
_TOLD = ("mode", "detector", "yolo_weights", "tracker", "imgsz", "conf", "device", "embedder")
_PACKAGES = ("torch", "ultralytics", "transformers", "label-studio-sdk", "flask", "rq", "redis")
#: Version of a package; to read them takes longer than all else that a status tells.
_installed = cache(metadata.version)
#: Seconds for which counts are good enough.
STATS_S = 60.0
#: Seconds for which jobs and queues are good enough: every open page asks for them every two seconds.
FRESH_S = 1.0
#: Apps whose state is kept: a process has one, its tests some.
_APPS = 4
_BY = "control room"
#: Media types of files to download, by suffix.
_TYPES = {".mp4": "video/mp4", ".zip": "application/zip", ".json": "application/json"}


@route("GET", "/status", "Overview")
def status(query: bodies.OfAnyProject) -> answers.Status:
    """How things are.

    Models in use, workers, queues, and whether the parts answer. Label Studio is not asked. With a project, its models.
    Numbers are at most a second old.
    """
    found = services()
    state = look(found)
    return {
        "version": ml_backend.__version__,
        "label_studio": found.settings.label_studio_url,
        "models": _models(found, query.project, state),
        "settings": {name: getattr(found.settings, name) for name in _TOLD},
        "versions": {"python": platform.python_version(), **{name: _installed(name) for name in _PACKAGES}},
        **{name: state[name] for name in ("redis", "database", "workers", "queues")},  # type: ignore[typeddict-item]
    }


@cached(TTLCache(_APPS, FRESH_S), key=lambda found: found.jobs, condition=Condition())
def all_jobs(found: WebContainer) -> list[Any]:
    """Every job. The list is shared: it is not to be changed."""
    return found.jobs.all()


@cached(TTLCache(_APPS, FRESH_S), key=lambda found: found.jobs, condition=Condition())
def look(found: WebContainer) -> dict[str, Any]:
    """Workers, queues, and what answers. The value is shared: it is not to be changed."""
    out: dict[str, Any] = {"redis": {"up": True, "error": ""}, "database": {"up": True, "error": ""}}
    try:
        memory = found.memory.status()
        out["queues"] = found.queue.depths()
        out["workers"] = [
            {"name": w.name, "hostname": w.hostname, "pid": w.pid, "queues": [*w.queues], "memory": memory.get(w.name)}
            for w in live_workers(found.settings.redis_url)
        ]
        living = [worker["name"] for worker in out["workers"]]
        out["unlike"] = differing_settings(version_settings(found.settings), found.memory.shaping(living))
    except BackendError as error:
        out |= {"redis": {"up": False, "error": str(error)}, "queues": {}, "workers": [], "unlike": []}
    try:
        found.storage.ping()
    except BackendError as error:
        out["database"] = {"up": False, "error": str(error)}
    return out


def _models(found: WebContainer, project: int | None, state: Mapping[str, Any]) -> answers.Models:
    try:
        models = found.projects.models(project)
    except BackendError as error:
        unknown: Any = dict.fromkeys(answers.Models.__annotations__)
        return unknown | {"mode": found.settings.mode, "notes": [str(error)]}  # type: ignore[no-any-return]
    hybrid = models.classifier
    engines = [{"name": "opencv", "precision": "", "note": ""}]
    if models.detector.kind != "motion":
        engines = _engines(models.detector.name, state["workers"])
    told = {name: sorted({item[name] for item in engines if item[name]}) for name in ("name", "precision", "note")}
    return {
        "mode": models.mode,
        "detector": models.detector.name,
        "engine": ", ".join(told["name"]) or "not loaded",
        "precision": ", ".join(told["precision"]) or None,
        "embedder": hybrid.embedder.name if hybrid.embedder else None,
        "clip": hybrid.clip.name if hybrid.clip else None,
        "version": models.trained.name if models.trained else BASE,
        "model_version": models.version,
        "notes": [n for n in (models.detector.note, *told["note"], *hybrid.notes, *state["unlike"]) if n],
    }


def _engines(detector: str, workers: list[answers.Worker]) -> list[dict[str, str]]:
    """What runs a detector where it is loaded: workers need not agree, such as while an export is being made."""
    loaded = [model for worker in workers for model in (worker["memory"] or {}).get("models", ())]
    return [model["engine"] for model in loaded if model["name"] == detector and model["engine"]]


@route("GET", "/projects", "Overview", errors=(502,))
def projects() -> answers.ProjectList:
    """Projects of Label Studio that the configured token may see."""
    found = services()
    rows: list[Any] = []
    for item in found.lister.projects():
        trained = found.projects.trained(item["id"])
        used = {"mode": found.projects.mode(item["id"]), "version": trained.name if trained else BASE}
        rows.append(item | used | {"policy": asdict(found.trainings.policy(item["id"]))})
    return {"projects": rows}


# -- models


@route("GET", "/memory_status", "Models")
def memory_status() -> answers.Memory:
    """Models and memory by worker. As workers told it last, within their lease."""
    return {"workers": services().memory.status()}


@route("POST", "/optimize_memory", "Models", 202)
def optimize_memory() -> answers.Optimizing:
    """Unload idle models.

    Workers do so between two jobs, within their lease. Sent again, it finds nothing left to unload.
    """
    found = services()
    found.memory.optimize()
    return {"requested": True, "workers": found.queue.workers()}


@route("POST", "/init_models", "Models", 202)
def init_models(body: bodies.OfProject) -> answers.JobAnswer:
    """Load a project's models.

    One worker of the queue `control` takes the job: it loads them, and holds them until memory is needed. Every other
    worker loads them with the first prediction that it makes.
    """
    return requested(services().control.init_models(body.project))


@route("POST", "/switch_model", "Models")
def switch_model(body: bodies.SwitchModel) -> answers.Switched:
    """Switch a project's mode, its version, or both.

    Tasks that nobody has annotated are predicted anew in the background. Sent again, it changes nothing.
    """
    found = services()
    before = found.projects.models(body.project).version
    if body.version is not None:  # first: it may be refused
        found.trainings.activate(body.project, body.version, _BY)
    if body.mode is not None:
        found.patterns.switch(body.project, "" if body.mode == "default" else body.mode)
    return _switched(found, body.project, before)


@route("POST", "/load_custom_model", "Models", 202)
def load_custom_model(body: bodies.LoadCustomModel) -> answers.Loading:
    """Use a trained version. Only versions of the registry: no file can be named. Sent again, it changes nothing."""
    found = services()
    model_version = found.trainings.activate(body.project, body.version, _BY)
    job = requested(found.control.init_models(body.project))["job"]
    return {"version": body.version, "model_version": model_version, "job": job}


def _switched(found: WebContainer, project: int, before: str) -> answers.Switched:
    models = found.projects.models(project)
    return {
        "project": project,
        "mode": models.mode,
        "version": models.trained.name if models.trained else BASE,
        "model_version": models.version,
        "changed": models.version != before,
    }


# -- learning


@route("POST", "/learn_patterns", "Learn", 202)
def learn_patterns(body: bodies.OfProject) -> answers.JobAnswer:
    """Learn all annotations anew. What people submit is learned by itself; this reads everything once more."""
    return requested(services().control.learn(body.project))


@route("GET", "/get_patterns_info", "Learn", starts_job=True)
def patterns_info(query: bodies.OfProject) -> answers.Patterns:
    """What a project has learned.

    Counts are of this moment. Clusters and thresholds are found out by a job, once for each state.
    """
    found, project = services(), query.project
    models = found.projects.models(project)
    embedder = models.classifier.embedder
    labels: dict[str, dict[str, Any]] = {}
    points: list[dict[str, Any]] = []
    job = None
    if embedder is not None:
        labels = dict(found.projects.patterns.counts(project, embedder.model_id))
        digest = found.projects.patterns.digest(project, embedder.model_id)
        if digest:
            _, known, job = _found_by_job(
                patterns_name(project), lambda: found.control.patterns(project), digest=digest, for_s=math.inf
            )
            if job is None:
                points = known["map"]
                for label, facts in known["labels"].items():
                    labels.get(label, {}).update(facts)
    return {
        "project": project,
        "mode": models.mode,
        "model_version": models.version,
        "embedder": embedder.model_id if embedder else None,
        "clip": models.classifier.clip.model_id if models.classifier.clip else None,
        "notes": [note for note in (models.detector.note, *models.classifier.notes) if note],
        "labels": labels,
        "map": points,
        "job": job,
    }


@route("GET", "/exemplars", "Learn")
def exemplars(query: bodies.ShowExemplars) -> answers.Exemplars:
    """What a label was taught with. Views of annotated objects with their pictures, newest first."""
    found = services()
    embedder = found.projects.models(query.project).classifier.embedder
    rows: list[answers.Exemplar] = []
    if embedder is not None:
        rows = [
            {
                "id": number,
                "label": source.label,
                "task": source.task_id or None,
                "region": source.region_id,
                "frame": source.frame,
                "origin": source.origin,
                "thumbnail": data_url(thumbnail),
            }
            for number, source, thumbnail in found.projects.patterns.gallery(
                query.project, embedder.model_id, query.label, query.limit
            )
        ]
    return {"project": query.project, "label": query.label, "exemplars": rows}


@route("GET", "/similar", "Learn", 200, 202, starts_job=True, errors=(422,))
def similar(query: bodies.FindSimilar) -> tuple[answers.SimilarTracks, int]:
    """Find more like this.

    Tracks that nobody has annotated and that are most like a label's exemplars. A job looks for them: ask again when it
    has ended.
    """
    found = services()
    embedder = found.projects.models(query.project).classifier.embedder
    if embedder is None:
        raise ConfigError("The project's mode learns no patterns.", "Switch to yolo_dinov2 or universal.")
    counts = found.projects.patterns.counts(query.project, embedder.model_id)
    if query.label not in counts:
        known = ", ".join(filter(None, counts)) or "none yet"
        raise ConfigError(f"The label {query.label!r} has no exemplars.", f"Labels with exemplars: {known}.")
    asked = (query.project, query.label, query.limit, query.safe)
    at, facts, job = _found_by_job(
        similar_name(*asked),
        lambda: found.control.similar(*asked),
        digest=found.projects.patterns.digest(query.project, embedder.model_id) or "",
    )
    return {
        "project": query.project,
        "label": query.label,
        "found_at": _iso(at),
        "tracks": facts.get("tracks", []),
        "skipped": facts.get("skipped", []),
        "job": job,
    }, 202 if job else 200


@route("GET", "/stats", "Label", 200, 202, starts_job=True)
def statistics(query: bodies.Statistics) -> tuple[answers.Statistics, int]:
    """What has been annotated.

    By label and by person, and what people accepted of each version. A job counts; numbers of the last minute are not
    counted anew.
    """
    found = services()
    at, facts, job = _found_by_job(
        stats_name(query.project), lambda: found.control.statistics(query.project), anew=query.fresh
    )
    return {
        "project": query.project,
        "counted_at": _iso(at),
        "videos": facts.get("videos", 0),
        "video_seconds": facts.get("video_seconds", 0.0),
        "rows": facts.get("rows", []),
        "skipped": facts.get("skipped", []),
        "acceptance": found.trainings.accepted(query.project),
        "job": job,
    }, 200 if at else 202


def _found_by_job(
    name: str, start: Callable[[], Any], *, digest: str | None = None, for_s: float = STATS_S, anew: bool = False
) -> tuple[float | None, dict[str, Any], Any]:
    """When a job has found something, what, and the job that does so anew where that is not good any more.

    A job that failed a moment ago is not started again, unless ``anew``: whoever polls a GET would do so all the time.

    Args:
        start: requests the job.
        digest: of the state that it must be of.
        for_s: seconds for which it is good; new tracks come without another digest.
    """
    found = services()
    known = found.queue.published(name)
    if known and not anew and _age(known[0]) < for_s and digest in (None, known[1].get("digest")):
        return *known, None
    at, facts = known or (None, {})
    last = None if anew else found.jobs.get(name)
    ended = last["ended_at"] if last and last["state"] == FAILED else None
    if ended and _age(datetime.fromisoformat(ended).timestamp()) < STATS_S:
        return at, facts, last
    return at, facts, start()


@route("POST", "/train_custom_model", "Learn", 202)
def train(body: bodies.Train) -> answers.JobAnswer:
    """Retrain a project's detector.

    It is used only if it is not worse. What is asked while it runs makes one more, which finds nothing new unless
    something was annotated meanwhile.
    """
    found = services()
    if found.settings.detector == "motion":
        raise ConfigError(
            "DETECTOR=motion is set: there is no network that could be trained.", "Set DETECTOR=auto or yolo."
        )
    return requested(found.control.train(body.project, force=body.force))


@route("GET", "/versions", "Learn")
def versions(query: bodies.OfProject) -> answers.Versions:
    """A project's versions. What was trained, epoch by epoch, how good it is, and what people accepted."""
    trainings = services().trainings
    facts: Any = trainings.versions(query.project) | {"before": trainings.before(query.project)}
    return dict(facts)  # type: ignore[return-value]


@route("POST", "/versions/rollback", "Learn", errors=(409,))
def rollback(body: bodies.Rollback) -> answers.Switched:
    """Back to the version before.

    Names the version that is to be left: sent again, it is refused with 409, since that is no longer in use.
    """
    found = services()
    current = found.registry.current(body.project)
    name = current.name if current else BASE
    if name != body.instead_of:
        raise Conflict(f"{name} is in use, not {body.instead_of}.", "Look at the versions again.")
    before = found.projects.models(body.project).version
    found.trainings.activate(body.project, found.trainings.before(body.project), _BY)
    return _switched(found, body.project, before)


# -- work, and files that are made


@route("POST", "/auto_label", "Auto-label", 202)
def auto_label(body: bodies.AutoLabel) -> answers.JobAnswer:
    """Request predictions.

    Of the tasks that are named, or of all without annotations. Finished ones are not made again. The job is under way
    until the last prediction is there.
    """
    return requested(services().control.auto_label(body.project, body.tasks or []))


@route("POST", "/create_annotated_video", "Review and export", 202)
def create_annotated_video(body: bodies.AnnotatedVideo) -> answers.JobAnswer:
    """Render a video with boxes.

    Annotations or the newest prediction of a task, or what the settings' detector finds now. Asked for later, it makes
    another file, since annotations may have changed.
    """
    return requested(services().control.render(body.project, body.task, body.source))


@route("POST", "/create_custom_model_video", "Review and export", 202)
def create_custom_model_video(body: bodies.CustomModelVideo) -> answers.JobAnswer:
    """Render what a trained version finds.

    The version that is named, or the one in use, in the project's mode. Tracks that it has made of the video are used
    again.
    """
    from ml_backend.training.registry import MEASURED

    found = services()
    registry = found.registry
    version = registry.find(body.project, body.version) if body.version else registry.current(body.project)
    # Refused at once, rather than by the job.
    if version is None:
        raise ConfigError(f"Project {body.project} uses no trained version.", "Train one, or draw what 'base' finds.")
    if version.state not in MEASURED:
        raise ConfigError(f"{version.name} is {version.state}: it has no weights.", "Choose another version.")
    return requested(found.control.render_custom(body.project, body.task, body.version or ""))


@route("POST", "/export", "Review and export", 202)
def export(body: bodies.Export) -> answers.JobAnswer:
    """Export a project. Rows of JSON, or a dataset in a zip archive. Asked for later, it makes another file."""
    return requested(services().control.export(body.project, body.format, body.predictions, body.stride))


@route(
    "GET",
    "/download/<filename>",
    "Review and export",
    *(200, 206, 304),
    errors=(416,),
    media=tuple(_TYPES.values()),
    headers=("Range", "If-None-Match"),
)
def download(filename: bodies.FileName) -> Response:
    """Download a file.

    Only files that were made here, by the name in a job's result. Oldest ones go first when they exceed OUTPUTS_GB.
    """
    path = services().outputs.find(filename)
    if path is None:
        raise Unknown("There is no such file.", "Old files are removed; ask for it again.")
    try:
        answer = send_file(
            path,
            mimetype=_TYPES[path.suffix],
            as_attachment=path.suffix != ".mp4",  # videos are played in the page
            download_name=path.name,
            conditional=True,
            max_age=0,
        )
    except OSError as error:  # removed a moment ago
        raise Unknown("There is no such file any more.", "Ask for it again.") from error
    answer.headers["Content-Security-Policy"] = "default-src 'none'; media-src 'self'; sandbox"
    answer.headers["Cache-Control"] = "private, no-cache"
    return answer


# -- jobs


@route("GET", "/jobs", "Jobs")
def jobs(query: bodies.ListJobs) -> answers.JobList:
    """Running, waiting, failed and lately ended jobs."""
    found = [item for item in all_jobs(services()) if query.project in (None, item["project"])]
    return {"jobs": found[: query.limit], "total": len(found)}


@route("GET", "/jobs/<job_id>", "Jobs")
def job(job_id: bodies.JobId) -> answers.Job:
    """A job. State, progress, time left, error and result. Results are kept for a week."""
    return _known(services().jobs.get(job_id))


@route("DELETE", "/jobs/<job_id>", "Jobs", errors=(409,))
def cancel(job_id: bodies.JobId) -> answers.Job:
    """Cancel a job.

    One that waits is taken back; one that runs stops within seconds, and is `cancelling` until then. Sent again when it
    is over, it is refused with 409.
    """
    return _known(services().jobs.cancel(job_id))


def _known(found: Any) -> answers.Job:
    if found is None:
        raise Unknown("There is no such job.", "Results are kept for a week; GET /api/jobs lists what is known.")
    job: answers.Job = found
    return job


def requested(job: Any) -> answers.JobAnswer:
    """The answer that names a job."""
    return {"job": job}


def _age(moment: float) -> float:
    return datetime.now(timezone.utc).timestamp() - moment


def _iso(moment: float | None) -> str | None:
    return None if moment is None else datetime.fromtimestamp(moment, timezone.utc).isoformat(timespec="milliseconds")


# -- this API


def _document() -> dict[str, Any]:
    settings = services().settings
    return document(auth=bool(settings.basic_auth_user and settings.basic_auth_pass.get_secret_value()))


@route("GET", "/openapi.json", "This API")
def describe() -> Response:
    """This document, OpenAPI 3.1."""
    return jsonify(_document())


@route("GET", "/docs", "This API", media=("text/html",))
def docs() -> Response:
    """This document for people, a page without scripts."""
    answer = Response(render_template("api_docs.html", document=_document()), content_type="text/html; charset=utf-8")
    answer.headers["Content-Security-Policy"] = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'"
    return answer
