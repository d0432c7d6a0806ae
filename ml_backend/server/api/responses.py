"""Response types of the API. They type the handlers and define the schemas of the OpenAPI document."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, with_config
from typing_extensions import NotRequired, TypedDict

from ml_backend.jobs.live_cameras import LiveCamera
from ml_backend.review.kinds import MomentKind
from ml_backend.server.access import Role

Iso = Annotated[str, Field(description="ISO 8601 timestamp with time zone.")]
JobState = Literal["queued", "waiting", "running", "cancelling", "finished", "failed", "cancelled"]


@with_config(ConfigDict(extra="forbid"))
class Answer(TypedDict):
    """Base of response types: allows no other fields."""


class FieldError(Answer):
    """An invalid field."""

    field: str
    message: str


class Problem(Answer):
    """Problem details (RFC 9457): what is wrong, and how to fix it."""

    type: Annotated[str, Field(description="URN of the kind of error, or about:blank.")]
    title: Annotated[str, Field(description="The kind of error in words.")]
    status: Annotated[int, Field(description="HTTP status.")]
    detail: Annotated[str, Field(description="What is wrong with this request.")]
    hint: Annotated[str, Field(description="How to fix it; may be empty.")]
    cure: Annotated[str, Field(description="Former name of the hint.", deprecated=True)]
    errors: NotRequired[Annotated[list[FieldError], Field(description="Each invalid field.")]]


class Job(Answer):
    """A background job."""

    id: str
    kind: Annotated[str, Field(description="What it does, such as render_video, predict or train.")]
    project: int | None
    task: int | None
    name: Annotated[str | None, Field(description="Name of the uploaded file; null for other kinds.")]
    queue: Annotated[str | None, Field(description="The queue it is in; null once it has ended.")]
    state: JobState
    progress: Annotated[
        dict[str, Any] | None,
        Field(description="`share`, 0 to 1 or null, and depending on the kind of job: stage, done, of, frames, epoch."),
    ]
    eta_s: Annotated[int | float | None, Field(description="Estimated seconds left; null where unknown.")]
    error: Annotated[str, Field(description="Why it, or its last attempt, failed; else empty.")]
    result: Annotated[Any, Field(description="Its result; for files with `file`, the name for /api/download/.")]
    requested_at: Iso | None
    started_at: Iso | None
    ended_at: Iso | None


class JobAnswer(Answer):
    """The requested job, new or already queued or running."""

    job: Job


class JobList(Answer):
    """Running jobs, then waiting ones in order, then ended ones, newest first."""

    jobs: list[Job]
    total: Annotated[int, Field(description="Number of jobs found; long queues are not read to the end.")]


class File(Answer):
    """A rendered video or an export. What it was made from is null for files of earlier releases."""

    name: Annotated[str, Field(description="For /api/download/.")]
    bytes: int
    created_at: Iso
    format: Annotated[str | None, Field(description="Of an export; empty for a rendered video.")]
    source: Annotated[
        str | None, Field(description="annotations, predictions, both, base, or a version such as v2: what it shows.")
    ]
    model: Annotated[str | None, Field(description="Model version of its predictions or tracks; empty without any.")]
    task: Annotated[int | None, Field(description="Of a rendered video.")]
    video: Annotated[str | None, Field(description="Name of the video, or of the first one.")]
    videos: Annotated[int | None, Field(description="Number of videos.")]
    skipped: Annotated[int | None, Field(description="Number of videos that could not be exported.")]
    tracks: Annotated[int | None, Field(description="Number of tracks that are drawn; null for exports.")]


class FileList(Answer):
    """A project's rendered videos and exports, newest first."""

    project: int
    files: list[File]


class Deleted(Answer):
    """The name of a deleted file."""

    deleted: str


class Part(Answer):
    """Whether a component is reachable."""

    up: bool
    error: str


class Disk(Answer):
    """The disk of DATA_DIR of the web process or of a worker."""

    process: Annotated[str, Field(description="Name of the worker; `web` for the process that answers.")]
    free_bytes: int
    needed_bytes: Annotated[int, Field(description="With less, uploads and exports are refused, then all else fails.")]
    error: Annotated[str, Field(description="What to do where too little is free; else empty.")]


