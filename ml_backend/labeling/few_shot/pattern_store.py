"""Store exemplars by project, crop embeddings by video, and track sets by a key of their inputs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Any

import numpy as np
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection

from ml_backend.core.types import UNLABELLED
from ml_backend.db.storage import Storage
from ml_backend.db.tables import banks, embeddings, exemplars, identity_jumps, track_sets
from ml_backend.embeddings.crop_embeddings import CropEmbedding, from_half, to_half
from ml_backend.embeddings.crop_selection import CROPS_PER_TRACK
from ml_backend.labeling.few_shot.digest import bank_digests
from ml_backend.labeling.few_shot.identity_jumps import IdentityJump
from ml_backend.labeling.few_shot.pattern_bank import Exemplars
from ml_backend.tracking.track_record import TrackSet


@dataclass(frozen=True, slots=True)
class NewExemplar:
    """A crop of an annotated object to store; the label ``UNLABELLED`` means background.

    Attributes:
        detector_class: of the object's track; empty if unknown.
    """

    region_id: str
    label: str
    embedding_key: str
    origin: str = ""
    detector_class: str = ""


@dataclass(frozen=True, slots=True)
class ExemplarOrigin:
    """Where an exemplar comes from. If it was imported, ``task_id`` is 0 and ``origin`` is set."""

    label: str
    task_id: int
    region_id: str
    frame: int
    origin: str = ""


@dataclass(frozen=True, slots=True)
class StoredTracks:
    """A track set with its task and video."""

    task_id: int
    video_index: int
    video: str
    uri: str
    tracks: TrackSet


def video_key(uri: str) -> str:
    """Return the key of a video, 40 hex digits of the digest of its canonical URI."""
    return hashlib.sha256(uri.encode()).hexdigest()[:40]


class PatternStore:
    """Access to the tables of exemplars, embeddings and track sets; safe across threads and processes."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Open a connection for reading."""
        with self._storage.read() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Open a transaction."""
        with self._storage.write() as connection:
            yield connection

    # -- embeddings

    def crop_embeddings(self, video: str) -> StoredCropEmbeddings:
        """Return the store of one video's embeddings."""
        return StoredCropEmbeddings(self, video)

    # -- exemplars

    def digest(self, project_id: int, model: str) -> str | None:
        """Return the digest of a project's exemplars; empty without any, ``None`` before annotations are read."""
        return bank_digests(self._storage, project_id, [model])[model]

    def replace_task(
        self, project_id: int, model: str, task_id: int, annotation_id: int, items: Sequence[NewExemplar]
    ) -> bool:
        """Replace the exemplars of a task; return whether that changed the bank."""
        of_task = _exemplars_of(project_id, model, task_id)

        def change(connection: Connection) -> None:
            new, stored = _by_key(items), _stored(connection, of_task)
            obsolete = [{"obsolete": row.id} for key, row in stored.items() if key not in new]
            if obsolete:
                connection.execute(sa.delete(exemplars).where(exemplars.c.id == sa.bindparam("obsolete")), obsolete)
            _upsert(connection, project_id, model, task_id, annotation_id, new, stored)

        return self._change(project_id, model, change)

    def add_imported(self, project_id: int, model: str, items: Sequence[NewExemplar]) -> bool:
        """Add exemplars that belong to no task; return whether that changed the bank."""
        imported = _exemplars_of(project_id, model, 0)

        def change(connection: Connection) -> None:
            _upsert(connection, project_id, model, 0, 0, _by_key(items), _stored(connection, imported))

        return self._change(project_id, model, change)

    def remove_imported(self, project_id: int, model: str) -> bool:
        """Remove all imported exemplars; return whether that changed the bank."""
        imported = _exemplars_of(project_id, model, 0)
        return self._change(
            project_id, model, lambda connection: connection.execute(sa.delete(exemplars).where(imported))
        )

    def forget_project(self, project_id: int, keep: Sequence[str] = ()) -> None:
        """Mark a project's annotations as unread; its exemplars stay until they are read again.

        Args:
            keep: models for which the annotations remain read.
        """
        with self.write() as connection:
            condition = sa.and_(banks.c.project_id == project_id, banks.c.model.not_in(list(keep)))
            connection.execute(sa.delete(banks).where(condition))

    def tasks_with_exemplars(self, project_id: int) -> set[int]:
        """Return the tasks of a project's exemplars."""
        query = sa.select(exemplars.c.task_id).where(exemplars.c.project_id == project_id, exemplars.c.task_id != 0)
        with self.read() as connection:
            return set(connection.scalars(query.distinct()))

    def mark_read(self, project_id: int, model: str) -> bool:
        """Mark a project's annotations as read; return whether that changed the digest."""
        return self._change(project_id, model, lambda connection: None)

    def _change(self, project_id: int, model: str, change: Callable[[Connection], object]) -> bool:
        """Apply a change to a project's exemplars and return whether it changed their digest.

        The transaction takes the write lock at its start, so that the rows it reads cannot change.
        """
        bank = sa.and_(banks.c.project_id == project_id, banks.c.model == model)
        now = datetime.now(timezone.utc)
        with self.write() as connection:
            initial = {"project_id": project_id, "model": model, "digest": "", "updated_at": now}
            connection.execute(_insert_new(connection, banks).values(initial))
            # Write before reading: SQLite refuses to upgrade a read lock beside another writer.
            connection.execute(sa.update(banks).where(bank).values(updated_at=now))
            before = connection.scalar(sa.select(banks.c.digest).where(bank))
            change(connection)
            after = _digest(connection, project_id, model)
            connection.execute(sa.update(banks).where(bank).values(digest=after))
        return bool(after != before)

    def exemplars(self, project_id: int, model: str) -> tuple[Exemplars, dict[int, ExemplarOrigin]]:
        """Return all exemplars of a project by one model, and their origins by id."""
        with self.read() as connection:
            rows = connection.execute(_of_project(project_id, model, embeddings.c.vector)).all()
        groups: dict[tuple[int, str, str], int] = {}
        numbers = [groups.setdefault((row.task_id, row.region_id, row.origin), len(groups)) for row in rows]
        vectors = from_half([row.vector for row in rows])
        origins = {row.id: _origin(row) for row in rows}
        ids, labels = [row.id for row in rows], tuple(row.label for row in rows)
        classes = tuple(row.detector_class for row in rows)
        return Exemplars(np.array(ids, np.int64), vectors, labels, np.array(numbers, np.int64), classes), origins

    def thumbnails(self, project_id: int, model: str) -> dict[int, bytes]:
        """Return JPEGs by exemplar id."""
        with self.read() as connection:
            rows = connection.execute(_of_project(project_id, model, embeddings.c.thumbnail))
            return {row.id: row.thumbnail for row in rows}

    def gallery(
        self, project_id: int, model: str, label: str | None, limit: int, exemplar_id: int | None = None
    ) -> list[tuple[int, ExemplarOrigin, bytes]]:
        """Return id, origin and JPEG of at most ``limit`` exemplars, newest first.

        Args:
            label: only those of this label.
            exemplar_id: only this one.
        """
        query = _of_project(project_id, model, embeddings.c.thumbnail)
        if label is not None:
            query = query.where(exemplars.c.label == label)
        if exemplar_id is not None:
            query = query.where(exemplars.c.id == exemplar_id)
        query = query.order_by(None).order_by(exemplars.c.id.desc()).limit(limit)
        with self.read() as connection:
            return [(row.id, _origin(row), row.thumbnail) for row in connection.execute(query)]

    def origins(self, project_id: int, model: str, ids: Sequence[int]) -> dict[int, ExemplarOrigin]:
        """Return where some exemplars come from, by id; those that do not exist any more are left out."""
        query = _of_project(project_id, model).where(exemplars.c.id.in_(ids))
        with self.read() as connection:
            return {row.id: _origin(row) for row in connection.execute(query)}

    def counts(self, project_id: int, model: str) -> dict[str, dict[str, int]]:
        """Return the number of exemplars, annotated objects and tasks by label."""
        columns = (exemplars.c.label, exemplars.c.task_id, exemplars.c.region_id, exemplars.c.origin)
        query = sa.select(*columns).where(exemplars.c.project_id == project_id, exemplars.c.model == model)
        by_label: dict[str, list[Any]] = {}
        with self.read() as connection:
            for row in connection.execute(query):
                by_label.setdefault(row.label, []).append(row)
        return {
            label: {
                "exemplars": len(rows),
                "objects": len({(row.task_id, row.region_id, row.origin) for row in rows}),
                "tasks": len({row.task_id for row in rows if row.task_id}),
            }
            for label, rows in sorted(by_label.items())
        }

    def other_objects(self, project_id: int, model: str, task_id: int, limit: int) -> list[list[CropEmbedding]]:
        """Return the crops of about ``limit`` annotated objects of other tasks, the newest, each in order of time."""
        columns = [embeddings.c[name] for name in ("x1", "y1", "x2", "y2", "vector", "thumbnail")]
        query = _of_project(project_id, model, *columns)
        query = query.where(exemplars.c.task_id != task_id, exemplars.c.label != UNLABELLED)
        query = query.order_by(None).order_by(exemplars.c.id.desc()).limit(limit * CROPS_PER_TRACK)
        objects: dict[tuple[int, str], list[CropEmbedding]] = {}
        with self.read() as connection:
            for row in connection.execute(query):
                objects.setdefault((row.task_id, row.region_id), []).append(_crop_embedding(row))
        return [sorted(crops, key=lambda crop: crop.frame) for crops in objects.values()]

    # -- identity jumps

    def replace_jumps(self, project_id: int, task_id: int, jumps: Sequence[IdentityJump]) -> None:
        """Replace the jumps that were found in a task's annotated tracks."""
        of_task = sa.and_(identity_jumps.c.project_id == project_id, identity_jumps.c.task_id == task_id)
        rows = {jump.region_id: {"project_id": project_id, "task_id": task_id, **asdict(jump)} for jump in jumps}
        with self.write() as connection:
            connection.execute(sa.delete(identity_jumps).where(of_task))
            if rows:
                connection.execute(sa.insert(identity_jumps), list(rows.values()))

    def jumps(self, project_id: int) -> list[tuple[int, IdentityJump]]:
        """Return task and jump of annotated tracks that seem to change from one object to another."""
        query = sa.select(identity_jumps).where(identity_jumps.c.project_id == project_id)
        query = query.order_by(identity_jumps.c.task_id, identity_jumps.c.frame, identity_jumps.c.region_id)
        with self.read() as connection:
            return [
                (row.task_id, IdentityJump(row.region_id, row.label, row.frame, row.untaught))
                for row in connection.execute(query)
            ]

    # -- track sets

    def save_tracks(
        self, key: str, project_id: int, task_id: int, video_index: int, uri: str, tracks: TrackSet
    ) -> None:
        row = {
            "project_id": project_id,
            "task_id": task_id,
            "part": video_index,
            "video": video_key(uri),
            "uri": uri,
            "body": tracks.dump(),
            "created_at": datetime.now(timezone.utc),
        }
        with self.write() as connection:
            # Replaces one of an earlier release or of another worker.
            connection.execute(sa.delete(track_sets).where(track_sets.c.key == key))
            connection.execute(sa.insert(track_sets).values(key=key, **row))

    def get_tracks(self, key: str) -> TrackSet | None:
        with self.read() as connection:
            body = connection.scalar(sa.select(track_sets.c.body).where(track_sets.c.key == key))
        return None if body is None else TrackSet.load(body)

    def tracks_of_project(self, project_id: int, video: str = "", task_id: int = 0) -> Iterator[StoredTracks]:
        """Yield the newest track set of each video of a project (or of one video, or task), one in memory at a time."""
        columns = (track_sets.c.key, track_sets.c.task_id, track_sets.c.part, track_sets.c.video, track_sets.c.uri)
        query = sa.select(*columns).where(track_sets.c.project_id == project_id).order_by(track_sets.c.created_at)
        if video:
            query = query.where(track_sets.c.video == video)
        if task_id:
            query = query.where(track_sets.c.task_id == task_id)
        with self.read() as connection:
            newest = {row.video: row for row in connection.execute(query)}
        for row in sorted(newest.values(), key=lambda row: (row.task_id, row.part)):
            tracks = self.get_tracks(row.key)
            if tracks is not None:
                yield StoredTracks(row.task_id, row.part, row.video, row.uri, tracks)


