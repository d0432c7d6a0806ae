"""What is kept of learned labels: exemplars by project, looks by video, track sets by what they were made of."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import numpy as np
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection

from ml_backend.db.storage import Storage
from ml_backend.db.tables import banks, embeddings, exemplars, track_sets
from ml_backend.embeddings.crop_embeddings import CropEmbedding, from_half, to_half
from ml_backend.labeling.few_shot.digest import bank_digests
from ml_backend.labeling.few_shot.pattern_bank import Exemplars
from ml_backend.tracking.track_record import TrackSet


@dataclass(frozen=True, slots=True)
class NewExemplar:
    """One view of an annotated object that is to be kept; ``label`` may be ``UNLABELLED``: background."""

    region_id: str
    label: str
    look: str
    origin: str = ""


@dataclass(frozen=True, slots=True)
class ExemplarOrigin:
    """Where an exemplar comes from. ``task_id`` is 0 and ``origin`` set where it was imported."""

    label: str
    task_id: int
    region_id: str
    frame: int
    origin: str = ""


@dataclass(frozen=True, slots=True)
class StoredTracks:
    """A track set and the task that it was made for."""

    task_id: int
    part: int
    video: str
    uri: str
    tracks: TrackSet


def video_key(uri: str) -> str:
    """A video is known by its (canonical) address; 40 hex digits."""
    return hashlib.sha256(uri.encode()).hexdigest()[:40]


class PatternStore:
    """Access to the tables of learned labels; safe across threads and processes."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection that only reads."""
        with self._storage.guard(), self._storage.engine.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction."""
        with self._storage.guard(), self._storage.engine.begin() as connection:
            yield connection

    # -- looks

    def looks(self, video: str) -> StoredCropEmbeddings:
        """The looks of one video."""
        return StoredCropEmbeddings(self, video)

    # -- exemplars

    def digest(self, project_id: int, model: str) -> str | None:
        """Digest of a project's exemplars; empty where it has none, ``None`` where its annotations were not read."""
        return bank_digests(self._storage, project_id, [model])[model]

    def replace_task(
        self, project_id: int, model: str, task_id: int, annotation_id: int, wanted: Sequence[NewExemplar]
    ) -> bool:
        """Make ``wanted`` the exemplars of a task; whether that changed the bank."""
        mine = _exemplars_of(project_id, model, task_id)

        def change(connection: Connection) -> None:
            goal, present = {(item.region_id, item.look): item for item in wanted}, _present(connection, mine)
            gone = [{"gone": row.id} for key, row in present.items() if key not in goal]
            if gone:
                connection.execute(sa.delete(exemplars).where(exemplars.c.id == sa.bindparam("gone")), gone)
            _put(connection, project_id, model, task_id, annotation_id, goal, present)

        return self._change(project_id, model, change)

    def add_imported(self, project_id: int, model: str, items: Sequence[NewExemplar]) -> bool:
        """Add exemplars that belong to no task; those that are there already stay. Whether that changed the bank."""
        goal, imported = {(item.region_id, item.look): item for item in items}, _exemplars_of(project_id, model, 0)

        def change(connection: Connection) -> None:
            _put(connection, project_id, model, 0, 0, goal, _present(connection, imported))

        return self._change(project_id, model, change)

    def remove_imported(self, project_id: int, model: str) -> bool:
        """Remove all exemplars that were imported; whether there were any."""
        imported = _exemplars_of(project_id, model, 0)
        return self._change(
            project_id, model, lambda connection: connection.execute(sa.delete(exemplars).where(imported))
        )

    def forget_project(self, project_id: int, keep: Sequence[str] = ()) -> None:
        """Annotations are to be read anew when they are needed again; the exemplars stay until then.

        Args:
            keep: models for which they need not be.
        """
        with self.write() as connection:
            of = sa.and_(banks.c.project_id == project_id, banks.c.model.not_in(list(keep)))
            connection.execute(sa.delete(banks).where(of))

    def taught_tasks(self, project_id: int) -> set[int]:
        """Tasks that exemplars of the project come from."""
        query = sa.select(exemplars.c.task_id).where(exemplars.c.project_id == project_id, exemplars.c.task_id != 0)
        with self.read() as connection:
            return set(connection.scalars(query.distinct()))

    def mark_read(self, project_id: int, model: str) -> bool:
        """Note that all annotations are read, or noted to be read; whether that changed the digest."""
        return self._change(project_id, model, lambda connection: None)

    def _change(self, project_id: int, model: str, change: Callable[[Connection], object]) -> bool:
        """Whether a change of a project's exemplars changed their digest.

        It is made in a transaction that has the write lock from its beginning, so that what it reads stays true.
        """
        row = sa.and_(banks.c.project_id == project_id, banks.c.model == model)
        now = datetime.now(timezone.utc)
        with self.write() as connection:
            start = {"project_id": project_id, "model": model, "digest": "", "updated_at": now}
            connection.execute(_insert_new(connection, banks).values(start))
            # Written before it is read: SQLite would refuse to turn a reader into a writer beside another one.
            connection.execute(sa.update(banks).where(row).values(updated_at=now))
            before = connection.scalar(sa.select(banks.c.digest).where(row))
            change(connection)
            after = _digest(connection, project_id, model)
            connection.execute(sa.update(banks).where(row).values(digest=after))
        return bool(after != before)

    def exemplars(self, project_id: int, model: str) -> tuple[Exemplars, dict[int, ExemplarOrigin]]:
        """All exemplars of a project by one model, and by id where each comes from."""
        with self.read() as connection:
            rows = connection.execute(_of_project(project_id, model, embeddings.c.vector)).all()
        groups: dict[tuple[int, str, str], int] = {}
        numbers = [groups.setdefault((row.task_id, row.region_id, row.origin), len(groups)) for row in rows]
        vectors = from_half([row.vector for row in rows])
        sources = {row.id: _source(row) for row in rows}
        ids, labels = [row.id for row in rows], tuple(row.label for row in rows)
        found = Exemplars(np.array(ids, np.int64), vectors, labels, np.array(numbers, np.int64))
        return found, sources

    def thumbnails(self, project_id: int, model: str) -> dict[int, bytes]:
        """JPEG by exemplar id."""
        with self.read() as connection:
            rows = connection.execute(_of_project(project_id, model, embeddings.c.thumbnail))
            return {row.id: row.thumbnail for row in rows}

    def gallery(self, project_id: int, model: str, label: str, limit: int) -> list[tuple[int, ExemplarOrigin, bytes]]:
        """Some exemplars of a label, newest first: id, where each comes from, and its JPEG."""
        query = _of_project(project_id, model, embeddings.c.thumbnail).where(exemplars.c.label == label)
        query = query.order_by(None).order_by(exemplars.c.id.desc()).limit(limit)
        with self.read() as connection:
            return [(row.id, _source(row), row.thumbnail) for row in connection.execute(query)]

    def counts(self, project_id: int, model: str) -> dict[str, dict[str, int]]:
        """Per label: number of exemplars, annotated objects, and tasks."""
        columns = (exemplars.c.label, exemplars.c.task_id, exemplars.c.region_id, exemplars.c.origin)
        query = sa.select(*columns).where(exemplars.c.project_id == project_id, exemplars.c.model == model)
        found: dict[str, list[Any]] = {}
        with self.read() as connection:
            for row in connection.execute(query):
                found.setdefault(row.label, []).append(row)
        return {
            label: {
                "exemplars": len(rows),
                "objects": len({(row.task_id, row.region_id, row.origin) for row in rows}),
                "tasks": len({row.task_id for row in rows if row.task_id}),
            }
            for label, rows in sorted(found.items())
        }

    # -- track sets

    def save_tracks(self, key: str, project_id: int, task_id: int, part: int, uri: str, tracks: TrackSet) -> None:
        row = {
            "project_id": project_id,
            "task_id": task_id,
            "part": part,
            "video": video_key(uri),
            "uri": uri,
            "body": tracks.dump(),
            "created_at": datetime.now(timezone.utc),
        }
        with self.write() as connection:
            # One that an earlier release wrote, or another worker a moment ago, is replaced.
            connection.execute(sa.delete(track_sets).where(track_sets.c.key == key))
            connection.execute(sa.insert(track_sets).values(key=key, **row))

    def get_tracks(self, key: str) -> TrackSet | None:
        with self.read() as connection:
            body = connection.scalar(sa.select(track_sets.c.body).where(track_sets.c.key == key))
        return None if body is None else TrackSet.load(body)

    def tracks_of_project(self, project_id: int, video: str = "") -> Iterator[StoredTracks]:
        """The newest track set of each video of a project (or of one video), one in memory at a time."""
        columns = (track_sets.c.key, track_sets.c.task_id, track_sets.c.part, track_sets.c.video, track_sets.c.uri)
        query = sa.select(*columns).where(track_sets.c.project_id == project_id).order_by(track_sets.c.created_at)
        if video:
            query = query.where(track_sets.c.video == video)
        with self.read() as connection:
            newest = {row.video: row for row in connection.execute(query)}
        for row in sorted(newest.values(), key=lambda row: (row.task_id, row.part)):
            tracks = self.get_tracks(row.key)
            if tracks is not None:
                yield StoredTracks(row.task_id, row.part, row.video, row.uri, tracks)


