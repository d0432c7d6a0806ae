"""Store suspicious moments, and what people decided about them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from ml_backend.core.timestamps import ensure_utc
from ml_backend.db.storage import Storage
from ml_backend.db.tables import moments, repairs
from ml_backend.review.repair_json import ACCEPT, CONSENSUS, DISMISS, FOUND, IDENTIFY, SKIP, UNCHANGING, digest

if TYPE_CHECKING:
    from ml_backend.core.types import FloatArray

#: Most moments of a task that are kept, those with the largest gain.
MAX_PER_TASK = 50
#: A moment, or a decision, as a row of the database.
Row = dict[str, Any]
#: Columns by which the queue can be filtered.
FILTERS = ("task_id", "kind", "label", "author")
#: First bytes of a stored embedding, which tell its model.
_MODEL_BYTES = 8
#: Id of the first decision of a decision's batch.
_FIRST = sa.case((repairs.c.batch == 0, repairs.c.id), else_=repairs.c.batch)


class MomentStore:
    """Reads and writes the tables of moments and repairs. Safe across threads and processes."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    # -- moments

    def replace_task(self, project_id: int, task_id: int, found: Sequence[Row]) -> dict[str, str]:
        """Store the moments of a task in place of its earlier ones; those that were found again keep their clips.

        Args:
            found: rows without ``project_id``, ``task_id`` and ``clip``.

        Returns:
            SHA-256 of the clips that are not used any more, by moment.
        """
        best = sorted(found, key=lambda row: -row["gain"])
        unique = list({row["id"]: row for row in reversed(best)}.values())[::-1][:MAX_PER_TASK]
        own = (moments.c.project_id == project_id) & (moments.c.task_id == task_id)
        with self._storage.write() as connection:
            clips = {row.id: row.clip for row in connection.execute(sa.select(moments.c.id, moments.c.clip).where(own))}
            connection.execute(sa.delete(moments).where(own))
            rows = [
                {**row, "project_id": project_id, "task_id": task_id, "clip": clips.pop(row["id"], "")}
                for row in unique
            ]
            if rows:
                connection.execute(sa.insert(moments), rows)
        return {name: sha256 for name, sha256 in clips.items() if sha256}

    def forget_task(self, project_id: int, task_id: int) -> dict[str, str]:
        """Remove a deleted task's moments and decisions; returns as :meth:`replace_task` does."""
        with self._storage.write() as connection:
            own = (repairs.c.project_id == project_id) & (repairs.c.task_id == task_id)
            connection.execute(sa.delete(repairs).where(own))
        return self.replace_task(project_id, task_id, [])

    def projects(self) -> list[int]:
        """Return the projects that have moments or decisions."""
        query = sa.union(sa.select(moments.c.project_id), sa.select(repairs.c.project_id)).order_by("project_id")
        with self._storage.read() as connection:
            return list(connection.scalars(query))

    def tasks(self, project_id: int) -> set[int]:
        """Return the tasks that have moments or decisions."""
        with self._storage.read() as connection:
            return {
                task_id
                for table in (moments, repairs)
                for task_id in connection.scalars(
                    sa.select(table.c.task_id).where(table.c.project_id == project_id).distinct()
                )
            }

    def get(self, project_id: int, moment_id: str) -> Row | None:
        query = sa.select(moments).where(moments.c.project_id == project_id, moments.c.id == moment_id)
        with self._storage.read() as connection:
            row = connection.execute(query).mappings().first()
        return dict(row) if row else None

    def note_clip(self, moment_id: str, sha256: str) -> bool:
        """Store the digest of a moment's clip; return whether the moment is still there."""
        with self._storage.write() as connection:
            found = connection.execute(sa.update(moments).where(moments.c.id == moment_id).values(clip=sha256))
            return bool(found.rowcount)

    def queue(self, project_id: int, filters: Mapping[str, Any], limit: int, offset: int) -> tuple[list[Row], int]:
        """Return undecided moments, skipped ones last, else the largest gain first; and the number of all.

        Args:
            filters: values by column, of :data:`FILTERS`.
        """
        skipped = sa.exists().where(_decision(moments.c.id), repairs.c.action == SKIP)
        order = (skipped, moments.c.gain.desc(), moments.c.id)
        with self._storage.read() as connection:
            query = _open(sa.select(moments, skipped.label("skipped")), project_id, filters)
            rows = connection.execute(query.order_by(*order).limit(limit).offset(offset)).mappings()
            total = connection.scalar(_open(sa.select(sa.func.count(moments.c.id)), project_id, filters))
            return [dict(row) for row in rows], int(total or 0)

    def similar(self, decision: Row, limit: int) -> tuple[list[Row], int]:
        """Return undecided moments like an accepted one, the largest gain first; and the number of all.

        They have the same kind, labels and proposed action. One whose track looks more like that of a dismissed moment
        than of any accepted one is left out.
        """
        if not decision["signature"]:
            return [], 0
        project_id, alike = decision["project_id"], {"signature": decision["signature"]}
        query = _open(sa.select(moments), project_id, alike).order_by(moments.c.gain.desc(), moments.c.id)
        decided = sa.select(repairs.c.action, repairs.c.embedding).where(
            repairs.c.project_id == project_id,
            repairs.c.signature == decision["signature"],
            repairs.c.action.in_((ACCEPT, DISMISS)),
            repairs.c.undone_at.is_(None),
            repairs.c.embedding.is_not(None),
        )
        with self._storage.read() as connection:
            rows: list[Row] = [dict(row) for row in connection.execute(query).mappings()]
            known = [(row.action, row.embedding) for row in connection.execute(decided)]
        dismissed = _looks_dismissed(known)
        found = [row for row in rows if not dismissed(row["embedding"])]
        return found[:limit], len(found)

    def values(self, project_id: int) -> dict[str, list[tuple[Any, int]]]:
        """Return by column of :data:`FILTERS` the values of undecided moments and how often each occurs."""
        found: dict[str, Any] = {}
        with self._storage.read() as connection:
            for name in FILTERS:
                column = moments.c[name]
                query = _open(sa.select(column, sa.func.count()), project_id, {}).group_by(column).order_by(column)
                found[name] = [(row[0], row[1]) for row in connection.execute(query)]
        return found

    def state(self, project_id: int) -> list[Any]:
        """Return values that change with a project's queue."""
        found = (sa.func.count(), sa.func.min(moments.c.id), sa.func.max(moments.c.id), sa.func.sum(moments.c.gain))
        decided = (sa.func.max(repairs.c.id), sa.func.count(repairs.c.undone_at))
        with self._storage.read() as connection:
            return [
                *connection.execute(sa.select(*found).where(moments.c.project_id == project_id)).one(),
                *connection.execute(sa.select(*decided).where(repairs.c.project_id == project_id)).one(),
            ]

    # -- decisions

    def add(self, rows: Sequence[Row], batch: int = 0) -> list[int]:
        """Store decisions; return their ids. Several are undone at once.

        Args:
            batch: id of an earlier decision, with which these are undone; 0: none.
        """
        nothing = {"annotation_id": 0, "base_id": 0, "written": "", "before": [], "after": []}
        facts = {"at": datetime.now(timezone.utc), "undone_by": "", "batch": batch, **nothing}
        with self._storage.write() as connection:
            ids = [
                int(connection.execute(sa.insert(repairs).values({**facts, **row})).inserted_primary_key[0])  # type: ignore[index]
                for row in rows
            ]
            first = batch or ids[0]
            if batch or len(ids) > 1:
                own = repairs.c.id.in_([first, *ids])
                connection.execute(sa.update(repairs).where(own).values(batch=first))
        return ids

    def decision(self, project_id: int, repair_id: int) -> Row | None:
        """Return a decision with facts about its batch.

        Returns:
            With ``count``, the number of the batch's decisions, and ``tasks``, those concerned; ``undone_at`` is
            ``None`` while one of them is in force.
        """
        rows = self._of_batches(self._decisions(repairs.c.project_id == project_id, repairs.c.id == repair_id))
        return rows[0] if rows else None

    def decided(self, moment_id: str) -> Row | None:
        """Return the decision on a moment that is in force, unless it was skipped only."""
        rows = self._decisions(_decision(moment_id), repairs.c.action != SKIP)
        return rows[0] if rows else None

    def marked(self, project_id: int) -> set[str]:
        """Return the signatures of decisions in force about tracks that were found by their looks."""
        found = (repairs.c.project_id == project_id) & (repairs.c.moment_id == "") & (repairs.c.signature != "")
        with self._storage.read() as connection:
            return set(connection.scalars(sa.select(repairs.c.signature).where(found, repairs.c.undone_at.is_(None))))

    def batch(self, decision: Row) -> list[Row]:
        """Return the decisions that are undone with one, including itself, newest first; none that was undone."""
        same = repairs.c.batch == decision["batch"] if decision["batch"] else repairs.c.id == decision["id"]
        return self._decisions(same, repairs.c.undone_at.is_(None))

    def history(self, project_id: int, limit: int, task_id: int | None = None) -> list[Row]:
        """Return the last decisions, newest first, the first one of each batch.

        Args:
            task_id: only those that concern this task.

        Returns:
            As :meth:`decision`.
        """
        own = [repairs.c.project_id == project_id, *([repairs.c.task_id == task_id] if task_id else [])]
        first = sa.func.min(repairs.c.id)  # the batch's first one may be of a deleted task
        query = sa.select(first).where(*own).group_by(_FIRST).order_by(first.desc()).limit(limit)
        with self._storage.read() as connection:
            ids = list(connection.scalars(query))
        return self._of_batches(self._decisions(repairs.c.id.in_(ids)))

    def _of_batches(self, rows: Sequence[Row]) -> list[Row]:
        ids = {row["batch"] or row["id"] for row in rows}
        query = sa.select(_FIRST.label("first"), repairs.c.task_id, repairs.c.undone_at)
        found: dict[int, list[Any]] = {}
        with self._storage.read() as connection:
            for member in connection.execute(query.where(repairs.c.id.in_(ids) | repairs.c.batch.in_(ids))):
                found.setdefault(member.first, []).append(member)
        out = []
        for row in rows:
            members = found[row["batch"] or row["id"]]
            facts = {"count": len(members), "tasks": sorted({member.task_id for member in members})}
            if not all(member.undone_at for member in members):
                facts |= {"undone_at": None, "undone_by": ""}
            out.append({**row, **facts})
        return out

    def replayed(self, task_id: int) -> list[Row]:
        """Return the repairs of a task's prediction that are in force, in order."""
        return self._decisions((repairs.c.task_id == task_id) & (repairs.c.annotation_id == 0), _in_force())[::-1]

    def replayed_in(self, annotation_id: int) -> list[Row]:
        """Return the repairs that are in force in an annotation, in order; none in one of a person."""
        return self._decisions(repairs.c.annotation_id == annotation_id, _in_force())[::-1]

    def made_here(self, project_id: int) -> dict[int, int]:
        """Return the annotations that repairs made, and which one each is a version of; 0: of nobody's, a consensus."""
        columns = (repairs.c.annotation_id, repairs.c.base_id, repairs.c.action)
        own = (repairs.c.project_id == project_id) & (repairs.c.annotation_id != 0)
        found: dict[int, int] = {}
        with self._storage.read() as connection:
            for row in connection.execute(sa.select(*columns).where(own, _in_force()).order_by(repairs.c.id)):
                found.setdefault(row.annotation_id, 0 if row.action == CONSENSUS else row.base_id)
        return found

    def repaired_tasks(self, task_ids: Sequence[int]) -> set[int]:
        """Return those of some tasks whose prediction was repaired."""
        query = sa.select(repairs.c.task_id).where(
            repairs.c.task_id.in_(task_ids), repairs.c.annotation_id == 0, _in_force()
        )
        with self._storage.read() as connection:
            return set(connection.scalars(query.distinct()))

    def largest_global_id(self, project_id: int) -> int:
        """Return the largest global id that was ever given in a project; 0: none was."""
        number = repairs.c.after[(0, "meta", "global_id")].as_integer()
        with self._storage.read() as connection:
            return connection.scalar(sa.select(sa.func.max(number)).where(_gives_ids(project_id))) or 0

    def identified(self, project_id: int, since: int = 0) -> list[Row]:
        """Return the decisions in force that gave tracks global ids, in order.

        Args:
            since: only those after the decision with this id.

        Returns:
            ``id``, ``task_id``, ``region``, ``global_id``, ``by``, and whether a search ``found`` it.
        """
        region = repairs.c.after[(0, "id")].as_string()
        number = repairs.c.after[(0, "meta", "global_id")].as_integer()
        columns = (repairs.c.id, repairs.c.task_id, region.label("region"), number.label("global_id"), repairs.c.by)
        found = (repairs.c.signature == FOUND).label("found")
        newer = (_gives_ids(project_id), repairs.c.undone_at.is_(None), repairs.c.id > since)
        query = sa.select(*columns, found).where(*newer).order_by(repairs.c.id)
        with self._storage.read() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    def identity_state(self, project_id: int) -> tuple[int, str]:
        """Return the id of the last decision that gave a global id, and a text that changes with those in force."""
        # Of all of them and of those undone: one that is made and undone changes it, too.
        counts = (sa.func.max(repairs.c.id), sa.func.count(), sa.func.count(repairs.c.undone_at))
        with self._storage.read() as connection:
            last, count, undone = connection.execute(sa.select(*counts).where(_gives_ids(project_id))).one()
        return last or 0, f"{last}-{count}-{undone}"

    def note_written(self, annotation_id: int, digest: str) -> None:
        """Store the digest of what was written to an annotation last, with all repairs of it."""
        with self._storage.write() as connection:
            own = repairs.c.annotation_id == annotation_id
            connection.execute(sa.update(repairs).where(own).values(written=digest))

    def note_before(self, repair_id: int, before: Sequence[Mapping[str, Any]]) -> None:
        """Store the regions that undoing a repair puts back."""
        with self._storage.write() as connection:
            connection.execute(sa.update(repairs).where(repairs.c.id == repair_id).values(before=before))

    def undo(self, repair_ids: Sequence[int], by: str) -> None:
        with self._storage.write() as connection:
            values = {"undone_by": by, "undone_at": datetime.now(timezone.utc)}
            connection.execute(sa.update(repairs).where(repairs.c.id.in_(repair_ids)).values(**values))

    def _decisions(self, *conditions: sa.ColumnElement[bool], limit: int | None = None) -> list[Row]:
        """Return decisions, newest first."""
        query = sa.select(repairs).where(*conditions).order_by(repairs.c.id.desc()).limit(limit)
        with self._storage.read() as connection:
            return [
                {
                    **dict(row),
                    "at": ensure_utc(row["at"]),
                    "undone_at": row["undone_at"] and ensure_utc(row["undone_at"]),
                }
                for row in connection.execute(query).mappings()
            ]