class Worker(Answer):
    """A worker process."""

    name: str
    hostname: str
    pid: int
    queues: list[str]
    memory: Annotated[dict[str, Any] | None, Field(description="Its models and memory; null where not reported.")]


class Models(Answer):
    """The models that new predictions would use."""

    mode: str
    detector: Annotated[str | None, Field(description="null where it cannot be used; see `notes`.")]
    engine: Annotated[
        str | None,
        Field(
            description="Inference engine of the detector, as reported by the workers that have loaded it: such as "
            "torch or openvino, or several; opencv for motion; not loaded. See `notes` if another one is configured."
        ),
    ]
    precision: Annotated[
        str | None, Field(description="Precision of its network: fp32 or fp16; null where it is not loaded.")
    ]
    embedder: str | None
    clip: str | None
    text_detector: Annotated[str | None, Field(description="Finds objects of labels that the detector does not know.")]
    version: Annotated[str | None, Field(description="base, or a version of the registry such as v2.")]
    model_version: Annotated[str | None, Field(description="The model version that predictions carry.")]
    notes: list[str]


class Status(Answer):
    """State of the backend."""

    version: str
    redis: Part
    database: Part
    disks: list[Disk]
    label_studio: Annotated[str, Field(description="Its URL; it is not queried.")]
    models: Models
    settings: dict[str, Any]
    workers: list[Worker]
    queues: Annotated[dict[str, dict[str, int]], Field(description="Jobs by queue and state.")]
    versions: Annotated[dict[str, str], Field(description="Versions of Python and of the main packages.")]


class ConfigProblem(Answer):
    """Why a label config is refused, and how to fix it."""

    message: str
    hint: str


class Project(Answer):
    """A Label Studio project, and the mode and version in use."""

    id: int
    title: str
    url: str
    tasks: int
    connected: Annotated[
        bool | None, Field(description="Whether the project's events reach this backend; null where unknown.")
    ]
    config_problem: Annotated[
        ConfigProblem | None, Field(description="Why tasks of this label config get no tracks; null: they do.")
    ]
    annotated: Annotated[int, Field(description="Tasks with annotations.")]
    predicted: Annotated[int | None, Field(description="Tasks with predictions; null where not counted yet.")]
    annotations: int
    predictions: int
    mode: str
    version: str
    policy: dict[str, Any]


class ProjectList(Answer):
    """All projects that the configured token may see, newest first."""

    projects: list[Project]


class Switched(Answer):
    """The mode and version that a project uses now."""

    project: int
    mode: str
    version: str
    model_version: str
    changed: bool


class Declined(Answer):
    """A proposed version that was refused, and the one that stays in use."""

    declined: str
    current: str


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
            description="By label (empty: background): exemplars, objects and tasks; once `job` has computed them, "
            "clusters, threshold and safe_threshold, 0 to 1, classes (of the detector, that the label is bound to; "
            "empty for any), and suspicious (ids of exemplars that the label's others contradict)."
        ),
    ]
    jumps: Annotated[
        list[dict[str, Any]],
        Field(
            description="Annotated tracks that seem to change from one object to another: task, region, label, frame "
            "(from 1, of Label Studio's timeline) and untaught, the part that is not taught (first or second)."
        ),
    ]
    map: Annotated[
        list[dict[str, Any]],
        Field(description="Exemplars (id, label, task, frame) at x and y, -1 to 1: similar ones are close."),
    ]
    job: Annotated[Job | None, Field(description="Computes what is missing; null where nothing is.")]


class Versions(Answer):
    """A project's model registry."""

    project: int
    current: str
    before: Annotated[str, Field(description="The version that a rollback would activate.")]
    proposed: Annotated[str | None, Field(description="The version that waits for a person's decision.")]
    model_version: str
    policy: dict[str, Any]
    versions: Annotated[list[dict[str, Any]], Field(description="Newest first, with metrics and epochs.")]
    activations: list[dict[str, Any]]
    acceptance: Annotated[
        list[dict[str, Any]], Field(description="What annotators did with each version's predictions.")
    ]


