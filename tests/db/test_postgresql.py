"""A real PostgreSQL: migrations, concurrent writers, and values that SQLite would take."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from ml_backend.cli.dev_stack.preflight import free_port
from ml_backend.cli.dev_stack.processes import ManagedProcess
from ml_backend.cli.doctor.__main__ import examine
from ml_backend.cli.doctor.checks import Target
from ml_backend.core.errors import StorageError, UnstorableValue
from ml_backend.core.settings import Settings
from ml_backend.db.migrations import REVISIONS
from ml_backend.db.migrations.versions import r0001_baseline
from ml_backend.db.storage import Storage
from ml_backend.db.tables import metadata, predictions, task_scores
from ml_backend.server.app import create_app
from tests.builders import CONFIG

PASSWORD = "a password: for/tests"
BIG = 1 << 31


class PostgresServer(ManagedProcess):
    """A server with an empty cluster. It refuses to run as root, so root runs it as another user."""

    def __init__(self, programs: Path, folder: Path, environment: dict[str, str]) -> None:
        super().__init__("postgres", log_dir=folder, environment=environment, cwd=folder)
        self._programs, self._data, self.port = programs, folder / "data", free_port()
        self._prefix: list[str] = []
        if os.geteuid() == 0:
            user = next(name for name in ("postgres", "nobody") if name in {entry.pw_name for entry in pwd.getpwall()})
            shutil.chown(folder, user)
            self._prefix = ["setpriv", f"--reuid={user}", f"--regid={pwd.getpwnam(user).pw_gid}", "--clear-groups"]
        password = folder / "password"
        password.write_text(PASSWORD)
        password.chmod(0o644)
        options = ["--username=backend", f"--pwfile={password}", "--auth=scram-sha-256", "--encoding=UTF8"]
        self._run("initdb", "--pgdata", str(self._data), "--no-locale", "--no-sync", *options)

    def _run(self, program: str, *arguments: str) -> None:
        command = [*self._prefix, str(self._programs / program), *arguments]
        subprocess.run(command, cwd=self.cwd, check=True, capture_output=True)

    def command(self) -> Sequence[str]:
        options = ("listen_addresses=127.0.0.1", f"port={self.port}", "unix_socket_directories=", "fsync=off")
        switches = [part for option in options for part in ("-c", option)]
        return [*self._prefix, str(self._programs / "postgres"), "-D", str(self._data), *switches]

    def ready(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
            sa.create_engine(self.url("postgres")).connect().close()
        except (OSError, sa.exc.OperationalError):  # it is starting
            return False
        return True

    def url(self, database: str) -> str:
        address = {"host": "127.0.0.1", "port": self.port, "database": database}
        url = sa.URL.create("postgresql+psycopg", "backend", PASSWORD, **address)
        return url.render_as_string(hide_password=False)


@pytest.fixture(scope="module")
def postgresql(mark: dict[str, str]) -> Iterator[PostgresServer]:
    pytest.importorskip("psycopg", reason="psycopg is not installed; bash scripts/test.sh installs it")
    found = shutil.which("postgres") or next(map(str, Path("/usr/lib/postgresql").glob("*/bin/postgres")), None)
    if found is None:
        pytest.skip("no PostgreSQL on this machine (Debian, Ubuntu: apt install postgresql)")
    # Other users cannot enter pytest's folders.
    with tempfile.TemporaryDirectory(prefix="postgres-", ignore_cleanup_errors=True) as folder:
        server = PostgresServer(Path(found).resolve().parent, Path(folder), os.environ | mark)
        server.start()
        try:
            server.wait_ready(240)
            yield server
        finally:
            server.stop()


@pytest.fixture
def url(postgresql: PostgresServer, request: pytest.FixtureRequest) -> str:
    """URL of an empty database of this test."""
    name = request.node.name[:60]
    with sa.create_engine(postgresql.url("postgres"), isolation_level="AUTOCOMMIT").connect() as connection:
        connection.execute(sa.text(f'CREATE DATABASE "{name}"'))
    return postgresql.url(name)


@pytest.fixture
def storage(url: str) -> Iterator[Storage]:
    storage = Storage(url)
    yield storage
    storage.engine.dispose()


def test_an_older_schema_is_upgraded_by_one_of_several_processes(url: str) -> None:
    engine = sa.create_engine(url)
    r0001_baseline.metadata.create_all(engine)
    with ThreadPoolExecutor(3) as pool:
        storages = list(pool.map(Storage, [url] * 3))
    with storages[0].read() as connection:
        assert connection.scalar(sa.text("SELECT version_num FROM alembic_version")) == REVISIONS[-1]
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    for each in storages:
        each.engine.dispose()


def test_what_is_stored_comes_back(storage: Storage) -> None:
    storage.save_prediction("k", 1, {"result": [{"id": "ü"}], "model_version": "v1"})
    storage.save_prediction("k", 1, {"result": [], "model_version": "the first one stays"})
    assert storage.get_prediction("k") == {"result": [{"id": "ü"}], "model_version": "v1"}
    (run,) = storage.prediction_runs()
    assert abs(run.first - datetime.now(timezone.utc)) < timedelta(hours=1), "times have their zone"
    assert storage.remove_predictions(1, "v1", datetime.now(timezone.utc) + timedelta(hours=1)) == 1
    assert storage.versions(1) == ["v1"]
    storage.note_pending("learn", 1, [3, 4])
    storage.settle("learn", 1, {3: storage.pending("learn", 1)[3]})
    assert set(storage.pending("learn", 1)) == {4}


def test_writers_of_the_same_rows_wait_for_each_other(storage: Storage) -> None:
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            list(pool.map(lambda number: storage.note_score(1, 2, number), range(8)))
            list(pool.map(lambda _: storage.note_pending("learn", 1, range(20)), range(4)))
    assert storage.scores(1)[2] in range(8)
    assert storage.count_pending("learn", 1) == 20


@pytest.mark.parametrize(
    ("table", "row"),
    [
        (task_scores, {"project_id": 1, "task_id": BIG, "score": 0.5}),
        (predictions, {"key": "\0", "project_id": 1, "model_version": "v", "body": b"", "bytes": 0}),
    ],
    ids=["number", "nul"],
)
def test_a_value_that_no_column_takes_is_a_bad_request(
    storage: Storage, table: sa.Table, row: dict[str, object]
) -> None:
    values = row | ({"created_at": datetime.now(timezone.utc)} if table is predictions else {})
    with pytest.raises(UnstorableValue) as caught, storage.write() as connection:
        connection.execute(sa.insert(table).values(**values))
    assert caught.value.http_status == 400
    assert "NUL" in caught.value.hint


def test_requests_with_impossible_values_are_refused(
    url: str, settings: Callable[..., Settings], tmp_path: Path
) -> None:
    app = create_app(settings(database_url=url, redis_url=f"unix://{tmp_path}/none.sock", detector="motion"))
    client, big, nul = app.test_client(), f"{BIG}.17", "%00"
    tasks = [{"id": BIG, "data": {"video": "http://localhost/a.mp4", "fps": 25}}]
    for path, body in {
        "/setup": {"project": big, "schema": CONFIG},
        "/predict": {"project": big, "tasks": [], "label_config": CONFIG},
        "/versions": {"project": big, "version": "v1"},
        "/api/train_custom_model": {"project": BIG},
        "/api/repairs": {"project": 1, "moment": "0" * 16, "action": "relabel", "label": "\0"},
    }.items():
        assert client.post(path, json=body).status_code == 400, path
    assert client.post("/predict", json={"project": "1.1", "tasks": tasks, "label_config": CONFIG}).status_code == 400
    nul_config = CONFIG.replace('value="thing"', 'value="th\0ing"')
    assert 400 <= client.post("/setup", json={"project": "1.1", "schema": nul_config}).status_code < 500
    for path in (
        f"/api/exemplars?project=1&label={nul}",
        f"/api/review?project=1&author={nul}",
        f"/api/review?project=1&label={nul}",
        f"/api/versions?project={BIG}",
        f"/versions?project={BIG}",
    ):
        assert client.get(path).status_code == 400, path
    event = {"action": "ANNOTATION_CREATED", "project": {"id": BIG}, "task": {"id": BIG}, "annotation": {"id": BIG}}
    assert client.post("/webhook", json=event).status_code == 201, "it names nothing that exists"
    policy = {"training": {"mode": "\0"}}
    answer = client.post("/setup", json={"project": "1.1", "schema": CONFIG, "extra_params": policy})
    assert 400 <= answer.status_code < 500
    app.extensions["services"].storage.engine.dispose()


def test_the_doctor_writes_and_reads(url: str, settings: Callable[..., Settings]) -> None:
    (finding,) = examine(Target(settings(database_url=url), ""), ["database"])
    assert (finding.status, PASSWORD in finding.found) == ("ok", False)
    assert "written and read" in finding.found
    wrong = sa.make_url(url).set(password="wrong").render_as_string(hide_password=False)
    (finding,) = examine(Target(settings(database_url=wrong), ""), ["database"])
    assert finding.status == "failed"
    assert "DATABASE_URL" in finding.hint


def test_a_missing_driver_is_named_with_its_extra(url: str) -> None:
    with pytest.raises(StorageError, match="psycopg2") as caught:
        Storage(url.replace("+psycopg:", "+psycopg2:"))
    assert "pip install '.[postgres]'" in caught.value.hint
