"""What requests to the API may contain. These models check requests, and make the schemas of the OpenAPI document."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from ml_backend.core.outputs import NAME
from ml_backend.core.settings import Mode
from ml_backend.jobs.api_queue import STRIDE


def _whole(value: Any) -> Any:
    """JSON knows one kind of numbers, and to JSON Schema 7.0 is an integer."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


_Whole = BeforeValidator(_whole)
ProjectId = Annotated[int, Field(ge=1, lt=1 << 31, description="Id of the Label Studio project.", examples=[1]), _Whole]
TaskId = Annotated[int, Field(ge=1, lt=1 << 31, description="Id of the Label Studio task.", examples=[1]), _Whole]
VersionName = Annotated[
    str,
    Field(pattern=r"^(base|v[0-9]{1,9})$", description="A version of the registry such as v2; base: the settings'."),
]
TrainedName = Annotated[
    str, Field(pattern=r"^v[0-9]{1,9}$", description="A version of the registry, such as v2.", examples=["v2"])
]
#: Label Studio takes names of this length.
LabelName = Annotated[str, Field(min_length=1, max_length=255, description="Name of a label.")]
JobId = Annotated[str, Field(pattern="^[A-Za-z0-9_-]{1,200}$")]
#: Of a file that was made here.
FileName = Annotated[str, Field(pattern=f"^{NAME.pattern}$")]
ExportFormat = Literal["annotations", "yolo", "yolo-track", "coco", "mot", "cvat"]


class RequestModel(BaseModel):
    """Nothing is guessed: fields that are not known, or of another type, are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class NoQuery(RequestModel):
    """No parameters."""


class OfProject(RequestModel):
    """Names a project."""

    project: ProjectId


class OfAnyProject(RequestModel):
    """May name a project."""

    project: ProjectId | None = None


class ListJobs(OfAnyProject):
    """Which jobs."""

    limit: Annotated[int, Field(ge=1, le=500, description="Most that are listed.")] = 100


def _is_given(field: str) -> dict[str, Any]:
    return {"required": [field], "properties": {field: {"type": "string"}}}


class SwitchModel(OfProject):
    """Another mode, another version, or both."""

    model_config = ConfigDict(json_schema_extra={"anyOf": [_is_given("mode"), _is_given("version")]})

    mode: Annotated[Mode | Literal["default"] | None, Field(description="default: the settings' mode.")] = None
    version: VersionName | None = None

    @model_validator(mode="after")
    def _something(self) -> SwitchModel:
        if self.mode is None and self.version is None:
            raise ValueError("one of 'mode' and 'version' is needed")
        return self


class AutoLabel(OfProject):
    """Which tasks are to be predicted."""

    tasks: Annotated[
        list[TaskId] | None, Field(min_length=1, max_length=10_000, description="All without annotations by default.")
    ] = None


class Train(OfProject):
    """A training."""

    force: Annotated[bool, Field(description="Also if nothing has changed since the last one.")] = False


class LoadCustomModel(OfProject):
    """A version that is to be used."""

    version: TrainedName


class Rollback(OfProject):
    """Back to the version before."""

    instead_of: Annotated[
        VersionName, Field(description="The version in use: the same request sent twice goes back once.")
    ]


class AnnotatedVideo(OfProject):
    """A video with boxes."""

    task: TaskId
    source: Annotated[
        Literal["annotations", "predictions", "base"],
        Field(description="What is drawn; base: what the settings' detector finds now."),
    ] = "annotations"


class CustomModelVideo(OfProject):
    """A video with what a trained version finds now."""

    task: TaskId
    version: TrainedName | None = None


class Export(OfProject):
    """A project's annotations as a file."""

    format: Annotated[ExportFormat, Field(description="annotations: JSON rows; the others: a zip archive.")]
    predictions: Annotated[
        Literal["none", "missing", "only"],
        Field(description="Whether predictions are exported: never, of tasks without annotations, or only they."),
    ] = "none"
    stride: Annotated[
        int | None,
        Field(
            ge=1,
            le=100_000,
            description=f"Of a dataset: every so many pictures; by default {STRIDE} of what is trained on, and all of "
            "mot and cvat, which are whole videos.",
        ),
    ] = None


class Upload(RequestModel):
    """A video of a project, as a form."""

    project: Annotated[
        ProjectId,
        WithJsonSchema({"type": "string", "pattern": "^[1-9][0-9]{0,9}$", "description": "Id of the project."}),
    ]
    file: Annotated[
        str,
        WithJsonSchema({"type": "string", "contentMediaType": "application/octet-stream", "description": "A video."}),
    ]


class FindSimilar(OfProject):
    """Find more like this."""

    label: LabelName
    limit: Annotated[int, Field(ge=1, le=500, description="How many.")] = 50
    safe: Annotated[bool, Field(description="Only those that may be given the label without asking.")] = False


class ShowExemplars(OfProject):
    """Of which label."""

    label: Annotated[str, Field(max_length=255, description="Name of a label; empty: background.")]
    limit: Annotated[int, Field(ge=1, le=200, description="How many.")] = 24


class Statistics(OfProject):
    """Whose statistics."""

    fresh: Annotated[bool, Field(description="Have them counted anew, however new they are.")] = False
