"""What must be true of a machine before anything is installed or started.

Only the standard library: this runs under the machine's own Python, before the virtual environment exists.
"""

from __future__ import annotations

import argparse
import errno
import os
import shutil
import socket
import sys
import tempfile
from pathlib import Path

from ml_backend.local.state import running_stack

ROOT = Path(__file__).resolve().parents[2]

# Both environments take 6.6 GB; pip's cache and the sample come on top.
INSTALL_GB = 9.0
# Most packages stay as they are when a lock changes.
UPDATE_GB = 4.0
# pip keeps all downloads in the temporary folder until they are installed.
DOWNLOAD_GB = 3.5
# Enough for Label Studio's database, logs and the sample; a video project needs what its videos need.
RUN_GB = 0.5


class PreflightError(Exception):
    """Something that the reader must put right first."""

    def __init__(self, message: str, cure: str) -> None:
        super().__init__(message)
        self.message = message
        self.cure = cure

    def __str__(self) -> str:
        return f"{self.message} {self.cure}"


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nothing listens on just now."""
    while True:
        with socket.socket() as sock:
            sock.bind((host, 0))
            port = int(sock.getsockname()[1])
        if _is_free(socket.AF_INET6, "::1", port):
            return port


def port_is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a server could listen there, counting listeners on all interfaces.

    Nor may any listen on ``::1``: our addresses say ``localhost``, for which many programs try that first.
    """
    return _is_free(socket.AF_INET, host, port) and _is_free(socket.AF_INET6, "::1", port)


def _is_free(family: socket.AddressFamily, host: str, port: int) -> bool:
    """Whether nothing listens at one address; an address that this machine does not have is free."""
    try:
        with socket.socket(family) as sock:
            sock.settimeout(1)
            if sock.connect_ex((host, port)) == 0:
                return False
        with socket.socket(family) as sock:
            # Sockets of a server that has just stopped linger; a server binds over them, so that is what counts.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((host, port))
    except OSError as error:
        # Without IPv6 other errors come, and nobody can be in the way there.
        return family == socket.AF_INET6 and error.errno != errno.EADDRINUSE
    return True


def port_owner(port: int) -> str:
    """Name and id of the process that listens on a port, or ``""`` where the system does not tell."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for fields in map(str.split, lines):
            if fields[3] == "0A" and int(fields[1].rsplit(":", 1)[1], 16) == port:  # 0A: LISTEN
                inodes.add(f"socket:[{fields[9]}]")
    if not inodes:
        return ""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(os.readlink(fd) in inodes for fd in (process / "fd").iterdir()):
                command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                return f"process {process.name}: {command[:80]}"
        except OSError:
            continue  # it ended meanwhile, or belongs to somebody else
    return ""


def check_port(port: int, what: str, option: str, variable: str) -> None:
    """Raise if ``port`` is taken, naming who has it and how to choose another."""
    if port_is_free(port):
        return
    owner = port_owner(port)
    raise PreflightError(
        f"Port {port}, wanted for {what}, is busy{f' ({owner})' if owner else ''}.",
        f"Stop that program, or choose another port: {option} {port + 1} (or {variable}={port + 1}).",
    )


def check_disk(
    folder: Path, needed_gb: float, what: str, cure: str = "Free some space, or move the project to a larger disk."
) -> None:
    """Raise unless the file system of ``folder`` (which need not exist yet) has room."""
    existing = folder
    while not existing.exists():
        existing = existing.parent
    free_gb = shutil.disk_usage(existing).free / 1e9
    if free_gb < needed_gb:
        raise PreflightError(
            f"{what} needs about {needed_gb:g} GB of disk space, but {existing} has only {free_gb:.1f} GB free.",
            cure,
        )


def check_writable(folder: Path) -> None:
    """Raise unless files can be made in ``folder``; makes the folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise PreflightError(
            f"{folder} cannot be written to ({error.strerror or error}).",
            "Use a copy of the project in a folder of yours, or choose another data folder: --data-dir.",
        ) from error


def check_install() -> None:
    """Room and rights for the virtual environments."""
    check_writable(ROOT)
    needed = UPDATE_GB if any(ROOT.glob(".venv/.installed-*")) else INSTALL_GB
    check_disk(ROOT, float(os.environ.get("INSTALL_GB", needed)), "Installing")
    temporary = Path(tempfile.gettempdir())
    if temporary.stat().st_dev != ROOT.stat().st_dev:
        check_disk(
            temporary, DOWNLOAD_GB, "Downloading", "Free some space, or set TMPDIR to a folder on a larger disk."
        )


def check_start(data_dir: Path, port: int, label_studio_port: int) -> None:
    """Room, rights and ports for the local stack.

    Raises:
        PreflightError: for the first thing that is in the way.
    """
    running = running_stack(data_dir)
    if running:
        raise PreflightError(
            f"It is running already (process {running.pid}): {running.label_studio_url}",
            "Open that address, or stop it (Ctrl-C where it was started), "
            "or run another one: --data-dir, --port and --label-studio-port.",
        )
    check_writable(data_dir)
    check_disk(data_dir, RUN_GB, "Running")
    if port == label_studio_port:
        raise PreflightError(
            f"Backend and Label Studio cannot share port {port}.", "Choose two: --port, --label-studio-port."
        )
    check_port(label_studio_port, "Label Studio", "--label-studio-port", "LABEL_STUDIO_PORT")
    check_port(port, "the ML backend", "--port", "PORT")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="preflight", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("install")
    start = commands.add_parser("start")
    start.add_argument("--data-dir", type=Path, required=True)
    start.add_argument("--port", type=int, required=True)
    start.add_argument("--label-studio-port", type=int, required=True)
    options = parser.parse_args(arguments)
    try:
        if options.command == "install":
            check_install()
        else:
            check_start(options.data_dir.absolute(), options.port, options.label_studio_port)
    except PreflightError as error:
        print(f"error: {error.message}\n  cure: {error.cure}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
