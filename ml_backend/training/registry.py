"""The registry of versions: what was trained from what, how good it is, and which version a project uses.

A run is a row from its first moment on, so that whoever takes it up after a crash knows how far it came:

    dataset -> training -> gate -> promoting -> promoted
                                             -> refused, failed, cancelled (from any of them)

Only its owner may move a run on: one who was thought dead and comes back finds that it is no longer his.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime, timezone
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from ml_backend.errors import ConfigError, Interrupted, Postponed, StorageError
from ml_backend.moments import aware
from ml_backend.storage import Storage
from ml_backend.tables import activations, model_versions

log = logging.getLogger(__name__)

#: States of a run that somebody works on, or has worked on until he died.
ACTIVE = ("dataset", "training", "gate", "promoting")
#: States of a run that has weights which were measured.
MEASURED = ("promoted", "refused")


class RunLost(Interrupted):
    """Somebody else has taken the run over; he goes on with it."""


@dataclass(frozen=True, slots=True)
class Entry:
    """The beginning of a row of the registry, which the database reads without what grows with the data.

    Attributes:
        number: within the project; people call it ``v3``.
    """

    id: int
    project_id: int
    number: int
    state: str
    parent_id: int | None
    weights_sha256: str
    artifact: str

    @property
    def name(self) -> str:
        return f"v{self.number}"

    @property
    def is_active(self) -> bool:
        """Whether it is still being made."""
        return self.state in ACTIVE

    @property
    def has_weights(self) -> bool:
        """Whether it can be used: it was measured, and its weights were not removed since."""
        return self.state in MEASURED and not self.weights_removed

    @property
    def weights_removed(self) -> bool:
        """Whether it had weights that were removed, since there are newer ones; see ``KEEP_VERSIONS``."""
        return self.state in MEASURED and bool(self.weights_sha256) and not self.artifact


@dataclass(frozen=True, slots=True)
class Version(Entry):
    """A row of the registry; see :data:`ml_backend.tables.model_versions`."""

    owner: str
    attempts: int
    trigger: str
    detector: str
    start_sha256: str
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


#: Columns that grow with the data; whoever only wants to know which version is in use does not read them.
_LARGE: dict[str, Any] = {"lineage": {}, "config": {}, "metrics": {}, "history": []}
_LIGHT = [column for column in model_versions.columns if column.name not in _LARGE]
_ENTRY = [model_versions.c[item.name] for item in fields(Entry)]
#: What of the lineage people are shown. The rest of it is a line for every task, which only the next training reads.
SHOWN = ("annotations", "pictures", "tracks", "notes")


def _version(row: Any) -> Version:
    values: dict[str, Any] = {c.name: getattr(row, c.name, _LARGE.get(c.name)) for c in model_versions.columns}
    shown = {name: getattr(row, f"lineage_{name}", None) for name in SHOWN}
    values["lineage"] = values["lineage"] or {name: value for name, value in shown.items() if value is not None}
    values["classes"] = tuple(values["classes"])
    for name in ("created_at", "finished_at"):
        moment = values[name]
        values[name] = aware(moment) if moment else moment
    return Version(**values)


def newest(project_id: int) -> Any:
    """Query for the id of the version that a project uses."""
    of = activations.c.project_id == project_id
    return sa.select(activations.c.version_id).where(of).order_by(activations.c.id.desc()).limit(1)


def hold(connection: sa.Connection, version: Entry) -> bool:
    """Keep others from changing a version until the transaction is over; whether it still has the same weights."""
    same = (model_versions.c.id == version.id) & (model_versions.c.artifact == version.artifact)
    return bool(connection.execute(sa.update(model_versions).where(same).values(artifact=version.artifact)).rowcount)


def _removed(version: Version) -> ConfigError:
    return ConfigError(
        f"{version.name} of project {version.project_id} cannot be used: its weights were removed, since there are "
        "newer versions.",
        "Choose one that has weights (scripts/versions.py list), or train anew. KEEP_VERSIONS says how many keep them.",
    )


class Registry:
    """Safe across threads and processes."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    # -- reading

    def versions(self, project_id: int, limit: int | None = None) -> list[Version]:
        """All versions of a project, or the newest ones, newest first, with all that is known of them.

        Megabytes where there were hundreds of trainings; see :meth:`outline` and :meth:`shown`.
        """
        return self._many(project_id, model_versions.columns, limit)

    def outline(self, project_id: int) -> list[Entry]:
        """Of all versions of a project what fits into a few lines, newest first."""
        return [Entry(*row) for row in self._rows(project_id, _ENTRY)]

    def shown(self, project_id: int, limit: int | None = None) -> list[Version]:
        """As :meth:`versions`, of the lineage only what people are shown: the database picks it out."""
        picked = [model_versions.c.lineage[name].label(f"lineage_{name}") for name in SHOWN]
        others = [column for column in model_versions.columns if column.name != "lineage"]
        return self._many(project_id, [*others, *picked], limit)

    def _many(self, project_id: int, columns: Iterable[Any], limit: int | None) -> list[Version]:
        return [_version(row) for row in self._rows(project_id, columns, limit)]

    def _rows(self, project_id: int, columns: Iterable[Any], limit: int | None = None) -> list[Any]:
        query = sa.select(*columns).where(model_versions.c.project_id == project_id)
        query = query.order_by(model_versions.c.number.desc()).limit(limit)
        with self._storage.guard(), self._storage.engine.connect() as connection:
            return list(connection.execute(query))

    def get(self, version_id: int) -> Version | None:
        return self._one(sa.select(model_versions).where(model_versions.c.id == version_id))

    def find(self, project_id: int, name: str) -> Version | None:
        """A version by the name that people use, such as ``v3``; ``None`` for ``base``.

        Raises:
            ConfigError: there is none of that name.
        """
        text = name.strip().lower()
        if text == "base":
            return None
        digits = text.removeprefix("v")
        if digits.isascii() and digits.isdecimal() and len(digits) < 10:
            of = (model_versions.c.project_id == project_id) & (model_versions.c.number == int(digits))
            if found := self._one(sa.select(model_versions).where(of)):
                return found
        raise ConfigError(
            f"Project {project_id} has no version {name[:40]!r}.", "scripts/versions.py lists them; or use 'base'."
        )

    def active(self, project_id: int) -> Version | None:
        """The run that is under way, or was when its worker died."""
        of = (model_versions.c.project_id == project_id) & model_versions.c.state.in_(ACTIVE)
        return self._one(sa.select(model_versions).where(of).order_by(model_versions.c.id).limit(1))

    def all_active(self) -> list[Version]:
        """The runs of all projects that are not over."""
        query = sa.select(model_versions).where(model_versions.c.state.in_(ACTIVE)).order_by(model_versions.c.id)
        with self._storage.guard(), self._storage.engine.connect() as connection:
            return [_version(row) for row in connection.execute(query)]

    def last(self, project_id: int, before: int = 1 << 30) -> Version | None:
        """The newest version, whatever became of it, of those with a number below ``before``."""
        of = (model_versions.c.project_id == project_id) & (model_versions.c.number < before)
        return self._one(sa.select(model_versions).where(of).order_by(model_versions.c.number.desc()).limit(1))

    def current(self, project_id: int) -> Version | None:
        """The version in use, without lineage, config, metrics and history; ``None``: the detector of the settings."""
        in_use = newest(project_id).scalar_subquery()
        return self._one(sa.select(*_LIGHT).where(model_versions.c.id == in_use))

    def activations(self, project_id: int) -> list[dict[str, Any]]:
        """Which versions were in use, newest first: ``version`` (``v3`` or ``base``), ``by`` and ``at``."""
        query = (
            sa.select(model_versions.c.number, activations.c.by, activations.c.at)
            .select_from(activations.outerjoin(model_versions, activations.c.version_id == model_versions.c.id))
            .where(activations.c.project_id == project_id)
            .order_by(activations.c.id.desc())
        )
        with self._storage.guard(), self._storage.engine.connect() as connection:
            return [
                {"version": "base" if row.number is None else f"v{row.number}", "by": row.by, "at": row.at}
                for row in connection.execute(query)
            ]

    def _one(self, query: Any) -> Version | None:
        with self._storage.guard(), self._storage.engine.connect() as connection:
            row = connection.execute(query).first()
        return _version(row) if row else None

    # -- runs

    def begin(self, project_id: int, owner: str, trigger: str, parent: Version | None) -> Version:
        """A new run."""
        highest = sa.select(sa.func.max(model_versions.c.number)).where(model_versions.c.project_id == project_id)
        for _ in range(5):
            try:
                with self._storage.guard(), self._storage.engine.begin() as connection:
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
                        "weights_sha256": "",
                        "artifact": "",
                        "dataset": "",
                        "held_out": "",
                        "classes": [],
                        "lineage": {},
                        "config": {},
                        "metrics": {},
                        "history": [],
                        "reason": "",
                        "created_at": datetime.now(timezone.utc),
                    }
                    connection.execute(sa.insert(model_versions).values(**row))
                break
            except StorageError as error:
                if not isinstance(error.__cause__, IntegrityError):  # another process took the number
                    raise
        else:
            raise StorageError(f"No number could be given to a new version of project {project_id}.")
        found = self.find(project_id, str(number))
        if found is None:
            raise StorageError(f"The new version v{number} of project {project_id} is not in the database.")
        return found

    def take_over(self, version: Version, owner: str) -> Version:
        """Go on with a run whose owner is gone."""
        self._update(version.id, None, owner=owner, attempts=version.attempts + 1)
        return self._reload(version.id)

    def advance(self, version: Version, **values: Any) -> Version:
        """Write down how far a run has come.

        Raises:
            RunLost: it is not this owner's any more, or over.
        """
        self._update(version.id, version.owner, **values)
        return self._reload(version.id)

    def record_epoch(self, version: Version, history: Sequence[Mapping[str, Any]]) -> None:
        """Write down the run's epochs so far; raises RunLost as :meth:`advance` does."""
        self._update(version.id, version.owner, history=[dict(item) for item in history])

    def finish(self, version: Version, state: str, reason: str, **values: Any) -> Version:
        """End a run: ``refused``, ``failed`` or ``cancelled``. Raises RunLost as :meth:`advance` does."""
        now = datetime.now(timezone.utc)
        self._update(version.id, version.owner, state=state, reason=reason, owner="", finished_at=now, **values)
        log.info("Project %s: %s %s. %s", version.project_id, version.name, state, reason)
        return self._reload(version.id)

    def discard(self, version: Version, seen: Mapping[str, str], unread: Collection[int] = ()) -> None:
        """Forget a run that had nothing new to learn from; the one before it has seen, and not read, what it has.

        Raises:
            RunLost: it is not this owner's any more, or over.
        """
        of = (model_versions.c.id == version.id) & (model_versions.c.owner == version.owner)
        with self._storage.guard(), self._storage.engine.begin() as connection:
            if not connection.execute(
                sa.delete(model_versions).where(of & model_versions.c.state.in_(ACTIVE))
            ).rowcount:
                raise RunLost("Another worker has taken the training over.", "It goes on there.")
            before = sa.select(model_versions).where(model_versions.c.project_id == version.project_id)
            last = connection.execute(before.order_by(model_versions.c.number.desc()).limit(1)).first()
            if last is not None:
                now = {**dict(last.lineage), "seen": dict(seen), "unread": [str(task) for task in unread]}
                connection.execute(sa.update(model_versions).where(model_versions.c.id == last.id).values(lineage=now))

    def settle_unread(self, version: Version, back: Collection[str], gone: Collection[str]) -> None:
        """Of tasks whose video was away when a version was trained: those that are ``back`` are new to the next one.

        Args:
            gone: will not come back, or are deleted.
        """
        this = model_versions.c.id == version.id
        with self._storage.guard(), self._storage.engine.begin() as connection:
            row = connection.execute(sa.select(model_versions.c.lineage).where(this)).first()
            lineage = dict(row.lineage) if row else {}
            lineage["seen"] = {task: of for task, of in (lineage.get("seen") or {}).items() if task not in back}
            lineage["unread"] = [task for task in lineage.get("unread") or () if task not in {*back, *gone}]
            connection.execute(sa.update(model_versions).where(this).values(lineage=lineage))

    def promote(self, version: Version, reason: str, by: str, instead_of: int | None = None) -> Version:
        """End a run well: from this moment on the project uses it. Both are written down at once or not at all.

        Args:
            instead_of: id of the version that it was compared with, ``None`` for the settings' detector.

        Raises:
            RunLost: it is not this owner's any more, or over.
            Postponed: another version is in use by now; it has to be compared with that.
        """
        now = datetime.now(timezone.utc)
        values = {"state": "promoted", "reason": reason, "owner": "", "finished_at": now}
        with self._storage.guard(), self._storage.engine.begin() as connection:
            self._write(connection, version.id, version.owner, values)
            if connection.scalar(newest(version.project_id)) != instead_of:
                raise Postponed("Somebody has switched to another version meanwhile.", "The gate is repeated.")
            activation = {"project_id": version.project_id, "version_id": version.id, "by": by[:255], "at": now}
            connection.execute(sa.insert(activations).values(**activation))
        log.info("Project %s: %s is in use. %s", version.project_id, version.name, reason)
        return self._reload(version.id)

    def activate(self, project_id: int, version: Version | None, by: str) -> bool:
        """Switch a project to a version that was measured before, or (``None``) back to the settings' detector.

        Returns:
            whether that changed anything.

        Raises:
            ConfigError: the version has no weights that were measured.
        """
        if version is not None and (version.state not in MEASURED or version.project_id != project_id):
            raise ConfigError(
                f"{version.name} of project {version.project_id} cannot be used: it is {version.state}.",
                "Choose one that was promoted or refused.",
            )
        if version is not None and version.weights_removed:
            raise _removed(version)
        present = self.current(project_id)
        if (present.id if present else None) == (version.id if version else None):
            return False
        row = {
            "project_id": project_id,
            "version_id": version.id if version else None,
            "by": by[:255],
            "at": datetime.now(timezone.utc),
        }
        with self._storage.guard(), self._storage.engine.begin() as connection:
            if version is not None and not hold(connection, version):
                raise _removed(version)
            connection.execute(sa.insert(activations).values(**row))
        log.info("Project %s: %s is in use, by %s", project_id, version.name if version else "base", by)
        return True

    def _reload(self, version_id: int) -> Version:
        found = self.get(version_id)
        if found is None:
            raise RunLost("The run is no longer in the database.", "It was deleted there.")
        return found

    def _update(self, version_id: int, only_of: str | None, **values: Any) -> None:
        with self._storage.guard(), self._storage.engine.begin() as connection:
            self._write(connection, version_id, only_of, values)

    @staticmethod
    def _write(connection: sa.Connection, version_id: int, owner: str | None, values: Mapping[str, Any]) -> None:
        of = (model_versions.c.id == version_id) & model_versions.c.state.in_(ACTIVE)
        if owner is not None:
            of &= model_versions.c.owner == owner
        if not connection.execute(sa.update(model_versions).where(of).values(**values)).rowcount:
            raise RunLost("Another worker has taken the training over.", "It goes on there.")
