"""Handlers of the control room's API: models, learning, jobs. None loads a model or decodes video."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime, timezone
from functools import lru_cache
from importlib import metadata
from threading import Condition
from typing import TYPE_CHECKING, Any

from cachetools import TTLCache, cached

import ml_backend
from ml_backend.errors import BackendError, ConfigError
from ml_backend.jobs.board import FAILED
from ml_backend.jobs.control_names import data_url, patterns_name, similar_name, stats_name
from ml_backend.jobs.memory_board import unlike
from ml_backend.jobs.workers import live_workers
from ml_backend.versions import BASE, shaping
from ml_backend.web import answers, bodies
from ml_backend.web.problems import Conflict, Unknown
from ml_backend.web.protocol import services

if TYPE_CHECKING:
    from ml_backend.services import Services

#: Settings that say how predictions are made, and when it is retrained.
_TOLD = ("mode", "detector", "yolo_weights", "tracker", "imgsz", "conf", "device", "embedder", "views", "train_auto")
_PACKAGES = ("torch", "ultralytics", "transformers", "label-studio-sdk", "flask", "rq", "redis")
#: Seconds for which counts are good enough.
STATS_S = 60.0
#: Seconds for which jobs and queues are good enough: every open page asks for them every two seconds.
FRESH_S = 1.0
#: Apps whose state is kept: a process has one, its tests some.
_APPS = 4
_BY = "control room"


def status(query: bodies.OfAnyProject) -> answers.Status:
    found = services()
    state = look(found)
    return {
        "version": ml_backend.__version__,
        "redis": state["redis"],
        "database": state["database"],
        "label_studio": found.settings.label_studio_url,
        "models": _models(found, query.project, state),
        "settings": {name: getattr(found.settings, name) for name in _TOLD},
        "workers": state["workers"],
        "queues": state["queues"],
        "versions": _versions(),
    }


@cached(TTLCache(_APPS, FRESH_S), key=lambda found: found.jobs, condition=Condition())
def all_jobs(found: Services) -> list[dict[str, Any]]:
    """Every job. The list is shared: it is not to be changed."""
    return found.jobs.all()


@cached(TTLCache(_APPS, FRESH_S), key=lambda found: found.jobs, condition=Condition())
def look(found: Services) -> dict[str, Any]:
    """Workers, queues, and what answers. The value is shared: it is not to be changed."""
    out: dict[str, Any] = {"redis": {"up": True, "error": ""}, "database": {"up": True, "error": ""}}
    try:
        memory = found.memory.status()
        out["queues"] = found.queue.depths()
        out["workers"] = [
            {
                "name": worker.name,
                "hostname": worker.hostname,
                "pid": worker.pid,
                "queues": list(worker.queues),
                "memory": memory.get(worker.name),
            }
            for worker in live_workers(found.settings.redis_url)
        ]
        living = [worker["name"] for worker in out["workers"]]
        out["unlike"] = unlike(shaping(found.settings), found.memory.shaping(living))
    except BackendError as error:
        out |= {"redis": {"up": False, "error": str(error)}, "queues": {}, "workers": [], "unlike": []}
    try:
        found.storage.ping()
    except BackendError as error:
        out["database"] = {"up": False, "error": str(error)}
    return out


def _models(found: Services, project: int | None, state: Mapping[str, Any]) -> answers.Models:
    try:
        models = found.projects.models(project)
    except BackendError as error:
        return {
            "mode": found.settings.mode,
            "detector": None,
            "engine": None,
            "precision": None,
            "embedder": None,
            "clip": None,
            "version": None,
            "model_version": None,
            "notes": [str(error)],
        }
    hybrid = models.hybrid
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


@lru_cache(maxsize=1)
def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def projects() -> answers.ProjectList:
    found = services()
    rows: list[answers.Project] = []
    for item in found.lister.projects():
        trained = found.projects.trained(item["id"])
        rows.append(
            {
                "id": item["id"],
                "title": item["title"],
                "url": item["url"],
                "tasks": item["tasks"],
                "annotated": item["annotated"],
                "annotations": item["annotations"],
                "predictions": item["predictions"],
                "mode": found.projects.mode(item["id"]),
                "version": trained.name if trained else BASE,
                "policy": asdict(found.trainings.policy(item["id"])),
            }
        )
    return {"projects": rows}


# -- models


def memory_status() -> answers.Memory:
    return {"workers": services().memory.status()}


def optimize_memory() -> tuple[answers.Optimizing, int]:
    found = services()
    found.memory.optimize()
    return {"requested": True, "workers": found.queue.workers()}, 202


def init_models(body: bodies.OfProject) -> tuple[answers.JobAnswer, int]:
    return requested(services().control.init_models(body.project))


def switch_model(body: bodies.SwitchModel) -> answers.Switched:
    found = services()
    before = found.projects.models(body.project).version
    if body.version is not None:  # first: it may be refused
        found.trainings.activate(body.project, body.version, _BY)
    if body.mode is not None:
        found.patterns.switch(body.project, "" if body.mode == "default" else body.mode)
    return _switched(found, body.project, before)


def load_custom_model(body: bodies.LoadCustomModel) -> tuple[answers.Loading, int]:
    found = services()
    model_version = found.trainings.activate(body.project, body.version, _BY)
    job = _job(found.control.init_models(body.project))
    return {"version": body.version, "model_version": model_version, "job": job}, 202


def _switched(found: Services, project: int, before: str) -> answers.Switched:
    models = found.projects.models(project)
    return {
        "project": project,
        "mode": models.mode,
        "version": models.trained.name if models.trained else BASE,
        "model_version": models.version,
        "changed": models.version != before,
    }


# -- learning


def learn_patterns(body: bodies.OfProject) -> tuple[answers.JobAnswer, int]:
    return requested(services().control.learn(body.project))


def patterns_info(query: bodies.OfProject) -> answers.Patterns:
    found, project = services(), query.project
    models = found.projects.models(project)
    embedder = models.hybrid.embedder
    labels: dict[str, dict[str, Any]] = {}
    points: list[dict[str, Any]] = []
    job: answers.Job | None = None
    if embedder is not None:
        labels = dict(found.projects.patterns.counts(project, embedder.model_id))
        digest = found.projects.patterns.digest(project, embedder.model_id) or ""
        if digest:
            known = found.jobs.board.published(patterns_name(project))
            if known and known[1]["digest"] == digest:
                points = known[1]["map"]
                for label, facts in known[1]["labels"].items():
                    labels.get(label, {}).update(facts)
            else:
                job = _unless_failed(found, patterns_name(project)) or _job(found.control.patterns(project))
    return {
        "project": project,
        "mode": models.mode,
        "model_version": models.version,
        "embedder": embedder.model_id if embedder else None,
        "clip": models.hybrid.clip.model_id if models.hybrid.clip else None,
        "notes": [note for note in (models.detector.note, *models.hybrid.notes) if note],
        "labels": labels,
        "map": points,
        "job": job,
    }


def exemplars(query: bodies.ShowExemplars) -> answers.Exemplars:
    found = services()
    embedder = found.projects.models(query.project).hybrid.embedder
    rows: list[answers.Exemplar] = []
    if embedder is not None:
        gallery = found.projects.patterns.gallery(query.project, embedder.model_id, query.label, query.limit)
        for number, source, thumbnail in gallery:
            rows.append(
                {
                    "id": number,
                    "label": source.label,
                    "task": source.task_id or None,
                    "region": source.region_id,
                    "frame": source.frame,
                    "origin": source.origin,
                    "thumbnail": data_url(thumbnail),
                }
            )
    return {"project": query.project, "label": query.label, "exemplars": rows}


def similar(query: bodies.FindSimilar) -> tuple[answers.SimilarTracks, int]:
    found = services()
    embedder = found.projects.models(query.project).hybrid.embedder
    if embedder is None:
        raise ConfigError("The project's mode learns no patterns.", "Switch to yolo_dinov2 or universal.")
    counts = found.projects.patterns.counts(query.project, embedder.model_id)
    if query.label not in counts:
        known = ", ".join(filter(None, counts)) or "none yet"
        raise ConfigError(f"The label {query.label!r} has no exemplars.", f"Labels with exemplars: {known}.")
    digest = found.projects.patterns.digest(query.project, embedder.model_id) or ""
    name = similar_name(query.project, query.label, query.limit, query.safe)
    known_tracks = found.jobs.board.published(name)
    fresh = known_tracks is not None and known_tracks[1]["digest"] == digest
    # New tracks come without another digest.
    fresh = fresh and known_tracks is not None and _age(known_tracks[0]) < STATS_S
    job = None
    if not fresh:
        asked = (query.project, query.label, query.limit, query.safe)
        job = _unless_failed(found, name) or _job(found.control.similar(*asked))
    at, facts = known_tracks or (None, {})
    return {
        "project": query.project,
        "label": query.label,
        "found_at": _iso(at),
        "tracks": facts.get("tracks", []),
        "skipped": facts.get("skipped", []),
        "job": job,
    }, 200 if fresh else 202


def statistics(query: bodies.Statistics) -> tuple[answers.Statistics, int]:
    found, name = services(), stats_name(query.project)
    known = found.jobs.board.published(name)
    fresh = known is not None and not query.fresh and _age(known[0]) < STATS_S
    job = None
    if not fresh:
        failed = None if query.fresh else _unless_failed(found, name)
        job = failed or _job(found.control.statistics(query.project))
    at, facts = known or (None, {})
    return {
        "project": query.project,
        "counted_at": _iso(at),
        "videos": facts.get("videos", 0),
        "video_seconds": facts.get("video_seconds", 0.0),
        "rows": facts.get("rows", []),
        "skipped": facts.get("skipped", []),
        "acceptance": found.trainings.accepted(query.project),
        "job": job,
    }, 200 if known else 202


def _unless_failed(found: Services, name: str) -> answers.Job | None:
    """A job that failed a moment ago: whoever polls a GET must not start it over and over."""
    job = found.jobs.get(name)
    if job is None or job["state"] != FAILED or not job["ended_at"]:
        return None
    ended = datetime.fromisoformat(job["ended_at"]).timestamp()
    return _job(job) if _age(ended) < STATS_S else None


def train(body: bodies.Train) -> tuple[answers.JobAnswer, int]:
    found = services()
    if found.settings.detector == "motion":
        raise ConfigError(
            "DETECTOR=motion is set: there is no network that could be trained.", "Set DETECTOR=auto or yolo."
        )
    return requested(found.control.train(body.project, force=body.force))


def versions(query: bodies.OfProject) -> answers.Versions:
    trainings = services().trainings
    facts: Any = trainings.versions(query.project) | {"before": trainings.before(query.project)}
    return dict(facts)  # type: ignore[return-value]


def rollback(body: bodies.Rollback) -> answers.Switched:
    found = services()
    current = found.projects.registry.current(body.project)
    name = current.name if current else BASE
    if name != body.instead_of:
        raise Conflict(f"{name} is in use, not {body.instead_of}.", "Look at the versions again.")
    before = found.projects.models(body.project).version
    found.trainings.activate(body.project, found.trainings.before(body.project), _BY)
    return _switched(found, body.project, before)


# -- jobs


def auto_label(body: bodies.AutoLabel) -> tuple[answers.JobAnswer, int]:
    return requested(services().control.auto_label(body.project, body.tasks or []))


def jobs(query: bodies.ListJobs) -> answers.JobList:
    found = [item for item in all_jobs(services()) if query.project in (None, item["project"])]
    return {"jobs": [_job(item) for item in found[: query.limit]], "total": len(found)}


def job(job_id: str) -> answers.Job:
    return _known(services().jobs.get(job_id))


def cancel(job_id: str) -> answers.Job:
    return _known(services().jobs.cancel(job_id))


def _known(found: dict[str, Any] | None) -> answers.Job:
    if found is None:
        raise Unknown("There is no such job.", "Results are kept for a week; GET /api/jobs lists what is known.")
    return _job(found)


def requested(found: dict[str, Any]) -> tuple[answers.JobAnswer, int]:
    """The answer that names a job."""
    return {"job": _job(found)}, 202


def _job(found: dict[str, Any]) -> answers.Job:
    return found  # type: ignore[return-value]


def _age(moment: float) -> float:
    return datetime.now(timezone.utc).timestamp() - moment


def _iso(moment: float | None) -> str | None:
    return None if moment is None else datetime.fromtimestamp(moment, timezone.utc).isoformat(timespec="milliseconds")
