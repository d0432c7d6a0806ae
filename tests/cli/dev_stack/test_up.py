"""``scripts/up.sh`` on machines where something is missing: one clear sentence, and how to fix it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
#: Programs that every Linux and macOS has.
TOOLS = [
    "bash", "sh", "env", "dirname", "basename", "grep", "sed", "cut", "tail", "head",
    "cat", "mktemp", "mkdir", "rm", "mv", "sleep", "wc", "kill", "id", "uname",
]  # fmt: skip


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    """The project as it is after cloning: no virtual environments."""
    folder = tmp_path / "project"
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("scripts", "ml_backend"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    for path in ROOT.glob("requirements*"):
        shutil.copy(path, folder)
    return folder


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A folder for PATH with the usual programs and no Python."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in TOOLS:
        program = shutil.which(name)
        if program:
            (folder / name).symlink_to(program)
    return folder


def up(project: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run up.sh until it ends; for cases in which it must end by itself."""
    keep = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON"))}
    return subprocess.run(
        ["bash", str(project / "scripts" / "up.sh"), *arguments],
        env=keep | {"PYTHON": sys.executable} | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def script(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def test_no_python(fresh: Path, tools: Path) -> None:
    result = up(fresh, PATH=str(tools), PYTHON="")
    assert result.returncode == 1
    assert "Python was not found" in result.stderr
    assert "fix: Install Python 3.10 or newer" in result.stderr


def test_old_python(fresh: Path, tools: Path) -> None:
    # It answers 3.8 to what is asked for the version, and to whether it is new enough it must say no.
    script(tools / "python3", '#!/bin/sh\ncase "$2" in *"(3, 10)"*) exit 1;; esac\necho 3.8\n')
    result = up(fresh, PATH=str(tools), PYTHON="")
    assert result.returncode == 1
    assert "Python 3.10 or newer is needed, found only: python3=3.8" in result.stderr
    assert "PYTHON=/path/to/python3" in result.stderr


def test_python_that_only_pretends_to_be_there(fresh: Path, tools: Path) -> None:
    """Version managers leave commands that end with an error."""
    script(tools / "python3", "#!/bin/sh\nexit 127\n")
    result = up(fresh, PATH=str(tools), PYTHON="")
    assert "Python was not found" in result.stderr


def test_no_venv_module(fresh: Path, tools: Path) -> None:
    script(tools / "python3", f'#!/bin/sh\ncase "$2" in *ensurepip*) exit 1;; esac\nexec {sys.executable} "$@"\n')
    result = up(fresh, "--data-dir", str(fresh / "data"), *ports(), PATH=str(tools), PYTHON="")
    assert result.returncode == 1
    assert "cannot create virtual environments" in result.stderr
    assert "sudo apt install python3." in result.stderr


def test_no_disk_space(fresh: Path) -> None:
    result = up(fresh, *ports(), INSTALL_GB="1e9")
    assert result.returncode == 1
    assert "Installing needs about 1e+09 GB of disk space" in result.stderr
    assert "Free some space" in result.stderr
    assert not (fresh / ".venv").exists(), "nothing may be begun"


@pytest.mark.slow
def test_no_network(fresh: Path) -> None:
    """Nothing listens on the index's port: the answer comes at once, not after pip's many tries."""
    result = up(fresh, *ports(), PIP_INDEX_URL="http://127.0.0.1:1/simple", PIP_CONFIG_FILE=os.devnull)
    assert result.returncode == 1
    assert "The package index cannot be reached" in result.stderr
    assert "PIP_INDEX_URL" in result.stderr
    assert "HTTPS_PROXY" in result.stderr


@pytest.mark.parametrize("option", ["--port", "--label-studio-port"])
def test_busy_port(option: str, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = up(ROOT, option, str(port), *ports(but=option), "--data-dir", str(tmp_path / "data"))
    assert result.returncode == 1
    assert f"Port {port}" in result.stderr
    assert "is in use" in result.stderr
    if sys.platform == "linux":
        assert f"process {os.getpid()}" in result.stderr
    assert f"{option} {port + 1}" in result.stderr


def test_data_folder_that_cannot_be_written(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    result = up(ROOT, "--data-dir", str(file / "data"), *ports())
    assert result.returncode == 1
    assert "cannot be written to" in result.stderr
    assert "--data-dir" in result.stderr


@pytest.mark.parametrize("by", ["option", "variable"])
def test_a_relative_data_folder_is_meant_from_where_one_stands(
    by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen by what is in its way there."""
    (tmp_path / "taken").touch()
    monkeypatch.chdir(tmp_path)
    if by == "option":
        result = up(ROOT, "--data-dir", "taken/data", *ports())
    else:
        result = up(ROOT, *ports(), DATA_DIR="taken/data")
    assert result.returncode == 1
    assert f"{tmp_path}/taken/data cannot be written to" in result.stderr


@pytest.mark.parametrize("arguments", [["--prot", "1"], ["--port"]])
def test_wrong_options(arguments: list[str]) -> None:
    result = up(ROOT, *arguments)
    assert result.returncode == 1
    assert "--help" in result.stderr


def test_help_needs_nothing(fresh: Path, tools: Path) -> None:
    result = up(fresh, "--help", PATH=str(tools), PYTHON="")
    assert result.returncode == 0
    assert "--label-studio-port" in result.stdout


def ports(but: str = "") -> list[str]:
    """Options for two ports that are free, so that a stack which runs here does not matter."""
    words = []
    for option in ("--port", "--label-studio-port"):
        if option != but:
            with socket.socket() as sock:
                sock.bind(("127.0.0.1", 0))
                words += [option, str(sock.getsockname()[1])]
    return words
