"""``label-studio-video``: the scripts as sub-commands."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from ml_backend.cli.__main__ import MODULES, main
from ml_backend.cli.dev_stack.preflight import ROOT


def test_each_script_is_a_command() -> None:
    scripts = {path.stem.replace("_", "-") for path in (ROOT / "scripts").glob("*.py")}
    assert set(MODULES) == scripts
    listed = CliRunner().invoke(main, ["--help"])
    assert listed.exit_code == 0
    assert all(f"\n  {name} " in listed.output for name in MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_a_script_runs_its_command(name: str) -> None:
    script = ROOT / "scripts" / f"{name.replace('-', '_')}.py"
    assert f"from {MODULES[name]} import main" in script.read_text()
    assert CliRunner().invoke(main, [name, "--help"]).exit_code == 0


def test_an_unknown_command_is_refused() -> None:
    result = CliRunner().invoke(main, ["fly"])
    assert result.exit_code == 2
    assert "No such command 'fly'" in result.output
