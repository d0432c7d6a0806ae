"""The whole stack on one machine: Redis, Label Studio, backend, a worker and a trainer, watched over."""

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
from typing import IO, NoReturn

from ml_backend.cli.dev_stack.environment import MODEL_SETTINGS, base_environment
from ml_backend.cli.dev_stack.guardian import MARK, start_guardian, sweep
from ml_backend.cli.dev_stack.preflight import ROOT, StartError
from ml_backend.cli.dev_stack.processes import (
    BackendServer,
    LabelStudioServer,
    ManagedProcess,
    RedisServer,
    WorkerProcess,
    redis_answers,
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
from ml_backend.label_studio.client import LabelStudioClient, create_token

#: Creating the database takes 20 to 45 s, on a slow disk more.
LABEL_STUDIO_TIMEOUT = 300.0
#: The first import of PyTorch after installing reads gigabytes.
BACKEND_TIMEOUT = 180.0
#: A process that ran for so long was healthy: its next failure starts counting anew.
HEALTHY_S = 60.0
MAX_BACK_OFF_S = 30.0
#: Commands that look whether a stack runs hold its lock for a moment.
LOCK_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class StackOptions:
    """How to run a stack.

    Attributes:
        data_dir: absolute; holds all state.
        redis_url: a running Redis; empty: start one.
        isolated: take no server addresses from the environment or ``.env``.
        environment: added to the environment of backend and worker.
    """

    data_dir: Path
    port: int
    label_studio_port: int
    redis_url: str = ""
    isolated: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)


