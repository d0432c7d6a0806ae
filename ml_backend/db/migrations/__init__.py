"""Upgrade a database to the schema of this release.

To change the schema: change ``ml_backend.db.tables``, add a file to ``versions`` and its revision to ``REVISIONS``.
A test compares the migrated schema with the tables.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from ml_backend.core.errors import StorageError

log = logging.getLogger(__name__)

#: In order; listed here so that opening an up-to-date database does not import Alembic.
REVISIONS = ("0001", "0002", "0003", "0004", "0005", "0006", "0007")
#: Arbitrary, unlikely to be used by other programs on the PostgreSQL server: "video" in hexadecimal.
ADVISORY_LOCK = 0x766964656F


def upgrade(engine: Engine) -> None:
    """Create the tables of an empty database, or upgrade those of an earlier release, in one transaction.

    Several processes may call it at once: one migrates, the others wait.

    Raises:
        StorageError: the database is of a newer release or another program. It is left unchanged.
    """
    sqlite = engine.dialect.name == "sqlite"
    with _lock_sqlite(engine), engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(ADVISORY_LOCK)))
        current = _revision(connection)
        if current is None:
            _check_known(connection)
        elif current not in REVISIONS:
            raise StorageError(
                f"The database is newer than this release: its schema is {current}, and this release knows those up to "
                f"{REVISIONS[-1]}. It was left unchanged.",
                "Install the release that used it last, or set DATABASE_URL or DATA_DIR to another database or folder.",
            )
        if sqlite:
            # WAL: readers do not wait for the writer. Stored in the file; must be set outside a transaction.
            connection.exec_driver_sql("PRAGMA journal_mode=WAL").close()
        if current != REVISIONS[-1]:
            if sqlite:
                connection.exec_driver_sql("BEGIN IMMEDIATE")  # sqlite3 begins none before CREATE and ALTER
            _migrate(connection)
            log.info("The database's schema is now %s; it was %s.", REVISIONS[-1], current or "without a revision")


@contextmanager
def _lock_sqlite(engine: Engine) -> Iterator[None]:
    """Lock the folder of SQLite's file, since changing the journal mode fails at once if another process reads."""
    file = engine.url.database if engine.dialect.name == "sqlite" else None
    if not file or file == ":memory:":
        yield
        return
    try:
        folder = os.open(Path(file).parent, os.O_RDONLY)
    except OSError as error:
        hint = "Make it readable, or set DATA_DIR elsewhere."
        raise StorageError(f"The folder of {file} cannot be read: {error.strerror}.", hint) from error
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        fcntl.flock(folder, fcntl.LOCK_UN)  # closing does not unlock it while a forked child has it open too
        os.close(folder)


def _revision(connection: Connection) -> str | None:
    """Return the revision that Alembic stored in the database, if any."""
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    revision: str | None = connection.scalar(sa.text("SELECT version_num FROM alembic_version"))
    return revision


def _check_known(connection: Connection) -> None:
    """Raise StorageError unless a database without revision is empty, or of the release before migrations."""
    from ml_backend.db.migrations.versions.r0001_baseline import metadata

    inspector = sa.inspect(connection)
    ours, existing = set(metadata.tables), set(inspector.get_table_names()) - {"alembic_version"}
    unknown = {
        name
        for name in existing & ours
        if {column["name"] for column in inspector.get_columns(name)} != set(metadata.tables[name].columns.keys())
    }
    if not ours <= existing:  # with all of ours there, other tables are fine: programs may share a database
        unknown |= existing - ours
    if unknown:
        raise StorageError(
            f"The database is of another program or an unknown release: its table {min(unknown)} is not one of this "
            "release. It was left unchanged.",
            "Set DATABASE_URL to an empty database, or DATA_DIR to an empty folder.",
        )


def _migrate(connection: Connection) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", "ml_backend.db:migrations")
    command.upgrade(config, "head")
