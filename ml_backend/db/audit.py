"""Who did what, and when."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from typing import Any

import sqlalchemy as sa

from ml_backend.core.timestamps import ensure_utc
from ml_backend.db.storage import Storage
from ml_backend.db.tables import audit

log = logging.getLogger(__name__)

#: Rows that are kept, and how many more there may be until the oldest are removed.
MAX_ROWS, SLACK = 20_000, 1_000
#: The same again within this time is not recorded: a browser asks for the parts of a video one by one.
AGAIN = timedelta(minutes=10)


class AuditLog:
    """The newest actions of people and programs. Thread-safe."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def record(self, who: str, action: str, project_id: int | None = None, detail: str = "") -> None:
        """Record an action, at the current time. Texts are cut to what the table takes."""
        row = _row(who, action, project_id, detail)
        with self._storage.write() as connection:
            (number,) = connection.execute(sa.insert(audit).values(row)).inserted_primary_key or (0,)
            if number % SLACK == 0:
                connection.execute(sa.delete(audit).where(audit.c.id <= number - MAX_ROWS))
        log.info("%s: %s %s %s", row["who"], action, project_id or "", row["detail"])

    def record_once(self, who: str, action: str, project_id: int | None = None, detail: str = "") -> None:
        """Record an action, unless the same was recorded within :data:`AGAIN`."""
        row = _row(who, action, project_id, detail)
        same = [audit.c[name] == row[name] for name in ("who", "action", "project_id", "detail")]
        query = sa.select(audit.c.id).where(*same, audit.c.at > row["at"] - AGAIN).limit(1)
        with self._storage.read() as connection:
            found = connection.scalar(query)
        if found is None:
            self.record(who, action, project_id, detail)

    def find(self, project_id: int | None, limit: int, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
        """Return actions, newest first, and the number of all.

        Args:
            project_id: only of this project; ``None``: of all, and those of none.
        """
        query = sa.select(audit)
        if project_id is not None:
            query = query.where(audit.c.project_id == project_id)
        with self._storage.read() as connection:
            total = connection.scalar(sa.select(sa.func.count()).select_from(query.subquery())) or 0
            rows = connection.execute(query.order_by(audit.c.id.desc()).limit(limit).offset(offset)).mappings().all()
        return [_entry(dict(row)) for row in rows], total


def _row(who: str, action: str, project_id: int | None, detail: str) -> dict[str, Any]:
    return {
        "at": datetime.now(timezone.utc),
        "who": who.replace("\0", "")[:255],
        "action": action[:64],
        "project_id": project_id or 0,
        "detail": detail.replace("\0", "")[:500],
    }


def _entry(row: Mapping[str, Any]) -> dict[str, Any]:
    facts = {name: row[name] for name in ("id", "who", "action", "detail")}
    return facts | {"at": ensure_utc(row["at"]), "project": row["project_id"] or None}
