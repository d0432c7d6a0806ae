"""The database, with real SQLite files."""

from __future__ import annotations

import gzip
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from ml_backend.core.errors import StorageError
from ml_backend.db.migrations import REVISIONS
from ml_backend.db.migrations.versions import r0001_baseline
from ml_backend.db.storage import Storage
from ml_backend.db.tables import exemplars, metadata, predictions
from tests.builders import ROOT


def prediction(version: str = "v1", regions: int = 1) -> dict[str, object]:
    return {"result": [{"id": str(i), "value": {"labels": ["ü"]}} for i in range(regions)], "model_version": version}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new" / "folder" / "db.sqlite3"


@pytest.fixture
def storage(path: Path) -> Storage:
    return Storage(f"sqlite:///{path}")


def test_makes_its_folder_and_answers(storage: Storage, path: Path) -> None:
    storage.ping()
    assert path.is_file()


def test_prediction_comes_back_as_it_was(storage: Storage) -> None:
    assert storage.get_prediction("k") is None
    assert storage.get_prediction("k") is None
    storage.save_prediction("k", 1, prediction())
    assert storage.get_prediction("k") is not None
    assert storage.get_prediction("k") == prediction()


def test_first_prediction_of_a_key_stays(storage: Storage) -> None:
    storage.save_prediction("k", 1, prediction("first"))
    storage.save_prediction("k", 1, prediction("second"))
    assert storage.get_prediction("k") == prediction("first")
    assert storage.count_predictions() == 1


def test_more_keys_than_sqlite_takes_values(storage: Storage) -> None:
    for number in range(3):
        storage.save_prediction(f"k{number}", 1, prediction(regions=number))
    keys = [f"k{number}" for number in range(40_000)]
    assert set(storage.prediction_bodies(keys)) == {"k0", "k1", "k2"}
    sizes = storage.prediction_sizes(keys)
    assert set(sizes) == {"k0", "k1", "k2"}
    assert sizes["k0"] < sizes["k1"] < sizes["k2"]
    assert storage.prediction_bodies([]) == {}


def test_versions_newest_first_and_by_project(storage: Storage) -> None:
    storage.save_prediction("a", 1, prediction("old"))
    storage.save_prediction("b", 2, prediction("other project"))
    storage.save_prediction("c", 1, prediction("new"))
    storage.save_prediction("d", 1, prediction("old"))
    assert storage.versions() == ["old", "new", "other project"]
    assert storage.versions(1) == ["old", "new"]
    assert storage.versions(3) == []


def made_at(path: Path, key: str, moment: datetime) -> None:
    """Have a prediction made then."""
    with sqlite3.connect(path) as connection:
        naive = moment.replace(tzinfo=None)
        connection.execute(
            "UPDATE predictions SET created_at = ? WHERE key = ?", (f"{naive:%Y-%m-%d %H:%M:%S.%f}", key)
        )


NOW = datetime.now(timezone.utc)


def test_old_predictions_are_removed_but_not_their_version(storage: Storage, path: Path) -> None:
    for key, project, version, hours in (
        ("a", 1, "old", 30),
        ("b", 1, "old", 1),
        ("c", 1, "new", 30),
        ("d", 2, "old", 30),
    ):
        storage.save_prediction(key, project, prediction(version))
        made_at(path, key, NOW - timedelta(hours=hours))
    assert storage.versions(1) == ["old", "new"]
    assert storage.remove_predictions(1, "old", NOW - timedelta(days=1)) == 1
    assert storage.remove_predictions(1, "old", NOW - timedelta(days=1)) == 0
    assert set(storage.prediction_sizes(["a", "b", "c", "d"])) == {"b", "c", "d"}
    assert storage.remove_predictions(1, "old", NOW) == 1
    assert storage.versions(1) == ["old", "new"]
    assert storage.versions(2) == ["old"]
    assert storage.versions() == ["old", "new"]
    storage.save_prediction("a", 1, prediction("new"))
    assert storage.versions(1) == ["new", "old"]