def embedding_of(model_id: str, vector: FloatArray) -> bytes:
    """Return how a moment's embedding ``(d,)`` is stored: the digest of its model, then the vector."""
    from ml_backend.embeddings.crop_embeddings import to_half

    return bytes.fromhex(digest(model_id)) + to_half(vector)


def _looks_dismissed(decided: Sequence[tuple[str, bytes]]) -> Callable[[bytes | None], bool]:
    """Return a function that tells whether the decided moment most similar to an embedding was dismissed."""
    if all(action == ACCEPT for action, _ in decided):
        return lambda embedding: False
    from ml_backend.embeddings.crop_embeddings import from_half  # numpy, left to who compares

    by_model: dict[tuple[bytes, int], list[tuple[str, bytes]]] = defaultdict(list)
    for action, blob in decided:
        by_model[blob[:_MODEL_BYTES], len(blob)].append((action, blob[_MODEL_BYTES:]))
    vectors = {model: from_half([blob for _, blob in items]) for model, items in by_model.items()}

    def dismissed(embedding: bytes | None) -> bool:
        model = (embedding[:_MODEL_BYTES], len(embedding)) if embedding else (b"", 0)
        if not embedding or model not in by_model:
            return False
        alike = vectors[model] @ from_half([embedding[_MODEL_BYTES:]])[0]
        return by_model[model][int(alike.argmax())][0] == DISMISS

    return dismissed


def _decision(moment_id: Any) -> sa.ColumnElement[bool]:
    return sa.and_(repairs.c.moment_id == moment_id, repairs.c.undone_at.is_(None))


def _in_force() -> sa.ColumnElement[bool]:
    """Restrict to repairs, which change regions, that are not undone."""
    return sa.and_(repairs.c.undone_at.is_(None), repairs.c.action.not_in(UNCHANGING))


def _gives_ids(project_id: int) -> sa.ColumnElement[bool]:
    """Restrict to decisions that gave a project's tracks global ids, also those that were undone."""
    return sa.and_(repairs.c.project_id == project_id, repairs.c.action == IDENTIFY)


def _open(query: Any, project_id: int, filters: Mapping[str, Any]) -> Any:
    """Restrict a query to undecided moments."""
    decided = sa.exists().where(_decision(moments.c.id), repairs.c.action != SKIP)
    chosen = [moments.c[name] == value for name, value in filters.items()]
    return query.select_from(moments).where(moments.c.project_id == project_id, ~decided, *chosen)
