"""Checks of disk space, permissions and ports before installing and starting. Also used by the doctor.

Standard library only: this runs under the system's Python, before the virtual environment exists.
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

from ml_backend.cli.dev_stack.state import running_stack
from ml_backend.core.errors import BackendError

ROOT = Path(__file__).resolve().parents[3]

# Both environments take 6.6 GB, plus pip's cache and the sample video.
INSTALL_GB = 9.0
# A changed lock usually updates only some packages.
UPDATE_GB = 4.0
# pip keeps all downloads in the temporary folder until they are installed.
DOWNLOAD_GB = 3.5
# Enough for Label Studio's database, logs and the sample video; projects need room for their videos.
RUN_GB = 0.5


class StartError(BackendError):
    """The local stack cannot start, or one of its processes failed to."""


def free_port() -> int:
    """Return a port that nothing listens on now."""
    while True:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            port = int(sock.getsockname()[1])
        if _is_free(socket.AF_INET6, "::1", port):
            return port


def port_is_free(port: int) -> bool:
    """Return whether a server can listen on a local port, counting listeners on all interfaces.

    ``::1`` must be free too: our URLs say ``localhost``, for which many programs try it first.
    """
    return _is_free(socket.AF_INET, "127.0.0.1", port) and _is_free(socket.AF_INET6, "::1", port)


def _is_free(family: socket.AddressFamily, host: str, port: int) -> bool:
    """Return whether nothing listens on an address; one that this machine lacks counts as free."""
    try:
        with socket.socket(family) as sock:
            sock.settimeout(1)
            if sock.connect_ex((host, port)) == 0:
                return False
        with socket.socket(family) as sock:
            # As servers do, so that lingering sockets of a stopped server do not count.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((host, port))
    except OSError as error:
        # Without IPv6 other errors are raised, and nothing can listen there.
        return family == socket.AF_INET6 and error.errno != errno.EADDRINUSE
    return True


def port_owner(port: int) -> str:
    """Return id and command of the process that listens on a port, or ``""`` without psutil or permission."""
    try:
        import psutil
    except ImportError:  # nothing is installed yet
        return ""
    try:
        listening = [item for item in psutil.net_connections("tcp") if item.status == psutil.CONN_LISTEN]
        owner = next((item.pid for item in listening if item.laddr[1:] == (port,) and item.pid), None)
        return f"process {owner}: {' '.join(psutil.Process(owner).cmdline())[:80]}" if owner else ""
    except psutil.Error:
        return ""


def check_port(port: int, service: str, option: str, variable: str) -> None:
    """Raise StartError if ``port`` is in use, naming its process and the option to change it."""
    if not port_is_free(port):
        owner = port_owner(port)
        raise StartError(
            f"Port {port}, needed by {service}, is in use{f' ({owner})' if owner else ''}.",
            f"Stop that program, or choose another port: {option} {port + 1} (or {variable}={port + 1}).",
        )


def _existing(folder: Path) -> Path:
    return next(parent for parent in (folder, *folder.parents) if parent.exists())


def check_disk(
    folder: Path, needed_gb: float, activity: str, hint: str = "Free some space, or move the project to a larger disk."
) -> float:
    """Return the free GB of the file system of ``folder``, which need not exist; raise StartError if too few."""
    existing = _existing(folder)
    free_gb = shutil.disk_usage(existing).free / 1e9
    if free_gb < needed_gb:
        raise StartError(
            f"{activity} needs about {needed_gb:g} GB of disk space, but {existing} has only {free_gb:.1f} GB free.",
            hint,
        )
    return free_gb


def check_writable(folder: Path) -> None:
    """Raise StartError unless files can be created in ``folder`` or its nearest existing parent."""
    try:
        with tempfile.TemporaryFile(dir=_existing(folder)):
            pass
    except OSError as error:
        raise StartError(
            f"{folder} cannot be written to ({error.strerror or error}).",
            "Copy the project to a folder of yours, or choose another data folder: --data-dir or DATA_DIR.",
        ) from error


def check_install() -> None:
    """Check disk space and permissions for the virtual environments."""
    check_writable(ROOT)
    needed = UPDATE_GB if any(ROOT.glob(".venv/.installed-*")) else INSTALL_GB
    check_disk(ROOT, float(os.environ.get("INSTALL_GB", needed)), "Installing")
    temporary = Path(tempfile.gettempdir())
    if temporary.stat().st_dev != ROOT.stat().st_dev:
        check_disk(
            temporary, DOWNLOAD_GB, "Downloading", "Free some space, or set TMPDIR to a folder on a larger disk."
        )


def check_start(data_dir: Path, port: int, label_studio_port: int) -> None:
    """Check disk space, permissions and ports for the local stack.

    Raises:
        StartError: the first failed check.
    """
    if running := running_stack(data_dir):
        raise StartError(
            f"The stack is already running (process {running.pid}): {running.label_studio_url}",
            "Open that URL, stop the stack (Ctrl-C where it was started), "
            "or run another one: --data-dir, --port and --label-studio-port.",
        )
    check_writable(data_dir)
    check_disk(data_dir, RUN_GB, "Running")
    if port == label_studio_port:
        raise StartError(
            f"Backend and Label Studio cannot share port {port}.", "Choose two ports: --port, --label-studio-port."
        )
    check_port(label_studio_port, "Label Studio", "--label-studio-port", "LABEL_STUDIO_PORT")
    check_port(port, "the ML backend", "--port", "PORT")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="up.sh", usage="bash scripts/up.sh [OPTIONS] (--help)", allow_abbrev=False)
    parser.add_argument("step", choices=["install", "start"])
    parser.add_argument("--from", type=Path, default=Path.cwd(), dest="cwd")
    parser.add_argument("--data-dir", type=Path, default=os.environ.get("DATA_DIR") or ROOT / "data")
    parser.add_argument("--port", type=int, default=os.environ.get("PORT") or 9090)
    parser.add_argument("--label-studio-port", type=int, default=os.environ.get("LABEL_STUDIO_PORT") or 8080)
    parser.add_argument("--no-demo", action="store_true")
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args(arguments)
    data_dir = Path(os.path.abspath(options.cwd / options.data_dir))
    try:
        if options.step == "install":
            check_install()
            return 0
        if not options.smoke:
            check_start(data_dir, options.port, options.label_studio_port)
    except StartError as error:
        print(f"error: {error.message}\n  fix: {error.hint}", file=sys.stderr)
        return 1
    print(data_dir)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
