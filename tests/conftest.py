"""Shared fixtures: the real components, each started once for the whole run and stopped at its end."""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import shutil
import signal
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import settings as hypothesis_settings
from redis import Redis
from xdist.scheduler import LoadFileScheduling

from ml_backend.cli.dev_stack.environment import base_environment
from ml_backend.cli.dev_stack.guardian import MARK, start_guardian
from ml_backend.cli.dev_stack.preflight import free_port
from ml_backend.cli.dev_stack.processes import LabelStudioServer, RedisServer
from ml_backend.cli.dev_stack.stack import LABEL_STUDIO_TIMEOUT, Stack, StackOptions
from ml_backend.core.model_cache import current_model_cache
from ml_backend.core.settings import Settings
from ml_backend.db import migrations, storage
from ml_backend.label_studio.client import LabelStudioClient, create_token

ROOT = Path(__file__).resolve().parents[1]
SHARED_DATA = ROOT.parent / "shared" / "data"

# Tests run in several processes: PyTorch's threads would only wait for each other. Read when it is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The same examples in every run, however slow the machine; a failure says how to repeat it.
hypothesis_settings.register_profile("tests", deadline=None, derandomize=True, print_blob=True)
hypothesis_settings.load_profile("tests")

#: Files that take longest, which are begun first: else one of them would go on alone at the end of a run.
LONGEST = (
    *("jobs/test_train_faults.py", "cli/dev_stack/test_smoke.py", "jobs/test_train.py", "jobs/test_learn.py"),
    *("server/test_dashboard_browser.py", "detectors/test_int8.py", "detectors/test_engines.py", "jobs/test_worker.py"),
    *("jobs/test_predict.py", "jobs/test_chunks.py", "jobs/test_api_jobs.py", "rendering/test_render_script.py"),
)
STACKS = pytest.StashKey[list[Stack]]()
#: Fixtures that start a server or a browser, or need weights or a video that are not part of the project.
NOT_QUICK = {
    *("redis_server", "label_studio", "make_stack", "postgresql", "s3"),
    *("chromium", "shared_data", "people_video", "yolo_weights"),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="only tests without servers, browser and real weights")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with the longest files, and leave together those that need the local stack.

    With ``--quick``, leave out what needs a server, a browser or real weights, and what is marked as slow.
    """
    place = {ROOT / "tests" / name: number for number, name in enumerate(LONGEST)}
    with_stack = min((place.get(item.path, len(place)) for item in items if needs_stack(item.path)), default=0)
    items.sort(key=lambda item: with_stack if needs_stack(item.path) else place.get(item.path, len(place)))
    if not config.getoption("--quick"):
        return
    marks = ("slow", "stack", "browser")
    slow = {
        item
        for item in items
        if NOT_QUICK & set(getattr(item, "fixturenames", ())) or any(map(item.get_closest_marker, marks))
    }
    config.hook.pytest_deselected(items=list(slow))
    items[:] = [item for item in items if item not in slow]


def pytest_collection_finish() -> None:
    """Spare garbage collections, which tests of models ask for, the modules and tests that stay until the end."""
    gc.freeze()


@functools.cache
def needs_stack(file: Path) -> bool:
    return "motion_stack" in file.read_text(encoding="utf-8")


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Stop the local stack after the last test that needs it: its processes go on looking for work."""
    if nextitem and needs_stack(item.path) and not needs_stack(nextitem.path):
        for stack in item.config.stash.get(STACKS, []):
            stack.stop()


class OneStack(LoadFileScheduling):
    """Keep each file in one process, and all that need the local stack in the same: it is started once."""

    def _split_scope(self, nodeid: str) -> str:
        file = str(super()._split_scope(nodeid))
        return "stack" if needs_stack(ROOT / file) else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> OneStack:
    return OneStack(config, log)


