"""The registry of versions: lineage and metrics of every training, and the version that a project uses.

A run has a row from its start, so that a worker that resumes it after a crash knows its stage:

    dataset -> training -> gate -> promoting -> promoted
                                -> proposed  -> promoted, refused
                                -> refused
    any of the first four       -> failed, cancelled

A person decides on a proposed version, or a newer one that passes the gate or fails it does.

Only the owner of a run may advance it: a worker that was presumed dead and comes back gets :class:`RunLost`.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from ml_backend.core.errors import ConfigError, Conflict, Interrupted, Postponed, StorageError
from ml_backend.core.timestamps import ensure_utc
from ml_backend.db.storage import Storage
from ml_backend.db.tables import activations, model_versions

log = logging.getLogger(__name__)

#: States of a run that is in progress, or was when its worker died.
RUNNING = ("dataset", "training", "gate", "promoting")
#: States of a run whose weights were evaluated.
MEASURED = ("promoted", "proposed", "refused")
#: Versions that are named to people who ask for one that does not exist.
_NAMED = 10


class RunLost(Interrupted):
    """Another worker has taken over the run and continues it."""


@dataclass(frozen=True, slots=True)
class Version:
    """A row of the registry; see :data:`ml_backend.db.tables.model_versions`.

    Attributes:
        number: within the project; shown as ``v3``.
    """

    id: int
    project_id: int
    number: int
    state: str
    owner: str
    attempts: int
    parent_id: int | None
    trigger: str
    detector: str
    start_sha256: str
    weights_sha256: str
    artifact: str
    dataset: str
    held_out: str
    classes: tuple[str, ...]
    lineage: dict[str, Any] = field(repr=False)
    config: dict[str, Any] = field(repr=False)
    metrics: dict[str, Any] = field(repr=False)
    history: list[dict[str, Any]] = field(repr=False)
    reason: str
    created_at: datetime
    finished_at: datetime | None

    @property
    def name(self) -> str:
        return f"v{self.number}"

    @property
    def is_running(self) -> bool:
        """Whether the run is in progress."""
        return self.state in RUNNING

    @property
    def has_weights(self) -> bool:
        """Whether it can be used: it was evaluated, and its weights were not removed since."""
        return self.state in MEASURED and not self.weights_removed

    @property
    def weights_removed(self) -> bool:
        """Whether its weights were removed because there are newer versions; see ``KEEP_VERSIONS``."""
        return self.state in MEASURED and bool(self.weights_sha256) and not self.artifact


#: Columns that grow with the data: megabytes after hundreds of trainings. They are read only where they are needed.
_LARGE: dict[str, Any] = {"lineage": {}, "config": {}, "metrics": {}, "history": []}
_LIGHT = [column for column in model_versions.columns if column.name not in _LARGE]
#: Parts of the lineage that people see. The rest has an entry per task, which only the next training reads.
SHOWN = ("annotations", "pictures", "tracks", "notes")


def _version(row: Any) -> Version:
    values: dict[str, Any] = {**_LARGE, **row._mapping}
    shown = {name: values.pop(f"lineage_{name}", None) for name in SHOWN}
    values["lineage"] = values["lineage"] or {name: value for name, value in shown.items() if value is not None}
    values["classes"] = tuple(values["classes"])
    values["created_at"] = ensure_utc(values["created_at"])
    values["finished_at"] = values["finished_at"] and ensure_utc(values["finished_at"])
    return Version(**values)


def version_in_use(project_id: int) -> Any:
    """Return the query for the id of the version that a project uses."""
    of = activations.c.project_id == project_id
    return sa.select(activations.c.version_id).where(of).order_by(activations.c.id.desc()).limit(1)


def lock_version(connection: sa.Connection, version: Version) -> bool:
    """Lock a version's row until the transaction ends. Return whether it still has the same weights."""
    same = (model_versions.c.id == version.id) & (model_versions.c.artifact == version.artifact)
    return bool(connection.execute(sa.update(model_versions).where(same).values(artifact=version.artifact)).rowcount)


