"""Weight retention: which versions keep their checkpoint. The registry keeps the record of all of them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import datetime, timezone

import sqlalchemy as sa

from ml_backend.core.artifacts import Artifacts
from ml_backend.core.settings import Settings
from ml_backend.db.storage import Storage
from ml_backend.db.tables import activations, model_versions, unused_artifacts
from ml_backend.training.registry import RUNNING, Registry, Version, lock_version, version_in_use

log = logging.getLogger(__name__)

#: Refused versions that keep their weights: people switch to one shortly after reading why it was refused, if at all.
REFUSED = 3


def removable_versions(versions: Sequence[Version], used: Sequence[int | None], keep: int) -> list[Version]:
    """Return the versions of a project whose weights can go, oldest first.

    Kept are the version in use, the one before it, its parent, the target of a rollback, the parents of runs in
    progress, a proposed one, and the newest ones.

    Args:
        versions: all versions, newest first.
        used: ids of the versions that were in use, the present one first; ``None`` is the detector of the settings.
        keep: number of promoted versions that always keep their weights; 0 keeps all, refused ones too.
    """
    if not keep:
        return []
    usable = [version for version in versions if version.has_weights]
    promoted = [version for version in usable if version.state == "promoted"]
    proposed = [version for version in usable if version.state == "proposed"]
    refused = [version for version in usable if version.state == "refused"]
    needed = {version.id for version in (*promoted[:keep], *proposed, *refused[:REFUSED])}
    # The one before, since a rollback may be undone.
    needed.update(list(dict.fromkeys(number for number in used if number is not None))[:2])
    for version in versions:
        in_use = bool(used) and version.id == used[0]
        if (in_use or version.is_running) and version.parent_id is not None:
            needed.add(version.parent_id)
        if in_use:
            needed.update([older.id for older in promoted if older.number < version.number][:1])
    return [version for version in reversed(usable) if version.id not in needed]


def remove_old_weights(project_id: int, settings: Settings, storage: Storage, artifacts: Artifacts) -> int:
    """Remove the weights, and the gate's clips, that a project no longer needs; return the number of files removed.

    A file that cannot be removed now is recorded and tried again next time. Only files that the project's own
    trainings have stored are touched.

    Raises:
        StorageError: the database does not answer.
        ConfigError: ``ARTIFACTS_URL`` cannot be used.
    """
    versions = Registry(storage).outline(project_id)
    for version in removable_versions(versions, _used(storage, project_id), settings.keep_versions):
        own = version.artifact.startswith(f"projects/{project_id}/")
        if own and not artifacts.is_configured(version.artifact, version.weights_sha256):
            _retire(storage, version)
    gone = 0
    for name, sha256 in _unused(storage, project_id):
        if not artifacts.remove(name, sha256):
            break  # the store is unreachable: the other removals would wait for it too
        with storage.write() as connection:
            connection.execute(sa.delete(unused_artifacts).where(unused_artifacts.c.artifact == name))
        gone += 1
    if gone:
        log.info("Project %s: %d files of old versions were removed.", project_id, gone)
    return gone


def _used(storage: Storage, project_id: int) -> list[int | None]:
    query = sa.select(activations.c.version_id).where(activations.c.project_id == project_id)
    with storage.read() as connection:
        return list(connection.scalars(query.order_by(activations.c.id.desc())))


def _retire(storage: Storage, version: Version) -> None:
    """Mark a version as without weights so that the file may be removed, unless it has come into use meanwhile."""
    with storage.write() as connection:
        # Lock the row first, as activation does: one of the two waits and then sees what the other has done.
        if not lock_version(connection, version) or connection.scalar(version_in_use(version.project_id)) == version.id:
            return
        trained_on = (model_versions.c.parent_id == version.id) & model_versions.c.state.in_(RUNNING)
        if connection.execute(sa.select(model_versions.c.id).where(trained_on).limit(1)).first():
            return
        this = model_versions.c.id == version.id
        connection.execute(sa.update(model_versions).where(this).values(artifact=""))
        metrics = connection.scalar(sa.select(model_versions.c.metrics).where(this)) or {}
        clips = [(clip["artifact"], clip["sha256"]) for clip in (metrics.get("clips") or {}).values()]
        for artifact, sha256 in [(version.artifact, version.weights_sha256), *clips]:
            facts = {"artifact": artifact, "project_id": version.project_id, "weights_sha256": sha256}
            connection.execute(sa.delete(unused_artifacts).where(unused_artifacts.c.artifact == artifact))
            connection.execute(sa.insert(unused_artifacts).values(**facts, noted_at=datetime.now(timezone.utc)))
    log.info("Project %s: %s keeps no weights any more.", version.project_id, version.name)


def _unused(storage: Storage, project_id: int) -> list[tuple[str, str]]:
    """Return name and SHA-256 of files that no version refers to any more and that still exist, oldest first."""
    had = sa.exists().where(model_versions.c.artifact == unused_artifacts.c.artifact)
    query = sa.select(unused_artifacts.c.artifact, unused_artifacts.c.weights_sha256)
    query = query.where(unused_artifacts.c.project_id == project_id, ~had)
    with storage.read() as connection:
        rows = connection.execute(query.order_by(unused_artifacts.c.noted_at, unused_artifacts.c.artifact))
        return [(row.artifact, row.weights_sha256) for row in rows]
