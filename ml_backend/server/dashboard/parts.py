"""Parts of the page, each of which can be rendered and reloaded by itself. Data comes from the API's handlers."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from threading import Condition
from typing import TYPE_CHECKING, Any

from cachetools import TTLCache, cached

from ml_backend.core.errors import BackendError, LabelStudioError
from ml_backend.jobs.task_plan import cached_label_config
from ml_backend.label_studio.label_config import config_digest, split_prompts
from ml_backend.labeling.model_version import BASE
from ml_backend.review.repair_json import ACCEPT
from ml_backend.server.access import ROLES, person
from ml_backend.server.api import handlers, requests, responses
from ml_backend.server.api.routing import validation_errors
from ml_backend.server.dashboard import charts
from ml_backend.server.dashboard.notices import job_notices
from ml_backend.server.dashboard.state import PageState
from ml_backend.server.problems import Unknown
from ml_backend.server.protocol import services

if TYPE_CHECKING:
    from ml_backend.server.container import WebContainer

log = logging.getLogger(__name__)

Context = dict[str, Any]
#: Rows per page, and live jobs.
TASKS, JOBS = 20, 12
#: Actions on a page.
ACTIONS = 50
#: Thumbnails of a label at first, and on request.
FEW, MANY = 6, 60
#: Labels with thumbnails at first; others on request.
LABELS_WITH_THUMBNAILS = 8
SIMILAR_TRACKS = 24
#: Objects per page, each with all of its tracks.
OBJECTS = 10
#: Versions are large: those of a long-lived project would be megabytes.
VERSIONS = 20
#: Notices at a time; dismissing one shows the next.
NOTICES = 5
#: Clips that are rendered ahead of the moment that is shown, and decisions that are listed.
CLIPS_AHEAD, DECISIONS = 3, 5
#: Similar moments that are listed.
ALIKE = 20
#: Segments that are chosen to be annotated next, unless another number is given.
NEXT_SEGMENTS = 20
#: Seconds for which a project's labels are cached.
LABELS_S = 30.0
#: The step in which a kind of job is requested.
STEP_OF = {
    "import_video": "label",
    "learn_patterns": "learn",
    "train": "learn",
    "auto_label": "auto",
    "predict": "auto",
    "prepare": "auto",
    "refresh": "auto",
    "order_tasks": "repair",
    "match_objects": "repair",
    "render_video": "review",
    "render_custom_video": "review",
    "export_project": "review",
}
#: Tracks of a timeline that are shown, and the parameters of its page.
TRACKS = 300
TIMELINE_VALUES = (
    *("timeline", "video", "frame", "moment", "pick-label", "pick-track"),
    *(f"{name}-{end}" for name in ("score", "frames", "area") for end in ("from", "to")),
)
LIVE = ("running", "cancelling", "queued", "waiting")


@dataclass(frozen=True, slots=True)
class PagePart:
    """A part of the page.

    Attributes:
        context: returns its template's context.
        reload_on: changes that reload it: ``jobs``, ``states`` (of jobs, without their progress), ``status``, ``mode``,
            ``version`` (also at every epoch of a training), ``current`` (another version is in use), ``files``,
            ``cameras``, a kind of jobs (see :func:`change_digests`), or a button that is pressed here.
        starts_job: whether rendering it may start a job.
        needs_project: whether it can only be rendered for a project.
    """

    context: Callable[[PageState], Context]
    reload_on: tuple[str, ...] = ()
    starts_job: bool = False
    needs_project: bool = True


def _project(state: PageState) -> int:
    if state.project is None:
        raise Unknown("No project is chosen.", "Choose a project.")
    return state.project


def _page(state: PageState, name: str, count: int) -> tuple[int, int]:
    """Return the requested page of a part's table, clipped to the last one, and the number of pages."""
    pages = max(-(-count // TASKS), 1)
    return min(state.number(f"page-{name}"), pages), pages


def _jobs_of(state: PageState) -> list[Any]:
    return handlers.jobs(requests.ListJobs(project=state.project, limit=500))["jobs"]


# -- side bar


def _notices(state: PageState) -> Context:
    jobs = [item for item in handlers.all_jobs(services()) if item["project"] == state.project]
    found = job_notices(jobs, state.requested, state.dismissed)
    return {"notices": found[:NOTICES], "more": max(len(found) - NOTICES, 0), "step_of": STEP_OF}


def _jobs(state: PageState) -> Context:
    jobs = _jobs_of(state)
    live = [item for item in jobs if item["state"] in LIVE]
    over = [item for item in jobs if item["state"] not in LIVE]
    return {"live": live[:JOBS], "more": max(len(live) - JOBS, 0), "over": over[:6]}


def _system(state: PageState) -> Context:
    return {"status": handlers.status(requests.OfAnyProject(project=state.project))}


# -- 1. label


def _projects(state: PageState) -> Context:
    projects = state.projects or handlers.projects()["projects"]
    page, pages = _page(state, "projects", len(projects))
    return {
        "projects": projects[(page - 1) * TASKS : page * TASKS],
        "predicting": {item["project"] for item in handlers.all_jobs(services()) if _predicts(item)},
        "page": page,
        "pages": pages,
    }


def _predicts(job: Any) -> bool:
    """Return whether a job is about to give tasks tracks that they lack."""
    return job["kind"] in ("auto_label", "prepare", "predict") and job["state"] in LIVE


def _connection(state: PageState) -> Context:
    projects = state.projects or handlers.projects()["projects"]
    return {"item": next((item for item in projects if item["id"] == state.project), None)}


def _counts(state: PageState) -> Context:
    query = requests.Statistics(project=_project(state), fresh=state.values.get("fresh") == "1")
    statistics, _ = handlers.statistics(query)
    rows = statistics["rows"]
    return {
        "statistics": statistics,
        "labels": [row for row in rows if row["kind"] == "label"],
        "people": [row for row in rows if row["kind"] == "annotator"],
        "bar": charts.bar,
    }


# -- 2. learn


def _patterns(state: PageState) -> Context:
    patterns = handlers.patterns_info(requests.OfProject(project=_project(state)))
    labels = list(patterns["labels"])
    decisions = requests.ListRepairs(project=_project(state), limit=DECISIONS) if labels else None
    return {
        "patterns": patterns,
        "project_labels": _labels(services(), _project(state)) if labels else [],
        "decisions": handlers.repairs(decisions)["repairs"] if decisions else [],
        "exemplars_by_label": {label: _exemplars_of(state, label, FEW) for label in labels[:LABELS_WITH_THUMBNAILS]},
        "order": {label: number for number, label in enumerate(labels)},
        "key": charts.key,
        "scatter": charts.scatter,
    }


def _exemplars_of(state: PageState, label: str, limit: int) -> list[Any]:
    with validation_errors("filter"):
        query = requests.ShowExemplars(project=_project(state), label=label, limit=limit)
    return handlers.exemplars(query)["exemplars"]


def _exemplars(state: PageState) -> Context:
    label = state.values.get("label", "")[:255]
    return {"label": label, "exemplars": _exemplars_of(state, label, MANY)}


def _exemplar(state: PageState) -> Context:
    number = state.number("exemplar", 0)
    if not number:
        return {"chosen": None}
    found = handlers.exemplars(requests.ShowExemplars(project=_project(state), id=number))["exemplars"]
    return {"chosen": number, "exemplar": found[0] if found else None}


def _similar(state: PageState) -> Context:
    label = state.values.get("label", "")[:255]
    if not label:
        return {"similar": None, "label": ""}
    with validation_errors("filter"):
        query = requests.FindSimilar(project=_project(state), label=label, limit=SIMILAR_TRACKS)
    similar, _ = handlers.similar(query)
    labels = [label, *(name for name in _labels(services(), _project(state)) if name != label)]
    return {"similar": similar, "label": label, "project_labels": labels}


def _text_search(state: PageState) -> Context:
    chosen = {name: state.values.get(name, "").strip() for name in ("phrase", "in_tasks")}
    if not chosen["phrase"]:
        return {"search": None, **chosen}
    with validation_errors("field", "Correct it and search again."):
        query = requests.SearchText.model_validate(
            {"project": _project(state), "phrase": chosen["phrase"], "fresh": state.values.get("again") == "1"}
            | ({"tasks": ",".join(chosen["in_tasks"].replace(",", " ").split())} if chosen["in_tasks"] else {})
        )
    search, _ = handlers.search_text(query)
    config, labels = _label_config(services(), query.project) if search["found_at"] else ("", [])
    first = split_prompts(query.phrase)[0]
    return {"search": search, "labels": labels, "config": config_digest(config), "first": first, **chosen}


def _versions(state: PageState) -> Context:
    project, trainings = _project(state), services().trainings
    registry = trainings.versions(project, VERSIONS) | {"before": trainings.rollback_target(project)}
    # Without weights a version cannot be used, whatever its state was.
    registry["versions"] = [v | {"state": "removed"} if v["weights_removed"] else v for v in registry["versions"]]
    jobs = [item for item in _jobs_of(state) if item["kind"] == "train" and item["state"] in LIVE]
    shown = next((item for item in registry["versions"] if item["history"]), None)
    proposal = next((item for item in registry["versions"] if item["version"] == registry["proposed"]), None)
    return {
        "proposal": proposal,
        "registry": registry,
        "trainings": jobs,
        "shown": shown,
        "expected_s": sum(float(item.get("seconds") or 0.0) for item in shown["history"]) if shown else None,
        "lines": history(shown["history"]) if shown else {},
        "curves": charts.curves,
        "motion": services().settings.detector == "motion",
        "acceptance": list(reversed(registry["acceptance"]))[:10],
    }


def history(epochs: list[Mapping[str, Any]]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Return the curves of a training by chart: ``loss``, and ``map`` on its validation split."""
    curves: dict[str, dict[str, list[tuple[float, float]]]] = {"loss": {}, "map": {}}
    names = {"map50": "mAP50", "map50_95": "mAP50-95"}
    for item in epochs:
        epoch = float(item.get("epoch", 0))
        for name, value in (item.get("losses") or {}).items():
            curves["loss"].setdefault(name, []).append((epoch, float(value)))
        for key, name in names.items():
            if item.get(key) is not None:
                curves["map"].setdefault(name, []).append((epoch, float(item[key])))
    return curves


# -- 3. auto-label, and 5. export


def _tasks(state: PageState, name: str = "tasks") -> Context:
    project, requested = _project(state), state.number(f"page-{name}")
    lister = services().lister
    try:
        tasks, total = lister.tasks(project, requested, TASKS)
    except LabelStudioError as error:
        if requested == 1 or error.retryable:
            raise
        # Tasks may have been deleted since the link to that page was rendered.
        requested, _ = _page(state, name, lister.tasks(project, 1, 1)[1])
        tasks, total = lister.tasks(project, requested, TASKS)
    page, pages = _page(state, name, total)
    # A job of a whole project has no task. An auto-labelling may be of some tasks, which soon have jobs of their own.
    jobs = {item["task"] for item in _jobs_of(state) if _predicts(item) and item["kind"] != "auto_label"}
    waiting = {item["id"] for item in tasks} if None in jobs else jobs
    return {"tasks": tasks, "waiting": waiting, "total": total, "page": page, "pages": pages}


def _renders(state: PageState) -> Context:
    return _tasks(state, "renders") | {"trained": services().projects.trained(_project(state)) is not None}


def _mode(state: PageState) -> Context:
    project, container = _project(state), services()
    current = container.registry.current(project)
    names = container.trainings.usable_versions(project)
    return {"mode": container.projects.mode(project), "current": current.name if current else BASE, "names": names}


def _auto(state: PageState) -> Context:
    kinds = ("auto_label", "predict", "prepare", "refresh")
    jobs = [item for item in _jobs_of(state) if item["kind"] in kinds]
    return {"live": [item for item in jobs if item["state"] in LIVE][:JOBS], "over": jobs[:1]}


# -- 4. review


def _moments(state: PageState) -> Context:
    project, container, number = _project(state), services(), state.number("page-moments")
    filters = {name: value for name in ("kind", "label", "author") if (value := state.values.get(name, "")[:255])}
    if task := state.number("task", 0):
        filters["task"] = str(task)
    with validation_errors("parameter", "Reload the page."):
        query = requests.FindMoments.model_validate(
            {"project": project, **filters, "limit": 1 + CLIPS_AHEAD, "offset": number - 1}, strict=False
        )
        found = handlers.review(query)
        if number > 1 and not found["moments"]:  # others have decided since
            number = max(found["total"], 1)
            found = handlers.review(query.model_copy(update={"offset": number - 1}))
    for place, item in enumerate(found["moments"]):
        if not item["has_clip"]:
            container.queue.request_clip(project, item["id"], shown=place == 0)
    suspect = next(iter(found["moments"]), None)
    decisions = handlers.repairs(requests.ListRepairs(project=project, limit=DECISIONS))["repairs"]
    return {
        "queue": found,
        "suspect": suspect,
        "ahead": [item for item in found["moments"][1:] if item["has_clip"]][:1],
        "labels": _labels(container, project) if suspect else [],
        "chosen": filters,
        "page": number,
        "pages": max(found["total"], 1),
        "decisions": decisions,
        "alike": _alike(project, decisions),
    }


def _alike(project: int, decisions: Sequence[responses.Repair]) -> responses.SimilarMoments | None:
    """Return the moments like the one that was accepted last, if that was the last decision in force."""
    last = next((item for item in decisions if not item["undone_by"]), None)
    if last is None or last["action"] != ACCEPT:
        return None
    query = requests.FindSimilarMoments(project=project, repair=last["id"], limit=ALIKE)
    found = handlers.similar_moments(query)
    return found if found["moments"] else None


def _timeline(state: PageState) -> Context:
    context = _task_video(state)
    video, project, container = context["video"], context["project"], services()
    rows = video["tracks"] if video else []
    chosen = _chosen_tracks(state, rows) | set(context["of_moment"]["regions"] if context["of_moment"] else ())
    shown = [row for row in rows if row["region"] in chosen] if len(rows) > TRACKS and chosen else rows
    decisions = requests.ListRepairs(project=project, task=context["task"], limit=DECISIONS)
    return context | {
        "rows": shown[:TRACKS],
        "more": max(len(shown) - TRACKS, 0),
        "picked": chosen,
        "values": state.values,
        "labels": _labels(container, project) if video else [],
        "decisions": handlers.repairs(decisions)["repairs"],
    }


def _frame(state: PageState) -> Context:
    return _task_video(state)


def _task_video(state: PageState) -> Context:
    """Return a task's video that is chosen, and the frame that is shown: the one asked for, or that of a moment."""
    project, task = _project(state), state.number("timeline", 0)
    if not task:
        raise Unknown("No task is chosen.", "Choose a task.")
    moment = services().reviews.store.get(project, state.values.get("moment", "")[:16])
    frame = state.number("frame", moment["shown"] if moment else 1)
    found = handlers.tracks(requests.ShowTracks(project=project, task=task, frame=frame))["videos"]
    names = [video["name"] for video in found]
    wanted = state.values.get("video", moment["video"] if moment else "")
    video = found[names.index(wanted) if wanted in names else 0] if found else None
    if video and frame > video["frames_count"]:
        frame = max(video["frames_count"], 1)
    labels = sorted({row["label"] for row in video["tracks"]}) if video else []
    place = {"timeline": task, "video": video["name"] if video else None, "frame": frame}
    return {
        "project": project,
        "task": task,
        "names": names,
        "video": video,
        "frame": frame,
        "of_moment": moment,
        "place": place,
        "track_labels": labels,
        "colours": {label: number % 8 for number, label in enumerate(labels)},
    }


def _chosen_tracks(state: PageState, rows: Sequence[responses.TimelineTrack]) -> set[str]:
    """Return the regions of the tracks that fulfil all conditions of the request; none without a condition."""
    conditions: list[Callable[[responses.TimelineTrack], bool]] = []
    if label := state.values.get("pick-label", ""):
        conditions.append(lambda row: row["label"] == label[1:])  # which may be empty
    if region := state.values.get("pick-track", ""):
        conditions.append(lambda row: row["region"] == region)
    for name, unit in (("score", 0.01), ("frames", 1.0), ("area", 0.01)):
        low, high = (_decimal(state.values.get(f"{name}-{end}", "")) for end in ("from", "to"))
        if low is not None or high is not None:
            low, high = (-math.inf if low is None else low * unit), (math.inf if high is None else high * unit)
            conditions.append(partial(_is_within, name=name, low=low, high=high))
    return {row["region"] for row in rows if conditions and all(condition(row) for condition in conditions)}


def _is_within(row: responses.TimelineTrack, name: str, low: float, high: float) -> bool:
    value: float | None = row[name]  # type: ignore[literal-required]
    return value is not None and low <= value <= high


def _decimal(text: str) -> float | None:
    try:
        return float(text) if math.isfinite(float(text)) else None
    except ValueError:
        return None


def _next(state: PageState) -> Context:
    amount, unit = state.number("amount", 0), "minutes" if state.values.get("unit") == "minutes" else "segments"
    chosen = {"budget": amount or NEXT_SEGMENTS, "unit": unit}
    if not amount:
        return {"found": None, **chosen}
    with validation_errors("parameter", "Choose a smaller number."):
        query = requests.ChooseNext.model_validate(
            {"project": _project(state), unit: amount, "fresh": state.values.get("again") == "1"}
        )
    found, _ = handlers.next_segments(query)
    return {"found": found, **chosen}


def _objects(state: PageState) -> Context:
    project = _project(state)
    number = min(state.number("page-objects"), (1 << 31) // OBJECTS)  # as far as the API counts
    query = requests.ListObjects(
        project=project, limit=OBJECTS, offset=OBJECTS * (number - 1), fresh=state.values.get("fresh") == "1"
    )
    found, _ = handlers.objects(query)
    pages = max(-(-found["total"] // OBJECTS), 1)
    if number > pages:  # others have taken tracks out since
        number = pages
        found, _ = handlers.objects(query.model_copy(update={"offset": OBJECTS * (number - 1), "fresh": False}))
    decisions = handlers.repairs(requests.ListRepairs(project=project, limit=DECISIONS))["repairs"]
    return {"found": found, "page": number, "pages": pages, "decisions": decisions}


def _agreement(state: PageState) -> Context:
    model = state.values.get("model") == "1"
    query = requests.MeasureAgreement(project=_project(state), model=model, fresh=state.values.get("fresh") == "1")
    found, _ = handlers.agreement(query)
    return {"agreement": found, "with_model": model}


def _consensus(state: PageState) -> Context:
    project, task, model = _project(state), state.number("consensus", 0), state.values.get("model") == "1"
    if not task:
        raise Unknown("No task is chosen.", "Choose a task.")
    found = handlers.consensus(requests.ShowConsensus(project=project, task=task, model=model))
    decisions = handlers.repairs(requests.ListRepairs(project=project, task=task, limit=DECISIONS))["repairs"]
    return {"found": found, "with_model": model, "decisions": decisions}


@cached(TTLCache(64, LABELS_S), key=lambda container, project: (container.jobs, project), condition=Condition())
def _labels(container: WebContainer, project: int) -> list[str]:
    return _label_config(container, project)[1]


def _label_config(container: WebContainer, project: int) -> tuple[str, list[str]]:
    """Return a project's label config and the labels of its videos; nothing while Label Studio does not answer."""
    try:
        xml = container.client.get_project(project).label_config
        return xml, [*cached_label_config(xml).labels]
    except BackendError as error:
        log.warning("The labels of project %s are not offered: %s", project, error)
        return "", []


def _files(state: PageState) -> Context:
    files = handlers.files(requests.OfProject(project=_project(state)))["files"]
    page, pages = _page(state, "files", len(files))
    videos = [item for item in files if item["name"].endswith(".mp4")]
    chosen = [name for name in (state.values.get("a"), state.values.get("b")) if name]
    shown = [item for name in chosen for item in videos if item["name"] == name] or videos[:1]
    return {
        "files": files[(page - 1) * TASKS : page * TASKS],
        "page": page,
        "pages": pages,
        "videos": videos,
        "shown": shown,
    }


# -- cameras


def _cameras(state: PageState) -> Context:
    return {"cameras": handlers.cameras()["cameras"]}


# -- access


def _people(state: PageState) -> Context:
    return {"people": handlers.people()["people"], "roles": ROLES, "me": person().name}


def _audit(state: PageState) -> Context:
    from ml_backend.db.audit import MAX_ROWS

    only = state.project if state.values.get("only") == "1" else None
    number = min(state.number("page-audit"), MAX_ROWS // ACTIONS + 1)
    query = requests.ListActions(project=only, limit=ACTIONS, offset=ACTIONS * (number - 1))
    found = handlers.audit(query)
    pages = max(-(-found["total"] // ACTIONS), 1)
    return {"actions": found["actions"], "only": only, "page": number, "pages": pages}


def change_digests(project: int | None) -> dict[str, str]:
    """Return a digest for each name in :attr:`PagePart.reload_on`, which changes with what the name stands for.

    Raises:
        BackendError: Redis or the database is unavailable.
    """
    container = services()
    jobs = [item for item in handlers.all_jobs(container) if project in (None, item["project"])]
    state = handlers.system_state(container)
    models = [
        (item["name"], [m["name"] for m in (item["memory"] or {}).get("models", ())]) for item in state["workers"]
    ]
    full = [disk["process"] for disk in state["disks"] if disk["error"]]
    values: dict[str, Any] = {"jobs": jobs, "status": [state[name] for name in ("redis", "database", "queues")]}
    values["status"] += [models, full]
    values["cameras"] = [camera.model_dump_json() for camera in handlers.all_cameras(container)]
    values["states"] = [(item["id"], item["state"], item["ended_at"]) for item in jobs]
    for item in jobs:  # by kind only their start, end and expiry, not their progress
        values.setdefault(item["kind"], []).append((item["id"], item["ended_at"]))
    if project is not None:
        registry = container.registry
        current, active, proposed = registry.current(project), registry.running(project), registry.proposed(project)
        values["mode"] = container.projects.mode(project)
        values["current"] = current.name if current else BASE
        values["moments"] = container.reviews.store.state(project)
        values["files"] = [output.name for output in container.outputs.of_project(project)]
        values["version"] = [
            values["current"],
            active and (active.name, active.state, len(active.history)),
            proposed and proposed.name,
        ]
    return {name: sha256(json.dumps(value).encode()).hexdigest()[:12] for name, value in values.items()}


PARTS: Mapping[str, PagePart] = {
    "notices": PagePart(_notices, ("states",)),
    "jobs": PagePart(_jobs, ("jobs",), needs_project=False),
    "system": PagePart(_system, ("status", "mode", "version", "init_models"), needs_project=False),
    "connection": PagePart(_connection, ("auto_label",)),
    "projects": PagePart(_projects, ("import_video", "auto_label", "prepare", "predict"), needs_project=False),
    "counts": PagePart(_counts, ("count_statistics",), starts_job=True),
    "patterns": PagePart(_patterns, ("describe_patterns", "learn_patterns", "mode", "moments"), starts_job=True),
    "exemplars": PagePart(_exemplars),
    "exemplar": PagePart(_exemplar),
    "similar": PagePart(_similar, ("find_similar", "moments"), starts_job=True),
    "text_search": PagePart(_text_search, ("search_text", "add_prompt"), starts_job=True),
    "versions": PagePart(_versions, ("version", "train")),
    "mode": PagePart(_mode, ("current", "mode", "train")),
    "auto": PagePart(_auto, ("jobs",)),
    "tasks": PagePart(_tasks, ("prepare", "predict", "auto_label", "import_video")),
    "renders": PagePart(_renders, ("import_video", "version")),
    "files": PagePart(_files, ("files",)),
    "agreement": PagePart(_agreement, ("measure_agreement",), starts_job=True),
    "objects": PagePart(_objects, ("list_objects", "match_objects", "moments"), starts_job=True),
    "consensus": PagePart(_consensus, ("moments",)),
    "next": PagePart(_next, ("choose_next",), starts_job=True),
    "moments": PagePart(_moments, ("moments",), starts_job=True),
    "timeline": PagePart(_timeline, ("moments",)),
    "frame": PagePart(_frame, ("moments",)),
    "cameras": PagePart(_cameras, ("cameras",), needs_project=False),
    "people": PagePart(_people, needs_project=False),
    "audit": PagePart(_audit, ("states", "files", "current"), needs_project=False),
}
