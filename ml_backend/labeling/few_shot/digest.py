"""Digests of projects' exemplars, which change exactly when predictions would. Loads no NumPy."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from ml_backend.db.storage import Storage
from ml_backend.db.tables import banks


def bank_digests(storage: Storage, project_id: int, model_ids: Sequence[str]) -> dict[str, str | None]:
    """Return the digest of a project's exemplars by model; empty without any, ``None`` before annotations are read.

    Raises:
        StorageError: the database does not answer.
    """
    digests: dict[str, str | None] = dict.fromkeys(model_ids)
    if digests:
        condition = sa.and_(banks.c.project_id == project_id, banks.c.model.in_(list(digests)))
        query = sa.select(banks.c.model, banks.c.digest).where(condition)
        with storage.read() as connection:
            digests |= {row.model: row.digest for row in connection.execute(query)}
    return digests
