"""What is read of Label Studio's projects, tasks, annotations and predictions."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from ml_backend.errors import LabelStudioError


class NotFound(LabelStudioError):
    """The project, task or file is not there (deleted, or of another organisation)."""

    http_status = 404


@dataclass(frozen=True, slots=True)
class Project:
    """What is needed of a project."""

    id: int
    title: str
    label_config: str


@dataclass(frozen=True, slots=True)
class Task:
    """What is needed of a task.

    Attributes:
        data: the task's data, storage URIs as they were imported.
        annotations: how many annotations and drafts the task's timeline is in use by; those that were skipped and
            drafts do not count while they are empty.
        prediction_versions: model versions of the predictions that the task has.
    """

    id: int
    project_id: int
    data: dict[str, Any]
    annotations: int = 0
    prediction_versions: frozenset[str] = field(default_factory=frozenset)


@dataclass(frozen=True, slots=True)
class TaskState:
    """A task as lists show it.

    Attributes:
        annotations: how many; drafts and skipped ones do not count.
        updated_at: when it, or an annotation or prediction of it, was changed last.
    """

    id: int
    data: dict[str, Any]
    annotations: int
    updated_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Annotation:
    """What a person submitted.

    Attributes:
        result: regions and other results, as in Label Studio's JSON.
        parent_prediction: id of the prediction that it was begun from, where Label Studio knows.
        created_at, updated_at: when it was submitted, and changed last; with time zone.
        lead_s: seconds that it took, until it was submitted.
    """

    id: int
    task_id: int
    result: list[dict[str, Any]]
    parent_prediction: int | None = None
    created_at: datetime | None = None
    updated_at: datetime | None = None
    lead_s: float | None = None


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a model said of a task; see :class:`Annotation`. ``model_version`` may be empty."""

    id: int
    model_version: str
    result: list[dict[str, Any]]
    created_at: datetime | None = None
    updated_at: datetime | None = None
