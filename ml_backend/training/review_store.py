"""Store how people corrected predictions, by task, and summarise it by model version."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, NamedTuple

import sqlalchemy as sa

from ml_backend.core.timestamps import ensure_utc
from ml_backend.db.storage import Storage
from ml_backend.db.tables import corrections
from ml_backend.training.annotation_review import KINDS, AnnotationReview

#: Length of the database column of a version.
_VERSION_CHARS = 255


@dataclass(frozen=True, slots=True)
class TaskReview:
    """The review of a task's prediction.

    Attributes:
        annotation_id: the annotation that counts.
        model_version: of the prediction that it started from; empty if there was none.
        review: comparison of the two.
        fingerprint: of the annotation's regions; see :func:`ml_backend.training.annotation_review.regions_fingerprint`.
        submitted_at, changed_at: when the annotation was submitted and updated last, by Label Studio's clock.
    """

    annotation_id: int
    model_version: str
    review: AnnotationReview
    fingerprint: str
    submitted_at: datetime
    changed_at: datetime


class AnnotatedTask(NamedTuple):
    """State of a task's annotation.

    Attributes:
        fingerprint: of its regions.
        tracks: number of labelled objects.
        changed_at: last change (UTC).
        hard: number of regions that the model got wrong, deleted ones included.
    """

    fingerprint: str
    tracks: int
    changed_at: datetime
    hard: int = 0


@dataclass(frozen=True, slots=True)
class VersionAcceptance:
    """How people corrected the predictions of one model version, in numbers of regions.

    Attributes:
        tasks: number of submitted tasks.
        accepted: unchanged.
        moved: boxes changed, labels not.
        relabelled: labels changed or added, whether or not the boxes changed.
        deleted: false alarms.
        merged: deleted, and another region shows the same object.
        added: drawn by hand, since the model missed them.
        undecided: without a label and unchanged; they count neither for nor against the version.
        tracks: labelled objects in the annotations.
        first, last: submission of the first and the last annotation (UTC).
    """

    model_version: str
    tasks: int
    accepted: int
    moved: int
    relabelled: int
    deleted: int
    merged: int
    added: int
    undecided: int
    tracks: int
    first: datetime
    last: datetime

    @property
    def decided(self) -> int:
        """Number of predicted regions that count for or against the version."""
        return self.accepted + self.moved + self.relabelled + self.deleted + self.merged

    @property
    def rate(self) -> float | None:
        """Share of the decided regions that were accepted, 0..1; ``None`` if there are none."""
        return self.accepted / self.decided if self.decided else None


class ReviewStore:
    """Reads and writes the table of corrections. Safe across threads and processes."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def put(self, project_id: int, task_id: int, task_review: TaskReview) -> None:
        """Store the review of a task, replacing an earlier one."""
        review = task_review.review
        values: dict[str, Any] = {
            "annotation_id": task_review.annotation_id,
            "model_version": task_review.model_version[:_VERSION_CHARS],
            "tracks": review.tracks,
            **review.counts,
            "hard": list(review.hard),
            "fingerprint": task_review.fingerprint,
            "submitted_at": _utc(task_review.submitted_at),
            "changed_at": _utc(task_review.changed_at),
        }
        self._storage.upsert(corrections, {"project_id": project_id, "task_id": task_id}, values)

    def remove(self, project_id: int, task_id: int) -> None:
        """Remove the review of a task that, or whose annotation, was deleted."""
        with self._storage.write() as connection:
            connection.execute(sa.delete(corrections).where(_is_task(project_id, task_id)))

    def forget(self, project_id: int) -> None:
        """Remove all reviews of a deleted project."""
        with self._storage.write() as connection:
            connection.execute(sa.delete(corrections).where(corrections.c.project_id == project_id))

    def is_current(
        self, project_id: int, task_id: int, annotation_id: int, fingerprint: str, changed: datetime
    ) -> bool:
        """Return whether this state of a task's annotation is already stored."""
        columns = (corrections.c.annotation_id, corrections.c.fingerprint, corrections.c.changed_at)
        with self._storage.read() as connection:
            row = connection.execute(sa.select(*columns).where(_is_task(project_id, task_id))).first()
        stored = row and (row.annotation_id, row.fingerprint, _utc(row.changed_at))
        return stored == (annotation_id, fingerprint, _utc(changed))

    def hard(self, project_id: int) -> dict[int, frozenset[str]]:
        """Return the ids of regions that the models got wrong, by task; see :attr:`AnnotationReview.hard`."""
        query = sa.select(corrections.c.task_id, corrections.c.hard).where(corrections.c.project_id == project_id)
        with self._storage.read() as connection:
            return {row.task_id: frozenset(row.hard) for row in connection.execute(query) if row.hard}

    def projects(self) -> list[int]:
        """Return the projects that have annotated tasks."""
        with self._storage.read() as connection:
            return sorted(connection.scalars(sa.select(corrections.c.project_id).distinct()))

    def tasks(self, project_id: int) -> dict[int, AnnotatedTask]:
        """Return the state of every annotated task, by task id."""
        names = ("task_id", "fingerprint", "tracks", "changed_at", "hard")
        query = (
            sa.select(*(corrections.c[name] for name in names))
            .where(corrections.c.project_id == project_id)
            .order_by(corrections.c.task_id)
        )
        with self._storage.read() as connection:
            return {
                row.task_id: AnnotatedTask(row.fingerprint, row.tracks, _utc(row.changed_at), len(row.hard))
                for row in connection.execute(query)
            }

    def seen(self, project_id: int) -> dict[str, str]:
        """Return fingerprints by task id (as text), the form in which the registry records what a training has seen."""
        return {str(task_id): task.fingerprint for task_id, task in self.tasks(project_id).items()}

    def by_version(self, project_id: int) -> list[VersionAcceptance]:
        """Return how people corrected the predictions of each model version, oldest version first.

        Tasks without a prediction, or with one without a version, are left out.
        """
        numbers = [sa.func.sum(corrections.c[name]).label(name) for name in (*KINDS, "tracks")]
        first, last = sa.func.min(corrections.c.submitted_at), sa.func.max(corrections.c.submitted_at)
        query = (
            sa.select(corrections.c.model_version, sa.func.count(), first, last, *numbers)
            .where(corrections.c.project_id == project_id, corrections.c.model_version != "")
            .group_by(corrections.c.model_version)
            .order_by(first, corrections.c.model_version)
        )
        names = (*KINDS, "tracks")
        with self._storage.read() as connection:
            return [
                VersionAcceptance(
                    str(version),
                    int(tasks),
                    first=_utc(begin),
                    last=_utc(end),
                    **{name: int(number) for name, number in zip(names, sums, strict=True)},
                )
                for version, tasks, begin, end, *sums in connection.execute(query)
            ]


def _is_task(project_id: int, task_id: int) -> sa.ColumnElement[bool]:
    return sa.and_(corrections.c.project_id == project_id, corrections.c.task_id == task_id)


def _utc(moment: datetime) -> datetime:
    # SQLite drops time zones, so everything is stored in UTC.
    return ensure_utc(moment).astimezone(timezone.utc)
