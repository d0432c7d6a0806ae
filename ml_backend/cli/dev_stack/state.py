"""Files in the local stack's data folder: secrets, and the state of a running stack."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path

USERNAME = "admin@localhost.localdomain"


def write_private(path: Path, text: str) -> None:
    """Write a file atomically, readable only by its owner."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    temporary.replace(path)


def read_text(path: Path) -> str:
    """Return the stripped content, or an empty string if there is no file."""
    return path.read_text(encoding="utf-8").strip() if path.is_file() else ""


def login_password(data_dir: Path) -> str:
    """Return the password of Label Studio's first user, created on first use."""
    path = data_dir / "label-studio-password"
    password = read_text(path)
    if not password:
        password = secrets.token_urlsafe(12)
        write_private(path, password + "\n")
    return password


def token_path(data_dir: Path) -> Path:
    """Return the path of the personal access token."""
    return data_dir / "label-studio-token"


def keep_secret_key(label_studio: Path) -> None:
    """Write a readable ``SECRET_KEY`` to Label Studio's ``.env``, before it generates its own.

    One in fifty of its own begins with ``$``, which its parser expands as a variable: such a Label Studio generates
    another key at each start, which invalidates tokens and sessions. The first line counts.
    """
    path = label_studio / ".env"
    old_lines = read_text(path).splitlines()
    lines = [line for line in old_lines if not line.startswith("SECRET_KEY=$")]
    if not any(line.startswith("SECRET_KEY=") for line in lines):
        lines.append(f"SECRET_KEY={secrets.token_hex(32)}")
    if lines != old_lines:
        write_private(path, "\n".join(lines) + "\n")


@dataclass(slots=True)
class StackState:
    """A running stack, as other commands find it.

    Attributes:
        pid: process id of the supervisor.
        environment: settings that make other commands use the stack. Holds the token, hence the file's mode 600.
    """

    pid: int
    label_studio_url: str
    backend_url: str
    environment: dict[str, str]

    def save(self, data_dir: Path) -> None:
        write_private(state_path(data_dir), json.dumps(asdict(self), indent=1) + "\n")


def state_path(data_dir: Path) -> Path:
    return data_dir / "stack.json"


def lock_path(data_dir: Path) -> Path:
    """Return the path of the file that a running stack keeps locked."""
    return data_dir / "stack.lock"


def running_stack(data_dir: Path) -> StackState | None:
    """Return the stack that runs on this data folder, or ``None``."""
    try:
        saved = json.loads(state_path(data_dir).read_text(encoding="utf-8"))
        state = StackState(**{name: saved[name] for name in StackState.__annotations__})  # 0.1.0 wrote more fields
        os.kill(state.pid, 0)
    except (OSError, ValueError, TypeError, KeyError):
        return None  # never started, stopped, or killed
    return None if _is_released(lock_path(data_dir)) else state


def _is_released(lock: Path) -> bool:
    """Return whether the lock file exists unlocked: after a power cut, the process id may be another program's.

    Takes a shared lock for a moment, so that simultaneous checks do not disturb each other.
    """
    try:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:  # locked, or missing or unreadable: then only the process id counts
        return False
    return True


def announcements(root: Path) -> Path:
    """Return the path of the list of other data folders with running stacks, one per line, newest first."""
    return root / "data" / "stacks-elsewhere"


def announced(root: Path) -> list[Path]:
    """Return the announced data folders, whose stacks may have stopped."""
    return [Path(line) for line in read_text(announcements(root)).splitlines() if line]


def announce(root: Path, data_dir: Path | None = None) -> None:
    """Add ``data_dir`` to the announced folders, unless it is the default, and remove those of stopped stacks."""
    folders = [] if data_dir in (None, root / "data") else [data_dir]
    running = [folder for folder in dict.fromkeys([*folders, *announced(root)]) if folder and running_stack(folder)]
    path = announcements(root)
    if running:
        write_private(path, "".join(f"{folder}\n" for folder in running))
    elif path.is_file():
        path.unlink()
        with contextlib.suppress(OSError):
            path.parent.rmdir()  # if empty, it was created for this file
