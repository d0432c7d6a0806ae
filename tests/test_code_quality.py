"""The linters have nothing to say, and the shell scripts parse."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ml_backend.cli.dev_stack.preflight import ROOT


@pytest.mark.parametrize(
    "command",
    ["ruff check .", "ruff format --check .", "pyrefly check", "lint-imports"],
)
def test_linters(command: str) -> None:
    program, *arguments = command.split()
    found = Path(sys.executable).with_name(program)
    result = subprocess.run([found, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("script", [*ROOT.glob("scripts/*.sh"), ROOT / ".ci" / "run"], ids=lambda path: path.name)
def test_shell_scripts_parse(script: Path) -> None:
    result = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_importing_the_app_loads_no_heavy_library() -> None:
    """The web process answers in milliseconds because it never loads a model, nor what models need."""
    heavy = ("torch", "ultralytics", "torchvision")
    code = f"import sys, ml_backend.server.app; print([n for n in {heavy} if n in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
