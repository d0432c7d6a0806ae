"""What the API answers. OpenAPI's schemas are made of these types, which also bind the handlers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, with_config
from typing_extensions import NotRequired, TypedDict

Iso = Annotated[str, Field(description="A moment in ISO 8601, with time zone.")]
JobState = Literal["queued", "waiting", "running", "cancelling", "finished", "failed", "cancelled"]


@with_config(ConfigDict(extra="forbid"))
class Answer(TypedDict):
    """Has no fields but those that are named."""


class FieldError(Answer):
    """A field that is wrong."""

    field: str
    message: str


class Problem(Answer):
    """Problem details (RFC 9457): what is wrong, and what can be done about it."""

    type: Annotated[str, Field(description="A URN by the kind of error, or about:blank.")]
    title: Annotated[str, Field(description="The kind of error in words.")]
    status: Annotated[int, Field(description="HTTP status.")]
    detail: Annotated[str, Field(description="What is wrong with this request.")]
    hint: Annotated[str, Field(description="What can be done about it; may be empty.")]
    cure: Annotated[str, Field(description="The hint by its former name.", deprecated=True)]
    errors: NotRequired[Annotated[list[FieldError], Field(description="Each field that is wrong.")]]


class Job(Answer):
    """A piece of long work."""

    id: str
    kind: Annotated[str, Field(description="What it does, such as render_video, predict or train.")]
    project: int | None
    task: int | None
    queue: Annotated[str | None, Field(description="The queue it is in; null once it is over.")]
    state: JobState
    progress: Annotated[
        dict[str, Any] | None,
        Field(description="`share`, 0 to 1 or null, and what the kind of job tells: stage, done, of, frames, epoch."),
    ]
    eta_s: Annotated[int | float | None, Field(description="Seconds that are left, where that can be told.")]
    error: Annotated[str, Field(description="Why it failed, or failed before it is tried again; else empty.")]
    result: Annotated[Any, Field(description="What came of it; of files `file`, for /api/download/.")]
    requested_at: Iso | None
    started_at: Iso | None
    ended_at: Iso | None


class JobAnswer(Answer):
    """The job that does what was asked for, new or already under way."""

    job: Job


class JobList(Answer):
    """Running jobs, then waiting ones in order, then those that have ended, newest first."""

    jobs: list[Job]
    total: Annotated[int, Field(description="Jobs that were found; of long queues not all are looked at.")]


class Part(Answer):
    """Whether a part answers."""

    up: bool
    error: str


class Worker(Answer):
    """A process that does jobs."""

    name: str
    hostname: str
    pid: int
    queues: list[str]
    memory: Annotated[dict[str, Any] | None, Field(description="Its models and memory; null where it tells nothing.")]


class Models(Answer):
    """What would make predictions now."""

    mode: str
    detector: Annotated[str | None, Field(description="null where it cannot be used; `notes` says why.")]
    engine: Annotated[
        str | None,
        Field(
            description="What runs the detector, as the workers that have loaded it tell: such as torch or openvino, "
            "or several; opencv for motion; not loaded. Why it is not the one that was wanted is among `notes`."
        ),
    ]
    precision: Annotated[str | None, Field(description="Of its network: fp32 or fp16; null where it is not loaded.")]
    embedder: str | None
    clip: str | None
    version: Annotated[str | None, Field(description="Of the registry: base or such as v2.")]
    model_version: Annotated[str | None, Field(description="That predictions carry.")]
    notes: list[str]


class Status(Answer):
    """How things are."""

    version: str
    redis: Part
    database: Part
    label_studio: Annotated[str, Field(description="Its address; it is not asked.")]
    models: Models
    settings: dict[str, Any]
    workers: list[Worker]
    queues: Annotated[dict[str, dict[str, int]], Field(description="Jobs by queue and state.")]
    versions: Annotated[dict[str, str], Field(description="Of Python and of what the models run on.")]


class Project(Answer):
    """A project of Label Studio, and how it is labelled here."""

    id: int
    title: str
    url: str
    tasks: int
    annotated: Annotated[int, Field(description="Tasks with annotations.")]
    annotations: int
    predictions: int
    mode: str
    version: str
    policy: dict[str, Any]


class ProjectList(Answer):
    """All projects that the configured token may see, newest first."""

    projects: list[Project]


class Switched(Answer):
    """What a project uses from now on."""

    project: int
    mode: str
    version: str
    model_version: str
    changed: bool


class Loading(Answer):
    """A version in use, and the job that loads it."""

    version: str
    model_version: str
    job: Job


class Patterns(Answer):
    """What a project has learned."""

    project: int
    mode: str
    model_version: str
    embedder: str | None
    clip: str | None
    notes: list[str]
    labels: Annotated[
        dict[str, dict[str, Any]],
        Field(
            description="By label (empty: background): exemplars, objects and tasks; clusters, threshold and "
            "safe_threshold, 0 to 1, as soon as `job` has found them out for the present state."
        ),
    ]
    map: Annotated[
        list[dict[str, Any]],
        Field(description="Exemplars (id, label, task, frame) at x and y, -1 to 1: what looks alike lies together."),
    ]
    job: Annotated[Job | None, Field(description="Finds out what is missing; null where nothing is.")]


class Versions(Answer):
    """A project's registry."""

    project: int
    current: str
    before: Annotated[str, Field(description="What a rollback would lead to.")]
    model_version: str
    policy: dict[str, Any]
    versions: Annotated[list[dict[str, Any]], Field(description="Newest first, with metrics and epochs.")]
    activations: list[dict[str, Any]]
    acceptance: Annotated[list[dict[str, Any]], Field(description="What people did with each version's predictions.")]


class Statistics(Answer):
    """What has been annotated."""

    project: int
    counted_at: Annotated[Iso | None, Field(description="null: not yet; the job does it.")]
    videos: int
    video_seconds: float
    rows: Annotated[
        list[dict[str, Any]],
        Field(description="By label and by annotator (`kind`, `name`): tracks, boxes, share, frames, seconds, sizes."),
    ]
    skipped: Annotated[list[str], Field(description="Videos that could not be read.")]
    acceptance: list[dict[str, Any]]
    job: Annotated[Job | None, Field(description="Counts anew; null where the numbers are new enough.")]


class SimilarTracks(Answer):
    """More like this."""

    project: int
    label: str
    found_at: Annotated[Iso | None, Field(description="null: not yet; the job does it.")]
    tracks: Annotated[
        list[dict[str, Any]],
        Field(description="Best first: score, safe, task, frame, time, bbox, original_class, thumbnail (a data URL)."),
    ]
    skipped: list[str]
    job: Job | None


class Exemplar(Answer):
    """A view of an annotated object."""

    id: int
    label: str
    task: Annotated[int | None, Field(description="null: imported; `origin` says from where.")]
    region: str
    frame: Annotated[int, Field(description="Of the video, from 0.")]
    origin: str
    thumbnail: Annotated[str | None, Field(description="A data URL.")]


class Exemplars(Answer):
    """What a label was taught with, newest first."""

    project: int
    label: str
    exemplars: list[Exemplar]


class Memory(Answer):
    """What workers hold."""

    workers: Annotated[
        dict[str, dict[str, Any]], Field(description="By worker: its models, and memory in bytes (ram, gpu or null).")
    ]


class Optimizing(Answer):
    """Who was asked to unload what is idle."""

    requested: bool
    workers: list[str]
