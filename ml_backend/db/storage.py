"""The database: finished predictions and what is still to be done. SQLite by default, any SQLAlchemy URL."""

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
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine, make_url
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from ml_backend.core.errors import StorageError
from ml_backend.core.timestamps import ensure_utc
from ml_backend.db.migrations import upgrade
from ml_backend.db.tables import (
    annotation_tasks,
    corrections,
    exemplars,
    past_versions,
    pending,
    predictions,
    task_scores,
)

log = logging.getLogger(__name__)

#: Values in one statement: SQLite limits them.
_PART = 500
#: Predictions that are removed in one transaction, in which nobody else writes.
REMOVED_AT_ONCE = _PART
#: Processes that write the same rows at the same moment get in each other's way, but hardly so often.
WRITE_ATTEMPTS = 10

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class PredictionRun:
    """Stored predictions of one project and model version: when the first and the last of them were made (UTC)."""

    project_id: int
    model_version: str
    first: datetime
    last: datetime


class Storage:
    """Access to the database; one instance a process, safe across threads."""

    def __init__(self, url: str) -> None:
        try:
            parsed = make_url(url)
            parsed.get_dialect().import_dbapi()
        except (SQLAlchemyError, ImportError) as error:
            raise StorageError(
                f"The database's address cannot be used: {error}.",
                "Set DATABASE_URL to an SQLAlchemy URL whose driver is installed, or leave it empty.",
            ) from error
        self._sqlite = parsed.get_backend_name() == "sqlite"
        if self._sqlite and parsed.database:
            try:
                Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StorageError(
                    f"The folder of {parsed.database} cannot be made: {error.strerror}.", "Set DATA_DIR elsewhere."
                ) from error
        connect_args = {"timeout": 5} if self._sqlite else {}
        self.engine: Engine = sa.create_engine(url, pool_pre_ping=not self._sqlite, connect_args=connect_args)
        if self._sqlite:
            sa.event.listen(self.engine, "connect", _tune_sqlite)
        # SQLite has one writer, and those that find it at work sleep for longer and longer; a lock wakes the next one.
        self._writing = threading.Lock() if self._sqlite else nullcontext()
        try:
            with self.guard():
                upgrade(self.engine)
        except StorageError:
            self.engine.dispose()  # SQLite's files beside it go, too
            raise

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Turn the database's errors into StorageError."""
        try:
            yield
        except SQLAlchemyError as error:
            cause = str(getattr(error, "orig", None) or error)
            hint = "Check DATABASE_URL and that the database runs."
            if "disk is full" in cause or "readonly" in cause or "unable to open" in cause:
                hint = "Free disk space, or set DATA_DIR to a writable folder."
            elif "not a database" in cause or "malformed" in cause:
                hint = "Put a copy of it in its place, or move it away: a new one is made, which knows nothing."
            raise StorageError(f"The database refuses: {cause}.", hint) from error

    def ping(self) -> None:
        """Raise StorageError unless the database answers."""
        with self.guard(), self.engine.connect() as connection:
            connection.execute(sa.select(1))

    # -- predictions

    def save_prediction(self, key: str, project_id: int, prediction: dict[str, Any]) -> None:
        """Keep a finished prediction under its key; the first one wins, later ones equal it."""
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
            with self.guard(), self.engine.begin() as connection:
                connection.execute(sa.insert(predictions).values(**row))
        except StorageError as error:
            if not isinstance(error.__cause__, IntegrityError):
                raise

    def get_prediction(self, key: str) -> dict[str, Any] | None:
        body = self.prediction_bodies([key]).get(key)
        return None if body is None else dict(json.loads(body))

    def prediction_sizes(self, keys: Sequence[str]) -> dict[str, int]:
        """JSON bytes of those predictions that are there."""
        query = sa.select(predictions.c.key, predictions.c.bytes)
        with self.guard(), self.engine.connect() as connection:
            return {
                row.key: row.bytes
                for part in _parts(keys)
                for row in connection.execute(query.where(predictions.c.key.in_(part)))
            }

    def prediction_bodies(self, keys: Sequence[str]) -> dict[str, bytes]:
        """Those predictions that are there, by key, as JSON text: a long video's is passed on without parsing it."""
        query = sa.select(predictions.c.key, predictions.c.body)
        with self.guard(), self.engine.connect() as connection:
            return {
                row.key: gzip.decompress(row.body)
                for part in _parts(keys)
                for row in connection.execute(query.where(predictions.c.key.in_(part)))
            }

    def versions(self, project_id: int | None = None) -> list[str]:
        """Model versions that made predictions, those that were removed since too, newest first."""
        made = sa.union_all(
            sa.select(predictions.c.project_id, predictions.c.model_version, predictions.c.created_at.label("at")),
            sa.select(past_versions.c.project_id, past_versions.c.model_version, past_versions.c.made_at),
        ).subquery()
        newest = sa.func.max(made.c.at)
        query = sa.select(made.c.model_version).group_by(made.c.model_version).order_by(newest.desc())
        if project_id is not None:
            query = query.where(made.c.project_id == project_id)
        with self.guard(), self.engine.connect() as connection:
            return list(connection.scalars(query))

    def predictions_made(self) -> list[PredictionRun]:
        """Of which projects and versions there are predictions."""
        of = (predictions.c.project_id, predictions.c.model_version)
        at = predictions.c.created_at
        query = sa.select(*of, sa.func.min(at).label("first"), sa.func.max(at).label("last")).group_by(*of)
        with self.guard(), self.engine.connect() as connection:
            rows = connection.execute(query.order_by(*of)).all()
        return [
            PredictionRun(row.project_id, row.model_version, ensure_utc(row.first), ensure_utc(row.last))
            for row in rows
        ]

    def remove_predictions(
        self, project_id: int, model_version: str, before: datetime, limit: int = REMOVED_AT_ONCE
    ) -> int:
        """Remove some of a version's predictions that were made before a moment, and keep the version's name.

        Returns:
            how many were removed; fewer than ``limit``: there are no more.
        """
        of = (predictions.c.project_id == project_id) & (predictions.c.model_version == model_version)
        chosen = sa.select(predictions.c.key, predictions.c.created_at).where(of, predictions.c.created_at < before)
        with self._writing, self.guard(), self.engine.begin() as connection:
            rows = connection.execute(chosen.limit(limit)).all()
            if rows:
                connection.execute(sa.delete(predictions).where(predictions.c.key.in_([row.key for row in rows])))
                past = (past_versions.c.project_id == project_id) & (past_versions.c.model_version == model_version)
                known = connection.scalars(sa.select(past_versions.c.made_at).where(past)).all()
                last = max(ensure_utc(moment) for moment in (*known, *(row.created_at for row in rows)))
                connection.execute(sa.delete(past_versions).where(past))
                values = {"project_id": project_id, "model_version": model_version, "made_at": last}
                connection.execute(sa.insert(past_versions).values(**values))
        return len(rows)

    def count_predictions(self) -> int:
        with self.guard(), self.engine.connect() as connection:
            return connection.scalar(sa.select(sa.func.count()).select_from(predictions)) or 0

    def note_score(self, project_id: int, task_id: int, score: float) -> None:
        """Remember how sure the prediction is that a task was given, 0..1."""
        self.put(task_scores, {"project_id": project_id, "task_id": task_id}, {"score": score})

    def scores(self, project_id: int) -> dict[int, float]:
        """By task how sure its newest prediction is."""
        query = sa.select(task_scores.c.task_id, task_scores.c.score).where(task_scores.c.project_id == project_id)
        with self.guard(), self.engine.connect() as connection:
            return {row.task_id: row.score for row in connection.execute(query)}

    # -- what is still to be done

    def note_pending(self, kind: str, project_id: int, task_ids: Iterable[int] = (0,)) -> None:
        """Write down what is to be done before anything is done about it; 0 stands for the whole project.

        Killed afterwards, the process leaves it in the database: a commit is in the file, if not yet on the disk.
        """
        revision, tasks = uuid.uuid4().hex, sorted(set(task_ids))  # read once: it may be written twice
        of = (pending.c.kind == kind) & (pending.c.project_id == project_id)

        def write(connection: Connection) -> None:
            for part in _parts(tasks):
                rows = [
                    {"kind": kind, "project_id": project_id, "task_id": task, "revision": revision} for task in part
                ]
                connection.execute(sa.delete(pending).where(of & pending.c.task_id.in_(part)))
                connection.execute(sa.insert(pending), rows)

        self._write(write)

    def pending(self, kind: str, project_id: int) -> dict[int, str]:
        """Revision by task of what is to be done, see :meth:`settle`."""
        of = (pending.c.kind == kind) & (pending.c.project_id == project_id)
        query = sa.select(pending.c.task_id, pending.c.revision).where(of).order_by(pending.c.task_id)
        with self.guard(), self.engine.connect() as connection:
            return {row.task_id: row.revision for row in connection.execute(query)}

    def settle(self, kind: str, project_id: int, done: Mapping[int, str]) -> None:
        """Strike off what was done, by task, unless somebody has asked for it again since that revision."""
        of = (pending.c.kind == kind) & (pending.c.project_id == project_id)
        one = of & (pending.c.task_id == sa.bindparam("task")) & (pending.c.revision == sa.bindparam("seen"))
        rows = [{"task": task, "seen": revision} for task, revision in done.items()]
        if rows:
            with self._writing, self.guard(), self.engine.begin() as connection:
                connection.execute(sa.delete(pending).where(one), rows)

    def pending_projects(self) -> list[tuple[str, int]]:
        """Kind and project of all that is to be done."""
        query = sa.select(pending.c.kind, pending.c.project_id).distinct()
        with self.guard(), self.engine.connect() as connection:
            return sorted((row.kind, row.project_id) for row in connection.execute(query))

    # -- annotations

    def note_annotations(self, project_id: int, task_id: int, annotation_ids: Sequence[int]) -> None:
        """Remember whose task each annotation is, for the day on which its deletion names nothing else."""
        for annotation_id in annotation_ids:
            values = {"project_id": project_id, "task_id": task_id}
            self.put(annotation_tasks, {"annotation_id": annotation_id}, values)

    def put(
        self,
        table: sa.Table,
        key: Mapping[str, Any],
        values: Mapping[str, Any],
        defaults: Mapping[str, Any] | None = None,
    ) -> None:
        """Write some values of a row that may be there or not; ``defaults`` are a new row's others."""
        of = sa.and_(*(table.c[name] == value for name, value in key.items()))

        def write(connection: Connection) -> None:
            if not connection.execute(sa.update(table).where(of).values(**values)).rowcount:
                connection.execute(sa.insert(table).values({**(defaults or {}), **key, **values}))

        self._write(write)

    def _write(self, write: Callable[[Connection], None]) -> None:
        with self.guard():
            for attempt in range(1, WRITE_ATTEMPTS + 1):
                try:
                    with self._writing, self.engine.begin() as connection:
                        write(connection)
                    return
                except IntegrityError:  # another process has written the same rows at this moment
                    if attempt == WRITE_ATTEMPTS:
                        raise

    def tasks_of_annotations(self, annotation_ids: Sequence[int]) -> dict[int, int]:
        """Project by task of annotations that events have named, or that were read."""
        found: dict[int, int] = {}
        with self.guard(), self.engine.connect() as connection:
            for table in (annotation_tasks, exemplars, corrections):
                for part in _parts(annotation_ids):
                    query = sa.select(table.c.task_id, table.c.project_id).where(table.c.annotation_id.in_(part))
                    found.update((row.task_id, row.project_id) for row in connection.execute(query.distinct()))
        return found

    def annotated_projects(self) -> list[int]:
        """Projects of which an annotation has ever been heard of."""
        with self.guard(), self.engine.connect() as connection:
            return sorted(connection.scalars(sa.select(annotation_tasks.c.project_id).distinct()))


def _parts(values: Sequence[_T]) -> Iterator[Sequence[_T]]:
    return (values[start : start + _PART] for start in range(0, len(values), _PART))


def _tune_sqlite(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA synchronous=NORMAL")  # a commit costs no full disk flush
    cursor.close()