class StoredCropEmbeddings:
    """Implement :class:`ml_backend.embeddings.crop_embeddings.CropEmbeddingStore` for one video in the database."""

    def __init__(self, store: PatternStore, video: str) -> None:
        self._store, self._video = store, video

    def get(self, model_id: str) -> list[CropEmbedding]:
        condition = sa.and_(embeddings.c.video == self._video, embeddings.c.model == model_id)
        query = sa.select(embeddings).where(condition).order_by(embeddings.c.frame, embeddings.c.key)
        with self._store.read() as connection:
            return [_crop_embedding(row) for row in connection.execute(query)]

    def add(self, model_id: str, added: Sequence[CropEmbedding]) -> None:
        rows = [
            {
                "key": crop.key(self._video, model_id),
                "video": self._video,
                "model": model_id,
                "frame": crop.frame,
                **dict(zip(("x1", "y1", "x2", "y2"), crop.xyxy, strict=True)),
                "vector": to_half(crop.vector),
                "thumbnail": crop.thumbnail,
            }
            for crop in added
        ]
        if rows:
            with self._store.write() as connection:
                connection.execute(_insert_new(connection, embeddings), rows)


def _of_project(project_id: int, model: str, *columns: sa.Column[Any]) -> sa.Select[Any]:
    return (
        sa.select(exemplars, embeddings.c.frame, *columns)
        .join(embeddings, embeddings.c.key == exemplars.c.embedding)
        .where(exemplars.c.project_id == project_id, exemplars.c.model == model)
        .order_by(exemplars.c.id)
    )