def test_predictions_are_removed_a_few_at_a_time(storage: Storage, path: Path) -> None:
    for number in range(5):
        storage.save_prediction(f"k{number}", 1, prediction())
        made_at(path, f"k{number}", NOW - timedelta(hours=number + 1))
    assert [storage.remove_predictions(1, "v1", NOW, limit=2) for _ in range(2)] == [2, 2]
    (left,) = storage.prediction_runs()
    assert left.first == left.last
    assert storage.remove_predictions(1, "v1", NOW, limit=2) == 1
    assert storage.prediction_runs() == []
    storage.save_prediction("k0", 1, prediction("v2"))
    made_at(path, "k0", NOW - timedelta(minutes=90))
    assert storage.versions(1) == ["v1", "v2"], "the last of them was made an hour ago"


def test_what_is_pending_stays_until_it_is_done(storage: Storage) -> None:
    storage.note_pending("learn", 7, range(1, 1201))
    storage.note_pending("refresh", 7)
    storage.note_pending("learn", 8, [])
    assert storage.pending_projects() == [("learn", 7), ("refresh", 7)]
    seen = storage.pending("learn", 7)
    assert list(seen) == list(range(1, 1201))
    storage.note_pending("learn", 7, [5, 5])
    storage.settle("learn", 7, seen)
    assert list(storage.pending("learn", 7)) == [5]
    storage.settle("learn", 7, storage.pending("learn", 7))
    storage.settle("learn", 7, {})
    assert storage.pending_projects() == [("refresh", 7)]
    assert list(storage.pending("refresh", 7)) == [0]


def test_survives_being_opened_again(storage: Storage, path: Path) -> None:
    storage.save_prediction("k", 1, prediction())
    storage.note_pending("learn", 7, [1])
    again = Storage(f"sqlite:///{path}")
    assert again.get_prediction("k") == prediction()
    assert list(again.pending("learn", 7)) == [1]


def test_many_threads_write_and_read_at_once(storage: Storage) -> None:
    def work(number: int) -> None:
        for repeat in range(10):
            storage.save_prediction(f"{repeat}", 1, prediction())  # all the same keys
            storage.save_prediction(f"{number}-{repeat}", 1, prediction())
            storage.note_pending("learn", 1, [repeat + 1, 10 * number + 100 + repeat])
            storage.prediction_bodies([f"{repeat}", f"{number}-{repeat}"])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))  # raises what a thread raised
    assert storage.count_predictions() == 10 + 80
    assert len(storage.pending("learn", 1)) == 10 + 80


# -- the schema


@pytest.fixture
def other(tmp_path: Path) -> Iterator[sa.Engine]:
    """A database's file that no Storage has opened yet: ``sqlite3`` in its simplest mode."""
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'db.sqlite3'}")
    yield engine
    engine.dispose()


def structure(engine: sa.Engine) -> list[Any]:
    """Statements that made what is in an SQLite database."""
    with engine.connect() as connection:
        return list(connection.scalars(sa.text("SELECT sql FROM sqlite_master WHERE sql > '' ORDER BY sql")))


def tables_of_the_release_before(engine: sa.Engine) -> None:
    """It made them itself."""
    r0001_baseline.metadata.create_all(engine)


def test_migrations_make_the_tables_that_the_code_uses(storage: Storage) -> None:
    with storage.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, metadata) == []
        assert context.get_current_revision() == REVISIONS[-1]


@pytest.mark.slow
@pytest.mark.parametrize("old", [False, True])
def test_processes_that_start_at_once_all_find_tables(other: sa.Engine, old: bool) -> None:
    if old:
        tables_of_the_release_before(other)
    code = (
        "import os, sys; from ml_backend.db.storage import Storage; print('loaded', flush=True); sys.stdin.read();"
        f"s = Storage({str(other.url)!r}); s.note_pending('learn', 1, [os.getpid()]); print('fine')"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    started = [subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, **pipes) for _ in range(4)]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == b"loaded\n"
    for process in started:
        assert process.stdin is not None
        process.stdin.close()
        process.stdin = None
    outcomes = [process.communicate(timeout=300) for process in started]
    assert [out.strip() for out, _ in outcomes] == [b"fine"] * 4, [err[-300:] for _, err in outcomes]
    assert len(Storage(str(other.url)).pending("learn", 1)) == 4


