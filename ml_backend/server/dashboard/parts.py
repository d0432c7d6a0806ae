"""The parts of the page: each can be drawn by itself, again and again. They ask the API's own handlers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from hashlib import sha256
from pathlib import Path
from typing import Any

from ml_backend.core.errors import LabelStudioError
from ml_backend.labeling.model_version import BASE
from ml_backend.server.api import handlers as control_room
from ml_backend.server.api import requests as bodies
from ml_backend.server.dashboard import charts
from ml_backend.server.dashboard.state import PageState
from ml_backend.server.problems import Unknown
from ml_backend.server.protocol import services

Facts = dict[str, Any]
#: Rows that are shown at once, pictures of a label at first and on request, and tracks that are alike.
TASKS, JOBS, FEW, MANY, ALIKE = 20, 12, 6, 60, 24
#: Versions that are shown: what is known of hundreds is megabytes.
VERSIONS = 20
#: Labels that come with pictures at once; others on request.
PICTURED = 8
LIVE = ("running", "cancelling", "queued", "waiting")


@dataclass(frozen=True, slots=True)
class PagePart:
    """A part of the page.

    Attributes:
        facts: what its template is given.
        on: what it is drawn anew for when it has changed: ``jobs``, ``status``, ``mode``, ``version`` (also at every
            epoch of a training), ``current`` (another version is in use), or jobs of a kind. See :func:`marks`.
        starts: whether drawing it may start a job.
        everywhere: whether it can be drawn without a project.
    """

    facts: Callable[[PageState], Facts]
    on: tuple[str, ...] = ()
    starts: bool = False
    everywhere: bool = False


def _project(state: PageState) -> int:
    if state.project is None:
        raise Unknown("No project is chosen.", "Choose one.")
    return state.project


def _page(state: PageState, name: str, count: int) -> tuple[int, int]:
    """Which page of a part's table is asked for, at most the last one, and how many there are."""
    pages = max(-(-count // TASKS), 1)
    return min(state.number(f"page-{name}"), pages), pages


def _jobs_of(state: PageState) -> list[Any]:
    return control_room.jobs(bodies.ListJobs(project=state.project, limit=500))["jobs"]


# -- beside the steps


def _jobs(state: PageState) -> Facts:
    found = _jobs_of(state)
    live = [item for item in found if item["state"] in LIVE]
    over = [item for item in found if item["state"] not in LIVE]
    return {"live": live[:JOBS], "more": max(len(live) - JOBS, 0), "over": over[:6]}


def _system(state: PageState) -> Facts:
    return {"status": control_room.status(bodies.OfAnyProject(project=state.project))}


# -- 1. label


def _projects(state: PageState) -> Facts:
    found = state.projects or control_room.projects()["projects"]
    page, pages = _page(state, "projects", len(found))
    return {"projects": found[(page - 1) * TASKS : page * TASKS], "page": page, "pages": pages}


def _counts(state: PageState) -> Facts:
    body = bodies.Statistics(project=_project(state), fresh=state.values.get("fresh") == "1")
    found, _ = control_room.statistics(body)
    rows = found["rows"]
    return {
        "found": found,
        "labels": [row for row in rows if row["kind"] == "label"],
        "people": [row for row in rows if row["kind"] == "annotator"],
        "bar": charts.bar,
    }


# -- 2. learn


def _patterns(state: PageState) -> Facts:
    found = control_room.patterns_info(bodies.OfProject(project=_project(state)))
    labels = list(found["labels"])
    pictures = {label: _pictures(state, label, FEW) for label in labels[:PICTURED]}
    return {
        "found": found,
        "pictures": pictures,
        "order": {label: number for number, label in enumerate(labels)},
        "key": charts.key,
        "scatter": charts.scatter,
    }


def _pictures(state: PageState, label: str, limit: int) -> list[Any]:
    return control_room.exemplars(bodies.ShowExemplars(project=_project(state), label=label, limit=limit))["exemplars"]


def _exemplars(state: PageState) -> Facts:
    label = state.values.get("label", "")[:255]
    return {"label": label, "exemplars": _pictures(state, label, MANY)}


def _similar(state: PageState) -> Facts:
    label = state.values.get("label", "")[:255]
    if not label:
        return {"found": None, "label": ""}
    found, _ = control_room.similar(bodies.FindSimilar(project=_project(state), label=label, limit=ALIKE))
    return {"found": found, "label": label}


def _versions(state: PageState) -> Facts:
    project, trainings = _project(state), services().trainings
    found = trainings.versions(project, VERSIONS) | {"before": trainings.before(project)}
    # Such a version cannot be used, whatever became of it; its reason says the rest.
    found["versions"] = [v | {"state": "removed"} if v["weights_removed"] else v for v in found["versions"]]
    jobs = [item for item in _jobs_of(state) if item["kind"] == "train" and item["state"] in LIVE]
    shown = next((item for item in found["versions"] if item["history"]), None)
    return {
        "found": found,
        "trainings": jobs,
        "shown": shown,
        "lines": history(shown["history"]) if shown else {},
        "curves": charts.curves,
        "motion": services().settings.detector == "motion",
        "acceptance": list(reversed(found["acceptance"]))[:10],
    }


def history(epochs: list[Mapping[str, Any]]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Curves of a training by name: ``loss``, and ``map`` (precision on its validation part)."""
    found: dict[str, dict[str, list[tuple[float, float]]]] = {"loss": {}, "map": {}}
    names = {"map50": "mAP50", "map50_95": "mAP50-95"}
    for item in epochs:
        epoch = float(item.get("epoch", 0))
        for name, value in (item.get("losses") or {}).items():
            found["loss"].setdefault(name, []).append((epoch, float(value)))
        for key, name in names.items():
            if item.get(key) is not None:
                found["map"].setdefault(name, []).append((epoch, float(item[key])))
    return found


# -- 3. auto-label, and 4. review


def _tasks(state: PageState, name: str = "tasks") -> Facts:
    project, asked = _project(state), state.number(f"page-{name}")
    lister = services().lister
    try:
        found, total = lister.tasks(project, asked, TASKS)
    except LabelStudioError as error:
        if asked == 1 or error.retryable:
            raise
        # Perhaps tasks have gone since the link to that page was drawn.
        asked, _ = _page(state, name, lister.tasks(project, 1, 1)[1])
        found, total = lister.tasks(project, asked, TASKS)
    page, pages = _page(state, name, total)
    return {"tasks": found, "total": total, "page": page, "pages": pages}


def _renders(state: PageState) -> Facts:
    return _tasks(state, "renders") | {"trained": services().projects.trained(_project(state)) is not None}


def _mode(state: PageState) -> Facts:
    project = _project(state)
    found = services()
    current = found.registry.current(project)
    names = found.trainings.usable(project)
    return {"mode": found.projects.mode(project), "current": current.name if current else BASE, "names": names}


def _auto(state: PageState) -> Facts:
    kinds = ("auto_label", "predict", "prepare", "refresh")
    found = [item for item in _jobs_of(state) if item["kind"] in kinds]
    return {"live": [item for item in found if item["state"] in LIVE][:JOBS], "over": found[:1]}


def _files(state: PageState) -> Facts:
    jobs = [item for item in _jobs_of(state) if isinstance(item["result"], dict)]
    results = {item["result"].get("file"): item for item in jobs}
    found = [_file(path, results.get(path.name)) for path in services().outputs.of_project(_project(state))]
    page, pages = _page(state, "files", len(found))
    videos = [item for item in found if item["name"].endswith(".mp4")]
    chosen = [name for name in (state.values.get("a"), state.values.get("b")) if name]
    shown = [item for name in chosen for item in videos if item["name"] == name] or videos[:1]
    return {
        "files": found[(page - 1) * TASKS : page * TASKS],
        "page": page,
        "pages": pages,
        "videos": videos,
        "shown": shown,
    }


def _file(path: Path, job: Any) -> Facts:
    """A file, with what its job tells of it; a job's name is given again, and an older file's job is then unknown."""
    try:
        stat = path.stat()
    except OSError:  # it was removed at this moment
        return {"name": path.name, "bytes": None, "at": None, "facts": {}, "task": None, "key": "gone"}
    at = datetime.fromtimestamp(stat.st_mtime, timezone.utc).isoformat(timespec="seconds")
    known = {"facts": job["result"], "task": job["task"]} if job else {"facts": {}, "task": None}
    key = sha256(f"{path.name}/{stat.st_mtime_ns}".encode()).hexdigest()[:12]  # of this content, fit for an id
    return {"name": path.name, "bytes": stat.st_size, "at": at, "key": key, **known}


def marks(project: int | None) -> dict[str, str]:
    """A short text for everything that :attr:`PagePart.on` names; it differs whenever the thing has changed.

    Raises:
        BackendError: Redis or the database does not answer.
    """
    found = services()
    jobs = [item for item in control_room.all_jobs(found) if project in (None, item["project"])]
    state = control_room.look(found)
    holds = [(item["name"], [m["name"] for m in (item["memory"] or {}).get("models", ())]) for item in state["workers"]]
    told: dict[str, Any] = {"jobs": jobs, "status": [state["redis"], state["database"], state["queues"], holds]}
    for item in jobs:  # a kind's jobs that begin, end and go; not how far they are
        told.setdefault(item["kind"], []).append((item["id"], item["ended_at"]))
    if project is not None:
        registry = found.registry
        current, active = registry.current(project), registry.active(project)
        told["mode"] = found.projects.mode(project)
        told["current"] = current.name if current else BASE
        told["version"] = [told["current"], active and (active.name, active.state, len(active.history))]
    return {name: sha256(json.dumps(facts).encode()).hexdigest()[:12] for name, facts in told.items()}


PARTS: Mapping[str, PagePart] = {
    "jobs": PagePart(_jobs, ("jobs",), everywhere=True),
    "system": PagePart(_system, ("status", "mode", "version", "init_models"), everywhere=True),
    "projects": PagePart(_projects, ("import_video",), everywhere=True),
    "counts": PagePart(_counts, ("count_statistics",), starts=True),
    "patterns": PagePart(_patterns, ("describe_patterns", "learn_patterns", "mode"), starts=True),
    "exemplars": PagePart(_exemplars),
    "similar": PagePart(_similar, ("find_similar",), starts=True),
    "versions": PagePart(_versions, ("version", "train")),
    "mode": PagePart(_mode, ("current", "mode", "train")),
    "auto": PagePart(_auto, ("jobs",)),
    "tasks": PagePart(_tasks, ("predict", "auto_label", "import_video")),
    "renders": PagePart(_renders, ("import_video", "version")),
    "files": PagePart(_files, ("render_video", "render_custom_video", "export_project")),
}