def _crop_embedding(row: Any) -> CropEmbedding:
    return CropEmbedding(row.frame, (row.x1, row.y1, row.x2, row.y2), from_half([row.vector])[0], row.thumbnail)


def _origin(row: Any) -> ExemplarOrigin:
    return ExemplarOrigin(row.label, row.task_id, row.region_id, row.frame, row.origin)


def _insert_new(connection: Connection, table: sa.Table) -> Any:
    """Return an insert that skips existing rows, in the dialect of the database."""
    insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    return insert(table).on_conflict_do_nothing()


def _by_key(items: Sequence[NewExemplar]) -> dict[tuple[str, str], NewExemplar]:
    return {(item.region_id, item.embedding_key): item for item in items}


def _stored(connection: Connection, condition: sa.ColumnElement[bool]) -> dict[tuple[str, str], Any]:
    rows = connection.execute(sa.select(exemplars).where(condition))
    return {(row.region_id, row.embedding): row for row in rows}


def _upsert(
    connection: Connection,
    project_id: int,
    model: str,
    task_id: int,
    annotation_id: int,
    new: Mapping[tuple[str, str], NewExemplar],
    stored: Mapping[tuple[str, str], Any],
) -> None:
    """Insert new exemplars and update the label, annotation and detector class of stored ones."""
    rows = []
    for (region_id, embedding_key), item in new.items():
        values = {"label": item.label, "annotation_id": annotation_id, "detector_class": item.detector_class}
        row = stored.get((region_id, embedding_key))
        if row is None:
            scope = {"project_id": project_id, "model": model, "task_id": task_id}
            rows.append({**scope, "region_id": region_id, "embedding": embedding_key, "origin": item.origin, **values})
        elif (row.label, row.annotation_id, row.detector_class) != tuple(values.values()):
            connection.execute(sa.update(exemplars).where(exemplars.c.id == row.id).values(**values))
    if rows:
        connection.execute(sa.insert(exemplars), rows)


def _exemplars_of(project_id: int, model: str, task_id: int) -> sa.ColumnElement[bool]:
    return sa.and_(exemplars.c.project_id == project_id, exemplars.c.model == model, exemplars.c.task_id == task_id)


def _digest(connection: Connection, project_id: int, model: str) -> str:
    """Return the digest of the stored exemplars, independent of their history; empty if none has a label."""
    names = ("label", "task_id", "region_id", "embedding", "detector_class")
    columns = [exemplars.c[name] for name in names]
    condition = sa.and_(exemplars.c.project_id == project_id, exemplars.c.model == model)
    rows = sorted(tuple(row) for row in connection.execute(sa.select(*columns).where(condition)))
    return hashlib.sha256(repr(rows).encode()).hexdigest()[:40] if any(row[0] for row in rows) else ""
