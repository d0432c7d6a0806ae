"""What a start loads, and what it does not wait for. Counted, not timed."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from ml_backend.cli.dev_stack.preflight import ROOT, free_port
from ml_backend.cli.dev_stack.processes import BackendServer
from ml_backend.core.files import file_sha256
from ml_backend.core.settings import Settings
from ml_backend.db.storage import Storage
from tests.builders import environment

#: Libraries of models and video: neither a start nor the first requests load any.
NEVER = (
    *("torch", "torchvision", "ultralytics", "transformers", "timm", "open_clip", "openvino", "onnx"),
    *("numpy", "scipy", "sklearn", "pandas", "cv2", "PIL", "av", "supervision", "matplotlib", "psutil"),
    *("fsspec", "huggingface_hub", "nltk", "alembic"),
)
#: What an app needs beside that, and the first requests; of Label Studio's SDK the half without pandas.
LATER = ("sqlalchemy", "redis", "rq", "httpx", "label_studio_sdk", "rich", "pygments")
#: Modules after ``import ml_backend.server.app`` (488 by now), and after making an app (622), Python's own included.
IMPORTED, MADE = 530, 670
#: Modules that the first requests load themselves.
MORE = 40

COUNT = """
import json, sys
import ml_backend.server.app
tops = lambda: sorted({name.partition(".")[0] for name in sys.modules})
imported = [len(sys.modules), tops()]
ml_backend.server.app.create_app()
print(json.dumps([imported, [len(sys.modules), tops()]]))
"""


def in_child(code: str, values: Settings) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment(values), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_a_start_loads_little(settings: Callable[..., Settings]) -> None:
    values = settings(detector="auto")
    Storage(values.database)  # the first start of all makes the tables, with a library that no other needs
    (imported, tops), (made, all_tops) = json.loads(in_child(COUNT, values))
    assert not {*NEVER, *LATER} & set(tops)
    assert imported <= IMPORTED, "import what is not needed for /health where it is needed"
    assert not {*NEVER, *LATER[1:]} & set(all_tops)
    assert made <= MADE


WARM = """
import json, sys, threading
from ml_backend.wsgi import app
for thread in threading.enumerate():
    if thread.name == "warm-up":
        thread.join()
before = set(sys.modules)
client = app.test_client()
statuses = [
    client.post("/setup", json={"project": "7.1", "schema": CONFIG, "access_token": "abc"}).status_code,
    client.post("/predict", json={"project": "7.1", "label_config": CONFIG, "tasks": [TASK]}).status_code,
    client.post("/webhook", json={"action": "TASKS_CREATED", "project": {"id": 7}}).status_code,
    *(client.get(path).status_code for path in ("/health", "/versions", "/metrics", "/api/status")),
    client.get("/", headers={"Accept": "text/html", "Sec-Fetch-Site": "none"}).status_code,
]
tops = {name.partition(".")[0] for name in sys.modules}
print(json.dumps([statuses, sorted(set(sys.modules) - before), sorted(tops)]))
"""


def test_what_first_requests_need_is_loaded_before(settings: Callable[..., Settings], redis_url: str) -> None:
    config = (ROOT / "label_config.xml").read_text(encoding="utf-8")
    task = {"id": 1, "data": {"video": "/data/upload/1/a.mp4", "fps": 25}}
    values = settings(redis_url=redis_url, detector="auto", label_studio_url="http://127.0.0.1:1")
    Storage(values.database)
    told = in_child(f"CONFIG, TASK = {config!r}, {task!r}" + WARM, values).strip().rsplit("\n", 1)[-1]
    statuses, more, tops = json.loads(told)
    assert statuses == [200, 200, 201, 200, 200, 200, 200, 200]
    assert set(LATER[:5]) <= set(tops)
    assert not set(NEVER) & set(tops)
    assert len(more) <= MORE, more


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (("-m", "gunicorn", "--config", "python:ml_backend.server.gunicorn_config", "--bind", "127.0.0.1:0"), 3),
        (("-m", "ml_backend.jobs.worker"), 1),
        (("scripts/versions.py", "list", "--project", "7"), 1),
    ],
)
def test_the_database_of_a_newer_release_is_refused(
    settings: Callable[..., Settings], redis_url: str, command: tuple[str, ...], status: int
) -> None:
    values = settings(redis_url=redis_url, detector="motion")
    with Storage(values.database).write() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = 'of 2099'"))
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment(values), capture_output=True, text=True, check=False
    )
    assert done.returncode == status, done.stderr
    assert "The database is newer than this release: its schema is of 2099" in done.stderr
    assert "Install the release that used it last" in done.stderr
    assert "Traceback" not in done.stderr


def test_health_does_not_wait_for_weights(settings: Callable[..., Settings], redis_url: str, tmp_path: Path) -> None:
    """Which have a terabyte here, without a byte on the disk: they are being read all the while."""
    weights = tmp_path / "huge.pt"
    with weights.open("wb") as file:
        file.truncate(1 << 40)
    values = settings(redis_url=redis_url, yolo_weights=str(weights))
    backend = BackendServer(port=free_port(), log_dir=tmp_path, environment=environment(values))
    backend.start()
    try:
        backend.wait_ready(240)
        with pytest.raises(httpx.ReadTimeout):  # a version cannot be told without them
            httpx.post(
                f"{backend.url}/setup", json={"project": "7.1"}, trust_env=False, timeout=httpx.Timeout(120, read=1)
            )
        assert httpx.get(f"{backend.url}/health", trust_env=False, timeout=300).status_code == 200
    finally:
        backend.stop(grace=0)


def test_weights_are_read_once_by_all_who_ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that ask at once wait for one that reads."""
    weights = tmp_path / "weights.pt"
    weights.write_bytes(bytes(64 << 20))
    begin = threading.Barrier(4)

    def ask(_: int) -> str:
        begin.wait()
        return file_sha256(weights)

    begun, sha256 = [], hashlib.sha256

    def digest() -> Any:
        begun.append(threading.current_thread())
        return sha256()

    monkeypatch.setattr(hashlib, "sha256", digest)
    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(ask, range(4)))) == 1
    assert len(begun) == 1