@pytest.fixture(scope="session", autouse=True)
def _bare_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No setting of the machine, of a .env file, or of the caller's home changes what the tests see."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name in Settings.model_fields:
            patch.delenv(name.upper(), raising=False)
        # Commands would else use a stack that runs from this folder, as tests in other processes start them.
        patch.setenv("DATA_DIR", "data")
        patch.setenv("YOLO_AUTOINSTALL", "false")
        # Exports in the background would take the processor from whatever is tested; tests of engines ask for them.
        patch.setenv("ENGINE", "torch")
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("YOLO_CONFIG_DIR", str(home / "ultralytics"))
        patch.setenv("MPLCONFIGDIR", str(home / "matplotlib"))
        # Each HTTP client would load all certificate authorities, for 60 ms; tests ask no server they vouch for.
        patch.delenv("SSL_CERT_FILE", raising=False)
        patch.setenv("SSL_CERT_DIR", str(home))
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(home / "inductor"))  # else importing torchvision makes it in TMPDIR
        yield


@pytest.fixture(scope="session", autouse=True)
def _interrupts_are_heard() -> Iterator[None]:
    """Shells start what runs in the background with SIGINT ignored, and so would be the programs under test."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module", autouse=True)
def _models_of_one_file() -> Iterator[None]:
    """No file of tests finds models loaded that another has left: equal weights share one, whatever runs it."""
    yield
    if (cache := current_model_cache()) is not None:
        cache.optimize()


@pytest.fixture(scope="session")
def migrated_database(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """Makes, when it is first called, an SQLite database with all tables and no rows."""

    @functools.cache
    def make() -> Path:
        file = tmp_path_factory.mktemp("database") / "migrated.sqlite3"
        engine = sa.create_engine(f"sqlite:///{file}")
        migrations.upgrade(engine)
        engine.dispose()
        return file

    return make


@pytest.fixture(autouse=True)
def _new_databases_are_copies(migrated_database: Callable[[], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare each new SQLite database the migrations, which take 0.1 s; tests of the database have them all."""

    def upgrade(engine: Any) -> None:
        file = engine.url.database
        if engine.dialect.name == "sqlite" and file and file != ":memory:" and not os.path.exists(file):
            part = f"{file}.{uuid.uuid4().hex}"
            with contextlib.suppress(OSError):  # where it cannot be written, or another thread was faster
                shutil.copyfile(migrated_database(), part)
                os.link(part, file)
            Path(part).unlink(missing_ok=True)
        migrations.upgrade(engine)

    monkeypatch.setattr(storage, "upgrade", upgrade)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with the real video and the real weights, which are not part of the project."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the folder ../shared/data with the real video and weights is not there")
    return SHARED_DATA


def _shared_file(name: str) -> Path:
    path = SHARED_DATA / name
    if not path.is_file():
        pytest.skip(f"{name} is not in ../shared/data, which is not part of the project")
    return path


@pytest.fixture(scope="session")
def people_video() -> Path:
    """302 frames of a street, 1920x1080, 30 fps, H.264."""
    return _shared_file("people.mp4")


@pytest.fixture(scope="session")
def yolo_weights() -> Path:
    """YOLO11n with the 80 COCO classes. ``TEST_YOLO_WEIGHTS`` names another file."""
    named = os.environ.get("TEST_YOLO_WEIGHTS")
    return Path(named) if named else _shared_file("yolo11n.pt")


@pytest.fixture
def settings(tmp_path: Path) -> Callable[..., Settings]:
    """Factory of settings that keep everything in the test's folder: ``settings(redis_url=..., conf=0.3)``.

    Downloads of weights are not waited for.
    """

    def make(**values: Any) -> Settings:
        assert values.keys() <= Settings.model_fields.keys(), "no such setting"
        defaults = {"data_dir": tmp_path / "data", "weights_timeout_s": 0.1}
        return Settings(_env_file=None, **(defaults | values))

    return make