class Statistics(Answer):
    """Annotation statistics."""

    project: int
    counted_at: Annotated[Iso | None, Field(description="null until the job has finished.")]
    videos: int
    video_seconds: float
    rows: Annotated[
        list[dict[str, Any]],
        Field(description="By label and by annotator (`kind`, `name`): tracks, boxes, share, frames, seconds, sizes."),
    ]
    skipped: Annotated[list[str], Field(description="Videos that could not be read.")]
    acceptance: list[dict[str, Any]]
    job: Annotated[Job | None, Field(description="Recounts; null where the numbers are recent.")]


class SimilarTracks(Answer):
    """Tracks similar to a label's exemplars."""

    project: int
    label: str
    found_at: Annotated[Iso | None, Field(description="null until the job has finished.")]
    tracks: Annotated[
        list[dict[str, Any]],
        Field(
            description="Best first: score, safe, dropped (too weak for predictions), task, part, track, frame, time, "
            "bbox, original_class, thumbnail (a data URL). Those that were labelled or rejected are left out."
        ),
    ]
    skipped: list[str]
    job: Job | None


class TextSearch(Answer):
    """What is found on frames by text."""

    project: int
    phrase: str
    found_at: Annotated[Iso | None, Field(description="null until the job has finished.")]
    model: Annotated[str | None, Field(description="That searched; null until the job has finished.")]
    conf: Annotated[float | None, Field(description="Lowest score that predictions use (`OPEN_VOCABULARY_CONF`).")]
    frames: Annotated[
        list[dict[str, Any]],
        Field(
            description="Best first: task, frame (of the file, from 0), time in seconds, picture (a data URL) of width "
            "x height pixels, and boxes, which have x, y, width, height in percent, and a score from half of conf on."
        ),
    ]
    label: Annotated[str, Field(description="What to write into the label config, so that it becomes a label.")]
    skipped: Annotated[list[str], Field(description="Tasks that could not be searched.")]
    job: Annotated[Job | None, Field(description="Searches; null once it has finished.")]


class PromptAdded(Answer):
    """A label that is found by its descriptions."""

    project: int
    label: str
    prompts: Annotated[list[str], Field(description="All descriptions that the label has now.")]
    changed: Annotated[bool, Field(description="false: it had them before.")]


class Exemplar(Answer):
    """A crop of an annotated object in the pattern bank."""

    id: int
    label: str
    task: Annotated[int | None, Field(description="null for imported exemplars; see `origin`.")]
    region: str
    frame: Annotated[int, Field(description="Frame of the video, from 0.")]
    origin: str
    thumbnail: Annotated[str | None, Field(description="A data URL.")]
    suspicious: Annotated[
        bool | None,
        Field(description="Whether its label's others contradict it, so that it counts less; null until computed."),
    ]


class Exemplars(Answer):
    """Exemplars, newest first."""

    project: int
    label: Annotated[str | None, Field(description="The requested label; null: any.")]
    exemplars: list[Exemplar]


class Memory(Answer):
    """Memory of the workers."""

    workers: Annotated[
        dict[str, dict[str, Any]], Field(description="By worker: its models, and memory in bytes (ram, gpu or null).")
    ]


class Optimizing(Answer):
    """The workers that were asked to unload idle models."""

    requested: bool
    workers: list[str]


class Moment(Answer):
    """A suspicious moment: something in the tracks of a task is probably wrong."""

    id: str
    kind: MomentKind
    task: int
    author: Annotated[str, Field(description="The annotator, or the model version of the prediction.")]
    is_prediction: bool
    label: Annotated[str, Field(description="Of the track; empty without one.")]
    regions: Annotated[list[str], Field(description="Ids of the regions concerned.")]
    first: Annotated[int, Field(description="First frame, as Label Studio counts: from 1.")]
    last: int
    shown: Annotated[int, Field(description="The frame at which the repair shows best.")]
    time: Annotated[float, Field(description="Of that frame, in seconds.")]
    score: Annotated[float, Field(description="How certain it is, 0 to 1.")]
    gain: Annotated[float, Field(description="Number of boxes that the repair is expected to put right.")]
    reason: str
    repair: Annotated[
        dict[str, Any],
        Field(
            description="Proposed: do (split, join, swap, relabel, end, boxes or delete), region, and its arguments."
        ),
    ]
    proposal: Annotated[str, Field(description="The proposed repair in words.")]
    skipped: Annotated[bool, Field(description="Whether somebody has skipped it.")]
    has_clip: Annotated[bool, Field(description="Whether its clip is rendered.")]


