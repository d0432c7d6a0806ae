"""What people did with predictions, kept by task: a rate for each model version, and what was hard for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from ml_backend.core.timestamps import ensure_utc
from ml_backend.db.storage import Storage
from ml_backend.db.tables import corrections
from ml_backend.training.annotation_review import KINDS, AnnotationReview

#: Length of what the database keeps of a version.
_VERSION_CHARS = 255


@dataclass(frozen=True, slots=True)
class TaskReview:
    """What became of a task's prediction.

    Attributes:
        annotation_id: of the annotation that counts.
        model_version: of the prediction that it was begun from; empty: there was none.
        comparison: of the two.
        fingerprint: of the annotation's regions; see :func:`ml_backend.training.annotation_review.regions_fingerprint`.
        submitted_at, changed_at: when the annotation was submitted and updated last, by Label Studio's clock.
    """

    annotation_id: int
    model_version: str
    comparison: AnnotationReview
    fingerprint: str
    submitted_at: datetime
    changed_at: datetime


class AnnotatedTask(NamedTuple):
    """State of a task's annotation: its regions, how many labelled objects they are, and when it changed last (UTC).

    ``hard`` is the number of regions that the models did not get right, also of those that are gone.
    """

    fingerprint: str
    tracks: int
    changed_at: datetime
    hard: int = 0


@dataclass(frozen=True, slots=True)
class VersionAcceptance:
    """What people did with the predictions of one model version: numbers of regions.

    Attributes:
        tasks: that people submitted.
        accepted: left as they were.
        moved: boxes changed, labels not.
        relabelled: labels changed or given, whatever became of the boxes.
        deleted: false alarms.
        merged: deleted, where another region shows the same object.
        added: drawn by hand: what the model missed.
        undecided: without a label, and left so; they count neither for nor against the version.
        tracks: labelled objects in the annotations.
        first, last: when the first and the last of the annotations were submitted (UTC).
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
        """Predicted regions that people decided about."""
        return self.accepted + self.moved + self.relabelled + self.deleted + self.merged

    @property
    def rate(self) -> float | None:
        """Share of these that were accepted, 0..1; ``None`` where there are none."""
        return self.accepted / self.decided if self.decided else None


class ReviewStore:
    """Access to the table of corrections; safe across threads and processes."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    @contextmanager
    def _read(self) -> Iterator[Connection]:
        with self._storage.guard(), self._storage.engine.connect() as connection:
            yield connection

    def put(self, project_id: int, task_id: int, correction: TaskReview) -> None:
        """Write down what became of a task's prediction, in place of what was known of the task."""
        comparison = correction.comparison
        values: dict[str, Any] = {
            "annotation_id": correction.annotation_id,
            "model_version": correction.model_version[:_VERSION_CHARS],
            "tracks": comparison.tracks,
            **comparison.counts,
            "hard": list(comparison.hard),
            "fingerprint": correction.fingerprint,
            "submitted_at": _utc(correction.submitted_at),
            "changed_at": _utc(correction.changed_at),
        }
        self._storage.upsert(corrections, {"project_id": project_id, "task_id": task_id}, values)

    def remove(self, project_id: int, task_id: int) -> None:
        """Forget a task: it, or its annotation, is gone."""
        with self._storage.guard(), self._storage.engine.begin() as connection:
            connection.execute(sa.delete(corrections).where(_of_task(project_id, task_id)))

    def forget(self, project_id: int) -> None:
        """Remove everything that is known of a project, which is gone."""
        with self._storage.guard(), self._storage.engine.begin() as connection:
            connection.execute(sa.delete(corrections).where(corrections.c.project_id == project_id))

    def is_current(
        self, project_id: int, task_id: int, annotation_id: int, fingerprint: str, changed: datetime
    ) -> bool:
        """Whether this state of a task's annotation is written down already."""
        columns = (corrections.c.annotation_id, corrections.c.fingerprint, corrections.c.changed_at)
        with self._read() as connection:
            row = connection.execute(sa.select(*columns).where(_of_task(project_id, task_id))).first()
        known = row and (row.annotation_id, row.fingerprint, _utc(row.changed_at))
        return known == (annotation_id, fingerprint, _utc(changed))

    def hard(self, project_id: int) -> dict[int, frozenset[str]]:
        """By task the ids of regions that the models did not get right; see :attr:`AnnotationReview.hard`."""
        query = sa.select(corrections.c.task_id, corrections.c.hard).where(corrections.c.project_id == project_id)
        with self._read() as connection:
            return {row.task_id: frozenset(row.hard) for row in connection.execute(query) if row.hard}

    def projects(self) -> list[int]:
        """Projects that have annotated tasks."""
        with self._read() as connection:
            return sorted(connection.scalars(sa.select(corrections.c.project_id).distinct()))

    def tasks(self, project_id: int) -> dict[int, AnnotatedTask]:
        """The state of every annotated task, by its id."""
        names = ("task_id", "fingerprint", "tracks", "changed_at", "hard")
        query = (
            sa.select(*(corrections.c[name] for name in names))
            .where(corrections.c.project_id == project_id)
            .order_by(corrections.c.task_id)
        )
        with self._read() as connection:
            return {
                row.task_id: AnnotatedTask(row.fingerprint, row.tracks, _utc(row.changed_at), len(row.hard))
                for row in connection.execute(query)
            }

    def seen(self, project_id: int) -> dict[str, str]:
        """Fingerprint by task id, which is text: as the registry keeps what a training has seen."""
        return {str(task_id): task.fingerprint for task_id, task in self.tasks(project_id).items()}

    def by_version(self, project_id: int) -> list[VersionAcceptance]:
        """What people did with the predictions of each model version; the version that came first is first.

        Tasks that had no prediction, or one without a version, are left out.
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
        with self._read() as connection:
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


def _of_task(project_id: int, task_id: int) -> sa.ColumnElement[bool]:
    return sa.and_(corrections.c.project_id == project_id, corrections.c.task_id == task_id)


def _utc(moment: datetime) -> datetime:
    # SQLite drops time zones: everything is written in UTC.
    return ensure_utc(moment).astimezone(timezone.utc)
