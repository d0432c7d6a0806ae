"""Bring a database to the schema of this release.

To change the schema: change ``ml_backend.db.tables``, add a file to ``versions`` and its revision to ``REVISIONS``.
A test compares what the migrations make with the tables.
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

#: In order, stated so that a database that has the last one is opened without importing Alembic.
REVISIONS = ("0001", "0002")
#: Any number that other programs on the same PostgreSQL server are unlikely to lock: "video" in hexadecimal.
ADVISORY_LOCK = 0x766964656F


def upgrade(engine: Engine) -> None:
    """Make an empty database's tables, or upgrade those of an earlier release, in one transaction.

    Several processes may call it at once: one does the work, the others wait for it.

    Raises:
        StorageError: the database is of a newer release or of another program. Nothing in it was changed.
    """
    sqlite = engine.dialect.name == "sqlite"
    with _lock_sqlite(engine), engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(ADVISORY_LOCK)))
        present = _revision(connection)
        if present is None:
            _check_known(connection)
        elif present not in REVISIONS:
            raise StorageError(
                f"The database's schema {present} is not known to this release; it was left as it was.",
                "Install the release that used it last, or set DATABASE_URL or DATA_DIR to another database or folder.",
            )
        if sqlite:
            # Readers do not wait for the writer. The file keeps it; it cannot be changed within a transaction.
            connection.exec_driver_sql("PRAGMA journal_mode=WAL").close()
        if present != REVISIONS[-1]:
            if sqlite:
                connection.exec_driver_sql("BEGIN IMMEDIATE")  # Python begins none by itself before CREATE and ALTER
            _migrate(connection)
            log.info("The database's schema is now %s; it was %s.", REVISIONS[-1], present or "without a revision")


@contextmanager
def _lock_sqlite(engine: Engine) -> Iterator[None]:
    """Lock the folder of SQLite's file: whoever changes the journal's mode is refused, at once, if anybody reads."""
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
    """Return the revision that Alembic has noted in the database; None: none."""
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    revision: str | None = connection.scalar(sa.text("SELECT version_num FROM alembic_version"))
    return revision


def _check_known(connection: Connection) -> None:
    """Raise StorageError unless a database without a revision is empty, or of the release before migrations."""
    from ml_backend.db.migrations.versions.r0001_baseline import metadata

    inspector = sa.inspect(connection)
    ours, found = set(metadata.tables), set(inspector.get_table_names()) - {"alembic_version"}
    strange = {
        name
        for name in found & ours
        if {column["name"] for column in inspector.get_columns(name)} != set(metadata.tables[name].columns.keys())
    }
    if not ours <= found:  # beside all of ours, others do no harm: several programs may share a database
        strange |= found - ours
    if strange:
        raise StorageError(
            f"The database is of another program, or of an unknown release: the table {min(strange)} in it is not as "
            "this release knows it. It was left as it was.",
            "Set DATABASE_URL to an empty database, or DATA_DIR to an empty folder.",
        )


def _migrate(connection: Connection) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", "ml_backend.db:migrations")
    command.upgrade(config, "head")