class Registry:
    """Safe across threads and processes."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    # -- reading

    def versions(self, project_id: int, limit: int | None = None) -> list[Version]:
        """Return the newest versions of a project (all by default), newest first, for people: of the lineage, only the
        parts that they see."""
        picked = [model_versions.c.lineage[name].label(f"lineage_{name}") for name in SHOWN]
        others = [column for column in model_versions.columns if column.name != "lineage"]
        return self._many(project_id, [*others, *picked], limit)

    def outline(self, project_id: int) -> list[Version]:
        """Return all versions of a project without their large columns, newest first."""
        return self._many(project_id, _LIGHT, None)

    def _many(self, project_id: int, columns: Iterable[Any], limit: int | None) -> list[Version]:
        query = sa.select(*columns).where(model_versions.c.project_id == project_id)
        query = query.order_by(model_versions.c.number.desc()).limit(limit)
        with self._storage.read() as connection:
            return [_version(row) for row in connection.execute(query)]

    def get(self, version_id: int) -> Version | None:
        return self._one(sa.select(model_versions).where(model_versions.c.id == version_id))

    def find(self, project_id: int, name: str) -> Version | None:
        """Return a version by its name, such as ``v3``; ``None`` for ``base``.

        Raises:
            ConfigError: there is no such version.
        """
        text = name.strip().lower()
        if text == "base":
            return None
        digits = text.removeprefix("v")
        if digits.isascii() and digits.isdecimal() and len(digits) < 10:
            of = (model_versions.c.project_id == project_id) & (model_versions.c.number == int(digits))
            if found := self._one(sa.select(model_versions).where(of)):
                return found
        names = [version.name for version in self.outline(project_id)]
        known = ", ".join(names[:_NAMED]) + (", …" if names[_NAMED:] else "")
        raise ConfigError(
            f"Project {project_id} has no version {name[:40]!r}.",
            f"Choose one of {known} or base." if names else "Choose base, the configured detector; it has no other.",
        )

    def running(self, project_id: int) -> Version | None:
        """Return the project's run in progress, if any; its worker may have died."""
        of = (model_versions.c.project_id == project_id) & model_versions.c.state.in_(RUNNING)
        return self._one(sa.select(model_versions).where(of).order_by(model_versions.c.id).limit(1))

    def all_active(self) -> list[Version]:
        """Return the runs in progress of all projects."""
        query = sa.select(model_versions).where(model_versions.c.state.in_(RUNNING)).order_by(model_versions.c.id)
        with self._storage.read() as connection:
            return [_version(row) for row in connection.execute(query)]

    def proposed(self, project_id: int) -> Version | None:
        """Return the version that waits for a person's decision, if any, without its large columns."""
        of = (model_versions.c.project_id == project_id) & (model_versions.c.state == "proposed")
        return self._one(sa.select(*_LIGHT).where(of).order_by(model_versions.c.number.desc()).limit(1))

    def last(self, project_id: int, before: int = 1 << 30) -> Version | None:
        """Return the newest version in any state with a number below ``before``."""
        of = (model_versions.c.project_id == project_id) & (model_versions.c.number < before)
        return self._one(sa.select(model_versions).where(of).order_by(model_versions.c.number.desc()).limit(1))

    def current(self, project_id: int) -> Version | None:
        """Return the version in use without its large columns; ``None`` is the detector of the settings."""
        in_use = version_in_use(project_id).scalar_subquery()
        return self._one(sa.select(*_LIGHT).where(model_versions.c.id == in_use))

    def activations(self, project_id: int) -> list[dict[str, Any]]:
        """Return the activations, newest first: ``version`` (``v3`` or ``base``), ``by`` and ``at``."""
        query = (
            sa.select(model_versions.c.number, activations.c.by, activations.c.at)
            .select_from(activations.outerjoin(model_versions, activations.c.version_id == model_versions.c.id))
            .where(activations.c.project_id == project_id)
            .order_by(activations.c.id.desc())
        )
        with self._storage.read() as connection:
            return [
                {"version": "base" if row.number is None else f"v{row.number}", "by": row.by, "at": row.at}
                for row in connection.execute(query)
            ]

    def _one(self, query: Any) -> Version | None:
        with self._storage.read() as connection:
            row = connection.execute(query).first()
        return _version(row) if row else None

    # -- runs

    def begin(self, project_id: int, owner: str, trigger: str, parent: Version | None) -> Version:
        """Insert a new run."""
        highest = sa.select(sa.func.max(model_versions.c.number)).where(model_versions.c.project_id == project_id)
        for _ in range(5):
            try:
                with self._storage.write() as connection:
                    number = (connection.scalar(highest) or 0) + 1
                    row: dict[str, Any] = {
                        "project_id": project_id,
                        "number": number,
                        "state": "dataset",
                        "owner": owner,
                        "attempts": 1,
                        "parent_id": parent.id if parent else None,
                        "trigger": trigger[:255],
                        "detector": parent.detector if parent else "",
                        "start_sha256": parent.weights_sha256 if parent else "",
                        **dict.fromkeys(("weights_sha256", "artifact", "dataset", "held_out", "reason"), ""),
                        **_LARGE,
                        "classes": [],
                        "created_at": datetime.now(timezone.utc),
                    }
                    inserted: Any = connection.execute(sa.insert(model_versions).values(**row)).inserted_primary_key
                return self._reload(inserted[0])
            except StorageError as error:
                if not isinstance(error.__cause__, IntegrityError):  # another process took the number
                    raise
        raise StorageError(f"No number could be given to a new version of project {project_id}.")

    def take_over(self, version: Version, owner: str) -> Version:
        """Take over a run whose worker has died."""
        return self._update(version.id, None, owner=owner, attempts=version.attempts + 1)

    def advance(self, version: Version, **values: Any) -> Version:
        """Record a run's progress.

        Raises:
            RunLost: the run belongs to another worker now, or has ended.
        """
        return self._update(version.id, version.owner, **values)

    def finish(self, version: Version, state: str, reason: str, **values: Any) -> Version:
        """End a run: ``refused``, ``proposed``, ``failed`` or ``cancelled``. Raises RunLost as :meth:`advance` does."""
        values |= {"state": state, "reason": reason, "owner": "", "finished_at": datetime.now(timezone.utc)}
        with self._storage.write() as connection:
            self._write(connection, version.id, version.owner, values)
            if state in MEASURED:
                self._supersede(connection, version)
        log.info("Project %s: %s %s. %s", version.project_id, version.name, state, reason)
        return self._reload(version.id)

    def discard(self, version: Version, seen: Mapping[str, str], unread: Collection[int] = ()) -> None:
        """Delete a run that had nothing new to learn from, passing its ``seen`` and ``unread`` tasks to the one before.

        Raises:
            RunLost: the run belongs to another worker now, or has ended.
        """
        of = (model_versions.c.id == version.id) & (model_versions.c.owner == version.owner)
        with self._storage.write() as connection:
            if not connection.execute(
                sa.delete(model_versions).where(of & model_versions.c.state.in_(RUNNING))
            ).rowcount:
                raise RunLost("Another worker has taken over the training.", "It continues there.")
            before = sa.select(model_versions).where(model_versions.c.project_id == version.project_id)
            last = connection.execute(before.order_by(model_versions.c.number.desc()).limit(1)).first()
            if last is not None:
                now = {**dict(last.lineage), "seen": dict(seen), "unread": [str(task) for task in unread]}
                connection.execute(sa.update(model_versions).where(model_versions.c.id == last.id).values(lineage=now))

    def settle_unread(self, version: Version, back: Collection[str], gone: Collection[str]) -> None:
        """Update which tasks a version could not read because their video was unavailable.

        Args:
            back: tasks whose video is available again: new to the next training.
            gone: tasks that are deleted or whose video will not come back.
        """
        this = model_versions.c.id == version.id
        with self._storage.write() as connection:
            row = connection.execute(sa.select(model_versions.c.lineage).where(this)).first()
            lineage = dict(row.lineage) if row else {}
            lineage["seen"] = {task: of for task, of in (lineage.get("seen") or {}).items() if task not in back}
            lineage["unread"] = [task for task in lineage.get("unread") or () if task not in {*back, *gone}]
            connection.execute(sa.update(model_versions).where(this).values(lineage=lineage))

    def promote(self, version: Version, reason: str, by: str, instead_of: int | None = None) -> Version:
        """Promote a run and activate it for its project, in one transaction.

        Args:
            instead_of: id of the incumbent that it was compared with, ``None`` for the detector of the settings.

        Raises:
            RunLost: the run belongs to another worker now, or has ended.
            Postponed: another version is in use by now; the candidate has to be compared with that one.
        """
        now = datetime.now(timezone.utc)
        values = {"state": "promoted", "reason": reason, "owner": "", "finished_at": now}
        with self._storage.write() as connection:
            self._write(connection, version.id, version.owner, values)
            if connection.scalar(version_in_use(version.project_id)) != instead_of:
                raise Postponed("The project has switched to another version meanwhile.", "The gate runs again.")
            activation = {"project_id": version.project_id, "version_id": version.id, "by": by[:255], "at": now}
            connection.execute(sa.insert(activations).values(**activation))
            self._supersede(connection, version)
        log.info("Project %s: %s is in use. %s", version.project_id, version.name, reason)
        return self._reload(version.id)

    def activate(self, project_id: int, version: Version | None, by: str) -> bool:
        """Switch a project to an evaluated version, or (``None``) back to the detector of the settings.

        A proposed version is promoted by that.

        Returns:
            Whether that changed anything.

        Raises:
            ConfigError: the version was never evaluated, or its weights were removed.
        """
        if version is not None and (version.state not in MEASURED or version.project_id != project_id):
            raise ConfigError(
                f"{version.name} of project {version.project_id} cannot be used: it is {version.state}.",
                "Choose one that was promoted, proposed or refused.",
            )
        present = self.current(project_id)
        if (present.id if present else None) == (version.id if version else None):
            return False
        row = {
            "project_id": project_id,
            "version_id": version.id if version else None,
            "by": by[:255],
            "at": datetime.now(timezone.utc),
        }
        with self._storage.write() as connection:
            if version is not None and (version.weights_removed or not lock_version(connection, version)):
                raise ConfigError(
                    f"{version.name} of project {project_id} cannot be used: its weights were removed because there "
                    "are newer versions.",
                    "Choose one that has weights (scripts/versions.py list), or train again. KEEP_VERSIONS says how "
                    "many keep them.",
                )
            connection.execute(sa.insert(activations).values(**row))
            if version is not None:
                self._settle(connection, version, "promoted", f"Accepted by {by[:200]}.")
        log.info("Project %s: %s is in use, by %s", project_id, version.name if version else "base", by)
        return True

    def decline(self, version: Version, by: str) -> None:
        """Refuse a proposed version, by a person's decision.

        Raises:
            Conflict: it is not proposed, or not any more.
        """
        with self._storage.write() as connection:
            declined = self._settle(connection, version, "refused", f"Declined by {by[:200]}.")
        if not declined:
            state = (self.get(version.id) or version).state
            raise Conflict(
                f"{version.name} of project {version.project_id} cannot be declined: it is {state}, not proposed.",
                "See the versions (scripts/versions.py list); to stop using one, use another.",
            )
        log.info("Project %s: %s was declined by %s", version.project_id, version.name, by)

    @staticmethod
    def _settle(connection: sa.Connection, version: Version, state: str, verdict: str) -> bool:
        """Decide on a proposed version; return whether it was one."""
        of = (model_versions.c.id == version.id) & (model_versions.c.state == "proposed")
        values = {"state": state, "reason": model_versions.c.reason + f" {verdict}"}
        return bool(connection.execute(sa.update(model_versions).where(of).values(**values)).rowcount)

    @staticmethod
    def _supersede(connection: sa.Connection, version: Version) -> None:
        """Refuse the project's older proposals: they were compared with less, or with another version."""
        of = (model_versions.c.project_id == version.project_id) & (model_versions.c.number < version.number)
        values = {"state": "refused", "reason": model_versions.c.reason + f" Superseded by {version.name}."}
        proposals = of & (model_versions.c.state == "proposed")
        connection.execute(sa.update(model_versions).where(proposals).values(**values))

    def _reload(self, version_id: int) -> Version:
        version = self.get(version_id)
        if version is None:
            raise RunLost("The run is no longer in the database.", "It was deleted there.")
        return version

    def _update(self, version_id: int, only_of: str | None, **values: Any) -> Version:
        with self._storage.write() as connection:
            self._write(connection, version_id, only_of, values)
        return self._reload(version_id)

    @staticmethod
    def _write(connection: sa.Connection, version_id: int, owner: str | None, values: Mapping[str, Any]) -> None:
        of = (model_versions.c.id == version_id) & model_versions.c.state.in_(RUNNING)
        if owner is not None:
            of &= model_versions.c.owner == owner
        if not connection.execute(sa.update(model_versions).where(of).values(**values)).rowcount:
            raise RunLost("Another worker has taken over the training.", "It continues there.")
