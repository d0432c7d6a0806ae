"""The whole stack on one machine: Redis, Label Studio, backend, worker and trainer, with supervision."""

from __future__ import annotations

import fcntl
import os
import subprocess
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NoReturn

from ml_backend.cli.dev_stack.environment import MODEL_SETTINGS, base_environment
from ml_backend.cli.dev_stack.guardian import MARK, start_guardian, sweep
from ml_backend.cli.dev_stack.preflight import ROOT, StartError
from ml_backend.cli.dev_stack.processes import (
    BackendServer,
    LabelStudioServer,
    ManagedProcess,
    RedisServer,
    WorkerProcess,
    redis_is_up,
)
from ml_backend.cli.dev_stack.report import Reporter
from ml_backend.cli.dev_stack.state import (
    USERNAME,
    StackState,
    announce,
    lock_path,
    login_password,
    read_text,
    state_path,
    token_path,
    write_private,
)
from ml_backend.core.errors import LabelStudioError
from ml_backend.core.settings import QUEUES, Settings
from ml_backend.core.urls import shown_url
from ml_backend.label_studio.client import LabelStudioClient, create_token

#: Seconds. Creating the database takes 20 to 45 s, more on a slow disk.
LABEL_STUDIO_TIMEOUT = 300.0
#: Seconds. The first import of PyTorch after installing reads gigabytes.
BACKEND_TIMEOUT = 180.0
#: After this many seconds of uptime the back-off of a process is reset.
HEALTHY_S = 60.0
MAX_BACK_OFF_S = 30.0
#: Commands that check for a running stack hold its lock for a moment.
LOCK_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class StackOptions:
    """Options of a stack.

    Attributes:
        data_dir: absolute path of the folder for all state.
        redis_url: URL of a running Redis; empty to start one.
        isolated: ignore server URLs in the environment and ``.env``.
        environment: additional environment of backend and workers.
    """

    data_dir: Path
    port: int
    label_studio_port: int
    redis_url: str = ""
    isolated: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)


