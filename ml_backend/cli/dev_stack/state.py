"""What the local stack keeps in its data folder: secrets, and where a running stack is to be found."""

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
    """Replace a file that only its owner may read, in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    temporary.replace(path)


def read_text(path: Path) -> str:
    """Content without the final newline, empty if there is no file."""
    return path.read_text(encoding="utf-8").strip() if path.is_file() else ""


def login_password(data_dir: Path) -> str:
    """The password of Label Studio's first user: made once, kept in the data folder."""
    path = data_dir / "label-studio-password"
    password = read_text(path)
    if not password:
        password = secrets.token_urlsafe(12)
        write_private(path, password + "\n")
    return password


def token_path(data_dir: Path) -> Path:
    """Where the personal access token is kept."""
    return data_dir / "label-studio-token"


def keep_secret_key(label_studio: Path) -> None:
    """Give Label Studio's data folder a ``SECRET_KEY`` that it can read again, before it makes its own in ``.env``.

    One in fifty of its own begins with ``$``, which its reader of that file takes for the name of a variable: such a
    Label Studio makes another key at each start, and forgets its tokens and sessions. The first line counts.
    """
    path = label_studio / ".env"
    before = read_text(path).splitlines()
    lines = [line for line in before if not line.startswith("SECRET_KEY=$")]
    if not any(line.startswith("SECRET_KEY=") for line in lines):
        lines.append(f"SECRET_KEY={secrets.token_hex(32)}")
    if lines != before:
        write_private(path, "\n".join(lines) + "\n")


@dataclass(slots=True)
class StackState:
    """A running stack, for commands that want to talk to it.

    Attributes:
        pid: of the supervisor.
        environment: settings that make other commands find the stack. Holds the token, hence the file's mode 600.
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
    """What a running stack holds a lock on, which goes with its process, however that ends."""
    return data_dir / "stack.lock"


def running_stack(data_dir: Path) -> StackState | None:
    """The stack that runs on this data folder, if one does."""
    try:
        known = json.loads(state_path(data_dir).read_text(encoding="utf-8"))
        state = StackState(**{name: known[name] for name in StackState.__annotations__})  # 0.1.0 has written more
        os.kill(state.pid, 0)
    except (OSError, ValueError, TypeError, KeyError):
        return None  # never started, ended, or killed
    return None if _is_released(lock_path(data_dir)) else state


def _is_released(lock: Path) -> bool:
    """Whether a stack has held this lock and nobody does now: after a power cut its process id may be another's.

    Takes a shared lock for a moment, so that commands which look at the same time do not see each other.
    """
    try:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:  # held; or there is none, or it cannot be told: then the process id alone counts
        return False
    return True


def announcements(root: Path) -> Path:
    """Data folders elsewhere on which stacks of this project run, one a line, the newest first."""
    return root / "data" / "stacks-elsewhere"


def announced(root: Path) -> list[Path]:
    """Folders that were announced; what ran on them may have ended."""
    return [Path(line) for line in read_text(announcements(root)).splitlines() if line]


def announce(root: Path, data_dir: Path | None = None) -> None:
    """Let commands that know only the project's folder find the stack on ``data_dir``; forget those that have ended."""
    folders = [] if data_dir in (None, root / "data") else [data_dir]
    running = [folder for folder in dict.fromkeys([*folders, *announced(root)]) if folder and running_stack(folder)]
    path = announcements(root)
    if running:
        write_private(path, "".join(f"{folder}\n" for folder in running))
    elif path.is_file():
        path.unlink()
        with contextlib.suppress(OSError):
            path.parent.rmdir()  # where nothing else is in it, it was made for this