class MomentValue(Answer):
    """A value to filter by, and the number of its moments."""

    value: str | int
    moments: int


class ReviewQueue(Answer):
    """Undecided moments, the largest gain first, skipped ones last."""

    project: int
    moments: list[Moment]
    total: Annotated[int, Field(description="Number of moments that match.")]
    filters: Annotated[
        dict[str, list[MomentValue]], Field(description="By filter (task, kind, label, author) what to choose from.")
    ]
    pending: Annotated[int, Field(description="Number of tasks that are still to be looked at.")]


class BoxAt(Answer):
    """A box at a frame, in percent of the picture."""

    x: float
    y: float
    width: float
    height: float


class TimelineTrack(Answer):
    """A track of a video."""

    number: Annotated[int, Field(description="From 1, by first frame.")]
    region: Annotated[str, Field(description="Id of the region.")]
    label: Annotated[str, Field(description="Empty without one.")]
    score: Annotated[float | None, Field(description="0 to 1; null: none is known.")]
    spans: Annotated[
        list[list[int]], Field(description="First and last frame of each stretch on which it is visible, from 1.")
    ]
    frames: Annotated[int, Field(description="Number of frames on which it is visible.")]
    area: Annotated[float, Field(description="Mean share of the picture that its box covers, 0 to 1.")]
    digest: Annotated[str, Field(description="Changes with the track; a repair names it.")]
    global_id: Annotated[int | None, Field(description="The same in all tasks that show the object; null: none yet.")]
    box: Annotated[BoxAt | None, Field(description="At the frame that was asked for; null if it is not visible there.")]


class VideoTracks(Answer):
    """The tracks of one video of a task."""

    name: Annotated[str, Field(description="Of the video's control in the label config.")]
    file: str
    annotation: Annotated[int | None, Field(description="That the tracks are of; null: of a prediction.")]
    author: Annotated[str, Field(description="The annotator, or the model version of the prediction.")]
    frames_count: Annotated[int, Field(description="Frames of Label Studio's timeline.")]
    frame_rate: float
    width: Annotated[int | None, Field(description="Of the picture in pixels; null: the task does not state it.")]
    height: int | None
    key: Annotated[str, Field(description="Of its frames, for `/api/frame`.")]
    tracks: list[TimelineTrack]


class TaskTracks(Answer):
    """The tracks of a task."""

    project: int
    task: int
    videos: Annotated[list[VideoTracks], Field(description="Empty if the task has no annotation and no prediction.")]


class Repair(Answer):
    """A decision about a moment, or about tracks by hand."""

    id: int
    project: int
    task: Annotated[int, Field(description="The first one, of several.")]
    tasks: Annotated[list[int], Field(description="All tasks that were changed at once.")]
    moment: Annotated[str | None, Field(description="null: made by hand.")]
    count: Annotated[int, Field(description="Number of repairs that were made at once, and are undone at once.")]
    action: str
    description: Annotated[str, Field(description="What was changed; empty if nothing was.")]
    by: str
    at: Iso
    annotation: Annotated[int | None, Field(description="The annotation that was written; null for a prediction.")]
    undone_by: Annotated[str | None, Field(description="null while it is in force.")]
    undone_at: Iso | None


class SimilarMoments(Answer):
    """Undecided moments like one that was accepted, the largest gain first."""

    project: int
    repair: int
    moments: list[Moment]
    total: int


class LeftOut(Answer):
    """A moment that was not accepted."""

    moment: str
    reason: str


class SimilarAccepted(Answer):
    """What was repeated for the moments like an accepted one."""

    repair: Annotated[Repair, Field(description="The first one; undoing it undoes all.")]
    left_out: list[LeftOut]


class ObjectTrack(Answer):
    """A track of an object."""

    task: int
    video: Annotated[str, Field(description="Name of the video's control in the label config.")]
    file: str
    annotation: Annotated[int | None, Field(description="That the track is of; null: of a prediction.")]
    region: Annotated[str, Field(description="Id of the region.")]
    digest: Annotated[str, Field(description="Changes with the track; who gives it another id names it.")]
    label: Annotated[str, Field(description="Empty without one.")]
    first: Annotated[int, Field(description="First frame on which it is visible, from 1.")]
    last: int
    start: Annotated[float, Field(description="Of the first frame, in seconds.")]
    end: float
    global_id: int
    by: Annotated[str | None, Field(description="Who set the id, or had it searched for; null: not known.")]
    found: Annotated[bool, Field(description="Whether a search set it.")]
    thumbnail: Annotated[str | None, Field(description="A data URL; null: no crop of the track is stored.")]