@pytest.fixture(scope="session")
def mark() -> Iterator[dict[str, str]]:
    """Environment by which a guardian finds the servers of this run, to end them also when the run is killed."""
    mark = uuid.uuid4().hex
    guardian = start_guardian(mark)
    yield {MARK: mark}
    assert guardian.stdin is not None
    guardian.stdin.close()
    guardian.wait(timeout=900)


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory, mark: dict[str, str]) -> Iterator[RedisServer]:
    """A real Redis on a unix socket. Tests use ``redis_url``."""
    folder = tmp_path_factory.mktemp("redis")
    server = RedisServer(folder, log_dir=folder, environment=os.environ | mark)
    server.start()
    try:
        server.wait_ready(240)
        yield server
    finally:
        server.stop()


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """URL of a real, empty Redis."""
    with Redis.from_url(redis_server.url) as connection:
        connection.flushall()
    return redis_server.url


@dataclass(frozen=True, slots=True)
class LabelStudio:
    """A running Label Studio.

    Attributes:
        token: personal access token of its only user.
        media_root: folder of the uploads.
        local_files: its LOCAL_FILES_DOCUMENT_ROOT.
    """

    url: str
    token: str
    username: str
    password: str
    media_root: Path
    local_files: Path

    def client(self) -> LabelStudioClient:
        return LabelStudioClient(self.url, self.token)


@pytest.fixture(scope="session")
def label_studio(tmp_path_factory: pytest.TempPathFactory, mark: dict[str, str]) -> Iterator[LabelStudio]:
    """A real Label Studio with an empty database, shared by all tests: each makes projects of its own."""
    if not (ROOT / ".venv-label-studio" / "bin" / "label-studio").exists():
        pytest.skip("Label Studio is not installed; bash scripts/test.sh installs it into .venv-label-studio")
    folder = tmp_path_factory.mktemp("label-studio")
    local_files = folder / "local-files"
    local_files.mkdir()
    server = LabelStudioServer(
        folder / "data",
        port=free_port(),
        username="tester@example.org",
        password="a password for tests",
        log_dir=folder,
        environment=base_environment(folder, isolated=True) | mark,
        local_files=local_files,
    )
    server.start()
    try:
        server.wait_ready(LABEL_STUDIO_TIMEOUT)
        token = create_token(server.url, server.username, server.password)
        yield LabelStudio(server.url, token, server.username, server.password, server.media_root, local_files)
    finally:
        server.stop()


@pytest.fixture(scope="session")
def make_stack(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Iterator[Callable[..., Stack]]:
    """Factory of whole local stacks (Label Studio, Redis, backend, worker) with a data folder and ports of their own.

    Keyword arguments are settings of backend and worker: ``make_stack(detector="motion")``.
    """
    if not (ROOT / ".venv-label-studio" / "bin" / "label-studio").exists():
        pytest.skip("Label Studio is not installed; bash scripts/test.sh installs it into .venv-label-studio")
    stacks = pytestconfig.stash.setdefault(STACKS, [])

    def make(**settings: Any) -> Stack:
        environment = {"WEIGHTS_TIMEOUT_S": "0.5"} | {name.upper(): str(value) for name, value in settings.items()}
        data_dir = tmp_path_factory.mktemp("stack")
        options = StackOptions(data_dir, free_port(), free_port(), isolated=True, environment=environment)
        stack = Stack(options)
        stacks.append(stack)
        stack.start()
        return stack

    try:
        yield make
    finally:
        for stack in stacks:
            stack.stop()


@pytest.fixture(scope="session")
def motion_stack(make_stack: Callable[..., Stack]) -> Stack:
    """A local stack whose detector needs no weights. Tests mark themselves with ``stack``."""
    return make_stack(detector="motion")


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """A Playwright browser: ``chromium.new_page()``. Tests mark themselves with ``browser``."""
    executable = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if executable is None:
        pytest.skip("no Chromium on this machine (Debian, Ubuntu: apt install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # As root, in containers, Chromium's own sandbox cannot work; the pages are our own.
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()
