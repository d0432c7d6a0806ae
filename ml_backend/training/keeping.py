"""Which versions keep their weights. The registry keeps everything else that is known of the others."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import datetime, timezone

import sqlalchemy as sa

from ml_backend.settings import Settings
from ml_backend.storage import Storage
from ml_backend.tables import activations, model_versions, unused_artifacts
from ml_backend.training.artifacts import Artifacts
from ml_backend.training.registry import ACTIVE, Entry, Registry, hold, newest

log = logging.getLogger(__name__)

#: Refused versions that keep their weights: who switches to one does so when he reads why it was refused.
REFUSED = 3
#: Most files that are removed after one training, which is not over before; the others after the next one.
AT_ONCE = 50
#: Most activations that are looked at: what was in use before the present version is among the last ones.
LATELY = 100


def superfluous(versions: Sequence[Entry], used: Sequence[int | None], keep: int) -> list[Entry]:
    """Versions of a project whose weights are not needed any more, oldest first.

    Kept are the one in use, the one before it, what it was trained from, where a rollback leads, what a run that is
    under way begins with, and the newest ones.

    Args:
        versions: all of them, newest first.
        used: ids of those that were in use, the present one first; ``None``: the detector of the settings.
        keep: promoted ones that keep their weights in any case; 0: all, refused ones too.
    """
    if not keep:
        return []
    usable = [version for version in versions if version.has_weights and version.artifact]
    promoted = [version for version in usable if version.state == "promoted"]
    refused = [version for version in usable if version.state == "refused"]
    needed = {version.id for version in (*promoted[:keep], *refused[:REFUSED])}
    # The one before: where somebody who has rolled back goes again if that was no better.
    needed.update(list(dict.fromkeys(number for number in used if number is not None))[:2])
    for version in versions:
        in_use = bool(used) and version.id == used[0]
        if (in_use or version.is_active) and version.parent_id is not None:
            needed.add(version.parent_id)
        if in_use:
            needed.update([older.id for older in promoted if older.number < version.number][:1])
    return [version for version in reversed(usable) if version.id not in needed]


def remove_old_weights(project_id: int, settings: Settings, storage: Storage, artifacts: Artifacts) -> int:
    """Remove the weights that a project does not need any more; returns how many files are gone.

    What cannot be removed now is written down, and tried again the next time. Only files that trainings of the project
    have put there are touched.

    Raises:
        StorageError: the database does not answer.
        ConfigError: `ARTIFACTS_URL` cannot be used.
    """
    versions = Registry(storage).outline(project_id)
    for version in superfluous(versions, _used(storage, project_id), settings.keep_versions)[:AT_ONCE]:
        own = version.artifact.startswith(f"projects/{project_id}/")
        if own and not artifacts.is_configured(version.artifact, version.weights_sha256):
            _retire(storage, version)
    gone = 0
    for name, sha256 in _unused(storage, project_id)[:AT_ONCE]:
        if not artifacts.remove(name, sha256):
            break  # the place is away: the others would wait for it too
        with storage.guard(), storage.engine.begin() as connection:
            connection.execute(sa.delete(unused_artifacts).where(unused_artifacts.c.artifact == name))
        gone += 1
    if gone:
        log.info("Project %s: the weights of %d old versions were removed.", project_id, gone)
    return gone


def _used(storage: Storage, project_id: int) -> list[int | None]:
    query = sa.select(activations.c.version_id).where(activations.c.project_id == project_id)
    with storage.guard(), storage.engine.connect() as connection:
        return list(connection.scalars(query.order_by(activations.c.id.desc()).limit(LATELY)))


def _retire(storage: Storage, version: Entry) -> None:
    """From now on a version has no weights, so that their file may go; unless somebody has begun to use it."""
    with storage.guard(), storage.engine.begin() as connection:
        # First, since whoever activates it does the same: one of the two waits, and sees what the other has done.
        if not hold(connection, version) or connection.scalar(newest(version.project_id)) == version.id:
            return
        trained_on = (model_versions.c.parent_id == version.id) & model_versions.c.state.in_(ACTIVE)
        if connection.execute(sa.select(model_versions.c.id).where(trained_on).limit(1)).first():
            return
        this = model_versions.c.id == version.id
        connection.execute(sa.update(model_versions).where(this).values(artifact=""))
        facts = {name: getattr(version, name) for name in ("artifact", "project_id", "weights_sha256")}
        connection.execute(sa.delete(unused_artifacts).where(unused_artifacts.c.artifact == version.artifact))
        connection.execute(sa.insert(unused_artifacts).values(**facts, noted_at=datetime.now(timezone.utc)))
    log.info("Project %s: %s keeps no weights any more.", version.project_id, version.name)


def _unused(storage: Storage, project_id: int) -> list[tuple[str, str]]:
    """Name and SHA-256 of files that no version has any more, and that are not gone yet, oldest first."""
    had = sa.exists().where(model_versions.c.artifact == unused_artifacts.c.artifact)
    query = sa.select(unused_artifacts.c.artifact, unused_artifacts.c.weights_sha256)
    query = query.where(unused_artifacts.c.project_id == project_id, ~had)
    with storage.guard(), storage.engine.connect() as connection:
        rows = connection.execute(query.order_by(unused_artifacts.c.noted_at, unused_artifacts.c.artifact))
        return [(row.artifact, row.weights_sha256) for row in rows]