class SeveralTracks(Answer):
    """An object that several tracks show."""

    global_id: int
    tracks: Annotated[list[ObjectTrack], Field(description="By task and first frame.")]


class ObjectList(Answer):
    """Objects that several tracks show, those with the most tracks first."""

    project: int
    read_at: Annotated[Iso | None, Field(description="null until the job has finished.")]
    objects: list[SeveralTracks]
    total: int
    more: Annotated[int, Field(description="Number of tracks that are not listed, beyond 500.")]
    tasks: Annotated[int, Field(description="Number of tasks that were read, those with global ids first.")]
    of: Annotated[int, Field(description="Number of tasks with annotations or predictions.")]
    skipped: Annotated[list[str], Field(description="Tasks that could not be read, and why.")]
    job: Annotated[Job | None, Field(description="Reads the tasks; null once it has finished.")]


class TaskLeftOut(Answer):
    """A task whose tracks keep their global id."""

    task: int
    reason: str


class TracksIdentified(Answer):
    """What was done with tracks of an object."""

    repair: Annotated[Repair, Field(description="The first one; undoing it undoes all.")]
    left_out: list[TaskLeftOut]


class ItemOutcome(Answer):
    """What became of one of several tracks."""

    item: Annotated[str, Field(description="An exemplar's id, or task, part and track of a search with hyphens.")]
    done: bool
    reason: Annotated[str, Field(description="Why it was not done; else empty.")]


class BulkDone(Answer):
    """What was done with several tracks."""

    repair: Annotated[Repair | None, Field(description="The first one; undoing it undoes all. null: none was needed.")]
    outcomes: list[ItemOutcome]
    tab: Annotated[int | None, Field(description="Id of the Data Manager's tab, for the action open.")]


class Repairs(Answer):
    """Decisions about moments and tracks, newest first."""

    project: int
    repairs: list[Repair]


class NextSegment(Answer):
    """A segment of a video that is worth a person's time, and why."""

    task: int
    video: Annotated[str, Field(description="Name of the video's control in the label config.")]
    file: str
    first: Annotated[int, Field(description="First frame, as Label Studio counts: from 1.")]
    last: int
    start: Annotated[float, Field(description="Of the first frame, in seconds.")]
    end: float
    need: Annotated[float, Field(description="Expected number of corrections.")]
    work_s: Annotated[int, Field(description="Estimated seconds of work.")]
    tracks: Annotated[int, Field(description="Number of tracks in it.")]
    uncertain: Annotated[int, Field(description="Number of these with a score below 0.5.")]
    label: Annotated[str, Field(description="Of the least certain track; empty without one.")]
    score: Annotated[float | None, Field(description="Of the least certain track, 0 to 1.")]
    kinds: Annotated[dict[str, int], Field(description="Number of suspicious moments by kind.")]
    covers: Annotated[int, Field(description="Number of other uncertain segments that look like this one.")]
    likeness: Annotated[
        float | None,
        Field(description="To the most similar annotated object: 0 as any other one, 1 the same; null: unknown."),
    ]
    thumbnail: Annotated[str | None, Field(description="Of the least certain track; a data URL.")]


class NextSegments(Answer):
    """What to annotate next, the most worthwhile first."""

    project: int
    chosen_at: Annotated[Iso | None, Field(description="null until the job has finished.")]
    segments: list[NextSegment]
    tasks: Annotated[int, Field(description="Number of tasks that were looked at, those with the lowest scores.")]
    of: Annotated[int, Field(description="Number of tasks with predictions and without annotations.")]
    job: Annotated[Job | None, Field(description="Chooses; null once it has finished.")]