class StoredCropEmbeddings:
    """Looks of one video in the database; see :class:`ml_backend.embeddings.crop_embeddings.CropEmbeddingStore`."""

    def __init__(self, store: PatternStore, video: str) -> None:
        self._store, self._video = store, video

    def get(self, model_id: str) -> list[CropEmbedding]:
        of = sa.and_(embeddings.c.video == self._video, embeddings.c.model == model_id)
        query = sa.select(embeddings).where(of).order_by(embeddings.c.frame, embeddings.c.key)
        with self._store.read() as connection:
            rows = connection.execute(query).all()
        vectors = from_half([row.vector for row in rows])
        return [
            CropEmbedding(row.frame, (row.x1, row.y1, row.x2, row.y2), vector, row.thumbnail)
            for row, vector in zip(rows, vectors, strict=True)
        ]

    def add(self, model_id: str, looks: Sequence[CropEmbedding]) -> None:
        rows = [
            {
                "key": look.key(self._video, model_id),
                "video": self._video,
                "model": model_id,
                "frame": look.frame,
                **dict(zip(("x1", "y1", "x2", "y2"), look.xyxy, strict=True)),
                "vector": to_half(look.vector),
                "thumbnail": look.thumbnail,
            }
            for look in looks
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


def _source(row: Any) -> ExemplarOrigin:
    return ExemplarOrigin(row.label, row.task_id, row.region_id, row.frame, row.origin)


def _insert_new(connection: Connection, table: sa.Table) -> Any:
    """An insertion that leaves rows alone that are there already; SQLAlchemy has it for each database apart."""
    insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    return insert(table).on_conflict_do_nothing()


def _present(connection: Connection, which: sa.ColumnElement[bool]) -> dict[tuple[str, str], Any]:
    rows = connection.execute(sa.select(exemplars).where(which))
    return {(row.region_id, row.embedding): row for row in rows}


def _put(
    connection: Connection,
    project_id: int,
    model: str,
    task_id: int,
    annotation_id: int,
    goal: Mapping[tuple[str, str], NewExemplar],
    present: Mapping[tuple[str, str], Any],
) -> None:
    """Insert what is missing, and give the others the label that they have now."""
    new = []
    for (region, look), item in goal.items():
        values = {"label": item.label, "annotation_id": annotation_id, "origin": item.origin}
        row = present.get((region, look))
        if row is None:
            of = {"project_id": project_id, "model": model, "task_id": task_id}
            new.append({**of, "region_id": region, "embedding": look, **values})
        elif (row.label, row.annotation_id) != (item.label, annotation_id):
            connection.execute(sa.update(exemplars).where(exemplars.c.id == row.id).values(**values))
    if new:
        connection.execute(sa.insert(exemplars), new)


def _exemplars_of(project_id: int, model: str, task_id: int) -> sa.ColumnElement[bool]:
    of = exemplars.c.project_id == project_id, exemplars.c.model == model, exemplars.c.task_id == task_id
    return sa.and_(*of)


def _digest(connection: Connection, project_id: int, model: str) -> str:
    """Of what is there now: the same exemplars have the same, whichever way they came; empty where none has a label."""
    columns = (exemplars.c.label, exemplars.c.task_id, exemplars.c.region_id, exemplars.c.embedding)
    of = sa.and_(exemplars.c.project_id == project_id, exemplars.c.model == model)
    rows = sorted(tuple(row) for row in connection.execute(sa.select(*columns).where(of)))
    # Background alone gives nothing a label.
    return hashlib.sha256(repr(rows).encode()).hexdigest()[:40] if any(row[0] for row in rows) else ""
