"""What has changed when predictions would: digests of what projects have learned. Loads no NumPy."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from ml_backend.db.storage import Storage
from ml_backend.db.tables import banks


def bank_digests(storage: Storage, project_id: int, model_ids: Sequence[str]) -> dict[str, str | None]:
    """Digest of a project's exemplars by model; empty where it has none, ``None`` where its annotations were not read.

    Raises:
        StorageError: the database does not answer.
    """
    found: dict[str, str | None] = dict.fromkeys(model_ids)
    if found:
        of = sa.and_(banks.c.project_id == project_id, banks.c.model.in_(list(found)))
        query = sa.select(banks.c.model, banks.c.digest).where(of)
        with storage.guard(), storage.engine.connect() as connection:
            found |= {row.model: row.digest for row in connection.execute(query)}
    return found