def test_database_that_is_up_to_date_is_opened_without_alembic(storage: Storage, path: Path) -> None:
    code = (
        "import sys; from ml_backend.db.storage import Storage;"
        f"Storage('sqlite:///{path}'); sys.exit('alembic' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=300, check=False).returncode == 0


@pytest.mark.parametrize("missing", ["", "DROP INDEX predictions_of_version", "DROP TABLE training_splits"])
def test_database_of_the_release_before_migrations_is_upgraded(
    other: sa.Engine, storage: Storage, missing: str
) -> None:
    tables_of_the_release_before(other)
    with other.begin() as connection:
        connection.execute(
            sa.insert(predictions).values(
                key="k",
                project_id=1,
                model_version="v1",
                body=gzip.compress(b'{"result": []}'),
                bytes=14,
                created_at=datetime.now(timezone.utc),
            )
        )
        for action, project, state in (("TASKS_CREATED", 8, "pending"), ("ANNOTATION_CREATED", 7, "recorded")):
            event = {"action": action, "project_id": project, "state": state, "received_at": datetime.now(timezone.utc)}
            events = r0001_baseline.metadata.tables["events"]
            connection.execute(sa.insert(events).values(**event, task_ids=[1], annotation_ids=[2]))
        if missing:
            connection.exec_driver_sql(missing)
    upgraded = Storage(str(other.url))
    pending = [("learn", 7), ("learn", 8), ("prepare", 8), ("refresh", 7), ("refresh", 8), ("review", 1)]
    assert upgraded.pending_projects() == pending
    assert structure(other) == structure(storage.engine)
    assert upgraded.get_prediction("k") == {"result": []}


def test_exemplars_of_the_release_before_are_kept_and_read_again(other: sa.Engine) -> None:
    tables_of_the_release_before(other)
    row = {"model": "m", "label": "a", "annotation_id": 1, "region_id": "r", "embedding": "k", "origin": ""}
    with other.begin() as connection:
        table = r0001_baseline.metadata.tables["exemplars"]
        rows = [{**row, "project_id": project, "task_id": task} for project, task in ((7, 5), (7, 6), (8, 0))]
        connection.execute(sa.insert(table), rows)
    upgraded = Storage(str(other.url))
    with upgraded.engine.connect() as connection:
        kept = connection.execute(sa.select(exemplars.c.task_id, exemplars.c.detector_class)).all()
    assert kept == [(5, ""), (6, ""), (0, "")]
    assert upgraded.pending_projects() == [("learn", 7)]  # 8 has imported ones only


@pytest.mark.parametrize(
    ("statements", "text"),
    [
        (["CREATE TABLE customers (id INTEGER)"], "table customers"),
        (["CREATE TABLE predictions (id INTEGER, text VARCHAR)"], "table predictions"),
        (
            ["CREATE TABLE alembic_version (version_num VARCHAR(32))", "INSERT INTO alembic_version VALUES ('9999')"],
            "its schema is 9999",
        ),
    ],
)
@pytest.mark.parametrize("mode", ["delete", "wal"])
def test_unknown_database_is_left_as_it_is(
    other: sa.Engine, tmp_path: Path, statements: list[str], text: str, mode: str
) -> None:
    with other.begin() as connection:
        for statement in (f"PRAGMA journal_mode={mode}", *statements):
            connection.exec_driver_sql(statement).close()
    other.dispose()
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(StorageError, match=text) as failure:
        Storage(str(other.url))
    assert "left unchanged" in failure.value.message
    assert "DATA_DIR" in failure.value.hint
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_upgrade_that_fails_in_the_middle_changes_nothing(
    other: sa.Engine, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def create(index: sa.Index, *_: Any, **__: Any) -> None:
        raise sa.exc.OperationalError("CREATE INDEX", {}, Exception("disk is full"))

    with monkeypatch.context() as patch:
        patch.setattr(sa.Index, "create", create)  # the tables have been made by then
        with pytest.raises(StorageError, match="full"):
            Storage(str(other.url))
    assert structure(other) == []
    Storage(str(other.url))
    assert structure(other) == structure(storage.engine)


def test_full_database_is_named_with_a_cure(storage: Storage) -> None:
    # SQLite's own page limit makes it answer exactly as on a full disk.
    with storage.engine.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")
    incompressible = {"model_version": "v", "result": [], "noise": [hash(str(i)) for i in range(20_000)]}
    with pytest.raises(StorageError, match="full") as failure:
        storage.save_prediction("k", 1, incompressible)
    assert failure.value.http_status == 507
    assert failure.value.retryable
    assert "Free disk space" in failure.value.hint
    assert storage.get_prediction("k") is None


@pytest.mark.slow
def test_database_that_somebody_else_holds_is_an_error_not_a_hang(storage: Storage, path: Path) -> None:
    other = sqlite3.connect(path)
    other.execute("BEGIN IMMEDIATE")
    try:
        with pytest.raises(StorageError, match="locked"):
            storage.note_pending("learn", 1)
        assert storage.pending_projects() == []  # readers do not wait for the writer
    finally:
        other.rollback()
        other.close()
    storage.note_pending("learn", 1)


def test_file_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "db"
    path.write_bytes(b"this was a photograph" * 500)
    with pytest.raises(StorageError, match="not a database") as failure:
        Storage(f"sqlite:///{path}")
    assert "move it away" in failure.value.hint
    assert path.read_bytes() == b"this was a photograph" * 500


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be created") as failure:
        Storage(f"sqlite:///{tmp_path / 'file' / 'below' / 'db'}")
    assert "DATA_DIR" in failure.value.hint


@pytest.mark.parametrize("url", ["no url at all", "sqlit:///x", "mysql+nothing://h/db", "mssql+pymssql://h/db"])
def test_wrong_url_is_named(url: str) -> None:
    with pytest.raises(StorageError) as failure:
        Storage(url)
    assert "DATABASE_URL" in failure.value.hint


def test_a_backup_is_made_while_it_is_written_and_restored_elsewhere(tmp_path: Path) -> None:
    """By the commands of the guide."""
    guide = (ROOT / "docs" / "guides" / "deployment.md").read_text(encoding="utf-8")
    commands = guide.split("cd /data ")[1].split("```")[0].split("\n", 1)[1]
    data, stop = tmp_path / "data", threading.Event()
    storage = Storage(f"sqlite:///{data}/backend.sqlite3")
    (data / "artifacts" / "projects").mkdir(parents=True)
    (data / "artifacts" / "projects" / "v1.pt").write_bytes(b"weights")
    storage.save_prediction("before", 1, prediction())

    def write() -> None:
        number = 0
        while not stop.is_set():
            storage.note_pending("learn", number % 50 + 1, range(20))
            number += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        subprocess.run(["bash", "-ec", commands], cwd=data, env=environment, check=True)
    finally:
        stop.set()
        writer.join()
    storage.save_prediction("after", 1, prediction())
    restored = tmp_path / "restored"
    shutil.copytree(data / "backup", restored)
    copy = Storage(f"sqlite:///{restored}/backend.sqlite3")
    assert copy.get_prediction("before") == prediction()
    assert copy.get_prediction("after") is None
    with copy.read() as connection:
        assert connection.scalar(sa.text("PRAGMA integrity_check")) == "ok"
    assert (restored / "artifacts" / "projects" / "v1.pt").read_bytes() == b"weights"