class PairAgreement(Answer):
    """How two people agree on the tasks that both have annotated."""

    a: str
    b: str
    tasks: int
    hota: Annotated[float | None, Field(description="Of boxes and identities, 0 to 1; null without boxes.")]
    idf1: float | None
    kappa: Annotated[
        float | None,
        Field(description="Cohen's kappa of the labels of matched tracks; null if there is one label only."),
    ]
    matched: Annotated[int, Field(description="Number of tracks that both have.")]
    only_a: Annotated[int, Field(description="Number of tracks that only `a` has.")]
    only_b: int
    labels: Annotated[
        dict[str, dict[str, int]],
        Field(description="By label: tracks that both call so (agreed), one calls otherwise (disputed), one lacks."),
    ]
    disputes: Annotated[
        list[dict[str, Any]],
        Field(description="task, first and last frame (from 1), and the labels of a and b; null: no such track."),
    ]


class PersonWork(Answer):
    """What one person annotated, and how it agrees with the others'."""

    person: str
    tasks: int
    tracks: int
    seconds: Annotated[float | None, Field(description="Label Studio's lead time; null: it knows none.")]
    kept: Annotated[int, Field(description="Tracks of the prediction that the person left unchanged.")]
    moved: Annotated[int, Field(description="Whose boxes the person changed, but not their label.")]
    relabelled: int
    deleted: Annotated[int, Field(description="Also those that another track replaces.")]
    added: Annotated[int, Field(description="Tracks that the prediction lacked.")]
    acceptance: Annotated[
        float | None, Field(description="Share of the prediction's tracks that were kept; null: there was none.")
    ]
    hota: Annotated[float | None, Field(description="With all others, 0 to 1; null: nobody else annotated the tasks.")]
    idf1: float | None
    kappa: float | None


class SharedTask(Answer):
    """A task that several people annotated."""

    task: int
    people: list[str]
    disputes: Annotated[int, Field(description="Number of tracks in which two of them differ, over all pairs.")]


class Agreements(Answer):
    """Agreement of the annotators, pair by pair."""

    project: int
    model: bool
    measured_at: Annotated[Iso | None, Field(description="null until the job has finished.")]
    pairs: list[PairAgreement]
    people: Annotated[list[PersonWork], Field(description="Everybody who annotated something; never the model.")]
    tasks: Annotated[list[SharedTask], Field(description="The most disputed ones first, 200 at most.")]
    job: Annotated[Job | None, Field(description="Measures; null once it has finished.")]


class Erased(Answer):
    """What was erased of a project."""

    project: int
    rows: Annotated[int, Field(description="Of the database.")]
    artifacts: Annotated[int, Field(description="Trained weights, clips and frames.")]
    outputs: Annotated[int, Field(description="Exports and rendered videos.")]
    uploads: int
    jobs: int


class ConsensusTrack(Answer):
    """A track that at least one of several people has."""

    label: Annotated[str, Field(description="Of most people who have it; empty without one.")]
    people: Annotated[dict[str, str], Field(description="Who has it, and their labels.")]
    first: Annotated[int, Field(description="First frame on which anybody shows it, from 1.")]
    last: int
    model: Annotated[str | None, Field(description="The model's label of it; null: it has none, or was not asked.")]
    kept: Annotated[bool, Field(description="Whether it is a part of the consensus.")]


class ConsensusVideo(Answer):
    """The tracks of one video of a task."""

    name: Annotated[str, Field(description="Of the video's control in the label config.")]
    tracks: list[ConsensusTrack]


class Consensus(Answer):
    """What the people agree on who annotated a task."""

    project: int
    task: int
    people: Annotated[list[str], Field(description="The last one last; repaired versions count for whom they repair.")]
    model: bool
    ground_truth: Annotated[
        int | None, Field(description="Annotation that is marked as such, so that no consensus is written; null: none.")
    ]
    key: Annotated[str, Field(description="Names what was read when the consensus is written.")]
    videos: list[ConsensusVideo]


class Person(Answer):
    """A person and their role."""

    name: str
    role: Role
    is_default: Annotated[bool, Field(description="Whether no admin has given it.")]
    given_by: str | None
    signed_in_at: Iso | None


class People(Answer):
    """People, by name."""

    people: list[Person]


class LiveCameraList(Answer):
    """Cameras that run, by name."""

    cameras: list[LiveCamera]


class Action(Answer):
    """What somebody did."""

    id: int
    at: Iso
    who: str
    action: str
    project: int | None
    detail: str


class Actions(Answer):
    """Actions, newest first."""

    actions: list[Action]
    total: int