class Stack:
    """The processes of a stack. A context manager that starts all of them and always stops them."""

    def __init__(self, options: StackOptions, reporter: Reporter | None = None) -> None:
        self.options = options
        self.reporter = reporter or Reporter()
        self.data_dir = options.data_dir
        self.log_dir = self.data_dir / "logs"
        self.local_files = self.data_dir / "local-files"
        self.token = ""
        self.username = USERNAME
        self._mark = uuid.uuid4().hex
        self._guardian: subprocess.Popen[bytes] | None = None
        self._lock: IO[str] | None = None
        self._failures: dict[str, tuple[int, float]] = {}

        environment = base_environment(self.data_dir, isolated=options.isolated) | {MARK: self._mark}
        # An isolated stack must not read the project folder's .env file either.
        self._cwd = self.data_dir if options.isolated else ROOT
        self.redis: RedisServer | None = None
        if not options.redis_url:
            self.redis = RedisServer(self.data_dir / "redis", log_dir=self.log_dir, environment=environment)
        self.redis_url = self.redis.url if self.redis else options.redis_url
        self.label_studio = LabelStudioServer(
            self.data_dir / "label-studio",
            port=options.label_studio_port,
            username=self.username,
            password=login_password(self.data_dir),
            log_dir=self.log_dir,
            environment=environment,
            local_files=self.local_files,
        )
        environment |= options.environment
        self.backend = BackendServer(port=options.port, log_dir=self.log_dir, environment=environment, cwd=self._cwd)
        # Three workers, since a training would block predictions for minutes, and either one those who draw boxes.
        self.worker, self.trainer, self.drawer = (
            WorkerProcess(
                name, queues, redis_url=self.redis_url, log_dir=self.log_dir, environment=environment, cwd=self._cwd
            )
            for name, queues in (("worker", QUEUES[1:-1]), ("trainer", QUEUES[-1:]), ("drawer", QUEUES[:1]))
        )
        self._ours: list[ManagedProcess] = [self.worker, self.trainer, self.drawer, self.backend]

    # -- start and stop

    def __enter__(self) -> Stack:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def processes(self) -> list[ManagedProcess]:
        """All processes, in the order in which to stop them."""
        return [*self._ours, self.label_studio, *([self.redis] if self.redis else [])]

    def start(self) -> None:
        """Start all processes, in parallel where possible.

        Raises:
            StartError: a process failed to start; the hint is the end of its log.
        """
        for folder in (self.data_dir, self.log_dir, self.local_files):
            folder.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(self.data_dir)
        self._guardian = start_guardian(self._mark)
        self.label_studio.start()
        with self.reporter.stage("redis", "Starting Redis") as tick:
            self._start_redis(tick)
        token = read_text(token_path(self.data_dir))
        if token:  # not the first start, so all processes can start at once
            self._start_backend(token)
        with self.reporter.stage("label_studio", "Starting Label Studio (the first time up to a minute)") as tick:
            self.label_studio.wait_ready(LABEL_STUDIO_TIMEOUT, tick)
            self.token = self._valid_token(token)
        with self.reporter.stage("backend", "Starting backend and worker") as tick:
            if self.token != token:
                for process in self._ours:
                    process.stop()
                self._start_backend(self.token)
            for process in self._ours:
                process.wait_ready(BACKEND_TIMEOUT, tick)
        self.save_state()

    def _start_redis(self, tick: Callable[[], None]) -> None:
        if self.redis:
            self.redis.start()
            self.redis.wait_ready(60, tick)
        elif not redis_is_up(self.redis_url):
            raise StartError(
                f"Redis is not reachable at {shown_url(self.redis_url)} (REDIS_URL).",
                "Start it, or unset REDIS_URL to run a Redis here.",
            )

    def _start_backend(self, token: str) -> None:
        settings = self.settings_environment(token)
        for process in self._ours:
            process.environment.update(settings)
            process.start()

    def settings_environment(self, token: str = "") -> dict[str, str]:
        """Return settings that make another process use this stack and its models."""
        chosen = {"PROJECT_TOKENS", *(name.upper() for name in MODEL_SETTINGS)} & self.backend.environment.keys()
        credentials = dict(zip(("BASIC_AUTH_USER", "BASIC_AUTH_PASS"), self.basic_auth or (), strict=False))
        return (
            {name: self.backend.environment[name] for name in sorted(chosen)}
            | credentials
            | {
                "BACKEND_URL": self.backend.url,
                "LABEL_STUDIO_URL": self.label_studio.url,
                "LABEL_STUDIO_API_KEY": token or self.token,
                "REDIS_URL": self.redis_url,
                "DATA_DIR": str(self.data_dir),
                "UPLOADS_ROOT": str(self.label_studio.media_root),
                "LOCAL_FILES_ROOT": str(self.local_files),
            }
        )

    def _valid_token(self, token: str) -> str:
        if token:
            try:
                LabelStudioClient(self.label_studio.url, token).whoami()
                return token
            except LabelStudioError as error:
                if error.retryable:
                    raise
                self.reporter.say("The stored token is no longer valid; creating a new one.")
        token = create_token(self.label_studio.url, self.username, self.label_studio.password)
        write_private(token_path(self.data_dir), token + "\n")
        return token

    @property
    def basic_auth(self) -> tuple[str, str] | None:
        """The backend's credentials; ``None`` if it requires none."""
        overrides = {name.lower(): value for name, value in self.options.environment.items()}
        settings = Settings(_env_file=None if self.options.isolated else ROOT / ".env")
        user = overrides.get("basic_auth_user") or ("" if self.options.isolated else settings.basic_auth_user)
        secret = overrides.get("basic_auth_pass") or (
            "" if self.options.isolated else settings.basic_auth_pass.get_secret_value()
        )
        return (user, secret) if user and secret else None

    def credentials(self, project_id: int) -> tuple[str, str] | None:
        """Return what a project's connection to the backend carries; ``None`` if it needs nothing."""
        from ml_backend.jobs.container import Container

        values: dict[str, Any] = {name.lower(): value for name, value in self.settings_environment().items()}
        settings = Settings(_env_file=None if self.options.isolated else ROOT / ".env", **values)
        return Container(settings).credentials(project_id)

    def client(self) -> LabelStudioClient:
        """Return a client with the permissions of Label Studio's first user."""
        return LabelStudioClient(self.label_studio.url, self.token)

    def save_state(self) -> None:
        """Save the state by which other commands find this stack."""
        StackState(
            pid=os.getpid(),
            label_studio_url=self.label_studio.url,
            backend_url=self.backend.url,
            environment=self.settings_environment() | self._stores(),
        ).save(self.data_dir)
        if not self.options.isolated:
            announce(ROOT, self.data_dir)

    def _stores(self) -> dict[str, str]:
        """Return settings of external stores, which other commands must use too."""
        if self.options.isolated:
            return {}
        settings = Settings(_env_file=ROOT / ".env")
        stores = {"DATABASE_URL": settings.database_url, "ARTIFACTS_URL": settings.artifacts_url}
        return {name: value for name, value in stores.items() if value}

    def stop(self) -> None:
        """Stop all processes and their descendants. Calling it again does nothing."""
        servers = [process for process in self.processes if process is not self.redis]
        for process in servers:
            process.terminate()
        for process in servers:
            process.stop()
        if self.redis:  # last, since the worker requeues its job while it stops
            self.redis.stop()
        if self._guardian:
            self._guardian.communicate(timeout=30)  # closes its stdin, whereupon it terminates what is left
            self._guardian = None
            state_path(self.data_dir).unlink(missing_ok=True)
            announce(ROOT)
        if self._lock:
            self._lock.close()
            self._lock = None

    def kill(self) -> None:
        """Kill all processes without waiting."""
        sweep(self._mark, grace=0.0)

    # -- supervision

    def watch(self) -> NoReturn:
        """Restart failed processes, with exponential back-off, until a signal arrives."""
        while True:
            self.revive()
            time.sleep(0.5)

    def revive(self) -> None:
        """Restart failed processes whose back-off is over."""
        for process in self.processes:
            count, until = self._failures.get(process.name, (0, 0.0))
            now = time.monotonic()
            if process.alive or now < until:
                continue
            if now - until > HEALTHY_S:
                count = 0
            self.reporter.say(
                f"{process.name} exited unexpectedly (exit status {process.returncode}); restarting it. "
                f"The end of {process.log_path}:\n{process.tail(5)}"
            )
            self._failures[process.name] = (count + 1, now + min(2.0**count, MAX_BACK_OFF_S))
            process.start()


def _lock(data_dir: Path) -> IO[str]:
    """Lock the data folder against other stacks, until this process exits."""
    lock = lock_path(data_dir).open("a")
    for _ in range(LOCK_ATTEMPTS):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except OSError:
            time.sleep(0.1)
    lock.close()
    raise StartError(
        f"Another stack is running on {data_dir}.",
        "Use or stop that stack, or choose others: --data-dir, --port and --label-studio-port.",
    )
