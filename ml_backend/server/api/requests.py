"""Request models of the API. They validate requests and define the schemas of the OpenAPI document."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    WrapValidator,
    model_validator,
)

from ml_backend.core.outputs import NAME
from ml_backend.core.settings import Mode
from ml_backend.datasets.formats import FormatName
from ml_backend.review.kinds import MomentKind
from ml_backend.server.access import Role


def _whole(value: Any) -> Any:
    """Convert whole floats: JSON has one number type, and to JSON Schema 7.0 is an integer."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _allowed(text: str) -> WrapValidator:
    """Replace the message of an invalid value by one that says what is allowed."""

    def check(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
        try:
            return validate(value)
        except ValidationError as error:
            raise ValueError(text) from error

    return WrapValidator(check)


_Whole = BeforeValidator(_whole)
ProjectId = Annotated[int, Field(ge=1, lt=1 << 31, description="Id of the Label Studio project.", examples=[1]), _Whole]
TaskId = Annotated[int, Field(ge=1, lt=1 << 31, description="Id of the Label Studio task.", examples=[1]), _Whole]
#: Several tasks in an address.
TaskList = Annotated[
    str,
    Field(
        pattern="^[1-9][0-9]{0,8}(,[1-9][0-9]{0,8}){0,9}$",
        description="Ids of up to ten tasks, separated by commas; by default the four newest tasks.",
        examples=["1,2"],
    ),
    _allowed("Input should be ids of up to ten tasks, separated by commas"),
]
VersionName = Annotated[
    str,
    Field(
        pattern=r"^(base|v[0-9]{1,9})$",
        description="A version of the registry, such as v2; base: the configured detector.",
        examples=["v2"],
    ),
    _allowed("Input should be 'base', or a version such as 'v2'"),
]
TrainedName = Annotated[
    str,
    Field(pattern=r"^v[0-9]{1,9}$", description="A version of the registry, such as v2.", examples=["v2"]),
    _allowed("Input should be a version such as 'v2'"),
]
#: PostgreSQL stores no NUL characters.
_NO_NUL = r"^[^\x00]*$"
_Text = Annotated[str, StringConstraints(max_length=255, pattern=_NO_NUL)]
#: 255 is Label Studio's limit.
LabelName = Annotated[
    str,
    Field(min_length=1, max_length=255, pattern=_NO_NUL, description="Name of a label.", examples=["person"]),
]
#: A project in an address.
ProjectNumber = Annotated[str, Field(pattern="^[1-9][0-9]{0,8}$", description="Number of a project.", examples=["1"])]
JobId = Annotated[str, Field(pattern="^[A-Za-z0-9_-]{1,200}$", description="Id of a job.", examples=["train-1"])]
#: Name of a file in the outputs folder.
FileName = Annotated[
    str, Field(pattern=f"^{NAME.pattern}$", description="Name of a file.", examples=["project-1-coco.zip"])
]
#: Number of a clip of a version.
ClipNumber = Annotated[str, Field(pattern="^[0-9]$")]
MomentId = Annotated[
    str,
    Field(pattern="^[0-9a-f]{16}$", description="Id of a suspicious moment.", examples=["0123456789abcdef"]),
]
CameraId = Annotated[
    str,
    Field(pattern="^[0-9a-f]{16}$", description="Id of a camera that runs.", examples=["0123456789abcdef"]),
]
FrameNumber = Annotated[int, Field(ge=1, lt=1 << 31, description="A frame, as Label Studio counts: from 1."), _Whole]
#: Name of a person in records.
PersonName = Annotated[
    str, Field(min_length=1, max_length=100, pattern=_NO_NUL, description="Who; by default the user of Basic auth.")
]
AnnotationId = Annotated[
    int, Field(ge=1, lt=1 << 31, description="That the tracks are of; null: of a prediction."), _Whole
]
GlobalId = Annotated[int, Field(ge=1, le=999_999_999, examples=[12]), _Whole]
ReviewAction = Literal["accept", "split", "join", "swap", "relabel", "end", "delete", "dismiss", "skip"]
ManualAction = Literal["split", "join", "swap", "relabel", "identify", "end", "delete"]
BulkChoice = Literal["label", "reject", "open"]
ExportFormat = Literal["annotations", FormatName]


class RequestModel(BaseModel):
    """Base of request models: rejects unknown fields, and values of another type."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class NoQuery(RequestModel):
    """No parameters."""


class NoFields(RequestModel):
    """No fields."""


class OfProject(RequestModel):
    """Names a project."""

    project: ProjectId


class EraseProject(RequestModel):
    """Confirms that a project's data is erased."""

    confirm: Annotated[int, Field(description="The number of the project once more.", examples=[1])]


class OfAnyProject(RequestModel):
    """May name a project."""

    project: ProjectId | None = None


class ListJobs(OfAnyProject):
    """Selects jobs."""

    limit: Annotated[int, Field(ge=1, le=500, description="Maximum number of jobs.")] = 100


def _requires(field: str) -> dict[str, Any]:
    return {"required": [field], "properties": {field: {"type": "string"}}}


class SwitchModel(OfProject):
    """Another mode, another version, or both."""

    model_config = ConfigDict(json_schema_extra={"anyOf": [_requires("mode"), _requires("version")]})

    mode: Annotated[Literal[Mode, "default"] | None, Field(description="default: the configured mode.")] = None
    version: VersionName | None = None

    @model_validator(mode="after")
    def _require_mode_or_version(self) -> SwitchModel:
        if self.mode is None and self.version is None:
            raise ValueError("one of 'mode' and 'version' is needed")
        return self


class AutoLabel(OfProject):
    """Tasks to predict."""

    tasks: Annotated[
        list[TaskId] | None, Field(min_length=1, max_length=10_000, description="By default all without annotations.")
    ] = None


class Train(OfProject):
    """A training to start."""

    force: Annotated[bool, Field(description="Train even if nothing has changed since the last training.")] = False


class LoadCustomModel(OfProject):
    """A version to use."""

    version: TrainedName


class DeclineVersion(OfProject):
    """A proposed version to refuse."""

    version: TrainedName


class Rollback(OfProject):
    """A version to roll back from."""

    instead_of: Annotated[
        VersionName, Field(description="The version in use, so that a request sent twice rolls back once.")
    ]


class AnnotatedVideo(OfProject):
    """A video to render with boxes."""

    task: TaskId
    source: Annotated[
        Literal["annotations", "predictions", "base"],
        Field(description="What to draw; base: what the configured detector finds now."),
    ] = "annotations"


class CustomModelVideo(OfProject):
    """A video to render with what a trained version finds now."""

    task: TaskId
    version: TrainedName | None = None


class Export(OfProject):
    """A project's annotations as a file."""

    format: Annotated[ExportFormat, Field(description="annotations: JSON rows; the others: a zip archive.")]
    predictions: Annotated[
        Literal["none", "missing", "only"],
        Field(description="Which predictions to export: none, those of tasks without annotations, or nothing else."),
    ] = "none"
    stride: Annotated[int, Field(ge=1, le=100_000, description="Every n-th frame of a dataset."), _Whole] = 1
    with_ids: Annotated[
        bool, Field(description="Add frame_number, from 0, and track_id to the rows of the format annotations.")
    ] = False
    global_ids: Annotated[
        bool,
        Field(
            description="Add global_id, of tracks that have one, in the formats annotations, coco and coco-seg; in mot "
            "it takes the track's place. Other formats have none."
        ),
    ] = False


class MatchObjects(OfProject):
    """A project whose tracks are compared."""

    by: PersonName | None = None


class Upload(RequestModel):
    """A video to upload to a project, as a form."""

    project: Annotated[
        ProjectId,
        WithJsonSchema({"type": "string", "pattern": "^[1-9][0-9]{0,9}$", "description": "Id of the project."}),
    ]
    file: Annotated[
        str,
        WithJsonSchema({"type": "string", "contentMediaType": "application/octet-stream", "description": "A video."}),
    ]


class FindSimilar(OfProject):
    """A search for tracks similar to a label's exemplars."""

    label: LabelName
    limit: Annotated[int, Field(ge=1, le=500, description="Maximum number of results.")] = 50
    safe: Annotated[bool, Field(description="Only tracks similar enough to be labelled without review.")] = False


class OfPhrase(OfProject):
    """Has a phrase that describes objects of a project."""

    phrase: Annotated[
        str,
        Field(
            min_length=1,
            max_length=200,
            pattern=r"^[^\x00]*[^\x00\s|][^\x00]*$",
            description="What is searched for, or several descriptions of it, separated by |.",
            examples=["yellow safety vest|high-visibility jacket"],
        ),
    ]


class AddPrompt(OfPhrase):
    """A label that is to be found by a phrase."""

    label: LabelName
    config: Annotated[
        str | None,
        Field(
            pattern="^[0-9a-f]{16}$",
            description="First 16 hex digits of the SHA-256 of the label config that you have seen: if it is another "
            "one by now, 409 is returned.",
        ),
    ] = None


class SearchText(OfPhrase):
    """A phrase that frames of a project are searched for."""

    tasks: TaskList | None = None
    frames: Annotated[int, Field(ge=1, le=48, description="Number of frames, of all videos together.")] = 12
    fresh: Annotated[bool, Field(description="Search again.")] = False

    @property
    def task_ids(self) -> list[int]:
        """The tasks, each once, in order."""
        return sorted(set(map(int, self.tasks.split(",")))) if self.tasks else []


class FoundTrack(RequestModel):
    """A track of a search."""

    task: TaskId
    part: Annotated[int, Field(ge=0, lt=1000, description="Index of the video within the task."), _Whole]
    track: Annotated[int, Field(ge=0, lt=1 << 31, description="As the search names it."), _Whole]


class BulkAction(OfProject):
    """What is done with several tracks."""

    action: Annotated[
        BulkChoice,
        Field(
            description="label: give them a label; reject: they are not what they were taken for; open: make a tab "
            "of the Data Manager with their tasks."
        ),
    ]
    new_label: Annotated[LabelName | None, Field(description="For the action label; by default the searched one.")] = (
        None
    )
    by: PersonName | None = None


class ActOnSimilar(BulkAction):
    """What is done with tracks that a search for a label has found."""

    label: LabelName
    tracks: Annotated[
        list[FoundTrack],
        Field(min_length=1, max_length=200, examples=[[{"task": 3, "part": 0, "track": 7}]]),
    ]


#: As many as the map of embeddings shows.
MAX_EXEMPLARS = 2000
ExemplarId = Annotated[int, Field(ge=1, lt=1 << 31), _Whole]


class ActOnExemplars(BulkAction):
    """What is done with the annotated objects of exemplars."""

    exemplars: Annotated[
        list[ExemplarId],
        Field(min_length=1, max_length=MAX_EXEMPLARS, description="Ids of exemplars.", examples=[[12, 15]]),
    ]


class ShowExemplars(OfProject):
    """Selects exemplars."""

    label: Annotated[_Text | None, Field(description="Only of this label; empty: background.")] = None
    id: Annotated[int | None, Field(ge=1, lt=1 << 31, description="Only this exemplar, such as one of the map.")] = None
    limit: Annotated[int, Field(ge=1, le=200, description="Maximum number of results.")] = 24


class Statistics(OfProject):
    """Selects statistics of a project."""

    fresh: Annotated[bool, Field(description="Recount, even if the cached statistics are recent.")] = False


class FindMoments(OfProject):
    """Selects suspicious moments."""

    kind: Annotated[MomentKind | None, Field(description="Only of this kind.")] = None
    label: Annotated[_Text | None, Field(description="Only of tracks with this label.")] = None
    task: TaskId | None = None
    author: Annotated[
        str | None,
        Field(
            max_length=255,
            pattern=_NO_NUL,
            description="Only in annotations of this person, or predictions of this version.",
        ),
    ] = None
    limit: Annotated[int, Field(ge=1, le=200, description="Maximum number of results.")] = 20
    offset: Annotated[int, Field(ge=0, lt=1 << 31, description="Number of results to leave out.")] = 0


class AnswerMoment(OfProject):
    """An answer to a suspicious moment."""

    moment: MomentId
    action: Annotated[
        ReviewAction,
        Field(
            description="accept: carry out the proposed repair; split, join, swap (from a frame on), relabel, end or "
            "delete: another one; dismiss: it is not a fault; skip: later."
        ),
    ]
    frame: Annotated[FrameNumber | None, Field(description="Of split, swap and end; by default the moment's.")] = None
    region: Annotated[
        _Text | None,
        Field(description="One of the moment's regions; by default the first."),
    ] = None
    label: Annotated[LabelName | None, Field(description="Of relabel.")] = None
    by: PersonName | None = None


class ShowTracks(OfProject):
    """Selects the tracks of a task."""

    task: TaskId
    frame: Annotated[FrameNumber | None, Field(description="Also the tracks' boxes at this frame.")] = None


class ShowFrame(OfProject):
    """Selects a frame of a task's video."""

    task: TaskId
    key: Annotated[
        str, Field(pattern="^[0-9a-f]{16}$", description="Of the video, as its tracks name it.", examples=["0" * 16])
    ]
    frame: FrameNumber


class SeenTrack(RequestModel):
    """A track as it was read."""

    region: Annotated[str, Field(min_length=1, max_length=255, description="Id of the region.")]
    digest: Annotated[str, Field(pattern="^[0-9a-f]{16}$", description="Of the track, as it was read.")]


class RepairTracks(OfProject):
    """A repair of tracks by hand."""

    task: TaskId
    annotation: AnnotationId | None = None
    tracks: Annotated[
        list[SeenTrack],
        Field(
            min_length=1,
            max_length=500,
            description="join and swap take two.",
            examples=[[{"region": "aB3dE6gH9k", "digest": "0" * 16}]],
        ),
    ]
    action: Annotated[
        ManualAction,
        Field(
            description="split, swap (from a frame on) and end need a frame, relabel a label; join, delete; "
            "identify gives a global id."
        ),
    ]
    frame: FrameNumber | None = None
    label: Annotated[LabelName | None, Field(description="Of relabel.")] = None
    global_id: Annotated[
        GlobalId | None,
        Field(
            description="Of identify: all tracks of the project that have it show one object; null: one that no other "
            "track has."
        ),
    ] = None
    by: PersonName | None = None


class ListObjects(OfProject):
    """Selects objects that several tracks show."""

    limit: Annotated[int, Field(ge=1, le=200, description="Maximum number of results.")] = 20
    offset: Annotated[int, Field(ge=0, lt=1 << 31, description="Number of results to leave out.")] = 0
    fresh: Annotated[bool, Field(description="Read the tasks again.")] = False


class IdentifiedTrack(SeenTrack):
    """A track of any task as it was read."""

    task: TaskId
    annotation: AnnotationId | None = None


class IdentifyTracks(OfProject):
    """Another global id for tracks of an object."""

    known: Annotated[
        int, Field(ge=1, lt=1 << 31, description="The global id that the tracks had as they were read."), _Whole
    ]
    global_id: Annotated[
        GlobalId | None, Field(description="Of the object that they show; null: one that no other track has.")
    ] = None
    tracks: Annotated[
        list[IdentifiedTrack],
        Field(min_length=1, max_length=500, examples=[[{"task": 1, "region": "aB3dE6gH9k", "digest": "0" * 16}]]),
    ]
    by: PersonName | None = None


class FindSimilarMoments(OfProject):
    """Selects moments like one that was accepted."""

    repair: Annotated[int, Field(ge=1, lt=1 << 31, description="Id of the decision that accepted it."), _Whole]
    limit: Annotated[int, Field(ge=1, le=200, description="Maximum number of results.")] = 20


class AcceptSimilar(OfProject):
    """A decision to repeat for the moments like its own."""

    repair: Annotated[int, Field(ge=1, lt=1 << 31, description="Id of the decision that accepted it."), _Whole]
    by: PersonName | None = None


class ListRepairs(OfProject):
    """Selects decisions about moments and tracks."""

    task: TaskId | None = None
    limit: Annotated[int, Field(ge=1, le=500, description="Maximum number of results.")] = 20


class UndoRepair(OfProject):
    """A decision to undo."""

    repair: Annotated[int, Field(ge=1, lt=1 << 31, description="Id of the decision."), _Whole]
    by: PersonName | None = None


class Budget(OfProject):
    """How much people can annotate next."""

    segments: Annotated[int, Field(ge=1, le=200, description="Number of segments.", examples=[20]), _Whole] = 20
    minutes: Annotated[
        int | None,
        Field(
            ge=1,
            le=600,
            description="Minutes of work in place of a number of segments: 3 s for each track of a segment, and 15 s "
            "for each expected correction.",
        ),
        _Whole,
    ] = None


class ChooseNext(Budget):
    """Selects what to annotate next."""

    fresh: Annotated[bool, Field(description="Choose again.")] = False


class OrderTasks(Budget):
    """An order of tasks to show in Label Studio."""


class MeasureAgreement(OfProject):
    """Selects the agreement of a project's annotators."""

    model: Annotated[bool, Field(description="Count the newest prediction of each task as an annotator, too.")] = False
    fresh: Annotated[bool, Field(description="Measure again.")] = False


class ShowConsensus(OfProject):
    """Selects a task that several people annotated."""

    task: TaskId
    model: Annotated[
        bool, Field(description="Where as many people are for a track as against it, the newest prediction decides.")
    ] = False


class WriteConsensus(ShowConsensus):
    """A consensus to submit."""

    key: Annotated[
        str, Field(pattern="^[0-9a-f]{16}$", description="Of the consensus, as it was read.", examples=["0" * 16])
    ]
    by: PersonName | None = None


class ShowCamera(RequestModel):
    """A picture of a camera."""

    number: Annotated[
        int | None, Field(ge=0, lt=1 << 31, description="Of no meaning: browsers load another address anew.")
    ] = None


class GiveRole(RequestModel):
    """A person's role."""

    name: Annotated[
        str,
        Field(
            min_length=1,
            max_length=255,
            pattern=_NO_NUL,
            description="E-mail address in Label Studio.",
            examples=["someone@example.org"],
        ),
    ]
    role: Literal[Role, "default"]


class ListActions(OfAnyProject):
    """Selects actions."""

    limit: Annotated[int, Field(ge=1, le=500, description="Maximum number of results.")] = 100
    offset: Annotated[int, Field(ge=0, lt=1 << 31, description="Number of results to leave out.")] = 0