class Stack:
    """Starts in overlapping steps; as a context manager it always stops everything."""

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
        self._deaths: dict[str, tuple[int, float]] = {}

        environment = base_environment(self.data_dir, isolated=options.isolated) | {MARK: self._mark}
        # An isolated stack must not read the .env file of the project's folder either.
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
        # Two of them: a training takes minutes, in which people want their predictions.
        self.worker, self.trainer = (
            WorkerProcess(
                name, queues, redis_url=self.redis_url, log_dir=self.log_dir, environment=environment, cwd=self._cwd
            )
            for name, queues in (("worker", QUEUES[:-1]), ("trainer", QUEUES[-1:]))
        )
        self._ours: list[ManagedProcess] = [self.worker, self.trainer, self.backend]

    # -- life

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
        """All processes that this stack runs, in the order in which they must stop."""
        return [*self._ours, self.label_studio, *([self.redis] if self.redis else [])]

    def start(self) -> None:
        """Bring everything up.

        Raises:
            StartError: with cause, hint and the end of the log of what did not come up.
        """
        for folder in (self.data_dir, self.log_dir, self.local_files):
            folder.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(self.data_dir)
        self._guardian = start_guardian(self._mark)
        self.label_studio.start()
        with self.reporter.stage("redis", "Starting Redis") as tick:
            self._start_redis(tick)
        token = read_text(token_path(self.data_dir))
        if token:  # not the first start: everything at once
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
        elif not redis_answers(self.redis_url):
            raise StartError(
                f"No Redis answers at {self.redis_url.rsplit('@', 1)[-1]}, which REDIS_URL names.",
                "Start it, or unset REDIS_URL: then a Redis is started here.",
            )

    def _start_backend(self, token: str) -> None:
        settings = self.settings_environment(token)
        for process in self._ours:
            process.environment.update(settings)
            process.start()

    def settings_environment(self, token: str = "") -> dict[str, str]:
        """Settings by which a process finds this stack, and uses the same models as it does."""
        chosen = {name.upper() for name in MODEL_SETTINGS} & self.backend.environment.keys()
        return {name: self.backend.environment[name] for name in sorted(chosen)} | {
            "LABEL_STUDIO_URL": self.label_studio.url,
            "LABEL_STUDIO_API_KEY": token or self.token,
            "REDIS_URL": self.redis_url,
            "DATA_DIR": str(self.data_dir),
            "UPLOADS_ROOT": str(self.label_studio.media_root),
            "LOCAL_FILES_ROOT": str(self.local_files),
        }

    def _valid_token(self, token: str) -> str:
        if token:
            try:
                LabelStudioClient(self.label_studio.url, token).whoami()
                return token
            except LabelStudioError as error:
                if error.retryable:
                    raise
                self.reporter.say("The stored token is no longer valid; making a new one.")
        token = create_token(self.label_studio.url, self.username, self.label_studio.password)
        write_private(token_path(self.data_dir), token + "\n")
        return token

    @property
    def basic_auth(self) -> tuple[str, str] | None:
        """Credentials that the backend asks for, if it does."""
        named = {name.lower(): value for name, value in self.options.environment.items()}
        known = Settings(_env_file=None if self.options.isolated else ROOT / ".env")
        user = named.get("basic_auth_user") or ("" if self.options.isolated else known.basic_auth_user)
        secret = named.get("basic_auth_pass") or (
            "" if self.options.isolated else known.basic_auth_pass.get_secret_value()
        )
        return (user, secret) if user and secret else None

    def client(self) -> LabelStudioClient:
        """A client with the rights of Label Studio's first user."""
        return LabelStudioClient(self.label_studio.url, self.token)

    def save_state(self) -> None:
        """Let other commands find this stack."""
        StackState(
            pid=os.getpid(),
            label_studio_url=self.label_studio.url,
            backend_url=self.backend.url,
            environment=self.settings_environment() | self._stores(),
        ).save(self.data_dir)
        if not self.options.isolated:
            announce(ROOT, self.data_dir)

    def _stores(self) -> dict[str, str]:
        """Settings that say where else this stack keeps things: commands must not begin empty ones beside them."""
        if self.options.isolated:
            return {}
        known = Settings(_env_file=ROOT / ".env")
        stores = {"DATABASE_URL": known.database_url, "ARTIFACTS_URL": known.artifacts_url}
        return {name: value for name, value in stores.items() if value}

    def stop(self) -> None:
        """Stop everything, also what the processes have started. Calling it again does nothing."""
        servers = [process for process in self.processes if process is not self.redis]
        for process in servers:
            process.terminate()
        for process in servers:
            process.stop()
        if self.redis:  # last: the worker puts its job back while it stops
            self.redis.stop()
        if self._guardian:
            self._guardian.communicate(timeout=30)  # closes its input: it ends what is left
            self._guardian = None
            state_path(self.data_dir).unlink(missing_ok=True)
            announce(ROOT)
        if self._lock:
            self._lock.close()
            self._lock = None

    def kill(self) -> None:
        """Stop everything without waiting for anything."""
        sweep(self._mark, grace=0.0)

    # -- watching

    def watch(self) -> NoReturn:
        """Restart what dies, with growing pauses, until a signal comes."""
        while True:
            self.revive()
            time.sleep(0.5)

    def revive(self) -> None:
        """Restart what has died, unless it is pausing."""
        for process in self.processes:
            count, until = self._deaths.get(process.name, (0, 0.0))
            now = time.monotonic()
            if process.alive or now < until:
                continue
            if now - until > HEALTHY_S:
                count = 0
            self.reporter.say(
                f"{process.name} ended unexpectedly (exit status {process.returncode}); restarting it. "
                f"Its log is {process.log_path}; the last lines:\n{process.tail(5)}"
            )
            self._deaths[process.name] = (count + 1, now + min(2.0**count, MAX_BACK_OFF_S))
            process.start()


def _lock(data_dir: Path) -> IO[str]:
    """Make sure that no other stack works on this folder; the lock goes with the process."""
    lock = lock_path(data_dir).open("a")
    for _ in range(LOCK_ATTEMPTS):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except OSError:
            time.sleep(0.1)
    lock.close()
    raise StartError(
        f"Another stack runs on {data_dir}.",
        "Use that one, or stop it, or choose others: --data-dir, --port and --label-studio-port.",
    )
