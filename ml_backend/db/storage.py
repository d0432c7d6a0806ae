"""Access to the database (SQLite by default, any SQLAlchemy URL): predictions, pending work, annotations."""

from __future__ import annotations

import gzip
import json
import logging
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from secrets import token_hex
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine, make_url
from sqlalchemy.exc import DataError, IntegrityError, SQLAlchemyError

from ml_backend.core.errors import StorageError, UnstorableValue
from ml_backend.core.timestamps import ensure_utc
from ml_backend.core.urls import extra_hint, shown_url
from ml_backend.db.migrations import upgrade
from ml_backend.db.tables import (
    annotation_tasks,
    corrections,
    exemplars,
    past_versions,
    pending,
    predictions,
    secrets,
    task_scores,
)

log = logging.getLogger(__name__)

#: Bound parameters in one statement, which SQLite limits.
_CHUNK = 500
#: Predictions removed in one transaction, which blocks other writers.
REMOVE_CHUNK = _CHUNK
#: Attempts if another process writes the same rows at the same moment.
WRITE_ATTEMPTS = 10

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class PredictionRun:
    """Stored predictions of one project and model version, with the times of the first and the last (UTC)."""

    project_id: int
    model_version: str
    first: datetime
    last: datetime


class Storage:
    """Reads and writes the database; one instance per process, thread-safe."""

    def __init__(self, url: str) -> None:
        try:
            parsed = make_url(url)
            parsed.get_dialect().import_dbapi()
        except (SQLAlchemyError, ImportError, ValueError) as error:
            # SQLAlchemy's message may have the password.
            no_driver = isinstance(error, ImportError)
            reason = str(error) if no_driver else "it is malformed, or of an unknown kind"
            raise StorageError(
                f"The database URL {shown_url(url)} cannot be used: {reason}.",
                (extra_hint(url) if no_driver else "")
                or "Set DATABASE_URL to an SQLAlchemy URL whose driver is installed, or leave it empty.",
            ) from error
        self._sqlite = parsed.get_backend_name() == "sqlite"
        if self._sqlite and parsed.database:
            try:
                Path(parsed.database).parent.mkdir(0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise StorageError(
                    f"The folder of {parsed.database} cannot be created: {error.strerror}.", "Set DATA_DIR elsewhere."
                ) from error
        connect_args = {"timeout": 5} if self._sqlite else {}
        self.engine: Engine = sa.create_engine(url, pool_pre_ping=not self._sqlite, connect_args=connect_args)
        if self._sqlite:
            event.listen(self.engine, "connect", _tune_sqlite)
        # SQLite has one writer, for which others poll at growing intervals; a lock wakes the next thread at once.
        self._writing = threading.Lock() if self._sqlite else nullcontext()
        try:
            with self.guard():
                upgrade(self.engine)
        except StorageError:
            self.engine.dispose()  # also removes SQLite's -wal and -shm files
            raise

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Convert SQLAlchemy's errors to StorageError."""
        try:
            yield
        except DataError as error:
            raise UnstorableValue(
                f"The database cannot store a value: {error.orig}.",
                "Send numbers below 2147483648, and text without NUL characters.",
            ) from error
        except SQLAlchemyError as error:
            cause = str(getattr(error, "orig", None) or error)
            hint = "Check DATABASE_URL and that the database runs."
            if "disk is full" in cause or "readonly" in cause or "unable to open" in cause:
                hint = "Free disk space, or set DATA_DIR to a writable folder."
            elif "not a database" in cause or "malformed" in cause:
                hint = "Restore a backup of the file, or move it away to start with an empty database."
            raise StorageError(f"The database failed: {cause}.", hint) from error

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Open a connection for reading."""
        with self.guard(), self.engine.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Open a transaction, which is committed at the end."""
        with self.guard(), self.engine.begin() as connection:
            yield connection

    def ping(self) -> None:
        """Raise StorageError unless the database answers."""
        with self.read() as connection:
            connection.execute(sa.select(1))

    def secret(self, name: str) -> str:
        """Return a random text of 64 characters, which is made when it is first asked for."""
        self.upsert(secrets, {"name": name}, {"name": name}, {"value": token_hex(32)})
        with self.read() as connection:
            return str(connection.scalar(sa.select(secrets.c.value).where(secrets.c.name == name)))

    # -- predictions

    def save_prediction(self, key: str, project_id: int, prediction: dict[str, Any]) -> None:
        """Store a prediction under its key, unless there is one already: predictions of one key are equal."""
        body = json.dumps(prediction, separators=(",", ":")).encode()
        row = {
            "key": key,
            "project_id": project_id,
            "model_version": prediction["model_version"],
            "body": gzip.compress(body, 6),
            "bytes": len(body),
            "created_at": datetime.now(timezone.utc),
        }
        try:
            with self.write() as connection:
                connection.execute(sa.insert(predictions).values(**row))
        except StorageError as error:
            if not isinstance(error.__cause__, IntegrityError):
                raise

    def get_prediction(self, key: str) -> dict[str, Any] | None:
        body = self.prediction_bodies([key]).get(key)
        return None if body is None else dict(json.loads(body))

    def prediction_sizes(self, keys: Sequence[str]) -> dict[str, int]:
        """Return the JSON size in bytes of each stored prediction, by key."""
        query = sa.select(predictions.c.key, predictions.c.bytes)
        with self.read() as connection:
            return {
                row.key: row.bytes
                for chunk in _chunks(keys)
                for row in connection.execute(query.where(predictions.c.key.in_(chunk)))
            }

    def prediction_bodies(self, keys: Sequence[str]) -> dict[str, bytes]:
        """Return the stored predictions by key as JSON text, which callers pass on without parsing."""
        query = sa.select(predictions.c.key, predictions.c.body)
        with self.read() as connection:
            return {
                row.key: gzip.decompress(row.body)
                for chunk in _chunks(keys)
                for row in connection.execute(query.where(predictions.c.key.in_(chunk)))
            }

    def versions(self, project_id: int | None = None) -> list[str]:
        """Return all model versions with predictions, including removed ones, newest first."""
        made = sa.union_all(
            sa.select(predictions.c.project_id, predictions.c.model_version, predictions.c.created_at.label("at")),
            sa.select(past_versions.c.project_id, past_versions.c.model_version, past_versions.c.made_at),
        ).subquery()
        newest = sa.func.max(made.c.at)
        query = sa.select(made.c.model_version).group_by(made.c.model_version).order_by(newest.desc())
        if project_id is not None:
            query = query.where(made.c.project_id == project_id)
        with self.read() as connection:
            return list(connection.scalars(query))

    def prediction_runs(self) -> list[PredictionRun]:
        """Return the projects and model versions that have stored predictions."""
        group = (predictions.c.project_id, predictions.c.model_version)
        created_at = predictions.c.created_at
        times = sa.func.min(created_at).label("first"), sa.func.max(created_at).label("last")
        query = sa.select(*group, *times).group_by(*group)
        with self.read() as connection:
            rows = connection.execute(query.order_by(*group)).all()
        return [
            PredictionRun(row.project_id, row.model_version, ensure_utc(row.first), ensure_utc(row.last))
            for row in rows
        ]

    def remove_predictions(
        self, project_id: int, model_version: str, before: datetime, limit: int = REMOVE_CHUNK
    ) -> int:
        """Remove up to ``limit`` of a version's predictions made before a time, and remember the version.

        Returns:
            Number of removed predictions; fewer than ``limit`` if no more are left.
        """
        matches = (predictions.c.project_id == project_id) & (predictions.c.model_version == model_version)
        query = sa.select(predictions.c.key, predictions.c.created_at).where(matches, predictions.c.created_at < before)
        with self._writing, self.guard(), self.engine.begin() as connection:
            rows = connection.execute(query.limit(limit)).all()
            if rows:
                connection.execute(sa.delete(predictions).where(predictions.c.key.in_([row.key for row in rows])))
                past = (past_versions.c.project_id == project_id) & (past_versions.c.model_version == model_version)
                earlier = connection.scalars(sa.select(past_versions.c.made_at).where(past)).all()
                last = max(ensure_utc(time) for time in (*earlier, *(row.created_at for row in rows)))
                connection.execute(sa.delete(past_versions).where(past))
                values = {"project_id": project_id, "model_version": model_version, "made_at": last}
                connection.execute(sa.insert(past_versions).values(**values))
        return len(rows)

    def count_predictions(self) -> int:
        with self.read() as connection:
            return connection.scalar(sa.select(sa.func.count()).select_from(predictions)) or 0

    def note_score(self, project_id: int, task_id: int, score: float) -> None:
        """Store the score of a task's newest prediction, 0..1."""
        self.upsert(task_scores, {"project_id": project_id, "task_id": task_id}, {"score": score})

    def scores(self, project_id: int) -> dict[int, float]:
        """Return the score of the newest prediction by task."""
        query = sa.select(task_scores.c.task_id, task_scores.c.score).where(task_scores.c.project_id == project_id)
        with self.read() as connection:
            return {row.task_id: row.score for row in connection.execute(query)}

    # -- pending work

    def note_pending(self, kind: str, project_id: int, task_ids: Iterable[int] = (0,)) -> None:
        """Record work to do on tasks (0: the whole project), so that it survives the process and Redis."""
        revision, tasks = uuid.uuid4().hex, sorted(set(task_ids))  # materialised, since writing may be retried
        matches = (pending.c.kind == kind) & (pending.c.project_id == project_id)

        def write(connection: Connection) -> None:
            for chunk in _chunks(tasks):
                rows = [
                    {"kind": kind, "project_id": project_id, "task_id": task, "revision": revision} for task in chunk
                ]
                connection.execute(sa.delete(pending).where(matches & pending.c.task_id.in_(chunk)))
                connection.execute(sa.insert(pending), rows)

        self._write(write)

    def note_project_pending(self, kind: str, project_id: int) -> None:
        """Record work to do on the whole project, in place of that on single tasks."""
        matches = (pending.c.kind == kind) & (pending.c.project_id == project_id)
        row = {"kind": kind, "project_id": project_id, "task_id": 0, "revision": uuid.uuid4().hex}

        def write(connection: Connection) -> None:
            connection.execute(sa.delete(pending).where(matches))
            connection.execute(sa.insert(pending).values(**row))

        self._write(write)

    def count_pending(self, kind: str, project_id: int) -> int:
        """Return the number of a project's tasks with pending work."""
        matches = (pending.c.kind == kind) & (pending.c.project_id == project_id)
        with self.read() as connection:
            return connection.scalar(sa.select(sa.func.count()).select_from(pending).where(matches)) or 0

    def pending(self, kind: str, project_id: int, limit: int | None = None) -> dict[int, str]:
        """Return the revision of pending work by task, lowest ids first; see :meth:`settle`."""
        matches = (pending.c.kind == kind) & (pending.c.project_id == project_id)
        query = sa.select(pending.c.task_id, pending.c.revision).where(matches).order_by(pending.c.task_id).limit(limit)
        with self.read() as connection:
            return {row.task_id: row.revision for row in connection.execute(query)}

    def settle(self, kind: str, project_id: int, done: Mapping[int, str]) -> None:
        """Remove pending work that was done, unless it was requested again since that revision.

        Args:
            done: revision by task.
        """
        matches = (pending.c.kind == kind) & (pending.c.project_id == project_id)
        matches &= (pending.c.task_id == sa.bindparam("task")) & (pending.c.revision == sa.bindparam("seen"))
        rows = [{"task": task, "seen": revision} for task, revision in done.items()]
        if rows:
            with self._writing, self.guard(), self.engine.begin() as connection:
                connection.execute(sa.delete(pending).where(matches), rows)

    def pending_projects(self) -> list[tuple[str, int]]:
        """Return the kind and project of all pending work."""
        query = sa.select(pending.c.kind, pending.c.project_id).distinct()
        with self.read() as connection:
            return sorted((row.kind, row.project_id) for row in connection.execute(query))

    # -- annotations

    def note_annotations(self, project_id: int, task_id: int, annotation_ids: Sequence[int]) -> None:
        """Store the task of each annotation, since deletion events name only the annotation."""
        values = {"project_id": project_id, "task_id": task_id}

        def write(connection: Connection) -> None:
            for annotation_id in annotation_ids:
                _upsert(connection, annotation_tasks, {"annotation_id": annotation_id}, values)

        self._write(write)

    def upsert(
        self,
        table: sa.Table,
        key: Mapping[str, Any],
        values: Mapping[str, Any],
        defaults: Mapping[str, Any] | None = None,
    ) -> None:
        """Update values of a row, or insert it with ``defaults`` for its other columns."""
        self._write(lambda connection: _upsert(connection, table, key, values, defaults))

    def _write(self, write: Callable[[Connection], None]) -> None:
        with self.guard():
            for attempt in range(1, WRITE_ATTEMPTS + 1):
                try:
                    with self._writing, self.engine.begin() as connection:
                        write(connection)
                    return
                except IntegrityError:  # another process wrote the same rows
                    if attempt == WRITE_ATTEMPTS:
                        raise

    def tasks_of_annotations(self, annotation_ids: Sequence[int]) -> dict[int, int]:
        """Return the project by task of annotations that were named in events or read."""
        project_by_task: dict[int, int] = {}
        with self.read() as connection:
            for table in (annotation_tasks, exemplars, corrections):
                for chunk in _chunks(annotation_ids):
                    query = sa.select(table.c.task_id, table.c.project_id).where(table.c.annotation_id.in_(chunk))
                    project_by_task.update(
                        (row.task_id, row.project_id) for row in connection.execute(query.distinct())
                    )
        return project_by_task

    def annotated_projects(self) -> list[int]:
        """Return all projects with annotations that were ever named in events or read."""
        with self.read() as connection:
            return sorted(connection.scalars(sa.select(annotation_tasks.c.project_id).distinct()))


def _chunks(values: Sequence[_T]) -> Iterator[Sequence[_T]]:
    return (values[start : start + _CHUNK] for start in range(0, len(values), _CHUNK))


def _tune_sqlite(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA synchronous=NORMAL")  # a commit costs no full disk flush
    cursor.close()


def _upsert(
    connection: Connection,
    table: sa.Table,
    key: Mapping[str, Any],
    values: Mapping[str, Any],
    defaults: Mapping[str, Any] | None = None,
) -> None:
    matches = sa.and_(*(table.c[name] == value for name, value in key.items()))
    if not connection.execute(sa.update(table).where(matches).values(**values)).rowcount:
        connection.execute(sa.insert(table).values({**(defaults or {}), **key, **values}))
